//! One look at a held halt, in this order: what is new is taken in; what was raised is stopped; everything is read; what
//! that asks for is done; what may be said is written.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::jiff::Timestamp;
use kube::{ResourceExt, runtime::controller::Action};
use standfast_crds::v1alpha1::{
    ActionState, ActionStatus, HaltPhase, HaltPolicy, LatchedWorkload, TradingHalt, TradingHaltStatus, TradingSystem,
    VenueStatus, WorkloadKind, halt_conditions as c, set_condition,
};
use tokio::time::Instant;

use super::{
    HaltReconciler, SHORTEST, act,
    approvals::Approved,
    baseline, closing, commit,
    decide::{self, Effect},
    memory::{Memory, Retry},
    observe::Observed,
    others, proven, record,
};
use crate::{controller::Failure, sight::monotonic};

/// After this long, a halt that cannot be proven is looked at less often.
const IMPATIENCE: Duration = Duration::from_secs(120);

/// Why a look ends before its end.
enum End {
    /// Somebody else changed the halt, or it is released or gone: another look comes.
    Later(Action),
    Failed(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What came of what was seen.
struct Acted {
    /// When it was decided.
    at: Timestamp,
    /// Jobs that have ended.
    ended: Vec<String>,
    /// People allow what was to be done: that is written down first, and the next look does it.
    allowing: bool,
}

/// A look that is under way.
struct Look<'a> {
    of: &'a HaltReconciler,
    /// As the look found it.
    halt: &'a TradingHalt,
    /// As it was last written.
    current: TradingHalt,
    /// What is to be written next.
    status: TradingHaltStatus,
    system: Result<TradingSystem, String>,
    policy: HaltPolicy,
    memory: &'a mut Memory,
}

impl HaltReconciler {
    /// One look at a held halt.
    pub(super) async fn look(&self, halt: &TradingHalt) -> Result<Action, Failure> {
        let uid = halt.uid().unwrap_or_default();
        let mut memory = self.take(&uid);
        let system = self.system(halt).await;
        let look = Look {
            of: self,
            halt,
            current: halt.clone(),
            status: halt.status.clone().unwrap_or_default(),
            policy: system.as_ref().map(|s| s.spec.halt_policy.clone()).unwrap_or_default(),
            system,
            memory: &mut memory,
        };
        let looked = look.run().await;
        self.keep(&uid, memory);
        match looked {
            Ok(action) | Err(End::Later(action)) => Ok(action),
            Err(End::Failed(failure)) => Err(failure),
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
}

impl Look<'_> {
    async fn run(mut self) -> Result<Action, End> {
        self.take_in().await?;
        let stopped = self.stop_raised().await?;
        let observed = self.observe().await;
        let acted = self.act(&observed, stopped).await?;
        self.conclude(observed, acted).await
    }

    fn namespace(&self) -> String {
        self.halt.namespace().unwrap_or_default()
    }

    /// Writes the status as it stands now, before anything is done about it.
    async fn write(&mut self) -> Result<(), End> {
        match self.of.settle(self.of.write(&self.current, self.status.clone()).await)? {
            Some(written) => self.current = written,
            None => return Err(End::Later(Action::requeue(self.of.pace))),
        }
        Ok(())
    }

    /// Asks whether the halt still holds, before anything is done again.
    async fn still_holds(&self) -> Result<(), End> {
        match self.of.overtaken(&self.current).await {
            Some(wait) => Err(End::Later(Action::requeue(wait))),
            None => Ok(()),
        }
    }

    /// What the TradingSystem names since, and what a process before this one left undone.
    async fn take_in(&mut self) -> Result<(), End> {
        self.take_in_new().await?;
        let first = !self.memory.looked && self.status.times.scaled_at.is_none();
        if first {
            self.note_stopping(&self.status.workloads.clone());
        }
        self.correct().await?;
        if first {
            // Another process committed it and may not have come further: once more everything, with nothing looked at.
            self.still_holds().await?;
            self.first_wave_again().await;
        }
        if !std::mem::replace(&mut self.memory.looked, true) && self.memory.application.is_none() {
            // Another process began it and did not see its end.
            let unanswered = |a: &ActionStatus| a.name == "applicationHalt" && a.state != ActionState::Done;
            let now = Instant::now();
            let retry = self.status.actions.iter().any(unanswered).then_some(Retry { at: now, attempts: 0 });
            self.memory.application = retry;
        }
        Ok(())
    }

    /// What is latched from now on is in the status before it is touched, and nothing is proven of it.
    async fn take_in_new(&mut self) -> Result<(), End> {
        let known = self.status.workloads.len();
        if !self.of.grow(self.halt, &mut self.status, self.system.as_ref().ok()) {
            return Ok(());
        }
        let (now, generation) = (Timestamp::now(), self.halt.metadata.generation);
        for type_ in [c::WORKLOADS_STOPPED, c::HALTED] {
            let message = "the TradingSystem names more than before: that is being halted too";
            set_condition(&mut self.status.conditions, now, generation, (type_, "Unknown", "Fencing"), message);
        }
        self.status.phase = HaltPhase::Fencing;
        record::kstatus(&mut self.status, generation, now);
        self.write().await?;
        let new = self.status.workloads[known..].to_vec();
        self.note_stopping(&new);
        self.of.register(self.halt, &self.status.workloads);
        Ok(())
    }

    /// Those of `workloads` that run are being stopped.
    fn note_stopping(&mut self, workloads: &[LatchedWorkload]) {
        let active = self.of.active(&self.namespace(), workloads);
        self.memory.stopping.extend(active.into_iter().map(|w| w.key));
    }

    /// Puts right what was recorded from a cache that was behind, before the workload is stopped: what it goes back to
    /// is in the status first.
    async fn correct(&mut self) -> Result<(), End> {
        let active = self.of.active(&self.namespace(), &self.status.workloads);
        let seen = active.into_iter().filter(|w| self.memory.stopping.contains(&w.key)).map(|w| (w.key, w.size));
        let seen: Vec<_> = seen.collect();
        let (hidden, unread) = self.of.hidden(std::mem::take(&mut self.memory.unread)).await;
        self.memory.unread = unread;
        self.memory.stopping.extend(hidden.iter().map(|(key, _)| key.clone()));
        if baseline::correct(&mut self.status.workloads, &[seen, hidden].concat()) {
            self.write().await?;
            self.of.register(&self.current, &self.status.workloads);
        }
        Ok(())
    }

    /// The first wave once more, by a process that did not begin it.
    async fn first_wave_again(&mut self) {
        let Ok(system) = &self.system else { return };
        let venues = self.of.first_offers(&self.current, system);
        let active = self.of.active(&self.namespace(), &self.status.workloads);
        let closes = closing::allowed(&self.current.spec, &self.policy, !self.status.approvals.is_empty()).is_some();
        // The bot's own endpoint has a way of its own: see `Memory::application`.
        let effects = decide::first_wave(&self.current.spec, closes, active, &venues, false);
        let (begun, first_cancel) = (Instant::now(), effects.iter().any(act::cancels).then(Timestamp::now));
        let done = self.of.act(&self.current, &self.status, Some(system), effects, HashMap::new()).await;
        commit::note_cancels(self.memory, &self.status, &done, begun);
        act::note(&mut self.status, &done, false);
        let started = self.memory.started;
        self.of.note_wave(self.memory, &mut self.status, &done, first_cancel, started);
    }

    /// Stops what was raised, before anything is read: a venue may take its time.
    async fn stop_raised(&mut self) -> Result<Vec<act::Done>, End> {
        let raised = self.of.active(&self.namespace(), &self.status.workloads);
        if !raised.is_empty() {
            self.still_holds().await?;
        }
        self.of.note_contention(self.halt, &mut self.status, &raised, self.memory, Timestamp::now()).await;
        let stops = raised.into_iter().map(|w| Effect::Stop(w.key, w.size)).collect();
        Ok(self.of.act(&self.current, &self.status, None, stops, HashMap::new()).await)
    }

    /// Reads everything, and counts who allows what the policy does not.
    async fn observe(&mut self) -> Observed {
        let resumes = self.of.resumes.read_namespace(&self.namespace());
        for venue in &self.status.venues {
            let allowing = others::allowing(&venue.name, &resumes, self.halt.spec.system(), Timestamp::now());
            self.memory.venues.entry(venue.name.clone()).or_default().note_allowing(allowing);
        }
        let asked = self.system.as_ref().ok().map(|s| &s.spec.halt_policy);
        let (mut observed, approved) = tokio::join!(
            self.of.observe(&self.current, &self.status, &self.system, self.memory),
            self.of.approved(&self.current, &self.status, asked)
        );
        observed.facts.approved = approved;
        observed
    }

    /// Does what is asked for by what was seen. The intent of what must not be done twice is written first.
    async fn act(&mut self, observed: &Observed, mut stopped: Vec<act::Done>) -> Result<Acted, End> {
        let mut effects = decide::effects(&self.halt.spec, &self.policy, &observed.facts);
        effects.retain(|e| !matches!(e, Effect::Stop(..)));
        // How a Job ended is recorded, also when nothing is left to cancel.
        let cancelling = self.system.as_ref().map(|s| act::cancelling(&self.status, s)).unwrap_or_default();
        effects.extend(cancelling.into_iter().filter(|e| !effects.contains(e)).collect::<Vec<_>>());
        if !effects.is_empty() {
            self.still_holds().await?;
        }
        self.note_observed(observed);
        let (mut once, repeatable): (Vec<_>, Vec<_>) = effects.into_iter().partition(Effect::needs_intent);
        let (at, allowing) =
            (Timestamp::now(), matches!(observed.facts.approved, Approved::Granted(_)) && !once.is_empty());
        if allowing {
            once.clear();
        }
        self.keep_due(observed, &mut once, at);
        self.intend(&once, at).await?;

        let begun = Instant::now();
        let first_cancel = repeatable.iter().any(act::cancels).then(Timestamp::now);
        commit::note_begun(self.memory, &once, begun);
        let system = self.system.as_ref().ok();
        let (done_once, mut done) = tokio::join!(
            self.of.act(&self.current, &self.status, system, once, HashMap::new()),
            self.of.act(&self.current, &self.status, system, repeatable, HashMap::new())
        );
        commit::note_cancels(self.memory, &self.status, &done, begun);
        let over = |r: &&act::Done| r.outcome.state != ActionState::Intended;
        let ended = done.iter().filter(over).filter_map(|r| r.job.clone()).collect();
        done.append(&mut stopped);
        act::note(&mut self.status, &done_once, true);
        act::note(&mut self.status, &done, false);
        let started = self.memory.started;
        self.of.note_wave(self.memory, &mut self.status, &done, first_cancel, started);
        Ok(Acted { at, ended, allowing })
    }

    fn note_observed(&mut self, observed: &Observed) {
        if !matches!(observed.facts.approved, Approved::NotAsked) && self.status.spec_hash.is_none() {
            self.status.spec_hash = self.halt.spec.hash().ok();
        }
        self.status.venues = observed.venues.clone();
        for (cron_job, jobs) in &observed.jobs {
            let this = |w: &&mut LatchedWorkload| w.kind == WorkloadKind::CronJob && w.name == *cron_job;
            if let Some(w) = self.status.workloads.iter_mut().find(this) {
                let new = jobs.iter().filter(|j| !w.suspended_jobs.contains(j)).cloned().collect::<Vec<_>>();
                w.suspended_jobs.extend(new);
                w.suspended_jobs.truncate(32);
            }
        }
    }

    /// Leaves of what is done once only what may be begun now.
    fn keep_due(&mut self, observed: &Observed, once: &mut Vec<Effect>, now: Timestamp) {
        let under_way = act::under_way(&self.status, now, self.of.leadership.epoch());
        if under_way || self.of.unknown_yet(&self.current, self.memory) {
            once.clear();
        }
        // What another halt began while venues were read is not begun here too.
        let others = self.of.halts.read_namespace(&self.namespace());
        let as_before = |venue: &str| {
            let now = others::Others::at(venue, &others, &self.current, &self.policy);
            observed.others.get(venue).is_some_and(|before| before.leaves_the_same(&now))
        };
        once.retain(|effect| effect.closes_at().is_none_or(as_before));
    }

    /// Writes down what is about to be done once.
    async fn intend(&mut self, once: &[Effect], now: Timestamp) -> Result<(), End> {
        if once.is_empty() {
            return Ok(());
        }
        for effect in once.iter().filter(|e| !act::running(&self.status, e)).cloned().collect::<Vec<_>>() {
            let at = (now, self.of.leadership.epoch());
            intend_once(&mut self.status, self.halt, self.system.as_ref().ok(), &effect, at);
            act::intend_selected(&mut self.status, &effect, now);
        }
        self.write().await
    }

    /// Says what may be said, and writes it if it is new.
    async fn conclude(mut self, observed: Observed, acted: Acted) -> Result<Action, End> {
        let (halt, status, memory) = (self.halt, &mut self.status, self.memory);
        let judgement = decide::judge(&halt.spec, &self.policy, &observed.facts);
        status.running_pods = observed.facts.pods.as_ref().ok().and_then(|p| i64::try_from(p.running).ok());
        record::apply(status, &judgement, halt.metadata.generation, acted.at, (observed.as_of, observed.life));
        let proven = memory.proven.get_or_insert_with(|| proven::ProvenFor::stored(status));
        proven.note(proven.seen(status), monotonic(), self.policy.reverify_interval.get().max(SHORTEST));
        status.proven_for = proven.shown();
        let was_proven = halt.status.as_ref().is_some_and(|s| s.times.halted_at.is_some());
        if !was_proven && status.times.halted_at.is_some() {
            self.of.metrics.proven(memory.started.elapsed());
        }
        if acted.allowing {
            self.of.use_up(&self.current, status, &self.policy).await;
        }
        let stored = self.current.status.clone().unwrap_or_default();
        let resumes = self.of.resumes.read_namespace(&halt.namespace().unwrap_or_default());
        let awaited = proven::due(&stored, status, proven::awaited(&self.current, &stored, &resumes));
        if record::differs(&stored, status) || record::heartbeat_due(&stored, status) || awaited {
            self.of.settle(self.of.write(&self.current, self.status).await)?;
        }
        for job in acted.ended {
            self.of.clean(halt, &job).await;
        }
        Ok(Action::requeue(wait(judgement.phase, memory, &self.policy, self.of.pace)))
    }
}

/// Each attempt to close is counted once, however many requests it is made of.
fn intend_once(
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

/// How long until the next look.
fn wait(phase: HaltPhase, memory: &Memory, policy: &HaltPolicy, pace: Duration) -> Duration {
    let wanted = match phase {
        HaltPhase::Halted => policy.reverify_interval.get(),
        HaltPhase::Unverified if memory.started.elapsed() > IMPATIENCE => policy.reverify_interval.get(),
        _ if memory.stopped_since.is_some() => policy.verify_interval.get(),
        _ => policy.verify_interval.get().min(pace),
    };
    wanted.max(SHORTEST)
}
