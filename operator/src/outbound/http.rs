//! The real [`Transport`]: HTTP/1.1 with a pool of warm connections of its own, so that it is always known whether a
//! request left the process.
//!
//! A request that a kept connection did not take, because the peer had closed it, goes out on a new one; nothing else
//! is ever repeated. Connections are kept for each namespace apart.

use std::{
    collections::HashMap,
    fmt,
    io::{self, Read},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, Uri,
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT},
};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit},
    time::{Instant, timeout, timeout_at},
};
use url::Url;

use super::{BODY_LIMIT, Call, CallError, Reply, Transport, connect::Connector, guard::Target};

/// How long an unused connection is kept.
const IDLE: Duration = Duration::from_secs(90);
/// How long a connection waits for a call after [`Transport::warm`], if the other side lets it.
pub const WARM: Duration = Duration::from_secs(45);
/// Unused connections kept for one host of one namespace.
const IDLE_PER_HOST: usize = 16;
/// Namespaces whose state is kept before unused ones are forgotten.
const NAMESPACES: usize = 256;
/// An answer longer than this, in bytes, as it came or decompressed, takes one of the places for long answers.
const LONG: usize = 256 << 10;
/// Long answers that are there at once, altogether and for one namespace: they bound the memory.
const LONG_ANSWERS: (usize, usize) = (8, 2);
/// The longest head of an answer, in bytes.
const HEAD_LIMIT: usize = 32 << 10;
/// What the operator calls itself.
const AGENT: &str = concat!("standfast/", env!("CARGO_PKG_VERSION"));

/// Headers that belong to the connection or to the transport, and not to a request's author.
const REFUSED_HEADERS: &[&str] = &[
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

type Sender = SendRequest<Full<Bytes>>;
type Key = (bool, String, u16);

/// A connection that waits for a request.
struct Idle {
    sender: Sender,
    since: Instant,
}

impl Idle {
    fn now(sender: Sender) -> Self {
        Self { sender, since: Instant::now() }
    }
}

/// A place for a long answer: one of those of its namespace, and one of all.
type Place = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// A long answer in its place.
struct Long {
    body: Vec<u8>,
    _place: Place,
}

impl AsRef<[u8]> for Long {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// What is kept for a namespace.
struct Tenant {
    slots: Semaphore,
    long: Arc<Semaphore>,
    idle: Mutex<HashMap<Key, Vec<Idle>>>,
}

/// Sends calls over HTTP/1.1.
pub struct HttpTransport {
    connector: Connector,
    slots: Semaphore,
    long: Arc<Semaphore>,
    per_namespace: usize,
    tenants: Mutex<HashMap<String, Arc<Tenant>>>,
}

impl fmt::Debug for HttpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpTransport").field("connector", &self.connector).finish_non_exhaustive()
    }
}

impl HttpTransport {
    /// A transport that makes at most `concurrency` calls at once, and at most half as many for one namespace.
    pub fn new(connector: Connector, concurrency: usize) -> Self {
        let concurrency = concurrency.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            connector,
            slots: Semaphore::new(concurrency),
            long: Arc::new(Semaphore::new(LONG_ANSWERS.0)),
            per_namespace: concurrency.div_ceil(2),
            tenants: Mutex::default(),
        }
    }

    fn tenant(&self, namespace: &str) -> Arc<Tenant> {
        let mut tenants = lock(&self.tenants);
        if let Some(tenant) = tenants.get(namespace) {
            return Arc::clone(tenant);
        }
        if tenants.len() >= NAMESPACES {
            tenants.retain(|_, tenant| Arc::strong_count(tenant) > 1);
        }
        let tenant = Arc::new(Tenant {
            slots: Semaphore::new(self.per_namespace),
            long: Arc::new(Semaphore::new(LONG_ANSWERS.1)),
            idle: Mutex::default(),
        });
        tenants.insert(namespace.to_owned(), Arc::clone(&tenant));
        tenant
    }

    /// A new connection, ready for a request.
    async fn open(&self, target: &Target) -> Result<Sender, CallError> {
        let connection = self.connector.connect(target).await?;
        let (sender, driver) = http1::Builder::new()
            .max_header_size(HEAD_LIMIT)
            .max_buf_size(HEAD_LIMIT)
            .handshake(TokioIo::new(connection))
            .await
            .map_err(|e| CallError::NotSent(format!("no connection to {}: {e}", target.host)))?;
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "an outbound connection ended");
            }
        });
        Ok(sender)
    }

    /// Hands the request to a connection, to a kept one if one takes it.
    async fn dispatch(
        &self,
        tenant: &Tenant,
        target: &Target,
        mut request: Request<Full<Bytes>>,
        deadline: Instant,
        limit: Duration,
    ) -> Result<(Sender, Response<Incoming>), CallError> {
        let host = &target.host;
        loop {
            let (mut sender, kept) = match take(tenant, &key(target)).await {
                Some(idle) => (idle.sender, true),
                None => {
                    let opened = timeout_at(deadline, self.open(target)).await;
                    (opened.map_err(|_| not_connected(target, limit))??, false)
                }
            };
            let answer = timeout_at(deadline, sender.try_send_request(request)).await.map_err(|_| {
                CallError::UnknownOutcome(format!(
                    "{host} did not answer within {limit:?}; the request may have had an effect"
                ))
            })?;
            let mut error = match answer {
                Ok(response) => return Ok((sender, response)),
                Err(error) => error,
            };
            // A request that comes back was not written.
            request = match error.take_message() {
                Some(request) if kept => request,
                Some(_) => {
                    return Err(CallError::NotSent(format!(
                        "{host} closed the connection before the request was sent: {}",
                        error.error()
                    )));
                }
                None => {
                    return Err(CallError::UnknownOutcome(format!(
                        "no answer from {host}: {}; the request may have had an effect",
                        error.error()
                    )));
                }
            };
        }
    }
}

#[async_trait]
impl Transport for HttpTransport {
    async fn send(&self, call: Call) -> Result<Reply, CallError> {
        let limit = call.timeout;
        let deadline = Instant::now() + limit;
        let (url, target) = self.connector.guard().target(&call.namespace, &call.url).map_err(CallError::Refused)?;
        let request = build(&call, &url, &target).map_err(CallError::Refused)?;
        let tenant = self.tenant(&call.namespace);
        let _slots = timeout_at(deadline, self.slots(&tenant)).await.map_err(|_| {
            CallError::NotSent(format!("{} was not called within {limit:?}: too many calls at once", target.host))
        })??;

        let (sender, response) = self.dispatch(&tenant, &target, request, deadline, limit).await?;
        let (head, body) = response.into_parts();
        let unknown = |why: String| {
            CallError::UnknownOutcome(format!(
                "{} answered {}, but {why}; the request may have had an effect",
                target.host,
                head.status.as_u16()
            ))
        };
        let late = |_| unknown(format!("the answer was not whole within {limit:?}"));
        let (body, place) = timeout_at(deadline, self.collect(&tenant, body)).await.map_err(late)?.map_err(unknown)?;
        keep(&tenant, key(&target), Idle::now(sender));
        let (body, place) = timeout_at(deadline, self.decode(&tenant, &head.headers, body, place))
            .await
            .map_err(late)?
            .map_err(unknown)?;
        let body = match place {
            Some(place) => Bytes::from_owner(Long { body, _place: place }),
            None => body.into(),
        };
        Ok(Reply { status: head.status.as_u16(), body })
    }

    async fn probe(&self, namespace: &str, url: &str, limit: Duration) -> Result<(), CallError> {
        let (_, target) = self.connector.guard().target(namespace, url).map_err(CallError::Refused)?;
        let sender = timeout(limit, self.open(&target)).await.map_err(|_| not_connected(&target, limit))??;
        let tenant = self.tenant(namespace);
        keep(&tenant, key(&target), Idle::now(sender));
        Ok(())
    }

    async fn warm(&self, namespace: &str, url: &str, limit: Duration) -> Result<(), CallError> {
        let (_, target) = self.connector.guard().target(namespace, url).map_err(CallError::Refused)?;
        let tenant = self.tenant(namespace);
        if let Some(idle) = take(&tenant, &key(&target)).await {
            let lasts = idle.since.elapsed() + WARM <= IDLE;
            // To be looked at is not to be used: it grows old, and a new one shows whether the name still leads there.
            keep(&tenant, key(&target), idle);
            if lasts {
                return Ok(());
            }
        }
        self.probe(namespace, url, limit).await
    }
}

impl HttpTransport {
    /// The whole body as it came, at most [`BODY_LIMIT`].
    async fn collect(&self, tenant: &Tenant, mut body: Incoming) -> Result<(Vec<u8>, Option<Place>), String> {
        let mut whole = Vec::new();
        let mut place = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| format!("the answer broke off: {e}"))?;
            let Ok(data) = frame.into_data() else { continue };
            let length = whole.len() + data.len();
            if length > BODY_LIMIT {
                return Err(too_long());
            }
            if length > LONG && place.is_none() {
                place = Some(self.place(tenant).await?);
            }
            whole.extend_from_slice(&data);
        }
        Ok((whole, place))
    }

    /// Decompresses, at most [`BODY_LIMIT`].
    async fn decode(
        &self,
        tenant: &Tenant,
        headers: &HeaderMap,
        body: Vec<u8>,
        mut place: Option<Place>,
    ) -> Result<(Vec<u8>, Option<Place>), String> {
        if body.is_empty() || !is_compressed(headers)? {
            return Ok((body, place));
        }
        let broken = |e: io::Error| format!("its compression is broken: {e}");
        let mut decoder = MultiGzDecoder::new(&body[..]);
        let mut plain = Vec::new();
        (&mut decoder).take(LONG as u64 + 1).read_to_end(&mut plain).map_err(broken)?;
        if plain.len() > LONG && place.is_none() {
            place = Some(self.place(tenant).await?);
        }
        decoder.take((BODY_LIMIT + 1 - plain.len()) as u64).read_to_end(&mut plain).map_err(broken)?;
        if plain.len() > BODY_LIMIT { Err(too_long()) } else { Ok((plain, place)) }
    }

    async fn place(&self, tenant: &Tenant) -> Result<Place, String> {
        let stopping = |_| "the operator is stopping".to_owned();
        let own = Arc::clone(&tenant.long).acquire_owned().await.map_err(stopping)?;
        Ok((own, Arc::clone(&self.long).acquire_owned().await.map_err(stopping)?))
    }

    async fn slots<'a>(&'a self, tenant: &'a Tenant) -> Result<(SemaphorePermit<'a>, SemaphorePermit<'a>), CallError> {
        let closed = |_| CallError::NotSent("the operator is stopping".into());
        // Its own slot first, so that a namespace that waits for one of its own holds none of the others'.
        let own = tenant.slots.acquire().await.map_err(closed)?;
        Ok((own, self.slots.acquire().await.map_err(closed)?))
    }
}

fn not_connected(target: &Target, limit: Duration) -> CallError {
    CallError::NotSent(format!(
        "no connection to {} port {} within {limit:?}; check that it is up and that network policies let the operator \
         reach it",
        target.host, target.port
    ))
}

fn key(target: &Target) -> Key {
    (target.tls, target.host.clone(), target.port)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kept connection that was used last, if one is still open.
async fn take(tenant: &Tenant, key: &Key) -> Option<Idle> {
    loop {
        let mut idle = lock(&tenant.idle).get_mut(key)?.pop()?;
        if idle.since.elapsed() > IDLE || idle.sender.is_closed() {
            continue;
        }
        // Ready at once, unless the peer is closing it or misbehaved after its last answer.
        if let Ok(Ok(())) = timeout(Duration::from_millis(50), idle.sender.ready()).await {
            return Some(idle);
        }
    }
}

fn keep(tenant: &Tenant, key: Key, unused: Idle) {
    if unused.sender.is_closed() {
        return;
    }
    let mut idle = lock(&tenant.idle);
    idle.retain(|_, kept| {
        kept.retain(|idle| idle.since.elapsed() <= IDLE && !idle.sender.is_closed());
        !kept.is_empty()
    });
    let kept = idle.entry(key).or_default();
    if kept.len() >= IDLE_PER_HOST {
        kept.remove(0);
    }
    kept.push(unused);
}

/// Builds the request as it is written. Checks the headers, wherever they came from.
fn build(call: &Call, url: &Url, target: &Target) -> Result<Request<Full<Bytes>>, String> {
    let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let uri: Uri = path.parse().map_err(|e| format!("the path of the url on {} cannot be sent: {e}", target.host))?;
    let host = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let host = HeaderValue::from_str(host).map_err(|e| format!("the host in the url cannot be sent: {e}"))?;
    let mut headers = HeaderMap::with_capacity(call.headers.len() + 5);
    headers.insert(HOST, host);
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    for (name, value) in &call.headers {
        if REFUSED_HEADERS.contains(&name.as_str()) || name.as_str().starts_with("proxy-") {
            return Err(format!("the header {name} may not be set: remove it from the request to {}", target.host));
        }
        headers.append(name, value.clone());
    }
    for (name, value) in [(USER_AGENT, AGENT), (ACCEPT, "application/json, */*;q=0.5")] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    if call.body.is_some() {
        headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
    } else if matches!(call.method, Method::POST | Method::PUT | Method::PATCH) {
        // Some servers refuse these without a length.
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    let mut request = Request::new(Full::new(call.body.clone().unwrap_or_default()));
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

fn too_long() -> String {
    format!("the answer is longer than {} MiB: ask for smaller pages", BODY_LIMIT >> 20)
}

/// Whether a body is in the only compression that was asked for.
fn is_compressed(headers: &HeaderMap) -> Result<bool, String> {
    let encodings: Vec<String> = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_ascii_lowercase())
        .filter(|value| !value.is_empty() && value != "identity")
        .collect();
    match encodings.as_slice() {
        [] => Ok(false),
        [encoding] if encoding == "gzip" || encoding == "x-gzip" => Ok(true),
        _ => Err("it is compressed in a way that was not asked for".into()),
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
