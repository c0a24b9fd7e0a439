//! Which halts hold what, and how long it is known: several halts of one system add up.

use k8s_openapi::jiff::Timestamp;
use standfast_crds::v1alpha1::{HaltPhase, LatchedWorkload, TradingHalt, WorkloadKind};

/// Whether the halt committed itself and has not been released.
pub fn holds(halt: &TradingHalt) -> bool {
    halt.status.as_ref().and_then(|s| s.latch.as_ref()).is_some_and(|l| l.held)
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
        .filter(|h| holds(h) && h.metadata.uid.as_deref() != but && h.spec.system_ref.name == system)
        .filter(|h| h.status.iter().flat_map(|s| &s.venues).any(|v| v.name == venue))
        .filter_map(|h| h.metadata.name.as_deref())
        .collect()
}
