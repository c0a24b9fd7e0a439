use kube::ResourceExt;
use rstest::rstest;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{StepStatus, TradingResumeStatus};

use super::{BORN, halt, plan, released_by, resume, system};
use crate::resume::{
    plan::{ResumePlan, Subject, accept, hash, plan_workloads},
    rehalt::{self, Why},
};

const EARLIER: i64 = BORN - 60;

#[rstest]
#[case::held(json!({}), halt("stale", EARLIER, json!({})), None)]
#[case::of_the_same_second(json!({}), halt("stale", BORN, json!({})), None)]
#[case::not_proven_yet(json!({}), halt("stale", EARLIER, json!({"phase": "Fencing"})), None)]
#[case::with_its_uid(json!({"haltRef": {"name": "stale", "uid": "uid-stale"}}), halt("stale", EARLIER, json!({})), None)]
#[case::being_released_for_us(
    json!({}),
    halt("stale", EARLIER, json!({"released": {"resume": "go", "resumeUid": "uid-go", "requestedBy": "risk"}})),
    None
)]
#[case::missing(
    json!({"haltRef": {"name": "other"}}),
    halt("stale", EARLIER, json!({})),
    Some("there is no TradingHalt other in namespace bots: these hold: stale")
)]
#[case::missing_and_none_held(
    json!({"haltRef": {"name": "other"}}),
    halt("stale", EARLIER, released_by("before")),
    Some("there is no TradingHalt other in namespace bots: none holds")
)]
#[case::another_of_that_name(
    json!({"haltRef": {"name": "stale", "uid": "uid-old"}}),
    halt("stale", EARLIER, json!({})),
    Some("TradingHalt stale is another one now: its uid is uid-stale, not uid-old")
)]
#[case::younger(
    json!({}),
    halt("stale", BORN + 1, json!({})),
    Some("TradingHalt stale is younger than this TradingResume, which cannot mean it: create another one")
)]
#[case::released(
    json!({}),
    halt("stale", EARLIER, released_by("before")),
    Some("TradingHalt stale was already released by TradingResume before")
)]
#[case::being_released(
    json!({}),
    halt("stale", EARLIER, json!({"released": {"resume": "before", "resumeUid": "x", "requestedBy": "risk"}})),
    Some("TradingHalt stale was already released by TradingResume before")
)]
#[case::released_by_hand(
    json!({}),
    halt("stale", EARLIER, json!({"latch": {"held": false, "configMap": "x"}})),
    Some("TradingHalt stale was already released")
)]
#[case::not_latched(
    json!({}),
    halt("stale", EARLIER, json!({"latch": null, "phase": "Pending"})),
    Some("TradingHalt stale has not latched anything: there is nothing to release, it may be deleted")
)]
#[case::unknown_check(
    json!({"checks": {"names": ["api", "nope"]}}),
    halt("stale", EARLIER, json!({})),
    Some("the TradingSystem has no check nope: there are api, bot-ready, exchange")
)]
#[case::empty_group(
    json!({"checks": {"groups": ["trading", "data"]}}),
    halt("stale", EARLIER, json!({})),
    Some("the TradingSystem has no check of the group data: there are infrastructure, trading")
)]
fn the_first_look(
    #[case] spec: Value,
    #[case] halt: standfast_crds::v1alpha1::TradingHalt,
    #[case] refused: Option<&str>,
) {
    let decided = accept(&resume(spec), &[halt], Some(&system()), &[]);
    assert_eq!(decided.err().as_deref(), refused);
}

#[test]
fn without_its_system_a_halt_stays() {
    let halts = [halt("stale", EARLIER, json!({}))];
    let refused = accept(&resume(json!({})), &halts, None, &["equities".into()]).unwrap_err();
    assert_eq!(
        refused,
        "the TradingSystem crypto of TradingHalt stale does not exist, and only it tells how to resume: there are equities"
    );
}

#[rstest]
#[case(json!({}), &["api", "exchange", "bot-ready"])]
#[case(json!({"checks": {"groups": ["trading"]}}), &["exchange", "bot-ready"])]
#[case(json!({"checks": {"names": ["api"], "groups": ["trading"]}}), &["api", "exchange", "bot-ready"])]
#[case(json!({"checks": {"names": ["exchange"]}}), &["exchange"])]
fn checks_are_chosen_by_name_and_group(#[case] spec: Value, #[case] chosen: &[&str]) {
    let plan = accept(&resume(spec), &[halt("stale", EARLIER, json!({}))], Some(&system()), &[]).unwrap();
    assert_eq!(plan.checks.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), chosen);
}

/// The bot's own API is among the HTTP checks, as far as is said so. A bot that was at zero before the halt stays there:
/// what asks for its pods must not be left for the end.
#[rstest]
#[case::of_its_pods(3, &[], &["api", "exchange"], &["bot-ready"])]
#[case::of_its_endpoint(3, &["api"], &["exchange"], &["api", "bot-ready"])]
#[case::not_started_afterwards(0, &[], &["api", "exchange", "bot-ready"], &[])]
fn checks_of_stopped_workloads_are_asked_at_the_end(
    #[case] replicas: i32,
    #[case] answered: &[&str],
    #[case] gates: &[&str],
    #[case] exit: &[&str],
) {
    let mut plan = plan();
    plan.workloads[0].replicas = Some(replicas);
    plan.answered_by_stopped = answered.iter().map(|n| (*n).into()).collect();
    assert_eq!(plan.gates().map(|c| c.name.as_str()).collect::<Vec<_>>(), gates);
    assert_eq!(plan.exit_checks().map(|c| c.name.as_str()).collect::<Vec<_>>(), exit);
}

#[test]
fn the_plan_is_frozen_as_it_reads_back() {
    let plan = plan();
    let (frozen, hashed) = plan.freeze().unwrap();
    assert_eq!(hash(&frozen).unwrap(), hashed);
    let mut resume = resume(json!({"paused": true}));
    let status = TradingResumeStatus { plan: Some(frozen.clone()), ..TradingResumeStatus::default() };
    resume.status = Some(status);
    assert_eq!(ResumePlan::read(&resume).unwrap(), plan);
    assert!(frozen["spec"].get("paused").is_none() && frozen["spec"].get("abort").is_none());
    // What is not set is left out, but not in JSON of the user's own.
    assert!(frozen["spec"].get("checks").is_none());
    assert_eq!(frozen["venues"][0]["allowTrading"][0]["http"]["body"], json!({"until": null}));
    // Halts take baselines from here.
    assert_eq!(plan_workloads(&resume)[0].replicas, Some(3));
}

#[test]
fn the_hash_is_that_of_canonical_json() {
    // printf '{"a":[1,"é"],"b":{"c":null,"d":1.5}}' | sha256sum
    let expected = "efed24cd28353c8a4c5c19ec2bf6467177fd9c1814b82c3a932da70a4b1b70b1";
    let found = hash(&json!({"b": {"d": 1.5, "c": null}, "a": [1, "é"]})).unwrap();
    assert_eq!(found, expected);
}

#[test]
fn the_halt_after_an_abort_follows_from_the_resume() {
    let mut resume = resume(json!({}));
    let (aborted, wrong) = (Why::Ended("aborted"), Why::Regression("check api in stage small: found 7".into()));
    assert_eq!(rehalt::names(&resume, &aborted), ["go-abort", "go-abort-uid-go"]);
    assert_eq!(rehalt::names(&resume, &wrong), ["go-regression", "go-regression-uid-go"]);
    // A plan of another version, of which no more can be read.
    let plan = json!({"halt": {"name": "stale", "uid": "x"}, "system": {"name": "crypto", "uid": "y"}, "checks": 7});
    resume.status = Some(TradingResumeStatus { plan: Some(plan), ..TradingResumeStatus::default() });
    assert!(ResumePlan::read(&resume).is_err());
    let of = Subject::read(&resume).unwrap();
    let halt = rehalt::halt(&resume, &of, "go-abort", &aborted);
    assert_eq!(halt.data["spec"], json!({"systemRef": {"name": "crypto"}, "reason": "resume go was aborted"}));
    assert_eq!(halt.metadata.owner_references, None);
    let halt = rehalt::halt(&resume, &of, "go-regression", &wrong);
    assert_eq!(halt.data["spec"]["reason"], "resume go went wrong: check api in stage small: found 7");
    assert!(!halt.annotations().contains_key(rehalt::PARTLY_BACK));
    // In a stage that is not the last one what runs is not what to go back to.
    let step = |name: &str, attempts| StepStatus { name: name.into(), attempts, ..StepStatus::default() };
    resume.status.as_mut().unwrap().steps = vec![step("small-workloads", 1), step("full-workloads", 0)];
    assert!(rehalt::halt(&resume, &of, "go-abort", &aborted).annotations().contains_key(rehalt::PARTLY_BACK));
    resume.metadata.name = Some("x".repeat(253));
    resume.metadata.uid = Some("0123456789abcdef".into());
    assert!(rehalt::names(&resume, &wrong).iter().all(|n| n.len() <= 200));
    let reason = rehalt::halt(&resume, &of, "a", &aborted).data["spec"]["reason"].clone();
    assert!(reason.as_str().unwrap().chars().count() <= 256);
}
