//! From the moment that the create request of a halt is sent until the cancel arrives at the venue.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::json;
use standfast_crds::v1alpha1::TradingSystem;

use crate::{
    floor,
    rig::{KEY, Rig, each},
    table::{Sample, row, say},
};

/// Runs of the script, which takes long.
const SCRIPTS: usize = 10;
/// Before each run of any side: what follows a proven halt (Events, the status of its system) is over by then.
const REST: Duration = Duration::from_millis(150);

/// Runs the comparison.
pub async fn run(runs: usize) -> Result<()> {
    let rig = Rig::start().await?;
    for namespace in ["latency", "floor", "script"] {
        rig.namespace(namespace).await?;
    }
    rig.bots("latency", runs).await?;
    rig.bots("script", SCRIPTS).await?;
    each(runs, |n| {
        let name = format!("bot-{n}");
        let workload = json!({"kind": "Deployment", "name": name, "role": "Trading"});
        let mut system = rig.system(&name, &workload, &format!("ours-{n}"));
        // Proven soon, and then left alone: the halts of the runs before should not be busy in this one.
        system["spec"]["haltPolicy"] = json!({"verifyReads": 1, "verifyInterval": "100ms", "reverifyInterval": "1m"});
        rig.create::<TradingSystem>("latency", system)
    })
    .await?;
    // Not the whole cluster: it must not see the halts of the floor.
    let _operator = rig.operator("latency").await?;
    let _floor = floor::start(&rig, "floor").await?;
    rig.looked_at("latency", runs).await?;
    rig.quiet().await?;

    let (mut ours, mut bare) = (vec![], vec![]);
    for n in 0..runs {
        if n % 20 == 0 {
            say(&format!("latency: run {n} of {runs}"));
        }
        // Both sides begin with nothing else under way, and each is the first one in every other round.
        let ours_first = n % 2 == 1;
        for ours_now in [ours_first, !ours_first] {
            if ours_now {
                let name = format!("halt-{n}");
                ours.push(halt(&rig, "latency", &name, &format!("bot-{n}"), &format!("ours-{n}")).await?);
                rig.halted("latency", &name).await?;
            } else {
                let name = format!("floor-{n}");
                bare.push(halt(&rig, "floor", &name, "none", &name).await?);
            }
        }
    }
    let (ours, bare) = (Sample::new(ours), Sample::new(bare));
    let what = format!("create request of a halt sent → cancel request at the venue, median of {runs} runs");
    let ratio = ours.median() / bare.median();
    let floor = format!("floor: {}", millis(bare.median()));
    row(&what, &millis(ours.median()), &floor, Some(ratio), "≤ 2", ratio <= 2.0);
    let (ours99, bare99) = (ours.at(0.99), bare.at(0.99));
    let floor = format!("floor: {}", millis(bare99));
    row("the same, p99", &millis(ours99), &floor, Some(ours99 / bare99), "≤ 100 ms", ours99 <= 100.0);

    say("latency: the script");
    let mut script = vec![];
    for n in 0..SCRIPTS {
        script.push(scripted(&rig, n).await?);
    }
    let script = Sample::new(script);
    let ratio = ours.median() / script.median();
    let against = format!("script without its pod, median of {SCRIPTS} runs: {}", millis(script.median()));
    let goal = "≤ 0.05 (20 × faster)";
    row("the same, median", &millis(ours.median()), &against, Some(ratio), goal, ratio <= 0.05);
    Ok(())
}

async fn halt(rig: &Rig, namespace: &str, name: &str, system: &str, tag: &str) -> Result<f64> {
    tokio::time::sleep(REST).await;
    rig.venue.clear_ledger();
    let sent = rig.halt(namespace, name, system).await?;
    between(sent, rig.arrival(Some("DELETE"), tag).await?)
}

/// The plan's script up to the cancel, without the pod that it starts for it: there is nothing here that could run one,
/// and it would only make the script slower.
async fn scripted(rig: &Rig, n: usize) -> Result<f64> {
    tokio::time::sleep(REST).await;
    rig.venue.clear_ledger();
    let tag = format!("script-{n}");
    let url = format!("{}/v2/orders?tag={tag}", rig.venue.url());
    let headers = [format!("APCA-API-KEY-ID: {KEY}"), "APCA-API-SECRET-KEY: secret".to_owned()];
    let mut scale = rig.kubectl(&["-n", "script", "scale", "deployment", &format!("bot-{n}"), "--replicas=0"]);
    let mut cancel = tokio::process::Command::new("curl");
    cancel.args(["-s", "--noproxy", "*", "-X", "DELETE", "-H", &headers[0], "-H", &headers[1], &url]);
    cancel.stdout(Stdio::null()).kill_on_drop(true);
    let started = Instant::now();
    ensure!(scale.status().await?.success(), "kubectl scale failed");
    ensure!(cancel.status().await?.success(), "curl failed");
    between(started, rig.arrival(Some("DELETE"), &tag).await?)
}

/// Milliseconds.
fn between(sent: Instant, arrived: Instant) -> Result<f64> {
    Ok(arrived.duration_since(sent).as_secs_f64() * 1e3)
}

fn millis(value: f64) -> String {
    format!("{value:.1} ms")
}
