//! Several venues, several classes of orders, and venues that are reached by Jobs.

use anyhow::{Context, Result};
use k8s_openapi::api::{batch::v1::Job, core::v1::Secret};
use kube::api::ListParams;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{ActionState, HaltPhase, TradingHaltStatus, halt_conditions as c};
use standfast_e2e::{
    venue::{Action, Fault, NewOrder, PaperVenue, Side},
    world::{KEY, SECRET, World},
};

use super::{message, says};
use crate::plane::world;

/// The account of another class of orders at the same venue, such as margin beside spot.
const MARGIN: &str = "PK-MARGIN";

/// Places a resting order.
fn rest(venue: &PaperVenue, key: &str) -> Result<()> {
    let order = NewOrder::limit("AAPL", Side::Buy, 1, 50);
    venue.place_order(key, &order).map(drop).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))
}

/// The same JSON with other words in it.
fn with(value: &Value, words: &[(&str, &str)]) -> Result<Value> {
    let text = words.iter().fold(value.to_string(), |text, (old, new)| text.replace(old, new));
    Ok(serde_json::from_str(&text)?)
}

/// S0-33: all classes of orders, at all venues.
#[tokio::test]
async fn s0_33_every_class_of_orders_at_every_venue_is_zero() -> Result<()> {
    let world = world("classes").await?;
    world.bot("bot", 1).await?;
    let second = PaperVenue::start().await;
    second.account(KEY, SECRET);
    world.venue.account(MARGIN, SECRET);
    world
        .create::<Secret>(json!({
            "metadata": {"name": "margin", "labels": {"standfast.dev/use": "true"},
                "annotations": {"standfast.dev/allowed-hosts": "127.0.0.1"}},
            "stringData": {"key-id": MARGIN, "secret-key": SECRET}}))
        .await?;
    let mut first = world.venue_spec();
    for action in ["cancelOrders", "openOrders"] {
        let margin = with(&first[action][0], &[(r#""name":"alpaca""#, r#""name":"margin""#)])?;
        first[action].as_array_mut().context("no list")?.push(margin);
    }
    let mut other = with(&world.venue_spec(), &[(&world.venue_url, &second.url())])?;
    other["name"] = "second".into();
    world.system(&["bot"], json!({"venues": [first, other]})).await?;
    let _operator = world.operator().await?;
    for (venue, key) in [(&world.venue, KEY), (&world.venue, MARGIN), (&second, KEY)] {
        rest(venue, key)?;
    }

    // One class of one venue is not cancelled, then one venue, then one class cannot be read.
    let open = |s: &TradingHaltStatus| -> Vec<_> { s.venues.iter().map(|v| (v.name.clone(), v.open_orders)).collect() };
    let counts =
        |first: i64, second: i64| vec![("alpaca".to_owned(), Some(first)), ("second".to_owned(), Some(second))];
    let margin = world.venue.fault(Fault::on("DELETE", "/v2/orders", Action::status(500)).account(MARGIN));
    let all = second.fault(Fault::on("DELETE", "/v2/orders", Action::status(500)));
    world.halt("stale", json!({})).await?;
    let left = |counts: Vec<(String, Option<i64>)>| {
        move |s: &TradingHaltStatus| s.running_pods == Some(0) && open(s) == counts
    };
    let status = world.halt_until("stale", "both are left", left(counts(1, 1))).await?;
    assert_eq!((status.phase, status.open_orders), (HaltPhase::Fencing, Some(2)));
    world.venue.remove_fault(margin);
    let status = world.halt_until("stale", "the second venue is left", left(counts(0, 1))).await?;
    assert_eq!((status.phase, says(&status, c::ORDERS_CANCELLED)), (HaltPhase::Fencing, ("False", "OrdersOpen")));
    let unread = world.venue.fault(Fault::on("GET", "/v2/orders", Action::status(500)).account(MARGIN));
    second.remove_fault(all);
    let unknown = |s: &TradingHaltStatus| s.phase == HaltPhase::Unverified;
    let status = world.halt_until("stale", "one class cannot be read", unknown).await?;
    assert_eq!(says(&status, c::ORDERS_CANCELLED), ("Unknown", "OrdersNotRead"));
    assert!(message(&status, c::ORDERS_CANCELLED).starts_with("venue alpaca: "), "{status:#?}");
    assert_eq!((status.open_orders, status.times.halted_at), (None, None));
    world.venue.remove_fault(unread);

    let status = world.halted("stale").await?;
    assert_eq!((open(&status), status.open_orders), (counts(0, 0), Some(0)));
    let at_venues = [(&world.venue, KEY), (&world.venue, MARGIN), (&second, KEY)].map(|(v, k)| v.open_orders(k).len());
    assert_eq!(at_venues, [0, 0, 0]);
    Ok(())
}

/// A bot whose venue can only be reached by programs: one cancels, one says how many orders are open.
async fn by_jobs(name: &str, says: &str) -> Result<World> {
    let world = world(name).await?;
    world.bot("bot", 1).await?;
    let venue = json!({"name": "exchange",
        "cancelOrders": [{"job": {"image": "cancel", "args": ["--all"]}}], "openOrders": [{"job": {"image": "count"}}]});
    let policy = json!({"verifyInterval": "100ms", "verifyReads": 1});
    world.system(&["bot"], json!({"venues": [venue], "haltPolicy": policy})).await?;
    world.node.set_program("cancel", 0, "");
    world.node.set_program("count", 0, says);
    Ok(world)
}

/// What the halt says that became of the Job that cancels.
fn cancel(status: &TradingHaltStatus) -> Option<(ActionState, &str)> {
    let action = status.actions.iter().find(|a| a.name == "exchange/cancelOrders/0")?;
    Some((action.state, action.message.as_deref().unwrap_or_default()))
}

/// S0-33
#[tokio::test]
async fn s0_33_a_venue_that_jobs_reach_is_halted_when_the_answer_of_a_job_says_so() -> Result<()> {
    let world = by_jobs("job", r#"{"openOrders": []}"#).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    let status = world.halted("stale").await?;
    assert_eq!((status.open_orders, status.venues[0].open_orders), (Some(0), Some(0)));
    let done = |s: &TradingHaltStatus| {
        cancel(s).is_some_and(|(state, said)| state == ActionState::Done && said.ends_with(" succeeded"))
    };
    world.halt_until("stale", "the end of the Job that cancels is told", done).await?;
    // What became of them is recorded: none is left to fill the cluster.
    let jobs = ListParams::default().labels("standfast.dev/job=true");
    world
        .until("no Job is left", async || Ok(world.api::<Job>().list(&jobs).await?.items.is_empty().then_some(())))
        .await
}

/// S0-33
#[tokio::test]
async fn s0_33_a_job_that_finds_an_order_keeps_the_system_from_being_halted() -> Result<()> {
    let world = by_jobs("job-open", r#"{"openOrders": 1}"#).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    let counted = |s: &TradingHaltStatus| s.running_pods == Some(0) && s.open_orders == Some(1);
    let status = world.halt_until("stale", "the order is counted", counted).await?;
    assert_eq!(says(&status, c::ORDERS_CANCELLED), ("False", "OrdersOpen"));
    assert_eq!((status.phase, status.times.halted_at), (HaltPhase::Fencing, None));
    Ok(())
}

/// S0-33
#[tokio::test]
async fn s0_33_a_job_that_fails_or_says_nothing_is_no_answer() -> Result<()> {
    let world = by_jobs("job-ill", "all is well").await?;
    world.node.set_program("cancel", 3, "");
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    let unknown = |s: &TradingHaltStatus| {
        s.phase == HaltPhase::Unverified
            && message(s, c::ORDERS_CANCELLED).contains("its termination message is no JSON")
    };
    let status = world.halt_until("stale", "nothing is known", unknown).await?;
    assert_eq!(says(&status, c::ORDERS_CANCELLED), ("Unknown", "OrdersNotRead"));
    assert_eq!((status.open_orders, status.times.halted_at), (None, None));
    let failed = |s: &TradingHaltStatus| cancel(s).is_some_and(|(_, said)| said.contains("exit code 3"));
    world.halt_until("stale", "the failure is told", failed).await?;
    Ok(())
}
