//! What binds a resume: the TradingSystem's policy, and what the resume adds to it. One function for each field; each
//! gives the stricter of both.

use standfast_crds::v1alpha1::{
    ApprovalRequirement, CheckSelection, CheckThresholds, Comparison, Duration, OnRegression, Requester, ResumePolicy,
    Stage, Watch,
};

/// The policy of a resume. The error says what cannot be brought together.
pub fn merge(system: Option<&ResumePolicy>, resume: Option<&ResumePolicy>) -> Result<ResumePolicy, String> {
    let none = ResumePolicy::default();
    let (system, resume) = (system.unwrap_or(&none), resume.unwrap_or(&none));
    Ok(ResumePolicy {
        approvals: approvals(system, resume),
        exclude_requesters: exclude_requesters(system, resume),
        cool_off: cool_off(system, resume),
        reconciliation: reconciliation(system, resume)?,
        thresholds: thresholds(system, resume),
        ramp: ramp(system, resume)?,
        watch: watch(system, resume),
        on_regression: on_regression(system, resume),
    })
}

/// All of both: each must be met.
fn approvals(system: &ResumePolicy, resume: &ResumePolicy) -> Vec<ApprovalRequirement> {
    [system.approvals.as_slice(), &resume.approvals].concat()
}

/// Whoever one of them excludes.
fn exclude_requesters(system: &ResumePolicy, resume: &ResumePolicy) -> Vec<Requester> {
    let mut all = [system.exclude_requesters.as_slice(), &resume.exclude_requesters].concat();
    all.sort();
    all.dedup();
    all
}

/// The longer one.
fn cool_off(system: &ResumePolicy, resume: &ResumePolicy) -> Option<Duration> {
    system.cool_off.max(resume.cool_off)
}

/// All of both: each must agree.
fn reconciliation(system: &ResumePolicy, resume: &ResumePolicy) -> Result<Vec<Comparison>, String> {
    if let Some(twice) = resume.reconciliation.iter().find(|r| system.reconciliation.iter().any(|s| s.name == r.name)) {
        return Err(format!(
            "policy.reconciliation: the resumePolicy has a comparison {} already, give it another name",
            twice.name
        ));
    }
    Ok([system.reconciliation.as_slice(), &resume.reconciliation].concat())
}

/// The larger counts, and the shorter time between two evaluations.
fn thresholds(system: &ResumePolicy, resume: &ResumePolicy) -> Option<CheckThresholds> {
    match (&system.thresholds, &resume.thresholds) {
        (Some(a), Some(b)) => Some(CheckThresholds {
            success: a.success.max(b.success),
            failure: a.failure.max(b.failure),
            interval: a.interval.min(b.interval),
        }),
        (a, b) => a.clone().or_else(|| b.clone()),
    }
}

/// One ramp: two of them cannot be told apart as stricter and milder.
fn ramp(system: &ResumePolicy, resume: &ResumePolicy) -> Result<Vec<Stage>, String> {
    match (system.ramp.as_slice(), resume.ramp.as_slice()) {
        (stages, []) | ([], stages) => Ok(stages.to_vec()),
        _ => Err("the TradingSystem's resumePolicy has a ramp, which binds every resume: leave out policy.ramp".into()),
    }
}

/// The longer time, and the checks of both.
fn watch(system: &ResumePolicy, resume: &ResumePolicy) -> Option<Watch> {
    match (&system.watch, &resume.watch) {
        (Some(a), Some(b)) => Some(Watch {
            for_: a.for_.max(b.for_),
            checks: a.checks.as_ref().zip(b.checks.as_ref()).map(|(a, b)| union(a, b)),
        }),
        (a, b) => a.clone().or_else(|| b.clone()),
    }
}

fn union(a: &CheckSelection, b: &CheckSelection) -> CheckSelection {
    fn both<T: Clone + Ord>(a: Option<&Vec<T>>, b: Option<&Vec<T>>) -> Option<Vec<T>> {
        let mut all: Vec<T> = a.into_iter().chain(b).flatten().cloned().collect();
        all.sort();
        all.dedup();
        (!all.is_empty()).then_some(all)
    }
    CheckSelection {
        groups: both(a.groups.as_ref(), b.groups.as_ref()),
        names: both(a.names.as_ref(), b.names.as_ref()),
    }
}

/// The stricter answer to a regression. A system that has stages or a watch and does not say wants the default.
fn on_regression(system: &ResumePolicy, resume: &ResumePolicy) -> Option<OnRegression> {
    let declared = !system.ramp.is_empty() || system.watch.is_some();
    let systems = system.on_regression.or_else(|| declared.then(OnRegression::default));
    systems.max(resume.on_regression)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn merged(system: Value, resume: Value) -> Result<Value, String> {
        let policy = |value| serde_json::from_value::<ResumePolicy>(value).unwrap();
        merge(Some(&policy(system)), Some(&policy(resume))).map(|p| serde_json::to_value(p).unwrap())
    }

    #[test]
    fn each_list_of_approvals_must_be_met() {
        let (two, risk) = (
            json!({"count": 2, "serviceAccounts": false}),
            json!({"count": 1, "group": "risk", "serviceAccounts": false}),
        );
        let merged = merged(json!({"approvals": [two]}), json!({"approvals": [risk]})).unwrap();
        assert_eq!(merged["approvals"], json!([two, risk]));
    }

    #[rstest]
    #[case(json!({}), json!({}), Value::Null)]
    #[case(json!({"excludeRequesters": ["Halt"]}), json!({}), json!(["Halt"]))]
    #[case(
        json!({"excludeRequesters": ["Resume"]}), json!({"excludeRequesters": ["Resume", "Halt"]}),
        json!(["Halt", "Resume"])
    )]
    fn whoever_one_excludes_is_excluded(#[case] a: Value, #[case] b: Value, #[case] expected: Value) {
        assert_eq!(merged(a, b).unwrap()["excludeRequesters"], expected);
    }

    #[rstest]
    #[case(json!({}), json!({}), Value::Null)]
    #[case(json!({"coolOff": "10m"}), json!({}), json!("10m"))]
    #[case(json!({"coolOff": "10m"}), json!({"coolOff": "1s"}), json!("10m"))]
    #[case(json!({"coolOff": "10m"}), json!({"coolOff": "1h"}), json!("1h"))]
    fn the_longer_cool_off_counts(#[case] a: Value, #[case] b: Value, #[case] expected: Value) {
        assert_eq!(merged(a, b).unwrap()["coolOff"], expected);
    }

    const EMPTY: fn() -> Value = || json!({});

    #[rstest]
    #[case::system_alone(
        json!({"thresholds": {"failure": 3}}), EMPTY(), json!({"success": 1, "failure": 3, "interval": "5s"})
    )]
    #[case::both(
        json!({"thresholds": {"success": 2, "failure": 1, "interval": "10s"}}),
        json!({"thresholds": {"success": 1, "failure": 4, "interval": "30s"}}),
        json!({"success": 2, "failure": 4, "interval": "10s"})
    )]
    fn larger_counts_and_the_shorter_interval_count(#[case] a: Value, #[case] b: Value, #[case] expected: Value) {
        assert_eq!(merged(a, b).unwrap()["thresholds"], expected);
    }

    #[rstest]
    #[case(json!({"watch": {"for": "1h"}}), json!({"watch": {"for": "2h"}}), json!({"for": "2h"}))]
    #[case::all_checks_are_more_than_some(
        json!({"watch": {"for": "1h"}}), json!({"watch": {"for": "1m", "checks": {"names": ["a"]}}}),
        json!({"for": "1h"})
    )]
    #[case::some_of_both(
        json!({"watch": {"for": "1h", "checks": {"groups": ["data"]}}}),
        json!({"watch": {"for": "1m", "checks": {"names": ["b", "a"], "groups": ["data"]}}}),
        json!({"for": "1h", "checks": {"groups": ["data"], "names": ["a", "b"]}})
    )]
    #[case(EMPTY(), json!({"watch": {"for": "1m"}}), json!({"for": "1m"}))]
    fn the_longer_watch_counts(#[case] a: Value, #[case] b: Value, #[case] expected: Value) {
        assert_eq!(merged(a, b).unwrap()["watch"], expected);
    }

    #[rstest]
    #[case::nothing_said(EMPTY(), EMPTY(), None)]
    #[case::only_the_resume(EMPTY(), json!({"onRegression": "Notify"}), Some("Notify"))]
    #[case::the_default_binds(json!({"watch": {"for": "1h"}}), json!({"onRegression": "Notify"}), Some("ReHalt"))]
    #[case::the_systems(json!({"onRegression": "Hold"}), json!({"onRegression": "Notify"}), Some("Hold"))]
    #[case::the_resume_is_stricter(json!({"onRegression": "Hold"}), json!({"onRegression": "ReHalt"}), Some("ReHalt"))]
    fn the_stricter_answer_counts(#[case] a: Value, #[case] b: Value, #[case] expected: Option<&str>) {
        assert_eq!(merged(a, b).unwrap()["onRegression"].as_str(), expected);
    }

    #[test]
    fn comparisons_of_both_must_agree() {
        let books = |name: &str| {
            json!({"reconciliation": [{"name": name, "venue": "alpaca", "compare": "Positions",
            "bot": {"http": {"url": "http://books.bots.svc/positions"}}}]})
        };
        let both = merged(books("a"), books("b")).unwrap();
        assert_eq!(both["reconciliation"].as_array().unwrap().len(), 2);
        assert!(merged(books("a"), books("a")).unwrap_err().contains("a comparison a already"));
    }

    #[test]
    fn two_ramps_are_refused() {
        let ramp = json!({"ramp": [{"name": "small"}]});
        assert_eq!(merged(ramp.clone(), json!({})).unwrap()["ramp"][0]["name"], "small");
        assert_eq!(merged(json!({}), ramp.clone()).unwrap()["ramp"][0]["name"], "small");
        assert!(merged(ramp.clone(), ramp).unwrap_err().contains("leave out policy.ramp"));
    }
}
