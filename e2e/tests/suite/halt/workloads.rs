//! Workloads of several kinds, and many of them.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use futures::{StreamExt, stream};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    batch::v1::{CronJob, Job},
    core::v1::{Node, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{
    HaltPhase, ResumePhase, TradingHaltStatus, TradingSystem, WorkloadKind, halt_conditions as c,
};
use standfast_e2e::world::World;

use super::{message, says, trading};
use crate::plane::world;

/// A Deployment that its controller leaves alone: no pods, however many replicas it wants.
async fn paused(world: &World, name: &str, replicas: i32) -> Result<()> {
    world
        .create::<Deployment>(json!({
            "metadata": {"name": name, "labels": {"fleet": "yes"}},
            "spec": {"paused": true, "replicas": replicas, "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}},
                    "spec": {"containers": [{"name": "bot", "image": "bot"}]}}}}))
        .await
        .map(drop)
}

#[tokio::test]
async fn five_hundred_workloads_go_to_zero_and_are_all_remembered() -> Result<()> {
    const ALL: usize = 500;
    let world = world("fleet").await?;
    let names: Vec<_> = (0..ALL).map(|n| (format!("bot-{n:03}"), 1 + i32::try_from(n % 3).unwrap_or(0))).collect();
    let made = stream::iter(&names).map(|(name, replicas)| paused(&world, name, *replicas)).buffer_unordered(32);
    made.collect::<Vec<_>>().await.into_iter().collect::<Result<()>>()?;
    let fleet = json!([{"kind": "Deployment", "matchLabels": {"fleet": "yes"}, "role": "Trading"}]);
    world.system(&[], json!({"workloads": fleet})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    let status = world.halted("stale").await?;
    let kept: BTreeMap<_, _> = status.workloads.iter().map(|w| (w.name.clone(), w.replicas.unwrap_or(0))).collect();
    assert_eq!(kept, names.into_iter().collect());
    let live = world.api::<Deployment>().list(&ListParams::default()).await?;
    let sizes: Vec<_> = live.iter().map(|d| d.spec.as_ref().and_then(|s| s.replicas)).collect();
    assert_eq!(sizes, vec![Some(0); ALL]);
    assert_eq!(says(&status, c::CONTENDED).0, "False", "{}", message(&status, c::CONTENDED));
    // A latch of this size costs the API server something for every pod: it must not refuse what it does not name.
    let pod = json!({"metadata": {"name": "innocent"}, "spec": {"containers": [{"name": "c", "image": "c"}]}});
    world.create::<Pod>(pod.clone()).await?;
    let mut bad = pod;
    bad["metadata"] = json!({"name": "bad", "labels": {"app": "bot-499"}});
    let refused = world.create::<Pod>(bad).await.expect_err("the latch refuses");
    assert!(refused.to_string().contains("prices are stale"), "{refused}");
    Ok(())
}

/// A CronJob that never starts by itself, and a Job of it that runs.
async fn cron_job(world: &World) -> Result<()> {
    let template = json!({"metadata": {"labels": {"app": "rebalance"}},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "c"}]}});
    let cron: CronJob = world
        .create(json!({"metadata": {"name": "rebalance"}, "spec": {"schedule": "0 0 1 1 *",
            "jobTemplate": {"spec": {"template": template}}}}))
        .await?;
    let owner = json!({"apiVersion": "batch/v1", "kind": "CronJob", "name": "rebalance",
        "uid": cron.uid(), "controller": true});
    world
        .create::<Job>(json!({"metadata": {"name": "rebalance-now", "ownerReferences": [owner]},
            "spec": {"template": template}}))
        .await?;
    world.until("the Job's pod runs", async || Ok((world.pods("rebalance").await?.len() == 1).then_some(()))).await
}

/// S1-16
#[tokio::test]
async fn s1_16_a_cron_job_and_its_running_job_are_suspended() -> Result<()> {
    let world = world("cron").await?;
    cron_job(&world).await?;
    let workloads = json!([{"kind": "CronJob", "name": "rebalance", "role": "Trading"}]);
    world.system(&[], json!({"workloads": workloads})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    let status = world.halted("stale").await?;
    assert_eq!(status.workloads[0].suspended, Some(false), "what it goes back to");
    assert_eq!(status.workloads[0].suspended_jobs, ["rebalance-now"]);
    let (cron, job) = (world.api::<CronJob>().get("rebalance").await?, world.api::<Job>().get("rebalance-now").await?);
    assert_eq!(cron.spec.and_then(|s| s.suspend), Some(true));
    assert_eq!(job.spec.and_then(|s| s.suspend), Some(true));
    assert_eq!(world.pods("rebalance").await?.len(), 0);
    for (what, refused) in [
        ("CronJob", world.patch::<CronJob>("rebalance", json!({"spec": {"suspend": false}})).await.err()),
        ("Job", world.patch::<Job>("rebalance-now", json!({"spec": {"suspend": false}})).await.err()),
    ] {
        let refused = refused.with_context(|| format!("the latch let the {what} through"))?;
        assert!(refused.to_string().contains("prices are stale"), "{refused}");
    }
    Ok(())
}

#[tokio::test]
async fn pods_that_nobody_scales_hold_a_halt_back_while_they_run() -> Result<()> {
    let (world, _operator) = trading("bare", 1, json!({})).await?;
    let pod = json!({"metadata": {"name": "bare", "labels": {"app": "bot"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "c"}]}});
    // A ReplicaSet adopts pods that have nobody: only a label of its own tells it apart.
    let params = PostParams::default();
    world.api::<Pod>().create(&params, &serde_json::from_value(pod)?).await?;
    world.until("the pods run", async || Ok((world.pods("bot").await?.len() == 2).then_some(()))).await?;
    world.halt("stale", json!({})).await?;
    let left = |s: &TradingHaltStatus| s.running_pods == Some(1) && says(s, c::WORKLOADS_STOPPED).0 == "False";
    world.halt_until("stale", "the bare pod is counted", left).await?;
    world.api::<Pod>().delete("bare", &DeleteParams::default()).await?;
    world.halted("stale").await?;
    Ok(())
}

#[tokio::test]
async fn a_workload_that_is_added_under_the_halt_is_latched_too() -> Result<()> {
    let (world, _operator) = trading("grow", 1, json!({})).await?;
    world.bot("scout", 2).await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let both: Vec<_> =
        ["bot", "scout"].iter().map(|name| json!({"kind": "Deployment", "name": name, "role": "Trading"})).collect();
    world.patch::<TradingSystem>("system", json!({"spec": {"workloads": both}})).await?;
    let stopped = |s: &TradingHaltStatus| s.phase == HaltPhase::Halted && s.workloads.len() == 2;
    let status = world.halt_until("stale", "both are held", stopped).await?;
    assert_eq!(status.workloads.iter().find(|w| w.name == "scout").and_then(|w| w.replicas), Some(2));
    assert_eq!(world.replicas("scout").await?, 0);
    let latched = async || Ok(world.scale("scout", 1, "somebody").await.err());
    let refused = world.until("the latch refuses", latched).await?;
    assert!(refused.to_string().contains("prices are stale"), "{refused}");
    assert_eq!(says(&status, c::CONTENDED).0, "False", "{}", message(&status, c::CONTENDED));
    Ok(())
}

/// S1-16, S1-35
#[tokio::test]
async fn s1_16_a_stateful_set_is_stopped_held_and_brought_back() -> Result<()> {
    let world = world("book").await?;
    world
        .create::<StatefulSet>(json!({"metadata": {"name": "book"}, "spec": {"replicas": 3, "serviceName": "book",
            "selector": {"matchLabels": {"app": "book"}}, "template": {"metadata": {"labels": {"app": "book"}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "bot", "image": "bot"}]}}}}))
        .await?;
    let ready = async || {
        let set = world.api::<StatefulSet>().get("book").await?;
        Ok((set.status.and_then(|s| s.ready_replicas) == Some(3)).then_some(()))
    };
    world.until("three pods are ready", ready).await?;
    let workloads = json!([{"kind": "StatefulSet", "name": "book", "role": "Trading"}]);
    world.system(&[], json!({"workloads": workloads})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    let status = world.halted("stale").await?;
    let record = &status.workloads[0];
    assert_eq!((record.kind, record.name.as_str(), record.replicas), (WorkloadKind::StatefulSet, "book", Some(3)));
    let size = async || anyhow::Ok(world.api::<StatefulSet>().get_scale("book").await?.spec.and_then(|s| s.replicas));
    assert_eq!((size().await?.unwrap_or(0), world.pods("book").await?.len()), (0, 0));
    let up = json!({"spec": {"replicas": 3}});
    let refused = world.patch::<StatefulSet>("book", up).await.expect_err("the latch refuses");
    assert!(refused.to_string().contains("prices are stale"), "{refused}");
    world.resume("go-on", "stale").await?;
    world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_eq!(size().await?, Some(3));
    world.until("three pods are ready again", ready).await
}

/// A DaemonSet that leaves the replacing of its pods to people.
async fn daemon_set(world: &World, name: &str, node_selector: Value) -> Result<()> {
    world
        .create::<DaemonSet>(json!({"metadata": {"name": name}, "spec": {"updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 1, "nodeSelector": node_selector,
                    // Nobody tells that the node is ready.
                    "tolerations": [{"operator": "Exists"}], "containers": [{"name": "bot", "image": "bot"}]}}}}))
        .await
        .map(drop)
}

/// S1-16, S1-35
#[tokio::test]
async fn s1_16_a_daemon_set_is_kept_from_all_nodes_and_goes_back_to_its_own() -> Result<()> {
    let world = world("daemon").await?;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let node = json!({"metadata": {"name": world.namespace, "labels": {"world": world.namespace}}});
    nodes.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
    let mine = json!({"world": world.namespace});
    let halted = json!({"standfast.dev/halted": "true"});
    for (name, selector) in [("some", mine.clone()), ("all", Value::Null), ("none", halted.clone())] {
        daemon_set(&world, name, selector).await?;
    }
    let ready = async || {
        let sets = world.api::<DaemonSet>().list(&ListParams::default()).await?.items;
        let ready = sets.iter().filter_map(|s| s.status.as_ref()).filter(|s| s.number_ready == 1).count();
        Ok((ready == 2).then_some(()))
    };
    world.until("two of them run", ready).await?;
    let workloads: Vec<_> =
        ["some", "all", "none"].iter().map(|n| json!({"kind": "DaemonSet", "name": n, "role": "Trading"})).collect();
    world.system(&[], json!({"workloads": workloads})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    let status = world.halted("stale").await?;
    let kept: BTreeMap<_, _> = status.workloads.iter().map(|w| (w.name.as_str(), w.suspended)).collect();
    assert_eq!(kept, BTreeMap::from([("all", Some(false)), ("none", Some(true)), ("some", Some(false))]));
    assert_eq!(says(&status, c::CONTENDED).0, "False", "{}", message(&status, c::CONTENDED));
    let selected = async |name: &str| {
        let set = world.api::<DaemonSet>().get(name).await?;
        anyhow::Ok(json!(set.spec.and_then(|s| s.template.spec).and_then(|s| s.node_selector)))
    };
    let both = json!({"standfast.dev/halted": "true", "world": world.namespace});
    assert_eq!(
        [selected("some").await?, selected("all").await?, selected("none").await?],
        [both, halted.clone(), halted.clone()]
    );
    assert_eq!((world.pods("some").await?.len(), world.pods("all").await?.len()), (0, 0));
    let back = json!({"spec": {"template": {"spec": {"nodeSelector": {"standfast.dev/halted": null}}}}});
    let refused = world.patch::<DaemonSet>("some", back).await.expect_err("the latch refuses");
    assert!(refused.to_string().contains("prices are stale"), "{refused}");
    world.resume("go-on", "stale").await?;
    let resume = world.resume_in("go-on", ResumePhase::Completed).await?;
    let steps = resume.status.unwrap_or_default().steps;
    let waited = steps.iter().find(|s| s.name == "ready").and_then(|s| s.message.as_deref());
    assert_eq!(waited, Some("2 workloads are ready"));
    assert_eq!([selected("some").await?, selected("all").await?, selected("none").await?], [mine, Value::Null, halted]);
    world.until("two of them run again", ready).await?;
    nodes.delete(&world.namespace, &DeleteParams::default()).await?;
    Ok(())
}
