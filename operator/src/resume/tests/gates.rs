use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use rstest::rstest;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{
    CheckState, LatchedWorkload, LocalReference, StepState, StepStatus, TradingHalt, TradingResumeStatus,
};

use super::{BORN, REQUESTED, at, halt, plan, released_by};
use crate::{
    engine::Acted,
    resume::{
        actions,
        context::Sent,
        gates::{self, Released, Restored, Restoring, Summary},
        status::step,
    },
    scale::Size,
};

fn of_another_system(mut halt: TradingHalt) -> TradingHalt {
    halt.spec.system_ref = Some(LocalReference { name: "equities".into() });
    halt
}

#[rstest]
#[case::our_own(halt("stale", BORN - 60, released_by("go")), None, None, &[])]
#[case::held_before(halt("b", BORN - 60, json!({})), None, None, &["b"])]
#[case::held_during_the_gates(halt("b", REQUESTED - 1, json!({})), None, None, &["b"])]
#[case::in_the_second_of_the_request(halt("b", REQUESTED, json!({})), Some("b"), None, &["b"])]
#[case::afterwards(halt("b", REQUESTED + 9, json!({})), Some("b"), None, &["b"])]
#[case::afterwards_not_committed(
    halt("b", REQUESTED + 9, json!({"latch": null, "phase": "Pending"})), Some("b"), Some("b"), &[]
)]
#[case::before_not_committed(halt("b", BORN, json!({"latch": null, "phase": "Pending"})), None, Some("b"), &[])]
#[case::afterwards_and_released(halt("b", REQUESTED + 9, released_by("x")), None, None, &[])]
#[case::of_another_system(of_another_system(halt("b", REQUESTED + 9, json!({}))), None, None, &[])]
fn other_halts(
    #[case] other: TradingHalt,
    #[case] again: Option<&str>,
    #[case] about: Option<&str>,
    #[case] still: &[&str],
) {
    let (halts, plan) = ([halt("stale", BORN - 60, released_by("go")), other], plan());
    assert_eq!(gates::halted_again(&halts, &plan, at(REQUESTED)).as_deref(), again);
    assert_eq!(gates::about_to_hold(&halts, &plan).as_deref(), about);
    assert_eq!(gates::still_held(&halts, &plan), still);
}

/// Nothing is raised while a halt of several systems may be making the one for this system.
#[test]
fn a_halt_of_several_systems_is_about_to_hold_until_it_has_made_its_halts() {
    let plan = plan();
    let mine = json!({"system": plan.system.name, "halt": "all-1"});
    let mut made = mine.clone();
    made["haltUid"] = "u".into();
    for (status, expected) in [
        (json!({"latch": null, "phase": "Pending"}), Some("all")),
        (json!({"latch": null, "phase": "Fencing", "systems": [mine]}), Some("all")),
        (json!({"latch": null, "phase": "Fencing", "systems": [made]}), None),
    ] {
        let mut group = halt("all", REQUESTED + 9, status.clone());
        (group.spec.system_ref, group.spec.system_selector) = (None, Some(Default::default()));
        let halts = [halt("stale", BORN - 60, released_by("go")), group];
        assert_eq!(gates::about_to_hold(&halts, &plan).as_deref(), expected, "{status}");
        assert_eq!(gates::halted_again(&halts, &plan, at(REQUESTED)), None, "its halts do that");
    }
}

#[rstest]
#[case::holds(json!({}), Released::No)]
#[case::on_the_way(
    json!({"released": {"resume": "go", "resumeUid": "uid-go", "requestedBy": "risk"}}), Released::OnTheWay
)]
#[case::done(released_by("go"), Released::Yes)]
#[case::by_another(
    released_by("other"), Released::Otherwise("TradingHalt stale was released by TradingResume other".into())
)]
#[case::by_hand(
    json!({"phase": "Released", "latch": {"held": false, "configMap": "x"}}),
    Released::Otherwise("TradingHalt stale was released by hand".into())
)]
fn the_release(#[case] status: Value, #[case] expected: Released) {
    assert_eq!(gates::released(&[halt("stale", BORN - 60, status)], &plan(), "uid-go"), expected);
}

/// A resume that is given up: whether the system is halted again, by what is seen of its halt.
#[rstest]
#[case::released(Released::Yes, StepState::Running, 0, Some(true))]
#[case::being_released(Released::OnTheWay, StepState::Running, 0, Some(true))]
#[case::it_may_still_be_released(Released::No, StepState::Running, 59, None)]
#[case::it_holds(Released::No, StepState::Running, 60, Some(false))]
#[case::released_by_another(Released::Otherwise("by x".into()), StepState::Running, 0, Some(false))]
#[case::gone_since(Released::Otherwise("it is gone".into()), StepState::Succeeded, 900, Some(true))]
fn what_was_released_is_taken_back(
    #[case] released: Released,
    #[case] release: StepState,
    #[case] age: i64,
    #[case] expected: Option<bool>,
) {
    let step = StepStatus { name: step::RELEASE.into(), state: release, ..StepStatus::default() };
    let mut status = TradingResumeStatus {
        release_requested_at: Some(MicroTime(at(REQUESTED))),
        steps: vec![step],
        ..TradingResumeStatus::default()
    };
    assert_eq!(gates::to_take_back(&released, &status, at(REQUESTED + age)), expected);
    status.release_requested_at = None;
    assert_eq!(gates::to_take_back(&released, &status, at(REQUESTED + age)), Some(false), "nothing was asked for");
}

#[test]
fn a_halt_that_is_gone_or_another_one_is_not_released() {
    let gone = Released::Otherwise("TradingHalt stale is gone".into());
    assert_eq!(gates::released(&[], &plan(), "uid-go"), gone);
    let mut other = halt("stale", BORN - 60, released_by("go"));
    other.metadata.uid = Some("uid-another".into());
    assert_eq!(gates::released(&[other], &plan(), "uid-go"), gone);
}

#[rstest]
#[case::proven(json!({"verifiedUntil": at(REQUESTED + 60).to_string()}), None)]
#[case::proven_too_long_ago(
    json!({"verifiedUntil": at(REQUESTED).to_string()}),
    Some("the last proof of TradingHalt stale is too old to count")
)]
#[case::never_verified(json!({}), Some("the last proof of TradingHalt stale is too old to count"))]
#[case::on_its_way(json!({"phase": "Fencing"}), Some("TradingHalt stale is not proven yet, it is Fencing: 2 orders are open"))]
#[case::closing(json!({"phase": "Closing"}), Some("TradingHalt stale is not proven yet, it is Closing: 2 orders are open"))]
#[case::being_read_back(
    json!({"phase": "Verifying"}), Some("TradingHalt stale is not proven yet, it is Verifying: 2 orders are open")
)]
#[case::not_known(
    json!({"phase": "Unverified", "verifiedUntil": at(REQUESTED + 60).to_string()}),
    Some(
        "TradingHalt stale is Unverified (repair it; if that is impossible: break-glass, docs/operations.md): \
         2 orders are open"
    )
)]
fn only_a_proven_halt_is_released(#[case] status: Value, #[case] expected: Option<&str>) {
    let mut all = json!({"conditions": [{"type": "Halted", "status": "False", "reason": "OrdersOpen",
        "message": "2 orders are open", "lastTransitionTime": at(BORN).to_string()}]});
    all.as_object_mut().unwrap().extend(status.as_object().unwrap().clone());
    let halts = [halt("stale", BORN - 60, all)];
    assert_eq!(gates::unproven(&halts, &plan(), at(REQUESTED)).as_deref(), expected);
}

#[test]
fn a_halt_that_is_gone_is_not_proven() {
    assert_eq!(gates::unproven(&[], &plan(), at(REQUESTED)).unwrap(), "TradingHalt stale is gone");
}

#[test]
fn a_halt_that_grew_needs_another_plan_and_is_restored_whole() {
    let plan = plan();
    assert_eq!(gates::outgrown(&[halt("stale", BORN - 60, json!({}))], &plan), None);
    let workloads = json!([
        {"kind": "Deployment", "name": "bot", "replicas": 3},
        {"kind": "CronJob", "name": "nightly", "suspended": false, "suspendedJobs": ["nightly-1"]},
    ]);
    let grown = [halt("stale", BORN - 60, json!({"workloads": workloads}))];
    assert_eq!(
        gates::outgrown(&grown, &plan).unwrap(),
        "TradingHalt stale holds CronJob nightly since this plan was made: create another TradingResume"
    );
    let all = gates::to_restore(&grown, &plan);
    assert_eq!(all.iter().map(|w| w.name.as_str()).collect::<Vec<_>>(), ["bot", "nightly"]);
    assert_eq!(gates::suspended_jobs(&all), ["nightly-1"]);
    let corrected = json!([{"kind": "Deployment", "name": "bot", "replicas": 4}]);
    let corrected = [halt("stale", BORN - 60, json!({"workloads": corrected}))];
    assert_eq!(
        gates::outgrown(&corrected, &plan).unwrap(),
        "TradingHalt stale holds another size of Deployment bot since this plan was made: create another TradingResume"
    );
    let venues = [halt("stale", BORN - 60, json!({"venues": [{"name": "alpaca"}, {"name": "binance"}]}))];
    assert!(gates::outgrown(&venues, &plan).unwrap().contains("venue binance"));
}

#[rstest]
#[case::stopped(json!({"kind": "Deployment", "name": "b", "replicas": 3}), Size::Replicas(0), Restoring::Raise(Size::Replicas(3)))]
#[case::there_already(json!({"kind": "Deployment", "name": "b", "replicas": 3}), Size::Replicas(3), Restoring::Leave)]
#[case::started_by_somebody(json!({"kind": "StatefulSet", "name": "b", "replicas": 3}), Size::Replicas(1), Restoring::Leave)]
#[case::stopped_before_the_halt(json!({"kind": "Deployment", "name": "b", "replicas": 0}), Size::Replicas(0), Restoring::Leave)]
#[case::unknown(json!({"kind": "Deployment", "name": "b"}), Size::Replicas(0), Restoring::Leave)]
#[case::cron_job(json!({"kind": "CronJob", "name": "b", "suspended": false}), Size::Suspended(true), Restoring::Raise(Size::Suspended(false)))]
#[case::cron_job_running(json!({"kind": "CronJob", "name": "b", "suspended": false}), Size::Suspended(false), Restoring::Leave)]
#[case::cron_job_suspended_before(json!({"kind": "CronJob", "name": "b", "suspended": true}), Size::Suspended(true), Restoring::Leave)]
fn sizes_to_go_back_to(#[case] workload: Value, #[case] live: Size, #[case] expected: Restoring) {
    let workload: LatchedWorkload = serde_json::from_value(workload).unwrap();
    assert_eq!(gates::restoring(&workload, live), expected);
}

#[test]
fn workloads_are_summed_up() {
    let held = || Restored::Held(vec!["b".into()]);
    let (missing, not_yet) = (|| Restored::Missing("bot is gone".into()), || Restored::NotYet("refused".into()));
    let cases = [
        (vec![], Summary::Nothing("the halt stopped no workload".into())),
        (vec![Restored::Done, Restored::Done], Summary::Done("2 of 2 workloads restored".into())),
        (vec![Restored::Done, held()], Summary::Done("1 of 2 workloads restored, 1 still held by b".into())),
        (vec![held(), held()], Summary::Nothing("all 2 workloads are still held by b".into())),
        (vec![Restored::Done, missing()], Summary::Missing("1 of 2 workloads restored: bot is gone".into())),
        (vec![missing(), missing()], Summary::Missing("0 of 2 workloads restored: bot is gone and 1 more".into())),
        // What can still be restored comes before what cannot.
        (vec![missing(), not_yet(), held()], Summary::NotYet("0 of 3 workloads restored: refused".into())),
    ];
    for (workloads, expected) in cases {
        assert_eq!(gates::sum_up(&workloads), expected);
    }
}

#[test]
fn only_passing_checks_pass() {
    let answer = |name: &str, state| (name.to_owned(), state, "found 1, wanted 0".to_owned());
    let pass = |answers: &[_]| gates::all_pass(answers);
    assert_eq!(pass(&[]), Ok("no check is declared".into()));
    assert_eq!(pass(&[answer("a", CheckState::Passing)]), Ok("1 of 1 checks pass".into()));
    let failing = [answer("a", CheckState::Passing), answer("b", CheckState::Failing)];
    assert_eq!(pass(&failing), Err("check b is failing: found 1, wanted 0".into()));
    let unknown = [answer("a", CheckState::Unknown), answer("b", CheckState::Failing)];
    assert_eq!(pass(&unknown), Err("check a is unknown: found 1, wanted 0; also b".into()));
}

fn kind(acted: &Acted) -> &'static str {
    match acted {
        Acted::Done(_) => "done",
        Acted::NotNeeded(_) => "not needed",
        Acted::Started { .. } => "started",
        Acted::Again(_) => "again",
        Acted::Failed(_) => "failed",
        Acted::Unknown(_) => "unknown",
    }
}

#[rstest]
#[case(Sent::Answered(200), "done", "done", "done")]
#[case(Sent::Answered(204), "done", "done", "done")]
#[case(Sent::Answered(302), "failed", "failed", "unknown")]
#[case(Sent::Answered(403), "failed", "failed", "again")]
#[case(Sent::Answered(422), "failed", "failed", "again")]
#[case(Sent::Answered(404), "failed", "failed", "unknown")]
#[case(Sent::Answered(409), "failed", "failed", "unknown")]
#[case(Sent::Answered(410), "failed", "failed", "unknown")]
#[case(Sent::Answered(408), "again", "failed", "unknown")]
#[case(Sent::Answered(429), "again", "failed", "again")]
#[case(Sent::Answered(500), "again", "failed", "unknown")]
#[case(Sent::Never("no name".into()), "again", "again", "again")]
#[case(Sent::Unknown("cut".into()), "unknown", "unknown", "unknown")]
fn answers(#[case] sent: Sent, #[case] sync: &str, #[case] last_sync: &str, #[case] allow: &str) {
    assert_eq!(kind(&actions::synced(sent.clone(), false)), sync);
    assert_eq!(kind(&actions::synced(sent.clone(), true)), last_sync);
    assert_eq!(kind(&actions::allowed(sent)), allow);
}
