//! What to do by hand when no operator reacts to a halt.

use kube::ResourceExt;
use serde_json::{Value, json};
use standfast_crds::{
    guardrails::{HALTED_KEY, HALTED_VALUE},
    v1alpha1::{TradingSystem, Workload, WorkloadKind, WorkloadRole},
};

use crate::{
    cluster::Say,
    text::{Line, Style, quoted},
};

/// How long an operator may take to react before people are told that none does.
pub const OPERATOR_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// The commands that stop the bots of these systems, and the addresses that cancel their orders.
pub fn lines(systems: &[TradingSystem], halt: &str, say: &Say) -> Vec<Line> {
    let seconds = OPERATOR_PATIENCE.as_secs();
    let mut lines = vec![
        Line::new().and(
            Style::Bad,
            format!("NOTHING IS LATCHED: no operator has reacted to TradingHalt {halt} within {seconds} s."),
        ),
        Line::of("Stop trading by hand, now:"),
    ];
    if systems.is_empty() {
        lines.push(Line::of("  scale every trading workload to zero, and cancel the orders at the venues"));
        return lines;
    }
    for system in systems {
        let trading = system.spec.workloads.iter().filter(|w| w.role == WorkloadRole::Trading);
        lines.extend(trading.map(|w| Line::of("  ").and(Style::Bold, stop(w, say))));
        for venue in &system.spec.venues {
            let requests: Vec<String> = venue.cancel_orders.iter().map(request).collect();
            let how = if requests.is_empty() { String::new() } else { format!(" ({})", requests.join("; ")) };
            let name = &venue.name;
            let text = format!("  cancel all orders at the venue {name}, in its own console or by its API{how}");
            lines.push(Line::of(text));
        }
    }
    lines.push(Line::of("Then find out why no operator runs:"));
    lines.push(Line::of("  ").and(Style::Bold, "kubectl -n standfast-system get pods,leases,events"));
    let names = systems.iter().map(ResourceExt::name_any).collect::<Vec<_>>().join(", ");
    lines.push(Line::of(format!(
        "The TradingHalt stays: an operator that comes back carries it out. Until then nothing keeps {names} stopped."
    )));
    lines
}

fn stop(workload: &Workload, say: &Say) -> String {
    let kind = match (workload.kind, workload.api_version.as_deref().and_then(|v| v.split_once('/'))) {
        // As kubectl takes it: kind, version, group.
        (kind @ WorkloadKind::Scalable(_), Some((group, version))) => format!("{kind}.{version}.{group}"),
        (kind, _) => kind.as_str().to_lowercase(),
    };
    let labels = workload.match_labels.iter().flatten().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
    let off = match workload.kind {
        WorkloadKind::CronJob => Some(json!({"spec": {"suspend": true}})),
        WorkloadKind::DaemonSet => {
            Some(json!({"spec": {"template": {"spec": {"nodeSelector": {HALTED_KEY: HALTED_VALUE}}}}}))
        }
        WorkloadKind::Deployment | WorkloadKind::StatefulSet | WorkloadKind::Scalable(_) => None,
    };
    let off = off.map(|patch| format!("--type merge --patch '{patch}'"));
    match (off, &workload.name) {
        (Some(off), Some(name)) => say.kubectl(&format!("patch {kind} {name} {off}")),
        // `kubectl patch` takes no labels.
        (Some(off), None) => {
            let (get, patch) = (format!("get {kind} -l {} -o name", quoted(&labels)), format!("patch {off}"));
            format!("{} | xargs -r -n1 {}", say.kubectl(&get), say.kubectl(&patch))
        }
        (_, Some(name)) => say.kubectl(&format!("scale {kind} {name} --replicas=0")),
        (_, None) => say.kubectl(&format!("scale {kind} -l {} --replicas=0", quoted(&labels))),
    }
}

/// An action in words, without anything secret: what authorises it is in a Secret.
fn request<T: serde::Serialize>(action: &T) -> String {
    let action = serde_json::to_value(action).unwrap_or_default();
    let text = |at: &str| action.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
    match action.get("http") {
        Some(_) => format!("{} {}", text("/http/method"), text("/http/url")).trim().to_owned(),
        None => "a Job: see its template in the TradingSystem".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::{plain, say, system};

    /// HALT 2.5
    #[test]
    fn every_trading_workload_and_venue_gets_its_command() {
        let text = plain(&lines(&[system(json!({}))], "stale", &say()));
        for part in [
            "NOTHING IS LATCHED: no operator has reacted to TradingHalt stale within 5 s.",
            "kubectl -n fx scale deployment bot --replicas=0",
            r#"kubectl -n fx patch cronjob rebalance --type merge --patch '{"spec":{"suspend":true}}'"#,
            "cancel all orders at the venue alpaca, in its own console or by its API (DELETE https://broker.example/v2/orders)",
            "kubectl -n standfast-system get pods",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("feed"), "supporting workloads are left alone: {text}");
        assert!(plain(&lines(&[], "stale", &say())).contains("NOTHING IS LATCHED"));
    }

    #[test]
    fn a_daemon_set_is_sent_to_a_node_that_there_is_not() {
        let workload =
            serde_json::from_value(json!({"kind": "DaemonSet", "name": "probe", "role": "Trading"})).unwrap();
        assert_eq!(
            stop(&workload, &say()),
            r#"kubectl -n fx patch daemonset probe --type merge --patch '{"spec":{"template":{"spec":{"nodeSelector":{"standfast.dev/halted":"true"}}}}}'"#
        );
    }

    #[test]
    fn a_kind_that_is_not_built_in_is_named_with_its_group() {
        let workload =
            json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "bot", "role": "Trading"});
        let command = stop(&serde_json::from_value(workload).unwrap(), &say());
        assert_eq!(command, "kubectl -n fx scale Rollout.v1alpha1.argoproj.io bot --replicas=0");
    }

    #[test]
    fn workloads_by_labels_are_stopped_by_labels() {
        let workload = |kind: &str| -> Workload {
            serde_json::from_value(json!({"kind": kind, "matchLabels": {"app": "bot", "tier": "x"}, "role": "Trading"}))
                .unwrap()
        };
        let command = |kind| stop(&workload(kind), &say());
        assert_eq!(command("StatefulSet"), "kubectl -n fx scale statefulset -l app=bot,tier=x --replicas=0");
        assert_eq!(
            command("CronJob"),
            "kubectl -n fx get cronjob -l app=bot,tier=x -o name | xargs -r -n1 kubectl -n fx patch --type merge \
             --patch '{\"spec\":{\"suspend\":true}}'"
        );
    }
}
