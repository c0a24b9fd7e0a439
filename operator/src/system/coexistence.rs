//! Other controllers of a system's workloads. They are named, never changed: the latch refuses all of them alike, and
//! when it is released they carry on.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::autoscaling::v2::HorizontalPodAutoscaler, apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry,
};
use kube::ResourceExt;
use standfast_crds::v1alpha1::{WorkloadKind, shorten};

use crate::workloads::View;

/// At most this many are named.
const LIMIT: usize = 64;

/// What scales a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Autoscaler {
    /// The kind of what it scales.
    kind: String,
    /// Its name.
    target: String,
    /// What it is, in words.
    what: String,
}

/// What a HorizontalPodAutoscaler scales. KEDA makes one for each of its ScaledObjects.
pub(super) fn autoscaler(hpa: &HorizontalPodAutoscaler) -> Autoscaler {
    let name = hpa.name_any();
    let spec = &hpa.spec;
    let labels = hpa.metadata.labels.as_ref();
    let owner = hpa.owner_references().iter().find(|o| o.kind == "ScaledObject").map(|o| o.name.as_str());
    let keda = owner
        .or_else(|| labels?.get("scaledobject.keda.sh/name").map(String::as_str))
        .or_else(|| name.strip_prefix("keda-hpa-"));
    let what = match keda {
        Some(scaled) => format!("KEDA ScaledObject {scaled}"),
        None => format!("HorizontalPodAutoscaler {name}"),
    };
    let range = spec.as_ref().map(|s| format!(" ({} to {})", s.min_replicas.unwrap_or(1), s.max_replicas));
    let reference = spec.as_ref().map(|s| &s.scale_target_ref);
    Autoscaler {
        kind: reference.map(|r| r.kind.clone()).unwrap_or_default(),
        target: reference.map(|r| r.name.clone()).unwrap_or_default(),
        what: format!("{what}{}", range.unwrap_or_default()),
    }
}

/// Who manages a workload, by the marks that the managers leave on it.
fn managers(view: &View) -> Vec<String> {
    let annotation = |key: &str| view.annotations.get(key);
    let label = |key: &str| view.labels.get(key);
    let mut found = vec![];
    // `app:group/kind:namespace/name`
    let argo = annotation("argocd.argoproj.io/tracking-id")
        .and_then(|id| id.split(':').next())
        .or_else(|| label("argocd.argoproj.io/instance").map(String::as_str));
    found.extend(argo.map(|app| format!("Argo CD application {app}")));
    for (kind, prefix) in [("Kustomization", "kustomize"), ("HelmRelease", "helm")] {
        if let Some(name) = label(&format!("{prefix}.toolkit.fluxcd.io/name")) {
            let namespace = label(&format!("{prefix}.toolkit.fluxcd.io/namespace"));
            let namespace = namespace.map(|n| format!("{n}/")).unwrap_or_default();
            found.push(format!("Flux {kind} {namespace}{name}"));
        }
    }
    // A HelmRelease of Flux leaves Helm's own mark too.
    if found.is_empty()
        && let Some(release) = annotation("meta.helm.sh/release-name")
    {
        found.push(format!("Helm release {release}"));
    }
    found
}

/// All other controllers of these workloads in words, sorted; a manager of several workloads is named once.
pub(super) fn named(trading: &[View], autoscalers: &[Autoscaler]) -> Vec<String> {
    let mut lines = BTreeSet::new();
    let mut managed: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for view in trading {
        let workload = format!("{} {}", view.key.kind, view.key.name);
        for scaler in autoscalers {
            if scaler.kind == view.key.kind.as_str() && scaler.target == view.key.name {
                lines.insert(shorten(&format!("{} scales {workload}", scaler.what)));
            }
        }
        for manager in managers(view) {
            managed.entry(manager).or_default().push(workload.clone());
        }
    }
    for (manager, workloads) in managed {
        let more = match workloads.len() {
            0..=3 => String::new(),
            n => format!(" and {} more", n - 3),
        };
        let some = workloads.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        lines.insert(shorten(&format!("{manager} manages {some}{more}")));
    }
    lines.into_iter().take(LIMIT).collect()
}

/// Field managers that keep a workload's replicas as they are in Git.
const GIT: [&str; 4] = ["argocd", "flux", "kustomize-controller", "helm-controller"];

/// The field manager that applies what a halt changes of a workload from Git or a chart: `spec.replicas`, a CronJob's
/// `suspend`, or a DaemonSet's node selector, which is applied as a whole.
pub(super) fn git_manager(kind: WorkloadKind, fields: &[ManagedFieldsEntry]) -> Option<&str> {
    fields
        .iter()
        .filter(|f| f.subresource.as_deref().unwrap_or_default().is_empty())
        .filter(|f| {
            f.fields_v1.as_ref().is_some_and(|v| {
                let spec = &v.0["f:spec"];
                !match kind {
                    WorkloadKind::CronJob => &spec["f:suspend"],
                    WorkloadKind::DaemonSet => &spec["f:template"]["f:spec"]["f:nodeSelector"],
                    _ => &spec["f:replicas"],
                }
                .is_null()
            })
        })
        .filter_map(|f| f.manager.as_deref())
        .find(|m| GIT.iter().any(|git| *m == *git || m.starts_with(&format!("{git}-"))))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::workloads::Key;

    fn view(name: &str, labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> View {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        View {
            key: Key { namespace: "trading".into(), kind: WorkloadKind::Deployment, name: name.into() },
            labels: map(labels),
            annotations: map(annotations),
            replicas: 1,
            ready: 1,
            suspended: false,
            selector: None,
            match_labels: None,
        }
    }

    fn hpa(metadata: Value, target: &str) -> Autoscaler {
        autoscaler(
            &serde_json::from_value(json!({
                "metadata": metadata,
                "spec": {"minReplicas": 2, "maxReplicas": 5, "scaleTargetRef": {"kind": "Deployment", "name": target}},
            }))
            .unwrap(),
        )
    }

    #[rstest]
    #[case(json!({"name": "bot"}), "HorizontalPodAutoscaler bot (2 to 5) scales Deployment bot")]
    #[case(json!({"name": "keda-hpa-bot"}), "KEDA ScaledObject bot (2 to 5) scales Deployment bot")]
    #[case(json!({"name": "x", "labels": {"scaledobject.keda.sh/name": "so"}}), "KEDA ScaledObject so (2 to 5) scales Deployment bot")]
    #[case(
        json!({"name": "x", "ownerReferences": [{"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": "so", "uid": "1"}]}),
        "KEDA ScaledObject so (2 to 5) scales Deployment bot"
    )]
    fn autoscalers_are_named(#[case] metadata: Value, #[case] expected: &str) {
        let scalers = [hpa(metadata, "bot"), hpa(json!({"name": "other"}), "dashboard")];
        assert_eq!(named(&[view("bot", &[], &[])], &scalers), [expected]);
    }

    #[rstest]
    #[case(&[], &[("argocd.argoproj.io/tracking-id", "bots:apps/Deployment:trading/bot")], "Argo CD application bots manages Deployment bot")]
    #[case(&[("argocd.argoproj.io/instance", "bots")], &[], "Argo CD application bots manages Deployment bot")]
    #[case(
        &[("kustomize.toolkit.fluxcd.io/name", "bots"), ("kustomize.toolkit.fluxcd.io/namespace", "flux-system")], &[],
        "Flux Kustomization flux-system/bots manages Deployment bot"
    )]
    #[case(
        &[("helm.toolkit.fluxcd.io/name", "bots")], &[("meta.helm.sh/release-name", "bots")],
        "Flux HelmRelease bots manages Deployment bot"
    )]
    #[case(&[], &[("meta.helm.sh/release-name", "bots")], "Helm release bots manages Deployment bot")]
    fn managers_are_named(
        #[case] labels: &[(&str, &str)],
        #[case] annotations: &[(&str, &str)],
        #[case] expected: &str,
    ) {
        assert_eq!(named(&[view("bot", labels, annotations)], &[]), [expected]);
    }

    #[rstest]
    #[case(WorkloadKind::CronJob, json!({"f:suspend": {}}), true)]
    #[case(WorkloadKind::CronJob, json!({"f:replicas": {}}), false)]
    #[case(WorkloadKind::DaemonSet, json!({"f:template": {"f:spec": {"f:nodeSelector": {}}}}), true)]
    #[case(WorkloadKind::Deployment, json!({"f:template": {"f:spec": {"f:nodeSelector": {}}}}), false)]
    fn what_a_halt_changes_depends_on_the_kind(#[case] kind: WorkloadKind, #[case] spec: Value, #[case] found: bool) {
        assert_eq!(git_manager(kind, &[entry("flux", json!({"f:spec": spec}), "")]).is_some(), found);
    }

    #[test]
    fn a_manager_of_many_is_named_once() {
        let views: Vec<_> =
            (0..500).map(|n| view(&format!("bot-{n:03}"), &[], &[("meta.helm.sh/release-name", "bots")])).collect();
        assert_eq!(
            named(&views, &[]),
            ["Helm release bots manages Deployment bot-000, Deployment bot-001, Deployment bot-002 and 497 more"]
        );
    }

    fn entry(manager: &str, fields: Value, subresource: &str) -> ManagedFieldsEntry {
        serde_json::from_value(json!({
            "manager": manager, "operation": "Apply", "fieldsV1": fields, "subresource": subresource,
        }))
        .unwrap()
    }

    #[rstest]
    #[case("argocd-controller", json!({"f:spec": {"f:replicas": {}}}), "", Some("argocd-controller"))]
    #[case("kustomize-controller", json!({"f:spec": {"f:replicas": {}}}), "", Some("kustomize-controller"))]
    #[case("argocd-controller", json!({"f:spec": {"f:suspend": {}}}), "", None)]
    #[case("argocd-controller", json!({"f:spec": {"f:template": {}}}), "", None)]
    #[case("kubectl-client-side-apply", json!({"f:spec": {"f:replicas": {}}}), "", None)]
    #[case("helmsman", json!({"f:spec": {"f:replicas": {}}}), "", None)]
    #[case("helm", json!({"f:spec": {"f:replicas": {}}}), "scale", None)]
    fn replicas_from_git_are_found(
        #[case] manager: &str,
        #[case] fields: Value,
        #[case] subresource: &str,
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(git_manager(WorkloadKind::Deployment, &[entry(manager, fields, subresource)]), expected);
    }
}
