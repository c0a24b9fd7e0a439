//! The plan's emergency-halt script with the pod that it starts, beside Standfast, on a cluster with nodes.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use kube::{Api, Client, Config, api::PostParams, config::Kubeconfig};
use serde_json::{Value, json};
use standfast_crds::v1alpha1::TradingHalt;
use tokio::process::Command;

use crate::{
    rig::wait,
    table::{Sample, row, say},
};

const NAMESPACE: &str = "trading-demo";
const OPERATOR_NAMESPACE: &str = "standfast-system";
const VENUE: &str = "/api/v1/namespaces/trading-demo/services/paper-venue:8080/proxy/_control/ledger";
/// Cancels with the broker's own client, as the bot of the plan does.
const CANCEL: &str = "import os; from alpaca.trading.client import TradingClient; \
    TradingClient(os.environ['APCA_API_KEY_ID'], os.environ['APCA_API_SECRET_KEY'], paper=True, \
    url_override=os.environ['VENUE_URL']).cancel_orders()";
/// The longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(240);

/// Halts the demo's trading system in turns, by a TradingHalt and by the script.
pub async fn run(kubeconfig: &Path, rounds: usize) -> Result<()> {
    let site = Site::start(kubeconfig).await?;
    let (mut ours, mut script) = (vec![], vec![]);
    for round in 0..rounds {
        say(&format!("pods: round {round} of {rounds}"));
        ours.push(site.halt(&format!("halt-{round}")).await?);
        script.push(site.script(&format!("cancel-{round}")).await?);
    }
    let (ours, script) = (Sample::new(ours), Sample::new(script));
    let ratio = ours.median() / script.median();
    let what =
        format!("with real pods: create request of a halt sent → cancel request at the venue, median of {rounds} runs");
    let against = format!("the plan's script: {:.0} ms", script.median());
    let goal = "≤ 0.05 (20 × faster)";
    row(&what, &format!("{:.1} ms", ours.median()), &against, Some(ratio), goal, ratio <= 0.05);
    Ok(())
}

struct Site {
    kubeconfig: std::path::PathBuf,
    client: Client,
}

impl Site {
    /// Installs Standfast as the charts are, and starts the demo.
    async fn start(kubeconfig: &Path) -> Result<Self> {
        let config = Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &Default::default()).await?;
        let site = Self { kubeconfig: kubeconfig.to_owned(), client: Client::try_from(config)? };
        let release = ["--namespace", OPERATOR_NAMESPACE, "--create-namespace", "--wait", "--timeout", "5m"];
        for chart in ["standfast-crds", "standfast"] {
            let folder = format!("charts/{chart}");
            site.run("helm", &[&["upgrade", "--install", chart, &folder], release.as_slice()].concat()).await?;
        }
        for file in ["namespace.yaml", "workloads.yaml", "system.yaml"] {
            site.run("kubectl", &["apply", "-f", &format!("examples/demo/{file}")]).await?;
        }
        site.trades().await?;
        Ok(site)
    }

    /// Waits until the bot trades and a halt would work.
    async fn trades(&self) -> Result<()> {
        self.kubectl(&["wait", "deployment", "--all", "--for=condition=Available", "--timeout=240s"]).await?;
        self.kubectl(&["wait", "tradingsystem/demo", "--for=condition=Prepared", "--timeout=240s"]).await?;
        self.forget().await?;
        let order = |e: &Value| is(e, "POST", "/v2/orders");
        self.arrival("an order of the bot arrives", order).await.map(drop)
    }

    /// From the create request of a halt to its cancel, ms. Trading is resumed afterwards.
    async fn halt(&self, name: &str) -> Result<f64> {
        self.forget().await?;
        let halts: Api<TradingHalt> = Api::namespaced(self.client.clone(), NAMESPACE);
        let halt = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt", "metadata": {"name": name},
            "spec": {"systemRef": {"name": "demo"}, "reason": "measured"}});
        let halt = serde_json::from_value(halt)?;
        let sent = Timestamp::now();
        halts.create(&PostParams::default(), &halt).await?;
        let took = since(sent, self.cancelled().await?);
        self.kubectl(&["wait", "tradinghalt", name, "--for=condition=Halted", "--timeout=240s"]).await?;
        let by = self.kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).await?;
        let resume = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingResume", "metadata": {"name": name,
            "namespace": NAMESPACE}, "spec": {"haltRef": {"name": name}, "requestedBy": by.trim()}});
        self.create(&resume).await?;
        self.kubectl(&["wait", "tradingresume", name, "--for=condition=Completed", "--timeout=240s"]).await?;
        self.trades().await?;
        Ok(took)
    }

    /// From the begin of the script to its cancel, ms: the bot is scaled to zero, then a pod of its image cancels.
    async fn script(&self, pod: &str) -> Result<f64> {
        self.forget().await?;
        let secret = |name: &str, key: &str| json!({"name": name, "valueFrom": {"secretKeyRef": {"name": "alpaca", "key": key}}});
        let image = "localhost/standfast-demo-bot:dev";
        // What the namespace asks of every pod, and the account.
        let overrides = json!({"spec": {
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": pod, "image": image, "imagePullPolicy": "IfNotPresent",
                "command": ["/app/venv/bin/python", "-c", CANCEL],
                "env": [{"name": "VENUE_URL", "value": "http://paper-venue.trading-demo.svc:8080"},
                    secret("APCA_API_KEY_ID", "key-id"), secret("APCA_API_SECRET_KEY", "secret-key")],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}});
        let overrides = format!("--overrides={overrides}");
        let image = format!("--image={image}");
        let began = Timestamp::now();
        self.kubectl(&["scale", "deployment/trading-bot", "--replicas=0"]).await?;
        self.kubectl(&["run", pod, "--restart=Never", &image, &overrides]).await?;
        let took = since(began, self.cancelled().await?);
        self.kubectl(&["delete", "pod", pod, "--wait=false"]).await?;
        self.kubectl(&["scale", "deployment/trading-bot", "--replicas=1"]).await?;
        self.trades().await?;
        Ok(took)
    }

    async fn cancelled(&self) -> Result<Timestamp> {
        self.arrival("the cancel arrives", |e| is(e, "DELETE", "/v2/orders")).await
    }

    /// When the first such request arrived at the venue: its clock is that of this machine.
    async fn arrival(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Timestamp> {
        let found = wait(PATIENCE, what, async || {
            let ledger: Vec<Value> = serde_json::from_str(&self.run("kubectl", &["get", "--raw", VENUE]).await?)?;
            Ok(ledger.iter().find(|e| wanted(e)).and_then(|e| e["at_us"].as_i64()))
        })
        .await?;
        Ok(Timestamp::from_microsecond(found)?)
    }

    async fn forget(&self) -> Result<()> {
        self.run("kubectl", &["delete", "--raw", VENUE]).await.map(drop)
    }

    async fn create(&self, object: &Value) -> Result<()> {
        let resource = kube::api::ApiResource::erase::<standfast_crds::v1alpha1::TradingResume>(&());
        let api: Api<kube::api::DynamicObject> = Api::namespaced_with(self.client.clone(), NAMESPACE, &resource);
        api.create(&PostParams::default(), &serde_json::from_value(object.clone())?).await?;
        Ok(())
    }

    async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.run("kubectl", &[&["--namespace", NAMESPACE], arguments].concat()).await
    }

    async fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.with_context(|| format!("{program} cannot be run"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {}: {said}", arguments.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }
}

fn is(entry: &Value, method: &str, path: &str) -> bool {
    entry["kind"] == "request" && entry["method"] == method && entry["path"] == path
}

/// Milliseconds.
fn since(began: Timestamp, arrived: Timestamp) -> f64 {
    arrived.duration_since(began).as_secs_f64() * 1e3
}
