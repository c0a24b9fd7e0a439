//! The end-to-end tests of Standfast: one binary, so that they share what is slow to make.

// clippy.toml exempts test functions only; here the helpers around them are tests too.
#![allow(clippy::unwrap_used)]

mod halt;
mod kind;
mod plane;
mod sweep;
mod venue;
