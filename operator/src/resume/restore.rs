//! Brings workloads back to their sizes, and waits until they are ready.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use standfast_crds::v1alpha1::{
    Check, CheckGroup, CheckState, LatchedWorkload, StepStatus, TradingHalt, WorkloadCheck, WorkloadKind,
};

use tokio::time::sleep;

use super::{
    context::{Context, DEADLINE, PARALLEL, time_of},
    gates::{self, Restored, Restoring, Summary},
    ramp,
    status::step,
    venues::suspended,
};
use crate::{
    engine::{Acted, Definition, Observation, Step},
    held,
    scale::ScaleError,
    workloads::Key,
};

/// How long workloads may take to be restored.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(600);
/// How long one attempt begins to raise workloads. What it began has as long again to end, and the rest comes with the next
/// attempt: a call must not last longer than a lease.
const BEGIN: Duration = Duration::from_secs(2);

/// How long restored workloads may take to become ready.
pub(super) const READY_TIMEOUT: Duration = Duration::from_secs(600);

/// Raises what the halt stopped and no other halt holds.
pub(super) struct RestoreWorkloads {
    pub cx: Arc<Context>,
    pub name: String,
    /// How many percent ran in the stage before this one.
    pub before: u32,
    /// How many percent are to run.
    pub percent: u32,
    /// Of the first stage: nothing starts that could trade before its limits are proven.
    pub guarded: bool,
}

impl RestoreWorkloads {
    /// Brings back all at once.
    pub fn whole(cx: &Arc<Context>) -> Self {
        Self { cx: Arc::clone(cx), name: step::RESTORE_WORKLOADS.into(), before: 0, percent: 100, guarded: false }
    }
}

/// How long asking the venues takes.
fn time_to_guard(cx: &Context) -> Duration {
    let reads = cx.plan.venues.iter().filter_map(|v| v.trading_suspended.as_ref());
    // Sent once more when the first one had no answer.
    reads.map(|r| time_of(&r.http) * 2).sum()
}

/// Limits that are set by HTTP come after the start: until then every venue refuses orders, or the bot waits.
async fn unguarded(cx: &Context) -> Option<String> {
    if cx.plan.starts_halted || !cx.plan.limits.iter().any(|l| l.set.http.is_some()) {
        return None;
    }
    for venue in &cx.plan.venues {
        let name = &venue.name;
        match suspended(cx, venue.trading_suspended.as_ref()).await {
            Some(Ok(true)) => {}
            Some(Ok(false)) => return Some(format!("venue {name} accepts orders, and the limits are not set yet")),
            Some(Err(why)) => return Some(format!("venue {name}: {why}")),
            None => return Some(format!("whether venue {name} refuses orders cannot be read")),
        }
    }
    None
}

#[async_trait]
impl Step for RestoreWorkloads {
    fn definition(&self) -> Definition {
        Definition {
            within_lease: true,
            timeout: Some(RESTORE_TIMEOUT),
            look: Duration::from_secs(1) + if self.guarded { time_to_guard(&self.cx) } else { Duration::ZERO },
            call: DEADLINE,
            ..Definition::new(self.name.clone())
        }
    }

    async fn observe(&self, _: &StepStatus) -> Observation {
        if self.guarded
            && let Some(why) = unguarded(&self.cx).await
        {
            return Observation::InProgress(why);
        }
        // Each workload is read before it is set.
        Observation::NotDone("not all restored".into())
    }

    async fn act(&self, _: &StepStatus) -> Acted {
        let cx = &self.cx;
        let over = Box::pin(sleep(BEGIN));
        let halts = match cx.unstopped().await {
            Ok(halts) => halts,
            Err(why) => return Acted::Again(why),
        };
        let workloads = gates::to_restore(&halts, &cx.plan);
        let calls: Vec<_> = workloads.iter().map(|w| self.restore(&halts, w)).collect();
        let mut done: Vec<_> = stream::iter(calls).take_until(over).buffered(PARALLEL).collect().await;
        done.resize(workloads.len(), Restored::NotYet("the others come next".into()));
        match gates::sum_up(&done) {
            Summary::Done(text) => Acted::Done(text),
            Summary::Nothing(text) => Acted::NotNeeded(text),
            Summary::NotYet(text) => Acted::Again(text),
            Summary::Missing(text) => Acted::Failed(text),
        }
    }
}

/// Why nothing may be raised at the moment: a new halt that has not said yet what it holds, or that ends this resume.
pub(super) fn stopped_by(cx: &Context, halts: &[TradingHalt]) -> Option<String> {
    let again = cx.requested_at.and_then(|at| gates::halted_again(halts, &cx.plan, at));
    again
        .map(|name| format!("halted again by {name}"))
        .or_else(|| gates::about_to_hold(halts, &cx.plan).map(|name| format!("TradingHalt {name} is about to hold")))
}

fn key(cx: &Context, workload: &LatchedWorkload) -> Key {
    Key { namespace: cx.namespace.clone(), kind: workload.kind, name: workload.name.clone() }
}

fn holders(cx: &Context, halts: &[TradingHalt], workload: &LatchedWorkload) -> Vec<String> {
    let names = held::holders(halts, workload.kind, &workload.name, Some(&cx.plan.halt.uid));
    names.into_iter().map(str::to_owned).collect()
}

impl RestoreWorkloads {
    async fn restore(&self, halts: &[TradingHalt], workload: &LatchedWorkload) -> Restored {
        let cx = &self.cx;
        let brought = cx.restored.has(&name(workload));
        // Whoever stopped it since knows why. In a later stage there may be more to bring back.
        if brought && ramp::target(workload, self.before) == ramp::target(workload, self.percent) {
            return Restored::Done;
        }
        if brought && self.before == 0 {
            return Restored::Done;
        }
        let by = holders(cx, halts, workload);
        if !by.is_empty() {
            return Restored::Held(by);
        }
        if ramp::target(workload, self.percent).is_none() {
            return Restored::Done;
        }
        let key = key(cx, workload);
        let set = async {
            let (live, version) = cx.outside.scaler.read(&key).await?;
            match ramp::raising(workload, live, self.before, self.percent, brought) {
                Restoring::Leave => Ok(()),
                Restoring::Raise(size) => cx.outside.scaler.set(&key, size, &version).await,
            }
        };
        match set.await {
            Ok(()) => {
                cx.restored.add(name(workload));
                Restored::Done
            }
            Err(ScaleError::NotFound(key)) => Restored::Missing(format!("{key} does not exist any more")),
            // The admission policies learn of the release a moment after it.
            Err(error) => Restored::NotYet(error.to_string()),
        }
    }
}

/// Waits until the pods of what was restored are ready.
pub(super) struct Ready {
    pub cx: Arc<Context>,
    pub name: String,
    /// How many percent are to run.
    pub percent: u32,
}

#[async_trait]
impl Step for Ready {
    fn definition(&self) -> Definition {
        Definition { timeout: Some(READY_TIMEOUT), look: DEADLINE * 3, ..Definition::new(self.name.clone()) }
    }

    async fn observe(&self, _: &StepStatus) -> Observation {
        let halts = match self.cx.halts().await {
            Ok(halts) => halts,
            Err(why) => return Observation::InProgress(why),
        };
        let started = restored(&self.cx, &halts, self.percent);
        if started.is_empty() {
            return Observation::NotNeeded("no restored workload runs pods all the time".into());
        }
        match ready(&self.cx, &started).await {
            Ok(()) => Observation::Done(format!("{} workloads are ready", started.len())),
            Err(why) => Observation::InProgress(why),
        }
    }

    async fn act(&self, _: &StepStatus) -> Acted {
        Acted::Started { message: String::new(), external_ref: None }
    }
}

/// The workloads whose pods must run when so many percent do: restored, and not held by another halt.
pub(super) fn restored(cx: &Context, halts: &[TradingHalt], percent: u32) -> Vec<LatchedWorkload> {
    let mut workloads = gates::to_restore(halts, &cx.plan);
    workloads.retain(|w| {
        w.kind != WorkloadKind::CronJob && ramp::target(w, percent).is_some() && holders(cx, halts, w).is_empty()
    });
    workloads
}

/// Whether the pods of all of them are ready: what the cache denies is not asked live.
pub(super) async fn ready(cx: &Context, workloads: &[LatchedWorkload]) -> Result<(), String> {
    let cached = |w: &&LatchedWorkload| {
        let view = cx.outside.workloads.get(&key(cx, w));
        view.is_none_or(|v| !v.has_its_pods())
    };
    let waiting: Vec<_> = workloads.iter().filter(cached).map(name).collect();
    if !waiting.is_empty() {
        return Err(waits_for(&waiting));
    }
    let checks: Vec<_> = workloads.iter().map(|w| readiness(w.kind, &w.name)).collect();
    let answers = cx.ask(checks.iter()).await;
    let waiting: Vec<_> = answers.into_iter().filter(|a| a.1 != CheckState::Passing).map(|a| a.0).collect();
    if waiting.is_empty() { Ok(()) } else { Err(waits_for(&waiting)) }
}

fn readiness(kind: WorkloadKind, name: &str) -> Check {
    Check {
        name: format!("{kind} {name}"),
        group: CheckGroup::Infrastructure,
        interval: None,
        http: None,
        sql: None,
        workload: Some(WorkloadCheck { kind, name: name.into(), min_ready: None }),
        tcp: None,
        prometheus: None,
        job: None,
    }
}

/// Workloads that were brought back, by name. The step adds to them, the journal writes them down.
#[derive(Clone, Default)]
pub(super) struct Names(Arc<Mutex<BTreeSet<String>>>);

impl Names {
    pub fn new(names: &[String]) -> Self {
        Self(Arc::new(Mutex::new(names.iter().cloned().collect())))
    }

    fn has(&self, name: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    pub fn add(&self, name: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
    }

    pub fn list(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// A workload as people and the status name it.
pub fn name(workload: &LatchedWorkload) -> String {
    format!("{} {}", workload.kind, workload.name)
}

fn waits_for(names: &[String]) -> String {
    let first = names.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    let more = if names.len() > 3 { format!(" and {} more", names.len() - 3) } else { String::new() };
    format!("waiting for ready pods of {first}{more}")
}
