//! What a workload goes back to when it is released.
//!
//! Each halt keeps its own copy. A workload that is already held by another halt, or not yet restored by an unfinished
//! resume, stands at zero for that reason: its record is inherited, never the number it has now.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use standfast_crds::v1alpha1::{LatchedWorkload, ResumePhase, TradingHalt, TradingResume, WorkloadKind};

use crate::{
    held,
    resume::BASELINES_FROM,
    scale::Size,
    workloads::{Key, View},
};

/// The records of halts that this process committed. Caches learn of a commit some moments later than of its effects,
/// and a second halt in between must not take the zero of the first for its baseline.
#[derive(Default)]
pub struct Registry(Mutex<HashMap<String, Committed>>);

/// Name and records of a halt.
type Committed = (String, Vec<(Key, LatchedWorkload)>);

impl Registry {
    /// Takes note of a commit, before any of its effects begins.
    pub fn commit(&self, uid: &str, halt: &str, namespace: &str, workloads: &[LatchedWorkload]) {
        let records = workloads
            .iter()
            .map(|w| (Key { namespace: namespace.into(), kind: w.kind, name: w.name.clone() }, w.clone()))
            .collect();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.into(), (halt.into(), records));
    }

    /// Forgets a halt that was released, after its release is in its status.
    pub fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    fn find(&self, key: &Key, but: &str) -> Option<(String, LatchedWorkload)> {
        let halts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        halts.iter().filter(|(uid, _)| *uid != but).find_map(|(_, (halt, records))| {
            records.iter().find(|(k, _)| k == key).map(|(_, record)| (halt.clone(), record.clone()))
        })
    }
}

/// Puts right what was recorded from a cache that was behind: the size to go back to is the one that the workload had
/// when it was first stopped. Tells whether anything was wrong.
pub fn correct(workloads: &mut [LatchedWorkload], found: &[(Key, Size)]) -> bool {
    let mut wrong = false;
    for (key, size) in found {
        let record = workloads.iter_mut().find(|w| w.kind == key.kind && w.name == key.name);
        let Some(record) = record.filter(|w| w.inherited_from.is_none()) else { continue };
        let (replicas, suspended) = match size {
            Size::Replicas(replicas) => (Some(*replicas), None),
            Size::Suspended(suspended) => (None, Some(*suspended)),
        };
        wrong |= (record.replicas, record.suspended) != (replicas, suspended);
        (record.replicas, record.suspended) = (replicas, suspended);
    }
    wrong
}

/// The record of a workload that a resume released and has not brought back.
fn unrestored(resume: &TradingResume, kind: WorkloadKind, name: &str) -> Option<LatchedWorkload> {
    let status = resume.status.as_ref()?;
    if status.phase == ResumePhase::Completed || status.release_requested_at.is_none() {
        return None;
    }
    let plan = serde_json::from_value::<Vec<LatchedWorkload>>(status.plan.as_ref()?.get("workloads")?.clone());
    plan.ok()?.into_iter().find(|w| w.kind == kind && w.name == name)
}

/// The record in the halt that `halt` names as the one whose release it takes back.
fn taken_back(
    halt: &TradingHalt,
    halts: &[TradingHalt],
    kind: WorkloadKind,
    name: &str,
) -> Option<(String, LatchedWorkload)> {
    let from = halt.metadata.annotations.as_ref()?.get(BASELINES_FROM)?;
    let released = halts.iter().find(|h| h.metadata.name.as_ref() == Some(from))?;
    Some((from.clone(), held::record(released, kind, name)?))
}

/// The records of `views` for `halt`. The views must have been read before this is called.
pub fn records(
    views: &[View],
    halt: &TradingHalt,
    registry: &Registry,
    halts: &[TradingHalt],
    resumes: &[TradingResume],
) -> Vec<LatchedWorkload> {
    let uid = halt.metadata.uid.as_deref().unwrap_or_default();
    views
        .iter()
        .map(|view| {
            let (kind, name) = (view.key.kind, view.key.name.as_str());
            let inherited = registry
                .find(&view.key, uid)
                .or_else(|| {
                    let holder = halts.iter().find(|h| {
                        held::holds(h)
                            && h.metadata.uid.as_deref() != Some(uid)
                            && held::record(h, kind, name).is_some()
                    })?;
                    Some((holder.metadata.name.clone().unwrap_or_default(), held::record(holder, kind, name)?))
                })
                .or_else(|| {
                    // Only what still stands at zero: somebody may have started it by hand since.
                    let stopped = resumes.iter().filter(|_| !view.active());
                    stopped.filter_map(|r| Some((r.spec.halt_ref.name.clone(), unrestored(r, kind, name)?))).next()
                })
                .or_else(|| taken_back(halt, halts, kind, name).filter(|_| !view.active()));
            match inherited {
                Some((from, record)) => LatchedWorkload {
                    inherited_from: Some(from),
                    suspended_jobs: vec![],
                    match_labels: view.match_labels.clone().or(record.match_labels),
                    ..record
                },
                None => LatchedWorkload {
                    kind,
                    name: name.into(),
                    replicas: (kind != WorkloadKind::CronJob).then_some(view.replicas),
                    suspended: (kind == WorkloadKind::CronJob).then_some(view.suspended),
                    match_labels: view.match_labels.clone(),
                    inherited_from: None,
                    suspended_jobs: vec![],
                },
            }
        })
        .collect()
}
