//! From the moment that the create request of a halt is sent until the cancel arrives at the venue.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use kube::api::PostParams;
use serde_json::json;
use standfast_crds::v1alpha1::{TradingHalt, TradingSystem};

use crate::{
    floor, millis, percentile,
    rig::{KEY, Rig},
    row,
};

/// Runs the comparison.
pub async fn run(rig: &Rig, runs: usize) -> Result<()> {
    rig.namespace("latency").await?;
    rig.namespace("floor").await?;
    for n in 0..runs {
        let name = format!("bot-{n}");
        rig.deployment("latency", &name, 1).await?;
        let system =
            rig.system(&name, json!({"kind": "Deployment", "name": name, "role": "Trading"}), &format!("ours-{n}"));
        let systems: kube::Api<TradingSystem> = rig.api("latency");
        systems.create(&PostParams::default(), &serde_json::from_value(system)?).await?;
    }
    let _operator = rig.operator("latency").await?;
    let _floor = floor::start(rig, "floor").await?;
    let (mut ours, mut bare, mut script) = (vec![], vec![], vec![]);
    for n in 0..runs {
        bare.push(halt(rig, "floor", &format!("floor-{n}"), "none", &format!("floor-{n}")).await?);
        ours.push(halt(rig, "latency", &format!("halt-{n}"), &format!("bot-{n}"), &format!("ours-{n}")).await?);
    }
    // The plan's script, without the pod that it starts for the cancel: what is left out would only make it slower.
    rig.namespace("script").await?;
    for n in 0..runs.min(20) {
        let name = format!("bot-{n}");
        rig.deployment("script", &name, 1).await?;
        let started = Instant::now();
        let mut scale = rig.plane.kubectl();
        scale.args(["-n", "script", "scale", "deployment", &name, "--replicas=0"]).stdout(Stdio::null());
        ensure!(scale.status()?.success(), "kubectl scale failed");
        let url = format!("{}/v2/orders?tag=script-{n}", rig.venue.url());
        let headers = [format!("APCA-API-KEY-ID: {KEY}"), "APCA-API-SECRET-KEY: secret".to_owned()];
        let mut cancel = std::process::Command::new("curl");
        cancel.args(["-s", "-X", "DELETE", "-H", &headers[0], "-H", &headers[1], &url]).stdout(Stdio::null());
        ensure!(cancel.status()?.success(), "curl failed");
        script.push(started.elapsed().as_secs_f64() * 1e3);
    }
    for sample in [&mut ours, &mut bare, &mut script] {
        sample.sort_by(f64::total_cmp);
    }
    let (our, floor, scripted) = (percentile(&ours, 0.5), percentile(&bare, 0.5), percentile(&script, 0.5));
    row(
        &format!("halt created → cancel at the venue, median of {runs}"),
        &millis(our),
        &format!("floor: {}", millis(floor)),
        our / floor,
    );
    let (our99, floor99) = (percentile(&ours, 0.99), percentile(&bare, 0.99));
    row("the same, p99", &millis(our99), &format!("floor: {}", millis(floor99)), our99 / floor99);
    row(
        "the same, median, against the plan's script without its pod",
        &millis(our),
        &format!("script: {}", millis(scripted)),
        our / scripted,
    );
    Ok(())
}

async fn halt(rig: &Rig, namespace: &str, name: &str, system: &str, tag: &str) -> Result<f64> {
    let halts: kube::Api<TradingHalt> = rig.api(namespace);
    let object = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt", "metadata": {"name": name},
        "spec": {"systemRef": {"name": system}, "reason": "measured"}});
    let object: TradingHalt = serde_json::from_value(object)?;
    let from = rig.venue.ledger().last().map_or(0, |e| e.seq);
    let path = format!("/v2/orders?tag={tag}");
    let started = Instant::now();
    halts.create(&PostParams::default(), &object).await?;
    let arrived = rig.venue.until(Duration::from_secs(30), |venue| {
        venue.requests("DELETE", &path).into_iter().map(|(entry, _)| entry).find(|e| e.seq > from).map(|e| e.instant)
    });
    let arrived = arrived.await.ok_or_else(|| anyhow::anyhow!("no cancel of {name} arrived"))?;
    Ok(arrived.duration_since(started).as_secs_f64() * 1e3)
}
