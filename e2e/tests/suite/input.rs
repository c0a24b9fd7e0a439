//! Bad input gets a clear error where it enters: at `kubectl apply`, or in the status of the object.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{HaltPhase, ResumePhase, TradingHalt, TradingResume, TradingSystem, condition};
use standfast_e2e::world::{World, merge};

use crate::plane::world;

/// A TradingSystem that is right, with changes.
fn system(world: &World, name: &str, patch: Value) -> Value {
    let mut spec = json!({"workloads": [{"kind": "Deployment", "name": "bot", "role": "Trading"}],
        "venues": [world.venue_spec()]});
    merge(&mut spec, patch);
    json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingSystem", "metadata": {"name": name}, "spec": spec})
}

fn halt(name: &str, patch: Value) -> Value {
    let mut spec = json!({"systemRef": {"name": "system"}, "reason": "prices are stale"});
    merge(&mut spec, patch);
    json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt", "metadata": {"name": name}, "spec": spec})
}

fn resume(name: &str, halt: &str) -> Value {
    json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingResume", "metadata": {"name": name},
        "spec": {"haltRef": {"name": halt}, "requestedBy": "admin"}})
}

/// The world's venue with another value at a JSON pointer.
fn venue(world: &World, pointer: &str, value: Value) -> Value {
    let mut venue = world.venue_spec();
    match pointer.rsplit_once('/') {
        Some((parent, key)) => {
            if let Some(at) = venue.pointer_mut(parent).and_then(Value::as_object_mut) {
                at.insert(key.into(), value);
            }
        }
        None => venue = value,
    }
    json!({"venues": [venue]})
}

async fn apply(world: &World, object: &Value) -> Result<(bool, String)> {
    world.kubectl(&["apply", "-f", "-"], &object.to_string()).await
}

/// Refused by the API server: what people read in their terminal.
#[tokio::test]
async fn bad_input_is_refused_where_it_is_applied() -> Result<()> {
    let world = world("input").await?;
    let job = json!({"image": "x"});
    let cases = [
        (
            "no trading workloads",
            system(&world, "bad", json!({"workloads": [{"kind": "Deployment", "name": "bot", "role": "Supporting"}]})),
            "?",
        ),
        ("an action with two transports", system(&world, "bad", venue(&world, "/cancelOrders/0/job", job)), "?"),
        ("an action without a transport", system(&world, "bad", venue(&world, "/cancelOrders", json!([{}]))), "?"),
        (
            "a url without a scheme",
            system(&world, "bad", venue(&world, "/cancelOrders/0/http/url", "broker.example/v2/orders".into())),
            "?",
        ),
        ("a duration in words", system(&world, "bad", json!({"haltPolicy": {"closeDeadline": "5 minutes"}})), "?"),
        ("an unknown field", system(&world, "bad", json!({"workload": []})), "?"),
        ("an unknown field of a halt", halt("bad", json!({"order": {"cancel": "All"}})), "?"),
        (
            "a workload with name and labels",
            system(
                &world,
                "bad",
                json!({"workloads": [{"kind": "Deployment", "name": "bot", "matchLabels": {"a": "b"}, "role": "Trading"}]}),
            ),
            "?",
        ),
        ("a reason with a line break", halt("bad", json!({"reason": "prices\nare stale"})), "?"),
        ("no reason", halt("bad", json!({"reason": ""})), "?"),
        ("in the name of somebody else", halt("bad", json!({"requestedBy": "somebody"})), "?"),
        ("an action that does not exist", halt("bad", json!({"positions": {"action": "Close"}})), "?"),
    ];
    let mut wrong = vec![];
    for (what, object, expected) in cases {
        let (done, said) = apply(&world, &object).await?;
        if done || said != expected {
            wrong.push(format!("{what}: {said}"));
        }
    }
    assert_eq!(wrong.join("\n"), "");
    Ok(())
}

/// What is made of objects that others name is not known when they are applied: the status tells it.
#[tokio::test]
async fn what_does_not_exist_is_told_in_the_status() -> Result<()> {
    let world = world("names").await?;
    let namespace = world.namespace.clone();
    world.bot("bot", 1).await?;
    let service =
        json!({"metadata": {"name": "bot-api"}, "spec": {"selector": {"app": "bot"}, "ports": [{"port": 8080}]}});
    world.create::<Service>(service).await?;
    let _operator = world.operator().await?;
    let secret = "/cancelOrders/0/http/auth/headers/0/secretKeyRef";
    let reads = format!("http://bot-api.{namespace}.svc:8080/orders");
    let systems = [
        (
            "no-match",
            json!({"workloads": [{"kind": "Deployment", "matchLabels": {"fleet": "x"}, "role": "Trading"}]}),
            "?",
        ),
        ("no-secret", venue(&world, secret, json!({"name": "typo", "key": "key-id"})), "?"),
        ("no-key", venue(&world, secret, json!({"name": "alpaca", "key": "typo"})), "?"),
        ("reads", venue(&world, "/openOrders/0/http/url", reads.into()), "?"),
    ];
    let mut wrong = vec![];
    for (name, patch, expected) in systems {
        let (done, said) = apply(&world, &system(&world, name, patch)).await?;
        assert!(done, "{said}");
        let status = world
            .system_until(name, "problems are told", |s| {
                s.conditions.iter().any(|c| c.type_ == "Prepared" && c.status == "False" && c.reason != "NotAllKnown")
                    && s.problems
                        .iter()
                        .any(|p| !["SharedWorkload", "EndpointUnreachable"].contains(&p.reason.as_str()))
            })
            .await?;
        let told: Vec<_> = status.problems.iter().map(|p| p.message.replace(&namespace, "NAMESPACE")).collect();
        if !told.iter().any(|t| t == expected) {
            wrong.push(format!("{name}: {}", told.join(" | ")));
        }
        world.api::<TradingSystem>().delete(name, &Default::default()).await?;
    }

    let (done, said) =
        apply(&world, &system(&world, "system", json!({"haltPolicy": {"verifyInterval": "100ms"}}))).await?;
    assert!(done, "{said}");
    let (done, said) = apply(&world, &halt("unknown", json!({"systemRef": {"name": "typo"}}))).await?;
    assert!(done, "{said}");
    let told = |h: &standfast_crds::v1alpha1::TradingHaltStatus| {
        condition(&h.conditions, "Halted").is_some_and(|c| c.reason == "SystemNotFound")
    };
    let status = world.halt_until("unknown", "told", told).await?;
    let text = condition(&status.conditions, "Halted").context("no Halted")?.message.replace(&namespace, "NAMESPACE");
    assert_eq!(text, "TradingSystem typo not found in namespace NAMESPACE: there are system");

    let failed = async |name: &str, of: &str| {
        let (done, said) = apply(&world, &resume(name, of)).await?;
        anyhow::ensure!(done, "{said}");
        let resume = world.resume_in(name, ResumePhase::Failed).await?;
        let conditions = resume.status.map(|s| s.conditions).unwrap_or_default();
        let text = condition(&conditions, "Completed").map(|c| c.message.replace(&namespace, "NAMESPACE"));
        text.context("no Completed")
    };
    assert_eq!(
        failed("none", "typo").await?,
        "there is no TradingHalt typo in namespace NAMESPACE, of those that hold there is none"
    );
    let (done, said) = apply(&world, &halt("stale", json!({}))).await?;
    assert!(done, "{said}");
    world.halted("stale").await?;
    let (done, said) = apply(&world, &resume("go-on", "stale")).await?;
    assert!(done, "{said}");
    world.halt_until("stale", "released", |s| s.phase == HaltPhase::Released).await?;
    assert_eq!(failed("again", "stale").await?, "TradingHalt stale was already released by TradingResume go-on");
    assert_eq!(wrong.join("\n"), "");
    Ok(())
}

/// What may not change says so, and what to do instead.
#[tokio::test]
async fn halts_and_resumes_do_not_change() -> Result<()> {
    let world = world("change").await?;
    for object in [halt("stale", json!({})), resume("go-on", "stale")] {
        let (done, said) = apply(&world, &object).await?;
        assert!(done, "{said}");
    }
    let halted = world.patch::<TradingHalt>("stale", json!({"spec": {"reason": "other"}})).await.expect_err("refused");
    let text =
        "a TradingHalt is immutable: to escalate, create a second one; to resume trading, create a TradingResume";
    assert!(halted.to_string().contains(text), "{halted}");
    let resumed = world
        .patch::<TradingResume>("go-on", json!({"spec": {"haltRef": {"name": "other"}}}))
        .await
        .expect_err("refused");
    let text = "only paused and abort of a TradingResume may change: create another one instead";
    assert!(resumed.to_string().contains(text), "{resumed}");
    Ok(())
}
