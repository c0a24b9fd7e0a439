//! What the operator costs when nothing happens: memory, and writes to the API server.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use kube::api::{ListParams, PostParams};
use serde_json::json;
use standfast_crds::v1alpha1::{HaltPhase, TradingHalt, TradingSystem};

use crate::rig::{Rig, wait};

const SYSTEMS: usize = 100;
const HALTS: usize = 20;

/// Runs the measurement.
pub async fn run(rig: &Rig, seconds: u64) -> Result<()> {
    rig.namespace("idle").await?;
    let systems: kube::Api<TradingSystem> = rig.api("idle");
    let halts: kube::Api<TradingHalt> = rig.api("idle");
    for n in 0..SYSTEMS {
        let name = format!("bot-{n}");
        rig.deployment("idle", &name, 0).await?;
        let workload = json!({"kind": "Deployment", "name": name, "role": "Trading"});
        systems.create(&PostParams::default(), &serde_json::from_value(rig.system(&name, workload, "idle"))?).await?;
    }
    let operator = rig.operator("idle").await?;
    for n in 0..HALTS {
        let halt = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt", "metadata": {"name": format!("halt-{n}")},
            "spec": {"systemRef": {"name": format!("bot-{n}")}, "reason": "measured"}});
        halts.create(&PostParams::default(), &serde_json::from_value(halt)?).await?;
    }
    wait(Duration::from_secs(120), "all halts are proven", async || {
        let all = halts.list(&ListParams::default()).await?;
        let proven = all.iter().filter(|h| h.status.as_ref().is_some_and(|s| s.phase == HaltPhase::Halted)).count();
        Ok((proven == HALTS).then_some(()))
    })
    .await?;
    // Statuses of systems settle within a minute; then nothing but heartbeats is left.
    tokio::time::sleep(Duration::from_secs(75)).await;
    let before = writes(rig).await?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let after = writes(rig).await?;
    let minutes = seconds as f64 / 60.0;
    println!(
        "| idle, {SYSTEMS} systems and {HALTS} held halts: resident memory | {:.1} MiB | goal: 40 MiB | {:.2} |",
        operator.resident()?,
        operator.resident()? / 40.0
    );
    let goal = HALTS as f64;
    for (resource, count) in after {
        let rate = (count - before.get(&resource).copied().unwrap_or(0.0)) / minutes;
        if rate > 0.0 {
            println!(
                "| idle: writes of {resource} a minute | {rate:.1} | goal: {goal:.0} status heartbeats, and the lease | {:.2} |",
                rate / goal
            );
        }
    }
    Ok(())
}

/// Writes that the API server has counted, by resource; trials are not writes.
async fn writes(rig: &Rig) -> Result<BTreeMap<String, f64>> {
    let text = rig.client.request_text(http::Request::get("/metrics").body(vec![])?).await?;
    let mut found = BTreeMap::new();
    for line in text.lines().filter(|l| l.starts_with("apiserver_request_total{")) {
        let Some((labels, value)) = line.rsplit_once(' ') else { continue };
        let write =
            ["POST", "PUT", "PATCH", "APPLY", "DELETE"].iter().any(|v| labels.contains(&format!("verb=\"{v}\"")));
        let label = |name: &str| {
            labels.split(&format!("{name}=\"")).nth(1).and_then(|r| r.split('"').next()).unwrap_or_default().to_owned()
        };
        if write && label("dry_run").is_empty() && label("code").starts_with('2') {
            let resource = format!("{}/{}", label("resource"), label("subresource"));
            *found.entry(resource.trim_end_matches('/').to_owned()).or_insert(0.0) += value.parse::<f64>()?;
        }
    }
    Ok(found)
}
