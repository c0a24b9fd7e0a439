//! What is kept of a workload, and what it says.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment, StatefulSet},
        batch::v1::CronJob,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use kube::{Resource, ResourceExt, core::DynamicResourceScope};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use standfast_crds::{
    guardrails::{HALTED_KEY, HALTED_VALUE},
    v1alpha1::{Workload, WorkloadKind},
};

use crate::{kinds::Scalable, scale::Size};

/// What is needed of a Deployment.
#[derive(Clone, Debug, Default, Resource, Serialize, Deserialize)]
#[resource(inherit = Deployment)]
pub(super) struct LeanDeployment {
    metadata: ObjectMeta,
    spec: Option<LeanSpec>,
    status: Option<LeanStatus>,
}

/// What is needed of a StatefulSet.
#[derive(Clone, Debug, Default, Resource, Serialize, Deserialize)]
#[resource(inherit = StatefulSet)]
pub(super) struct LeanStatefulSet {
    metadata: ObjectMeta,
    spec: Option<LeanSpec>,
    status: Option<LeanStatus>,
}

/// What is needed of a CronJob.
#[derive(Clone, Debug, Default, Resource, Serialize, Deserialize)]
#[resource(inherit = CronJob)]
#[serde(rename_all = "camelCase")]
pub(super) struct LeanCronJob {
    metadata: ObjectMeta,
    spec: Option<LeanCronSpec>,
}

/// What is needed of a DaemonSet.
#[derive(Clone, Debug, Default, Resource, Serialize, Deserialize)]
#[resource(inherit = DaemonSet)]
pub(super) struct LeanDaemonSet {
    metadata: ObjectMeta,
    spec: Option<LeanDaemonSpec>,
    status: Option<LeanDaemonStatus>,
}

/// What is needed of an object of a kind that the chart lists.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct LeanScalable {
    metadata: ObjectMeta,
    #[serde(flatten)]
    rest: Value,
}

impl Resource for LeanScalable {
    type DynamicType = Scalable;
    type Scope = DynamicResourceScope;

    fn kind(kind: &Scalable) -> Cow<'_, str> {
        kind.kind.as_str().into()
    }

    fn group(kind: &Scalable) -> Cow<'_, str> {
        kind.group.as_str().into()
    }

    fn version(kind: &Scalable) -> Cow<'_, str> {
        kind.version.as_str().into()
    }

    fn api_version(kind: &Scalable) -> Cow<'_, str> {
        kind.api_version().into()
    }

    fn plural(kind: &Scalable) -> Cow<'_, str> {
        kind.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct LeanSpec {
    replicas: Option<i32>,
    selector: Option<LabelSelector>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanStatus {
    ready_replicas: Option<i32>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanCronSpec {
    suspend: Option<bool>,
    job_template: Option<LeanJobTemplate>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct LeanJobTemplate {
    spec: Option<LeanJobSpec>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct LeanJobSpec {
    template: Option<LeanPodTemplate>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct LeanPodTemplate {
    metadata: Option<ObjectMeta>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct LeanDaemonSpec {
    selector: Option<LabelSelector>,
    template: Option<LeanDaemonTemplate>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct LeanDaemonTemplate {
    spec: Option<LeanPodSpec>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanPodSpec {
    node_selector: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanDaemonStatus {
    desired_number_scheduled: Option<i32>,
    number_ready: Option<i32>,
}

/// Which workload of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The namespace.
    pub namespace: String,
    /// The kind.
    pub kind: WorkloadKind,
    /// The name.
    pub name: String,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// A workload as the cache last saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Which one.
    pub key: Key,
    /// Its own labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations, for the detection of other controllers.
    pub annotations: BTreeMap<String, String>,
    /// Replicas it wants; of a DaemonSet the nodes that it is meant for; 0 for a CronJob.
    pub replicas: i32,
    /// Ready pods; 0 for a kind that the chart lists.
    pub ready: i32,
    /// Whether a CronJob is suspended, or a DaemonSet kept from all nodes.
    pub suspended: bool,
    /// What selects its pods.
    pub selector: Option<LabelSelector>,
    /// Labels of its pods, when labels alone select them.
    pub match_labels: Option<BTreeMap<String, String>>,
}

impl View {
    /// The size that its spec gives it.
    pub fn size(&self) -> Size {
        if self.key.kind.is_switched() { Size::Suspended(self.suspended) } else { Size::Replicas(self.replicas) }
    }

    /// Whether it may run pods now, as far as its spec says.
    pub fn active(&self) -> bool {
        self.size() != Size::stopped(self.key.kind)
    }

    /// Whether an entry of a TradingSystem names it.
    pub fn named_by(&self, entry: &Workload) -> bool {
        let carries = |labels: &BTreeMap<String, String>| labels.iter().all(|(k, v)| self.labels.get(k) == Some(v));
        let named = match (&entry.name, &entry.match_labels) {
            (Some(name), _) => *name == self.key.name,
            (None, labels) => labels.as_ref().is_some_and(carries),
        };
        entry.kind == self.key.kind && named
    }

    /// Whether as many pods are ready as it wants, and any but where there is no node for a DaemonSet; as far as is known.
    pub fn has_its_pods(&self) -> bool {
        match self.key.kind {
            WorkloadKind::DaemonSet => self.ready >= self.replicas,
            // How many are ready is not cached.
            WorkloadKind::Scalable(_) => true,
            _ => self.replicas > 0 && self.ready >= self.replicas,
        }
    }
}

fn key<K: ResourceExt>(kind: WorkloadKind, object: &K) -> Key {
    Key { namespace: object.namespace().unwrap_or_default(), kind, name: object.name_any() }
}

fn plain_labels(selector: Option<&LabelSelector>) -> Option<BTreeMap<String, String>> {
    let selector = selector?;
    if selector.match_expressions.as_ref().is_some_and(|e| !e.is_empty()) {
        return None;
    }
    selector.match_labels.clone().filter(|l| !l.is_empty())
}

fn scaled(kind: WorkloadKind, meta: &ObjectMeta, spec: Option<&LeanSpec>, status: Option<&LeanStatus>) -> View {
    View {
        key: Key {
            namespace: meta.namespace.clone().unwrap_or_default(),
            kind,
            name: meta.name.clone().unwrap_or_default(),
        },
        labels: meta.labels.clone().unwrap_or_default(),
        annotations: meta.annotations.clone().unwrap_or_default(),
        // The API server fills in 1 where nothing is given, and leaves 0 as it is.
        replicas: spec.and_then(|s| s.replicas).unwrap_or(0),
        ready: status.and_then(|s| s.ready_replicas).unwrap_or(0),
        suspended: false,
        selector: spec.and_then(|s| s.selector.clone()),
        match_labels: plain_labels(spec.and_then(|s| s.selector.as_ref())),
    }
}

pub(super) trait AsView {
    fn view(&self) -> View;
}

impl AsView for LeanDeployment {
    fn view(&self) -> View {
        scaled(WorkloadKind::Deployment, &self.metadata, self.spec.as_ref(), self.status.as_ref())
    }
}

impl AsView for LeanStatefulSet {
    fn view(&self) -> View {
        scaled(WorkloadKind::StatefulSet, &self.metadata, self.spec.as_ref(), self.status.as_ref())
    }
}

impl AsView for LeanCronJob {
    fn view(&self) -> View {
        let spec = self.spec.as_ref();
        View {
            key: key(WorkloadKind::CronJob, self),
            labels: self.metadata.labels.clone().unwrap_or_default(),
            annotations: self.metadata.annotations.clone().unwrap_or_default(),
            replicas: 0,
            ready: 0,
            suspended: spec.and_then(|s| s.suspend).unwrap_or(false),
            selector: None,
            match_labels: spec
                .and_then(|s| {
                    s.job_template.as_ref()?.spec.as_ref()?.template.as_ref()?.metadata.as_ref()?.labels.clone()
                })
                .filter(|l| !l.is_empty()),
        }
    }
}

impl AsView for LeanDaemonSet {
    fn view(&self) -> View {
        let (spec, status) = (self.spec.as_ref(), self.status.as_ref());
        let node_selector = spec.and_then(|s| s.template.as_ref()?.spec.as_ref()?.node_selector.as_ref());
        View {
            key: key(WorkloadKind::DaemonSet, self),
            labels: self.metadata.labels.clone().unwrap_or_default(),
            annotations: self.metadata.annotations.clone().unwrap_or_default(),
            replicas: status.and_then(|s| s.desired_number_scheduled).unwrap_or(0),
            ready: status.and_then(|s| s.number_ready).unwrap_or(0),
            suspended: node_selector.and_then(|s| s.get(HALTED_KEY)).is_some_and(|v| v == HALTED_VALUE),
            selector: spec.and_then(|s| s.selector.clone()),
            match_labels: plain_labels(spec.and_then(|s| s.selector.as_ref())),
        }
    }
}

/// The labels of a selector in its text form, such as `app=bot,tier=x`; none if it asks for more than labels.
pub fn parse_selector(text: &str) -> Option<BTreeMap<String, String>> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let labels = text.split(',').map(|part| {
        let (key, value) = part.split_once('=')?;
        let (key, value) = (key.trim(), value.strip_prefix('=').unwrap_or(value).trim());
        let known = !key.is_empty() && key.chars().all(plain) && value.chars().all(plain);
        known.then(|| (key.to_owned(), value.to_owned()))
    });
    labels.collect()
}

impl LeanScalable {
    /// Keeps only what [`Self::view`] asks for.
    pub(super) fn slim(&mut self, kind: &Scalable) {
        // What is declared, where it is: a status may name the pods of one revision only (blue-green), and the others
        // trade too.
        let declared = self.rest.pointer("/spec/selector").cloned();
        let declared = declared.and_then(|s| serde_json::from_value::<LabelSelector>(s).ok());
        let labels = plain_labels(declared.as_ref());
        let labels = labels.or_else(|| kind.selector(&self.rest).and_then(parse_selector));
        self.rest = json!({"replicas": self.rest.pointer("/spec/replicas"), "labels": labels});
    }

    pub(super) fn view(&self, kind: &Scalable) -> View {
        let labels: Option<BTreeMap<String, String>> = serde_json::from_value(self.rest["labels"].clone()).ok();
        View {
            key: key(kind.kind, self),
            labels: self.metadata.labels.clone().unwrap_or_default(),
            annotations: self.metadata.annotations.clone().unwrap_or_default(),
            // How many pods it runs without is not known, but it runs some.
            replicas: self.rest["replicas"].as_i64().map_or(1, |n| i32::try_from(n).unwrap_or(i32::MAX)),
            ready: 0,
            suspended: false,
            selector: labels.clone().map(|l| LabelSelector { match_labels: Some(l), match_expressions: None }),
            match_labels: labels,
        }
    }
}

/// Annotations that name other controllers of a workload; the rest is not kept.
const KEPT_ANNOTATIONS: [&str; 3] =
    ["argocd.argoproj.io/tracking-id", "meta.helm.sh/release-name", "kustomize.toolkit.fluxcd.io/reconcile"];

/// Strips what nobody reads.
pub(super) fn lean<K: ResourceExt>(object: &mut K) {
    object.managed_fields_mut().clear();
    object.annotations_mut().retain(|k, _| KEPT_ANNOTATIONS.contains(&k.as_str()));
    let meta = object.meta_mut();
    meta.owner_references = None;
    meta.finalizers = None;
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::kinds::Kinds;

    #[rstest]
    #[case("app=bot,tier=x", Some(json!({"app": "bot", "tier": "x"})))]
    #[case("app==bot", Some(json!({"app": "bot"})))]
    #[case("a.io/b=", Some(json!({"a.io/b": ""})))]
    #[case("app in (a,b)", None)]
    #[case("app!=bot", None)]
    #[case("app=bot,!tier", None)]
    #[case("app", None)]
    #[case("", None)]
    fn only_plain_labels_are_taken_from_a_selector(#[case] text: &str, #[case] labels: Option<Value>) {
        assert_eq!(parse_selector(text).map(|l| json!(l)), labels);
    }

    #[rstest]
    #[case(json!({"kind": "Deployment", "name": "bot"}), true)]
    #[case(json!({"kind": "Deployment", "name": "other"}), false)]
    #[case(json!({"kind": "StatefulSet", "name": "bot"}), false)]
    #[case(json!({"kind": "Deployment", "matchLabels": {"app": "x"}}), true)]
    #[case(json!({"kind": "Deployment", "matchLabels": {"app": "x", "tier": "y"}}), false)]
    fn an_entry_names_a_workload(#[case] mut entry: Value, #[case] expected: bool) {
        entry["role"] = json!("Supporting");
        let bot: LeanDeployment =
            serde_json::from_value(json!({"metadata": {"name": "bot", "labels": {"app": "x"}}})).unwrap();
        assert_eq!(bot.view().named_by(&serde_json::from_value(entry).unwrap()), expected);
    }

    #[test]
    fn what_does_not_say_its_replicas_runs() {
        let kinds: Kinds = "argoproj.io/v1alpha1/Rollout/rollouts".parse().unwrap();
        let view = |object: Value| {
            let mut object: LeanScalable = serde_json::from_value(object).unwrap();
            object.slim(&kinds.scalable()[0]);
            object.view(&kinds.scalable()[0])
        };
        let status = json!({"selector": "app=bot"});
        let stopped = view(json!({"metadata": {"name": "bot"}, "spec": {"replicas": 0, "x": 1}, "status": status}));
        assert!(!stopped.active() && stopped.match_labels.is_some());
        // A blue-green status tells the pods of one revision; all that are declared trade.
        let declared = json!({"replicas": 1, "selector": {"matchLabels": {"app": "bot"}}});
        let status = json!({"selector": "app=bot,rollouts-pod-template-hash=a1"});
        let coloured = view(json!({"metadata": {"name": "bot"}, "spec": declared, "status": status}));
        assert_eq!(coloured.match_labels, Some([("app".to_owned(), "bot".to_owned())].into()));
        let unknown = view(json!({"metadata": {"name": "bot"}, "spec": {}}));
        assert!(unknown.active() && unknown.match_labels.is_none() && unknown.selector.is_none());
    }
}
