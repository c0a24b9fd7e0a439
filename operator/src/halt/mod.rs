//! The halting controller: level-triggered, with its own client, queue and concurrency.
//!
//! A halt is committed by one status write ([`commit`]), then looked at again and again ([`look`]): [`observe`] reads
//! everything live, [`decide`] says what to do next and what may be said, [`act`] does it, [`record`] writes what is new.
//! [`release`] ends it. A halt of several systems makes others, and only tells how those stand: [`group`].

pub mod act;
pub mod approvals;
pub mod baseline;
pub mod closing;
mod commit;
mod contention;
pub mod decide;
pub mod evidence;
pub mod group;
mod jobs;
pub mod latch;
mod look;
pub mod memory;
mod observe;
mod others;
mod proven;
pub mod record;
pub mod release;
pub mod selection;
mod venues;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{controller::Action, events::EventType, reflector::ObjectRef},
};
use standfast_crds::v1alpha1::{HaltPhase, LatchedWorkload, TradingHalt, TradingResume, TradingSystem};
use tokio::time::Instant;

use crate::{
    cache::Cache,
    calls::Caller,
    client::Turns,
    controller::{Failure, Guarded, Reconcile},
    events::Events,
    guardrails::Guardrails,
    leader::Leadership,
    metrics::Metrics,
    scale::Scaler,
    workloads::Workloads,
};
use baseline::Registry;
use latch::Latches;
use memory::Memory;
pub use venues::PROOF_LIFE;

/// The caches that controllers share.
#[derive(Clone)]
pub struct Caches {
    /// TradingSystems.
    pub systems: Cache<Guarded<TradingSystem>>,
    /// TradingHalts.
    pub halts: Cache<Guarded<TradingHalt>>,
    /// TradingResumes.
    pub resumes: Cache<Guarded<TradingResume>>,
    /// Workloads.
    pub workloads: Workloads,
}

/// Halts trading systems and keeps them halted.
pub struct HaltReconciler {
    client: Client,
    caller: Arc<Caller>,
    systems: Cache<Guarded<TradingSystem>>,
    halts: Cache<Guarded<TradingHalt>>,
    resumes: Cache<Guarded<TradingResume>>,
    workloads: Workloads,
    scaler: Scaler,
    turns: Turns,
    latches: Latches,
    registry: Registry,
    guardrails: Guardrails,
    leadership: Leadership,
    metrics: Metrics,
    events: Events,
    /// Wait between looks while something is still moving.
    pace: Duration,
    memories: Mutex<HashMap<String, Memory>>,
    /// The newest version of each halt that this process wrote: the cache may be behind.
    written: Mutex<HashMap<String, TradingHalt>>,
    /// What is remembered of halts of several systems.
    groups: Mutex<HashMap<String, group::Memory>>,
}

/// Wait between looks while something is still moving, at most.
const PACE: Duration = Duration::from_millis(500);
/// The shortest wait between looks, whatever the policy says.
const SHORTEST: Duration = Duration::from_millis(50);
/// How long effects wait to hear whether the halt still holds.
const GLANCE: Duration = Duration::from_secs(1);
/// When it is looked whether the cache knows of a release.
const CATCH_UP: Duration = Duration::from_secs(10);

impl HaltReconciler {
    /// Everything outside comes in here: `client` reaches the API server, with `turns` for writes that come in hundreds,
    /// `caller` everything else.
    pub fn new(
        (client, turns): (Client, Turns),
        caller: Arc<Caller>,
        caches: Caches,
        guardrails: Guardrails,
        leadership: Leadership,
        metrics: Metrics,
        events: Events,
    ) -> Self {
        Self {
            scaler: Scaler::new(client.clone(), caches.workloads.kinds()),
            turns,
            latches: Latches::new(client.clone(), caches.workloads.kinds()),
            client,
            caller,
            systems: caches.systems,
            halts: caches.halts,
            resumes: caches.resumes,
            workloads: caches.workloads,
            registry: Registry::default(),
            guardrails,
            leadership,
            metrics,
            events,
            pace: PACE,
            memories: Mutex::default(),
            written: Mutex::default(),
            groups: Mutex::default(),
        }
    }

    fn remember(&self, halt: &TradingHalt) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.insert(halt.uid().unwrap_or_default(), halt.clone());
    }

    /// Whichever is newer: what the cache gave, or what this process wrote.
    fn newest(&self, halt: &TradingHalt) -> TradingHalt {
        let version = |h: &TradingHalt| h.resource_version().and_then(|v| v.parse::<u128>().ok()).unwrap_or(0);
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let own = written.get(&halt.uid().unwrap_or_default());
        own.filter(|own| version(own) > version(halt)).unwrap_or(halt).clone()
    }

    fn take(&self, uid: &str) -> Memory {
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        memories.remove(uid).unwrap_or_else(|| Memory::new(Instant::now()))
    }

    fn keep(&self, uid: &str, memory: Memory) {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.into(), memory);
    }

    /// Forgets what was seen of a halt that is released. What was written stays until the cache has it: an older state of
    /// the halt would be taken for a held one.
    fn forget_looks(&self, uid: &str) {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Forgets a halt that is released, as the cache knows too, or gone.
    pub fn forget(&self, uid: &str) {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        self.written.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// A halt is gone, whoever deleted it: nothing is remembered of it any more.
    pub fn gone(&self, halt: &TradingHalt) {
        let uid = halt.uid().unwrap_or_default();
        self.forget(&uid);
        self.registry.forget(&uid);
        self.metrics.halt_gone(&halt.namespace().unwrap_or_default(), &halt.name_any());
    }

    fn event(&self, halt: &TradingHalt, reason: &str, note: &str) {
        self.events.emit(halt.object_ref(&()), EventType::Normal, reason, reason, note);
    }

    fn register(&self, halt: &TradingHalt, workloads: &[LatchedWorkload]) {
        let (uid, namespace) = (halt.uid().unwrap_or_default(), halt.namespace().unwrap_or_default());
        self.registry.commit(&uid, &halt.name_any(), &namespace, workloads);
    }

    /// Whether the halt was released or deleted while this cache is behind, and when to look again: another leader may
    /// have done it. Asked before anything is done again; without an answer it is done, since halting wins.
    async fn overtaken(&self, halt: &TradingHalt) -> Option<Duration> {
        let api: Api<TradingHalt> = Api::namespaced(self.client.clone(), &halt.namespace().unwrap_or_default());
        match tokio::time::timeout(GLANCE, api.get_opt(&halt.name_any())).await {
            Ok(Ok(Some(live))) if live.uid() == halt.uid() => {
                let released = live.status.as_ref().is_some_and(|s| s.released.is_some());
                if released {
                    self.remember(&live);
                }
                released.then_some(Duration::ZERO)
            }
            // It is gone, and the cache will hear of it.
            Ok(Ok(_)) => Some(self.pace),
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// What the evidence holds after the first `told` entries becomes Events, for people who look there.
    fn mirror(&self, halt: &TradingHalt, told: usize) {
        for entry in halt.status.iter().flat_map(|s| &s.evidence.entries).skip(told) {
            if entry.event == "Unverified" {
                self.events.emit(halt.object_ref(&()), EventType::Warning, &entry.event, &entry.event, &entry.message);
            } else {
                self.event(halt, &entry.event, &entry.message);
            }
        }
    }
}

#[async_trait]
impl Reconcile for HaltReconciler {
    type Kind = TradingHalt;
    const NAME: &'static str = "tradinghalt";
    const RETRY: Duration = Duration::from_millis(200);
    const RETRY_LIMIT: Duration = Duration::from_secs(5);

    async fn reconcile(&self, object: Arc<TradingHalt>) -> Result<Action, Failure> {
        let halt = self.newest(&object);
        let status = halt.status.clone().unwrap_or_default();
        if status.phase == HaltPhase::Released {
            let uid = halt.uid().unwrap_or_default();
            let known = object.status.as_ref().is_some_and(|s| s.phase == HaltPhase::Released);
            // Here too: the answer to the last write of a release may have been lost.
            self.registry.forget(&uid);
            self.metrics.halt_gone(&halt.namespace().unwrap_or_default(), &halt.name_any());
            if known {
                self.forget(&uid);
                return Ok(Action::await_change());
            }
            self.forget_looks(&uid);
            return Ok(Action::requeue(CATCH_UP));
        }
        if halt.spec.is_group() {
            return self.group(&halt).await;
        }
        if status.latch.is_none() {
            return self.commit(&halt).await;
        }
        if status.released.is_some() {
            return self.release(&halt, None).await;
        }
        if let Some(resume) = self.release_asked(&halt) {
            if self.may_release(&halt, &resume).await? {
                return self.release(&halt, Some(&resume)).await;
            }
            // Refused: the halt holds, and is looked at like any other.
            return self.look(&self.newest(&halt)).await;
        }
        self.look(&halt).await
    }

    async fn undecodable(&self, object: &ObjectRef<Guarded<TradingHalt>>, error: &str) {
        self.events.unreadable(object.clone().into(), error);
    }
}
