//! Many workloads to zero, from the create request of the halt until the last scale was accepted.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    batch::v1::CronJob,
    core::v1::{ConfigMap, Pod, ServiceAccount},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use standfast_crds::v1alpha1::{TradingHalt, TradingSystem};
use standfast_operator::halt::latch;

use crate::{
    rig::{PARALLEL, Rig, each, wait},
    table::{Sample, row, say},
};

/// Runs of each side but kubectl.
const RUNS: usize = 3;
/// Where the workloads are.
const NAMESPACE: &str = "trading";
/// Name of the system and of its halt.
const ALL: &str = "all";
/// Namespaces with unrelated objects, that of the workloads included.
const NAMESPACES: usize = 10;

/// What is measured in turns.
#[derive(Clone, Copy)]
enum Side {
    Crowded,
    Alone,
    Bare,
}

/// What is compared with kubectl later: the operator's times, and the control plane without unrelated objects.
pub struct Halted {
    what: String,
    workloads: usize,
    ours: Sample,
    alone: Rig,
}

/// Runs the comparison, on two control planes side by side: one with the unrelated objects, one without. So the two can
/// be measured in turns.
pub async fn run(workloads: usize, unrelated: usize) -> Result<Halted> {
    let (crowded, alone) = (Rig::start().await?, Rig::start().await?);
    for rig in [&alone, &crowded] {
        rig.namespace(NAMESPACE).await?;
        rig.bots(NAMESPACE, workloads).await?;
        rig.quiet().await?;
    }
    say(&format!("scale: creating {unrelated} unrelated objects"));
    crowd(&crowded, unrelated).await?;
    crowded.quiet().await?;

    let (mut ours, mut without, mut bare) = (vec![], vec![], vec![]);
    for run in 0..RUNS {
        // Each side is once the first, once the second and once the third.
        let mut sides = [Side::Crowded, Side::Alone, Side::Bare];
        sides.rotate_left(run % 3);
        for side in sides {
            match side {
                Side::Crowded => ours.push(measure("with unrelated objects", halt(&crowded, workloads)).await?),
                Side::Alone => without.push(measure("without them", halt(&alone, workloads)).await?),
                Side::Bare => bare.push(measure("bare patches", patched(&crowded, workloads)).await?),
            }
        }
    }
    let (ours, without, bare) = (Sample::new(ours), Sample::new(without), Sample::new(bare));
    let what = format!(
        "{workloads} workloads to zero, {unrelated} unrelated objects: create request sent → last scale \
         accepted, median of {RUNS} runs"
    );
    let ratio = ours.median() / bare.median();
    let against = format!("{workloads} bare patches, {PARALLEL} at a time: {}", bare.seconds());
    row(&what, &ours.seconds(), &against, Some(ratio), "≤ 2", ratio <= 2.0);
    let ratio = ours.median() / without.median();
    let against = format!("itself without the unrelated objects: {}", without.seconds());
    row("the same", &ours.seconds(), &against, Some(ratio), "≤ 1.2", ratio <= 1.2);
    Ok(Halted { what, workloads, ours, alone })
}

/// `kubectl` for the same workloads. It lets five of its requests pass a second, and waits for that most of the time.
pub async fn against_kubectl(halted: Option<Halted>) -> Result<()> {
    let Halted { what, workloads, ours, alone } = halted.context("there is nothing to compare it with")?;
    rewind(&alone, workloads).await?;
    let started = Instant::now();
    let status = alone.kubectl(&["-n", NAMESPACE, "scale", "deployment", "--all", "--replicas=0"]).status().await?;
    ensure!(status.success(), "kubectl scale failed");
    let kubectl = started.elapsed().as_secs_f64();
    let ratio = ours.median() / kubectl;
    let against = format!("`kubectl scale --all` without the unrelated objects, once: {kubectl:.2} s");
    row(&what, &ours.seconds(), &against, Some(ratio), "≤ 0.02 (50 × faster)", ratio <= 0.02);
    Ok(())
}

async fn measure(side: &str, run: impl Future<Output = Result<f64>>) -> Result<f64> {
    let took = run.await?;
    say(&format!("scale: {side}: {took:.2} s"));
    Ok(took)
}

/// Objects that no halt is about: of the kinds that the operator watches, and pods, which it lists. They are spread over
/// several namespaces, that of the workloads too. None of them runs anything, so that nobody writes to them later.
async fn crowd(rig: &Rig, unrelated: usize) -> Result<()> {
    let namespace = |n: usize| if n == 0 { NAMESPACE.to_owned() } else { format!("other-{n}") };
    for n in 1..NAMESPACES {
        rig.namespace(&namespace(n)).await?;
    }
    for n in 0..NAMESPACES {
        // No pod is accepted without it.
        let accounts: Api<ServiceAccount> = rig.api(&namespace(n));
        wait(Duration::from_secs(60), "the service account was made", async || Ok(accounts.get_opt("default").await?))
            .await?;
    }
    each(unrelated, |n| async move {
        let (name, namespace) = (format!("unrelated-{n}"), namespace(n % NAMESPACES));
        let metadata = json!({"name": name, "labels": {"app": name}});
        let pod = json!({"metadata": {"labels": {"app": name}},
            "spec": {"restartPolicy": "Always", "containers": [{"name": "main", "image": "unrelated"}]}});
        let selector = json!({"matchLabels": {"app": name}});
        match n / NAMESPACES % 4 {
            0 => {
                // Paused: its controller makes no ReplicaSet.
                let spec = json!({"replicas": 0, "paused": true, "selector": selector, "template": pod});
                rig.create::<Deployment>(&namespace, json!({"metadata": metadata, "spec": spec})).await
            }
            1 => {
                let spec = json!({"replicas": 0, "serviceName": name, "selector": selector, "template": pod});
                rig.create::<StatefulSet>(&namespace, json!({"metadata": metadata, "spec": spec})).await
            }
            2 => {
                let mut template = pod;
                template["spec"]["restartPolicy"] = "Never".into();
                let spec =
                    json!({"schedule": "0 0 1 1 *", "suspend": true, "jobTemplate": {"spec": {"template": template}}});
                rig.create::<CronJob>(&namespace, json!({"metadata": metadata, "spec": spec})).await
            }
            _ => rig.create::<Pod>(&namespace, json!({"metadata": metadata, "spec": pod["spec"]})).await,
        }
    })
    .await
}

/// All workloads run again, no halt holds them, and nothing moves. Every run of every side begins here.
async fn rewind(rig: &Rig, workloads: usize) -> Result<()> {
    remove::<TradingHalt>(rig, ALL).await?;
    remove::<ConfigMap>(rig, &latch::name(ALL)).await?;
    remove::<TradingSystem>(rig, ALL).await?;
    // The policies forget the latch some moments later.
    wait(Duration::from_secs(30), "the latch is gone", async || scale_to(rig, 0, 1).await.map(Some)).await?;
    each(workloads, |n| scale_to(rig, n, 1)).await?;
    wait(Duration::from_secs(120), "the pods were made", async || {
        rig.quiet().await?;
        let made = bots(rig).await?.iter().filter(|d| d.status.as_ref().is_some_and(|s| s.replicas == Some(1))).count();
        Ok((made == workloads).then_some(()))
    })
    .await
}

async fn remove<K>(rig: &Rig, name: &str) -> Result<()>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    match rig.api::<K>(NAMESPACE).delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => Ok(other.map(drop)?),
    }
}

async fn bots(rig: &Rig) -> Result<Vec<Deployment>> {
    Ok(rig.api::<Deployment>(NAMESPACE).list(&ListParams::default().labels("bench=yes")).await?.items)
}

async fn scale_to(rig: &Rig, n: usize, replicas: i32) -> Result<()> {
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    rig.api::<Deployment>(NAMESPACE).patch_scale(&format!("bot-{n}"), &PatchParams::default(), &patch).await?;
    Ok(())
}

/// A halt by an operator that watches the whole cluster, as the chart installs it.
async fn halt(rig: &Rig, workloads: usize) -> Result<f64> {
    rewind(rig, workloads).await?;
    let workload = json!({"kind": "Deployment", "matchLabels": {"bench": "yes"}, "role": "Trading"});
    rig.create::<TradingSystem>(NAMESPACE, rig.system(ALL, &workload, ALL)).await?;
    let _operator = rig.operator("").await?;
    rig.looked_at(NAMESPACE, 1).await?;
    rig.quiet().await?;
    let halts: Api<TradingHalt> = rig.api(NAMESPACE);
    let created = jiff::Timestamp::now();
    rig.halt(NAMESPACE, ALL, ALL).await?;
    let scaled = wait(Duration::from_secs(120), "all are scaled", async || {
        Ok(halts.get(ALL).await?.status.and_then(|s| s.times.scaled_at))
    })
    .await?;
    let left = bots(rig).await?.iter().filter(|d| d.spec.as_ref().and_then(|s| s.replicas) != Some(0)).count();
    ensure!(left == 0, "{left} workloads are not at zero although the status says so");
    // The moment that the operator recorded, on the same clock: asking for it takes longer than it does.
    Ok(scaled.0.duration_since(created).as_secs_f64())
}

async fn patched(rig: &Rig, workloads: usize) -> Result<f64> {
    rewind(rig, workloads).await?;
    let started = Instant::now();
    each(workloads, |n| scale_to(rig, n, 0)).await?;
    Ok(started.elapsed().as_secs_f64())
}
