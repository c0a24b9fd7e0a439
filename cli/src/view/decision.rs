//! What somebody approves or rejects, as it is shown, and the Approval that follows from it.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};
use standfast_crds::{
    hash,
    v1alpha1::{ApprovalRequirement, Break, Decision, TradingHalt, TradingResume, TradingSystem},
};

use super::resume::{self, in_words};
use crate::{
    cluster::Me,
    text::{Line, Style, row},
};

/// What is decided about, as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// `TradingResume` or `TradingHalt`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Hash of what is shown.
    pub hash: String,
    /// Breaks that are shown.
    pub breaks: Vec<Break>,
    /// What is asked of people.
    pub requirements: Vec<ApprovalRequirement>,
}

/// What is decided about a resume. The error says why nothing can be decided now.
pub fn of_resume(resume: &TradingResume) -> Result<Shown, String> {
    let name = resume.name_any();
    let status = resume.status.clone().unwrap_or_default();
    let (Some(plan), Some(told)) = (&status.plan, &status.plan_hash) else {
        return Err(format!("TradingResume {name} has no plan yet: no operator has looked at it"));
    };
    let computed = hash::of_json(plan).map_err(|e| format!("the plan of TradingResume {name}: {e}"))?;
    if computed != *told {
        return Err(format!(
            "the plan of TradingResume {name} is not the one whose hash is in its status: do not approve it"
        ));
    }
    if resume::ended(resume) {
        return Err(format!(
            "TradingResume {name} has ended ({}): there is nothing to decide any more",
            status.phase.as_str()
        ));
    }
    if status.release_requested_at.is_some() {
        return Err(format!("TradingResume {name} has asked for the release already: its approvals are used up"));
    }
    Ok(Shown {
        kind: "TradingResume",
        name,
        uid: resume.uid().unwrap_or_default(),
        hash: computed,
        breaks: status.breaks,
        requirements: resume::requirements(Some(plan)),
    })
}

/// What is decided about a halt: what it does to positions although its system's policy does not allow it.
pub fn of_halt(halt: &TradingHalt, system: Option<&TradingSystem>) -> Result<Shown, String> {
    let (name, status) = (halt.name_any(), halt.status.clone().unwrap_or_default());
    let Some(told) = status.spec_hash else {
        return Err(format!("TradingHalt {name} asks for no approval: it has no status.specHash"));
    };
    if halt.spec.hash().as_ref() != Ok(&told) {
        return Err(format!(
            "the spec of TradingHalt {name} is not the one whose hash is in its status: do not approve it"
        ));
    }
    if let Some(used) = status.approvals.first() {
        return Err(format!("TradingHalt {name} was allowed already, by {}", used.approver));
    }
    let requirements = system.map(|s| s.spec.halt_policy.position_approvals.clone()).unwrap_or_default();
    let uid = halt.uid().unwrap_or_default();
    Ok(Shown { kind: "TradingHalt", name, uid, hash: told, breaks: vec![], requirements })
}

impl Shown {
    /// The groups of the caller that somebody asks for: no other is told.
    pub fn groups(&self, me: &Me) -> Vec<String> {
        let asked: BTreeSet<&String> = self.requirements.iter().filter_map(|r| r.group.as_ref()).collect();
        asked.into_iter().filter(|g| me.groups.contains(g)).cloned().collect()
    }

    /// Name and spec of the Approval. The name follows from its content: the same decision again makes no second one.
    pub fn approval(
        &self,
        decision: Decision,
        me: &Me,
        accept_breaks: bool,
        comment: Option<&str>,
        expires_at: Option<Timestamp>,
    ) -> Result<(String, Value), String> {
        let breaks: &[Break] = if accept_breaks { &self.breaks } else { &[] };
        let mut spec = json!({
            "subject": {"kind": self.kind, "name": self.name, "uid": self.uid},
            "hash": self.hash, "decision": decision, "approver": me.user});
        let key = hash::of_json(&json!([spec, breaks])).map_err(|e| format!("naming the Approval: {e}"))?;
        for (field, value) in [
            ("breaks", (!breaks.is_empty()).then(|| json!(breaks))),
            ("groups", Some(self.groups(me)).filter(|g| !g.is_empty()).map(|g| json!(g))),
            ("comment", comment.map(|c| json!(c))),
            ("expiresAt", expires_at.map(|t| json!(Timestamp::from_second(t.as_second()).unwrap_or(t).to_string()))),
        ] {
            if let Some(value) = value {
                spec[field] = value;
            }
        }
        let verb = if decision == Decision::Approve { "approve" } else { "reject" };
        let subject: String = self.name.chars().take(200).collect();
        Ok((format!("{subject}-{verb}-{}", &key[..8]), spec))
    }
}

/// Everything that the hash covers, in lines.
pub fn plan(plan: &Value) -> Vec<Line> {
    let mut lines = vec![Line::new().and(Style::Bold, "What the hash covers:")];
    match serde_saphyr::to_string(plan) {
        Ok(text) => lines.extend(text.trim_end().lines().map(|line| Line::of(format!("  {line}")))),
        Err(_) => lines.push(Line::of(format!("  {plan}"))),
    }
    lines
}

/// What is about to be decided.
pub fn question(shown: &Shown, decision: Decision, me: &Me, accept_breaks: bool) -> Vec<Line> {
    let groups = shown.groups(me);
    let behalf = if groups.is_empty() { String::new() } else { format!(", as {}", groups.join(", ")) };
    let mut lines = vec![
        row("subject").and(Style::Plain, format!("{} {}", shown.kind, shown.name)),
        row("hash").and(Style::Plain, &shown.hash),
        row("you").and(Style::Plain, format!("{}{behalf}", me.user)),
    ];
    let needed: Vec<_> = shown
        .requirements
        .iter()
        .map(|r| format!("{} of {}", r.count, r.group.as_ref().map_or("anybody", |g| g.as_str())))
        .collect();
    if !needed.is_empty() {
        lines.push(row("needed").and(Style::Plain, needed.join(", ")));
    }
    lines.extend(shown.breaks.iter().map(|b| row("break").and(Style::Bad, in_words(b))));
    if decision == Decision::Approve && !shown.breaks.is_empty() {
        let text =
            if accept_breaks { "you accept these breaks" } else { "these breaks are not accepted: --accept-breaks" };
        lines.push(row("breaks").and(Style::Warn, text));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::{at, plain, resume};

    fn me() -> Me {
        Me { user: "bob".into(), groups: vec!["risk".into(), "system:authenticated".into(), "it".into()] }
    }

    fn waiting(patch: &Value) -> TradingResume {
        let plan = json!({"halt": {"name": "stale", "uid": "u"}, "policy": {"approvals": [{"count": 1, "group": "risk"}, {"count": 1}]}});
        let mut status = json!({"phase": "AwaitingApproval", "planHash": hash::of_json(&plan).unwrap(), "plan": plan,
            "breaks": [{"venue": "alpaca", "symbol": "AAPL", "kind": "Position", "difference": "-3"}]});
        for (key, value) in patch.as_object().unwrap() {
            status[key] = value.clone();
        }
        resume(status)
    }

    /// Bound to what was shown, by the one who looked at it, for the groups that are asked for.
    #[test]
    fn an_approval_carries_the_hash_of_what_was_shown_and_only_the_groups_that_are_asked_for() {
        let shown = of_resume(&waiting(&json!({}))).unwrap();
        let (name, spec) = shown.approval(Decision::Approve, &me(), false, Some("looks right"), Some(at(60))).unwrap();
        assert!(name.starts_with("stale-resume-approve-"), "{name}");
        assert_eq!(
            spec,
            json!({"subject": {"kind": "TradingResume", "name": "stale-resume", "uid": "uid-stale-resume"},
                "hash": shown.hash, "decision": "Approve", "approver": "bob", "groups": ["risk"],
                "comment": "looks right", "expiresAt": "2026-11-26T15:01:00Z"})
        );
        let again = shown.approval(Decision::Approve, &me(), false, None, None).unwrap().0;
        assert_eq!(again, name, "the same decision again has the same name");
        let (with_breaks, spec) = shown.approval(Decision::Approve, &me(), true, None, None).unwrap();
        assert_ne!(with_breaks, name);
        assert_eq!(spec["breaks"], json!(shown.breaks));
        let (rejection, spec) = shown.approval(Decision::Reject, &me(), false, None, None).unwrap();
        assert_eq!((rejection.starts_with("stale-resume-reject-"), &spec["decision"]), (true, &json!("Reject")));
    }

    #[test]
    fn what_cannot_be_decided_says_why() {
        for (patch, expected) in [
            (json!({"plan": null, "planHash": null}), "has no plan yet"),
            (json!({"planHash": "0".repeat(64)}), "is not the one whose hash is in its status"),
            (json!({"phase": "Completed"}), "has ended (Completed)"),
            (json!({"releaseRequestedAt": "2026-11-26T15:00:00.000000Z"}), "used up"),
        ] {
            let error = of_resume(&waiting(&patch)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_halt_is_approved_by_the_hash_of_its_spec() {
        let with = |status: Value| -> TradingHalt {
            serde_json::from_value(json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt",
                "metadata": {"name": "stale", "uid": "u"}, "status": status,
                "spec": {"systemRef": {"name": "demo"}, "reason": "a test", "positions": {"action": "CloseAll"}}}))
            .unwrap()
        };
        let right = with(json!({})).spec.hash().unwrap();
        assert_eq!(of_halt(&with(json!({"specHash": right})), None).unwrap().hash, right);
        for (status, expected) in [
            (json!({"specHash": "0".repeat(64)}), "do not approve"),
            (json!({}), "asks for no approval"),
            (
                json!({"specHash": right, "approvals": [{"name": "yes", "uid": "u", "approver": "anna",
                    "decision": "Approve", "at": "2026-11-26T15:00:00.000000Z"}]}),
                "allowed already, by anna",
            ),
        ] {
            let error = of_halt(&with(status), None).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_is_about_to_be_decided_is_shown() {
        let shown = of_resume(&waiting(&json!({}))).unwrap();
        let text = plain(&question(&shown, Decision::Approve, &me(), false));
        for part in
            ["you         bob, as risk", "needed      1 of risk, 1 of anybody", "AAPL", "not accepted: --accept-breaks"]
        {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(plain(&question(&shown, Decision::Approve, &me(), true)).contains("you accept these breaks"));
        assert!(plain(&plan(&json!({"halt": {"name": "stale"}}))).contains("name: stale"));
    }
}
