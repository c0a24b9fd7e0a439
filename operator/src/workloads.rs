//! Workloads that trade: what is known of them, and the ways to stop and start them.
//!
//! Only a few fields of each object are kept, so that a cluster with thousands of workloads costs little memory.

use std::{borrow::Cow, collections::BTreeMap, hash::Hash, sync::Arc, time::Duration};

use futures::future::join_all;
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment, StatefulSet},
        batch::v1::CronJob,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use kube::{Api, Client, Resource, ResourceExt, core::DynamicResourceScope};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use standfast_crds::{
    guardrails::{HALTED_KEY, HALTED_VALUE},
    v1alpha1::{Workload, WorkloadKind, WorkloadRole},
};

use crate::{
    args::Scope,
    cache::{self, Cache, Change, Feed},
    kinds::{Kinds, Scalable},
    scale::Size,
};

/// What is needed of a Deployment.
#[derive(Clone, Debug, Default, Resource, Serialize, Deserialize)]
#[resource(inherit = Deployment)]
struct LeanDeployment {
    metadata: ObjectMeta,
    spec: Option<LeanSpec>,
    status: Option<LeanStatus>,
}

/// What is needed of a StatefulSet.
#[derive(Clone, Debug, Default, Resource, Serialize, Deserialize)]
#[resource(inherit = StatefulSet)]
struct LeanStatefulSet {
    metadata: ObjectMeta,
    spec: Option<LeanSpec>,
    status: Option<LeanStatus>,
}

/// What is needed of a CronJob.
#[derive(Clone, Debug, Default, Resource, Serialize, Deserialize)]
#[resource(inherit = CronJob)]
#[serde(rename_all = "camelCase")]
struct LeanCronJob {
    metadata: ObjectMeta,
    spec: Option<LeanCronSpec>,
}

/// What is needed of a DaemonSet.
#[derive(Clone, Debug, Default, Resource, Serialize, Deserialize)]
#[resource(inherit = DaemonSet)]
struct LeanDaemonSet {
    metadata: ObjectMeta,
    spec: Option<LeanDaemonSpec>,
    status: Option<LeanDaemonStatus>,
}

/// What is needed of an object of a kind that the chart lists.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct LeanScalable {
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

trait AsView {
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
    fn slim(&mut self, kind: &Scalable) {
        // What is declared, where it is: a status may name the pods of one revision only (blue-green), and the others
        // trade too.
        let declared = self.rest.pointer("/spec/selector").cloned();
        let declared = declared.and_then(|s| serde_json::from_value::<LabelSelector>(s).ok());
        let labels = plain_labels(declared.as_ref());
        let labels = labels.or_else(|| kind.selector(&self.rest).and_then(parse_selector));
        self.rest = json!({"replicas": self.rest.pointer("/spec/replicas"), "labels": labels});
    }

    fn view(&self, kind: &Scalable) -> View {
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

/// The workloads of all watched namespaces.
#[derive(Clone)]
pub struct Workloads {
    deployments: Cache<LeanDeployment>,
    stateful_sets: Cache<LeanStatefulSet>,
    cron_jobs: Cache<LeanCronJob>,
    daemon_sets: Cache<LeanDaemonSet>,
    scalable: Vec<(Scalable, Cache<LeanScalable>)>,
    kinds: Kinds,
}

/// How long the first lists of DaemonSets and of kinds that the chart lists are waited for: one that is not installed, or
/// that an older role of the operator does not allow, keeps no halt of others waiting.
const PATIENCE: Duration = Duration::from_secs(10);

/// Annotations that name other controllers of a workload; the rest is not kept.
const KEPT_ANNOTATIONS: [&str; 3] =
    ["argocd.argoproj.io/tracking-id", "meta.helm.sh/release-name", "kustomize.toolkit.fluxcd.io/reconcile"];

fn lean<K: ResourceExt>(object: &mut K) {
    object.managed_fields_mut().clear();
    object.annotations_mut().retain(|k, _| KEPT_ANNOTATIONS.contains(&k.as_str()));
    let meta = object.meta_mut();
    meta.owner_references = None;
    meta.finalizers = None;
}

impl Workloads {
    /// Opens the caches: the reader, and the future that feeds them. `on_change` hears of every change: what a workload was
    /// like before, if that is known, and what it is like; or was, if it is gone.
    pub fn open(
        client: &Client,
        scope: &Scope,
        kinds: &Kinds,
        on_change: impl Fn(Option<&View>, &View) + Send + Sync + 'static,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        fn tell<K, F>(on_change: &Arc<F>) -> impl Fn(Change<'_, K>) + use<K, F>
        where
            K: AsView,
            F: Fn(Option<&View>, &View),
        {
            let on_change = Arc::clone(on_change);
            move |change| match change {
                Change::Applied(old, new) => on_change(old.map(AsView::view).as_ref(), &new.view()),
                Change::Deleted(gone) => on_change(None, &gone.view()),
            }
        }
        let on_change = Arc::new(on_change);
        let (deployments, feed_deployments) =
            cache::open(client, scope, Feed::RENEWED, None, lean, tell::<LeanDeployment, _>(&on_change), || {});
        let (stateful_sets, feed_stateful_sets) =
            cache::open(client, scope, Feed::RENEWED, None, lean, tell::<LeanStatefulSet, _>(&on_change), || {});
        let (cron_jobs, feed_cron_jobs) =
            cache::open(client, scope, Feed::RENEWED, None, lean, tell::<LeanCronJob, _>(&on_change), || {});
        let (daemon_sets, feed_daemon_sets) =
            cache::open(client, scope, Feed::RENEWED, None, lean, tell::<LeanDaemonSet, _>(&on_change), || {});
        let (mut scalable, mut feed_scalable) = (vec![], vec![]);
        for kind in kinds.scalable() {
            let resource = kind.clone();
            let apis = match scope {
                Scope::Cluster => vec![(None, Api::all_with(client.clone(), &resource))],
                Scope::Namespaces(names) => {
                    let api = |name: &String| Api::namespaced_with(client.clone(), name, &resource);
                    names.iter().map(|n| (Some(n.clone()), api(n))).collect()
                }
            };
            let (slim, view) = (kind.clone(), kind.clone());
            let slimmed = move |object: &mut LeanScalable| {
                lean(object);
                object.slim(&slim);
            };
            let on_change = Arc::clone(&on_change);
            let tell = move |change: Change<'_, LeanScalable>| match change {
                Change::Applied(old, new) => on_change(old.map(|o| o.view(&view)).as_ref(), &new.view(&view)),
                Change::Deleted(gone) => on_change(None, &gone.view(&view)),
            };
            let (cache, feed) = cache::open_of(resource, apis, Feed::RENEWED, None, slimmed, tell, || {});
            scalable.push((kind.clone(), cache));
            feed_scalable.push(feed);
        }
        let feed = async {
            let feed_scalable = join_all(feed_scalable);
            tokio::join!(feed_deployments, feed_stateful_sets, feed_cron_jobs, feed_daemon_sets, feed_scalable);
        };
        (Self { deployments, stateful_sets, cron_jobs, daemon_sets, scalable, kinds: kinds.clone() }, feed)
    }

    /// Waits until the first lists are in.
    pub async fn ready(&self) {
        tokio::join!(self.deployments.ready(), self.stateful_sets.ready(), self.cron_jobs.ready());
        // Nobody waits for ever for what may not be there. The API server answers by now.
        let _ = tokio::join!(
            tokio::time::timeout(PATIENCE, self.daemon_sets.ready()),
            tokio::time::timeout(PATIENCE, join_all(self.scalable.iter().map(|(_, cache)| cache.ready())))
        );
    }

    /// The kinds that can be halted.
    pub fn kinds(&self) -> &Kinds {
        &self.kinds
    }

    /// Whether the workloads of a kind are known, or why not.
    pub fn known(&self, kind: WorkloadKind) -> Result<(), String> {
        let listed = match kind {
            WorkloadKind::Deployment => self.deployments.is_ready(),
            WorkloadKind::StatefulSet => self.stateful_sets.is_ready(),
            WorkloadKind::CronJob => self.cron_jobs.is_ready(),
            WorkloadKind::DaemonSet => self.daemon_sets.is_ready(),
            // One that is not listed in the chart is told elsewhere.
            WorkloadKind::Scalable(_) => self.scalable(kind).is_none_or(|(_, cache)| cache.is_ready()),
        };
        let why = "may the operator list it?";
        listed.then_some(()).ok_or_else(|| format!("no list of the kind {kind} has come yet: {why}"))
    }

    fn scalable(&self, kind: WorkloadKind) -> Option<&(Scalable, Cache<LeanScalable>)> {
        self.scalable.iter().find(|(scalable, _)| scalable.kind == kind)
    }

    /// One workload.
    pub fn get(&self, key: &Key) -> Option<View> {
        match key.kind {
            WorkloadKind::Deployment => self.deployments.get(&key.namespace, &key.name).map(|w| w.view()),
            WorkloadKind::StatefulSet => self.stateful_sets.get(&key.namespace, &key.name).map(|w| w.view()),
            WorkloadKind::CronJob => self.cron_jobs.get(&key.namespace, &key.name).map(|w| w.view()),
            WorkloadKind::DaemonSet => self.daemon_sets.get(&key.namespace, &key.name).map(|w| w.view()),
            WorkloadKind::Scalable(_) => {
                let (kind, cache) = self.scalable(key.kind)?;
                cache.get(&key.namespace, &key.name).map(|w| w.view(kind))
            }
        }
    }

    /// All workloads of a kind in a namespace.
    pub fn of_kind(&self, namespace: &str, kind: WorkloadKind) -> Vec<View> {
        self.labelled(namespace, kind, &BTreeMap::new())
    }

    /// The workloads of a kind in a namespace that carry all these labels.
    fn labelled(&self, namespace: &str, kind: WorkloadKind, labels: &BTreeMap<String, String>) -> Vec<View> {
        fn views<K>(cache: &Cache<K>, namespace: &str, labels: &BTreeMap<String, String>) -> Vec<View>
        where
            K: AsView + Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
        {
            cache.labelled(namespace, labels).iter().map(|w| w.view()).collect()
        }
        match kind {
            WorkloadKind::Deployment => views(&self.deployments, namespace, labels),
            WorkloadKind::StatefulSet => views(&self.stateful_sets, namespace, labels),
            WorkloadKind::CronJob => views(&self.cron_jobs, namespace, labels),
            WorkloadKind::DaemonSet => views(&self.daemon_sets, namespace, labels),
            WorkloadKind::Scalable(_) => self.scalable(kind).map_or_else(Vec::new, |(kind, cache)| {
                cache.labelled(namespace, labels).iter().map(|w| w.view(kind)).collect()
            }),
        }
    }

    /// The trading workloads that `entries` name, each once, in order of kind and name; and in words what they name
    /// and is not there.
    pub fn trading(&self, namespace: &str, entries: &[Workload]) -> (Vec<View>, Vec<String>) {
        let (mut found, mut missing) = (BTreeMap::new(), vec![]);
        for entry in entries.iter().filter(|e| e.role == WorkloadRole::Trading) {
            if let Err(why) = self.kinds.check(entry).and_then(|()| self.known(entry.kind)) {
                missing.push(why);
                continue;
            }
            let views = match (&entry.name, &entry.match_labels) {
                (Some(name), _) => {
                    let key = Key { namespace: namespace.into(), kind: entry.kind, name: name.clone() };
                    self.get(&key).into_iter().collect()
                }
                (None, Some(labels)) => self.labelled(namespace, entry.kind, labels),
                (None, None) => vec![],
            };
            if views.is_empty() {
                missing.push(self.missing(namespace, entry));
            }
            found.extend(views.into_iter().map(|v| (v.key.clone(), v)));
        }
        (found.into_values().collect(), missing)
    }

    fn missing(&self, namespace: &str, entry: &Workload) -> String {
        let mut names: Vec<_> = self.of_kind(namespace, entry.kind).into_iter().map(|v| v.key.name).collect();
        names.sort();
        names.truncate(5);
        let there = if names.is_empty() { "there is none".into() } else { format!("there are {}", names.join(", ")) };
        match (&entry.name, &entry.match_labels) {
            (Some(name), _) => format!("{} {name} not found in namespace {namespace}: {there}", entry.kind),
            (_, labels) => {
                let labels: Vec<_> = labels.iter().flatten().map(|(k, v)| format!("{k}={v}")).collect();
                format!("no {} in namespace {namespace} has the labels {}: {there}", entry.kind, labels.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

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
