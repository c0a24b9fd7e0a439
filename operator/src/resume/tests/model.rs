//! A model of a resume with stages: random sequences of what may happen to one, against the real decisions and the
//! real engine's.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};
use standfast_crds::v1alpha1::{
    Approval, ApprovalRequirement, ApprovalSpec, ApprovalSubject, CheckState, Decision as Vow, OnRegression, StepState,
    StepStatus, SubjectKind,
};

use crate::{
    approval::{
        self,
        count::{Excluded, Subject, count},
    },
    engine::{Acted, Controls, Decision, Definition, End, Moment, Observation, decide, settle},
    resume::hold::{Course, Rules, Stage, Streak, Verdict, Watched, course, to_write},
};

/// How many sequences are tried.
const SEQUENCES: u64 = 100_000;
/// The time between two looks.
const INTERVAL: u64 = 5_000;
/// How long the stages are held, and the watch, in ms.
const NEEDS: [u64; 3] = [12_000, 7_000, 9_000];
const HOUR: i64 = 3_600_000;

/// The steps of the model: those of a resume, without those that only wait.
const STEPS: [&str; 9] = [
    "checks",
    "request-release",
    "small-limits",
    "small-workloads",
    "small-hold",
    "full-limits",
    "full-hold",
    "verify",
    "watch",
];

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What is outside the operator.
#[derive(Debug, Default)]
struct World {
    /// The time that passes, in ms, and what a wall clock shows beyond it.
    time: u64,
    clock: i64,
    votes: Vec<Vote>,
    well: bool,
    paused: bool,
    aborted: bool,
    /// The limit that the bot keeps to; somebody may have set another one.
    limit: u32,
    running: bool,
    released: bool,
    /// Halts that stand: by somebody else, and by the resume itself.
    halted: bool,
    halted_again: bool,
}

/// Somebody's decision: about this plan or about another one, for good or until it expires.
#[derive(Clone, Debug)]
struct Vote {
    who: u64,
    rejects: bool,
    of_this: bool,
    expires: Option<Timestamp>,
}

/// Who asked for the resume, and does not count.
const REQUESTER: u64 = 3;
/// How many must agree.
const NEEDED: usize = 2;

impl Vote {
    fn of(who: u64) -> Self {
        Self { who, rejects: false, of_this: true, expires: None }
    }

    fn approval(&self, number: usize) -> Approval {
        let mut approval = Approval::new(
            &format!("vote-{number}"),
            ApprovalSpec {
                subject: ApprovalSubject { kind: SubjectKind::TradingResume, name: "go".into(), uid: "uid".into() },
                hash: if self.of_this { "a" } else { "b" }.into(),
                breaks: vec![],
                decision: if self.rejects { Vow::Reject } else { Vow::Approve },
                approver: format!("person-{}", self.who),
                groups: vec![],
                comment: None,
                expires_at: self.expires.map(Time),
            },
        );
        approval.metadata.creation_timestamp = Some(Time(Timestamp::from_second(1).unwrap()));
        approval
    }

    fn counts(&self, now: Timestamp) -> bool {
        self.of_this && self.who != REQUESTER && self.expires.is_none_or(|t| t > now)
    }
}

impl World {
    /// As the operator counts.
    fn gates_open(&self, now: Timestamp) -> bool {
        let subject =
            Subject { kind: SubjectKind::TradingResume, name: "go".into(), uid: "uid".into(), hash: "a".into() };
        let requirement =
            ApprovalRequirement { count: u32::try_from(NEEDED).unwrap(), group: None, service_accounts: false };
        let excluded = Excluded { user: format!("person-{REQUESTER}"), because: "asked for it".into() };
        let rules = approval::count::Rules { requirements: vec![requirement], excluded: vec![excluded] };
        let approvals: Vec<_> = self.votes.iter().enumerate().map(|(n, vote)| vote.approval(n)).collect();
        self.well && count(&subject, &rules, &approvals, Timestamp::UNIX_EPOCH, now).met()
    }

    /// What has to be so, said in another way: two people agree, and nobody is against it.
    fn agreed(&self, now: Timestamp) -> bool {
        let (against, agree): (Vec<_>, Vec<_>) = self.votes.iter().filter(|v| v.counts(now)).partition(|v| v.rejects);
        against.is_empty() && agree.iter().map(|v| v.who).collect::<BTreeSet<_>>().len() >= NEEDED
    }
}

/// What is written down.
#[derive(Debug, Default)]
struct Disk {
    steps: Vec<StepStatus>,
    held: BTreeMap<&'static str, Duration>,
    requested: bool,
    regressed: bool,
    ended: Option<&'static str>,
}

/// What the operator's process knows.
#[derive(Default)]
struct Memory {
    gate: Streak,
    stages: BTreeMap<&'static str, Stage>,
    /// When the stage under way was first looked at, and the looks that passed: what the model believes itself.
    truth: BTreeMap<&'static str, Vec<(u64, bool)>>,
}

struct Model {
    world: World,
    disk: Disk,
    memory: Memory,
    waves: Vec<Vec<Definition>>,
    /// Looks of processes that are gone, and of this one: by stage, in lives.
    lives: BTreeMap<&'static str, Vec<Vec<(u64, bool)>>>,
    begun: BTreeMap<&'static str, u64>,
    on: OnRegression,
    crash: bool,
}

fn number(name: &str) -> usize {
    STEPS.iter().position(|s| *s == name).unwrap()
}

/// The stage of a hold, its limit, and how long it is held.
fn stage(name: &str) -> (u32, u64) {
    match name {
        "small-hold" => (1, NEEDS[0]),
        "full-hold" => (2, NEEDS[1]),
        _ => (2, NEEDS[2]),
    }
}

fn definition(name: &str) -> Definition {
    let timeout = (name == "small-workloads").then_some(Duration::from_secs(600));
    Definition { timeout, ..Definition::new(name) }
}

impl Model {
    fn new(dice: &mut Dice) -> Self {
        let on = match dice.below(4) {
            0 => OnRegression::Hold,
            1 => OnRegression::Notify,
            _ => OnRegression::ReHalt,
        };
        Self {
            world: World { well: true, ..World::default() },
            disk: Disk::default(),
            memory: Memory::default(),
            waves: STEPS.iter().map(|s| vec![definition(s)]).collect(),
            lives: BTreeMap::new(),
            begun: BTreeMap::new(),
            on,
            crash: false,
        }
    }

    fn wall(&self) -> Timestamp {
        let ms = i64::try_from(self.world.time).unwrap() + self.world.clock + 1_000 * HOUR;
        Timestamp::from_millisecond(ms).unwrap()
    }

    fn rules(&self, name: &str) -> Rules {
        let need = Duration::from_millis(stage(name).1);
        Rules { need, interval: Duration::from_millis(INTERVAL), failures: 2, on: self.on }
    }

    fn succeeded(&self, name: &str) -> bool {
        self.disk.steps.iter().any(|s| s.name == name && s.state == StepState::Succeeded)
    }

    /// The operator's process ends. What it knew is lost.
    fn die(&mut self) {
        for (name, looks) in std::mem::take(&mut self.memory).truth {
            self.lives.entry(name).or_default().push(looks);
        }
        self.crash = false;
    }

    /// The time that passed between two looks of one life that both passed: what may count at most.
    fn seen(&self, name: &str) -> u64 {
        let now = self.memory.truth.get(name);
        let lives = self.lives.get(name).into_iter().flatten().chain(now);
        lives.flat_map(|l| l.windows(2)).filter(|w| w[0].1 && w[1].1).map(|w| w[1].0 - w[0].0).sum()
    }

    fn hold(&mut self, name: &'static str) -> Observation {
        let (at, rules) = (Duration::from_millis(self.world.time), self.rules(name));
        let written = self.disk.held.get(name).copied().unwrap_or_default();
        let watched = self.memory.stages.entry(name).or_insert_with(|| Stage::from(written));
        if self.on == OnRegression::ReHalt && watched.fault().is_some() {
            return Observation::Failed("it went wrong".into());
        }
        if !watched.due(at, &rules).is_zero() {
            return Observation::InProgress(String::new());
        }
        self.begun.entry(name).or_insert(self.world.time);
        let state = |good| if good { CheckState::Passing } else { CheckState::Failing };
        let wanted = stage(name).0;
        let seen = [("api", self.world.well, false), ("limit", self.world.limit == wanted, true)]
            .map(|(n, good, at_once)| Watched { name: n.into(), state: state(good), message: String::new(), at_once });
        let passes = seen.iter().all(|w| w.state == CheckState::Passing) && !self.world.paused;
        self.memory.truth.entry(name).or_default().push((self.world.time, passes));
        let verdict = watched.look(at, &seen, self.world.paused, &rules);
        if self.on == OnRegression::Hold && watched.held().is_zero() && !passes {
            // What was seen before does not count any more.
            // Unless that is lost with the process: then nobody saw it.
            if watched.fault().is_some() && !self.crash {
                self.lives.remove(name);
                self.memory.truth.remove(name);
            }
        }
        if to_write(self.disk.held.get(name).copied(), watched.held()) {
            // A crash before the write loses it.
            if !self.crash {
                self.disk.held.insert(name, Duration::from_secs(watched.held().as_secs()));
            }
        }
        match verdict {
            Verdict::Holding(_) => Observation::InProgress(String::new()),
            Verdict::Regressed(_) => Observation::Failed("it went wrong".into()),
            Verdict::Done => {
                assert!(!self.world.paused, "{name} was left while paused");
                assert!(self.world.limit == wanted, "{name} was left with the limit {}", self.world.limit);
                let (need, seen) = (stage(name).1, self.seen(name));
                assert!(seen >= need, "{name} was held for {seen} ms, wanted {need}");
                let passed = self.world.time - self.begun[name];
                assert!(passed >= need, "{name} took {passed} ms, wanted {need}");
                Observation::Done(String::new())
            }
        }
    }

    fn observe(&mut self, name: &str) -> Observation {
        let name = STEPS[number(name)];
        let world = &self.world;
        match name {
            "checks" => {
                let at = Duration::from_millis(world.time);
                if !self.memory.gate.due(at, Duration::from_millis(INTERVAL)).is_zero() {
                    return Observation::InProgress(String::new());
                }
                let open = world.gates_open(self.wall());
                let enough = self.memory.gate.look(at, open) >= 2;
                if enough { Observation::Done(String::new()) } else { Observation::InProgress(String::new()) }
            }
            "request-release" => {
                let open = world.gates_open(self.wall()) && !world.paused && !world.aborted;
                if open { Observation::Done(String::new()) } else { Observation::InProgress(String::new()) }
            }
            "small-limits" | "full-limits" => {
                let wanted = 1 + u32::from(name == "full-limits");
                let there = world.limit == wanted;
                if there { Observation::Done(String::new()) } else { Observation::NotDone(String::new()) }
            }
            "small-workloads" => {
                if world.running {
                    Observation::Done(String::new())
                } else {
                    Observation::NotDone(String::new())
                }
            }
            "verify" if world.well => Observation::Done(String::new()),
            "verify" => Observation::InProgress(String::new()),
            _ => self.hold(name),
        }
    }

    fn act(&mut self, name: &str) -> Acted {
        // As every step does that starts or loosens something.
        if self.world.halted {
            return Acted::Again("halted again".into());
        }
        assert!(self.disk.requested, "{name} before the release");
        match name {
            "small-limits" => self.world.limit = 1,
            "full-limits" => {
                assert!(self.succeeded("small-hold"), "the limit is loosened before the stage has held");
                self.world.limit = 2;
            }
            "small-workloads" => {
                assert!(self.succeeded("small-limits"), "started before its limits");
                self.world.running = true;
            }
            _ => return Acted::Started { message: String::new(), external_ref: None },
        }
        Acted::Done(String::new())
    }

    /// Halts: at once, whoever does it.
    fn stop(&mut self) {
        self.world.running = false;
    }

    fn finish(&mut self, how: &'static str) {
        self.disk.ended = Some(how);
    }

    fn record(&mut self, steps: Vec<StepStatus>) -> bool {
        let asks = |s: &StepStatus| s.name == "request-release" && s.state == StepState::Succeeded;
        if steps.iter().any(asks) && !self.disk.requested {
            if self.world.paused || self.world.aborted {
                return false;
            }
            assert!(self.world.well && self.world.agreed(self.wall()), "released without the gates");
            self.disk.requested = true;
            self.world.released = true;
        }
        let failed = |s: &StepStatus| s.state == StepState::Failed;
        // The intent of halting again is in the same write.
        self.disk.regressed |= self.on == OnRegression::ReHalt && self.disk.requested && steps.iter().any(failed);
        self.disk.steps = steps;
        true
    }

    /// One look at the resume. Tells for how long there is nothing to do.
    fn tick(&mut self, dice: &mut Dice) -> u64 {
        match course(self.disk.ended.is_some(), self.disk.regressed, self.world.aborted && self.disk.ended.is_none()) {
            Course::Ended => return INTERVAL,
            Course::TakeBack => {
                self.world.halted_again |= !self.world.halted;
                self.stop();
                // Created, and the process ends before that is written down: the next one finds it.
                if !dice.one_in(4) {
                    self.finish("ReHalted");
                }
                return 0;
            }
            Course::Abort => {
                if self.disk.requested {
                    self.world.halted_again = true;
                    self.stop();
                }
                self.finish("Aborted");
                return 0;
            }
            Course::Advance => {}
        }
        if self.disk.requested && self.world.halted {
            self.finish("halted again by somebody");
            return 0;
        }
        let controls = Controls { paused: self.world.paused };
        let (now, run) = (self.wall(), "run");
        let at = Moment { now, epoch: 1, run };
        let mut decision = decide(&self.waves, &self.disk.steps, &BTreeMap::new(), at, controls);
        if let Decision::Observe(names) = &decision {
            let observed = names.iter().map(|n| (n.clone(), self.observe(n))).collect();
            decision = decide(&self.waves, &self.disk.steps, &observed, at, controls);
        }
        match decision {
            Decision::Wait(time) => u64::try_from(time.as_millis()).unwrap().min(2_000),
            Decision::Observe(_) | Decision::Superseded => 100,
            Decision::Paused => 10_000,
            Decision::Ended(End::Succeeded) => {
                self.finish("Completed");
                0
            }
            Decision::Ended(_) => {
                self.finish("Failed");
                0
            }
            Decision::Record { steps, begin, wait } => {
                if self.crash && dice.one_in(2) || !self.record(steps) {
                    return 200;
                }
                for name in begin {
                    let definition = definition(&name);
                    let entry = |m: &Self| m.disk.steps.iter().find(|s| s.name == name).cloned().unwrap();
                    let intent = entry(self);
                    if self.crash && dice.one_in(2) {
                        return 200;
                    }
                    let acted = match self.observe(&name) {
                        Observation::Done(text) => Acted::Done(text),
                        Observation::Failed(text) => Acted::Failed(text),
                        Observation::InProgress(message) => Acted::Started { message, external_ref: None },
                        _ => self.act(&name),
                    };
                    // The call took effect, and nobody wrote that down.
                    if self.crash {
                        return 200;
                    }
                    let result = settle(&definition, &intent, &acted, self.wall());
                    let mut steps = self.disk.steps.clone();
                    steps.iter_mut().filter(|s| s.name == name).for_each(|s| *s = result.clone());
                    self.record(steps);
                }
                wait.map_or(0, |w| u64::try_from(w.as_millis()).unwrap().min(2_000))
            }
        }
    }

    /// Something happens.
    fn event(&mut self, dice: &mut Dice) {
        let now = self.wall();
        let world = &mut self.world;
        match dice.below(24) {
            0..=3 => {
                let soon = now + SignedDuration::from_millis(i64::try_from(dice.below(60_000)).unwrap());
                let expires = dice.one_in(5).then_some(soon);
                let who = dice.below(REQUESTER + 1);
                world.votes.push(Vote { of_this: !dice.one_in(6), expires, ..Vote::of(who) });
            }
            // Somebody withdraws what he said.
            4 if !world.votes.is_empty() => {
                let which = usize::try_from(dice.below(u64::try_from(world.votes.len()).unwrap())).unwrap();
                world.votes.remove(which);
            }
            5 if dice.one_in(4) => {
                let who = dice.below(REQUESTER + 1);
                world.votes.push(Vote { rejects: true, of_this: !dice.one_in(3), ..Vote::of(who) });
            }
            6 | 7 => world.well = false,
            8..=11 => world.well = true,
            12 => world.clock += HOUR,
            13 => world.clock -= HOUR,
            14 => world.paused = !world.paused,
            15 => world.aborted |= dice.one_in(4),
            16 if dice.one_in(4) => {
                world.halted = true;
                self.stop();
            }
            // Somebody changes the bot's limit, or its pod starts anew with its own.
            17 if dice.one_in(4) => world.limit = u32::try_from(dice.below(4)).unwrap(),
            18 => self.die(),
            19 => self.crash = true,
            20 => world.time += 60_000,
            _ => {}
        }
    }

    /// What must be true after everything that happens.
    fn check(&self) {
        let world = &self.world;
        if world.running {
            assert!(world.released && self.disk.requested, "trading without the gates");
            assert!(!world.halted && !world.halted_again, "trading under a halt");
        }
        for (before, after) in STEPS.iter().zip(&STEPS[1..]) {
            assert!(!self.succeeded(after) || self.succeeded(before), "{after} before {before}");
        }
        match self.disk.ended {
            Some("Completed") => assert!(self.succeeded("watch")),
            Some("ReHalted") => assert!(world.halted || world.halted_again, "nobody halted again"),
            Some("Aborted") if self.disk.requested => assert!(world.halted_again, "aborted and not halted again"),
            _ => {}
        }
    }
}

fn sequence(seed: u64) -> &'static str {
    let mut dice = Dice(seed);
    let mut model = Model::new(&mut dice);
    // Most go as far as the stages.
    model.world.votes = (0..dice.below(3)).map(Vote::of).collect();
    let events = 4 + dice.below(12);
    for _ in 0..events {
        let mut left = dice.below(12_000);
        for _ in 0..12 {
            let wait = model.tick(&mut dice);
            if model.crash {
                model.die();
            }
            model.check();
            if wait > 0 {
                let wait = wait.min(left.max(1));
                model.world.time += wait;
                left = left.saturating_sub(wait);
            }
            if model.disk.ended.is_some() || left == 0 {
                break;
            }
        }
        if model.disk.ended.is_some() {
            break;
        }
        model.event(&mut dice);
        model.check();
    }
    model.disk.ended.unwrap_or(if model.disk.requested { "in a stage" } else { "at the gates" })
}

/// Runs the sequence. When it fails, it says how to repeat it.
fn repeatable(seed: u64) -> &'static str {
    std::panic::catch_unwind(|| sequence(seed)).unwrap_or_else(|error| {
        eprintln!("repeat it with STANDFAST_MODEL_SEED={seed}");
        std::panic::resume_unwind(error)
    })
}

/// S0-29, S0-63, S1-36: never a stage shorter than declared, never a limit looser than the stage's, never trading
/// without the gates, and halting wins.
#[test]
fn whatever_happens_no_stage_is_shorter_or_looser_than_declared() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let given = std::env::var("STANDFAST_MODEL_SEED").ok().and_then(|s| s.parse::<u64>().ok());
    let first = given.unwrap_or_else(|| u64::try_from(now % u128::from(u64::MAX)).unwrap());
    println!("STANDFAST_MODEL_SEED={first}");
    let begun = Instant::now();
    let mut ends = BTreeMap::<_, u64>::new();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|own| {
                let seeds = (0..SEQUENCES).filter(move |n| n % threads == own).map(|n| first.wrapping_add(n));
                scope.spawn(|| seeds.map(repeatable).collect::<Vec<_>>())
            })
            .collect();
        for thread in all {
            match thread.join() {
                Ok(some) => some.into_iter().for_each(|end| *ends.entry(end).or_default() += 1),
                Err(error) => std::panic::resume_unwind(error),
            }
        }
    });
    println!("{SEQUENCES} sequences in {:?}: {ends:?}", begun.elapsed());
    // They come to every place that matters.
    for end in ["Completed", "ReHalted", "Aborted", "halted again by somebody", "in a stage", "at the gates"] {
        assert!(ends.get(end).is_some_and(|n| *n > SEQUENCES / 500), "too few {end}: {ends:?}");
    }
}

/// In good weather it comes to its end, in just the time that its stages take and no more than a few looks longer.
#[test]
fn in_good_weather_it_completes_in_time() {
    let mut dice = Dice(1);
    let mut model = Model::new(&mut dice);
    model.world.votes = vec![Vote::of(0), Vote::of(1)];
    while model.disk.ended.is_none() {
        let wait = model.tick(&mut dice);
        model.world.time += wait;
        model.check();
        assert!(model.world.time < NEEDS.iter().sum::<u64>() + INTERVAL * 8, "it hangs: {:?}", model.disk);
    }
    assert_eq!(model.disk.ended, Some("Completed"));
    assert!(model.world.time >= NEEDS.iter().sum::<u64>());
}
