use jiff::SignedDuration;
use rstest::rstest;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{HaltSummary, is_true};

use super::*;
use crate::workloads::Key;

fn now() -> Timestamp {
    "2025-06-01T12:00:00Z".parse().unwrap()
}

fn system(status: Option<TradingSystemStatus>) -> TradingSystem {
    let mut system: TradingSystem = serde_json::from_value(json!({
        "apiVersion": "standfast.dev/v1alpha1", "kind": "TradingSystem",
        "metadata": {"name": "bot", "namespace": "trading", "generation": 3},
        "spec": {
            "workloads": [{"kind": "Deployment", "name": "bot", "role": "Trading"}],
            "venues": [{
                "name": "alpaca",
                "cancelOrders": [{"http": {"method": "DELETE", "url": "https://venue.example/v2/orders"}}],
                "cancelOrder": {"http": {"method": "DELETE", "url": "https://venue.example/v2/orders/{id}"}},
                "openOrders": [{"http": {"url": "https://venue.example/v2/orders"}, "protective": {"type": ["stop"]}}],
            }],
            "checks": [
                {"name": "api", "group": "infrastructure", "http": {"request": {"url": "https://bot.example/health"}}},
                {"name": "pnl", "group": "data", "http": {"request": {"url": "https://bot.example/pnl"}}},
            ],
            "objectives": {"rto": {"maximum": "1h"}, "rpo": {"maximum": "24h"}},
        },
    }))
    .unwrap();
    system.status = status;
    system
}

fn view(kind: WorkloadKind, name: &str, labels: bool) -> View {
    View {
        key: Key { namespace: "trading".into(), kind, name: name.into() },
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        replicas: 2,
        ready: 2,
        suspended: false,
        selector: None,
        match_labels: labels.then(|| BTreeMap::from([("app".into(), name.into())])),
    }
}

fn answer(state: CheckState, message: &str) -> Answer {
    Answer { state, message: message.into() }
}

fn observed(system: &TradingSystem) -> Observed<'_> {
    Observed {
        system,
        trading: vec![view(WorkloadKind::Deployment, "bot", true)],
        missing: vec![],
        halts: vec![],
        shared_workloads: vec![],
        shared_accounts: vec![],
        answers: BTreeMap::from([
            ("api".into(), answer(CheckState::Passing, "GET bot.example answered 200")),
            ("pnl".into(), answer(CheckState::Passing, "found 0, wanted 0")),
        ]),
        survey: Some(Survey::default()),
        autoscalers: Some(Ok(vec![])),
    }
}

fn verdict_of(status: &TradingSystemStatus, type_: &str) -> (String, String) {
    let found = condition(&status.conditions, type_).unwrap();
    (found.status.clone(), found.reason.clone())
}

/// S0-01, S3-33
#[test]
fn a_system_that_is_well_says_so() {
    let system = system(None);
    let status = decide(&observed(&system), now());
    for type_ in [conditions::PREPARED, conditions::CHECKS_PASSING, conditions::READY] {
        assert!(is_true(&status.conditions, type_), "{type_}");
    }
    assert_eq!(verdict_of(&status, conditions::SHARED_ACCOUNT).0, "False");
    assert_eq!(status.checks_passing.as_deref(), Some("2/2"));
    assert_eq!(status.objectives.as_deref(), Some("RTO 1h, RPO 24h"));
    assert_eq!(status.cancel_path.as_deref(), Some("HTTP"));
    assert_eq!(status.halt.unwrap().halted, "No");
    assert_eq!(status.observed_generation, Some(3));
    let expected = WorkloadStatus { kind: WorkloadKind::Deployment, name: "bot".into(), replicas: Some(2) };
    assert_eq!(status.trading_workloads, [expected]);
}

/// A policy under which every resume would fail is said where it is written, and not at night.
#[rstest]
#[case(json!({}), "False", "Valid", "resumes can be carried out under it")]
#[case(
    json!({"ramp": [{"name": "small", "limits": {"size": "0.5"}, "hold": "1m"}]}), "True", "CannotBeCarriedOut",
    "resumePolicy: the TradingSystem has no limit size: there is none; until it is repaired resumes fail at first sight"
)]
#[case(
    json!({"watch": {"for": "1h", "checks": {"names": ["latency"]}}}), "True", "CannotBeCarriedOut",
    "resumePolicy: watch: the resume has no check latency: there are api, pnl; until it is repaired resumes fail at \
     first sight"
)]
fn a_policy_that_cannot_be_carried_out_is_told(
    #[case] policy: Value,
    #[case] state: &str,
    #[case] reason: &str,
    #[case] message: &str,
) {
    let mut system = system(None);
    system.spec.resume_policy = Some(serde_json::from_value(policy).unwrap());
    let status = decide(&observed(&system), now());
    let found = condition(&status.conditions, conditions::RESUME_POLICY_INVALID).unwrap();
    assert_eq!((found.status.as_str(), found.reason.as_str(), found.message.as_str()), (state, reason, message));
}

#[test]
fn what_was_decided_once_is_decided_again_and_not_written() {
    let fresh = system(None);
    let first = decide(&observed(&fresh), now());
    assert!(worth_writing(None, &first, None));
    let later = now() + SignedDuration::from_secs(3600);
    // As it is read back.
    let read: TradingSystemStatus = serde_json::from_value(serde_json::to_value(&first).unwrap()).unwrap();
    let again = system(Some(read.clone()));
    assert_eq!(decide(&observed(&again), later), read);
    assert!(!worth_writing(Some(&read), &decide(&observed(&again), later), None));
}

#[rstest]
#[case(&[("api", CheckState::Failing)], "False", "ChecksFailing", "1/2")]
#[case(&[("api", CheckState::Unknown)], "Unknown", "ChecksUnknown", "1/2")]
#[case(&[("api", CheckState::Unknown), ("pnl", CheckState::Failing)], "False", "ChecksFailing", "0/2")]
#[case(&[], "True", "AllPassing", "2/2")]
fn checks_are_summed_up(
    #[case] states: &[(&str, CheckState)],
    #[case] status: &str,
    #[case] reason: &str,
    #[case] passing: &str,
) {
    let system = system(None);
    let mut observed = observed(&system);
    for (name, state) in states {
        observed.answers.insert((*name).into(), answer(*state, "found 3, wanted 0"));
    }
    let found = decide(&observed, now());
    assert_eq!(verdict_of(&found, conditions::CHECKS_PASSING), (status.into(), reason.into()));
    assert_eq!(found.checks_passing.as_deref(), Some(passing));
}

#[test]
fn a_check_keeps_its_time_until_its_answer_flips_and_its_answer_until_it_is_asked_again() {
    let fresh = system(None);
    let first = decide(&observed(&fresh), now());
    let again = system(Some(first.clone()));
    let later = now() + SignedDuration::from_secs(60);
    let mut second = observed(&again);
    second.answers.insert("pnl".into(), answer(CheckState::Failing, "found 3, wanted 0"));
    second.answers.remove("api");
    let second = decide(&second, later);
    assert_eq!(second.checks[0], first.checks[0]);
    assert_eq!(second.checks[1].message, "found 3, wanted 0");
    assert_eq!(second.checks[1].last_transition_time.as_ref().unwrap().0, later);
}

#[test]
fn a_check_that_was_never_asked_is_unknown() {
    let system = system(None);
    let mut observed = observed(&system);
    observed.answers.clear();
    let status = decide(&observed, now());
    assert!(status.checks.iter().all(|c| c.state == CheckState::Unknown && c.message == "not asked yet"));
}

fn found(problems: &[(&str, &str)], unknown: &[&str]) -> Option<Survey> {
    Some(Survey {
        problems: problems.iter().map(|(r, m)| problem(r, m)).collect(),
        unknown: unknown.iter().map(|u| (*u).to_owned()).collect(),
    })
}

#[rstest]
#[case(found(&[], &[]), "True", "Prepared", "an emergency halt would work now")]
#[case(found(&[("EndpointUnreachable", "no connection to h")], &[]), "False", "EndpointUnreachable", "no connection to h")]
#[case(
    found(&[("EndpointUnreachable", "no h"), ("NamespaceNotLabelled", "label it"), ("EndpointUnreachable", "no g")], &["x"]),
    "False", "NamespaceNotLabelled", "3 things missing: NamespaceNotLabelled, EndpointUnreachable (2); first: label it"
)]
#[case(found(&[], &["reading Service trading/bot: no answer"]), "Unknown", "NotAllKnown", "reading Service trading/bot: no answer")]
#[case(None, "Unknown", "NotAllKnown", "the operator is looking at endpoints, Secrets and permissions")]
fn preparedness_is_told(
    #[case] survey: Option<Survey>,
    #[case] status: &str,
    #[case] reason: &str,
    #[case] message: &str,
) {
    let system = system(None);
    let decided = decide(&Observed { survey, ..observed(&system) }, now());
    let prepared = condition(&decided.conditions, conditions::PREPARED).unwrap();
    assert_eq!(
        (prepared.status.as_str(), prepared.reason.as_str(), prepared.message.as_str()),
        (status, reason, message)
    );
}

#[test]
fn caches_and_spec_are_looked_at_too() {
    let mut system = system(None);
    system.spec.venues[0].open_orders.clear();
    system.spec.venues[0].cancel_orders[0].http.as_mut().unwrap().url = "https://u:p@h/".into();
    let observed = Observed {
        missing: vec!["StatefulSet feed not found in namespace trading: there is none".into()],
        trading: vec![view(WorkloadKind::Deployment, "bot", false)],
        shared_workloads: vec![SharedWorkload { workload: "Deployment bot".into(), other: "second".into() }],
        ..observed(&system)
    };
    let status = decide(&observed, now());
    let reasons: Vec<_> = status.problems.iter().map(|p| p.reason.as_str()).collect();
    assert_eq!(
        reasons,
        ["InvalidSpec", "WorkloadNotFound", "OpenOrdersNotReadable", "SharedWorkload", "SelectorNotPlainLabels"]
    );
    assert_eq!(verdict_of(&status, conditions::READY), ("False".into(), "InvalidSpec".into()));
}

#[test]
fn after_a_restart_the_old_answers_stand_until_there_are_new_ones() {
    let fresh = system(None);
    let first = decide(&Observed { survey: found(&[("EndpointUnreachable", "no h")], &[]), ..observed(&fresh) }, now());
    let again = system(Some(first.clone()));
    let blank = || Observed { survey: None, autoscalers: None, answers: BTreeMap::new(), ..observed(&again) };
    assert_eq!(decide(&blank(), now()), first);
    // Not if the spec is another one now.
    let mut changed = again.clone();
    changed.metadata.generation = Some(4);
    let status = decide(&Observed { system: &changed, ..blank() }, now());
    assert_eq!(verdict_of(&status, conditions::PREPARED), ("Unknown".into(), "NotAllKnown".into()));
}

#[test]
fn an_account_that_two_name_is_told() {
    let system = system(None);
    let shared_accounts = vec![SharedAccount { account: "PA1".into(), other: "other/bot".into() }];
    let status = decide(&Observed { shared_accounts, ..observed(&system) }, now());
    let shared = condition(&status.conditions, conditions::SHARED_ACCOUNT).unwrap();
    assert_eq!(shared.status, "True");
    assert!(shared.message.contains("PA1 by other/bot"), "{}", shared.message);
    assert!(is_true(&status.conditions, conditions::PREPARED));
}

fn halt(name: &str, held: bool, phase: &str, verified: Option<&str>, latched: Option<&str>) -> TradingHalt {
    let mut status = json!({
        "phase": phase, "latch": {"held": held, "configMap": "c"},
        "times": {"committedAt": "2025-06-01T11:00:00.000001Z"},
    });
    let fields: &mut Value = &mut status;
    if let Some(at) = verified {
        fields["verifiedUntil"] = json!(at);
    }
    if let Some(at) = latched {
        fields["times"]["latchedAt"] = json!(at);
    }
    serde_json::from_value(json!({
        "apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt",
        "metadata": {"name": name, "namespace": "trading"},
        "spec": {"systemRef": {"name": "bot"}, "reason": "r"},
        "status": status,
    }))
    .unwrap()
}

const FRESH: Option<&str> = Some("2025-06-01T12:02:00.000000Z");
const STALE: Option<&str> = Some("2025-06-01T12:00:00.000000Z");

#[rstest]
#[case(vec![], "No", None)]
#[case(vec![halt("a", false, "Released", FRESH, None)], "No", None)]
#[case(vec![halt("a", true, "Halted", FRESH, None)], "Yes", Some("a"))]
#[case(vec![halt("a", true, "Halted", STALE, None)], "Unverified", Some("a"))]
#[case(vec![halt("a", true, "Halted", None, None)], "Unverified", Some("a"))]
#[case(vec![halt("a", true, "Fencing", FRESH, None)], "Unverified", Some("a"))]
#[case(vec![halt("b", true, "Halted", FRESH, None), halt("a", true, "Halted", FRESH, None)], "Yes", Some("a, b"))]
#[case(vec![halt("b", true, "Unverified", FRESH, None), halt("a", true, "Halted", FRESH, None)], "Unverified", Some("a, b"))]
#[case(vec![halt("b", false, "Released", STALE, None), halt("a", true, "Halted", FRESH, None)], "Yes", Some("a"))]
fn halts_add_up(#[case] halts: Vec<TradingHalt>, #[case] halted: &str, #[case] by: Option<&str>) {
    let summary = held::summary(&halts, now());
    assert_eq!((summary.halted.as_str(), summary.by.as_deref()), (halted, by));
    assert_eq!(summary.since.is_some(), by.is_some());
}

#[test]
fn a_halt_counts_from_its_latch_in_whole_seconds_and_expires() {
    let halts = [
        halt("a", true, "Halted", FRESH, Some("2025-06-01T11:00:02.500000Z")),
        halt("b", true, "Halted", Some("2025-06-01T12:01:00.000000Z"), Some("2025-06-01T11:00:04.500000Z")),
    ];
    let since = held::summary(&halts, now()).since.unwrap();
    assert_eq!(since.0.to_string(), "2025-06-01T11:00:02Z");
    assert_eq!(summary_expires(&halts, now()), Some(Duration::from_secs(60)));
    assert_eq!(summary_expires(&[], now()), None);
}

#[rstest]
#[case::nothing(|_: &mut TradingSystemStatus| {}, false, false)]
#[case::passing_text(|s: &mut TradingSystemStatus| s.checks[0].message = "found 8".into(), false, false)]
#[case::failing_text(|s: &mut TradingSystemStatus| s.checks[1].message = "found 9".into(), false, true)]
#[case::problem_text(|s: &mut TradingSystemStatus| s.problems[0].message = "other".into(), false, true)]
#[case::size(|s: &mut TradingSystemStatus| s.trading_workloads[0].replicas = Some(9), false, true)]
#[case::state(|s: &mut TradingSystemStatus| s.checks[0].state = CheckState::Unknown, true, true)]
#[case::problem(|s: &mut TradingSystemStatus| s.problems.clear(), true, true)]
#[case::halted(|s: &mut TradingSystemStatus| s.halt = Some(HaltSummary { halted: "Yes".into(), ..HaltSummary::default() }), true, true)]
#[case::workload_gone(|s: &mut TradingSystemStatus| s.trading_workloads.clear(), true, true)]
#[case::generation(|s: &mut TradingSystemStatus| s.observed_generation = Some(4), true, true)]
fn texts_and_sizes_wait(#[case] change: fn(&mut TradingSystemStatus), #[case] at_once: bool, #[case] later: bool) {
    let system = system(None);
    let mut observed = observed(&system);
    observed.answers.insert("pnl".into(), answer(CheckState::Failing, "found 3, wanted 0"));
    observed.survey = found(&[("EndpointUnreachable", "no h")], &[]);
    let old = decide(&observed, now());
    let mut new = old.clone();
    change(&mut new);
    assert_eq!(worth_writing(Some(&old), &new, Some(Duration::from_secs(1))), at_once);
    assert_eq!(worth_writing(Some(&old), &new, Some(Duration::from_secs(61))), later);
}

#[test]
fn texts_stay_short() {
    let system = system(None);
    let many: Vec<_> = (0..200).map(|n| (format!("R{n}"), "x".repeat(400))).collect();
    let many: Vec<_> = many.iter().map(|(r, m)| (r.as_str(), m.as_str())).collect();
    let mut observed = Observed { survey: found(&many, &[]), ..observed(&system) };
    observed.answers.insert("api".into(), answer(CheckState::Failing, &"é".repeat(400)));
    let status = decide(&observed, now());
    assert_eq!(status.problems.len(), PROBLEMS);
    let conditions = status.conditions.iter().map(|c| c.message.as_str());
    let problems = status.problems.iter().map(|p| p.message.as_str());
    let checks = status.checks.iter().map(|c| c.message.as_str());
    assert!(conditions.chain(problems).chain(checks).all(|m| m.chars().count() <= 256));
}
