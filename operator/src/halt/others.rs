//! What other held halts of the same system do at a venue: several halts add up, and are not to work against each other.

use k8s_openapi::jiff::Timestamp;
use standfast_crds::v1alpha1::{HaltPolicy, TradingHalt, TradingHaltStatus, halt_conditions as c, is_true};

use super::{act, decide};
use crate::held;

/// What the others do at one venue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// One of them is closing positions and is not done: this halt leaves that to it, and does not suspend trading.
    pub closing: bool,
    /// One of them has sent closes: an open order may be a close.
    pub close_intended: bool,
    /// One of them has suspended trading.
    pub suspended: bool,
    /// When one of them, held or released, last allowed trading so that it could close positions.
    pub allowed_at: Option<Timestamp>,
}

impl Others {
    /// What the others among `halts` do at `venue`.
    pub fn at(venue: &str, halts: &[TradingHalt], halt: &TradingHalt, policy: &HaltPolicy) -> Self {
        let of_system = |h: &&TradingHalt| {
            held::holds(h) && h.metadata.uid != halt.metadata.uid && h.spec.system_ref.name == halt.spec.system_ref.name
        };
        let statuses = || halts.iter().filter(of_system).filter_map(|h| Some((h, h.status.as_ref()?)));
        // Of several that close, the oldest does, so that nothing is closed twice.
        let age = |h: &TradingHalt| (h.metadata.creation_timestamp.clone(), h.metadata.uid.clone());
        let closes = decide::closing_allowed(&halt.spec, policy);
        let closing = |(other, status): (&TradingHalt, &TradingHaltStatus)| {
            decide::closing_allowed(&other.spec, policy)
                && (!closes || age(other) < age(halt))
                && !is_true(&status.conditions, c::POSITIONS_CLOSED)
                && status.venues.iter().any(|v| v.name == venue && v.open_positions != Some(0))
        };
        Self {
            closing: statuses().any(closing),
            close_intended: statuses().any(|(_, s)| act::close_attempts(s, venue) > 0),
            suspended: statuses().any(|(_, s)| act::suspends(s, venue)),
            allowed_at: halts
                .iter()
                .filter(|h| h.metadata.uid != halt.metadata.uid && h.spec.system_ref.name == halt.spec.system_ref.name)
                .filter_map(|h| act::last_tried(h.status.as_ref()?, venue, "allowTrading"))
                .max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

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
    fn a_halt_that_may_not_close_does_not_hold_the_others_up() {
        let (keep, old) = (halt("keep", 1, "Keep", json!({})), halt("old", 2, "CloseAll", json!({})));
        let others = Others::at("alpaca", &[keep.clone(), old], &keep, &HaltPolicy::default());
        assert!(!others.closing);
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
}
