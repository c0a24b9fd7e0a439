//! Decisions of the steps, without clock and calls.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use standfast_crds::v1alpha1::{
    CheckState, HaltPhase, LatchedWorkload, TradingHalt, TradingResumeStatus, condition, halt_conditions, shorten,
};

use super::{
    plan::{Pinned, ResumePlan},
    status::is_released,
};
use crate::{halt::release, held, scale::Size};

/// Whether a halt has committed itself or is about to, and was not released.
fn stands(halt: &TradingHalt) -> bool {
    let status = halt.status.as_ref();
    let released = status.is_some_and(|s| s.phase == HaltPhase::Released || s.latch.as_ref().is_some_and(|l| !l.held));
    !released
}

fn others<'a>(halts: &'a [TradingHalt], plan: &'a ResumePlan) -> impl Iterator<Item = &'a TradingHalt> {
    let of_system = move |h: &&TradingHalt| h.spec.halts(&plan.system.name);
    halts.iter().filter(of_system).filter(|h| h.metadata.uid.as_ref() != Some(&plan.halt.uid) && stands(h))
}

/// A halt of the same system that was created after the release was asked for. Creation times have whole seconds: what
/// was created in the same second counts as later.
pub fn halted_again(halts: &[TradingHalt], plan: &ResumePlan, requested_at: Timestamp) -> Option<String> {
    let later = |h: &&TradingHalt| {
        let created = h.metadata.creation_timestamp.as_ref();
        created.is_none_or(|t| t.0.as_second() >= requested_at.as_second())
    };
    others(halts, plan).find(later).map(|h| h.name_any())
}

/// A halt of the same system that has not committed itself yet: what it will hold is not known. Or a halt of several
/// systems that has not made its halt of this one yet.
pub fn about_to_hold(halts: &[TradingHalt], plan: &ResumePlan) -> Option<String> {
    let group = |h: &&TradingHalt| held::about_to_halt(h, &plan.system.name);
    let other = others(halts, plan).find(|h| !held::holds(h)).or_else(|| halts.iter().find(group));
    other.map(|h| h.name_any())
}

/// The halts of the same system that hold, by name.
pub fn still_held(halts: &[TradingHalt], plan: &ResumePlan) -> Vec<String> {
    let mut names: Vec<_> = others(halts, plan).filter(|h| held::holds(h)).map(|h| h.name_any()).collect();
    names.sort();
    names
}

/// How far the halt's controller is with a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Released {
    /// It holds, and nobody is releasing it.
    No,
    /// It is being released for this resume.
    OnTheWay,
    /// It was released for this resume.
    Yes,
    /// It was, or is being, released without this resume, or is gone: in words.
    Otherwise(String),
}

/// What a live look at the plan's halt says about its release by the resume with the uid `by`.
pub fn released(halts: &[TradingHalt], plan: &ResumePlan, by: &str) -> Released {
    release_of(&plan.halt, halts, by)
}

/// What a live look at this halt says about its release by the resume with the uid `by`.
pub fn release_of(halt: &Pinned, halts: &[TradingHalt], by: &str) -> Released {
    let name = &halt.name;
    let Some(halt) = halts.iter().find(|h| h.metadata.uid.as_ref() == Some(&halt.uid)) else {
        return Released::Otherwise(format!("TradingHalt {name} is gone"));
    };
    let Some(status) = &halt.status else { return Released::Otherwise(format!("TradingHalt {name} holds nothing")) };
    let done = status.phase == HaltPhase::Released;
    match &status.released {
        Some(r) if r.resume_uid == by && done => Released::Yes,
        Some(r) if r.resume_uid == by => Released::OnTheWay,
        Some(r) => Released::Otherwise(format!("TradingHalt {name} was released by TradingResume {}", r.resume)),
        None if done || !held::holds(halt) => Released::Otherwise(format!("TradingHalt {name} was released by hand")),
        None => Released::No,
    }
}

/// Whether a resume that is given up has to be taken back by halting again. Not known yet as long as its request may still
/// be acted on: whoever found it wanted may be about to write so.
pub fn to_take_back(released: &Released, status: &TradingResumeStatus, now: Timestamp) -> Option<bool> {
    let Some(requested) = &status.release_requested_at else { return Some(false) };
    match released {
        Released::Yes | Released::OnTheWay => Some(true),
        Released::Otherwise(_) => Some(is_released(status)),
        Released::No => release::spent(requested.0, now).then_some(false),
    }
}

/// Why the halt is not proven, in words: as long as orders may be open or pods may trade, nothing is released.
pub fn unproven(halts: &[TradingHalt], plan: &ResumePlan, now: Timestamp) -> Option<String> {
    let name = &plan.halt.name;
    let Some(halt) = halts.iter().find(|h| h.metadata.uid.as_ref() == Some(&plan.halt.uid)) else {
        return Some(format!("TradingHalt {name} is gone"));
    };
    if held::proven_until(halt).is_some_and(|until| now < until) {
        return None;
    }
    let status = halt.status.clone().unwrap_or_default();
    let said = condition(&status.conditions, halt_conditions::HALTED).map(|c| c.message.as_str()).unwrap_or_default();
    let phase = status.phase.as_str();
    Some(shorten(&match status.phase {
        HaltPhase::Halted => format!("the last proof of TradingHalt {name} is too old to count"),
        // What hinders it comes last: only that may be cut off.
        HaltPhase::Unverified => format!(
            "TradingHalt {name} is {phase} (repair it; if that is impossible: break-glass, docs/operations.md): {said}"
        ),
        _ => format!("TradingHalt {name} is not proven yet, it is {phase}: {said}"),
    }))
}

/// What the halt holds and the plan does not know, in words: it grew, or what it goes back to was corrected, after the plan
/// was frozen.
pub fn outgrown(halts: &[TradingHalt], plan: &ResumePlan) -> Option<String> {
    let halt = halts.iter().find(|h| h.metadata.uid.as_ref() == Some(&plan.halt.uid))?;
    let status = halt.status.as_ref()?;
    let workload =
        status.workloads.iter().find(|w| !plan.workloads.iter().any(|p| p.kind == w.kind && p.name == w.name));
    let venue = status.venues.iter().find(|v| !plan.venues.iter().any(|p| p.name == v.name));
    let size = |w: &LatchedWorkload| (w.replicas, w.suspended);
    let corrected = status
        .workloads
        .iter()
        .find(|w| plan.workloads.iter().any(|p| p.kind == w.kind && p.name == w.name && size(p) != size(w)));
    let what = workload
        .map(|w| format!("{} {}", w.kind, w.name))
        .or_else(|| venue.map(|v| format!("venue {}", v.name)))
        .or_else(|| corrected.map(|w| format!("another size of {} {}", w.kind, w.name)))?;
    Some(format!("TradingHalt {} holds {what} since this plan was made: create another TradingResume", halt.name_any()))
}

/// Everything that the halt stopped: what the plan has, and what the halt was still given before its release.
pub fn to_restore(halts: &[TradingHalt], plan: &ResumePlan) -> Vec<LatchedWorkload> {
    let mut all = plan.workloads.clone();
    let halt = halts.iter().find(|h| h.metadata.uid.as_ref() == Some(&plan.halt.uid));
    for workload in halt.iter().flat_map(|h| &h.status).flat_map(|s| &s.workloads) {
        match all.iter_mut().find(|w| w.kind == workload.kind && w.name == workload.name) {
            Some(known) => known.suspended_jobs.clone_from(&workload.suspended_jobs),
            None => all.push(workload.clone()),
        }
    }
    all
}

/// Jobs that the halt suspended and that nobody resumes.
pub fn suspended_jobs(workloads: &[LatchedWorkload]) -> Vec<String> {
    let mut names: Vec<_> = workloads.iter().flat_map(|w| w.suspended_jobs.clone()).collect();
    names.sort();
    names.dedup();
    names.truncate(64);
    names
}

/// What is to be done with one workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restoring {
    /// It is to be set to this size.
    Raise(Size),
    /// It runs already, or is to stay stopped.
    Leave,
}

/// The size that a workload had before the halt; none if it was stopped then, too.
pub fn target(workload: &LatchedWorkload) -> Option<Size> {
    if workload.kind.is_switched() {
        (workload.suspended != Some(true)).then_some(Size::Suspended(false))
    } else {
        workload.replicas.filter(|r| *r > 0).map(Size::Replicas)
    }
}

/// What is to be done with a workload of this size. One that somebody else started in between is left at his number.
pub fn restoring(workload: &LatchedWorkload, live: Size) -> Restoring {
    match target(workload) {
        Some(target) if live == Size::stopped(workload.kind) => Restoring::Raise(target),
        _ => Restoring::Leave,
    }
}

/// What became of one workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restored {
    /// It was set, or runs already.
    Done,
    /// These halts hold it.
    Held(Vec<String>),
    /// It does not exist.
    Missing(String),
    /// It did not work this time.
    NotYet(String),
}

/// What became of all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Summary {
    /// Each is restored, or held by another halt.
    Done(String),
    /// All are held by other halts, or there is none.
    Nothing(String),
    /// Some are not restored yet.
    NotYet(String),
    /// Each that exists is restored, or held.
    Missing(String),
}

/// Sums up what became of workloads.
pub fn sum_up(workloads: &[Restored]) -> Summary {
    let count = |pick: fn(&Restored) -> bool| workloads.iter().filter(|w| pick(w)).count();
    let done = count(|w| *w == Restored::Done);
    let all = workloads.len();
    if let Some(Restored::NotYet(why)) = workloads.iter().find(|w| matches!(w, Restored::NotYet(_))) {
        return Summary::NotYet(format!("{done} of {all} workloads restored: {why}"));
    }
    let missing: Vec<_> =
        workloads.iter().filter_map(|w| if let Restored::Missing(m) = w { Some(m.as_str()) } else { None }).collect();
    if let Some(first) = missing.first() {
        let more = if missing.len() > 1 { format!(" and {} more", missing.len() - 1) } else { String::new() };
        return Summary::Missing(format!("{done} of {all} workloads restored: {first}{more}"));
    }
    let mut by: Vec<_> =
        workloads.iter().flat_map(|w| if let Restored::Held(by) = w { by.clone() } else { vec![] }).collect();
    by.sort();
    by.dedup();
    let held = count(|w| matches!(w, Restored::Held(_)));
    match (all, held) {
        (0, _) => Summary::Nothing("the halt stopped no workload".into()),
        (_, 0) => Summary::Done(format!("{done} of {all} workloads restored")),
        _ if held == all => Summary::Nothing(format!("all {all} workloads are still held by {}", by.join(", "))),
        _ => Summary::Done(format!("{done} of {all} workloads restored, {held} still held by {}", by.join(", "))),
    }
}

/// The answers of checks in words; an error unless all of them pass.
pub fn all_pass(answers: &[(String, CheckState, String)]) -> Result<String, String> {
    let failing: Vec<_> = answers.iter().filter(|(_, state, _)| *state != CheckState::Passing).collect();
    let state = |state: CheckState| if state == CheckState::Unknown { "unknown" } else { "failing" };
    match failing.as_slice() {
        [] if answers.is_empty() => Ok("no check is declared".into()),
        [] => Ok(format!("{0} of {0} checks pass", answers.len())),
        [(name, how, why)] => Err(shorten(&format!("check {name} is {}: {why}", state(*how)))),
        [(name, how, why), more @ ..] => {
            let others: Vec<_> = more.iter().map(|(name, ..)| name.as_str()).collect();
            Err(shorten(&format!("check {name} is {}: {why}; also {}", state(*how), others.join(", "))))
        }
    }
}
