//! The Standfast operator.

pub mod args;
pub mod cache;
pub mod calls;
pub mod client;
pub mod controller;
pub mod engine;
pub mod held;
pub mod leader;
pub mod metrics;
pub mod outbound;
pub mod scale;
pub mod workloads;
