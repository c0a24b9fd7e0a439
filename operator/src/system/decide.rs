//! What the status of a trading system should say, from what was observed. Pure.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use standfast_crds::v1alpha1::{
    CheckState, CheckStatus, LatchedWorkload, Problem, TradingHalt, TradingSystem, TradingSystemStatus, WorkloadKind,
    WorkloadStatus, condition, set_condition, shorten,
};

use super::{
    coexistence::{self, Autoscaler},
    conditions,
    prepared::Survey,
    spec::{self, problem},
};
use crate::{held, resume::policy_problem, workloads::View};

/// How long a status may lag where only texts differ.
const TEXT_LAG: Duration = Duration::from_secs(60);
/// How long it may lag where only sizes of workloads differ.
const SIZE_LAG: Duration = Duration::from_secs(10);
/// Entries of `problems`.
const PROBLEMS: usize = 64;
/// Entries of `tradingWorkloads`.
const WORKLOADS: usize = 1000;

/// Problems in the order of what to repair first. What is not listed comes last.
const ORDER: [&str; 19] = [
    "InvalidSpec",
    "NoVenues",
    "NamespaceExcluded",
    "NamespaceNotLabelled",
    "GuardrailsMissing",
    "GuardrailsEdited",
    "PermissionMissing",
    "WorkloadNotFound",
    "CancelOrdersMissing",
    "OpenOrdersNotReadable",
    "ClosePositionsMissing",
    "CredentialMissing",
    "EndpointUnreachable",
    "ReadsFromHaltedWorkload",
    "JobRefused",
    "SharedWorkload",
    "ScaleNotReadable",
    "SelectorNotPlainLabels",
    "GitOpsConflict",
];

/// The answer to a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub state: CheckState,
    pub message: String,
}

/// A venue that another system names too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SharedAccount {
    pub account: String,
    /// The other system, as `namespace/name`.
    pub other: String,
}

/// A workload that another system of the namespace names too, where one of both trades with it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SharedWorkload {
    /// The workload, as `Deployment bot`.
    pub workload: String,
    /// The other system.
    pub other: String,
}

/// Everything that is known of a system.
#[derive(Clone, Debug)]
pub(super) struct Observed<'a> {
    pub system: &'a TradingSystem,
    /// Its trading workloads.
    pub trading: Vec<View>,
    /// What its spec names and is not there.
    pub missing: Vec<String>,
    /// The halts that name it.
    pub halts: Vec<TradingHalt>,
    pub shared_workloads: Vec<SharedWorkload>,
    pub shared_accounts: Vec<SharedAccount>,
    /// Answers by check. None yet: not asked since the operator started or the check changed.
    pub answers: BTreeMap<String, Answer>,
    /// What was found outside; `None` until it was looked for.
    pub survey: Option<Survey>,
    /// `None` until they were listed.
    pub autoscalers: Option<Result<Vec<Autoscaler>, String>>,
}

/// The status as it should be.
pub(super) fn decide(observed: &Observed<'_>, now: Timestamp) -> TradingSystemStatus {
    let system = observed.system;
    let generation = system.metadata.generation;
    let old = system.status.clone().unwrap_or_default();
    // What has not been asked yet is taken from before, as long as it speaks of this spec.
    let before = Some(&old).filter(|s| s.observed_generation == generation);
    let mut status = TradingSystemStatus {
        observed_generation: generation,
        conditions: old.conditions.clone(),
        halt: Some(held::summary(&observed.halts, now)),
        problems: vec![],
        checks: checks(observed, &old, now),
        checks_passing: None,
        trading_workloads: observed.trading.iter().take(WORKLOADS).map(workload).collect(),
        cancel_path: Some(spec::cancel_path(&system.spec).into()),
        coexistence: coexisting(observed, before),
        objectives: spec::objectives(&system.spec).map(|o| shorten(&o)),
    };
    let mut set = |condition: (&str, &str, &str), message: &str| {
        set_condition(&mut status.conditions, now, generation, condition, message);
    };

    let (problems, (state, reason, message)) = prepared(observed, before);
    set((conditions::PREPARED, state, &reason), &message);

    let (state, reason, message) = checks_passing(&status.checks);
    set((conditions::CHECKS_PASSING, state, reason), &message);

    match observed.shared_accounts.as_slice() {
        [] => set((conditions::SHARED_ACCOUNT, "False", "NotShared"), "no other system names the same account"),
        shared => {
            let text: Vec<_> = shared.iter().map(|s| format!("{} by {}", s.account, s.other)).collect();
            let message = format!(
                "accounts that other systems name too: {}; a halt cancels all orders of an account",
                text.join(", ")
            );
            set((conditions::SHARED_ACCOUNT, "True", "AccountNamedTwice"), &message);
        }
    }

    let record = |view: &View| {
        let held = observed.halts.iter().filter(|h| held::holds(h));
        held.filter_map(|h| held::record(h, view.key.kind, &view.key.name)).next().unwrap_or_else(|| latched(view))
    };
    match policy_problem(&system.spec, &observed.trading.iter().map(record).collect::<Vec<_>>()) {
        None => set((conditions::RESUME_POLICY_INVALID, "False", "Valid"), "resumes can be carried out under it"),
        Some(why) => {
            let message = format!("resumePolicy: {why}; until it is repaired resumes fail at first sight");
            set((conditions::RESUME_POLICY_INVALID, "True", "CannotBeCarriedOut"), &shorten(&message));
        }
    }

    match problems.iter().find(|p| p.reason == "InvalidSpec") {
        None => set((conditions::READY, "True", "Observed"), "the spec is valid, and its state is in this status"),
        Some(invalid) => set((conditions::READY, "False", "InvalidSpec"), &invalid.message),
    }

    let passing = status.checks.iter().filter(|c| c.state == CheckState::Passing).count();
    status.checks_passing = (!status.checks.is_empty()).then(|| format!("{passing}/{}", status.checks.len()));
    status.problems = problems;
    status
}

/// As a halt would record it now, where none holds it.
fn latched(view: &View) -> LatchedWorkload {
    let scaled = !view.key.kind.is_switched();
    LatchedWorkload {
        kind: view.key.kind,
        name: view.key.name.clone(),
        replicas: scaled.then_some(view.replicas),
        suspended: (!scaled).then_some(view.suspended),
        match_labels: None,
        inherited_from: None,
        suspended_jobs: vec![],
    }
}

fn workload(view: &View) -> WorkloadStatus {
    let scaled = !view.key.kind.is_switched();
    WorkloadStatus { kind: view.key.kind, name: view.key.name.clone(), replicas: scaled.then_some(view.replicas) }
}

/// When the summary of these halts changes by the passing of time alone.
pub(super) fn summary_expires(halts: &[TradingHalt], now: Timestamp) -> Option<Duration> {
    let ends = halts.iter().filter(|h| held::holds(h)).filter_map(held::proven_until).filter(|until| *until > now);
    ends.min().and_then(|until| Duration::try_from(until.duration_since(now)).ok())
}

fn checks(observed: &Observed<'_>, old: &TradingSystemStatus, now: Timestamp) -> Vec<CheckStatus> {
    let row = |check: &standfast_crds::v1alpha1::Check| {
        let before = old.checks.iter().find(|c| c.name == check.name);
        let (state, message) = match (observed.answers.get(&check.name), before) {
            (Some(answer), _) => (answer.state, shorten(&answer.message)),
            (None, Some(before)) => (before.state, before.message.clone()),
            (None, None) => (CheckState::Unknown, "not asked yet".into()),
        };
        let since = before.filter(|b| b.state == state).and_then(|b| b.last_transition_time.clone());
        CheckStatus {
            name: check.name.clone(),
            group: check.group,
            state,
            message,
            last_transition_time: Some(since.unwrap_or_else(|| micro(now))),
        }
    };
    observed.system.spec.checks.iter().map(row).collect()
}

/// Whole microseconds, as it is written.
fn micro(now: Timestamp) -> MicroTime {
    MicroTime(Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now))
}

fn checks_passing(checks: &[CheckStatus]) -> (&'static str, &'static str, String) {
    let named = |state: CheckState| {
        let texts: Vec<_> =
            checks.iter().filter(|c| c.state == state).map(|c| format!("{}: {}", c.name, c.message)).collect();
        texts.join("; ")
    };
    let any = |state: CheckState| checks.iter().any(|c| c.state == state);
    if checks.is_empty() {
        ("True", "NoChecks", "the spec names no checks".into())
    } else if any(CheckState::Failing) {
        ("False", "ChecksFailing", named(CheckState::Failing))
    } else if any(CheckState::Unknown) {
        ("Unknown", "ChecksUnknown", named(CheckState::Unknown))
    } else {
        // Without numbers, which change all the time.
        ("True", "AllPassing", format!("all {} checks pass", checks.len()))
    }
}

fn coexisting(observed: &Observed<'_>, before: Option<&TradingSystemStatus>) -> Vec<String> {
    match &observed.autoscalers {
        Some(Ok(autoscalers)) => coexistence::named(&observed.trading, autoscalers),
        // Not listed now: what was named before is not forgotten.
        _ => before.map_or_else(|| coexistence::named(&observed.trading, &[]), |b| b.coexistence.clone()),
    }
}

type Verdict = (&'static str, String, String);

/// The problems, and what they say together.
fn prepared(observed: &Observed<'_>, before: Option<&TradingSystemStatus>) -> (Vec<Problem>, Verdict) {
    let spec = &observed.system.spec;
    let mut problems = spec::invalid(spec);
    problems.extend(spec::lacking(spec));
    problems.extend(observed.missing.iter().map(|what| problem("WorkloadNotFound", what)));
    problems.extend(selectors(&observed.trading));
    problems.extend(observed.shared_workloads.iter().map(|shared| {
        let (workload, other) = (&shared.workload, &shared.other);
        let message = format!(
            "{workload} is named by TradingSystem {other} too: a halt of one stops a part of the other; name it in one"
        );
        problem("SharedWorkload", message)
    }));
    let mut unknown = vec![];
    match &observed.survey {
        Some(survey) => {
            problems.extend(survey.problems.iter().cloned());
            unknown.extend(survey.unknown.iter().cloned());
        }
        None => match before.and_then(|b| Some((b, condition(&b.conditions, conditions::PREPARED)?))) {
            // Since a restart of the operator nothing was asked yet: the old answer stands for the moment.
            Some((before, old)) => {
                let state = match old.status.as_str() {
                    "True" => "True",
                    "False" => "False",
                    _ => "Unknown",
                };
                return (before.problems.clone(), (state, old.reason.clone(), old.message.clone()));
            }
            None => unknown.push("the operator is looking at endpoints, Secrets and permissions".into()),
        },
    }
    let place = |p: &Problem| ORDER.iter().position(|o| *o == p.reason).unwrap_or(ORDER.len());
    problems.sort_by_cached_key(|p| (place(p), p.message.clone()));
    problems.dedup();
    let verdict = verdict(&problems, &unknown, &spec::not_selective(spec));
    problems.truncate(PROBLEMS);
    (problems, verdict)
}

fn verdict(problems: &[Problem], unknown: &[String], not_selective: &[&str]) -> Verdict {
    if let Some(first) = problems.first() {
        let message = match problems.len() {
            1 => first.message.clone(),
            n => {
                let mut counted: Vec<(&str, usize)> = vec![];
                for problem in problems {
                    match counted.iter_mut().find(|(reason, _)| *reason == problem.reason) {
                        Some((_, count)) => *count += 1,
                        None => counted.push((&problem.reason, 1)),
                    }
                }
                let reasons: Vec<_> = counted
                    .into_iter()
                    .map(|(reason, count)| if count == 1 { reason.into() } else { format!("{reason} ({count})") })
                    .collect();
                format!("{n} things missing: {}; first: {}", reasons.join(", "), first.message)
            }
        };
        return ("False", first.reason.clone(), message);
    }
    if let Some(first) = unknown.first() {
        return ("Unknown", "NotAllKnown".into(), first.clone());
    }
    let but = match not_selective {
        [] => String::new(),
        venues => format!(
            "; cancelling NonProtective needs cancelOrder and protective, which are missing at {}",
            venues.join(", ")
        ),
    };
    ("True", "Prepared".into(), format!("an emergency halt would work now{but}"))
}

/// Workloads whose pods cannot be refused: their selectors are more than labels.
fn selectors(trading: &[View]) -> Vec<Problem> {
    trading
        .iter()
        .filter(|v| v.match_labels.is_none())
        .map(|v| {
            let what = match v.key.kind {
                WorkloadKind::CronJob => "jobTemplate has no pod labels",
                WorkloadKind::Scalable(_) => "selector is not in its status, or is more than labels",
                _ => "selector has matchExpressions or no labels",
            };
            let message = format!(
                "{}: its {what}; a halt would stop it, but could not refuse or find other pods of it; use matchLabels",
                v.key
            );
            problem("SelectorNotPlainLabels", message)
        })
        .collect()
}

/// Whether the new status is worth a write now. Texts that change by themselves (an age, a price) and sizes of
/// workloads wait for others, and an idle system is never written.
pub(super) fn worth_writing(
    old: Option<&TradingSystemStatus>,
    new: &TradingSystemStatus,
    since_last: Option<Duration>,
) -> bool {
    let Some(old) = old else { return true };
    if old == new {
        return false;
    }
    let lag = |limit: Duration| since_last.is_none_or(|since| since >= limit);
    let (old_sized, new_sized) = (without_texts(old), without_texts(new));
    if without_sizes(&old_sized) != without_sizes(&new_sized) {
        return true;
    }
    if old_sized != new_sized && lag(SIZE_LAG) {
        return true;
    }
    quiet(old) != quiet(new) && lag(TEXT_LAG)
}

/// When a change that was not worth a write becomes one.
pub(super) const RECONSIDER: Duration = SIZE_LAG;

/// Without the texts of passing checks: they are brought up to date with the next write.
fn quiet(status: &TradingSystemStatus) -> TradingSystemStatus {
    let mut status = status.clone();
    status.checks.iter_mut().filter(|c| c.state == CheckState::Passing).for_each(|c| c.message.clear());
    status
}

fn without_texts(status: &TradingSystemStatus) -> TradingSystemStatus {
    let mut status = status.clone();
    status.checks.iter_mut().for_each(|c| c.message.clear());
    status.problems.iter_mut().for_each(|p| p.message.clear());
    status.conditions.iter_mut().for_each(|c| c.message.clear());
    status
}

fn without_sizes(status: &TradingSystemStatus) -> TradingSystemStatus {
    let mut status = status.clone();
    status.trading_workloads.iter_mut().for_each(|w| w.replicas = None);
    status
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
