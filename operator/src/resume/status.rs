//! What the status of a resume says, derived from its journal.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use standfast_crds::v1alpha1::{ResumePhase, StepState, StepStatus, TradingResumeStatus, set_condition, shorten};

use super::{approvals, hold::Fault, ramp};

/// Names of the steps that the status speaks of.
pub mod step {
    /// The halt is proven.
    pub const HALTED: &str = "halted";
    /// The admission policies are in place.
    pub const GUARDRAILS: &str = "guardrails";
    /// Enough people agree.
    pub const APPROVALS: &str = "approvals";
    /// The halt was proven for long enough.
    pub const COOL_OFF: &str = "cool-off";
    /// The checks pass.
    pub const CHECKS: &str = "checks";
    /// The bot's books agree with the venues.
    pub const SYNC_POSITIONS: &str = "sync-positions";
    /// The bot's view agrees with the venues', while the bot is stopped.
    pub const RECONCILE: &str = "reconcile";
    /// The running bot's view agrees with the venues'.
    pub const RECONCILE_LIVE: &str = "reconcile-live";
    /// Every gate was asked once more, and the release was asked for.
    pub const REQUEST_RELEASE: &str = "request-release";
    /// The halt's controller released the halt.
    pub const RELEASE: &str = "release";
    /// The workloads have their sizes back.
    pub const RESTORE_WORKLOADS: &str = "restore-workloads";
    /// Their pods are ready.
    pub const READY: &str = "ready";
    /// The bot's own endpoint was asked.
    pub const APPLICATION_RESUME: &str = "application-resume";
    /// One step for each venue, with its name behind it.
    pub const ALLOW_TRADING: &str = "allow-trading-";
    /// All of it is still true.
    pub const VERIFY: &str = "verify";
}

/// Types of the conditions of a TradingResume.
pub mod conditions {
    /// Trading was resumed.
    pub const COMPLETED: &str = "Completed";
    /// The halt was released.
    pub const RELEASED: &str = "Released";
    /// Something that is watched goes wrong: only for a resume with stages or a watch.
    pub const REGRESSED: &str = "Regressed";
    /// kstatus: done.
    pub const READY: &str = "Ready";
    /// kstatus: on the way.
    pub const RECONCILING: &str = "Reconciling";
    /// kstatus: a person has to look.
    pub const STALLED: &str = "Stalled";
}

/// How a resume ends, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// `Completed`, `Evaluated`, `ReHalted`, `Failed`, `Rejected`, `Aborted` or `Indeterminate`.
    pub phase: ResumePhase,
    /// Why, in one line.
    pub message: String,
}

/// How far the step of this name is.
pub fn state(steps: &[StepStatus], name: &str) -> StepState {
    steps.iter().find(|s| s.name == name).map_or(StepState::Pending, |s| s.state)
}

/// Whether the halt was released for this resume.
pub fn is_released(status: &TradingResumeStatus) -> bool {
    state(&status.steps, step::RELEASE) == StepState::Succeeded
}

/// What the step of this name said last.
pub fn state_message(status: &TradingResumeStatus, name: &str) -> String {
    status.steps.iter().find(|s| s.name == name).and_then(|s| s.message.clone()).unwrap_or_default()
}

/// Brings phase, conditions and times in line with the journal. Nothing changes when nothing is new.
pub fn digest(
    status: &mut TradingResumeStatus,
    generation: Option<i64>,
    paused: bool,
    ending: Option<&Ending>,
    now: Timestamp,
) {
    status.observed_generation = generation;
    let current = status.steps.iter().find(|s| !matches!(s.state, StepState::Succeeded | StepState::Skipped));
    let name = current.map(|s| s.name.clone());
    let said = current.and_then(|s| s.message.clone());
    status.phase = match ending {
        Some(ending) => ending.phase,
        None if paused => ResumePhase::Paused,
        None if status.release_requested_at.is_none() => match name.as_deref() {
            Some(step::APPROVALS) => ResumePhase::AwaitingApproval,
            Some(step::COOL_OFF) => ResumePhase::CoolingOff,
            Some(step::RECONCILE) => ResumePhase::Reconciling,
            // One was withdrawn.
            Some(_) if approvals::lacking(status) => ResumePhase::AwaitingApproval,
            // One came up since they were compared.
            Some(_) if !status.breaks.is_empty() => ResumePhase::Reconciling,
            Some(_) | None => ResumePhase::Checking,
        },
        None if !is_released(status) => ResumePhase::Releasing,
        None => match status.stage.as_deref() {
            None => ResumePhase::Restoring,
            Some(ramp::WATCH) => ResumePhase::Watching,
            Some(_) => ResumePhase::Ramping,
        },
    };
    let well = matches!(status.phase, ResumePhase::Completed | ResumePhase::Evaluated);
    status.current_step = name.clone().filter(|_| !well);
    let message = match (ending, &name, said) {
        (Some(ending), ..) => ending.message.clone(),
        (None, Some(name), Some(said)) => format!("{name}: {said}"),
        (None, Some(name), None) => name.clone(),
        (None, None, _) => "every step is done".into(),
    };
    if ending.is_some() && status.finished_at.is_none() {
        status.finished_at = Some(MicroTime(now));
    }
    let phase = phase_name(status.phase);
    let yes = |yes: bool| if yes { "True" } else { "False" };
    let completed = status.phase == ResumePhase::Completed;
    let released = match is_released(status) {
        true => ("True", "Released", "the halt was released".to_owned()),
        false if status.release_requested_at.is_some() => {
            ("False", "Requested", "the release was asked for".to_owned())
        }
        false => ("False", "NotRequested", "the halt holds as far as this resume is concerned".to_owned()),
    };
    let stalled = ending.is_some() && !well;
    let mut set = |type_, value, reason, message: String| {
        set_condition(&mut status.conditions, now, generation, (type_, value, reason), message);
    };
    set(conditions::COMPLETED, yes(completed), phase, message.clone());
    set(conditions::RELEASED, released.0, released.1, released.2);
    set(conditions::READY, yes(well), phase, message.clone());
    set(conditions::RECONCILING, yes(ending.is_none()), phase, message.clone());
    set(conditions::STALLED, yes(stalled), phase, message);
}

/// Says what goes wrong in a stage, or that nothing does.
pub fn regressed(status: &mut TradingResumeStatus, generation: Option<i64>, fault: Option<&Fault>, now: Timestamp) {
    let (value, reason, message) = match fault {
        Some(fault) => ("True", "Failing", format!("{}: {}", fault.check, fault.message)),
        None => ("False", "Passing", "what is watched passes, or fails not often enough to count".into()),
    };
    set_condition(&mut status.conditions, now, generation, (conditions::REGRESSED, value, reason), message);
}

/// Says that the resume does not go on as long as this is so. The next digest takes it back.
pub fn stall(status: &mut TradingResumeStatus, generation: Option<i64>, why: &str, now: Timestamp) {
    let phase = phase_name(status.phase);
    for (type_, value) in [(conditions::COMPLETED, "False"), (conditions::STALLED, "True")] {
        set_condition(&mut status.conditions, now, generation, (type_, value, phase), shorten(why));
    }
}

/// How the message of a resume begins whose halt holds.
pub const NOT_RELEASED: &str = "not released:";

/// How a run of the engine that failed at this step reads.
pub fn failure(status: &TradingResumeStatus, name: &str) -> String {
    let said = state_message(status, name);
    // The step knows more than the journal: what was asked for did not happen.
    if said.starts_with(NOT_RELEASED) {
        return said;
    }
    let halt = if is_released(status) {
        "the halt was released, but"
    } else if status.release_requested_at.is_some() {
        "the release was asked for, but"
    } else {
        NOT_RELEASED
    };
    shorten(&format!("{halt} {name}: {said}"))
}

/// The phase's name.
pub const fn phase_name(phase: ResumePhase) -> &'static str {
    phase.as_str()
}
