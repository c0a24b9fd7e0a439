//! The Standfast operator.
