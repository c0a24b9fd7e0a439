//! A pretended node: marks the pods of one namespace as running, and ends them when they are deleted. Real kubelets run
//! in the tests on real clusters; this one serves where hundreds of small worlds run side by side.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::task::JoinHandle;

/// Runs until it is dropped.
pub struct Node {
    task: JoinHandle<()>,
    stubborn: Arc<AtomicBool>,
    idle: Arc<AtomicBool>,
}

impl Node {
    /// Runs the pods of `namespace`.
    pub fn start(client: Client, namespace: &str) -> Self {
        let (stubborn, idle) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let pods: Api<Pod> = Api::namespaced(client, namespace);
        let task = tokio::spawn(run(pods, Arc::clone(&stubborn), Arc::clone(&idle)));
        Self { task, stubborn, idle }
    }

    /// Whether new pods are left waiting, as on a node without room.
    pub fn set_idle(&self, idle: bool) {
        self.idle.store(idle, Ordering::SeqCst);
    }

    /// Whether pods go on although they were deleted, as on a node that cannot be reached.
    pub fn set_stubborn(&self, stubborn: bool) {
        self.stubborn.store(stubborn, Ordering::SeqCst);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(pods: Api<Pod>, stubborn: Arc<AtomicBool>, idle: Arc<AtomicBool>) {
    loop {
        // A namespace that is gone has no pods; a server that is down has none to tell of.
        let list = pods.list(&ListParams::default()).await.map(|l| l.items).unwrap_or_default();
        for pod in list {
            let name = pod.name_any();
            let bound = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
            let running = pod.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Running"));
            if pod.metadata.deletion_timestamp.is_some() {
                if !stubborn.load(Ordering::SeqCst) {
                    let _ = pods.delete(&name, &DeleteParams::default().grace_period(0)).await;
                }
            } else if idle.load(Ordering::SeqCst) {
                continue;
            } else if !bound {
                let target = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
                    "target": {"kind": "Node", "name": "pretended"}});
                let params = PostParams::default();
                let _ = pods.create_subresource::<_, serde_json::Value>("binding", &name, &params, &target).await;
            } else if !running {
                let status = json!({"status": {"phase": "Running", "conditions": [
                    {"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}]}});
                let _ = pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
