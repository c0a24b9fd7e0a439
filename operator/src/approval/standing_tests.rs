use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use rstest::rstest;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{Approval, ApprovalPhase, TradingHalt, TradingResume, TradingSystem, condition};

use super::{Around, standing};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn hash(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn approval(but: Value) -> Approval {
    let mut all = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "Approval",
        "metadata": {"name": "yes", "namespace": "bots", "uid": "uid-yes", "generation": 1,
            "creationTimestamp": at(500)},
        "spec": {"subject": {"kind": "TradingResume", "name": "go", "uid": "uid-go"}, "hash": hash('a'),
            "decision": "Approve", "approver": "anna"}});
    for (key, value) in but.as_object().unwrap() {
        all["spec"][key] = value.clone();
    }
    serde_json::from_value(all).unwrap()
}

/// A resume that asks for one approval and excludes whoever asked for the halt.
fn resume(status: Value) -> TradingResume {
    let mut all = json!({"planHash": hash('a'), "startedAt": "1970-01-01T00:00:00.000000Z", "plan": {
        "spec": {"haltRef": {"name": "stale"}, "requestedBy": "risk", "deadline": "1h"},
        "halt": {"name": "stale", "uid": "uid-stale"}, "system": {"name": "crypto", "uid": "uid-crypto"},
        "policy": {"approvals": [{"count": 1}], "excludeRequesters": ["Halt"]},
        "checks": [], "venues": [], "workloads": []}});
    for (key, value) in status.as_object().unwrap() {
        all[key] = value.clone();
    }
    serde_json::from_value(json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingResume",
        "metadata": {"name": "go", "namespace": "bots", "uid": "uid-go"},
        "spec": {"haltRef": {"name": "stale"}, "requestedBy": "risk"}, "status": all}))
    .unwrap()
}

fn halt(by: Option<&str>) -> TradingHalt {
    let mut halt: TradingHalt = serde_json::from_value(json!({"apiVersion": "standfast.dev/v1alpha1",
        "kind": "TradingHalt", "metadata": {"name": "stale", "namespace": "bots", "uid": "uid-stale"},
        "spec": {"systemRef": {"name": "crypto"}, "reason": "a test"}}))
    .unwrap();
    halt.spec.requested_by = by.map(Into::into);
    halt.metadata.creation_timestamp = Some(Time(at(400)));
    halt
}

fn around<'a>(resume: Option<&'a TradingResume>, halts: &'a [&'a TradingHalt]) -> Around<'a> {
    Around { resume, halts, systems: &[] }
}

const COUNTED: fn() -> Value = || {
    let at = "1970-01-01T00:08:20.000000Z";
    json!([{"name": "yes", "uid": "uid-yes", "approver": "anna", "decision": "Approve", "at": at}])
};
const TIME: &str = "1970-01-01T00:10:00.000000Z";

use ApprovalPhase::{Expired, Pending, Used, Valid, Void};

#[rstest]
#[case::valid(json!({}), json!({}), Valid, "TradingResume go may count it")]
#[case::counted(json!({}), json!({"approvals": COUNTED()}), Valid, "TradingResume go counts it")]
#[case::no_plan_yet(json!({}), json!({"planHash": null, "plan": null}), Pending, "TradingResume go has no plan yet")]
#[case::used(
    json!({}), json!({"approvals": COUNTED(), "releaseRequestedAt": TIME}),
    Used, "TradingResume go released its halt with it"
)]
#[case::used_and_expired_since(
    json!({"expiresAt": "1970-01-01T00:10:00Z"}), json!({"approvals": COUNTED(), "releaseRequestedAt": TIME}),
    Used, "TradingResume go released its halt with it"
)]
#[case::it_rejected(
    json!({"decision": "Reject"}), json!({"approvals": COUNTED(), "finishedAt": TIME, "phase": "Rejected"}),
    Used, "TradingResume go ended with it"
)]
#[case::too_late(
    json!({}), json!({"releaseRequestedAt": TIME}), Void, "TradingResume go has asked for the release without it"
)]
#[case::ended(json!({}), json!({"finishedAt": TIME}), Void, "TradingResume go has ended without it")]
#[case::counted_and_failed(
    json!({}), json!({"approvals": COUNTED(), "finishedAt": TIME, "phase": "Failed"}),
    Void, "TradingResume go has ended without it"
)]
#[case::another_uid(
    json!({"subject": {"kind": "TradingResume", "name": "go", "uid": "uid-old"}}), json!({}),
    Void, "TradingResume go is another one now: its uid is uid-go, not uid-old"
)]
#[case::another_hash(
    json!({"hash": hash('b')}), json!({}),
    Void, "TradingResume go has the hash aaaaaaaaaaaa…, and what was decided about had bbbbbbbbbbbb…"
)]
#[case::expired(json!({"expiresAt": "1970-01-01T00:10:00Z"}), json!({}), Expired, "it expired at 1970-01-01T00:10:00Z")]
#[case::ones_own_halt(
    json!({"approver": "rita"}), json!({}),
    Void, "rita asked for TradingHalt stale, and the resumePolicy excludes whoever did"
)]
#[case::of_a_halt_that_is_not_there(
    json!({"subject": {"kind": "TradingHalt", "name": "go", "uid": "uid-go"}}), json!({}),
    Void, "there is no TradingHalt go in namespace bots"
)]
fn what_the_status_says(
    #[case] but: Value,
    #[case] status: Value,
    #[case] phase: ApprovalPhase,
    #[case] message: &str,
) {
    let (mut approval, resume, halt) = (approval(but), resume(status), halt(Some("rita")));
    let halts = [&halt];
    let said = standing(&approval, around(Some(&resume), &halts), Ok(at(100)), at(700));
    let ready = condition(&said.conditions, "Ready").unwrap();
    assert_eq!((said.phase, ready.message.as_str()), (phase, message));
    let status = if matches!(phase, Valid | Used) {
        "True"
    } else if phase == Pending {
        "Unknown"
    } else {
        "False"
    };
    assert_eq!(ready.status, status);
    // Nothing is written when nothing is new.
    approval.status = Some(said.clone());
    assert_eq!(standing(&approval, around(Some(&resume), &halts), Ok(at(100)), at(800)), said);
}

#[test]
fn what_it_was_about_is_gone() {
    let (mut approval, halt) = (approval(json!({})), halt(Some("rita")));
    let halts = [&halt];
    let gone = standing(&approval, around(None, &halts), Ok(at(100)), at(700));
    assert_eq!(gone.phase, Void);
    assert_eq!(condition(&gone.conditions, "Ready").unwrap().message, "there is no TradingResume go in namespace bots");
    let used = resume(json!({"approvals": COUNTED(), "releaseRequestedAt": TIME}));
    approval.status = Some(standing(&approval, around(Some(&used), &halts), Ok(at(100)), at(700)));
    assert_eq!(standing(&approval, around(None, &halts), Ok(at(100)), at(700)).phase, Used, "it was used before");
}

#[rstest]
#[case::missing(
    Err("ValidatingAdmissionPolicyBinding/standfast-approval not found"),
    Some("rita"),
    Pending,
    "no approval counts while ValidatingAdmissionPolicyBinding/standfast-approval not found"
)]
#[case::came_later(
    Ok(500),
    Some("rita"),
    Void,
    "it was created before the guardrails about names were in place as they are now: create it again"
)]
#[case::not_recorded(
    Ok(100),
    None,
    Void,
    "who asked for TradingHalt stale is not recorded, and the resumePolicy excludes whoever did: only a \
     resumePolicy without it, and another TradingResume, goes on"
)]
#[case::not_certain(
    Ok(400),
    Some("rita"),
    Void,
    "who asked for TradingHalt stale is not certain, it is older than the guardrails about names as they are now, and \
     the resumePolicy excludes whoever did: only a resumePolicy without it, and another TradingResume, goes on"
)]
fn names_that_nobody_vouches_for(
    #[case] since: Result<i64, &str>,
    #[case] by: Option<&str>,
    #[case] phase: ApprovalPhase,
    #[case] message: &str,
) {
    let said = standing(&approval(json!({})), around(Some(&resume(json!({}))), &[&halt(by)]), since.map(at), at(700));
    assert_eq!((said.phase, condition(&said.conditions, "Ready").unwrap().message.as_str()), (phase, message));
}

#[rstest]
#[case::valid(json!({}), json!({}), json!({}), Valid, "TradingHalt stale may count it")]
#[case::used(json!({}), json!({"approvals": COUNTED()}), json!({}), Used, "TradingHalt stale closes positions with it")]
#[case::too_late(
    json!({"approver": "bert"}), json!({"approvals": [{"name": "of-anna", "uid": "uid-of-anna", "approver": "anna",
        "decision": "Approve", "at": TIME}]}), json!({}),
    Void, "TradingHalt stale was allowed to close positions without it"
)]
#[case::ones_own(
    json!({"approver": "rita"}), json!({}), json!({}),
    Void, "rita asked for this TradingHalt, and nobody allows his own"
)]
#[case::of_no_group(
    json!({}), json!({}), json!({"positionApprovals": [{"count": 1, "group": "board"}]}),
    Void, "spec.groups names none of the groups that are asked for: board"
)]
#[case::allowed_anyway(
    json!({}), json!({}), json!({"allowedPositionActions": ["Keep", "CloseAll"]}),
    Void, "the TradingSystem's haltPolicy allows CloseAll without approvals"
)]
#[case::released(
    json!({}), json!({"released": {"resume": "go", "resumeUid": "u", "requestedBy": "anna"}}), json!({}),
    Void, "TradingHalt stale is released"
)]
fn what_it_says_of_a_halt_that_closes(
    #[case] but: Value,
    #[case] status: Value,
    #[case] policy: Value,
    #[case] phase: ApprovalPhase,
    #[case] message: &str,
) {
    let mut halt = halt(Some("rita"));
    halt.spec.positions.action = standfast_crds::v1alpha1::PositionAction::CloseAll;
    halt.status = Some(serde_json::from_value(status).unwrap());
    let system: TradingSystem = serde_json::from_value(json!({"apiVersion": "standfast.dev/v1alpha1",
        "kind": "TradingSystem", "metadata": {"name": "crypto", "namespace": "bots"},
        "spec": {"workloads": [], "haltPolicy": policy}}))
    .unwrap();
    let mut approval = approval(but);
    approval.spec.subject =
        serde_json::from_value(json!({"kind": "TradingHalt", "name": "stale", "uid": "uid-stale"})).unwrap();
    approval.spec.hash = halt.spec.hash().unwrap();
    let around = Around { resume: None, halts: &[&halt], systems: &[&system] };
    let said = standing(&approval, around, Ok(at(100)), at(700));
    let ready = condition(&said.conditions, "Ready").unwrap();
    assert_eq!((said.phase, ready.message.as_str()), (phase, message));
}
