use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{Approval, ApprovalRequirement, Decision, SubjectKind};

use super::{Count, Excluded, Rules, Subject, count};

/// When names became true, and when it is counted.
const SINCE: i64 = 100;
const NOW: i64 = 1_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn hash(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn subject() -> Subject {
    Subject { kind: SubjectKind::TradingResume, name: "go".into(), uid: "uid-go".into(), hash: hash('a') }
}

/// An approval of `go` by somebody, with changes merged into its spec.
fn approval(name: &str, by: &str, but: Value) -> Approval {
    let mut spec = json!({"subject": {"kind": "TradingResume", "name": "go", "uid": "uid-go"}, "hash": hash('a'),
        "decision": "Approve", "approver": by});
    for (key, value) in but.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let mut approval: Approval = serde_json::from_value(json!({"apiVersion": "standfast.dev/v1alpha1",
        "kind": "Approval", "metadata": {"name": name, "namespace": "bots", "uid": format!("uid-{name}")},
        "spec": spec}))
    .unwrap();
    approval.metadata.creation_timestamp = Some(Time(at(500)));
    approval
}

fn requirement(count: u32, group: Option<&str>) -> ApprovalRequirement {
    ApprovalRequirement { count, group: group.map(Into::into), service_accounts: false }
}

fn rules(requirements: &[(u32, Option<&str>)]) -> Rules {
    Rules { requirements: requirements.iter().map(|(n, g)| requirement(*n, *g)).collect(), excluded: vec![] }
}

fn counted(rules: &Rules, approvals: &[Approval]) -> Count {
    count(&subject(), rules, approvals, at(SINCE), at(NOW))
}

fn groups(groups: &[&str]) -> Value {
    json!({ "groups": groups })
}

/// People with their groups, as `anna:risk,ops bert:`, and slots in the same way, as `2: 1:risk`.
#[rstest]
#[case::nobody("", "2:", "0/2", "2 of anybody")]
#[case::one("anna:", "2:", "1/2", "1 of anybody")]
#[case::two("anna: bert:", "2:", "2/2", "")]
#[case::the_same_person_twice("anna: anna:", "2:", "1/2", "1 of anybody")]
#[case::one_person_fills_one_slot("anna:risk,ops", "1:risk 1:ops", "1/2", "1 of group ops")]
#[case::twice_for_two_groups("anna:risk anna:ops", "1:risk 1:ops", "1/2", "1 of group ops")]
#[case::no_group_named("anna:", "1:risk", "0/1", "1 of group risk")]
#[case::whoever_may_fill_both_leaves_the_other_his("anna:ops,risk bert:ops", "1:ops 1:risk", "2/2", "")]
#[case::the_rare_group_first("anna:risk", "1: 1:risk", "1/2", "1 of anybody")]
#[case::several_are_missing("anna:", "2: 2:risk", "1/4", "2 of group risk, 1 of anybody")]
#[case::a_chain("anna:a,b bert:b,c carl:c,a", "1:a 1:b 1:c", "3/3", "")]
#[case::more_than_are_needed("anna: bert: carl:", "2:", "2/2", "")]
fn slots_are_filled(#[case] people: &str, #[case] slots: &str, #[case] tally: &str, #[case] missing: &str) {
    let (people, slots) = (pairs(people), pairs(slots));
    let approvals: Vec<_> = people
        .into_iter()
        .enumerate()
        .map(|(n, (by, of))| {
            approval(&n.to_string(), by, json!({"groups": of.split(',').filter(|g| !g.is_empty()).collect::<Vec<_>>()}))
        })
        .collect();
    let asked: Vec<_> =
        slots.into_iter().map(|(n, g)| (n.parse().unwrap(), Some(g).filter(|g| !g.is_empty()))).collect();
    let count = counted(&rules(&asked), &approvals);
    assert_eq!((count.tally().as_str(), count.missing.join(", ").as_str()), (tally, missing));
    assert_eq!(count.met(), missing.is_empty());
}

fn pairs(text: &str) -> Vec<(&str, &str)> {
    text.split(' ').filter_map(|pair| pair.split_once(':')).collect()
}

#[rstest]
#[case::it_counts(json!({}), 500, None)]
#[case::another_uid(
    json!({"subject": {"kind": "TradingResume", "name": "go", "uid": "uid-old"}}), 500,
    Some("TradingResume go is another one now: its uid is uid-go, not uid-old")
)]
#[case::another_plan(
    json!({"hash": hash('b')}), 500,
    Some("TradingResume go has the hash aaaaaaaaaaaa…, and what was decided about had bbbbbbbbbbbb…")
)]
#[case::expired(json!({"expiresAt": "1970-01-01T00:16:40Z"}), 500, Some("it expired at 1970-01-01T00:16:40Z"))]
#[case::expires_later(json!({"expiresAt": "1970-01-01T00:16:41Z"}), 500, None)]
#[case::before_the_policy(
    json!({}), SINCE,
    Some("it was created before the guardrails about names were in place as they are now: create it again")
)]
#[case::just_after_it(json!({}), SINCE + 1, None)]
#[case::not_of_the_group(
    json!({"groups": ["ops"]}), 500, Some("spec.groups names none of the groups that are asked for: risk")
)]
#[case::a_service_account(
    json!({"approver": "system:serviceaccount:bots:ci"}), 500,
    Some("system:serviceaccount:bots:ci is a service account, and those do not count")
)]
#[case::excluded(
    json!({"approver": "rita"}), 500,
    Some("rita asked for TradingHalt stale, and the resumePolicy excludes whoever did")
)]
fn what_does_not_count_says_why(#[case] but: Value, #[case] created: i64, #[case] why: Option<&str>) {
    let mut spec = groups(&["risk"]);
    spec.as_object_mut().unwrap().extend(but.as_object().unwrap().clone());
    let mut one = approval("one", "anna", spec);
    one.metadata.creation_timestamp = Some(Time(at(created)));
    let mut rules = rules(&[(1, Some("risk"))]);
    rules.excluded = vec![Excluded {
        user: "rita".into(),
        because: "asked for TradingHalt stale, and the resumePolicy excludes whoever did".into(),
    }];
    let count = counted(&rules, std::slice::from_ref(&one));
    assert_eq!(
        count.unfit.iter().map(|(_, why)| why.as_str()).collect::<Vec<_>>(),
        why.into_iter().collect::<Vec<_>>()
    );
    assert_eq!(count.met(), why.is_none());
    // A rejection that does not count ends nothing.
    one.spec.decision = Decision::Reject;
    assert_eq!(counted(&rules, &[one]).rejected.is_none(), why.is_some());
}

#[test]
fn service_accounts_count_where_the_slot_says_so() {
    let robot = approval("robot", "system:serviceaccount:bots:ci", json!({}));
    let mut rules = rules(&[(1, None)]);
    assert_eq!(counted(&rules, std::slice::from_ref(&robot)).tally(), "0/1");
    rules.requirements[0].service_accounts = true;
    assert!(counted(&rules, &[robot]).met());
}

#[test]
fn what_is_being_deleted_was_withdrawn() {
    let mut one = approval("one", "anna", json!({}));
    one.metadata.deletion_timestamp = Some(Time(at(NOW)));
    assert_eq!(counted(&rules(&[(1, None)]), &[one]).unfit[0].1, "it is being deleted");
}

#[test]
fn approvals_of_other_subjects_are_no_matter() {
    let other = approval("other", "anna", json!({"subject": {"kind": "TradingResume", "name": "x", "uid": "uid-go"}}));
    assert_eq!(counted(&rules(&[(1, None)]), &[other]).unfit, []);
}

#[test]
fn a_rejection_ends_it_whatever_else_is_there() {
    let people = [approval("a", "anna", json!({})), approval("b", "bert", json!({}))];
    let no = approval("c", "carl", json!({"decision": "Reject", "comment": "not before noon"}));
    let count = counted(&rules(&[(2, None)]), &[&people[..], &[no]].concat());
    let rejection = count.rejected.clone().unwrap();
    assert_eq!((rejection.by.approver.as_str(), rejection.comment.as_deref()), ("carl", Some("not before noon")));
    assert!(!count.met() && count.missing.is_empty());
}

#[test]
fn where_nothing_is_asked_for_nobody_rejects() {
    let no = approval("no", "carl", json!({"decision": "Reject"}));
    assert!(counted(&Rules::default(), &[no]).met());
}

/// The most slots that can be filled, by trying everything.
fn most(people: &[Vec<&str>], slots: &[Option<&str>]) -> usize {
    let Some((slot, rest)) = slots.split_first() else { return 0 };
    let with = (0..people.len()).filter(|p| slot.is_none_or(|group| people[*p].contains(&group))).map(|p| {
        let mut others = people.to_vec();
        others.remove(p);
        1 + most(&others, rest)
    });
    with.max().unwrap_or(0).max(most(people, rest))
}

proptest! {
    /// As many slots as can be are filled, each by somebody who may, nobody fills two, and nothing else decides than
    /// who approved.
    #[test]
    fn slots_are_filled_as_well_as_can_be(
        people in prop::collection::vec((0..4_usize, prop::sample::subsequence(vec!["a", "b", "c"], 0..=3)), 0..6),
        asked in prop::collection::vec((1..3_u32, prop::option::of(prop::sample::select(vec!["a", "b", "c"]))), 0..3),
        rotate in 0..6_usize,
    ) {
        let names = ["anna", "bert", "carl", "dora"];
        let mut approvals: Vec<_> = people
            .iter()
            .enumerate()
            .map(|(n, (who, of))| approval(&format!("{n}"), names[*who], groups(of)))
            .collect();
        let found = counted(&rules(&asked), &approvals);
        let mut by_person = vec![vec![]; 4];
        let mut there = [false; 4];
        for (who, of) in &people {
            by_person[*who].extend(of.iter().copied());
            there[*who] = true;
        }
        let distinct: Vec<_> = by_person.into_iter().zip(there).filter(|(_, there)| *there).map(|(of, _)| of).collect();
        let slots: Vec<_> = asked.iter().flat_map(|(n, g)| std::iter::repeat_n(*g, *n as usize)).collect();
        prop_assert_eq!(found.needed, slots.len());
        prop_assert_eq!(found.counted.len(), most(&distinct, &slots));
        prop_assert_eq!(found.missing.is_empty(), found.counted.len() == slots.len());
        let mut approvers: Vec<_> = found.counted.iter().map(|c| &c.approver).collect();
        approvers.sort();
        approvers.dedup();
        prop_assert_eq!(approvers.len(), found.counted.len());
        for one in &found.counted {
            let approval = approvals.iter().find(|a| a.metadata.name.as_ref() == Some(&one.name)).unwrap();
            prop_assert!(one.group.as_ref().is_none_or(|g| approval.spec.groups.contains(g)));
        }
        if !approvals.is_empty() {
            let by = rotate % approvals.len();
            approvals.rotate_left(by);
        }
        prop_assert_eq!(counted(&rules(&asked), &approvals), found, "the order in which they are listed is no matter");
    }
}
