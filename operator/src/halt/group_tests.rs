use rstest::rstest;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::condition;

use super::*;
use crate::held;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000 + second).unwrap()
}

fn halt(name: &str, spec: Value, status: Value) -> TradingHalt {
    serde_json::from_value(json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt",
        "metadata": {"name": name, "namespace": "fx", "uid": format!("uid-{name}")}, "spec": spec, "status": status}))
    .unwrap()
}

fn group(selector: Value) -> TradingHalt {
    let spec = json!({"systemSelector": selector, "reason": "x", "requestedBy": "anna",
        "orders": {"cancel": "NonProtective"}, "positions": {"action": "CloseAll"}});
    halt("all", spec, json!({}))
}

fn entry(system: &str) -> SystemHalt {
    SystemHalt { system: system.into(), halt: format!("all-{system}"), ..SystemHalt::default() }
}

/// A halt of a system, in this phase, proven until second 100.
fn in_phase(phase: &str) -> Member {
    let said = json!([{"type": "Halted", "status": "False", "reason": "R", "message": format!("it says {phase}"),
        "lastTransitionTime": "2026-11-26T15:00:00Z"}]);
    let status = json!({"phase": phase, "conditions": said, "openOrders": 1, "runningPods": 2,
        "lastVerifiedAt": format!("{:.6}", at(0)), "verifiedUntil": format!("{:.6}", at(100))});
    Member::There(Box::new(halt("all-a", json!({"systemRef": {"name": "a"}, "reason": "x"}), status)))
}

fn unseen() -> Member {
    let spec = json!({"systemRef": {"name": "a"}, "reason": "x"});
    Member::There(Box::new(halt("all-a", spec, json!({}))))
}

fn verdict(members: &[Member], now: Timestamp) -> Verdict {
    let shown: Vec<_> = ["a", "b", "c"].iter().zip(members).map(|(system, m)| show(&entry(system), m, now)).collect();
    judge(&shown)
}

#[rstest]
#[case::all(&["Halted", "Halted", "Halted"], "Halted", "True", "all 3 systems are halted, each proven by its own halt")]
#[case::one_on_the_way(&["Halted", "Fencing", "Halted"], "Fencing", "False", "2 of 3 systems are halted; b Fencing: it says Fencing")]
#[case::the_earliest_phase(&["Closing", "Verifying", "Halted"], "Closing", "False", "1 of 3 systems are halted; a Closing: it says Closing; b Verifying: it says Verifying")]
#[case::verifying(&["Verifying", "Halted"], "Verifying", "False", "1 of 2 systems are halted; a Verifying: it says Verifying")]
#[case::unverified_is_the_worst(&["Fencing", "Unverified", "Halted"], "Unverified", "Unknown", "1 of 3 systems are halted; b Unverified: it says Unverified; a Fencing: it says Fencing")]
#[case::its_system_is_gone(&["Halted", "Pending"], "Unverified", "Unknown", "1 of 2 systems are halted; b Unverified: it says Pending")]
#[case::some_released(&["Released", "Halted"], "Releasing", "False", "1 of 2 systems are halted, 1 released")]
#[case::released_before_all_were_halted(&["Released", "Fencing"], "Fencing", "False", "0 of 2 systems are halted, 1 released; b Fencing: it says Fencing")]
#[case::all_released(&["Released", "Released"], "Released", "False", "all 2 halts were released")]
fn a_group_is_as_well_as_the_worst_of_its_halts(
    #[case] phases: &[&str],
    #[case] phase: &str,
    #[case] halted: &str,
    #[case] message: &str,
) {
    let members: Vec<_> = phases.iter().map(|p| in_phase(p)).collect();
    let said = verdict(&members, at(10));
    assert_eq!(
        (said.phase.as_str(), said.halted.0, said.message.as_str(), said.stuck),
        (phase, halted, message, false)
    );
}

#[test]
fn what_is_not_there_is_not_halted() {
    let refused = || Member::NotMade(Some("forbidden".into()));
    for (members, now, phase, reason, part, stuck) in [
        (vec![in_phase("Halted"), refused()], 10, "Fencing", "HaltsNotMade", "b its halt is not made: forbidden", true),
        (vec![in_phase("Unverified"), refused()], 10, "Fencing", "HaltsNotMade", "; b its halt is not made", true),
        (vec![in_phase("Halted"), Member::NotMade(None)], 10, "Fencing", "HaltsNotMade", "is being made", false),
        (vec![in_phase("Halted"), unseen()], 10, "Fencing", "Fencing", "1 of 2", false),
        (vec![in_phase("Halted"), Member::Gone], 10, "Unverified", "HaltDeleted", "all-b was deleted", false),
        (
            vec![in_phase("Halted"), Member::Unread("no answer".into())],
            10,
            "Unverified",
            "Unverified",
            "no answer",
            false,
        ),
        (
            vec![in_phase("Released"), Member::Gone],
            10,
            "Unverified",
            "HaltDeleted",
            "0 of 2 systems are halted, 1 released; b TradingHalt all-b was deleted",
            false,
        ),
        (vec![Member::Gone, Member::Gone], 10, "Unverified", "HaltDeleted", "b TradingHalt all-b was deleted", false),
        // The proof of one is too old.
        (vec![in_phase("Halted")], 100, "Unverified", "Unverified", "too old to count", false),
    ] {
        let said = verdict(&members, at(now));
        assert_eq!((said.phase.as_str(), said.halted.1, said.stuck), (phase, reason, stuck), "{members:?}");
        assert!(said.message.contains(part), "{part}: {}", said.message);
    }
}

/// Proven, and this condition `PositionsClosed`.
fn halted_with(positions: (&str, &str, &str)) -> Member {
    let Member::There(mut halt) = in_phase("Halted") else { unreachable!() };
    let status = halt.status.as_mut().unwrap();
    let (value, reason, message) = positions;
    set_condition(&mut status.conditions, at(0), Some(1), (c::POSITIONS_CLOSED, value, reason), message.to_owned());
    Member::There(halt)
}

#[test]
fn positions_that_were_kept_are_told_of_proven_halts_too() {
    let kept = || halted_with(("False", "NotAllowed", "positions were kept: CloseAll is not among those allowed"));
    let flat = || halted_with(("True", "Flat", "3 reads in a row found no position"));
    let message = |member: &Member| show(&entry("a"), member, at(10)).0.message;
    assert_eq!(message(&kept()).as_deref(), Some("positions were kept: CloseAll is not among those allowed"));
    assert_eq!((message(&flat()), message(&in_phase("Halted"))), (None, None), "the phase says it");
    let unjudged = halted_with(("False", "NotJudged", "positions were kept that could not be judged: OLD"));
    let said = verdict(&[kept(), flat(), unjudged], at(10));
    assert_eq!((said.phase, said.halted), (HaltPhase::Halted, ("True", "Proven")));
    assert_eq!(
        said.message,
        "all 3 systems are halted, each proven by its own halt; positions were kept at: a, c: see status.systems"
    );
    let said = verdict(&[in_phase("Released"), kept()], at(10));
    assert_eq!(said.phase, HaltPhase::Releasing);
    assert!(said.message.ends_with("1 released; positions were kept at: b: see status.systems"), "{}", said.message);
    let said = verdict(&[kept()], at(100)).message;
    assert!(said.ends_with("a Unverified: the last proof is too old to count"), "{said}");
    let many: Vec<_> = (0..12).map(|n| show(&entry(&format!("s{n}")), &kept(), at(10))).collect();
    let said = judge(&many).message;
    assert!(said.ends_with("kept at: s0, s1, s2, s3, s4 and 7 more: see status.systems"), "{said}");
}

#[test]
fn one_that_was_released_and_cleaned_away_stays_released() {
    let released = SystemHalt { phase: HaltPhase::Released, halt_uid: Some("u".into()), ..entry("a") };
    for member in [Member::Gone, Member::Unread("no answer".into())] {
        assert_eq!(show(&released, &member, at(0)), (released.clone(), Standing::Released));
    }
}

#[test]
fn the_status_adds_up_what_holds_and_is_proven_as_of_the_oldest_proof() {
    let apply = |members: Vec<Member>, status: &mut TradingHaltStatus, now| {
        let halts = ["a", "b"].iter().zip(&members).map(|(system, m)| show(&entry(system), m, now)).collect();
        apply(status, halts, &members, Some(1), now);
    };
    let mut status = TradingHaltStatus { systems: vec![entry("a"), entry("b")], ..TradingHaltStatus::default() };
    apply(vec![in_phase("Fencing"), Member::NotMade(None)], &mut status, at(1));
    assert_eq!((status.open_orders, status.running_pods), (None, None), "not known of one is not known");
    apply(vec![in_phase("Halted"), in_phase("Halted")], &mut status, at(2));
    assert_eq!((status.open_orders, status.running_pods), (Some(2), Some(4)));
    assert_eq!(status.verified_until, Some(MicroTime(at(100))));
    assert_eq!(status.times.halted_at, Some(MicroTime(at(2))));
    let ready = |s: &TradingHaltStatus| {
        [c::READY, c::RECONCILING, c::STALLED].map(|t| condition(&s.conditions, t).map(|c| c.status.clone()).unwrap())
    };
    assert_eq!(ready(&status), ["True", "False", "False"]);
    let mut again = status.clone();
    apply(vec![in_phase("Halted"), in_phase("Halted")], &mut again, at(3));
    assert!(!differs(&status, &again), "nothing new is not written");
    apply(vec![in_phase("Released"), in_phase("Halted")], &mut status, at(4));
    assert_eq!((status.open_orders, status.phase), (Some(1), HaltPhase::Releasing));
    apply(vec![in_phase("Released"), in_phase("Released")], &mut status, at(5));
    assert_eq!(ready(&status), ["True", "False", "False"]);
    assert_eq!(status.times.released_at, Some(MicroTime(at(5))));
    let events: Vec<_> = status.evidence.entries.iter().map(|e| e.event.as_str()).collect();
    assert_eq!(events, ["HaltsMade", "Halted", "Released"]);
    evidence::verify(&status.evidence).unwrap();
}

fn systems(named: &[(&str, &[(&str, &str)])]) -> Systems {
    let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    named.iter().map(|(name, pairs)| ((*name).into(), labels(pairs))).collect()
}

#[test]
fn a_selector_that_selects_nothing_says_what_there_is() {
    let selector = |value: Value| serde_json::from_value::<SystemSelector>(value).unwrap();
    let (fx, all) = (selector(json!({"matchLabels": {"desk": "fx"}})), selector(json!({})));
    let there = systems(&[("a", &[("desk", "fx")]), ("b", &[("desk", "eq"), ("x", "y")]), ("c", &[])]);
    assert_eq!(select(&fx, &there), Ok(vec!["a".to_owned()]));
    assert_eq!(select(&all, &there).map(|s| s.len()), Ok(3));
    let others = systems(&[("b", &[("desk", "eq"), ("x", "y")]), ("c", &[])]);
    let said =
        "the systemSelector selects nothing by desk=fx in this namespace: there are b (desk=eq,x=y), c (no labels)";
    assert_eq!(select(&fx, &others), Err(("NothingSelected", said.to_owned())));
    let none = select(&all, &Systems::new()).unwrap_err().1;
    assert_eq!(none, "the systemSelector selects nothing in this namespace: there is no TradingSystem");
}

#[test]
fn a_list_that_fails_does_not_keep_the_cached_systems_from_being_halted() {
    let fx = serde_json::from_value::<SystemSelector>(json!({"matchLabels": {"desk": "fx"}})).unwrap();
    let there = || systems(&[("a", &[("desk", "fx")]), ("b", &[])]);
    let failed = || Err::<Systems, _>("no answer".to_owned());
    let halts = |why: Option<&str>| Choice::Halt(vec!["a".to_owned()], why.map(str::to_owned));
    assert_eq!(choice(&fx, Ok(there()), || unreachable!()), halts(None));
    assert_eq!(choice(&fx, failed(), there), halts(Some("no answer")));
    assert_eq!(choice(&fx, failed(), Systems::new), Choice::Unknown("no answer".into()));
    assert_eq!(choice(&fx, failed(), || systems(&[("b", &[])])), Choice::Unknown("no answer".into()));
    let nothing = choice(&fx, Ok(Systems::new()), there);
    assert!(matches!(nothing, Choice::Nothing("NothingSelected", _)), "{nothing:?}");
    let many = || (0..=GROUP_LIMIT).map(|n| (format!("s{n}"), BTreeMap::new())).collect::<Systems>();
    let nothing = choice(&SystemSelector::default(), failed(), many);
    assert!(matches!(nothing, Choice::Nothing("TooManySystems", _)), "{nothing:?}");
}

#[test]
fn why_one_could_not_be_made_is_told_at_once() {
    let told = |entry: SystemHalt| TradingHaltStatus { systems: vec![entry], ..TradingHaltStatus::default() };
    let (old, message) = (told(entry("a")), Some("forbidden".to_owned()));
    assert!(urgent(&old, &told(SystemHalt { message: message.clone(), ..entry("a") })));
    let made = SystemHalt { halt_uid: Some("u".into()), ..entry("a") };
    assert!(!urgent(&told(made.clone()), &told(SystemHalt { message, ..made })));
}

#[test]
fn too_many_systems_are_a_failure_and_not_some_of_them() {
    let many = |n: usize| (0..n).map(|n| (format!("s{n}"), BTreeMap::new())).collect::<Systems>();
    assert_eq!(select(&SystemSelector::default(), &many(GROUP_LIMIT)).map(|s| s.len()), Ok(GROUP_LIMIT));
    let (reason, why) = select(&SystemSelector::default(), &many(GROUP_LIMIT + 1)).unwrap_err();
    assert!(reason == "TooManySystems" && why.contains("nothing is halted"), "{why}");
}

#[test]
fn names_follow_from_the_group_and_the_system_and_fit() {
    let group = group(json!({}));
    assert_eq!(names(&group, "bot")[0], "all-bot");
    let second = &names(&group, "bot")[1];
    assert!(second.starts_with("all-bot-") && second.len() == 16, "{second}");
    let (one, other) = (names(&group, &("x".repeat(250) + "1")), names(&group, &("x".repeat(250) + "2")));
    assert_eq!(one[0], other[0], "cut, they are the same");
    assert_ne!(one[1], other[1]);
    assert!(one.iter().all(|n| n.len() == 200));
}

#[test]
fn each_halt_asks_for_what_the_group_asks_and_belongs_to_nobody() {
    let group = group(json!({"matchLabels": {"desk": "fx"}}));
    let made = halt_of(&group, &entry("bot"));
    assert_eq!((made.spec.system(), made.spec.is_group()), ("bot", false));
    assert_eq!(made.spec.requested_by.as_deref(), Some("anna"));
    assert_eq!((&made.spec.orders, &made.spec.positions), (&group.spec.orders, &group.spec.positions));
    assert_eq!(made.metadata.owner_references, None);
    assert!(is_own(&made, &group, "bot") && !is_own(&made, &group, "other"));
    let mut forged = made.clone();
    forged.metadata.annotations = None;
    assert!(!is_own(&forged, &group, "bot"));
    let mut later = group.clone();
    later.metadata.uid = Some("another".into());
    assert!(!is_own(&made, &later, "bot"), "a group of the same name that came later");
}

#[test]
fn without_who_asked_it_is_still_the_halt_of_the_group() {
    let group = group(json!({}));
    let made = anonymous(halt_of(&group, &entry("bot")));
    assert_eq!(made.spec.requested_by, None);
    assert!(is_own(&made, &group, "bot"));
}

/// A change of the halt, and one of the group.
type Changed = fn(&mut TradingHalt, &mut TradingHalt);

fn created(halt: &mut TradingHalt, second: i64) {
    halt.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(second)));
}

#[test]
fn who_asked_is_certain_if_he_or_his_group_made_the_halt() {
    fn listed(group: &mut TradingHalt) -> &mut Option<String> {
        &mut group.status.as_mut().unwrap().systems[0].halt_uid
    }
    let table: [(&str, Changed, bool); 17] = [
        ("the group says that it made it", |_, _| {}, true),
        ("the group is as old as the names", |_, group| created(group, 0), false),
        ("how old the group is is not known", |_, group| group.metadata.creation_timestamp = None, false),
        ("there is only a group of another name", |_, group| group.metadata.name = Some("other".into()), false),
        ("a later group of the same name", |_, group| group.metadata.uid = Some("another".into()), false),
        ("a group elsewhere", |_, group| group.metadata.namespace = Some("eq".into()), false),
        ("somebody else asked for the group", |_, group| group.spec.requested_by = Some("eve".into()), false),
        ("the group names another halt", |_, group| *listed(group) = Some("other".into()), false),
        ("the group names none yet", |_, group| *listed(group) = None, false),
        ("neither has a uid", |halt, group| (halt.metadata.uid, *listed(group)) = (None, None), false),
        ("the group has said nothing", |_, group| group.status = None, false),
        ("it is no group", |_, group| group.spec.system_selector = None, false),
        ("without the label", |halt, _| halt.metadata.labels = None, false),
        ("nobody is named", |halt, group| (halt.spec.requested_by, group.spec.requested_by) = (None, None), false),
        ("his own", |halt, _| halt.metadata.annotations = None, true),
        (
            "his own, too old",
            |halt, _| {
                halt.metadata.annotations = None;
                created(halt, 0);
            },
            false,
        ),
        (
            "his own, and how old it is is not known",
            |halt, _| (halt.metadata.annotations, halt.metadata.creation_timestamp) = (None, None),
            false,
        ),
    ];
    for (what, change, certain) in table {
        let mut group = group(json!({}));
        let mut made = halt_of(&group, &entry("bot"));
        made.metadata.uid = Some("uid-made".into());
        let its = SystemHalt { halt_uid: Some("uid-made".into()), ..entry("bot") };
        group.status = Some(TradingHaltStatus { systems: vec![its], ..TradingHaltStatus::default() });
        created(&mut group, 1);
        created(&mut made, 2);
        change(&mut made, &mut group);
        let foreign = halt("foreign", json!({"systemRef": {"name": "bot"}, "reason": "x"}), json!({}));
        assert_eq!(requester_certain(&made, &[foreign, made.clone(), group], at(0)), certain, "{what}");
    }
}

#[test]
fn a_group_is_about_to_halt_what_it_has_not_made_a_halt_for() {
    let said = json!([{"type": "Halted", "status": "False", "reason": "NothingSelected", "message": "",
        "lastTransitionTime": "2026-11-26T15:00:00Z"}]);
    for (status, expected) in [
        (json!({}), true),
        (json!({"conditions": said}), false),
        (json!({"systems": [{"system": "bot", "halt": "all-bot"}]}), true),
        (json!({"systems": [{"system": "bot", "halt": "all-bot", "haltUid": "u"}]}), false),
        (json!({"systems": [{"system": "other", "halt": "all-other"}]}), false),
    ] {
        let group = halt("all", json!({"systemSelector": {}, "reason": "x"}), status.clone());
        assert_eq!(held::about_to_halt(&group, "bot"), expected, "{status}");
    }
    assert!(!held::about_to_halt(&halt("one", json!({"systemRef": {"name": "bot"}, "reason": "x"}), json!({})), "bot"));
}
