//! The Standfast operator.

pub mod admin;
pub mod app;
pub mod approval;
pub mod args;
pub mod cache;
pub mod calls;
pub mod client;
pub mod controller;
pub mod engine;
pub mod events;
pub mod guardrails;
pub mod halt;
pub mod jobs;
pub mod kinds;
pub mod leader;
pub mod metrics;
pub mod outbound;
pub mod resume;
pub mod scale;
pub mod sight;
pub mod system;
pub mod telemetry;
pub mod workloads;

pub use standfast_crds::held;
