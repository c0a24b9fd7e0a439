//! A control plane, a venue, and the release build of the operator as a process.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    coordination::v1::Lease,
    core::v1::{Namespace, Secret},
};
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};
use standfast_e2e::{
    controlplane::{ControlPlane, free_port},
    process::Process,
    venue::PaperVenue,
};

/// Key and secret of the account.
pub const KEY: &str = "PK-BENCH";
const SECRET: &str = "secret";

/// Everything that is measured or measured with.
pub struct Rig {
    /// The cluster.
    pub plane: Arc<ControlPlane>,
    /// Its administrator.
    pub client: Client,
    /// The venue.
    pub venue: PaperVenue,
}

impl Rig {
    /// Starts the cluster and the venue.
    pub async fn start() -> Result<Self> {
        let plane = Arc::new(ControlPlane::start().await?);
        let client = plane.client().await?;
        let venue = PaperVenue::start().await;
        venue.account(KEY, SECRET);
        Ok(Self { plane, client, venue })
    }

    /// A labelled namespace with credentials.
    pub async fn namespace(&self, name: &str) -> Result<()> {
        let labels = json!({"standfast.dev/latch": "enabled"});
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        Api::<Namespace>::all(self.client.clone())
            .create(&PostParams::default(), &serde_json::from_value(object)?)
            .await?;
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "alpaca",
            "labels": {"standfast.dev/use": "true"}, "annotations": {"standfast.dev/allowed-hosts": "127.0.0.1"}},
            "stringData": {"key-id": KEY, "secret-key": SECRET}});
        self.api::<Secret>(name).create(&PostParams::default(), &serde_json::from_value(secret)?).await?;
        Ok(())
    }

    /// Objects of a namespace.
    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// A Deployment, without anything that would run its pods.
    pub async fn deployment(&self, namespace: &str, name: &str, replicas: i32) -> Result<()> {
        let object = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "labels": {"bench": "yes"}},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "bot", "image": "bot"}]}}}});
        self.api::<Deployment>(namespace).create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        Ok(())
    }

    /// The spec of a TradingSystem with this venue; `tag` marks its requests.
    pub fn system(&self, name: &str, workload: Value, tag: &str) -> Value {
        let url = self.venue.url();
        let auth = json!({"headers": [
            {"name": "APCA-API-KEY-ID", "secretKeyRef": {"name": "alpaca", "key": "key-id"}},
            {"name": "APCA-API-SECRET-KEY", "secretKeyRef": {"name": "alpaca", "key": "secret-key"}}]});
        json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingSystem", "metadata": {"name": name}, "spec": {
            "workloads": [workload],
            "venues": [{"name": "alpaca",
                "cancelOrders": [{"http": {"method": "DELETE", "url": format!("{url}/v2/orders?tag={tag}"), "auth": auth}}],
                "openOrders": [{"http": {"url": format!("{url}/v2/orders?status=open&limit=500"), "auth": auth}, "pageSize": 500}]}]}})
    }

    /// Starts the operator over these namespaces, and waits until it leads.
    pub async fn operator(&self, namespaces: &str) -> Result<Process> {
        let leases: Api<Lease> = self.api("default");
        let lease = format!("bench-{}", free_port()?);
        let log = self.plane.logs().join("standfast.log");
        let operator = Process::start(&self.plane.kubeconfig(), namespaces, &lease, &log)?;
        wait(Duration::from_secs(60), "the operator leads", async || Ok(leases.get_opt(&lease).await?.map(drop)))
            .await?;
        Ok(operator)
    }
}

/// Waits for a condition.
pub async fn wait<T>(limit: Duration, what: &str, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let until = Instant::now() + limit;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        ensure!(Instant::now() < until, "not within {} s: {what}", limit.as_secs());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
