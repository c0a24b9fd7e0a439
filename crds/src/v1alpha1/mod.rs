//! Version `v1alpha1` of the API.

mod action;
mod common;
mod run;
mod trading_halt;
mod trading_resume;
mod trading_system;

pub use action::*;
pub use common::*;
pub use run::*;
pub use trading_halt::*;
pub use trading_resume::*;
pub use trading_system::*;
