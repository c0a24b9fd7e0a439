//! First sight of a halt: one status write that commits to the latch and records what will be done, then everything at
//! once.

use futures::future::join_all;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use kube::{Api, ResourceExt, runtime::controller::Action};
use standfast_crds::v1alpha1::{
    ActionState, ActionStatus, Evidence, HaltPhase, Latch, LatchedWorkload, TradingHalt, TradingHaltStatus,
    TradingSystem, VenueStatus, halt_conditions as c, set_condition, shorten,
};
use tokio::time::Instant;

use super::{
    HaltReconciler, act,
    act::EFFECT_DEADLINE,
    baseline, closing,
    decide::{self, Effect},
    evidence, latch,
    memory::{Memory, Retry},
    others::Others,
    record::{self, WriteError},
    venues,
};
use crate::{client, controller::Failure, workloads::Key};

/// The most workloads that one halt can hold.
pub(super) const WORKLOAD_LIMIT: usize = 1000;
/// The most venues that one halt can cover.
pub(super) const VENUE_LIMIT: usize = 16;

impl HaltReconciler {
    /// The TradingSystem of a halt: from the cache, or live if the cache does not have it yet. `None` if there is none.
    async fn find_system(&self, halt: &TradingHalt) -> Result<Option<TradingSystem>, String> {
        let namespace = halt.namespace().unwrap_or_default();
        let name = halt.spec.system();
        if let Some(system) = self.systems.read(&namespace, name) {
            return Ok(Some(system));
        }
        let api: Api<TradingSystem> = Api::namespaced(self.client.clone(), &namespace);
        let what = format!("reading TradingSystem {namespace}/{name}");
        client::read(EFFECT_DEADLINE, what, api.get_opt(name)).await.map_err(|e| e.to_string())
    }

    /// The same; an error also when there is none.
    pub(super) async fn system(&self, halt: &TradingHalt) -> Result<TradingSystem, String> {
        self.find_system(halt).await?.ok_or_else(|| self.no_system(halt))
    }

    fn no_system(&self, halt: &TradingHalt) -> String {
        let (namespace, name) = (halt.namespace().unwrap_or_default(), halt.spec.system());
        let names = self.systems.some_names(&namespace);
        let there = if names.is_empty() { "there is none".into() } else { format!("there are {}", names.join(", ")) };
        format!("TradingSystem {name} not found in namespace {namespace}: {there}")
    }

    /// Reads a halt that somebody else changed.
    pub(super) async fn catch_up(&self, halt: &TradingHalt) {
        let api: Api<TradingHalt> = Api::namespaced(self.client.clone(), &halt.namespace().unwrap_or_default());
        let name = halt.name_any();
        let live = client::read(EFFECT_DEADLINE, format!("reading TradingHalt {name}"), api.get_opt(&name)).await;
        if let Ok(Some(live)) = live
            && live.uid() == halt.uid()
        {
            self.remember(&live);
        }
    }

    /// Commits a halt and starts the first wave.
    pub(super) async fn commit(&self, halt: &TradingHalt) -> Result<Action, Failure> {
        let namespace = halt.namespace().unwrap_or_default();
        let uid = halt.uid().unwrap_or_default();
        let system = match self.find_system(halt).await.map_err(Failure)? {
            Some(system) => system,
            None => return self.pending(halt, self.no_system(halt)).await,
        };
        // Read before the registry is asked: see `baseline`.
        let (mut views, missing) = self.workloads.trading(&namespace, &system.spec.workloads);
        views.truncate(WORKLOAD_LIMIT);
        let halts = self.halts.read_namespace(&namespace);
        let resumes = self.resumes.read_namespace(&namespace);
        let workloads = baseline::records(&views, halt, &self.registry, &halts, &resumes);

        let venues = self.first_offers(halt, &system);
        let active = self.active(&namespace, &workloads);
        let application = system.spec.application_halt.is_some();
        let closes = closing::allowed(&halt.spec, &system.spec.halt_policy, false).is_some();
        let effects = decide::first_wave(&halt.spec, closes, active, &venues, application);

        let now = Timestamp::now();
        let mut status = TradingHaltStatus {
            observed_generation: halt.metadata.generation,
            phase: HaltPhase::Fencing,
            latch: Some(Latch { held: true, config_map: latch::name(&halt.name_any()) }),
            system_uid: system.uid(),
            workloads,
            venues: venues
                .iter()
                .map(|(name, _)| VenueStatus { name: name.clone(), ..VenueStatus::default() })
                .collect(),
            evidence: Evidence {
                requested_by: halt.spec.requested_by.clone().unwrap_or_else(|| "not recorded".into()),
                previous_sha256: evidence::head(&halts, halt.spec.system(), Some(&uid)),
                ..Evidence::default()
            },
            ..TradingHaltStatus::default()
        };
        status.times.requested_at = halt.metadata.creation_timestamp.as_ref().map(|t| MicroTime(t.0));
        status.times.committed_at = Some(MicroTime(now));
        for effect in &effects {
            if !status.actions.iter().any(|a| a.name == act::name(effect)) {
                act::intend(&mut status, halt, Some(&system), effect, (now, self.leadership.epoch()));
            }
        }
        let asked = format!(
            "{}; requested by {}; orders {:?}, positions {}",
            halt.spec.reason, status.evidence.requested_by, halt.spec.orders.cancel, halt.spec.positions
        );
        evidence::append(&mut status.evidence, now, "Committed", &asked, false);
        for type_ in
            [c::LATCHED, c::WORKLOADS_STOPPED, c::ORDERS_CANCELLED, c::POSITIONS_CLOSED, c::VERIFIED, c::HALTED]
        {
            let message = missing.first().cloned().unwrap_or_else(|| "not read back yet".into());
            set_condition(
                &mut status.conditions,
                now,
                halt.metadata.generation,
                (type_, "Unknown", "Fencing"),
                message,
            );
        }
        record::kstatus(&mut status, halt.metadata.generation, now);

        // Secrets are read while the commit is written.
        let (written, ready) = tokio::join!(self.write(halt, status), self.ready(&namespace, &system, &effects));
        let committed = match written {
            Ok(committed) => committed,
            Err(WriteError::Failed(failure)) => return Err(failure),
            Err(WriteError::Conflict) => {
                // The cache is behind: with what it has, this would go on until it catches up.
                self.catch_up(halt).await;
                return Ok(Action::requeue(std::time::Duration::ZERO));
            }
            Err(WriteError::Gone) => return Ok(Action::await_change()),
        };
        let status = committed.status.clone().unwrap_or_default();
        self.registry.commit(&uid, &halt.name_any(), &namespace, &status.workloads);
        let started = Instant::now();
        let mut memory = Memory::new(started);
        memory.looked = true;
        memory.stopping.extend(self.active(&namespace, &status.workloads).into_iter().map(|w| w.key));

        let first_cancel = effects.iter().any(act::cancels).then(Timestamp::now);
        let reads = join_all(system.spec.venues.iter().map(|v| self.read_before(&namespace, &committed, v)));
        let seems_stopped =
            |w: &&LatchedWorkload| w.inherited_from.is_none() && (w.replicas == Some(0) || w.suspended == Some(true));
        let seem_stopped = status.workloads.iter().filter(seems_stopped);
        let keys = seem_stopped.map(|w| Key { namespace: namespace.clone(), kind: w.kind, name: w.name.clone() });
        let (results, before, (hidden, unread)) = tokio::join!(
            self.act(&committed, &status, Some(&system), effects, ready),
            reads,
            self.hidden(keys.collect())
        );
        memory.unread = unread;
        let mut status = status;
        let found: Vec<_> = results.iter().filter_map(|r| r.found.clone()).chain(hidden).collect();
        memory.stopping.extend(found.iter().map(|(key, _)| key.clone()));
        let corrected = baseline::correct(&mut status.workloads, &found);
        for (venue, (orders, positions)) in status.venues.iter_mut().zip(before) {
            (venue.orders_before, venue.positions_before) = (orders, positions);
        }
        note_cancels(&mut memory, &status, &results, started);
        act::note(&mut status, &results, true);
        self.note_wave(&mut memory, &mut status, &results, first_cancel, started);
        self.keep(&uid, memory);
        let written = self.settle(self.write(&committed, status).await)?;
        if let (true, Some(written)) = (corrected, &written) {
            let workloads = written.status.as_ref().map(|s| s.workloads.as_slice()).unwrap_or_default();
            self.registry.commit(&uid, &halt.name_any(), &namespace, workloads);
        }
        Ok(Action::requeue(if corrected { std::time::Duration::ZERO } else { self.pace }))
    }

    /// What the venues offer for the first wave.
    pub(super) fn first_offers(&self, halt: &TradingHalt, system: &TradingSystem) -> Vec<(String, decide::Offers)> {
        let halts = self.halts.read_namespace(&halt.namespace().unwrap_or_default());
        let mut venues: Vec<_> = system.spec.venues.iter().map(|v| (v.name.clone(), venues::offers(v))).collect();
        for (venue, offers) in venues.iter_mut().filter(|(_, o)| o.suspend_blocks_closing) {
            // Suspended when the other halt is done.
            let closing = Others::at(venue, &halts, halt, &system.spec.halt_policy).closing;
            offers.suspend = if closing { 0 } else { offers.suspend };
        }
        venues
    }

    /// Takes note of what a wave achieved.
    pub(super) fn note_wave(
        &self,
        memory: &mut Memory,
        status: &mut TradingHaltStatus,
        results: &[act::Done],
        first_cancel: Option<Timestamp>,
        started: Instant,
    ) {
        let now = Timestamp::now();
        memory.note_stops(results.iter().filter_map(|r| r.stopped.as_ref()));
        // What certainly had no effect may not even have been sent.
        let sent = |r: &act::Done| act::is_cancel(&r.name) && r.outcome.state != ActionState::Failed;
        let first_cancel = first_cancel.filter(|_| results.iter().any(sent));
        if let (Some(at), None) = (first_cancel, &status.times.first_cancel_sent_at) {
            status.times.first_cancel_sent_at = Some(MicroTime(at));
            evidence::append(
                &mut status.evidence,
                at,
                "CancelSent",
                "the first cancel was handed to the network",
                false,
            );
            if let Some(committed) = &status.times.committed_at {
                self.metrics.commit_to_cancel(at.duration_since(committed.0).unsigned_abs());
            }
        }
        let stops: Vec<_> = results.iter().filter(|r| r.name == act::SCALE).collect();
        let all_stopped = stops.iter().all(|r| r.outcome.state == ActionState::Done);
        if status.times.scaled_at.is_none() && all_stopped {
            status.times.scaled_at = Some(MicroTime(now));
            self.metrics.commit_to_scaled(started.elapsed());
            let message = format!("{} workloads were asked to go to zero", stops.len());
            evidence::append(&mut status.evidence, now, "WorkloadsScaled", &message, false);
        }
        for venue in &status.venues {
            // None: nothing was sent.
            let answered = |action: &str| {
                let prefix = format!("{}/{action}/", venue.name);
                let mut sent = results.iter().filter(|r| r.name.starts_with(&prefix)).peekable();
                sent.peek().is_some().then(|| sent.all(|r| r.outcome.state == ActionState::Done))
            };
            let remembered = memory.venues.entry(venue.name.clone()).or_default();
            if let Some(done) = answered("suspendTrading") {
                remembered.note_suspended(done);
            }
            if let Some(done) = answered("allowTrading") {
                (remembered.suspended, remembered.allowed) = (false, done);
            }
        }
        if let Some(result) = results.iter().find(|r| r.name == "applicationHalt") {
            let attempts = memory.application.map_or(0, |r| r.attempts) + 1;
            let again = result.outcome.state != ActionState::Done && attempts < 5;
            let at = Instant::now() + std::time::Duration::from_secs(2 << attempts);
            memory.application = again.then_some(Retry { at, attempts });
        }
    }

    async fn pending(&self, halt: &TradingHalt, why: String) -> Result<Action, Failure> {
        let old = halt.status.clone().unwrap_or_default();
        let (mut status, now, generation) = (old.clone(), Timestamp::now(), halt.metadata.generation);
        status.observed_generation = generation;
        set_condition(&mut status.conditions, now, generation, (c::HALTED, "False", "SystemNotFound"), shorten(&why));
        record::kstatus(&mut status, generation, now);
        if record::differs(&old, &status) {
            self.settle(self.write(halt, status).await)?;
            self.event(halt, "SystemNotFound", &why);
        }
        // The trigger of a new TradingSystem comes sooner.
        Ok(Action::requeue(std::time::Duration::from_secs(5)))
    }
}

/// Remembers when cancels of all orders were begun. What certainly had no effect does not count, and a Job that goes on
/// was begun before.
pub(super) fn note_cancels(memory: &mut Memory, status: &TradingHaltStatus, results: &[act::Done], begun: Instant) {
    let mut venues: Vec<&str> = vec![];
    for result in results.iter().filter(|r| act::is_cancel(&r.name)) {
        let mut parts = result.name.split('/');
        let (Some(venue), _, number) = (parts.next(), parts.next(), parts.next()) else { continue };
        if !venues.contains(&venue) {
            venues.push(venue);
        }
        let goes_on =
            |a: &ActionStatus| a.name == result.name && a.external_ref.is_some() && a.external_ref == result.job;
        let first = memory.venues.entry(venue.into()).or_default();
        if let Some(number) = number.and_then(|n| n.parse().ok())
            && result.outcome.state != ActionState::Failed
            && !(first.cancels.contains_key(&number) && status.actions.iter().any(goes_on))
        {
            first.cancels.insert(number, begun);
        }
    }
    for venue in venues {
        memory.venues.entry(venue.into()).or_default().note_cancel(begun);
    }
}

/// Remembers when closing began. What was read before a close says nothing of what came of it.
pub(super) fn note_begun(memory: &mut Memory, effects: &[Effect], now: Instant) {
    for effect in effects {
        if let Effect::CloseAll(venue, _) | Effect::CloseOne(venue, _) = effect {
            memory.closing_since.get_or_insert(now);
            memory.venues.entry(venue.clone()).or_default().note_close();
        }
    }
}
