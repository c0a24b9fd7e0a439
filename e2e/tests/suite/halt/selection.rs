//! Halts that close some positions and keep the others.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{CloseState, HaltPhase, PositionSelection, TradingHaltStatus, halt_conditions as c};
use standfast_e2e::{
    venue::{Action, Behaviour, Decimal, Fault, NewOrder, Side},
    world::{KEY, Operator, World},
};
use standfast_operator::halt::selection;

use super::{close_all, decimal, message, rest, says};
use crate::plane::world;

/// A bot, a venue that can tell positions apart, and a policy that allows everything.
async fn selecting(name: &str, venue: impl FnOnce(&World) -> Value) -> Result<(World, Operator)> {
    let world = world(name).await?;
    world.bot("bot", 1).await?;
    let venue = venue(&world);
    let allowed = json!(["Keep", "CloseAll", "CloseMatching", "ReduceTo"]);
    world.system(&["bot"], json!({"venues": [venue], "haltPolicy": {"allowedPositionActions": allowed}})).await?;
    let operator = world.operator().await?;
    Ok((world, operator))
}

fn losing() -> Value {
    json!({"positions": {"action": "CloseMatching", "closeMatching": {"unrealizedLossBelowPercent": "10"}}})
}

fn half() -> Value {
    json!({"positions": {"action": "ReduceTo", "reduceTo": {"exposurePercent": "50"}}})
}

fn selected(status: &TradingHaltStatus) -> PositionSelection {
    status.venues[0].selection.clone().expect("something was selected")
}

fn quantities(world: &World) -> Vec<(String, Decimal)> {
    world.venue.positions(KEY).into_iter().map(|p| (p.symbol, p.qty)).collect()
}

fn held(symbol: &str, quantity: i64) -> (String, Decimal) {
    (symbol.to_owned(), decimal(quantity))
}

/// The plan's `close_losing_positions(-0.10)`: what loses more than a tenth is closed, short or long; the rest is kept.
/// S0-42
#[tokio::test]
async fn s0_42_only_positions_that_lose_too_much_are_closed() -> Result<()> {
    let (world, _operator) = selecting("losers", World::selecting_venue).await?;
    world.venue.set_position(KEY, "AAPL", 10, 120);
    world.venue.set_position(KEY, "MSFT", 10, 105);
    world.venue.set_position(KEY, "NVDA", 10, 50);
    world.venue.set_position(KEY, "TSLA", -5, 80);
    rest(&world.venue, "AAPL", 2)?;
    world.halt("out", losing()).await?;
    let status = world.halted("out").await?;
    assert_eq!(says(&status, c::POSITIONS_CLOSED), ("True", "SelectionClosed"), "{status:?}");
    assert_eq!(quantities(&world), [held("MSFT", 10), held("NVDA", 10)]);
    let closes = world.venue.closes(KEY);
    for (symbol, quantity) in [("AAPL", 10), ("TSLA", 5)] {
        assert_eq!((closes[symbol].orders, closes[symbol].filled), (1, decimal(quantity)), "{symbol}");
    }
    let chosen = selected(&status);
    let said: Vec<_> = chosen.closes.iter().map(|c| (c.symbol.as_str(), c.why.as_str(), c.state, c.attempts)).collect();
    let why = "loses 25 %, more than 10 %";
    assert_eq!(said[1], ("TSLA", why, CloseState::Closed, 1));
    assert_eq!((said.len(), chosen.not_judged.len()), (2, 0));
    let events: Vec<_> = status.evidence.entries.iter().map(|e| e.event.as_str()).collect();
    assert!(events.contains(&"PositionsSelected") && events.contains(&"PositionsClosed"), "{events:?}");
    world.until("suspended", async || Ok(world.venue.suspended(KEY).then_some(()))).await
}

/// The plan's `close_old_positions(168)`. Of one position the venue does not say when it was opened.
/// S0-43
#[tokio::test]
async fn s0_43_old_positions_are_closed_and_an_unknown_age_is_listed() -> Result<()> {
    let (world, _operator) = selecting("old", World::selecting_venue).await?;
    let hours = |n: i64| Timestamp::now() - SignedDuration::from_hours(n);
    for (symbol, opened) in [("AAPL", Some(hours(169))), ("MSFT", Some(hours(167))), ("TSLA", None)] {
        world.venue.set_position(KEY, symbol, 10, 90);
        if let Some(at) = opened {
            world.venue.set_opened(KEY, symbol, at);
        }
    }
    world
        .halt("out", json!({"positions": {"action": "CloseMatching", "closeMatching": {"heldLongerThan": "168h"}}}))
        .await?;
    let status = world.halted("out").await?;
    assert_eq!(says(&status, c::POSITIONS_CLOSED), ("False", "NotJudged"));
    assert!(
        message(&status, c::HALTED).contains("alpaca TSLA (its age is not known)"),
        "{}",
        message(&status, c::HALTED)
    );
    assert_eq!(quantities(&world), [held("MSFT", 10), held("TSLA", 10)]);
    let listed: Vec<_> = selected(&status).not_judged.into_iter().map(|p| (p.symbol, p.why)).collect();
    assert_eq!(listed, [("TSLA".to_owned(), "its age is not known".to_owned())]);
    Ok(())
}

/// The plan's `reduce_exposure(0.50)`, with shorts counted: 1,100,000 are held of an equity of 1,500,000.
/// S0-44
#[tokio::test]
async fn s0_44_exposure_is_reduced_to_a_half_the_largest_first() -> Result<()> {
    let (world, _operator) = selecting("half", World::selecting_venue).await?;
    world.venue.set_position(KEY, "AAPL", 8000, 100);
    world.venue.set_position(KEY, "TSLA", -3000, 100);
    world.venue.set_behaviour(Behaviour::partial(Duration::from_millis(200), 3, Duration::from_millis(200)));
    world.halt("out", half()).await?;
    let status = world.halted("out").await?;
    assert_eq!(says(&status, c::POSITIONS_CLOSED), ("True", "SelectionClosed"));
    assert_eq!(quantities(&world), [held("AAPL", 4500), held("TSLA", -3000)]);
    let closes = world.venue.closes(KEY);
    assert_eq!((closes.len(), closes["AAPL"].orders, closes["AAPL"].filled), (1, 1, decimal(3500)));
    let chosen = selected(&status);
    assert_eq!((chosen.equity.as_deref(), chosen.exposure.as_deref()), (Some("1500000"), Some("1100000")));
    Ok(())
}

/// S1-31
#[tokio::test]
async fn s1_31_nothing_is_selected_where_the_policy_does_not_allow_it() -> Result<()> {
    let world = world("denied").await?;
    world.bot("bot", 1).await?;
    let policy = json!({"allowedPositionActions": ["Keep", "CloseAll", "ReduceTo"]});
    world.system(&["bot"], json!({"venues": [world.selecting_venue()], "haltPolicy": policy})).await?;
    let _operator = world.operator().await?;
    world.venue.set_position(KEY, "AAPL", 10, 200);
    rest(&world.venue, "AAPL", 2)?;
    world.halt("out", losing()).await?;
    let status = world.halted("out").await?;
    assert_eq!(says(&status, c::POSITIONS_CLOSED), ("False", "NotAllowed"));
    assert!(message(&status, c::HALTED).contains("CloseMatching is not among"), "{}", message(&status, c::HALTED));
    assert_eq!((world.venue.positions(KEY).len(), world.venue.open_orders(KEY).len()), (1, 0));
    Ok(())
}

/// What a venue does not declare is named before the emergency and in it; the rest of the halt goes on.
#[tokio::test]
async fn a_venue_that_cannot_tell_positions_apart_is_named() -> Result<()> {
    let (world, _operator) = selecting("plain", World::venue_spec).await?;
    world.venue.set_position(KEY, "AAPL", 10, 200);
    rest(&world.venue, "AAPL", 2)?;
    let named = |s: &standfast_crds::v1alpha1::TradingSystemStatus| {
        s.problems.iter().filter(|p| p.reason == "SelectionNotPossible").count() == 2
    };
    world.system_until("system", "both actions lack something", named).await?;
    world.halt("out", half()).await?;
    let told = |s: &TradingHaltStatus| {
        says(s, c::POSITIONS_CLOSED) == ("Unknown", "SelectionNotPossible") && says(s, c::ORDERS_CANCELLED).0 == "True"
    };
    let status = world.halt_until("out", "it is told, and orders are cancelled", told).await?;
    assert!(
        message(&status, c::POSITIONS_CLOSED).starts_with("venue alpaca lacks closePosition and equity"),
        "{status:?}"
    );
    assert_eq!((world.venue.positions(KEY).len(), world.venue.open_orders(KEY).len()), (1, 0));
    // It is repaired under the halt.
    world
        .patch::<standfast_crds::v1alpha1::TradingSystem>(
            "system",
            json!({"spec": {"venues": [world.selecting_venue()]}}),
        )
        .await?;
    world.halted("out").await.map(drop)
}

/// S0-41
#[tokio::test]
async fn s0_41_one_symbol_that_does_not_close_holds_up_only_itself() -> Result<()> {
    let (world, _operator) = selecting("one-error", World::selecting_venue).await?;
    world.venue.set_position(KEY, "AAPL", 10, 200);
    world.venue.set_position(KEY, "MSFT", 10, 200);
    world.venue.fault(Fault::on("DELETE", "/v2/positions/AAPL", Action::status(500)));
    world.halt("out", losing()).await?;
    let listed = |s: &TradingHaltStatus| {
        s.venues.first().and_then(|v| v.selection.as_ref()).is_some_and(|s| {
            s.closes.iter().any(|c| c.symbol == "MSFT" && c.state == CloseState::Closed)
                && s.closes.iter().any(|c| c.symbol == "AAPL" && c.attempts > 2)
        })
    };
    let status = world.halt_until("out", "MSFT is closed and AAPL was tried again", listed).await?;
    assert_eq!((status.phase, says(&status, c::POSITIONS_CLOSED)), (HaltPhase::Closing, ("False", "Closing")));
    assert_eq!(message(&status, c::POSITIONS_CLOSED), "1 positions are to be closed: alpaca AAPL");
    world.venue.clear_faults();
    world.halted("out").await?;
    let closes = world.venue.closes(KEY);
    assert_eq!((closes["AAPL"].orders, closes["MSFT"].orders), (1, 1));
    Ok(())
}

/// The reply to a partial close is lost, nothing fills, and another operator takes over: the order is neither sent again
/// nor cancelled, and the halt is not proven before it is filled.
/// S0-41, S0-44
#[tokio::test]
async fn s0_44_a_new_leader_does_not_repeat_a_partial_close() -> Result<()> {
    let (world, operator) = selecting("leader", World::selecting_venue).await?;
    world.venue.set_position(KEY, "AAPL", 8000, 100);
    world.venue.set_position(KEY, "TSLA", -3000, 100);
    world.venue.set_behaviour(Behaviour::frozen());
    world.venue.fault(Fault::on("DELETE", "/v2/positions/", Action::Drop).after().times(1));
    world.halt("out", half()).await?;
    let taken = |v: &standfast_e2e::venue::PaperVenue| (v.open_orders(KEY).len() == 1).then_some(());
    ensure!(world.venue.until(Duration::from_secs(60), taken).await.is_some(), "no close was sent");
    operator.cut_off();
    let _next = world.operator().await?;
    let reads = world.venue.requests("GET", "/v2/positions").len();
    let looked =
        |v: &standfast_e2e::venue::PaperVenue| (v.requests("GET", "/v2/positions").len() > reads + 15).then_some(());
    ensure!(world.venue.until(Duration::from_secs(60), looked).await.is_some(), "the new leader does not look");
    let status = world.halt_status("out").await?;
    assert_eq!((status.phase, status.times.halted_at.clone()), (HaltPhase::Closing, None));
    assert_eq!((world.venue.open_orders(KEY).len(), world.venue.requests("DELETE", "/v2/positions/").len()), (1, 1));
    world.venue.set_behaviour(Behaviour::default());
    world.halted("out").await?;
    assert_eq!(quantities(&world), [held("AAPL", 4500), held("TSLA", -3000)]);
    assert_eq!(world.venue.closes(KEY)["AAPL"].orders, 1);
    Ok(())
}

/// Where a close is an order like any other, it carries an id of its own, and the bot's orders are told apart from it.
#[tokio::test]
async fn closes_carry_an_id_and_an_order_of_somebody_else_is_cancelled() -> Result<()> {
    let (world, _operator) = selecting("ids", |world| {
        let mut venue = world.selecting_venue();
        let mut close = venue["closePosition"]["http"].clone();
        close["method"] = "POST".into();
        close["url"] = format!("{}/v2/orders", world.venue_url).into();
        close["body"] = json!({"symbol": "{symbol}", "qty": "{quantity}", "side": "{side}", "type": "market",
            "time_in_force": "day", "client_order_id": "{clientOrderId}"});
        venue["closePosition"] = json!({ "http": close });
        venue
    })
    .await?;
    world.venue.set_position(KEY, "AAPL", 10, 200);
    world.venue.set_position(KEY, "TSLA", -5, 50);
    world.venue.set_behaviour(Behaviour::frozen());
    world.halt("out", losing()).await?;
    let closing = |v: &standfast_e2e::venue::PaperVenue| (v.open_orders(KEY).len() == 2).then_some(());
    ensure!(world.venue.until(Duration::from_secs(60), closing).await.is_some(), "no closes were sent");
    // Somebody trades by hand, in a symbol that is being closed.
    let suspended = world.venue.suspended(KEY);
    world.venue.place_order(KEY, &NewOrder::limit("AAPL", Side::Buy, 1, 10)).expect("accepted");
    let cancelled = |v: &standfast_e2e::venue::PaperVenue| (v.open_orders(KEY).len() == 2).then_some(());
    ensure!(world.venue.until(Duration::from_secs(60), cancelled).await.is_some(), "it is not cancelled");
    assert!(!suspended && world.venue.open_orders(KEY).iter().all(|o| selection::is_ours(&o.client_order_id)));
    world.venue.set_behaviour(Behaviour::default());
    world.halted("out").await?;
    assert_eq!(world.venue.positions(KEY), vec![]);
    for (symbol, closes) in world.venue.closes(KEY) {
        assert_eq!((closes.orders, closes.client_order_ids.len()), (1, 1), "{symbol}");
        assert!(closes.client_order_ids[0].ends_with("-1"), "{closes:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_closed_market_is_named_and_positions_are_selected_when_it_opens() -> Result<()> {
    let (world, _operator) = selecting("shut", World::selecting_venue).await?;
    world.venue.set_position(KEY, "AAPL", 10, 200);
    world.venue.set_position(KEY, "MSFT", 10, 105);
    world.venue.set_market_open(false);
    world.halt("out", losing()).await?;
    let waits = |s: &TradingHaltStatus| says(s, c::POSITIONS_CLOSED) == ("False", "CannotCloseNow");
    let status = world.halt_until("out", "the market is closed", waits).await?;
    assert_eq!((status.phase, status.times.halted_at.clone()), (HaltPhase::Closing, None));
    assert_eq!(
        message(&status, c::POSITIONS_CLOSED),
        "the market is closed; 1 positions are to be closed: alpaca AAPL"
    );
    assert_eq!(world.venue.requests("DELETE", "/v2/positions").len(), 0);
    world.venue.set_price("MSFT", 50);
    world.venue.set_market_open(true);
    world.halted("out").await?;
    assert_eq!(world.venue.positions(KEY), vec![], "by then MSFT loses too much as well");
    Ok(())
}

/// A halt with CloseAll does not wait for one that cannot close what it selected.
#[tokio::test]
async fn a_second_halt_closes_all_where_the_first_is_stuck() -> Result<()> {
    let (world, _operator) = selecting("stuck", World::selecting_venue).await?;
    world.venue.set_position(KEY, "AAPL", 10, 200);
    world.venue.set_position(KEY, "MSFT", 10, 105);
    world.venue.fault(Fault::on("DELETE", "/v2/positions/AAPL", Action::status(500)));
    world.halt("some", losing()).await?;
    let tried = |s: &TradingHaltStatus| {
        s.venues.first().and_then(|v| v.selection.as_ref()).is_some_and(|s| s.closes[0].attempts > 0)
    };
    world.halt_until("some", "AAPL was tried", tried).await?;
    world.halt("all", close_all()).await?;
    let status = world.halted("all").await?;
    assert_eq!(says(&status, c::POSITIONS_CLOSED), ("True", "Flat"));
    let status = world.halted("some").await?;
    assert_eq!(says(&status, c::POSITIONS_CLOSED), ("True", "SelectionClosed"));
    let closes = world.venue.closes(KEY);
    assert_eq!((closes["AAPL"].orders, closes["MSFT"].orders), (1, 1));
    Ok(())
}
