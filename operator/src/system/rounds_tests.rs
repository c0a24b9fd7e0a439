use serde_json::json;
use standfast_crds::v1alpha1::{CheckState, WorkloadKind};

use super::*;
use crate::system::spec::problem;

fn system(url: &str) -> TradingSystem {
    serde_json::from_value(json!({
        "apiVersion": "standfast.dev/v1alpha1", "kind": "TradingSystem",
        "metadata": {"name": "bot", "namespace": "trading", "uid": "1"},
        "spec": {
            "workloads": [{"kind": "Deployment", "name": "bot", "role": "Trading"}],
            "checks": [
                {"name": "same", "group": "data", "http": {"request": {"url": "https://h/same"}}},
                {"name": "other", "group": "data", "http": {"request": {"url": url}}},
            ],
        },
    }))
    .unwrap()
}

fn view(name: &str) -> View {
    View {
        key: Key { namespace: "trading".into(), kind: WorkloadKind::Deployment, name: name.into() },
        labels: Default::default(),
        annotations: Default::default(),
        replicas: 1,
        ready: 1,
        suspended: false,
        selector: None,
        match_labels: None,
    }
}

fn answered(memory: &mut Memory, later: Instant) {
    for (_, slot) in memory.checks.values_mut() {
        slot.answer = Some(Answer { state: CheckState::Passing, message: "found 0".into() });
        slot.due = later;
    }
    memory.near.answer = Some(Survey { problems: vec![problem("A", "a")], unknown: vec![] });
    memory.near.due = later;
    memory.far.answer = Some(Survey { problems: vec![problem("B", "b")], unknown: vec!["c".into()] });
    memory.far.due = later;
    memory.autoscalers.due = later;
}

#[test]
fn a_changed_check_is_asked_anew_and_an_unchanged_one_keeps_its_answer() {
    let now = Instant::now();
    let later = now + NEAR_INTERVAL;
    let mut memory = Memory::new(&system("https://h/1"), &[], now);
    memory.update(&system("https://h/1"), &[], now);
    answered(&mut memory, later);
    memory.update(&system("https://h/1"), &[], now);
    assert_eq!(memory.next_due(), Some(later));
    memory.update(&system("https://h/2"), &[], now);
    let answers: Vec<_> = memory.answers().map(|(name, _)| name).collect();
    assert_eq!(answers, ["same"]);
    // The spec is another one: everything outside is looked at again.
    assert_eq!(memory.survey(), None);
    assert_eq!(memory.next_due(), Some(now));
}

#[test]
fn new_workloads_are_looked_at_and_the_old_findings_stand_until_then() {
    let now = Instant::now();
    let mut memory = Memory::new(&system("https://h/1"), &[view("bot")], now);
    memory.update(&system("https://h/1"), &[view("bot")], now);
    answered(&mut memory, now + NEAR_INTERVAL);
    let mut scaled = view("bot");
    scaled.replicas = 9;
    memory.update(&system("https://h/1"), &[scaled], now);
    assert_eq!(memory.next_due(), Some(now + NEAR_INTERVAL));
    memory.update(&system("https://h/1"), &[view("bot"), view("bot-2")], now);
    assert_eq!(memory.next_due(), Some(now));
    let survey = memory.survey().unwrap();
    assert_eq!((survey.problems.len(), survey.unknown.len()), (2, 1));
}

#[test]
fn a_system_made_again_under_its_old_name_is_another_one() {
    let now = Instant::now();
    let mut memory = Memory::new(&system("https://h/1"), &[], now);
    memory.update(&system("https://h/1"), &[], now);
    answered(&mut memory, now + NEAR_INTERVAL);
    let mut again = system("https://h/1");
    again.metadata.uid = Some("2".into());
    memory.update(&again, &[], now);
    assert_eq!(memory.answers().count(), 0);
}
