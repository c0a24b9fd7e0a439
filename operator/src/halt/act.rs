//! Carries out what was decided, everything in parallel, and tells what came back.

use std::{collections::HashMap, time::Duration};

use futures::{StreamExt, stream};
use k8s_openapi::{
    api::batch::v1::Job,
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use standfast_crds::v1alpha1::{
    Action, ActionState, ActionStatus, CancelOrders, HttpRequest, JobAction, StateRead, TradingHalt, TradingHaltStatus,
    TradingSystem, Venue, shorten,
};

use super::{HaltReconciler, decide::Effect, evidence, jobs, latch, selection};
use crate::{
    calls::{Item, Outcome},
    client::{self, Class},
    outbound::{Call, CallError},
    scale::{FIELD_MANAGER, ScaleError, Size},
    workloads::Key,
};

/// How many effects of one halt are under way or wait for their turn at the same time.
const PARALLEL: usize = 2048;
/// Time that an effect may take at most, whatever its request allows: leadership must be valid for longer, so that two
/// leaders never act at the same time.
pub const EFFECT_DEADLINE: Duration = Duration::from_secs(4);

/// Time that a bot has for saying whether it is halted.
const OWN_WORD: Duration = Duration::from_secs(1);

/// What came back of one effect.
pub struct Done {
    /// The entry of `status.actions` that it belongs to.
    pub name: String,
    /// When it was begun.
    pub begun: Timestamp,
    /// What became of it.
    pub outcome: Outcome,
    /// The Job that goes on with it.
    pub job: Option<String>,
    /// A workload that was not as it was expected to be: its size, read live.
    pub found: Option<(Key, Size)>,
    /// A workload whose stop was acknowledged: if it runs again, somebody raised it.
    pub stopped: Option<Key>,
}

/// Requests that were made ready before they are needed: secrets read, placeholders filled.
pub type Ready = HashMap<String, Result<Call, CallError>>;

/// Name of an effect in `status.actions`.
pub fn name(effect: &Effect) -> String {
    match effect {
        Effect::WriteLatch => "latch".into(),
        Effect::Stop(..) => SCALE.into(),
        Effect::SuspendJob(_) => "suspendJobs".into(),
        Effect::CancelAll(venue, n) => format!("{venue}/cancelOrders/{n}"),
        Effect::CancelOne(venue, _) | Effect::CancelListed(venue) => format!("{venue}/cancelOrder"),
        Effect::Suspend(venue, n) => format!("{venue}/suspendTrading/{n}"),
        Effect::Allow(venue, n) => format!("{venue}/allowTrading/{n}"),
        Effect::ApplicationHalt => "applicationHalt".into(),
        Effect::CloseAll(venue, n) => format!("{venue}/closePositions/{n}"),
        Effect::CloseOne(venue, _) => format!("{venue}/closePosition"),
        Effect::Select(venue, _) => format!("{venue}/selectPositions"),
    }
}

/// Name of the action that stops workloads.
pub const SCALE: &str = "scaleWorkloads";

/// Whether an effect cancels orders.
pub fn cancels(effect: &Effect) -> bool {
    matches!(effect, Effect::CancelAll(..) | Effect::CancelOne(..) | Effect::CancelListed(_))
}

/// Whether the action of this name cancels orders.
pub fn is_cancel(action: &str) -> bool {
    action.contains("/cancelOrder")
}

/// When a request of this action was last tried at a venue, as far as the status tells.
pub fn last_tried(status: &TradingHaltStatus, venue: &str, action: &str) -> Option<Timestamp> {
    let prefix = format!("{venue}/{action}/");
    let tried = status.actions.iter().filter(|a| a.name.starts_with(&prefix) && a.state != ActionState::Failed);
    tried.filter_map(|a| a.last_attempt_at.as_ref()).map(|t| t.0).max()
}

/// How often closing was intended at a venue.
pub fn close_attempts(status: &TradingHaltStatus, venue: &str) -> i64 {
    let prefix = format!("{venue}/closePosition");
    status.actions.iter().filter(|a| a.name.starts_with(&prefix)).map(|a| a.attempts).sum()
}

/// Whether a halt has asked a venue to suspend trading, as far as its status tells.
pub fn suspends(status: &TradingHaltStatus, venue: &str) -> bool {
    let prefix = format!("{venue}/suspendTrading/");
    status.actions.iter().any(|a| a.name.starts_with(&prefix) && a.state != ActionState::Failed)
}

/// The longest from an intent until its call has ended: the write of the intent, the Secrets, the call, and what two
/// clocks may be apart.
const INTENT: SignedDuration = SignedDuration::from_secs(16);

/// Takes note of an intent. A Job is named with it: after a crash it is looked for and not begun again.
pub fn intend(
    status: &mut TradingHaltStatus,
    halt: &TradingHalt,
    system: Option<&TradingSystem>,
    effect: &Effect,
    (now, epoch): (Timestamp, i64),
) {
    let what = name(effect);
    let job = system.and_then(|s| job_of(s, effect)).is_some();
    let action = entry(status, &what);
    action.state = ActionState::Intended;
    action.attempts += 1;
    action.last_attempt_at = Some(MicroTime(now));
    action.message = None;
    action.external_ref = job.then(|| jobs::name(halt, &what, action.attempts));
    if effect.needs_intent() {
        action.deadline = now.checked_add(INTENT).ok().map(MicroTime);
        action.epoch = Some(epoch);
    }
}

/// Takes note of what is selected, and of each selected position that is going to be closed.
pub fn intend_selected(status: &mut TradingHaltStatus, effect: &Effect, now: Timestamp) {
    let (Effect::Select(venue, _) | Effect::CloseOne(venue, _)) = effect else { return };
    let Some(at) = status.venues.iter_mut().find(|v| v.name == *venue) else { return };
    match effect {
        Effect::Select(_, selection) => {
            at.selection = Some((**selection).clone());
            let what = format!("{venue}: to be closed are {}", selection::describe(selection));
            let kept = selection::describe_unjudged(selection).map(|kept| format!("; not judged and kept are {kept}"));
            let message = format!("{what}{}", kept.unwrap_or_default());
            evidence::append(&mut status.evidence, now, "PositionsSelected", &message, false);
        }
        Effect::CloseOne(_, item) => at.selection.iter_mut().for_each(|s| selection::attempt(s, item)),
        _ => {}
    }
}

/// Whether a call that another leader intended may still be under way.
pub fn under_way(status: &TradingHaltStatus, now: Timestamp, epoch: i64) -> bool {
    let foreign = |a: &&ActionStatus| a.state == ActionState::Intended && a.epoch.is_some_and(|e| e != epoch);
    status.actions.iter().filter(foreign).any(|a| a.deadline.as_ref().is_some_and(|t| t.0 > now))
}

/// Takes note of what came back. Effects of one action are told as one: the worst of them, and how many.
pub fn note(status: &mut TradingHaltStatus, results: &[Done], intended: bool) {
    let mut names: Vec<_> = results.iter().map(|r| r.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let these: Vec<_> = results.iter().filter(|r| r.name == name).collect();
        let rank = |s: ActionState| match s {
            ActionState::Done => 0,
            ActionState::Intended => 1,
            ActionState::Unknown => 2,
            ActionState::Failed => 3,
        };
        let Some(worst) = these.iter().max_by_key(|r| rank(r.outcome.state)) else { continue };
        let bad = these.iter().filter(|r| r.outcome.state != ActionState::Done).count();
        let message = match (these.len(), bad) {
            (1, _) => worst.outcome.message.clone(),
            (all, 0) => format!("{all} done"),
            (all, bad) => format!("{bad} of {all} not done: {}", worst.outcome.message),
        };
        let action = entry(status, name);
        // A Job that goes on is still the same attempt.
        let goes_on = action.external_ref.is_some() && action.external_ref == worst.job;
        action.state = worst.outcome.state;
        action.attempts += i64::from(!intended && !goes_on);
        action.external_ref = worst.job.clone().filter(|_| worst.outcome.state == ActionState::Intended);
        (action.deadline, action.epoch) = (None, None);
        action.last_attempt_at = Some(MicroTime(worst.begun));
        action.message = Some(shorten(&message));
    }
}

fn entry<'a>(status: &'a mut TradingHaltStatus, name: &str) -> &'a mut ActionStatus {
    let at = match status.actions.iter().position(|a| a.name == name) {
        Some(at) => at,
        None => {
            status.actions.push(ActionStatus { name: name.into(), ..ActionStatus::default() });
            status.actions.len() - 1
        }
    };
    &mut status.actions[at]
}

impl HaltReconciler {
    /// Makes the requests of the first wave ready, so that no secret has to be read between the commit and the cancel.
    pub(super) async fn ready(&self, namespace: &str, system: &TradingSystem, effects: &[Effect]) -> Ready {
        let (mut names, mut requests) = (vec![], vec![]);
        for effect in effects {
            let request = match effect {
                Effect::CancelAll(venue, n) => {
                    action(system, venue, |v| v.cancel_orders.get(*n)).and_then(|a| a.http.as_ref())
                }
                Effect::Suspend(venue, n) => {
                    action(system, venue, |v| v.suspend_trading.get(*n)).and_then(|a| a.http.as_ref())
                }
                Effect::ApplicationHalt => system.spec.application_halt.as_ref().map(|a| &a.request),
                _ => None,
            };
            if let Some(request) = request {
                names.push(name(effect));
                requests.push(request);
            }
        }
        names.into_iter().zip(self.caller.prefetch(namespace, &requests).await).collect()
    }

    /// Carries out `effects`. Each is begun only while leadership is sure to last until its end.
    pub(super) async fn act(
        &self,
        halt: &TradingHalt,
        status: &TradingHaltStatus,
        system: Option<&TradingSystem>,
        effects: Vec<Effect>,
        mut ready: Ready,
    ) -> Vec<Done> {
        let work = effects.into_iter().map(|effect| {
            let prepared = ready.remove(&name(&effect));
            async move {
                let (name, begun) = (name(&effect), Timestamp::now());
                // Waiting for a turn comes before the check of leadership and before any deadline begins.
                let _turn = match effect {
                    Effect::Stop(..) => Some(self.turns.take().await),
                    _ => None,
                };
                let mut found = None;
                let to_stop = if let Effect::Stop(key, _) = &effect { Some(key.clone()) } else { None };
                let (outcome, job) = match self.leadership.check(EFFECT_DEADLINE) {
                    Ok(()) => match (&effect, system.and_then(|s| job_of(s, &effect))) {
                        (_, Some(action)) => self.job_action(halt, status, &name, action).await,
                        (Effect::Stop(key, size), None) => {
                            let (outcome, live) = self.stop(key, *size).await;
                            found = live.map(|live| (key.clone(), live));
                            (outcome, None)
                        }
                        _ => (self.effect(halt, status, system, effect, prepared).await, None),
                    },
                    Err(lost) => (failed(format!("not begun: {lost}")), None),
                };
                let stopped = match to_stop {
                    Some(key) if outcome.state == ActionState::Done => Some(key),
                    _ => None,
                };
                Done { name, begun, outcome, job, found, stopped }
            }
        });
        let work: Vec<_> = work.collect();
        stream::iter(work).buffer_unordered(PARALLEL).collect().await
    }

    async fn effect(
        &self,
        halt: &TradingHalt,
        status: &TradingHaltStatus,
        system: Option<&TradingSystem>,
        effect: Effect,
        prepared: Option<Result<Call, CallError>>,
    ) -> Outcome {
        let namespace = halt.namespace().unwrap_or_default();
        match &effect {
            Effect::WriteLatch => {
                let data = latch::data(halt, &status.workloads, self.workloads.kinds());
                let written = self.latches.write(&namespace, &latch::name(&halt.name_any()), data).await;
                written.map_or_else(|e| failed(e.to_string()), |()| done("written"))
            }
            // Done by `act` itself, which wants to know more of it.
            Effect::Stop(key, size) => self.stop(key, *size).await.0,
            Effect::SuspendJob(name) => self.suspend_job(&namespace, name).await,
            Effect::ApplicationHalt => {
                let own = system.and_then(|s| s.spec.application_halt.as_ref());
                let sent = self.send(&namespace, own.map(|a| &a.request), None, prepared).await;
                match own.and_then(|a| a.status.as_ref()) {
                    Some(read) if sent.state == ActionState::Done => self.own_word(&namespace, read, sent).await,
                    _ => sent,
                }
            }
            Effect::CancelAll(venue, n) => {
                let action = system.and_then(|s| action(s, venue, |v| v.cancel_orders.get(*n)));
                self.perform(&namespace, &effect, action, prepared).await
            }
            Effect::Suspend(venue, n) => {
                let action = system.and_then(|s| action(s, venue, |v| v.suspend_trading.get(*n)));
                self.perform(&namespace, &effect, action, prepared).await
            }
            Effect::Allow(venue, n) => {
                let action = system.and_then(|s| action(s, venue, |v| v.allow_trading.get(*n)));
                self.perform(&namespace, &effect, action, prepared).await
            }
            Effect::CloseAll(venue, n) => {
                let action = system.and_then(|s| action(s, venue, |v| v.close_positions.get(*n)));
                self.perform(&namespace, &effect, action, prepared).await
            }
            Effect::CancelOne(venue, item) => {
                let request = system.and_then(|s| find(s, venue)?.cancel_order.as_ref()).map(|a| &a.http);
                self.send(&namespace, request, Some(item), prepared).await
            }
            Effect::CloseOne(venue, item) => {
                let request = system.and_then(|s| find(s, venue)?.close_position.as_ref()).map(|a| &a.http);
                let item = numbered(halt, status, venue, item);
                self.send(&namespace, request, Some(&item), prepared).await
            }
            // It is in the status: that was all.
            Effect::Select(_, selection) => done(&shorten(&selection::describe(selection))),
            Effect::CancelListed(venue) => match system.and_then(|s| find(s, venue)) {
                Some(venue) => self.cancel_listed(&namespace, halt, venue).await,
                None => failed(format!("venue {venue} is not in the TradingSystem any more")),
            },
        }
    }

    async fn perform(
        &self,
        namespace: &str,
        effect: &Effect,
        action: Option<&Action>,
        prepared: Option<Result<Call, CallError>>,
    ) -> Outcome {
        match action {
            Some(action) => self.send(namespace, action.http.as_ref(), None, prepared).await,
            None => failed(format!("{} is not in the TradingSystem any more", name(effect))),
        }
    }

    async fn send(
        &self,
        namespace: &str,
        request: Option<&HttpRequest>,
        item: Option<&Item>,
        prepared: Option<Result<Call, CallError>>,
    ) -> Outcome {
        let Some(request) = request else { return failed("the request is not in the TradingSystem any more".into()) };
        let call = match prepared {
            // A secret that was missing a moment ago may be there now.
            Some(Ok(call)) => Ok(call),
            Some(Err(_)) | None => self.caller.prepare(namespace, request, item).await,
        };
        match call {
            Ok(mut call) => {
                call.timeout = call.timeout.min(EFFECT_DEADLINE);
                // Reading its Secrets may have taken its time.
                match self.leadership.check(EFFECT_DEADLINE) {
                    Ok(()) => self.caller.perform(call).await,
                    Err(lost) => failed(format!("not begun: {lost}")),
                }
            }
            Err(error) => failed(error.to_string()),
        }
    }

    /// Adds what the bot says of itself. It has a moment for that: its pod is about to go away. Never evidence.
    async fn own_word(&self, namespace: &str, read: &StateRead, sent: Outcome) -> Outcome {
        let word = match tokio::time::timeout(OWN_WORD, self.caller.read_state(namespace, read)).await {
            Ok(Ok(true)) => "the bot says that it is halted",
            Ok(Ok(false)) => "the bot says that it is not halted",
            Ok(Err(_)) | Err(_) => "the bot does not say whether it is halted",
        };
        Outcome { message: format!("{}; {word}", sent.message), ..sent }
    }

    /// Orders that guard no position, found and cancelled one by one.
    async fn cancel_listed(&self, namespace: &str, halt: &TradingHalt, venue: &Venue) -> Outcome {
        let Some(cancel) = &venue.cancel_order else { return failed("there is no cancelOrder".into()) };
        let (mut sent, mut bad) = (0, None);
        for read in venue.open_orders.iter().filter(|r| r.http.is_some()) {
            let orders = match self.caller.read_orders(namespace, read).await {
                Ok(orders) => orders,
                Err(error) => return failed(error.0),
            };
            let protective = halt.spec.orders.cancel == CancelOrders::NonProtective;
            let items = orders.orders.iter().filter(|o| !(protective && o.protective)).map(|o| Item {
                id: o.summary.id.clone().unwrap_or_default(),
                symbol: o.summary.symbol.clone().unwrap_or_default(),
                quantity: o.summary.quantity.clone().unwrap_or_default(),
                ..Item::default()
            });
            // The Secrets are read once for all of them.
            let items: Vec<_> = items.collect();
            let calls = self.caller.prepare_items(namespace, &cancel.http, &items).await;
            let outcomes: Vec<_> =
                stream::iter(calls.into_iter().zip(items))
                    .map(|(call, item)| async move {
                        self.send(namespace, Some(&cancel.http), Some(&item), Some(call)).await
                    })
                    .buffer_unordered(16)
                    .collect()
                    .await;
            sent += outcomes.len();
            bad = bad.or(outcomes.into_iter().find(|o| o.state != ActionState::Done));
        }
        bad.unwrap_or_else(|| done(&format!("{sent} orders were asked to be cancelled")))
    }

    /// Stops a workload that is still of the size `from`. If it is not, its live size is told and nothing is done: what
    /// it goes back to is recorded first, and the next look stops it.
    async fn stop(&self, key: &Key, from: Size) -> (Outcome, Option<Size>) {
        match self.scaler.stop(key, from).await {
            Ok(()) => (done("stopped"), None),
            Err(ScaleError::NotFound(_)) => (done("there is no such workload"), None),
            Err(ScaleError::Moved(_)) => match self.scaler.read(key).await {
                Ok((size, _)) if size == Size::stopped(key.kind) => (done("stopped already"), None),
                Ok((size, _)) => {
                    (failed(format!("{key} had another size than was seen; it is stopped next")), Some(size))
                }
                Err(ScaleError::NotFound(_)) => (done("there is no such workload"), None),
                Err(error) => (failed(error.to_string()), None),
            },
            Err(error @ ScaleError::Failed(..)) => (unknown(error.to_string()), None),
            Err(error) => (failed(error.to_string()), None),
        }
    }

    /// Sizes, read live, of workloads that the cache said were stopped and that are not; and those that could not be
    /// read, to be asked again.
    pub(super) async fn hidden(&self, keys: Vec<Key>) -> (Vec<(Key, Size)>, Vec<Key>) {
        let reads: Vec<_> = keys
            .into_iter()
            .map(|key| async move {
                let size = self.scaler.read(&key).await.map(|(size, _)| size);
                (key, size)
            })
            .collect();
        let (mut found, mut unread) = (vec![], vec![]);
        for (key, size) in stream::iter(reads).buffer_unordered(16).collect::<Vec<_>>().await {
            match size {
                Ok(size) if size != Size::stopped(key.kind) => found.push((key, size)),
                Ok(_) | Err(ScaleError::NotFound(_)) => {}
                Err(_) => unread.push(key),
            }
        }
        (found, unread)
    }

    async fn suspend_job(&self, namespace: &str, name: &str) -> Outcome {
        let api: Api<Job> = Api::namespaced(self.client.clone(), namespace);
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let patch = Patch::Merge(json!({"spec": {"suspend": true}}));
        let what = format!("suspending Job {namespace}/{name}");
        match client::write(EFFECT_DEADLINE, what, api.patch(name, &params, &patch)).await {
            Ok(_) => done("suspended"),
            Err(error) if error.class() == Class::NotFound => done("there is no such Job"),
            Err(error) => unknown(error.to_string()),
        }
    }
}

/// A position with the id for the order of the attempt that the status tells of.
fn numbered(halt: &TradingHalt, status: &TradingHaltStatus, venue: &str, item: &Item) -> Item {
    let selection = status.venues.iter().find(|v| v.name == venue).and_then(|v| v.selection.as_ref());
    let attempt = match selection {
        Some(selection) => selection::attempts(selection, item),
        None => close_attempts(status, venue),
    };
    let client_order_id = selection::client_order_id(&halt.uid().unwrap_or_default(), venue, item, attempt);
    Item { client_order_id, ..item.clone() }
}

fn find<'a>(system: &'a TradingSystem, venue: &str) -> Option<&'a Venue> {
    system.spec.venues.iter().find(|v| v.name == venue)
}

fn action<'a>(
    system: &'a TradingSystem,
    venue: &str,
    pick: impl Fn(&'a Venue) -> Option<&'a Action>,
) -> Option<&'a Action> {
    find(system, venue).and_then(pick)
}

/// The Job that an effect is, if it is one.
pub(super) fn job_of<'a>(system: &'a TradingSystem, effect: &Effect) -> Option<&'a JobAction> {
    match effect {
        Effect::CancelAll(venue, n) => action(system, venue, |v| v.cancel_orders.get(*n)),
        Effect::Suspend(venue, n) => action(system, venue, |v| v.suspend_trading.get(*n)),
        Effect::Allow(venue, n) => action(system, venue, |v| v.allow_trading.get(*n)),
        Effect::CloseAll(venue, n) => action(system, venue, |v| v.close_positions.get(*n)),
        _ => None,
    }
    .and_then(|a| a.job.as_ref())
}

/// Whether a Job is carrying out this effect at the moment.
pub(super) fn running(status: &TradingHaltStatus, effect: &Effect) -> bool {
    let name = name(effect);
    status.actions.iter().any(|a| a.name == name && a.external_ref.is_some())
}

/// The cancels that Jobs are carrying out at the moment.
pub(super) fn cancelling(status: &TradingHaltStatus, system: &TradingSystem) -> Vec<Effect> {
    let venues = system.spec.venues.iter();
    let all = venues.flat_map(|v| (0..v.cancel_orders.len()).map(|n| Effect::CancelAll(v.name.clone(), n)));
    all.filter(|effect| running(status, effect)).collect()
}

pub(super) fn done(message: &str) -> Outcome {
    Outcome { state: ActionState::Done, message: message.into() }
}

pub(super) fn failed(message: String) -> Outcome {
    Outcome { state: ActionState::Failed, message }
}

pub(super) fn unknown(message: String) -> Outcome {
    Outcome { state: ActionState::Unknown, message }
}
