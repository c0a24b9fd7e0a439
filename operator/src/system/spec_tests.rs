use rstest::rstest;
use serde_json::{Value, json};

use super::*;

fn spec(venue: Value) -> TradingSystemSpec {
    let mut venue = venue;
    venue["name"] = json!("alpaca");
    serde_json::from_value(json!({
        "workloads": [{"kind": "Deployment", "name": "bot", "role": "Trading"}],
        "venues": [venue],
    }))
    .unwrap()
}

fn reasons(problems: &[Problem]) -> Vec<&str> {
    problems.iter().map(|p| p.reason.as_str()).collect()
}

#[rstest]
#[case(json!({"cancelOrders": [{"http": {"url": "ftp://h/x"}}]}), "spec.venues[alpaca].cancelOrders[0]: url: ")]
#[case(json!({"cancelOrders": [{"http": {"url": "https://u:p@h/x"}}]}), "spec.venues[alpaca].cancelOrders[0]: url: ")]
#[case(json!({"cancelOrders": [{"http": {"url": "https://h/{id}"}}]}), "spec.venues[alpaca].cancelOrders[0]: url: ")]
#[case(json!({"openOrders": [{"http": {"url": "https://h/x"}, "items": "$["}]}), "spec.venues[alpaca].openOrders[0]: items: ")]
#[case(json!({"openOrders": [{"http": {"url": "https://h/x"}, "count": "n"}]}), "spec.venues[alpaca].openOrders[0]: count: ")]
#[case(json!({"openPositions": [{"http": {"url": "https://h/x"}, "next": "]"}]}), "spec.venues[alpaca].openPositions[0]: next: ")]
#[case(json!({"marketOpen": {"http": {"url": "https://h/x"}, "path": "open", "expect": {"equals": true}}}), "spec.venues[alpaca].marketOpen: path: ")]
#[case(json!({"tradingSuspended": {"http": {"url": "https://h/x"}, "path": "$.a", "expect": {"atLeast": "x"}}}), "spec.venues[alpaca].tradingSuspended: expect.atLeast: ")]
#[case(json!({"cancelOrder": {"http": {"url": "https://h/orders"}}}), "spec.venues[alpaca].cancelOrder: neither url nor body has {id}")]
#[case(json!({"closePosition": {"http": {"url": "https://h/{quantity}"}}}), "spec.venues[alpaca].closePosition: neither url nor body has {id} or {symbol}")]
fn what_cannot_be_right_is_named_with_its_field(#[case] venue: Value, #[case] message: &str) {
    let problems = invalid(&spec(venue));
    assert_eq!(reasons(&problems), ["InvalidSpec"], "{problems:?}");
    assert!(problems[0].message.starts_with(message), "{}", problems[0].message);
}

#[rstest]
#[case(json!({"cancelOrder": {"http": {"url": "https://h/orders/{id}"}}}))]
#[case(json!({"cancelOrder": {"http": {"method": "POST", "url": "https://h/cancel", "body": {"order": "{id}"}}}}))]
#[case(json!({"closePosition": {"http": {"url": "https://h/positions/{symbol}"}}}))]
#[case(json!({"openOrders": [{"http": {"url": "https://h/x"}, "items": "$.orders[*]", "pageSize": 500}]}))]
fn what_can_be_right_is_not(#[case] venue: Value) {
    assert_eq!(invalid(&spec(venue)), []);
}

#[test]
fn checks_are_looked_at_too() {
    let mut spec = spec(json!({}));
    spec.checks = serde_json::from_value(json!([
        {"name": "a", "group": "data", "http": {"request": {"url": "https://h/x"}, "path": "x", "expect": {"equals": 1}}},
        {"name": "b", "group": "data", "http": {"request": {"url": "https://"}}},
        {"name": "c", "group": "data", "sql": {"connectionSecretRef": {"name": "s", "key": "k"}, "query": "SELECT 1", "expect": {"equals": [1]}}},
    ]))
    .unwrap();
    let messages: Vec<_> = invalid(&spec).into_iter().map(|p| p.message).collect();
    assert_eq!(messages.len(), 3);
    for (message, start) in
        messages.iter().zip(["checks[a].http: path", "checks[b].http.request: url", "checks[c].sql"])
    {
        assert!(message.starts_with(&format!("spec.{start}")), "{message}");
    }
}

#[rstest]
#[case(json!({}), false, &["CancelOrdersMissing", "OpenOrdersNotReadable"])]
#[case(json!({"cancelOrders": [{"http": {"url": "https://h"}}], "openOrders": [{"http": {"url": "https://h"}}]}), false, &[])]
#[case(json!({"cancelOrders": [{"http": {"url": "https://h"}}], "openOrders": [{"http": {"url": "https://h"}}]}), true, &["ClosePositionsMissing"])]
#[case(json!({
    "cancelOrders": [{"http": {"url": "https://h"}}], "openOrders": [{"http": {"url": "https://h"}}],
    "closePositions": [{"http": {"url": "https://h"}}], "openPositions": [{"http": {"url": "https://h"}}],
}), true, &[])]
fn what_a_halt_needs_is_asked_for(#[case] venue: Value, #[case] closing: bool, #[case] expected: &[&str]) {
    let mut spec = spec(venue);
    if closing {
        spec.halt_policy.allowed_position_actions.push(PositionAction::CloseAll);
    }
    assert_eq!(reasons(&lacking(&spec)), expected);
}

#[test]
fn a_system_without_venues_is_told() {
    let mut spec = spec(json!({}));
    spec.venues.clear();
    assert_eq!(reasons(&lacking(&spec)), ["NoVenues"]);
    assert_eq!(cancel_path(&spec), "None");
}

#[rstest]
#[case(json!([]), "None")]
#[case(json!([{"http": {"url": "https://h"}}]), "HTTP")]
#[case(json!([{"http": {"url": "https://h"}}, {"job": {"image": "bot"}}]), "Job (slow)")]
fn the_slowest_way_of_cancelling_is_shown(#[case] actions: Value, #[case] expected: &str) {
    assert_eq!(cancel_path(&spec(json!({"cancelOrders": actions}))), expected);
}

/// S0-01
#[rstest]
#[case(json!({"rto": {"maximum": "1h"}, "rpo": {"maximum": "24h"}}), Some("RTO 1h, RPO 24h"))]
#[case(
    json!({"rto": {"target": "15m", "maximum": "1h"}, "rpo": {"target": "1m", "maximum": "5m"}, "lostTrades": {"maximum": 5}}),
    Some("RTO 1h (target 15m), RPO 5m (target 1m), at most 5 lost trades")
)]
#[case(json!({"lostTrades": {"maximum": 0}}), Some("no lost trades"))]
#[case(json!({}), None)]
fn objectives_are_said_in_words(#[case] objectives_json: Value, #[case] expected: Option<&str>) {
    let mut spec = spec(json!({}));
    spec.objectives = serde_json::from_value(objectives_json).unwrap();
    assert_eq!(objectives(&spec).as_deref(), expected);
}

#[rstest]
#[case("trading-bot.trading.svc", Some("trading-bot"))]
#[case("trading-bot.trading.svc.cluster.local", Some("trading-bot"))]
#[case("bot-0.trading-bot.trading.svc.", Some("trading-bot"))]
#[case("trading-bot.trading", Some("trading-bot"))]
#[case("trading-bot.other.svc", None)]
#[case("paper-api.alpaca.markets", None)]
#[case("alpaca.markets", None)]
fn hosts_of_services_are_known(#[case] host: &str, #[case] service: Option<&str>) {
    assert_eq!(service_of("trading", host).as_deref(), service);
}

#[test]
fn requests_and_jobs_have_the_names_of_their_fields() {
    let mut spec = spec(json!({
        "cancelOrders": [{"http": {"url": "https://h"}}, {"job": {"image": "bot"}}],
        "allowTrading": [{"http": {"url": "https://h"}}],
        "cancelOrder": {"http": {"url": "https://h/{id}"}},
        "openOrders": [{"job": {"image": "bot"}}],
    }));
    spec.application_halt = serde_json::from_value(json!({"request": {"url": "https://bot"}})).unwrap();
    let found = requests(&spec);
    let names: Vec<_> = found.iter().map(|(n, r)| (n.as_str(), r.per_item, r.under_halt, r.best_effort)).collect();
    assert_eq!(
        names,
        [
            ("venues[alpaca].allowTrading[0]", false, false, false),
            ("venues[alpaca].cancelOrders[0]", false, true, false),
            ("venues[alpaca].cancelOrder", true, true, false),
            ("applicationHalt.request", false, false, true),
        ]
    );
    let jobs: Vec<_> = jobs(&spec).into_iter().map(|(name, _)| name).collect();
    assert_eq!(jobs, ["venues[alpaca].cancelOrders[1]", "venues[alpaca].openOrders[0]"]);
}
