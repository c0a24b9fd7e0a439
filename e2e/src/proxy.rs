//! What stands between an operator that runs as a process and the world, so that its calls can be recorded and go wrong
//! like those of one in this process ([`crate::faults`]).

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, StatusCode, header};
use kube::Client;
use standfast_operator::outbound::{Call, Transport};
use tokio::{net::TcpListener, task::JoinSet};

use crate::{faults::Layers, world::http_transport};

/// The longest body that is passed on, in bytes.
const BODY_LIMIT: usize = 8 << 20;
/// The operator's own limits are shorter.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The layers of the process that is alive: a process that is started after it has others.
#[derive(Clone)]
pub struct Living(Arc<Mutex<Layers>>);

impl Living {
    /// The first process has these.
    pub fn new(layers: Layers) -> Self {
        Self(Arc::new(Mutex::new(layers)))
    }

    /// The next one has these.
    pub fn replace(&self, layers: Layers) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = layers;
    }

    fn layers(&self) -> Layers {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Stands before an API server, as its administrator; gives its own address. Calls that change something are recorded.
/// Reads and watches, the lease and Events pass.
pub async fn api_server(tasks: &mut JoinSet<()>, client: Client, living: Living) -> Result<String> {
    serve(tasks, move |request| {
        let (client, living) = (client.clone(), living.clone());
        async move {
            let (mut head, body) = request.into_parts();
            let body = to_bytes(body, BODY_LIMIT).await?;
            let path = head.uri.path();
            let plain = head.method == Method::GET || path.contains("/leases") || path.ends_with("/events");
            head.headers = passed_on(&head.headers);
            head.uri = head.uri.path_and_query().map_or("/", |p| p.as_str()).parse()?;
            let client = if plain { client } else { living.layers().client(client) };
            let answer = client.send(Request::from_parts(head, kube::client::Body::from(body.to_vec()))).await?;
            let (mut head, body) = answer.into_parts();
            head.headers = passed_on(&head.headers);
            Ok(Response::from_parts(head, Body::new(body)))
        }
    })
    .await
}

/// Stands before an HTTP server at `target`; gives its own address. Every call is recorded.
pub async fn http(tasks: &mut JoinSet<()>, target: String, living: Living) -> Result<String> {
    let inner = http_transport()?;
    serve(tasks, move |request| {
        let (target, living, inner) = (target.clone(), living.clone(), Arc::clone(&inner));
        async move {
            let (head, body) = request.into_parts();
            let body = to_bytes(body, BODY_LIMIT).await?;
            let call = Call {
                namespace: "default".into(),
                method: head.method,
                url: format!("{target}{}", head.uri),
                headers: passed_on(&head.headers)
                    .into_iter()
                    .filter_map(|(n, v)| n.map(|n| (n, v)))
                    // The transport sets its own.
                    .filter(|(n, _)| *n != header::ACCEPT_ENCODING && *n != header::CONTENT_TYPE)
                    .collect(),
                body: Some(body).filter(|b| !b.is_empty()),
                signing: None,
                timeout: TIMEOUT,
            };
            let transport: Arc<dyn Transport> = living.layers().transport(inner);
            let reply = transport.send(call).await?;
            let json = [(header::CONTENT_TYPE, "application/json")];
            Ok((StatusCode::from_u16(reply.status)?, json, reply.body).into_response())
        }
    })
    .await
}

/// Serves on a port of loopback. A call that fails here has no answer, like one that the network lost.
async fn serve<F>(
    tasks: &mut JoinSet<()>,
    pass: impl Fn(Request) -> F + Clone + Send + Sync + 'static,
) -> Result<String>
where
    F: Future<Output = Result<Response>> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let app = Router::new().fallback(async move |request: Request| match pass(request).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(error = format!("{error:#}"), "a call did not pass the proxy");
            std::future::pending().await
        }
    });
    tasks.spawn(async move { drop(axum::serve(listener, app).await) });
    Ok(url)
}

/// Headers without those that speak of one connection only.
fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for name in [header::HOST, header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH] {
        headers.remove(name);
    }
    headers
}
