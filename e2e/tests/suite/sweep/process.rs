//! Some of the plans once more with the program that users run, killed by SIGKILL: what dropping a runtime leaves out,
//! such as the lease, its start and its clients, goes wrong here too.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, stream};
use standfast_e2e::faults::{Fault, Strike};

use super::{
    Plan, Scenario, keys, say,
    stage::{Where, run},
    verdict::judge,
};
use crate::plane::plane;

/// Plans for each scenario.
const PLANS: usize = 15;
/// Worlds that are under way at a time.
const WORLDS: usize = 6;

/// Runs [`PLANS`] of the scenario's plans, spread evenly over what a clean run changes.
async fn sweep(scenario: Scenario) -> Result<()> {
    let plane = plane().await?;
    let begun = Instant::now();
    let clean = run(plane, &Plan { scenario, strike: None }, Where::Process).await.context("a clean run")?;
    ensure!(clean.asks.is_none(), "a clean run asks for a person: {:?}", clean.asks);
    let expected = &clean.end;
    let changes: Vec<_> = keys(std::slice::from_ref(&clean)).into_iter().filter(|k| k.1).map(|k| k.0).collect();
    ensure!(changes.len() >= PLANS / 2, "only {} calls change something", changes.len());
    // Spread over the calls, before and after in turns.
    let plans = (0..PLANS).map(|n| {
        let key = changes[n * changes.len() / PLANS].clone();
        let fault = if n % 2 == 0 { Fault::CutBefore } else { Fault::CutAfter };
        Plan { scenario, strike: Some(Strike { key, fault }) }
    });
    let results: Vec<_> = stream::iter(plans)
        .map(|plan| async move {
            let judged = run(plane, &plan, Where::Process)
                .await
                .and_then(|run| judge(&plan, &run, expected).map(|()| (run.struck, run.asks)));
            (plan, judged)
        })
        .buffer_unordered(WORLDS)
        .collect()
        .await;
    let (mut killed, mut failed) = (0, 0);
    for (plan, judged) in results {
        match judged {
            Ok((struck, asks)) => {
                killed += usize::from(struck);
                if let Some(why) = asks {
                    say(&format!("  asked for a person: {plan}, killed: {why}"));
                }
            }
            Err(error) => {
                failed += 1;
                say(&format!("{plan}, killed: {error:?}"));
            }
        }
    }
    say(&format!(
        "{}: the program was killed in {killed} of {PLANS} plans in {} s, {failed} failed",
        scenario.name(),
        begun.elapsed().as_secs()
    ));
    ensure!(failed == 0, "{failed} of {PLANS} plans failed");
    // Which calls there are differs a little from run to run.
    ensure!(killed * 3 >= PLANS * 2, "only {killed} of {PLANS} plans reached their call");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweep_of_a_halt_with_sigkill() -> Result<()> {
    sweep(Scenario::Halt).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweep_of_a_resume_with_sigkill() -> Result<()> {
    sweep(Scenario::Resume).await
}
