//! What is known of a trading system: its checks, and whether an emergency halt would work now.
//!
//! A reconcile reads caches and what was asked before, decides what the status should say, and writes it when that
//! changed. Asking takes time and happens beside it, each question in its own rhythm ([`rounds`]); an answer that
//! differs from the last one asks for a reconcile. An idle system is never written.

pub mod checks;
pub mod sql;

mod coexistence;
mod decide;
pub(crate) mod job_checks;
mod observe;
mod permissions;
mod prepared;
mod prometheus;
mod rounds;
mod spec;

pub(crate) use prepared::answered_by;

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    api::PostParams,
    runtime::{controller::Action, reflector::ObjectRef},
};
use standfast_crds::v1alpha1::{TradingHalt, TradingSystem, TradingSystemStatus};

use self::{
    checks::Checker,
    decide::Observed,
    prepared::{Survey, Surveyor},
    rounds::{Memory, Rounds, Subject},
};
use crate::{
    cache::Cache,
    calls::Caller,
    controller::{Failure, Guarded, Reconcile, Trigger},
    events::Events,
    guardrails::Guardrails,
    outbound::Transport,
    workloads::{View, Workloads},
};

/// Types of the conditions of a TradingSystem.
pub mod conditions {
    /// An emergency halt would work now.
    pub const PREPARED: &str = "Prepared";
    /// All checks pass.
    pub const CHECKS_PASSING: &str = "ChecksPassing";
    /// Another system names the same account.
    pub const SHARED_ACCOUNT: &str = "SharedAccount";
    /// The resumePolicy cannot be carried out: every resume would fail at first sight.
    pub const RESUME_POLICY_INVALID: &str = "ResumePolicyInvalid";
    /// kstatus: the spec is valid and observed.
    pub const READY: &str = "Ready";
}

/// The longest that a write may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// The shortest time between two reconciles of one system: when hundreds of workloads change, one look is enough.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest time between them.
const TICK: Duration = Duration::from_secs(30);

/// What the controller is made of.
#[derive(Clone)]
pub struct Parts {
    /// Writes statuses, and reads what preparedness asks for.
    pub client: Client,
    /// The way to venues.
    pub caller: Caller,
    /// The way to venues that halts have.
    pub halt_transport: Arc<dyn Transport>,
    /// Asks checks.
    pub checker: Checker,
    /// The guardrails' state.
    pub guardrails: Guardrails,
    /// TradingSystems.
    pub systems: Cache<Guarded<TradingSystem>>,
    /// TradingHalts.
    pub halts: Cache<Guarded<TradingHalt>>,
    /// Workloads.
    pub workloads: Workloads,
    /// Kubernetes Events.
    pub events: Events,
    /// Asks for a reconcile when an answer came.
    pub trigger: Trigger<Guarded<TradingSystem>>,
}

/// Keeps the statuses of trading systems.
pub struct SystemReconciler {
    parts: Parts,
    rounds: Rounds,
}

impl fmt::Debug for SystemReconciler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemReconciler").finish_non_exhaustive()
    }
}

/// The system whose status a halt is a part of: namespace and name.
pub fn on_halt(halt: &TradingHalt) -> (String, String) {
    (halt.namespace().unwrap_or_default(), halt.spec.system().to_owned())
}

#[async_trait]
impl Reconcile for SystemReconciler {
    type Kind = TradingSystem;
    const NAME: &'static str = "tradingsystem";

    async fn reconcile(&self, system: Arc<TradingSystem>) -> Result<Action, Failure> {
        let subject = Subject::of(&system);
        if let Some(wait) = self.rounds.pause(&subject, PAUSE) {
            return Ok(Action::requeue(wait));
        }
        self.rounds.forget_others(|namespace, name| self.parts.systems.get(namespace, name).is_some());
        let (trading, missing) = self.parts.workloads.trading(&subject.namespace, &system.spec.workloads);
        let next = self.rounds.ask(&subject, &system, &trading);
        let observed = self.observe(&system, &subject, trading, missing);
        let now = Timestamp::now();
        let status = decide::decide(&observed, now);
        let expires = decide::summary_expires(&observed.halts, now).map(|e| e + Duration::from_millis(50));
        let wait = [next, TICK].into_iter().chain(expires).min().unwrap_or(TICK).max(PAUSE);
        let old = system.status.as_ref();
        if decide::worth_writing(old, &status, self.rounds.since_write(&subject)) {
            return self.record(&system, &subject, status).await.map(|()| Action::requeue(wait));
        }
        let lagging = old != Some(&status);
        Ok(Action::requeue(if lagging { wait.min(decide::RECONSIDER) } else { wait }))
    }

    async fn undecodable(&self, object: &ObjectRef<Guarded<TradingSystem>>, error: &str) {
        self.parts.events.unreadable(object.clone().into(), error);
    }
}

impl SystemReconciler {
    /// A controller of these parts.
    pub fn new(parts: Parts) -> Self {
        let halt_transport = Arc::clone(&parts.halt_transport);
        let surveyor = Surveyor::new(
            parts.client.clone(),
            parts.caller.clone(),
            halt_transport,
            parts.checker.clone(),
            parts.guardrails.clone(),
            parts.workloads.kinds().clone(),
        );
        let rounds = Rounds::new(Arc::new(surveyor), parts.checker.clone(), parts.trigger.clone());
        Self { parts, rounds }
    }

    fn observe<'a>(
        &self,
        system: &'a TradingSystem,
        subject: &Subject,
        trading: Vec<View>,
        missing: Vec<String>,
    ) -> Observed<'a> {
        let all = self.parts.systems.all();
        let readable: Vec<&TradingSystem> = all.iter().filter_map(|s| s.0.as_ref().ok()).collect();
        let neighbours: Vec<&TradingSystem> =
            readable.iter().copied().filter(|s| s.namespace().as_deref() == Some(&subject.namespace)).collect();
        let (answers, survey, autoscalers) = self.rounds.known(subject, |memory: &Memory| {
            let answers: BTreeMap<_, _> = memory.answers().collect();
            let survey: Option<Survey> = memory.survey();
            (answers, survey, memory.autoscalers())
        });
        Observed {
            shared_workloads: observe::shared_workloads(&self.parts.workloads, &neighbours, system, &trading),
            shared_accounts: observe::shared_accounts(readable, system),
            halts: observe::halts_of(&self.parts.halts, &subject.namespace, &subject.name),
            system,
            trading,
            missing,
            answers,
            survey,
            autoscalers,
        }
    }

    /// Writes the status under the resource version that was read. Somebody was faster: the change that the cache will
    /// tell of asks for the next reconcile.
    async fn record(
        &self,
        system: &TradingSystem,
        subject: &Subject,
        status: TradingSystemStatus,
    ) -> Result<(), Failure> {
        let api: Api<TradingSystem> = Api::namespaced(self.parts.client.clone(), &subject.namespace);
        let written = TradingSystem { status: Some(status), ..system.clone() };
        let what = format!("writing the status of TradingSystem {}/{}", subject.namespace, subject.name);
        let params = PostParams::default();
        match tokio::time::timeout(DEADLINE, api.replace_status(&subject.name, &params, &written)).await {
            Ok(Ok(_)) => {
                self.rounds.wrote(subject, Instant::now());
                Ok(())
            }
            // The cache lags behind our own last write, or the system is gone: the next look has it.
            Ok(Err(kube::Error::Api(refused))) if refused.code == 409 || refused.code == 404 => Ok(()),
            Ok(Err(kube::Error::Api(refused))) => Err(Failure::new(what, &refused.message)),
            Ok(Err(error)) => Err(Failure::new(what, error)),
            Err(_) => Err(Failure(format!("{what}: no answer within {} s", DEADLINE.as_secs()))),
        }
    }
}
