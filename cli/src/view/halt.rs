//! One TradingHalt.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;
use standfast_crds::{
    held,
    v1alpha1::{
        ActionState, CancelOrders, HaltPhase, SystemHalt, TradingHalt, VenueStatus, condition, halt_conditions as c,
        is_true,
    },
};

use super::{known, mark};
use crate::text::{Line, Style, age, between, clock, count, row, table, took};

/// A halt, for programs and for people.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HaltView {
    /// Its name.
    pub name: String,
    /// The TradingSystem that it halts; of a halt of several systems how many, in words.
    pub system: String,
    /// Of a halt of several systems: each of them, and its halt.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub systems: Vec<SystemHalt>,
    /// `status.phase`; `Pending` where no operator has seen it.
    pub phase: String,
    /// An operator has reacted to it.
    pub seen: bool,
    /// It committed itself, and is not released.
    pub held: bool,
    /// Everything that it claims was read back, and not too long ago.
    pub proven: bool,
    /// Why it was asked for.
    pub reason: String,
    /// Who asked for it, if that is recorded.
    pub requested_by: Option<String>,
    /// When it was created.
    pub requested_at: Option<Timestamp>,
    /// When it latched, or at least committed itself.
    pub latched_at: Option<Timestamp>,
    /// When it was proven for the first time.
    pub halted_at: Option<Timestamp>,
    /// Until when the proof counts.
    pub verified_until: Option<Timestamp>,
    /// When it was last proven.
    pub last_verified_at: Option<Timestamp>,
    /// Open orders that should not be; absent when not known.
    pub open_orders: Option<i64>,
    /// Open orders that are kept on purpose.
    pub kept_orders: Option<i64>,
    /// Open positions; absent when not known.
    pub open_positions: Option<i64>,
    /// Trading pods that are not gone; absent when not known.
    pub running_pods: Option<i64>,
    /// What the condition `Halted` says.
    pub message: Option<String>,
    /// The TradingResume that released it.
    pub released_by: Option<String>,
}

impl HaltView {
    /// What is known of a halt at this moment.
    pub fn of(halt: &TradingHalt, now: Timestamp) -> Self {
        let status = halt.status.clone().unwrap_or_default();
        let recorded = Some(status.evidence.requested_by.clone()).filter(|by| !by.is_empty() && by != "not recorded");
        // One of several systems holds by the halts that it made.
        let holds =
            |e: &SystemHalt| e.halt_uid.is_some() && !matches!(e.phase, HaltPhase::Pending | HaltPhase::Released);
        let held = held::holds(halt) || status.systems.iter().any(holds);
        Self {
            name: halt.name_any(),
            system: target(halt),
            systems: status.systems.clone(),
            phase: status.phase.as_str().into(),
            seen: status.phase != HaltPhase::Pending || !status.conditions.is_empty(),
            held,
            proven: held && held::proven_until(halt).is_some_and(|until| now < until),
            reason: halt.spec.reason.clone(),
            requested_by: halt.spec.requested_by.clone().or(recorded),
            requested_at: halt.metadata.creation_timestamp.as_ref().map(|t| t.0),
            latched_at: status.times.latched_at.as_ref().or(status.times.committed_at.as_ref()).map(|t| t.0),
            halted_at: status.times.halted_at.as_ref().map(|t| t.0),
            verified_until: status.verified_until.as_ref().map(|t| t.0),
            last_verified_at: status.last_verified_at.as_ref().map(|t| t.0),
            open_orders: status.open_orders,
            kept_orders: status.kept_orders,
            open_positions: status.open_positions,
            running_pods: status.running_pods,
            message: condition(&status.conditions, c::HALTED).map(|c| c.message.clone()).filter(|m| !m.is_empty()),
            released_by: status.released.as_ref().map(|r| r.resume.clone()),
        }
    }

    /// One word, and how it looks.
    pub fn word(&self) -> (Style, String) {
        match self.phase.as_str() {
            _ if self.proven => (Style::Good, "HALTED".into()),
            // The word of the status is too old to be repeated.
            "Halted" => (Style::Bad, "UNVERIFIED".into()),
            "Unverified" => (Style::Bad, "UNVERIFIED".into()),
            "Pending" => (Style::Bad, "NOTHING LATCHED".into()),
            "Releasing" => (Style::Warn, "PARTLY RELEASED".into()),
            "Released" => (Style::Plain, "RELEASED".into()),
            _ => (Style::Warn, "HALTING".into()),
        }
    }

    /// How it stands, line by line, for where nothing can be drawn again: of several systems, each in a line of its own.
    pub fn news(&self, now: Timestamp) -> Vec<String> {
        let of = |e: &SystemHalt| {
            let numbers =
                if e.phase == HaltPhase::Released { String::new() } else { numbers(e.running_pods, e.open_orders) };
            // Of one that is proven: that positions were kept.
            let said = e.message.as_ref().map(|m| format!(": {m}")).unwrap_or_default();
            format!("{} {}: {}{numbers}{said}", e.system, e.halt, word(e, now).1)
        };
        std::iter::once(self.progress()).chain(self.systems.iter().map(of)).collect()
    }

    /// How it stands in one line.
    pub fn progress(&self) -> String {
        let mut text = format!("{} {}: {}", self.system, self.name, self.word().1);
        if self.seen && self.phase != "Released" {
            text += &numbers(self.running_pods, self.open_orders);
        }
        match &self.message {
            Some(message) if !self.proven => format!("{text}: {message}"),
            _ => text,
        }
    }
}

fn numbers(pods: Option<i64>, orders: Option<i64>) -> String {
    let pods = pods.map_or_else(|| "pods not known".into(), |n| count(n, "pod"));
    let orders = orders.map_or_else(|| "orders not known".into(), |n| count(n, "open order"));
    format!(", {pods}, {orders}")
}

/// What a halt halts, in words.
fn target(halt: &TradingHalt) -> String {
    let Some(selector) = &halt.spec.system_selector else { return halt.spec.system().to_owned() };
    match halt.status.as_ref().and_then(|s| s.target.clone()) {
        Some(counted) => counted,
        None if selector.selects_all() => "all systems".into(),
        None => format!("systems with {selector}"),
    }
}

fn proven(entry: &SystemHalt, now: Timestamp) -> bool {
    entry.phase == HaltPhase::Halted && entry.verified_until.as_ref().is_some_and(|until| now < until.0)
}

/// How one of several systems stands, in a word.
pub fn word(entry: &SystemHalt, now: Timestamp) -> (Style, &'static str) {
    match entry.phase {
        _ if entry.halt_uid.is_none() => (Style::Bad, "NOT HALTED YET"),
        _ if proven(entry, now) => (Style::Good, "HALTED"),
        HaltPhase::Halted | HaltPhase::Unverified => (Style::Bad, "UNVERIFIED"),
        HaltPhase::Released => (Style::Plain, "RELEASED"),
        _ => (Style::Warn, "HALTING"),
    }
}

/// The systems of a halt of several, each with its halt.
pub fn systems(view: &HaltView, now: Timestamp) -> Vec<Line> {
    let rows = view.systems.iter().map(|e| {
        let (style, said) = word(e, now);
        let message = e.message.clone().unwrap_or_default();
        let look = if proven(e, now) { Style::Warn } else { style };
        vec![(Style::Bold, e.system.clone()), (style, said.to_owned()), (Style::Plain, e.halt.clone()), (look, message)]
    });
    table(&rows.collect::<Vec<_>>(), 4)
}

/// How a halt comes along, in full.
pub fn lines(halt: &TradingHalt, now: Timestamp) -> Vec<Line> {
    let view = HaltView::of(halt, now);
    let (style, word) = view.word();
    let status = halt.status.clone().unwrap_or_default();
    let begun = status.times.committed_at.as_ref().map(|t| t.0);
    let after = |t: Option<Timestamp>| match (begun, t) {
        (Some(begun), Some(t)) => Some(format!("  +{}", took(between(begun, t)))),
        _ => None,
    };
    let mut title = Line::new().and(Style::Bold, &view.system).and(Style::Plain, "  ").and(style, word);
    if let (true, Some(begun), Some(halted)) = (view.proven, begun, view.halted_at) {
        title = title.and(Style::Plain, format!(" within {}", took(between(begun, halted))));
    }
    let mut lines = vec![title.and(Style::Dim, format!("  {}", view.name))];
    lines.push(row("why").and(Style::Plain, &view.reason).and(Style::Dim, asked(&view, now)));
    if !view.seen {
        lines.push(row("").and(Style::Warn, "no operator has reacted yet"));
        return lines;
    }
    lines.extend(systems(&view, now));
    let times = &status.times;
    for (label, type_, done) in [
        ("latch", c::LATCHED, &times.latched_at),
        ("workloads", c::WORKLOADS_STOPPED, &times.pods_gone_at),
        ("orders", c::ORDERS_CANCELLED, &times.zero_orders_at),
        ("positions", c::POSITIONS_CLOSED, &times.flat_at),
    ] {
        let Some(condition) = condition(&status.conditions, type_) else { continue };
        let (style, word) = mark(&condition.status);
        let mut line = row(label).and(style, format!("{word:<9}  ")).and(Style::Plain, &condition.message);
        if condition.status == "True" {
            line = line.and_some(Style::Dim, after(done.as_ref().map(|t| t.0)));
        }
        lines.push(line);
    }
    lines.extend(status.venues.iter().map(|v| venue(v, halt, now)));
    let failed = status.actions.iter().filter(|a| matches!(a.state, ActionState::Failed | ActionState::Unknown));
    lines.extend(failed.map(|a| {
        let said = a.message.clone().unwrap_or_default();
        let tried = count(a.attempts, "attempt");
        row("failed").and(Style::Bad, &a.name).and(Style::Plain, format!(": {said} ({tried})"))
    }));
    if let Some(contended) = condition(&status.conditions, c::CONTENDED).filter(|c| c.status == "True") {
        lines.push(row("contended").and(Style::Bad, &contended.message));
    }
    lines.push(verified(&view, now));
    if let (false, Some(message)) = (is_true(&status.conditions, c::HALTED), &view.message) {
        lines.push(row("says").and(style, message));
    }
    if let Some(released) = &status.released {
        let by = format!("by TradingResume {}, asked for by {}", released.resume, released.requested_by);
        lines.push(row("released").and(Style::Plain, by));
    }
    lines
}

/// Who asked, and when.
pub fn asked(view: &HaltView, now: Timestamp) -> String {
    let by = view.requested_by.as_ref().map_or_else(|| ", by: not recorded".into(), |by| format!(", by {by}"));
    let ago = view.requested_at.map_or_else(String::new, |at| format!(", {} ago", age(at, now)));
    by + &ago
}

/// How old the proof is.
pub fn verified(view: &HaltView, now: Timestamp) -> Line {
    let line = row("verified");
    match (view.last_verified_at, view.verified_until) {
        (Some(at), Some(until)) if view.proven => line
            .and(Style::Good, format!("{} ago", age(at, now)))
            .and(Style::Dim, format!("  counts until {}", clock(until, now))),
        (Some(at), Some(until)) if until <= now && view.held => line.and(
            Style::Bad,
            format!(
                "{} ago, which is too old: does the operator run? Until it says so again, nothing is known",
                age(at, now)
            ),
        ),
        (Some(at), _) => line.and(Style::Warn, format!("last {} ago", age(at, now))),
        (None, _) => line.and(Style::Warn, "not yet"),
    }
}

/// What a venue said.
pub fn venue(venue: &VenueStatus, halt: &TradingHalt, now: Timestamp) -> Line {
    let mut text = format!("orders {}", known(venue.open_orders));
    if venue.open_orders.is_some() {
        text += " open";
    }
    if let Some(before) = venue.orders_before {
        let at_least = if halt.spec.orders.cancel == CancelOrders::None { "" } else { "at least " };
        text += &format!(" ({at_least}{before} before)");
    }
    if let Some(kept) = venue.kept_orders.filter(|n| *n > 0) {
        let which = if halt.spec.orders.cancel == CancelOrders::None { "" } else { ", protective" };
        text += &format!(", {kept} kept on purpose{which}");
    }
    text += &format!("; positions {}", known(venue.open_positions));
    let part = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".into());
    let some: Vec<_> =
        venue.positions.iter().take(6).map(|p| format!("{} {}", part(&p.symbol), part(&p.quantity))).collect();
    if !some.is_empty() {
        let more = venue.open_positions.unwrap_or(0) > some.len() as i64;
        text += &format!(" ({}{})", some.join(", "), if more { ", …" } else { "" });
    }
    let mut line = row("venue").and(Style::Bold, &venue.name).and(Style::Plain, format!("  {text}"));
    if let Some(suspended) = venue.trading_suspended {
        line = line.and(Style::Plain, if suspended { "; refuses new orders" } else { "; accepts new orders" });
    }
    if let Some(error) = &venue.last_error {
        line = line.and(Style::Bad, format!("; {error}"));
    }
    line.and_some(Style::Dim, venue.read_at.as_ref().map(|at| format!("  read {} ago", age(at.0, now))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view::testing::{at, halt, plain, proven, time};

    #[test]
    fn a_proven_halt_says_since_when_and_how_fast() {
        let text = plain(&lines(&halt("stale", proven()), at(10)));
        assert_eq!(
            text,
            "demo  HALTED within 4.000 s  stale
  why         prices are stale, by alice, 10s ago
  latch       done       a scale-up was refused by the policy  +1.000 s
  workloads   done       no pod is left  +1.000 s
  orders      done       no order is open  +4.000 s
  positions   done       positions are kept
  venue       alpaca  orders 0 open (at least 5 before), 2 kept on purpose, protective; positions 1 (AAPL 10)  read 6s ago
  verified    6s ago  counts until 15:03:00 UTC
"
        );
    }

    #[test]
    fn a_proof_that_is_too_old_is_not_repeated() {
        let old = HaltView::of(&halt("stale", proven()), at(181));
        assert!(old.held && !old.proven);
        assert_eq!(old.word().1, "UNVERIFIED");
        let text = plain(&lines(&halt("stale", proven()), at(500)));
        assert!(text.starts_with("demo  UNVERIFIED  stale") && text.contains("8m16s ago, which is too old"), "{text}");
    }

    #[test]
    fn a_halt_that_nobody_saw_latches_nothing() {
        let view = HaltView::of(&halt("stale", json!({})), at(3));
        assert!(!view.seen && !view.held);
        assert_eq!(view.progress(), "demo stale: NOTHING LATCHED");
        assert!(plain(&lines(&halt("stale", json!({})), at(3))).contains("no operator has reacted yet"));
    }

    #[test]
    fn what_failed_is_named() {
        let status = json!({"phase": "Unverified", "latch": {"held": true, "configMap": "x"},
            "conditions": [{"type": "Halted", "status": "False", "reason": "R", "message": "alpaca does not answer",
                "lastTransitionTime": at(1).to_string()},
                {"type": "Contended", "status": "True", "reason": "R", "message": "argocd scaled bot to 3",
                "lastTransitionTime": at(1).to_string()}],
            "actions": [{"name": "alpaca/cancelOrders/0", "state": "Failed", "attempts": 3, "message": "status 500"}],
            "venues": [{"name": "alpaca", "lastError": "status 500"}], "times": {"committedAt": time(0)}});
        let text = plain(&lines(&halt("stale", status.clone()), at(5)));
        for part in [
            "demo  UNVERIFIED  stale",
            "failed      alpaca/cancelOrders/0: status 500 (3 attempts)",
            "contended   argocd scaled bot to 3",
            "venue       alpaca  orders not known; positions not known; status 500",
            "verified    not yet",
            "says        alpaca does not answer",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let progress = HaltView::of(&halt("stale", status), at(5)).progress();
        assert_eq!(progress, "demo stale: UNVERIFIED, pods not known, orders not known: alpaca does not answer");
    }

    fn group(systems: serde_json::Value, phase: &str) -> TradingHalt {
        let status = json!({"phase": phase, "target": "2 systems", "systems": systems, "openOrders": 3,
            "conditions": [{"type": "Halted", "status": "False", "reason": "R", "message": "1 of 2 systems are halted",
            "lastTransitionTime": at(1).to_string()}], "verifiedUntil": time(180), "lastVerifiedAt": time(0),
            "times": {"committedAt": time(0)}});
        let mut halt = halt("all-1", status);
        (halt.spec.system_ref, halt.spec.system_selector) = (None, Some(Default::default()));
        halt
    }

    #[test]
    fn a_halt_of_several_systems_has_a_line_for_each() {
        let entry = |system: &str, phase: &str, message: &str| {
            let message = Some(message).filter(|m| !m.is_empty());
            json!({"system": system, "halt": format!("all-1-{system}"), "haltUid": "u", "phase": phase,
                "openOrders": 0, "runningPods": 0, "verifiedUntil": time(180), "message": message})
        };
        let systems = json!([entry("eq", "Halted", ""), entry("fut", "Halted", "positions were kept: not allowed"),
            entry("fx", "Unverified", "alpaca does not answer"), {"system": "new", "halt": "all-1-new"}]);
        let halt = group(systems, "Unverified");
        let view = HaltView::of(&halt, at(5));
        assert_eq!(
            view.news(at(5)),
            [
                "2 systems all-1: UNVERIFIED, pods not known, 3 open orders: 1 of 2 systems are halted",
                "eq all-1-eq: HALTED, 0 pods, 0 open orders",
                "fut all-1-fut: HALTED, 0 pods, 0 open orders: positions were kept: not allowed",
                "fx all-1-fx: UNVERIFIED, 0 pods, 0 open orders: alpaca does not answer",
                "new all-1-new: NOT HALTED YET, pods not known, orders not known",
            ]
        );
        assert!(view.held && !view.proven);
        let text = plain(&lines(&halt, at(5)));
        for part in [
            "2 systems  UNVERIFIED  all-1",
            "    eq   HALTED          all-1-eq",
            "    fut  HALTED          all-1-fut  positions were kept: not allowed",
            "    fx   UNVERIFIED      all-1-fx   alpaca does not answer",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        // Its word is no better than its oldest proof.
        let halted = group(json!([entry("eq", "Halted", "")]), "Halted");
        let told = |now| HaltView::of(&halted, at(now)).word().1;
        assert_eq!((told(10), told(181)), ("HALTED".to_owned(), "UNVERIFIED".to_owned()));
        let mut unseen = halted;
        unseen.status = None;
        assert_eq!(HaltView::of(&unseen, at(1)).progress(), "all systems all-1: NOTHING LATCHED");
    }

    #[test]
    fn programs_read_fields_in_camel_case() {
        let json = serde_json::to_value(HaltView::of(&halt("stale", proven()), at(10))).unwrap();
        assert_eq!(
            (&json["requestedBy"], &json["proven"], &json["openOrders"]),
            (&json!("alice"), &json!(true), &json!(0))
        );
        assert_eq!(json["verifiedUntil"], json!("2026-11-26T15:03:00Z"));
    }
}
