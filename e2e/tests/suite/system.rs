//! What the status of a TradingSystem tells, on a real API server.

use anyhow::Result;
use k8s_openapi::api::{
    admissionregistration::v1::ValidatingAdmissionPolicyBinding,
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{Namespace, Secret, Service},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use standfast_crds::{
    guardrails::LATCH_POLICY,
    v1alpha1::{CheckState, HaltPhase, TradingSystem, TradingSystemStatus, condition},
};
use standfast_e2e::{
    controlplane::free_port,
    postgres::{PASSWORD, Postgres},
    venue::{Action, Fault},
    world::{World, merge},
};

use crate::plane::{Alone, world};

/// Status and reason of a condition.
fn says<'a>(status: &'a TradingSystemStatus, type_: &str) -> (&'a str, &'a str) {
    condition(&status.conditions, type_).map_or(("", ""), |c| (c.status.as_str(), c.reason.as_str()))
}

/// A Deployment that its controller leaves alone: no pods.
fn deployment(name: &str, selector: &Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"paused": true, "replicas": 1, "selector": selector,
        "template": {"metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "bot", "image": "bot"}]}}}})
}

fn labels(name: &str) -> Value {
    json!({"matchLabels": {"app": name}})
}

/// A system with a Deployment of its own, both called `name`.
async fn system(world: &World, name: &str, patch: Value) -> Result<TradingSystem> {
    let mut spec = json!({"workloads": [{"kind": "Deployment", "name": name, "role": "Trading"}],
        "venues": [world.venue_spec()]});
    merge(&mut spec, patch);
    world.create(json!({"metadata": {"name": name}, "spec": spec})).await
}

/// The world's venue with another value at a JSON pointer.
fn venue_with(world: &World, pointer: &str, value: Value) -> Value {
    let mut venue = world.venue_spec();
    if let Some(at) = venue.pointer_mut(pointer) {
        *at = value;
    }
    json!({"venues": [venue]})
}

#[tokio::test]
async fn prepared_names_each_missing_thing_and_what_to_do() -> Result<()> {
    let world = world("prepared").await?;
    let namespace = world.namespace.clone();
    for (name, uses, hosts) in [("plain", "false", "127.0.0.1"), ("elsewhere", "true", "broker.example")] {
        world
            .create::<Secret>(json!({"metadata": {"name": name, "labels": {"standfast.dev/use": uses},
                "annotations": {"standfast.dev/allowed-hosts": hosts}}, "stringData": {"key-id": "x"}}))
            .await?;
    }
    let of_bot =
        json!({"metadata": {"name": "bot-api"}, "spec": {"selector": {"app": "reads"}, "ports": [{"port": 8080}]}});
    world.create::<Service>(of_bot).await?;
    let (closed, port) = (free_port()?, world.venue.addr.port());
    let secret = "/cancelOrders/0/http/auth/headers/0/secretKeyRef";
    let cases: Vec<(&str, Value, &str, String)> = vec![
        (
            "no-workload",
            json!({"workloads": [{"kind": "Deployment", "name": "typo", "role": "Trading"}]}),
            "WorkloadNotFound",
            format!("Deployment typo not found in namespace {namespace}: there are "),
        ),
        (
            "no-match",
            json!({"workloads": [{"kind": "Deployment", "matchLabels": {"fleet": "x"}, "role": "Trading"}]}),
            "WorkloadNotFound",
            "fleet=x".into(),
        ),
        (
            "no-secret",
            venue_with(&world, secret, json!({"name": "typo", "key": "k"})),
            "CredentialMissing",
            format!("Secret {namespace}/typo does not exist"),
        ),
        (
            "no-key",
            venue_with(&world, secret, json!({"name": "alpaca", "key": "typo"})),
            "CredentialMissing",
            format!("Secret {namespace}/alpaca has no key typo"),
        ),
        (
            "not-ours",
            venue_with(&world, secret, json!({"name": "plain", "key": "key-id"})),
            "CredentialMissing",
            format!("kubectl -n {namespace} label secret plain standfast.dev/use=true"),
        ),
        (
            "elsewhere",
            venue_with(&world, secret, json!({"name": "elsewhere", "key": "key-id"})),
            "CredentialMissing",
            format!("Secret {namespace}/elsewhere may not be sent to 127.0.0.1:{port}"),
        ),
        (
            "no-answer",
            venue_with(&world, "/openOrders/0/http/url", format!("http://127.0.0.1:{closed}/v2/orders").into()),
            "EndpointUnreachable",
            format!("no connection to 127.0.0.1 port {closed}"),
        ),
        ("no-venues", json!({"venues": []}), "NoVenues", "cancel no orders".into()),
        (
            "no-cancel",
            venue_with(&world, "/cancelOrders", json!([])),
            "CancelOrdersMissing",
            "spec.venues[alpaca] has no cancelOrders".into(),
        ),
        (
            "no-read",
            venue_with(&world, "/openOrders", json!([])),
            "OpenOrdersNotReadable",
            "spec.venues[alpaca] has no openOrders".into(),
        ),
        (
            "no-close",
            {
                let mut patch = venue_with(&world, "/closePositions", json!([]));
                patch["haltPolicy"] = json!({"allowedPositionActions": ["Keep", "CloseAll"]});
                patch
            },
            "ClosePositionsMissing",
            "lacks closePositions or openPositions".into(),
        ),
        (
            "no-item",
            venue_with(&world, "/cancelOrder/http/url", format!("http://127.0.0.1:{port}/v2/orders").into()),
            "InvalidSpec",
            "spec.venues[alpaca].cancelOrder: neither url nor body has {id}".into(),
        ),
        ("expressions", json!({}), "SelectorNotPlainLabels", "use matchLabels".into()),
        ("git", json!({}), "GitOpsConflict", "argocd-controller sets the size of".into()),
        (
            "reads",
            venue_with(&world, "/openOrders/0/http/url", format!("http://bot-api.{namespace}.svc:8080/orders").into()),
            "ReadsFromHaltedWorkload",
            format!("Service {namespace}/bot-api leads to pods of Deployment reads, which a halt stops"),
        ),
        (
            "shared",
            json!({"workloads": [{"kind": "Deployment", "name": "well", "role": "Trading"}]}),
            "SharedWorkload",
            "Deployment well is named by TradingSystem well too".into(),
        ),
    ];
    for (name, patch, ..) in &cases {
        let selector = match *name {
            "expressions" => json!({"matchExpressions": [{"key": "app", "operator": "In", "values": [name]}]}),
            _ => labels(name),
        };
        let mut object = deployment(name, &selector);
        if *name == "git" {
            (object["apiVersion"], object["kind"]) = ("apps/v1".into(), "Deployment".into());
            let params = PatchParams::apply("argocd-controller");
            world.api::<Deployment>().patch(name, &params, &Patch::Apply(object)).await?;
        } else {
            world.create::<Deployment>(object).await?;
        }
        system(&world, name, patch.clone()).await?;
    }
    world.create::<Deployment>(deployment("well", &labels("well"))).await?;
    system(&world, "well", json!({})).await?;
    let _operator = world.operator().await?;
    for (name, _, reason, text) in &cases {
        let told = |s: &TradingSystemStatus| {
            s.problems.iter().any(|p| p.reason == *reason && p.message.contains(text.as_str()))
        };
        let status = world.system_until(name, &format!("{name} is told {reason}: {text}"), told).await?;
        assert_eq!(says(&status, "Prepared").0, "False", "{name}");
    }
    // Alone, it would be well.
    world.api::<TradingSystem>().delete("shared", &DeleteParams::default()).await?;
    let status = world.system_until("well", "prepared", |s| says(s, "Prepared").0 == "True").await?;
    let text = condition(&status.conditions, "Prepared").map(|c| c.message.clone());
    assert_eq!(text.as_deref(), Some("an emergency halt would work now"));
    assert_eq!((status.problems, status.cancel_path.as_deref()), (vec![], Some("HTTP")));
    Ok(())
}

#[tokio::test]
async fn prepared_tells_the_command_where_the_namespace_is_not_labelled() -> Result<()> {
    let world = world("unlabelled").await?;
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let off = json!({"metadata": {"labels": {"standfast.dev/latch": null}}});
    namespaces.patch(&world.namespace, &PatchParams::default(), &Patch::Merge(off)).await?;
    world.create::<Deployment>(deployment("bot", &labels("bot"))).await?;
    system(&world, "bot", json!({})).await?;
    let _operator = world.operator().await?;
    let told = |s: &TradingSystemStatus| says(s, "Prepared") == ("False", "NamespaceNotLabelled");
    let status = world.system_until("bot", "told", told).await?;
    let command = format!("kubectl label namespace {} standfast.dev/latch=enabled", world.namespace);
    assert!(status.problems[0].message.ends_with(&command), "{:?}", status.problems);
    Ok(())
}

#[tokio::test]
async fn prepared_tells_of_guardrails_that_are_missing() -> Result<()> {
    let alone = Alone::new().await?;
    let world = alone.world("guards").await?;
    world.create::<Deployment>(deployment("bot", &labels("bot"))).await?;
    system(&world, "bot", json!({})).await?;
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(world.client.clone());
    bindings.delete(LATCH_POLICY, &DeleteParams::default()).await?;
    let _operator = world.operator().await?;
    let told = |s: &TradingSystemStatus| says(s, "Prepared") == ("False", "GuardrailsMissing");
    let status = world.system_until("bot", "told", told).await?;
    let text =
        format!("ValidatingAdmissionPolicyBinding/{LATCH_POLICY} not found: install the standfast-crds chart again");
    assert_eq!(status.problems[0].message, text);
    Ok(())
}

/// The row of a check: group, answer, message.
fn row<'a>(status: &'a TradingSystemStatus, name: &str) -> (String, CheckState, &'a str) {
    status
        .checks
        .iter()
        .find(|c| c.name == name)
        .map_or((String::new(), CheckState::Unknown, ""), |c| (format!("{:?}", c.group), c.state, c.message.as_str()))
}

/// S1-17, S3-33
#[tokio::test]
async fn s3_33_the_checks_are_a_table_in_the_status_and_numbers_come_from_the_database() -> Result<()> {
    let database = Postgres::start().await?;
    database
        .run(
            "CREATE TABLE trades (id int, pnl numeric); INSERT INTO trades VALUES (1, 2.5), (2, NULL), (3, NULL); \
             CREATE TABLE positions (symbol text, quantity numeric); INSERT INTO positions VALUES ('AAPL', 10)",
        )
        .await?;
    let world = world("checks").await?;
    world.bot("bot", 2).await?;
    world
        .create::<Secret>(json!({"metadata": {"name": "database", "labels": {"standfast.dev/use": "true"},
            "annotations": {"standfast.dev/allowed-hosts": "127.0.0.1"}}, "stringData": {"url": database.url()}}))
        .await?;
    let sql = |query: &str, expect: Value| {
        json!({"connectionSecretRef": {"name": "database", "key": "url"},
        "query": query, "expect": expect})
    };
    let clock = &world.venue_spec()["marketOpen"]["http"];
    let checks = json!([
        {"name": "bot", "group": "infrastructure", "interval": "1s", "workload": {"kind": "Deployment", "name": "bot"}},
        {"name": "pnl", "group": "data", "interval": "1s",
            "sql": sql("SELECT count(*) FROM trades WHERE pnl IS NULL", json!({"equals": 0}))},
        {"name": "positions", "group": "data", "interval": "1s",
            "sql": sql("SELECT count(*) FROM positions WHERE quantity < 0", json!({"equals": 0}))},
        {"name": "writes", "group": "data", "interval": "1s",
            "sql": sql("WITH gone AS (DELETE FROM trades RETURNING 1) SELECT count(*) FROM gone", json!({"equals": 0}))},
        {"name": "venue", "group": "trading", "interval": "1s", "http": {"request": clock}},
        {"name": "alerts", "group": "monitoring", "interval": "1s",
            "http": {"request": {"url": format!("{}/alerts", world.venue.url())}}},
    ]);
    world.system(&["bot"], json!({"checks": checks})).await?;
    let _operator = world.operator().await?;
    let asked = |s: &TradingSystemStatus| {
        s.checks_passing.as_deref() == Some("3/6") && s.checks.iter().all(|c| c.message != "not asked yet")
    };
    let status = world.system_until("system", "three of six pass", asked).await?;
    let namespace = &world.namespace;
    let (good, bad) = (CheckState::Passing, CheckState::Failing);
    for (name, group, state, text) in [
        ("bot", "Infrastructure", good, format!("Deployment {namespace}/bot: 2 pods ready, wanted at least 2")),
        ("pnl", "Data", bad, "found 2, wanted 0".into()),
        ("positions", "Data", good, "found 0, wanted 0".into()),
        ("venue", "Trading", good, "GET 127.0.0.1 answered 200".into()),
        ("alerts", "Monitoring", bad, "GET 127.0.0.1 answered 401, wanted 200 to 299".into()),
    ] {
        assert_eq!(row(&status, name), (group.to_owned(), state, text.as_str()), "{name}");
    }
    // A query of the namespace's owner changes nothing.
    let (_, state, text) = row(&status, "writes");
    assert_eq!(state, CheckState::Unknown, "{text}");
    assert_eq!(database.run("SELECT count(*) FROM trades").await?, "3");
    assert_eq!(says(&status, "ChecksPassing"), ("False", "ChecksFailing"));
    assert!(!serde_json::to_string(&status)?.contains(PASSWORD));

    let (_, said) = world.kubectl(&["get", "tradingsystem", "system"], "").await?;
    assert!(said.lines().next().unwrap_or_default().contains("CHECKS") && said.contains("3/6"), "{said}");
    let columns = r#"jsonpath={range .status.checks[*]}{.group}{"\t"}{.name}{"\t"}{.state}{"\t"}{.message}{"\n"}{end}"#;
    let (_, table) = world.kubectl(&["get", "tradingsystem", "system", "-o", columns], "").await?;
    assert!(table.contains("data\tpnl\tFailing\tfound 2, wanted 0\n"), "{table}");
    database.run("UPDATE trades SET pnl = 0 WHERE pnl IS NULL").await?;
    let repaired = |s: &TradingSystemStatus| row(s, "pnl").1 == CheckState::Passing;
    world.system_until("system", "the repair is seen", repaired).await?;
    Ok(())
}

/// S3-36
#[tokio::test]
async fn s3_36_a_stale_ticker_is_told_with_its_time() -> Result<()> {
    let world = world("ticker").await?;
    world.create::<Deployment>(deployment("bot", &labels("bot"))).await?;
    let ticker = |at: &str| {
        let body = json!({"symbol": "AAPL", "price": "190.5", "timestamp": at}).to_string();
        Fault::on("GET", "/ticker", Action::Reply { status: 200, body, headers: vec![] })
    };
    let fresh = world.venue.fault(ticker(&jiff::Timestamp::now().to_string()));
    let request = json!({"url": format!("{}/ticker", world.venue.url())});
    let check = |name: &str, age: &str| {
        json!({"name": name, "group": "trading", "interval": "1s",
            "http": {"request": request, "path": "$.timestamp", "expect": {"newerThan": age}}})
    };
    system(&world, "bot", json!({"checks": [check("ticker", "1h")]})).await?;
    let _operator = world.operator().await?;
    let passing = |s: &TradingSystemStatus| row(s, "ticker").1 == CheckState::Passing;
    world.system_until("bot", "the ticker is fresh", passing).await?;
    world.venue.remove_fault(fresh);
    world.venue.fault(ticker("2020-01-02T03:04:05Z"));
    let stale = |s: &TradingSystemStatus| row(s, "ticker").1 == CheckState::Failing;
    let status = world.system_until("bot", "the ticker is stale", stale).await?;
    let text = "found \"2020-01-02T03:04:05Z\" at $.timestamp, wanted not older than 1h";
    assert_eq!(row(&status, "ticker").2, text);
    assert_eq!(says(&status, "ChecksPassing"), ("False", "ChecksFailing"));
    Ok(())
}

/// S0-01
#[tokio::test]
async fn s0_01_the_objectives_are_shown() -> Result<()> {
    let world = world("objectives").await?;
    world.create::<Deployment>(deployment("bot", &labels("bot"))).await?;
    let objectives = json!({"rto": {"target": "15m", "maximum": "1h"}, "rpo": {"maximum": "24h"},
        "lostTrades": {"maximum": 0}});
    system(&world, "bot", json!({"objectives": objectives})).await?;
    let _operator = world.operator().await?;
    let status = world.system_until("bot", "they are shown", |s| s.objectives.is_some()).await?;
    assert_eq!(status.objectives.as_deref(), Some("RTO 1h (target 15m), RPO 24h, no lost trades"));
    Ok(())
}

#[tokio::test]
async fn a_system_shows_what_holds_it_and_since_when() -> Result<()> {
    let world = world("shows").await?;
    world.bot("bot", 1).await?;
    world.system(&["bot"], json!({})).await?;
    let _operator = world.operator().await?;
    let halted = |s: &TradingSystemStatus| s.halt.clone().unwrap_or_default();
    world.system_until("system", "not halted", |s| halted(s).halted == "No").await?;
    world.halt("stale", json!({})).await?;
    let status = world.system_until("system", "halted", |s| halted(s).halted == "Yes").await?;
    assert_eq!(halted(&status).by.as_deref(), Some("stale"));
    assert!(halted(&status).since.is_some());
    let (_, said) = world.kubectl(&["get", "ts"], "").await?;
    let lines: Vec<Vec<_>> = said.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "HALTED", "BY", "SINCE", "PREPARED", "CHECKS", "AGE"], "{said}");
    assert_eq!(lines[1][..3], ["system", "Yes", "stale"], "{said}");
    world.resume("go-on", "stale").await?;
    world.halt_until("stale", "released", |s| s.phase == HaltPhase::Released).await?;
    world.system_until("system", "not halted any more", |s| halted(s).halted == "No").await?;
    Ok(())
}

#[tokio::test]
async fn two_systems_of_one_account_are_told_of_each_other() -> Result<()> {
    let world = world("account").await?;
    let mut venue = world.venue_spec();
    venue["account"] = format!("PA-{}", world.namespace).into();
    for name in ["one", "two"] {
        world.create::<Deployment>(deployment(name, &labels(name))).await?;
        system(&world, name, json!({"venues": [venue]})).await?;
    }
    let _operator = world.operator().await?;
    for (name, other) in [("one", "two"), ("two", "one")] {
        let shared = |s: &TradingSystemStatus| says(s, "SharedAccount") == ("True", "AccountNamedTwice");
        let status = world.system_until(name, "told", shared).await?;
        let text = condition(&status.conditions, "SharedAccount").map(|c| c.message.clone()).unwrap_or_default();
        assert!(text.contains(&format!("{}/{other}", world.namespace)), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn an_autoscaler_of_a_trading_workload_is_named() -> Result<()> {
    let world = world("named").await?;
    world.create::<Deployment>(deployment("bot", &labels("bot"))).await?;
    world
        .create::<HorizontalPodAutoscaler>(json!({"metadata": {"name": "grow"}, "spec": {"minReplicas": 2,
            "maxReplicas": 5, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "bot"}}}))
        .await?;
    system(&world, "bot", json!({})).await?;
    let _operator = world.operator().await?;
    let named =
        |s: &TradingSystemStatus| s.coexistence == ["HorizontalPodAutoscaler grow (2 to 5) scales Deployment bot"];
    world.system_until("bot", "it is named", named).await?;
    Ok(())
}
