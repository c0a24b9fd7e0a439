//! What is watched when everything trades again.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{ResumePhase, condition};
use standfast_e2e::{
    venue::{Action, Fault},
    world::{Operator, World},
};

use super::{assert_held, assert_trading, market_check, message, status};
use crate::plane::world;

async fn watched(name: &str, watch: &str, patch: Value) -> Result<(World, Operator)> {
    let world = world(name).await?;
    world.bot("bot", 2).await?;
    let mut policy = json!({"thresholds": {"interval": "1s"}, "watch": {"for": watch}});
    standfast_e2e::world::merge(&mut policy, patch);
    let mut venue = world.venue_spec();
    let mut orders = venue["openOrders"][0].clone();
    orders["http"]["url"] = format!("{}/v2/orders?status=all&limit=500&after={{since}}", world.venue_url).into();
    venue["ordersSince"] = orders;
    let spec = json!({"checks": market_check(&world), "resumePolicy": policy, "venues": [venue]});
    world.system(&["bot"], spec).await?;
    let operator = world.telling_operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    world.resume("go-on", "stale").await?;
    Ok((world, operator))
}

/// S1-37
#[tokio::test]
async fn s1_37_a_resume_completes_when_what_is_watched_has_passed_for_its_time() -> Result<()> {
    let (world, _operator) = watched("watch", "2s", json!({})).await?;
    let resume = world.resume_in("go-on", ResumePhase::Completed).await?;
    let watch = status(&resume).stages.into_iter().find(|s| s.name == "watch").context("not watched")?;
    assert!(watch.held.is_some_and(|h| h.get().as_secs() >= 2), "{watch:?}");
    assert_eq!(message(&resume), "trading again");
    assert_trading(&world, 2).await
}

/// S0-29, S2-37: within the watch, after everything is back. The live number is what to go back to.
#[tokio::test]
async fn s2_37_a_check_that_fails_in_the_watch_halts_again() -> Result<()> {
    let (world, _operator) = watched("late", "24h", json!({})).await?;
    world.resume_in("go-on", ResumePhase::Watching).await?;
    assert_trading(&world, 2).await?;
    world.scale("bot", 3, "somebody").await?;
    world.venue.set_market_open(false);
    let resume = world.resume_in("go-on", ResumePhase::ReHalted).await?;
    assert!(message(&resume).contains("check market in stage watch: found false"), "{}", message(&resume));
    assert_held(&world, "go-on-regression").await?;
    assert_eq!(world.halt_status("go-on-regression").await?.workloads[0].replicas, Some(3));
    Ok(())
}

/// S4-24, S4-10
#[tokio::test]
async fn s4_24_orders_with_one_client_order_id_halt_again() -> Result<()> {
    let (world, _operator) = watched("twice", "24h", json!({})).await?;
    world.resume_in("go-on", ResumePhase::Watching).await?;
    let order = |id: &str| json!({"id": id, "client_order_id": "bot-7", "symbol": "AAPL", "type": "limit", "side": "buy", "qty": "1"});
    // What an order that was sent again looks like, at a venue that takes it.
    let body = json!([order("1"), order("2")]).to_string();
    let since = |path: &str| path.contains("status=all") && path.contains("after=20") && path.contains("%3A");
    let asked = || world.venue.requests("GET", "/v2/orders").iter().any(|(_, r)| since(&r.path));
    world.until("orders since the release are asked for", async || Ok(asked().then_some(()))).await?;
    world.venue.fault(Fault::on("GET", "/v2/orders", Action::Reply { status: 200, body, headers: vec![] }).times(3));
    let resume = world.resume_in("go-on", ResumePhase::ReHalted).await?;
    let text = "duplicate-orders in stage watch: venue alpaca has 2 orders with the client order id bot-7";
    assert!(message(&resume).ends_with(text), "{}", message(&resume));
    world.venue.clear_faults();
    assert_held(&world, "go-on-regression").await
}

/// A policy may ask for less than a halt: said, and the stage is held again or goes on.
#[tokio::test]
async fn a_regression_may_only_hold_or_be_told() -> Result<()> {
    for answer in ["Hold", "Notify"] {
        let (world, _operator) = watched(&answer.to_lowercase(), "3s", json!({"onRegression": answer})).await?;
        world.resume_in("go-on", ResumePhase::Watching).await?;
        world.venue.set_market_open(false);
        let regressed = |wanted: &'static str| {
            move |r: &standfast_crds::v1alpha1::TradingResume| {
                condition(&status(r).conditions, "Regressed").is_some_and(|c| c.status == wanted)
            }
        };
        let resume = world.resume_until("go-on", "it is said", regressed("True")).await?;
        assert_eq!(status(&resume).phase, ResumePhase::Watching, "{answer}");
        let events: kube::Api<k8s_openapi::api::events::v1::Event> = world.api();
        let told = async || -> Result<Option<()>> {
            let all = events.list(&Default::default()).await?.items;
            let told = all.iter().any(|e| e.reason.as_deref() == Some("Regression"));
            Ok(told.then_some(()))
        };
        world.until("an Event tells it", told).await?;
        world.venue.set_market_open(true);
        let resume = world.resume_in("go-on", ResumePhase::Completed).await?;
        assert!(regressed("False")(&resume));
        let regression = status(&resume).regression.context("it is remembered")?;
        assert_eq!((regression.check.as_str(), regression.halt), ("check market", None));
        assert_trading(&world, 2).await?;
    }
    Ok(())
}
