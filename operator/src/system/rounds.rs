//! Asks the outside about trading systems, each question in its own rhythm, and remembers the answers.
//!
//! Nothing waits for anything else: a question that takes long delays its own next turn only. Answers are kept in
//! memory; after a restart everything is asked anew.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::FutureExt;
use kube::{Resource, ResourceExt};
use standfast_crds::v1alpha1::{Check, TradingSystem, TradingSystemSpec};
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    checks::{self, Asker, Checker, Told},
    coexistence::Autoscaler,
    decide::Answer,
    job_checks,
    prepared::{SharedSurveyor, Survey},
};
use crate::{
    controller::{Guarded, Trigger},
    workloads::{Key, View},
};

/// How often a check is asked that does not say.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// No check is asked more often.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// How often Secrets, endpoints, namespace and guardrails are looked at.
pub(super) const NEAR_INTERVAL: Duration = Duration::from_secs(30);
/// How often permissions and the workloads' own objects are looked at, and how often while something is wrong.
const FAR_INTERVAL: Duration = Duration::from_secs(300);
const FAR_INTERVAL_BAD: Duration = Duration::from_secs(30);
/// How often autoscalers are listed.
const AUTOSCALER_INTERVAL: Duration = Duration::from_secs(60);
/// Questions that are asked at once, of all systems.
const AT_ONCE: usize = 32;
/// Answers that come together make one reconcile.
const GATHER: Duration = Duration::from_millis(50);

/// Which system.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Subject {
    pub namespace: String,
    pub name: String,
}

impl Subject {
    pub fn of(system: &TradingSystem) -> Self {
        Self { namespace: system.namespace().unwrap_or_default(), name: system.name_any() }
    }
}

/// A question, its last answer, and when it is asked again.
#[derive(Debug)]
struct Slot<T> {
    answer: Option<T>,
    due: Instant,
    /// The number of the asking that is under way.
    running: Option<u64>,
}

impl<T> Slot<T> {
    fn new(now: Instant) -> Self {
        Self { answer: None, due: now, running: None }
    }

    /// What was asked is another question now. An answer to the old one that is still to come does not count.
    fn reset(&mut self, now: Instant) {
        *self = Self::new(now);
    }
}

/// What is known of one system.
#[derive(Debug)]
pub(super) struct Memory {
    uid: Option<String>,
    spec: TradingSystemSpec,
    trading: Vec<Key>,
    checks: HashMap<String, (Check, Slot<Answer>)>,
    near: Slot<Survey>,
    far: Slot<Survey>,
    autoscalers: Slot<Result<Vec<Autoscaler>, String>>,
    reconciled: Option<Instant>,
    written: Option<Instant>,
}

impl Memory {
    fn new(system: &TradingSystem, trading: &[View], now: Instant) -> Self {
        Self {
            uid: system.uid(),
            spec: system.spec.clone(),
            trading: trading.iter().map(|v| v.key.clone()).collect(),
            checks: HashMap::new(),
            near: Slot::new(now),
            far: Slot::new(now),
            autoscalers: Slot::new(now),
            reconciled: None,
            written: None,
        }
    }

    /// Answers to questions that are not asked any more, or are others now, are dropped.
    fn update(&mut self, system: &TradingSystem, trading: &[View], now: Instant) {
        if self.uid != system.uid() {
            *self = Self::new(system, trading, now);
        }
        if self.spec != system.spec {
            self.spec = system.spec.clone();
            self.near.reset(now);
            self.far.reset(now);
        }
        if !self.trading.iter().eq(trading.iter().map(|v| &v.key)) {
            self.trading = trading.iter().map(|v| v.key.clone()).collect();
            // The old answer stands until the new one is there.
            self.far.due = now;
        }
        self.checks.retain(|name, (asked, _)| system.spec.checks.iter().any(|c| c.name == *name && c == asked));
        for check in &system.spec.checks {
            self.checks.entry(check.name.clone()).or_insert_with(|| (check.clone(), Slot::new(now)));
        }
    }

    /// The answers to checks that were asked.
    pub fn answers(&self) -> impl Iterator<Item = (String, Answer)> + '_ {
        self.checks.iter().filter_map(|(name, (_, slot))| Some((name.clone(), slot.answer.clone()?)))
    }

    /// Everything found outside, once all of it was looked for.
    pub fn survey(&self) -> Option<Survey> {
        let (near, far) = (self.near.answer.as_ref()?, self.far.answer.as_ref()?);
        let mut all = near.clone();
        all.problems.extend(far.problems.iter().cloned());
        all.unknown.extend(far.unknown.iter().cloned());
        Some(all)
    }

    /// What scales workloads of the namespace.
    pub fn autoscalers(&self) -> Option<Result<Vec<Autoscaler>, String>> {
        self.autoscalers.answer.clone()
    }

    fn next_due(&self) -> Option<Instant> {
        let checks = self.checks.values().map(|(_, slot)| slot.due);
        checks.chain([self.near.due, self.far.due, self.autoscalers.due]).min()
    }
}

type Memories = Arc<Mutex<HashMap<Subject, Memory>>>;

fn lock(memories: &Memories) -> MutexGuard<'_, HashMap<Subject, Memory>> {
    memories.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks, beside the reconciles. Questions that are under way end with it.
pub(super) struct Rounds {
    memories: Memories,
    surveyor: SharedSurveyor,
    checker: Checker,
    trigger: Trigger<Guarded<TradingSystem>>,
    slots: Arc<Semaphore>,
    tasks: Mutex<JoinSet<()>>,
    turn: std::sync::atomic::AtomicU64,
}

impl Rounds {
    pub fn new(surveyor: SharedSurveyor, checker: Checker, trigger: Trigger<Guarded<TradingSystem>>) -> Self {
        Self {
            memories: Memories::default(),
            surveyor,
            checker,
            trigger,
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            tasks: Mutex::default(),
            turn: std::sync::atomic::AtomicU64::new(1),
        }
    }

    /// How long this reconcile should wait, because there was one a moment ago. Else it counts from now.
    pub fn pause(&self, subject: &Subject, pause: Duration) -> Option<Duration> {
        let mut memories = lock(&self.memories);
        let memory = memories.get_mut(subject)?;
        let wait = memory.reconciled.and_then(|at| pause.checked_sub(at.elapsed())).filter(|w| !w.is_zero());
        if wait.is_none() {
            memory.reconciled = Some(Instant::now());
        }
        wait
    }

    /// Drops what is known of systems that are not there any more.
    pub fn forget_others(&self, there: impl Fn(&str, &str) -> bool) {
        lock(&self.memories).retain(|subject, _| there(&subject.namespace, &subject.name));
    }

    /// How long ago the status was last written.
    pub fn since_write(&self, subject: &Subject) -> Option<Duration> {
        Some(lock(&self.memories).get(subject)?.written?.elapsed())
    }

    /// The status was written.
    pub fn wrote(&self, subject: &Subject, now: Instant) {
        if let Some(memory) = lock(&self.memories).get_mut(subject) {
            memory.written = Some(now);
        }
    }

    /// Reads what is known.
    pub fn known<T: Default>(&self, subject: &Subject, read: impl FnOnce(&Memory) -> T) -> T {
        lock(&self.memories).get(subject).map(read).unwrap_or_default()
    }

    /// Begins to ask everything that is due. Tells when the next question is.
    pub fn ask(&self, subject: &Subject, system: &TradingSystem, trading: &[View]) -> Duration {
        let now = Instant::now();
        let mut due_checks = vec![];
        let (near, far, autoscalers, next) = {
            let mut memories = lock(&self.memories);
            let memory = memories.entry(subject.clone()).or_insert_with(|| Memory::new(system, trading, now));
            memory.update(system, trading, now);
            for (check, slot) in memory.checks.values_mut() {
                let every = match check.job {
                    // How far it is: the Job itself is run less often.
                    Some(_) => job_checks::LOOK,
                    None => check.interval.map_or(CHECK_INTERVAL, |i| i.get().max(SHORTEST_INTERVAL)),
                };
                due_checks.extend(self.begin(slot, now, every).map(|turn| (turn, check.clone())));
            }
            let near = self.begin(&mut memory.near, now, NEAR_INTERVAL);
            let bad = memory.far.answer.as_ref().is_some_and(|f| *f != Survey::default());
            let far = self.begin(&mut memory.far, now, if bad { FAR_INTERVAL_BAD } else { FAR_INTERVAL });
            let autoscalers = self.begin(&mut memory.autoscalers, now, AUTOSCALER_INTERVAL);
            let next = memory.next_due().map_or(NEAR_INTERVAL, |due| due.saturating_duration_since(now));
            (near, far, autoscalers, next)
        };
        for (turn, check) in due_checks {
            let (checker, namespace, name) = (self.checker.clone(), subject.namespace.clone(), check.name.clone());
            let owner = system.controller_owner_ref(&()).unwrap_or_default();
            let question = async move {
                let asker = Asker { namespace: &namespace, system: &owner, gate: false };
                match checks::evaluate(&checker, &asker, &check).await {
                    Told::Answer(state, message) => Some(Answer { state, message }),
                    Told::Awaited(_) => None,
                }
            };
            self.spawn(subject, turn, question, move |memory| memory.checks.get_mut(&name).map(|(_, slot)| slot));
        }
        if let Some(turn) = near {
            let (surveyor, namespace) = (Arc::clone(&self.surveyor), subject.namespace.clone());
            let spec = system.spec.clone();
            let question = async move { Some(surveyor.near(&namespace, &spec).await) };
            self.spawn(subject, turn, question, |memory| Some(&mut memory.near));
        }
        if let Some(turn) = far {
            let (surveyor, namespace) = (Arc::clone(&self.surveyor), subject.namespace.clone());
            let (spec, trading) = (system.spec.clone(), trading.to_vec());
            let owner = system.controller_owner_ref(&()).unwrap_or_default();
            let question = async move { Some(surveyor.far(&namespace, &owner, &spec, &trading).await) };
            self.spawn(subject, turn, question, |memory| Some(&mut memory.far));
        }
        if let Some(turn) = autoscalers {
            let (surveyor, namespace) = (Arc::clone(&self.surveyor), subject.namespace.clone());
            let question = async move { Some(surveyor.autoscalers(&namespace).await) };
            self.spawn(subject, turn, question, |memory| Some(&mut memory.autoscalers));
        }
        next
    }

    /// If the question is due and not being asked: the number of this asking.
    fn begin<T>(&self, slot: &mut Slot<T>, now: Instant, every: Duration) -> Option<u64> {
        if slot.due > now {
            return None;
        }
        // A question that is still under way misses a turn.
        slot.due = now + every;
        if slot.running.is_some() {
            return None;
        }
        let turn = self.turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        slot.running = Some(turn);
        Some(turn)
    }

    /// Asks, stores the answer where `place` says, and asks for a reconcile if it is another one than before. Without
    /// an answer the last one stands.
    fn spawn<T: PartialEq + Send + 'static>(
        &self,
        subject: &Subject,
        turn: u64,
        question: impl Future<Output = Option<T>> + Send + 'static,
        place: impl Fn(&mut Memory) -> Option<&mut Slot<T>> + Send + 'static,
    ) {
        let (memories, slots, trigger) = (Arc::clone(&self.memories), Arc::clone(&self.slots), self.trigger.clone());
        let subject = subject.clone();
        let task = async move {
            let answer = {
                let _slot = slots.acquire().await;
                AssertUnwindSafe(question).catch_unwind().await
            };
            let news = {
                let mut memories = lock(&memories);
                // The place is gone or asks something else: the answer is of no use.
                let Some(slot) = memories.get_mut(&subject).and_then(&place) else { return };
                if slot.running != Some(turn) {
                    return;
                }
                slot.running = None;
                match answer {
                    Ok(None) => false,
                    Ok(Some(answer)) => {
                        let news = slot.answer.as_ref() != Some(&answer);
                        slot.answer = Some(answer);
                        news
                    }
                    Err(_) => {
                        tracing::error!(system = %subject.name, namespace = %subject.namespace, "a question about a system panicked: this is a bug");
                        false
                    }
                }
            };
            if news {
                tokio::time::sleep(GATHER).await;
                trigger.pull(&subject.namespace, &subject.name);
            }
        };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

#[cfg(test)]
#[path = "rounds_tests.rs"]
mod tests;
