//! What the status of an Approval says: no clock, no calls.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use standfast_crds::v1alpha1::{
    Approval, ApprovalPhase, ApprovalStatus, Decision, PositionAction, ResumePhase, SubjectKind, TradingHalt,
    TradingResume, TradingSystem, set_condition,
};

use super::count::{Subject, Unfit, ineligible, unfit};
use crate::{
    halt::{approvals as of_halt, group},
    resume::{ResumePlan, approval_rules},
};

/// The condition of an Approval.
const READY: &str = "Ready";

/// What an approval may be about.
#[derive(Clone, Copy, Debug)]
pub struct Around<'a> {
    /// The TradingResume that has the name of its subject.
    pub resume: Option<&'a TradingResume>,
    /// The TradingHalts of the namespace.
    pub halts: &'a [&'a TradingHalt],
    /// The TradingSystems of the namespace.
    pub systems: &'a [&'a TradingSystem],
}

/// The status of an approval. `since` is when names became true.
pub fn standing(
    approval: &Approval,
    around: Around<'_>,
    since: Result<Timestamp, &str>,
    now: Timestamp,
) -> ApprovalStatus {
    let (phase, message) = judge(approval, around, since, now);
    let mut status = approval.status.clone().unwrap_or_default();
    status.phase = phase;
    status.observed_generation = approval.metadata.generation;
    let (ready, reason) = match phase {
        ApprovalPhase::Pending => ("Unknown", "Pending"),
        ApprovalPhase::Valid => ("True", "Valid"),
        ApprovalPhase::Used => ("True", "Used"),
        ApprovalPhase::Expired => ("False", "Expired"),
        ApprovalPhase::Void => ("False", "Void"),
    };
    set_condition(&mut status.conditions, now, approval.metadata.generation, (READY, ready, reason), message);
    status
}

fn judge(
    approval: &Approval,
    Around { resume, halts, systems }: Around<'_>,
    since: Result<Timestamp, &str>,
    now: Timestamp,
) -> (ApprovalPhase, String) {
    let (namespace, name) = (approval.namespace().unwrap_or_default(), &approval.spec.subject.name);
    let void = |why: String| (ApprovalPhase::Void, why);
    let old = approval.status.as_ref();
    // Whoever used it may be gone since.
    if let Some(old) = old.filter(|s| s.phase == ApprovalPhase::Used) {
        let said = old.conditions.iter().find(|c| c.type_ == READY).map(|c| c.message.clone());
        return (ApprovalPhase::Used, said.unwrap_or_default());
    }
    if approval.spec.subject.kind == SubjectKind::TradingHalt {
        return match halts.iter().find(|h| h.name_any() == *name) {
            Some(halt) if halt.spec.is_group() => void(group::not_itself(halt)),
            Some(halt) => judge_of_halt(approval, halt, (halts, systems), since, now),
            None => void(format!("there is no TradingHalt {name} in namespace {namespace}")),
        };
    }
    let Some(resume) = resume else {
        return void(format!("there is no TradingResume {name} in namespace {namespace}"));
    };
    let status = resume.status.clone().unwrap_or_default();
    let subject = Subject {
        kind: SubjectKind::TradingResume,
        name: resume.name_any(),
        uid: resume.uid().unwrap_or_default(),
        // Not known yet: then nothing is said of it.
        hash: status.plan_hash.clone().unwrap_or_else(|| approval.spec.hash.clone()),
    };
    let counted = status.approvals.iter().any(|c| Some(&c.uid) == approval.metadata.uid.as_ref());
    let used = status.release_requested_at.is_some() || status.phase == ResumePhase::Rejected;
    if counted && used {
        let what = match approval.spec.decision {
            Decision::Approve => "released its halt with it",
            Decision::Reject => "ended with it",
        };
        return (ApprovalPhase::Used, format!("TradingResume {name} {what}"));
    }
    let since = match since {
        Ok(since) => since,
        Err(why) => return (ApprovalPhase::Pending, format!("no approval counts while {why}")),
    };
    match unfit(approval, &subject, since, now) {
        Some(Unfit::Void(why)) => return void(why),
        Some(Unfit::Expired(why)) => return (ApprovalPhase::Expired, why),
        None => {}
    }
    if status.finished_at.is_some() {
        return void(format!("TradingResume {name} has ended without it"));
    }
    if status.release_requested_at.is_some() {
        return void(format!("TradingResume {name} has asked for the release without it"));
    }
    if status.plan_hash.is_none() {
        return (ApprovalPhase::Pending, format!("TradingResume {name} has no plan yet"));
    }
    let plan = match ResumePlan::read(resume) {
        Ok(plan) => plan,
        Err(why) => return (ApprovalPhase::Pending, why),
    };
    let born = resume.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let rules = match approval_rules(&plan, halts, born, since) {
        Ok(rules) => rules,
        Err(why) => return void(why),
    };
    match ineligible(approval, &rules) {
        Some(why) => void(why),
        None if counted => (ApprovalPhase::Valid, format!("TradingResume {name} counts it")),
        None => (ApprovalPhase::Valid, format!("TradingResume {name} may count it")),
    }
}

/// The same for one about what a halt asks to do to positions.
fn judge_of_halt(
    approval: &Approval,
    halt: &TradingHalt,
    (halts, systems): (&[&TradingHalt], &[&TradingSystem]),
    since: Result<Timestamp, &str>,
    now: Timestamp,
) -> (ApprovalPhase, String) {
    let (what, void) = (format!("TradingHalt {}", halt.name_any()), |why: String| (ApprovalPhase::Void, why));
    let status = halt.status.clone().unwrap_or_default();
    if status.approvals.iter().any(|c| Some(&c.uid) == approval.metadata.uid.as_ref()) {
        return (ApprovalPhase::Used, format!("{what} closes positions with it"));
    }
    let since = match since {
        Ok(since) => since,
        Err(why) => return (ApprovalPhase::Pending, format!("no approval counts while {why}")),
    };
    let subject = match of_halt::subject(halt) {
        Ok(subject) => subject,
        Err(why) => return (ApprovalPhase::Pending, why),
    };
    match unfit(approval, &subject, since, now) {
        Some(Unfit::Void(why)) => return void(why),
        Some(Unfit::Expired(why)) => return (ApprovalPhase::Expired, why),
        None => {}
    }
    let action = halt.spec.positions.action;
    if action == PositionAction::Keep {
        return void(format!("{what} keeps positions: it asks for no approval"));
    }
    if status.released.is_some() {
        return void(format!("{what} is released"));
    }
    if !status.approvals.is_empty() {
        return void(format!("{what} was allowed to close positions without it"));
    }
    let Some(system) = systems.iter().find(|s| s.name_any() == halt.spec.system()) else {
        return (ApprovalPhase::Pending, format!("there is no TradingSystem {}", halt.spec.system()));
    };
    if !of_halt::asks(halt, &system.spec.halt_policy) {
        return void(format!("the TradingSystem's haltPolicy allows {} without approvals", action.as_str()));
    }
    match of_halt::rules(halt, halts, &system.spec.halt_policy, since) {
        Err(why) => void(why),
        Ok(rules) => match ineligible(approval, &rules) {
            Some(why) => void(why),
            None => (ApprovalPhase::Valid, format!("{what} may count it")),
        },
    }
}

#[cfg(test)]
#[path = "standing_tests.rs"]
mod tests;
