//! Puts the parts together: caches, triggers between kinds, controllers.
//!
//! Everything outside comes in as [`Parts`], so that a test can put faults between the operator and the world.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};
use standfast_crds::v1alpha1::{Approval, ApprovalSubject, SubjectKind, TradingHalt, TradingResume, TradingSystem};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    admin::Watchdog,
    approval::ApprovalReconciler,
    args::Scope,
    cache::{self, Cache, Change, Feed},
    calls::Caller,
    client::Clients,
    controller::{self, Guarded, Trigger},
    events::Events,
    guardrails::Guardrails,
    halt::{Caches, HaltReconciler, PROOF_LIFE, group},
    held,
    kinds::Kinds,
    leader::Leadership,
    metrics::Metrics,
    outbound::{Transport, connect::Connector},
    resume::ResumeReconciler,
    system::{self, SystemReconciler, checks::Checker, sql::Databases},
    workloads::{View, Workloads},
};

/// What the operator is made of.
#[derive(Clone)]
pub struct Parts {
    /// Ways to the API server.
    pub clients: Clients,
    /// The way to everything else, for halts.
    pub halt_transport: Arc<dyn Transport>,
    /// The way to everything else, for all other work.
    pub transport: Arc<dyn Transport>,
    /// The way to databases.
    pub connector: Connector,
    /// What is watched.
    pub scope: Scope,
    /// Kinds beside the built-in ones that can be halted.
    pub kinds: Kinds,
    /// Counts.
    pub metrics: Metrics,
    /// Misses what does not make progress.
    pub watchdog: Watchdog,
    /// Kubernetes Events.
    pub events: Events,
    /// Halts that are worked on at a time.
    pub halt_concurrency: u16,
    /// Objects of each other kind that are worked on at a time.
    pub concurrency: u16,
}

type HaltTrigger = Trigger<Guarded<TradingHalt>>;
type SystemTrigger = Trigger<Guarded<TradingSystem>>;
type ResumeTrigger = Trigger<Guarded<TradingResume>>;
type ApprovalTrigger = Trigger<Guarded<Approval>>;
type Arrivals<K> = controller::Arrivals<Guarded<K>>;

/// The caches, warm or warming, and what they trigger. A standby has them too.
pub struct Warm {
    /// The caches.
    pub caches: Caches,
    halts: (HaltTrigger, Arrivals<TradingHalt>),
    systems: (SystemTrigger, Arrivals<TradingSystem>),
    resumes: (ResumeTrigger, Arrivals<TradingResume>),
    approvals: (Cache<Guarded<Approval>>, Arrivals<Approval>),
    deleted: mpsc::UnboundedReceiver<Deleted>,
    feeds: JoinSet<()>,
}

enum Deleted {
    Halt(Box<TradingHalt>),
    Resume(Box<TradingResume>),
}

/// Whether a change of an object asks for a reconcile of that object: what we write ourselves does not.
fn asks<K: Resource<DynamicType = ()>>(old: Option<&Guarded<K>>, new: &Guarded<K>) -> bool {
    let facts = |g: &Guarded<K>| (g.uid(), g.meta().generation, g.meta().deletion_timestamp.clone());
    old.is_none_or(|old| facts(old) != facts(new))
}

/// What of a resume tells whether an approval of it counts.
fn approvable(resume: &Guarded<TradingResume>) -> Option<impl PartialEq + use<>> {
    let resume = resume.0.as_ref().ok()?;
    let status = resume.status.clone().unwrap_or_default();
    let ended = (status.release_requested_at, status.finished_at);
    Some((resume.uid(), status.plan_hash, status.approvals, ended))
}

/// What of a halt tells which approvals of it were used, and whether it needs any more.
fn allowed(halt: &Guarded<TradingHalt>) -> Option<impl PartialEq + use<>> {
    let halt = halt.0.as_ref().ok()?;
    let status = halt.status.clone().unwrap_or_default();
    Some((halt.uid(), status.approvals, status.released.is_some()))
}

/// Opens the caches and begins to feed them.
pub fn warm(parts: &Parts) -> Warm {
    let (halt_trigger, halt_arrivals) = HaltTrigger::channel();
    let (system_trigger, system_arrivals) = SystemTrigger::channel();
    let (resume_trigger, resume_arrivals) = ResumeTrigger::channel();
    let (approval_trigger, approval_arrivals) = ApprovalTrigger::channel();
    let (deletions, deleted) = mpsc::unbounded_channel();
    let (client, watchdog) = (&parts.clients.watch, Some(&parts.watchdog));
    let mut feeds = JoinSet::new();

    let halts = {
        let (halt, system, resume) = (halt_trigger.clone(), system_trigger.clone(), resume_trigger.clone());
        let deletions = deletions.clone();
        let known = Arc::new(std::sync::OnceLock::<Cache<Guarded<TradingResume>>>::new());
        let approving = Arc::new(std::sync::OnceLock::<Cache<Guarded<Approval>>>::new());
        let (resumes, approvals, approval) = (Arc::clone(&known), Arc::clone(&approving), approval_trigger.clone());
        let on_change = move |change: Change<'_, Guarded<TradingHalt>>| {
            let (asked, used, new) = match change {
                Change::Applied(old, new) => (asks(old, new), old.map(allowed) != Some(allowed(new)), new),
                Change::Deleted(gone) => {
                    if let Ok(gone) = &gone.0 {
                        let _ = deletions.send(Deleted::Halt(Box::new(gone.clone())));
                    }
                    (false, false, gone)
                }
            };
            let (namespace, name) = (new.namespace().unwrap_or_default(), new.name_any());
            if asked {
                halt.pull(&namespace, &name);
            }
            if used {
                let approvals = approvals.get().map(|a| a.read_namespace(&namespace)).unwrap_or_default();
                let of_halt = |s: &ApprovalSubject| s.kind == SubjectKind::TradingHalt && s.name == name;
                let about = approvals.iter().filter(|a| of_halt(&a.spec.subject));
                about.for_each(|a| approval.pull(&namespace, &a.name_any()));
            }
            if let Ok(new) = &new.0 {
                if !new.spec.is_group() {
                    system.pull(&namespace, new.spec.system());
                }
                // The halt of several systems that made it says how it stands.
                if let Some(group) = group::made_by(new) {
                    halt.pull(&namespace, group);
                }
            }
            let resumes = resumes.get().map(|r| r.read_namespace(&namespace)).unwrap_or_default();
            for waiting in resumes.iter().filter(|r| r.spec.halt_ref.name == name) {
                resume.pull(&namespace, &waiting.name_any());
            }
        };
        let metrics = parts.metrics.clone();
        let stale = move || metrics.watch_stale("TradingHalt");
        let (cache, feed) = cache::open(client, &parts.scope, Feed::PROMPT, watchdog, strip, on_change, stale);
        feeds.spawn(feed);
        (cache, known, approving)
    };
    let (halts, known_resumes, known_approvals) = halts;

    let systems = {
        let (halt, system, halts) = (halt_trigger.clone(), system_trigger.clone(), halts.clone());
        let on_change = move |change: Change<'_, Guarded<TradingSystem>>| {
            let new = match change {
                Change::Applied(old, new) if asks(old, new) => new,
                Change::Applied(..) => return,
                Change::Deleted(gone) => gone,
            };
            let (namespace, name) = (new.namespace().unwrap_or_default(), new.name_any());
            system.pull(&namespace, &name);
            // Those of several systems too that have found none yet.
            let waits = |h: &TradingHalt| h.spec.is_group() && h.status.as_ref().is_none_or(|s| s.systems.is_empty());
            let concerned = |h: &TradingHalt, name: &str| h.spec.halts(name) || waits(h);
            for held in halts.read_namespace(&namespace).iter().filter(|h| concerned(h, &name)) {
                halt.pull(&namespace, &held.name_any());
            }
        };
        let (cache, feed) = cache::open(client, &parts.scope, Feed::PROMPT, watchdog, strip, on_change, || {});
        feeds.spawn(feed);
        cache
    };

    let approvals = {
        let (halt, approval, resume) = (halt_trigger.clone(), approval_trigger.clone(), resume_trigger.clone());
        let on_change = move |change: Change<'_, Guarded<Approval>>| {
            let new = match change {
                Change::Applied(old, new) if asks(old, new) => {
                    approval.pull(&new.namespace().unwrap_or_default(), &new.name_any());
                    new
                }
                Change::Applied(..) => return,
                Change::Deleted(gone) => gone,
            };
            let namespace = new.namespace().unwrap_or_default();
            match new.0.as_ref().map(|a| &a.spec.subject) {
                Ok(of) if of.kind == SubjectKind::TradingResume => resume.pull(&namespace, &of.name),
                Ok(of) if of.kind == SubjectKind::TradingHalt => halt.pull(&namespace, &of.name),
                _ => {}
            }
        };
        let (cache, feed) = cache::open(client, &parts.scope, Feed::EASY, None, strip, on_change, || {});
        feeds.spawn(feed);
        cache
    };

    let resumes = {
        let (halt, resume) = (halt_trigger.clone(), resume_trigger.clone());
        let (approval, known) = (approval_trigger, approvals.clone());
        let approved = move |resume: &Guarded<TradingResume>| {
            let (namespace, name) = (resume.namespace().unwrap_or_default(), resume.name_any());
            for one in known.read_namespace(&namespace).iter().filter(|a| a.spec.subject.name == name) {
                approval.pull(&namespace, &one.name_any());
            }
        };
        let on_change = move |change: Change<'_, Guarded<TradingResume>>| match change {
            Change::Applied(old, new) => {
                let namespace = new.namespace().unwrap_or_default();
                if old.map(approvable) != Some(approvable(new)) {
                    approved(new);
                }
                if asks(old, new) {
                    resume.pull(&namespace, &new.name_any());
                }
                if let Ok(new) = &new.0
                    && new.status.as_ref().is_some_and(|s| s.release_requested_at.is_some())
                {
                    halt.pull(&namespace, &new.spec.halt_ref.name);
                }
            }
            Change::Deleted(gone) => {
                approved(gone);
                if let Ok(gone) = &gone.0 {
                    let _ = deletions.send(Deleted::Resume(Box::new(gone.clone())));
                }
            }
        };
        let (cache, feed) = cache::open(client, &parts.scope, Feed::PROMPT, watchdog, strip, on_change, || {});
        feeds.spawn(feed);
        cache
    };
    let _ = known_resumes.set(resumes.clone());
    let _ = known_approvals.set(approvals.clone());

    let workloads = {
        let (halt, system) = (halt_trigger.clone(), system_trigger.clone());
        let (halts, systems) = (halts.clone(), systems.clone());
        let on_change = move |old: Option<&View>, new: &View| {
            let key = &new.key;
            if new.active() {
                for held in halts.read_namespace(&key.namespace) {
                    // A new one may belong to the halted system by its labels.
                    let concerned = old.is_none() || held::record(&held, key.kind, &key.name).is_some();
                    if held::holds(&held) && concerned {
                        halt.pull(&key.namespace, &held.name_any());
                    }
                }
            }
            if old != Some(new) {
                let names = |s: &TradingSystem| {
                    s.spec.workloads.iter().any(|w| new.named_by(w) || old.is_some_and(|old| old.named_by(w)))
                };
                for one in systems.read_namespace(&key.namespace).iter().filter(|s| names(s)) {
                    system.pull(&key.namespace, &one.name_any());
                }
            }
        };
        let (workloads, feed) = Workloads::open(client, &parts.scope, &parts.kinds, on_change);
        feeds.spawn(feed);
        workloads
    };

    Warm {
        caches: Caches { systems, halts, resumes, workloads },
        halts: (halt_trigger, halt_arrivals),
        systems: (system_trigger, system_arrivals),
        resumes: (resume_trigger, resume_arrivals),
        approvals: (approvals, approval_arrivals),
        deleted,
        feeds,
    }
}

fn strip<K: ResourceExt>(object: &mut K) {
    object.managed_fields_mut().clear();
    object.annotations_mut().remove("kubectl.kubernetes.io/last-applied-configuration");
}

impl Warm {
    /// Waits until every cache has its first list, but that of the Approvals: what depends on those reads them live, and
    /// no halt waits for a kind that is not installed.
    pub async fn ready(&self) {
        let c = &self.caches;
        tokio::join!(c.systems.ready(), c.halts.ready(), c.resumes.ready(), c.workloads.ready());
    }

    /// Runs the controllers. Ends only when one of them does, or leadership is lost: the process must end too.
    pub async fn lead(self, parts: Parts, leadership: Leadership) -> Result<Never, Ended> {
        let Self { caches, halts, systems, resumes, approvals, mut deleted, mut feeds } = self;
        let client = parts.clients.api.clone();
        let guardrails = Guardrails::new(client.clone(), &parts.kinds);
        let metrics = &parts.metrics;
        let caller = Arc::new(Caller::new(Arc::clone(&parts.transport), client.clone(), metrics.clone()));
        let databases = Databases::new(client.clone(), parts.connector.clone(), vec![])
            .map_err(|e| Ended(format!("TLS for databases cannot be set up: {e}")))?;
        let checker = Checker::new((*caller).clone(), databases, client.clone(), parts.kinds.clone());
        let halting = Arc::new(HaltReconciler::new(
            (parts.clients.halt.clone(), parts.clients.turns.clone()),
            Arc::new(Caller::signing_with(
                caller.signer().clone(),
                Arc::clone(&parts.halt_transport),
                parts.clients.halt.clone(),
                metrics.clone(),
            )),
            caches.clone(),
            guardrails.clone(),
            leadership.clone(),
            metrics.clone(),
            parts.events.clone(),
        ));
        let resuming = Arc::new(ResumeReconciler::new(
            client.clone(),
            Arc::clone(&caller),
            checker.clone(),
            caches.clone(),
            guardrails.clone(),
            leadership.clone(),
            parts.events.clone(),
        ));
        let approving = Arc::new(ApprovalReconciler::new(
            client.clone(),
            (caches.halts.clone(), caches.systems.clone()),
            guardrails.clone(),
            leadership.clone(),
            parts.events.clone(),
        ));
        let watching = Arc::new(SystemReconciler::new(system::Parts {
            client,
            caller: (*caller).clone(),
            halt_transport: parts.halt_transport,
            checker,
            guardrails: guardrails.clone(),
            systems: caches.systems.clone(),
            halts: caches.halts.clone(),
            workloads: caches.workloads.clone(),
            events: parts.events.clone(),
            trigger: systems.0.clone(),
        }));
        let (halt_caches, forgetting, rehalting) = (caches.halts.clone(), Arc::clone(&halting), Arc::clone(&resuming));
        let mut tasks = JoinSet::new();
        let run = (parts.halt_concurrency, parts.concurrency);
        tasks.spawn(controller::run(halting, caches.halts, halts.1, run.0, metrics.clone()));
        tasks.spawn(controller::run(resuming, caches.resumes, resumes.1, run.1, metrics.clone()));
        tasks.spawn(controller::run(watching, caches.systems, systems.1, run.1, metrics.clone()));
        tasks.spawn(controller::run(approving, approvals.0, approvals.1, run.1, metrics.clone()));
        tasks.spawn(count(halt_caches, guardrails, metrics.clone()));
        // What was deleted while another process led was that one's to look at.
        while deleted.try_recv().is_ok() {}
        tasks.spawn(async move {
            let mut rehalts = JoinSet::new();
            while let Some(gone) = deleted.recv().await {
                while rehalts.try_join_next().is_some() {}
                match gone {
                    Deleted::Halt(halt) => forgetting.gone(&halt),
                    Deleted::Resume(resume) => {
                        let rehalting = Arc::clone(&rehalting);
                        rehalts.spawn(async move { rehalting.on_deleted(&resume).await });
                    }
                }
            }
        });
        tokio::select! {
            _ = tasks.join_next() => Err(Ended("a controller ended, which it never should".into())),
            _ = feeds.join_next() => Err(Ended("a cache is not fed any more".into())),
            why = leadership.lost() => Err(Ended(format!("leadership is lost: {why}"))),
        }
    }
}

/// Nothing of this type exists.
#[derive(Debug)]
pub enum Never {}

/// Why the controllers do not run any more.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Ended(String);

/// Keeps the metrics of halts up to date.
async fn count(halts: Cache<Guarded<TradingHalt>>, guardrails: Guardrails, metrics: Metrics) {
    let mut interval = tokio::time::interval(Duration::from_secs(5));
    loop {
        interval.tick().await;
        metrics.guardrails_intact(guardrails.state().await.intact());
        let (all, now) = (halts.all(), Timestamp::now());
        let readable: Vec<_> = all.iter().filter_map(|h| h.0.as_ref().ok()).collect();
        metrics.halts(readable.iter().map(|h| h.status.as_ref().map(|s| s.phase).unwrap_or_default()));
        for halt in readable.iter().filter(|h| held::holds(h)) {
            let verified =
                halt.status.as_ref().and_then(|s| s.last_verified_at.as_ref().or(s.times.committed_at.as_ref()));
            if let Some(at) = verified {
                let age = now.duration_since(at.0).unsigned_abs();
                let until = halt.status.as_ref().and_then(|s| s.verified_until.as_ref());
                let limit = until.map_or(PROOF_LIFE, |t| t.0.duration_since(at.0).unsigned_abs());
                metrics.halt_verified(&halt.namespace().unwrap_or_default(), &halt.name_any(), age, limit);
            }
        }
    }
}
