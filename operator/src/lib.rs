//! The Standfast operator.

pub mod calls;
pub mod outbound;
