//! What a run does next: no clock, no calls.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::{SignedDuration, Timestamp},
};
use standfast_crds::v1alpha1::{StepState, StepStatus, shorten};

use super::{Acted, Controls, Definition, Observation};

/// How long a step whose effect may not be repeated is asked, after the deadline of its call, before a person is.
const PATIENCE: Duration = Duration::from_secs(60);

/// The time between two attempts: the first, doubled each time, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How long recording an intent may take.
pub(super) const RECORD: Duration = Duration::from_secs(5);

/// How far the clocks of two leaders may be apart.
const SKEW: Duration = Duration::from_secs(1);

/// When and by whom it is decided.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// The time.
    pub now: Timestamp,
    /// The leader's term.
    pub epoch: i64,
    /// uid of the run.
    pub run: &'a str,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Every step is done or was not needed.
    Succeeded,
    /// This step failed.
    Failed(String),
    /// What became of this step cannot be known.
    Indeterminate(String),
}

/// What a run does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Look at the targets of these steps, then decide again.
    Observe(Vec<String>),
    /// Record the whole journal like this, then act on the steps named in `begin`.
    Record {
        /// The journal.
        steps: Vec<StepStatus>,
        /// The steps whose intent is new.
        begin: Vec<String>,
        /// Nothing moved: there is only something new to say, and nothing more to do for so long.
        wait: Option<Duration>,
    },
    /// Nothing for so long.
    Wait(Duration),
    /// Nothing until somebody ends the pause.
    Paused,
    /// A newer leader is at work: nothing at all.
    Superseded,
    /// Nothing any more.
    Ended(End),
}

/// Decides. `observed` holds what was asked for by an earlier [`Decision::Observe`] of the same moment.
pub fn decide(
    waves: &[Vec<Definition>],
    journal: &[StepStatus],
    observed: &BTreeMap<String, Observation>,
    at: Moment<'_>,
    controls: Controls,
) -> Decision {
    // Terms begin anew when a Lease was deleted: only a call that may be under way tells of somebody newer.
    let newer = |d: &Definition| {
        let running = find(journal, &d.name).filter(|e| e.state == StepState::Running);
        let later = running.filter(|e| e.epoch.is_some_and(|epoch| epoch > at.epoch));
        later.and_then(|e| under_way(e, at.now)).is_some_and(|left| left <= reach(d))
    };
    if waves.iter().flatten().any(newer) {
        return Decision::Superseded;
    }
    let done = |e: &StepStatus| matches!(e.state, StepState::Succeeded | StepState::Skipped);
    let passed = |d: &Definition| find(journal, &d.name).is_some_and(done);
    let Some(wave) = waves.iter().find(|w| !w.iter().all(passed)) else {
        return Decision::Ended(End::Succeeded);
    };
    let judged: Vec<_> =
        wave.iter().map(|d| (d, entry(journal, &d.name))).map(|(d, e)| (d, look(d, &e, observed, at), e)).collect();
    let over = [StepState::Indeterminate, StepState::Failed]
        .into_iter()
        .find_map(|state| judged.iter().find(|(_, _, e)| e.state == state).and_then(|(d, _, _)| ended(d, state)));
    let hold = over.is_some() || controls.paused;

    let (mut ask, mut begin, mut changed, mut said) = (vec![], vec![], vec![], vec![]);
    let (mut wait, mut open) = (None::<Duration>, false);
    for (definition, verdict, entry) in judged {
        open |= entry.state == StepState::Running;
        match verdict {
            Verdict::Final => {}
            Verdict::Ask => ask.push(definition.name.clone()),
            Verdict::Change(new) => changed.push(new),
            Verdict::Say(new, time) => {
                said.push(new);
                wait = Some(wait.map_or(time, |w| w.min(time)));
            }
            Verdict::Wait(time) => {
                // What is only to be tried again later does not matter any more when nothing is begun.
                if entry.state == StepState::Running || !hold {
                    wait = Some(wait.map_or(time, |w| w.min(time)));
                }
            }
            Verdict::Begin if hold => {}
            Verdict::Begin => begin.push(intent(definition, entry, at)),
        }
    }
    if !ask.is_empty() {
        return Decision::Observe(ask);
    }
    let moved = !changed.is_empty() || !begin.is_empty();
    if !moved && said.is_empty() {
        return match (over, open) {
            (Some(end), false) => Decision::Ended(end),
            (None, false) if controls.paused => Decision::Paused,
            _ => Decision::Wait(wait.unwrap_or(RETRY.0)),
        };
    }
    let names = begin.iter().map(|e| e.name.clone()).collect();
    let mut steps: Vec<_> = waves.iter().flatten().map(|d| entry(journal, &d.name)).collect();
    for new in changed.into_iter().chain(begin).chain(said) {
        steps.iter_mut().filter(|e| e.name == new.name).for_each(|e| *e = new.clone());
    }
    Decision::Record { steps, begin: names, wait: wait.filter(|_| !moved) }
}

enum Verdict {
    Final,
    Ask,
    Change(StepStatus),
    /// Under way as before: what is new is said, and it is asked again later.
    Say(StepStatus, Duration),
    Wait(Duration),
    Begin,
}

fn look(
    definition: &Definition,
    entry: &StepStatus,
    observed: &BTreeMap<String, Observation>,
    at: Moment<'_>,
) -> Verdict {
    match entry.state {
        StepState::Succeeded | StepState::Failed | StepState::Skipped | StepState::Indeterminate => Verdict::Final,
        StepState::Pending => match late(definition, entry, at.now) {
            Some(why) => {
                Verdict::Change(finish(entry, StepState::Failed, because(why, entry.message.as_deref()), at.now))
            }
            None => match until(entry.finished_at.as_ref(), pause(entry.attempts), at.now) {
                // More is left than there was: the clock was set back.
                Some(time) if entry.attempts > 0 && time <= pause(entry.attempts) => Verdict::Wait(time),
                _ => Verdict::Begin,
            },
        },
        StepState::Running => match observed.get(&definition.name) {
            None => Verdict::Ask,
            Some(seen) => match (seen, under_way(entry, at.now)) {
                // The clock was set back: how much is left is not known, and counts from now.
                (Observation::NotDone(_) | Observation::Unknown(_), Some(left)) if left > reach(definition) => {
                    let deadline = Some(MicroTime(later(at.now, reach(definition))));
                    Verdict::Say(StepStatus { deadline, ..entry.clone() }, interval(definition))
                }
                (seen, left) => judge(definition, entry, seen, left, at.now),
            },
        },
    }
}

/// What an observation of a step that is `Running` means. `under_way` is for how long its call may still be.
fn judge(
    definition: &Definition,
    entry: &StepStatus,
    seen: &Observation,
    under_way: Option<Duration>,
    now: Timestamp,
) -> Verdict {
    let settled = |state, text: &str| Verdict::Change(finish(entry, state, text.into(), now));
    let acknowledged = entry.deadline.is_none();
    let interval = interval(definition);
    match seen {
        Observation::Done(text) => settled(StepState::Succeeded, text),
        Observation::NotNeeded(text) => settled(StepState::Skipped, text),
        Observation::Failed(text) => settled(StepState::Failed, text),
        Observation::Indeterminate(text) => settled(StepState::Indeterminate, text),
        Observation::InProgress(text) => match late(definition, entry, now) {
            Some(why) if definition.repeatable => settled(StepState::Failed, &because(why, Some(text))),
            Some(why) => settled(StepState::Indeterminate, &because(why, Some(text))),
            // It was begun: no call of this attempt is needed any more.
            None => note(StepStatus { deadline: None, ..entry.clone() }, entry, text, interval),
        },
        Observation::NotDone(text) => match under_way {
            Some(time) => Verdict::Wait(time.min(interval)),
            None if acknowledged && !definition.repeatable => {
                settled(StepState::Indeterminate, &format!("it was begun, and nothing of it is there: {text}"))
            }
            None => match late(definition, entry, now) {
                Some(why) => settled(StepState::Failed, &because(why, Some(text))),
                None => Verdict::Change(between(entry, text, now)),
            },
        },
        Observation::Unknown(text) => match under_way {
            Some(time) => Verdict::Wait(time.min(interval)),
            None => match late(definition, entry, now) {
                Some(why) if definition.repeatable => settled(StepState::Failed, &because(why, Some(text))),
                Some(why) => settled(StepState::Indeterminate, &because(why, Some(text))),
                None if acknowledged => note(entry.clone(), entry, text, interval),
                None if definition.repeatable => Verdict::Change(between(entry, text, now)),
                None if until(entry.deadline.as_ref(), PATIENCE, now).is_some() => {
                    note(entry.clone(), entry, text, interval)
                }
                None => settled(
                    StepState::Indeterminate,
                    &format!("whether it was done cannot be known, a person has to look: {text}"),
                ),
            },
        },
    }
}

/// The step after its call.
pub fn settle(definition: &Definition, entry: &StepStatus, acted: &Acted, now: Timestamp) -> StepStatus {
    match acted {
        Acted::Done(text) => finish(entry, StepState::Succeeded, text.clone(), now),
        Acted::NotNeeded(text) => finish(entry, StepState::Skipped, text.clone(), now),
        Acted::Failed(text) => finish(entry, StepState::Failed, text.clone(), now),
        Acted::Again(text) => match late(definition, entry, now) {
            Some(why) => finish(entry, StepState::Failed, because(why, Some(text)), now),
            None => between(entry, text, now),
        },
        Acted::Started { message, external_ref } => StepStatus {
            deadline: None,
            message: Some(shorten(message)).filter(|m| !m.is_empty()),
            external_ref: external_ref.clone().or_else(|| entry.external_ref.clone()),
            ..entry.clone()
        },
        Acted::Unknown(text) => StepStatus { message: Some(shorten(text)), ..entry.clone() },
    }
}

/// The step as the journal has it.
pub(super) fn entry(journal: &[StepStatus], name: &str) -> StepStatus {
    find(journal, name).cloned().unwrap_or_else(|| StepStatus { name: name.into(), ..StepStatus::default() })
}

fn find<'a>(journal: &'a [StepStatus], name: &str) -> Option<&'a StepStatus> {
    journal.iter().find(|e| e.name == name)
}

fn ended(definition: &Definition, state: StepState) -> Option<End> {
    match state {
        StepState::Failed => Some(End::Failed(definition.name.clone())),
        StepState::Indeterminate => Some(End::Indeterminate(definition.name.clone())),
        StepState::Pending | StepState::Running | StepState::Succeeded | StepState::Skipped => None,
    }
}

fn intent(definition: &Definition, entry: StepStatus, at: Moment<'_>) -> StepStatus {
    let attempt = entry.attempts + 1;
    StepStatus {
        state: StepState::Running,
        attempts: attempt,
        started_at: entry.started_at.or(Some(MicroTime(at.now))),
        finished_at: None,
        operation_id: Some(format!("{}/{}/{attempt}", at.run, definition.name)),
        deadline: Some(MicroTime(later(at.now, reach(definition)))),
        epoch: Some(at.epoch),
        external_ref: None,
        message: entry.message,
        name: entry.name,
    }
}

/// How long after its intent a call may be under way at most.
fn reach(definition: &Definition) -> Duration {
    RECORD + definition.look + definition.call + SKEW
}

/// How long the call of this attempt may still be under way, by its deadline.
fn under_way(entry: &StepStatus, now: Timestamp) -> Option<Duration> {
    until(entry.deadline.as_ref(), Duration::ZERO, now)
}

fn interval(definition: &Definition) -> Duration {
    definition.interval.max(Duration::from_millis(100))
}

/// Attempt over, without effect; there will be another one.
fn between(entry: &StepStatus, text: &str, now: Timestamp) -> StepStatus {
    StepStatus { deadline: None, ..finish(entry, StepState::Pending, text.into(), now) }
}

fn finish(entry: &StepStatus, state: StepState, text: String, now: Timestamp) -> StepStatus {
    let message = Some(text).filter(|t| !t.is_empty()).map(|t| shorten(&t));
    StepStatus { state, finished_at: Some(MicroTime(now)), deadline: None, message, ..entry.clone() }
}

/// Still under way: recorded only when there is something new to say. A message that holds a time is new at every look.
fn note(new: StepStatus, entry: &StepStatus, text: &str, interval: Duration) -> Verdict {
    let new = StepStatus { message: Some(shorten(text)).filter(|t| !t.is_empty()), ..new };
    if new == *entry { Verdict::Wait(interval) } else { Verdict::Say(new, interval) }
}

/// Why the step's time is over, if it is.
fn late(definition: &Definition, entry: &StepStatus, now: Timestamp) -> Option<String> {
    if definition.until.is_some_and(|until| now >= until) {
        return Some("the deadline has passed".into());
    }
    let (timeout, started) = (definition.timeout?, entry.started_at.as_ref()?);
    (now >= later(started.0, timeout)).then(|| format!("not done within {} s", timeout.as_secs()))
}

fn because(why: String, text: Option<&str>) -> String {
    match text.filter(|t| !t.is_empty()) {
        Some(text) => format!("{why}: {text}"),
        None => why,
    }
}

fn pause(attempts: i64) -> Duration {
    let doublings = u32::try_from(attempts.clamp(1, 16) - 1).unwrap_or(0);
    RETRY.0.saturating_mul(1 << doublings).min(RETRY.1)
}

/// For how long `after` that moment has not passed yet.
fn until(moment: Option<&MicroTime>, after: Duration, now: Timestamp) -> Option<Duration> {
    let end = later(moment?.0, after);
    Duration::try_from(end.duration_since(now)).ok().filter(|d| !d.is_zero())
}

fn later(moment: Timestamp, by: Duration) -> Timestamp {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
    moment.checked_add(by).unwrap_or(Timestamp::MAX)
}
