//! The end-to-end tests of Standfast: one binary, so that they share what is slow to make.

// clippy.toml exempts test functions only; here the helpers around them are tests too.
#![allow(clippy::unwrap_used)]

mod charts;
mod checks;
mod cli;
mod examples;
mod guardrails;
mod halt;
mod input;
mod kind;
mod plane;
mod resume;
mod scalable;
mod sweep;
mod system;
mod venue;
