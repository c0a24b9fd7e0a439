//! Resumes trading: the first procedure on the [engine](crate::engine).
//!
//! A TradingResume is looked at once when it appears: whether its halt can be released at all, and what will be done
//! ([`plan`]). That is frozen in its status. Then its steps follow, in this order: the gates (the proof of the
//! halt, guardrails, approvals, cool-off, checks, position sync), the request for the release, which the halt's own controller carries out,
//! the workloads, their readiness, the bot's own endpoint, the venues, and a last look. What a step does is in `steps`,
//! `restore` and `venues`; what it decides is in [`gates`]; what the status says is in [`status`].
//!
//! With a policy that has a ramp the workloads come back in stages ([`ramp`]), each with limits that the bot itself
//! proves (`limits`), and each is held while it is watched (`watch`, decided in [`hold`]). What goes wrong then halts
//! the system again: that is written first, the halt is created after it.
//!
//! Halting always wins: workloads and venues that another halt holds stay stopped, and a halt that appears after the
//! release ends the resume. There is no finalizer. A resume that is aborted after its release halts the system again;
//! so does one that is deleted then, as long as an operator sees it ([`ResumeReconciler::on_deleted`]): deleting one
//! while no operator runs leaves the system as far as the resume came.

mod actions;
mod approvals;
mod context;
mod cool_off;
mod dry;
pub mod gates;
pub mod hold;
mod journal;
mod limits;
pub mod plan;
pub mod policy;
pub mod ramp;
mod reconcile;
mod rehalt;
mod restore;
pub mod status;
mod steps;
#[cfg(test)]
mod tests;
mod venues;
mod watch;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::{DeserializeGuard, error_boundary::InvalidObject},
    runtime::{controller::Action, events::EventType, reflector::ObjectRef},
};
use standfast_crds::v1alpha1::{
    LatchedWorkload, OnRegression, Regression, ResumePhase, StepStatus, TradingResume, TradingResumeStatus,
    TradingSystem, shorten,
};

pub use approvals::rules as approval_rules;
pub use plan::{ResumePlan, Subject, plan_percents, plan_workloads, policy_problem};
pub use rehalt::{BASELINES_FROM, PARTLY_BACK, RESUME_UID};
pub use restore::name as workload_name;

use crate::{
    cache::Cache,
    calls::Caller,
    client,
    controller::{Failure, Guarded, Reconcile},
    engine::{self, Advance, Controls, End, JournalError, RunError, Term},
    events::Events,
    guardrails::Guardrails,
    halt::Caches,
    jobs,
    leader::Leadership,
    scale::Scaler,
    system::{answered_by, checks::Checker},
    workloads::Key,
};
use context::{Context, DEADLINE, Outside, readable};
use hold::{Course, Fault, course};
use journal::{ResumeJournal, now};
use rehalt::Why;
use status::Ending;
use watch::Memories;

/// After somebody changed the resume in between.
const SOON: Duration = Duration::from_millis(200);
/// How often it is looked whether a request that is not wanted any more is spent.
const SPENT: Duration = Duration::from_secs(1);
/// How often a paused resume is looked at: a new halt ends it all the same.
const PAUSE: Duration = Duration::from_secs(10);
/// How often a re-halt is tried after a deletion, and the pause between two tries.
const DELETED_TRIES: (u32, Duration) = (40, Duration::from_secs(2));

impl Term for Leadership {
    fn epoch(&self) -> i64 {
        Self::epoch(self)
    }

    fn allows(&self, needed: Duration) -> Result<(), String> {
        self.check(needed).map_err(|lost| lost.to_string())
    }
}

/// Releases halts through gates.
pub struct ResumeReconciler {
    outside: Arc<Outside>,
    systems: Cache<Guarded<TradingSystem>>,
    leadership: Leadership,
    events: Events,
    memories: Memories,
}

impl ResumeReconciler {
    /// Everything outside comes in here: `client` reaches the API server, `caller` and `checker` everything else.
    pub fn new(
        client: Client,
        caller: Arc<Caller>,
        checker: Checker,
        caches: Caches,
        guardrails: Guardrails,
        leadership: Leadership,
        events: Events,
    ) -> Self {
        let outside = Outside {
            scaler: Scaler::new(client.clone(), caches.workloads.kinds()),
            client,
            caller,
            checker,
            guardrails,
            workloads: caches.workloads,
        };
        Self { outside: Arc::new(outside), systems: caches.systems, leadership, events, memories: Memories::default() }
    }

    fn api(&self, namespace: &str) -> Api<TradingResume> {
        Api::namespaced(self.outside.client.clone(), namespace)
    }

    fn journal(&self, live: TradingResume) -> ResumeJournal<'_> {
        ResumeJournal::new(self.outside.client.clone(), &self.leadership, live)
    }

    async fn live(&self, namespace: &str, name: &str) -> Result<Option<TradingResume>, Failure> {
        let what = format!("reading TradingResume {namespace}/{name}");
        client::read(DEADLINE, what, self.api(namespace).get_opt(name)).await.map_err(|e| Failure(e.to_string()))
    }

    /// The first look: pins the halt, freezes the plan. Or says why not, for good.
    async fn accept(&self, live: TradingResume) -> Result<Action, Failure> {
        let namespace = live.namespace().unwrap_or_default();
        let mut journal = self.journal(live);
        let mut status = journal.status();
        status.started_at = Some(MicroTime(now()));
        if aborts(&journal.object) {
            return self.finish(&mut journal, status, aborted("nothing was released")).await;
        }
        let (mut halts, named) = (vec![], &journal.object.spec.halt_ref.name);
        for (name, halt) in self.outside.guarded_halts(&namespace).await.map_err(Failure)? {
            match halt {
                Ok(halt) => halts.push(halt),
                Err(why) if name == *named => {
                    let why = format!("TradingHalt {name} cannot be read by this version of the operator: {why}");
                    return self.finish(&mut journal, status, failed(why)).await;
                }
                // The gates wait for it.
                Err(_) => {}
            }
        }
        let system = match plan::halt_to_release(&journal.object, &halts) {
            Ok(halt) => self.system(&namespace, halt.spec.system()).await?,
            Err(_) => Ok(None),
        };
        let systems = self.systems.some_names(&namespace);
        let accept = |system: Option<_>| plan::accept(&journal.object, &halts, system.as_ref(), &systems);
        let mut plan = match system.and_then(accept) {
            Ok(plan) => plan,
            Err(why) => return self.finish(&mut journal, status, failed(why)).await,
        };
        let key = |w: &LatchedWorkload| Key { namespace: namespace.clone(), kind: w.kind, name: w.name.clone() };
        let started: Vec<_> = plan.started().map(key).collect();
        let kinds = self.outside.workloads.kinds();
        let answered = answered_by(&self.outside.client, kinds, &namespace, &plan.checks, &started).await;
        plan.answered_by_stopped = answered.map_err(Failure)?;
        let views = reconcile::plan::questions(&plan.reconciliation);
        let live = answered_by(&self.outside.client, kinds, &namespace, &views, &started).await.map_err(Failure)?;
        plan.reconciliation.iter_mut().for_each(|c| c.live = live.contains(&c.comparison.name));
        let (frozen, hash) = plan.freeze().map_err(Failure)?;
        status.halt_uid = Some(plan.halt.uid.clone());
        status.suspended_jobs = gates::suspended_jobs(&plan.workloads);
        (status.plan, status.plan_hash) = (Some(frozen), Some(hash));
        let until = deadline(&journal.object, &status.started_at);
        let cx = Arc::new(self.context(&journal, plan, None, until));
        let named = |d: engine::Definition| StepStatus { name: d.name, ..StepStatus::default() };
        status.steps = steps::procedure(&cx).iter().flatten().map(|s| named(s.definition())).collect();
        written(journal.settle(status, None).await, Action::requeue(Duration::ZERO))
    }

    /// The system, if there is one and this version can read it.
    async fn system(&self, namespace: &str, name: &str) -> Result<Result<Option<TradingSystem>, String>, Failure> {
        let api: Api<DeserializeGuard<TradingSystem>> = Api::namespaced(self.outside.client.clone(), namespace);
        let what = format!("TradingSystem {namespace}/{name}");
        let live = client::read(DEADLINE, format!("reading {what}"), api.get_opt(name)).await;
        let Some(guarded) = live.map_err(|e| Failure(e.to_string()))? else { return Ok(Ok(None)) };
        let unread = |e: InvalidObject| format!("{what} cannot be read by this version of the operator: {}", e.error);
        Ok(guarded.0.map(Some).map_err(unread))
    }

    fn context(
        &self,
        journal: &ResumeJournal<'_>,
        plan: ResumePlan,
        requested_at: Option<Timestamp>,
        until: Timestamp,
    ) -> Context {
        let resume = &journal.object;
        Context {
            namespace: resume.namespace().unwrap_or_default(),
            name: resume.name_any(),
            uid: resume.uid().unwrap_or_default(),
            owner: resume.owner_ref(&()).unwrap_or_default(),
            plan,
            plan_hash: resume.status.as_ref().and_then(|s| s.plan_hash.clone()).unwrap_or_default(),
            born: resume.metadata.creation_timestamp.as_ref().map(|t| t.0),
            tally: journal.tally.clone(),
            paused: resume.spec.paused,
            restored: journal.restored.clone(),
            ledger: journal.ledger.clone(),
            accepted: resume.status.as_ref().map(|s| s.accepted_breaks.clone()).unwrap_or_default(),
            record: journal.record.clone(),
            memory: self.memories.of(&resume.uid().unwrap_or_default()),
            requested_at,
            until,
            outside: Arc::clone(&self.outside),
        }
    }

    /// One wave further.
    async fn advance(&self, live: TradingResume) -> Result<Action, Failure> {
        let what = format!("TradingResume {}/{}", live.namespace().unwrap_or_default(), live.name_any());
        let mut journal = self.journal(live);
        let mut status = journal.status();
        let plan = match ResumePlan::read(&journal.object) {
            Ok(plan) => plan,
            Err(why) => return Err(self.stalled(&mut journal, why).await),
        };
        let requested_at = status.release_requested_at.as_ref().map(|t| t.0);
        let until = deadline(&journal.object, &status.started_at);
        let cx = Arc::new(self.context(&journal, plan, requested_at, until));
        if let Some(at) = requested_at.filter(|_| status::is_released(&status)) {
            let halts = match cx.outside.guarded_halts(&cx.namespace).await.map(|h| readable(&cx.namespace, h)) {
                Ok(Ok(halts)) => halts,
                Ok(Err(why)) => return Err(self.stalled(&mut journal, why).await),
                Err(why) => return Err(Failure::new(what, why)),
            };
            if let Some(by) = gates::halted_again(&halts, &cx.plan, at) {
                return self.finish(&mut journal, status, failed(format!("halted again by {by}"))).await;
            }
            // The halt may have suspended more of them up to its release.
            journal.note_suspended_jobs(&gates::to_restore(&halts, &cx.plan));
        }
        if let Some(why) = approvals::rejected(&cx, &status).await {
            return self.finish(&mut journal, status, rejected(why)).await;
        }
        let procedure = steps::procedure(&cx);
        if cx.plan.spec.dry_run {
            let ending = dry::run(&cx, &procedure, &mut status).await;
            return self.finish(&mut journal, status, ending).await;
        }
        let controls = Controls { paused: cx.paused };
        let term = &self.leadership;
        let advanced = engine::advance(&procedure, &mut journal, &cx.uid, term, &Timestamp::now, controls).await;
        let status = journal.status();
        if let Some(news) = cx.record.news() {
            self.events.emit(journal.object.object_ref(&()), EventType::Warning, "Regression", "Watch", &news);
        }
        match advanced {
            Ok(Advance::Moved) => Ok(Action::requeue(Duration::ZERO)),
            Ok(Advance::Wait(time)) => written(journal.settle(status, None).await, Action::requeue(time)),
            Ok(Advance::Paused) => {
                // The deadline of the gates goes on.
                let left = Duration::try_from(until.duration_since(now())).unwrap_or_default();
                let wait = if requested_at.is_none() { left + SOON } else { PAUSE };
                let wait = if watch::paused(&cx, &status).await { Duration::ZERO } else { wait };
                written(journal.settle(status, None).await, Action::requeue(wait))
            }
            Ok(Advance::Ended(End::Failed(step))) if goes_wrong(&cx.plan, &status, &step) => {
                // Not a check, but the stage went wrong all the same. The intent comes first.
                let said = status::state_message(&status, &step);
                let stage = status.stage.clone().unwrap_or_default();
                journal.record.regressed(watch::regression(&stage, &Fault { check: step, message: said }));
                written(journal.settle(status, None).await, Action::requeue(Duration::ZERO))
            }
            Ok(Advance::Ended(end)) => {
                let ending = ending(&status, &end);
                self.finish(&mut journal, status, ending).await
            }
            Err(RunError::Conflict(_)) => Ok(Action::requeue(SOON)),
            Err(RunError::NotAllowed(why) | RunError::Failed(why)) => Err(Failure::new(what, why)),
        }
    }

    /// Says in the status why the resume does not go on. It is tried again: somebody may repair what it names.
    async fn stalled(&self, journal: &mut ResumeJournal<'_>, why: String) -> Failure {
        let mut status = journal.status();
        status::stall(&mut status, journal.object.metadata.generation, &why, now());
        match journal.write(status).await {
            Ok(()) => Failure(why),
            Err(error) => Failure::new(why, error),
        }
    }

    /// What was written down as going wrong, if the system has to be halted again for it.
    fn to_take_back(live: &TradingResume) -> Option<Regression> {
        let regression = live.status.as_ref()?.regression.clone()?;
        let plan = ResumePlan::read(live).ok()?;
        (plan.policy.on_regression.unwrap_or_default() == OnRegression::ReHalt).then_some(regression)
    }

    /// Halts again for what goes wrong in a stage. That it goes wrong is written down already.
    async fn take_back(&self, live: TradingResume, mut regression: Regression) -> Result<Action, Failure> {
        let namespace = live.namespace().unwrap_or_default();
        let mut journal = self.journal(live);
        let status = journal.status();
        let of = match Subject::read(&journal.object) {
            Ok(of) => of,
            Err(why) => return Err(self.stalled(&mut journal, why).await),
        };
        let what = format!("{} in stage {}: {}", regression.check, regression.stage, regression.message);
        // Somebody may have halted in between: one halt is enough. What cannot be read does not keep us from halting.
        let halts = self.outside.guarded_halts(&namespace).await.map_err(Failure)?;
        let by_others = |halt: &standfast_crds::v1alpha1::TradingHalt| {
            halt.annotations().get(RESUME_UID) != journal.object.metadata.uid.as_ref()
        };
        let halts: Vec<_> = halts.into_iter().filter_map(|(_, h)| h.ok()).filter(by_others).collect();
        let plan = ResumePlan::read(&journal.object).map_err(Failure)?;
        let requested = status.release_requested_at.as_ref().map(|t| t.0);
        let halt = match requested.and_then(|at| gates::halted_again(&halts, &plan, at)) {
            Some(name) => name,
            None => self.halt_again(&journal.object, &of, &Why::Regression(what.clone())).await?,
        };
        regression.halt = Some(halt.clone());
        journal.record.regressed(regression);
        let message = shorten(&format!("halted again by {halt}: {what}"));
        self.finish(&mut journal, status, Ending { phase: ResumePhase::ReHalted, message }).await
    }

    /// Before the release nothing has happened; after it the system is halted again.
    async fn abort(&self, live: TradingResume) -> Result<Action, Failure> {
        let namespace = live.namespace().unwrap_or_default();
        let mut journal = self.journal(live);
        let status = journal.status();
        if status.release_requested_at.is_none() {
            return self.finish(&mut journal, status, aborted("nothing was released")).await;
        }
        let of = match Subject::read(&journal.object) {
            Ok(of) => of,
            Err(why) => return Err(self.stalled(&mut journal, why).await),
        };
        match self.must_take_back(&journal.object, &of, &namespace).await? {
            None => Ok(Action::requeue(SPENT)),
            Some(false) => self.finish(&mut journal, status, aborted("nothing was released")).await,
            Some(true) => {
                let name = self.halt_again(&journal.object, &of, &Why::Ended("aborted")).await?;
                self.finish(&mut journal, status, aborted(&format!("after the release; halted again by {name}"))).await
            }
        }
    }

    /// Whether the system has to be halted again for a resume that is given up, as far as that is known already.
    async fn must_take_back(
        &self,
        resume: &TradingResume,
        of: &Subject,
        namespace: &str,
    ) -> Result<Option<bool>, Failure> {
        let status = resume.status.clone().unwrap_or_default();
        let halts = self.outside.guarded_halts(namespace).await.map_err(Failure)?;
        // What one of them holds that cannot be read is not known: halting again does no harm.
        let Ok(halts) = readable(namespace, halts) else { return Ok(Some(true)) };
        let released = gates::release_of(&of.halt, &halts, &resume.uid().unwrap_or_default());
        Ok(gates::to_take_back(&released, &status, now()))
    }

    /// The last write of a resume. Nothing that it began goes on after it: a Job that waits for its Pod would else allow
    /// trading under the halt that ended the resume.
    async fn finish(
        &self,
        journal: &mut ResumeJournal<'_>,
        status: TradingResumeStatus,
        ending: Ending,
    ) -> Result<Action, Failure> {
        let resume = &journal.object;
        if ending.phase != ResumePhase::Completed && status.steps.iter().any(|s| s.attempts > 0) {
            let (namespace, owner) =
                (resume.namespace().unwrap_or_default(), resume.owner_ref(&()).unwrap_or_default());
            let stopped = jobs::stop_jobs(&self.outside.client, &namespace, &owner).await;
            stopped.map_err(|e| Failure::new(format!("ending TradingResume {namespace}/{}", owner.name), e))?;
        }
        let done = written(journal.settle(status, Some(&ending)).await, Action::await_change())?;
        if journal.object.status.as_ref().is_some_and(|s| s.finished_at.is_some()) {
            let (reason, resume) = (status::phase_name(ending.phase), &journal.object);
            self.memories.forget(&resume.uid().unwrap_or_default());
            tracing::info!(
                namespace = resume.namespace(),
                resume = resume.name_any(),
                phase = reason,
                message = ending.message,
                "resume ended"
            );
            let good = matches!(ending.phase, ResumePhase::Completed | ResumePhase::Evaluated);
            let kind = if good { EventType::Normal } else { EventType::Warning };
            self.events.emit(resume.object_ref(&()), kind, reason, reason, &ending.message);
        }
        Ok(done)
    }

    async fn halt_again(&self, resume: &TradingResume, of: &Subject, why: &Why) -> Result<String, Failure> {
        let what = format!("halting again after TradingResume {}", resume.name_any());
        self.leadership.check(DEADLINE).map_err(|e| Failure::new(&what, e))?;
        rehalt::ensure(&self.outside.client, resume, of, why).await.map_err(|e| Failure::new(&what, e))
    }

    /// To be called when a TradingResume is gone from the cache, with its last state: one that was deleted between its
    /// release and its end leaves a system halted again. There is no finalizer, so this works only while an operator
    /// runs.
    pub async fn on_deleted(&self, resume: &TradingResume) {
        self.memories.forget(&resume.uid().unwrap_or_default());
        let (namespace, name) = (resume.namespace().unwrap_or_default(), resume.name_any());
        for _ in 0..DELETED_TRIES.0 {
            match self.deleted(resume, &namespace, &name).await {
                Ok(Gone::Settled) => return,
                // Nobody releases a halt for a resume that is gone, unless that was begun before.
                Ok(Gone::Perhaps) => {}
                Ok(Gone::HaltedAgain(halt)) => {
                    tracing::warn!(namespace, resume = name, halt, "an unfinished resume was deleted, halted again");
                    return;
                }
                Err(failure) => tracing::warn!(namespace, resume = name, %failure, "an unfinished resume was deleted"),
            }
            tokio::time::sleep(DELETED_TRIES.1).await;
        }
        tracing::error!(
            namespace,
            resume = name,
            "an unfinished resume was deleted and its system could not be halted"
        );
    }

    async fn deleted(&self, resume: &TradingResume, namespace: &str, name: &str) -> Result<Gone, Failure> {
        let status = resume.status.clone().unwrap_or_default();
        if status.release_requested_at.is_none() || status.finished_at.is_some() {
            return Ok(Gone::Settled);
        }
        if self.live(namespace, name).await?.is_some_and(|l| l.uid() == resume.uid()) {
            return Ok(Gone::Settled);
        }
        let of = Subject::read(resume).map_err(Failure)?;
        match self.must_take_back(resume, &of, namespace).await? {
            None => Ok(Gone::Perhaps),
            Some(false) => Ok(Gone::Settled),
            Some(true) => self.halt_again(resume, &of, &Why::Ended("deleted")).await.map(Gone::HaltedAgain),
        }
    }
}

/// What became of a resume that was deleted.
enum Gone {
    /// It is not unfinished, or had released nothing.
    Settled,
    /// Its request may still be acted on.
    Perhaps,
    /// The system is halted again by this halt.
    HaltedAgain(String),
}

fn aborts(resume: &TradingResume) -> bool {
    resume.spec.abort || resume.metadata.deletion_timestamp.is_some()
}

fn aborted(message: &str) -> Ending {
    Ending { phase: ResumePhase::Aborted, message: message.into() }
}

fn failed(message: String) -> Ending {
    Ending { phase: ResumePhase::Failed, message }
}

fn rejected(message: String) -> Ending {
    Ending { phase: ResumePhase::Rejected, message }
}

/// Whether a step that failed is one of a stage, or comes after them, and the system is halted again for it.
fn goes_wrong(plan: &ResumePlan, status: &TradingResumeStatus, step: &str) -> bool {
    let staged = !plan.policy.ramp.is_empty() || step == ramp::WATCH;
    let halts = plan.policy.on_regression.unwrap_or_default() == OnRegression::ReHalt;
    staged && halts && status::is_released(status) && status.regression.is_none()
}

/// How a resume ends when its run has ended.
fn ending(status: &TradingResumeStatus, end: &End) -> Ending {
    match end {
        End::Succeeded => {
            let said = status.steps.iter().find(|s| s.name == status::step::VERIFY);
            let last = said.and_then(|s| s.message.clone());
            Ending { phase: ResumePhase::Completed, message: last.unwrap_or_default() }
        }
        End::Failed(step) if approvals::rejection(status).is_some() => rejected(status::failure(status, step)),
        End::Failed(step) => failed(status::failure(status, step)),
        End::Indeterminate(step) => {
            Ending { phase: ResumePhase::Indeterminate, message: status::failure(status, step) }
        }
    }
}

fn deadline(resume: &TradingResume, started: &Option<MicroTime>) -> Timestamp {
    let started = started.as_ref().map_or_else(now, |t| t.0);
    let length = SignedDuration::try_from(resume.spec.deadline.get()).unwrap_or(SignedDuration::MAX);
    started.checked_add(length).unwrap_or(Timestamp::MAX)
}

/// What somebody else wrote in between is looked at again.
fn written(result: Result<(), JournalError>, then: Action) -> Result<Action, Failure> {
    match result {
        Ok(()) => Ok(then),
        Err(JournalError::Conflict(_) | JournalError::Stale(_)) => Ok(Action::requeue(SOON)),
        Err(JournalError::Failed(why)) => Err(Failure(why)),
    }
}

#[async_trait]
impl Reconcile for ResumeReconciler {
    type Kind = TradingResume;
    const NAME: &'static str = "tradingresume";
    const RETRY: Duration = Duration::from_millis(500);
    const RETRY_LIMIT: Duration = Duration::from_secs(30);

    async fn reconcile(&self, object: Arc<TradingResume>) -> Result<Action, Failure> {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let Some(live) = self.live(&namespace, &name).await? else { return Ok(Action::await_change()) };
        let status = live.status.clone().unwrap_or_default();
        // What was released and not brought to its end can still be taken back.
        let open = matches!(status.phase, ResumePhase::Indeterminate | ResumePhase::Failed);
        let taken_back = live.spec.abort && open && status::is_released(&status);
        let finished = status.finished_at.is_some();
        let regression = Self::to_take_back(&live);
        let course = course(finished, regression.is_some(), taken_back || (!finished && aborts(&live)));
        if course == Course::Ended {
            return Ok(Action::await_change());
        }
        self.leadership
            .check(Duration::ZERO)
            .map_err(|e| Failure::new(format!("TradingResume {namespace}/{name}"), e))?;
        if status.started_at.is_none() {
            return self.accept(live).await;
        }
        match (course, regression) {
            (Course::TakeBack, Some(regression)) => self.take_back(live, regression).await,
            (Course::Abort, _) => self.abort(live).await,
            _ => self.advance(live).await,
        }
    }

    async fn undecodable(&self, object: &ObjectRef<Guarded<TradingResume>>, error: &str) {
        self.events.unreadable(object.clone().into(), error);
    }
}
