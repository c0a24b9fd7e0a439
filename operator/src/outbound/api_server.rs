//! Where the Kubernetes API server is, so that nobody can have it called.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client, api::ListParams};
use tokio::time::{interval, timeout};

use super::{connect::Resolve, guard::Guard};

/// How often the API server's own addresses are read: control-plane nodes come and go.
const INTERVAL: Duration = Duration::from_secs(60);
/// The longest that it may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// The EndpointSlices of the API server's service, in the namespace `default`.
const SLICES: &str = "kubernetes.io/service-name=kubernetes";

/// The addresses of the API server: what the environment says, where the client's configuration leads, and the service
/// `kubernetes.default`. Names that do not resolve are left out.
pub async fn addresses(config: &kube::Config, cluster_domain: &str, resolver: &dyn Resolve) -> Vec<SocketAddr> {
    let url = &config.cluster_url;
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 });
    let mut hosts = vec![
        (url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned(), port),
        (format!("kubernetes.default.svc.{cluster_domain}."), 443),
    ];
    if let Ok(host) = std::env::var("KUBERNETES_SERVICE_HOST") {
        let port = std::env::var("KUBERNETES_SERVICE_PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(443);
        hosts.push((host, port));
    }
    let mut found = Vec::new();
    for (host, port) in hosts {
        let ips = match host.parse() {
            Ok(ip) => vec![ip],
            Err(_) => resolver.resolve("", &host).await.unwrap_or_default(),
        };
        found.extend(ips.into_iter().map(|ip| SocketAddr::new(ip, port)));
    }
    found.sort();
    found.dedup();
    found
}

/// Keeps a guard informed of the addresses that the API server itself listens at, behind its service.
pub struct Endpoints {
    client: Client,
    guard: Arc<Guard>,
    failing: bool,
}

impl Endpoints {
    /// Reads with `client`, and tells `guard`.
    pub fn new(client: Client, guard: Arc<Guard>) -> Self {
        Self { client, guard, failing: false }
    }

    /// Reads them once. Where that fails, the guard goes by what it was told before.
    pub async fn refresh(&mut self) {
        match read(&self.client).await {
            Ok(endpoints) => {
                self.guard.api_server_listens_at(endpoints);
                self.failing = false;
            }
            // Told once, until it works again.
            Err(_) if self.failing => {}
            Err(error) => {
                tracing::warn!(
                    error,
                    "the EndpointSlices of the Service default/kubernetes could not be read: of the API server's \
                     addresses, only those known before are kept from being called; let the operator's ServiceAccount \
                     list endpointslices in the namespace default, as the chart's Role does"
                );
                self.failing = true;
            }
        }
    }

    /// Reads them again and again, for ever.
    pub async fn keep(mut self) {
        let mut interval = interval(INTERVAL);
        // The first one is due at once.
        interval.tick().await;
        loop {
            interval.tick().await;
            self.refresh().await;
        }
    }
}

async fn read(client: &Client) -> Result<Vec<SocketAddr>, String> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let slices = match timeout(DEADLINE, api.list(&ListParams::default().labels(SLICES))).await {
        Ok(Ok(slices)) => slices.items,
        Ok(Err(kube::Error::Api(status))) => return Err(status.message),
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("no answer within {DEADLINE:?}")),
    };
    let found: Vec<_> = slices.iter().flat_map(listening).collect();
    if found.is_empty() { Err("they hold no address".into()) } else { Ok(found) }
}

/// All addresses of a slice, ready or not.
fn listening(slice: &EndpointSlice) -> Vec<SocketAddr> {
    let addresses = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
    let ips: Vec<_> = addresses.filter_map(|ip| ip.parse().ok()).collect();
    let ports = slice.ports.iter().flatten().filter_map(|port| u16::try_from(port.port?).ok());
    ports.flat_map(|port| ips.iter().map(move |ip| SocketAddr::new(*ip, port))).collect()
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Mutex};

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tower::service_fn;

    use super::*;
    use crate::outbound::{
        fakes::{After, Names, Server, get, ok, transport_of},
        guard::GuardConfig,
        {CallError, Transport},
    };

    async fn found(url: &str) -> Vec<String> {
        let config = kube::Config::new(url.parse().unwrap());
        let names = Names::of(&[
            ("api.example", &[&["192.0.2.1", "2001:db8::1"]]),
            ("kubernetes.default.svc.cluster.local", &[&["10.96.0.1"]]),
        ]);
        addresses(&config, "cluster.local", &*names).await.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn finds_all_of_them() {
        assert_eq!(found("https://api.example:6443").await, ["10.96.0.1:443", "192.0.2.1:6443", "[2001:db8::1]:6443"]);
        assert_eq!(found("https://[::1]:6443").await, ["10.96.0.1:443", "[::1]:6443"]);
        assert_eq!(found("http://gone.example").await, ["10.96.0.1:443"]);
    }

    fn slice(port: u16, ips: &[&str]) -> Value {
        let endpoints: Vec<_> =
            ips.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": false}})).collect();
        json!({"metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": "IPv4", "ports": [{"name": "https", "port": port}], "endpoints": endpoints})
    }

    /// An API server that answers a list of its own EndpointSlices with what stands there.
    fn api(answer: &Arc<Mutex<(u16, Value)>>) -> Client {
        let answer = Arc::clone(answer);
        let service = service_fn(move |request: Request<Body>| {
            let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
            assert_eq!((request.method().as_str(), request.uri().path()), ("GET", path));
            assert!(request.uri().query().is_some_and(|q| q.contains("service-name%3Dkubernetes")), "{request:?}");
            let (status, body) = answer.lock().unwrap().clone();
            let body = Body::from(body.to_string().into_bytes());
            async move { Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap()) }
        });
        Client::new(service, "default")
    }

    fn list(items: &[Value]) -> (u16, Value) {
        (200, json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "metadata": {}, "items": items}))
    }

    /// Through names of services of the own namespace too: whoever may write their EndpointSlices chooses where they lead.
    #[tokio::test]
    async fn its_own_addresses_are_not_called() {
        let [server, other] =
            [Server::start(ok("[]"), After::KeepOpen).await, Server::start(ok("[]"), After::KeepOpen).await];
        let addresses = [slice(server.port, &["127.0.0.1"]), slice(6443, &["172.18.0.2", "172.18.0.3"])];
        let answer = Arc::new(Mutex::new(list(&addresses)));
        let allow_cidrs = vec!["127.0.0.0/8".parse().unwrap()];
        let guard = Arc::new(Guard::new(GuardConfig { allow_cidrs, ..GuardConfig::default() }));
        let (here, there) = ("here.trading.svc.cluster.local", "there.trading.svc.cluster.local");
        let names = Names::of(&[(here, &[&["127.0.0.1"]]), (there, &[&["172.18.0.3"]])]);
        let transport = transport_of(Arc::clone(&guard), names);
        let refused = async |url: String| match transport.send(get(url)).await {
            Err(CallError::Refused(why)) => Some(why),
            answer => answer.map(|_| None).unwrap(),
        };
        let here = |server: &Server| format!("http://here.trading.svc:{}/", server.port);
        let mut endpoints = Endpoints::new(api(&answer), guard);
        endpoints.refresh().await;
        let why = "there.trading.svc leads to 172.18.0.3, which is the Kubernetes API server";
        assert_eq!(refused("http://there.trading.svc/".into()).await.as_deref(), Some(why));
        let why = "here.trading.svc leads to 127.0.0.1, which is the Kubernetes API server";
        assert_eq!(refused(here(&server)).await.as_deref(), Some(why));
        assert_eq!(refused(here(&other)).await, None);
        // What cannot be read changes nothing.
        let failure = json!({"kind": "Status", "status": "Failure", "message": "forbidden", "code": 403});
        for wrong in [(403, failure), list(&[]), list(&[slice(6443, &[])])] {
            *answer.lock().unwrap() = wrong;
            endpoints.refresh().await;
            assert_eq!(refused(here(&server)).await.as_deref(), Some(why));
        }
        *answer.lock().unwrap() = list(&[slice(other.port, &["127.0.0.1"])]);
        endpoints.refresh().await;
        assert_eq!(refused(here(&server)).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_read_again_every_minute() {
        let answer = Arc::new(Mutex::new(list(&[slice(6443, &["172.18.0.2"])])));
        let guard = Arc::new(Guard::new(GuardConfig::default()));
        let (_, target) = guard.target("trading", "https://a.trading.svc/").unwrap();
        let refused = || guard.check_address(&target, "172.18.0.2:6443".parse().unwrap()).is_err();
        tokio::spawn(Endpoints::new(api(&answer), Arc::clone(&guard)).keep());
        assert!(!refused());
        tokio::time::sleep(INTERVAL + Duration::from_secs(1)).await;
        assert!(refused());
        *answer.lock().unwrap() = list(&[slice(6443, &["172.18.0.9"])]);
        tokio::time::sleep(INTERVAL).await;
        assert!(!refused());
    }
}
