//! What the tests on a real cluster share: commands, the installation, and a trading system in a namespace of its own.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread,
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// The longest wait. Machines are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(240);
/// Where the operator runs.
pub const OPERATOR_NAMESPACE: &str = "standfast-system";

/// The tests share the installation: whoever kills, changes or removes it is alone.
static INSTALLATION: RwLock<()> = RwLock::new(());
/// Whether it is there as the charts are; one test at a time makes sure.
static INSTALLED: Mutex<bool> = Mutex::new(false);

/// For as long as it is kept, nobody else changes the installation, or nobody else uses it.
#[allow(dead_code, reason = "kept, not read")]
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

// --- Commands ---------------------------------------------------------------------------------------------------------

/// The kubeconfig of the cluster that is there for the tests. That of KUBECONFIG may be somebody's who only ran
/// `cargo test`.
fn kubeconfig() -> OsString {
    env::var_os("KUBECONFIG_E2E").filter(|file| !file.is_empty()).expect(
        "tests on a real cluster install, kill and remove Standfast there, so they use only the one that KUBECONFIG_E2E \
         names: run `make e2e`, which makes one, or `KUBECONFIG_E2E=… make e2e`",
    )
}

/// Runs a command in the checkout, on the cluster of the tests: its output, or what it said when it failed.
pub fn try_run(program: &str, arguments: &[&str], input: Option<&str>) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments).env("KUBECONFIG", kubeconfig()).current_dir(checkout());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{program} cannot be run ({e}): use `make e2e`"));
    let mut stdin = child.stdin.take().unwrap();
    // A command that does not read it has ended already, and says why itself.
    let _ = stdin.write_all(input.unwrap_or_default().as_bytes());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{program} {}: {}{}", arguments.join(" "), text(&output.stderr), text(&output.stdout)))
    }
}

/// The same for a command that has to succeed.
pub fn run(program: &str, arguments: &[&str], input: Option<&str>) -> String {
    try_run(program, arguments, input).unwrap_or_else(|error| panic!("{error}"))
}

/// kubectl, which has to succeed.
pub fn kubectl(arguments: &[&str]) -> String {
    run("kubectl", arguments, None)
}

/// Helm, which has to succeed.
pub fn helm(arguments: &[&str]) -> String {
    run("helm", arguments, None)
}

/// What a command that had to fail said.
pub fn refused(result: &Result<String, String>) -> String {
    match result {
        Ok(output) => panic!("this should have been refused: {output}"),
        Err(said) => said.clone(),
    }
}

/// Waits until `look` finds something, and returns it. It says what it sees instead.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if started.elapsed() > PATIENCE => panic!("{what}: not within {PATIENCE:?}; seen last: {seen}"),
            Err(_) => thread::sleep(Duration::from_millis(250)),
        }
    }
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

// --- Reading objects --------------------------------------------------------------------------------------------------

/// A condition of an object; null when it has none of this type.
pub fn condition(object: &Value, type_: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|c| c["type"] == type_)).cloned().unwrap_or(Value::Null)
}

/// From one timestamp to another.
pub fn seconds_between(from: &Value, to: &Value) -> f64 {
    let at = |value: &Value| -> Timestamp {
        let text = value.as_str().unwrap_or_else(|| panic!("{value} is not a timestamp"));
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    };
    at(to).duration_since(at(from)).as_secs_f64()
}

fn items(list: &str) -> Vec<Value> {
    let mut list: Value = serde_json::from_str(list).unwrap();
    match list["items"].take() {
        Value::Array(items) => items,
        other => panic!("not a list: {other}"),
    }
}

// --- The installation -------------------------------------------------------------------------------------------------

/// The release of the kinds and guardrails.
pub fn crds_release() -> &'static str {
    "standfast-crds"
}

/// Installs Standfast, or makes the installation be as the charts are. The namespace takes restricted pods only.
pub fn install() {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OPERATOR_NAMESPACE,
        "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    run("kubectl", &["apply", "-f", "-"], Some(&namespace.to_string()));
    helm(&["upgrade", "--install", crds_release(), "charts/standfast-crds", "--namespace", OPERATOR_NAMESPACE]);
    helm_install(&[]);
}

/// Installs Standfast unless it is there. `stays` is whether this test leaves it as it is.
fn ensure_installed(stays: bool) {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*installed {
        install();
    }
    *installed = stays;
}

/// `helm upgrade --install` of the operator with these settings and no earlier ones, until it is rolled out.
pub fn helm_install(settings: &[&str]) {
    let install = ["upgrade", "--install", "standfast", "charts/standfast", "--namespace", OPERATOR_NAMESPACE];
    helm(&[&install, settings, &["--reset-values", "--wait", "--timeout", "5m"]].concat());
    rolled_out();
}

/// Waits until what Helm has changed is all there is: the operator's two pods. Helm is satisfied with all but
/// `maxUnavailable`, and a rollout with pods that are on their way out.
pub fn rolled_out() -> Vec<Value> {
    kubectl(&["-n", OPERATOR_NAMESPACE, "rollout", "status", "deployment/standfast", "--timeout=300s"]);
    operators()
}

/// The operator's pods once there are two, both ready, and none is on its way out.
pub fn operators() -> Vec<Value> {
    until("the operator is two pods that are ready", || {
        let pods = operator_pods();
        let goes = |p: &Value| !p["metadata"]["deletionTimestamp"].is_null();
        let ready = |p: &Value| p["status"]["containerStatuses"][0]["ready"] == true;
        if pods.len() == 2 && pods.iter().all(|p| ready(p) && !goes(p)) {
            return Ok(pods);
        }
        let seen = pods.iter().map(|p| format!("{} ready: {}, goes: {}", p["metadata"]["name"], ready(p), goes(p)));
        Err(seen.collect::<Vec<_>>().join("; "))
    })
}

/// The operator's pods, whatever their state.
pub fn operator_pods() -> Vec<Value> {
    let selector = "app.kubernetes.io/name=standfast";
    items(&kubectl(&["-n", OPERATOR_NAMESPACE, "get", "pods", "-l", selector, "-o", "json"]))
}

/// The pod that leads.
pub fn leader() -> Value {
    until("a pod of the operator leads", || {
        let holder =
            kubectl(&["-n", OPERATOR_NAMESPACE, "get", "lease", "standfast", "-o", "jsonpath={.spec.holderIdentity}"]);
        operator_pods().into_iter().find(|p| p["metadata"]["uid"] == holder.as_str()).ok_or(holder)
    })
}

/// Resources on which the operator may do anything in the whole cluster, by all ClusterRoles that are bound to it there.
pub fn cluster_wide_resources() -> BTreeSet<String> {
    let account = json!({"kind": "ServiceAccount", "name": "standfast", "namespace": OPERATOR_NAMESPACE});
    let mut resources = BTreeSet::new();
    for binding in items(&kubectl(&["get", "clusterrolebindings", "-o", "json"])) {
        if binding["subjects"].as_array().is_some_and(|all| all.contains(&account)) {
            let role = kubectl(&["get", "clusterrole", binding["roleRef"]["name"].as_str().unwrap(), "-o", "json"]);
            let role: Value = serde_json::from_str(&role).unwrap();
            let rules = role["rules"].as_array().unwrap();
            let named = rules.iter().flat_map(|r| r["resources"].as_array().unwrap());
            resources.extend(named.map(|r| r.as_str().unwrap().to_owned()));
        }
    }
    resources
}

/// Logs of all pods of the operator, also of containers that ended.
fn operator_logs() -> String {
    let mut logs = String::new();
    for pod in operator_pods() {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        for previous in ["--previous=false", "--previous=true"] {
            logs += &try_run("kubectl", &["-n", OPERATOR_NAMESPACE, "logs", &name, previous], None).unwrap_or_default();
        }
    }
    logs
}

// --- A trading system -------------------------------------------------------------------------------------------------

/// The trading system of `examples/demo` in a namespace of its own, with credentials that are easy to find where they
/// should not be. When its test fails, what there is to look at is kept; the namespace goes away in the end.
pub struct Site {
    /// Its namespace.
    pub namespace: String,
    /// What must not be seen anywhere: the values of its Secrets.
    canaries: [String; 3],
    turn: Option<Turn>,
}

impl Site {
    /// Installs Standfast unless it is there, and makes the namespace. The installation is left as it is.
    pub fn new(name: &str) -> Self {
        let turn = Turn::Shared(INSTALLATION.read().unwrap_or_else(PoisonError::into_inner));
        ensure_installed(true);
        Self::prepare(name, Some(turn))
    }

    /// The same for a test that kills, changes or removes the installation: it waits until no other test needs it.
    pub fn alone(name: &str) -> Self {
        let turn = Turn::Alone(INSTALLATION.write().unwrap_or_else(PoisonError::into_inner));
        ensure_installed(false);
        Self::prepare(name, Some(turn))
    }

    /// A second one of the same test.
    pub fn another(&self, name: &str) -> Self {
        Self::prepare(name, None)
    }

    fn prepare(name: &str, turn: Option<Turn>) -> Self {
        let namespace = format!("kind-{name}");
        // Of a run that was killed, on a cluster that is used again.
        kubectl(&["delete", "namespace", &namespace, "--ignore-not-found", "--timeout=180s"]);
        let canaries = ["key", "secret", "token"].map(|what| format!("canary-{what}-{name}"));
        let site = Self { namespace, canaries, turn };
        site.apply_example("namespace.yaml", |text| text);
        site
    }

    /// Starts bot and venue and waits until the bot trades and a halt would work.
    pub fn start(&self) {
        self.start_with(|text| text);
    }

    /// The same with a bot that does not react to SIGTERM: it goes when it is killed after so many seconds.
    pub fn start_stubborn(&self, grace: u32) {
        self.start_with(|text| {
            let symbols = "            - {name: BOT_SYMBOLS, ";
            let ignore = "            - {name: BOT_IGNORE_SIGTERM, value: \"true\"}\n";
            let period = "terminationGracePeriodSeconds: ";
            assert!(text.contains(symbols) && text.contains(&format!("{period}10\n")));
            text.replace(symbols, &format!("{ignore}{symbols}"))
                .replace(&format!("{period}10\n"), &format!("{period}{grace}\n"))
        });
    }

    fn start_with(&self, change: impl Fn(String) -> String) {
        self.apply_example("workloads.yaml", change);
        self.apply_example("system.yaml", |text| text);
        self.kubectl(&["wait", "deployment", "--all", "--for=condition=Available", "--timeout=240s"]);
        self.wait_until_trading();
        self.kubectl(&["wait", "tradingsystem/demo", "--for=condition=Prepared", "--timeout=240s"]);
    }

    fn apply_example(&self, file: &str, change: impl Fn(String) -> String) {
        let text = fs::read_to_string(checkout().join("examples/demo").join(file)).unwrap();
        let [key, secret, token] = &self.canaries;
        let text = text
            .replace("trading-demo", &self.namespace)
            .replace("key-id: demo-key", &format!("key-id: {key}"))
            .replace("secret-key: demo-secret", &format!("secret-key: {secret}"))
            .replace("token: demo-token", &format!("token: {token}"));
        self.try_kubectl_with(&["apply", "-f", "-"], Some(&change(text))).unwrap_or_else(|e| panic!("{e}"));
    }

    // --- kubectl in its namespace ---

    /// kubectl, which has to succeed.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap_or_else(|error| panic!("{error}"))
    }

    /// kubectl.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.try_kubectl_with(arguments, None)
    }

    /// kubectl with something to read.
    pub fn try_kubectl_with(&self, arguments: &[&str], input: Option<&str>) -> Result<String, String> {
        try_run("kubectl", &[&["--namespace", &self.namespace], arguments].concat(), input)
    }

    /// An object.
    pub fn get(&self, what: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", what, "-o", "json"])).unwrap()
    }

    /// Pods of the bot that are there, whatever their state.
    pub fn bot_pods(&self) -> usize {
        items(&self.kubectl(&["get", "pods", "-l", "app=trading-bot", "-o", "json"])).len()
    }

    // --- The venue, seen from outside ---

    fn venue(&self, path: &str) -> String {
        format!("/api/v1/namespaces/{}/services/paper-venue:8080/proxy/_control/{path}", self.namespace)
    }

    /// The bot's account, as the venue has it.
    pub fn account(&self) -> Value {
        let path = self.venue(&format!("accounts/{}", self.canaries[0]));
        serde_json::from_str(&kubectl(&["get", "--raw", &path])).unwrap()
    }

    /// Its open orders.
    pub fn open_orders(&self) -> usize {
        self.account()["openOrders"].as_array().unwrap().len()
    }

    /// What a Service of the namespace answers on its port 8080.
    pub fn pod_says(&self, service: &str, path: &str) -> Value {
        let path = format!("/api/v1/namespaces/{}/services/{service}:8080/proxy{path}", self.namespace);
        serde_json::from_str(&kubectl(&["get", "--raw", &path])).unwrap()
    }

    /// Lets the venue answer some requests wrongly.
    pub fn fault(&self, fault: &Value) {
        run("kubectl", &["create", "--raw", &self.venue("faults"), "-f", "-"], Some(&fault.to_string()));
    }

    /// Lets it answer rightly again.
    pub fn clear_faults(&self) {
        kubectl(&["delete", "--raw", &self.venue("faults")]);
    }

    /// Waits for positions, and for resting orders of which a halt has something to cancel.
    pub fn wait_until_trading(&self) {
        until("the bot trades", || {
            let account = self.account();
            let count = |what: &str| account[what].as_array().map_or(0, Vec::len);
            (count("openOrders") >= 3 && count("positions") >= 1).then_some(()).ok_or_else(|| account.to_string())
        });
    }

    // --- Halting and resuming ---

    /// Applies the halt of the example.
    pub fn halt(&self, name: &str) {
        self.apply_example("halt.yaml", |text| text.replace("name: stop-now", &format!("name: {name}")));
    }

    /// Applies the resume of the example.
    pub fn resume(&self, name: &str, halt: &str) {
        let change = |text: String| {
            text.replace("name: stop-now", &format!("name: {halt}")).replace("name: go-on", &format!("name: {name}"))
        };
        let user = kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]);
        self.apply_example("resume.yaml", |text| change(text).replace("kubernetes-admin", &user));
    }

    /// Waits for `Halted`.
    pub fn wait_halted(&self, name: &str) -> Value {
        let what = format!("tradinghalt/{name}");
        self.kubectl(&["wait", &what, "--for=condition=Halted", "--timeout=240s"]);
        self.get(&what)
    }

    /// Waits until Events tell all that the evidence of a halt does, and returns their reasons.
    pub fn wait_mirrored(&self, halt: &str) -> BTreeSet<String> {
        let reasons = |objects: &[Value], key: &str| -> BTreeSet<String> {
            objects.iter().map(|o| o[key].as_str().unwrap().to_owned()).collect()
        };
        let status = self.get(&format!("tradinghalt/{halt}"))["status"].take();
        let evidence = reasons(status["evidence"]["entries"].as_array().unwrap(), "event");
        let selector = format!("involvedObject.kind=TradingHalt,involvedObject.name={halt}");
        until("the evidence is mirrored as Events", || {
            let events = items(&self.kubectl(&["get", "events", "--field-selector", &selector, "-o", "json"]));
            let told = reasons(&events, "reason");
            if told.is_superset(&evidence) { Ok(told) } else { Err(format!("{told:?} of {evidence:?}")) }
        })
    }

    /// Waits until it is proven once more that the halt holds.
    pub fn wait_verified_again(&self, name: &str) {
        let look = || self.get(&format!("tradinghalt/{name}"))["status"].take();
        let before = look();
        until("the halt is verified again", || {
            let now = look();
            (now["phase"] == "Halted" && seconds_between(&before["lastVerifiedAt"], &now["lastVerifiedAt"]) > 0.0)
                .then_some(())
                .ok_or_else(|| now.to_string())
        });
    }

    /// Waits for `Completed`.
    pub fn wait_completed(&self, name: &str) {
        let what = format!("tradingresume/{name}");
        self.kubectl(&["wait", &what, "--for=condition=Completed", "--timeout=240s"]);
    }

    /// Nobody can scale the bot up, and whoever tries reads what to do.
    pub fn assert_latched(&self, halt: &str) {
        let answer = refused(&self.try_kubectl(&["scale", "deployment/trading-bot", "--replicas=1"]));
        assert!(answer.contains(&format!("create a TradingResume with spec.haltRef.name: {halt}")), "{answer}");
        assert_eq!(self.get("deployment/trading-bot")["spec"]["replicas"], 0);
    }

    // --- The end ---

    /// No credential in any status, Event, latch, log or metric; and the operator was refused nothing that it asked for.
    pub fn assert_nothing_leaked(&self) {
        let logs = operator_logs();
        let kinds = "tradingsystems,tradinghalts,tradingresumes,events,configmaps,jobs,pods";
        let objects = self.kubectl(&["get", kinds, "-o", "json"]);
        let mut places = vec![("a log", logs.clone()), ("an object", objects)];
        for pod in operators() {
            let name = pod["metadata"]["name"].as_str().unwrap();
            let path = format!("/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{name}:8080/proxy/metrics");
            places.push(("a metric", kubectl(&["get", "--raw", &path])));
        }
        assert!(logs.contains("standfast"), "the operator logs something");
        for (place, text) in &places {
            for line in text.lines() {
                let canary = self.canaries.iter().find(|c| line.contains(c.as_str()));
                assert!(canary.is_none(), "{} is in {place}: {line}", canary.unwrap());
            }
        }
        for line in logs.lines() {
            // What RBAC says. A scale-up on trial that the latch refuses is another matter, and wanted.
            assert!(!line.contains("is forbidden: User"), "the operator lacks a permission: {line}");
        }
    }

    /// The last look of a test that succeeded.
    pub fn finish(mut self) {
        self.assert_nothing_leaked();
        // Bots that ignore SIGTERM take their time: no other test has to wait for that.
        drop(self.turn.take());
        kubectl(&["delete", "namespace", &self.namespace, "--timeout=180s"]);
    }

    /// Keeps what there is to look at after a failure.
    fn dump(&self) {
        let logs = env::var_os("STANDFAST_LOGS").map_or_else(|| checkout().join(".work/logs"), PathBuf::from);
        let folder = logs.join("kind").join(&self.namespace);
        let _ = fs::create_dir_all(&folder);
        let kinds = "tradingsystems,tradinghalts,tradingresumes,deployments,replicasets,pods,jobs,configmaps,events";
        let show = |arguments: &[&str]| self.try_kubectl(arguments).unwrap_or_else(|error| error);
        let files = [
            ("objects.yaml", show(&["get", kinds, "-o", "yaml"])),
            ("bot.log", show(&["logs", "-l", "app=trading-bot", "--tail=-1"])),
            ("venue.log", show(&["logs", "-l", "app=paper-venue", "--tail=-1"])),
            ("operator.log", operator_logs()),
            ("operator.txt", show(&["-n", OPERATOR_NAMESPACE, "get", "pods,events,leases", "-o", "wide"])),
        ];
        for (name, text) in files {
            let _ = fs::write(folder.join(name), text);
        }
        eprintln!("{}", show(&["get", "tradingsystems,tradinghalts,tradingresumes,pods", "-o", "wide"]));
        eprintln!("statuses and logs of {} are in {}", self.namespace, folder.display());
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if thread::panicking() {
            // A second panic would end all tests.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.dump()));
        }
    }
}
