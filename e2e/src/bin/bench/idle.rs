//! What the operator costs when nothing happens: memory, and writes to the API server.

use std::{
    future::ready,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde_json::json;
use standfast_crds::v1alpha1::TradingSystem;
use standfast_operator::leader::Settings;

use crate::{
    rig::{Rig, each},
    table::{row, say},
};

/// Systems, spread over so many namespaces, and halts, each of another system.
const SYSTEMS: usize = 100;
const NAMESPACES: usize = 10;
const HALTS: usize = 20;
/// Statuses of systems settle within a minute; then nothing but heartbeats is left.
const SETTLE: Duration = Duration::from_secs(75);
/// The operator's Lease.
const LEASE: &str = "idle";

/// Watches an idle operator for a while.
pub async fn run(window: Duration) -> Result<()> {
    let rig = Rig::start().await?;
    let namespace = |n: usize| format!("idle-{n}");
    for n in 0..NAMESPACES {
        rig.namespace(&namespace(n)).await?;
        rig.bots(&namespace(n), SYSTEMS / NAMESPACES).await?;
        each(SYSTEMS / NAMESPACES, |bot| {
            let (rig, namespace, name) = (&rig, namespace(n), format!("bot-{bot}"));
            let workload = json!({"kind": "Deployment", "name": name, "role": "Trading"});
            let mut system = rig.system(&name, &workload, "idle");
            let question =
                json!({"request": rig.request("GET", "/v2/clock"), "path": "$.is_open", "expect": {"equals": true}});
            system["spec"]["checks"] = json!([{"name": "market", "group": "trading", "http": question}]);
            async move { rig.create::<TradingSystem>(&namespace, system).await }
        })
        .await?;
    }
    // The whole cluster, as the chart installs it.
    let operator = rig.replica("", LEASE).await?;
    for n in 0..NAMESPACES {
        rig.looked_at(&namespace(n), SYSTEMS / NAMESPACES).await?;
    }
    let halts: Vec<_> = (0..HALTS).map(|n| (namespace(n % NAMESPACES), format!("bot-{}", n / NAMESPACES))).collect();
    for (namespace, bot) in &halts {
        rig.halt(namespace, bot, bot).await?;
    }
    for (namespace, bot) in &halts {
        rig.halted(namespace, bot).await?;
    }
    say("idle: all halts hold; everything comes to rest");
    tokio::time::sleep(SETTLE).await;

    say(&format!("idle: watching for {} s", window.as_secs()));
    let leases: Api<Lease> = rig.api("default");
    let version = leases.list(&ListParams::default()).await?.metadata.resource_version.context("no version")?;
    let only_ours = WatchParams::default().fields(&format!("metadata.name={LEASE}"));
    let before = rig.writes().await?;
    let began = Instant::now();
    let events = leases.watch(&only_ours, &version).await?.take_until(tokio::time::sleep(window));
    let renewals = events.filter(|e| ready(matches!(e, Ok(WatchEvent::Modified(_))))).count().await;
    let took = began.elapsed();
    ensure!(took >= window, "the watch of the Lease ended early");
    let after = rig.writes().await?;
    let resident = operator.resident()?;

    let a_minute = |count: f64| count / took.as_secs_f64() * 60.0;
    let mut heartbeats = 0.0;
    let mut others = vec![];
    for (resource, count) in after {
        let rate = a_minute(count - before.get(&resource).copied().unwrap_or(0.0));
        match resource.as_str() {
            "tradinghalts/status" => heartbeats = rate,
            _ if rate > 0.0 => others.push(format!("{rate:.1} {resource}")),
            _ => {}
        }
    }
    let what = format!("idle, {SYSTEMS} systems and {HALTS} held halts: resident memory");
    row(&what, &format!("{resident:.1} MiB"), "", None, "≤ 40 MiB", resident <= 40.0);
    let goal = 60.0 / Settings::new("", "", "").retry.as_secs_f64();
    let rate = a_minute(renewals as f64);
    row(
        "the same: renewals of the lease a minute",
        &format!("{rate:.1}"),
        "",
        None,
        &format!("≤ {goal}"),
        rate <= goal,
    );
    let goal = format!("≤ {HALTS}, one for each held halt");
    let met = heartbeats <= HALTS as f64;
    row("the same: heartbeats of halts a minute", &format!("{heartbeats:.1}"), "", None, &goal, met);
    let said = if others.is_empty() { "0".to_owned() } else { others.join(", ") };
    row("the same: other writes to the API server a minute", &said, "", None, "0", others.is_empty());
    Ok(())
}
