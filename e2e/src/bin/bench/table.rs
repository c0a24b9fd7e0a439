//! The table on standard output, and what goes on meanwhile on standard error.

use std::{sync::LazyLock, time::Instant};

static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The head of the table.
pub fn head() {
    LazyLock::force(&STARTED);
    println!("| What | Standfast | Against | Ratio | Goal | Met |\n|---|---|---|---|---|---|");
}

/// One line of the table; `ratio` where there is another side.
pub fn row(what: &str, ours: &str, against: &str, ratio: Option<f64>, goal: &str, met: bool) {
    let ratio = match ratio {
        Some(ratio) if ratio < 0.1 => format!("{ratio:.3}"),
        Some(ratio) => format!("{ratio:.2}"),
        None => String::new(),
    };
    println!("| {what} | {ours} | {against} | {ratio} | {goal} | {} |", if met { "yes" } else { "no" });
}

/// Tells people how far it is.
pub fn say(what: &str) {
    eprintln!("bench: {:4.0} s  {what}", STARTED.elapsed().as_secs_f64());
}

/// What was measured of one side.
pub struct Sample(Vec<f64>);

impl Sample {
    /// Of these values.
    pub fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The value below which this share of the sample lies.
    pub fn at(&self, share: f64) -> f64 {
        let at = ((self.0.len() as f64 - 1.0) * share).round() as usize;
        self.0.get(at).copied().unwrap_or(f64::NAN)
    }

    /// The one in the middle.
    pub fn median(&self) -> f64 {
        self.at(0.5)
    }

    /// The median in seconds, with the extremes: a few runs say little without them.
    pub fn seconds(&self) -> String {
        format!("{:.2} s ({:.2} to {:.2})", self.median(), self.at(0.0), self.at(1.0))
    }
}
