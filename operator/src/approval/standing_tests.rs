use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use rstest::rstest;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{Approval, ApprovalPhase, TradingHalt, TradingResume, condition};

use super::standing;

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
#[case::of_a_halt(
    json!({"subject": {"kind": "TradingHalt", "name": "go", "uid": "uid-go"}}), json!({}),
    Void, "nothing asks for approvals of a TradingHalt"
)]
fn what_the_status_says(
    #[case] but: Value,
    #[case] status: Value,
    #[case] phase: ApprovalPhase,
    #[case] message: &str,
) {
    let (mut approval, resume, halts) = (approval(but), resume(status), [halt(Some("rita"))]);
    let said = standing(&approval, Some(&resume), &halts, Ok(at(100)), at(700));
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
    assert_eq!(standing(&approval, Some(&resume), &halts, Ok(at(100)), at(800)), said);
}

#[test]
fn what_it_was_about_is_gone() {
    let (mut approval, halts) = (approval(json!({})), [halt(Some("rita"))]);
    let gone = standing(&approval, None, &halts, Ok(at(100)), at(700));
    assert_eq!(gone.phase, Void);
    assert_eq!(condition(&gone.conditions, "Ready").unwrap().message, "there is no TradingResume go in namespace bots");
    let used = resume(json!({"approvals": COUNTED(), "releaseRequestedAt": TIME}));
    approval.status = Some(standing(&approval, Some(&used), &halts, Ok(at(100)), at(700)));
    assert_eq!(standing(&approval, None, &halts, Ok(at(100)), at(700)).phase, Used, "it was used before");
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
    let said = standing(&approval(json!({})), Some(&resume(json!({}))), &[halt(by)], since.map(at), at(700));
    assert_eq!((said.phase, condition(&said.conditions, "Ready").unwrap().message.as_str()), (phase, message));
}
