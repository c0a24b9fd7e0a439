//! Measures the halting path against its floors, in one run, and prints the table of `docs/benchmarks.md`.
//!
//! The operator is the release build, as a process of its own, against a real API server. Everything on the other side
//! of a comparison runs in the same minutes on the same machine, so that ratios mean something on a noisy one.

mod floor;
mod idle;
mod latency;
mod rig;
mod scale;

use anyhow::Result;
use clap::Parser;

/// What to measure; everything by default.
#[derive(Parser)]
struct Args {
    /// Runs of the latency comparison.
    #[arg(long, default_value_t = 100)]
    runs: usize,
    /// Workloads that are halted together.
    #[arg(long, default_value_t = 500)]
    workloads: usize,
    /// Unrelated objects in the cluster.
    #[arg(long, default_value_t = 10_000)]
    unrelated: usize,
    /// Seconds for which the idle operator is watched.
    #[arg(long, default_value_t = 180)]
    idle: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let rig = rig::Rig::start().await?;
    println!("| what | Standfast | against | ratio |\n|---|---|---|---|");
    latency::run(&rig, args.runs).await?;
    scale::run(&rig, args.workloads, args.unrelated).await?;
    idle::run(&rig, args.idle).await?;
    Ok(())
}

/// One line of the table.
fn row(what: &str, ours: &str, against: &str, ratio: f64) {
    println!("| {what} | {ours} | {against} | {ratio:.2} |");
}

/// The value below which this share of the sorted sample lies.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = ((sorted.len() as f64 - 1.0) * share).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// Milliseconds, for people.
fn millis(value: f64) -> String {
    format!("{value:.1} ms")
}
