//! Watches a stage, or the time after the last one, until it has held.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, future::join3, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use standfast_crds::v1alpha1::{
    Check, CheckState, OnRegression, OrderSummary, Regression, Stage, StageStatus, StepStatus, TradingResumeStatus,
    shorten,
};

use super::{
    context::{Context, PARALLEL, time_for, time_of},
    hold::{self, Fault, Rules, Streak, Verdict, Watched},
    journal::now,
    limits::{self, Told},
    plan::ResumePlan,
    ramp::{self, WATCH, part, step_name},
    restore::stopped_by,
};
use crate::{
    engine::{Acted, Definition, Observation, Step},
    sight::monotonic,
};

/// The longest time between two looks at whether the resume was halted, paused or aborted.
const AWAKE: Duration = Duration::from_secs(2);
/// The longest that all reads of `ordersSince` may take at one look.
const ORDERS_TIME: Duration = Duration::from_secs(60);
/// What duplicate orders are called where checks have names.
const DUPLICATES: &str = "duplicate-orders";

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What this process knows of one resume beyond its status. Lost with the process, which only makes stages longer.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Looks at the gates' checks.
    pub gate: Streak,
    stages: HashMap<String, hold::Stage>,
}

/// The memories of all resumes that are under way, by uid.
#[derive(Default)]
pub(super) struct Memories(Mutex<HashMap<String, Arc<Mutex<Memory>>>>);

impl Memories {
    pub fn of(&self, uid: &str) -> Arc<Mutex<Memory>> {
        Arc::clone(locked(&self.0).entry(uid.to_owned()).or_default())
    }

    pub fn forget(&self, uid: &str) {
        locked(&self.0).remove(uid);
    }
}

/// What the steps find out of stages, for the status. Written with whatever is written next.
#[derive(Clone, Default)]
pub(super) struct Record(Arc<Mutex<Known>>);

#[derive(Clone, Default)]
struct Known {
    names: Vec<String>,
    stages: Vec<StageStatus>,
    regression: Option<Regression>,
    fault: Option<Option<Fault>>,
    news: Option<String>,
}

impl Record {
    pub fn new(status: &TradingResumeStatus, plan: Option<&ResumePlan>) -> Self {
        let names = plan.map(|p| p.policy.ramp.iter().map(|s| s.name.clone()).collect()).unwrap_or_default();
        let (stages, regression) = (status.stages.clone(), status.regression.clone());
        Self(Arc::new(Mutex::new(Known { names, stages, regression, ..Known::default() })))
    }

    fn stage(&self, name: &str) -> Option<StageStatus> {
        locked(&self.0).stages.iter().find(|s| s.name == name).cloned()
    }

    fn set(&self, stage: StageStatus) {
        let mut known = locked(&self.0);
        match known.stages.iter_mut().find(|s| s.name == stage.name) {
            Some(there) => *there = stage,
            None => known.stages.push(stage),
        }
    }

    /// The intent of halting again, or that something goes wrong: stays.
    pub fn regressed(&self, regression: Regression) {
        locked(&self.0).regression = Some(regression);
    }

    /// What is new and to be told by an Event, once.
    pub fn news(&self) -> Option<String> {
        locked(&self.0).news.take()
    }

    /// Brings the status in line. What goes wrong at the moment: none if that is not known now.
    pub fn note(&self, status: &mut TradingResumeStatus) -> Option<Option<Fault>> {
        let known = locked(&self.0);
        status.stages.clone_from(&known.stages);
        status.regression.clone_from(&known.regression);
        status.stage = ramp::current(&known.names, &status.steps).map(str::to_owned);
        known.fault.clone()
    }
}

/// Several orders with one client order id. The venue's own id tells whether an order is only listed twice.
pub fn duplicates<'a>(venue: &str, orders: impl Iterator<Item = &'a OrderSummary>) -> Option<String> {
    let mut by_client: BTreeMap<&str, Vec<&OrderSummary>> = BTreeMap::new();
    for order in orders {
        let Some(client) = order.client_order_id.as_deref().filter(|c| !c.is_empty()) else { continue };
        let known = by_client.entry(client).or_default();
        if order.id.is_none() || known.iter().all(|k| k.id != order.id) {
            known.push(order);
        }
    }
    let twice: Vec<_> = by_client.into_iter().filter(|(_, orders)| orders.len() > 1).collect();
    let (client, orders) = twice.first()?;
    let more = if twice.len() > 1 { format!(", and {} more ids", twice.len() - 1) } else { String::new() };
    Some(format!("venue {venue} has {} orders with the client order id {client}{more}", orders.len()))
}

async fn doubled(cx: &Context) -> Vec<Watched> {
    let Some(at) = cx.requested_at else { return vec![] };
    let reads = cx.plan.venues.iter().filter_map(|v| v.orders_since.as_ref().map(|r| (&v.name, r)));
    let asked = reads.map(|(venue, read)| async move {
        let orders = cx.orders_since(read, at).await;
        let (state, message) = match orders {
            Err(why) => (CheckState::Unknown, format!("venue {venue}: {why}")),
            Ok(orders) => match duplicates(venue, orders.orders.iter().map(|o| &o.summary)) {
                Some(twice) => (CheckState::Failing, twice),
                None => (CheckState::Passing, String::new()),
            },
        };
        Watched { name: DUPLICATES.into(), state, message, at_once: true }
    });
    let asked: Vec<_> = asked.collect();
    stream::iter(asked).buffered(PARALLEL).collect().await
}

/// What is watched of a stage, asked now, and what the bot tells of its limits.
async fn look(cx: &Context, checks: &[Check], stage: Option<&Stage>) -> (Vec<Watched>, Vec<Told>) {
    let told = async {
        match stage {
            Some(stage) => limits::told(cx, stage).await,
            None => vec![],
        }
    };
    let (answers, told, orders) = join3(cx.ask(checks.iter()), told, doubled(cx)).await;
    let check = |(name, state, message)| Watched { name: format!("check {name}"), state, message, at_once: false };
    let mut all: Vec<_> = answers.into_iter().map(check).collect();
    all.extend(told.iter().map(Told::watched));
    // Several venues may be asked: the worst of them counts.
    let worst = orders.into_iter().max_by_key(|w| match w.state {
        CheckState::Failing => 2,
        CheckState::Unknown => 1,
        CheckState::Passing => 0,
    });
    all.extend(worst);
    (all, told)
}

/// Waits until what is watched was seen to pass for long enough.
pub(super) struct Hold {
    cx: Arc<Context>,
    /// The stage, or the last one: its limits hold during the watch too.
    limits: Option<Stage>,
    name: String,
    /// What this process knows it by.
    key: String,
    checks: Vec<Check>,
    rules: Rules,
}

impl Hold {
    /// Of the way from one stage to the next.
    fn between(cx: &Arc<Context>, before: &Stage, next: &Stage) -> Self {
        let checks = cx.plan.watched(before.checks.as_ref());
        let way = Self::new(cx, next.name.clone(), None, checks, Duration::MAX);
        Self { key: format!("to {}", next.name), ..way }
    }

    /// Of a stage.
    pub fn stage(cx: &Arc<Context>, stage: &Stage) -> Self {
        let checks = cx.plan.watched(stage.checks.as_ref());
        Self::new(cx, stage.name.clone(), Some(stage.clone()), checks, stage.hold.get())
    }

    /// Of the time after the last one, if there is any.
    pub fn watch(cx: &Arc<Context>) -> Option<Self> {
        let watch = cx.plan.policy.watch.as_ref()?;
        let (checks, last) = (cx.plan.watched(watch.checks.as_ref()), cx.plan.policy.ramp.last().cloned());
        Some(Self::new(cx, WATCH.into(), last, checks, watch.for_.get()))
    }

    fn new(cx: &Arc<Context>, name: String, limits: Option<Stage>, checks: Vec<Check>, need: Duration) -> Self {
        let thresholds = cx.plan.policy.thresholds.clone().unwrap_or_default();
        let rules = Rules {
            need,
            interval: thresholds.interval.get(),
            failures: thresholds.failure,
            on: cx.plan.policy.on_regression.unwrap_or_default(),
        };
        Self { cx: Arc::clone(cx), limits, key: name.clone(), name, checks, rules }
    }

    /// The stage as this process knows it, or as it is written down.
    fn with<T>(&self, use_it: impl FnOnce(&mut hold::Stage) -> T) -> T {
        let mut memory = locked(&self.cx.memory);
        let written = || self.cx.record.stage(&self.name).and_then(|s| s.held).map(|h| h.get()).unwrap_or_default();
        use_it(memory.stages.entry(self.key.clone()).or_insert_with(|| hold::Stage::from(written())))
    }

    fn holding(&self, said: &str) -> Observation {
        let held = self.cx.record.stage(&self.name).and_then(|s| s.held).unwrap_or(Duration::ZERO.into());
        let need = standfast_crds::v1alpha1::Duration::from(self.rules.need);
        let said = if said.is_empty() { "everything that is watched passes" } else { said };
        Observation::InProgress(shorten(&format!("held for {held} of {need}: {said}")))
    }

    /// Takes over what a look found. The status is given whole seconds: what is cut off is held once more.
    fn note(&self, before: Option<&Fault>, stage: &hold::Stage, told: &[Told], done: bool) {
        let record = &self.cx.record;
        let mut status = record.stage(&self.name).unwrap_or_else(|| StageStatus {
            name: self.name.clone(),
            started_at: Some(MicroTime(now())),
            ..StageStatus::default()
        });
        let held = stage.held();
        if done || hold::to_write(status.held.map(|h| h.get()), held) || status.held.is_none() {
            status.held = Some(Duration::from_secs(held.as_secs()).into());
        }
        for told in told {
            if let Ok((value, _)) = &told.found {
                status.limits.insert(told.name.clone(), value.clone());
            }
        }
        if done {
            status.finished_at = Some(MicroTime(now()));
        }
        record.set(status);
        let mut known = locked(&record.0);
        known.fault = Some(stage.fault().cloned());
        // What the system is halted again for is written down by itself: it is more than news.
        let told = self.rules.on == OnRegression::ReHalt;
        if let Some(fault) = stage.fault().filter(|f| !told && before.is_none_or(|b| b.check != f.check)) {
            known.news = Some(format!("{} in stage {}: {}", fault.check, self.name, fault.message));
            known.regression = Some(regression(&self.name, fault));
        }
    }
}

/// A regression as the status has it.
pub(super) fn regression(stage: &str, fault: &Fault) -> Regression {
    Regression {
        check: fault.check.clone(),
        message: shorten(&fault.message),
        stage: stage.to_owned(),
        at: MicroTime(now()),
        halt: None,
    }
}

#[async_trait]
impl Step for Hold {
    fn definition(&self) -> Definition {
        let due = match self.with(|stage| stage.due(monotonic(), &self.rules)) {
            Duration::ZERO => self.rules.interval,
            due => due,
        };
        let name = if self.name == WATCH { WATCH.to_owned() } else { step_name(&self.name, part::HOLD) };
        Definition { look: self.time_to_look(), interval: due.min(AWAKE), ..Definition::new(name) }
    }

    async fn observe(&self, entry: &StepStatus) -> Observation {
        let (at, cx) = (monotonic(), &self.cx);
        let (due, fault) = self.with(|stage| (stage.due(at, &self.rules), stage.fault().cloned()));
        // What was found once and could not be written down does not pass by.
        if let Some(fault) = fault.as_ref().filter(|_| self.rules.on == OnRegression::ReHalt) {
            return self.fail(fault).await;
        }
        if !due.is_zero() {
            return Observation::InProgress(entry.message.clone().unwrap_or_default());
        }
        let (seen, told) = look(cx, &self.checks, self.limits.as_ref()).await;
        let verdict = self.with(|stage| {
            let verdict = stage.look(at, &seen, cx.paused, &self.rules);
            self.note(fault.as_ref(), stage, &told, verdict == Verdict::Done);
            verdict
        });
        match verdict {
            Verdict::Regressed(fault) => self.fail(&fault).await,
            Verdict::Holding(said) => self.holding(&said),
            Verdict::Done => Observation::Done(format!(
                "held for {}",
                standfast_crds::v1alpha1::Duration::from(Duration::from_secs(self.with(|s| s.held()).as_secs()))
            )),
        }
    }

    async fn act(&self, _: &StepStatus) -> Acted {
        Acted::Started { message: String::new(), external_ref: None }
    }
}

impl Hold {
    /// How long one look takes at most.
    fn time_to_look(&self) -> Duration {
        let orders = self.cx.plan.venues.iter().filter_map(|v| v.orders_since.as_ref()?.http.as_ref());
        let orders = orders.map(|http| time_of(http) * 4).max().unwrap_or_default().min(ORDERS_TIME);
        time_for(self.checks.iter()).max(limits::time_to_ask(&self.cx)).max(orders) + Duration::from_secs(5)
    }

    /// What goes wrong on the way, if anything does. No time counts, and the limits are being changed.
    async fn goes_wrong(&self) -> Option<Observation> {
        let at = monotonic();
        let (due, fault) = self.with(|stage| (stage.due(at, &self.rules), stage.fault().cloned()));
        if self.rules.on != OnRegression::ReHalt {
            return None;
        }
        if let Some(fault) = fault {
            return Some(self.fail(&fault).await);
        }
        if !due.is_zero() {
            return None;
        }
        let (seen, _) = look(&self.cx, &self.checks, None).await;
        match self.with(|stage| stage.look(at, &seen, self.cx.paused, &self.rules)) {
            Verdict::Regressed(fault) => Some(self.fail(&fault).await),
            _ => None,
        }
    }

    /// What fails because somebody else halted is no regression: that halt ends the resume.
    async fn fail(&self, fault: &Fault) -> Observation {
        if let Ok(halts) = self.cx.halts().await
            && let Some(by) = stopped_by(&self.cx, &halts)
        {
            return Observation::InProgress(by);
        }
        self.cx.record.regressed(regression(&self.name, fault));
        Observation::Failed(format!("{}: {}", fault.check, fault.message))
    }
}

/// Watches a stage that is paused between two of its steps. Tells whether it goes wrong; that is noted.
pub(super) async fn paused(cx: &Arc<Context>, status: &TradingResumeStatus) -> bool {
    // Before the first look at the first stage nothing trades.
    let stage = status.stages.first().and(status.stage.as_ref());
    let stage = stage.and_then(|name| cx.plan.policy.ramp.iter().find(|s| s.name == *name));
    match stage {
        Some(stage) => matches!(Hold::between(cx, stage, stage).goes_wrong().await, Some(Observation::Failed(_))),
        None => false,
    }
}

/// A step of a later stage that may take its time: the system trades meanwhile, and the checks of the stage before are
/// watched.
pub(super) struct Meanwhile {
    step: Box<dyn Step>,
    way: Option<Hold>,
}

impl Meanwhile {
    /// `before` is the stage before, if there is one.
    pub fn new(cx: &Arc<Context>, step: Box<dyn Step>, before: Option<&Stage>, stage: &Stage) -> Self {
        Self { step, way: before.map(|before| Hold::between(cx, before, stage)) }
    }
}

#[async_trait]
impl Step for Meanwhile {
    fn definition(&self) -> Definition {
        let own = self.step.definition();
        Definition { look: own.look + self.way.as_ref().map_or(Duration::ZERO, Hold::time_to_look), ..own }
    }

    async fn observe(&self, entry: &StepStatus) -> Observation {
        let seen = self.step.observe(entry).await;
        let open = matches!(seen, Observation::InProgress(_) | Observation::NotDone(_) | Observation::Unknown(_));
        match &self.way {
            Some(way) if open => way.goes_wrong().await.unwrap_or(seen),
            _ => seen,
        }
    }

    async fn act(&self, entry: &StepStatus) -> Acted {
        self.step.act(entry).await
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn order(id: Option<&str>, client: Option<&str>) -> OrderSummary {
        serde_json::from_value(json!({"id": id, "clientOrderId": client})).unwrap()
    }

    /// S4-10, S4-24
    #[rstest]
    #[case::none(vec![], None)]
    #[case::different(vec![order(Some("1"), Some("a")), order(Some("2"), Some("b"))], None)]
    #[case::twice(
        vec![order(Some("1"), Some("a")), order(Some("2"), Some("a"))],
        Some("venue alpaca has 2 orders with the client order id a")
    )]
    #[case::listed_twice(vec![order(Some("1"), Some("a")), order(Some("1"), Some("a"))], None)]
    #[case::the_venue_gives_no_ids(
        vec![order(None, Some("a")), order(None, Some("a"))],
        Some("venue alpaca has 2 orders with the client order id a")
    )]
    #[case::no_client_ids(vec![order(Some("1"), None), order(Some("2"), None), order(Some("3"), Some(""))], None)]
    #[case::several(
        vec![order(Some("1"), Some("b")), order(Some("2"), Some("b")), order(Some("3"), Some("a")),
            order(Some("4"), Some("a"))],
        Some("venue alpaca has 2 orders with the client order id a, and 1 more ids")
    )]
    fn one_client_order_id_is_one_order(#[case] orders: Vec<OrderSummary>, #[case] expected: Option<&str>) {
        assert_eq!(duplicates("alpaca", orders.iter()).as_deref(), expected);
    }
}
