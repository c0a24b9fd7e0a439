//! The whole way back, on real pods: people with kubeconfigs of their own, a break, stages, a regression, and once more.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use standfast_e2e::process::program;

use super::cluster::{Site, condition, kubectl, run, until};

/// Somebody who has a certificate of the cluster, a role in the namespace, and a kubeconfig.
struct Person {
    name: &'static str,
    kubeconfig: PathBuf,
    namespace: String,
}

impl Person {
    fn new(site: &Site, folder: &Path, name: &'static str, group: &str, role: &str) -> Self {
        let file = |what: &str| folder.join(format!("{name}.{what}")).display().to_string();
        let (key, request) = (file("key"), file("csr"));
        let subject = format!("/O={group}/CN={name}");
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        run(
            "openssl",
            &[&["req", "-new"], &curve[..], &["-keyout", &key, "-out", &request, "-subj", &subject]].concat(),
            None,
        );
        let encoded = |file: &str| run("openssl", &["base64", "-A", "-in", file], None).trim().to_owned();
        let signing = format!("{}-{name}", site.namespace);
        kubectl(&["delete", "certificatesigningrequest", &signing, "--ignore-not-found"]);
        let asked = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"name": signing}, "spec": {"request": encoded(&request), "usages": ["client auth"],
                "signerName": "kubernetes.io/kube-apiserver-client", "expirationSeconds": 3600}});
        run("kubectl", &["create", "-f", "-"], Some(&asked.to_string()));
        kubectl(&["certificate", "approve", &signing]);
        let certificate = until("the certificate is signed", || {
            let certificate =
                kubectl(&["get", "certificatesigningrequest", &signing, "-o", "jsonpath={.status.certificate}"]);
            if certificate.is_empty() { Err(String::new()) } else { Ok(certificate) }
        });
        kubectl(&["delete", "certificatesigningrequest", &signing]);
        site.kubectl(&["create", "rolebinding", name, &format!("--clusterrole={role}"), &format!("--user={name}")]);
        let mut config: Value = serde_json::from_str(&kubectl(&["config", "view", "--raw", "-o", "json"])).unwrap();
        config["users"] = json!([{"name": name,
            "user": {"client-certificate-data": certificate, "client-key-data": encoded(&key)}}]);
        for context in config["contexts"].as_array_mut().unwrap() {
            context["context"]["user"] = name.into();
        }
        let kubeconfig = folder.join(format!("{name}.kubeconfig"));
        fs::write(&kubeconfig, config.to_string()).unwrap();
        Self { name, kubeconfig, namespace: site.namespace.clone() }
    }

    /// The command line, as this person: its exit code, and what it said.
    fn standfast(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(program("kubectl-standfast").unwrap());
        command.args(arguments).args(["--namespace", &self.namespace]).env("KUBECONFIG", &self.kubeconfig);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        // What the documents show.
        eprintln!("{}$ kubectl standfast {}\n{said}", self.name, arguments.join(" "));
        (output.status.code().unwrap_or(-1), said)
    }

    fn does(&self, arguments: &[&str]) -> String {
        let (code, said) = self.standfast(arguments);
        assert_eq!(code, 0, "{}: {arguments:?}: {said}", self.name);
        said
    }
}

/// The policy of the story. A break must be accepted by both, too.
fn policy(small: &str) -> Value {
    json!({
        "approvals": [{"count": 1, "group": "risk"}, {"count": 1}],
        "excludeRequesters": ["Halt", "Resume"],
        "coolOff": "3s",
        "reconciliation": [{"name": "positions", "venue": "alpaca", "compare": "Positions",
            "bot": {"http": {"url": "http://books.NAMESPACE.svc:8080/positions.json"}}}],
        "thresholds": {"interval": "1s", "failure": 2},
        "ramp": [
            {"name": "small", "limits": {"maxPositionPercent": "0.5"}, "hold": small},
            {"name": "full", "limits": {"maxPositionPercent": "2"}, "hold": "3s"},
        ],
        "watch": {"for": "3s"},
    })
}

/// What the bot tells its limit is, and how it is told.
fn limits() -> Value {
    let url = "http://trading-bot.NAMESPACE.svc:8080/limits";
    let auth = json!({"headers": [{"name": "Authorization", "prefix": "Bearer ",
        "secretKeyRef": {"name": "bot", "key": "token"}}]});
    json!([{"name": "maxPositionPercent", "read": {"http": {"url": url}, "path": "$.maxPositionPercent"},
        "set": {"http": {"method": "PUT", "url": format!("{url}/maxPositionPercent"), "auth": auth,
            "body": {"value": "{value}"}}}}])
}

/// The books, served beside the bot: what the venue holds, but for `missing` AAPL.
fn keep_books(site: &Site, missing: i64) {
    let held = site.account()["positions"].clone();
    let books: Vec<Value> = held
        .as_array()
        .unwrap()
        .iter()
        .map(|p| {
            let symbol = p["symbol"].as_str().unwrap();
            let quantity: i64 = p["qty"].to_string().trim_matches('"').parse::<f64>().unwrap() as i64;
            json!({"symbol": symbol, "quantity": if symbol == "AAPL" { quantity - missing } else { quantity }})
        })
        .collect();
    // A new name each time: a mounted ConfigMap that changes is seen a minute later.
    let name = format!("books-{missing}");
    let labels = json!({"app": "books"});
    let container = json!({"name": "books", "image": "localhost/standfast-demo-bot:dev",
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-m", "http.server", "8080", "--directory", "/books"],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "books", "mountPath": "/books"}]});
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
            "data": {"positions.json": json!(books).to_string()}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "books"},
            "spec": {"selector": labels, "ports": [{"port": 8080}]}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "books"},
            "spec": {"selector": {"matchLabels": labels}, "strategy": {"type": "Recreate"},
                "template": {"metadata": {"labels": labels}, "spec": {
                    "securityContext": {"runAsNonRoot": true, "runAsUser": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"}},
                    "terminationGracePeriodSeconds": 1,
                    "containers": [container], "volumes": [{"name": "books", "configMap": {"name": name}}]}}}},
    ]});
    site.try_kubectl_with(&["apply", "-f", "-"], Some(&objects.to_string())).unwrap();
    site.kubectl(&["rollout", "status", "deployment/books", "--timeout=120s"]);
}

fn resume_in(site: &Site, name: &str, phase: &str) -> Value {
    until(&format!("{name} is {phase}"), || {
        let resume = site.get(&format!("tradingresume/{name}"));
        if resume["status"]["phase"] == phase { Ok(resume) } else { Err(resume["status"].to_string()) }
    })
}

/// What the bot's positions are worth at most, in percent of its equity, as the venue has it.
fn largest_position(account: &Value) -> f64 {
    let number = |value: &Value| value.to_string().trim_matches('"').parse::<f64>().unwrap_or(f64::NAN);
    let positions = account["positions"].as_array().unwrap();
    let worth: Vec<f64> = positions.iter().map(|p| number(&p["qty"]) * number(&p["current_price"])).collect();
    let equity = number(&account["cash"]) + worth.iter().sum::<f64>();
    worth.into_iter().map(f64::abs).fold(0.0, f64::max) / equity * 100.0
}

/// S1-14, S2-35, S0-63, S0-29: halt, two people, a break that both accept, trading at a small limit, a regression, and a
/// second resume to the full limit.
#[test]
fn s0_29_two_people_bring_trading_back_in_stages_and_a_regression_halts_it_again() {
    let site = Site::new("story");
    let folder = env::temp_dir().join(format!("standfast-{}-{}", site.namespace, std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let person = |name, group, role| Person::new(&site, &folder, name, group, role);
    let (rita, carl) = (person("rita", "desk", "standfast-responder"), person("carl", "desk", "standfast-risk"));
    let (anna, bert) = (person("anna", "risk", "standfast-risk"), person("bert", "desk", "standfast-risk"));
    site.start();
    let declare = |small: &str| {
        let patch = json!({"spec": {"resumePolicy": policy(small), "limits": limits()}}).to_string();
        let patch = patch.replace("NAMESPACE", &site.namespace);
        site.kubectl(&["patch", "tradingsystem/demo", "--type=merge", "-p", &patch]);
    };
    // Long enough to look at it.
    declare("30s");

    rita.does(&["halt", "demo", "--reason", "prices look stale", "--name", "stale"]);
    keep_books(&site, 3);
    carl.does(&["resume", "demo", "--name", "back", "--no-wait"]);
    resume_in(&site, "back", "AwaitingApproval");
    // Whoever asked for it does not count.
    let (code, said) = carl.standfast(&["approve", "back", "--yes"]);
    assert!(code == 1 && said.contains("carl asked for this TradingResume"), "{said}");
    anna.does(&["approve", "back", "--yes", "--comment", "prices are back"]);
    bert.does(&["approve", "back", "--yes"]);
    let resume = until("the break is told", || {
        let resume = site.get("tradingresume/back");
        let told = resume["status"]["breaks"].as_array().is_some_and(|b| !b.is_empty());
        if told { Ok(resume) } else { Err(resume["status"].to_string()) }
    });
    assert_eq!(resume["status"]["phase"], "Reconciling");
    let broken = &resume["status"]["breaks"];
    assert_eq!(
        (broken.as_array().map(Vec::len), &broken[0]["symbol"], &broken[0]["difference"]),
        (Some(1), &json!("AAPL"), &json!("3"))
    );
    assert_eq!(site.bot_pods(), 0);
    carl.does(&["status", "demo"]);
    anna.does(&["approve", "back", "--accept-breaks", "--yes"]);
    assert_eq!(site.get("tradinghalt/stale")["status"]["phase"], "Halted");
    bert.does(&["approve", "back", "--accept-breaks", "--yes"]);

    until("the first stage is held", || {
        let resume = site.get("tradingresume/back");
        let held = resume["status"]["stage"] == "small"
            && resume["status"]["phase"] == "Ramping"
            && resume["status"]["stages"].as_array().is_some_and(|s| !s.is_empty());
        held.then_some(()).ok_or_else(|| resume["status"].to_string())
    });
    until("the bot trades at the small limit", || {
        let account = site.account();
        let orders = account["openOrders"].as_array().map_or(0, Vec::len);
        let small = largest_position(&account) <= 0.5;
        (orders >= 1 && small).then_some(()).ok_or_else(|| account.to_string())
    });
    let limits = site.pod_says("trading-bot", "/limits");
    assert_eq!(limits["maxPositionPercent"], "0.5", "{limits}");
    carl.does(&["status", "demo"]);

    site.fault(&json!({"path": "/v2/clock", "action": {"do": "reply", "status": 500}}));
    let resume = resume_in(&site, "back", "ReHalted");
    let why = condition(&resume, "Completed")["message"].to_string();
    assert!(why.contains("halted again by back-regression: check venue-clock in stage small"), "{why}");
    let halt = site.wait_halted("back-regression");
    assert_eq!((site.bot_pods(), site.open_orders()), (0, 0));
    assert!(halt["spec"]["reason"].to_string().contains("venue-clock"), "{}", halt["spec"]);
    carl.does(&["explain", "back-regression"]);

    site.clear_faults();
    keep_books(&site, 0);
    declare("3s");
    carl.does(&["resume", "demo", "--name", "back-again", "--no-wait"]);
    resume_in(&site, "back-again", "AwaitingApproval");
    anna.does(&["approve", "back-again", "--yes"]);
    bert.does(&["approve", "back-again", "--yes"]);
    carl.does(&["resume", "demo", "--name", "back-again"]);
    site.wait_completed("back-again");
    assert_eq!(site.pod_says("trading-bot", "/limits")["maxPositionPercent"], "2");
    let stages = site.get("tradingresume/back-again")["status"]["stages"].take();
    assert_eq!(stages.as_array().map(Vec::len), Some(3), "two stages and the watch: {stages}");
    site.wait_until_trading();
    until("the bot makes use of the whole limit", || {
        let account = site.account();
        (largest_position(&account) > 0.5).then_some(()).ok_or_else(|| account.to_string())
    });
    carl.does(&["status", "demo"]);
    fs::remove_dir_all(&folder).unwrap();
    site.finish();
}
