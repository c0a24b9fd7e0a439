//! A small world for one test: a namespace of its own, a bot with pods, a venue, and an operator in this process that can
//! be cut off at any moment.

use std::{
    process::Stdio,
    sync::{Arc, OnceLock, mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Namespace, Pod, Secret},
    rbac::v1::RoleBinding,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::wait::await_condition,
};
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{
    HaltPhase, ResumePhase, TradingHalt, TradingHaltStatus, TradingResume, TradingSystem, TradingSystemStatus,
};
use standfast_operator::{
    admin::Watchdog,
    app,
    args::Scope,
    client::Clients,
    events::Events,
    kinds::Kinds,
    leader::Leadership,
    metrics::Metrics,
    outbound::{
        Transport,
        connect::{Connector, SystemResolver},
        guard::{Guard, GuardConfig},
        http::HttpTransport,
    },
};

use crate::{controlplane::ControlPlane, node::Node, process::program, venue::PaperVenue};

/// The longest that a test waits for anything. Machines are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Pause between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(50);
/// The key of the bot's account at the venue.
pub const KEY: &str = "PK-WORLD";
/// Its secret.
pub const SECRET: &str = "s3cr3t-canary";

/// The world of one test.
pub struct World {
    /// A client for its administrator.
    pub client: Client,
    /// Its namespace.
    pub namespace: String,
    /// Its venue.
    pub venue: PaperVenue,
    /// Where TradingSystems are told that the venue is.
    pub venue_url: String,
    /// Runs its pods.
    pub node: Node,
    /// Kinds beside the built-in ones that its operators are told of.
    pub kinds: Kinds,
    plane: Arc<ControlPlane>,
}

impl World {
    /// A labelled namespace with credentials, and a venue with an account.
    pub async fn new(plane: &Arc<ControlPlane>, name: &str) -> Result<Self> {
        let client = plane.client().await?;
        let namespace = format!("{name}-{}", unique());
        let object = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": namespace, "labels": {"standfast.dev/latch": "enabled"}}});
        Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        let venue = PaperVenue::start().await;
        venue.account(KEY, SECRET);
        let world = Self {
            node: Node::start(client.clone(), &namespace),
            client,
            namespace,
            venue_url: venue.url(),
            venue,
            kinds: Kinds::default(),
            plane: Arc::clone(plane),
        };
        world
            .create::<Secret>(json!({
            "metadata": {"name": "alpaca", "labels": {"standfast.dev/use": "true"},
                "annotations": {"standfast.dev/allowed-hosts": "127.0.0.1"}},
            "stringData": {"key-id": KEY, "secret-key": SECRET}}))
            .await?;
        Ok(world)
    }

    /// Objects of its namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates an object in its namespace; kind and version are filled in.
    pub async fn create<K>(&self, mut object: Value) -> Result<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        object["apiVersion"] = K::api_version(&()).into();
        object["kind"] = K::kind(&()).into();
        Ok(self.api::<K>().create(&PostParams::default(), &serde_json::from_value(object)?).await?)
    }

    /// Changes an object of its namespace by a merge patch.
    pub async fn patch<K>(&self, name: &str, patch: Value) -> Result<K, kube::Error>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
    }

    /// A client that acts as somebody else.
    pub async fn client_as(&self, user: &str, groups: &[&str]) -> Result<Client> {
        let mut config = self.plane.config().await?;
        config.auth_info.impersonate = Some(user.into());
        config.auth_info.impersonate_groups = Some(groups.iter().map(|g| (*g).into()).collect());
        Ok(Client::try_from(config)?)
    }

    /// Gives somebody a role in the namespace; `kind` is `Role` or `ClusterRole`.
    pub async fn bind(&self, user: &str, kind: &str, role: &str) -> Result<()> {
        self.create::<RoleBinding>(json!({
            "metadata": {"name": format!("{user}-{role}")},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]}))
            .await
            .map(drop)
    }

    /// Runs `kubectl` in the namespace with `input` as its standard input. Tells whether it succeeded, and what it said.
    pub async fn kubectl(&self, args: &[&str], input: &str) -> Result<(bool, String)> {
        self.plane.run_kubectl(&[&["--namespace", &self.namespace], args].concat(), input).await
    }

    /// The kubeconfig of its administrator.
    pub fn kubeconfig(&self) -> std::path::PathBuf {
        self.plane.kubeconfig()
    }

    /// A `kubectl` for its administrator.
    pub fn kubectl_command(&self) -> std::process::Command {
        self.plane.kubectl()
    }

    /// The command line in the namespace, as its administrator.
    pub fn standfast(&self, args: &[&str]) -> Result<tokio::process::Command> {
        let mut command = tokio::process::Command::new(program("kubectl-standfast")?);
        command.args(args).args(["--namespace", &self.namespace]);
        command.env("KUBECONFIG", self.plane.kubeconfig()).stdin(Stdio::null()).kill_on_drop(true);
        Ok(command)
    }

    /// Runs it to its end.
    pub async fn run_standfast(&self, args: &[&str]) -> Result<Said> {
        let output = tokio::time::timeout(PATIENCE, self.standfast(args)?.output()).await;
        let output = output.with_context(|| format!("kubectl-standfast {args:?} does not end"))??;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) };
        // Shown when the test fails.
        eprintln!("$ kubectl standfast {}\n{}{}[{:?}]", args.join(" "), said.out, said.err, said.code);
        Ok(said)
    }

    /// A bot with pods that run.
    pub async fn bot(&self, name: &str, replicas: i32) -> Result<()> {
        self.deployment(name, replicas).await?;
        self.until(&format!("{replicas} pods of {name} run"), async || {
            let running = self.pods(name).await?.iter().filter(|p| phase(p) == "Running").count();
            Ok((running == replicas as usize).then_some(()))
        })
        .await
    }

    /// A bot; nobody waits for its pods.
    pub async fn deployment(&self, name: &str, replicas: i32) -> Result<Deployment> {
        self.create::<Deployment>(json!({
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}},
                    "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "bot", "image": "bot"}]}}}}))
            .await
    }

    /// Pods of a bot.
    pub async fn pods(&self, name: &str) -> Result<Vec<Pod>> {
        Ok(self.api::<Pod>().list(&ListParams::default().labels(&format!("app={name}"))).await?.items)
    }

    /// Replicas that a bot wants.
    pub async fn replicas(&self, name: &str) -> Result<i32> {
        Ok(self.api::<Deployment>().get_scale(name).await?.spec.and_then(|s| s.replicas).unwrap_or(0))
    }

    /// Sets the replicas of a bot as somebody else would.
    pub async fn scale(&self, name: &str, replicas: i32, manager: &str) -> Result<(), kube::Error> {
        let params = kube::api::PatchParams { field_manager: Some(manager.into()), ..Default::default() };
        let patch = kube::api::Patch::Merge(json!({"spec": {"replicas": replicas}}));
        self.api::<Deployment>().patch(name, &params, &patch).await.map(drop)
    }

    /// A venue of a TradingSystem that speaks to this world's venue.
    pub fn venue_spec(&self) -> Value {
        let url = &self.venue_url;
        let auth = json!({"headers": [
            {"name": "APCA-API-KEY-ID", "secretKeyRef": {"name": "alpaca", "key": "key-id"}},
            {"name": "APCA-API-SECRET-KEY", "secretKeyRef": {"name": "alpaca", "key": "secret-key"}}]});
        let request = |method: &str, path: &str, body: Option<Value>| {
            let mut request = json!({"method": method, "url": format!("{url}{path}"), "auth": auth, "timeout": "2s"});
            if let Some(body) = body {
                request["body"] = body;
            }
            request
        };
        json!({
            "name": "alpaca",
            "suspendTrading": [{"http": request("PATCH", "/v2/account/configurations", Some(json!({"suspend_trade": true})))}],
            "allowTrading": [{"http": request("PATCH", "/v2/account/configurations", Some(json!({"suspend_trade": false})))}],
            "tradingSuspended": {"http": request("GET", "/v2/account/configurations", None), "path": "$.suspend_trade", "expect": {"equals": true}},
            "suspendBlocksClosing": true,
            "cancelOrders": [{"http": request("DELETE", "/v2/orders", None)}],
            "cancelOrder": {"http": request("DELETE", "/v2/orders/{id}", None)},
            "openOrders": [{"http": request("GET", "/v2/orders?status=open&limit=500", None), "pageSize": 500,
                "protective": {"type": ["stop", "stop_limit", "trailing_stop"]}}],
            "openPositions": [{"http": request("GET", "/v2/positions", None)}],
            "closePositions": [{"http": request("DELETE", "/v2/positions", None)}],
            "marketOpen": {"http": request("GET", "/v2/clock", None), "path": "$.is_open", "expect": {"equals": true}},
        })
    }

    /// The same venue, with all that is needed to close some positions and not others. Positions are closed by
    /// Alpaca's `DELETE /v2/positions/{symbol}`, in whole shares.
    pub fn selecting_venue(&self) -> Value {
        let mut venue = self.venue_spec();
        let request = |method: &str, path: &str| {
            let mut request = venue["cancelOrders"][0]["http"].clone();
            request["method"] = method.into();
            request["url"] = format!("{}{path}", self.venue_url).into();
            request
        };
        let (close, account) =
            (request("DELETE", "/v2/positions/{symbol}?qty={quantity}"), request("GET", "/v2/account"));
        venue["closePosition"] = json!({ "http": close });
        venue["equity"] = json!({"http": account, "path": "$.equity"});
        venue["quantityStep"] = "1".into();
        venue["openPositions"][0]["fields"] = json!({"side": "$.side", "openedAt": "$.opened_at",
            "unrealizedLoss": {"path": "$.unrealized_plpc", "scale": "ProfitFraction"}});
        venue
    }

    /// Creates a TradingSystem `system` with these trading Deployments and this world's venue. `patch` is merged into
    /// its spec.
    pub async fn system(&self, bots: &[&str], patch: Value) -> Result<TradingSystem> {
        let workloads: Vec<_> =
            bots.iter().map(|b| json!({"kind": "Deployment", "name": b, "role": "Trading"})).collect();
        let mut spec = json!({
            "workloads": workloads,
            "venues": [self.venue_spec()],
            "haltPolicy": {"verifyInterval": "100ms", "reverifyInterval": "500ms"},
        });
        merge(&mut spec, patch);
        self.create(json!({"metadata": {"name": "system"}, "spec": spec})).await
    }

    /// Halts the system. `patch` is merged into the spec.
    pub async fn halt(&self, name: &str, patch: Value) -> Result<TradingHalt> {
        let mut spec = json!({"systemRef": {"name": "system"}, "reason": "prices are stale"});
        merge(&mut spec, patch);
        self.create(json!({"metadata": {"name": name}, "spec": spec})).await
    }

    /// Resumes trading.
    pub async fn resume(&self, name: &str, halt: &str) -> Result<TradingResume> {
        self.create(json!({"metadata": {"name": name}, "spec": {"haltRef": {"name": halt}, "requestedBy": "admin"}}))
            .await
    }

    /// The status of a halt.
    pub async fn halt_status(&self, name: &str) -> Result<TradingHaltStatus> {
        Ok(self.api::<TradingHalt>().get(name).await?.status.unwrap_or_default())
    }

    /// Waits until an object is as wanted, and gives it. It is watched: no state that it takes is missed.
    async fn object_until<K>(&self, name: &str, what: &str, wanted: impl Fn(&K) -> bool) -> Result<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned
            + Send
            + 'static,
    {
        let seen = std::sync::Mutex::new(None);
        let matches = |object: Option<&K>| {
            *seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = object.cloned();
            object.is_some_and(&wanted)
        };
        let watched = async {
            loop {
                match await_condition(self.api::<K>(), name, matches).await {
                    Ok(Some(object)) => return object,
                    // A server that is down, or that starts.
                    Ok(None) | Err(_) => tokio::time::sleep(POLL).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, watched).await.map_err(|_| {
            let seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let seen = serde_json::to_value(&*seen).unwrap_or_default();
            let seen = serde_json::to_string_pretty(&seen["status"]).unwrap_or_default();
            let (kind, namespace) = (K::kind(&()), &self.namespace);
            anyhow!("not within {} s: {what}; the status of {kind} {namespace}/{name} is\n{seen}", PATIENCE.as_secs())
        })
    }

    /// Waits until the status of a halt is as wanted, and gives it.
    pub async fn halt_until(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&TradingHaltStatus) -> bool,
    ) -> Result<TradingHaltStatus> {
        let status = |halt: &TradingHalt| halt.status.clone().unwrap_or_default();
        Ok(status(&self.object_until(name, what, |halt| wanted(&status(halt))).await?))
    }

    /// Waits until a halt is proven.
    pub async fn halted(&self, name: &str) -> Result<TradingHaltStatus> {
        self.halt_until(name, "halted", |s| s.phase == HaltPhase::Halted).await
    }

    /// Waits until a resume has this phase.
    pub async fn resume_in(&self, name: &str, phase: ResumePhase) -> Result<TradingResume> {
        let wanted = |r: &TradingResume| r.status.as_ref().is_some_and(|s| s.phase == phase);
        self.resume_until(name, &format!("TradingResume {name} is {phase:?}"), wanted).await
    }

    /// Waits until the status of a TradingSystem is as wanted, and gives it.
    pub async fn system_until(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&TradingSystemStatus) -> bool,
    ) -> Result<TradingSystemStatus> {
        let status = |system: &TradingSystem| system.status.clone().unwrap_or_default();
        Ok(status(&self.object_until(name, what, |system| wanted(&status(system))).await?))
    }

    /// Waits until a resume is as wanted, and gives it.
    pub async fn resume_until(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&TradingResume) -> bool,
    ) -> Result<TradingResume> {
        self.object_until(name, what, wanted).await
    }

    /// Waits until `look` finds something. Errors in between are taken for not found.
    pub async fn until<T>(&self, what: &str, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
        let until = Instant::now() + PATIENCE;
        loop {
            let looked = look().await;
            match looked {
                Ok(Some(found)) => return Ok(found),
                _ if Instant::now() < until => tokio::time::sleep(POLL).await,
                Ok(None) => bail!("not within {} s: {what}", PATIENCE.as_secs()),
                Err(error) => bail!("not within {} s: {what}: {error:#}", PATIENCE.as_secs()),
            }
        }
    }

    /// ConfigMaps that are held latches.
    pub async fn latches(&self) -> Result<Vec<ConfigMap>> {
        Ok(self.api::<ConfigMap>().list(&ListParams::default().labels("standfast.dev/latch=held")).await?.items)
    }

    /// Starts an operator that watches this namespace only.
    pub async fn operator(&self) -> Result<Operator> {
        self.operator_with(|client| client, |transport| transport).await
    }

    /// Starts an operator whose ways to the API server and to the outside go through what `client` and `transport`
    /// make of them.
    pub async fn operator_with(
        &self,
        client: impl FnOnce(Client) -> Client + Send + 'static,
        transport: impl FnOnce(Arc<dyn Transport>) -> Arc<dyn Transport> + Send + 'static,
    ) -> Result<Operator> {
        self.operator_of(|plain| Clients::same(&client(plain), 64), transport).await
    }

    /// The same, with clients that `clients` makes of a plain one.
    pub async fn operator_of(
        &self,
        clients: impl FnOnce(Client) -> Clients + Send + 'static,
        transport: impl FnOnce(Arc<dyn Transport>) -> Arc<dyn Transport> + Send + 'static,
    ) -> Result<Operator> {
        self.run(clients, transport, |_| Events::none()).await
    }

    /// Starts an operator that writes Events too, which cost too much to be written in every world.
    pub async fn telling_operator(&self) -> Result<Operator> {
        let events = |client: &Client| Events::start(client.clone(), "e2e", Metrics::new());
        self.run(|client| Clients::same(&client, 64), |transport| transport, events).await
    }

    async fn run(
        &self,
        clients: impl FnOnce(Client) -> Clients + Send + 'static,
        transport: impl FnOnce(Arc<dyn Transport>) -> Arc<dyn Transport> + Send + 'static,
        events: impl FnOnce(&Client) -> Events + Send + 'static,
    ) -> Result<Operator> {
        let config = self.plane.config().await?;
        let (namespace, kinds) = (self.namespace.clone(), self.kinds.clone());
        let (ready, started) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.spawn(async move {
            let run: anyhow::Result<app::Never> = async {
                let clients = clients(Client::try_from(config)?);
                let connector = connector()?;
                let transport = transport(http_transport()?);
                let parts = app::Parts {
                    events: events(&clients.api),
                    clients,
                    halt_transport: Arc::clone(&transport),
                    transport,
                    connector,
                    scope: Scope::Namespaces(vec![namespace]),
                    kinds,
                    metrics: Metrics::new(),
                    watchdog: Watchdog::new(),
                    halt_concurrency: 16,
                    concurrency: 8,
                };
                let warm = app::warm(&parts);
                warm.ready().await;
                let _ = ready.send(());
                warm.lead(parts, Leadership::always()).await.map_err(anyhow::Error::from)
            }
            .await;
            tracing::error!(?run, "the operator ended");
        });
        let waited = tokio::task::spawn_blocking(move || started.recv_timeout(PATIENCE)).await?;
        waited.context("the operator did not become ready")?;
        Ok(Operator(Some(runtime)))
    }

    /// Deletes the namespace; nobody waits for it.
    pub async fn end(self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(&self.namespace, &DeleteParams::default()).await?;
        Ok(())
    }
}

/// Connections that may go to loopback.
pub fn connector() -> Result<Connector> {
    // The certificates that the system trusts take their time to be read, and there are hundreds of worlds.
    static MADE: OnceLock<Connector> = OnceLock::new();
    if let Some(made) = MADE.get() {
        return Ok(made.clone());
    }
    let config = GuardConfig { allow_cidrs: vec!["127.0.0.0/8".parse()?], ..GuardConfig::default() };
    let guard = Arc::new(Guard::new(config));
    let made = Connector::new(guard, Arc::new(SystemResolver::default()), vec![])?;
    Ok(MADE.get_or_init(|| made).clone())
}

/// The real way out, open for loopback.
pub fn http_transport() -> Result<Arc<dyn Transport>> {
    Ok(Arc::new(HttpTransport::new(connector()?, 256)))
}

/// What a program said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Said {
    /// Its output, read as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("no JSON: {self:?}"))
    }
}

/// An operator in this process. Dropped, it is cut off in the middle of whatever it does.
pub struct Operator(Option<tokio::runtime::Runtime>);

impl Operator {
    /// Cuts it off.
    pub fn cut_off(self) {}
}

impl Drop for Operator {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Phase of a pod.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Name of an object.
pub fn name_of<K: ResourceExt>(object: &K) -> String {
    object.name_any()
}

/// Puts `patch` into `into`: objects are merged, everything else is replaced.
pub fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch,
    }
}

fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
