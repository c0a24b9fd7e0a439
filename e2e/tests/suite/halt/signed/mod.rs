//! Exchanges that take signed requests only are halted by the operator itself.

mod exchange;

use anyhow::Result;
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{
    ActionState, HaltPhase, TradingHalt, TradingHaltStatus, TradingSystem, halt_conditions as c,
};
use standfast_e2e::world::World;

use self::exchange::{Exchanges, KEY, SECRET};
use super::{message, says};
use crate::plane::world;

/// The three exchanges as venues, with what cancels and what reads.
fn venues(url: &str) -> Value {
    let auth = |venue: &str| {
        json!({venue: {"apiKeyRef": {"name": "exchanges", "key": "key"},
            "apiSecretRef": {"name": "exchanges", "key": "secret"}}})
    };
    let request = |venue: &str, method: &str, path: &str, body: Value| json!({"http": {"method": method, "url": format!("{url}{path}"), "auth": auth(venue), "body": body}});
    let linear = json!({"category": "linear", "settleCoin": "USDT"});
    let cancel =
        |symbol: &str| request("binance", "DELETE", &format!("/api/v3/openOrders?symbol={symbol}"), Value::Null);
    let read = |mut request: Value, items: &str, fields: Value| {
        (request["items"], request["fields"]) = (items.into(), fields);
        request
    };
    json!([
        {
            "name": "binance",
            "cancelOrders": [cancel("BTCUSDT"), cancel("ETHUSDT")],
            "openOrders": [read(request("binance", "GET", "/api/v3/openOrders", Value::Null), "$[*]",
                json!({"id": "$.orderId", "clientOrderId": "$.clientOrderId", "quantity": "$.origQty"}))],
        },
        {
            "name": "bybit",
            "cancelOrders": [request("bybit", "POST", "/v5/order/cancel-all", linear)],
            "openOrders": [read(
                request("bybit", "GET", "/v5/order/realtime?category=linear&settleCoin=USDT&limit=50", Value::Null),
                "$.result.list[*]",
                json!({"id": "$.orderId", "clientOrderId": "$.orderLinkId"}),
            )],
        },
        {
            "name": "kraken",
            "cancelOrders": [request("kraken", "POST", "/0/private/CancelAll", Value::Null)],
            "openOrders": [read(request("kraken", "POST", "/0/private/OpenOrders", json!({"trades": false})),
                "$.result.open.*",
                json!({"symbol": "$.descr.pair", "type": "$.descr.ordertype", "side": "$.descr.type", "quantity": "$.vol"}))],
        },
    ])
}

/// A bot with orders at three exchanges.
async fn at_exchanges(name: &str) -> Result<(World, Exchanges)> {
    let (world, exchanges) = (world(name).await?, Exchanges::open().await?);
    world.bot("bot", 1).await?;
    world
        .create::<Secret>(json!({"metadata": {"name": "exchanges", "labels": {"standfast.dev/use": "true"},
            "annotations": {"standfast.dev/allowed-hosts": "127.0.0.1"}}, "stringData": {"key": KEY, "secret": SECRET}}))
        .await?;
    world.system(&["bot"], json!({"venues": venues(&exchanges.url)})).await?;
    exchanges.books().orders = [
        ("binance", vec!["BTCUSDT", "ETHUSDT", "BTCUSDT"]),
        ("bybit", vec!["BTCUSDT"]),
        ("kraken", vec!["XBTUSD", "ETHUSD"]),
    ]
    .into();
    Ok((world, exchanges))
}

/// What the halt says became of an action.
fn action<'a>(status: &'a TradingHaltStatus, name: &str) -> (Option<ActionState>, &'a str) {
    let action = status.actions.iter().find(|a| a.name == name);
    (action.map(|a| a.state), action.and_then(|a| a.message.as_deref()).unwrap_or_default())
}

/// No signature and no secret stands where people can read it.
async fn nothing_leaked(world: &World, exchanges: &Exchanges) -> Result<()> {
    let halt = serde_json::to_string(&world.api::<TradingHalt>().get("stale").await?)?;
    let system = serde_json::to_string(&world.api::<TradingSystem>().get("system").await?)?;
    let (_, events) = world.kubectl(&["get", "events", "-o", "yaml"], "").await?;
    let books = exchanges.books();
    assert!(!books.signatures.is_empty());
    for text in [halt, system, events] {
        assert!(!text.contains(SECRET) && !text.contains(KEY), "{text}");
        let leaked = books.signatures.iter().filter(|s| !s.is_empty()).find(|s| text.contains(s.as_str()));
        assert_eq!(leaked, None, "{text}");
    }
    Ok(())
}

/// S0-33
#[tokio::test]
async fn s0_33_exchanges_that_want_signatures_are_cancelled_and_read_by_the_operator() -> Result<()> {
    let (world, exchanges) = at_exchanges("signed").await?;
    let operator = world.operator().await?;
    world.system_until("system", "HTTP is the way", |s| s.cancel_path.as_deref() == Some("HTTP")).await?;
    world.halt("stale", json!({})).await?;
    let status = world.halted("stale").await?;
    assert_eq!(status.open_orders, Some(0));
    for (name, orders) in &exchanges.books().orders {
        assert_eq!(orders, &Vec::<&str>::new(), "{name}");
    }
    for name in ["binance/cancelOrders/0", "binance/cancelOrders/1", "bybit/cancelOrders/0", "kraken/cancelOrders/0"] {
        assert_eq!(action(&status, name).0, Some(ActionState::Done), "{name}: {}", action(&status, name).1);
    }
    {
        let books = exchanges.books();
        // Whoever cancels where nothing is, is told so; nothing else was refused.
        let refused: Vec<_> = books.refused.iter().filter(|(_, why)| *why != "Unknown order sent.").collect();
        assert_eq!(refused, Vec::<&(&str, &str)>::new());
        assert!(books.nonces.len() > 3 && books.nonces.is_sorted(), "{:?}", books.nonces);
    }
    // A second operator goes on with greater nonces.
    let before = exchanges.books().nonces.len();
    drop(operator);
    let _second = world.operator().await?;
    world
        .until("the second operator reads", async || Ok((exchanges.books().nonces.len() > before).then_some(())))
        .await?;
    assert!(exchanges.books().nonces.is_sorted());
    nothing_leaked(&world, &exchanges).await
}

/// S0-33: what an exchange refuses is neither done nor zero, and it is told why.
#[tokio::test]
async fn s0_33_a_clock_that_differs_is_named_and_proves_nothing() -> Result<()> {
    let (world, exchanges) = at_exchanges("skew").await?;
    exchanges.books().ahead = 3_600_000;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    let named = |s: &TradingHaltStatus| {
        let cancels = ["binance/cancelOrders/0", "bybit/cancelOrders/0"].map(|name| action(s, name));
        s.phase == HaltPhase::Unverified
            && message(s, c::ORDERS_CANCELLED).contains("clock skew")
            && cancels.iter().all(|(state, said)| *state == Some(ActionState::Failed) && said.contains("clock skew"))
    };
    let status = world.halt_until("stale", "the clock is named", named).await?;
    assert_eq!(says(&status, c::ORDERS_CANCELLED), ("Unknown", "OrdersNotRead"));
    assert_eq!((status.open_orders, &status.times.halted_at), (None, &None));
    assert!(action(&status, "bybit/cancelOrders/0").1.contains("differs from the venue's by -3"), "{status:#?}");
    // Kraken does not look at the time.
    assert_eq!(exchanges.books().orders["kraken"], Vec::<&str>::new());
    nothing_leaked(&world, &exchanges).await?;
    exchanges.books().ahead = 0;
    world.halted("stale").await?;
    assert!(exchanges.books().orders.values().all(Vec::is_empty));
    Ok(())
}
