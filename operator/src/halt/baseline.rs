//! What a workload goes back to when it is released.
//!
//! Each halt keeps its own copy. A workload that is already held by another halt, or that the resume which released it
//! has not brought back, stands at zero for that reason: its record is inherited, never the number it has now.

use std::{
    borrow::Borrow,
    cell::LazyCell,
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use k8s_openapi::jiff::Timestamp;
use standfast_crds::v1alpha1::{LatchedWorkload, StepState, TradingHalt, TradingResume, WorkloadKind};

use crate::{
    held,
    resume::{
        BASELINES_FROM, PARTLY_BACK, plan_percents, plan_workloads,
        ramp::{all_back, partly_back, shares},
        status::{self, step},
        workload_name,
    },
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

/// What one resume released.
struct Released<'a> {
    at: Timestamp,
    halt: &'a str,
    /// All of it was brought back that had to be, or these.
    restored: bool,
    /// A stage runs a part only, of so many percent; an unfinished one.
    partly: Option<(Vec<u32>, bool)>,
    names: &'a [String],
    workloads: Vec<LatchedWorkload>,
}

/// What a resume released, unless its request came to nothing.
fn released(resume: &TradingResume) -> Option<Released<'_>> {
    let status = resume.status.as_ref()?;
    let at = status.release_requested_at.as_ref()?.0;
    let state = |name| status::state(&status.steps, name);
    (state(step::RELEASE) != StepState::Failed).then(|| Released {
        at,
        halt: &resume.spec.halt_ref.name,
        restored: all_back(&status.steps),
        partly: partly_back(&status.steps).then(|| (plan_percents(resume), status.finished_at.is_none())),
        names: &status.restored,
        workloads: plan_workloads(resume),
    })
}

/// The record of a workload that was released and not brought back, and the halt it stands in. Only the last resume that
/// had to do with it tells: what others left undone before is settled by it.
fn unrestored(released: &[Released<'_>], view: &View) -> Option<(String, LatchedWorkload)> {
    let (kind, name) = (view.key.kind, view.key.name.as_str());
    let records = released.iter().filter_map(|r| {
        let record = r.workloads.iter().find(|w| w.kind == kind && w.name == name)?;
        Some((r, record))
    });
    let (last, record) = records.max_by_key(|(r, _)| r.at)?;
    if view.active() {
        // The number of a stage is not what the workload goes back to. After the end another number is somebody's own.
        let (percents, unfinished) = last.partly.as_ref()?;
        let given = *unfinished || shares(record, percents).any(|r| r == view.replicas);
        return given.then(|| (last.halt.to_owned(), record.clone()));
    }
    let restored = last.restored || last.names.contains(&workload_name(record));
    (!restored).then(|| (last.halt.to_owned(), record.clone()))
}

/// The record in the halt that `halt` names as the one whose release it takes back.
fn taken_back(
    halt: &TradingHalt,
    halts: &[impl Borrow<TradingHalt>],
    kind: WorkloadKind,
    name: &str,
    active: bool,
) -> Option<(String, LatchedWorkload)> {
    let annotations = halt.metadata.annotations.as_ref()?;
    let from = annotations.get(BASELINES_FROM).filter(|_| !active || annotations.contains_key(PARTLY_BACK))?;
    let released = halts.iter().map(Borrow::borrow).find(|h| h.metadata.name.as_ref() == Some(from))?;
    Some((from.clone(), held::record(released, kind, name)?))
}

/// The records of `views` for `halt`. The views must have been read before this is called.
pub fn records(
    views: &[View],
    halt: &TradingHalt,
    registry: &Registry,
    halts: &[impl Borrow<TradingHalt>],
    resumes: &[impl Borrow<TradingResume>],
) -> Vec<LatchedWorkload> {
    let uid = halt.metadata.uid.as_deref().unwrap_or_default();
    // Plans are long: they are read only when a workload asks for it.
    let released = LazyCell::new(|| resumes.iter().map(Borrow::borrow).filter_map(released).collect::<Vec<_>>());
    let partly = LazyCell::new(|| resumes.iter().flat_map(|r| &r.borrow().status).any(|s| partly_back(&s.steps)));
    views
        .iter()
        .map(|view| {
            let (kind, name) = (view.key.kind, view.key.name.as_str());
            let inherited = registry
                .find(&view.key, uid)
                .or_else(|| {
                    let holder = halts.iter().map(Borrow::borrow).find(|h| {
                        held::holds(h)
                            && h.metadata.uid.as_deref() != Some(uid)
                            && held::record(h, kind, name).is_some()
                    })?;
                    Some((holder.metadata.name.clone().unwrap_or_default(), held::record(holder, kind, name)?))
                })
                .or_else(|| {
                    // Only what still stands at zero, or runs in a stage: somebody may have started it by hand since.
                    let active = view.active();
                    taken_back(halt, halts, kind, name, active)
                        .or_else(|| (!active || *partly).then(|| unrestored(&released, view)).flatten())
                });
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
                    replicas: (!kind.is_switched()).then_some(view.replicas),
                    suspended: kind.is_switched().then_some(view.suspended),
                    match_labels: view.match_labels.clone(),
                    inherited_from: None,
                    suspended_jobs: vec![],
                },
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    /// A resume of `halt`, which recorded so many replicas of `bot`, with its release asked for in that second.
    fn resume(halt: &str, replicas: i32, second: u32, phase: &str, release: &str, restore: &str) -> TradingResume {
        let step = |name: &str, state: &str| json!({"name": name, "state": state});
        let pinned = |name: &str| json!({"name": name, "uid": name});
        serde_json::from_value(json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingResume",
        "metadata": {"name": format!("after-{halt}"), "namespace": "bots"},
        "spec": {"haltRef": {"name": halt}, "requestedBy": "risk"},
        "status": {
            "phase": phase,
            "releaseRequestedAt": format!("2026-01-01T00:00:{second:02}.000000Z"),
            "steps": [step("release", release), step("restore-workloads", restore)],
            "plan": {
                "spec": {"haltRef": {"name": halt}, "requestedBy": "risk", "deadline": "1h"},
                "halt": pinned(halt), "system": pinned("crypto"), "checks": [], "venues": [],
                "workloads": [{"kind": "Deployment", "name": "bot", "replicas": replicas}],
            },
        }}))
        .unwrap()
    }

    fn restored(mut resume: TradingResume) -> Vec<TradingResume> {
        resume.status.as_mut().unwrap().restored = vec!["Deployment bot".into()];
        vec![resume]
    }

    /// A halt; with `from` one that takes back that halt's release.
    fn halt(name: &str, from: Option<&str>, status: Value) -> TradingHalt {
        let annotations: BTreeMap<_, _> = from.map(|from| (BASELINES_FROM, from)).into_iter().collect();
        serde_json::from_value(json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt",
            "metadata": {"name": name, "namespace": "bots", "uid": name, "annotations": annotations},
            "spec": {"systemRef": {"name": "crypto"}, "reason": "a test"}, "status": status}))
        .unwrap()
    }

    /// What `halt` records of a bot with so many replicas.
    fn record_of(
        replicas: i32,
        halt: &TradingHalt,
        halts: &[TradingHalt],
        resumes: &[TradingResume],
    ) -> LatchedWorkload {
        records(&[bot(replicas)], halt, &Registry::default(), halts, resumes).remove(0)
    }

    fn recorded(name: &str, replicas: i32, held: bool) -> TradingHalt {
        let bot = json!([{"kind": "Deployment", "name": "bot", "replicas": replicas}]);
        halt(name, None, json!({"latch": {"held": held, "configMap": "x"}, "workloads": bot}))
    }

    fn bot(replicas: i32) -> View {
        View {
            key: Key { namespace: "bots".into(), kind: WorkloadKind::Deployment, name: "bot".into() },
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            replicas,
            ready: 0,
            suspended: false,
            selector: None,
            match_labels: None,
        }
    }

    const DONE: &str = "Succeeded";
    const OPEN: &str = "Pending";

    #[rstest]
    #[case::under_way(vec![resume("a", 3, 1, "Restoring", DONE, OPEN)], Some(("a", 3)))]
    #[case::the_release_is_not_known_yet(vec![resume("a", 3, 1, "Releasing", "Running", OPEN)], Some(("a", 3)))]
    #[case::failed_before_it_was_restored(vec![resume("a", 3, 1, "Failed", DONE, "Failed")], Some(("a", 3)))]
    #[case::failed_after_it_was_restored(vec![resume("a", 3, 1, "Failed", DONE, DONE)], None)]
    #[case::restored_but_others_were_not(restored(resume("a", 3, 1, "Failed", DONE, "Failed")), None)]
    #[case::nothing_was_to_be_restored(vec![resume("a", 3, 1, "Aborted", DONE, "Skipped")], None)]
    #[case::not_released(vec![resume("a", 3, 1, "Failed", "Failed", OPEN)], None)]
    #[case::completed(vec![resume("a", 3, 1, "Completed", DONE, DONE)], None)]
    // The team scaled it to zero weeks after the second one had brought it back.
    #[case::brought_back_by_a_later_one(
        vec![resume("a", 3, 1, "Aborted", DONE, OPEN), resume("b", 3, 2, "Completed", DONE, DONE)], None
    )]
    #[case::the_last_one_counts(
        vec![resume("a", 3, 1, "Aborted", DONE, OPEN), resume("b", 10, 2, "Aborted", DONE, OPEN)], Some(("b", 10))
    )]
    #[case::in_whatever_order(
        vec![resume("b", 10, 2, "Aborted", DONE, OPEN), resume("a", 3, 1, "Aborted", DONE, OPEN)], Some(("b", 10))
    )]
    fn a_stopped_workload_inherits_what_the_last_resume_left_undone(
        #[case] resumes: Vec<TradingResume>,
        #[case] expected: Option<(&str, i32)>,
    ) {
        let new = halt("new", None, Value::Null);
        let record = |replicas| record_of(replicas, &new, &[], &resumes);
        let stopped = record(0);
        let (from, replicas) = expected.map_or((None, 0), |(from, replicas)| (Some(from), replicas));
        assert_eq!((stopped.inherited_from.as_deref(), stopped.replicas), (from, Some(replicas)));
        let running = record(2);
        assert_eq!((running.inherited_from, running.replicas), (None, Some(2)), "somebody has started it since");
    }

    /// A resume of `a`, which recorded 10 replicas of `bot`, in stages of 25 and 100 percent.
    fn staged(phase: &str, small: &str, full: &str, finished: bool) -> TradingResume {
        let mut resume = serde_json::to_value(resume("a", 10, 1, phase, DONE, OPEN)).unwrap();
        let step =
            |name: &str, state: &str| json!({"name": name, "state": state, "attempts": i32::from(state != OPEN)});
        resume["status"]["steps"] =
            json!([step("release", DONE), step("small-workloads", small), step("full-workloads", full)]);
        resume["status"]["plan"]["policy"] =
            json!({"ramp": [{"name": "small", "replicasPercent": 25}, {"name": "full", "replicasPercent": 100}]});
        resume["status"]["restored"] = if small == DONE { json!(["Deployment bot"]) } else { json!([]) };
        if finished {
            resume["status"]["finishedAt"] = json!("2026-01-01T00:01:00.000000Z");
        }
        serde_json::from_value(resume).unwrap()
    }

    /// S0-29: what a stage runs is not what a workload goes back to.
    #[rstest]
    #[case::at_the_share_of_a_stage(staged("Ramping", DONE, OPEN, false), 3, 10)]
    #[case::somebody_gave_it_more(staged("Ramping", DONE, OPEN, false), 5, 10)]
    #[case::somebody_stopped_it(staged("Ramping", DONE, OPEN, false), 0, 0)]
    #[case::not_brought_back_yet(staged("Ramping", "Running", OPEN, false), 0, 10)]
    #[case::not_begun(staged("Restoring", OPEN, OPEN, false), 2, 2)]
    #[case::the_last_stage_is_on_its_way(staged("Ramping", DONE, "Running", false), 3, 10)]
    #[case::everything_is_back(staged("Ramping", DONE, DONE, false), 7, 7)]
    #[case::ended_in_a_stage(staged("Failed", DONE, OPEN, true), 3, 10)]
    #[case::ended_in_a_stage_and_scaled_since(staged("Failed", DONE, OPEN, true), 5, 5)]
    fn a_stage_does_not_change_the_baseline(#[case] resume: TradingResume, #[case] live: i32, #[case] expected: i32) {
        let new = halt("new", None, Value::Null);
        let record = record_of(live, &new, &[], &[resume]);
        assert_eq!(record.replicas, Some(expected));
    }

    /// S0-29: the halt that ends a stage has the full number, also when its resume is gone.
    #[test]
    fn a_stage_that_is_taken_back_goes_back_to_the_whole() {
        let mut again = halt("again", Some("a"), Value::Null);
        let released = [recorded("a", 10, false)];
        let record = |halt: &TradingHalt| record_of(3, halt, &released, &[]);
        assert_eq!(record(&again).replicas, Some(3), "everything was back");
        again.metadata.annotations.as_mut().unwrap().insert(PARTLY_BACK.into(), "true".into());
        assert_eq!(record(&again).replicas, Some(10));
    }

    #[test]
    fn a_release_that_is_taken_back_tells_before_any_resume_and_a_held_halt_before_that() {
        let resumes = [resume("a", 3, 1, "Aborted", DONE, OPEN), resume("b", 5, 2, "Aborted", DONE, OPEN)];
        let (again, released) = (halt("again", Some("c"), Value::Null), recorded("c", 10, false));
        let record = |halts: &[TradingHalt]| {
            let LatchedWorkload { inherited_from, replicas, .. } = record_of(0, &again, halts, &resumes);
            (inherited_from.unwrap(), replicas.unwrap())
        };
        assert_eq!(record(std::slice::from_ref(&released)), ("c".into(), 10));
        assert_eq!(record(&[released, recorded("d", 7, true)]), ("d".into(), 7));
        // The halt whose release is taken back is gone.
        assert_eq!(record(&[]), ("b".into(), 5));
    }
}
