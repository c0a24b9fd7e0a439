//! Writes the status of a halt: only when it says something new, and only over the version that was read.

use std::time::Duration;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::{SignedDuration, Timestamp},
};
use kube::{Api, ResourceExt, api::PostParams};
use standfast_crds::v1alpha1::{
    HaltPhase, TradingHalt, TradingHaltStatus, halt_conditions as c, is_true, set_condition,
};

use super::{
    HaltReconciler, closing,
    decide::{Judgement, ZERO_ORDERS},
    evidence,
};
use crate::{
    client::{self, Class},
    controller::Failure,
    scale::FIELD_MANAGER,
};

/// How old `lastVerifiedAt` may become before it is written anew although nothing else changed.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// The longest that a status write may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Whether `new` says anything that `old` does not, apart from the times of reads, the worth of positions and for how long
/// it was proven.
pub fn differs(old: &TradingHaltStatus, new: &TradingHaltStatus) -> bool {
    let plain = |status: &TradingHaltStatus| {
        let mut status = status.clone();
        (status.last_verified_at, status.verified_until, status.proven_for) = (None, None, None);
        for venue in &mut status.venues {
            venue.read_at = None;
            venue.positions.iter_mut().for_each(|p| (p.market_value, p.unrealized_loss_percent) = (None, None));
        }
        status
    };
    plain(old) != plain(new)
}

/// Whether the heartbeat is due.
pub fn heartbeat_due(old: &TradingHaltStatus, new: &TradingHaltStatus) -> bool {
    match (&old.last_verified_at, &new.last_verified_at) {
        (Some(old), Some(new)) => new.0.duration_since(old.0) >= HEARTBEAT.try_into().unwrap_or_default(),
        (None, Some(_)) => true,
        (_, None) => false,
    }
}

/// Puts a judgement into a status, with what follows from it: totals, times, evidence, kstatus. Everything that was
/// judged is at least as new as `as_of`, and counts for as long as `life`.
pub fn apply(
    status: &mut TradingHaltStatus,
    judgement: &Judgement,
    generation: Option<i64>,
    now: Timestamp,
    (as_of, life): (Timestamp, SignedDuration),
) {
    let before = status.phase;
    let at = Some(MicroTime(now));
    for (type_, value, reason, message) in &judgement.conditions {
        let was = is_true(&status.conditions, type_);
        set_condition(&mut status.conditions, now, generation, (type_, value, reason), message.clone());
        if *value == "True" && !was {
            let (event, time) = match *type_ {
                c::LATCHED => ("Latched", Some(&mut status.times.latched_at)),
                c::WORKLOADS_STOPPED => ("WorkloadsStopped", Some(&mut status.times.pods_gone_at)),
                c::ORDERS_CANCELLED if *reason == ZERO_ORDERS => {
                    ("OrdersCancelled", Some(&mut status.times.zero_orders_at))
                }
                c::POSITIONS_CLOSED if *reason == "Flat" => ("PositionsClosed", Some(&mut status.times.flat_at)),
                c::POSITIONS_CLOSED if *reason == closing::SELECTION_CLOSED => ("PositionsClosed", None),
                c::HALTED => ("Halted", Some(&mut status.times.halted_at)),
                _ => continue,
            };
            if let Some(time) = time
                && time.is_none()
            {
                *time = at.clone();
            }
            let portfolio = if *type_ == c::HALTED { portfolio(status) } else { String::new() };
            evidence::append(&mut status.evidence, now, event, &format!("{message}{portfolio}"), false);
            if *type_ == c::HALTED {
                let ledger = evidence::ledger(status);
                evidence::append(&mut status.evidence, now, "Recorded", &ledger, false);
            }
        }
    }
    status.phase = judgement.phase;
    if judgement.phase == HaltPhase::Unverified && before != HaltPhase::Unverified {
        let why = judgement.conditions.iter().find(|v| v.0 == c::HALTED).map_or("", |v| v.3.as_str());
        evidence::append(&mut status.evidence, now, "Unverified", why, false);
    }
    if judgement.phase == HaltPhase::Halted {
        status.last_verified_at = Some(MicroTime(as_of));
        status.verified_until = as_of.checked_add(life).ok().map(MicroTime);
    }
    status.observed_generation = generation;
    let total = |pick: fn(&standfast_crds::v1alpha1::VenueStatus) -> Option<i64>| -> Option<i64> {
        status.venues.iter().map(pick).sum()
    };
    let (open, kept, positions) = (total(|v| v.open_orders), total(|v| v.kept_orders), total(|v| v.open_positions));
    let known = |n: Option<i64>| n.filter(|_| !status.venues.is_empty());
    (status.open_orders, status.kept_orders, status.open_positions) = (known(open), known(kept), known(positions));
    kstatus(status, generation, now);
}

/// The positions that were open when the halt was proven, in words.
fn portfolio(status: &TradingHaltStatus) -> String {
    let held = status.venues.iter().flat_map(|v| v.positions.iter().map(move |p| (v, p)));
    let held: Vec<_> = held
        .map(|(venue, p)| {
            let part = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".into());
            format!("{} {} {}", venue.name, part(&p.symbol), part(&p.quantity))
        })
        .collect();
    if held.is_empty() { String::new() } else { format!("; positions: {}", held.join(", ")) }
}

/// `Ready`, `Reconciling` and `Stalled`, as kstatus understands them.
pub fn kstatus(status: &mut TradingHaltStatus, generation: Option<i64>, now: Timestamp) {
    kstatus_of(status, generation, now, false);
}

/// The same; `stuck` when a person has to look, whatever the phase says.
pub(super) fn kstatus_of(status: &mut TradingHaltStatus, generation: Option<i64>, now: Timestamp, stuck: bool) {
    let halted = status.times.halted_at.is_some();
    let (ready, reconciling, stalled) = match status.phase {
        // It waits for its TradingSystem, which somebody has to create.
        HaltPhase::Pending => ("False", "True", "True"),
        HaltPhase::Halted | HaltPhase::Releasing | HaltPhase::Released => ("True", "False", "False"),
        HaltPhase::Unverified => ("False", if halted { "False" } else { "True" }, "True"),
        _ => ("False", "True", "False"),
    };
    let stalled = if stuck { "True" } else { stalled };
    let phase = status.phase.as_str();
    let message =
        status.conditions.iter().find(|x| x.type_ == c::HALTED).map_or_else(String::new, |x| x.message.clone());
    for (type_, value) in [(c::READY, ready), (c::RECONCILING, reconciling), (c::STALLED, stalled)] {
        set_condition(&mut status.conditions, now, generation, (type_, value, phase), message.clone());
    }
}

impl HaltReconciler {
    /// Writes the status over the version that `halt` carries, and gives the object as it is now. Evidence that is new
    /// in it becomes Events.
    pub(super) async fn write(&self, halt: &TradingHalt, status: TradingHaltStatus) -> Result<TradingHalt, WriteError> {
        let namespace = halt.namespace().unwrap_or_default();
        let name = halt.name_any();
        let told = halt.status.as_ref().map_or(0, |s| s.evidence.entries.len());
        let mut next = halt.clone();
        next.metadata.managed_fields = None;
        next.status = Some(status);
        let api: Api<TradingHalt> = Api::namespaced(self.client.clone(), &namespace);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let what = format!("writing the status of TradingHalt {namespace}/{name}");
        match client::write(DEADLINE, what, api.replace_status(&name, &params, &next)).await {
            Ok(written) => {
                self.remember(&written);
                self.mirror(&written, told);
                Ok(written)
            }
            Err(error) if error.class() == Class::Conflict => Err(WriteError::Conflict),
            Err(error) if error.class() == Class::NotFound => Err(WriteError::Gone),
            Err(error) => Err(WriteError::Failed(Failure(error.to_string()))),
        }
    }
}

/// Why a status was not written.
#[derive(Debug)]
pub enum WriteError {
    /// The object was changed since it was read.
    Conflict,
    /// The object is gone.
    Gone,
    /// The write failed, perhaps after it took effect.
    Failed(Failure),
}
