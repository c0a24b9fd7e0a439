//! Halts on a real API server, against the paper venue.

mod approved;
mod close;
mod contention;
mod deletion;
mod group;
mod ill;
mod selection;
mod signed;
mod venues;
mod workloads;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{core::v1::Secret, events::v1::Event};
use kube::api::ListParams;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{HaltPhase, TradingHaltStatus, condition, halt_conditions as c, is_true};
use standfast_e2e::{
    venue::{Action, Behaviour, Decimal, Fault, NewOrder, PaperVenue, Side, bot::DemoBot},
    world::{KEY, Operator, SECRET, World},
};
use standfast_operator::halt::evidence;

use crate::plane::world;

/// A bot with pods, its system and an operator.
async fn trading(name: &str, replicas: i32, patch: Value) -> Result<(World, Operator)> {
    let world = world(name).await?;
    world.bot("bot", replicas).await?;
    world.system(&["bot"], patch).await?;
    let operator = world.operator().await?;
    Ok((world, operator))
}

/// A haltPolicy that allows closing.
fn may_close() -> Value {
    json!({"haltPolicy": {"allowedPositionActions": ["Keep", "CloseAll"]}})
}

fn close_all() -> Value {
    json!({"positions": {"action": "CloseAll"}})
}

/// Places `n` resting orders.
fn rest(venue: &PaperVenue, symbol: &str, n: usize) -> Result<()> {
    for price in 0..n {
        let order = NewOrder::limit(symbol, Side::Buy, 1, 50 + price as i64);
        venue.place_order(KEY, &order).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
    }
    Ok(())
}

/// Status and reason of a condition.
fn says<'a>(status: &'a TradingHaltStatus, type_: &str) -> (&'a str, &'a str) {
    condition(&status.conditions, type_).map_or(("", ""), |c| (c.status.as_str(), c.reason.as_str()))
}

fn message<'a>(status: &'a TradingHaltStatus, type_: &str) -> &'a str {
    condition(&status.conditions, type_).map_or("", |c| c.message.as_str())
}

/// Paths of the requests with this method, in order.
fn paths(venue: &PaperVenue, method: &str) -> Vec<String> {
    venue.requests(method, "").into_iter().map(|(_, request)| request.path).collect()
}

fn decimal(n: i64) -> Decimal {
    Decimal::from(n)
}

/// S0-32, S0-33, S1-16, S1-29, S1-30, S3-16
#[tokio::test]
async fn s0_33_a_halt_cancels_stops_and_proves_it() -> Result<()> {
    let (world, _operator) = trading("halt", 3, json!({})).await?;
    rest(&world.venue, "AAPL", 5)?;
    world.halt("stale", json!({})).await?;
    let status = world.halted("stale").await?;
    assert_eq!((status.open_orders, status.running_pods), (Some(0), Some(0)));
    assert_eq!(world.venue.open_orders(KEY).len(), 0);
    assert_eq!(world.replicas("bot").await?, 0);
    assert!(world.venue.suspended(KEY));
    evidence::verify(&status.evidence).expect("the chain holds");
    let refused = world.scale("bot", 3, "somebody").await.expect_err("the latch refuses");
    assert!(refused.to_string().contains("prices are stale"), "{refused}");
    // The workloads that the halt stopped itself are nobody's contention.
    assert_eq!(says(&status, c::CONTENDED).0, "False", "{}", message(&status, c::CONTENDED));
    Ok(())
}

/// S0-33
#[tokio::test]
async fn s0_33_the_first_read_tells_how_many_orders_there_were() -> Result<()> {
    let (world, _operator) = trading("count", 1, json!({})).await?;
    rest(&world.venue, "AAPL", 5)?;
    // The read starts with the first cancel: a venue that takes its time to cancel shows what it still has.
    world.venue.set_behaviour(Behaviour::slow_cancels(Duration::from_millis(500)));
    world.halt("stale", json!({})).await?;
    let status = world.halted("stale").await?;
    assert_eq!(status.venues[0].orders_before, Some(5));
    Ok(())
}

/// S0-33: a venue that cancels before it counts has none open any more.
#[tokio::test]
async fn s0_33_what_is_counted_after_the_first_cancel_is_not_said_of_before() -> Result<()> {
    let (world, _operator) = trading("uncounted", 1, json!({})).await?;
    world.system_until("system", "prepared", |s| is_true(&s.conditions, "Prepared")).await?;
    rest(&world.venue, "AAPL", 5)?;
    world.venue.fault(Fault::on("GET", "/v2/orders", Action::delay(Duration::from_millis(700))));
    world.halt("stale", json!({})).await?;
    world.halt_until("stale", "its first wave is over", |s| s.times.first_cancel_sent_at.is_some()).await?;
    world.venue.clear_faults();
    let status = world.halted("stale").await?;
    assert_eq!((status.venues[0].orders_before, status.venues[0].open_orders), (None, Some(0)));
    // Neither is one that comes back under the halt.
    let id = world.venue.orders(KEY)[0].id.clone();
    world.venue.revive_order(KEY, &id).expect("revived");
    let seen = |s: &TradingHaltStatus| s.evidence.entries.iter().filter(|e| e.event == "OrdersCancelled").count() == 2;
    let status = world.halt_until("stale", "seen and cancelled", seen).await?;
    assert_eq!((status.venues[0].orders_before, status.venues[0].open_orders), (None, Some(0)));
    Ok(())
}

#[tokio::test]
async fn kubectl_waits_for_a_halt_and_shows_it_on_one_line() -> Result<()> {
    let (world, _operator) = trading("columns", 1, json!({})).await?;
    world.halt("stale", json!({})).await?;
    let (done, said) = world.kubectl(&["wait", "halt/stale", "--for=condition=Halted", "--timeout=60s"], "").await?;
    assert!(done, "{said}");
    let (_, said) = world.kubectl(&["get", "halt", "stale"], "").await?;
    let lines: Vec<Vec<_>> = said.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(
        lines[0],
        ["NAME", "SYSTEM", "PHASE", "ORDERS", "PODS", "POSITIONS", "VERIFIED", "REASON", "AGE"],
        "{said}"
    );
    assert_eq!(lines[1][..6], ["stale", "system", "Halted", "0", "0", "0"], "{said}");
    Ok(())
}

/// S0-35
#[tokio::test]
async fn s0_35_the_portfolio_is_in_the_status() -> Result<()> {
    let (world, _operator) = trading("folio", 1, json!({})).await?;
    world.venue.set_position(KEY, "AAPL", 10, 90);
    world.halt("stale", json!({})).await?;
    let status = world.halted("stale").await?;
    let [held] = status.venues[0].positions.as_slice() else { panic!("{status:#?}") };
    assert_eq!((held.symbol.as_deref(), held.quantity.as_deref()), (Some("AAPL"), Some("10")));
    assert_eq!(status.open_positions, Some(1));
    Ok(())
}

/// S4-10
#[tokio::test]
async fn s4_10_orders_stay_where_the_halt_cancels_none() -> Result<()> {
    let (world, _operator) = trading("none", 1, json!({})).await?;
    rest(&world.venue, "AAPL", 2)?;
    world.halt("stop", json!({"orders": {"cancel": "None"}})).await?;
    let status = world.halted("stop").await?;
    assert_eq!(says(&status, c::ORDERS_CANCELLED), ("True", "NotRequested"));
    assert_eq!((status.open_orders, status.kept_orders, status.venues[0].orders_before), (Some(0), Some(2), Some(2)));
    assert_eq!(world.venue.open_orders(KEY).len(), 2);
    assert_eq!(paths(&world.venue, "DELETE"), Vec::<String>::new());
    assert_eq!(world.replicas("bot").await?, 0);
    Ok(())
}

/// S4-10
#[tokio::test]
async fn s4_10_protective_orders_stay_and_the_others_go_one_by_one() -> Result<()> {
    let (world, _operator) = trading("guard", 1, json!({})).await?;
    world.venue.set_position(KEY, "AAPL", 10, 90);
    let stop = world.venue.place_order(KEY, &NewOrder::stop("AAPL", Side::Sell, 10, 80)).expect("accepted");
    rest(&world.venue, "AAPL", 3)?;
    world.halt("stop", json!({"orders": {"cancel": "NonProtective"}})).await?;
    let status = world.halted("stop").await?;
    assert_eq!((status.open_orders, status.kept_orders), (Some(0), Some(1)));
    let left: Vec<_> = world.venue.open_orders(KEY).into_iter().map(|o| o.id).collect();
    assert_eq!(left, std::slice::from_ref(&stop.id));
    let cancels = paths(&world.venue, "DELETE");
    assert!(cancels.iter().all(|p| p != "/v2/orders" && !p.ends_with(&stop.id)), "{cancels:?}");
    Ok(())
}

/// S2-15
#[tokio::test]
async fn s2_15_the_bot_is_halted_with_its_token_and_its_own_status_and_the_venue_say_so() -> Result<()> {
    let world = world("bot").await?;
    world.bot("bot", 1).await?;
    let bot = DemoBot::start(&world.venue.url(), KEY, SECRET, &[]).await?;
    world
        .create::<Secret>(json!({
            "metadata": {"name": "bot", "labels": {"standfast.dev/use": "true"},
                "annotations": {"standfast.dev/allowed-hosts": "127.0.0.1"}},
            "stringData": {"token": bot.token}}))
        .await?;
    let auth = json!({"headers": [
        {"name": "Authorization", "prefix": "Bearer ", "secretKeyRef": {"name": "bot", "key": "token"}}]});
    // Without the venue's own switch, only the bot itself keeps from placing orders: its process goes on.
    let mut venue = world.venue_spec();
    venue["suspendTrading"] = json!([]);
    let own = json!({
        "request": {"method": "POST", "url": format!("{}/emergency/halt", bot.url), "auth": auth},
        "status": {"http": {"url": format!("{}/status/trading", bot.url)}, "path": "$.trading", "expect": {"equals": false}}});
    world.system(&["bot"], json!({"venues": [venue], "applicationHalt": own})).await?;
    let _operator = world.operator().await?;
    world.until("the bot has orders", async || Ok((world.venue.open_orders(KEY).len() > 1).then_some(()))).await?;
    world.halt("stale", json!({})).await?;
    let status = world.halted("stale").await?;
    assert_eq!(says(&status, c::VERIFIED).0, "True");
    let own = status.actions.iter().find(|a| a.name == "applicationHalt").context("no applicationHalt")?;
    let word = own.message.as_deref().unwrap_or_default();
    assert!(word.ends_with("answered 200; the bot says that it is halted"), "{own:?}\n{}", bot.log());
    assert_eq!(world.venue.open_orders(KEY), vec![]);
    Ok(())
}

/// S2-15
#[tokio::test]
async fn s2_15_a_bot_that_refuses_the_token_is_recorded_and_the_halt_goes_on() -> Result<()> {
    let world = world("token").await?;
    world.bot("bot", 1).await?;
    // The venue has no such endpoint and wants keys: it answers 401, as a bot does with a wrong token.
    let request = json!({"method": "POST", "url": format!("{}/emergency/halt", world.venue.url())});
    world.system(&["bot"], json!({"applicationHalt": {"request": request}})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    let status = world.halted("stale").await?;
    let own = status.actions.iter().find(|a| a.name == "applicationHalt").context("no applicationHalt")?;
    assert!(own.message.as_deref().is_some_and(|m| m.contains("401")), "{own:?}");
    Ok(())
}

/// S0-35
#[tokio::test]
async fn s0_35_the_evidence_of_two_halts_is_one_chain_that_names_who_asked() -> Result<()> {
    let (world, _operator) = trading("chain", 1, json!({})).await?;
    world.halt("first", json!({"requestedBy": "admin"})).await?;
    world.halted("first").await?;
    world.resume("go-on", "first").await?;
    let first = world.halt_until("first", "released", |s| s.phase == HaltPhase::Released).await?;
    world.halt("second", json!({})).await?;
    let second = world.halted("second").await?;
    for status in [&first, &second] {
        evidence::verify(&status.evidence).expect("the chain holds");
    }
    assert_eq!((first.evidence.previous_sha256.clone(), first.evidence.requested_by.as_str()), (None, "admin"));
    assert_eq!(second.evidence.previous_sha256, first.evidence.sha256);
    assert_eq!(second.evidence.requested_by, "not recorded");
    let events: Vec<_> = first.evidence.entries.iter().map(|e| e.event.as_str()).collect();
    for event in
        ["Committed", "CancelSent", "WorkloadsScaled", "WorkloadsStopped", "OrdersCancelled", "Halted", "Latched"]
    {
        assert!(events.contains(&event), "{event} is not in {events:?}");
    }
    assert_eq!((events[0], events[events.len() - 1]), ("Committed", "Released"));
    Ok(())
}

/// S0-35
#[tokio::test]
async fn s0_35_every_entry_of_the_evidence_is_an_event_of_the_halt() -> Result<()> {
    let world = world("events").await?;
    world.bot("bot", 1).await?;
    world.system(&["bot"], json!({})).await?;
    let _operator = world.telling_operator().await?;
    let ill = world.venue.fault(Fault::on("GET", "/v2/orders", Action::status(503)));
    world.halt("stale", json!({})).await?;
    world.halt_until("stale", "unverified", |s| s.phase == HaltPhase::Unverified).await?;
    world.venue.remove_fault(ill);
    world.halted("stale").await?;
    world.resume("go-on", "stale").await?;
    let status = world.halt_until("stale", "released", |s| s.phase == HaltPhase::Released).await?;
    let written: Vec<_> = status.evidence.entries.iter().map(|e| (e.event.clone(), e.message.clone())).collect();
    assert!(written.len() >= 10, "{written:#?}");
    let told = async || {
        let mut events = world.api::<Event>().list(&ListParams::default()).await?.items;
        events.retain(|e| e.regarding.as_ref().is_some_and(|r| r.name.as_deref() == Some("stale")));
        // A repetition is counted only, and shows the first text.
        let missing: Vec<_> = written
            .iter()
            .filter(|(event, message)| {
                let first = written.iter().find(|w| w.0 == *event).map(|w| &w.1);
                let same = |e: &Event| e.reason.as_ref() == Some(event) && e.note.as_ref() == first;
                Some(message) == first && !events.iter().any(same)
            })
            .collect();
        ensure!(missing.is_empty(), "no Events of {missing:#?}");
        Ok(Some(events))
    };
    let events = world.until("every entry is an Event", told).await?;
    let warnings: Vec<_> = events.iter().filter(|e| e.type_.as_deref() == Some("Warning")).collect();
    assert_eq!(warnings.iter().map(|e| e.reason.as_deref()).collect::<Vec<_>>(), [Some("Unverified")]);
    let (_, said) = world.kubectl(&["events", "--for=tradinghalt/stale"], "").await?;
    assert!(said.contains("Committed") && said.contains("prices are stale; requested by not recorded"), "{said}");
    Ok(())
}

#[tokio::test]
async fn two_halts_at_the_same_time_both_know_what_to_go_back_to() -> Result<()> {
    let (world, _operator) = trading("both", 3, json!({})).await?;
    let (one, two) = tokio::join!(world.halt("one", json!({})), world.halt("two", json!({})));
    one?;
    two?;
    let (one, two) = (world.halted("one").await?, world.halted("two").await?);
    assert_eq!((one.workloads[0].replicas, two.workloads[0].replicas), (Some(3), Some(3)));
    assert_eq!(world.latches().await?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_halt_of_a_system_that_appears_later_begins_then() -> Result<()> {
    let world = world("later").await?;
    world.bot("bot", 1).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    let status = world.halt_until("stale", "told why", |s| says(s, c::HALTED).1 == "SystemNotFound").await?;
    assert_eq!((status.phase, status.latch), (HaltPhase::Pending, None));
    ensure!(world.replicas("bot").await? == 1, "nothing is stopped");
    world.system(&["bot"], json!({})).await?;
    world.halted("stale").await?;
    Ok(())
}
