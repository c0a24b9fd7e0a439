//! Requests of a TradingSystem, sent: secrets read, placeholders filled, answers classed.

use std::{collections::BTreeMap, collections::BTreeSet, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use jiff::Timestamp;
use standfast_crds::v1alpha1::{
    ActionState, HttpAuth, HttpMethod, HttpRequest, NumberRead, OrdersRead, PositionSummary, PositionsRead,
    SecretKeyRef, StateRead,
};
use url::Url;

use super::{
    Item, Order, Orders, Outcome, Positions, ReadError,
    document::{Document, Path, Scalar},
    expect,
    extract::{self, Kept, Page, Reader, order_reader, position_reader},
    secrets,
    signing::{self, Signed, Signer, Signing},
    template,
};
use crate::{
    metrics::{Counted, Metrics},
    outbound::{Call, CallError, Reply, Transport, guard},
};

/// How long a call may take if its request does not say.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a call may take, whatever its request says.
pub const TIMEOUT_LIMIT: Duration = Duration::from_secs(60);
/// Pages of one read that are followed.
const PAGES: usize = 50;
/// Orders or positions of one read at most, and the text in them, in bytes.
const ITEMS: usize = 50_000;
const TEXT: usize = 8 << 20;

/// A JSON answer.
struct Answer {
    document: Document,
    /// A long one keeps its place among the long ones: what was made of it is longer still.
    _body: Bytes,
}

/// Sends the requests of TradingSystems.
#[derive(Clone)]
pub struct Caller {
    transport: Arc<dyn Transport>,
    client: kube::Client,
    signer: Signer,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").finish_non_exhaustive()
    }
}

impl Caller {
    /// A caller that reads Secrets with `client` and sends with `transport`, and counts what it sends.
    pub fn new(transport: Arc<dyn Transport>, client: kube::Client, metrics: Metrics) -> Self {
        Self::signing_with(Signer::default(), transport, client, metrics)
    }

    /// The same, with numbers of signed requests that grow together with those of `signer`'s other users.
    pub fn signing_with(signer: Signer, transport: Arc<dyn Transport>, client: kube::Client, metrics: Metrics) -> Self {
        let counted = Arc::new(Counted { transport, metrics });
        Self { transport: Arc::new(Signed::new(counted, signer.clone())), client, signer }
    }

    /// What it signs requests with.
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// What calls are sent with.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// Makes a call of a request: secrets read, placeholders filled.
    pub async fn prepare(
        &self,
        namespace: &str,
        request: &HttpRequest,
        item: Option<&Item>,
    ) -> Result<Call, CallError> {
        let secrets = self.secrets(namespace, [request]).await;
        build(namespace, request, item, &secrets)
    }

    /// Makes calls of several requests, reading their Secrets all at once and each only once. The answers are in the
    /// order of `requests`.
    pub async fn prefetch(&self, namespace: &str, requests: &[&HttpRequest]) -> Vec<Result<Call, CallError>> {
        let secrets = self.secrets(namespace, requests.iter().copied()).await;
        requests.iter().map(|request| build(namespace, request, None, &secrets)).collect()
    }

    /// Makes one call for each item, reading Secrets once. The answers are in the order of `items`.
    pub async fn prepare_items(
        &self,
        namespace: &str,
        request: &HttpRequest,
        items: &[Item],
    ) -> Vec<Result<Call, CallError>> {
        let secrets = self.secrets(namespace, [request]).await;
        items.iter().map(|item| build(namespace, request, Some(item), &secrets)).collect()
    }

    /// Sends a call that changes something, once.
    pub async fn perform(&self, call: Call) -> Outcome {
        let what = describe(&call);
        match self.transport.send(call).await {
            Ok(reply) => judge(&what, &reply),
            Err(error) => failure(&what, &error),
        }
    }

    /// Prepares and performs.
    pub async fn act(&self, namespace: &str, request: &HttpRequest, item: Option<&Item>) -> Outcome {
        match self.prepare(namespace, request, item).await {
            Ok(call) => self.perform(call).await,
            Err(error) => failure(method(request.method).as_str(), &error),
        }
    }

    /// Asks a question. A GET that failed without an answer is repeated once.
    pub async fn ask(&self, namespace: &str, request: &HttpRequest) -> Result<Reply, CallError> {
        let call = self.prepare(namespace, request, None).await?;
        self.get(call).await
    }

    /// Whether the request could be sent now: its Secrets, and a connection. Sends nothing.
    pub async fn probe(&self, namespace: &str, request: &HttpRequest, item: Option<&Item>) -> Result<(), CallError> {
        let call = self.prepare(namespace, request, item).await?;
        self.transport.probe(namespace, &call.url, call.timeout).await
    }

    /// Reads open orders over HTTP, all pages of them.
    pub async fn read_orders(&self, namespace: &str, read: &OrdersRead) -> Result<Orders, ReadError> {
        let request = read.http.as_ref().ok_or_else(|| ReadError("this read of orders is a Job".into()))?;
        let reader = order_reader(read)?;
        Ok(match self.pages::<Order>(namespace, request, &reader).await? {
            Page::Count(count) => Orders { count, ..Orders::default() },
            Page::Items { items, .. } => Orders { count: items.len(), orders: items, listed: true },
        })
    }

    /// Reads open positions over HTTP, all pages of them.
    pub async fn read_positions(&self, namespace: &str, read: &PositionsRead) -> Result<Positions, ReadError> {
        let request = read.http.as_ref().ok_or_else(|| ReadError("this read of positions is a Job".into()))?;
        let reader = position_reader(read)?;
        Ok(match self.pages::<PositionSummary>(namespace, request, &reader).await? {
            Page::Count(count) => Positions { count, ..Positions::default() },
            Page::Items { items, .. } => Positions { count: items.len(), positions: items, listed: true },
        })
    }

    /// Asks for a JSON document.
    pub async fn read_document(&self, namespace: &str, http: &HttpRequest) -> Result<Document, ReadError> {
        let call = self.prepare(namespace, http, None).await.map_err(|e| ReadError(e.to_string()))?;
        Ok(self.document(call).await?.document)
    }

    /// Asks for one value.
    pub async fn read_value(&self, namespace: &str, http: &HttpRequest, path: &str) -> Result<Scalar, ReadError> {
        let path = Path::parse(path).map_err(|why| ReadError(format!("path: {why}")))?;
        let call = self.prepare(namespace, http, None).await.map_err(|e| ReadError(e.to_string()))?;
        let what = describe(&call);
        let found = scalar_at(&self.document(call).await?.document, &path);
        found.map_err(|why| ReadError(format!("{what}: {why}")))
    }

    /// Asks a question with the answer yes or no.
    pub async fn read_state(&self, namespace: &str, read: &StateRead) -> Result<bool, ReadError> {
        let path = Path::parse(&read.path).map_err(|why| ReadError(format!("path: {why}")))?;
        let call = self.prepare(namespace, &read.http, None).await.map_err(|e| ReadError(e.to_string()))?;
        let what = describe(&call);
        let about = |why: String| ReadError(format!("{what}: {why}"));
        let found = scalar_at(&self.document(call).await?.document, &path).map_err(about)?;
        expect::holds(&read.expect, &found, Timestamp::now()).map_err(|error| about(format!("{path}: {error}")))
    }

    /// Reads a number over HTTP, as it is written there.
    pub async fn read_number(&self, namespace: &str, read: &NumberRead) -> Result<String, ReadError> {
        let request = read.http.as_ref().ok_or_else(|| ReadError("this read of a number is a Job".into()))?;
        let path = extract::number_path(read)?;
        let call = self.prepare(namespace, request, None).await.map_err(|e| ReadError(e.to_string()))?;
        let what = describe(&call);
        let answer = self.document(call).await?;
        extract::number_at(&answer.document, &path).map_err(|why| ReadError(format!("{what}: {why}")))
    }

    async fn secrets<'a>(&self, namespace: &str, requests: impl IntoIterator<Item = &'a HttpRequest>) -> Secrets {
        let references =
            requests.into_iter().filter_map(|request| request.auth.as_ref()).flat_map(HttpAuth::secret_key_refs);
        let names = references.map(|reference| reference.name.clone()).collect();
        secrets::read_all(&self.client, namespace, names).await
    }

    /// Sends a call that only reads.
    async fn get(&self, call: Call) -> Result<Reply, CallError> {
        if call.method != Method::GET {
            return self.transport.send(call).await;
        }
        match self.transport.send(call.clone()).await {
            Err(CallError::NotSent(_) | CallError::UnknownOutcome(_)) => self.transport.send(call).await,
            other => other,
        }
    }

    /// The whole JSON answer to a call that only reads.
    async fn document(&self, call: Call) -> Result<Answer, ReadError> {
        let what = describe(&call);
        let about = |why: String| ReadError(format!("{what}: {why}"));
        let reply = self.get(call).await.map_err(|error| about(error.to_string()))?;
        match reply.status {
            // Accepted, partial and multi-status answers do not tell the whole.
            202 | 206 | 207 => Err(about(format!("the answer {} is not a whole one", reply.status))),
            200..=299 => {
                let document = Document::parse(&reply.body).map_err(about)?;
                Ok(Answer { document, _body: reply.body })
            }
            301 | 302 | 303 | 307 | 308 => {
                Err(about(format!("redirected ({}): put the final address in the url", reply.status)))
            }
            401 | 403 => Err(about(format!("refused ({}): check auth and the account's rights", reply.status))),
            status => Err(about(format!("answered {status}"))),
        }
    }

    async fn pages<T: Kept>(
        &self,
        namespace: &str,
        request: &HttpRequest,
        reader: &Reader<T>,
    ) -> Result<Page<T>, ReadError> {
        let mut call = self.prepare(namespace, request, None).await.map_err(|e| ReadError(e.to_string()))?;
        let what = describe(&call);
        let about = |why: String| ReadError(format!("{what}: {why}"));
        let mut url = Url::parse(&call.url).map_err(|e| about(e.to_string()))?;
        let mut seen = BTreeSet::from([call.url.clone()]);
        let (mut all, mut text) = (Vec::new(), 0);
        loop {
            let answer = self.document(call.clone()).await?;
            match reader.page(&answer.document).map_err(|error| about(error.to_string()))? {
                Page::Count(count) => return Ok(Page::Count(count)),
                Page::Items { items, next } => {
                    text += items.iter().map(Kept::bytes).sum::<usize>();
                    all.extend(items);
                    if all.len() > ITEMS {
                        return Err(about(format!("there are more than {ITEMS} items: let count name their number")));
                    }
                    if text > TEXT {
                        return Err(about(format!(
                            "the items hold more than {} MiB of text: let count name their number",
                            TEXT >> 20
                        )));
                    }
                    let Some(next) = next else { return Ok(Page::Items { items: all, next: None }) };
                    url = reader.next_url(&url, &next).map_err(|error| about(error.to_string()))?;
                }
            }
            call.url = url.to_string();
            if !seen.insert(call.url.clone()) {
                return Err(about("the next page is one that was read before: check next and nextParameter".into()));
            }
            if seen.len() > PAGES {
                return Err(about(format!("there are more than {PAGES} pages: ask for larger ones")));
            }
        }
    }
}

/// The value at `path` of a JSON answer.
pub fn value_at(reply: &Reply, path: &str) -> Result<Scalar, ReadError> {
    let path = Path::parse(path).map_err(|why| ReadError(format!("path: {why}")))?;
    scalar_at(&Document::parse(&reply.body).map_err(ReadError)?, &path).map_err(ReadError)
}

fn scalar_at(document: &Document, path: &Path) -> Result<Scalar, String> {
    match document.root().select(path).as_slice() {
        [node] => node.scalar().ok_or_else(|| format!("{path} selects an object or a list: it must select one value")),
        [] => Err(format!("the answer has nothing at {path}")),
        more => Err(format!("{path} selects {} values: it must select one", more.len())),
    }
}

type Secrets = BTreeMap<String, Result<secrets::Read, CallError>>;

fn method(method: HttpMethod) -> Method {
    match method {
        HttpMethod::Get => Method::GET,
        HttpMethod::Post => Method::POST,
        HttpMethod::Put => Method::PUT,
        HttpMethod::Patch => Method::PATCH,
        HttpMethod::Delete => Method::DELETE,
    }
}

/// The method and the host; paths and queries may hold tokens.
fn describe(call: &Call) -> String {
    let host = Url::parse(&call.url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
    format!("{} {host}", call.method)
}

fn build(namespace: &str, request: &HttpRequest, item: Option<&Item>, secrets: &Secrets) -> Result<Call, CallError> {
    let url = template::url(&request.url, item).map_err(CallError::Refused)?;
    let parsed = guard::parse(&url).map_err(CallError::Refused)?;
    let host = parsed.host_str().unwrap_or_default();
    let port = parsed.port_or_known_default().unwrap_or_default();
    let header_name = |name: &str| {
        HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| CallError::Refused(format!("{name:?} is not the name of a header")))
    };
    let mut headers = Vec::new();
    for header in &request.headers {
        let value = HeaderValue::from_str(&header.value)
            .map_err(|_| CallError::Refused(format!("the value of header {} cannot be sent", header.name)))?;
        headers.push((header_name(&header.name)?, value));
    }
    let secret = |reference: &SecretKeyRef| match secrets.get(&reference.name) {
        Some(Ok(read)) => read.value(&reference.key, host, port),
        Some(Err(error)) => Err(error.clone()),
        None => Err(CallError::NotSent(format!("Secret {namespace}/{} was not read", reference.name))),
    };
    for header in request.auth.iter().filter_map(|auth| auth.headers.as_ref()).flatten() {
        let reference = &header.secret_key_ref;
        let value = secret(reference)?;
        let text = format!("{}{}", header.prefix.as_deref().unwrap_or_default(), value.expose());
        let mut value = HeaderValue::from_str(&text).map_err(|_| {
            CallError::Refused(format!(
                "the value of {} in Secret {namespace}/{} cannot be sent in a header: it holds a line break or a \
                 control character",
                reference.key, reference.name
            ))
        })?;
        value.set_sensitive(true);
        headers.push((header_name(&header.name)?, value));
    }
    let body = request.body.as_ref().map(|body| template::body(body, item)).transpose().map_err(CallError::Refused)?;
    signing::fits(request, &parsed).map_err(CallError::Refused)?;
    let signing = Signing::of(request, namespace, secret)?;
    let body = match &signing {
        Some(signing) => signing.body(body.as_ref()).map_err(CallError::Refused)?.map(Bytes::from),
        None => body.map(|body| Bytes::from(body.to_string())),
    };
    let timeout = request.timeout.map_or(TIMEOUT, |timeout| timeout.get()).min(TIMEOUT_LIMIT);
    Ok(Call { namespace: namespace.to_owned(), method: method(request.method), url, headers, body, signing, timeout })
}

fn failure(what: &str, error: &CallError) -> Outcome {
    let state = match error {
        CallError::Refused(_) | CallError::NotSent(_) | CallError::Declined(_) => ActionState::Failed,
        CallError::UnknownOutcome(_) => ActionState::Unknown,
    };
    Outcome { state, message: format!("{what}: {error}") }
}

/// What an answer to a mutating call means. `Done` claims no more than that the venue took the request.
fn judge(what: &str, reply: &Reply) -> Outcome {
    let status = reply.status;
    let (state, hint) = match status {
        207 => (ActionState::Done, parts(reply).unwrap_or_default()),
        200..=299 => (ActionState::Done, String::new()),
        303 | 304 => (ActionState::Done, String::new()),
        300..=399 => {
            (ActionState::Unknown, ", a redirect, which is not followed: put the final address in the url".into())
        }
        404 | 410 => (ActionState::Done, ": nothing there".into()),
        409 => (ActionState::Done, ": not in a state to be changed".into()),
        408 | 499 => (ActionState::Unknown, String::new()),
        401 | 403 => (ActionState::Failed, ": check auth and the account's rights".into()),
        418 | 429 => (ActionState::Failed, ": too many requests".into()),
        400..=499 => (ActionState::Failed, String::new()),
        _ => (ActionState::Unknown, ": it may have had an effect".into()),
    };
    Outcome { state, message: format!("{what}: answered {status}{hint}") }
}

/// How many parts of a multi-status answer failed.
fn parts(reply: &Reply) -> Option<String> {
    let document = Document::parse(&reply.body).ok()?;
    let parts = document.root().value().as_array()?;
    let good = |part: &serde_json::Value| {
        let status = part.get("status").and_then(Scalar::of).and_then(Scalar::into_text);
        status.and_then(|status| status.parse::<u16>().ok()).map(|status| (200..300).contains(&status))
    };
    let known: Vec<bool> = parts.iter().filter_map(good).collect();
    if known.len() < parts.len() {
        return None;
    }
    let failed = known.iter().filter(|good| !**good).count();
    Some(format!(": {failed} of {} parts failed", known.len()))
}

#[cfg(test)]
#[path = "caller_tests.rs"]
mod tests;
