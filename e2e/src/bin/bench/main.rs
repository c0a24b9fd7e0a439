//! Measures the halting path against its floors, in one run, and prints the table of `docs/benchmarks.md`.
//!
//! The operator is the release build, as a process of its own, against a real API server. Everything on the other side
//! of a comparison runs in the same minutes on the same machine, so that ratios mean something on a noisy one.

mod floor;
mod idle;
mod latency;
mod pods;
mod rig;
mod scale;
mod table;
mod takeover;

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use clap::Parser;
use table::say;

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
    /// Leaders that are killed.
    #[arg(long, default_value_t = 5)]
    kills: usize,
    /// Seconds for which the idle operator is watched. One watch of the API server must last for as long.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(10..=240))]
    idle: u64,
    /// Rounds of the comparison with the plan's script.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Makes that comparison, and nothing else, on this cluster with nodes, which has the images of the demo.
    #[arg(long)]
    pods: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(cluster) = &args.pods {
        ensure!(part("pods", 900, pods::run(cluster, args.rounds)).await.is_some(), "it could not be measured");
        return Ok(());
    }
    table::head();
    let latency = part("latency", 300, latency::run(args.runs)).await;
    let scale = part("scale", 600, scale::run(args.workloads, args.unrelated)).await;
    // These wait nearly all the time: for a lease, for a minute to pass, for kubectl's own throttle. They may share the
    // machine.
    let (kubectl, takeover, idle) = tokio::join!(
        part("kubectl", 480, scale::against_kubectl(scale)),
        part("takeover", 480, takeover::run(args.kills)),
        part("idle", 480, idle::run(Duration::from_secs(args.idle)))
    );
    ensure!([latency, kubectl, takeover, idle].iter().all(Option::is_some), "not everything could be measured");
    Ok(())
}

/// One part of the table. If it fails or hangs, the others are measured all the same.
async fn part<T>(name: &str, limit: u64, work: impl Future<Output = Result<T>>) -> Option<T> {
    say(&format!("{name}: begins"));
    let ended = tokio::time::timeout(Duration::from_secs(limit), work).await;
    say(&match &ended {
        Ok(Ok(_)) => format!("{name}: done"),
        Ok(Err(error)) => format!("{name}: FAILED: {error:#}"),
        Err(_) => format!("{name}: FAILED: not done within {limit} s"),
    });
    ended.ok()?.ok()
}
