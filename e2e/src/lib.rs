//! Test clusters, the paper venue, and small worlds made of them.

pub mod controlplane;
pub mod faults;
pub mod folders;
pub mod node;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod venue;
pub mod world;
