//! Stops and starts workloads, through the `scale` subresource, a CronJob's `suspend` and a DaemonSet's node selector.
//!
//! A DaemonSet has neither replicas nor a switch. It is stopped by selecting nodes by a label that none has, beside the
//! labels that it selects them by anyway. Its controller then deletes its pods, whatever the update strategy: with
//! `OnDelete` too, since these are not pods to be replaced, but pods on nodes where they should not run.

use std::time::Duration;

use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};
use standfast_crds::{
    guardrails::{HALTED_KEY, HALTED_VALUE},
    v1alpha1::WorkloadKind,
};

use crate::{
    client::{self, ApiError, Class},
    kinds::Kinds,
    workloads::Key,
};

/// The field manager of every change of a workload.
pub const FIELD_MANAGER: &str = "standfast";

/// The longest that one call may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why a workload was not changed.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum ScaleError {
    /// There is no such workload.
    #[error("{0} does not exist")]
    NotFound(Key),
    /// It is not as it was expected to be: somebody changed it in between.
    #[error("{0} was changed by somebody else at the same time")]
    Moved(Key),
    /// An admission policy refused the change.
    #[error("the change of {0} was refused: {1}")]
    Refused(Key, String),
    /// The call failed, perhaps after it took effect.
    #[error("the change of {0} failed: {1}")]
    Failed(Key, String),
}

impl ScaleError {
    fn of(key: &Key, error: &ApiError) -> Self {
        let said = || error.status().map_or_else(|| error.to_string(), |s| s.message.clone());
        match error.class() {
            Class::NotFound => Self::NotFound(key.clone()),
            Class::Conflict => Self::Moved(key.clone()),
            Class::Invalid if error.is_failed_test() => Self::Moved(key.clone()),
            Class::Denied | Class::Invalid => Self::Refused(key.clone(), said()),
            Class::Transient | Class::Throttled | Class::UnknownOutcome => Self::Failed(key.clone(), said()),
        }
    }
}

/// Whether a workload may run pods, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Replicas of a kind that has them.
    Replicas(i32),
    /// Whether a CronJob is suspended, or a DaemonSet kept from all nodes.
    Suspended(bool),
}

impl Size {
    /// The size at which nothing runs.
    pub const fn stopped(kind: WorkloadKind) -> Self {
        if kind.is_switched() { Self::Suspended(true) } else { Self::Replicas(0) }
    }
}

/// Sends calls for one workload.
pub struct Scaler {
    client: Client,
    kinds: Kinds,
}

impl Scaler {
    /// Uses this client for all calls, for workloads of these kinds beside the built-in ones.
    pub fn new(client: Client, kinds: &Kinds) -> Self {
        Self { client, kinds: kinds.clone() }
    }

    /// Reads the size live.
    pub async fn read(&self, key: &Key) -> Result<(Size, String), ScaleError> {
        let api = self.api(key)?;
        if !key.kind.is_switched() {
            let scale = look(key, api.get_scale(&key.name)).await?;
            let replicas = scale.spec.and_then(|s| s.replicas).unwrap_or(0);
            return Ok((Size::Replicas(replicas), scale.metadata.resource_version.unwrap_or_default()));
        }
        let object = look(key, api.get(&key.name)).await?;
        let suspended = if key.kind == WorkloadKind::DaemonSet {
            object.data.pointer(&halted_label()).is_some_and(|v| v == HALTED_VALUE)
        } else {
            object.data.pointer("/spec/suspend").is_some_and(|v| v == true)
        };
        Ok((Size::Suspended(suspended), object.resource_version().unwrap_or_default()))
    }

    /// Stops the workload if its size is still `from`.
    pub async fn stop(&self, key: &Key, from: Size) -> Result<(), ScaleError> {
        let patch = match from {
            Size::Suspended(kept) if key.kind == WorkloadKind::DaemonSet => {
                return self.keep_from_nodes(key, kept).await;
            }
            Size::Replicas(replicas) => json!([
                {"op": "test", "path": "/spec/replicas", "value": replicas},
                {"op": "replace", "path": "/spec/replicas", "value": 0},
            ]),
            Size::Suspended(suspended) => json!([
                {"op": "test", "path": "/spec/suspend", "value": suspended},
                {"op": "replace", "path": "/spec/suspend", "value": true},
            ]),
        };
        self.patch(key, patch, false).await
    }

    /// Stops a DaemonSet. What it selects nodes by anyway stays.
    async fn keep_from_nodes(&self, key: &Key, kept: bool) -> Result<(), ScaleError> {
        let halted = halted_label();
        let value = json!(kept.then_some(HALTED_VALUE));
        let patch = json!([
            {"op": "test", "path": halted, "value": value},
            {"op": "add", "path": halted, "value": HALTED_VALUE},
        ]);
        match self.patch(key, patch, false).await {
            Err(ScaleError::Moved(_)) if !kept => {}
            other => return other,
        }
        // It selects nodes by nothing, or is not as it was seen. A null is what is not there.
        let patch = json!([
            {"op": "test", "path": NODE_SELECTOR, "value": null},
            {"op": "add", "path": NODE_SELECTOR, "value": {HALTED_KEY: HALTED_VALUE}},
        ]);
        self.patch(key, patch, false).await
    }

    /// Sets the size, if the workload is still the one that was read at `resource_version`.
    pub async fn set(&self, key: &Key, to: Size, resource_version: &str) -> Result<(), ScaleError> {
        // `add` and not `replace`: a Scale leaves replicas out when they are 0.
        let change = match to {
            Size::Replicas(replicas) => json!({"op": "add", "path": "/spec/replicas", "value": replicas}),
            Size::Suspended(false) if key.kind == WorkloadKind::DaemonSet => {
                json!({"op": "remove", "path": halted_label()})
            }
            Size::Suspended(true) if key.kind == WorkloadKind::DaemonSet => {
                return self.keep_from_nodes(key, false).await;
            }
            Size::Suspended(suspended) => json!({"op": "add", "path": "/spec/suspend", "value": suspended}),
        };
        let patch = json!([{"op": "test", "path": "/metadata/resourceVersion", "value": resource_version}, change]);
        self.patch(key, patch, false).await
    }

    /// Asks, without changing anything, whether the workload could be raised now. `Refused` carries who refused it.
    pub async fn try_raise(&self, key: &Key) -> Result<(), ScaleError> {
        let (size, _) = self.read(key).await?;
        let (path, value) = match size {
            Size::Replicas(replicas) => ("/spec/replicas", json!(replicas + 1)),
            Size::Suspended(_) if key.kind == WorkloadKind::DaemonSet => (NODE_SELECTOR, json!({})),
            Size::Suspended(_) => ("/spec/suspend", json!(false)),
        };
        self.patch(key, json!([{"op": "add", "path": path, "value": value}]), true).await
    }

    async fn patch(&self, key: &Key, operations: Value, dry_run: bool) -> Result<(), ScaleError> {
        let operations =
            serde_json::from_value(operations).map_err(|e| ScaleError::Failed(key.clone(), e.to_string()))?;
        let patch = Patch::Json::<()>(operations);
        let params = PatchParams { dry_run, field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let api = self.api(key)?;
        if key.kind.is_switched() {
            change(key, api.patch(&key.name, &params, &patch)).await.map(drop)
        } else {
            change(key, api.patch_scale(&key.name, &params, &patch)).await.map(drop)
        }
    }

    fn api(&self, key: &Key) -> Result<Api<DynamicObject>, ScaleError> {
        let resource = self.kinds.resource(key.kind).map_err(|why| ScaleError::Failed(key.clone(), why))?;
        Ok(Api::namespaced_with(self.client.clone(), &key.namespace, &resource))
    }
}

/// What a DaemonSet selects nodes by.
const NODE_SELECTOR: &str = "/spec/template/spec/nodeSelector";

/// The label that no node has, as a JSON Pointer.
fn halted_label() -> String {
    format!("{NODE_SELECTOR}/{}", HALTED_KEY.replace('/', "~1"))
}

async fn look<T>(key: &Key, call: impl Future<Output = kube::Result<T>>) -> Result<T, ScaleError> {
    client::read(DEADLINE, format!("reading the size of {key}"), call).await.map_err(|e| ScaleError::of(key, &e))
}

async fn change<T>(key: &Key, call: impl Future<Output = kube::Result<T>>) -> Result<T, ScaleError> {
    client::write(DEADLINE, format!("changing the size of {key}"), call).await.map_err(|e| ScaleError::of(key, &e))
}
