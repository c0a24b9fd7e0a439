//! A halt of several systems. It stops and holds nothing itself: at first sight it selects TradingSystems, writes down
//! which and by which halts, and makes an ordinary TradingHalt for each of them. From then on it only says how those stand.

mod standing;

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashMap, HashSet},
    sync::PoisonError,
    time::Duration,
};

use futures::future::join_all;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams},
    runtime::controller::Action,
};
use standfast_crds::v1alpha1::{
    Evidence, GROUP_LIMIT, HALT_GROUP, HALT_GROUP_UID, HaltPhase, LocalReference, SystemHalt, SystemSelector,
    TradingHalt, TradingHaltSpec, TradingHaltStatus, TradingSystem, halt_conditions as c, set_condition, shorten,
};
use tokio::time::Instant;

use super::{HaltReconciler, act::EFFECT_DEADLINE, evidence, record};
use crate::{client, controller::Failure, held::NOT_LISTED, scale::FIELD_MANAGER};

use standing::{Member, Standing, apply, differs, show, urgent};
#[cfg(test)]
use standing::{Verdict, judge};

/// How often it is looked whether the proofs of its halts still count; what they write comes sooner.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How often a halt that could not be made is tried, at first and later, whatever else makes us look.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// The pause between two writes that only tell how far the halts are: there may be a hundred of them.
const PAUSE: Duration = Duration::from_millis(500);
/// How many systems a message names where it is no more than a hint.
const NAMED: usize = 5;
/// Reason where no system is selected.
const NOTHING_SELECTED: &str = "NothingSelected";

/// The halt of several systems that made this one.
pub fn made_by(halt: &TradingHalt) -> Option<&str> {
    halt.metadata.labels.as_ref()?.get(HALT_GROUP).map(String::as_str)
}

/// Whether it is certain that the person in `requestedBy` asked for this halt. He did himself, or he asked for the halt of
/// several systems, among `halts`, that says that it made this one. `since` is when names became true.
pub fn requester_certain(halt: &TradingHalt, halts: &[impl Borrow<TradingHalt>], since: Timestamp) -> bool {
    let later = |h: &TradingHalt| h.metadata.creation_timestamp.as_ref().is_some_and(|t| t.0 > since);
    if halt.spec.requested_by.is_none() {
        return false;
    }
    let Some(uid) = halt.annotations().get(HALT_GROUP_UID) else { return later(halt) };
    let names = |e: &SystemHalt| e.halt_uid.is_some() && e.halt_uid == halt.metadata.uid;
    made_by(halt).is_some_and(|name| {
        halts.iter().map(Borrow::borrow).any(|group| {
            group.spec.is_group()
                && group.metadata.name.as_deref() == Some(name)
                && group.metadata.namespace == halt.metadata.namespace
                && group.metadata.uid.as_ref() == Some(uid)
                && group.spec.requested_by == halt.spec.requested_by
                && later(group)
                && group.status.iter().flat_map(|s| &s.systems).any(names)
        })
    })
}

/// Why a halt of several systems is nothing to be released or decided about, and what is instead.
pub fn not_itself(group: &TradingHalt) -> String {
    let halts: Vec<_> = group.status.iter().flat_map(|s| &s.systems).map(|e| e.halt.as_str()).collect();
    let which = match halts.as_slice() {
        [] => "it has made none yet".to_owned(),
        halts => halts.join(", "),
    };
    format!("TradingHalt {} holds nothing itself, its halts do, each for one system: {which}", group.name_any())
}

/// The names that the halt of a system may have, best first. All of them follow from the group and the system.
fn names(group: &TradingHalt, system: &str) -> [String; 2] {
    let stem = format!("{}-{system}", group.name_any());
    let cut = |suffix: &str| TradingHalt::fitting_name(&stem, suffix);
    // Nobody can know it before the group is there.
    let key = standfast_crds::hash::of_json(&serde_json::json!([group.uid(), system])).unwrap_or_default();
    [cut(""), cut(&format!("-{}", key.get(..8).unwrap_or("halt")))]
}

/// Whether this is the halt that the group made for the system.
fn is_own(halt: &TradingHalt, group: &TradingHalt, system: &str) -> bool {
    made_by(halt) == group.metadata.name.as_deref()
        && group.metadata.uid.is_some()
        && halt.annotations().get(HALT_GROUP_UID) == group.metadata.uid.as_ref()
        && halt.spec.halts(system)
}

/// The halt of one of the systems. It belongs to nobody: it stays when the group is deleted.
fn halt_of(group: &TradingHalt, entry: &SystemHalt) -> TradingHalt {
    let spec = TradingHaltSpec {
        system_ref: Some(LocalReference { name: entry.system.clone() }),
        system_selector: None,
        ..group.spec.clone()
    };
    let mut halt = TradingHalt::new(&entry.halt, spec);
    halt.metadata.namespace = group.namespace();
    halt.metadata.labels = Some(BTreeMap::from([(HALT_GROUP.to_owned(), group.name_any())]));
    halt.metadata.annotations = Some(BTreeMap::from([(HALT_GROUP_UID.to_owned(), group.uid().unwrap_or_default())]));
    halt
}

/// The systems that are halted, of all that there are; or reason and message why none is.
fn select(selector: &SystemSelector, systems: &Systems) -> Result<Vec<String>, (&'static str, String)> {
    let chosen: Vec<_> =
        systems.iter().filter(|(_, labels)| selector.matches(labels)).map(|(name, _)| name.clone()).collect();
    if chosen.len() > GROUP_LIMIT {
        let text = format!(
            "{} TradingSystems are selected, and one halt takes at most {GROUP_LIMIT}: nothing is halted; create several \
             halts with narrower selectors",
            chosen.len()
        );
        return Err(("TooManySystems", text));
    }
    if chosen.is_empty() {
        let said = selector.to_string();
        let what = if said.is_empty() { "nothing".to_owned() } else { format!("nothing by {said}") };
        let labelled = |(name, labels): (&String, &BTreeMap<String, String>)| {
            let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            if labels.is_empty() { format!("{name} (no labels)") } else { format!("{name} ({})", labels.join(",")) }
        };
        let there: Vec<_> = systems.iter().take(5).map(labelled).collect();
        let there = if there.is_empty() {
            "there is no TradingSystem".into()
        } else {
            format!("there are {}", there.join(", "))
        };
        return Err((NOTHING_SELECTED, format!("the systemSelector selects {what} in this namespace: {there}")));
    }
    Ok(chosen)
}

/// Names and labels of TradingSystems.
type Systems = BTreeMap<String, BTreeMap<String, String>>;

/// What is to be done at first sight.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    /// These systems are halted; and why they are not those that were listed live, but those of the cache.
    Halt(Vec<String>, Option<String>),
    /// Nothing, for this reason.
    Nothing(&'static str, String),
    /// Nothing yet: it is not known which systems there are.
    Unknown(String),
}

/// Selects of what was listed live. Halting does not wait for a list that fails: what the cache has is halted then.
fn choice(selector: &SystemSelector, listed: Result<Systems, String>, cached: impl FnOnce() -> Systems) -> Choice {
    let (systems, failed) = match listed {
        Ok(systems) => (systems, None),
        Err(why) => (cached(), Some(why)),
    };
    match (select(selector, &systems), failed) {
        (Ok(chosen), failed) => Choice::Halt(chosen, failed),
        (Err((NOTHING_SELECTED, _)), Some(why)) => Choice::Unknown(why),
        (Err((reason, why)), _) => Choice::Nothing(reason, why),
    }
}

/// The halt without who asked for it: then nobody can allow what its TradingSystem does not.
fn anonymous(mut halt: TradingHalt) -> TradingHalt {
    halt.spec.requested_by = None;
    halt
}

/// What this process remembers of a halt of several systems. Losing it costs time, never safety.
#[derive(Default)]
pub struct Memory {
    /// When its status was last written.
    written: Option<Instant>,
    /// When it was last tried in vain to make the halt of a system.
    tried: HashMap<String, Instant>,
    /// uids of its halts that are gone: they do not come back.
    gone: HashSet<String>,
}

impl HaltReconciler {
    /// One look at a halt of several systems.
    pub(super) async fn group(&self, halt: &TradingHalt) -> Result<Action, Failure> {
        if halt.status.as_ref().is_some_and(|s| !s.systems.is_empty()) {
            return self.pursue(halt).await;
        }
        let (Some(selector), namespace) = (&halt.spec.system_selector, halt.namespace().unwrap_or_default()) else {
            return Ok(Action::await_change());
        };
        let listed = self.labels_of_systems(&namespace).await;
        match choice(selector, listed, || self.cached_labels(&namespace)) {
            Choice::Halt(chosen, unlisted) => self.choose(halt, chosen, unlisted).await,
            Choice::Nothing(reason, why) => self.idle(halt, reason, &why).await,
            Choice::Unknown(why) => {
                self.idle(halt, NOT_LISTED, &format!("nothing is halted yet: {why}")).await?;
                Err(Failure(why))
            }
        }
    }

    /// The same of the cache.
    fn cached_labels(&self, namespace: &str) -> Systems {
        self.systems.in_namespace(namespace).iter().map(|s| (s.name_any(), s.labels().clone())).collect()
    }

    /// All TradingSystems, also those that cannot be read. Live: one that was created just before the halt may not be in
    /// the cache yet, and would be left out for good.
    async fn labels_of_systems(&self, namespace: &str) -> Result<Systems, String> {
        let api: Api<TradingSystem> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("listing the TradingSystems of {namespace}");
        let listed = client::read(EFFECT_DEADLINE, what, async { api.list_metadata(&ListParams::default()).await });
        let listed = listed.await.map_err(|e| e.to_string())?;
        Ok(listed.items.into_iter().map(|s| (s.name_any(), s.labels().clone())).collect())
    }

    /// Writes down which systems are halted, by which halts; then makes those.
    async fn choose(
        &self,
        halt: &TradingHalt,
        chosen: Vec<String>,
        unlisted: Option<String>,
    ) -> Result<Action, Failure> {
        let (now, generation) = (Timestamp::now(), halt.metadata.generation);
        let requested_by = halt.spec.requested_by.clone().unwrap_or_else(|| "not recorded".into());
        let count = if chosen.len() == 1 { "1 system".into() } else { format!("{} systems", chosen.len()) };
        let mut status = TradingHaltStatus {
            observed_generation: generation,
            phase: HaltPhase::Fencing,
            target: Some(count.clone()),
            evidence: Evidence { requested_by, ..Evidence::default() },
            ..TradingHaltStatus::default()
        };
        status.times.requested_at = halt.metadata.creation_timestamp.as_ref().map(|t| MicroTime(t.0));
        status.times.committed_at = Some(MicroTime(now));
        let asked = format!(
            "{}; requested by {}; {count}: {}",
            halt.spec.reason,
            status.evidence.requested_by,
            chosen.join(", ")
        );
        evidence::append(&mut status.evidence, now, "Committed", &asked, false);
        if let Some(why) = unlisted {
            let text = format!("systems were selected as last seen, one created just before may be missing: {why}");
            evidence::append(&mut status.evidence, now, "SelectedFromCache", &text, false);
        }
        let entry = |system: String| {
            let [halt, _] = names(halt, &system);
            SystemHalt { system, halt, ..SystemHalt::default() }
        };
        status.systems = chosen.into_iter().map(entry).collect();
        let message = format!("the halts of {count} are being made");
        set_condition(&mut status.conditions, now, generation, (c::HALTED, "False", "HaltsNotMade"), message);
        record::kstatus(&mut status, generation, now);
        match self.write(halt, status).await {
            Ok(written) => self.pursue(&written).await,
            Err(record::WriteError::Conflict) => {
                self.catch_up(halt).await;
                Ok(Action::requeue(Duration::ZERO))
            }
            Err(record::WriteError::Gone) => Ok(Action::await_change()),
            Err(record::WriteError::Failed(failure)) => Err(failure),
        }
    }

    /// Nothing can be halted by it as things stand.
    async fn idle(&self, halt: &TradingHalt, reason: &'static str, why: &str) -> Result<Action, Failure> {
        let old = halt.status.clone().unwrap_or_default();
        let (mut status, now, generation) = (old.clone(), Timestamp::now(), halt.metadata.generation);
        status.observed_generation = generation;
        set_condition(&mut status.conditions, now, generation, (c::HALTED, "False", reason), shorten(why));
        record::kstatus(&mut status, generation, now);
        if record::differs(&old, &status) {
            self.settle(self.write(halt, status).await)?;
            self.event(halt, reason, why);
        }
        // The trigger of a new TradingSystem comes sooner; nobody tells of new labels.
        Ok(Action::requeue(TRY_AGAIN.1))
    }

    /// Makes the halts that are not there yet, and says how all of them stand.
    async fn pursue(&self, group: &TradingHalt) -> Result<Action, Failure> {
        let old = group.status.clone().unwrap_or_default();
        let mut entries = old.systems.clone();
        let age = old.times.committed_at.as_ref().map(|at| Timestamp::now().duration_since(at.0).as_secs());
        let patience = if age.is_some_and(|age| age < 10) { TRY_AGAIN.0 } else { TRY_AGAIN.1 };
        let members = join_all(entries.iter_mut().map(|entry| self.member(group, entry, patience))).await;
        let now = Timestamp::now();
        let halts: Vec<_> = entries.iter().zip(&members).map(|(entry, member)| show(entry, member, now)).collect();
        let renamed = halts.iter().zip(&old.systems).any(|((new, _), old)| new.halt != old.halt);
        let wanted = halts.iter().filter(|(_, s)| *s == Standing::Wanted).map(|(e, _)| e.system.clone());
        let wanted: Vec<_> = wanted.collect();
        let mut status = old.clone();
        apply(&mut status, halts, &members, group.metadata.generation, now);
        if !urgent(&old, &status)
            && let Some(left) = self.pause(group)
        {
            return Ok(Action::requeue(left));
        }
        if differs(&old, &status) {
            if self.settle(self.write(group, status).await)?.is_none() {
                self.catch_up(group).await;
                return Ok(Action::requeue(self.pace));
            }
            self.of_group(group, |memory| memory.written = Some(Instant::now()));
        }
        if renamed {
            return Ok(Action::requeue(Duration::ZERO));
        }
        let next = wanted.iter().map(|system| self.patience_left(group, system, patience)).min();
        Ok(Action::requeue(next.unwrap_or(LOOK_AGAIN)))
    }

    fn of_group<T>(&self, group: &TradingHalt, with: impl FnOnce(&mut Memory) -> T) -> T {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        with(groups.entry(group.uid().unwrap_or_default()).or_default())
    }

    /// What is left of the pause after the last write.
    fn pause(&self, group: &TradingHalt) -> Option<Duration> {
        let written = self.of_group(group, |memory| memory.written)?;
        PAUSE.checked_sub(written.elapsed()).filter(|left| !left.is_zero())
    }

    /// How long the halt of this system is not tried again; zero if it may be tried now.
    fn patience_left(&self, group: &TradingHalt, system: &str, patience: Duration) -> Duration {
        let tried = self.of_group(group, |memory| memory.tried.get(system).copied());
        tried.map_or(Duration::ZERO, |at| patience.saturating_sub(at.elapsed()))
    }

    /// The halt of one of the systems; made if it was never there.
    async fn member(&self, group: &TradingHalt, entry: &mut SystemHalt, patience: Duration) -> Member {
        let namespace = group.namespace().unwrap_or_default();
        let cached = self.halts.read(&namespace, &entry.halt);
        let Some(uid) = &entry.halt_uid else {
            return match cached.filter(|h| is_own(h, group, &entry.system)) {
                Some(own) => Member::There(Box::new(self.newest(&own))),
                None if !self.patience_left(group, &entry.system, patience).is_zero() => {
                    Member::NotMade(entry.message.clone())
                }
                None => {
                    let made = self.make(group, entry).await;
                    if matches!(made, Member::NotMade(Some(_))) {
                        self.of_group(group, |memory| memory.tried.insert(entry.system.clone(), Instant::now()));
                    }
                    made
                }
            };
        };
        // The cache may not have what this process has just made.
        let known = cached.filter(|h| h.uid().as_ref() == Some(uid)).map(|h| self.newest(&h));
        let known = known.or_else(|| {
            let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            written.get(uid).cloned()
        });
        if let Some(halt) = known {
            return Member::There(Box::new(halt));
        }
        if self.of_group(group, |memory| memory.gone.contains(uid)) {
            return Member::Gone;
        }
        match self.live(&namespace, &entry.halt).await {
            Ok(Some(live)) if live.uid().as_ref() == Some(uid) => Member::There(Box::new(live)),
            Ok(_) => {
                self.of_group(group, |memory| memory.gone.insert(uid.clone()));
                Member::Gone
            }
            Err(why) => Member::Unread(why),
        }
    }

    async fn live(&self, namespace: &str, name: &str) -> Result<Option<TradingHalt>, String> {
        let api: Api<TradingHalt> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("reading TradingHalt {namespace}/{name}");
        client::read(EFFECT_DEADLINE, what, api.get_opt(name)).await.map_err(|e| e.to_string())
    }

    /// Creates the halt of one of the systems, or finds the one that was created before.
    async fn make(&self, group: &TradingHalt, entry: &mut SystemHalt) -> Member {
        let namespace = group.namespace().unwrap_or_default();
        // Waiting for a turn comes before the check of leadership and before any deadline begins.
        let _turn = self.turns.take().await;
        if let Err(lost) = self.leadership.check(EFFECT_DEADLINE) {
            return Member::NotMade(Some(format!("not begun: {lost}")));
        }
        let api: Api<TradingHalt> = Api::namespaced(self.client.clone(), &namespace);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let (halt, what) = (halt_of(group, entry), format!("creating TradingHalt {namespace}/{}", entry.halt));
        let mut made = client::write(EFFECT_DEADLINE, what.as_str(), api.create(&params, &halt)).await;
        let forbidden = made.as_ref().is_err_and(|e| e.status().is_some_and(|s| s.code == 403));
        if forbidden && halt.spec.requested_by.is_some() && self.leadership.check(EFFECT_DEADLINE).is_ok() {
            // An admission policy may refuse that we name somebody else. Halting is more important than who asked for it.
            let halt = anonymous(halt);
            made = client::write(EFFECT_DEADLINE, what, api.create(&params, &halt)).await;
        }
        match made {
            Ok(made) => {
                // It may have been looked at, and written, already.
                let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
                written.entry(made.uid().unwrap_or_default()).or_insert_with(|| made.clone());
                Member::There(Box::new(made))
            }
            Err(error) if error.is_already_exists() => match self.live(&namespace, &entry.halt).await {
                Ok(Some(there)) if is_own(&there, group, &entry.system) => Member::There(Box::new(there)),
                Ok(Some(_)) => {
                    let [first, second] = names(group, &entry.system);
                    if entry.halt == first {
                        // Written down before it is made.
                        entry.halt = second;
                        return Member::NotMade(None);
                    }
                    let why = format!("TradingHalts {first} and {second} exist and are not of this halt");
                    Member::NotMade(Some(why))
                }
                Ok(None) => Member::NotMade(Some(format!("TradingHalt {} came and went", entry.halt))),
                Err(why) => Member::NotMade(Some(why)),
            },
            Err(error) => Member::NotMade(Some(error.to_string())),
        }
    }
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
