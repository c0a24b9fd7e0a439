//! Actions and reads that run as Jobs: slow, for what HTTP cannot do.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};
use serde_json::Value;
use sha2::{Digest, Sha256};
use standfast_crds::v1alpha1::{ActionState, JobAction, TradingHalt, TradingHaltStatus};
use tokio::time::Instant;

use super::{HaltReconciler, act, decide::Known};
use crate::{
    calls::Outcome,
    jobs::{self, JobError, JobState},
};

/// The shortest time between two Jobs that read the same thing.
pub const PAUSE: Duration = Duration::from_secs(300);
/// How long a Job may run if its action does not say.
pub const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest that a Job may run, whatever its action says.
const LONGEST: Duration = Duration::from_secs(600);

/// Reads that run as Jobs, of one halt. Names are salted, so that what another process began is not taken for an
/// answer to a question of this one.
pub struct JobReads {
    salt: i128,
    reads: Mutex<HashMap<String, JobRead>>,
}

#[derive(Clone, Default)]
struct JobRead {
    count: u64,
    begun: Option<Begun>,
    running: bool,
    last: Option<(Begun, Known<Value>)>,
}

/// When a Job was begun, on both clocks: one to compare, one to show.
pub type Begun = (Instant, Timestamp);

impl JobReads {
    /// No reads yet.
    pub fn new(salt: i128) -> Self {
        Self { salt, reads: Mutex::default() }
    }

    fn get(&self, what: &str) -> JobRead {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner).get(what).cloned().unwrap_or_default()
    }

    fn put(&self, what: &str, read: JobRead) {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner).insert(what.into(), read);
    }
}

/// The answer of a read: when its Job was begun, and what it said. The same answer is given until there is a newer one.
pub struct Answer {
    /// When the Job was begun.
    pub begun: Begun,
    /// Whether it is given for the first time.
    pub fresh: bool,
    /// No Job has answered yet, and one is running.
    pub awaited: bool,
    /// What it said.
    pub value: Known<Value>,
}

/// A name that tells the halt and is the same for the same attempt.
pub fn name(halt: &TradingHalt, what: &str, attempt: impl std::fmt::Display) -> String {
    let uid = halt.uid().unwrap_or_default();
    let digest = Sha256::digest(format!("{uid}/{what}/{attempt}"));
    let digest: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
    let short: String = uid.chars().filter(char::is_ascii_hexdigit).take(8).collect();
    format!("standfast-{short}-{digest}")
}

impl HaltReconciler {
    /// Begins the Job of an action, or tells how far it is.
    pub(super) async fn job_action(
        &self,
        halt: &TradingHalt,
        status: &TradingHaltStatus,
        what: &str,
        action: &JobAction,
    ) -> (Outcome, Option<String>) {
        let known = status.actions.iter().find(|a| a.name == what);
        let (attempts, running) = known.map_or((0, None), |a| (a.attempts, a.external_ref.clone()));
        let job = running.unwrap_or_else(|| name(halt, what, attempts + 1));
        let outcome = match self.ensure(halt, &job, action).await {
            Ok(JobState::Running) => Outcome { state: ActionState::Intended, message: format!("Job {job} is running") },
            Ok(JobState::Succeeded { .. }) => act::done(&format!("Job {job} succeeded")),
            Ok(JobState::Failed { message }) => act::unknown(message),
            Ok(JobState::Foreign { message }) | Err(JobError::Refused(message)) => act::failed(message),
            Err(JobError::Failed(message)) => {
                return (Outcome { state: ActionState::Intended, message }, Some(job));
            }
        };
        (outcome, Some(job))
    }

    /// Removes the Job of an action that may be repeated, once what became of it is recorded: a night of retries must
    /// not fill the cluster. (One that may not be repeated stays: its name tells that it was begun.)
    pub(super) async fn clean(&self, halt: &TradingHalt, job: &str) {
        let namespace = halt.namespace().unwrap_or_default();
        if let Err(error) = jobs::delete_job(&self.client, &namespace, job, &owner(halt)).await {
            tracing::debug!(%error, job, "a finished Job was left behind; it goes with its halt");
        }
    }

    /// Reads by a Job; at most one every five minutes. The first is begun when `begin` says so.
    pub(super) async fn job_read(
        &self,
        halt: &TradingHalt,
        reads: &JobReads,
        what: &str,
        action: &JobAction,
        begin: bool,
    ) -> Answer {
        let mut read = reads.get(what);
        if read.begun.is_none() && !begin {
            let value = Err("it is read by a Job when the bots are gone".into());
            return Answer { begun: (Instant::now(), Timestamp::now()), fresh: false, awaited: true, value };
        }
        let due = read.begun.is_none_or(|(at, _)| at.elapsed() >= PAUSE);
        let now = (Instant::now(), Timestamp::now());
        if !read.running && due {
            read = JobRead { count: read.count + 1, begun: Some(now), running: true, ..read };
        }
        let begun = read.begun.unwrap_or(now);
        let mut fresh = false;
        if read.running {
            let job = name(halt, what, format!("{}/{}", reads.salt, read.count));
            let value = match self.ensure(halt, &job, action).await {
                Ok(JobState::Running) | Err(JobError::Failed(_)) => None,
                Ok(JobState::Succeeded { result: Some(value) }) => Some(Ok(value)),
                Ok(JobState::Succeeded { result: None }) => {
                    Some(Err(format!("Job {job} succeeded, but its termination message is no JSON: nothing is known")))
                }
                Ok(JobState::Failed { message } | JobState::Foreign { message }) | Err(JobError::Refused(message)) => {
                    Some(Err(message))
                }
            };
            if let Some(value) = value {
                (fresh, read.running, read.last) = (true, false, Some((begun, value)));
                if let Err(error) =
                    jobs::delete_job(&self.client, &halt.namespace().unwrap_or_default(), &job, &owner(halt)).await
                {
                    tracing::debug!(%error, job, "the Job of a read was left behind; it goes with its halt");
                }
            }
        }
        reads.put(what, read.clone());
        let awaited = read.last.is_none();
        let (begun, value) = read.last.unwrap_or_else(|| (begun, Err("the Job that reads has not ended yet".into())));
        Answer { begun, fresh, awaited, value }
    }

    async fn ensure(&self, halt: &TradingHalt, job: &str, action: &JobAction) -> Result<JobState, JobError> {
        let env = jobs::environment(halt.spec.system(), &halt.name_any(), &halt.spec.reason);
        let namespace = halt.namespace().unwrap_or_default();
        jobs::ensure_job(&self.client, &namespace, job, &owner(halt), action, &env, LONGEST).await
    }
}

fn owner(halt: &TradingHalt) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
    halt.owner_ref(&()).unwrap_or_default()
}
