//! Halts on a real API server, against the paper venue.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, stream};
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::{CronJob, Job},
    core::v1::{Namespace, Pod, Secret},
    rbac::v1::Role,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use rstest::rstest;
use serde_json::{Value, json};
use standfast_crds::{
    guardrails::LATCH_POLICY,
    v1alpha1::{HaltPhase, TradingHalt, TradingHaltStatus, TradingSystem, condition, halt_conditions as c},
};
use standfast_e2e::{
    controlplane::free_port,
    venue::{Action, Behaviour, Decimal, Fault, NewOrder, PaperVenue, Side, What, bot::DemoBot},
    world::{KEY, Operator, SECRET, World},
};
use standfast_operator::halt::evidence;

use crate::plane::{Alone, world};

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

/// S4-10
#[tokio::test]
async fn s4_10_orders_stay_where_the_halt_cancels_none() -> Result<()> {
    let (world, _operator) = trading("none", 1, json!({})).await?;
    rest(&world.venue, "AAPL", 2)?;
    world.halt("stop", json!({"orders": {"cancel": "None"}})).await?;
    let status = world.halted("stop").await?;
    assert_eq!(says(&status, c::ORDERS_CANCELLED), ("True", "NotRequested"));
    assert_eq!((status.open_orders, status.kept_orders), (Some(0), Some(2)));
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
    assert_eq!(left, [stop.id.clone()]);
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

#[tokio::test]
async fn two_halts_at_the_same_time_both_know_what_to_go_back_to() -> Result<()> {
    let (world, _operator) = trading("both", 3, json!({})).await?;
    let (one, two) = tokio::join!(world.halt("one", json!({})), world.halt("two", json!({})));
    (one?, two?);
    let (one, two) = (world.halted("one").await?, world.halted("two").await?);
    assert_eq!((one.workloads[0].replicas, two.workloads[0].replicas), (Some(3), Some(3)));
    assert_eq!(world.latches().await?.len(), 2);
    Ok(())
}

/// S0-33
#[tokio::test]
async fn s0_33_nobody_scales_a_halted_bot_up_while_no_operator_runs() -> Result<()> {
    let (world, operator) = trading("down", 2, json!({})).await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    operator.cut_off();
    for _ in 0..3 {
        let refused = world.scale("bot", 2, "somebody").await.expect_err("the latch refuses");
        assert!(refused.to_string().contains("create a TradingResume"), "{refused}");
    }
    assert_eq!((world.replicas("bot").await?, world.pods("bot").await?.len()), (0, 0));
    // The next operator finds everything as it was.
    let before = world.halt_status("stale").await?;
    let _operator = world.operator().await?;
    world.venue.clear_ledger();
    let looked = || (world.venue.requests("GET", "/v2/orders").len() > 3).then_some(());
    world.until("the new operator verifies", async || Ok(looked())).await?;
    let after = world.halted("stale").await?;
    assert_eq!(after.workloads, before.workloads);
    assert_eq!(after.times, before.times);
    Ok(())
}

#[tokio::test]
async fn a_second_manager_that_gets_through_is_named_and_scaled_down_again() -> Result<()> {
    let alone = Alone::new().await?;
    let world = alone.world("fight").await?;
    world.bot("bot", 2).await?;
    world.system(&["bot"], json!({})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let bindings: Api<k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding> =
        Api::all(world.client.clone());
    bindings.delete(LATCH_POLICY, &DeleteParams::default()).await?;
    world
        .until("the latch lets it through", async || Ok(world.scale("bot", 2, "argocd-controller").await.ok()))
        .await?;
    let contended = |s: &TradingHaltStatus| {
        says(s, c::CONTENDED) == ("True", "Raised") && message(s, c::CONTENDED).contains("argocd-controller")
    };
    world.halt_until("stale", "the other is named", contended).await?;
    world.until("scaled down again", async || Ok((world.replicas("bot").await? == 0).then_some(()))).await?;
    let again = |s: &TradingHaltStatus| s.phase == HaltPhase::Halted && s.running_pods == Some(0);
    let status = world.halt_until("stale", "halted again", again).await?;
    assert!(status.evidence.entries.iter().any(|e| e.event == "Contended"), "{status:#?}");
    assert_eq!(status.workloads[0].replicas, Some(2), "the recorded number, not the other's");
    Ok(())
}

#[tokio::test]
async fn an_autoscaler_is_left_alone_and_does_not_raise_a_halted_bot() -> Result<()> {
    let (world, _operator) = trading("hpa", 2, json!({})).await?;
    let before: HorizontalPodAutoscaler = world
        .create(json!({"metadata": {"name": "bot"}, "spec": {"minReplicas": 2, "maxReplicas": 5,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "bot"}}}))
        .await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let disabled = async || {
        let hpa = world.api::<HorizontalPodAutoscaler>().get("bot").await?;
        let conditions = hpa.status.clone().and_then(|s| s.conditions).unwrap_or_default();
        let off =
            conditions.iter().any(|c| c.type_ == "ScalingActive" && c.reason.as_deref() == Some("ScalingDisabled"));
        Ok(off.then_some(hpa))
    };
    let after = world.until("the autoscaler has seen the zero", disabled).await?;
    assert_eq!((after.spec, after.metadata.generation), (before.spec, before.metadata.generation));
    assert_eq!(world.replicas("bot").await?, 0);
    let status = world.halted("stale").await?;
    assert_eq!(says(&status, c::CONTENDED).0, "False", "{}", message(&status, c::CONTENDED));
    Ok(())
}

/// Somebody of the built-in role `edit` who may also delete halts and systems.
async fn editor(world: &World) -> Result<kube::Client> {
    world.bind("editor", "ClusterRole", "edit").await?;
    world
        .create::<Role>(json!({"metadata": {"name": "halter"}, "rules": [{"apiGroups": ["standfast.dev"],
            "resources": ["tradingsystems", "tradinghalts"], "verbs": ["get", "list", "create", "delete"]}]}))
        .await?;
    world.bind("editor", "Role", "halter").await?;
    let client = world.client_as("editor", &[]).await?;
    let halts: Api<TradingHalt> = Api::namespaced(client.clone(), &world.namespace);
    world.until("the role works", async || Ok(halts.list(&ListParams::default()).await.ok())).await?;
    Ok(client)
}

/// Whether somebody may delete a halt now.
async fn may_delete(halts: &Api<TradingHalt>, name: &str) -> Result<bool> {
    match halts.delete(name, &DeleteParams::default().dry_run()).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.message.contains("deleting it would not resume trading") => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[tokio::test]
async fn a_halt_that_latched_is_not_deleted_in_any_phase_before_its_release() -> Result<()> {
    let (world, _operator) = trading("delete", 1, may_close()).await?;
    let halts: Api<TradingHalt> = Api::namespaced(editor(&world).await?, &world.namespace);
    world.halt("unknown", json!({"systemRef": {"name": "nobody"}})).await?;
    world.halt_until("unknown", "told why", |s| says(s, c::HALTED).1 == "SystemNotFound").await?;
    assert!(may_delete(&halts, "unknown").await?, "it holds nothing");

    world.node.set_stubborn(true);
    world.venue.set_position(KEY, "AAPL", 10, 90);
    world.venue.set_market_open(false);
    world.halt("out", close_all()).await?;
    let mut seen = vec![];
    for phase in [HaltPhase::Fencing, HaltPhase::Closing, HaltPhase::Unverified, HaltPhase::Halted] {
        match phase {
            HaltPhase::Closing => world.node.set_stubborn(false),
            HaltPhase::Unverified => drop(world.venue.fault(Fault::any("/v2/", Action::status(503)))),
            HaltPhase::Halted => {
                world.venue.clear_faults();
                world.venue.set_market_open(true);
            }
            _ => {}
        }
        world.halt_until("out", phase.as_str(), |s| s.phase == phase && s.latch.is_some()).await?;
        if may_delete(&halts, "out").await? {
            seen.push(phase);
        }
    }
    assert_eq!(seen, [], "phases in which it could be deleted");
    world.resume("go-on", "out").await?;
    world.halt_until("out", "released", |s| s.phase == HaltPhase::Released).await?;
    assert!(may_delete(&halts, "out").await?, "it is released");
    Ok(())
}

#[tokio::test]
async fn a_held_halt_outlives_a_restart_of_the_api_server() -> Result<()> {
    let alone = Alone::new().await?;
    let world = alone.world("restart").await?;
    world.bot("bot", 2).await?;
    world.system(&["bot"], json!({})).await?;
    rest(&world.venue, "AAPL", 1)?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    alone.plane.kill_api_server()?;
    let id = world.venue.orders(KEY)[0].id.clone();
    world.venue.revive_order(KEY, &id).expect("revived");
    alone.plane.start_api_server().await?;
    // From its first answer on.
    let refused = world.until("an answer", async || match world.scale("bot", 2, "somebody").await {
        Err(kube::Error::Api(status)) => Ok(Some(status.message)),
        Err(error) => Err(error.into()),
        Ok(()) => anyhow::bail!("the latch let it through"),
    });
    let refused = refused.await?;
    assert!(refused.contains("prices are stale"), "{refused}");
    world
        .until("the order is cancelled again", async || Ok(world.venue.open_orders(KEY).is_empty().then_some(())))
        .await?;
    let status = world.halted("stale").await?;
    assert_eq!((status.workloads[0].replicas, world.replicas("bot").await?), (Some(2), 0));
    Ok(())
}

#[tokio::test]
async fn a_namespace_with_a_held_halt_can_be_deleted() -> Result<()> {
    let (world, _operator) = trading("gone", 1, json!({})).await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    namespaces.delete(&world.namespace, &DeleteParams::default()).await?;
    let gone = async || Ok(namespaces.get_opt(&world.namespace).await?.is_none().then_some(()));
    world.until("the namespace is gone", gone).await
}

/// S1-29, S1-30
#[tokio::test]
async fn s1_29_s1_30_cancelling_does_not_wait_for_pods_that_never_end() -> Result<()> {
    let (world, _operator) = trading("stubborn", 1, json!({"haltPolicy": {"stopGracePeriod": "1s"}})).await?;
    rest(&world.venue, "AAPL", 3)?;
    world.node.set_stubborn(true);
    world.halt("stale", json!({})).await?;
    let late = |s: &TradingHaltStatus| says(s, c::WORKLOADS_STOPPED) == ("False", "PodsStillRunning");
    let status = world.halt_until("stale", "the pods are late", late).await?;
    assert_eq!((status.phase, status.running_pods), (HaltPhase::Unverified, Some(1)));
    assert_eq!(world.venue.open_orders(KEY).len(), 0);
    assert!(world.venue.suspended(KEY));
    // A pod that lives may still place orders: what is read now proves nothing.
    assert_eq!((says(&status, c::ORDERS_CANCELLED).0, status.times.halted_at.clone()), ("False", None));
    assert_eq!(message(&status, c::HALTED), "1 pods of trading workloads are left after 1s");
    world.node.set_stubborn(false);
    world.halted("stale").await?;
    Ok(())
}

#[tokio::test]
async fn a_pod_whose_node_does_not_answer_is_never_taken_for_stopped() -> Result<()> {
    let (world, _operator) = trading("node", 1, json!({})).await?;
    world.node.set_stubborn(true);
    world.halt("stale", json!({})).await?;
    let cut_off = |s: &TradingHaltStatus| says(s, c::WORKLOADS_STOPPED) == ("False", "NodeUnreachable");
    let status = world.halt_until("stale", "the node does not answer", cut_off).await?;
    assert_eq!((status.phase, status.times.halted_at.clone()), (HaltPhase::Unverified, None));
    let text = message(&status, c::WORKLOADS_STOPPED);
    assert!(text.contains("on node pretended") && text.contains("look at the node"), "{text}");
    assert_eq!(world.pods("bot").await?.len(), 1, "nobody deletes it by force");
    Ok(())
}

/// The defect 1 of the plans' scripts: a cancel that failed is not said to be done. S0-33
#[rstest]
#[case::answers_500("ill-500", Action::Reply { status: 500, body: format!(r#"{{"message": "{SECRET}"}}"#), headers: vec![] })]
#[case::answers_garbage("ill-json", Action::Garbage)]
#[case::never_answers("ill-hang", Action::Hang)]
#[case::cuts_the_connection("ill-drop", Action::Drop)]
#[tokio::test]
async fn s0_33_a_venue_that_is_ill_makes_a_halt_unverified_until_it_is_well(
    #[case] name: &str,
    #[case] ill: Action,
) -> Result<()> {
    let (world, _operator) = trading(name, 1, json!({})).await?;
    rest(&world.venue, "AAPL", 3)?;
    world.venue.fault(Fault::any("/v2/", ill));
    world.halt("stale", json!({})).await?;
    let unknown = |s: &TradingHaltStatus| s.phase == HaltPhase::Unverified && s.running_pods == Some(0);
    let status = world.halt_until("stale", "unverified", unknown).await?;
    assert_eq!(says(&status, c::ORDERS_CANCELLED), ("Unknown", "OrdersNotRead"));
    assert_eq!((status.open_orders, status.times.halted_at.clone()), (None, None));
    let shown = serde_json::to_string(&status)?;
    assert!(!shown.contains(SECRET), "{shown}");
    world.venue.clear_faults();
    world.halted("stale").await?;
    assert_eq!(world.venue.open_orders(KEY), vec![]);
    Ok(())
}

/// S0-33
#[tokio::test]
async fn s0_33_an_order_that_the_venue_fails_to_cancel_is_listed_and_tried_again() -> Result<()> {
    let (world, _operator) = trading("ill-207", 1, json!({})).await?;
    rest(&world.venue, "AAPL", 2)?;
    rest(&world.venue, "MSFT", 1)?;
    world.venue.fault(Fault::on("DELETE", "/v2/orders", Action::partial(&["MSFT"])));
    world.halt("stale", json!({})).await?;
    let listed = |s: &TradingHaltStatus| {
        let symbols: Vec<_> = s.venues.iter().flat_map(|v| &v.orders).map(|o| o.symbol.as_deref()).collect();
        s.open_orders == Some(1) && symbols == [Some("MSFT")] && s.running_pods == Some(0)
    };
    world.halt_until("stale", "the order is listed", listed).await?;
    let tries = world.venue.requests("DELETE", "/v2/orders").len();
    let again = || (world.venue.requests("DELETE", "/v2/orders").len() > tries + 2).then_some(());
    world.until("it is tried again", async || Ok(again())).await?;
    let status = world.halt_status("stale").await?;
    assert_eq!((status.phase, status.times.halted_at.clone()), (HaltPhase::Fencing, None));
    world.venue.clear_faults();
    world.halted("stale").await?;
    assert_eq!(world.venue.open_orders(KEY), vec![]);
    Ok(())
}

/// S0-33
#[tokio::test]
async fn s0_33_an_order_that_reappears_is_cancelled_again() -> Result<()> {
    let (world, _operator) = trading("revive", 1, json!({})).await?;
    rest(&world.venue, "AAPL", 1)?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let id = world.venue.orders(KEY)[0].id.clone();
    world.venue.revive_order(KEY, &id).expect("revived");
    world.until("cancelled again", async || Ok(world.venue.open_orders(KEY).is_empty().then_some(()))).await?;
    // It was seen: the proof was lost, and was given again.
    let proven = |s: &TradingHaltStatus| {
        let times = s.evidence.entries.iter().filter(|e| e.event == "OrdersCancelled").count();
        s.phase == HaltPhase::Halted && times == 2
    };
    world.halt_until("stale", "proven again", proven).await?;
    Ok(())
}

#[tokio::test]
async fn a_wrong_address_is_repaired_under_the_halt() -> Result<()> {
    let world = world("repair").await?;
    world.bot("bot", 1).await?;
    let mut wrong = world.venue_spec();
    let url = format!("http://127.0.0.1:{}/v2/orders", free_port()?);
    wrong["openOrders"][0]["http"]["url"] = url.clone().into();
    wrong["cancelOrders"][0]["http"]["url"] = url.into();
    world.system(&["bot"], json!({"venues": [wrong]})).await?;
    rest(&world.venue, "AAPL", 1)?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halt_until("stale", "unverified", |s| s.phase == HaltPhase::Unverified).await?;
    world.patch::<TradingSystem>("system", json!({"spec": {"venues": [world.venue_spec()]}})).await?;
    world.halted("stale").await?;
    assert_eq!(world.venue.open_orders(KEY), vec![]);
    Ok(())
}

#[tokio::test]
async fn a_venue_that_is_removed_under_the_halt_is_unknown_and_never_satisfied() -> Result<()> {
    let (world, _operator) = trading("removed", 1, json!({})).await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let mut other = world.venue_spec();
    other["name"] = "other".into();
    world.patch::<TradingSystem>("system", json!({"spec": {"venues": [other]}})).await?;
    let unknown = |s: &TradingHaltStatus| s.phase == HaltPhase::Unverified;
    let status = world.halt_until("stale", "unverified", unknown).await?;
    assert_eq!(says(&status, c::ORDERS_CANCELLED), ("Unknown", "VenueRemoved"));
    let names: Vec<_> = status.venues.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["alpaca", "other"], "venues only grow");
    Ok(())
}

#[tokio::test]
async fn a_workload_that_is_added_under_the_halt_is_latched_too() -> Result<()> {
    let (world, _operator) = trading("grow", 1, json!({})).await?;
    world.bot("scout", 2).await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let both: Vec<_> =
        ["bot", "scout"].iter().map(|name| json!({"kind": "Deployment", "name": name, "role": "Trading"})).collect();
    world.patch::<TradingSystem>("system", json!({"spec": {"workloads": both}})).await?;
    let stopped = |s: &TradingHaltStatus| s.phase == HaltPhase::Halted && s.workloads.len() == 2;
    let status = world.halt_until("stale", "both are held", stopped).await?;
    assert_eq!(status.workloads.iter().find(|w| w.name == "scout").and_then(|w| w.replicas), Some(2));
    assert_eq!(world.replicas("scout").await?, 0);
    let latched = async || Ok(world.scale("scout", 1, "somebody").await.err());
    let refused = world.until("the latch refuses", latched).await?;
    assert!(refused.to_string().contains("prices are stale"), "{refused}");
    assert_eq!(says(&status, c::CONTENDED).0, "False", "{}", message(&status, c::CONTENDED));
    Ok(())
}

#[tokio::test]
async fn a_halted_system_is_not_deleted() -> Result<()> {
    let (world, _operator) = trading("system", 1, json!({})).await?;
    let systems: Api<TradingSystem> = Api::namespaced(editor(&world).await?, &world.namespace);
    systems.delete("system", &DeleteParams::default().dry_run()).await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let refused = systems.delete("system", &DeleteParams::default()).await.expect_err("the policy refuses");
    let text = "this TradingSystem is halted; before deleting it, create a TradingResume with spec.haltRef.name: stale";
    assert!(refused.to_string().contains(text), "{refused}");
    Ok(())
}

/// A Deployment that its controller leaves alone: no pods, however many replicas it wants.
async fn paused(world: &World, name: &str, replicas: i32) -> Result<()> {
    world
        .create::<Deployment>(json!({
            "metadata": {"name": name, "labels": {"fleet": "yes"}},
            "spec": {"paused": true, "replicas": replicas, "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}},
                    "spec": {"containers": [{"name": "bot", "image": "bot"}]}}}}))
        .await
        .map(drop)
}

#[tokio::test]
async fn five_hundred_workloads_go_to_zero_and_are_all_remembered() -> Result<()> {
    const ALL: usize = 500;
    let world = world("fleet").await?;
    let names: Vec<_> = (0..ALL).map(|n| (format!("bot-{n:03}"), 1 + i32::try_from(n % 3).unwrap_or(0))).collect();
    let made = stream::iter(&names).map(|(name, replicas)| paused(&world, name, *replicas)).buffer_unordered(32);
    made.collect::<Vec<_>>().await.into_iter().collect::<Result<()>>()?;
    let fleet = json!([{"kind": "Deployment", "matchLabels": {"fleet": "yes"}, "role": "Trading"}]);
    world.system(&[], json!({"workloads": fleet})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    let status = world.halted("stale").await?;
    let kept: BTreeMap<_, _> = status.workloads.iter().map(|w| (w.name.clone(), w.replicas.unwrap_or(0))).collect();
    assert_eq!(kept, names.into_iter().collect());
    let live = world.api::<Deployment>().list(&ListParams::default()).await?;
    let sizes: Vec<_> = live.iter().map(|d| d.spec.as_ref().and_then(|s| s.replicas)).collect();
    assert_eq!(sizes, vec![Some(0); ALL]);
    assert_eq!(says(&status, c::CONTENDED).0, "False", "{}", message(&status, c::CONTENDED));
    // A latch of this size costs the API server something for every pod: it must not refuse what it does not name.
    let pod = json!({"metadata": {"name": "innocent"}, "spec": {"containers": [{"name": "c", "image": "c"}]}});
    world.create::<Pod>(pod.clone()).await?;
    let mut bad = pod;
    bad["metadata"] = json!({"name": "bad", "labels": {"app": "bot-499"}});
    let refused = world.create::<Pod>(bad).await.expect_err("the latch refuses");
    assert!(refused.to_string().contains("prices are stale"), "{refused}");
    Ok(())
}

/// A CronJob that never starts by itself, and a Job of it that runs.
async fn cron_job(world: &World) -> Result<()> {
    let template = json!({"metadata": {"labels": {"app": "rebalance"}},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "c"}]}});
    let cron: CronJob = world
        .create(json!({"metadata": {"name": "rebalance"}, "spec": {"schedule": "0 0 1 1 *",
            "jobTemplate": {"spec": {"template": template}}}}))
        .await?;
    let owner = json!({"apiVersion": "batch/v1", "kind": "CronJob", "name": "rebalance",
        "uid": cron.uid(), "controller": true});
    world
        .create::<Job>(json!({"metadata": {"name": "rebalance-now", "ownerReferences": [owner]},
            "spec": {"template": template}}))
        .await?;
    world.until("the Job's pod runs", async || Ok((world.pods("rebalance").await?.len() == 1).then_some(()))).await
}

/// S1-16
#[tokio::test]
async fn s1_16_a_cron_job_and_its_running_job_are_suspended() -> Result<()> {
    let world = world("cron").await?;
    cron_job(&world).await?;
    let workloads = json!([{"kind": "CronJob", "name": "rebalance", "role": "Trading"}]);
    world.system(&[], json!({"workloads": workloads})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    let status = world.halted("stale").await?;
    assert_eq!(status.workloads[0].suspended, Some(false), "what it goes back to");
    assert_eq!(status.workloads[0].suspended_jobs, ["rebalance-now"]);
    let (cron, job) = (world.api::<CronJob>().get("rebalance").await?, world.api::<Job>().get("rebalance-now").await?);
    assert_eq!(cron.spec.and_then(|s| s.suspend), Some(true));
    assert_eq!(job.spec.and_then(|s| s.suspend), Some(true));
    assert_eq!(world.pods("rebalance").await?.len(), 0);
    for (what, refused) in [
        ("CronJob", world.patch::<CronJob>("rebalance", json!({"spec": {"suspend": false}})).await.err()),
        ("Job", world.patch::<Job>("rebalance-now", json!({"spec": {"suspend": false}})).await.err()),
    ] {
        let refused = refused.with_context(|| format!("the latch let the {what} through"))?;
        assert!(refused.to_string().contains("prices are stale"), "{refused}");
    }
    Ok(())
}

#[tokio::test]
async fn a_latch_that_was_removed_by_hand_is_put_back() -> Result<()> {
    let (world, _operator) = trading("latch", 1, json!({})).await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let name = world.latches().await?[0].name_any();
    world.api::<k8s_openapi::api::core::v1::ConfigMap>().delete(&name, &DeleteParams::default()).await?;
    world.until("the latch is back", async || Ok((world.latches().await?.len() == 1).then_some(()))).await?;
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

#[tokio::test]
async fn pods_that_nobody_scales_hold_a_halt_back_while_they_run() -> Result<()> {
    let (world, _operator) = trading("bare", 1, json!({})).await?;
    let pod = json!({"metadata": {"name": "bare", "labels": {"app": "bot"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "c"}]}});
    // A ReplicaSet adopts pods that have nobody: only a label of its own tells it apart.
    let params = PostParams::default();
    world.api::<Pod>().create(&params, &serde_json::from_value(pod)?).await?;
    world.until("the pods run", async || Ok((world.pods("bot").await?.len() == 2).then_some(()))).await?;
    world.halt("stale", json!({})).await?;
    let left = |s: &TradingHaltStatus| s.running_pods == Some(1) && says(s, c::WORKLOADS_STOPPED).0 == "False";
    world.halt_until("stale", "the bare pod is counted", left).await?;
    world.api::<Pod>().delete("bare", &DeleteParams::default()).await?;
    world.halted("stale").await?;
    Ok(())
}
