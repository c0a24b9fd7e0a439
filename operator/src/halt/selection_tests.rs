//! Tables and properties of what is selected and how it is followed.

use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;

const NOW: &str = "2026-01-10T12:00:00Z";

fn positions(list: Value) -> Vec<PositionSummary> {
    serde_json::from_value(list).unwrap()
}

fn asked(spec: Value) -> HaltPositions {
    serde_json::from_value(spec).unwrap()
}

fn select_with(
    spec: Value,
    list: Value,
    equity: Result<&str, &str>,
    step: Option<&str>,
) -> Result<PositionSelection, String> {
    let account = Account { positions: &positions(list), equity, step, as_of: NOW.parse().unwrap() };
    select(&asked(spec), &account)
}

fn closes(selection: &PositionSelection) -> Vec<(&str, &str)> {
    selection.closes.iter().map(|c| (c.symbol.as_str(), c.quantity.as_str())).collect()
}

fn kept(selection: &PositionSelection) -> Vec<(&str, &str)> {
    selection.not_judged.iter().map(|p| (p.symbol.as_str(), p.why.as_str())).collect()
}

/// A loss must be larger than the limit: at the limit nothing is closed, as in the plan's script.
/// S0-42
#[rstest]
#[case("10", json!("10.000000000000000001"), true)]
#[case("10", json!("10"), false)]
#[case("10.0", json!("9.99"), false)]
#[case("10", json!("-50"), false)]
#[case("0", json!("0"), false)]
#[case("0", json!("0.01"), true)]
fn s0_42_only_what_loses_more_is_closed(#[case] limit: &str, #[case] loss: Value, #[case] closed: bool) {
    let list = json!([{"symbol": "A", "side": "Short", "quantity": "-5", "unrealizedLossPercent": loss}]);
    let spec = json!({"action": "CloseMatching", "closeMatching": {"unrealizedLossBelowPercent": limit}});
    let selection = select_with(spec, list, Err("not read"), None).unwrap();
    assert_eq!(closes(&selection), if closed { vec![("A", "5")] } else { vec![] });
    assert_eq!(kept(&selection), []);
}

/// S0-43
#[rstest]
#[case(json!("2026-01-03T11:59:59Z"), Some(true))]
#[case(json!("2026-01-03T12:00:00Z"), Some(false))]
#[case(json!("2026-01-10T12:04:00Z"), Some(false))]
#[case(json!("2026-01-10T13:00:00Z"), None)]
#[case(json!(null), None)]
fn s0_43_an_unknown_age_is_listed_and_not_closed(#[case] opened: Value, #[case] closed: Option<bool>) {
    let list = json!([{"symbol": "A", "side": "Long", "quantity": "5", "openedAt": opened}]);
    let spec = json!({"action": "CloseMatching", "closeMatching": {"heldLongerThan": "168h"}});
    let selection = select_with(spec, list, Err("not read"), None).unwrap();
    assert_eq!(
        (selection.closes.len(), selection.not_judged.len()),
        match closed {
            Some(true) => (1, 0),
            Some(false) => (0, 0),
            None => (0, 1),
        }
    );
}

/// Both limits must hold; one that does not is enough to keep a position, whatever the other would say.
#[rstest]
#[case(json!("11"), json!("2025-01-01T00:00:00Z"), (1, 0))]
#[case(json!("9"), json!("2025-01-01T00:00:00Z"), (0, 0))]
#[case(json!("11"), json!("2026-01-10T00:00:00Z"), (0, 0))]
#[case(json!("9"), json!(null), (0, 0))]
#[case(json!(null), json!("2026-01-10T00:00:00Z"), (0, 0))]
#[case(json!("11"), json!(null), (0, 1))]
#[case(json!(null), json!("2025-01-01T00:00:00Z"), (0, 1))]
fn all_that_is_given_must_hold(#[case] loss: Value, #[case] opened: Value, #[case] expected: (usize, usize)) {
    let list =
        json!([{"symbol": "A", "side": "Long", "quantity": "5", "unrealizedLossPercent": loss, "openedAt": opened}]);
    let matching = json!({"unrealizedLossBelowPercent": "10", "heldLongerThan": "168h"});
    let selection =
        select_with(json!({"action": "CloseMatching", "closeMatching": matching}), list, Err("-"), None).unwrap();
    assert_eq!((selection.closes.len(), selection.not_judged.len()), expected);
}

#[test]
fn what_is_not_certain_is_listed() {
    let list = json!([
        {"side": "Long", "quantity": "1", "unrealizedLossPercent": "50"},
        {"symbol": "B", "side": "Long", "quantity": "many", "unrealizedLossPercent": "50"},
        {"symbol": "C", "quantity": "1", "unrealizedLossPercent": "50"},
        {"symbol": "D", "side": "Long", "quantity": "1", "unrealizedLossPercent": "50"},
        {"symbol": "D", "side": "Long", "quantity": "2", "unrealizedLossPercent": "50"},
        {"symbol": "E", "side": "Long", "quantity": "1", "unrealizedLossPercent": "50"},
        {"symbol": "E", "side": "Short", "quantity": "2", "unrealizedLossPercent": "50"},
    ]);
    let spec = json!({"action": "CloseMatching", "closeMatching": {"unrealizedLossBelowPercent": "10"}});
    let selection = select_with(spec, list, Err("-"), None).unwrap();
    assert_eq!(closes(&selection), [("E", "1"), ("E", "2")]);
    let symbols: Vec<_> = kept(&selection).iter().map(|k| k.0).collect();
    assert_eq!(symbols, ["?", "B", "C", "D", "D"]);
}

fn reduce_to(percent: &str) -> Value {
    json!({"action": "ReduceTo", "reduceTo": {"exposurePercent": percent}})
}

/// S0-44
#[rstest]
#[case::enough_already("91", None, &[])]
#[case::at_the_target("90", None, &[])]
#[case::whole_positions("50", None, &[("A", "500")])]
#[case::whole_positions_until_it_is_enough("30", None, &[("A", "500"), ("B", "300")])]
#[case::a_part_of_the_last("80.5", Some("1"), &[("A", "95")])]
#[case::rounded_up_to_the_step("80.5", Some("10"), &[("A", "100")])]
#[case::a_step_larger_than_the_position("80.5", Some("1000"), &[("A", "500")])]
#[case::the_short_one_in_part("30", Some("0.5"), &[("A", "500"), ("B", "100")])]
fn s0_44_the_largest_go_first_and_shorts_count(
    #[case] percent: &str,
    #[case] step: Option<&str>,
    #[case] expected: &[(&str, &str)],
) {
    let list = json!([
        {"symbol": "C", "side": "Long", "quantity": "100", "marketValue": "10000"},
        {"symbol": "B", "side": "Short", "quantity": "-300", "marketValue": "-30000"},
        {"symbol": "A", "side": "Long", "quantity": "500", "marketValue": "50000.00"},
    ]);
    let selection = select_with(reduce_to(percent), list, Ok("100000"), step).unwrap();
    assert_eq!(closes(&selection), expected);
    assert_eq!(selection.exposure.as_deref(), Some("90000"));
}

#[rstest]
#[case(Ok("0"), "the equity is 0")]
#[case(Ok("-5"), "the equity is -5")]
#[case(Ok("much"), "the equity is much")]
#[case(Err("GET broker: answered 500"), "GET broker: answered 500")]
fn without_an_equity_nothing_is_selected(#[case] equity: Result<&str, &str>, #[case] expected: &str) {
    let list = json!([{"symbol": "A", "side": "Long", "quantity": "5", "marketValue": "500"}]);
    let error = select_with(reduce_to("50"), list, equity, None).unwrap_err();
    assert!(error.starts_with(expected), "{error}");
    assert_eq!(select_with(reduce_to("50"), json!([]), equity, None).unwrap().closes, []);
}

#[test]
fn a_value_that_is_not_known_is_listed_and_the_others_are_reduced() {
    let list = json!([
        {"symbol": "A", "side": "Long", "quantity": "5"},
        {"symbol": "B", "side": "Long", "quantity": "5", "marketValue": "600"},
    ]);
    let selection = select_with(reduce_to("50"), list, Ok("1000"), None).unwrap();
    assert_eq!(closes(&selection), [("B", "5")]);
    assert_eq!(kept(&selection), [("A", "what it is worth is not known")]);
}

#[test]
fn more_than_a_status_holds_is_refused() {
    let position =
        |n: usize| json!({"symbol": format!("S{n}"), "side": "Long", "quantity": "1", "unrealizedLossPercent": "50"});
    let spec = || json!({"action": "CloseMatching", "closeMatching": {"unrealizedLossBelowPercent": "10"}});
    let list = |n: usize| Value::Array((0..n).map(position).collect());
    assert_eq!(select_with(spec(), list(LIMIT), Err("-"), None).unwrap().closes.len(), LIMIT);
    assert!(select_with(spec(), list(LIMIT + 1), Err("-"), None).unwrap_err().contains("CloseAll"));
}

fn one(held: &str, quantity: &str) -> PositionSelection {
    PositionSelection {
        evaluated_at: MicroTime(NOW.parse().unwrap()),
        equity: None,
        exposure: None,
        closes: vec![SelectedPosition {
            symbol: "A".into(),
            side: PositionSide::Long,
            held: held.into(),
            quantity: quantity.into(),
            why: "a test".into(),
            state: CloseState::Closing,
            attempts: 1,
            closed: None,
            still_held: None,
        }],
        not_judged: vec![],
        not_judged_more: 0,
    }
}

/// A position of ten, of which four are selected: what is left of it, and what is sent next.
#[rstest]
#[case::nothing_moved(json!([{"symbol": "A", "side": "Long", "quantity": "10"}]), None, Some("4"))]
#[case::a_part_was_filled(json!([{"symbol": "A", "side": "Long", "quantity": "8.5"}]), Some("1.5"), Some("2.5"))]
#[case::all_was_filled(json!([{"symbol": "A", "side": "Long", "quantity": "6"}]), Some("4"), None)]
#[case::somebody_closed_more(json!([{"symbol": "A", "side": "Long", "quantity": "1"}]), Some("9"), None)]
#[case::it_is_gone(json!([]), Some("10"), None)]
#[case::it_goes_the_other_way(json!([{"symbol": "A", "side": "Short", "quantity": "-3"}]), Some("10"), None)]
fn what_was_selected_is_followed(#[case] now: Value, #[case] closed: Option<&str>, #[case] next: Option<&str>) {
    let (followed, lost) = follow(&one("10", "4"), &positions(now.clone()), false);
    assert_eq!((followed.closes[0].closed.as_deref(), lost.len()), (closed, 0));
    assert_eq!(followed.closes[0].state, CloseState::Closing, "nothing is done before it was read often enough");
    assert_eq!(due(&followed, false, &lost), [], "an attempt is not repeated while something moves");
    let again: Vec<_> = due(&followed, true, &lost).into_iter().map(|i| i.quantity).collect();
    assert_eq!(again, next.into_iter().map(str::to_owned).collect::<Vec<_>>());
    let (settled, _) = follow(&followed, &positions(now), true);
    assert_eq!(settled.closes[0].state == CloseState::Closed, next.is_none());
}

/// What was once gone counts, even if somebody bought it back: no more is closed than was selected.
#[test]
fn never_more_than_selected_is_closed() {
    let held = |quantity: &str| positions(json!([{"symbol": "A", "side": "Long", "quantity": quantity}]));
    let (part, _) = follow(&one("10", "4"), &held("7"), false);
    let (back, lost) = follow(&part, &held("10"), true);
    assert_eq!(due(&back, true, &lost)[0].quantity, "1");
    let (all, _) = follow(&part, &held("6"), true);
    assert_eq!(all.closes[0].state, CloseState::Closed);
    let (still, lost) = follow(&all, &held("20"), true);
    assert_eq!((due(&still, true, &lost), lost), (vec![], vec![]), "what is done stays done");
}

#[rstest]
#[case(json!([{"symbol": "A", "side": "Long", "quantity": "10.1"}]), "it grew from 10 to 10.1")]
#[case(json!([{"symbol": "A", "side": "Long", "quantity": "?"}]), "its quantity or side is not known")]
#[case(json!([{"symbol": "A", "quantity": "5"}]), "its quantity or side is not known")]
fn what_cannot_be_followed_is_left_alone(#[case] now: Value, #[case] why: &str) {
    let (followed, lost) = follow(&one("10", "4"), &positions(now), true);
    assert!(lost[0].why.starts_with(why), "{lost:?}");
    assert_eq!(due(&followed, true, &lost), []);
    assert_eq!(followed.closes[0].state, CloseState::Closing);
}

#[test]
fn an_attempt_has_an_id_of_its_own() {
    let item = |symbol: &str, side: &str| Item { symbol: symbol.into(), side: side.into(), ..Item::default() };
    let uid = "0f8fad5b-d9cb-469f-a165-70867728950e";
    let id = |uid: &str, symbol: &str, side: &str, n| client_order_id(uid, "alpaca", &item(symbol, side), n);
    let first = id(uid, "BTC/USD", "sell", 1);
    assert_eq!(first, id(uid, "BTC/USD", "sell", 1));
    assert!(first.starts_with("sf-0f8fad5b-") && first.len() <= 36, "{first}");
    assert!(first.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{first}");
    for other in [id(uid, "BTC/USD", "sell", 2), id(uid, "BTC/USD", "buy", 1), id(uid, "ETH/USD", "sell", 1)] {
        assert!(other != first && is_ours(&other));
    }
    assert_ne!(id("1f8fad5b-d9cb-469f-a165-70867728950e", "BTC/USD", "sell", 1), first);
    for foreign in ["", "sf-", "sf-1-2-3", "bot-0f8fad5b-0123456789ab-1", "sf-0f8fad5b-0123456789ab-x"] {
        assert!(!is_ours(foreign), "{foreign}");
    }
}

#[rstest]
#[case(json!({}), json!({"action": "ReduceTo"}), Some("closePosition and openPositions and equity"))]
#[case(json!({"closePosition": {"http": {"url": "https://h/{symbol}"}}, "openPositions": [{"http": {"url": "https://h"}}]}),
    json!({"action": "CloseMatching", "closeMatching": {"heldLongerThan": "1h"}}), Some("openPositions.fields.openedAt"))]
#[case(json!({"closePosition": {"http": {"url": "https://h/{symbol}"}}, "openPositions": [{"http": {"url": "https://h"}, "count": "$.n"}],
    "equity": {"http": {"url": "https://h"}, "path": "$.equity"}}),
    json!({"action": "ReduceTo"}), Some("openPositions that list them (count only counts)"))]
#[case(json!({"closePosition": {"http": {"url": "https://h/{symbol}"}}, "openPositions": [{"http": {"url": "https://h"}}], "quantityStep": "1",
    "equity": {"http": {"url": "https://h"}, "path": "$.equity"}}),
    json!({"action": "ReduceTo"}), Some("{quantity} in closePosition, which quantityStep is for"))]
#[case(json!({"closePosition": {"http": {"url": "https://h/{symbol}?qty={quantity}"}}, "openPositions": [{"http": {"url": "https://h"}}],
    "quantityStep": "1", "equity": {"http": {"url": "https://h"}, "path": "$.equity"}}), json!({"action": "ReduceTo"}), None)]
#[case(json!({}), json!({"action": "CloseAll"}), Some("closePosition and openPositions"))]
fn what_a_venue_lacks_is_named(#[case] extra: Value, #[case] spec: Value, #[case] expected: Option<&str>) {
    let mut venue = json!({"name": "alpaca"});
    for (name, value) in extra.as_object().unwrap() {
        venue[name] = value.clone();
    }
    assert_eq!(lacks(&serde_json::from_value(venue).unwrap(), &asked(spec)).as_deref(), expected);
}

prop_compose! {
    fn any_position(number: usize)(
        short in any::<bool>(),
        quantity in 1..1_000_000_u64,
        scale in 0..6_u32,
        price in 1..10_000_000_u64,
        known in proptest::bool::weighted(0.9),
    ) -> PositionSummary {
        let quantity = Decimal::new(i64::try_from(quantity).unwrap(), scale) * if short { Decimal::NEGATIVE_ONE } else { Decimal::ONE };
        let value = quantity * Decimal::new(i64::try_from(price).unwrap(), 3);
        PositionSummary {
            symbol: Some(format!("S{number}")),
            side: Some(if short { PositionSide::Short } else { PositionSide::Long }),
            quantity: Some(text(quantity)),
            market_value: known.then(|| text(value)),
            unrealized_loss_percent: None,
            opened_at: None,
        }
    }
}

fn any_positions() -> impl Strategy<Value = Vec<PositionSummary>> {
    (0..12_usize).prop_flat_map(|n| (0..n).map(any_position).collect::<Vec<_>>())
}

proptest! {
    /// What is left is worth at most the target, the largest went first, nothing is closed beyond its size, parts are
    /// whole steps, and nothing is closed that was not needed.
    /// S0-44
    #[test]
    fn s0_44_the_rest_is_worth_at_most_the_target(
        list in any_positions(),
        equity in 1..100_000_000_u32,
        percent in 1..1000_u32,
        step in proptest::option::of((1..5000_u32, 0..5_u32)),
    ) {
        let step = step.map(|(n, scale)| Decimal::new(n.into(), scale));
        let (equity, step_text) = (equity.to_string(), step.map(text));
        let account = Account { positions: &list, equity: Ok(&equity), step: step_text.as_deref(), as_of: NOW.parse().unwrap() };
        let selection = select(&asked(reduce_to(&percent.to_string())), &account).unwrap();
        let target = exact(&equity).unwrap() * Decimal::from(percent) / Decimal::ONE_HUNDRED;
        let known = |p: &&PositionSummary| p.market_value.is_some();
        let value = |p: &PositionSummary| exact(p.market_value.as_deref().unwrap()).unwrap().abs();
        let size = |p: &PositionSummary| exact(p.quantity.as_deref().unwrap()).unwrap().abs();
        let of = |c: &SelectedPosition| list.iter().find(|p| p.symbol.as_deref() == Some(&c.symbol)).unwrap();
        let exposure: Decimal = list.iter().filter(known).map(value).sum();
        // In units that need no division: value × closed, against value × size.
        let mut left = exposure;
        let mut last = None;
        for (n, close) in selection.closes.iter().enumerate() {
            let (position, closed) = (of(close), exact(&close.quantity).unwrap());
            prop_assert!(left > target, "closed without need");
            prop_assert!(closed > Decimal::ZERO && closed <= size(position));
            prop_assert!(last.is_none_or(|last| last >= value(position)), "not the largest first");
            prop_assert_eq!(&close.held, &text(size(position)));
            last = Some(value(position));
            if closed < size(position) {
                prop_assert_eq!(n + 1, selection.closes.len(), "only the last one is closed in part");
                let step = step.expect("parts need a step");
                prop_assert!((closed % step).is_zero(), "not in whole steps");
                prop_assert!(value(position) * closed >= (left - target) * size(position), "too little is closed");
                prop_assert!(value(position) * (closed - step) < (left - target) * size(position), "a step too much");
                left = target;
            } else {
                left -= value(position);
            }
        }
        prop_assert!(left <= target, "{} is left of {}", left, target);
        prop_assert_eq!(selection.not_judged.len(), list.iter().filter(|p| p.market_value.is_none()).count());
    }

    /// However the position moves, the closes that are sent add up to no more than was selected if each is filled.
    #[test]
    fn attempts_never_add_up_to_more_than_was_selected(
        held in 1..1000_i64, part in 1..1000_i64,
        moves in proptest::collection::vec((0..1000_i64, 0..1000_i64, any::<bool>()), 0..20),
    ) {
        let part = part.min(held);
        let mut selection = one(&held.to_string(), &part.to_string());
        selection.closes[0].state = CloseState::Selected;
        let (mut now, mut sent) = (held, 0);
        for (fill, bought, settled) in moves {
            let list = positions(json!([{"symbol": "A", "side": "Long", "quantity": now.to_string()}]));
            let (followed, lost) = follow(&selection, &list, settled);
            selection = followed;
            if let [item] = due(&selection, settled, &lost).as_slice() {
                let wanted: i64 = item.quantity.parse().unwrap();
                attempt(&mut selection, item);
                // Filled as far as the venue likes, and read before anybody else trades.
                let filled = fill.min(wanted);
                (now, sent) = (now - filled, sent + filled);
                let list = positions(json!([{"symbol": "A", "side": "Long", "quantity": now.to_string()}]));
                selection = follow(&selection, &list, false).0;
            }
            prop_assert!(sent <= part, "{} of {} were closed", sent, part);
            now += bought % 3;
        }
    }

    #[test]
    fn never_panics(quantity in ".{0,30}", value in ".{0,30}", equity in ".{0,30}", step in ".{0,10}", percent in ".{0,10}") {
        let list = json!([{"symbol": "A", "side": "Long", "quantity": quantity, "marketValue": value, "unrealizedLossPercent": value}]);
        let _ = select_with(reduce_to(&percent), list.clone(), Ok(&equity), Some(&step));
        let spec = json!({"action": "CloseMatching", "closeMatching": {"unrealizedLossBelowPercent": percent}});
        let _ = select_with(spec, list, Ok(&equity), None);
    }
}
