//! The stages of a resume: what they are made of, whether that can be done, and how many replicas run in them.

use standfast_crds::v1alpha1::{
    Check, CheckSelection, LatchedWorkload, Limit, ResumePolicy, Stage, StepState, StepStatus, TradingSystemSpec,
};

use super::{
    gates::{self, Restoring},
    plan::{select, there_are},
    status::step,
};
use crate::{
    calls::{extract::order_reader, template},
    scale::Size,
};

/// Name of the time after the last stage.
pub const WATCH: &str = "watch";

/// Suffixes of the steps of a stage, in order.
pub mod part {
    /// Limits in ConfigMaps are written.
    pub const LIMITS: &str = "limits";
    /// The stage's share of the workloads runs.
    pub const WORKLOADS: &str = "workloads";
    /// Their pods are ready.
    pub const READY: &str = "ready";
    /// The bot itself tells that it keeps to the limits.
    pub const LIMITS_PROVEN: &str = "limits-proven";
    /// The watched checks pass for the stage's time.
    pub const HOLD: &str = "hold";
    /// All of them.
    pub const ALL: [&str; 5] = [LIMITS, WORKLOADS, READY, LIMITS_PROVEN, HOLD];
}

/// The name of a stage's step.
pub fn step_name(stage: &str, part: &str) -> String {
    format!("{stage}-{part}")
}

/// The stage that a run is in, of these: the last one that a step was begun of.
pub fn current<'a>(stages: &'a [String], steps: &[StepStatus]) -> Option<&'a str> {
    let begun = |name: &str| steps.iter().any(|s| s.name == name && s.attempts > 0);
    if begun(WATCH) {
        return Some(WATCH);
    }
    stages.iter().rev().map(String::as_str).find(|s| part::ALL.iter().any(|part| begun(&step_name(s, part))))
}

/// Whether this is the step that restores workloads, of a stage or without any.
fn restores(name: &str) -> bool {
    !name.starts_with(step::ALLOW_TRADING) && name.ends_with("-workloads")
}

/// Whether this is the step that holds a stage, or the watch.
pub fn holds(name: &str) -> bool {
    name == WATCH || (!name.starts_with(step::ALLOW_TRADING) && name.ends_with("-hold"))
}

/// Whether every workload has its whole size back, as far as the journal knows.
pub fn all_back(steps: &[StepStatus]) -> bool {
    let last = steps.iter().rev().find(|s| restores(&s.name));
    last.is_some_and(|s| matches!(s.state, StepState::Succeeded | StepState::Skipped))
}

/// Whether workloads may run at less than their whole size: a stage has begun to restore them, and the last one has
/// not brought all of them back.
pub fn partly_back(steps: &[StepStatus]) -> bool {
    let mut all = steps.iter().filter(|s| restores(&s.name));
    let (first, more) = (all.next(), all.next().is_some());
    more && first.is_some_and(|s| s.attempts > 0) && !all_back(steps)
}

/// The size of a workload in a stage with so many percent; none if it does not run in it. Counts are rounded up: a
/// workload that ran is never left out.
pub fn target(workload: &LatchedWorkload, percent: u32) -> Option<Size> {
    match gates::target(workload)? {
        Size::Replicas(all) => {
            let share = (i64::from(all) * i64::from(percent.min(100)) + 99) / 100;
            Some(Size::Replicas(i32::try_from(share).unwrap_or(all)))
        }
        Size::Suspended(suspended) => (percent >= 100).then_some(Size::Suspended(suspended)),
    }
}

/// The replicas that a workload is given in stages with these percents.
pub fn shares<'a>(workload: &'a LatchedWorkload, percents: &'a [u32]) -> impl Iterator<Item = i32> + 'a {
    percents.iter().filter_map(|p| match target(workload, *p) {
        Some(Size::Replicas(replicas)) => Some(replicas),
        _ => None,
    })
}

/// What is to be done with a workload in a stage with `now` percent after one with `before`. One that was brought back
/// before (`brought`) and has another size than it was given was changed by somebody, who knows why.
pub fn raising(workload: &LatchedWorkload, live: Size, before: u32, now: u32, brought: bool) -> Restoring {
    let Some(size) = target(workload, now) else { return Restoring::Leave };
    let given = if brought { target(workload, before) } else { Some(Size::stopped(workload.kind)) };
    match given {
        Some(given) if live == given && given != size => Restoring::Raise(size),
        _ => Restoring::Leave,
    }
}

/// The limits that the stages use, as the TradingSystem declares them, if all of the policy can be carried out.
pub fn resolve(
    policy: &ResumePolicy,
    system: &TradingSystemSpec,
    checks: &[Check],
    workloads: &[LatchedWorkload],
) -> Result<Vec<Limit>, String> {
    let interval = policy.thresholds.clone().unwrap_or_default().interval.get();
    if interval.as_millis() < 1_000 || interval.as_secs() > 60 {
        return Err("thresholds.interval is at least 1s and at most 1m".into());
    }
    let selections = policy.ramp.iter().map(|s| (format!("stage {}", s.name), s.checks.as_ref()));
    let watch = policy.watch.iter().map(|w| (WATCH.to_owned(), w.checks.as_ref()));
    for (what, selection) in selections.chain(watch) {
        watched(checks, selection).map_err(|why| format!("{what}: {why}"))?;
    }
    if !policy.ramp.is_empty() || policy.watch.is_some() {
        for venue in &system.venues {
            let Some(read) = &venue.orders_since else { continue };
            let cannot = |why: &str| format!("ordersSince of venue {}: {why}", venue.name);
            let Some(http) = &read.http else {
                return Err(cannot("it is read at every look, which a Job cannot do: give http"));
            };
            if !template::takes(http, "since") {
                return Err(cannot("its request must ask for orders since a time: put {since} into its url or body"));
            }
            if read.count.is_some() {
                return Err(cannot("it must list the orders: leave out count"));
            }
            order_reader(read).map_err(|why| cannot(&why.to_string()))?;
        }
    }
    let Some((last, _)) = policy.ramp.split_last() else { return Ok(vec![]) };
    let mut before: Option<&Stage> = None;
    for stage in &policy.ramp {
        let name = &stage.name;
        if name == WATCH || name.starts_with(step::ALLOW_TRADING.trim_end_matches('-')) {
            return Err(format!("a stage cannot be called {name}: steps have that name"));
        }
        if let Some(before) = before {
            if stage.replicas_percent < before.replicas_percent {
                return Err(format!("stage {name} has fewer replicas than {}: stages only grow", before.name));
            }
            if !stage.limits.keys().eq(before.limits.keys()) {
                return Err(format!(
                    "stage {name} has other limits than {}: every stage gives the same ones, or what holds in it is \
                     not known",
                    before.name
                ));
            }
        }
        before = Some(stage);
    }
    if last.replicas_percent != 100 {
        return Err(format!("the last stage {} must bring everything back: replicasPercent: 100", last.name));
    }
    let mut limits = vec![];
    for name in last.limits.keys() {
        let Some(limit) = system.limits.iter().find(|l| l.name == *name) else {
            let there = there_are(system.limits.iter().map(|l| l.name.as_str()));
            return Err(format!("the TradingSystem has no limit {name}: {there}"));
        };
        limits.push(limit.clone());
    }
    for limit in &limits {
        let Some(http) = &limit.set.http else { continue };
        if !template::takes(http, "value") {
            let name = &limit.name;
            return Err(format!(
                "limit {name}: its request does not tell the value: put {{value}} into its url or body"
            ));
        }
        settable(&limit.name, policy, system, workloads)?;
    }
    Ok(limits)
}

/// Whether a limit can be set by HTTP before the bot trades without it.
fn settable(
    name: &str,
    policy: &ResumePolicy,
    system: &TradingSystemSpec,
    workloads: &[LatchedWorkload],
) -> Result<(), String> {
    let starts_halted = system.application_halt.as_ref().is_some_and(|a| a.starts_halted);
    let open = system.venues.iter().find(|v| v.suspend_trading.is_empty() || v.trading_suspended.is_none());
    if !starts_halted && (system.venues.is_empty() || open.is_some()) {
        let at = open.map_or_else(|| "there is no venue".into(), |v| format!("venue {} has not both", v.name));
        return Err(format!(
            "limit {name} is set by HTTP, when the bot runs already: that needs suspendTrading and tradingSuspended of \
             every venue ({at}), or a bot that starts halted (applicationHalt.startsHalted), or a limit in a ConfigMap"
        ));
    }
    let (Some(first), Some(last)) = (policy.ramp.first(), policy.ramp.last()) else { return Ok(()) };
    let grows = |w: &&LatchedWorkload| {
        !w.kind.is_switched() && target(w, first.replicas_percent) != target(w, last.replicas_percent)
    };
    match workloads.iter().find(grows) {
        None => Ok(()),
        Some(w) => Err(format!(
            "limit {name} is set by HTTP, and {} {} gets more pods in a later stage, which would not know it: put the \
             limit in a ConfigMap, or give every stage the same replicasPercent",
            w.kind, w.name
        )),
    }
}

/// The checks that are watched, by this selection of those that the resume requires.
pub fn watched(checks: &[Check], selection: Option<&CheckSelection>) -> Result<Vec<Check>, String> {
    select("the resume", checks, selection)
}
