//! Tables of stages.

use rstest::rstest;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{LatchedWorkload, ResumePolicy, StepState, StepStatus, TradingSystem};

use super::{BORN, halt, resume, system};
use crate::{
    resume::{
        gates::Restoring,
        plan::accept,
        ramp::{all_back, current, holds, partly_back, raising, resolve, target},
    },
    scale::Size,
};

fn workload(record: Value) -> LatchedWorkload {
    serde_json::from_value(record).unwrap()
}

fn bot(replicas: i32) -> LatchedWorkload {
    workload(json!({"kind": "Deployment", "name": "bot", "replicas": replicas}))
}

fn nightly(suspended: bool) -> LatchedWorkload {
    workload(json!({"kind": "CronJob", "name": "nightly", "suspended": suspended}))
}

fn daemon(kept: bool) -> LatchedWorkload {
    workload(json!({"kind": "DaemonSet", "name": "probe", "suspended": kept}))
}

#[rstest]
#[case(bot(10), 25, Some(Size::Replicas(3)))]
#[case(bot(10), 30, Some(Size::Replicas(3)))]
#[case(bot(3), 1, Some(Size::Replicas(1)))]
#[case(bot(3), 100, Some(Size::Replicas(3)))]
#[case(bot(1), 50, Some(Size::Replicas(1)))]
#[case(bot(0), 50, None)]
#[case(bot(i32::MAX), 100, Some(Size::Replicas(i32::MAX)))]
#[case(nightly(false), 99, None)]
#[case(nightly(false), 100, Some(Size::Suspended(false)))]
#[case(nightly(true), 100, None)]
#[case(daemon(false), 99, None)]
#[case(daemon(false), 100, Some(Size::Suspended(false)))]
#[case(daemon(true), 100, None)]
fn a_share_is_rounded_up(#[case] workload: LatchedWorkload, #[case] percent: u32, #[case] expected: Option<Size>) {
    assert_eq!(target(&workload, percent), expected);
}

const fn replicas(n: i32) -> Size {
    Size::Replicas(n)
}

#[rstest]
#[case::first(bot(4), replicas(0), 0, 50, false, Restoring::Raise(replicas(2)))]
#[case::somebody_started_it(bot(4), replicas(1), 0, 50, false, Restoring::Leave)]
#[case::the_next(bot(4), replicas(2), 50, 100, true, Restoring::Raise(replicas(4)))]
#[case::once_more(bot(4), replicas(4), 50, 100, true, Restoring::Leave)]
#[case::somebody_stopped_it(bot(4), replicas(0), 50, 100, true, Restoring::Leave)]
#[case::somebody_scaled_it(bot(4), replicas(3), 50, 100, true, Restoring::Leave)]
#[case::another_halt_held_it_before(bot(4), replicas(0), 50, 100, false, Restoring::Raise(replicas(4)))]
#[case::nothing_more_to_give(bot(1), replicas(1), 50, 100, true, Restoring::Leave)]
#[case::not_yet(nightly(false), Size::Suspended(true), 0, 50, false, Restoring::Leave)]
#[case::with_the_last(nightly(false), Size::Suspended(true), 50, 100, false, Restoring::Raise(Size::Suspended(false)))]
fn a_stage_raises_what_still_has_what_it_was_given(
    #[case] workload: LatchedWorkload,
    #[case] live: Size,
    #[case] before: u32,
    #[case] now: u32,
    #[case] brought: bool,
    #[case] expected: Restoring,
) {
    assert_eq!(raising(&workload, live, before, now, brought), expected);
}

fn step(name: &str, state: StepState) -> StepStatus {
    StepStatus { name: name.into(), state, attempts: i64::from(state != StepState::Pending), ..StepStatus::default() }
}

use StepState::{Pending, Running, Skipped, Succeeded};

#[rstest]
#[case::without_stages(&[("restore-workloads", Running)], false, false)]
#[case::without_stages_done(&[("restore-workloads", Succeeded)], true, false)]
#[case::not_begun(&[("a-workloads", Pending), ("b-workloads", Pending)], false, false)]
#[case::in_the_first(&[("a-workloads", Succeeded), ("a-hold", Running), ("b-workloads", Pending)], false, true)]
#[case::in_the_last(&[("a-workloads", Succeeded), ("b-workloads", Running)], false, true)]
#[case::everything(&[("a-workloads", Succeeded), ("b-workloads", Succeeded), ("b-hold", Running)], true, false)]
#[case::nothing_to_bring_back(&[("a-workloads", Skipped), ("b-workloads", Skipped)], true, false)]
#[case::a_venue_of_that_name(&[("restore-workloads", Succeeded), ("allow-trading-x-workloads", Running)], true, false)]
fn what_is_back_follows_from_the_journal(#[case] steps: &[(&str, StepState)], #[case] all: bool, #[case] partly: bool) {
    let steps: Vec<_> = steps.iter().map(|(name, state)| step(name, *state)).collect();
    assert_eq!((all_back(&steps), partly_back(&steps)), (all, partly));
}

#[test]
fn the_stage_is_the_last_one_that_was_begun() {
    let stages = ["a".to_owned(), "b".to_owned()];
    let at = |steps: &[(&str, StepState)]| {
        let steps: Vec<_> = steps.iter().map(|(name, state)| step(name, *state)).collect();
        current(&stages, &steps).map(str::to_owned)
    };
    assert_eq!(at(&[("release", Succeeded), ("a-limits", Pending)]), None);
    assert_eq!(at(&[("a-limits", Running), ("b-limits", Pending)]).as_deref(), Some("a"));
    assert_eq!(at(&[("a-hold", Succeeded), ("b-limits", Running), ("watch", Pending)]).as_deref(), Some("b"));
    assert_eq!(at(&[("b-hold", Succeeded), ("watch", Running)]).as_deref(), Some("watch"));
    assert!(holds("a-hold") && holds("watch") && !holds("a-ready") && !holds("allow-trading-x-hold"));
}

fn limit(name: &str, by: Value) -> Value {
    json!({"name": name, "set": by, "read": {"http": {"url": "https://bot.example/limits"}, "path": "$.percent"}})
}

fn by_http() -> Value {
    json!({"http": {"method": "PUT", "url": "https://bot.example/limits", "body": {"percent": "{value}"}}})
}

fn by_map() -> Value {
    json!({"configMap": {"name": "limits", "key": "percent"}})
}

fn with(spec: Value) -> TradingSystem {
    let mut all = serde_json::to_value(system()).unwrap();
    for (key, value) in spec.as_object().unwrap() {
        all["spec"][key] = value.clone();
    }
    serde_json::from_value(all).unwrap()
}

/// S2-37: what cannot be carried out is said when the resume is first seen, not when trading has begun.
#[rstest]
#[case::unknown_limit(
    json!({"ramp": [{"name": "a", "limits": {"size": "1"}}]}), json!({"limits": [limit("percent", by_map())]}),
    "the TradingSystem has no limit size: there are percent"
)]
#[case::no_limits(json!({"ramp": [{"name": "a", "limits": {"size": "1"}}]}), json!({}), "no limit size: there is none")]
#[case::different_limits(
    json!({"ramp": [{"name": "a", "limits": {"percent": "1"}}, {"name": "b"}]}),
    json!({"limits": [limit("percent", by_map())]}), "stage b has other limits than a"
)]
#[case::shrinking(
    json!({"ramp": [{"name": "a", "replicasPercent": 50}, {"name": "b", "replicasPercent": 20}]}), json!({}),
    "stage b has fewer replicas than a"
)]
#[case::not_all_back(json!({"ramp": [{"name": "a", "replicasPercent": 50}]}), json!({}), "must bring everything back")]
#[case::reserved(json!({"ramp": [{"name": "watch"}]}), json!({}), "a stage cannot be called watch")]
#[case::of_a_step(json!({"ramp": [{"name": "allow-trading"}]}), json!({}), "a stage cannot be called allow-trading")]
#[case::unknown_check(
    json!({"ramp": [{"name": "a", "checks": {"names": ["x"]}}]}), json!({}),
    "stage a: the resume has no check x: there are api"
)]
#[case::unknown_group(
    json!({"watch": {"for": "1m", "checks": {"groups": ["data"]}}}), json!({}),
    "watch: the resume has no check of the group data"
)]
#[case::too_often(json!({"thresholds": {"interval": "10ms"}}), json!({}), "thresholds.interval is at least 1s")]
#[case::http_without_suspension(
    json!({"ramp": [{"name": "a", "limits": {"percent": "1"}}]}), json!({"limits": [limit("percent", by_http())]}),
    "that needs suspendTrading and tradingSuspended of every venue (venue alpaca has not both)"
)]
#[case::http_without_venues(
    json!({"ramp": [{"name": "a", "limits": {"percent": "1"}}]}),
    json!({"venues": [], "limits": [limit("percent", by_http())]}), "(there is no venue)"
)]
#[case::http_and_more_pods(
    json!({"ramp": [
        {"name": "a", "replicasPercent": 34, "limits": {"percent": "1"}}, {"name": "b", "limits": {"percent": "2"}},
    ]}),
    json!({"limits": [limit("percent", by_http())],
        "applicationHalt": {"request": {"url": "https://bot.example/halt"}, "startsHalted": true}}),
    "Deployment bot gets more pods in a later stage"
)]
#[case::http_without_a_value(
    json!({"ramp": [{"name": "a", "limits": {"percent": "1"}}]}),
    json!({"limits": [limit("percent", json!({"http": {"method": "PUT", "url": "https://bot.example/limits"}}))],
        "applicationHalt": {"request": {"url": "https://bot.example/halt"}, "startsHalted": true}}),
    "limit percent: its request does not tell the value"
)]
fn what_cannot_be_carried_out_fails_at_first_sight(#[case] policy: Value, #[case] spec: Value, #[case] expected: &str) {
    let mut spec = spec;
    spec["resumePolicy"] = policy;
    let accepted = accept(&resume(json!({})), &[halt("stale", BORN - 60, json!({}))], Some(&with(spec)), &[]);
    let why = accepted.unwrap_err();
    assert!(why.contains(expected), "{why}");
}

#[rstest]
#[case::in_a_config_map(by_map(), json!({}))]
#[case::a_bot_that_starts_halted(
    by_http(), json!({"applicationHalt": {"request": {"url": "https://bot.example/halt"}, "startsHalted": true}})
)]
#[case::a_suspended_venue(by_http(), json!({"venues": [{
    "name": "alpaca", "suspendTrading": [{"http": {"method": "POST", "url": "https://alpaca.example/suspend"}}],
    "tradingSuspended": {"http": {"url": "https://alpaca.example/a"}, "path": "$.s", "expect": {"equals": true}},
}]}))]
fn limits_that_can_be_set_in_time_are_part_of_the_plan(#[case] set: Value, #[case] spec: Value) {
    let mut spec = spec;
    spec["limits"] = json!([limit("percent", set), limit("unused", by_map())]);
    let limits = |value: &str| json!({"percent": value});
    spec["resumePolicy"] =
        json!({"ramp": [{"name": "small", "limits": limits("0.5")}, {"name": "full", "limits": limits("2")}]});
    let plan = accept(&resume(json!({})), &[halt("stale", BORN - 60, json!({}))], Some(&with(spec)), &[]).unwrap();
    assert_eq!(plan.limits.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(), ["percent"]);
    let (frozen, _) = plan.freeze().unwrap();
    assert_eq!(frozen["policy"]["ramp"][0]["limits"]["percent"], "0.5");
}

#[rstest]
#[case(json!({"http": {"url": "https://alpaca.example/orders"}}), "put {since} into its url or body")]
#[case(json!({"http": {"url": "https://alpaca.example/orders?after={since}"}, "count": "$.n"}), "leave out count")]
#[case(json!({"job": {"image": "orders"}}), "a Job cannot do")]
#[case(json!({"http": {"url": "https://alpaca.example/orders?after={since}"}, "items": "$["}), "items")]
fn orders_that_cannot_be_listed_at_every_look_fail_at_first_sight(#[case] read: Value, #[case] expected: &str) {
    let venues = json!([{"name": "alpaca", "ordersSince": read}]);
    let policy: ResumePolicy = serde_json::from_value(json!({"watch": {"for": "1m"}})).unwrap();
    let why = resolve(&policy, &with(json!({"venues": venues})).spec, &[], &[]).unwrap_err();
    assert!(why.contains("ordersSince of venue alpaca") && why.contains(expected), "{why}");
}

#[test]
fn further_checks_must_pass_like_the_systems_and_have_names_of_their_own() {
    let extra = |name: &str| {
        json!({"checks": {"names": ["api"]}, "extraChecks": [
            {"name": name, "group": "data", "http": {"request": {"url": "https://feed.example/"}}}]})
    };
    let accept = |name| accept(&resume(extra(name)), &[halt("stale", BORN - 60, json!({}))], Some(&system()), &[]);
    let names: Vec<_> = accept("feed").unwrap().checks.iter().map(|c| c.name.clone()).collect();
    assert_eq!(names, ["api", "feed"]);
    assert!(accept("exchange").unwrap_err().contains("there is a check exchange already"));
}
