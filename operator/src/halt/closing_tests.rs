//! Tables of when selected positions are closed, and what is said of it.

use std::time::Duration;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use rstest::rstest;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{HaltPhase, PositionSummary};

use super::*;
use crate::halt::decide::{self, LatchFact, Offers, Orders, Pods, Positions};

fn spec(positions: Value) -> TradingHaltSpec {
    let spec = json!({"systemRef": {"name": "bot"}, "reason": "test", "positions": positions});
    serde_json::from_value(spec).unwrap()
}

fn losing() -> TradingHaltSpec {
    spec(json!({"action": "CloseMatching", "closeMatching": {"unrealizedLossBelowPercent": "10"}}))
}

fn policy() -> HaltPolicy {
    serde_json::from_value(json!({"allowedPositionActions": ["Keep", "CloseMatching", "ReduceTo"]})).unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn held(list: Value) -> Positions {
    let held: Vec<PositionSummary> = serde_json::from_value(list).unwrap();
    Positions { open: held.len(), items: vec![], held }
}

/// A venue where everything is stopped and cancelled, which holds a position that loses and one that does not.
fn venue() -> VenueFacts {
    VenueFacts {
        name: "alpaca".into(),
        offers: Offers {
            close_one: true,
            reads_orders: true,
            reads_positions: true,
            suspend: 1,
            allow: 1,
            suspend_blocks_closing: true,
            ..Offers::default()
        },
        orders: Some(Ok(Orders::default())),
        positions: Some(Ok(held(json!([
            {"symbol": "LOSES", "side": "Long", "quantity": "10", "unrealizedLossPercent": "12"},
            {"symbol": "WINS", "side": "Long", "quantity": "10", "unrealizedLossPercent": "-3"}])))),
        suspended: Some(Ok(false)),
        clean_reads: 3,
        stable_reads: 3,
        positions_current: true,
        cancelled_after_stop: true,
        cancel_due: true,
        as_of: at(0),
        ..VenueFacts::default()
    }
}

fn facts(venue: VenueFacts) -> Facts {
    Facts {
        elapsed: Duration::from_secs(5),
        stopped_for: Duration::from_secs(5),
        closing_for: None,
        system: Ok(()),
        missing: vec![],
        active: vec![],
        jobs: Ok(vec![]),
        pods: Ok(Pods::default()),
        latch_written: Ok(true),
        latch: LatchFact::Proven,
        venues: vec![venue],
        application_retry: false,
        approved: Approved::NotAsked,
    }
}

/// What was selected there, in this state.
fn selection(state: CloseState, not_judged: Value) -> PositionSelection {
    serde_json::from_value(json!({
        "evaluatedAt": MicroTime(at(0)),
        "closes": [{"symbol": "LOSES", "side": "Long", "held": "10", "quantity": "10", "why": "it loses",
            "state": state, "attempts": 1, "closed": if state == CloseState::Closed { Some("10") } else { None }}],
        "notJudged": not_judged
    }))
    .unwrap()
}

fn sent(spec: &TradingHaltSpec, venue: VenueFacts) -> Vec<String> {
    let mut effects = decide::effects(spec, &policy(), &facts(venue));
    effects.retain(|e| !matches!(e, Effect::Suspend(..)));
    let name = |effect: Effect| match effect {
        Effect::Select(_, s) => format!("select {}", selection::describe(&s)),
        Effect::CloseOne(_, item) => format!("close {} {} {}", item.side, item.quantity, item.symbol),
        Effect::Allow(..) => "allow".into(),
        other => format!("{other:?}"),
    };
    effects.into_iter().map(name).collect()
}

const BOTH: &[&str] = &["select LOSES 10", "close sell 10 LOSES"];

/// Selected once, in the same write as the first close; and only when no order is open, proven.
/// S0-42
#[rstest]
#[case::proven(|_: &mut VenueFacts| (), BOTH)]
#[case::zero_orders_are_not_proven(|v: &mut VenueFacts| v.clean_reads = 2, &[])]
#[case::positions_are_older(|v: &mut VenueFacts| v.positions_current = false, &[])]
#[case::another_halt_closes(|v: &mut VenueFacts| v.closing_elsewhere = true, &[])]
#[case::another_halt_closed_a_moment_ago(|v: &mut VenueFacts| { v.close_intended = true; v.stable_reads = 2 }, &[])]
#[case::another_halt_closed(|v: &mut VenueFacts| v.close_intended = true, BOTH)]
#[case::the_market_is_closed(|v: &mut VenueFacts| v.close_hindrance = Some("the market is closed".into()), &[])]
#[case::trading_is_suspended(|v: &mut VenueFacts| v.suspended = Some(Ok(true)), &["allow"])]
#[case::something_is_not_declared(|v: &mut VenueFacts| v.selection_lacks = Some("equity".into()), &[])]
#[case::nothing_matches(|v: &mut VenueFacts| v.positions = Some(Ok(held(json!([])))), &["select none"])]
#[case::nothing_matches_while_suspended(|v: &mut VenueFacts| {
    v.positions = Some(Ok(held(json!([]))));
    v.suspended = Some(Ok(true));
}, &["select none"])]
#[case::the_venue_only_counts(|v: &mut VenueFacts| v.positions = Some(Ok(Positions { open: 2, ..Positions::default() })), &[])]
#[case::not_sent_yet(|v: &mut VenueFacts| { v.selection = Some(selection(CloseState::Selected, json!([]))); v.stable_reads = 0 }, &["close sell 10 LOSES"])]
#[case::sent(|v: &mut VenueFacts| { v.selection = Some(selection(CloseState::Closing, json!([]))); v.stable_reads = 2 }, &[])]
#[case::sent_and_nothing_moves(|v: &mut VenueFacts| v.selection = Some(selection(CloseState::Closing, json!([]))), &["close sell 10 LOSES"])]
#[case::our_order_is_open(|v: &mut VenueFacts| {
    v.selection = Some(selection(CloseState::Closing, json!([])));
    v.orders = Some(Ok(Orders { closing: 1, ..Orders::default() }));
}, &[])]
#[case::closed(|v: &mut VenueFacts| v.selection = Some(selection(CloseState::Closed, json!([]))), &[])]
#[case::it_grew(|v: &mut VenueFacts| {
    v.selection = Some(selection(CloseState::Closing, json!([])));
    v.lost = vec![selection::Lost { symbol: "LOSES".into(), side: standfast_crds::v1alpha1::PositionSide::Long, why: "it grew".into() }];
}, &[])]
fn s0_42_what_matches_is_selected_once_and_closed(#[case] doubt: fn(&mut VenueFacts), #[case] expected: &[&str]) {
    let mut venue = venue();
    doubt(&mut venue);
    assert_eq!(sent(&losing(), venue), expected);
}

/// Nothing is closed while something that could trade runs, or an order is open that is not ours.
#[test]
fn nothing_is_closed_beside_the_bot() {
    let mut running = facts(venue());
    running.pods = Ok(Pods { running: 1, overdue: None });
    let mut open = facts(VenueFacts { orders: Some(Ok(Orders { to_cancel: 1, ..Orders::default() })), ..venue() });
    open.venues[0].selection = Some(selection(CloseState::Selected, json!([])));
    for facts in [running, open] {
        let effects = decide::effects(&losing(), &policy(), &facts);
        assert!(!effects.iter().any(|e| matches!(e, Effect::Select(..) | Effect::CloseOne(..))), "{effects:?}");
    }
}

/// Trading is suspended when all that was selected is closed, where the venue takes no closes otherwise.
#[rstest]
#[case(None, false)]
#[case(Some(CloseState::Closing), false)]
#[case(Some(CloseState::Closed), true)]
fn trading_is_suspended_afterwards(#[case] state: Option<CloseState>, #[case] suspends: bool) {
    let venue = VenueFacts { selection: state.map(|s| selection(s, json!([]))), ..venue() };
    let effects = decide::effects(&losing(), &policy(), &facts(venue));
    assert_eq!(effects.iter().any(|e| matches!(e, Effect::Suspend(..))), suspends, "{effects:?}");
}

#[rstest]
#[case::not_selected_yet(|_: &mut VenueFacts| (), "False", "Closing", HaltPhase::Closing)]
#[case::the_market_is_closed(|v: &mut VenueFacts| v.close_hindrance = Some("the market is closed".into()), "False", "CannotCloseNow", HaltPhase::Closing)]
#[case::on_the_way(|v: &mut VenueFacts| v.selection = Some(selection(CloseState::Closing, json!([]))), "False", "Closing", HaltPhase::Closing)]
#[case::for_too_long(|v: &mut VenueFacts| { v.selection = Some(selection(CloseState::Closing, json!([]))); v.as_of = at(601) }, "False", "DeadlinePassed", HaltPhase::Closing)]
#[case::closed(|v: &mut VenueFacts| v.selection = Some(selection(CloseState::Closed, json!([]))), "True", "SelectionClosed", HaltPhase::Halted)]
#[case::closed_long_ago(|v: &mut VenueFacts| { v.selection = Some(selection(CloseState::Closed, json!([]))); v.as_of = at(9999) }, "True", "SelectionClosed", HaltPhase::Halted)]
#[case::one_is_not_judged(|v: &mut VenueFacts| v.selection = Some(selection(CloseState::Closed, json!([{"symbol": "OLD", "why": "its age is not known"}]))), "False", "NotJudged", HaltPhase::Halted)]
#[case::one_is_not_judged_and_one_not_closed(|v: &mut VenueFacts| v.selection = Some(selection(CloseState::Closing, json!([{"symbol": "OLD", "why": "?"}]))), "False", "Closing", HaltPhase::Closing)]
#[case::it_grew(|v: &mut VenueFacts| {
    v.selection = Some(selection(CloseState::Closing, json!([])));
    v.lost = vec![selection::Lost { symbol: "LOSES".into(), side: standfast_crds::v1alpha1::PositionSide::Long, why: "it grew".into() }];
}, "Unknown", "PositionChanged", HaltPhase::Unverified)]
#[case::something_is_not_declared(|v: &mut VenueFacts| v.selection_lacks = Some("equity".into()), "Unknown", "SelectionNotPossible", HaltPhase::Unverified)]
#[case::the_venue_only_counts(|v: &mut VenueFacts| v.positions = Some(Ok(Positions { open: 2, ..Positions::default() })), "Unknown", "PositionsNotJudged", HaltPhase::Unverified)]
#[case::positions_cannot_be_read(|v: &mut VenueFacts| v.positions = Some(Err("500".into())), "Unknown", "PositionsNotRead", HaltPhase::Unverified)]
fn what_is_said_of_a_selection(
    #[case] doubt: fn(&mut VenueFacts),
    #[case] status: &str,
    #[case] reason: &str,
    #[case] phase: HaltPhase,
) {
    let mut venue = venue();
    doubt(&mut venue);
    let judgement = decide::judge(&losing(), &policy(), &facts(venue));
    let found = judgement.conditions.iter().find(|v| v.0 == c::POSITIONS_CLOSED).unwrap();
    assert_eq!((found.1, found.2, judgement.phase), (status, reason, phase), "{judgement:?}");
    if reason == "NotJudged" {
        let halted = judgement.conditions.iter().find(|v| v.0 == c::HALTED).unwrap();
        assert!(halted.3.contains("could not be judged: alpaca OLD (its age is not known)"), "{halted:?}");
    }
}

/// Reducing needs the equity; until a Job has told it, that is awaited.
#[rstest]
#[case(Some(Err("answered 500".to_owned())), false, ("Unknown", "PositionsNotJudged"))]
#[case(Some(Err("the Job has not ended yet".to_owned())), true, ("False", "Closing"))]
#[case(Some(Ok("0".to_owned())), false, ("Unknown", "PositionsNotJudged"))]
#[case(Some(Ok("100000".to_owned())), false, ("False", "Closing"))]
fn an_equity_that_is_not_known_is_told(
    #[case] equity: Option<Result<String, String>>,
    #[case] equity_awaited: bool,
    #[case] expected: (&str, &str),
) {
    let spec = spec(json!({"action": "ReduceTo", "reduceTo": {"exposurePercent": "50"}}));
    let facts = facts(VenueFacts { equity, equity_awaited, ..venue() });
    let found = verdict(&spec, &policy(), &facts);
    assert_eq!((found.1, found.2), expected, "{found:?}");
}

#[test]
fn what_the_policy_does_not_list_is_not_allowed() {
    let all = [PositionAction::Keep, PositionAction::CloseAll, PositionAction::CloseMatching, PositionAction::ReduceTo];
    for action in all {
        let spec = TradingHaltSpec { positions: standfast_crds::v1alpha1::HaltPositions::of(action), ..losing() };
        let (policy, asks) = (HaltPolicy::default(), action != PositionAction::Keep);
        assert_eq!(allowed(&spec, &policy, false), None, "{action:?}");
        assert_eq!(allowed(&spec, &policy, true), asks.then_some(AllowedBy::Approvals), "{action:?}");
        let policy = HaltPolicy { allowed_position_actions: all.to_vec(), ..HaltPolicy::default() };
        assert_eq!(allowed(&spec, &policy, false), asks.then_some(AllowedBy::Policy), "{action:?}");
    }
}
