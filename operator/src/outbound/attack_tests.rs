//! What somebody may try who may write TradingSystems, and what each attempt is told: one table of every bound. All of it
//! goes through the layer of Secrets and the real transport, to real servers.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{Request, Response};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{CheckState, OrdersRead, shorten};
use tower::service_fn;

use super::{
    BODY_LIMIT,
    connect::Connector,
    fakes::{After, Names, PATIENCE, Server, gzipped, ok},
    guard::{Guard, GuardConfig},
    http::HttpTransport,
};
use crate::{
    calls::Caller,
    metrics::Metrics,
    system::{
        checks::{Asker, Checker, Told, evaluate},
        sql::Databases,
    },
};

/// A cluster with Secrets of several uses.
fn cluster() -> Client {
    let service = service_fn(|request: Request<Body>| async move {
        let name = request.uri().path().strip_prefix("/api/v1/namespaces/trading/secrets/").unwrap_or_default();
        let (used, hosts) = match name {
            "venue" => ("true", "venue.test"),
            "elsewhere" => ("true", "other.example"),
            // No label says that Standfast may use it.
            "database" => ("false", "venue.test"),
            _ => ("", ""),
        };
        let (status, body) = if used.is_empty() {
            (404, json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}))
        } else {
            let metadata = json!({
                "name": name, "namespace": "trading",
                "labels": {"standfast.dev/use": used}, "annotations": {"standfast.dev/allowed-hosts": hosts},
            });
            // hunter2, and two lines.
            let data = json!({"token": "aHVudGVyMg==", "lines": "YQ0KaG9zdDogZXZpbA=="});
            (200, json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}))
        };
        let response = Response::builder().status(status).body(Body::from(body.to_string().into_bytes()));
        Ok::<_, Infallible>(response.unwrap())
    });
    Client::new(service, "default")
}

fn connector() -> Connector {
    let nets = |net: &str| vec![net.parse().unwrap()];
    let guard = Guard::new(GuardConfig {
        // Where the test's servers are, and nothing else.
        allow_cidrs: nets("127.0.0.0/8"),
        deny_cidrs: nets("198.51.100.0/24"),
        api_server: vec!["10.96.0.1:443".parse().unwrap()],
        ..GuardConfig::default()
    });
    guard.api_server_listens_at(vec!["203.0.113.6:6443".parse().unwrap()]);
    let names = Names::of(&[
        ("venue.test", &[&["127.0.0.1"]]),
        ("metadata.test", &[&["169.254.169.254"]]),
        ("mapped.test", &[&["::ffff:169.254.169.254"]]),
        ("api.test", &[&["10.96.0.1"]]),
        ("node.test", &[&["203.0.113.6"]]),
        ("loopback.test", &[&["::1"]]),
        ("link.test", &[&["fe80::1"]]),
        ("pod.test", &[&["10.1.2.3"]]),
        ("denied.test", &[&["198.51.100.7"]]),
        ("api.trading.svc.cluster.local", &[&["10.96.0.1"]]),
        ("alias.trading.svc.cluster.local", &[&["victim.other.svc.cluster.local", "10.1.2.3"]]),
    ]);
    Connector::new(Arc::new(guard), names, Vec::new()).unwrap()
}

fn caller() -> Caller {
    Caller::new(Arc::new(HttpTransport::new(connector(), 8)), cluster(), Metrics::new())
}

/// What is tried, as an entry of `openOrders`, and the exact answer.
struct Attack {
    bound: String,
    read: Value,
    told: String,
}

#[derive(Default)]
struct Table(Vec<Attack>);

impl Table {
    fn add(&mut self, bound: &str, read: Value, told: impl Into<String>) {
        self.0.push(Attack { bound: bound.into(), read, told: told.into() });
    }

    /// A request to this URL.
    fn url(&mut self, bound: &str, url: &str, told: &str) {
        self.add(bound, json!({"http": {"url": url}}), told);
    }
}

#[tokio::test]
async fn every_bound_holds() {
    let mut harmless = Server::start(ok("[]"), After::KeepOpen).await;
    let mut table = Table::default();
    addresses_and_names(&mut table);
    headers_and_secrets(&mut table, harmless.port);
    let mut redirecting = answers(&mut table).await;
    let caller = caller();
    let mut wrong = vec![];
    for Attack { bound, read, told } in table.0 {
        let read: OrdersRead = serde_json::from_value(read).unwrap();
        if let Some(http) = read.http.as_ref().filter(|http| http.timeout.is_some()) {
            // Connected before, so that it is the answer that is late.
            caller.transport().probe("trading", &http.url, PATIENCE).await.unwrap();
        }
        let answer = caller.read_orders("trading", &read).await;
        let said = answer.map_or_else(|error| error.to_string(), |orders| format!("{} orders", orders.count));
        if said != told {
            wrong.push(format!("{bound}:\n  said {said}\n  not  {told}"));
        }
    }
    assert_eq!(wrong.join("\n"), "");
    assert_eq!(harmless.requests(), Vec::<String>::new(), "nothing is sent that is refused");
    assert_eq!(redirecting.requests().len(), 1, "a redirect is an answer: nothing is asked a second time");

    let read = with_secret(harmless.port, "venue", "token");
    let orders = caller.read_orders("trading", &serde_json::from_value(read).unwrap()).await.unwrap();
    assert_eq!(orders.count, 0);
    assert!(harmless.request().await.contains("authorization: hunter2\r\n"), "what is allowed is sent");
}

/// The same bounds for checks by TCP and Prometheus: nothing but their state tells what is at an address.
#[tokio::test]
async fn every_bound_holds_for_checks() {
    let mut harmless = Server::start(ok("[]"), After::KeepOpen).await;
    let port = harmless.port;
    let databases = Databases::new(cluster(), connector(), vec![]).unwrap();
    let checker = Checker::new(caller(), databases, cluster(), crate::kinds::Kinds::default());
    let owner = OwnerReference::default();
    let asker = Asker { namespace: "trading", system: &owner, gate: false };
    let unless = "which is refused unless the operator's allowCIDRs opens it";
    let refused = |host: &str, ip: &str, what: &str| format!("{host} leads to {ip}, {what}, {unless}");
    let alias = "alias.trading.svc is only another name for \"victim.other.svc.cluster.local\": Services of the type \
                 ExternalName are not followed; put the name that is meant into the url";
    let hosts = [
        ("metadata.test", refused("metadata.test", "169.254.169.254", "a cloud metadata address")),
        ("mapped.test", refused("mapped.test", "::ffff:169.254.169.254", "a cloud metadata address")),
        ("loopback.test", refused("loopback.test", "::1", "a loopback address")),
        ("link.test", refused("link.test", "fe80::1", "a link-local address")),
        ("pod.test", refused("pod.test", "10.1.2.3", "a private address")),
        ("api.test", "api.test leads to 10.96.0.1, which is the Kubernetes API server".into()),
        ("node.test", "node.test leads to 203.0.113.6, which is the Kubernetes API server".into()),
        ("denied.test", "denied.test leads to 198.51.100.7, which denyCIDRs refuses".into()),
        ("kubernetes.default.svc", "kubernetes.default.svc is the Kubernetes API server".into()),
        (
            "prometheus.monitoring.svc",
            "prometheus.monitoring.svc is not a service of namespace trading: only those may be called".into(),
        ),
        ("alias.trading.svc", alias.into()),
        ("victim", "\"victim\" is not a whole host name: write victim.trading.svc for a service".into()),
        (
            "10.1.2.3",
            "10.1.2.3 is an address: name the host instead (addresses are refused unless allowCIDRs opens them)".into(),
        ),
    ];
    let tcp = |host: &str, port: u16| json!({"host": host, "port": port});
    let query = |url: String| json!({"url": url, "query": "up", "expect": {"equals": 1}});
    let mut cases = vec![];
    for (host, told) in &hosts {
        cases.push((json!({"tcp": tcp(host, port)}), told.clone()));
        let told = format!("GET {host}: {told}");
        cases.push((json!({"prometheus": query(format!("http://{host}:{port}"))}), told));
    }
    let mut smuggled = query(format!("http://venue.test:{port}"));
    smuggled["headers"] = json!([{"name": "Host", "value": "evil.example"}]);
    let told = "GET venue.test: the header host may not be set: remove it from the request to venue.test";
    cases.push((json!({"prometheus": smuggled}), told.into()));
    let mut secret = query(format!("http://venue.test:{port}"));
    let reference = json!({"name": "elsewhere", "key": "token"});
    secret["auth"] = json!({"headers": [{"name": "Authorization", "secretKeyRef": reference}]});
    let told = format!(
        "Secret trading/elsewhere may not be sent to venue.test:{port}: to allow it, run: kubectl -n trading annotate \
         secret elsewhere --overwrite standfast.dev/allowed-hosts=other.example,venue.test"
    );
    cases.push((json!({"prometheus": secret}), told));
    let mut wrong = vec![];
    for (mut check, told) in cases {
        (check["name"], check["group"]) = ("attack".into(), "data".into());
        let shown = check.to_string();
        let answer = evaluate(&checker, &asker, &serde_json::from_value(check).unwrap()).await;
        let expected = Told::Answer(CheckState::Unknown, shorten(&told));
        if answer != expected {
            wrong.push(format!("{shown}:\n  said {answer:?}\n  not  {expected:?}"));
        }
    }
    assert_eq!(wrong.join("\n"), "");
    assert_eq!((harmless.requests(), harmless.connections()), (vec![], 0), "nothing is connected to that is refused");

    // What is allowed is asked: a port, that sends nothing, and a server, that is none of Prometheus.
    for (question, state, told) in [
        (json!({"tcp": tcp("venue.test", port)}), CheckState::Passing, "accepts connections"),
        (json!({"tcp": tcp("venue.test", closed_port())}), CheckState::Failing, "no connection to venue.test port"),
        (
            json!({"prometheus": query(format!("http://venue.test:{port}"))}),
            CheckState::Unknown,
            "it is no answer of the Prometheus API",
        ),
    ] {
        let mut check = question;
        (check["name"], check["group"]) = ("well".into(), "data".into());
        let answer = evaluate(&checker, &asker, &serde_json::from_value(check).unwrap()).await;
        let Told::Answer(found, text) = answer else { panic!("{answer:?}") };
        assert!(found == state && text.contains(told), "{found:?} {text}");
    }
    assert!(harmless.request().await.starts_with("GET /api/v1/query?query=up HTTP/1.1\r\n"));
}

/// A port that nobody listens at.
fn closed_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What may be called at all.
fn addresses_and_names(table: &mut Table) {
    let unless = "which is refused unless the operator's allowCIDRs opens it";
    for (bound, host, ip, what) in [
        ("a name that leads to a metadata address", "metadata.test", "169.254.169.254", "a cloud metadata address"),
        ("the same in the form of IPv6", "mapped.test", "::ffff:169.254.169.254", "a cloud metadata address"),
        ("a name that leads to loopback", "loopback.test", "::1", "a loopback address"),
        ("a name that leads to the operator's own link", "link.test", "fe80::1", "a link-local address"),
        ("a name that leads to a pod of another namespace", "pod.test", "10.1.2.3", "a private address"),
    ] {
        table.url(bound, &format!("http://{host}/"), &format!("GET {host}: {host} leads to {ip}, {what}, {unless}"));
    }
    let api = "which is the Kubernetes API server";
    for (bound, host, ip, why) in [
        ("a name that resolves to the API server", "api.test", "10.96.0.1", api),
        ("a name that resolves to a control-plane node", "node.test", "203.0.113.6", api),
        ("an own service that leads to the API server", "api.trading.svc", "10.96.0.1", api),
        ("a range that the site refuses", "denied.test", "198.51.100.7", "which denyCIDRs refuses"),
    ] {
        table.url(bound, &format!("https://{host}/"), &format!("GET {host}: {host} leads to {ip}, {why}"));
    }
    table.url(
        "the API server by its name",
        "https://kubernetes.default.svc/",
        "GET kubernetes.default.svc: kubernetes.default.svc is the Kubernetes API server",
    );
    table.url(
        "a service of another namespace",
        "http://victim.other.svc/",
        "GET victim.other.svc: victim.other.svc is not a service of namespace trading: only those may be called",
    );
    table.url(
        "an own service that is another's (ExternalName)",
        "http://alias.trading.svc/",
        "GET alias.trading.svc: alias.trading.svc is only another name for \"victim.other.svc.cluster.local\": Services \
         of the type ExternalName are not followed; put the name that is meant into the url",
    );
    table.url(
        "a name that the operator's own pod would complete",
        "http://victim/",
        "GET victim: \"victim\" is not a whole host name: write victim.trading.svc for a service",
    );
    let address = |ip| {
        format!(
            "GET {ip}: {ip} is an address: name the host instead (addresses are refused unless allowCIDRs opens them)"
        )
    };
    table.url("an address", "http://10.1.2.3/", &address("10.1.2.3"));
    table.url("an address that does not look like one", "http://0xa9fea9fe/", &address("169.254.169.254"));
    table.url("another scheme", "file:///etc/passwd", "file: only http and https are spoken");
    table.url(
        "a host that looks like another",
        "http://venue.test@169.254.169.254/",
        "the url holds a user or a password: use auth.headers with a Secret",
    );
    table.url(
        "a host that others read otherwise",
        "http://venue.test\\@169.254.169.254/",
        "the url holds a control character or a backslash",
    );
    table.url(
        "a host that the venue's answer fills in",
        "http://{symbol}.test/",
        "a placeholder stands in the host of the url: only the path and the query may have them",
    );
}

/// A read with a header whose value comes from a Secret.
fn with_secret(port: u16, secret: &str, key: &str) -> Value {
    let header = json!({"name": "Authorization", "secretKeyRef": {"name": secret, "key": key}});
    json!({"http": {"url": format!("http://venue.test:{port}/"), "auth": {"headers": [header]}}})
}

/// What may be sent, and to whom.
fn headers_and_secrets(table: &mut Table, port: u16) {
    let url = format!("http://venue.test:{port}/");
    for name in [
        "Accept-Encoding",
        "Connection",
        "Content-Length",
        "Expect",
        "Host",
        "HTTP2-Settings",
        "Keep-Alive",
        "Proxy-Authorization",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
    ] {
        let told = format!(
            "GET venue.test: the header {} may not be set: remove it from the request to venue.test",
            name.to_lowercase()
        );
        let plain = json!({"http": {"url": url, "headers": [{"name": name, "value": "x"}]}});
        table.add(&format!("header smuggling: {name}"), plain, &told);
        let secret = json!({"name": name, "secretKeyRef": {"name": "venue", "key": "token"}});
        let secret = json!({"http": {"url": url, "auth": {"headers": [secret]}}});
        table.add(&format!("header smuggling: {name} from a Secret"), secret, &told);
    }
    let header = |name: &str, value: &str| json!({"http": {"url": url, "headers": [{"name": name, "value": value}]}});
    table.add(
        "header smuggling: a line break in a value",
        header("X-Plain", "a\r\nHost: evil.example"),
        "the value of header X-Plain cannot be sent",
    );
    table.add(
        "header smuggling: a line break in a name",
        header("X-Plain: a\r\nHost", "evil.example"),
        "\"X-Plain: a\\r\\nHost\" is not the name of a header",
    );
    let auth = |secret, key| with_secret(port, secret, key);
    table.add(
        "header smuggling: a line break in a Secret",
        auth("venue", "lines"),
        "the value of lines in Secret trading/venue cannot be sent in a header: it holds a line break or a control \
         character",
    );
    table.add(
        "a Secret of another use",
        auth("database", "token"),
        "Secret trading/database is not meant for Standfast: if it is, run: kubectl -n trading label secret database \
         standfast.dev/use=true",
    );
    table.add(
        "a Secret for another host",
        auth("elsewhere", "token"),
        format!(
            "Secret trading/elsewhere may not be sent to venue.test:{port}: to allow it, run: kubectl -n trading \
             annotate secret elsewhere --overwrite standfast.dev/allowed-hosts=other.example,venue.test"
        ),
    );
    table.add(
        "a Secret that is not there",
        auth("guess", "token"),
        "Secret trading/guess does not exist: create it, or correct its name",
    );
}

/// What an answer may be. The first server is returned: it redirects.
async fn answers(table: &mut Table) -> Server {
    const HEAD: &str = "HTTP/1.1 200 OK\r\n";
    const MOMENT: Duration = Duration::from_millis(5);
    let mut servers = vec![];
    let mut add = async |bound: &str, answer: Vec<u8>, after: After, told: &str| {
        let server = Server::start(answer, after).await;
        let slow = told.contains("within 500ms");
        // A POST is not sent twice, which would take twice as long.
        let (method, timeout) = if slow { ("POST", "500ms") } else { ("GET", "60s") };
        let http = json!({"method": method, "url": format!("http://venue.test:{}/", server.port), "timeout": timeout});
        let paged = told.contains("next page");
        let (items, next) = if paged { ("$.orders[*]", Some("$.next")) } else { ("$[*]", None) };
        table.add(bound, json!({"http": http, "items": items, "next": next}), format!("{method} venue.test: {told}"));
        servers.push(server);
    };
    let broken = |why: &str| format!("venue.test answered 200, but {why}; the request may have had an effect");
    let moved = |location: &str| format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
    add(
        "a redirect to a metadata address",
        moved("http://169.254.169.254/latest/meta-data/").into(),
        After::KeepOpen,
        "redirected (302): put the final address in the url",
    )
    .await;
    add(
        "a next page on another host",
        ok(r#"{"orders": [], "next": "http://169.254.169.254/latest/meta-data/"}"#).into(),
        After::KeepOpen,
        "the next page is on another host than venue.test: it is not followed",
    )
    .await;
    add(
        "a huge body",
        format!("{HEAD}content-length: 99999999999\r\n\r\n").into(),
        After::Forever(&[b' '; 1 << 16], Duration::ZERO),
        &broken("the answer is longer than 4 MiB: ask for smaller pages"),
    )
    .await;
    add(
        "a huge body, compressed",
        gzipped(&vec![b' '; 16 * BODY_LIMIT]),
        After::KeepOpen,
        &broken("the answer is longer than 4 MiB: ask for smaller pages"),
    )
    .await;
    add(
        "a compression that was not asked for",
        format!("{HEAD}content-encoding: br\r\ncontent-length: 2\r\n\r\n[]").into(),
        After::KeepOpen,
        &broken("it is compressed in a way that was not asked for"),
    )
    .await;
    add(
        "a body that is compressed twice",
        format!("{HEAD}content-encoding: gzip, gzip\r\ncontent-length: 2\r\n\r\n[]").into(),
        After::KeepOpen,
        &broken("it is compressed in a way that was not asked for"),
    )
    .await;
    add(
        "an endless head",
        HEAD.into(),
        After::Forever(b"x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n", Duration::ZERO),
        "no answer from venue.test: message head is too large; the request may have had an effect",
    )
    .await;
    add(
        "silence",
        vec![],
        After::KeepOpen,
        "venue.test did not answer within 500ms; the request may have had an effect",
    )
    .await;
    add(
        "an answer that never ends",
        format!("{HEAD}transfer-encoding: chunked\r\n\r\n").into(),
        After::Forever(b"1\r\n \r\n", MOMENT),
        &broken("the answer was not whole within 500ms"),
    )
    .await;
    add(
        "many small objects",
        ok(&format!("[{}{{}}]", "{},".repeat(50_000))).into(),
        After::KeepOpen,
        "the answer holds 50001 objects and 100003 values: ask for smaller pages",
    )
    .await;
    add(
        "a text for the status to be filled with",
        ok(&json!([{"id": "x".repeat(257)}]).to_string()).into(),
        After::KeepOpen,
        "fields.id: what stands at $.id is longer than 256 characters",
    )
    .await;
    servers.swap_remove(0)
}
