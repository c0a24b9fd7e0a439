//! Limits that are set by HTTP, and proven by what the bot says.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::{Json, Router, extract::Path, routing::get};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::ResumePhase;
use standfast_e2e::{
    venue::{Decimal, What, bot::DemoBot},
    world::{KEY, Operator, SECRET, World, merge},
};
use tokio::net::TcpListener;

use super::{assert_held, assert_trading, message, status};
use crate::plane::world;

/// A bot's limit and when it was set over HTTP.
#[derive(Default)]
struct Limit {
    value: String,
    set: Vec<(String, Timestamp)>,
}

type Shared = Arc<Mutex<Limit>>;

fn locked(limit: &Shared) -> std::sync::MutexGuard<'_, Limit> {
    limit.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The endpoint of a bot that begins with a limit of 2.
async fn endpoint() -> Result<(Shared, String)> {
    let limit = Shared::default();
    locked(&limit).value = "2".into();
    let (told, set) = (Arc::clone(&limit), Arc::clone(&limit));
    let read = async move || Json(json!({"percent": locked(&told).value}));
    let write = async move |Path(name): Path<String>, Json(body): Json<Value>| {
        let value = body["value"].as_str().unwrap_or_default().to_owned();
        let mut limit = locked(&set);
        limit.value.clone_from(&value);
        limit.set.push((format!("{name}={value}"), Timestamp::now()));
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let app = Router::new().route("/limits", get(read)).route("/limits/{name}", axum::routing::put(write));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok((limit, url))
}

fn two_stages(hold: &str) -> Value {
    json!({"thresholds": {"interval": "1s"}, "ramp": [
        {"name": "restricted", "limits": {"size": "0.5"}, "hold": hold}, {"name": "full", "limits": {"size": "2"}}]})
}

async fn limited(name: &str, hold: &str, patch: Value) -> Result<(World, Operator, Shared)> {
    let world = world(name).await?;
    world.bot("bot", 1).await?;
    let (limit, url) = endpoint().await?;
    let set =
        json!({"http": {"method": "PUT", "url": format!("{url}/limits/max%20size"), "body": {"value": "{value}"}}});
    let read = json!({"http": {"url": format!("{url}/limits")}, "path": "$.percent"});
    let mut spec = json!({"resumePolicy": two_stages(hold), "limits": [{"name": "size", "set": set, "read": read}]});
    merge(&mut spec, patch);
    world.system(&["bot"], spec).await?;
    let operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    world.venue.clear_ledger();
    Ok((world, operator, limit))
}

/// S2-36: while the venue refuses orders, and loosened only when the stage has held.
#[tokio::test]
async fn s2_36_a_limit_is_set_and_told_by_the_bot_before_the_venue_accepts_orders() -> Result<()> {
    let (world, _operator, limit) = limited("by-http", "2s", json!({})).await?;
    world.resume("go-on", "stale").await?;
    let resume = world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_trading(&world, 1).await?;
    let set = locked(&limit).set.clone();
    assert_eq!(set.iter().map(|(what, _)| what.as_str()).collect::<Vec<_>>(), ["max size=0.5", "max size=2"]);
    let allowed = world.venue.ledger().into_iter().find_map(|e| match &e.what {
        What::Request(r) if r.method == "PATCH" => Some(e.at),
        _ => None,
    });
    assert!(allowed.is_some_and(|at| set[0].1 < at), "{allowed:?} {set:?}");
    let held = status(&resume).stages.into_iter().find(|s| s.name == "restricted");
    assert!(held.and_then(|s| s.finished_at).is_some_and(|t| t.0 <= set[1].1), "{set:?}");
    Ok(())
}

/// S0-63, S2-36: a bot that does not keep to the limit of its stage any more is halted.
#[tokio::test]
async fn s2_36_a_limit_that_somebody_changes_in_a_stage_halts_again() -> Result<()> {
    let (world, _operator, limit) = limited("changed", "10m", json!({})).await?;
    world.resume("go-on", "stale").await?;
    world.resume_until("go-on", "it is held", |r| !status(r).stages.is_empty()).await?;
    locked(&limit).value = "5".into();
    let resume = world.resume_in("go-on", ResumePhase::ReHalted).await?;
    let text = "halted again by go-on-regression: limit size in stage restricted: the bot tells 5, wanted 0.5";
    assert_eq!(message(&resume), text);
    assert_held(&world, "go-on-regression").await
}

/// What was written proves nothing: a venue is not opened for a bot that tells another limit.
#[tokio::test]
async fn a_limit_that_the_bot_does_not_take_over_keeps_the_venue_shut() -> Result<()> {
    let (deaf, url) = endpoint().await?;
    let read = json!({"http": {"url": format!("{url}/limits")}, "path": "$.percent"});
    let (world, _operator, limit) = limited("deaf", "1s", json!({})).await?;
    let system: standfast_crds::v1alpha1::TradingSystem = world.api().get("system").await?;
    let mut limits = serde_json::to_value(&system.spec.limits)?;
    limits[0]["read"] = read;
    world.patch::<standfast_crds::v1alpha1::TradingSystem>("system", json!({"spec": {"limits": limits}})).await?;
    world.resume("go-on", "stale").await?;
    let sent = || (locked(&limit).set.len() >= 2).then_some(());
    world.until("it is sent again", async || Ok(sent())).await?;
    super::saying(&world, "go-on", "restricted-limits-proven: limit size: the bot tells 2, wanted 0.5").await?;
    assert!(world.venue.suspended(KEY));
    locked(&deaf).value = "0.5".into();
    // The next stage wants another one, which this bot does not take over either.
    super::saying(&world, "go-on", "full-limits-proven: limit size: the bot tells 0.5, wanted 2").await?;
    locked(&deaf).value = "2".into();
    world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_trading(&world, 1).await
}

/// S0-63, S2-36, S4-13: the demo bot itself trades, and no more than the stage allows.
#[tokio::test]
async fn s0_63_the_bot_trades_at_the_small_limit_before_the_full_one() -> Result<()> {
    let world = world("small").await?;
    world.bot("bot", 1).await?;
    let env = [("BOT_SYMBOLS", "AAPL"), ("BOT_MAX_POSITION_PERCENT", "2"), ("BOT_STARTS_HALTED", "true")];
    let bot = DemoBot::start(&world.venue.url(), KEY, SECRET, &env).await?;
    let url = &bot.url;
    let authorized = json!([{"name": "Authorization", "value": format!("Bearer {}", bot.token)}]);
    let post = |path: &str| json!({"method": "POST", "url": format!("{url}{path}"), "headers": authorized});
    let limit = |name: &str| {
        let url_of_it = format!("{url}/limits/{name}");
        let set = json!({"method": "PUT", "url": url_of_it, "headers": authorized, "body": {"value": "{value}"}});
        let read = json!({"http": {"url": format!("{url}/limits")}, "path": format!("$.{name}")});
        json!({"name": name, "set": {"http": set}, "read": read})
    };
    let limits = |percent: &str, mode: &str| json!({"maxPositionPercent": percent, "riskMode": mode});
    let policy = json!({"thresholds": {"interval": "1s"}, "ramp": [
        {"name": "restricted", "limits": limits("0.5", "conservative"), "hold": "10m"},
        {"name": "full", "limits": limits("2", "normal"), "hold": "1s"}]});
    let spec = json!({
        "applicationHalt":
            {"request": post("/emergency/halt"), "resume": post("/emergency/resume"), "startsHalted": true},
        "limits": [limit("maxPositionPercent"), limit("riskMode")],
        "resumePolicy": policy,
    });
    world.system(&["bot"], spec).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    assert!(world.venue.orders(KEY).is_empty());
    world.resume("go-on", "stale").await?;
    // 0.5 % of a million, halved by the mode, at 100 a share: 25 shares.
    let held = || world.venue.positions(KEY).iter().map(|p| p.qty).sum::<Decimal>();
    let small = Decimal::from(25);
    let trades = || (held() >= Decimal::from(10)).then_some(());
    world.until("it trades at the small limit", async || Ok(trades())).await?;
    let rounds = world.venue.requests("GET", "/v2/account").len();
    let more = || (world.venue.requests("GET", "/v2/account").len() > rounds + 5).then_some(());
    world.until("five rounds more", async || Ok(more())).await?;
    assert!(held() <= small, "{} shares:\n{}", held(), bot.log());
    // What it tells is what it keeps to. Somebody gives it more: the bot would trade more, and is halted.
    let client = reqwest::Client::builder().no_proxy().build()?;
    let put =
        client.put(format!("{url}/limits/maxPositionPercent")).bearer_auth(&bot.token).json(&json!({"value": "4"}));
    put.send().await?.error_for_status()?;
    let resume = world.resume_in("go-on", ResumePhase::ReHalted).await?;
    assert!(message(&resume).contains("limit maxPositionPercent in stage restricted: the bot tells 4, wanted 0.5"));
    assert_held(&world, "go-on-regression").await?;
    // With short stages it gets to the full limit.
    let short = json!({"spec": {"resumePolicy": {"ramp": [
        {"name": "restricted", "limits": limits("0.5", "conservative"), "hold": "1s"},
        {"name": "full", "limits": limits("2", "normal"), "hold": "1s"}]}}});
    world.patch::<standfast_crds::v1alpha1::TradingSystem>("system", short).await?;
    world.resume("again", "go-on-regression").await?;
    world.resume_in("again", ResumePhase::Completed).await?;
    let full = || (held() > small * Decimal::from(2)).then_some(());
    world.until("it trades at the full limit", async || Ok(full())).await
}
