use std::convert::Infallible;

use http::{Method, Request, Response};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{api::ApiResource, client::Body};
use rstest::rstest;
use serde_json::json;
use standfast_crds::v1alpha1::TradingSystem;
use tower::{BoxError, service_fn};

use super::*;
use crate::{
    metrics::Metrics,
    outbound::{
        connect::{Connector, SystemResolver},
        fakes::{After, Names, Server, get, ok, pass, transport},
        guard::{Guard, GuardConfig},
        http::{HttpTransport, WARM},
    },
    system::{rounds::NEAR_INTERVAL, sql::Databases},
};

fn call(url: &str) -> Call {
    Call {
        namespace: "trading".into(),
        method: Method::GET,
        url: url.into(),
        headers: vec![],
        body: None,
        signing: None,
        timeout: DEADLINE,
    }
}

fn system() -> TradingSystem {
    serde_json::from_value(json!({
        "apiVersion": "standfast.dev/v1alpha1", "kind": "TradingSystem",
        "metadata": {"name": "bot", "namespace": "trading"},
        "spec": {
            "workloads": [
                {"kind": "Deployment", "name": "bot", "role": "Trading"},
                {"kind": "CronJob", "name": "rebalance", "role": "Trading"},
            ],
            "applicationHalt": {"request": {"url": "http://bot.trading.svc/halt"}},
            "venues": [{
                "name": "alpaca",
                "cancelOrders": [{"http": {"method": "DELETE", "url": "https://venue.example/v2/orders", "auth": {"headers": [
                    {"name": "Authorization", "secretKeyRef": {"name": "alpaca", "key": "token"}},
                ]}}}],
                "openOrders": [{"http": {"url": "https://venue.example/v2/orders?status=open"}}, {"job": {"image": "bot"}}],
                "allowTrading": [{"http": {"url": "https://later.example/allow"}}],
            }],
        },
    }))
    .unwrap()
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[rstest]
#[case(Some(Ok(true)), None)]
#[case(Some(Ok(false)), Some(("NamespaceNotLabelled", "kubectl label namespace trading standfast.dev/latch=enabled")))]
#[case(None, Some(("NamespaceExcluded", "another one")))]
fn the_namespace_is_judged(#[case] labelled: Option<Result<bool, String>>, #[case] expected: Option<(&str, &str)>) {
    let survey = namespace_survey("trading", labelled);
    assert_eq!(survey.problems.first().map(|p| p.reason.as_str()), expected.map(|e| e.0));
    assert!(expected.is_none_or(|(_, end)| survey.problems[0].message.ends_with(end)), "{survey:?}");
}

#[test]
fn what_could_not_be_read_is_unknown_and_no_problem() {
    let survey = namespace_survey("trading", Some(Err("no answer".into())));
    assert_eq!((survey.problems.len(), survey.unknown.len()), (0, 1));
    let survey = guardrail_survey(&GuardrailState::Unknown("no answer".into()));
    assert_eq!((survey.problems.len(), survey.unknown.len()), (0, 1));
    let survey = guardrail_survey(&GuardrailState::Missing(vec!["ValidatingAdmissionPolicy/standfast-latch".into()]));
    assert_eq!(survey.problems[0].reason, "GuardrailsMissing");
    assert_eq!(guardrail_survey(&GuardrailState::Intact), Survey::default());
}

#[test]
fn a_secret_is_missed_once_and_each_host_is_probed_once() {
    let system = system();
    let requests = spec::requests(&system.spec);
    let refused = || Err(CallError::Refused("Secret trading/alpaca does not exist: create it".into()));
    let calls: Vec<Prepared<'_>> = requests
        .iter()
        .map(|(path, request)| {
            let made = if path.contains("cancelOrders") || path.contains("allowTrading") {
                refused()
            } else {
                Ok(call(&request.http.url))
            };
            (path.as_str(), *request, made)
        })
        .collect();
    let survey = credential_survey(&calls);
    assert_eq!(survey.problems.len(), 1);
    assert_eq!(
        survey.problems[0].message,
        "Secret trading/alpaca does not exist: create it (spec.venues[alpaca].allowTrading[0] and 1 more)"
    );
    let hosts = endpoints(&calls);
    let seen: Vec<_> = hosts.iter().map(|h| (h.url.as_str(), h.halting, h.needed_by.len())).collect();
    let orders = "https://venue.example/v2/orders?status=open";
    assert_eq!(seen, [("http://bot.trading.svc/halt", true, 0), (orders, true, 1)]);
    let down = || CallError::NotSent("no connection to venue.example".into());
    // The bot's own endpoint is best effort: a halted bot does not answer.
    assert_eq!(hosts[0].problem(down()), None);
    let problem = hosts[1].problem(down()).unwrap();
    assert_eq!(problem.reason, "EndpointUnreachable");
    assert_eq!(problem.message, "no connection to venue.example (spec.venues[alpaca].openOrders[0])");
}

/// A Kubernetes API that has nothing.
fn empty_cluster() -> Client {
    let service = service_fn(|_: Request<Body>| async {
        let none = json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404});
        Ok::<_, Infallible>(Response::builder().status(404).body(Body::from(none.to_string().into_bytes())).unwrap())
    });
    Client::new(service, "default")
}

/// What checks of `trading` are asked with: two names are known.
fn checker(client: &Client, caller: &Caller) -> Checker {
    let guard = Arc::new(Guard::new(GuardConfig::default()));
    let names = Names::of(&[("metrics.test", &[&["203.0.113.5"]]), ("metadata.test", &[&["169.254.169.254"]])]);
    let connector = Connector::new(guard, names, vec![]).unwrap();
    Checker::new(
        caller.clone(),
        Databases::new(client.clone(), connector, vec![]).unwrap(),
        client.clone(),
        Kinds::default(),
    )
}

#[tokio::test]
async fn checks_by_name_are_looked_at_before_they_are_needed() {
    let client = empty_cluster();
    let caller = Caller::new(Arc::new(transport()), client.clone(), Metrics::new());
    let (halts, checker) = (Arc::new(transport()), checker(&client, &caller));
    let surveyor = Surveyor::new(
        client.clone(),
        caller,
        halts,
        checker,
        Guardrails::new(client, &Kinds::default()),
        Kinds::default(),
    );
    let query = |name: &str, host: &str, auth: Value| {
        json!({"name": name, "group": "monitoring", "prometheus": {
            "url": format!("https://{host}"), "query": "up", "expect": {"equals": 1}, "auth": auth}})
    };
    let tcp = |name: &str, host: &str| json!({"name": name, "group": "data", "tcp": {"host": host, "port": 6379}});
    let secret = json!({"headers": [{"name": "Authorization", "secretKeyRef": {"name": "guess", "key": "token"}}]});
    let spec: TradingSystemSpec = serde_json::from_value(json!({"workloads": [], "checks": [
        tcp("well", "metrics.test"),
        query("well-too", "metrics.test", Value::Null),
        tcp("typo", "metrisc.test"),
        query("typo-too", "metrisc.test", Value::Null),
        tcp("elsewhere", "redis.other.svc"),
        tcp("metadata", "metadata.test"),
        query("secret", "metrics.test", secret),
    ]}))
    .unwrap();
    let survey = surveyor.checks("trading", &spec).await;
    assert_eq!(survey.unknown, Vec::<String>::new());
    let told: Vec<_> = survey.problems.iter().map(|p| format!("{}: {}", p.reason, p.message)).collect();
    assert_eq!(
        told,
        [
            "EndpointUnreachable: the name metrisc.test did not resolve: no such name; check the host in the url and DNS \
             (spec.checks[typo])",
            "EndpointUnreachable: the name metrisc.test did not resolve: no such name; check the host in the url and DNS \
             (spec.checks[typo-too])",
            "EndpointUnreachable: redis.other.svc is not a service of namespace trading: only those may be called \
             (spec.checks[elsewhere])",
            "EndpointUnreachable: metadata.test leads to 169.254.169.254, a cloud metadata address, which is refused \
             unless the operator's allowCIDRs opens it (spec.checks[metadata])",
            "CredentialMissing: Secret trading/guess does not exist: create it, or correct its name (spec.checks[secret])",
        ]
    );
}

#[tokio::test]
async fn what_a_halt_calls_is_kept_warm_for_halts() {
    let [venue, later] =
        [Server::start(ok("[]"), After::KeepOpen).await, Server::start(ok("[]"), After::KeepOpen).await];
    let url = |server: &Server| format!("http://venue.test:{}/", server.port);
    let spec: TradingSystemSpec = serde_json::from_value(json!({
        "workloads": [],
        "venues": [{
            "name": "venue",
            "openOrders": [{"http": {"url": url(&venue)}}],
            "allowTrading": [{"http": {"url": url(&later)}}],
        }],
    }))
    .unwrap();
    let client = empty_cluster();
    let mut made = 0;
    for looks in 1..=4 {
        let (halts, others) = (Arc::new(transport()), Arc::new(transport()));
        let caller = Caller::new(others.clone(), client.clone(), Metrics::new());
        let checker = checker(&client, &caller);
        let surveyor = Surveyor::new(
            client.clone(),
            caller,
            halts.clone(),
            checker,
            Guardrails::new(client.clone(), &Kinds::default()),
            Kinds::default(),
        );
        for _ in 0..looks {
            surveyor.near("trading", &spec).await;
            // Until the next look, and more.
            pass(NEAR_INTERVAL + DEADLINE).await;
        }
        // Every second look finds a connection that will do.
        made += usize::div_ceil(looks, 2);
        halts.send(get(url(&venue))).await.unwrap();
        others.send(get(url(&later))).await.unwrap();
        assert_eq!((venue.connections(), later.connections()), (made, made), "after {looks} looks");
        // Halts and others share none.
        made += 1;
        others.send(get(url(&venue))).await.unwrap();
        halts.send(get(url(&later))).await.unwrap();
        assert_eq!((venue.connections(), later.connections()), (made, made), "after {looks} looks");
    }
}

#[test]
fn connections_are_kept_until_the_next_look() {
    // The look itself, and one that had to wait for its turn.
    assert!(NEAR_INTERVAL + 2 * DEADLINE < WARM, "{WARM:?}");
}

#[test]
fn a_secret_that_could_not_be_read_is_unknown() {
    let system = system();
    let requests = spec::requests(&system.spec);
    let made = Err(CallError::NotSent("Secret trading/alpaca was not read within 5s".into()));
    let survey = credential_survey(&[("x", requests[0].1, made)]);
    assert_eq!((survey.problems.len(), survey.unknown.len()), (0, 1));
}

#[rstest]
#[case(&[("app", "bot")], true)]
#[case(&[("app", "bot"), ("tier", "trading")], true)]
#[case(&[("app", "gateway")], false)]
#[case(&[], false)]
fn reads_from_what_a_halt_stops_are_found(#[case] selector: &[(&str, &str)], #[case] found: bool) {
    let key = Key { namespace: "trading".into(), kind: WorkloadKind::Deployment, name: "bot".into() };
    let workloads = [(key, map(&[("app", "bot"), ("tier", "trading")]))];
    let paths = ["venues[alpaca].openOrders[0]".to_owned()];
    let problem = halted_source("trading", "bot", &map(selector), &workloads, &paths);
    assert_eq!(problem.is_some(), found);
    if let Some(problem) = problem {
        assert_eq!(problem.reason, "ReadsFromHaltedWorkload");
        assert!(problem.message.contains("Service trading/bot") && problem.message.contains("openOrders[0]"));
    }
}

#[rstest]
#[case(json!({"spec": {"template": {"metadata": {"labels": {"app": "bot"}}}}}))]
#[case(json!({"spec": {"jobTemplate": {"spec": {"template": {"metadata": {"labels": {"app": "bot"}}}}}}}))]
fn labels_of_pods_are_found(#[case] data: Value) {
    let mut object = DynamicObject::new("bot", &ApiResource::erase::<Deployment>(&()));
    object.data = data;
    assert_eq!(template_labels(&object), map(&[("app", "bot")]));
}

#[test]
fn who_sets_replicas_from_git_is_named() {
    let key = |name: &str| Key { namespace: "trading".into(), kind: WorkloadKind::Deployment, name: name.into() };
    let problem = git_problem("argocd-controller", &[key("a"), key("b")]);
    assert_eq!(problem.reason, "GitOpsConflict");
    assert!(problem.message.starts_with("argocd-controller sets the size of Deployment trading/a and 1 more:"));
}

#[rstest]
#[case("Secret trading/x does not exist: create it, or correct its name", "CredentialMissing")]
#[case("Job trading/standfast-trial (as a trial) may not be created: exceeded quota", "JobRefused")]
fn a_job_that_may_not_be_created_is_told(#[case] why: &str, #[case] reason: &str) {
    let problem = job_problem("venues[alpaca].cancelOrders[1]", why);
    assert_eq!(problem.reason, reason);
    assert_eq!(problem.message, format!("{why} (spec.venues[alpaca].cancelOrders[1])"));
}

/// An API server with these workloads, the last of which Argo CD applies.
fn workloads(count: usize) -> (Surveyor, Vec<View>) {
    let last = format!("/bot-{}", count - 1);
    let service = service_fn(move |request: Request<Body>| {
        let manager = if request.uri().path().ends_with(&last) { "argocd-controller" } else { "kubectl" };
        let fields = json!([{"manager": manager, "operation": "Apply", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]);
        let body =
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x", "managedFields": fields}});
        async move { Ok::<_, BoxError>(Response::new(Body::from(body.to_string().into_bytes()))) }
    });
    let client = Client::new(service, "trading");
    let guard = Arc::new(Guard::new(GuardConfig::default()));
    let connector = Connector::new(guard, Arc::new(SystemResolver::default()), vec![]).unwrap();
    let transport = Arc::new(HttpTransport::new(connector, 1));
    let caller = Caller::new(transport.clone(), client.clone(), Metrics::new());
    let view = |name: String| View {
        key: Key { namespace: "trading".into(), kind: WorkloadKind::Deployment, name },
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        replicas: 1,
        ready: 1,
        suspended: false,
        selector: None,
        match_labels: None,
    };
    let views = (0..count).map(|n| view(format!("bot-{n}"))).collect();
    let checker = checker(&client, &caller);
    (
        Surveyor::new(
            client.clone(),
            caller,
            transport,
            checker,
            Guardrails::new(client, &Kinds::default()),
            Kinds::default(),
        ),
        views,
    )
}

#[tokio::test]
async fn a_conflict_is_found_at_the_last_of_many_workloads() {
    let (surveyor, views) = workloads(1000);
    let survey = surveyor.objects("trading", &system().spec, &views).await;
    let found: Vec<_> = survey.problems.iter().map(|p| p.message.as_str()).collect();
    assert!(
        found.iter().any(|m| m.contains("argocd-controller sets the size of Deployment trading/bot-999")),
        "{found:?}"
    );
}

#[tokio::test]
async fn checks_that_only_halted_pods_answer_are_told_by_the_services_they_go_to() {
    let service = service_fn(|request: Request<Body>| {
        let path = request.uri().path().to_owned();
        let object = |kind: &str, spec: Value| {
            (200, json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "x"}, "spec": spec}))
        };
        let (code, body) = match path.rsplit('/').next().unwrap() {
            "bot" if path.contains("/deployments/") => {
                object("Deployment", json!({"template": {"metadata": {"labels": {"app": "bot", "tier": "trading"}}}}))
            }
            "bot" => object("Service", json!({"selector": {"tier": "trading"}})),
            "dashboard" => object("Service", json!({"selector": {"app": "dashboard"}})),
            "external" => object("Service", json!({})),
            _ => (404, json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404})),
        };
        let answer = Response::builder().status(code).body(Body::from(body.to_string().into_bytes())).unwrap();
        async move { Ok::<_, BoxError>(answer) }
    });
    let client = Client::new(service, "trading");
    let check = |name: &str, url: &str| -> Check {
        serde_json::from_value(json!({"name": name, "group": "trading", "http": {"request": {"url": url}}})).unwrap()
    };
    let checks = [
        check("z-own", "http://bot.trading.svc:8080/health"),
        check("own-too", "http://bot.trading/ready"),
        check("supporting", "http://dashboard.trading.svc/health"),
        check("no-selector", "http://external.trading.svc/health"),
        check("no-service", "http://nothing.trading.svc/health"),
        check("outside", "https://bot.example/health"),
        serde_json::from_value(
            json!({"name": "port", "group": "data", "tcp": {"host": "bot.trading.svc", "port": 80}}),
        )
        .unwrap(),
        serde_json::from_value(json!({"name": "series", "group": "data", "prometheus": {
            "url": "http://bot.trading.svc:9090", "query": "up", "expect": {"equals": 1}}}))
        .unwrap(),
    ];
    let key = |name: &str| Key { namespace: "trading".into(), kind: WorkloadKind::Deployment, name: name.into() };
    let answered = answered_by(&client, &Kinds::default(), "trading", &checks, &[key("bot"), key("deleted")]).await;
    assert_eq!(answered, Ok(["own-too", "port", "series", "z-own"].map(str::to_owned).to_vec()));
}
