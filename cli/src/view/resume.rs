//! One TradingResume.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;
use serde_json::Value;
use standfast_crds::v1alpha1::{
    ApprovalRequirement, Break, Decision, Regression, StageStatus, StepStatus, TradingResume, TradingResumeStatus,
    condition,
};

use crate::{
    cluster::Say,
    text::{Line, Style, age, between, count, row, took},
};

/// A resume, for programs and for people.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResumeView {
    /// Its name.
    pub name: String,
    /// The TradingHalt that it releases.
    pub halt: String,
    /// `status.phase`; `Pending` where no operator has seen it.
    pub phase: String,
    /// It only evaluates.
    pub dry_run: bool,
    /// It will not go on by itself.
    pub ended: bool,
    /// It has asked for the release of the halt.
    pub releasing: bool,
    /// Who asked for it.
    pub requested_by: String,
    /// When it was created.
    pub requested_at: Option<Timestamp>,
    /// The step that is under way.
    pub step: Option<String>,
    /// The stage that is under way.
    pub stage: Option<String>,
    /// What the condition `Completed` says.
    pub message: Option<String>,
    /// The hash that an approval must carry.
    pub plan_hash: Option<String>,
    /// The approvals that are there, of those that are needed, as `1/2`.
    pub approved: Option<String>,
    /// What is missing.
    pub waiting_for: Vec<Missing>,
    /// Gates and steps, in order.
    pub steps: Vec<StepView>,
    /// The stages, as far as they came.
    pub stages: Vec<StageStatus>,
    /// Breaks that nobody accepted.
    pub breaks: Vec<Break>,
    /// The watched check that failed.
    pub regression: Option<Regression>,
}

/// Approvals that are missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// How many.
    pub count: u32,
    /// Of which group; anybody if not given.
    pub group: Option<String>,
}

/// A gate or a step.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StepView {
    /// Its name.
    pub name: String,
    /// `Pending`, `Running`, `Succeeded`, `Failed`, `Skipped` or `Indeterminate`.
    pub state: String,
    /// What came back.
    pub message: Option<String>,
    /// When it was first tried.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

impl StepView {
    fn of(step: &StepStatus) -> Self {
        Self {
            name: step.name.clone(),
            state: format!("{:?}", step.state),
            message: step.message.clone(),
            started_at: step.started_at.as_ref().map(|t| t.0),
            finished_at: step.finished_at.as_ref().map(|t| t.0),
        }
    }
}

/// Whether a resume will not go on by itself.
pub fn ended(resume: &TradingResume) -> bool {
    resume.status.as_ref().is_some_and(|s| s.phase.is_over() || s.finished_at.is_some())
}

/// What must be approved, as it stands in the frozen plan.
pub fn requirements(plan: Option<&Value>) -> Vec<ApprovalRequirement> {
    let found = plan.and_then(|plan| plan.pointer("/policy/approvals"));
    found.and_then(|list| serde_json::from_value(list.clone()).ok()).unwrap_or_default()
}

fn missing(status: &TradingResumeStatus) -> Vec<Missing> {
    let mut there: Vec<_> = status.approvals.iter().filter(|a| a.decision == Decision::Approve).collect();
    let fill = |requirement: &ApprovalRequirement| {
        let mut open = requirement.count;
        there.retain(|a| {
            let fills = open > 0 && a.group == requirement.group;
            open -= u32::from(fills);
            !fills
        });
        Missing { count: open, group: requirement.group.clone() }
    };
    let asked = requirements(status.plan.as_ref());
    asked.iter().map(fill).filter(|m| m.count > 0).collect()
}

impl ResumeView {
    /// What is known of a resume.
    pub fn of(resume: &TradingResume) -> Self {
        let status = resume.status.clone().unwrap_or_default();
        let ended = ended(resume);
        Self {
            name: resume.name_any(),
            halt: resume.spec.halt_ref.name.clone(),
            phase: status.phase.as_str().into(),
            dry_run: resume.spec.dry_run,
            ended,
            releasing: status.release_requested_at.is_some(),
            requested_by: resume.spec.requested_by.clone(),
            requested_at: resume.metadata.creation_timestamp.as_ref().map(|t| t.0),
            step: status.current_step.clone(),
            stage: status.stage.clone(),
            message: condition(&status.conditions, "Completed").map(|c| c.message.clone()).filter(|m| !m.is_empty()),
            plan_hash: status.plan_hash.clone(),
            approved: status.approved.clone(),
            waiting_for: if ended || status.release_requested_at.is_some() { vec![] } else { missing(&status) },
            steps: status.steps.iter().map(StepView::of).collect(),
            stages: status.stages.clone(),
            breaks: status.breaks.clone(),
            regression: status.regression.clone(),
        }
    }

    /// How the phase looks.
    pub fn style(&self) -> Style {
        match self.phase.as_str() {
            "Completed" | "Evaluated" => Style::Good,
            "Rejected" | "ReHalted" | "Failed" | "Aborted" | "Indeterminate" => Style::Bad,
            _ => Style::Warn,
        }
    }

    /// How it stands in one line, for where nothing can be drawn again.
    pub fn progress(&self) -> String {
        let mut text = format!("{}: {}", self.name, self.phase);
        if let Some(stage) = &self.stage {
            text += &format!(", stage {stage}");
        }
        match (&self.message, &self.step) {
            (Some(message), _) => format!("{text}: {message}"),
            (None, Some(step)) => format!("{text}: {step}"),
            _ => text,
        }
    }

    /// What somebody has to do for it to go on, as commands with a reason.
    pub fn next(&self, say: &Say) -> Vec<String> {
        if self.ended {
            return vec![];
        }
        let mut next: Vec<String> = self
            .waiting_for
            .iter()
            .map(|m| {
                let who = m.group.as_ref().map_or_else(|| "anybody".into(), |g| format!("group {g}"));
                let people = count(m.count.into(), "approval");
                format!("{people} of {who}: {}", say.standfast(&format!("approve {}", self.name)))
            })
            .collect();
        if !self.breaks.is_empty() {
            let command = say.standfast(&format!("approve {} --accept-breaks", self.name));
            next.push(format!("repair the books, or accept {}: {command}", count(self.breaks.len() as i64, "break")));
        }
        if self.phase == "Paused" {
            let patch =
                format!(r#"patch tradingresume {} --type merge --patch '{{"spec":{{"paused":false}}}}'"#, self.name);
            next.push(format!("go on: {}", say.kubectl(&patch)));
        }
        next
    }
}

/// How the state of a step reads.
fn state(step: &StepView, current: bool) -> (Style, &'static str) {
    match step.state.as_str() {
        "Succeeded" => (Style::Good, "done"),
        "Failed" => (Style::Bad, "FAILED"),
        "Indeterminate" => (Style::Bad, "UNKNOWN"),
        "Skipped" => (Style::Dim, "not needed"),
        "Running" => (Style::Warn, "now"),
        _ if current => (Style::Warn, "waits"),
        _ => (Style::Dim, "-"),
    }
}

/// How a resume comes along, in full.
pub fn lines(resume: &TradingResume, say: &Say, now: Timestamp) -> Vec<Line> {
    let view = ResumeView::of(resume);
    let mut title = Line::new().and(Style::Bold, &view.name).and(Style::Plain, "  ").and(view.style(), &view.phase);
    if let Some(stage) = &view.stage {
        title = title.and(Style::Warn, format!(", stage {stage}"));
    }
    let ago = view.requested_at.map_or_else(String::new, |at| format!(", {} ago", age(at, now)));
    let what = if view.dry_run { "evaluates the release of halt" } else { "releases halt" };
    let label = if view.dry_run { "evaluates" } else { "resumes" };
    let mut lines = vec![
        title,
        row(label).and(Style::Plain, format!("{what} {}, asked for by {}{ago}", view.halt, view.requested_by)),
    ];
    for step in &view.steps {
        let current = view.step.as_deref() == Some(step.name.as_str());
        let (style, word) = state(step, current);
        let mut line = row("").and(style, format!("{word:<10}  ")).and(Style::Plain, format!("{:<20}", step.name));
        if let Some(message) = &step.message {
            line = line.and(Style::Plain, format!("  {message}"));
        }
        if let (Some(from), Some(to)) = (step.started_at, step.finished_at) {
            line = line.and(Style::Dim, format!("  {}", took(between(from, to))));
        }
        lines.push(line);
    }
    for stage in &view.stages {
        let held = stage.held.map_or_else(|| "0s".into(), |h| h.to_string());
        let limits: Vec<_> = stage.limits.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let limits =
            if limits.is_empty() { String::new() } else { format!(", the bot keeps to {}", limits.join(", ")) };
        let over = if stage.finished_at.is_some() { ", left" } else { "" };
        lines
            .push(row("stage").and(Style::Bold, &stage.name).and(Style::Plain, format!("  held {held}{limits}{over}")));
    }
    lines.extend(view.breaks.iter().map(|b| row("break").and(Style::Bad, in_words(b))));
    if let Some(approved) = &view.approved {
        let by: Vec<_> = resume.status.iter().flat_map(|s| &s.approvals).map(|a| a.approver.clone()).collect();
        let by = if by.is_empty() { String::new() } else { format!(", by {}", by.join(", ")) };
        lines.push(row("approvals").and(Style::Plain, format!("{approved}{by}")));
    }
    if let Some(regression) = &view.regression {
        let halt = regression.halt.as_ref().map_or_else(String::new, |h| format!("; halted again by {h}"));
        let text = format!("{} in {}: {}{halt}", regression.check, regression.stage, regression.message);
        lines.push(row("regression").and(Style::Bad, text));
    }
    if view.phase == "Pending" && view.message.is_none() {
        lines.push(row("").and(Style::Warn, "no operator has reacted yet"));
    }
    if let Some(message) = &view.message {
        lines.push(row("says").and(view.style(), message));
    }
    lines.extend(view.next(say).into_iter().map(|next| row("next").and(Style::Bold, next)));
    lines
}

/// A break in words.
pub fn in_words(b: &Break) -> String {
    let order = b.client_order_id.as_ref().map_or_else(String::new, |id| format!(" {id}"));
    format!("{} {} {:?}{order}: the venue has {} more than the bot", b.venue, b.symbol, b.kind, b.difference)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view::testing::{at, plain, resume, say, time};

    fn awaiting() -> Value {
        json!({"phase": "AwaitingApproval", "planHash": "a".repeat(64), "approved": "1/3", "currentStep": "approvals",
            "plan": {"policy": {"approvals": [{"count": 2, "group": "risk"}, {"count": 1}]}},
            "approvals": [{"name": "x", "uid": "u", "approver": "bob", "decision": "Approve", "group": "risk", "at": time(3)}],
            "conditions": [{"type": "Completed", "status": "False", "reason": "AwaitingApproval",
                "message": "approvals: 1/3", "lastTransitionTime": at(1).to_string()}],
            "steps": [{"name": "halted", "state": "Succeeded", "startedAt": time(1), "finishedAt": time(2), "message": "proven"},
                {"name": "approvals", "state": "Pending", "message": "1/3"}, {"name": "checks", "state": "Pending"}]})
    }

    #[test]
    fn it_says_who_must_still_approve_and_with_what_command() {
        let text = plain(&lines(&resume(awaiting()), &say(), at(10)));
        assert_eq!(
            text,
            "stale-resume  AwaitingApproval
  resumes     releases halt stale, asked for by alice, 10s ago
              done        halted                proven  1.000 s
              waits       approvals             1/3
              -           checks
  approvals   1/3, by bob
  says        approvals: 1/3
  next        1 approval of group risk: kubectl standfast approve stale-resume -n fx
  next        1 approval of anybody: kubectl standfast approve stale-resume -n fx
"
        );
    }

    #[test]
    fn one_person_fills_one_slot() {
        let mut status = awaiting();
        status["plan"] =
            json!({"policy": {"approvals": [{"count": 1, "group": "risk"}, {"count": 1, "group": "risk"}]}});
        let view = ResumeView::of(&resume(status));
        assert_eq!(view.waiting_for, [Missing { count: 1, group: Some("risk".into()) }]);
    }

    #[test]
    fn breaks_and_regressions_are_named() {
        let status = json!({"phase": "Reconciling", "breaks": [{"venue": "alpaca", "symbol": "AAPL", "kind": "Position", "difference": "-3"}],
            "stage": "small", "stages": [{"name": "small", "held": "90s", "limits": {"maxPosition": "10"}}],
            "regression": {"check": "latency", "message": "900 > 500", "stage": "small", "at": time(5), "halt": "again"}});
        let text = plain(&lines(&resume(status), &say(), at(10)));
        for part in [
            "stale-resume  Reconciling, stage small",
            "break       alpaca AAPL Position: the venue has -3 more than the bot",
            "stage       small  held 1m30s, the bot keeps to maxPosition 10",
            "regression  latency in small: 900 > 500; halted again by again",
            "next        repair the books, or accept 1 break: kubectl standfast approve stale-resume --accept-breaks -n fx",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn every_phase_reads_as_it_is() {
        for (phase, over) in [
            ("Pending", false),
            ("Checking", false),
            ("AwaitingApproval", false),
            ("CoolingOff", false),
            ("Reconciling", false),
            ("Releasing", false),
            ("Restoring", false),
            ("Ramping", false),
            ("Watching", false),
            ("Paused", false),
            ("Completed", true),
            ("Evaluated", true),
            ("Rejected", true),
            ("ReHalted", true),
            ("Failed", true),
            ("Aborted", true),
            ("Indeterminate", true),
        ] {
            let resume = resume(json!({"phase": phase}));
            let view = ResumeView::of(&resume);
            assert_eq!((view.phase.as_str(), view.ended), (phase, over));
            assert!(plain(&lines(&resume, &say(), at(0))).contains(phase));
        }
        assert!(!ResumeView::of(&resume(Value::Null)).ended);
    }

    #[test]
    fn an_odd_plan_asks_for_nothing_and_breaks_nothing() {
        for plan in [json!(null), json!(7), json!({"policy": 3}), json!({"policy": {"approvals": [{"count": "x"}]}})] {
            assert_eq!(requirements(Some(&plan)), []);
        }
    }
}
