//! The halting controller: level-triggered, with its own client, queue and concurrency.
//!
//! A halt is committed by one status write ([`commit`]), then looked at again and again: [`observe`] reads everything
//! live, [`decide`] says what to do next and what may be said, [`act`] does it, [`record`] writes what is new.
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
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{controller::Action, events::EventType, reflector::ObjectRef},
};
use standfast_crds::v1alpha1::{
    ActionState, ActionStatus, HaltPhase, LatchedWorkload, TradingHalt, TradingHaltStatus, TradingResume,
    TradingSystem, VenueStatus, WorkloadKind, halt_conditions as c, set_condition,
};
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
    sight::monotonic,
    workloads::Workloads,
};
use approvals::Approved;
use baseline::Registry;
use decide::Effect;
use latch::Latches;
use memory::{Memory, Retry};
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
/// After this long, a halt that cannot be proven is looked at less often.
const IMPATIENCE: Duration = Duration::from_secs(120);

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

    /// One look at a held halt.
    async fn look(&self, halt: &TradingHalt) -> Result<Action, Failure> {
        let uid = halt.uid().unwrap_or_default();
        let mut memory = self.take(&uid);
        let looked = self.look_with(halt, &mut memory).await;
        self.keep(&uid, memory);
        looked
    }

    async fn look_with(&self, halt: &TradingHalt, memory: &mut Memory) -> Result<Action, Failure> {
        let old = halt.status.clone().unwrap_or_default();
        let system = self.system(halt).await;
        let policy = system.as_ref().map(|s| s.spec.halt_policy.clone()).unwrap_or_default();
        let mut current = halt.clone();
        let mut status = old.clone();
        let namespace = halt.namespace().unwrap_or_default();
        if self.grow(halt, &mut status, system.as_ref().ok()) {
            // What is latched from now on is in the status before it is touched, and nothing is proven of it.
            let (now, generation) = (Timestamp::now(), halt.metadata.generation);
            for type_ in [c::WORKLOADS_STOPPED, c::HALTED] {
                let message = "the TradingSystem names more than before: that is being halted too";
                set_condition(&mut status.conditions, now, generation, (type_, "Unknown", "Fencing"), message);
            }
            status.phase = HaltPhase::Fencing;
            record::kstatus(&mut status, generation, now);
            match self.settle(self.write(halt, status.clone()).await)? {
                Some(written) => current = written,
                None => return Ok(Action::requeue(self.pace)),
            }
            let new = status.workloads.iter().filter(|w| !old.workloads.contains(w)).cloned().collect::<Vec<_>>();
            memory.stopping.extend(self.active(&namespace, &new).into_iter().map(|w| w.key));
            self.register(halt, &status.workloads);
        }
        if !memory.looked && status.times.scaled_at.is_none() {
            memory.stopping.extend(self.active(&namespace, &status.workloads).into_iter().map(|w| w.key));
        }
        match self.correct(&current, &mut status, memory).await? {
            Corrected::No => {}
            Corrected::Written(written) => current = *written,
            Corrected::Overtaken => return Ok(Action::requeue(self.pace)),
        }
        if !memory.looked && status.times.scaled_at.is_none() {
            // Another process committed it and may not have come further: once more everything, with nothing looked at.
            if let Some(wait) = self.overtaken(&current).await {
                return Ok(Action::requeue(wait));
            }
            self.first_wave_again(&current, &mut status, system.as_ref().ok(), memory).await;
        }

        if !std::mem::replace(&mut memory.looked, true) && memory.application.is_none() {
            // Another process began it and did not see its end.
            let unanswered = |a: &ActionStatus| a.name == "applicationHalt" && a.state != ActionState::Done;
            let now = Instant::now();
            memory.application = status.actions.iter().any(unanswered).then_some(Retry { at: now, attempts: 0 });
        }
        // What was raised is stopped before anything is read: a venue may take its time.
        let raised = self.active(&namespace, &status.workloads);
        if !raised.is_empty()
            && let Some(wait) = self.overtaken(&current).await
        {
            return Ok(Action::requeue(wait));
        }
        self.note_contention(halt, &mut status, &raised, memory, Timestamp::now()).await;
        let stops = raised.into_iter().map(|w| Effect::Stop(w.key, w.size)).collect();
        let mut stopped = self.act(&current, &status, None, stops, HashMap::new()).await;
        let resumes = self.resumes.read_namespace(&halt.namespace().unwrap_or_default());
        for venue in &status.venues {
            let allowing = others::allowing(&venue.name, &resumes, halt.spec.system(), Timestamp::now());
            memory.venues.entry(venue.name.clone()).or_default().note_allowing(allowing);
        }
        let asked = system.as_ref().ok().map(|s| &s.spec.halt_policy);
        let (mut observed, approved) =
            tokio::join!(self.observe(&current, &status, &system, memory), self.approved(&current, &status, asked));
        observed.facts.approved = approved;
        let mut effects = decide::effects(&halt.spec, &policy, &observed.facts);
        effects.retain(|e| !matches!(e, Effect::Stop(..)));
        // How a Job ended is recorded, also when nothing is left to cancel.
        let cancelling = system.as_ref().map(|s| act::cancelling(&status, s)).unwrap_or_default();
        effects.extend(cancelling.into_iter().filter(|e| !effects.contains(e)).collect::<Vec<_>>());
        if !effects.is_empty()
            && let Some(wait) = self.overtaken(&current).await
        {
            return Ok(Action::requeue(wait));
        }
        if !matches!(observed.facts.approved, Approved::NotAsked) && status.spec_hash.is_none() {
            status.spec_hash = halt.spec.hash().ok();
        }
        status.venues = observed.venues;
        let now = Timestamp::now();
        for (cron_job, jobs) in &observed.jobs {
            let this = |w: &&mut LatchedWorkload| w.kind == WorkloadKind::CronJob && w.name == *cron_job;
            if let Some(w) = status.workloads.iter_mut().find(this) {
                w.suspended_jobs
                    .extend(jobs.iter().filter(|j| !w.suspended_jobs.contains(j)).cloned().collect::<Vec<_>>());
                w.suspended_jobs.truncate(32);
            }
        }
        let (mut once, repeatable): (Vec<_>, Vec<_>) = effects.into_iter().partition(Effect::needs_intent);
        // Who allows it is in the status before anything is closed: with this look's last write.
        let allowing = matches!(observed.facts.approved, Approved::Granted(_)) && !once.is_empty();
        if allowing || act::under_way(&status, now, self.leadership.epoch()) || self.unknown_yet(&current, memory) {
            once.clear();
        }
        // What another halt began while venues were read is not begun here too.
        let others = self.halts.read_namespace(&namespace);
        let as_before = |venue: &str| {
            let now = others::Others::at(venue, &others, &current, &policy);
            observed.others.get(venue).is_some_and(|before| before.leaves_the_same(&now))
        };
        once.retain(|effect| effect.closes_at().is_none_or(as_before));
        if !once.is_empty() {
            for effect in once.iter().filter(|e| !act::running(&status, e)).cloned().collect::<Vec<_>>() {
                let at = (now, self.leadership.epoch());
                decide_intent(&mut status, halt, system.as_ref().ok(), &effect, at);
                act::intend_selected(&mut status, &effect, now);
            }
            match self.settle(self.write(&current, status.clone()).await)? {
                Some(written) => current = written,
                None => return Ok(Action::requeue(self.pace)),
            }
        }
        let begun = Instant::now();
        let first_cancel = repeatable.iter().any(act::cancels).then(Timestamp::now);
        commit::note_begun(memory, &once, begun);
        let system = system.as_ref().ok();
        let (done_once, mut done) = tokio::join!(
            self.act(&current, &status, system, once, HashMap::new()),
            self.act(&current, &status, system, repeatable, HashMap::new())
        );
        commit::note_cancels(memory, &status, &done, begun);
        let over = |r: &&act::Done| r.outcome.state != ActionState::Intended;
        let ended: Vec<_> = done.iter().filter(over).filter_map(|r| r.job.clone()).collect();
        done.append(&mut stopped);
        act::note(&mut status, &done_once, true);
        act::note(&mut status, &done, false);
        self.note_wave(memory, &mut status, &done, first_cancel, memory.started);

        let judgement = decide::judge(&halt.spec, &policy, &observed.facts);
        status.running_pods = observed.facts.pods.as_ref().ok().and_then(|p| i64::try_from(p.running).ok());
        record::apply(&mut status, &judgement, halt.metadata.generation, now, (observed.as_of, observed.life));
        let proven = memory.proven.get_or_insert_with(|| proven::ProvenFor::stored(&status));
        proven.note(proven.seen(&status), monotonic(), policy.reverify_interval.get().max(SHORTEST));
        status.proven_for = proven.shown();
        if old.times.halted_at.is_none() && status.times.halted_at.is_some() {
            self.metrics.proven(memory.started.elapsed());
        }
        if allowing {
            self.use_up(&current, &mut status, &policy).await;
        }
        let stored = current.status.clone().unwrap_or_default();
        let awaited = proven::awaited(&current, &stored, &resumes);
        let awaited = proven::due(&stored, &status, awaited);
        if record::differs(&stored, &status) || record::heartbeat_due(&stored, &status) || awaited {
            self.settle(self.write(&current, status).await)?;
        }
        for job in ended {
            self.clean(halt, &job).await;
        }
        Ok(Action::requeue(wait(judgement.phase, memory, &policy, self.pace)))
    }

    fn register(&self, halt: &TradingHalt, workloads: &[LatchedWorkload]) {
        let (uid, namespace) = (halt.uid().unwrap_or_default(), halt.namespace().unwrap_or_default());
        self.registry.commit(&uid, &halt.name_any(), &namespace, workloads);
    }

    /// Puts right what was recorded from a cache that was behind, before the workload is stopped: what it goes back to
    /// is in the status first.
    async fn correct(
        &self,
        current: &TradingHalt,
        status: &mut TradingHaltStatus,
        memory: &mut Memory,
    ) -> Result<Corrected, Failure> {
        let active = self.active(&current.namespace().unwrap_or_default(), &status.workloads);
        let seen = active.into_iter().filter(|w| memory.stopping.contains(&w.key)).map(|w| (w.key, w.size));
        let seen: Vec<_> = seen.collect();
        let (hidden, unread) = self.hidden(std::mem::take(&mut memory.unread)).await;
        memory.unread = unread;
        memory.stopping.extend(hidden.iter().map(|(key, _)| key.clone()));
        if !baseline::correct(&mut status.workloads, &[seen, hidden].concat()) {
            return Ok(Corrected::No);
        }
        match self.settle(self.write(current, status.clone()).await)? {
            Some(written) => {
                self.register(&written, &status.workloads);
                Ok(Corrected::Written(Box::new(written)))
            }
            None => Ok(Corrected::Overtaken),
        }
    }

    /// The first wave once more, by a process that did not begin it.
    async fn first_wave_again(
        &self,
        halt: &TradingHalt,
        status: &mut TradingHaltStatus,
        system: Option<&TradingSystem>,
        memory: &mut Memory,
    ) {
        let Some(system) = system else { return };
        let namespace = halt.namespace().unwrap_or_default();
        let venues = self.first_offers(halt, system);
        let active = self.active(&namespace, &status.workloads);
        // The bot's own endpoint has a way of its own: see `Memory::application`.
        let closes = closing::allowed(&halt.spec, &system.spec.halt_policy, !status.approvals.is_empty()).is_some();
        let effects = decide::first_wave(&halt.spec, closes, active, &venues, false);
        let (begun, first_cancel) = (Instant::now(), effects.iter().any(act::cancels).then(Timestamp::now));
        let done = self.act(halt, status, Some(system), effects, HashMap::new()).await;
        commit::note_cancels(memory, status, &done, begun);
        act::note(status, &done, false);
        self.note_wave(memory, status, &done, first_cancel, memory.started);
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

    /// Adds workloads and venues that the TradingSystem names by now. They only grow under a halt.
    fn grow(&self, halt: &TradingHalt, status: &mut TradingHaltStatus, system: Option<&TradingSystem>) -> bool {
        let Some(system) = system else { return false };
        let namespace = halt.namespace().unwrap_or_default();
        let (mut views, _) = self.workloads.trading(&namespace, &system.spec.workloads);
        views.retain(|v| !status.workloads.iter().any(|k| k.kind == v.key.kind && k.name == v.key.name));
        let (halts, resumes) = (self.halts.read_namespace(&namespace), self.resumes.read_namespace(&namespace));
        let mut new = baseline::records(&views, halt, &self.registry, &halts, &resumes);
        new.truncate(commit::WORKLOAD_LIMIT.saturating_sub(status.workloads.len()));
        let unknown = system.spec.venues.iter().filter(|v| !status.venues.iter().any(|k| k.name == v.name));
        let room = commit::VENUE_LIMIT.saturating_sub(status.venues.len());
        let venues: Vec<_> = unknown.take(room).collect();
        let grew = !new.is_empty() || !venues.is_empty();
        status
            .venues
            .extend(venues.into_iter().map(|v| VenueStatus { name: v.name.clone(), ..VenueStatus::default() }));
        status.workloads.extend(new);
        grew
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

/// What became of a correction of the record.
enum Corrected {
    No,
    Written(Box<TradingHalt>),
    /// Somebody else changed the halt in between.
    Overtaken,
}

/// Each attempt to close is counted once, however many requests it is made of.
fn decide_intent(
    status: &mut TradingHaltStatus,
    halt: &TradingHalt,
    system: Option<&TradingSystem>,
    effect: &Effect,
    (now, epoch): (Timestamp, i64),
) {
    let fresh = status
        .actions
        .iter()
        .find(|a| a.name == act::name(effect))
        .is_none_or(|a| a.last_attempt_at.as_ref().is_none_or(|t| t.0 != now));
    if fresh {
        act::intend(status, halt, system, effect, (now, epoch));
    }
}

fn wait(phase: HaltPhase, memory: &Memory, policy: &standfast_crds::v1alpha1::HaltPolicy, pace: Duration) -> Duration {
    let wanted = match phase {
        HaltPhase::Halted => policy.reverify_interval.get(),
        HaltPhase::Unverified if memory.started.elapsed() > IMPATIENCE => policy.reverify_interval.get(),
        _ if memory.stopped_since.is_some() => policy.verify_interval.get(),
        _ => policy.verify_interval.get().min(pace),
    };
    wanted.max(SHORTEST)
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
