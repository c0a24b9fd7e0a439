//! The crash sweep: calls that an operator makes in a halt and in a resume go wrong.
//!
//! A clean run tells which calls there are. Then one of them is cut off, refused or lost in a world of its own, the
//! operator is started again where it was cut off, and the end must be that of the clean run, or the status must ask for
//! a person. What must never be, not even for a moment, is looked for all the time, on the world and not in the status.
//!
//! By default some of these plans are run, above all those of calls that change something, with faults in turns.
//! `STANDFAST_SWEEP=changes` runs every call that changes something with every fault, and every other call with one;
//! `STANDFAST_SWEEP=reads` every call that only reads with every fault that the operator can tell from another;
//! `STANDFAST_SWEEP=all` every call with every fault; `STANDFAST_SWEEP=<plan>` one of them, as a failure names it.

mod books;
mod gated;
mod process;
mod stage;
mod verdict;

use std::{collections::BTreeSet, fmt, io::Write, str::FromStr, time::Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, stream};
use serde_json::json;
use standfast_e2e::faults::{Fault, Recorded, Strike};
use standfast_operator::client::Clients;
use tokio::sync::Semaphore;

use crate::plane::plane;
use stage::{BOTS, HALT, RESUME, Run, Stage, Where, run};
use verdict::judge;

/// Worlds that are under way at a time, of all sweeps together.
const WORLDS: usize = 12;
static TURNS: Semaphore = Semaphore::const_new(WORLDS);

/// What an operator is put through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scenario {
    /// A halt that cancels and closes, beside an autoscaler.
    Halt,
    /// A resume, with a check and a sync, of a halt that is proven.
    Resume,
    /// A halt that reduces what is held to a half of the account's equity.
    Reduce,
    /// A resume with two approvals, a break that is accepted, and three stages.
    Gated,
}

impl Scenario {
    const ALL: [Self; 4] = [Self::Halt, Self::Resume, Self::Reduce, Self::Gated];

    const fn name(self) -> &'static str {
        match self {
            Self::Halt => "halt",
            Self::Resume => "resume",
            Self::Reduce => "reduce",
            Self::Gated => "gated",
        }
    }

    /// Whether trading comes back.
    const fn resumes(self) -> bool {
        matches!(self, Self::Resume | Self::Gated)
    }
}

/// A scenario and what goes wrong in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    scenario: Scenario,
    strike: Option<Strike>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.strike {
            Some(strike) => write!(f, "{}/{strike}", self.scenario.name()),
            None => write!(f, "{}/clean", self.scenario.name()),
        }
    }
}

impl FromStr for Plan {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let usage = "a plan reads like halt/PATCH deployments/bot/scale#1/cut-after";
        let (scenario, rest) = text.split_once('/').context(usage)?;
        let scenario = Scenario::ALL.into_iter().find(|s| s.name() == scenario).context(usage)?;
        let (key, fault) = rest.rsplit_once('/').unwrap_or(("", rest));
        let strike = match fault {
            "clean" => None,
            fault => Some(Strike { key: key.into(), fault: fault.parse()? }),
        };
        Ok(Self { scenario, strike })
    }
}

/// Calls of clean runs, in the order in which they came, each with whether it changes something and in how many runs it
/// was there.
fn keys(runs: &[Run]) -> Vec<(String, bool, usize)> {
    let mut found: Vec<(String, bool, usize)> = vec![];
    for run in runs {
        for call in run.calls.iter().filter(|c| c.armed) {
            match found.iter_mut().find(|f| f.0 == call.key) {
                Some(known) => known.2 += 1,
                None => found.push((call.key.clone(), call.mutating, 1)),
            }
        }
    }
    found
}

/// Which faults a call meets by default. Those that have no turn at one call have it at another.
fn faults(scenario: Scenario, key: &str, mutating: bool, place: usize) -> Vec<Fault> {
    const CUTS: [Fault; 2] = [Fault::CutBefore, Fault::CutAfter];
    const OTHERS: [Fault; 5] = [Fault::LostReply, Fault::Conflict, Fault::LostRequest, Fault::Error, Fault::Throttled];
    const STAGES: [&str; 2] = ["configmaps/limits", "/scale"];
    const VIEWS: [&str; 3] = ["approvals", "/positions", "/limits"];
    let one = || vec![Fault::ALL[place % Fault::ALL.len()]];
    let three = || vec![CUTS[0], CUTS[1], OTHERS[place % OTHERS.len()]];
    match scenario {
        // What else a halt does is in its own scenario: here it is the closes, and what is written around them.
        Scenario::Reduce if key.contains("/v2/positions/") => Fault::ALL.to_vec(),
        Scenario::Reduce if key.starts_with("GET /v2/account#") || key.starts_with("GET /v2/positions#1") => {
            vec![Fault::Error]
        }
        Scenario::Reduce if key.contains("tradinghalts/halt/status") => vec![CUTS[place % 2]],
        Scenario::Reduce => vec![],
        // One loop reads all of them.
        _ if key.contains("validatingadmissionpolic") && !key.contains("/standfast-latch#") => vec![],
        // That of another controller, which is written again whenever it is not as it should be.
        _ if mutating && key.contains("tradingsystems/system/status") => one(),
        // A halt writes down how far it is; a resume goes from intent to result by some dozens of writes of one kind.
        Scenario::Halt if mutating && key.contains("tradinghalts/halt/status") => three(),
        Scenario::Resume if mutating && key.contains("tradingresumes/resume/status") => one(),
        // What else it does is done in a plain resume, too: here it is the limits and replicas of stages, and what is
        // written around them.
        Scenario::Gated if mutating && key.contains("tradingresumes/resume/status") => {
            if place.is_multiple_of(4) {
                one()
            } else {
                vec![]
            }
        }
        Scenario::Gated if mutating && STAGES.iter().any(|own| key.contains(own)) => three(),
        Scenario::Gated if mutating || !VIEWS.iter().any(|own| key.contains(own)) => vec![],
        _ if mutating => Fault::ALL.to_vec(),
        _ if key.ends_with("#1") => one(),
        _ => vec![],
    }
}

/// Which faults a call meets.
fn met(wish: &str, scenario: Scenario, key: &str, mutating: bool, place: usize) -> Vec<Fault> {
    match (wish, mutating) {
        ("all", _) | ("changes", true) => Fault::ALL.to_vec(),
        ("changes", false) => vec![Fault::ALL[place % Fault::ALL.len()]],
        ("reads", true) => vec![],
        // Of a read nothing is left behind: whether it was carried out makes no difference to the one that is cut off
        // or gets no answer.
        ("reads", false) => Fault::ALL.into_iter().filter(|f| !f.has_effect()).collect(),
        _ => faults(scenario, key, mutating, place),
    }
}

fn say(line: &str) {
    // Past the capture of the test's output: it is to be seen when all is well.
    let _ = writeln!(std::io::stderr(), "{line}");
}

async fn sweep(scenario: Scenario) -> Result<()> {
    let plane = plane().await?;
    let wish = std::env::var("STANDFAST_SWEEP").unwrap_or_default();
    let one: Option<Plan> = match wish.as_str() {
        "" | "changes" | "reads" | "all" => None,
        wish => Some(wish.parse()?),
    };
    if one.as_ref().is_some_and(|p| p.scenario != scenario) {
        return Ok(());
    }
    let begun = Instant::now();
    let clean = Plan { scenario, strike: None };
    let runs =
        stream::iter(0..3).map(|_| run(plane, &clean, Where::Here)).buffer_unordered(3).collect::<Vec<_>>().await;
    let runs = runs.into_iter().collect::<Result<Vec<_>>>().context("a clean run")?;
    let expected = runs[0].end.clone();
    for run in &runs {
        ensure!(run.asks.is_none(), "a clean run asks for a person: {:?}", run.asks);
        ensure!(run.end == expected, "two clean runs end differently:\n{:#?}\n{:#?}", expected, run.end);
    }
    let keys = keys(&runs);
    if let Some(plan) = one {
        let run = run(plane, &plan, Where::Here).await?;
        for call in run.calls.iter().filter(|c| c.armed) {
            say(&format!("{} {:?}", call.key, call.outcome));
        }
        say(&format!("{plan}: struck: {}, asks: {:?}", run.struck, run.asks));
        return judge(&plan, &run, &expected);
    }
    let mut plans = vec![];
    for (place, (key, mutating, times)) in keys.iter().enumerate() {
        // A call that was not in every clean run may well not come.
        if wish.is_empty() && *times < runs.len() {
            continue;
        }
        let faults = met(&wish, scenario, key, *mutating, place);
        let strike = |fault| Some(Strike { key: key.clone(), fault });
        plans.extend(faults.into_iter().map(|f| Plan { scenario, strike: strike(f) }));
    }
    let mutating = keys.iter().filter(|k| k.1).count();
    let unsteady: BTreeSet<_> = keys.iter().filter(|k| k.2 < runs.len()).map(|k| k.0.clone()).collect();
    say(&format!(
        "{}: {} calls in {} clean runs, {mutating} of them change something, {} were not in every run; {} of {} plans",
        scenario.name(),
        keys.len(),
        runs.len(),
        unsteady.len(),
        plans.len(),
        keys.len() * Fault::ALL.len()
    ));
    let (expected, all) = (&expected, plans.len());
    let results = stream::iter(plans)
        .map(|plan| async move {
            let judged = run(plane, &plan, Where::Here)
                .await
                .and_then(|run| judge(&plan, &run, expected).map(|()| (run.struck, run.asks)));
            (plan, judged)
        })
        .buffer_unordered(WORLDS);
    let mut results = std::pin::pin!(results);
    let (mut ran, mut missed, mut asked, mut failed, mut steady) = (0, vec![], vec![], vec![], (0, 0));
    while let Some((plan, judged)) = results.next().await {
        ran += 1;
        if ran % 50 == 0 {
            say(&format!("{}: {ran} of {all} plans, {} s", scenario.name(), begun.elapsed().as_secs()));
        }
        if plan.strike.as_ref().is_some_and(|s| !unsteady.contains(&s.key)) {
            steady = (steady.0 + 1, steady.1 + usize::from(matches!(judged, Ok((false, None)))));
        }
        match judged {
            Ok((_, Some(why))) => asked.push(format!("{plan}: {why}")),
            Ok((false, None)) => missed.push(plan.to_string()),
            Ok((true, None)) => {}
            Err(error) => {
                say(&format!(
                    "{plan}: {error:?}\n  again: STANDFAST_SWEEP='{plan}' cargo test -p standfast-e2e --test suite sweep"
                ));
                failed.push(plan.to_string());
            }
        }
    }
    missed.sort();
    say(&format!(
        "{}: {ran} plans run in {} s: {} ended as the clean run, {} asked for a person, {} were not reached, {} failed",
        scenario.name(),
        begun.elapsed().as_secs(),
        ran - failed.len() - asked.len() - missed.len(),
        asked.len(),
        missed.len(),
        failed.len()
    ));
    for (what, plans) in [("asked for a person", &asked), ("not reached", &missed), ("failed", &failed)] {
        for plan in plans {
            say(&format!("  {what}: {plan}"));
        }
    }
    ensure!(failed.is_empty(), "{} of {ran} plans failed", failed.len());
    // Which calls there are differs with the load, which is another one while the clean runs go on; plans that all miss
    // would prove nothing.
    let (plans, missed) = steady;
    ensure!(missed * 5 <= plans, "{missed} of {plans} plans did not reach a call that was in every clean run");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweep_of_a_halt() -> Result<()> {
    sweep(Scenario::Halt).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweep_of_a_resume() -> Result<()> {
    sweep(Scenario::Resume).await
}

/// S1-14, S1-36, S0-63
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweep_of_a_resume_through_gates() -> Result<()> {
    sweep(Scenario::Gated).await
}

/// S0-44
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweep_of_a_halt_that_reduces() -> Result<()> {
    sweep(Scenario::Reduce).await
}

/// A second operator, whose watches are dead, still takes the halt for held when the first one has released it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_a_watch_missed_is_not_undone() -> Result<()> {
    let stage = Stage::new(plane().await?, &Plan { scenario: Scenario::Resume, strike: None }, Where::Here).await?;
    let _leader = stage.world.operator().await?;
    let layers = stage.faults.operator();
    let transport = layers.clone();
    let _deaf = stage
        .world
        .operator_of(
            move |plain| Clients { watch: layers.watches(plain.clone()), ..Clients::same(&layers.client(plain), 64) },
            move |inner| transport.transport(inner),
        )
        .await?;
    stage.prepared().await?;
    stage.world.halt(HALT, json!({})).await?;
    ensure!(stage.until_halted().await?.is_none(), "the halt is not proven");
    let looks = || stage.faults.log().iter().filter(|c| c.kind == "GET configmaps/standfast-latch-halt").count();
    let before = looks();
    stage.world.until("the second operator looks at the halt", async || Ok((looks() > before).then_some(()))).await?;
    stage.faults.deafen();
    stage.faults.arm();
    stage.world.resume(RESUME, HALT).await?;
    // While the halt holds, the second operator may write what it sees.
    let released = stage.until_released();
    let resumed = async {
        tokio::select! {
            resumed = stage.until_resumed() => resumed,
            () = stage.trade() => unreachable!("it goes on for ever"),
        }
    };
    let (released, resumed) = tokio::join!(released, resumed);
    let held = released?;
    ensure!(resumed?.is_none(), "the resume asks for a person");
    // It sees that the latch is gone, and asks for the halt before it does anything about that. Of the calls only its
    // own are recorded.
    let asked = || stage.faults.any(|c| c.armed && c.kind == "GET tradinghalts/halt");
    stage.world.until("the second operator looks again", async || Ok(asked().then_some(()))).await?;
    let end = stage.end().await?;
    assert_eq!((end.halt.as_str(), end.latches, end.suspended), ("Released", 0, false));
    assert_eq!(end.replicas, BOTS.map(|(name, replicas)| (name.to_owned(), replicas)).into());
    let of_halt = |c: &Recorded| c.armed && c.mutating && !c.kind.contains("tradingsystems");
    let did = stage.faults.log().into_iter().skip(held).filter(|c| of_halt(c) && c.outcome.took_effect());
    let did: Vec<_> = did.map(|c| c.key).collect();
    assert!(did.is_empty(), "the second operator acted: {did:?}");
    Ok(())
}
