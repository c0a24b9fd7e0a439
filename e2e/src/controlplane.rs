//! A bare control plane: etcd, API server and controller manager as processes on loopback, with the CRDs and the
//! guardrails of this repository. It lives as long as the process that started it, and no longer.

use std::{
    fs,
    io::Read,
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, Config, CustomResourceExt,
    api::{DynamicObject, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{GroupVersionKind, TypeMeta},
    discovery,
};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use standfast_crds::v1alpha1::{Approval, TradingHalt, TradingResume, TradingSystem};
use tokio::io::AsyncWriteExt;

use crate::folders;

/// How long a component may take to start. A loaded machine is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running control plane.
pub struct ControlPlane {
    folder: PathBuf,
    logs: PathBuf,
    programs: PathBuf,
    port: u16,
    etcd: u16,
    api_server: Mutex<Option<Child>>,
    others: Vec<Child>,
}

/// The top of the checkout.
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

impl ControlPlane {
    /// Starts one, with a controller manager. The programs come from `$STANDFAST_CONTROLPLANE`, or from `e2e/tools.sh`,
    /// which builds them.
    pub async fn start() -> Result<Self> {
        let programs = programs()?;
        let (port, etcd, peer) = (free_port()?, free_port()?, free_port()?);
        let folder = folders::scratch(&checkout().join(".work/control-planes"), "")?;
        let logs = folders::logs()?.join(folder.file_name().unwrap_or_default());
        fs::create_dir_all(&logs)?;
        credentials(&folder, port)?;
        let mut plane = Self { folder, logs, programs, port, etcd, api_server: Mutex::new(None), others: vec![] };
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let data = plane.path("etcd");
        let client = url(etcd);
        let etcd = plane.launch(
            "etcd",
            &[
                ("data-dir", &data),
                ("listen-client-urls", &client),
                ("advertise-client-urls", &client),
                ("listen-peer-urls", &url(peer)),
                ("unsafe-no-fsync", "true"),
                ("log-level", "warn"),
            ],
        )?;
        plane.others.push(etcd);
        plane.start_api_server().await?;
        let kubeconfig = plane.path("kubeconfig");
        let key = plane.path("service-accounts.key");
        let manager = plane.launch(
            "kube-controller-manager",
            &[
                ("kubeconfig", &kubeconfig),
                ("authentication-kubeconfig", &kubeconfig),
                ("authorization-kubeconfig", &kubeconfig),
                ("service-account-private-key-file", &key),
                ("root-ca-file", &plane.path("ca.crt")),
                ("use-service-account-credentials", "false"),
                ("leader-elect", "false"),
                // There are no nodes: pods are run by the tests themselves.
                ("controllers", "*,-node-lifecycle-controller,-pod-garbage-collector-controller,-node-ipam-controller"),
                ("bind-address", "127.0.0.1"),
                ("secure-port", "0"),
                ("concurrent-deployment-syncs", "20"),
                ("concurrent-replicaset-syncs", "20"),
                ("kube-api-qps", "500"),
                ("kube-api-burst", "1000"),
            ],
        )?;
        plane.others.push(manager);
        install(&plane.client().await?).await?;
        Ok(plane)
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Where its kubeconfig is. It is removed by the next process.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the logs of its components are.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// The kubeconfig of its administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// A `kubectl` of the same version that speaks to it as its administrator.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(self.programs.join("kubectl"));
        command.env("KUBECONFIG", self.kubeconfig()).stdin(Stdio::null());
        command
    }

    /// Runs `kubectl` with `input` as its standard input. Tells whether it succeeded, and what it said.
    pub async fn run_kubectl(&self, args: &[&str], input: &str) -> Result<(bool, String)> {
        let mut command = tokio::process::Command::from(self.kubectl());
        command.arg("--cache-dir").arg(self.folder.join("kubectl-cache")).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("starting kubectl")?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        let feed = async move {
            // One that ends early has said why.
            let _ = stdin.write_all(input.as_bytes()).await;
        };
        let (output, ()) = tokio::join!(child.wait_with_output(), feed);
        let output = output?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).trim().to_owned()))
    }

    /// The configuration of a client for its administrator.
    pub async fn config(&self) -> Result<Config> {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig())?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        config.default_retry = false;
        Ok(config)
    }

    /// A client for its administrator.
    pub async fn client(&self) -> Result<Client> {
        Ok(Client::try_from(self.config().await?)?)
    }

    /// Stops the API server, as a crash would.
    pub fn kill_api_server(&self) -> Result<()> {
        let child = self.api_server.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Starts the API server, and waits until it is ready.
    pub async fn start_api_server(&self) -> Result<()> {
        let child = self.launch(
            "kube-apiserver",
            &[
                ("etcd-servers", &format!("http://127.0.0.1:{}", self.etcd)),
                ("bind-address", "127.0.0.1"),
                ("secure-port", &self.port.to_string()),
                ("tls-cert-file", &self.path("server.crt")),
                ("tls-private-key-file", &self.path("server.key")),
                // A certificate would be verified anew with every request: that took a sixteenth of its time.
                ("token-auth-file", &self.path("tokens.csv")),
                ("service-account-issuer", "https://kubernetes.default.svc"),
                ("service-account-key-file", &self.path("service-accounts.pub")),
                ("service-account-signing-key-file", &self.path("service-accounts.key")),
                ("service-cluster-ip-range", "10.96.0.0/16"),
                ("authorization-mode", "RBAC"),
                // Nobody competes here that would have to queue.
                ("enable-priority-and-fairness", "false"),
                ("max-requests-inflight", "2000"),
                ("max-mutating-requests-inflight", "1000"),
            ],
        )?;
        *self.api_server.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        let client = self.client().await?;
        let until = Instant::now() + PATIENCE;
        loop {
            let request = http::Request::get("/readyz").body(vec![])?;
            match client.request_text(request).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > until || self.api_server_ended() => {
                    bail!("the API server is not ready: {error}; see {}", self.logs.display());
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn api_server_ended(&self) -> bool {
        let mut child = self.api_server.lock().unwrap_or_else(PoisonError::into_inner);
        child.as_mut().is_some_and(|c| matches!(c.try_wait(), Ok(Some(_))))
    }

    fn launch(&self, program: &str, flags: &[(&str, &str)]) -> Result<Child> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.logs.join(format!("{program}.log")))?;
        // The kernel ends it when the thread ends that started it: see `Keeper`.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(self.programs.join(program));
        command.args(flags.iter().map(|(name, value)| format!("--{name}={value}")));
        // Memory is cheaper than time here: it collects its garbage less often.
        command.env("GOGC", "800").env("GOMEMLIMIT", "3GiB");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        keeper(command).with_context(|| format!("starting {program} of {}", self.programs.display()))
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let api_server = self.api_server.lock().unwrap_or_else(PoisonError::into_inner).take();
        for mut child in self.others.drain(..).chain(api_server) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts programs from one thread that lives as long as the process: the kernel ends a child together with the thread
/// that started it, and test threads end early.
pub(crate) fn keeper(command: Command) -> Result<Child> {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static KEEPER: std::sync::OnceLock<Mutex<mpsc::Sender<Order>>> = std::sync::OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (sender, orders) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in orders {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let (sender, answer) = mpsc::channel();
    keeper.lock().unwrap_or_else(PoisonError::into_inner).send((command, sender))?;
    Ok(answer.recv()??)
}

fn programs() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("STANDFAST_CONTROLPLANE") {
        return Ok(folder.into());
    }
    let script = checkout().join("e2e/tools.sh");
    let output = Command::new(&script).arg("controlplane").stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{} controlplane failed", script.display());
    let path = String::from_utf8(output.stdout)?;
    Path::new(path.trim()).parent().map(Path::to_path_buf).context("no folder of the control plane")
}

/// Ports that belong to this process alone. Others see that by the first of them, on which it listens.
struct Ports {
    _claim: TcpListener,
    left: Range<u16>,
}

impl Ports {
    const COUNT: u16 = 50;

    fn claim() -> Result<Self> {
        let all = quiet_ports();
        let blocks = (all.end - all.start) / Self::COUNT;
        // Processes that start together have numbers that follow each other.
        let own = (std::process::id() % u32::from(blocks)) as u16;
        let mut firsts = (own..blocks).chain(0..own).map(|block| all.start + block * Self::COUNT);
        let claimed = firsts.find_map(|first| Some((first, listen(first)?)));
        let (first, claim) = claimed.with_context(|| format!("no ports are free in {all:?}"))?;
        Ok(Self { _claim: claim, left: first + 1..first + Self::COUNT })
    }
}

/// Ports that the system takes for no outgoing connection, which would be in the way of a server that starts again.
/// Those from 20000 on are left to clusters (`e2e/cluster/cluster.sh`).
fn quiet_ports() -> Range<u16> {
    let outgoing = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    match outgoing.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(20_000) {
        first @ 15_000.. => 10_000..first.min(20_000),
        first @ 5_000.. => first / 2..first,
        // Nearly all are taken for them: it may go well.
        _ => 10_000..20_000,
    }
}

fn listen(port: u16) -> Option<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()
}

/// A port that nobody listens on, and that no other caller gets, in this process or another.
pub fn free_port() -> Result<u16> {
    static CLAIMED: Mutex<Vec<Ports>> = Mutex::new(vec![]);
    let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let port = claimed.last_mut().and_then(|ports| ports.left.find(|port| listen(*port).is_some()));
        match port {
            Some(port) => return Ok(port),
            None => claimed.push(Ports::claim()?),
        }
    }
}

fn credentials(folder: &Path, port: u16) -> Result<()> {
    let named = |name: &str| {
        let mut distinguished = DistinguishedName::new();
        distinguished.push(DnType::CommonName, name);
        distinguished
    };
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.distinguished_name = named("standfast-e2e");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(folder.join("ca.crt"), ca.self_signed(&ca_key)?.pem())?;
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()])?;
    params.distinguished_name = named("kube-apiserver");
    fs::write(folder.join("server.crt"), params.signed_by(&key, &issuer)?.pem())?;
    fs::write(folder.join("server.key"), key.serialize_pem())?;
    let tokens = KeyPair::generate()?;
    fs::write(folder.join("service-accounts.key"), tokens.serialize_pem())?;
    fs::write(folder.join("service-accounts.pub"), tokens.public_key_pem())?;
    let mut random = [0; 32];
    fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(folder.join("tokens.csv"), format!("{token},admin,admin,system:masters\n"))?;
    let kubeconfig = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "e2e",
        "clusters": [{"name": "e2e", "cluster": {"server": format!("https://127.0.0.1:{port}"), "certificate-authority": folder.join("ca.crt")}}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "admin"}}],
    });
    fs::write(folder.join("kubeconfig"), serde_json::to_string_pretty(&kubeconfig)?)?;
    Ok(())
}

/// Installs the CRDs and guardrails of this repository, and waits until they are served.
pub async fn install(client: &Client) -> Result<()> {
    let params = PatchParams::apply("e2e").force();
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in [TradingSystem::crd(), TradingHalt::crd(), TradingResume::crd(), Approval::crd()] {
        let name = crd.metadata.name.clone().unwrap_or_default();
        crds.patch(&name, &params, &Patch::Apply(&crd)).await?;
        let until = Instant::now() + PATIENCE;
        loop {
            let conditions = crds.get(&name).await?.status.and_then(|s| s.conditions).unwrap_or_default();
            if conditions.iter().any(|c| c.type_ == "Established" && c.status == "True") {
                break;
            }
            ensure!(Instant::now() < until, "CRD {name} was not established");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    apply_all(client, standfast_crds::guardrails::MANIFEST).await
}

/// Applies every document of a manifest.
pub async fn apply_all(client: &Client, manifest: &str) -> Result<()> {
    let params = PatchParams::apply("e2e").force();
    for document in serde_saphyr::from_multiple::<serde_json::Value>(manifest)? {
        let types: TypeMeta = serde_json::from_value(document.clone())?;
        let gvk = GroupVersionKind::try_from(&types)?;
        let (resource, capabilities) = discovery::pinned_kind(client, &gvk).await?;
        let object: DynamicObject = serde_json::from_value(document)?;
        let name = object.metadata.name.clone().context("an object without a name")?;
        let api: Api<DynamicObject> = match (&object.metadata.namespace, capabilities.scope) {
            (Some(namespace), discovery::Scope::Namespaced) => {
                Api::namespaced_with(client.clone(), namespace, &resource)
            }
            _ => Api::all_with(client.clone(), &resource),
        };
        api.patch(&name, &params, &Patch::Apply(&object))
            .await
            .with_context(|| format!("applying {} {name}", gvk.kind))?;
    }
    Ok(())
}
