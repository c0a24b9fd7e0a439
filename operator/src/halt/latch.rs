//! The latch: a ConfigMap that admission policies read, so that it holds without the operator.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams, Preconditions},
};
use standfast_crds::{
    guardrails::{LATCH_HELD, LATCH_LABEL, LATCH_POLICY},
    v1alpha1::{LatchedWorkload, TradingHalt, WorkloadKind},
};

use super::decide::LatchFact;
use crate::{
    client::{self, ApiError, Class},
    controller::Failure,
    kinds::Kinds,
    scale::{FIELD_MANAGER, ScaleError, Scaler},
    workloads::Key,
};

/// The longest that one call may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// A key of a ConfigMap has at most 253 characters.
const KEY_LIMIT: usize = 253;

/// Name of the ConfigMap of a halt.
pub fn name(halt: &str) -> String {
    format!("standfast-latch-{halt}")
}

/// What the ConfigMap says: every workload and what it goes back to, the labels of their pods, what people are told.
pub fn data(halt: &TradingHalt, workloads: &[LatchedWorkload], kinds: &Kinds) -> BTreeMap<String, String> {
    let halt_name = halt.metadata.name.clone().unwrap_or_default();
    let mut data = BTreeMap::from([
        ("system".to_owned(), halt.spec.system().to_owned()),
        (
            "message".to_owned(),
            format!(
                "halted by Standfast ({}); create a TradingResume with spec.haltRef.name: {halt_name} to release it",
                halt.spec.reason
            ),
        ),
        ("halt".to_owned(), halt_name),
    ]);
    for workload in workloads {
        let back = match workload.kind {
            WorkloadKind::CronJob => format!("suspend={}", workload.suspended.unwrap_or(false)),
            WorkloadKind::DaemonSet => format!("halted={}", workload.suspended.unwrap_or(false)),
            _ => workload.replicas.unwrap_or(0).to_string(),
        };
        let key = format!("{}.{}", workload.kind, workload.name);
        if key.len() <= KEY_LIMIT {
            data.insert(key, back);
        }
        // Requests tell the plural.
        if let Some(kind) = kinds.get(workload.kind) {
            data.insert(format!("kind.{}.{}", kind.plural, kind.group), kind.kind.to_string());
        }
    }
    let mut selectors: Vec<_> = workloads.iter().filter_map(|w| w.match_labels.as_ref()).collect();
    selectors.sort();
    selectors.dedup();
    for (index, labels) in selectors.into_iter().filter(|l| !l.is_empty()).enumerate() {
        let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        data.insert(format!("pods.{index}"), labels.join(","));
    }
    data
}

/// Reads and writes the latch of one halt.
pub struct Latches {
    client: Client,
    scaler: Scaler,
}

impl Latches {
    /// Uses this client for all calls, for workloads of these kinds beside the built-in ones.
    pub fn new(client: Client, kinds: &Kinds) -> Self {
        Self { scaler: Scaler::new(client.clone(), kinds), client }
    }

    fn api(&self, namespace: &str) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Whether the latch is there and says what it should.
    pub async fn written(&self, namespace: &str, name: &str, data: &BTreeMap<String, String>) -> Result<bool, String> {
        let found = self.read(namespace, name).await.map_err(|e| e.to_string())?;
        Ok(found.is_some_and(|c| labelled(&c) && c.data.as_ref() == Some(data)))
    }

    async fn read(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, ApiError> {
        let what = format!("reading the latch ConfigMap {namespace}/{name}");
        client::read(DEADLINE, what, self.api(namespace).get_opt(name)).await
    }

    /// Makes the latch be there and say what it should.
    pub async fn write(&self, namespace: &str, name: &str, data: BTreeMap<String, String>) -> Result<(), ApiError> {
        let api = self.api(namespace);
        let labels = BTreeMap::from([(LATCH_LABEL.to_owned(), LATCH_HELD.to_owned())]);
        let mut latch = ConfigMap {
            metadata: ObjectMeta { name: Some(name.into()), labels: Some(labels), ..ObjectMeta::default() },
            data: Some(data),
            ..ConfigMap::default()
        };
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let what = format!("writing the latch ConfigMap {namespace}/{name}");
        match client::write(DEADLINE, &what, api.create(&params, &latch)).await {
            Err(error) if error.is_already_exists() => {}
            other => return other.map(drop),
        }
        let Some(found) = self.read(namespace, name).await? else {
            // Gone in between: the next look finds it missing.
            return Ok(());
        };
        if labelled(&found) && found.data == latch.data {
            return Ok(());
        }
        latch.metadata.resource_version = found.metadata.resource_version;
        client::write(DEADLINE, what, api.replace(name, &params, &latch)).await.map(drop)
    }

    /// Removes the latch, and says so only when it was seen to be gone.
    pub async fn remove(&self, namespace: &str, name: &str) -> Result<(), Failure> {
        let failed = |e: ApiError| Failure(e.to_string());
        let Some(found) = self.read(namespace, name).await.map_err(failed)? else { return Ok(()) };
        let only_this = Preconditions { uid: found.metadata.uid, resource_version: None };
        let params = DeleteParams { preconditions: Some(only_this), ..DeleteParams::default() };
        let what = format!("removing the latch ConfigMap {namespace}/{name}");
        match client::write(DEADLINE, &what, self.api(namespace).delete(name, &params)).await {
            Err(error) if error.class() != Class::NotFound => return Err(failed(error)),
            _ => {}
        }
        match self.read(namespace, name).await.map_err(failed)? {
            None => Ok(()),
            Some(_) => Err(Failure(format!("{what}: it is still there"))),
        }
    }

    /// Tries, without changing anything, to raise a latched workload: only a refusal by our own policy proves the latch.
    pub async fn trial(&self, workload: &Key) -> LatchFact {
        match self.scaler.try_raise(workload).await {
            Ok(()) => LatchFact::Open(format!(
                "raising {workload} would be allowed: is the namespace labelled {LATCH_LABEL}=enabled, and are the \
                 guardrails installed?"
            )),
            Err(ScaleError::Refused(_, message)) if message.contains(&format!("'{LATCH_POLICY}'")) => LatchFact::Proven,
            Err(ScaleError::Refused(_, message)) => {
                LatchFact::Unknown(format!("raising {workload} was refused by something else: {message}"))
            }
            Err(error) => LatchFact::Unknown(format!("whether {workload} could be raised is not known: {error}")),
        }
    }
}

fn labelled(latch: &ConfigMap) -> bool {
    latch.metadata.labels.as_ref().and_then(|l| l.get(LATCH_LABEL)).is_some_and(|v| v == LATCH_HELD)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(kind: WorkloadKind, name: &str, labels: &[(&str, &str)]) -> LatchedWorkload {
        LatchedWorkload {
            kind,
            name: name.into(),
            replicas: (!kind.is_switched()).then_some(3),
            suspended: kind.is_switched().then_some(false),
            match_labels: Some(labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()),
            inherited_from: None,
            suspended_jobs: vec![],
        }
    }

    #[test]
    fn a_latch_names_every_workload_and_each_set_of_labels_once() {
        let halt: TradingHalt = serde_json::from_value(serde_json::json!({
            "apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt", "metadata": {"name": "stale"},
            "spec": {"systemRef": {"name": "bot"}, "reason": "prices are stale"}
        }))
        .unwrap();
        let labels = [("app", "bot"), ("tier", "x")];
        let data = data(
            &halt,
            &[
                workload(WorkloadKind::Deployment, "a", &labels),
                workload(WorkloadKind::StatefulSet, "b", &labels),
                workload(WorkloadKind::CronJob, "c", &[]),
                workload(WorkloadKind::DaemonSet, "d", &labels),
                workload("Rollout".parse().unwrap(), "e", &labels),
            ],
            &"argoproj.io/v1alpha1/Rollout/rollouts".parse().unwrap(),
        );
        let expected = [
            ("CronJob.c", "suspend=false"),
            ("DaemonSet.d", "halted=false"),
            ("Deployment.a", "3"),
            ("Rollout.e", "3"),
            ("StatefulSet.b", "3"),
            ("halt", "stale"),
            ("kind.rollouts.argoproj.io", "Rollout"),
            (
                "message",
                "halted by Standfast (prices are stale); create a TradingResume with spec.haltRef.name: stale to release it",
            ),
            ("pods.0", "app=bot,tier=x"),
            ("system", "bot"),
        ];
        assert_eq!(data.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), expected);
    }
}
