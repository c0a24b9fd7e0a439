//! A resume through every gate: two people approve, a break is accepted, and trading returns in three stages.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use k8s_openapi::{
    api::{admissionregistration::v1::ValidatingAdmissionPolicyBinding, core::v1::ConfigMap},
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, ResourceExt,
    api::PostParams,
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use serde_json::{Value, json};
use standfast_crds::{
    guardrails::APPROVAL_POLICY,
    v1alpha1::{Approval, Break, TradingResume, TradingResumeStatus},
};
use standfast_e2e::{
    faults::{Faults, Outcome, Recorded},
    world::World,
};
use tokio::{sync::watch, task::JoinSet};

use super::stage::RESUME;

/// The stages: name, percent of the replicas, limit.
const STAGES: [(&str, u32, &str); 3] = [("small", 50, "0.5"), ("larger", 50, "1"), ("whole", 100, "2")];
/// For how long each is held.
const HOLD: Duration = Duration::from_secs(1);
/// How many pods of all bots run before the last stage.
const FEW: usize = 2;
/// Who approves.
const PEOPLE: [&str; 2] = ["anna", "bert"];
/// The ConfigMap that the bots read their limit from, and the key.
const LIMITS: (&str, &str) = ("limits", "size");

/// The limit as the bots know it, from the first value on, each with when it was seen.
#[derive(Default)]
pub struct Limits(Mutex<Vec<(String, Instant)>>);

impl Limits {
    fn seen(&self) -> MutexGuard<'_, Vec<(String, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the bots tell.
    pub fn told(&self) -> String {
        self.seen().last().map(|(value, _)| value.clone()).unwrap_or_default()
    }

    fn note(&self, map: &ConfigMap) {
        let value = map.data.as_ref().and_then(|d| d.get(LIMITS.1)).cloned().unwrap_or_default();
        let mut seen = self.seen();
        if seen.last().is_none_or(|(last, _)| *last != value) {
            seen.push((value, Instant::now()));
        }
    }

    /// Follows the ConfigMap.
    pub fn follow(self: &Arc<Self>, world: &World, tasks: &mut JoinSet<()>) {
        let (limits, maps) = (Arc::clone(self), world.api::<ConfigMap>());
        let config = watcher::Config::default().fields(&format!("metadata.name={}", LIMITS.0));
        tasks.spawn(async move {
            let mut events = std::pin::pin!(watcher(maps, config).default_backoff());
            while let Some(event) = events.next().await {
                if let Ok(Event::Apply(map) | Event::InitApply(map)) = event {
                    limits.note(&map);
                }
            }
        });
    }

    /// Why what the bots were told is not what was declared: a stage was left out or too short.
    fn wrong(&self) -> Option<String> {
        let seen = self.seen();
        let declared = std::iter::once("2").chain(STAGES.map(|s| s.2));
        if !seen.iter().map(|(value, _)| value.as_str()).eq(declared.take(seen.len())) {
            return Some(format!("the limits were {seen:?}"));
        }
        let stages = seen.iter().skip(1).map(|(_, at)| *at).collect::<Vec<_>>();
        let short = stages.windows(2).find(|pair| pair[1].duration_since(pair[0]) < HOLD);
        short.map(|pair| format!("a stage took {:?}", pair[1].duration_since(pair[0])))
    }
}

/// What the policy asks for. The bots' books are one MSFT short.
pub async fn prepare(world: &World, url: &str) -> Result<Value> {
    let map = json!({"metadata": {"name": LIMITS.0, "labels": {"standfast.dev/use": "true"}}, "data": {LIMITS.1: "2"}});
    world.create::<ConfigMap>(map).await?;
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(world.client.clone());
    let settled = async || {
        let made = bindings.get(APPROVAL_POLICY).await?.metadata.creation_timestamp.context("no time")?.0;
        Ok((Timestamp::now().duration_since(made) > SignedDuration::from_secs(12)).then_some(()))
    };
    world.until("the guardrails have settled", settled).await?;
    let stage = |(name, percent, limit): (&str, u32, &str)| {
        json!({"name": name, "replicasPercent": percent, "limits": {"size": limit},
            "hold": format!("{}s", HOLD.as_secs())})
    };
    Ok(json!({
        "limits": [{"name": "size", "set": {"configMap": {"name": LIMITS.0, "key": LIMITS.1}},
            "read": {"http": {"url": format!("{url}/limits"), "timeout": "2s"}, "path": "$.size"}}],
        "resumePolicy": {
            "approvals": [{"count": PEOPLE.len()}],
            // A call that goes wrong is no regression.
            "thresholds": {"failure": 2, "interval": "1s"},
            "reconciliation": [{"name": "positions", "venue": "alpaca", "compare": "Positions",
                "bot": {"http": {"url": format!("{url}/positions"), "timeout": "2s"}}}],
            "ramp": STAGES.map(stage),
        }
    }))
}

/// The bots' books.
pub fn positions() -> Value {
    json!([{"symbol": "MSFT", "quantity": "4"}, {"symbol": "TSLA", "quantity": "-3"}])
}

/// Two people who approve what they see, and then the break.
pub struct People {
    /// How many calls the operator had made when the last of them had decided.
    decided: Mutex<Option<usize>>,
}

impl People {
    pub fn new() -> Self {
        Self { decided: Mutex::new(None) }
    }

    /// Decides, as soon as there is something to see.
    pub async fn decide(
        &self,
        world: &World,
        mut resume: watch::Receiver<Option<TradingResume>>,
        calls: impl Fn() -> usize,
    ) -> Result<()> {
        let status = |r: &Option<TradingResume>| r.as_ref().and_then(|r| r.status.clone()).unwrap_or_default();
        let planned = resume.wait_for(|r| status(r).plan_hash.is_some()).await?.clone().context("no resume")?;
        self.approve(world, &planned, &[]).await?;
        let broken = resume.wait_for(|r| !status(r).breaks.is_empty()).await?.clone().context("no resume")?;
        self.approve(world, &broken, &status(&Some(broken.clone())).breaks).await?;
        *self.decided.lock().unwrap_or_else(PoisonError::into_inner) = Some(calls());
        Ok(())
    }

    async fn approve(&self, world: &World, resume: &TradingResume, breaks: &[Break]) -> Result<()> {
        for user in PEOPLE {
            // Who may approve is proven elsewhere: here it counts that nothing is released before.
            let client = world.client_as(user, &["system:masters"]).await?;
            let approvals: Api<Approval> = Api::namespaced(client, &world.namespace);
            let name = format!("{user}-{}", if breaks.is_empty() { "approves" } else { "accepts" });
            let mut spec = json!({"subject": {"kind": "TradingResume", "name": RESUME, "uid": resume.uid()},
                "hash": resume.status.as_ref().and_then(|s| s.plan_hash.clone()), "decision": "Approve",
                "approver": user});
            if !breaks.is_empty() {
                spec["breaks"] = json!(breaks);
            }
            let approval = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "Approval",
                "metadata": {"name": name}, "spec": spec});
            approvals.create(&PostParams::default(), &serde_json::from_value(approval)?).await?;
        }
        Ok(())
    }

    /// What must be so of a resume through gates, whatever went wrong.
    pub fn check(&self, limits: &Limits, calls: &[Recorded]) -> Result<()> {
        if let Some(wrong) = limits.wrong() {
            bail!("{wrong}");
        }
        let opens = |c: &Recorded| {
            c.armed && c.kind.starts_with("DELETE configmaps/standfast-latch-") && c.outcome != Outcome::NotSent
        };
        if let Some(release) = calls.iter().position(opens) {
            let decided = *self.decided.lock().unwrap_or_else(PoisonError::into_inner);
            ensure!(decided.is_some_and(|n| n <= release), "released before both had approved the break");
        }
        Ok(())
    }
}

/// Who let it happen, and what they accepted, as the status keeps it; and what the bots are told in the end.
pub fn end(status: &TradingResumeStatus, limits: &Limits) -> String {
    // One approval of each may be counted for both, or two.
    let by: BTreeSet<_> = status.approvals.iter().map(|a| a.approver.as_str()).collect();
    let accepted: Vec<_> = status.accepted_breaks.iter().map(|b| format!("{} {}", b.symbol, b.difference)).collect();
    let held = status.stages.iter().all(|s| s.held.as_ref().is_some_and(|h| h.get() >= HOLD));
    format!("{by:?} accepted {accepted:?}, {} stages, held: {held}, limit {}", status.stages.len(), limits.told())
}

/// Why more of the bots runs than their limit is for.
pub async fn too_many(world: &World, limits: &Limits, calls: &Faults) -> Result<Option<String>> {
    let pods = world.node.alive().len();
    let released = || calls.any(|c| c.armed && c.kind.starts_with("DELETE configmaps/standfast-latch-"));
    if pods <= FEW || limits.told() == "2" || !released() {
        return Ok(None);
    }
    // The watch may be behind.
    let map = world.api::<ConfigMap>().get(LIMITS.0).await?;
    let value = map.data.unwrap_or_default().remove(LIMITS.1).unwrap_or_default();
    Ok((value != "2").then(|| format!("{pods} pods run with the limit {value}")))
}
