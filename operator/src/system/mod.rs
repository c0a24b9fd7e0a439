//! What is known of a trading system: its checks, and whether an emergency halt would work now.

pub mod checks;
pub mod sql;
