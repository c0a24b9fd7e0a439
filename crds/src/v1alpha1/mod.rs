//! Version `v1alpha1` of the API.

mod action;
mod approval;
mod common;
mod halt_status;
mod resume_policy;
mod run;
mod system_selector;
mod trading_halt;
mod trading_resume;
mod trading_system;
mod workload_kind;

pub use action::*;
pub use approval::*;
pub use common::*;
pub use halt_status::*;
pub use resume_policy::*;
pub use run::*;
pub use system_selector::*;
pub use trading_halt::*;
pub use trading_resume::*;
pub use trading_system::*;
pub use workload_kind::*;
