//! A control plane, a venue, and the release build of the operator as a process.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Secret},
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{HaltPhase, TradingHalt, TradingSystem, condition};
use standfast_e2e::{
    controlplane::{ControlPlane, free_port},
    process::Process,
    venue::{PaperVenue, What},
};
use standfast_operator::system::conditions::PREPARED;

use crate::table::say;

/// Key and secret of the account.
pub const KEY: &str = "PK-BENCH";
const SECRET: &str = "secret";
/// What [`each`] does at a time.
pub const PARALLEL: usize = 16;
/// The pause between two looks of [`wait`]: what is measured must not be slowed down by looking.
const PAUSE: Duration = Duration::from_millis(100);
/// The API server is quiet when this long nobody wrote.
const SILENCE: Duration = Duration::from_millis(1500);
/// After this long it is not waited for any more.
const NOISE: Duration = Duration::from_secs(120);

/// Everything that is measured or measured with. Each part of the table has its own, so that it does not pay for the one
/// before.
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
        say(&format!("a control plane runs, its logs are in {}", plane.folder().display()));
        let client = plane.client().await?;
        let venue = PaperVenue::start().await;
        venue.account(KEY, SECRET);
        Ok(Self { plane, client, venue })
    }

    /// A labelled namespace with credentials.
    pub async fn namespace(&self, name: &str) -> Result<()> {
        let labels = json!({"standfast.dev/latch": "enabled"});
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        let secret = json!({"metadata": {"name": "alpaca", "labels": {"standfast.dev/use": "true"},
                "annotations": {"standfast.dev/allowed-hosts": "127.0.0.1"}},
            "stringData": {"key-id": KEY, "secret-key": SECRET}});
        self.create::<Secret>(name, secret).await
    }

    /// Objects of a namespace.
    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Creates an object; kind and version are filled in.
    pub async fn create<K>(&self, namespace: &str, mut object: Value) -> Result<()>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        object["apiVersion"] = K::api_version(&()).into();
        object["kind"] = K::kind(&()).into();
        self.api::<K>(namespace).create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        Ok(())
    }

    /// Deployments `bot-0`, `bot-1` and so on, of one replica each. Nothing runs their pods.
    pub async fn bots(&self, namespace: &str, count: usize) -> Result<()> {
        each(count, |n| {
            let name = format!("bot-{n}");
            let template = json!({"metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "bot", "image": "bot"}]}});
            let bot = json!({"metadata": {"name": name, "labels": {"bench": "yes"}},
                "spec": {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": template}});
            self.create::<Deployment>(namespace, bot)
        })
        .await
    }

    /// A request to the venue, as it stands in a TradingSystem.
    pub fn request(&self, method: &str, path: &str) -> Value {
        let auth = json!({"headers": [
            {"name": "APCA-API-KEY-ID", "secretKeyRef": {"name": "alpaca", "key": "key-id"}},
            {"name": "APCA-API-SECRET-KEY", "secretKeyRef": {"name": "alpaca", "key": "secret-key"}}]});
        json!({"method": method, "url": format!("{}{path}", self.venue.url()), "auth": auth})
    }

    /// A TradingSystem at this venue; `tag` marks its requests.
    pub fn system(&self, name: &str, workload: &Value, tag: &str) -> Value {
        let cancel = self.request("DELETE", &format!("/v2/orders?tag={tag}"));
        let read = self.request("GET", &format!("/v2/orders?status=open&limit=500&tag={tag}"));
        json!({"metadata": {"name": name}, "spec": {
            "workloads": [workload],
            "venues": [{"name": "alpaca", "cancelOrders": [{"http": cancel}],
                "openOrders": [{"http": read, "pageSize": 500}]}]}})
    }

    /// Halts a system, and tells when the request was sent.
    pub async fn halt(&self, namespace: &str, name: &str, system: &str) -> Result<Instant> {
        let halts: Api<TradingHalt> = self.api(namespace);
        let halt = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt", "metadata": {"name": name},
            "spec": {"systemRef": {"name": system}, "reason": "measured"}});
        let halt = serde_json::from_value(halt)?;
        let sent = Instant::now();
        halts.create(&PostParams::default(), &halt).await?;
        Ok(sent)
    }

    /// Waits until a halt is proven.
    pub async fn halted(&self, namespace: &str, name: &str) -> Result<()> {
        let halts: Api<TradingHalt> = self.api(namespace);
        wait(Duration::from_secs(60), &format!("TradingHalt {namespace}/{name} is proven"), async || {
            let status = halts.get(name).await?.status.unwrap_or_default();
            Ok((status.phase == HaltPhase::Halted).then_some(()))
        })
        .await
    }

    /// Waits until the operator has looked at all systems of a namespace, and says which could not be halted.
    pub async fn looked_at(&self, namespace: &str, count: usize) -> Result<()> {
        let systems: Api<TradingSystem> = self.api(namespace);
        let prepared = |system: &TradingSystem| {
            let status = system.status.as_ref()?;
            condition(&status.conditions, PREPARED).filter(|c| c.status != "Unknown").cloned()
        };
        let found = wait(Duration::from_secs(120), "the operator has looked at every system", async || {
            let found: Vec<_> = systems.list(&ListParams::default()).await?.iter().filter_map(prepared).collect();
            Ok((found.len() == count).then_some(found))
        })
        .await?;
        if let Some(not) = found.iter().find(|c| c.status != "True") {
            say(&format!("a system of {namespace} is not prepared: {}", not.message));
        }
        Ok(())
    }

    /// When the first request with this tag arrives, since the ledger was cleared; only of this method, if one is given.
    pub async fn arrival(&self, method: Option<&str>, tag: &str) -> Result<Instant> {
        let end = format!("tag={tag}");
        let arrived = self.venue.until(Duration::from_secs(60), |venue| {
            venue.ledger().into_iter().find_map(|entry| match &entry.what {
                What::Request(r) if r.path.ends_with(&end) && method.is_none_or(|m| r.method == m) => {
                    Some(entry.instant)
                }
                _ => None,
            })
        });
        arrived.await.with_context(|| format!("no request for {tag} arrived"))
    }

    /// Starts an operator over these namespaces, all if none is named, and waits until it leads.
    pub async fn operator(&self, namespaces: &str) -> Result<Process> {
        // A Lease of its own: that of one that was killed would have to lapse first.
        self.replica(namespaces, &format!("bench-{}", free_port()?)).await
    }

    /// Starts an operator with this Lease, and waits until its caches are warm and it leads or knows who does.
    pub async fn replica(&self, namespaces: &str, lease: &str) -> Result<Process> {
        let log = self.plane.logs().join("standfast.log");
        let operator = Process::start(&self.plane.kubeconfig(), namespaces, lease, &log)?;
        operator.ready(Duration::from_secs(60)).await?;
        Ok(operator)
    }

    /// A `kubectl`, which ends with whoever waits for it.
    pub fn kubectl(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::from(self.plane.kubectl());
        command.arg("--cache-dir").arg(self.plane.folder().join("kubectl-cache")).args(args);
        command.stdout(std::process::Stdio::null()).kill_on_drop(true);
        command
    }

    /// Waits until nobody writes to the API server any more, so that a measurement does not pay for what was before.
    pub async fn quiet(&self) -> Result<()> {
        let until = Instant::now() + NOISE;
        let mut before = self.writes().await?;
        while Instant::now() < until {
            tokio::time::sleep(SILENCE).await;
            let now = self.writes().await?;
            if now == before {
                return Ok(());
            }
            before = now;
        }
        say(&format!("the API server was not quiet within {} s: measured all the same", NOISE.as_secs()));
        Ok(())
    }

    /// Writes that the API server has counted, by resource, whoever made them. Trials and reviews store nothing; Leases
    /// are left out, since the API server renews one of its own.
    pub async fn writes(&self) -> Result<BTreeMap<String, f64>> {
        let text = self.client.request_text(http::Request::get("/metrics").body(vec![])?).await?;
        let mut found = BTreeMap::new();
        for line in text.lines().filter(|l| l.starts_with("apiserver_request_total{")) {
            let Some((labels, value)) = line.rsplit_once(' ') else { continue };
            let label = |name: &str| {
                labels.split(&format!("{name}=\"")).nth(1).and_then(|r| r.split('"').next()).unwrap_or_default()
            };
            let write = ["POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"].contains(&label("verb"));
            let stored = label("dry_run").is_empty() && label("code").starts_with('2');
            let (resource, subresource) = (label("resource"), label("subresource"));
            if write && stored && resource != "leases" && !resource.ends_with("reviews") {
                let name = format!("{resource}/{subresource}");
                *found.entry(name.trim_end_matches('/').to_owned()).or_insert(0.0) += value.parse::<f64>()?;
            }
        }
        Ok(found)
    }
}

/// Does something for each number below `count`, [`PARALLEL`] at a time.
pub async fn each<F: Future<Output = Result<()>>>(count: usize, act: impl FnMut(usize) -> F) -> Result<()> {
    stream::iter(0..count).map(act).buffer_unordered(PARALLEL).try_collect::<Vec<_>>().await.map(drop)
}

/// Waits for a condition. Errors in between are taken for not found.
pub async fn wait<T>(limit: Duration, what: &str, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let until = Instant::now() + limit;
    loop {
        match look().await {
            Ok(Some(found)) => return Ok(found),
            _ if Instant::now() < until => tokio::time::sleep(PAUSE).await,
            Ok(None) => bail!("not within {} s: {what}", limit.as_secs()),
            Err(error) => bail!("not within {} s: {what}: {error:#}", limit.as_secs()),
        }
    }
}
