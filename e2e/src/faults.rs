//! Records the calls of an operator, and lets one of them go wrong.
//!
//! A layer around the HTTP service of its `kube::Client` and one around its [`Transport`] see every call before it
//! leaves. A call is known by its key: the verb, the object, what tells it apart, and how often that key occurred since
//! [`Faults::arm`]. Watches, the lists that begin them and their polls do not come through here: give the operator a
//! plain client for those.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use async_trait::async_trait;
use futures::stream;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use standfast_operator::outbound::{Call, CallError, Reply, Transport};
use tokio::sync::watch;
use tower::{BoxError, service_fn};

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The process ends before it sends the call.
    CutBefore,
    /// The process ends after the call took effect, before it hears of it.
    CutAfter,
    /// 409, without effect.
    Conflict,
    /// 500, without effect.
    Error,
    /// 429, without effect.
    Throttled,
    /// No answer and no effect.
    LostRequest,
    /// No answer, but the effect.
    LostReply,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::CutBefore,
        Self::CutAfter,
        Self::Conflict,
        Self::Error,
        Self::Throttled,
        Self::LostRequest,
        Self::LostReply,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::CutBefore => "cut-before",
            Self::CutAfter => "cut-after",
            Self::Conflict => "409",
            Self::Error => "500",
            Self::Throttled => "429",
            Self::LostRequest => "lost-request",
            Self::LostReply => "lost-reply",
        }
    }

    /// The status code that is answered instead of the server's.
    const fn code(self) -> Option<u16> {
        match self {
            Self::Conflict => Some(409),
            Self::Error => Some(500),
            Self::Throttled => Some(429),
            Self::CutBefore | Self::CutAfter | Self::LostRequest | Self::LostReply => None,
        }
    }

    const fn cuts(self) -> bool {
        matches!(self, Self::CutBefore | Self::CutAfter)
    }

    /// Whether the caller cannot know if the call took effect.
    pub const fn leaves_the_outcome_open(self) -> bool {
        matches!(self, Self::CutBefore | Self::CutAfter | Self::LostRequest | Self::LostReply)
    }

    /// Whether the call is carried out, though the caller does not hear of it.
    pub const fn has_effect(self) -> bool {
        matches!(self, Self::CutAfter | Self::LostReply)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|f| f.name() == text).with_context(|| {
            let names: Vec<_> = Self::ALL.iter().map(|f| f.name()).collect();
            format!("there is no fault {text:?}: there are {}", names.join(", "))
        })
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is under way, or whoever sent it gave up.
    Open,
    /// It never left.
    NotSent,
    /// It arrived and was answered so; the operator heard of it.
    Answered(u16),
    /// It arrived and was answered so; the operator did not hear of it.
    Unheard(u16),
    /// Something else answered in the server's place.
    Faulted(u16),
    /// There was no answer.
    Failed,
}

impl Outcome {
    /// Whether it was carried out, as far as its answer tells.
    pub fn took_effect(self) -> bool {
        matches!(self, Self::Answered(200..=299) | Self::Unheard(200..=299))
    }

    /// Whether the operator was told of success.
    pub fn was_heard(self) -> bool {
        matches!(self, Self::Answered(200..=299))
    }
}

/// A call that was recorded.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Verb, object and occurrence.
    pub key: String,
    /// The same without the occurrence.
    pub kind: String,
    /// Whether it changes something, if it succeeds.
    pub mutating: bool,
    /// Whether it came after [`Faults::arm`].
    pub armed: bool,
    /// How it ended.
    pub outcome: Outcome,
}

/// Which call goes wrong, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strike {
    /// The call's key.
    pub key: String,
    /// What happens to it.
    pub fault: Fault,
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.key, self.fault)
    }
}

/// The calls of one world. Clones share them.
#[derive(Clone)]
pub struct Faults(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    cut: watch::Sender<bool>,
    deaf: watch::Sender<bool>,
    /// How often open watches have died.
    deaths: watch::Sender<u32>,
}

struct State {
    strike: Option<Strike>,
    struck: bool,
    armed: bool,
    /// Which operator is alive; calls of those before it go nowhere.
    life: u64,
    counts: BTreeMap<String, u32>,
    log: Vec<Recorded>,
    /// Kinds that [`Layers::watches`] watched at some time.
    watched: BTreeSet<String>,
}

/// What is to be done with a call.
enum Verdict {
    Pass(usize),
    Strike(usize, Fault),
    Dead,
}

impl Faults {
    /// Lets this call go wrong, or none.
    pub fn new(strike: Option<Strike>) -> Self {
        let state = State {
            strike,
            struck: false,
            armed: false,
            life: 0,
            counts: BTreeMap::new(),
            log: Vec::new(),
            watched: BTreeSet::new(),
        };
        Self(Arc::new(Inner {
            state: Mutex::new(state),
            cut: watch::Sender::new(false),
            deaf: watch::Sender::new(false),
            deaths: watch::Sender::new(0),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on calls count.
    pub fn arm(&self) {
        let mut state = self.state();
        state.armed = true;
        state.counts.clear();
    }

    /// Whether the fault has happened.
    pub fn struck(&self) -> bool {
        self.state().struck
    }

    /// Waits until the operator is to be cut off. Nothing that it does after that leaves it.
    pub async fn cut(&self) {
        let mut cut = self.0.cut.subscribe();
        // The sender lives as long as `self`.
        let _ = cut.wait_for(|cut| *cut).await;
    }

    /// From now on clients of [`Layers::watches`] hear nothing any more, without noticing it.
    pub fn deafen(&self) {
        self.0.deaf.send_replace(true);
    }

    /// Watches that [`Layers::watches`] has open go silent, for ever and without an end, as on a connection that died
    /// without a word. What is asked from now on is answered.
    pub fn kill_watches(&self) {
        self.0.deaths.send_modify(|deaths| *deaths += 1);
    }

    /// The kinds, in the plural, that were watched at some time.
    pub fn watched(&self) -> BTreeSet<String> {
        self.state().watched.clone()
    }

    /// Every call so far, in the order in which they were made.
    pub fn log(&self) -> Vec<Recorded> {
        self.state().log.clone()
    }

    /// Whether there was such a call.
    pub fn any(&self, is: impl FnMut(&Recorded) -> bool) -> bool {
        self.state().log.iter().any(is)
    }

    /// The layers of the next operator. The one before it is dead.
    pub fn operator(&self) -> Layers {
        let mut state = self.state();
        state.life += 1;
        self.0.cut.send_replace(false);
        Layers { faults: self.clone(), life: state.life }
    }

    fn begin(&self, life: u64, kind: String, mutating: bool) -> Verdict {
        let mut state = self.state();
        if state.life != life || *self.0.cut.borrow() {
            return Verdict::Dead;
        }
        let count = state.counts.entry(kind.clone()).or_default();
        *count += 1;
        let key = format!("{kind}#{count}");
        let index = state.log.len();
        let strikes = state.armed && !state.struck && state.strike.as_ref().is_some_and(|s| s.key == key);
        let fault = state.strike.as_ref().filter(|_| strikes).map(|s| s.fault);
        let armed = state.armed;
        state.log.push(Recorded { key, kind, mutating, armed, outcome: Outcome::Open });
        let Some(fault) = fault else { return Verdict::Pass(index) };
        state.struck = true;
        if fault == Fault::CutBefore {
            self.0.cut.send_replace(true);
        }
        Verdict::Strike(index, fault)
    }

    fn end(&self, index: usize, outcome: Outcome) {
        let mut state = self.state();
        if let Some(call) = state.log.get_mut(index) {
            call.outcome = outcome;
        }
    }

    /// Makes a call, or what becomes of it. `Err` is a status code in the place of an answer.
    async fn pass<T, E>(
        &self,
        life: u64,
        (kind, mutating): (String, bool),
        send: impl Future<Output = Result<T, E>>,
        code: impl Fn(&T) -> u16,
    ) -> Result<Result<T, E>, Instead> {
        let (index, fault) = match self.begin(life, kind, mutating) {
            Verdict::Pass(index) => (index, None),
            Verdict::Strike(index, fault) => (index, Some(fault)),
            Verdict::Dead => return std::future::pending().await,
        };
        if let Some(fault) = fault.filter(|f| !f.has_effect()) {
            let code = fault.code();
            self.end(index, code.map_or(Outcome::NotSent, Outcome::Faulted));
            return match code {
                Some(code) => Err(Instead::Status(code)),
                None if fault.cuts() => std::future::pending().await,
                None => Err(Instead::Silence),
            };
        }
        let sent = send.await;
        let answered = sent.as_ref().ok().map(code);
        let heard = fault.is_none();
        self.end(
            index,
            answered.map_or(Outcome::Failed, |c| if heard { Outcome::Answered(c) } else { Outcome::Unheard(c) }),
        );
        match fault {
            None => Ok(sent),
            Some(fault) if fault.cuts() => {
                self.0.cut.send_replace(true);
                std::future::pending().await
            }
            Some(_) => Err(Instead::Silence),
        }
    }
}

/// What comes instead of an answer.
enum Instead {
    Status(u16),
    Silence,
}

/// What is put between one operator and the world.
#[derive(Clone)]
pub struct Layers {
    faults: Faults,
    life: u64,
}

impl Layers {
    /// A client whose calls are recorded.
    pub fn client(&self, client: Client) -> Client {
        let (layers, namespace) = (self.clone(), client.default_namespace().to_owned());
        let service = service_fn(move |request: Request<Body>| {
            let (layers, client) = (layers.clone(), client.clone());
            async move { layers.send(&client, request).await }
        });
        Client::new(service, namespace)
    }

    /// A client for watches, which can be made deaf.
    pub fn watches(&self, client: Client) -> Client {
        let (faults, namespace) = (self.faults.clone(), client.default_namespace().to_owned());
        let service = service_fn(move |request: Request<Body>| {
            let (faults, client) = (faults.clone(), client.clone());
            async move {
                let (mut deaf, deaths) = (faults.0.deaf.subscribe(), faults.0.deaths.subscribe());
                let watch = request.uri().query().is_some_and(|q| q.split('&').any(|p| p == "watch=true"));
                let kind = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
                let (head, body) = client.send(request).await?.into_parts();
                let _ = deaf.wait_for(|deaf| !*deaf).await;
                if watch {
                    faults.state().watched.insert(kind);
                }
                let frames = stream::unfold(body, move |mut body| {
                    let (mut deaf, mut deaths) = (deaf.clone(), deaths.clone());
                    async move {
                        let frame = tokio::select! {
                            biased;
                            Ok(()) = deaths.changed(), if watch => std::future::pending().await,
                            frame = body.frame() => frame?,
                        };
                        let _ = deaf.wait_for(|deaf| !*deaf).await;
                        Some((frame, body))
                    }
                });
                Ok::<_, BoxError>(Response::from_parts(head, StreamBody::new(frames)))
            }
        });
        Client::new(service, namespace)
    }

    async fn send(&self, client: &Client, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await?;
        let about = about(&head.method, head.uri.path(), head.uri.query(), &body);
        let request = Request::from_parts(head, Body::from(body.to_vec()));
        let passed = self.faults.pass(self.life, about, client.send(request), |r| r.status().as_u16()).await;
        match passed {
            Ok(answer) => Ok(answer?),
            Err(Instead::Silence) => std::future::pending().await,
            Err(Instead::Status(code)) => {
                let reason = match code {
                    409 => "Conflict",
                    429 => "TooManyRequests",
                    _ => "InternalError",
                };
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": "a fault on purpose", "reason": reason, "code": code});
                let answer = Response::builder().status(code).header("content-type", "application/json");
                // As the server asks when it is busy.
                let answer = if code == 429 { answer.header("retry-after", "1") } else { answer };
                Ok(answer.body(Body::from(status.to_string().into_bytes()))?)
            }
        }
    }

    /// A transport whose calls are recorded.
    pub fn transport(&self, inner: Arc<dyn Transport>) -> Arc<dyn Transport> {
        Arc::new(Recording { inner, layers: self.clone() })
    }
}

struct Recording {
    inner: Arc<dyn Transport>,
    layers: Layers,
}

#[async_trait]
impl Transport for Recording {
    async fn send(&self, call: Call) -> Result<Reply, CallError> {
        let timeout = call.timeout;
        let path = call.url.splitn(4, '/').nth(3).unwrap_or_default();
        let path = path.split('?').next().unwrap_or_default();
        let body = call.body.as_ref().map(|b| String::from_utf8_lossy(b).into_owned()).unwrap_or_default();
        let kind = format!("{} /{} {body}", call.method, without_ids(path)).trim_end().to_owned();
        let mutating = call.method != Method::GET;
        let passed =
            self.layers.faults.pass(self.layers.life, (kind, mutating), self.inner.send(call), |r| r.status).await;
        match passed {
            Ok(answer) => answer,
            Err(Instead::Silence) => {
                tokio::time::sleep(timeout).await;
                Err(CallError::UnknownOutcome("no answer in time; the request may have had an effect".into()))
            }
            Err(Instead::Status(status)) => {
                let body = format!(r#"{{"code":{status}10000,"message":"a fault on purpose"}}"#);
                Ok(Reply { status, body: body.into() })
            }
        }
    }

    async fn probe(&self, namespace: &str, url: &str, timeout: Duration) -> Result<(), CallError> {
        self.inner.probe(namespace, url, timeout).await
    }

    async fn warm(&self, namespace: &str, url: &str, timeout: Duration) -> Result<(), CallError> {
        self.inner.warm(namespace, url, timeout).await
    }
}

/// What a call to the API server is called, and whether it changes something.
fn about(method: &Method, path: &str, query: Option<&str>, body: &[u8]) -> (String, bool) {
    let mut parts: Vec<_> = path.trim_matches('/').split('/').collect();
    // /api/v1/… or /apis/<group>/<version>/…
    parts.drain(..parts.len().min(if parts.first() == Some(&"api") { 2 } else { 3 }));
    if parts.first() == Some(&"namespaces") && parts.len() > 2 {
        parts.drain(..2);
    }
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let mut kind = format!("{method} {}", parts.join("/"));
    if let (&Method::POST, Some(name)) = (method, body["metadata"]["name"].as_str()) {
        kind = format!("{kind}/{name}");
    }
    if parts.last() == Some(&"status")
        && let Some(phase) = body["status"]["phase"].as_str()
    {
        let step = body["status"]["currentStep"].as_str().unwrap_or_default();
        let steps = body["status"]["steps"].as_array();
        let state = steps.into_iter().flatten().find(|s| s["name"] == step).and_then(|s| s["state"].as_str());
        let words = [phase, step, state.unwrap_or_default()];
        let words: Vec<_> = words.into_iter().filter(|w| !w.is_empty()).collect();
        kind = format!("{kind}[{}]", words.join(" "));
    }
    let dry = query.is_some_and(|q| q.split('&').any(|p| p == "dryRun=All"));
    if dry {
        kind.push_str("(dry run)");
    }
    // Reviews ask a question.
    let asks = *method == Method::GET || dry || parts.first().is_some_and(|p| p.ends_with("reviews"));
    (kind, !asks)
}

/// A path whose identifiers are taken out: they differ from run to run.
fn without_ids(path: &str) -> String {
    let plain =
        |part: &str| if part.len() == 36 && part.matches('-').count() == 4 { "{id}".into() } else { part.to_owned() };
    path.split('/').map(plain).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_called_by_verb_object_and_what_they_write() {
        let named = |method, path, query, body: Value| about(&method, path, query, body.to_string().as_bytes());
        let status = json!({"status": {"phase": "Restoring", "currentStep": "ready",
            "steps": [{"name": "ready", "state": "Running"}]}});
        let path = "/apis/standfast.dev/v1alpha1/namespaces/a/tradingresumes/r/status";
        let expected = "PUT tradingresumes/r/status[Restoring ready Running]";
        assert_eq!(named(Method::PUT, path, None, status), (expected.into(), true));
        let latch = json!({"metadata": {"name": "latch"}});
        let expected = ("POST configmaps/latch".into(), true);
        assert_eq!(named(Method::POST, "/api/v1/namespaces/a/configmaps", None, latch), expected);
        let scale = "/apis/apps/v1/namespaces/a/deployments/bot/scale";
        let expected = ("PATCH deployments/bot/scale(dry run)".into(), false);
        assert_eq!(named(Method::PATCH, scale, Some("&dryRun=All"), json!([])), expected);
        assert_eq!(named(Method::GET, "/api/v1/namespaces/a", None, json!(null)), ("GET namespaces/a".into(), false));
        assert_eq!(without_ids("v2/orders/61e69015-8549-4bfd-b9c3-01e75843f47d"), "v2/orders/{id}");
    }
}
