mod approvals;
mod gates;
mod hold;
mod journal;
mod model;
mod plan;
mod ramp;
mod status;
mod steps;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{TradingHalt, TradingResume, TradingSystem};

use super::plan::{ResumePlan, accept};

/// The second in which the resume of these tests was created.
const BORN: i64 = 1_000;
/// The second in which its release was asked for.
const REQUESTED: i64 = 1_010;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A halt of `crypto` that was created in that second; `status` is merged over one that holds `bot` and `alpaca`.
fn halt(name: &str, second: i64, status: Value) -> TradingHalt {
    let mut halt: TradingHalt = serde_json::from_value(json!({
        "apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt",
        "metadata": {"name": name, "namespace": "bots", "uid": format!("uid-{name}")},
        "spec": {"systemRef": {"name": "crypto"}, "reason": "prices are stale"},
        "status": {
            "phase": "Halted", "conditions": [], "latch": {"held": true, "configMap": "standfast-latch"},
            "workloads": [{"kind": "Deployment", "name": "bot", "replicas": 3}],
            "venues": [{"name": "alpaca"}],
        },
    }))
    .unwrap();
    halt.metadata.creation_timestamp = Some(Time(at(second)));
    let mut merged = serde_json::to_value(&halt.status).unwrap();
    for (key, value) in status.as_object().unwrap() {
        merged[key] = value.clone();
    }
    halt.status = serde_json::from_value(merged).unwrap();
    halt
}

/// The state of a halt that a resume released.
fn released_by(resume: &str) -> Value {
    json!({
        "phase": "Released", "latch": {"held": false, "configMap": "x"},
        "released": {"resume": resume, "resumeUid": format!("uid-{resume}"), "requestedBy": "risk"},
    })
}

fn resume(spec: Value) -> TradingResume {
    let mut all = json!({"haltRef": {"name": "stale"}, "requestedBy": "risk"});
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    let mut resume: TradingResume = serde_json::from_value(json!({
        "apiVersion": "standfast.dev/v1alpha1", "kind": "TradingResume",
        "metadata": {"name": "go", "namespace": "bots", "uid": "uid-go", "generation": 1},
        "spec": all,
    }))
    .unwrap();
    resume.metadata.creation_timestamp = Some(Time(at(BORN)));
    resume
}

fn system() -> TradingSystem {
    serde_json::from_value(json!({
        "apiVersion": "standfast.dev/v1alpha1", "kind": "TradingSystem",
        "metadata": {"name": "crypto", "namespace": "bots", "uid": "uid-crypto"},
        "spec": {
            "workloads": [{"kind": "Deployment", "name": "bot", "role": "Trading"}],
            "venues": [{
                "name": "alpaca",
                "allowTrading": [{"http": {"method": "POST", "url": "https://alpaca.example/allow", "body": {"until": null}}}],
                "tradingSuspended": {
                    "http": {"url": "https://alpaca.example/account"}, "path": "$.suspended", "expect": {"equals": true},
                },
            }],
            "syncPositions": {"http": {"method": "POST", "url": "https://bot.example/sync"}},
            "checks": [
                {"name": "api", "group": "infrastructure", "http": {"request": {"url": "https://api.example/health"}}},
                {"name": "exchange", "group": "trading", "http": {"request": {"url": "https://alpaca.example/clock"}}},
                {"name": "bot-ready", "group": "trading", "workload": {"kind": "Deployment", "name": "bot"}},
            ],
        },
    }))
    .unwrap()
}

/// The plan of `go`, which releases `stale`.
fn plan() -> ResumePlan {
    accept(&resume(json!({})), &[halt("stale", BORN - 60, json!({}))], Some(&system()), &[]).unwrap()
}
