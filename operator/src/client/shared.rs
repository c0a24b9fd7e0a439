//! A client whose calls share a few HTTP/2 connections.
//!
//! kube's own client speaks HTTP/1.1 and opens a connection for each call that finds no idle one. When 500 calls start
//! together, most of the time goes into 500 TLS handshakes.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, Version, uri::Scheme};
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{Client as Connections, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Config, Error,
    client::{Body, ConfigExt},
};
use tokio::sync::OnceCell;
use tower::{BoxError, ServiceBuilder, service_fn};

use super::{CONNECT_TIMEOUT, ConnectError, never_sent};

/// How many: several are quicker than one, and the loss of one costs fewer calls.
pub(super) const CONNECTIONS: usize = 4;
/// How often a connection is tried out, idle or not, and how long the server may take to answer that.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// What the connections may speak.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speak {
    Http2,
    Any,
}

/// A client that shares [`CONNECTIONS`] connections if the server speaks HTTP/2, and else uses as many as there are
/// calls. Which of the two is found out before the first call, and again after the server could not be reached.
pub(super) fn connect(config: &Config) -> Result<Client, ConnectError> {
    // Without TLS nothing is negotiated, and kube knows how to use a proxy.
    if config.cluster_url.scheme() != Some(&Scheme::HTTPS) || config.proxy_url.is_some() {
        return super::connect(config);
    }
    let shared = Arc::new(Shared {
        any: client(config, Speak::Any)?,
        http2: (0..CONNECTIONS).map(|_| client(config, Speak::Http2)).collect::<Result<_, _>>()?,
        next: AtomicUsize::new(0),
        speaks_http2: Mutex::default(),
    });
    let service = service_fn(move |request: Request<Body>| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, BoxError>(shared.send(request).await?) }
    });
    Ok(Client::new(service, config.default_namespace.clone()))
}

struct Shared {
    any: Client,
    http2: Vec<Client>,
    next: AtomicUsize,
    speaks_http2: Mutex<Arc<OnceCell<bool>>>,
}

impl Shared {
    async fn send(&self, request: Request<Body>) -> kube::Result<Response<Body>> {
        let known = self.known(|known| Arc::clone(known));
        if !*known.get_or_try_init(|| self.ask()).await? {
            return self.any.send(request).await;
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.http2.len();
        let answer = self.http2[turn].send(request).await;
        if let Err(Error::Service(cause)) = &answer
            && never_sent(cause.as_ref())
        {
            self.known(|known| *known = Arc::default());
        }
        answer
    }

    /// Any answer will do, also that this is forbidden.
    async fn ask(&self) -> kube::Result<bool> {
        let request = Request::get("/version").body(Body::empty()).map_err(Error::HttpError)?;
        Ok(self.any.send(request).await?.version() == Version::HTTP_2)
    }

    fn known<T>(&self, look: impl FnOnce(&mut Arc<OnceCell<bool>>) -> T) -> T {
        look(&mut self.speaks_http2.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// kube's client, but for what it speaks. It has no read time-out: pings find a connection that is dead.
fn client(config: &Config, speak: Speak) -> Result<Client, ConnectError> {
    let unusable = |error: Error| ConnectError(error.to_string());
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let mut tls =
        HttpsConnectorBuilder::new().with_tls_config(config.rustls_client_config().map_err(unusable)?).https_or_http();
    if let Some(name) = config.tls_server_name.clone() {
        let name = name.clone().try_into().map_err(|_| ConnectError(format!("{name:?} is not a server name")))?;
        tls = tls.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let tls = match speak {
        Speak::Http2 => tls.enable_http2().wrap_connector(tcp),
        Speak::Any => tls.enable_all_versions().wrap_connector(tcp),
    };
    let mut connector = TimeoutConnector::new(tls);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let connections = Connections::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        // Calls that come while the connection is being opened wait for it, instead of opening their own.
        .http2_only(speak == Speak::Http2)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .http2_keep_alive_while_idle(true)
        .build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(unusable)?)
        .layer(config.extra_headers_layer().map_err(unusable)?)
        .map_err(BoxError::from)
        .service(connections);
    Ok(Client::new(service, config.default_namespace.clone()))
}
