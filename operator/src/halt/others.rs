//! What others do at a venue: held halts of the same system, which add up and are not to work against each other, and
//! resumes, which a halt wins over.

use std::{borrow::Borrow, time::Duration};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use standfast_crds::v1alpha1::{HaltPolicy, PositionAction, StepState, TradingHalt, TradingHaltStatus, TradingResume};

use super::{act, closing, selection};
use crate::{
    held,
    resume::{Subject, status::step},
};

/// How long after its end a call that allowed trading is thought of: this process may hear late of it.
const LATE: Duration = Duration::from_secs(10);
/// The same for a Job that was deleted: its Pod has 30 s to end.
const ENDING: Duration = Duration::from_secs(45);

/// Whether a resume of this system may be making `venue` accept orders, or may have done so a moment ago: trading that is
/// suspended by then may be allowed again afterwards.
pub fn allowing(venue: &str, resumes: &[impl Borrow<TradingResume>], system: &str, now: Timestamp) -> bool {
    let of_venue = |name: &str| {
        let rest = name.strip_prefix(step::ALLOW_TRADING).and_then(|n| n.strip_prefix(venue));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let lately = |at: &Option<MicroTime>, within: Duration| {
        at.as_ref().is_some_and(|at| now.duration_since(at.0).unsigned_abs() < within)
    };
    resumes.iter().map(Borrow::borrow).any(|resume| {
        let Some(status) = &resume.status else { return false };
        let mut steps = status.steps.iter().filter(|e| e.attempts > 0 && of_venue(&e.name));
        let may = steps.any(|e| match (e.state, &e.deadline) {
            (StepState::Running, Some(deadline)) if deadline.0 > now => true,
            // Begun: a Job, for example.
            (StepState::Running, None) if status.finished_at.is_none() => true,
            (StepState::Succeeded | StepState::Skipped, _) => lately(&e.finished_at, LATE),
            _ => lately(&e.finished_at, LATE) || lately(&status.finished_at, ENDING),
        });
        // Whose plan cannot be read may be of this system.
        may && Subject::read(resume).map_or(true, |subject| subject.system.name == system)
    })
}

/// Where an open order may be a close that a halt has sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClosesIn {
    /// Nowhere: no close was sent, or all of them are done.
    #[default]
    Nothing,
    /// In these symbols.
    Symbols(Vec<String>),
    /// In every symbol that is held.
    Whatever,
}

impl ClosesIn {
    /// What a halt closes at `venue`, as far as its status tells.
    pub fn of(status: &TradingHaltStatus, venue: &str) -> Self {
        if act::close_attempts(status, venue) == 0 {
            return Self::Nothing;
        }
        let selection = status.venues.iter().find(|v| v.name == venue).and_then(|v| v.selection.as_ref());
        match selection.map(selection::closing_symbols) {
            None => Self::Whatever,
            Some(symbols) if symbols.is_empty() => Self::Nothing,
            Some(symbols) => Self::Symbols(symbols),
        }
    }

    /// What another halt closes too.
    pub fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Whatever, _) | (_, Self::Nothing) => {}
            (Self::Symbols(symbols), Self::Symbols(more)) => symbols.extend(more),
            (_, other) => *self = other,
        }
    }
}

/// What the others do at one venue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// One of them is closing positions and is not done: this halt leaves that to it, and does not suspend trading.
    pub closing: bool,
    /// One of them has sent closes: an open order may be a close.
    pub close_intended: bool,
    /// Where such an order would be.
    pub closes_in: ClosesIn,
    /// One of them has suspended trading.
    pub suspended: bool,
    /// When one of them, held or released, last allowed trading so that it could close positions.
    pub allowed_at: Option<Timestamp>,
}

impl Others {
    /// Whether a halt that saw this may still begin to close when it is so `now`.
    pub fn leaves_the_same(&self, now: &Self) -> bool {
        (self.closing || !now.closing) && (self.close_intended || !now.close_intended)
    }

    /// What the others among `halts` do at `venue`.
    pub fn at(venue: &str, halts: &[impl Borrow<TradingHalt>], halt: &TradingHalt, policy: &HaltPolicy) -> Self {
        let all = || halts.iter().map(Borrow::borrow);
        let of_system = |h: &&TradingHalt| {
            held::holds(h) && h.metadata.uid != halt.metadata.uid && h.spec.halts(halt.spec.system())
        };
        let statuses = || all().filter(of_system).filter_map(|h| Some((h, h.status.as_ref()?)));
        // Of several that close, the oldest does, so that nothing is closed twice.
        let age = |h: &TradingHalt| (h.metadata.creation_timestamp.clone(), h.metadata.uid.clone());
        // What people allowed counts when it is written down, and nothing is closed before.
        let allowed = |h: &TradingHalt| {
            let approved = h.status.as_ref().is_some_and(|s| !s.approvals.is_empty());
            closing::allowed(&h.spec, policy, approved).is_some()
        };
        let closes = allowed(halt);
        // One that closes all goes before those that select: they would wait for each other, or close too little.
        let before = |other: &TradingHalt| {
            let all = |h: &TradingHalt| h.spec.positions.action == PositionAction::CloseAll;
            if all(other) == all(halt) { age(other) < age(halt) } else { all(other) }
        };
        let closing = |(other, status): (&TradingHalt, &TradingHaltStatus)| {
            allowed(other)
                && (!closes || before(other))
                && !closing::finished(status)
                && status.venues.iter().any(|v| v.name == venue && v.open_positions != Some(0))
        };
        Self {
            closing: statuses().any(closing),
            close_intended: statuses().any(|(_, s)| act::close_attempts(s, venue) > 0),
            closes_in: statuses().fold(ClosesIn::Nothing, |mut all, (_, s)| {
                all.add(ClosesIn::of(s, venue));
                all
            }),
            suspended: statuses().any(|(_, s)| act::suspends(s, venue)),
            allowed_at: all()
                .filter(|h| h.metadata.uid != halt.metadata.uid && h.spec.halts(halt.spec.system()))
                .filter_map(|h| act::last_tried(h.status.as_ref()?, venue, "allowTrading"))
                .max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::halt::memory::VenueMemory;

    fn halt(name: &str, second: u32, action: &str, status: Value) -> TradingHalt {
        let mut halt = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt",
            "metadata": {"name": name, "uid": name, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
            "spec": {"systemRef": {"name": "bots"}, "reason": "a test", "positions": {"action": action}},
            "status": {"latch": {"held": true, "configMap": "x"}, "venues": [{"name": "alpaca", "openPositions": 2}]}});
        for (key, value) in status.as_object().unwrap() {
            halt["status"][key] = value.clone();
        }
        serde_json::from_value(halt).unwrap()
    }

    fn at(halts: &[TradingHalt], halt: &TradingHalt) -> Others {
        let policy = serde_json::from_value(json!({"allowedPositionActions": ["Keep", "CloseAll"]})).unwrap();
        Others::at("alpaca", halts, halt, &policy)
    }

    #[test]
    fn the_oldest_that_closes_does_until_the_venue_is_flat() {
        let keep = halt("keep", 1, "Keep", json!({}));
        let (old, new) = (halt("old", 2, "CloseAll", json!({})), halt("new", 3, "CloseAll", json!({})));
        let all = [keep.clone(), old.clone(), new.clone()];
        assert_eq!([&keep, &old, &new].map(|h| at(&all, h).closing), [true, false, true]);
        let flat = halt("old", 2, "CloseAll", json!({"venues": [{"name": "alpaca", "openPositions": 0}]}));
        assert_eq!([&keep, &new].map(|h| at(&[keep.clone(), flat.clone(), new.clone()], h).closing), [true, false]);
        assert!(!at(&[keep.clone(), flat], &keep).closing);
        let released = halt("old", 2, "CloseAll", json!({"latch": {"held": false, "configMap": "x"}}));
        assert!(!at(&[keep.clone(), released], &keep).closing);
    }

    #[test]
    fn one_that_closes_all_goes_before_those_that_select_and_one_that_is_done_holds_nobody_up() {
        let policy = json!({"allowedPositionActions": ["Keep", "CloseAll", "CloseMatching", "ReduceTo"]});
        let policy = serde_json::from_value(policy).unwrap();
        let said = |reason: &str| {
            json!({"conditions": [{"type": "PositionsClosed", "status": "False", "reason": reason, "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]})
        };
        let closing = |all: &[&TradingHalt], halt: &TradingHalt| {
            let all: Vec<_> = all.iter().map(|h| (*h).clone()).collect();
            Others::at("alpaca", &all, halt, &policy).closing
        };
        let some = halt("some", 1, "CloseMatching", said("Closing"));
        let (more, all) = (halt("more", 2, "ReduceTo", json!({})), halt("all", 3, "CloseAll", json!({})));
        assert!(!closing(&[&some, &more, &all], &all), "it waits for nobody");
        assert!(closing(&[&some, &all], &some), "the older one waits for it");
        assert!(closing(&[&some, &more], &more) && !closing(&[&some, &more], &some), "the older of two that select");
        for reason in ["NotJudged", "SelectionNotPossible"] {
            let done = halt("some", 1, "CloseMatching", said(reason));
            assert!(!closing(&[&done, &more], &more), "{reason}");
        }
    }

    #[test]
    fn closes_are_looked_for_where_they_were_sent() {
        let status = |selection: Value| {
            let mut status = json!({"phase": "Closing", "venues": [{"name": "alpaca"}],
                "actions": [{"name": "alpaca/closePosition", "state": "Done", "attempts": 1}]});
            if !selection.is_null() {
                status["venues"][0]["selection"] =
                    json!({"evaluatedAt": "2026-01-01T00:00:00.000000Z", "closes": selection});
            }
            serde_json::from_value::<TradingHaltStatus>(status).unwrap()
        };
        let close = |symbol: &str, state: &str| json!({"symbol": symbol, "side": "Long", "held": "1", "quantity": "1", "why": "", "state": state});
        let of = |selection: Value| ClosesIn::of(&status(selection), "alpaca");
        assert_eq!(of(Value::Null), ClosesIn::Whatever);
        assert_eq!(of(json!([close("A", "Selected"), close("B", "Closed")])), ClosesIn::Nothing);
        assert_eq!(of(json!([close("A", "Closing")])), ClosesIn::Symbols(vec!["A".into()]));
        assert_eq!(ClosesIn::of(&status(Value::Null), "other"), ClosesIn::Nothing);
        let mut both = of(json!([close("A", "Closing")]));
        both.add(ClosesIn::Nothing);
        both.add(of(json!([close("C", "Closing")])));
        assert_eq!(both, ClosesIn::Symbols(vec!["A".into(), "C".into()]));
        both.add(ClosesIn::Whatever);
        assert_eq!(both, ClosesIn::Whatever);
    }

    #[test]
    fn a_halt_that_may_not_close_does_not_hold_the_others_up() {
        let (keep, old) = (halt("keep", 1, "Keep", json!({})), halt("old", 2, "CloseAll", json!({})));
        let others = Others::at("alpaca", &[keep.clone(), old], &keep, &HaltPolicy::default());
        assert!(!others.closing);
    }

    #[rstest]
    #[case::nothing_new((false, false), (false, false), true)]
    #[case::one_was_allowed_to_close((false, false), (true, false), false)]
    #[case::one_has_sent_closes((false, false), (false, true), false)]
    #[case::it_was_known((true, true), (true, true), true)]
    #[case::it_is_over((true, true), (false, false), true)]
    fn what_another_begins_during_the_reads_is_not_begun_too(
        #[case] (closing, close_intended): (bool, bool),
        #[case] now: (bool, bool),
        #[case] same: bool,
    ) {
        let before = Others { closing, close_intended, ..Others::default() };
        let now = Others { closing: now.0, close_intended: now.1, ..Others::default() };
        assert_eq!(before.leaves_the_same(&now), same);
    }

    /// What people allowed counts as closing for the others once it is in the status, and not before.
    #[test]
    fn an_approval_counts_when_it_is_written_down() {
        let keep = halt("keep", 1, "Keep", json!({}));
        let approved = json!({"approvals": [{"name": "yes", "uid": "u", "approver": "anna", "decision": "Approve",
            "at": "2026-01-01T00:00:00.000000Z"}]});
        for (status, closing) in [(json!({}), false), (approved, true)] {
            let all = [keep.clone(), halt("old", 2, "CloseAll", status)];
            assert_eq!(Others::at("alpaca", &all, &keep, &HaltPolicy::default()).closing, closing);
        }
    }

    #[test]
    fn what_the_others_sent_is_told_by_their_actions() {
        let action = |name: &str, state: &str| json!({"actions": [{"name": name, "state": state, "attempts": 1}]});
        let keep = halt("keep", 1, "Keep", json!({}));
        for (name, state, expected) in [
            ("alpaca/suspendTrading/0", "Done", (false, true)),
            ("alpaca/suspendTrading/0", "Unknown", (false, true)),
            ("alpaca/suspendTrading/0", "Failed", (false, false)),
            ("alpaca/closePositions/0", "Unknown", (true, false)),
            ("other/closePositions/0", "Done", (false, false)),
        ] {
            let others = at(&[keep.clone(), halt("old", 2, "CloseAll", action(name, state))], &keep);
            assert_eq!((others.close_intended, others.suspended), expected, "{name} {state}");
        }
    }

    const NOW: i64 = 1_000;

    fn time(second: i64) -> Value {
        json!(MicroTime(Timestamp::from_second(second).unwrap()))
    }

    /// A resume that lets `alpaca` trade; `step` and `status` are merged over a call that was acknowledged.
    fn resume(step: Value, status: Value) -> TradingResume {
        let mut resume = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingResume",
            "metadata": {"name": "go"}, "spec": {"haltRef": {"name": "stale"}, "requestedBy": "risk"},
            "status": {"steps": [{"name": "allow-trading-alpaca", "state": "Running", "attempts": 1}],
                "plan": {"halt": {"name": "stale", "uid": "x"}, "system": {"name": "bots", "uid": "y"}}}});
        for (key, value) in step.as_object().unwrap() {
            resume["status"]["steps"][0][key] = value.clone();
        }
        for (key, value) in status.as_object().unwrap() {
            resume["status"][key] = value.clone();
        }
        serde_json::from_value(resume).unwrap()
    }

    #[rstest]
    #[case::a_job(json!({}), json!({}), true)]
    #[case::one_of_several(json!({"name": "allow-trading-alpaca.2"}), json!({}), true)]
    #[case::of_another_venue(json!({"name": "allow-trading-alpaca-eu"}), json!({}), false)]
    #[case::not_begun(json!({"state": "Pending", "attempts": 0}), json!({}), false)]
    #[case::a_call_under_way(json!({"deadline": time(NOW + 5)}), json!({}), true)]
    #[case::it_is_past_its_deadline(json!({"deadline": time(NOW - 1)}), json!({}), false)]
    #[case::under_way_at_the_abort(json!({"deadline": time(NOW + 5)}), json!({"finishedAt": time(NOW)}), true)]
    #[case::a_moment_ago(json!({"state": "Succeeded", "finishedAt": time(NOW - 9)}), json!({}), true)]
    #[case::a_while_ago(json!({"state": "Succeeded", "finishedAt": time(NOW - 10)}), json!({}), false)]
    #[case::between_attempts(json!({"state": "Pending", "finishedAt": time(NOW - 10)}), json!({}), false)]
    #[case::its_job_was_deleted(json!({}), json!({"finishedAt": time(NOW - 44)}), true)]
    #[case::and_has_ended(json!({}), json!({"finishedAt": time(NOW - 45)}), false)]
    #[case::of_another_system(json!({}), json!({"plan": {"halt": {"name": "a", "uid": "x"}, "system": {"name": "b", "uid": "y"}}}), false)]
    #[case::of_any_system(json!({}), json!({"plan": {}}), true)]
    fn trading_may_be_allowed_by_what_is_not_settled(#[case] step: Value, #[case] status: Value, #[case] may: bool) {
        let now = Timestamp::from_second(NOW).unwrap();
        assert_eq!(allowing("alpaca", &[resume(step, status)], "bots", now), may);
    }

    #[test]
    fn a_suspension_counts_only_when_it_was_sent_after_all_that_may_allow_trading() {
        let mut venue = VenueMemory::default();
        venue.note_suspended(true);
        assert!(venue.suspended);
        // Seen afterwards: it may have been before that or after.
        venue.note_allowing(true);
        assert!(!venue.suspended);
        venue.note_suspended(true);
        assert!(!venue.suspended, "what may allow trading was not settled when it was sent");
        venue.note_allowing(false);
        venue.note_suspended(true);
        venue.note_allowing(false);
        assert!(venue.suspended);
    }
}
