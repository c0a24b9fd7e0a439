//! A leader is killed in the middle of a halt: until the standby goes on with it.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use standfast_crds::v1alpha1::TradingSystem;
use standfast_e2e::venue::{Action, Fault};

use crate::{
    rig::Rig,
    table::{Sample, row, say},
};

/// How slowly the venue answers: the first cancel is under way when the leader is killed. Shorter than what the operator
/// waits for.
const SLOW: Duration = Duration::from_secs(3);
/// What a killed leader had sent has arrived by then.
const ARRIVED: Duration = Duration::from_millis(200);
/// The Lease of both.
const LEASE: &str = "takeover";

/// Kills so many leaders.
pub async fn run(kills: usize) -> Result<()> {
    let rig = Rig::start().await?;
    rig.namespace("takeover").await?;
    rig.bots("takeover", kills).await?;
    let mut leader = rig.replica("", LEASE).await?;
    let mut times = vec![];
    for n in 0..kills {
        let standby = rig.replica("", LEASE).await?;
        let (name, tag) = (format!("bot-{n}"), format!("takeover-{n}"));
        let workload = json!({"kind": "Deployment", "name": name, "role": "Trading"});
        rig.create::<TradingSystem>("takeover", rig.system(&name, &workload, &tag)).await?;
        rig.quiet().await?;
        rig.venue.clear_ledger();
        rig.venue.fault(Fault::on("DELETE", &format!("/v2/orders?tag={tag}"), Action::delay(SLOW)));
        rig.halt("takeover", &name, &name).await?;
        rig.arrival(Some("DELETE"), &tag).await?;
        let killed = Instant::now();
        drop(leader);
        tokio::time::sleep(ARRIVED).await;
        rig.venue.clear_ledger();
        let took = rig.arrival(None, &tag).await?.duration_since(killed).as_secs_f64();
        say(&format!("takeover: kill {} of {kills}: {took:.2} s", n + 1));
        times.push(took);
        rig.venue.clear_faults();
        rig.halted("takeover", &name).await?;
        leader = standby;
    }
    let times = Sample::new(times);
    row(
        &format!(
            "leader killed (SIGKILL) in the middle of a halt → first call of the standby for it at the \
             venue, median of {kills} kills"
        ),
        &times.seconds(),
        "",
        None,
        "each ≤ 10 s",
        times.at(1.0) <= 10.0,
    );
    Ok(())
}
