//! Tables of the pure core.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use rstest::rstest;
use standfast_crds::v1alpha1::{StepState, StepStatus};

use crate::engine::*;

pub(super) const NOW: i64 = 1_000_000;

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn once(name: &str) -> Definition {
    Definition { repeatable: false, timeout: Some(Duration::from_secs(600)), ..Definition::new(name) }
}

pub(super) fn running(name: &str, deadline: Option<i64>, epoch: i64) -> StepStatus {
    StepStatus {
        name: name.into(),
        state: StepState::Running,
        attempts: 1,
        started_at: Some(MicroTime(at(NOW - 30))),
        operation_id: Some(format!("u/{name}/1")),
        deadline: deadline.map(|d| MicroTime(at(d))),
        epoch: Some(epoch),
        ..StepStatus::default()
    }
}

fn ask(definition: Definition, entry: StepStatus, seen: Option<Observation>, controls: Controls) -> Decision {
    let observed = seen.map(|o| (definition.name.clone(), o)).into_iter().collect();
    let moment = Moment { now: at(NOW), epoch: 3, run: "u" };
    decide(&[vec![definition]], &[entry], &observed, moment, controls)
}

fn state(decision: &Decision) -> (StepState, i64) {
    match decision {
        Decision::Record { steps, .. } => (steps[0].state, steps[0].attempts),
        other => panic!("{other:?}"),
    }
}

#[rstest]
#[case::done(Some(NOW - 1), Observation::Done("x".into()), StepState::Succeeded)]
#[case::adopted_before_the_deadline(Some(NOW + 5), Observation::Done("x".into()), StepState::Succeeded)]
#[case::failed(None, Observation::Failed("x".into()), StepState::Failed)]
#[case::it_did_not_happen(Some(NOW - 1), Observation::NotDone("x".into()), StepState::Pending)]
#[case::begun_and_gone(None, Observation::NotDone("x".into()), StepState::Indeterminate)]
#[case::unknown_for_long(Some(NOW - 61), Observation::Unknown("x".into()), StepState::Indeterminate)]
#[case::unknown_for_a_moment(Some(NOW - 1), Observation::Unknown("x".into()), StepState::Running)]
#[case::on_the_way(Some(NOW - 1), Observation::InProgress("x".into()), StepState::Running)]
#[case::it_can_never_be_told(None, Observation::Indeterminate("x".into()), StepState::Indeterminate)]
fn an_effect_that_may_not_be_repeated(
    #[case] deadline: Option<i64>,
    #[case] seen: Observation,
    #[case] becomes: StepState,
) {
    let decision = ask(once("a"), running("a", deadline, 3), Some(seen), Controls::default());
    assert_eq!(state(&decision), (becomes, 1));
    assert!(matches!(decision, Decision::Record { begin, .. } if begin.is_empty()));
}

#[rstest]
#[case::begun_and_gone(None, Observation::NotDone("x".into()), StepState::Pending)]
#[case::unknown(Some(NOW - 1), Observation::Unknown("x".into()), StepState::Pending)]
#[case::it_did_not_happen(Some(NOW - 1), Observation::NotDone("x".into()), StepState::Pending)]
fn an_effect_that_may_be_repeated(
    #[case] deadline: Option<i64>,
    #[case] seen: Observation,
    #[case] becomes: StepState,
) {
    let decision = ask(Definition::new("a"), running("a", deadline, 3), Some(seen), Controls::default());
    assert_eq!(state(&decision), (becomes, 1));
}

#[test]
fn a_call_that_may_be_under_way_is_not_made_again() {
    let seen = Some(Observation::NotDone("x".into()));
    for definition in [once("a"), Definition::new("a")] {
        let decision = ask(definition, running("a", Some(NOW + 5), 3), seen.clone(), Controls::default());
        assert!(matches!(decision, Decision::Wait(t) if t <= Duration::from_secs(5)), "{decision:?}");
    }
}

#[test]
fn an_intent_of_another_term_is_looked_at_and_not_acted_on_before_its_deadline() {
    let entry = running("a", Some(NOW + 1), 2);
    assert_eq!(ask(once("a"), entry.clone(), None, Controls::default()), Decision::Observe(vec!["a".into()]));
    for seen in [Observation::NotDone("x".into()), Observation::Unknown("x".into())] {
        let decision = ask(once("a"), entry.clone(), Some(seen), Controls::default());
        assert_eq!(decision, Decision::Wait(Duration::from_secs(1)));
    }
    let decision = ask(once("a"), entry, Some(Observation::Done("x".into())), Controls::default());
    assert_eq!(state(&decision).0, StepState::Succeeded);
    let newer = |deadline| ask(once("a"), running("a", deadline, 4), None, Controls::default());
    assert_eq!(newer(Some(NOW + 1)), Decision::Superseded);
    assert_eq!(newer(Some(NOW - 1)), Decision::Observe(vec!["a".into()]));
}

#[test]
fn a_message_that_changes_at_every_look_moves_nothing() {
    let definition = Definition { interval: Duration::from_secs(5), ..Definition::new("a") };
    for seen in [Observation::InProgress("it is 12:00:01".into()), Observation::Unknown("it is 12:00:01".into())] {
        let entry = StepStatus { message: Some("it is 12:00:00".into()), ..running("a", None, 3) };
        let decision = ask(definition.clone(), entry, Some(seen.clone()), Controls::default());
        let Decision::Record { steps, begin, wait } = decision else { panic!("{decision:?}") };
        assert_eq!((begin.len(), wait), (0, Some(Duration::from_secs(5))));
        assert_eq!(steps[0].message.as_deref(), Some("it is 12:00:01"));
        // Said already.
        let decision = ask(definition.clone(), steps[0].clone(), Some(seen), Controls::default());
        assert_eq!(decision, Decision::Wait(Duration::from_secs(5)));
    }
    // Another step of the wave ends: there is more to do at once.
    let waves = [vec![definition.clone(), Definition::new("b")]];
    let seen = [("a", Observation::InProgress("x".into())), ("b", Observation::Done("x".into()))];
    let seen = seen.into_iter().map(|(name, seen)| (name.to_owned(), seen)).collect();
    let moment = Moment { now: at(NOW), epoch: 3, run: "u" };
    let journal = [running("a", None, 3), running("b", None, 3)];
    let decision = decide(&waves, &journal, &seen, moment, Controls::default());
    assert!(matches!(&decision, Decision::Record { wait: None, .. }), "{decision:?}");
}

#[test]
fn attempts_are_numbered_and_spaced() {
    let fresh = StepStatus { name: "a".into(), ..StepStatus::default() };
    let Decision::Record { steps, begin, .. } = ask(once("a"), fresh, None, Controls::default()) else { panic!() };
    assert_eq!(begin, ["a"]);
    assert_eq!((steps[0].operation_id.as_deref(), steps[0].epoch), (Some("u/a/1"), Some(3)));
    assert_eq!(steps[0].deadline, Some(MicroTime(at(NOW + 14))));

    let again = settle(&once("a"), &steps[0], &Acted::Again("busy".into()), at(NOW - 1));
    assert_eq!((again.state, again.attempts, again.message.as_deref()), (StepState::Pending, 1, Some("busy")));
    let later = StepStatus { finished_at: Some(MicroTime(at(NOW))), ..again.clone() };
    assert_eq!(ask(once("a"), later, None, Controls::default()), Decision::Wait(Duration::from_secs(1)));
    let Decision::Record { steps, .. } = ask(once("a"), again, None, Controls::default()) else { panic!() };
    assert_eq!((steps[0].operation_id.as_deref(), steps[0].attempts), (Some("u/a/2"), 2));
}

#[test]
fn a_pause_stops_before_the_next_step_and_lets_running_ones_end() {
    let paused = Controls { paused: true, abort: false };
    let fresh = StepStatus { name: "a".into(), ..StepStatus::default() };
    assert_eq!(ask(once("a"), fresh.clone(), None, paused), Decision::Paused);
    let decision = ask(once("a"), running("a", None, 3), Some(Observation::Done("x".into())), paused);
    assert_eq!(state(&decision).0, StepState::Succeeded);
    let late = Definition { until: Some(at(NOW)), ..once("a") };
    assert_eq!(state(&ask(late, fresh, None, paused)).0, StepState::Failed);
    let aborted = ask(once("a"), running("a", None, 3), None, Controls { paused: false, abort: true });
    assert_eq!(aborted, Decision::Ended(End::Aborted));
}

#[rstest]
#[case(Definition::new("a"), Observation::InProgress("x".into()), StepState::Failed)]
#[case(once("a"), Observation::InProgress("x".into()), StepState::Indeterminate)]
#[case(once("a"), Observation::Unknown("x".into()), StepState::Indeterminate)]
#[case(Definition::new("a"), Observation::Unknown("x".into()), StepState::Failed)]
fn time_that_is_over(#[case] definition: Definition, #[case] seen: Observation, #[case] becomes: StepState) {
    let definition = Definition { timeout: Some(Duration::from_secs(10)), ..definition };
    let decision = ask(definition, running("a", None, 3), Some(seen), Controls::default());
    assert_eq!(state(&decision).0, becomes);
}

#[test]
fn a_failed_step_lets_its_wave_end_and_stops_the_rest() {
    let waves = [vec![once("a"), once("b")], vec![once("c")]];
    let failed = StepStatus { name: "a".into(), state: StepState::Failed, ..StepStatus::default() };
    let moment = Moment { now: at(NOW), epoch: 3, run: "u" };
    let journal = [failed.clone(), running("b", None, 3)];
    let ask = |journal: &[StepStatus], observed: &_| decide(&waves, journal, observed, moment, Controls::default());
    assert_eq!(ask(&journal, &BTreeMap::new()), Decision::Observe(vec!["b".into()]));
    let seen = [("b".to_owned(), Observation::Done(String::new()))].into();
    let Decision::Record { steps, begin, .. } = ask(&journal, &seen) else { panic!() };
    assert!(begin.is_empty());
    assert_eq!(ask(&steps, &BTreeMap::new()), Decision::Ended(End::Failed("a".into())));
    let retried = StepStatus { name: "b".into(), attempts: 2, ..StepStatus::default() };
    assert_eq!(ask(&[failed, retried], &BTreeMap::new()), Decision::Ended(End::Failed("a".into())));
}
