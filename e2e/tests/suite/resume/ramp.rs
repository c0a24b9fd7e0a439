//! Resumes that bring trading back in stages.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::ConfigMap},
    jiff::Timestamp,
};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{ResumePhase, StageStatus, TradingHalt, TradingResume, condition};
use standfast_e2e::{
    venue::What,
    world::{Operator, World, merge},
};
use tokio::net::TcpListener;

use super::{assert_held, assert_trading, market_check, message, saying, status};
use crate::plane::world;

/// A place where somebody asks what limits a bot keeps to that reads them from a ConfigMap.
pub(super) async fn limits_of_a_config_map(world: &World) -> Result<String> {
    let maps: Api<ConfigMap> = world.api();
    let told = async move || {
        let map = maps.get("limits").await.map_err(|_| axum::http::StatusCode::SERVICE_UNAVAILABLE)?;
        Ok::<_, axum::http::StatusCode>(axum::Json(json!(map.data.unwrap_or_default())))
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/limits", listener.local_addr()?);
    let app = axum::Router::new().route("/limits", axum::routing::get(told));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}

/// Three stages: a quarter, half, everything, with a limit that is written to a ConfigMap.
pub(super) fn three_stages(holds: [&str; 3]) -> Value {
    let limits = |percent: &str| json!({"maxPositionPercent": percent});
    json!({"thresholds": {"interval": "1s"}, "ramp": [
        {"name": "restricted", "replicasPercent": 25, "limits": limits("0.5"), "hold": holds[0]},
        {"name": "half", "replicasPercent": 50, "limits": limits("1"), "hold": holds[1]},
        {"name": "full", "limits": limits("2"), "hold": holds[2]},
    ]})
}

/// A bot of four replicas that is halted, proven, with that policy, and the ConfigMap with its limits.
async fn staged(name: &str, policy: Value, patch: Value) -> Result<(World, Operator)> {
    let world = world(name).await?;
    world.bot("bot", 4).await?;
    let map = json!({"metadata": {"name": "limits", "labels": {"standfast.dev/use": "true"}},
        "data": {"maxPositionPercent": "2", "other": "kept"}});
    world.create::<ConfigMap>(map).await?;
    let read = json!({"http": {"url": limits_of_a_config_map(&world).await?}, "path": "$.maxPositionPercent"});
    let set = json!({"configMap": {"name": "limits", "key": "maxPositionPercent"}});
    let mut spec = json!({"checks": market_check(&world), "resumePolicy": policy,
        "limits": [{"name": "maxPositionPercent", "set": set, "read": read}]});
    merge(&mut spec, patch);
    world.system(&["bot"], spec).await?;
    let operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    Ok((world, operator))
}

async fn limit(world: &World) -> Result<String> {
    let data = world.api::<ConfigMap>().get("limits").await?.data.unwrap_or_default();
    assert_eq!(data.get("other").map(String::as_str), Some("kept"));
    data.get("maxPositionPercent").cloned().context("the key is gone")
}

fn stage(resume: &TradingResume, name: &str) -> StageStatus {
    status(resume).stages.into_iter().find(|s| s.name == name).unwrap_or_default()
}

fn began(stage: &StageStatus) -> Timestamp {
    stage.started_at.as_ref().map(|t| t.0).unwrap_or_default()
}

/// From its first look to its end.
fn took(stage: &StageStatus) -> Duration {
    let end = stage.finished_at.as_ref().map(|t| t.0).unwrap_or_default();
    Duration::try_from(end.duration_since(began(stage))).unwrap_or_default()
}

/// Waits until a stage is held.
async fn in_stage(world: &World, name: &str) -> Result<TradingResume> {
    world.resume_until("go-on", &format!("stage {name} is held"), |r| stage(r, name).started_at.is_some()).await
}

/// S0-28, S0-63, S1-36, S2-36, S4-13, S4-27
#[tokio::test]
async fn s0_63_trading_returns_in_stages_that_are_held() -> Result<()> {
    let (world, _operator) = staged("stages", three_stages(["5s", "5s", "2s"]), json!({})).await?;
    world.resume("go-on", "stale").await?;
    for (name, replicas, percent) in [("restricted", 1, "0.5"), ("half", 2, "1"), ("full", 4, "2")] {
        let resume = in_stage(&world, name).await?;
        let now =
            (status(&resume).phase, status(&resume).stage, stage(&resume, name).limits["maxPositionPercent"].clone());
        assert_eq!(now, (ResumePhase::Ramping, Some(name.to_owned()), percent.to_owned()));
        assert_eq!((world.replicas("bot").await?, limit(&world).await?.as_str()), (replicas, percent));
    }
    let resume = world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_eq!(message(&resume), "trading again");
    assert_trading(&world, 4).await?;
    for (name, hold) in [("restricted", 5), ("half", 5), ("full", 2)] {
        let stage = stage(&resume, name);
        let hold = Duration::from_secs(hold);
        assert!(stage.held.is_some_and(|h| h.get() >= hold) && took(&stage) >= hold, "{stage:?}");
    }
    let names: Vec<_> = status(&resume).steps.into_iter().skip(5).map(|s| s.name).collect();
    assert_eq!(
        names[..8],
        [
            "release",
            "restricted-limits",
            "restricted-workloads",
            "restricted-ready",
            "restricted-limits-proven",
            "application-resume",
            "allow-trading-alpaca",
            "restricted-hold"
        ]
    );
    Ok(())
}

/// S0-29, S2-37: the halt names the check and its value, and goes back to the whole.
#[tokio::test]
async fn s0_29_a_check_that_fails_in_a_stage_halts_again() -> Result<()> {
    let (world, _operator) = staged("regress", three_stages(["1s", "10m", "1s"]), json!({})).await?;
    world.resume("go-on", "stale").await?;
    in_stage(&world, "half").await?;
    assert_eq!(world.replicas("bot").await?, 2);
    world.venue.set_market_open(false);
    let resume = world.resume_in("go-on", ResumePhase::ReHalted).await?;
    let what = "check market in stage half: found false at $.is_open, wanted true";
    assert_eq!(message(&resume), format!("halted again by go-on-regression: {what}"));
    let regression = status(&resume).regression.context("no regression")?;
    let told = (regression.check.as_str(), regression.stage.as_str(), regression.halt.as_deref());
    assert_eq!(told, ("check market", "half", Some("go-on-regression")));
    assert_eq!(condition(&status(&resume).conditions, "Regressed").map(|c| c.status.as_str()), Some("True"));
    assert_held(&world, "go-on-regression").await?;
    let halt = world.api::<TradingHalt>().get("go-on-regression").await?;
    assert_eq!(halt.spec.reason, format!("resume go-on went wrong: {what}"));
    let record = &world.halt_status("go-on-regression").await?.workloads[0];
    assert_eq!((record.replicas, record.inherited_from.as_deref()), (Some(4), Some("stale")));
    // Back to everything, through the same stages.
    world.venue.set_market_open(true);
    let limits = json!({"spec": {"resumePolicy": three_stages(["1s", "1s", "1s"])}});
    world.patch::<standfast_crds::v1alpha1::TradingSystem>("system", limits).await?;
    world.resume("again", "go-on-regression").await?;
    world.resume_in("again", ResumePhase::Completed).await?;
    assert_trading(&world, 4).await
}

/// S1-36: what the operator does not see does not count.
#[tokio::test]
async fn s1_36_an_operator_that_is_away_makes_a_stage_longer() -> Result<()> {
    let (world, operator) = staged("away", three_stages(["6s", "0s", "0s"]), json!({})).await?;
    world.resume("go-on", "stale").await?;
    let begun = began(&stage(&in_stage(&world, "restricted").await?, "restricted"));
    operator.cut_off();
    // The time that passes is what this is about.
    let away = Duration::from_secs(4);
    tokio::time::sleep(away).await;
    let left =
        stage(&world.api::<TradingResume>().get("go-on").await?, "restricted").held.map_or(0, |h| h.get().as_secs());
    let _operator = world.operator().await?;
    let resume = world.resume_in("go-on", ResumePhase::Completed).await?;
    let stage = stage(&resume, "restricted");
    assert_eq!(began(&stage), begun);
    let least = Duration::from_secs(6 - left) + away;
    assert!(took(&stage) >= least, "{stage:?}, wanted {least:?}, {left} s were written down");
    assert_trading(&world, 4).await
}

/// Between two stages it trades, too.
#[tokio::test]
async fn a_check_that_fails_on_the_way_to_the_next_stage_halts_again() -> Result<()> {
    let (world, _operator) = staged("way", three_stages(["4s", "1s", "1s"]), json!({})).await?;
    world.resume("go-on", "stale").await?;
    in_stage(&world, "restricted").await?;
    world.node.set_idle(true);
    saying(&world, "go-on", "half-ready: waiting for ready pods of Deployment bot").await?;
    world.venue.set_market_open(false);
    let resume = world.resume_in("go-on", ResumePhase::ReHalted).await?;
    assert!(message(&resume).contains("check market in stage half: found false"), "{}", message(&resume));
    world.node.set_idle(false);
    assert_held(&world, "go-on-regression").await?;
    assert_eq!(world.halt_status("go-on-regression").await?.workloads[0].replicas, Some(4));
    Ok(())
}

#[tokio::test]
async fn a_paused_stage_does_not_go_on_and_is_watched() -> Result<()> {
    let (world, _operator) = staged("pausing", three_stages(["10m", "1s", "1s"]), json!({})).await?;
    world.resume("go-on", "stale").await?;
    in_stage(&world, "restricted").await?;
    world.patch::<TradingResume>("go-on", json!({"spec": {"paused": true}})).await?;
    let resume = saying(&world, "go-on", "paused: its time does not count").await?;
    assert_eq!(status(&resume).phase, ResumePhase::Paused);
    assert_eq!((world.replicas("bot").await?, limit(&world).await?.as_str()), (1, "0.5"));
    world.venue.set_market_open(false);
    world.resume_in("go-on", ResumePhase::ReHalted).await?;
    assert_held(&world, "go-on-regression").await
}

/// Halting wins: by abort and by a halt of somebody else, in the midst of a stage, and with the whole number.
#[tokio::test]
async fn a_stage_ends_at_once_when_somebody_halts() -> Result<()> {
    let (world, _operator) = staged("wins", three_stages(["10m", "1s", "1s"]), json!({})).await?;
    world.resume("go-on", "stale").await?;
    in_stage(&world, "restricted").await?;
    world.halt("worse", json!({})).await?;
    let resume = world.resume_in("go-on", ResumePhase::Failed).await?;
    assert_eq!(message(&resume), "halted again by worse");
    assert_held(&world, "worse").await?;
    assert_eq!(world.halt_status("worse").await?.workloads[0].replicas, Some(4));
    let spec = json!({"haltRef": {"name": "worse"}, "requestedBy": "admin"});
    world.create::<TradingResume>(json!({"metadata": {"name": "second"}, "spec": spec})).await?;
    world.resume_until("second", "it is held", |r| stage(r, "restricted").started_at.is_some()).await?;
    world.patch::<TradingResume>("second", json!({"spec": {"abort": true}})).await?;
    let resume = world.resume_in("second", ResumePhase::Aborted).await?;
    assert_eq!(message(&resume), "after the release; halted again by second-abort");
    assert_held(&world, "second-abort").await?;
    assert_eq!(world.halt_status("second-abort").await?.workloads[0].replicas, Some(4));
    Ok(())
}

/// A dry run tells what would happen, and changes nothing.
#[tokio::test]
async fn a_dry_run_changes_nothing() -> Result<()> {
    let mut policy = three_stages(["5m", "2h", "1h"]);
    policy["watch"] = json!({"for": "24h"});
    let (world, _operator) = staged("dry", policy, json!({})).await?;
    let versions = async || -> Result<_> {
        let bot = world.api::<Deployment>().get("bot").await?;
        let maps = world.api::<ConfigMap>().list(&Default::default()).await?.items;
        let maps: Vec<_> = maps.iter().map(|m| (m.name_any(), m.resource_version())).collect();
        let halts: Vec<_> =
            world.api::<TradingHalt>().list(&Default::default()).await?.iter().map(name_and_uid).collect();
        Ok((bot.resource_version(), maps, halts))
    };
    let before = versions().await?;
    world.venue.clear_ledger();
    let dry = async |name: &str| -> Result<TradingResume> {
        let spec = json!({"haltRef": {"name": "stale"}, "requestedBy": "admin", "dryRun": true});
        world.create::<TradingResume>(json!({"metadata": {"name": name}, "spec": spec})).await?;
        world.resume_in(name, ResumePhase::Evaluated).await
    };
    let resume = dry("would-it").await?;
    assert_eq!(message(&resume), "dry run: every gate would pass now; nothing was released or sent");
    let said = |name: &str| {
        let step = status(&resume).steps.into_iter().find(|s| s.name == name);
        step.and_then(|s| s.message).unwrap_or_default()
    };
    assert_eq!(said("checks"), "would pass now: 1 of 1 checks pass");
    assert_eq!(said("release"), "would release TradingHalt stale");
    assert_eq!(said("restricted-limits"), "would write maxPositionPercent 0.5");
    assert_eq!(said("restricted-workloads"), "would run Deployment bot at 1 of 4 replicas");
    assert_eq!(said("half-hold"), "would be held for 2h with 1 checks");
    assert_eq!(said("watch"), "would be watched for 24h with 1 checks");
    world.venue.set_market_open(false);
    let resume = dry("and-now").await?;
    let text = "dry run: would not be released now: checks: check market is failing";
    assert!(message(&resume).starts_with(text), "{}", message(&resume));
    assert_eq!(versions().await?, before);
    let changed = world.venue.ledger().into_iter().any(|e| matches!(&e.what, What::Request(r) if r.method != "GET"));
    assert!(!changed, "{:#?}", world.venue.ledger());
    world.venue.set_market_open(true);
    assert_held(&world, "stale").await
}

fn name_and_uid(halt: &TradingHalt) -> (String, Option<String>) {
    (halt.name_any(), halt.uid())
}

#[tokio::test]
async fn stages_that_cannot_be_carried_out_fail_before_anything_is_released() -> Result<()> {
    let policy = json!({"ramp": [{"name": "small", "limits": {"leverage": "1"}}]});
    let (world, _operator) = staged("cannot", policy, json!({})).await?;
    world.resume("go-on", "stale").await?;
    let resume = world.resume_in("go-on", ResumePhase::Failed).await?;
    assert_eq!(message(&resume), "the TradingSystem has no limit leverage: there are maxPositionPercent");
    assert_held(&world, "stale").await
}

/// A ConfigMap without the label is nobody's to write, and the halt holds until somebody labels it.
#[tokio::test]
async fn limits_are_written_only_where_a_label_allows_it() -> Result<()> {
    let (world, _operator) = staged("label", three_stages(["0s", "0s", "0s"]), json!({})).await?;
    let label = |value: Value| json!({"metadata": {"labels": {"standfast.dev/use": value}}});
    world.patch::<ConfigMap>("limits", label(Value::Null)).await?;
    world.resume("go-on", "stale").await?;
    let text = "must carry the label standfast.dev/use: \"true\" before limits are written to it";
    saying(&world, "go-on", text).await?;
    assert_held(&world, "stale").await?;
    world.patch::<ConfigMap>("limits", label("true".into())).await?;
    world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_trading(&world, 4).await
}
