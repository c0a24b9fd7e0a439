//! Bad input gets a clear error where it enters: at `kubectl apply`, or in the status of the object.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{HaltPhase, ResumePhase, TradingHalt, TradingResume, TradingSystem, condition};
use standfast_e2e::world::{World, merge};

use crate::plane::world;

/// A TradingSystem that is right, with changes.
fn system(world: &World, name: &str, patch: Value) -> Value {
    let mut spec = json!({"workloads": [{"kind": "Deployment", "name": "bot", "role": "Trading"}],
        "venues": [world.venue_spec()]});
    merge(&mut spec, patch);
    json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingSystem", "metadata": {"name": name}, "spec": spec})
}

fn halt(name: &str, patch: Value) -> Value {
    let mut spec = json!({"systemRef": {"name": "system"}, "reason": "prices are stale"});
    merge(&mut spec, patch);
    json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt", "metadata": {"name": name}, "spec": spec})
}

fn resume(name: &str, halt: &str) -> Value {
    json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingResume", "metadata": {"name": name},
        "spec": {"haltRef": {"name": halt}, "requestedBy": "admin"}})
}

/// The world's venue with another value at a JSON pointer.
fn venue(world: &World, pointer: &str, value: Value) -> Value {
    let mut venue = world.venue_spec();
    match pointer.rsplit_once('/') {
        Some((parent, key)) => {
            if let Some(at) = venue.pointer_mut(parent).and_then(Value::as_object_mut) {
                at.insert(key.into(), value);
            }
        }
        None => venue = value,
    }
    json!({"venues": [venue]})
}

async fn apply(world: &World, object: &Value) -> Result<(bool, String)> {
    world.kubectl(&["apply", "-f", "-"], &object.to_string()).await
}

/// Requests that cannot be signed, and checks that ask nothing or too much: the field, with what it holds, and the
/// message.
#[tokio::test]
async fn bad_signatures_and_checks_are_refused_where_they_are_applied() -> Result<()> {
    let world = world("input-wider").await?;
    let keys = json!({"apiKeyRef": {"name": "s", "key": "key"}, "apiSecretRef": {"name": "s", "key": "secret"}});
    let auth = |auth: Value| venue(&world, "/openOrders/0/http/auth", auth);
    let check = |kind: &str, question: Value| json!({"checks": [{"name": "c", "group": "data", kind: question}]});
    let query = |url: &str| json!({"url": url, "query": "up", "expect": {"equals": 1}});
    let mut slow = keys.clone();
    slow["recvWindow"] = "2m".into();
    let mut signed = query("https://p.example");
    signed["auth"] = json!({"bybit": keys});
    let at = "spec.venues[0].openOrders[0].http";
    for (spec, field, told) in [
        (
            auth(json!({"binance": keys, "bybit": keys})),
            format!("{at}.auth"),
            "auth needs exactly one way to authenticate: headers, binance, bybit or kraken",
        ),
        (
            auth(json!({})),
            format!("{at}.auth"),
            "auth needs exactly one way to authenticate: headers, binance, bybit or kraken",
        ),
        (auth(json!({"kraken": keys})), at.into(), "Kraken takes signed requests by method: POST only"),
        (
            auth(json!({"binance": slow})),
            format!("{at}.auth.binance"),
            "recvWindow is between 1ms and 60s; 5s is usual",
        ),
        (
            check("unknown", json!({})),
            "spec.checks[0]".into(),
            "a check asks exactly one question: give one of http, sql, workload, tcp, prometheus, job",
        ),
        (
            check("tcp", json!({"host": "redis://redis.trading.svc", "port": 6379})),
            "spec.checks[0].tcp".into(),
            "host is a name alone, for example redis.trading.svc: the port has a field of its own, and there is no scheme",
        ),
        (
            check("prometheus", query("https://p.example/?query=up")),
            "spec.checks[0].prometheus".into(),
            "url is the address of the server without a query, for example https://prometheus.example.com: /api/v1/query is added",
        ),
        (
            check("prometheus", signed),
            "spec.checks[0].prometheus".into(),
            "a Prometheus server takes auth.headers only",
        ),
        (
            check("job", json!({"image": "x", "path": "$.n"})),
            "spec.checks[0].job".into(),
            "path needs expect: what the value at path must be",
        ),
    ] {
        // Unknown fields are not what is tested here.
        let object = system(&world, "bad", spec).to_string();
        let (applied, said) = world.kubectl(&["apply", "--validate=ignore", "-f", "-"], &object).await?;
        assert!(
            !applied && said.contains(&format!("{field}: Invalid value: ")) && said.contains(told),
            "{field}: {said}"
        );
    }
    Ok(())
}

/// Refused by the API server: what people read in their terminal.
#[tokio::test]
async fn bad_input_is_refused_where_it_is_applied() -> Result<()> {
    let world = world("input").await?;
    let job = json!({"image": "x"});
    let cases = [
        (
            "no trading workloads",
            system(&world, "bad", json!({"workloads": [{"kind": "Deployment", "name": "bot", "role": "Supporting"}]})),
            "The TradingSystem \"bad\" is invalid: spec: Invalid value: workloads needs at least one entry with role: Trading, which is what a halt stops",
        ),
        (
            "an action with two transports",
            system(&world, "bad", venue(&world, "/cancelOrders/0/job", job)),
            "The TradingSystem \"bad\" is invalid: spec.venues[0].cancelOrders[0]: Invalid value: an action has exactly one transport: give either http or job",
        ),
        (
            "an action without a transport",
            system(&world, "bad", venue(&world, "/cancelOrders", json!([{}]))),
            "The TradingSystem \"bad\" is invalid: spec.venues[0].cancelOrders[0]: Invalid value: an action has exactly one transport: give either http or job",
        ),
        (
            "a url without a scheme",
            system(&world, "bad", venue(&world, "/cancelOrders/0/http/url", "broker.example/v2/orders".into())),
            "The TradingSystem \"bad\" is invalid: spec.venues[0].cancelOrders[0].http: Invalid value: url must start with https:// or http://, for example https://paper-api.alpaca.markets/v2/orders",
        ),
        (
            "a read that changes something",
            system(&world, "bad", venue(&world, "/openOrders/0/http/method", "DELETE".into())),
            "The TradingSystem \"bad\" is invalid: spec.venues[0].openOrders[0]: Invalid value: a read changes nothing: write method: GET, or POST where the source is asked that way",
        ),
        (
            "a check that changes something",
            system(
                &world,
                "bad",
                json!({"checks": [{"name": "up", "group": "data", "http": {"request": {"method": "PUT", "url": "https://broker.example/"}}}]}),
            ),
            "The TradingSystem \"bad\" is invalid: spec.checks[0].http: Invalid value: a check changes nothing: write method: GET, or POST where the source is asked that way",
        ),
        (
            "a duration in words",
            system(&world, "bad", json!({"haltPolicy": {"closeDeadline": "5 minutes"}})),
            "The TradingSystem \"bad\" is invalid: spec.haltPolicy.closeDeadline: Invalid value: \"5 minutes\": a duration is written as 500ms, 90s, 15m or 1h30m, and at most ten years long",
        ),
        (
            "an unknown field",
            system(&world, "bad", json!({"workload": []})),
            "Error from server (BadRequest): error when creating \"STDIN\": TradingSystem in version \"v1alpha1\" cannot be handled as a TradingSystem: strict decoding error: unknown field \"spec.workload\"",
        ),
        (
            "an unknown field of a halt",
            halt("bad", json!({"order": {"cancel": "All"}})),
            "Error from server (BadRequest): error when creating \"STDIN\": TradingHalt in version \"v1alpha1\" cannot be handled as a TradingHalt: strict decoding error: unknown field \"spec.order\"",
        ),
        (
            "a workload with name and labels",
            system(
                &world,
                "bad",
                json!({"workloads": [{"kind": "Deployment", "name": "bot", "matchLabels": {"a": "b"}, "role": "Trading"}]}),
            ),
            "The TradingSystem \"bad\" is invalid: spec.workloads[0]: Invalid value: name one workload with name, or several with matchLabels",
        ),
        (
            "a kind that is not built in, without its group",
            system(&world, "bad", json!({"workloads": [{"kind": "Rollout", "name": "bot", "role": "Trading"}]})),
            "The TradingSystem \"bad\" is invalid: spec.workloads[0]: Invalid value: kind is Deployment, StatefulSet, CronJob or DaemonSet, without apiVersion; or another one that the charts list in scalableKinds, with its apiVersion",
        ),
        (
            "a reason with a line break",
            halt("bad", json!({"reason": "prices\nare stale"})),
            "The TradingHalt \"bad\" is invalid: spec.reason: Invalid value: \"prices\\nare stale\": the reason is one line, because people read it where the latch refuses something",
        ),
        (
            "a halt of one system and of several",
            halt("bad", json!({"systemSelector": {}})),
            "The TradingHalt \"bad\" is invalid: spec: Invalid value: a TradingHalt has one of systemRef and systemSelector: write systemRef: {name: <a TradingSystem>} to halt one system, systemSelector: {matchLabels: {<label>: <value>}} to halt several, or systemSelector: {} to halt every TradingSystem of the namespace",
        ),
        (
            "a halt of nothing",
            halt("bad", json!({"systemRef": null})),
            "The TradingHalt \"bad\" is invalid: spec: Invalid value: a TradingHalt has one of systemRef and systemSelector: write systemRef: {name: <a TradingSystem>} to halt one system, systemSelector: {matchLabels: {<label>: <value>}} to halt several, or systemSelector: {} to halt every TradingSystem of the namespace",
        ),
        (
            "a requirement on labels that says nothing",
            halt(
                "bad",
                json!({"systemRef": null, "systemSelector": {"matchExpressions": [{"key": "desk", "operator": "In"}]}}),
            ),
            "The TradingHalt \"bad\" is invalid: spec.systemSelector.matchExpressions[0]: Invalid value: values go with the operators In and NotIn, and are needed there: write {key: desk, operator: In, values: [fx]} or {key: desk, operator: Exists}",
        ),
        (
            "a halt of several systems with a name that is too long",
            halt(&"x".repeat(64), json!({"systemRef": null, "systemSelector": {}})),
            "The TradingHalt \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\" is invalid: <nil>: Invalid value: the name of a TradingHalt with a systemSelector has at most 63 characters, because the halts it makes carry it as a label",
        ),
        (
            "no reason",
            halt("bad", json!({"reason": ""})),
            "The TradingHalt \"bad\" is invalid: spec.reason: Invalid value: \"\": spec.reason in body should be at least 1 chars long",
        ),
        (
            "in the name of somebody else",
            halt("bad", json!({"requestedBy": "somebody"})),
            "Error from server (Forbidden): error when creating \"STDIN\": tradinghalts.standfast.dev \"bad\" is forbidden: ValidatingAdmissionPolicy 'standfast-requester' with binding 'standfast-requester' denied request: spec.requestedBy must be the user who creates the object: admin",
        ),
        (
            "an action that does not exist",
            halt("bad", json!({"positions": {"action": "Close"}})),
            "The TradingHalt \"bad\" is invalid: \n* spec.positions.action: Unsupported value: \"Close\": supported values: \"Keep\", \"CloseAll\", \"CloseMatching\", \"ReduceTo\"\n* <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
        ),
        (
            "a selection without its parameters",
            halt("bad", json!({"positions": {"action": "CloseMatching"}})),
            "The TradingHalt \"bad\" is invalid: spec.positions: Invalid value: closeMatching goes with action: CloseMatching, and is needed there: write closeMatching: {unrealizedLossBelowPercent: \"10\"} or closeMatching: {heldLongerThan: 168h}",
        ),
        (
            "parameters of another action",
            halt("bad", json!({"positions": {"action": "CloseAll", "reduceTo": {"exposurePercent": "50"}}})),
            "The TradingHalt \"bad\" is invalid: spec.positions: Invalid value: reduceTo goes with action: ReduceTo, and is needed there: write reduceTo: {exposurePercent: \"50\"}",
        ),
        (
            "parameters without an action",
            halt("bad", json!({"positions": {"closeMatching": {"heldLongerThan": "168h"}}})),
            "The TradingHalt \"bad\" is invalid: spec.positions: Invalid value: closeMatching goes with action: CloseMatching, and is needed there: write closeMatching: {unrealizedLossBelowPercent: \"10\"} or closeMatching: {heldLongerThan: 168h}",
        ),
        (
            "a selection of everything",
            halt("bad", json!({"positions": {"action": "CloseMatching", "closeMatching": {}}})),
            "The TradingHalt \"bad\" is invalid: spec.positions.closeMatching: Invalid value: closeMatching needs at least one of unrealizedLossBelowPercent and heldLongerThan; to close everything write action: CloseAll",
        ),
        (
            "a loss with a sign",
            halt(
                "bad",
                json!({"positions": {"action": "CloseMatching", "closeMatching": {"unrealizedLossBelowPercent": "-10"}}}),
            ),
            "The TradingHalt \"bad\" is invalid: spec.positions.closeMatching.unrealizedLossBelowPercent: Invalid value: \"-10\": unrealizedLossBelowPercent is a loss in percent, written in quotes and without a sign, from \"0\" to \"100\": \"10\" closes what is below -10 %",
        ),
        (
            "a loss of more than everything",
            halt(
                "bad",
                json!({"positions": {"action": "CloseMatching", "closeMatching": {"unrealizedLossBelowPercent": "100.1"}}}),
            ),
            "The TradingHalt \"bad\" is invalid: spec.positions.closeMatching.unrealizedLossBelowPercent: Invalid value: \"100.1\": unrealizedLossBelowPercent is a loss in percent, written in quotes and without a sign, from \"0\" to \"100\": \"10\" closes what is below -10 %",
        ),
        (
            "an age of zero",
            halt("bad", json!({"positions": {"action": "CloseMatching", "closeMatching": {"heldLongerThan": "0s"}}})),
            "The TradingHalt \"bad\" is invalid: spec.positions.closeMatching.heldLongerThan: Invalid value: \"0s\": heldLongerThan is longer than zero, for example 168h; to close everything write action: CloseAll",
        ),
        (
            "a fraction for a percentage",
            halt("bad", json!({"positions": {"action": "ReduceTo", "reduceTo": {"exposurePercent": "0.5"}}})),
            "The TradingHalt \"bad\" is invalid: spec.positions.reduceTo.exposurePercent: Invalid value: \"0.5\": exposurePercent is in percent of equity, written in quotes, from \"1\" to \"1000\": \"50\" is a half; to close everything write action: CloseAll",
        ),
        (
            "a step of nothing",
            system(&world, "bad", venue(&world, "/quantityStep", "0.00".into())),
            "The TradingSystem \"bad\" is invalid: spec.venues[0].quantityStep: Invalid value: \"0.00\": quantityStep is a positive decimal number in quotes, such as \"1\" or \"0.001\"",
        ),
        (
            "an equity from nowhere",
            system(&world, "bad", venue(&world, "/equity", json!({"http": {"url": "https://broker.example/account"}}))),
            "The TradingSystem \"bad\" is invalid: spec.venues[0].equity: Invalid value: path is missing: the JSONPath of the number in the answer, for example $.equity",
        ),
    ];
    let mut wrong = vec![];
    for (what, object, expected) in cases {
        let (done, said) = apply(&world, &object).await?;
        if done || said != expected {
            wrong.push(format!("{what}: {said}"));
        }
    }
    assert_eq!(wrong.join("\n"), "");
    Ok(())
}

/// What is made of objects that others name is not known when they are applied: the status tells it.
#[tokio::test]
async fn what_does_not_exist_is_told_in_the_status() -> Result<()> {
    let world = world("names").await?;
    let namespace = world.namespace.clone();
    world.bot("bot", 1).await?;
    let service =
        json!({"metadata": {"name": "bot-api"}, "spec": {"selector": {"app": "bot"}, "ports": [{"port": 8080}]}});
    world.create::<Service>(service).await?;
    let _operator = world.operator().await?;
    let secret = "/cancelOrders/0/http/auth/headers/0/secretKeyRef";
    let reads = format!("http://bot-api.{namespace}.svc:8080/orders");
    let systems = [
        (
            "no-match",
            json!({"workloads": [{"kind": "Deployment", "matchLabels": {"fleet": "x"}, "role": "Trading"}]}),
            "no Deployment in namespace NAMESPACE has the labels fleet=x: there are bot",
        ),
        (
            "no-secret",
            venue(&world, secret, json!({"name": "typo", "key": "key-id"})),
            "Secret NAMESPACE/typo does not exist: create it, or correct its name (spec.venues[alpaca].cancelOrders[0])",
        ),
        (
            "no-key",
            venue(&world, secret, json!({"name": "alpaca", "key": "typo"})),
            "Secret NAMESPACE/alpaca has no key typo: add it, or correct the key (spec.venues[alpaca].cancelOrders[0])",
        ),
        (
            "reads",
            venue(&world, "/openOrders/0/http/url", reads.into()),
            "Service NAMESPACE/bot-api leads to pods of Deployment bot, which a halt stops: call the venue itself, or a Supporting workload (spec.venues[alpaca].openOrders[0])",
        ),
    ];
    let mut wrong = vec![];
    for (name, patch, expected) in systems {
        let (done, said) = apply(&world, &system(&world, name, patch)).await?;
        assert!(done, "{said}");
        let status = world
            .system_until(name, "problems are told", |s| {
                s.conditions.iter().any(|c| c.type_ == "Prepared" && c.status == "False" && c.reason != "NotAllKnown")
                    && s.problems
                        .iter()
                        .any(|p| !["SharedWorkload", "EndpointUnreachable"].contains(&p.reason.as_str()))
            })
            .await?;
        let told: Vec<_> = status.problems.iter().map(|p| p.message.replace(&namespace, "NAMESPACE")).collect();
        if !told.iter().any(|t| t == expected) {
            wrong.push(format!("{name}: {}", told.join(" | ")));
        }
        world.api::<TradingSystem>().delete(name, &Default::default()).await?;
    }

    let (done, said) =
        apply(&world, &system(&world, "system", json!({"haltPolicy": {"verifyInterval": "100ms"}}))).await?;
    assert!(done, "{said}");
    let (done, said) = apply(&world, &halt("unknown", json!({"systemRef": {"name": "typo"}}))).await?;
    assert!(done, "{said}");
    let told = |h: &standfast_crds::v1alpha1::TradingHaltStatus| {
        condition(&h.conditions, "Halted").is_some_and(|c| c.reason == "SystemNotFound")
    };
    let status = world.halt_until("unknown", "told", told).await?;
    let text = condition(&status.conditions, "Halted").context("no Halted")?.message.replace(&namespace, "NAMESPACE");
    assert_eq!(text, "TradingSystem typo not found in namespace NAMESPACE: there are system");

    let failed = async |name: &str, of: &str| {
        let (done, said) = apply(&world, &resume(name, of)).await?;
        anyhow::ensure!(done, "{said}");
        let resume = world.resume_in(name, ResumePhase::Failed).await?;
        let conditions = resume.status.map(|s| s.conditions).unwrap_or_default();
        let text = condition(&conditions, "Completed").map(|c| c.message.replace(&namespace, "NAMESPACE"));
        text.context("no Completed")
    };
    assert_eq!(failed("none", "typo").await?, "there is no TradingHalt typo in namespace NAMESPACE: none holds");
    let (done, said) = apply(&world, &halt("stale", json!({}))).await?;
    assert!(done, "{said}");
    world.halted("stale").await?;
    let (done, said) = apply(&world, &resume("go-on", "stale")).await?;
    assert!(done, "{said}");
    world.halt_until("stale", "released", |s| s.phase == HaltPhase::Released).await?;
    assert_eq!(failed("again", "stale").await?, "TradingHalt stale was already released by TradingResume go-on");
    assert_eq!(wrong.join("\n"), "");
    Ok(())
}

/// What may not change says so, and what to do instead.
#[tokio::test]
async fn halts_and_resumes_do_not_change() -> Result<()> {
    let world = world("change").await?;
    for object in [halt("stale", json!({})), resume("go-on", "stale")] {
        let (done, said) = apply(&world, &object).await?;
        assert!(done, "{said}");
    }
    let halted = world.patch::<TradingHalt>("stale", json!({"spec": {"reason": "other"}})).await.expect_err("refused");
    let text =
        "a TradingHalt is immutable: to escalate, create a second one; to resume trading, create a TradingResume";
    assert!(halted.to_string().contains(text), "{halted}");
    let resumed = world
        .patch::<TradingResume>("go-on", json!({"spec": {"haltRef": {"name": "other"}}}))
        .await
        .expect_err("refused");
    let text = "only paused and abort of a TradingResume may change: create another one instead";
    assert!(resumed.to_string().contains(text), "{resumed}");
    Ok(())
}
