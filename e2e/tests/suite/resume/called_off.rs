//! Resumes that somebody aborts, deletes or pauses, or whose time is over.

use anyhow::Result;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{ResourceExt, api::DeleteParams};
use serde_json::json;
use standfast_crds::v1alpha1::{ResumePhase, TradingHalt, TradingResume};

use super::{assert_held, assert_trading, halted, held_at_the_gates, message, saying};

#[tokio::test]
async fn a_resume_aborted_before_the_release_changes_nothing() -> Result<()> {
    let (world, _operator) = held_at_the_gates("abort").await?;
    world.resume("go-on", "stale").await?;
    saying(&world, "go-on", "check market is failing").await?;
    world.patch::<TradingResume>("go-on", json!({"spec": {"abort": true}})).await?;
    let resume = world.resume_in("go-on", ResumePhase::Aborted).await?;
    assert_eq!(message(&resume), "nothing was released");
    world.venue.set_market_open(true);
    assert_held(&world, "stale").await?;
    let back = world.patch::<TradingResume>("go-on", json!({"spec": {"abort": false}})).await.expect_err("one way");
    assert!(back.to_string().contains("an aborted TradingResume stays aborted"), "{back}");
    Ok(())
}

#[tokio::test]
async fn a_resume_aborted_after_the_release_halts_again() -> Result<()> {
    let (world, _operator) = halted("rehalt", 2, json!({})).await?;
    world.node.set_idle(true);
    world.resume("go-on", "stale").await?;
    saying(&world, "go-on", "waiting for ready pods of Deployment bot").await?;
    world.patch::<TradingResume>("go-on", json!({"spec": {"abort": true}})).await?;
    let resume = world.resume_in("go-on", ResumePhase::Aborted).await?;
    assert_eq!(message(&resume), "after the release; halted again by go-on-abort");
    world.node.set_idle(false);
    assert_held(&world, "go-on-abort").await?;
    world.resume("at-last", "go-on-abort").await?;
    world.resume_in("at-last", ResumePhase::Completed).await?;
    assert_trading(&world, 2).await
}

#[tokio::test]
async fn a_resume_that_failed_after_the_release_can_still_be_aborted() -> Result<()> {
    let (world, _operator) = halted("too-late", 1, json!({})).await?;
    world.api::<Deployment>().delete("bot", &DeleteParams::default()).await?;
    world.resume("go-on", "stale").await?;
    let resume = world.resume_in("go-on", ResumePhase::Failed).await?;
    assert!(message(&resume).starts_with("the halt was released, but restore-workloads: "), "{}", message(&resume));
    world.patch::<TradingResume>("go-on", json!({"spec": {"abort": true}})).await?;
    let resume = world.resume_in("go-on", ResumePhase::Aborted).await?;
    assert_eq!(message(&resume), "after the release; halted again by go-on-abort");
    assert!(world.halt_status("go-on-abort").await?.latch.is_some_and(|l| l.held));
    Ok(())
}

#[tokio::test]
async fn a_resume_deleted_before_the_release_changes_nothing() -> Result<()> {
    let (world, _operator) = held_at_the_gates("withdrawn").await?;
    world.resume("go-on", "stale").await?;
    saying(&world, "go-on", "check market is failing").await?;
    world.api::<TradingResume>().delete("go-on", &DeleteParams::default()).await?;
    world.venue.set_market_open(true);
    // What nobody asks for any more is not done: the halt is looked at again and again, and holds.
    let seen = world.venue.requests("GET", "/v2/orders").len();
    let looked = || (world.venue.requests("GET", "/v2/orders").len() > seen + 5).then_some(());
    world.until("the halt is verified again", async || Ok(looked())).await?;
    assert_held(&world, "stale").await?;
    // It is released for the next one, and nothing halts again in the name of the one that is gone.
    world.resume("again", "stale").await?;
    world.resume_in("again", ResumePhase::Completed).await?;
    assert_trading(&world, 2).await?;
    let halts: Vec<_> =
        world.api::<TradingHalt>().list(&Default::default()).await?.iter().map(ResourceExt::name_any).collect();
    assert_eq!(halts, ["stale"]);
    Ok(())
}

#[tokio::test]
async fn a_resume_deleted_after_the_release_halts_again() -> Result<()> {
    let (world, _operator) = halted("deleted", 2, json!({})).await?;
    world.node.set_idle(true);
    world.resume("go-on", "stale").await?;
    saying(&world, "go-on", "waiting for ready pods of Deployment bot").await?;
    world.api::<TradingResume>().delete("go-on", &DeleteParams::default()).await?;
    world.until("a halt", async || Ok(world.api::<TradingHalt>().get_opt("go-on-abort").await?)).await?;
    world.node.set_idle(false);
    assert_held(&world, "go-on-abort").await
}

#[tokio::test]
async fn a_paused_resume_releases_nothing_until_it_goes_on() -> Result<()> {
    let (world, _operator) = halted("pause", 1, json!({})).await?;
    let spec = json!({"haltRef": {"name": "stale"}, "requestedBy": "admin", "paused": true});
    world.create::<TradingResume>(json!({"metadata": {"name": "go-on"}, "spec": spec})).await?;
    world.resume_in("go-on", ResumePhase::Paused).await?;
    assert_held(&world, "stale").await?;
    world.patch::<TradingResume>("go-on", json!({"spec": {"paused": false}})).await?;
    world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_trading(&world, 1).await
}

#[tokio::test]
async fn a_resume_whose_deadline_passes_leaves_the_halt() -> Result<()> {
    let (world, _operator) = held_at_the_gates("deadline").await?;
    let spec = json!({"haltRef": {"name": "stale"}, "requestedBy": "admin", "deadline": "5s"});
    world.create::<TradingResume>(json!({"metadata": {"name": "go-on"}, "spec": spec})).await?;
    let resume = world.resume_in("go-on", ResumePhase::Failed).await?;
    let text = message(&resume);
    assert!(text.starts_with("not released: checks: the deadline has passed: ") && text.contains("market"), "{text}");
    world.venue.set_market_open(true);
    assert_held(&world, "stale").await
}
