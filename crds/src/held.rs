//! Which halts hold what, and how long it is known: several halts of one system add up. The operator and the command
//! line read statuses in the same way.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::ResourceExt;

use crate::v1alpha1::{
    HaltPhase, HaltSummary, LatchedWorkload, TradingHalt, TradingHaltStatus, WorkloadKind, condition,
    halt_conditions::HALTED, shorten,
};

/// Reason of `Halted` of a halt of several systems that could not be told which there are, and tries again.
pub const NOT_LISTED: &str = "SystemsNotListed";

/// Whether the halt committed itself and has not been released.
pub fn holds(halt: &TradingHalt) -> bool {
    halt.status.as_ref().and_then(|s| s.latch.as_ref()).is_some_and(|l| l.held)
}

/// Whether this halt, of several systems, has still to make the one for this system, or to say that it makes none.
pub fn about_to_halt(group: &TradingHalt, system: &str) -> bool {
    let chosen = |s: &TradingHaltStatus| condition(&s.conditions, HALTED).is_some_and(|c| c.reason != NOT_LISTED);
    let unseen = |s: &TradingHaltStatus| s.systems.is_empty() && !chosen(s);
    let status = group.status.as_ref();
    group.spec.is_group()
        && group.metadata.deletion_timestamp.is_none()
        && status.is_none_or(|s| unseen(s) || s.systems.iter().any(|e| e.system == system && e.halt_uid.is_none()))
}

/// Until when a halt counts as proven. None: it does not.
pub fn proven_until(halt: &TradingHalt) -> Option<Timestamp> {
    let status = halt.status.as_ref().filter(|s| s.phase == HaltPhase::Halted)?;
    status.verified_until.as_ref().map(|t| t.0)
}

/// The record of a workload in a halt.
pub fn record(halt: &TradingHalt, kind: WorkloadKind, name: &str) -> Option<LatchedWorkload> {
    halt.status.as_ref()?.workloads.iter().find(|w| w.kind == kind && w.name == name).cloned()
}

/// Names of the halts among `halts` that hold this workload, other than the one with the uid `but`.
pub fn holders<'a>(halts: &'a [TradingHalt], kind: WorkloadKind, name: &str, but: Option<&str>) -> Vec<&'a str> {
    halts
        .iter()
        .filter(|h| holds(h) && h.metadata.uid.as_deref() != but && record(h, kind, name).is_some())
        .filter_map(|h| h.metadata.name.as_deref())
        .collect()
}

/// Names of the halts among `halts` that hold this venue of this system, other than the one with the uid `but`.
pub fn venue_holders<'a>(halts: &'a [TradingHalt], system: &str, venue: &str, but: Option<&str>) -> Vec<&'a str> {
    halts
        .iter()
        .filter(|h| holds(h) && h.metadata.uid.as_deref() != but && h.spec.halts(system))
        .filter(|h| h.status.iter().flat_map(|s| &s.venues).any(|v| v.name == venue))
        .filter_map(|h| h.metadata.name.as_deref())
        .collect()
}

/// Whether trading is halted. Only a halt that was proven a short time ago counts as one.
pub fn summary(halts: &[TradingHalt], now: Timestamp) -> HaltSummary {
    let mut holding: Vec<&TradingHalt> = halts.iter().filter(|h| holds(h)).collect();
    holding.sort_by_key(|h| h.name_any());
    if holding.is_empty() {
        return HaltSummary { halted: "No".into(), by: None, since: None };
    }
    let proven = holding.iter().all(|h| proven_until(h).is_some_and(|until| now < until));
    let names: Vec<_> = holding.iter().map(|h| h.name_any()).collect();
    let since = holding.iter().filter_map(|h| {
        let times = &h.status.as_ref()?.times;
        times.latched_at.as_ref().or(times.committed_at.as_ref()).map(|t| t.0)
    });
    HaltSummary {
        halted: if proven { "Yes" } else { "Unverified" }.into(),
        by: Some(shorten(&names.join(", "))),
        // Whole seconds, as it is written: else it would differ from what is read back.
        since: since.min().and_then(|t| Timestamp::from_second(t.as_second()).ok()).map(Time),
    }
}
