//! What binds a resume: the TradingSystem's policy, and what the resume adds to it. One function for each field; each
//! gives the stricter of both.

use standfast_crds::v1alpha1::{ApprovalRequirement, Duration, Requester, ResumePolicy};

/// The policy of a resume. The error says what cannot be brought together.
pub fn merge(system: Option<&ResumePolicy>, resume: Option<&ResumePolicy>) -> Result<ResumePolicy, String> {
    let none = ResumePolicy::default();
    let (system, resume) = (system.unwrap_or(&none), resume.unwrap_or(&none));
    Ok(ResumePolicy {
        approvals: approvals(system, resume),
        exclude_requesters: exclude_requesters(system, resume),
        cool_off: cool_off(system, resume),
        ..ResumePolicy::default()
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
}
