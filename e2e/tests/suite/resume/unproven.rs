//! Resumes of halts that are not proven, or not any more: they wait.

use std::sync::Arc;

use anyhow::{Context, Result};
use rstest::rstest;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{HaltPhase, ResumePhase, TradingHaltStatus, TradingResume, TradingSystem};
use standfast_e2e::{
    venue::{Action, Fault, NewOrder, Side},
    world::{KEY, World},
};
use tokio::sync::Notify;

use super::{assert_trading, message, saying, status, sync_that_waits};
use crate::plane::world;

/// Makes the world such that a halt gets as far as `phase`, or lets it go on.
async fn hold(world: &World, phase: HaltPhase, hold: bool) -> Result<()> {
    match phase {
        HaltPhase::Fencing => world.node.set_stubborn(hold),
        HaltPhase::Closing => world.venue.set_market_open(!hold),
        HaltPhase::Verifying => {
            let interval = if hold { "1h" } else { "100ms" };
            let patch = json!({"spec": {"haltPolicy": {"verifyInterval": interval}}});
            world.patch::<TradingSystem>("system", patch).await?;
        }
        HaltPhase::Unverified if hold => drop(world.venue.fault(Fault::any("/v2/", Action::status(503)))),
        _ => world.venue.clear_faults(),
    }
    Ok(())
}

/// Nothing is let go of a halt that is not proven: its latch is there, and nothing was asked for.
async fn assert_waits(world: &World, resume: &TradingResume) -> Result<()> {
    assert_eq!((status(resume).phase, status(resume).release_requested_at), (ResumePhase::Checking, None));
    let halt = world.halt_status("stale").await?;
    assert!(halt.released.is_none() && halt.latch.is_some_and(|l| l.held));
    assert_eq!(world.replicas("bot").await?, 0);
    world.scale("bot", 1, "somebody").await.expect_err("the latch refuses");
    Ok(())
}

/// S0-33
#[rstest]
#[case::fencing(HaltPhase::Fencing, "not proven yet, it is Fencing: 1 pods of trading workloads are left")]
#[case::closing(HaltPhase::Closing, "not proven yet, it is Closing: 1 positions are open: the market is closed")]
#[case::verifying(HaltPhase::Verifying, "not proven yet, it is Verifying: no order is open so far; reading again")]
#[case::unverified(
    HaltPhase::Unverified,
    "Unverified (repair it; if that is impossible: break-glass, docs/operations.md): venue alpaca: "
)]
#[tokio::test]
async fn s0_33_a_resume_waits_until_its_halt_is_proven(#[case] phase: HaltPhase, #[case] says: &str) -> Result<()> {
    let world = world("unproven").await?;
    world.bot("bot", 1).await?;
    world.system(&["bot"], json!({"haltPolicy": {"allowedPositionActions": ["Keep", "CloseAll"]}})).await?;
    let _operator = world.operator().await?;
    hold(&world, phase, true).await?;
    let action = if phase == HaltPhase::Closing { "CloseAll" } else { "Keep" };
    world.venue.set_position(KEY, "AAPL", 10, 90);
    world.halt("stale", json!({"positions": {"action": action}})).await?;
    // In this phase for good: it does not just pass it.
    let settled = |s: &TradingHaltStatus| match phase {
        HaltPhase::Fencing => s.phase == phase && s.running_pods == Some(1),
        _ => s.phase == phase && s.running_pods == Some(0),
    };
    world.halt_until("stale", phase.as_str(), settled).await?;
    world.resume("go-on", "stale").await?;
    let resume = saying(&world, "go-on", &format!("halted: TradingHalt stale is {says}")).await?;
    assert_waits(&world, &resume).await?;

    hold(&world, phase, false).await?;
    let resume = world.resume_in("go-on", ResumePhase::Completed).await?;
    let asked = status(&resume).release_requested_at.context("it was released without being asked for")?;
    let proven = world.halt_status("stale").await?.times.halted_at.context("it was never proven")?;
    assert!(proven.0 < asked.0, "proven at {proven:?}, and its release asked for at {asked:?}");
    assert_trading(&world, 1).await
}

#[tokio::test]
async fn a_resume_fails_at_its_deadline_when_the_halt_is_still_not_proven() -> Result<()> {
    let world = world("never").await?;
    world.bot("bot", 1).await?;
    let mut venue = world.venue_spec();
    venue["openOrders"] = json!([]);
    world.system(&["bot"], json!({"venues": [venue]})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halt_until("stale", "unverified", |s| s.phase == HaltPhase::Unverified && s.running_pods == Some(0)).await?;
    let spec = json!({"haltRef": {"name": "stale"}, "requestedBy": "admin", "deadline": "2s"});
    world.create::<TradingResume>(json!({"metadata": {"name": "go-on"}, "spec": spec})).await?;
    let resume = world.resume_in("go-on", ResumePhase::Failed).await?;
    assert_eq!(
        message(&resume),
        "not released: halted: the deadline has passed: TradingHalt stale is Unverified (repair it; if that is \
         impossible: break-glass, docs/operations.md): venue alpaca has no openOrders: whether orders are open is not \
         known"
    );
    let halt = world.halt_status("stale").await?;
    assert!(halt.released.is_none() && halt.latch.is_some_and(|l| l.held));
    world.scale("bot", 1, "somebody").await.expect_err("the latch refuses");

    // It is repaired under the halt, and the next resume goes through.
    world.patch::<TradingSystem>("system", json!({"spec": {"venues": [world.venue_spec()]}})).await?;
    world.halted("stale").await?;
    world.resume("again", "stale").await?;
    world.resume_in("again", ResumePhase::Completed).await?;
    assert_trading(&world, 1).await
}

#[tokio::test]
async fn a_halt_that_is_undone_just_before_its_release_is_not_released() -> Result<()> {
    let world = world("undone").await?;
    world.bot("bot", 1).await?;
    // The sync comes between the first look at the halt and the last, and takes as long as the test wants.
    let (asked, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let url = sync_that_waits(&asked, &go_on).await?;
    let sync: Value = json!({"http": {"method": "POST", "url": url, "timeout": "30s"}});
    world.system(&["bot"], json!({"syncPositions": sync})).await?;
    let _operator = world.operator().await?;
    let order = world.venue.place_order(KEY, &NewOrder::limit("AAPL", Side::Buy, 1, 50)).expect("accepted");
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    world.resume("go-on", "stale").await?;
    asked.notified().await;
    // It comes back, and cannot be cancelled any more.
    world.venue.fault(Fault::on("DELETE", "/v2/orders", Action::status(500)));
    world.venue.revive_order(KEY, &order.id).expect("revived");
    world.halt_until("stale", "the order is seen", |s| s.open_orders == Some(1)).await?;
    go_on.notify_one();
    let resume =
        saying(&world, "go-on", "request-release: TradingHalt stale is not proven yet, it is Fencing: 1 orders")
            .await?;
    assert_waits(&world, &resume).await?;
    world.venue.clear_faults();
    world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_trading(&world, 1).await
}
