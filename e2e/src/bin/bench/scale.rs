//! Many workloads to zero, from the create request of the halt until the last scale was accepted.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::json;
use standfast_crds::v1alpha1::{TradingHalt, TradingSystem};

use crate::{
    rig::{Rig, wait},
    row,
};

/// Runs the comparison.
pub async fn run(rig: &Rig, workloads: usize, unrelated: usize) -> Result<()> {
    let alone = ours(rig, "alone", workloads).await?;
    stream::iter(0..unrelated).map(|n| async move {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("unrelated-{n}")}, "data": {"n": "x".repeat(500)}});
        rig.api::<ConfigMap>("default").create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        Ok::<_, anyhow::Error>(())
    }).buffer_unordered(32).try_collect::<Vec<_>>().await?;
    let crowded = ours(rig, "crowded", workloads).await?;
    let floor = bare(rig, workloads).await?;
    let kubectl = kubectl(rig, workloads).await?;
    let seconds = |s: f64| format!("{s:.2} s");
    row(
        &format!("{workloads} workloads to zero, {unrelated} unrelated objects"),
        &seconds(crowded),
        &format!("{workloads} bare parallel patches: {}", seconds(floor)),
        crowded / floor,
    );
    row(
        "the same, against kubectl scale --all",
        &seconds(crowded),
        &format!("kubectl: {}", seconds(kubectl)),
        crowded / kubectl,
    );
    row(
        "the same, against itself without the unrelated objects",
        &seconds(crowded),
        &format!("alone: {}", seconds(alone)),
        crowded / alone,
    );
    Ok(())
}

async fn fill(rig: &Rig, namespace: &str, workloads: usize) -> Result<()> {
    rig.namespace(namespace).await?;
    stream::iter(0..workloads)
        .map(|n| async move { rig.deployment(namespace, &format!("bot-{n}"), 1).await })
        .buffer_unordered(32)
        .try_collect::<Vec<_>>()
        .await?;
    settled(rig, namespace, workloads).await
}

/// Waits until the deployment controller has nothing left to do.
async fn settled(rig: &Rig, namespace: &str, workloads: usize) -> Result<()> {
    let deployments: kube::Api<Deployment> = rig.api(namespace);
    wait(Duration::from_secs(300), "the pods were made", async || {
        let all = deployments.list(&ListParams::default()).await?;
        let made = all.iter().filter(|d| d.status.as_ref().is_some_and(|s| s.replicas == Some(1))).count();
        Ok((made == workloads).then_some(()))
    })
    .await
}

async fn ours(rig: &Rig, namespace: &str, workloads: usize) -> Result<f64> {
    fill(rig, namespace, workloads).await?;
    let system =
        rig.system("all", json!({"kind": "Deployment", "matchLabels": {"bench": "yes"}, "role": "Trading"}), namespace);
    let systems: kube::Api<TradingSystem> = rig.api(namespace);
    systems.create(&PostParams::default(), &serde_json::from_value(system)?).await?;
    let _operator = rig.operator(namespace).await?;
    wait(Duration::from_secs(60), "the system is known", async || {
        let status = systems.get("all").await?.status.unwrap_or_default();
        Ok((status.trading_workloads.len() == workloads).then_some(()))
    })
    .await?;
    let halts: kube::Api<TradingHalt> = rig.api(namespace);
    let halt = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt", "metadata": {"name": "all"},
        "spec": {"systemRef": {"name": "all"}, "reason": "measured"}});
    let started = Instant::now();
    let created = jiff::Timestamp::now();
    halts.create(&PostParams::default(), &serde_json::from_value(halt)?).await?;
    let scaled = wait(Duration::from_secs(120), "all are scaled", async || {
        Ok(halts.get("all").await?.status.and_then(|s| s.times.scaled_at))
    })
    .await?;
    ensure!(started.elapsed() < Duration::from_secs(120), "too late");
    let left = rig.api::<Deployment>(namespace).list(&ListParams::default()).await?;
    let left = left.iter().filter(|d| d.spec.as_ref().and_then(|s| s.replicas) != Some(0)).count();
    ensure!(left == 0, "{left} workloads are not at zero although the status says so");
    // The moment that the operator recorded, on the same clock: asking for it takes longer than it does.
    Ok(scaled.0.duration_since(created).as_secs_f64())
}

async fn bare(rig: &Rig, workloads: usize) -> Result<f64> {
    fill(rig, "bare", workloads).await?;
    let deployments: kube::Api<Deployment> = rig.api("bare");
    let started = Instant::now();
    stream::iter(0..workloads)
        .map(|n| {
            let deployments = deployments.clone();
            async move {
                let patch = Patch::Merge(json!({"spec": {"replicas": 0}}));
                deployments.patch_scale(&format!("bot-{n}"), &PatchParams::default(), &patch).await
            }
        })
        .buffer_unordered(16)
        .try_collect::<Vec<_>>()
        .await?;
    Ok(started.elapsed().as_secs_f64())
}

async fn kubectl(rig: &Rig, workloads: usize) -> Result<f64> {
    fill(rig, "kubectl", workloads).await?;
    let started = Instant::now();
    let mut scale = rig.plane.kubectl();
    scale.args(["-n", "kubectl", "scale", "deployment", "--all", "--replicas=0"]).stdout(Stdio::null());
    let status = tokio::task::spawn_blocking(move || scale.status()).await??;
    ensure!(status.success(), "kubectl scale failed");
    Ok(started.elapsed().as_secs_f64())
}
