//! Checks by TCP, by Prometheus query and by Job, on a real API server.

use std::collections::BTreeSet;

use anyhow::Result;
use k8s_openapi::api::batch::v1::Job;
use kube::{ResourceExt, api::ListParams};
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{CheckState, ResumePhase, TradingSystemStatus};
use standfast_e2e::{
    controlplane::free_port,
    venue::{Action, Fault},
    world::World,
};

use crate::plane::world;

fn check(name: &str, kind: &str, question: Value) -> Value {
    json!({"name": name, "group": "data", "interval": "1s", kind: question})
}

/// The answer to a check and what was found.
fn row<'a>(status: &'a TradingSystemStatus, name: &str) -> (CheckState, &'a str) {
    let check = status.checks.iter().find(|c| c.name == name);
    check.map_or((CheckState::Unknown, ""), |c| (c.state, c.message.as_str()))
}

/// Answers `/api/v1/query` like a Prometheus server.
fn prometheus(values: &[&str]) -> Fault {
    let series: Vec<_> =
        values.iter().map(|v| json!({"metric": {"__name__": "lag"}, "value": [1_700_000_000.123, v]})).collect();
    let data = json!({"resultType": "vector", "result": series});
    let body = json!({"status": "success", "data": data}).to_string();
    Fault::on("GET", "/api/v1/query?query=lag", Action::Reply { status: 200, body, headers: vec![] })
}

/// The uids of the Jobs of checks.
async fn jobs(world: &World) -> Result<BTreeSet<String>> {
    let jobs = world.api::<Job>().list(&ListParams::default()).await?;
    Ok(jobs.items.iter().filter(|j| j.name_any().starts_with("standfast-check-")).filter_map(Job::uid).collect())
}

#[tokio::test]
async fn ports_series_and_jobs_are_rows_of_the_status() -> Result<()> {
    let world = world("wider").await?;
    world.bot("bot", 1).await?;
    let closed = free_port()?;
    let query = json!({"url": world.venue.url(), "query": "lag", "expect": {"atMost": "5"}});
    let programs = [("well", 0, ""), ("ill", 3, ""), ("counts", 0, r#"{"breaks": 2}"#)];
    for (image, code, says) in programs {
        world.node.set_program(image, code, says);
    }
    let checks = json!([
        check("port", "tcp", json!({"host": "127.0.0.1", "port": world.venue.addr.port()})),
        check("closed", "tcp", json!({"host": "127.0.0.1", "port": closed, "timeout": "1s"})),
        check("lag", "prometheus", query),
        check("well", "job", json!({"image": "well"})),
        check("ill", "job", json!({"image": "ill"})),
        check("counts", "job", json!({"image": "counts", "path": "$.breaks", "expect": {"equals": 0}})),
    ]);
    let series = world.venue.fault(prometheus(&["1", "2.5"]));
    world.system(&["bot"], json!({"checks": checks})).await?;
    let operator = world.operator().await?;
    let answered =
        |s: &TradingSystemStatus| s.checks.len() == 6 && s.checks.iter().all(|c| c.message != "not asked yet");
    let status = world.system_until("system", "all are asked", answered).await?;
    let (good, bad) = (CheckState::Passing, CheckState::Failing);
    for (name, state, text) in [
        ("port", good, format!("127.0.0.1 port {} accepts connections", world.venue.addr.port())),
        ("closed", bad, format!("no connection to 127.0.0.1 port {closed}")),
        ("lag", good, "all 2 series: found 1, wanted at most 5, the first".into()),
        ("well", good, " succeeded".into()),
        ("ill", bad, "its program failed (exit code 3)".into()),
        ("counts", bad, "found 2 at $.breaks, wanted 0".into()),
    ] {
        let (found, said) = row(&status, name);
        assert!(found == state && said.contains(&text), "{name}: {found:?} {said}");
    }
    let first = jobs(&world).await?;
    assert_eq!(first.len(), 3);

    // One series is enough to fail, and none is no answer that passes.
    world.venue.remove_fault(series);
    let series = world.venue.fault(prometheus(&["1", "9"]));
    let one = |s: &TradingSystemStatus| row(s, "lag") == (bad, "1 of 2 series fail: found 9, wanted at most 5");
    world.system_until("system", "one series fails", one).await?;
    world.venue.remove_fault(series);
    world.venue.fault(prometheus(&[]));
    let none = |s: &TradingSystemStatus| row(s, "lag") == (bad, "the query found no series, wanted at most 5");
    world.system_until("system", "no series fails", none).await?;

    // Another operator asks no Job again that has an answer, and has the answers from it.
    drop(operator);
    world.node.set_program("well", 1, "");
    let _second = world.operator().await?;
    let told = |s: &TradingSystemStatus| row(s, "port").0 == good && row(s, "well").0 == good && answered(s);
    world.system_until("system", "the second operator has all answers", told).await?;
    assert_eq!(jobs(&world).await?, first, "the same Jobs as before");
    Ok(())
}

#[tokio::test]
async fn prepared_tells_of_checks_that_could_not_be_asked() -> Result<()> {
    let world = world("wider-prepared").await?;
    world.bot("bot", 1).await?;
    let (venue, namespace) = (world.venue.url(), &world.namespace);
    let secret = json!({"headers": [{"name": "Authorization", "secretKeyRef": {"name": "typo", "key": "token"}}]});
    let query = json!({"url": venue, "query": "up", "expect": {"equals": 1}, "auth": secret});
    let env = json!([{"name": "TOKEN", "secretKeyRef": {"name": "gone", "key": "token"}}]);
    let checks = json!([
        check("elsewhere", "tcp", json!({"host": "redis.other.svc", "port": 6379})),
        check("secret", "prometheus", query),
        check("env", "job", json!({"image": "well", "env": env})),
        check("path", "job", json!({"image": "well", "path": "breaks", "expect": {"equals": 0}})),
    ]);
    world.system(&["bot"], json!({"checks": checks})).await?;
    let _operator = world.operator().await?;
    for (reason, text) in [
        ("EndpointUnreachable", format!("redis.other.svc is not a service of namespace {namespace}")),
        ("CredentialMissing", format!("Secret {namespace}/typo does not exist")),
        ("CredentialMissing", format!("Secret {namespace}/gone does not exist")),
        ("InvalidSpec", "spec.checks[path].job: path: ".into()),
    ] {
        let told = |s: &TradingSystemStatus| s.problems.iter().any(|p| p.reason == reason && p.message.contains(&text));
        world.system_until("system", &format!("{reason}: {text}"), told).await?;
    }
    Ok(())
}

/// A resume's gate takes the answer of a Job that the system has asked a moment ago, and begins none beside it.
#[tokio::test]
async fn a_gate_takes_the_last_answer_of_a_job() -> Result<()> {
    let world = world("wider-gate").await?;
    world.bot("bot", 1).await?;
    world.node.set_program("books", 0, "");
    world.system(&["bot"], json!({"checks": [check("books", "job", json!({"image": "books"}))]})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let well = |s: &TradingSystemStatus| row(s, "books").0 == CheckState::Passing;
    world.system_until("system", "the Job has answered", well).await?;
    let before = jobs(&world).await?;
    world.resume("go-on", "stale").await?;
    world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_eq!((jobs(&world).await?, before.len()), (before, 1));
    Ok(())
}
