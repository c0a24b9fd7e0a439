//! The gates approvals and cool-off.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use rstest::rstest;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{
    CountedApproval, Decision, Requester, ResumePhase, StepState, StepStatus, TradingResumeStatus,
};

use super::{BORN, at, halt, plan};
use crate::{
    approval::count::{Count, Rejection},
    engine::Observation,
    resume::{
        approvals::{gate, lacking, rejection, rules},
        cool_off::cooled,
        plan::ResumePlan,
        status::{digest, step},
    },
};

fn counted(approver: &str, decision: Decision) -> CountedApproval {
    let (name, uid) = (approver.to_owned(), format!("uid-{approver}"));
    CountedApproval { name, uid, approver: approver.into(), decision, group: None, at: MicroTime(at(BORN)) }
}

fn plan_with(policy: Value) -> ResumePlan {
    ResumePlan { policy: serde_json::from_value(policy).unwrap(), ..plan() }
}

#[rstest]
#[case::nobody(&[], &["2 of anybody"], None, Observation::InProgress("0 of 2 approvals, wanting 2 of anybody".into()))]
#[case::some(
    &["anna"], &["1 of group risk"], None,
    Observation::InProgress("1 of 2 approvals by anna, wanting 1 of group risk".into())
)]
#[case::enough(&["anna", "bert"], &[], None, Observation::Done("2 of 2 approvals by anna, bert".into()))]
#[case::rejected(&["anna", "bert"], &[], Some(None), Observation::Failed("rejected by carl".into()))]
#[case::rejected_with_a_reason(
    &[], &["2 of anybody"], Some(Some("not now")), Observation::Failed("rejected by carl: not now".into())
)]
fn what_a_count_means(
    #[case] by: &[&str],
    #[case] missing: &[&str],
    #[case] rejected: Option<Option<&str>>,
    #[case] expected: Observation,
) {
    let count = Count {
        counted: by.iter().map(|by| counted(by, Decision::Approve)).collect(),
        needed: 2,
        missing: missing.iter().map(|m| (*m).into()).collect(),
        rejected: rejected
            .map(|comment| Rejection { by: counted("carl", Decision::Reject), comment: comment.map(Into::into) }),
        unfit: vec![],
    };
    assert_eq!(gate(&count), expected);
}

#[test]
fn one_that_does_not_count_is_named() {
    let count = Count {
        needed: 1,
        missing: vec!["1 of anybody".into()],
        unfit: vec![("x".into(), "it expired".into())],
        ..Count::default()
    };
    let said = "0 of 1 approvals, wanting 1 of anybody; Approval x does not count: it expired";
    assert_eq!(gate(&count), Observation::InProgress(said.into()));
}

#[rstest]
#[case::nobody_is_excluded(&[], None, BORN - 60, BORN, Ok(&[][..]))]
#[case::the_resumes(&[Requester::Resume], None, BORN - 60, BORN, Ok(&["risk"][..]))]
#[case::both(&[Requester::Halt, Requester::Resume], Some("rita"), BORN - 60, BORN, Ok(&["risk", "rita"][..]))]
#[case::not_recorded(&[Requester::Halt], None, BORN - 60, BORN, Err("is not recorded"))]
#[case::the_halt_is_older_than_the_guardrails(
    &[Requester::Halt], Some("rita"), BORN, BORN, Err("TradingHalt stale is not certain")
)]
#[case::the_resume_is(&[Requester::Resume], None, BORN - 60, BORN - 60, Err("this TradingResume is not certain"))]
fn requesters(
    #[case] excluded: &[Requester],
    #[case] by: Option<&str>,
    #[case] since: i64,
    #[case] born: i64,
    #[case] expected: Result<&[&str], &str>,
) {
    let mut stale = halt("stale", BORN - 30, json!({}));
    stale.spec.requested_by = by.map(Into::into);
    let plan = plan_with(json!({ "excludeRequesters": excluded }));
    let found = rules(&plan, std::slice::from_ref(&stale), Some(at(born)), at(since));
    match (found, expected) {
        (Ok(rules), Ok(users)) => {
            assert_eq!(rules.excluded.iter().map(|e| e.user.as_str()).collect::<Vec<_>>(), users);
        }
        (Err(said), Err(why)) => assert!(said.contains(why), "{said}"),
        (found, expected) => panic!("{found:?} instead of {expected:?}"),
    }
}

#[rstest]
#[case::not_asked_for(Value::Null, json!("1h"), Observation::NotNeeded("the resumePolicy asks for no cool-off".into()))]
#[case::zero(json!("0s"), json!("1h"), Observation::NotNeeded("the resumePolicy asks for no cool-off".into()))]
#[case::nothing_yet(
    json!("15m"), Value::Null,
    Observation::InProgress("TradingHalt stale was proven for 0s of 15m without interruption".into())
)]
#[case::not_enough(
    json!("15m"), json!("14m59s999ms"),
    Observation::InProgress("TradingHalt stale was proven for 14m59s of 15m without interruption".into())
)]
#[case::enough(
    json!("15m"), json!("15m"), Observation::Done("TradingHalt stale was proven for 15m without interruption".into())
)]
fn cool_off(#[case] wanted: Value, #[case] proven: Value, #[case] expected: Observation) {
    let plan = plan_with(json!({ "coolOff": wanted }));
    let halts =
        [halt("other", BORN, json!({"provenFor": "9h"})), halt("stale", BORN - 60, json!({"provenFor": proven}))];
    assert_eq!(cooled(&halts, &plan), expected);
}

#[test]
fn the_cool_off_of_a_halt_that_is_gone_never_ends() {
    let gone = Observation::Failed("TradingHalt stale is gone".into());
    assert_eq!(cooled(&[], &plan_with(json!({"coolOff": "1s"}))), gone);
}

#[rstest]
#[case(step::APPROVALS, "0/2", ResumePhase::AwaitingApproval)]
#[case(step::COOL_OFF, "2/2", ResumePhase::CoolingOff)]
#[case(step::CHECKS, "2/2", ResumePhase::Checking)]
#[case::withdrawn(step::REQUEST_RELEASE, "1/2", ResumePhase::AwaitingApproval)]
#[case::all_there(step::REQUEST_RELEASE, "10/10", ResumePhase::Checking)]
fn phases(#[case] current: &str, #[case] approved: &str, #[case] phase: ResumePhase) {
    let running = StepStatus { name: current.into(), state: StepState::Running, ..StepStatus::default() };
    let approved = Some(approved.to_owned());
    let mut status = TradingResumeStatus { steps: vec![running], approved, ..TradingResumeStatus::default() };
    digest(&mut status, Some(1), false, None, at(BORN));
    assert_eq!(status.phase, phase);
    assert_eq!(lacking(&status), phase == ResumePhase::AwaitingApproval);
}

#[test]
fn a_rejection_is_one_only_before_the_release() {
    let approvals = vec![counted("carl", Decision::Reject)];
    let mut status = TradingResumeStatus { approvals, ..TradingResumeStatus::default() };
    assert!(rejection(&status).is_some());
    status.release_requested_at = Some(MicroTime(at(BORN)));
    assert!(rejection(&status).is_none());
}
