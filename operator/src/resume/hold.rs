//! How long a stage has held, in sight of the operator, and whether what is watched still passes: without clock and
//! calls.

use std::{collections::BTreeMap, time::Duration};

use standfast_crds::v1alpha1::{CheckState, OnRegression, shorten};

use crate::sight::InSight;

/// How much held time may be lost with the process: that much at most is not written down.
pub const UNWRITTEN: Duration = Duration::from_secs(10);

/// Whether it is time to write the held time down.
pub fn to_write(written: Option<Duration>, held: Duration) -> bool {
    written.is_none_or(|w| held < w || held.saturating_sub(w) >= UNWRITTEN)
}

/// How many looks in a row passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Streak {
    passes: u32,
    looked: Option<Duration>,
}

impl Streak {
    /// For how long nothing is asked yet.
    pub fn due(&self, at: Duration, interval: Duration) -> Duration {
        left(self.looked, at, interval)
    }

    /// Takes a look into account, and tells how many have passed in a row.
    pub fn look(&mut self, at: Duration, passes: bool) -> u32 {
        self.looked = Some(at);
        self.passes = if passes { self.passes.saturating_add(1) } else { 0 };
        self.passes
    }
}

fn left(looked: Option<Duration>, at: Duration, interval: Duration) -> Duration {
    looked.map_or(Duration::ZERO, |l| interval.saturating_sub(at.saturating_sub(l)))
}

/// What becomes of a resume at a look, before its steps are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// Nothing: it has ended.
    Ended,
    /// What is written down as going wrong is halted for, whatever else is wanted.
    TakeBack,
    /// It is given up.
    Abort,
    /// Its steps go on.
    Advance,
}

/// Decides what becomes of a resume: `regressed` when something is written down that the system is halted again for.
pub fn course(finished: bool, regressed: bool, aborts: bool) -> Course {
    match (finished, regressed, aborts) {
        (true, _, false) => Course::Ended,
        (false, true, _) => Course::TakeBack,
        (_, _, true) => Course::Abort,
        (false, false, false) => Course::Advance,
    }
}

/// What a stage is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How long it must hold.
    pub need: Duration,
    /// The time between two looks.
    pub interval: Duration,
    /// How many looks in a row must fail.
    pub failures: u32,
    /// What a regression leads to.
    pub on: OnRegression,
}

/// One thing that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: CheckState,
    /// What was found.
    pub message: String,
    /// One look that finds it failing is enough: it tells of what is, and not of how well.
    pub at_once: bool,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The check, limit or step.
    pub check: String,
    /// What it said, with its value.
    pub message: String,
}

/// What a look means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The stage has held.
    Done,
    /// It goes on: in words.
    Holding(String),
    /// It goes wrong, and the system must be halted again.
    Regressed(Fault),
}

/// What this process knows of a stage that is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    held: InSight,
    looked: Option<Duration>,
    failures: BTreeMap<String, u32>,
    fault: Option<Fault>,
}

impl Stage {
    /// Goes on with a stage that has held so long, as it is written down.
    pub fn from(held: Duration) -> Self {
        Self { held: InSight::from(held), ..Self::default() }
    }

    /// How long it has held.
    pub fn held(&self) -> Duration {
        self.held.total()
    }

    /// What goes wrong at the moment.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// For how long there is nothing to look at: until the next look, or until the stage may have held.
    pub fn due(&self, at: Duration, rules: &Rules) -> Duration {
        let missing = rules.need.saturating_sub(self.held());
        let interval = if missing.is_zero() { rules.interval } else { rules.interval.min(missing) };
        left(self.looked, at, interval)
    }

    /// Takes a look into account that was begun `at`. While paused no time counts, and everything is watched all the
    /// same: the system trades.
    pub fn look(&mut self, at: Duration, seen: &[Watched], paused: bool, rules: &Rules) -> Verdict {
        self.looked = Some(at);
        self.failures.retain(|name, _| seen.iter().any(|w| w.name == *name && w.state != CheckState::Passing));
        let mut unwell = None;
        let mut fault = None;
        for watched in seen.iter().filter(|w| w.state != CheckState::Passing) {
            let count = self.failures.entry(watched.name.clone()).or_default();
            *count = count.saturating_add(1);
            let enough = *count >= rules.failures || (watched.at_once && watched.state == CheckState::Failing);
            if enough && fault.is_none() {
                fault = Some(Fault { check: watched.name.clone(), message: watched.message.clone() });
            }
            unwell = unwell.or_else(|| Some(say(watched, *count, rules.failures)));
        }
        self.held.look(at, unwell.is_none() && !paused, rules.interval);
        match (&fault, rules.on) {
            (Some(fault), OnRegression::ReHalt) => {
                self.fault = Some(fault.clone());
                return Verdict::Regressed(fault.clone());
            }
            (Some(_), OnRegression::Hold) => self.held = InSight::default(),
            _ => {}
        }
        // With a milder answer a regression is over when everything passes again.
        self.fault = fault.or_else(|| self.fault.take().filter(|_| unwell.is_some()));
        match unwell {
            Some(why) => Verdict::Holding(why),
            None if paused => Verdict::Holding("paused: its time does not count".into()),
            None if self.held() >= rules.need => Verdict::Done,
            None => Verdict::Holding(String::new()),
        }
    }
}

fn say(watched: &Watched, count: u32, of: u32) -> String {
    let state = if watched.state == CheckState::Unknown { "unknown" } else { "failing" };
    let often = if of > 1 { format!(" ({} of {of} times)", count.min(of)) } else { String::new() };
    shorten(&format!("{} is {state}{often}: {}", watched.name, watched.message))
}
