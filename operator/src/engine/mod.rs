//! Runs procedures of several steps: journalled, so that another process can go on where one broke off.
//!
//! A procedure is a list of waves, a wave a list of [`Step`]s that may go on at the same time; a wave begins when the
//! one before it is done. How far a run came is in its status, one [`StepStatus`] for each step. What happens next is
//! decided by [`decide`], which is pure; [`advance`] asks, records and calls, one wave at a time, and never waits for a
//! long operation.
//!
//! # The protocol of an effect
//!
//! 1. The intent is recorded, under the resource version of the live object: `Running`, the attempt's number, its
//!    operation id (run uid, step, attempt), the leader's term, and a deadline after which no call of this attempt can
//!    be under way any more.
//! 2. The target is observed. What is there already is adopted, not done again.
//! 3. The call is made, once.
//! 4. The result is recorded. A call that was acknowledged clears the deadline; one whose outcome is open leaves it.
//!
//! After a crash the run finds an intent without a result. It observes, and until the deadline it does no more than
//! that, whosever intent it was: a leader that is on its way out may still be calling. Afterwards an effect that
//! certainly did not happen, or that may be repeated, gets a new attempt. One that may not, and that cannot be
//! observed, becomes `Indeterminate`: a person has to decide.
//!
//! # The journal
//!
//! A step goes from attempt to attempt: `Pending` with `attempts: n` and a `finishedAt` means that attempt *n* had no
//! effect and that there will be another one. It never goes back ([`progress`]).

mod decide;
mod run;
#[cfg(test)]
mod tests;

use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use standfast_crds::v1alpha1::StepStatus;

pub use decide::{Decision, End, Moment, decide, progress, settle};
pub use run::{Advance, Journal, JournalError, RunError, Term, advance};

/// What is known of a step before it is asked anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Its name, unique in the procedure.
    pub name: String,
    /// Whether its effect may happen more than once without harm.
    pub repeatable: bool,
    /// Its call is begun only while the lease outlasts it: what undoes a halt must not come late, when another leader has
    /// halted again. So it is with all that may not be repeated.
    pub within_lease: bool,
    /// The longest that one [`Step::observe`] may take.
    pub look: Duration,
    /// The longest that one [`Step::act`] may take. It is cut off after it, with an unknown outcome.
    pub call: Duration,
    /// The step fails when it is not done this long after it was first tried.
    pub timeout: Option<Duration>,
    /// The step fails when it is not done by then, tried or not.
    pub until: Option<Timestamp>,
    /// How often a step that is under way is asked how far it is.
    pub interval: Duration,
}

impl Definition {
    /// A step that may be repeated, without a time limit, whose looks and calls take at most 4 s and that is asked
    /// every 2 s.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            repeatable: true,
            within_lease: false,
            look: Duration::from_secs(4),
            call: Duration::from_secs(4),
            timeout: None,
            until: None,
            interval: Duration::from_secs(2),
        }
    }
}

/// What a look at a step's target shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// It is as it should be.
    Done(String),
    /// Nothing has to be done.
    NotNeeded(String),
    /// It is not as it should be, and nothing is on the way.
    NotDone(String),
    /// It is on the way, or waits for something else.
    InProgress(String),
    /// It cannot be told.
    Unknown(String),
    /// It will never be as it should be.
    Failed(String),
    /// It can never be told.
    Indeterminate(String),
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acted {
    /// It is done, as far as can be known.
    Done(String),
    /// Nothing had to be done.
    NotNeeded(String),
    /// It was begun; observing tells how it goes on.
    Started {
        /// For people.
        message: String,
        /// What was made, a Job for example.
        external_ref: Option<String>,
    },
    /// It certainly had no effect, and may be tried again.
    Again(String),
    /// It did not succeed, and is not tried again.
    Failed(String),
    /// It may have had an effect.
    Unknown(String),
}

impl Acted {
    /// One word for logs.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Done(_) => "Done",
            Self::NotNeeded(_) => "NotNeeded",
            Self::Started { .. } => "Started",
            Self::Again(_) => "Again",
            Self::Failed(_) => "Failed",
            Self::Unknown(_) => "Unknown",
        }
    }
}

/// One step of a procedure. It brings what it needs to observe and to act.
#[async_trait]
pub trait Step: Send + Sync {
    /// What is known of it before it is asked anything. Does not change during a run.
    fn definition(&self) -> Definition;

    /// Looks at the target, live, without changing anything. `entry` is the step as the journal has it.
    async fn observe(&self, entry: &StepStatus) -> Observation;

    /// Makes the call, once. `entry` is the intent as it was recorded; its `operationId` names what is made.
    async fn act(&self, entry: &StepStatus) -> Acted;
}

/// The steps of a procedure, in waves.
pub type Procedure = Vec<Vec<Box<dyn Step>>>;

/// What people may want of a run that is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Controls {
    /// Nothing is begun.
    pub paused: bool,
    /// Nothing is begun, and what is under way is not awaited. To undo what was done is up to the kind of run.
    pub abort: bool,
}
