//! The journal of a resume: its status, written whole over the version that was read.

use async_trait::async_trait;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use kube::{Api, Client, ResourceExt, api::PostParams};
use standfast_crds::v1alpha1::{LatchedWorkload, StepState, StepStatus, TradingResume, TradingResumeStatus};

use super::{
    approvals::Tally,
    context::DEADLINE,
    gates,
    plan::ResumePlan,
    ramp,
    reconcile::Ledger,
    restore::Names,
    status::{self, Ending, step},
    watch::Record,
};
use crate::{
    client::{self, Class},
    engine::{Journal, JournalError, Term},
    scale::FIELD_MANAGER,
};

/// One resume, as it was last read or written.
pub(super) struct ResumeJournal<'a> {
    api: Api<TradingResume>,
    term: &'a dyn Term,
    what: String,
    /// The object.
    pub object: TradingResume,
    /// The workloads that were brought back.
    pub restored: Names,
    /// What the steps find out of stages.
    pub record: Record,
    /// What the comparisons found.
    pub ledger: Ledger,
    /// The approvals that were counted.
    pub tally: Tally,
    /// The spec that everything is decided on.
    generation: Option<i64>,
}

impl<'a> ResumeJournal<'a> {
    pub fn new(client: Client, term: &'a dyn Term, object: TradingResume) -> Self {
        let namespace = object.namespace().unwrap_or_default();
        let what = format!("TradingResume {namespace}/{}", object.name_any());
        let generation = object.metadata.generation;
        let restored = Names::new(object.status.as_ref().map_or(&[], |s| &s.restored));
        let record = Record::new(&object.status.clone().unwrap_or_default(), ResumePlan::read(&object).ok().as_ref());
        let api = Api::namespaced(client, &namespace);
        let (tally, ledger) = (Tally::default(), Ledger::default());
        Self { api, term, what, object, restored, record, ledger, tally, generation }
    }

    pub fn status(&self) -> TradingResumeStatus {
        self.object.status.clone().unwrap_or_default()
    }

    /// Writes the status if it says anything new.
    pub async fn write(&mut self, status: TradingResumeStatus) -> Result<(), JournalError> {
        if self.object.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut next = self.object.clone();
        next.metadata.managed_fields = None;
        next.status = Some(status);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let what = format!("writing the status of {}", self.what);
        let written = client::write(DEADLINE, what, self.api.replace_status(&next.name_any(), &params, &next)).await;
        match written {
            Ok(object) => {
                self.object = object;
                Ok(())
            }
            Err(error) => Err(match error.class() {
                Class::Conflict => JournalError::Conflict(error.to_string()),
                Class::NotFound => JournalError::Stale(error.to_string()),
                _ => JournalError::Failed(error.to_string()),
            }),
        }
    }

    /// Brings the status in line with the journal, and writes it if that says anything new.
    pub async fn settle(
        &mut self,
        mut status: TradingResumeStatus,
        ending: Option<&Ending>,
    ) -> Result<(), JournalError> {
        status.restored = self.restored.list();
        self.tally.show(&mut status);
        self.ledger.show(&mut status);
        let fault = self.record.note(&mut status);
        // What only waits for time to pass is never in the midst of something.
        let running = status.steps.iter().any(|s| s.state == StepState::Running && !ramp::holds(&s.name));
        // Up to the release a step that is under way changes nothing; afterwards it comes to its end first.
        let paused = self.object.spec.paused && (!status::is_released(&status) || !running);
        status::digest(&mut status, self.object.metadata.generation, paused, ending, now());
        if let Some(fault) = fault {
            status::regressed(&mut status, self.object.metadata.generation, fault.as_ref(), now());
        }
        self.write(status).await
    }

    /// Takes Jobs that the halt suspended into the status; they are written with the next record.
    pub fn note_suspended_jobs(&mut self, workloads: &[LatchedWorkload]) {
        if let Some(status) = &mut self.object.status {
            status.suspended_jobs = gates::suspended_jobs(workloads);
        }
    }
}

/// The time, as the API server keeps it.
pub(super) fn now() -> Timestamp {
    Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap_or_default()
}

fn requested(steps: &[StepStatus]) -> bool {
    steps.iter().any(|s| s.name == step::REQUEST_RELEASE && s.state == StepState::Succeeded)
}

#[async_trait]
impl Journal for ResumeJournal<'_> {
    fn steps(&self) -> Vec<StepStatus> {
        self.status().steps
    }

    async fn record(&mut self, steps: Vec<StepStatus>) -> Result<(), JournalError> {
        let mut status = self.status();
        status.steps = steps;
        if requested(&status.steps) && status.release_requested_at.is_none() {
            // That every gate has passed and that the release is asked for is one write, and only for the spec that
            // the gates were asked for: a pause or an abort in between wins.
            let (meta, spec) = (&self.object.metadata, &self.object.spec);
            if meta.generation != self.generation || meta.deletion_timestamp.is_some() || spec.paused || spec.abort {
                return Err(JournalError::Stale(format!("{} was changed before its release", self.what)));
            }
            // The gates were asked when this process surely led; that was a while ago.
            self.term.allows(DEADLINE).map_err(JournalError::Stale)?;
            status.release_requested_at = Some(MicroTime(now()));
        }
        self.settle(status, None).await
    }

    async fn reload(&mut self) -> Result<(), JournalError> {
        let what = format!("reading {}", self.what);
        let live = client::read(DEADLINE, what, self.api.get_opt(&self.object.name_any())).await;
        let live = live.map_err(|e| JournalError::Failed(e.to_string()))?;
        let Some(live) = live.filter(|l| l.uid() == self.object.uid()) else {
            return Err(JournalError::Stale(format!("{} is gone", self.what)));
        };
        if live.status.as_ref().is_some_and(|s| s.finished_at.is_some()) {
            return Err(JournalError::Stale(format!("{} was ended by somebody else", self.what)));
        }
        self.object = live;
        Ok(())
    }
}
