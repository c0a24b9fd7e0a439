//! The steps of a resume up to the release, and the list of all of them.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use standfast_crds::v1alpha1::{Action, StepStatus};

use super::{
    actions,
    approvals::{self, Approvals},
    context::{Context, DEADLINE, time_for},
    cool_off::{self, CoolOff},
    gates::{self, Released},
    journal::now,
    limits,
    ramp::{part, step_name},
    reconcile::{self, Reconcile, ReconcileLive, When},
    restore::{Ready, RestoreWorkloads},
    status::{NOT_RELEASED, step},
    venues::{AllowTrading, ApplicationResume, Verify},
    watch::{Hold, Meanwhile},
};
use crate::{
    engine::{Acted, Definition, Observation, Procedure, Step},
    halt::release,
    sight::monotonic,
};

/// All steps of a resume, in order.
pub(super) fn procedure(cx: &Arc<Context>) -> Procedure {
    let mut all = gates(cx);
    let bring_back = |cx: &Arc<Context>| -> Procedure {
        vec![
            vec![Box::new(ApplicationResume(Arc::clone(cx)))],
            AllowTrading::all(cx).into_iter().map(|s| Box::new(s) as Box<dyn Step>).collect(),
        ]
    };
    if cx.plan.policy.ramp.is_empty() {
        all.push(vec![Box::new(RestoreWorkloads::whole(cx))]);
        all.push(vec![Box::new(Ready { cx: Arc::clone(cx), name: step::READY.into(), percent: 100 })]);
        all.extend(bring_back(cx));
        if reconcile::any(cx, When::Live) {
            all.push(vec![Box::new(ReconcileLive(Arc::clone(cx)))]);
        }
    }
    let (mut before, mut last) = (0, None);
    for (number, stage) in cx.plan.policy.ramp.iter().enumerate() {
        let (cx, stage, name) = (|| Arc::clone(cx), || stage.clone(), |part| step_name(&stage.name, part));
        let percent = stage().replicas_percent;
        let workloads =
            RestoreWorkloads { cx: cx(), name: name(part::WORKLOADS), before, percent, guarded: number == 0 };
        all.push(vec![Box::new(limits::Write { cx: cx(), stage: stage() })]);
        all.push(vec![Box::new(workloads)]);
        let slow: [Box<dyn Step>; 2] = [
            Box::new(Ready { cx: cx(), name: name(part::READY), percent }),
            Box::new(limits::Prove { cx: cx(), stage: stage() }),
        ];
        for step in slow {
            all.push(vec![Box::new(Meanwhile::new(&cx(), step, last.as_ref(), &stage()))]);
        }
        if number == 0 {
            all.extend(bring_back(&cx()));
        }
        all.push(vec![Box::new(Hold::stage(&cx(), &stage()))]);
        if number == 0 && reconcile::any(&cx(), When::Live) {
            let live = Box::new(ReconcileLive(cx()));
            all.push(vec![Box::new(Meanwhile::new(&cx(), live, Some(&stage()), &stage()))]);
        }
        (before, last) = (percent, Some(stage()));
    }
    let verify = Box::new(Verify(Arc::clone(cx)));
    match last {
        Some(last) => all.push(vec![Box::new(Meanwhile::new(cx, verify, Some(&last), &last))]),
        None => all.push(vec![verify]),
    }
    all.extend(Hold::watch(cx).map(|w| vec![Box::new(w) as Box<dyn Step>]));
    all
}

/// The steps up to the release. A gate that nothing asks for is none.
fn gates(cx: &Arc<Context>) -> Procedure {
    let policy = &cx.plan.policy;
    let compares = reconcile::any(cx, When::Halted);
    let (approvals, cools) = (!policy.approvals.is_empty(), policy.cool_off.is_some_and(|c| !c.get().is_zero()));
    let cx = || Arc::clone(cx);
    let all: [(bool, Box<dyn Step>); 9] = [
        (true, Box::new(Halted(cx()))),
        (true, Box::new(Guardrails(cx()))),
        (approvals, Box::new(Approvals(cx()))),
        (cools, Box::new(CoolOff(cx()))),
        (true, Box::new(Checks(cx()))),
        (true, Box::new(SyncPositions(cx()))),
        (compares, Box::new(Reconcile(cx()))),
        (true, Box::new(RequestRelease(cx()))),
        (true, Box::new(Release(cx()))),
    ];
    all.into_iter().filter(|(asked_for, _)| *asked_for).map(|(_, step)| vec![step]).collect()
}

/// A step that ends with the gates.
fn gate(cx: &Context, name: &str) -> Definition {
    Definition { until: Some(cx.until), ..Definition::new(name) }
}

/// What only has to be waited for needs no call.
fn waiting() -> Acted {
    Acted::Started { message: String::new(), external_ref: None }
}

/// The halt is proven. Until then nobody knows what the bot does.
struct Halted(Arc<Context>);

#[async_trait]
impl Step for Halted {
    fn definition(&self) -> Definition {
        Definition { look: DEADLINE + Duration::from_secs(1), ..gate(&self.0, step::HALTED) }
    }

    async fn observe(&self, _: &StepStatus) -> Observation {
        let cx = &self.0;
        let halts = match cx.halts().await {
            Ok(halts) => halts,
            Err(why) => return Observation::InProgress(why),
        };
        if let Released::Otherwise(why) = gates::released(&halts, &cx.plan, &cx.uid) {
            return Observation::Failed(why);
        }
        match gates::unproven(&halts, &cx.plan, now()) {
            None => Observation::Done(format!("TradingHalt {} is proven", cx.plan.halt.name)),
            Some(why) => Observation::InProgress(why),
        }
    }

    async fn act(&self, _: &StepStatus) -> Acted {
        waiting()
    }
}

struct Guardrails(Arc<Context>);

#[async_trait]
impl Step for Guardrails {
    fn definition(&self) -> Definition {
        // Several policies, each read with a deadline of its own.
        Definition {
            look: Duration::from_secs(15),
            interval: Duration::from_secs(5),
            ..gate(&self.0, step::GUARDRAILS)
        }
    }

    async fn observe(&self, _: &StepStatus) -> Observation {
        match self.0.outside.guardrails.fresh().await.problem() {
            None => Observation::Done("the guardrails are as they were shipped".into()),
            Some((_, why)) => Observation::InProgress(format!("nothing is released while {why}")),
        }
    }

    async fn act(&self, _: &StepStatus) -> Acted {
        waiting()
    }
}

struct Checks(Arc<Context>);

#[async_trait]
impl Step for Checks {
    fn definition(&self) -> Definition {
        let look = time_for(self.0.plan.gates()) + DEADLINE;
        Definition { look, interval: self.0.plan.thresholds().interval.get(), ..gate(&self.0, step::CHECKS) }
    }

    async fn observe(&self, entry: &StepStatus) -> Observation {
        let (cx, at, thresholds) = (&self.0, monotonic(), self.0.plan.thresholds());
        // Several answers count only when time passed between them.
        let due = cx.with_memory(|m| m.gate.due(at, thresholds.interval.get()));
        if thresholds.success > 1 && !due.is_zero() {
            return Observation::InProgress(entry.message.clone().unwrap_or_default());
        }
        let answer = match limits::unprepared(cx).await {
            Some(why) => Err(why),
            None => gates::all_pass(&cx.ask(cx.plan.gates()).await),
        };
        let passes = cx.with_memory(|m| m.gate.look(at, answer.is_ok()));
        match answer {
            Ok(text) if passes >= thresholds.success => Observation::Done(text),
            Ok(text) => Observation::InProgress(format!("{text}, {passes} of {} times in a row", thresholds.success)),
            Err(why) => Observation::InProgress(why),
        }
    }

    async fn act(&self, _: &StepStatus) -> Acted {
        waiting()
    }
}

struct SyncPositions(Arc<Context>);

/// How often a sync is tried that the other side failed at.
const SYNC_TRIES: i64 = 3;

#[async_trait]
impl Step for SyncPositions {
    fn definition(&self) -> Definition {
        let sync = self.0.plan.sync_positions.as_ref();
        let call = sync.map_or(DEADLINE, actions::time_for);
        // There is nothing to look at but a Job and its Pods.
        let look = if sync.is_some_and(|s| s.job.is_some()) { DEADLINE * 3 } else { Duration::from_secs(1) };
        Definition { call, look, ..gate(&self.0, step::SYNC_POSITIONS) }
    }

    async fn observe(&self, entry: &StepStatus) -> Observation {
        match &self.0.plan.sync_positions {
            None => Observation::NotNeeded("the TradingSystem declares no syncPositions".into()),
            Some(Action { job: Some(_), .. }) => actions::observe_job(&self.0, entry).await,
            Some(_) => Observation::Unknown("no answer to the sync is known".into()),
        }
    }

    async fn act(&self, entry: &StepStatus) -> Acted {
        match &self.0.plan.sync_positions {
            None => Acted::NotNeeded(String::new()),
            Some(Action { job: Some(job), .. }) => actions::begin_job(&self.0, job, entry, actions::LONGEST_JOB).await,
            Some(Action { http: Some(request), .. }) => {
                let sent = self.0.send(request, actions::LONGEST_CALL).await;
                actions::synced(sent, entry.attempts >= SYNC_TRIES)
            }
            Some(_) => Acted::Failed("syncPositions has neither http nor job".into()),
        }
    }
}

/// Asks every gate once more. That the step succeeded and that the release is asked for is one status write, over the
/// version of the resume that was read before: the look is all there is to do.
struct RequestRelease(Arc<Context>);

#[async_trait]
impl Step for RequestRelease {
    fn definition(&self) -> Definition {
        let look = time_for(self.0.plan.gates()) + DEADLINE + Duration::from_secs(20) + approvals::LOOK;
        let look = look + reconcile::time_to_look(&self.0, When::Halted);
        Definition { look, interval: Duration::from_secs(5), ..gate(&self.0, step::REQUEST_RELEASE) }
    }

    async fn observe(&self, _: &StepStatus) -> Observation {
        let cx = &self.0;
        if cx.paused {
            return Observation::InProgress("paused".into());
        }
        if let Some((_, why)) = cx.outside.guardrails.fresh().await.problem() {
            return Observation::InProgress(format!("nothing is released while {why}"));
        }
        if let Some(why) = limits::unprepared(cx).await {
            return Observation::InProgress(why);
        }
        if let Err(why) = gates::all_pass(&cx.ask(cx.plan.gates()).await) {
            return Observation::InProgress(why);
        }
        let halts = match cx.halts().await {
            Ok(halts) => halts,
            Err(why) => return Observation::InProgress(why),
        };
        if let Released::Otherwise(why) = gates::released(&halts, &cx.plan, &cx.uid) {
            return Observation::Failed(why);
        }
        if let Some(why) = gates::unproven(&halts, &cx.plan, now()) {
            return Observation::InProgress(why);
        }
        let cooled = cool_off::cooled(&halts, &cx.plan);
        if !matches!(cooled, Observation::Done(_) | Observation::NotNeeded(_)) {
            return cooled;
        }
        if let Some(why) = gates::outgrown(&halts, &cx.plan) {
            return Observation::Failed(why);
        }
        match reconcile::look(cx).await {
            Observation::Done(_) | Observation::NotNeeded(_) => {}
            otherwise => return otherwise,
        }
        // People come last: what they withdraw up to now counts as withdrawn.
        match approvals::ask(cx).await {
            Observation::Done(_) | Observation::NotNeeded(_) => {}
            otherwise => return otherwise,
        }
        // An operator that was away must not release what is no longer wanted.
        if now() >= cx.until {
            return Observation::Failed("the deadline has passed".into());
        }
        Observation::Done("every gate has passed".into())
    }

    async fn act(&self, _: &StepStatus) -> Acted {
        waiting()
    }
}

/// Waits for the halt's controller, until it will not act on the request any more.
struct Release(Arc<Context>);

#[async_trait]
impl Step for Release {
    fn definition(&self) -> Definition {
        Definition { interval: Duration::from_secs(1), ..Definition::new(step::RELEASE) }
    }

    async fn observe(&self, _: &StepStatus) -> Observation {
        let halts = match self.0.halts().await {
            Ok(halts) => halts,
            Err(why) => return Observation::Unknown(why),
        };
        let name = &self.0.plan.halt.name;
        match gates::released(&halts, &self.0.plan, &self.0.uid) {
            Released::Yes => Observation::Done(format!("TradingHalt {name} is released")),
            Released::OnTheWay => Observation::InProgress(format!("TradingHalt {name} is being released")),
            Released::No if self.0.requested_at.is_some_and(|at| release::spent(at, now())) => Observation::Failed(
                format!("{NOT_RELEASED} the request for the release grew old: create another TradingResume"),
            ),
            Released::No => Observation::InProgress(format!("waiting for the release of TradingHalt {name}")),
            Released::Otherwise(why) => Observation::Failed(why),
        }
    }

    async fn act(&self, _: &StepStatus) -> Acted {
        waiting()
    }
}
