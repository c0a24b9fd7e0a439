//! Workloads that trade: what is known of them, and the ways to stop and start them.
//!
//! Only a few fields of each object are kept, so that a cluster with thousands of workloads costs little memory.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment, StatefulSet},
        batch::v1::CronJob,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use kube::{Client, Resource, ResourceExt, core::NamespaceResourceScope};
use serde::{Deserialize, Serialize};
use standfast_crds::{
    guardrails::{HALTED_KEY, HALTED_VALUE},
    v1alpha1::{Workload, WorkloadKind, WorkloadRole},
};

use crate::{
    args::Scope,
    cache::{self, Cache, Change, Feed},
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
    /// Ready pods.
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

    /// Whether as many pods are ready as it wants, and any but where there is no node for a DaemonSet.
    pub fn has_its_pods(&self) -> bool {
        (self.replicas > 0 || self.key.kind == WorkloadKind::DaemonSet) && self.ready >= self.replicas
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

/// Whether a node selector keeps a halted DaemonSet from all nodes.
pub fn kept_from_nodes(node_selector: Option<&BTreeMap<String, String>>) -> bool {
    node_selector.and_then(|s| s.get(HALTED_KEY)).is_some_and(|v| v == HALTED_VALUE)
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
            suspended: kept_from_nodes(node_selector),
            selector: spec.and_then(|s| s.selector.clone()),
            match_labels: plain_labels(spec.and_then(|s| s.selector.as_ref())),
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
}

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
    /// Opens the caches: the reader, and the future that feeds them. `on_change` hears of every change.
    pub fn open(
        client: &Client,
        scope: &Scope,
        on_change: impl Fn(Option<&View>, &View) + Send + Sync + 'static,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        fn tell<K, F>(on_change: &Arc<F>) -> impl Fn(Change<'_, K>) + use<K, F>
        where
            K: AsView,
            F: Fn(Option<&View>, &View),
        {
            let on_change = Arc::clone(on_change);
            move |change| {
                if let Change::Applied(old, new) = change {
                    on_change(old.map(AsView::view).as_ref(), &new.view());
                }
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
        let feed = async {
            tokio::join!(feed_deployments, feed_stateful_sets, feed_cron_jobs, feed_daemon_sets);
        };
        (Self { deployments, stateful_sets, cron_jobs, daemon_sets }, feed)
    }

    /// Waits until the first lists are in.
    pub async fn ready(&self) {
        tokio::join!(
            self.deployments.ready(),
            self.stateful_sets.ready(),
            self.cron_jobs.ready(),
            self.daemon_sets.ready()
        );
    }

    /// One workload.
    pub fn get(&self, key: &Key) -> Option<View> {
        match key.kind {
            WorkloadKind::Deployment => self.deployments.get(&key.namespace, &key.name).map(|w| w.view()),
            WorkloadKind::StatefulSet => self.stateful_sets.get(&key.namespace, &key.name).map(|w| w.view()),
            WorkloadKind::CronJob => self.cron_jobs.get(&key.namespace, &key.name).map(|w| w.view()),
            WorkloadKind::DaemonSet => self.daemon_sets.get(&key.namespace, &key.name).map(|w| w.view()),
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
            K: AsView + Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Send + Sync + 'static,
        {
            cache.labelled(namespace, labels).iter().map(|w| w.view()).collect()
        }
        match kind {
            WorkloadKind::Deployment => views(&self.deployments, namespace, labels),
            WorkloadKind::StatefulSet => views(&self.stateful_sets, namespace, labels),
            WorkloadKind::CronJob => views(&self.cron_jobs, namespace, labels),
            WorkloadKind::DaemonSet => views(&self.daemon_sets, namespace, labels),
        }
    }

    /// The trading workloads that `entries` name, each once, in order of kind and name; and in words what they name
    /// and is not there.
    pub fn trading(&self, namespace: &str, entries: &[Workload]) -> (Vec<View>, Vec<String>) {
        let (mut found, mut missing) = (BTreeMap::new(), vec![]);
        for entry in entries.iter().filter(|e| e.role == WorkloadRole::Trading) {
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
