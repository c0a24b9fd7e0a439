//! Tables of how long stages are held, and of what goes wrong in them.

use std::time::Duration;

use rstest::rstest;
use standfast_crds::v1alpha1::{CheckState, OnRegression};

use crate::resume::hold::{Course, Fault, Rules, Stage, Streak, Verdict, Watched, course, to_write};
use crate::sight::InSight;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Looks at these seconds of a clock that only goes on, with an interval of 5 s.
#[rstest]
#[case::the_first_adds_nothing(&[(0, true)], 0)]
#[case::regular(&[(0, true), (5, true), (10, true)], 10)]
#[case::a_little_late(&[(0, true), (7, true), (15, true)], 15)]
#[case::an_outage_counts_as_two_intervals(&[(0, true), (5, true), (3600, true)], 15)]
#[case::what_failed_between_does_not_count(&[(0, true), (5, true), (10, false), (15, true), (20, true)], 10)]
#[case::nothing_passes(&[(0, false), (5, false)], 0)]
#[case::the_same_moment(&[(5, true), (5, true)], 0)]
#[case::a_clock_that_does_not_go_on(&[(10, true), (5, true), (10, true)], 5)]
fn time_counts_between_looks_that_passed(#[case] looks: &[(u64, bool)], #[case] expected: u64) {
    let mut held = InSight::default();
    for (at, passes) in looks {
        held.look(s(*at), *passes, s(5));
    }
    assert_eq!(held.total(), s(expected));
}

/// An operator that was restarted goes on from what was written down, and its clock begins anew.
#[test]
fn a_restart_extends_a_stage() {
    let mut held = InSight::from(s(40));
    held.look(s(1), true, s(5));
    assert_eq!(held.total(), s(40));
    held.look(s(6), true, s(5));
    assert_eq!(held.total(), s(45));
}

#[rstest]
#[case::never_written(None, 0, true)]
#[case::a_little(Some(5), 14, false)]
#[case::ten_seconds(Some(5), 15, true)]
#[case::it_begins_anew(Some(30), 0, true)]
#[case::nothing_new(Some(30), 30, false)]
fn held_time_is_written_at_most_every_ten_seconds(
    #[case] written: Option<u64>,
    #[case] held: u64,
    #[case] expected: bool,
) {
    assert_eq!(to_write(written.map(s), s(held)), expected);
}

#[test]
fn a_streak_needs_looks_that_are_apart_and_begins_anew() {
    let mut streak = Streak::default();
    assert_eq!(streak.due(s(100), s(5)), s(0));
    assert_eq!([streak.look(s(100), true), streak.look(s(105), true)], [1, 2]);
    assert_eq!((streak.due(s(107), s(5)), streak.due(s(110), s(5))), (s(3), s(0)));
    assert_eq!([streak.look(s(110), false), streak.look(s(115), true)], [0, 1]);
}

fn watched(name: &str, state: CheckState, at_once: bool) -> Watched {
    Watched { name: name.into(), state, message: "found 7".into(), at_once }
}

fn rules(on: OnRegression, failures: u32) -> Rules {
    Rules { need: s(10), interval: s(5), failures, on }
}

use CheckState::{Failing, Passing, Unknown};

/// One check, looked at every 5 s, and one thing that counts at once: when it goes wrong, by the number of the look.
#[rstest]
#[case::once_is_enough(1, &[Passing, Failing], &[], Some(2))]
#[case::unknown_counts_too(1, &[Passing, Unknown], &[], Some(2))]
#[case::not_often_enough(3, &[Failing, Failing, Passing, Failing, Unknown], &[], None)]
#[case::in_a_row(3, &[Failing, Unknown, Failing], &[], Some(3))]
#[case::another_limit_counts_at_once(3, &[Passing, Passing], &[Passing, Failing], Some(2))]
#[case::a_limit_that_is_not_told_does_not(3, &[Passing, Passing], &[Unknown, Unknown], None)]
#[case::unless_often(3, &[Passing, Passing, Passing], &[Unknown, Unknown, Unknown], Some(3))]
fn what_fails_often_enough_goes_wrong(
    #[case] failures: u32,
    #[case] check: &[CheckState],
    #[case] limit: &[CheckState],
    #[case] expected: Option<usize>,
) {
    let mut stage = Stage::default();
    // No end in sight.
    let rules = Rules { need: s(3600), ..rules(OnRegression::ReHalt, failures) };
    let regressed = check.iter().enumerate().position(|(n, state)| {
        let mut seen = vec![watched("check api", *state, false)];
        seen.extend(limit.get(n).map(|state| watched("limit size", *state, true)));
        let at = s(5 * u64::try_from(n).unwrap());
        matches!(stage.look(at, &seen, false, &rules), Verdict::Regressed(f) if f.message == "found 7")
    });
    assert_eq!(regressed.map(|n| n + 1), expected);
    assert_eq!(stage.fault().is_some(), expected.is_some());
}

/// What comes of one failure in the middle of a stage of 10 s.
#[rstest]
#[case::notify_goes_on(OnRegression::Notify, &[(0, true), (5, true), (10, false), (15, true)], 5, Some(20))]
#[case::hold_begins_anew(OnRegression::Hold, &[(0, true), (5, true), (10, false), (15, true)], 0, Some(25))]
#[case::re_halt_is_the_end(OnRegression::ReHalt, &[(0, true), (5, true), (10, false)], 5, None)]
fn the_answer_to_a_regression(
    #[case] on: OnRegression,
    #[case] looks: &[(u64, bool)],
    #[case] held: u64,
    #[case] done_at: Option<u64>,
) {
    let mut stage = Stage::default();
    let rules = rules(on, 1);
    let look = |stage: &mut Stage, at: u64, passes: bool| {
        let state = if passes { Passing } else { Failing };
        stage.look(s(at), &[watched("check api", state, false)], false, &rules)
    };
    for (at, passes) in looks {
        let verdict = look(&mut stage, *at, *passes);
        let fault = Fault { check: "check api".into(), message: "found 7".into() };
        match (passes, on) {
            (false, OnRegression::ReHalt) => assert_eq!(verdict, Verdict::Regressed(fault)),
            (false, _) => {
                assert_eq!(verdict, Verdict::Holding("check api is failing: found 7".into()));
                assert_eq!(stage.fault(), Some(&fault));
            }
            (true, _) => assert_eq!((verdict, stage.fault()), (Verdict::Holding(String::new()), None)),
        }
    }
    assert_eq!(stage.held(), s(held));
    let Some(done_at) = done_at else { return };
    let next = looks.last().unwrap().0 + 5;
    let done = (next..).step_by(5).find(|at| look(&mut stage, *at, true) == Verdict::Done);
    assert_eq!(done, Some(done_at));
}

/// S1-36: a pause does not count, and what goes wrong in it does.
#[test]
fn a_pause_does_not_count_and_is_watched() {
    let (mut stage, rules) = (Stage::default(), rules(OnRegression::ReHalt, 1));
    let (good, bad) = ([watched("check api", Passing, false)], [watched("check api", Failing, false)]);
    for at in [0, 5] {
        stage.look(s(at), &good, false, &rules);
    }
    for at in [10, 15, 20, 25] {
        let paused = stage.look(s(at), &good, true, &rules);
        assert_eq!(paused, Verdict::Holding("paused: its time does not count".into()));
    }
    assert_eq!(stage.held(), s(5));
    // The first look after the pause adds nothing.
    assert_eq!(stage.look(s(30), &good, false, &rules), Verdict::Holding(String::new()));
    assert_eq!(stage.held(), s(5));
    assert!(matches!(stage.look(s(35), &bad, true, &rules), Verdict::Regressed(_)));
}

#[test]
fn a_stage_is_looked_at_when_it_may_have_held_and_at_least_once() {
    let rules = rules(OnRegression::ReHalt, 1);
    let good = [watched("check api", Passing, false)];
    let mut stage = Stage::from(s(8));
    assert_eq!(stage.due(s(0), &rules), s(0));
    stage.look(s(0), &good, false, &rules);
    assert_eq!((stage.due(s(0), &rules), stage.due(s(1), &rules), stage.due(s(2), &rules)), (s(2), s(1), s(0)));
    assert_eq!(stage.look(s(2), &good, false, &rules), Verdict::Done);
    let at_once = Rules { need: s(0), ..rules };
    assert_eq!(Stage::default().look(s(0), &good, false, &at_once), Verdict::Done);
    assert!(matches!(
        Stage::default().look(s(0), &[watched("a", Failing, false)], false, &at_once),
        Verdict::Regressed(_)
    ));
}

#[rstest]
#[case(true, true, false, Course::Ended)]
#[case(true, true, true, Course::Abort)]
#[case(false, true, true, Course::TakeBack)]
#[case(false, true, false, Course::TakeBack)]
#[case(false, false, true, Course::Abort)]
#[case(false, false, false, Course::Advance)]
fn what_was_written_down_as_going_wrong_comes_first(
    #[case] finished: bool,
    #[case] regressed: bool,
    #[case] aborts: bool,
    #[case] expected: Course,
) {
    assert_eq!(course(finished, regressed, aborts), expected);
}
