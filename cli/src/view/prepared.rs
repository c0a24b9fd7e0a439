//! Whether an emergency halt would work now.

use k8s_openapi::{api::coordination::v1::Lease, jiff::Timestamp};
use kube::ResourceExt;
use serde::Serialize;
use standfast_crds::v1alpha1::{Problem, TradingSystem, condition};

use super::system;
use crate::text::{Line, Style, age, count, row};

/// Whether an operator runs, as far as its Lease tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Operator {
    /// `Leads`, `Silent`, or `Unknown` where the Lease may not be read.
    pub state: &'static str,
    /// In words.
    pub message: String,
}

/// How long the Lease of a leader may be without renewal: it is valid for six seconds.
const SILENCE: i64 = 15;

impl Operator {
    /// What a Lease tells.
    pub fn of(lease: Option<&Lease>, namespace: &str, now: Timestamp) -> Self {
        let spec = lease.and_then(|l| l.spec.as_ref());
        let holder = spec.and_then(|s| s.holder_identity.clone()).filter(|h| !h.is_empty());
        match (spec, spec.and_then(|s| s.renew_time.as_ref())) {
            (Some(_), Some(renewed)) if holder.is_some() => {
                let silent = now.duration_since(renewed.0).as_secs() > SILENCE;
                let ago = age(renewed.0, now);
                if silent {
                    let message = format!("it last renewed its Lease {ago} ago: no operator leads");
                    Self { state: "Silent", message }
                } else {
                    Self { state: "Leads", message: format!("it renewed its Lease {ago} ago") }
                }
            }
            (Some(_), _) => Self { state: "Silent", message: "nobody holds its Lease: no operator leads".into() },
            (None, _) => Self {
                state: "Unknown",
                message: format!(
                    "whether it runs is not known: its Lease in namespace {namespace} may not be read, or is not there"
                ),
            },
        }
    }
}

/// Whether a halt of one system would work.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PreparedView {
    /// The system.
    pub name: String,
    /// Whether it would; absent when not known.
    pub prepared: Option<bool>,
    /// What the condition `Prepared` says.
    pub message: Option<String>,
    /// What stands in the way, and what to do.
    pub problems: Vec<Problem>,
    /// How orders are cancelled.
    pub cancel_path: Option<String>,
    /// Other controllers that set replicas.
    pub coexistence: Vec<String>,
    /// How many trading workloads it would stop.
    pub workloads: usize,
}

impl PreparedView {
    /// Whether a halt of this system would work.
    pub fn of(system: &TradingSystem) -> Self {
        let status = system.status.clone().unwrap_or_default();
        Self {
            name: system.name_any(),
            prepared: system::prepared(system),
            message: condition(&status.conditions, "Prepared").map(|c| c.message.clone()),
            problems: status.problems,
            cancel_path: status.cancel_path,
            coexistence: status.coexistence,
            workloads: status.trading_workloads.len(),
        }
    }
}

/// Whether nothing stands in the way: every system is prepared, and the operator is not known to be silent.
pub fn all(systems: &[PreparedView], operator: &Operator) -> bool {
    !systems.is_empty() && systems.iter().all(|s| s.prepared == Some(true)) && operator.state != "Silent"
}

/// What stands in the way of an emergency halt.
pub fn lines(systems: &[PreparedView], operator: &Operator) -> Vec<Line> {
    let mut lines = vec![];
    for system in systems {
        let (style, word) = match system.prepared {
            Some(true) => (Style::Good, "prepared"),
            Some(false) => (Style::Bad, "NOT PREPARED"),
            None => (Style::Bad, "NOT KNOWN"),
        };
        lines.push(Line::new().and(Style::Bold, &system.name).and(Style::Plain, "  ").and(style, word));
        if system.problems.is_empty()
            && let Some(message) = &system.message
        {
            lines.push(row("says").and(Style::Plain, message));
        }
        if system.message.is_none() {
            lines.push(row("says").and(Style::Bad, "no operator has looked at it"));
        } else if system.prepared.is_none() {
            lines.push(row("says").and(Style::Bad, "no operator has looked at it since its spec was changed"));
        }
        lines.extend(
            system
                .problems
                .iter()
                .map(|p| row("problem").and(Style::Bad, &p.reason).and(Style::Plain, format!(": {}", p.message))),
        );
        let path = system.cancel_path.clone().unwrap_or_else(|| "not known".into());
        let stops = count(system.workloads as i64, "trading workload");
        lines.push(row("would").and(Style::Plain, format!("stop {stops}, cancel orders by {path}")));
        lines.extend(system.coexistence.iter().map(|c| row("note").and(Style::Plain, c)));
    }
    let style = match operator.state {
        "Leads" => Style::Good,
        "Silent" => Style::Bad,
        _ => Style::Warn,
    };
    lines.push(Line::new().and(Style::Bold, "operator").and(style, format!("  {}", operator.message)));
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::view::testing::{at, plain, system, time};

    fn lease(renewed: Option<i64>, holder: &str) -> Lease {
        let spec = json!({"holderIdentity": holder, "renewTime": renewed.map(time)});
        serde_json::from_value(json!({"metadata": {"name": "standfast"}, "spec": spec})).unwrap()
    }

    fn condition(status: &str) -> Value {
        json!([{"type": "Prepared", "status": status, "reason": "R", "message": "an emergency halt would work now",
            "lastTransitionTime": at(0).to_string()}])
    }

    #[test]
    fn a_lease_that_is_not_renewed_means_that_no_operator_leads() {
        for (lease, expected) in [
            (Some(lease(Some(8), "pod")), "Leads"),
            (Some(lease(Some(-30), "pod")), "Silent"),
            (Some(lease(Some(8), "")), "Silent"),
            (Some(lease(None, "pod")), "Silent"),
            (None, "Unknown"),
        ] {
            assert_eq!(Operator::of(lease.as_ref(), "standfast-system", at(10)).state, expected);
        }
    }

    #[test]
    fn only_what_is_known_to_work_is_prepared() {
        let leads = Operator::of(Some(&lease(Some(8), "pod")), "x", at(10));
        let silent = Operator::of(Some(&lease(None, "pod")), "x", at(10));
        let unknown = Operator::of(None, "x", at(10));
        let with = |status: Value| PreparedView::of(&system(status));
        let yes = with(json!({"conditions": condition("True")}));
        let no = with(json!({"conditions": condition("False")}));
        let unseen = with(json!({}));
        for (systems, operator, expected) in [
            (vec![yes.clone()], &leads, true),
            (vec![yes.clone()], &unknown, true),
            (vec![yes.clone()], &silent, false),
            (vec![yes.clone(), no], &leads, false),
            (vec![yes, unseen], &leads, false),
            (vec![], &leads, false),
        ] {
            assert_eq!(all(&systems, operator), expected, "{systems:?} {operator:?}");
        }
    }

    #[test]
    fn problems_are_listed_with_what_to_do() {
        let status = json!({"conditions": condition("False"), "cancelPath": "HTTP",
            "problems": [{"reason": "CredentialMissing", "message": "Secret fx/alpaca does not exist: create it"}],
            "tradingWorkloads": [{"kind": "Deployment", "name": "bot", "replicas": 3}]});
        let text = plain(&lines(&[PreparedView::of(&system(status))], &Operator::of(None, "standfast-system", at(0))));
        assert_eq!(
            text,
            "demo  NOT PREPARED
  problem     CredentialMissing: Secret fx/alpaca does not exist: create it
  would       stop 1 trading workload, cancel orders by HTTP
operator  whether it runs is not known: its Lease in namespace standfast-system may not be read, or is not there
"
        );
        let unseen = plain(&lines(&[PreparedView::of(&system(json!({})))], &Operator::of(None, "x", at(0))));
        assert!(unseen.contains("NOT KNOWN") && unseen.contains("no operator has looked at it"), "{unseen}");
    }
}
