//! Workloads that trade: what is known of them.
//!
//! Only a few fields of each object are kept, so that a cluster with thousands of workloads costs little memory.

mod view;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::join_all;
use kube::{Api, Client, Resource};
use standfast_crds::v1alpha1::{Workload, WorkloadKind, WorkloadRole};

use crate::{
    args::Scope,
    cache::{self, Cache, Change, Feed},
    kinds::{Kinds, Scalable},
};
use view::{AsView, LeanCronJob, LeanDaemonSet, LeanDeployment, LeanScalable, LeanStatefulSet, lean};
pub use view::{Key, View, parse_selector};

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
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;
    use tower::{BoxError, service_fn};

    use super::*;

    /// An older role of the operator does not let it list DaemonSets: that is not the same as that there are none.
    #[tokio::test(start_paused = true)]
    async fn what_may_not_be_listed_is_not_known_and_keeps_nobody_waiting() {
        let service = service_fn(|request: Request<Body>| async move {
            let uri = request.uri().to_string();
            if uri.contains("watch=true") {
                return std::future::pending().await;
            }
            let (code, answer) = match uri.contains("/daemonsets") {
                true => (403, json!({"kind": "Status", "apiVersion": "v1", "code": 403})),
                false => (200, json!({"metadata": {"resourceVersion": "1"}, "items": []})),
            };
            Ok::<_, BoxError>(Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()))?)
        });
        let client = Client::new(service, "bots");
        let (workloads, feed) = Workloads::open(&client, &Scope::Cluster, &Kinds::default(), |_, _| {});
        tokio::select! {
            () = workloads.ready() => {}
            () = feed => unreachable!("it goes on for ever"),
        }
        let missing = |kind: &str| {
            let entry = json!({"kind": kind, "name": "bot", "role": "Trading"});
            workloads.trading("bots", &[serde_json::from_value(entry).expect("an entry")]).1.join("; ")
        };
        assert_eq!(missing("Deployment"), "Deployment bot not found in namespace bots: there is none");
        assert_eq!(missing("DaemonSet"), "no list of the kind DaemonSet has come yet: may the operator list it?");
    }
}
