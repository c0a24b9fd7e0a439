//! The Standfast operator.

pub mod cache;
pub mod calls;
pub mod controller;
pub mod guardrails;
pub mod held;
pub mod jobs;
pub mod outbound;
pub mod scale;
pub mod system;
pub mod workloads;
