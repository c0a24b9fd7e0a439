use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use rstest::rstest;
use standfast_crds::v1alpha1::{ResumePhase, StepState, StepStatus, TradingResumeStatus, condition};

use super::{BORN, REQUESTED, at};
use crate::resume::status::{Ending, digest, failure, stall, step};

const ORDER: [&str; 5] = [step::CHECKS, step::REQUEST_RELEASE, step::RELEASE, step::RESTORE_WORKLOADS, step::VERIFY];

/// A status in which so many steps are done and the next one is under way.
fn after(done: usize) -> TradingResumeStatus {
    let state = |n| match n {
        n if n < done => StepState::Succeeded,
        n if n == done => StepState::Running,
        _ => StepState::Pending,
    };
    let step = |(n, name): (usize, &&str)| StepStatus {
        name: (*name).into(),
        state: state(n),
        message: (n == done).then(|| "busy".into()),
        ..StepStatus::default()
    };
    TradingResumeStatus {
        started_at: Some(MicroTime(at(BORN))),
        release_requested_at: (done >= 2).then(|| MicroTime(at(REQUESTED))),
        steps: ORDER.iter().enumerate().map(step).collect(),
        ..TradingResumeStatus::default()
    }
}

fn shown(status: &TradingResumeStatus) -> [(String, String); 5] {
    ["Completed", "Released", "Ready", "Reconciling", "Stalled"].map(|type_| {
        let found = condition(&status.conditions, type_).unwrap();
        (found.status.clone(), found.reason.clone())
    })
}

#[rstest]
#[case(0, false, ResumePhase::Checking, "checks: busy", "NotRequested")]
#[case(0, true, ResumePhase::Paused, "checks: busy", "NotRequested")]
#[case(1, false, ResumePhase::Checking, "request-release: busy", "NotRequested")]
#[case(2, false, ResumePhase::Releasing, "release: busy", "Requested")]
#[case(3, false, ResumePhase::Restoring, "restore-workloads: busy", "Released")]
#[case(4, true, ResumePhase::Paused, "verify: busy", "Released")]
fn phases_follow_the_journal(
    #[case] done: usize,
    #[case] paused: bool,
    #[case] phase: ResumePhase,
    #[case] message: &str,
    #[case] released: &str,
) {
    let mut status = after(done);
    digest(&mut status, Some(2), paused, None, at(REQUESTED));
    assert_eq!((status.phase, status.current_step.as_deref()), (phase, Some(ORDER[done])));
    assert_eq!(condition(&status.conditions, "Completed").unwrap().message, message);
    let [completed, released_, ready, reconciling, stalled] = shown(&status);
    assert_eq!(released_.1, released);
    assert_eq!([completed.0, ready.0, reconciling.0, stalled.0], ["False", "False", "True", "False"]);
    assert_eq!((status.finished_at.clone(), status.observed_generation), (None, Some(2)));
    let before = status.clone();
    digest(&mut status, Some(2), paused, None, at(REQUESTED + 60));
    assert_eq!(status, before, "nothing is written when nothing is new");
}

#[rstest]
#[case(5, ResumePhase::Completed, ["True", "True", "True", "False", "False"])]
#[case(0, ResumePhase::Failed, ["False", "False", "False", "False", "True"])]
#[case(3, ResumePhase::Failed, ["False", "True", "False", "False", "True"])]
#[case(4, ResumePhase::Indeterminate, ["False", "True", "False", "False", "True"])]
#[case(1, ResumePhase::Aborted, ["False", "False", "False", "False", "True"])]
fn endings(#[case] done: usize, #[case] phase: ResumePhase, #[case] conditions: [&str; 5]) {
    let mut status = after(done);
    let ending = Ending { phase, message: "over".into() };
    digest(&mut status, Some(1), true, Some(&ending), at(REQUESTED));
    assert_eq!(status.phase, phase);
    assert_eq!(status.finished_at, Some(MicroTime(at(REQUESTED))));
    assert_eq!(shown(&status).map(|(value, _)| value), conditions);
    assert_eq!(condition(&status.conditions, "Completed").unwrap().message, "over");
}

#[test]
fn what_does_not_go_on_says_so_until_it_does() {
    let mut status = after(3);
    digest(&mut status, Some(2), false, None, at(REQUESTED));
    let before = status.clone();
    stall(&mut status, Some(2), "TradingHalt bots/b cannot be read", at(REQUESTED));
    let stalled = condition(&status.conditions, "Stalled").unwrap();
    assert_eq!((stalled.status.as_str(), stalled.message.as_str()), ("True", "TradingHalt bots/b cannot be read"));
    assert_eq!(condition(&status.conditions, "Completed").unwrap().message, "TradingHalt bots/b cannot be read");
    assert_eq!((status.phase, status.finished_at.clone()), (before.phase, None));
    digest(&mut status, Some(2), false, None, at(REQUESTED));
    assert_eq!(shown(&status), shown(&before));
}

#[test]
fn a_failure_says_whether_the_halt_holds() {
    assert_eq!(failure(&after(0), step::CHECKS), "not released: checks: busy");
    assert_eq!(failure(&after(2), step::RELEASE), "the release was asked for, but release: busy");
    let mut old = after(2);
    old.steps[2].message = Some("not released: the request grew old".into());
    assert_eq!(failure(&old, step::RELEASE), "not released: the request grew old");
    assert_eq!(failure(&after(4), step::VERIFY), "the halt was released, but verify: busy");
}
