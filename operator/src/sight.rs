//! Time that passed in sight of the operator: for how long a halt was proven, a stage has held.
//!
//! It is accumulated from looks: what counts is the monotonic time between two looks that both passed, at most two
//! intervals of it, and the first look of a process adds nothing. So an outage only ever makes it later, and a wall clock
//! that is set does not matter.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

/// The monotonic time of this process.
pub fn monotonic() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// How long so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InSight {
    total: Duration,
    /// When the last look passed, by the monotonic clock of this process.
    passed: Option<Duration>,
}

impl InSight {
    /// Goes on from what is written down.
    pub fn from(total: Duration) -> Self {
        Self { total, passed: None }
    }

    /// All of it so far.
    pub fn total(&self) -> Duration {
        self.total
    }

    /// Whether the last look of this process passed.
    pub fn passing(&self) -> bool {
        self.passed.is_some()
    }

    /// Takes a look into account.
    pub fn look(&mut self, at: Duration, passes: bool, interval: Duration) {
        if let Some(before) = self.passed.filter(|_| passes) {
            self.total = self.total.saturating_add(at.saturating_sub(before).min(interval.saturating_mul(2)));
        }
        self.passed = passes.then_some(at);
    }
}
