//! Resumes on a real API server, against the paper venue.

pub mod approvals;
mod called_off;
mod halted_again;
mod limits;
mod ramp;
mod reconcile;
mod unproven;
mod watch;

use std::sync::Arc;

use anyhow::{Context, Result};
use k8s_openapi::{
    api::{
        admissionregistration::v1::ValidatingAdmissionPolicyBinding,
        apps::v1::Deployment,
        batch::v1::{CronJob, Job},
        core::v1::Service,
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use standfast_crds::{
    guardrails::LATCH_POLICY,
    v1alpha1::{HaltPhase, ResumePhase, StepState, TradingHalt, TradingResume, TradingResumeStatus, condition},
};
use standfast_e2e::{
    venue::{Action, Fault, NewOrder, Side, What},
    world::{KEY, Operator, World},
};
use tokio::sync::Notify;

use crate::plane::{Alone, world};

/// A bot that is halted, proven.
async fn halted(name: &str, replicas: i32, patch: Value) -> Result<(World, Operator)> {
    let world = world(name).await?;
    world.bot("bot", replicas).await?;
    world.system(&["bot"], patch).await?;
    let operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    Ok((world, operator))
}

/// A check that passes while the venue's market is open.
fn market_check(world: &World) -> Value {
    let read = &world.venue_spec()["marketOpen"];
    json!([{"name": "market", "group": "trading", "http":
        {"request": read["http"], "path": read["path"], "expect": read["expect"]}}])
}

/// The same, with a check that does not pass yet.
async fn held_at_the_gates(name: &str) -> Result<(World, Operator)> {
    let world = world(name).await?;
    world.bot("bot", 2).await?;
    world.venue.set_market_open(false);
    world.system(&["bot"], json!({"checks": market_check(&world)})).await?;
    let operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    Ok((world, operator))
}

fn status(resume: &TradingResume) -> TradingResumeStatus {
    resume.status.clone().unwrap_or_default()
}

/// What a resume says.
fn message(resume: &TradingResume) -> String {
    let conditions = status(resume).conditions;
    condition(&conditions, "Completed").map(|c| c.message.clone()).unwrap_or_default()
}

/// Waits until a resume says something with this in it.
async fn saying(world: &World, name: &str, text: &str) -> Result<TradingResume> {
    world.resume_until(name, &format!("{name} says {text:?}"), |r| message(r).contains(text)).await
}

/// The address of a sync that tells that it was asked, and then waits until it may go on.
async fn sync_that_waits(asked: &Arc<Notify>, go_on: &Arc<Notify>) -> Result<String> {
    let (told, waits) = (Arc::clone(asked), Arc::clone(go_on));
    let sync = axum::routing::post(async move || {
        told.notify_one();
        waits.notified().await;
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/sync", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().route("/sync", sync)).await });
    Ok(url)
}

/// Nothing was let go: the halt is proven, its latch is there, nobody runs, the venue refuses orders.
async fn assert_held(world: &World, halt: &str) -> Result<()> {
    let status = world.halted(halt).await?;
    assert!(status.released.is_none() && status.latch.is_some_and(|l| l.held));
    assert_eq!((world.replicas("bot").await?, world.pods("bot").await?.len()), (0, 0));
    assert!(world.venue.suspended(KEY));
    world.scale("bot", 1, "somebody").await.expect_err("the latch refuses");
    Ok(())
}

/// Bot and venue trade again.
async fn assert_trading(world: &World, replicas: i32) -> Result<()> {
    assert_eq!(world.replicas("bot").await?, replicas);
    assert_eq!(world.latches().await?.len(), 0);
    assert!(!world.venue.suspended(KEY));
    world.venue.place_order(KEY, &NewOrder::limit("AAPL", Side::Buy, 1, 50)).expect("the venue accepts orders");
    Ok(())
}

/// S1-33, S1-35
#[tokio::test]
async fn s1_35_a_resume_brings_the_recorded_replicas_back_and_allows_trading_last() -> Result<()> {
    let world = world("full").await?;
    world.bot("bot", 3).await?;
    world.system(&["bot"], json!({"checks": market_check(&world)})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    world.venue.clear_ledger();
    world.resume("go-on", "stale").await?;
    let resume = world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_trading(&world, 3).await?;
    assert_eq!(message(&resume), "trading again");
    let steps = status(&resume).steps;
    let names: Vec<_> = steps.iter().map(|s| (s.name.as_str(), s.state)).collect();
    let (done, skipped) = (StepState::Succeeded, StepState::Skipped);
    assert_eq!(
        names,
        [
            ("halted", done),
            ("guardrails", done),
            ("checks", done),
            ("sync-positions", skipped),
            ("request-release", done),
            ("release", done),
            ("restore-workloads", done),
            ("ready", done),
            ("application-resume", skipped),
            ("allow-trading-alpaca", done),
            ("verify", done),
        ]
    );
    let at = |name: &str, pick: fn(&standfast_crds::v1alpha1::StepStatus) -> Option<MicroTime>| {
        steps.iter().find(|s| s.name == name).and_then(pick).map(|t| t.0).with_context(|| format!("no time of {name}"))
    };
    let allowed = world.venue.ledger().into_iter().find_map(|e| match &e.what {
        What::Request(r) if r.method == "PATCH" => Some(e.at),
        _ => None,
    });
    let allowed = allowed.context("trading was not allowed")?;
    assert!(at("ready", |s| s.finished_at.clone())? <= allowed, "the pods were ready first");
    let halt = world.halt_status("stale").await?;
    assert_eq!(halt.phase, HaltPhase::Released);
    assert_eq!(halt.released.map(|r| (r.resume, r.requested_by)), Some(("go-on".into(), "admin".into())));
    Ok(())
}

/// S1-33
#[tokio::test]
async fn s1_33_a_failing_check_keeps_everything_halted_and_says_why() -> Result<()> {
    let (world, _operator) = held_at_the_gates("check").await?;
    world.resume("go-on", "stale").await?;
    let resume = saying(&world, "go-on", "check market is failing").await?;
    assert_eq!(status(&resume).phase, ResumePhase::Checking);
    assert_eq!(message(&resume), "checks: check market is failing: found false at $.is_open, wanted true");
    assert_held(&world, "stale").await?;
    world.venue.set_market_open(true);
    world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_trading(&world, 2).await
}

/// S1-33
#[tokio::test]
async fn s1_33_a_check_that_fails_again_just_before_the_release_holds_it() -> Result<()> {
    let world = world("twice").await?;
    world.bot("bot", 1).await?;
    // The sync comes between the checks and the last look at them, and takes as long as the test wants.
    let (asked, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let url = sync_that_waits(&asked, &go_on).await?;
    let sync = json!({"http": {"method": "POST", "url": url, "timeout": "30s"}});
    world.system(&["bot"], json!({"checks": market_check(&world), "syncPositions": sync})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    world.resume("go-on", "stale").await?;
    asked.notified().await;
    world.venue.set_market_open(false);
    go_on.notify_one();
    let resume = saying(&world, "go-on", "request-release: check market is failing").await?;
    assert_eq!((status(&resume).phase, status(&resume).release_requested_at), (ResumePhase::Checking, None));
    assert_held(&world, "stale").await
}

/// S1-34
#[tokio::test]
async fn s1_34_a_sync_that_fails_keeps_the_halt() -> Result<()> {
    let world = world("sync").await?;
    world.bot("bot", 1).await?;
    let sync = |path: &str| json!({"http": {"method": "POST", "url": format!("{}{path}", world.venue.url())}});
    world.system(&["bot"], json!({"syncPositions": sync("/sync")})).await?;
    let refuses = Action::Reply { status: 409, body: r#"{"breaks": 2}"#.into(), headers: vec![] };
    world.venue.fault(Fault::on("POST", "/sync", refuses));
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    world.resume("go-on", "stale").await?;
    let resume = world.resume_in("go-on", ResumePhase::Failed).await?;
    assert_eq!(message(&resume), "not released: sync-positions: the sync answered 409, wanted 200 to 299");
    assert_held(&world, "stale").await?;
    world.venue.clear_faults();
    world.venue.fault(Fault::on("POST", "/sync", Action::Reply { status: 200, body: "{}".into(), headers: vec![] }));
    world.resume("again", "stale").await?;
    world.resume_in("again", ResumePhase::Completed).await?;
    assert_eq!(world.venue.requests("POST", "/sync").len(), 2);
    assert_trading(&world, 1).await
}

#[tokio::test]
async fn a_resume_of_what_cannot_be_released_fails_at_once_and_says_what_there_is() -> Result<()> {
    let (world, _operator) = halted("refs", 1, json!({})).await?;
    let uid = world.api::<TradingHalt>().get("stale").await?.uid().context("no uid")?;
    world.halt("idle", json!({"systemRef": {"name": "nobody"}})).await?;
    let namespace = &world.namespace;
    let before = [
        (
            "missing",
            json!({"name": "typo"}),
            format!("there is no TradingHalt typo in namespace {namespace}: these hold: stale"),
        ),
        (
            "other-uid",
            json!({"name": "stale", "uid": "0-0"}),
            format!("TradingHalt stale is another one now: its uid is {uid}, not 0-0"),
        ),
        (
            "idle",
            json!({"name": "idle"}),
            "TradingHalt idle has not latched anything: there is nothing to release, it may be deleted".into(),
        ),
    ];
    let ask = async |name: &str, halt: &Value| {
        let spec = json!({"haltRef": halt, "requestedBy": "admin"});
        world.create::<TradingResume>(json!({"metadata": {"name": name}, "spec": spec})).await?;
        world.resume_in(name, ResumePhase::Failed).await
    };
    for (name, halt, expected) in before {
        assert_eq!(message(&ask(name, &halt).await?), expected, "{name}");
    }
    assert_held(&world, "stale").await?;
    world.resume("go-on", "stale").await?;
    world.resume_in("go-on", ResumePhase::Completed).await?;
    let released = ask("again", &json!({"name": "stale"})).await?;
    assert_eq!(message(&released), "TradingHalt stale was already released by TradingResume go-on");
    let conditions = status(&released).conditions;
    let told: Vec<_> = ["Ready", "Stalled", "Released"]
        .iter()
        .filter_map(|t| condition(&conditions, t))
        .map(|c| c.status.as_str())
        .collect();
    assert_eq!(told, ["False", "True", "False"]);
    Ok(())
}

#[tokio::test]
async fn a_resume_older_than_the_halt_it_names_does_not_release_it() -> Result<()> {
    let world = world("older").await?;
    world.bot("bot", 1).await?;
    world.system(&["bot"], json!({})).await?;
    // Both are there before any operator looks, as after a restore from Git.
    let resume = world.resume("from-git", "stale").await?;
    let born = |meta: &kube::core::ObjectMeta| meta.creation_timestamp.as_ref().map(|t| t.0);
    // Creation times have whole seconds.
    world
        .until("a halt of a later second", async || {
            let halt = world.halt("stale", json!({})).await?;
            if born(&halt.metadata) > born(&resume.metadata) {
                return Ok(Some(()));
            }
            world.api::<TradingHalt>().delete("stale", &DeleteParams::default()).await?;
            Ok(None)
        })
        .await?;
    let _operator = world.operator().await?;
    let resume = world.resume_in("from-git", ResumePhase::Failed).await?;
    assert_eq!(
        message(&resume),
        "TradingHalt stale is younger than this TradingResume, which cannot mean it: create another one"
    );
    assert_held(&world, "stale").await
}

#[tokio::test]
async fn two_halts_are_released_one_by_one_and_the_last_brings_everything_back() -> Result<()> {
    let (world, _operator) = halted("two", 3, json!({})).await?;
    world.halt("worse", json!({"reason": "worse"})).await?;
    let worse = world.halted("worse").await?;
    let record = &worse.workloads[0];
    assert_eq!((record.replicas, record.inherited_from.as_deref()), (Some(3), Some("stale")));
    world.resume("first", "stale").await?;
    let resume = world.resume_in("first", ResumePhase::Completed).await?;
    assert_eq!(message(&resume), "released; the system is still halted by worse");
    assert_eq!(world.halt_status("stale").await?.phase, HaltPhase::Released);
    assert_held(&world, "worse").await?;
    world.resume("second", "worse").await?;
    world.resume_in("second", ResumePhase::Completed).await?;
    assert_trading(&world, 3).await
}

#[tokio::test]
async fn a_bot_that_somebody_changed_under_the_halt_comes_back_changed() -> Result<()> {
    let (world, _operator) = halted("image", 2, json!({})).await?;
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "bot", "image": "bot:2"}]}}}});
    world.patch::<Deployment>("bot", image).await?;
    world.resume("go-on", "stale").await?;
    world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_trading(&world, 2).await?;
    let images: Vec<_> =
        world.pods("bot").await?.iter().filter_map(|p| p.spec.clone()?.containers[0].image.clone()).collect();
    assert_eq!(images, ["bot:2", "bot:2"]);
    Ok(())
}

/// S1-35
#[tokio::test]
async fn s1_35_a_bot_that_was_at_zero_before_the_halt_stays_there() -> Result<()> {
    let (world, _operator) = halted("zero", 0, json!({})).await?;
    world.resume("go-on", "stale").await?;
    world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_trading(&world, 0).await
}

#[tokio::test]
async fn a_cron_job_goes_on_and_its_suspended_jobs_are_listed_only() -> Result<()> {
    let world = world("cron-on").await?;
    let template = json!({"metadata": {"labels": {"app": "bot"}},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "c"}]}});
    let cron: CronJob = world
        .create(json!({"metadata": {"name": "rebalance"}, "spec": {"schedule": "0 0 1 1 *",
            "jobTemplate": {"spec": {"template": template}}}}))
        .await?;
    let owner = json!({"apiVersion": "batch/v1", "kind": "CronJob", "name": "rebalance", "uid": cron.uid(),
        "controller": true});
    let job = json!({"metadata": {"name": "now", "ownerReferences": [owner]}, "spec": {"template": template}});
    world.create::<Job>(job).await?;
    world.until("its pod is there", async || Ok((world.pods("bot").await?.len() == 1).then_some(()))).await?;
    let workloads = json!([{"kind": "CronJob", "name": "rebalance", "role": "Trading"}]);
    world.system(&[], json!({"workloads": workloads})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    world.resume("go-on", "stale").await?;
    let resume = world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_eq!(status(&resume).suspended_jobs, ["now"]);
    let (cron, job) = (world.api::<CronJob>().get("rebalance").await?, world.api::<Job>().get("now").await?);
    assert_eq!(cron.spec.and_then(|s| s.suspend), Some(false));
    assert_eq!(job.spec.and_then(|s| s.suspend), Some(true));
    Ok(())
}

#[tokio::test]
async fn the_plan_is_frozen_later_edits_of_the_system_change_nothing() -> Result<()> {
    let (world, _operator) = held_at_the_gates("frozen").await?;
    world.resume("go-on", "stale").await?;
    let resume = saying(&world, "go-on", "check market is failing").await?;
    let (plan, hash) = (status(&resume).plan, status(&resume).plan_hash);
    assert!(plan.is_some() && hash.is_some());
    world.patch::<standfast_crds::v1alpha1::TradingSystem>("system", json!({"spec": {"checks": []}})).await?;
    world.system_until("system", "the edit is seen", |s| s.checks.is_empty()).await?;
    saying(&world, "go-on", "check market is failing").await?;
    assert_held(&world, "stale").await?;
    world.venue.set_market_open(true);
    let resume = world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_eq!((status(&resume).plan, status(&resume).plan_hash), (plan, hash));
    Ok(())
}

#[tokio::test]
async fn nothing_is_released_while_the_guardrails_are_not_as_shipped() -> Result<()> {
    let alone = Alone::new().await?;
    let world = alone.world("edited").await?;
    world.bot("bot", 1).await?;
    world.system(&["bot"], json!({})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(world.client.clone());
    let warn_only = Patch::Merge(json!({"spec": {"validationActions": ["Warn"]}}));
    bindings.patch(LATCH_POLICY, &PatchParams::default(), &warn_only).await?;
    world.resume("go-on", "stale").await?;
    let resume = saying(&world, "go-on", "differ from what was shipped").await?;
    assert_eq!(status(&resume).phase, ResumePhase::Checking);
    let text = format!("ValidatingAdmissionPolicyBinding/{LATCH_POLICY} differ from what was shipped");
    assert!(message(&resume).contains(&text), "{}", message(&resume));
    let halt = world.halted("stale").await?;
    assert!(halt.released.is_none() && halt.latch.is_some_and(|l| l.held));
    let deny = Patch::Merge(json!({"spec": {"validationActions": ["Deny"]}}));
    bindings.patch(LATCH_POLICY, &PatchParams::default(), &deny).await?;
    world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_trading(&world, 1).await
}

#[tokio::test]
async fn a_venue_that_does_not_take_the_allowance_keeps_the_resume_from_completing() -> Result<()> {
    let (world, _operator) = halted("allow", 1, json!({})).await?;
    world.venue.fault(Fault::on("PATCH", "/v2/account/configurations", Action::status(403)));
    world.resume("go-on", "stale").await?;
    let resume = saying(&world, "go-on", "allow-trading-alpaca").await?;
    assert_eq!(status(&resume).phase, ResumePhase::Restoring);
    assert!(world.venue.suspended(KEY));
    world.venue.clear_faults();
    world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_trading(&world, 1).await
}

#[tokio::test]
async fn a_job_that_allows_trading_does_not_outlive_its_resume() -> Result<()> {
    let world = world("late-job").await?;
    world.bot("bot", 1).await?;
    let mut venue = world.venue_spec();
    venue["allowTrading"] = json!([{"job": {"image": "allow"}}]);
    world.system(&["bot"], json!({"venues": [venue]})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    world.resume("go-on", "stale").await?;
    let jobs = async || anyhow::Ok(world.api::<Job>().list(&ListParams::default()).await?.items);
    world.until("its Job is there", async || Ok((jobs().await?.len() == 1).then_some(()))).await?;
    world.patch::<TradingResume>("go-on", json!({"spec": {"abort": true}})).await?;
    world.resume_in("go-on", ResumePhase::Aborted).await?;
    let going = jobs().await?.into_iter().filter(|j| j.metadata.deletion_timestamp.is_none()).count();
    assert_eq!(going, 0);
    assert_held(&world, "go-on-abort").await
}

/// The check is asked when it can be answered: after the release. (Nobody answers here, since services have no names.)
#[tokio::test]
async fn a_check_at_the_bots_own_service_does_not_hold_the_release() -> Result<()> {
    let world = world("own").await?;
    world.bot("bot", 1).await?;
    let service = json!({"metadata": {"name": "bot"}, "spec": {"selector": {"app": "bot"}, "ports": [{"port": 80}]}});
    world.create::<Service>(service).await?;
    let url = format!("http://bot.{}.svc/health", world.namespace);
    let check = json!({"name": "health", "group": "trading", "http": {"request": {"url": url}}});
    world.system(&["bot"], json!({"checks": [check]})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    world.resume("go-on", "stale").await?;
    let resume = saying(&world, "go-on", "verify: check health is").await?;
    assert_eq!(status(&resume).plan.context("no plan")?["answeredByStopped"], json!(["health"]));
    assert_trading(&world, 1).await
}

#[tokio::test]
async fn a_job_of_a_halt_does_not_outlive_it() -> Result<()> {
    let world = world("old-job").await?;
    world.bot("bot", 1).await?;
    let mut venue = world.venue_spec();
    venue["suspendTrading"].as_array_mut().context("a list")?.push(json!({"job": {"image": "suspend"}}));
    world.system(&["bot"], json!({"venues": [venue]})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let jobs = async || anyhow::Ok(world.api::<Job>().list(&ListParams::default()).await?.items);
    world.until("its Job is there", async || Ok((!jobs().await?.is_empty()).then_some(()))).await?;
    world.resume("go-on", "stale").await?;
    world.resume_in("go-on", ResumePhase::Completed).await?;
    let going = jobs().await?.into_iter().filter(|j| j.metadata.deletion_timestamp.is_none()).count();
    assert_eq!(going, 0);
    assert_trading(&world, 1).await
}
