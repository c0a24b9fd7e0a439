//! A world that fails, and a run in it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures::future::{Either, select};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use proptest::prelude::*;
use standfast_crds::v1alpha1::{StepState, StepStatus};
use tokio::sync::Notify;

use super::tables::{NOW, at, running};
use crate::engine::*;

/// What happens at one call. Drawn at random; calls beyond the list succeed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// The process ends before the call.
    CrashBefore,
    /// The call takes effect, and the process ends.
    CrashAfter,
    /// The call fails, without effect.
    Error,
    /// The call takes effect, and the answer is lost.
    Lost,
    /// The process ends, and the call takes effect later, within the time it may take.
    CrashLate,
    /// Somebody else changes the object first.
    Conflict,
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        6 => Just(Fault::None),
        1 => Just(Fault::CrashBefore),
        1 => Just(Fault::CrashAfter),
        1 => Just(Fault::Error),
        1 => Just(Fault::Lost),
        1 => Just(Fault::CrashLate),
        1 => Just(Fault::Conflict),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Only waits.
    Gate,
    /// May be repeated.
    Level,
    /// Happens once and can be read.
    Once,
    /// Happens once and can never be read.
    Blind,
    /// Happens once, takes its time and can be read.
    Long,
}

const STEPS: [(&str, Kind, usize); 7] = [
    ("gate", Kind::Gate, 0),
    ("once", Kind::Once, 1),
    ("blind", Kind::Blind, 1),
    ("long", Kind::Long, 2),
    ("level", Kind::Level, 3),
    ("other", Kind::Once, 3),
    ("last", Kind::Blind, 4),
];

#[derive(Default)]
struct World {
    now: i64,
    version: u64,
    stored: Vec<StepStatus>,
    faults: VecDeque<Fault>,
    effects: BTreeMap<&'static str, Vec<String>>,
    /// Effects still on their way: when, of what, under which key.
    coming: Vec<(i64, &'static str, String)>,
    looks: BTreeMap<&'static str, u32>,
    violations: Vec<String>,
}

impl World {
    fn next(&mut self) -> Fault {
        self.faults.pop_front().unwrap_or(Fault::None)
    }

    fn pass(&mut self, micros: i64) {
        self.now += micros;
        let now = self.now;
        let due: Vec<_> = self.coming.extract_if(.., |(t, _, _)| *t <= now).collect();
        for (_, step, key) in due {
            self.effect(step, key);
        }
    }

    fn effect(&mut self, step: &'static str, key: String) {
        let intended = self.stored.iter().any(|e| e.operation_id.as_deref() == Some(&key));
        if !intended {
            self.violations.push(format!("effect {key} without an intent"));
        }
        self.effects.entry(step).or_default().push(key);
    }

    fn write(&mut self, steps: Vec<StepStatus>) {
        for old in &self.stored {
            let new = steps.iter().find(|e| e.name == old.name);
            if new.is_none_or(|n| progress(n) < progress(old)) {
                self.violations.push(format!("the journal went back: {old:?} to {new:?}"));
            }
        }
        // A wave begins only when the one before it is done.
        let passed = |wave| {
            let mut earlier = STEPS.iter().filter(|s| s.2 < wave);
            earlier.all(|s| steps.iter().any(|e| e.name == s.0 && e.state == StepState::Succeeded))
        };
        for (name, _, wave) in STEPS {
            if steps.iter().any(|e| e.name == name && e.state == StepState::Running) && !passed(wave) {
                self.violations.push(format!("{name} began too early"));
            }
        }
        // As the API server gives it back.
        self.stored = serde_json::from_value(serde_json::to_value(steps).unwrap()).unwrap();
        self.version += 1;
    }
}

#[derive(Clone)]
struct Shared(Arc<Mutex<World>>, Arc<Notify>);

impl Shared {
    async fn crash<T>(&self) -> T {
        self.1.notify_one();
        std::future::pending().await
    }
}

struct FakeStep(&'static str, Kind, Shared);

#[async_trait]
impl Step for FakeStep {
    fn definition(&self) -> Definition {
        Definition { repeatable: matches!(self.1, Kind::Gate | Kind::Level), ..Definition::new(self.0) }
    }

    async fn observe(&self, _: &StepStatus) -> Observation {
        let fault = {
            let mut world = self.2.0.lock().unwrap();
            world.pass(1_000);
            world.next()
        };
        match fault {
            Fault::CrashBefore | Fault::CrashAfter | Fault::CrashLate => return self.2.crash().await,
            Fault::Error | Fault::Lost => return Observation::Unknown("the read failed".into()),
            Fault::None | Fault::Conflict => {}
        }
        let mut world = self.2.0.lock().unwrap();
        let happened = world.effects.contains_key(self.0);
        let looks = *world.looks.entry(self.0).and_modify(|l| *l += u32::from(happened)).or_default();
        match self.1 {
            Kind::Blind => Observation::Unknown("there is nothing to read".into()),
            _ if !happened => Observation::NotDone("not there".into()),
            Kind::Gate | Kind::Long if looks < 3 => Observation::InProgress(format!("{looks} of 3")),
            _ => Observation::Done("there".into()),
        }
    }

    async fn act(&self, entry: &StepStatus) -> Acted {
        let key = entry.operation_id.clone().unwrap();
        let fault = {
            let mut world = self.2.0.lock().unwrap();
            world.pass(1_000);
            let fault = world.next();
            match fault {
                Fault::None | Fault::CrashAfter | Fault::Lost => world.effect(self.0, key),
                Fault::CrashLate => {
                    let due = world.now + 3_900_000;
                    world.coming.push((due, self.0, key));
                }
                Fault::Error | Fault::CrashBefore | Fault::Conflict => {}
            }
            fault
        };
        match fault {
            Fault::CrashBefore | Fault::CrashAfter | Fault::CrashLate => self.2.crash().await,
            Fault::Lost => Acted::Unknown("no answer".into()),
            Fault::Error | Fault::Conflict => Acted::Again("refused".into()),
            Fault::None => match self.1 {
                Kind::Level | Kind::Blind | Kind::Once => Acted::Done("done".into()),
                Kind::Gate | Kind::Long => Acted::Started { message: "begun".into(), external_ref: None },
            },
        }
    }
}

struct FakeJournal(Shared, Vec<StepStatus>, u64);

#[async_trait]
impl Journal for FakeJournal {
    fn steps(&self) -> Vec<StepStatus> {
        self.1.clone()
    }

    async fn record(&mut self, steps: Vec<StepStatus>) -> Result<(), JournalError> {
        let fault = {
            let mut world = self.0.0.lock().unwrap();
            world.pass(1_000);
            let fault = world.next();
            if fault == Fault::Conflict {
                world.version += 1;
            }
            if fault != Fault::CrashBefore && fault != Fault::Error {
                if world.version != self.2 {
                    return Err(JournalError::Conflict("changed in between".into()));
                }
                world.write(steps);
                self.2 = world.version;
                self.1 = world.stored.clone();
            }
            fault
        };
        match fault {
            Fault::CrashBefore | Fault::CrashAfter | Fault::CrashLate => self.0.crash().await,
            Fault::Error | Fault::Lost => Err(JournalError::Failed("no answer".into())),
            Fault::None | Fault::Conflict => Ok(()),
        }
    }

    async fn reload(&mut self) -> Result<(), JournalError> {
        let fault = self.0.0.lock().unwrap().next();
        match fault {
            Fault::CrashBefore | Fault::CrashAfter | Fault::CrashLate => self.0.crash().await,
            Fault::Error | Fault::Lost => Err(JournalError::Failed("no answer".into())),
            Fault::None | Fault::Conflict => {
                let world = self.0.0.lock().unwrap();
                (self.1, self.2) = (world.stored.clone(), world.version);
                Ok(())
            }
        }
    }
}

struct Epoch(i64);

impl Term for Epoch {
    fn epoch(&self) -> i64 {
        self.0
    }

    fn allows(&self, _: Duration) -> Result<(), String> {
        Ok(())
    }
}

/// Drives a run to its end; none when it does not come.
async fn live(faults: Vec<Fault>, successors: Vec<bool>) -> (Option<End>, Shared) {
    let world = World { now: NOW * 1_000_000, faults: faults.into(), ..World::default() };
    let shared = Shared(Arc::new(Mutex::new(world)), Arc::default());
    let end = drive(&shared, successors).await;
    shared.0.lock().unwrap().pass(60_000_000);
    (end, shared)
}

async fn drive(shared: &Shared, successors: Vec<bool>) -> Option<End> {
    let mut procedure: Procedure = vec![];
    for (name, kind, wave) in STEPS {
        procedure.resize_with(procedure.len().max(wave + 1), Vec::new);
        procedure[wave].push(Box::new(FakeStep(name, kind, shared.clone())));
    }
    let mut successors = successors.into_iter();
    let mut epoch = 1;
    for _ in 0..600 {
        let mut journal = {
            let world = shared.0.lock().unwrap();
            FakeJournal(shared.clone(), world.stored.clone(), world.version)
        };
        let clock = || Timestamp::from_microsecond(shared.0.lock().unwrap().now).unwrap();
        let term = Epoch(epoch);
        let run = std::pin::pin!(advance(&procedure, &mut journal, "u", &term, &clock, Controls::default()));
        let crash = std::pin::pin!(shared.1.notified());
        let wait = match select(run, crash).await {
            Either::Left((Ok(Advance::Ended(end)), _)) => return Some(end),
            Either::Left((Ok(Advance::Wait(time)), _)) => i64::try_from(time.as_micros()).unwrap(),
            Either::Left((Ok(Advance::Moved), _)) => 0,
            Either::Left((Ok(Advance::Paused), _)) => panic!("nobody paused it"),
            Either::Left((Err(_), _)) => 500_000,
            Either::Right(_) => {
                epoch += i64::from(successors.next().unwrap_or(true));
                300_000
            }
        };
        shared.0.lock().unwrap().pass(wait.max(1_000));
    }
    None
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// A gate says something else at each look, and is asked at its interval all the same.
#[test]
fn what_only_says_something_new_is_asked_at_its_interval() {
    let shared = Shared(Arc::default(), Arc::default());
    {
        let mut world = shared.0.lock().unwrap();
        (world.now, world.stored) = (NOW * 1_000_000, vec![running("gate", None, 1)]);
        world.effects.insert("gate", vec!["u/gate/1".into()]);
    }
    let procedure: Procedure = vec![vec![Box::new(FakeStep("gate", Kind::Gate, shared.clone()))]];
    let mut journal = FakeJournal(shared.clone(), shared.0.lock().unwrap().stored.clone(), 0);
    for said in ["0 of 3", "1 of 3"] {
        let clock = || at(NOW);
        let run = advance(&procedure, &mut journal, "u", &Epoch(1), &clock, Controls::default());
        assert_eq!(block_on(run), Ok(Advance::Wait(Duration::from_secs(2))));
        assert_eq!(journal.1[0].message.as_deref(), Some(said));
    }
}

/// A term that lasts so long.
struct Lasting(Duration);

impl Term for Lasting {
    fn epoch(&self) -> i64 {
        1
    }

    fn allows(&self, needed: Duration) -> Result<(), String> {
        if needed < self.0 { Ok(()) } else { Err("too short".into()) }
    }
}

/// One look at a step that is under way and done.
fn record_done(term: Duration) -> (Result<Advance, RunError>, StepState) {
    let shared = Shared(Arc::default(), Arc::default());
    {
        let mut world = shared.0.lock().unwrap();
        (world.now, world.stored) = (NOW * 1_000_000, vec![running("once", None, 1)]);
        world.effects.insert("once", vec!["u/once/1".into()]);
    }
    let procedure: Procedure = vec![vec![Box::new(FakeStep("once", Kind::Once, shared.clone()))]];
    let mut journal = FakeJournal(shared.clone(), shared.0.lock().unwrap().stored.clone(), 0);
    let (clock, term) = (|| at(NOW), Lasting(term));
    let run = advance(&procedure, &mut journal, "u", &term, &clock, Controls::default());
    (block_on(run), shared.0.lock().unwrap().stored[0].state)
}

#[test]
fn what_was_seen_is_recorded_only_while_the_lease_outlasts_the_write() {
    assert_eq!(record_done(Duration::from_secs(5)), (Ok(Advance::Moved), StepState::Succeeded));
    let refused = Err(RunError::NotAllowed("too short".into()));
    assert_eq!(record_done(Duration::from_secs(4)), (refused, StepState::Running));
}

/// The first attempt of a step whose call may take 5 s, in a term that is just too short for that.
fn first_attempt(within_lease: bool) -> (StepState, usize) {
    let shared = Shared(Arc::default(), Arc::default());
    shared.0.lock().unwrap().now = NOW * 1_000_000;
    let procedure: Procedure =
        vec![vec![Box::new(Leased(FakeStep("level", Kind::Level, shared.clone()), within_lease))]];
    let mut journal = FakeJournal(shared.clone(), vec![], 0);
    let (clock, term) = (|| at(NOW), Lasting(Duration::from_millis(4500)));
    let run = advance(&procedure, &mut journal, "u", &term, &clock, Controls::default());
    assert_eq!(block_on(run), Ok(Advance::Moved));
    let world = shared.0.lock().unwrap();
    (world.stored[0].state, world.effects.get("level").map_or(0, Vec::len))
}

struct Leased(FakeStep, bool);

#[async_trait]
impl Step for Leased {
    fn definition(&self) -> Definition {
        Definition { within_lease: self.1, call: Duration::from_secs(5), ..self.0.definition() }
    }

    async fn observe(&self, entry: &StepStatus) -> Observation {
        self.0.observe(entry).await
    }

    async fn act(&self, entry: &StepStatus) -> Acted {
        self.0.act(entry).await
    }
}

#[test]
fn what_undoes_a_halt_is_begun_only_while_the_lease_outlasts_it() {
    assert_eq!(first_attempt(false), (StepState::Succeeded, 1));
    assert_eq!(first_attempt(true), (StepState::Pending, 0));
}

#[test]
fn a_run_without_faults_does_everything_once() {
    let (end, shared) = block_on(live(vec![], vec![]));
    assert_eq!(end, Some(End::Succeeded));
    let world = shared.0.lock().unwrap();
    assert_eq!(world.violations, Vec::<String>::new());
    assert!(STEPS.iter().all(|s| world.effects[s.0].len() == 1), "{:?}", world.effects);
}

/// Every fault at every call, alone and with every fault at the next one.
#[test]
fn a_single_fault_at_any_call_leads_to_the_same_end_or_asks_for_a_person() {
    let faults = [Fault::CrashBefore, Fault::CrashAfter, Fault::Error, Fault::Lost, Fault::CrashLate, Fault::Conflict];
    let mut plans = 0;
    for call in 0..60 {
        for first in faults {
            for second in [Fault::None].into_iter().chain(faults) {
                let mut list = vec![Fault::None; call];
                list.extend([first, second]);
                check(list, vec![plans % 2 == 0]).unwrap();
                plans += 1;
            }
        }
    }
    println!("{plans} plans");
}

fn check(faults: Vec<Fault>, successors: Vec<bool>) -> Result<(), TestCaseError> {
    let (end, shared) = block_on(live(faults, successors));
    let world = shared.0.lock().unwrap();
    prop_assert_eq!(&world.violations, &Vec::<String>::new());
    prop_assert!(end.is_some(), "no end: {:?}", world.stored);
    for (name, kind, _) in STEPS {
        let keys = world.effects.get(name).cloned().unwrap_or_default();
        if matches!(kind, Kind::Once | Kind::Blind | Kind::Long) {
            prop_assert!(keys.len() <= 1, "{} happened {:?}", name, keys);
        }
        if end == Some(End::Succeeded) {
            prop_assert!(!keys.is_empty(), "{} did not happen", name);
        }
    }
    match end {
        Some(End::Succeeded) => {}
        // Only what can never be read may ask for a person.
        Some(End::Indeterminate(name)) => {
            prop_assert!(STEPS.iter().any(|s| s.0 == name && s.1 == Kind::Blind), "{}", name);
        }
        other => prop_assert!(false, "{:?}", other),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_faults_lead_to_the_same_end_or_ask_for_a_person(
        faults in prop::collection::vec(fault(), 0..120),
        successors in prop::collection::vec(any::<bool>(), 0..40),
    ) {
        check(faults, successors)?;
    }

    #[test]
    fn deciding_is_total(
        states in prop::collection::vec((0..6usize, 0..4i64, -90..90i64, any::<bool>(), 0..4i64, any::<bool>()), 7),
        seen in prop::collection::vec(0..8usize, 7),
        (paused, abort) in any::<(bool, bool)>(),
    ) {
        use StepState::{Failed, Indeterminate, Pending, Running, Skipped, Succeeded};
        let mut waves: Vec<Vec<Definition>> = vec![];
        let (mut journal, mut observed) = (vec![], BTreeMap::new());
        for ((name, kind, wave), ((state, attempts, deadline, open, epoch, late), seen)) in
            STEPS.into_iter().zip(states.into_iter().zip(seen))
        {
            waves.resize_with(waves.len().max(wave + 1), Vec::new);
            let until = late.then(|| at(NOW - 5));
            waves[wave].push(Definition { repeatable: kind == Kind::Level, until, ..Definition::new(name) });
            let state = [Pending, Running, Succeeded, Failed, Skipped, Indeterminate][state];
            let attempts = if state == Running { attempts + 1 } else { attempts };
            let mut entry = running(name, open.then_some(NOW + deadline), epoch);
            entry.finished_at = (state != Running && attempts > 0).then(|| MicroTime(at(NOW - 10)));
            journal.push(StepStatus { state, attempts, ..entry });
            let text = || String::from("x");
            observed.extend([
                None,
                Some(Observation::Done(text())),
                Some(Observation::NotNeeded(text())),
                Some(Observation::NotDone(text())),
                Some(Observation::InProgress(text())),
                Some(Observation::Unknown(text())),
                Some(Observation::Failed(text())),
                Some(Observation::Indeterminate(text())),
            ][seen].clone().map(|o| (name.to_owned(), o)));
        }
        let moment = Moment { now: at(NOW), epoch: 3, run: "u" };
        let controls = Controls { paused, abort };
        if let Decision::Record { steps, begin, .. } = decide(&waves, &journal, &observed, moment, controls) {
            prop_assert_ne!(&steps, &journal);
            prop_assert!(!paused || begin.is_empty());
            for (old, new) in journal.iter().zip(&steps) {
                prop_assert!(progress(new) >= progress(old), "{:?} to {:?}", old, new);
                prop_assert!(!old.state.is_final() || old == new);
            }
        }
    }
}
