//! Halts that close positions, and those that may not.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use standfast_crds::v1alpha1::{HaltPhase, TradingHaltStatus, halt_conditions as c};
use standfast_e2e::{
    venue::{Action, Behaviour, Fault, NewOrder, Side, What},
    world::KEY,
};

use super::{close_all, decimal, may_close, message, rest, says, trading};
use crate::plane::world;

/// S0-34
#[tokio::test]
async fn s0_34_close_all_leaves_the_account_flat_and_closes_each_position_once() -> Result<()> {
    let (world, _operator) = trading("close", 1, may_close()).await?;
    world.venue.set_position(KEY, "AAPL", 10, 90);
    world.venue.set_position(KEY, "MSFT", -5, 110);
    rest(&world.venue, "AAPL", 2)?;
    world.halt("out", close_all()).await?;
    let status = world.halted("out").await?;
    assert_eq!(says(&status, c::POSITIONS_CLOSED), ("True", "Flat"));
    assert_eq!((status.open_positions, status.venues[0].positions_before), (Some(0), Some(2)));
    assert!(status.times.flat_at.is_some());
    assert_eq!(world.venue.positions(KEY), vec![]);
    let closes = world.venue.closes(KEY);
    for (symbol, held) in [("AAPL", 10), ("MSFT", 5)] {
        assert_eq!((closes[symbol].orders, closes[symbol].filled), (1, decimal(held)), "{symbol}");
    }
    Ok(())
}

/// The defect 12 of the plans' scripts: an order that holds the quantity makes the close fail.
/// S0-34
#[tokio::test]
async fn s0_34_orders_go_first_then_positions_then_trading_is_suspended() -> Result<()> {
    let (world, _operator) = trading("order", 1, may_close()).await?;
    world.venue.set_position(KEY, "AAPL", 10, 90);
    world.venue.place_order(KEY, &NewOrder::limit("AAPL", Side::Sell, 10, 200)).expect("accepted");
    world.venue.set_behaviour(Behaviour::slow_cancels(Duration::from_millis(300)));
    let stays = world.venue.fault(Fault::on("DELETE", "/v2/orders", Action::partial(&["AAPL"])));
    world.halt("out", close_all()).await?;
    world.halt_until("out", "the bot is gone", |s| s.running_pods == Some(0)).await?;
    let (seen, reads) = (&world.venue, world.venue.requests("GET", "/v2/orders").len());
    let again = || (seen.requests("GET", "/v2/orders").len() > reads + 5).then_some(());
    world.until("the order is seen again and again", async || Ok(again())).await?;
    assert_eq!(world.venue.requests("DELETE", "/v2/positions").len(), 0, "its quantity cannot be closed");
    assert!(!world.venue.suspended(KEY), "suspension would refuse the close");
    world.venue.remove_fault(stays);
    world.halted("out").await?;
    let ledger = world.venue.ledger();
    let first = |method: &str, path: &str| {
        let is = |what: &What| matches!(what, What::Request(r) if r.method == method && r.path.starts_with(path));
        ledger.iter().position(|e| is(&e.what)).with_context(|| format!("no {method} {path}"))
    };
    let cancelled = ledger.iter().position(|e| matches!(e.what, What::Canceled { .. })).context("nothing cancelled")?;
    let (cancel, close) = (first("DELETE", "/v2/orders")?, first("DELETE", "/v2/positions")?);
    let suspend = first("PATCH", "/v2/account/configurations")?;
    assert!(cancel < cancelled && cancelled < close && close < suspend, "{ledger:#?}");
    assert_eq!(world.venue.closes(KEY)["AAPL"].orders, 1);
    assert!(world.venue.suspended(KEY));
    Ok(())
}

/// A halt is made harder by a second one, while the first has suspended trading and the venue takes no closes then.
/// S0-34
#[tokio::test]
async fn s0_34_a_second_halt_closes_where_the_first_has_suspended_trading() -> Result<()> {
    let (world, _operator) = trading("harder", 1, may_close()).await?;
    world.venue.set_position(KEY, "AAPL", 10, 90);
    world.venue.set_position(KEY, "MSFT", -5, 110);
    // Its closes fill in parts: the first halt sees them open, and leaves them alone.
    world.venue.set_behaviour(Behaviour::partial(Duration::from_millis(150), 4, Duration::from_millis(150)));
    world.halt("stop", json!({})).await?;
    world.halted("stop").await?;
    world.until("suspended", async || Ok(world.venue.suspended(KEY).then_some(()))).await?;
    for name in ["out", "out-too"] {
        world.halt(name, close_all()).await?;
    }
    for name in ["out", "out-too"] {
        let status = world.halted(name).await?;
        assert_eq!(says(&status, c::POSITIONS_CLOSED), ("True", "Flat"), "{name}");
    }
    assert_eq!(world.venue.positions(KEY), vec![]);
    let closes = world.venue.closes(KEY);
    for (symbol, held) in [("AAPL", 10), ("MSFT", 5)] {
        assert_eq!((closes[symbol].orders, closes[symbol].filled), (1, decimal(held)), "{symbol}");
    }
    world.until("suspended again", async || Ok(world.venue.suspended(KEY).then_some(()))).await?;
    world.halted("stop").await.map(drop)
}

/// S1-31
#[tokio::test]
async fn s1_31_positions_are_kept_where_the_policy_does_not_allow_closing() -> Result<()> {
    let (world, _operator) = trading("keep", 1, json!({})).await?;
    world.venue.set_position(KEY, "AAPL", 10, 90);
    rest(&world.venue, "AAPL", 2)?;
    world.halt("out", close_all()).await?;
    let status = world.halted("out").await?;
    assert_eq!(says(&status, c::POSITIONS_CLOSED), ("False", "NotAllowed"));
    assert!(message(&status, c::HALTED).contains("positions were kept"), "{}", message(&status, c::HALTED));
    assert_eq!((world.venue.positions(KEY).len(), world.venue.open_orders(KEY).len()), (1, 0));
    assert_eq!(world.venue.requests("DELETE", "/v2/positions").len(), 0);
    Ok(())
}

/// S0-41
#[tokio::test]
async fn s0_41_a_position_that_does_not_close_is_listed_and_tried_again_until_it_does() -> Result<()> {
    let (world, _operator) = trading("part", 1, may_close()).await?;
    world.venue.set_position(KEY, "AAPL", 10, 90);
    world.venue.set_position(KEY, "MSFT", 5, 110);
    world.venue.fault(Fault::on("DELETE", "/v2/positions", Action::partial(&["MSFT"])));
    world.halt("out", close_all()).await?;
    let listed = |s: &TradingHaltStatus| {
        let symbols: Vec<_> = s.venues.iter().flat_map(|v| &v.positions).map(|p| p.symbol.as_deref()).collect();
        symbols == [Some("MSFT")] && s.actions.iter().any(|a| a.name.ends_with("/closePositions/0") && a.attempts > 2)
    };
    let status = world.halt_until("out", "MSFT is listed and was tried again", listed).await?;
    assert_eq!((status.phase, says(&status, c::POSITIONS_CLOSED).0), (HaltPhase::Closing, "False"));
    assert!(!world.venue.suspended(KEY), "suspension would refuse the close");
    world.venue.clear_faults();
    world.halted("out").await?;
    let closes = world.venue.closes(KEY);
    assert_eq!((closes["AAPL"].orders, closes["MSFT"].orders), (1, 1));
    Ok(())
}

/// S0-41
#[tokio::test]
async fn s0_41_positions_are_closed_one_by_one_where_the_venue_has_nothing_for_all() -> Result<()> {
    let world = world("single").await?;
    world.bot("bot", 1).await?;
    let mut venue = world.venue_spec();
    let mut close = venue["closePositions"][0]["http"].clone();
    close["url"] = format!("{}/v2/positions/{{symbol}}", world.venue.url()).into();
    venue["closePosition"] = json!({ "http": close });
    venue["closePositions"] = json!([]);
    world.system(&["bot"], json!({"venues": [venue], "haltPolicy": may_close()["haltPolicy"]})).await?;
    let _operator = world.operator().await?;
    world.venue.set_position(KEY, "AAPL", 10, 90);
    world.venue.set_position(KEY, "MSFT", 5, 110);
    world.venue.fault(Fault::on("DELETE", "/v2/positions/MSFT", Action::status(500)).times(2));
    world.halt("out", close_all()).await?;
    world.halted("out").await?;
    let closes = world.venue.closes(KEY);
    assert_eq!((closes["AAPL"].orders, closes["MSFT"].orders), (1, 1));
    Ok(())
}

/// S0-41
#[tokio::test]
async fn s0_41_a_close_whose_reply_was_lost_is_not_sent_twice() -> Result<()> {
    let (world, _operator) = trading("lost", 1, may_close()).await?;
    world.venue.set_position(KEY, "AAPL", 10, 90);
    let slow = Duration::from_millis(700);
    world.venue.set_behaviour(Behaviour::partial(slow, 2, slow));
    world.venue.fault(Fault::on("DELETE", "/v2/positions", Action::Drop).after().times(1));
    world.halt("out", close_all()).await?;
    world.halted("out").await?;
    let closes = &world.venue.closes(KEY)["AAPL"];
    assert_eq!((closes.orders, closes.filled), (1, decimal(10)));
    assert_eq!(world.venue.requests("DELETE", "/v2/positions").len(), 1, "the venue is not even asked again");
    Ok(())
}

/// S0-41
#[tokio::test]
async fn s0_41_a_deadline_that_passes_is_told_and_closing_goes_on() -> Result<()> {
    let mut policy = may_close();
    policy["haltPolicy"]["closeDeadline"] = "1s".into();
    let (world, _operator) = trading("late", 1, policy).await?;
    world.venue.set_position(KEY, "AAPL", 10, 90);
    world.venue.fault(Fault::on("DELETE", "/v2/positions", Action::status(500)));
    world.halt("out", close_all()).await?;
    let late = |s: &TradingHaltStatus| says(s, c::POSITIONS_CLOSED) == ("False", "DeadlinePassed");
    let status = world.halt_until("out", "the deadline passed", late).await?;
    assert_eq!((status.phase, status.times.halted_at.clone()), (HaltPhase::Closing, None));
    world.venue.clear_faults();
    world.halted("out").await?;
    assert_eq!(world.venue.closes(KEY)["AAPL"].orders, 1);
    Ok(())
}

/// S0-34
#[tokio::test]
async fn s0_34_a_closed_market_is_named_and_the_halt_closes_when_it_opens() -> Result<()> {
    let (world, _operator) = trading("market", 1, may_close()).await?;
    world.venue.set_position(KEY, "AAPL", 10, 90);
    world.venue.set_market_open(false);
    world.halt("out", close_all()).await?;
    let waits = |s: &TradingHaltStatus| says(s, c::POSITIONS_CLOSED) == ("False", "CannotCloseNow");
    let status = world.halt_until("out", "the market is closed", waits).await?;
    assert_eq!((status.phase, status.times.halted_at.clone()), (HaltPhase::Closing, None));
    assert_eq!(message(&status, c::POSITIONS_CLOSED), "1 positions are open: the market is closed");
    assert_eq!(world.venue.requests("DELETE", "/v2/positions").len(), 0);
    world.venue.set_market_open(true);
    world.halted("out").await?;
    assert_eq!(world.venue.closes(KEY)["AAPL"].orders, 1);
    Ok(())
}
