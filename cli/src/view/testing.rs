//! Objects for tests of views.

use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{TradingHalt, TradingResume, TradingSystem};

use crate::{args::Global, cluster::Say, text::Line};

/// 2026-11-26T15:00:`second`Z.
pub fn at(second: i64) -> Timestamp {
    let start: Timestamp = "2026-11-26T15:00:00Z".parse().unwrap();
    Timestamp::from_second(start.as_second() + second).unwrap()
}

/// The same as text.
pub fn time(second: i64) -> String {
    format!("{:.6}", at(second))
}

/// Commands in the namespace `fx`.
pub fn say() -> Say {
    Say::new(&Global::default(), "fx")
}

/// An object of a kind.
pub fn object<K: DeserializeOwned>(kind: &str, name: &str, spec: Value, status: Value) -> K {
    serde_json::from_value(json!({"apiVersion": "standfast.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "namespace": "fx", "uid": format!("uid-{name}"), "creationTimestamp": at(0).to_string()},
        "spec": spec, "status": status}))
    .unwrap()
}

/// A system with one bot and one venue.
pub fn system(status: Value) -> TradingSystem {
    let spec = json!({"workloads": [
            {"kind": "Deployment", "name": "bot", "role": "Trading"},
            {"kind": "CronJob", "name": "rebalance", "role": "Trading"},
            {"kind": "StatefulSet", "matchLabels": {"app": "feed"}, "role": "Supporting"}],
        "venues": [{"name": "alpaca", "cancelOrders": [{"http": {"method": "DELETE", "url": "https://broker.example/v2/orders"}}]}]});
    object("TradingSystem", "demo", spec, status)
}

/// A halt of it.
pub fn halt(name: &str, status: Value) -> TradingHalt {
    let spec = json!({"systemRef": {"name": "demo"}, "reason": "prices are stale", "requestedBy": "alice"});
    object("TradingHalt", name, spec, status)
}

/// A halt that is proven until second 180.
pub fn proven() -> Value {
    let condition = |type_: &str, message: &str| json!({"type": type_, "status": "True", "reason": "R", "message": message, "lastTransitionTime": at(1).to_string()});
    json!({"phase": "Halted", "latch": {"held": true, "configMap": "standfast-latch-stale"},
        "conditions": [condition("Latched", "a scale-up was refused by the policy"),
            condition("WorkloadsStopped", "no pod is left"), condition("OrdersCancelled", "no order is open"),
            condition("PositionsClosed", "positions are kept"),
            condition("Halted", "no trading pod runs, no order is open that should not be")],
        "workloads": [{"kind": "Deployment", "name": "bot", "replicas": 3}],
        "venues": [{"name": "alpaca", "ordersBefore": 5, "openOrders": 0, "keptOrders": 2, "openPositions": 1,
            "positions": [{"symbol": "AAPL", "quantity": "10"}], "readAt": time(4)}],
        "openOrders": 0, "keptOrders": 2, "openPositions": 1, "runningPods": 0,
        "lastVerifiedAt": time(4), "verifiedUntil": time(180),
        "times": {"requestedAt": time(0), "committedAt": time(0), "latchedAt": time(1), "podsGoneAt": time(1),
            "zeroOrdersAt": time(4), "haltedAt": time(4)},
        "evidence": {"requestedBy": "alice"}})
}

/// A resume of the halt `stale`.
pub fn resume(status: Value) -> TradingResume {
    object("TradingResume", "stale-resume", json!({"haltRef": {"name": "stale"}, "requestedBy": "alice"}), status)
}

/// Lines as one text.
pub fn plain(lines: &[Line]) -> String {
    lines.iter().map(|l| l.plain() + "\n").collect()
}
