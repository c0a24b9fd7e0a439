//! Carries out what is decided.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use futures::future::join_all;
use k8s_openapi::jiff::Timestamp;
use standfast_crds::v1alpha1::{StepState, StepStatus};
use tokio::time::{Instant, timeout};

use super::{
    Acted, Controls, Definition, Observation, Procedure, Step,
    decide::{Decision, End, Moment, RECORD, decide, entry, settle},
};

/// How often a result is recorded again when something else of the object was changed in between.
const RECORD_TRIES: usize = 4;

/// How long one write of a journal may take. None is begun that the lease may not outlast: what another leader wrote
/// would be decided over.
const WRITE: Duration = Duration::from_secs(4);

/// Why a journal was not read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// Somebody changed the object in between; nothing was written.
    #[error("{0}")]
    Conflict(String),
    /// It must not be written any more: the object is gone, or what it is asked to do has changed.
    #[error("{0}")]
    Stale(String),
    /// The call failed, perhaps after it took effect.
    #[error("{0}")]
    Failed(String),
}

/// Where the journal of one run is kept.
#[async_trait]
pub trait Journal: Send {
    /// The journal as it was last read or written.
    fn steps(&self) -> Vec<StepStatus>;

    /// Writes the journal, if the object is still the one that was last read or written.
    async fn record(&mut self, steps: Vec<StepStatus>) -> Result<(), JournalError>;

    /// Reads the object again, live.
    async fn reload(&mut self) -> Result<(), JournalError>;
}

/// Whether this process may act.
pub trait Term: Send + Sync {
    /// The leader's term.
    fn epoch(&self) -> i64;

    /// Whether an effect that takes at most so long may begin now.
    fn allows(&self, needed: Duration) -> Result<(), String>;
}

/// Why a run did not get on. Nothing is lost: it goes on from its journal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// Somebody changed the object in between.
    #[error("{0}")]
    Conflict(String),
    /// This process may not act.
    #[error("{0}")]
    NotAllowed(String),
    /// Reading or writing failed.
    #[error("{0}")]
    Failed(String),
}

impl From<JournalError> for RunError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Conflict(text) | JournalError::Stale(text) => Self::Conflict(text),
            JournalError::Failed(text) => Self::Failed(text),
        }
    }
}

/// How a run got on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advance {
    /// Something was recorded: there may be more to do at once.
    Moved,
    /// Nothing for so long.
    Wait(Duration),
    /// Nothing until somebody ends the pause.
    Paused,
    /// Nothing any more.
    Ended(End),
}

/// Brings a run forward by at most one wave. `journal` was read live just now; `clock` tells the time.
pub async fn advance(
    procedure: &Procedure,
    journal: &mut dyn Journal,
    run: &str,
    term: &dyn Term,
    clock: &(dyn Fn() -> Timestamp + Sync),
    controls: Controls,
) -> Result<Advance, RunError> {
    let waves: Vec<Vec<_>> = procedure.iter().map(|w| w.iter().map(|s| s.definition()).collect()).collect();
    // The API server keeps microseconds, and what comes back from it is compared.
    let clock = || Timestamp::from_microsecond(clock().as_microsecond()).unwrap_or_default();
    let at = |now| Moment { now, epoch: term.epoch(), run };
    // Counts from before the intent: the deadline in it must not pass before its call has ended.
    let mut started = Instant::now();
    let entries = journal.steps();
    let mut decision = decide(&waves, &entries, &BTreeMap::new(), at(clock()), controls);
    if let Decision::Observe(names) = &decision {
        let asked = steps(procedure, &waves, names).map(|(step, definition)| {
            let entry = entry(&entries, &definition.name);
            async move { (entry.name.clone(), observe(step, definition, &entry).await) }
        });
        let observed = join_all(asked).await.into_iter().collect();
        started = Instant::now();
        decision = decide(&waves, &entries, &observed, at(clock()), controls);
    }
    match decision {
        // A deadline passed in between.
        Decision::Observe(_) => Ok(Advance::Wait(Duration::ZERO)),
        Decision::Wait(time) => Ok(Advance::Wait(time)),
        Decision::Paused => Ok(Advance::Paused),
        Decision::Superseded => Err(RunError::NotAllowed("a newer leader is at work on this run".into())),
        Decision::Ended(end) => Ok(Advance::Ended(end)),
        Decision::Record { steps: intents, begin, wait } => {
            term.allows(WRITE).map_err(RunError::NotAllowed)?;
            record_intents(journal, &intents, &begin).await?;
            if begin.is_empty() {
                return Ok(wait.map_or(Advance::Moved, Advance::Wait));
            }
            let acting = steps(procedure, &waves, &begin).map(|(step, definition)| {
                let entry = entry(&intents, &definition.name);
                async move {
                    let acted = act(step, definition, &entry, term, started).await;
                    (settle(definition, &entry, &acted, clock()), acted)
                }
            });
            let results: Vec<_> = join_all(acting).await;
            for (result, acted) in &results {
                tracing::info!(
                    run, step = result.name, attempt = result.attempts, state = ?result.state,
                    message = result.message, outcome = acted.word(), "step called"
                );
            }
            record_results(journal, &intents, results.into_iter().map(|(r, _)| r).collect()).await?;
            Ok(Advance::Moved)
        }
    }
}

fn steps<'a>(
    procedure: &'a Procedure,
    waves: &'a [Vec<Definition>],
    names: &'a [String],
) -> impl Iterator<Item = (&'a dyn Step, &'a Definition)> {
    let all = procedure.iter().flatten().zip(waves.iter().flatten());
    all.filter(|(_, d)| names.contains(&d.name)).map(|(s, d)| (&**s, d))
}

async fn observe(step: &dyn Step, definition: &Definition, entry: &StepStatus) -> Observation {
    let looked = timeout(definition.look, step.observe(entry)).await;
    looked.unwrap_or_else(|_| {
        Observation::Unknown(format!("it could not be read within {} s", definition.look.as_secs_f32()))
    })
}

/// Steps 2 and 3 of the protocol. Ends before the intent's deadline.
async fn act(step: &dyn Step, definition: &Definition, entry: &StepStatus, term: &dyn Term, started: Instant) -> Acted {
    if started.elapsed() > RECORD {
        return Acted::Again("recording the intent took too long".into());
    }
    match observe(step, definition, entry).await {
        Observation::Done(text) => return Acted::Done(text),
        Observation::NotNeeded(text) => return Acted::NotNeeded(text),
        Observation::Failed(text) => return Acted::Failed(text),
        Observation::InProgress(message) => return Acted::Started { message, external_ref: None },
        Observation::Indeterminate(text) => return Acted::Unknown(text),
        // Nothing of this attempt was called, and no attempt before it had an effect.
        Observation::NotDone(_) | Observation::Unknown(_) => {}
    }
    let late = definition.repeatable && !definition.within_lease;
    let needed = if late { Duration::ZERO } else { definition.call };
    if let Err(why) = term.allows(needed) {
        return Acted::Again(why);
    }
    if started.elapsed() > RECORD + definition.look {
        return Acted::Again("preparing the call took too long".into());
    }
    let acted = timeout(definition.call, step.act(entry)).await;
    acted.unwrap_or_else(|_| Acted::Unknown(format!("no answer within {} s", definition.call.as_secs_f32())))
}

/// Records intents. When the answer is lost, and they are there, they are this process's own: nobody has acted on them.
async fn record_intents(
    journal: &mut dyn Journal,
    intents: &[StepStatus],
    begin: &[String],
) -> Result<(), JournalError> {
    match journal.record(intents.to_vec()).await {
        Err(JournalError::Failed(text)) if !begin.is_empty() => {
            journal.reload().await?;
            let there = journal.steps();
            // The deadline tells this write from any other, to the microsecond.
            let ours = begin.iter().all(|name| entry(&there, name) == entry(intents, name));
            if ours { Ok(()) } else { Err(JournalError::Failed(text)) }
        }
        written => written,
    }
}

/// Records results also when something else of the object was changed, or an answer was lost, in between: as long as
/// the intents are still there.
async fn record_results(
    journal: &mut dyn Journal,
    intents: &[StepStatus],
    results: Vec<StepStatus>,
) -> Result<(), JournalError> {
    let mut tries = 1;
    loop {
        let mut steps = journal.steps();
        for result in &results {
            let Some(there) = steps.iter_mut().find(|e| e.name == result.name) else {
                return Err(JournalError::Stale(format!("step {} is no longer in the journal", result.name)));
            };
            let intended = *there == entry(intents, &result.name) && there.state == StepState::Running;
            if intended {
                *there = result.clone();
            } else if there != result {
                return Err(JournalError::Stale(format!("step {} was recorded by somebody else", result.name)));
            }
        }
        if steps == journal.steps() {
            return Ok(());
        }
        match journal.record(steps).await {
            Ok(()) => return Ok(()),
            Err(JournalError::Stale(text)) => return Err(JournalError::Stale(text)),
            Err(error) if tries == RECORD_TRIES => return Err(error),
            Err(_) => {
                tries += 1;
                journal.reload().await?;
            }
        }
    }
}
