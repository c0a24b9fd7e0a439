//! A dry run: every gate is asked once, and what would follow is said in words. Looking changes nothing.

use std::sync::Arc;

use standfast_crds::v1alpha1::{ResumePhase, StepState, StepStatus, TradingResumeStatus, WorkloadKind, shorten};

use super::{
    context::Context,
    gates,
    ramp::{self, WATCH, part, step_name},
    status::{Ending, step},
};
use crate::{
    engine::{Observation, Procedure},
    scale::Size,
};

/// Asks the gates and describes the rest, into the steps of `status`. None of them is begun.
pub(super) async fn run(cx: &Arc<Context>, procedure: &Procedure, status: &mut TradingResumeStatus) -> Ending {
    let (mut shut, mut released) = (vec![], false);
    for step in procedure.iter().flatten() {
        let name = step.definition().name;
        let said = if released {
            would(cx, &name)
        } else if name == step::SYNC_POSITIONS {
            match &cx.plan.sync_positions {
                Some(_) => "not sent in a dry run: would sync positions".into(),
                None => "the TradingSystem declares no syncPositions".into(),
            }
        } else {
            let entry = StepStatus { name: name.clone(), ..StepStatus::default() };
            let seen = tokio::time::timeout(step.definition().look, step.observe(&entry)).await;
            match seen.unwrap_or_else(|_| Observation::Unknown("it could not be read in time".into())) {
                Observation::Done(text) | Observation::NotNeeded(text) => format!("would pass now: {text}"),
                Observation::NotDone(text)
                | Observation::InProgress(text)
                | Observation::Unknown(text)
                | Observation::Failed(text)
                | Observation::Indeterminate(text) => {
                    shut.push(format!("{name}: {text}"));
                    format!("would not pass now: {text}")
                }
            }
        };
        released |= name == step::REQUEST_RELEASE;
        let said = StepStatus {
            name: name.clone(),
            state: StepState::Skipped,
            message: Some(shorten(&said)).filter(|t| !t.is_empty()),
            ..StepStatus::default()
        };
        match status.steps.iter_mut().find(|s| s.name == name) {
            Some(there) => *there = said,
            None => status.steps.push(said),
        }
    }
    let message = match shut.first() {
        None => "dry run: every gate would pass now; nothing was released or sent".into(),
        Some(first) => shorten(&format!("dry run: would not be released now: {first}")),
    };
    Ending { phase: ResumePhase::Evaluated, message }
}

/// What a step after the gates would do.
fn would(cx: &Context, name: &str) -> String {
    let plan = &cx.plan;
    let mut before = 0;
    for stage in &plan.policy.ramp {
        let limits = stage.limits.iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ");
        let is = |part| name == step_name(&stage.name, part);
        if is(part::LIMITS) || is(part::LIMITS_PROVEN) {
            let by_map = |n: &String| plan.limits.iter().any(|l| l.name == *n && l.set.config_map.is_some());
            return match (limits.is_empty(), is(part::LIMITS)) {
                (true, _) => "the stage has no limits".into(),
                (false, true) if !stage.limits.keys().any(by_map) => "the stage has no limit in a ConfigMap".into(),
                (false, true) => format!("would write {limits}"),
                (false, false) => format!("would go on when the bot tells {limits}"),
            };
        }
        if is(part::WORKLOADS) {
            return sizes(cx, before, stage.replicas_percent);
        }
        if is(part::HOLD) {
            return format!(
                "would be held for {} with {} checks",
                stage.hold,
                plan.watched(stage.checks.as_ref()).len()
            );
        }
        before = stage.replicas_percent;
    }
    match name {
        step::RELEASE => format!("would release TradingHalt {}", plan.halt.name),
        step::RESTORE_WORKLOADS => sizes(cx, 0, 100),
        step::APPLICATION_RESUME if plan.application_resume.is_some() => "would ask the bot to go on".into(),
        WATCH => plan.policy.watch.as_ref().map_or_else(String::new, |w| {
            format!("would be watched for {} with {} checks", w.for_, plan.watched(w.checks.as_ref()).len())
        }),
        _ if name.starts_with(step::ALLOW_TRADING) => "would make the venue accept orders".into(),
        _ => String::new(),
    }
}

/// The sizes that workloads would be given.
fn sizes(cx: &Context, before: u32, percent: u32) -> String {
    let changes = cx.plan.workloads.iter().filter_map(|w| {
        let size = ramp::target(w, percent)?;
        let same = before > 0 && ramp::target(w, before) == Some(size);
        let all = gates::target(w);
        (!same).then(|| match (size, all) {
            (Size::Replicas(n), Some(Size::Replicas(all))) => format!("{} {} at {n} of {all} replicas", w.kind, w.name),
            _ if w.kind == WorkloadKind::CronJob => format!("{} {} by its schedule", w.kind, w.name),
            _ => format!("{} {} on its nodes", w.kind, w.name),
        })
    });
    let changes: Vec<_> = changes.collect();
    if changes.is_empty() { "no workload would change".into() } else { format!("would run {}", changes.join(", ")) }
}
