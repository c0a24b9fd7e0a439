//! Clients of the API server, and what their errors mean.
//!
//! kube's own retries are off: they repeat writes, for minutes. Reads are repeated here, briefly; a write is sent once,
//! and whoever sent it decides what to do. Every call has a deadline and an error that names what was attempted.

use std::{fmt, sync::Arc, time::Duration};

use http::{Method, Request, Response};
use kube::{
    Client, Config, Error,
    client::Body,
    core::{Status, response::reason},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tower::{BoxError, service_fn};

mod shared;

/// How often a read is sent, at most.
const READ_TRIES: u32 = 3;
/// The pause before the first repetition of a read; it doubles.
const READ_PAUSE: Duration = Duration::from_millis(100);
/// A server that asks for a longer pause gets its answer passed on instead.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// No byte from the server for this long ends a call, whatever its deadline.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// To reach the server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest message that is passed on, in characters.
const MESSAGE_LIMIT: usize = 256;

/// The clients of the operator. Each has connections of its own, so that none waits for another.
#[derive(Clone)]
pub struct Clients {
    /// For watches and the lists that begin them: waits for ever, never repeats.
    pub watch: Client,
    /// For everything that is not one of the others.
    pub api: Client,
    /// For the halting controller only: few connections, shared by all its calls. A server closes them after about 90 s
    /// without a call; the controller's own list poll keeps them open.
    pub halt: Client,
    /// For the leader election only.
    pub lease: Client,
    /// To be taken for each write of the halting controller to a workload.
    pub turns: Turns,
}

impl Clients {
    /// Clients for the cluster of `config`, whose time-outs and retries are replaced.
    pub fn new(config: &Config, turns: u16) -> Result<Self, ConnectError> {
        let mut patient = config.clone();
        patient.connect_timeout = Some(CONNECT_TIMEOUT);
        patient.default_retry = false;
        let mut strict = patient.clone();
        strict.read_timeout = Some(READ_TIMEOUT);
        // Else the time that a connection was idle counts too.
        strict.reset_reader_on_write = true;
        Ok(Self {
            watch: connect(&patient)?,
            api: retry_reads(connect(&strict)?),
            halt: retry_reads(shared::connect(&patient)?),
            lease: retry_reads(connect(&strict)?),
            turns: Turns::new(turns),
        })
    }

    /// One client for everything, such as a fake or one that faults calls.
    pub fn same(client: &Client, turns: u16) -> Self {
        let [watch, api, halt, lease] = std::array::from_fn(|_| client.clone());
        Self { watch, api, halt, lease, turns: Turns::new(turns) }
    }
}

/// A client that opens a connection for each call that finds no idle one.
fn connect(config: &Config) -> Result<Client, ConnectError> {
    Client::try_from(config.clone()).map_err(|error| ConnectError(error.to_string()))
}

/// The cluster's address or credentials are unusable.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot set up a client of the API server: {0}")]
pub struct ConnectError(String);

/// How many of something are under way at a time. Clones share it.
///
/// A turn is taken *before* the leadership is checked and the deadline of a call begins: 500 calls that are started
/// together would else use up their deadlines by waiting for each other.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Semaphore>);

impl Turns {
    /// So many at a time, at least one.
    pub fn new(turns: u16) -> Self {
        Self(Arc::new(Semaphore::new(turns.max(1).into())))
    }

    /// Waits for a turn, which ends when it is dropped.
    pub async fn take(&self) -> Turn {
        // The semaphore is never closed.
        Turn { _permit: Arc::clone(&self.0).acquire_owned().await.ok() }
    }
}

/// A turn that was taken.
#[derive(Debug)]
#[must_use = "the turn ends when this is dropped"]
pub struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
}

/// Repeats reads that failed in passing: no connection, no whole answer, 429, 5xx. Writes and watches are passed on.
pub fn retry_reads(client: Client) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = service_fn(move |request: Request<Body>| {
        let client = client.clone();
        async move { Ok::<_, BoxError>(send(&client, request).await?) }
    });
    Client::new(service, namespace)
}

async fn send(client: &Client, request: Request<Body>) -> kube::Result<Response<Body>> {
    let query = request.uri().query().unwrap_or_default();
    let streams = query.split('&').any(|p| matches!(p, "watch=true" | "watch=1" | "follow=true"));
    if request.method() != Method::GET || streams {
        return client.send(request).await;
    }
    let (head, body) = request.into_parts();
    let mut tries = 1;
    loop {
        let Some(body) = body.try_clone() else { return client.send(Request::from_parts(head, body)).await };
        let answer = client.send(Request::from_parts(head.clone(), body)).await;
        let Some(pause) = pause(&answer, tries).filter(|_| tries < READ_TRIES) else { return answer };
        tries += 1;
        sleep(pause).await;
    }
}

/// How long to wait before a read is repeated; `None` if repeating it makes no sense.
fn pause(answer: &kube::Result<Response<Body>>, tries: u32) -> Option<Duration> {
    let own = READ_PAUSE * 2_u32.pow(tries - 1);
    match answer {
        Ok(answer) if answer.status().as_u16() == 429 || answer.status().is_server_error() => {
            let asked = answer.headers().get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            let asked = asked.and_then(|value| value.parse().ok()).map(Duration::from_secs);
            asked.map_or(Some(own), |asked| (asked <= LONGEST_PAUSE).then_some(asked.max(own)))
        }
        Err(Error::Service(_) | Error::HyperError(_)) => Some(own),
        _ => None,
    }
}

/// What an error asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// It had no effect and may work if tried again.
    Transient,
    /// The server is busy; it had no effect and works later.
    Throttled,
    /// We are not allowed to: a person has to grant something.
    Denied,
    /// The object, or its kind, does not exist.
    NotFound,
    /// It exists already, or is not in the version that was expected.
    Conflict,
    /// The server does not accept it: the same request never works.
    Invalid,
    /// A write that may or may not have had its effect: look before doing anything else.
    UnknownOutcome,
}

impl Class {
    /// A word for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Throttled => "throttled",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Invalid => "invalid",
            Self::UnknownOutcome => "unknown_outcome",
        }
    }

    /// The class of an error of a call that changes something.
    pub fn of_write(error: &Error) -> Self {
        match error {
            Error::Api(status) => match status.code {
                401 | 403 => Self::Denied,
                404 | 410 => Self::NotFound,
                409 => Self::Conflict,
                429 => Self::Throttled,
                408 => Self::UnknownOutcome,
                400..=499 => Self::Invalid,
                _ => Self::UnknownOutcome,
            },
            Error::Service(cause) if never_sent(cause.as_ref()) => Self::Transient,
            Error::BuildRequest(_) | Error::HttpError(_) => Self::Invalid,
            // Credentials could not be had: nothing was sent.
            Error::Auth(_) => Self::Transient,
            // The connection broke, or what came back is no answer.
            _ => Self::UnknownOutcome,
        }
    }

    /// The class of an error of a call that changes nothing.
    pub fn of_read(error: &Error) -> Self {
        match error {
            // A continued list or a watch that is too old: to be begun again.
            Error::Api(status) if status.code == 410 => Self::Transient,
            Error::SerdeError(_) | Error::FromUtf8(_) => Self::Invalid,
            _ => match Self::of_write(error) {
                Self::UnknownOutcome => Self::Transient,
                class => class,
            },
        }
    }
}

fn never_sent(cause: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(cause), |cause| cause.source())
        .any(|cause| cause.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|error| error.is_connect()))
}

/// A call to the API server that failed. Its text names what was attempted, in one line.
#[derive(Debug)]
pub struct ApiError {
    what: String,
    class: Class,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    TimedOut(Duration),
    Failed(Box<Error>),
}

impl ApiError {
    /// What it asks for.
    pub fn class(&self) -> Class {
        self.class
    }

    /// What the server answered, if it did.
    pub fn status(&self) -> Option<&Status> {
        match &self.cause {
            Cause::Failed(error) => match &**error {
                Error::Api(status) => Some(status),
                _ => None,
            },
            Cause::TimedOut(_) => None,
        }
    }

    /// Whether an object of that name was already there.
    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(Status::is_already_exists)
    }

    /// Whether a `test` of a JSON Patch did not hold, or a path to replace or remove was not there: the object is not
    /// as expected. The server says so with a 422 that, unlike a failed validation, names nothing.
    pub fn is_failed_test(&self) -> bool {
        self.status().is_some_and(|status| {
            let names_something = status
                .details
                .as_ref()
                .is_some_and(|d| !d.causes.is_empty() || !d.kind.is_empty() || !d.name.is_empty());
            status.code == 422 && status.reason == reason::INVALID && !names_something
        })
    }

    /// How long the server asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        let seconds = self.status()?.details.as_ref()?.retry_after_seconds;
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.what)?;
        match &self.cause {
            Cause::TimedOut(limit) => write!(f, "no answer within {limit:?}"),
            Cause::Failed(error) => match &**error {
                Error::Api(status) => write!(f, "{} {}", status.code, one_line(&status.message)),
                Error::Service(cause) => write!(f, "{}", one_line(&chain(cause.as_ref()))),
                error => write!(f, "{}", one_line(&error.to_string())),
            },
        }
    }
}

impl std::error::Error for ApiError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.cause {
            Cause::Failed(error) => Some(error),
            Cause::TimedOut(_) => None,
        }
    }
}

/// An error with what caused it, as `client error: connection refused`.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let parts: Vec<_> = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect();
    parts.join(": ")
}

fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_LIMIT).collect();
    if text.chars().count() > MESSAGE_LIMIT {
        line.push('…');
    }
    line
}

/// A call that changes something, within `limit`. `what` is for people: `scaling Deployment bots/mm to 0`.
pub async fn write<T>(
    limit: Duration,
    what: impl Into<String>,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApiError> {
    within(limit, what, call, Class::UnknownOutcome, Class::of_write).await
}

/// A call that changes nothing, within `limit`, repetitions included. `what` is for people: `reading Pod bots/mm-0`.
pub async fn read<T>(
    limit: Duration,
    what: impl Into<String>,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApiError> {
    within(limit, what, call, Class::Transient, Class::of_read).await
}

/// All objects, page by page. To be given a limit by [`read`].
pub async fn list_all<K>(api: &kube::Api<K>) -> kube::Result<Vec<K>>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let (mut all, mut params) = (vec![], kube::api::ListParams::default().limit(500));
    loop {
        let page = api.list(&params).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|c| !c.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

async fn within<T>(
    limit: Duration,
    what: impl Into<String>,
    call: impl Future<Output = kube::Result<T>>,
    late: Class,
    class: fn(&Error) -> Class,
) -> Result<T, ApiError> {
    match timeout(limit, call).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => {
            Err(ApiError { what: what.into(), class: class(&error), cause: Cause::Failed(Box::new(error)) })
        }
        Err(_) => Err(ApiError { what: what.into(), class: late, cause: Cause::TimedOut(limit) }),
    }
}

/// Any other work, within `limit`.
pub async fn deadline<T>(
    limit: Duration,
    what: impl Into<String>,
    work: impl Future<Output = T>,
) -> Result<T, TimedOut> {
    timeout(limit, work).await.map_err(|_| TimedOut { what: what.into(), limit })
}

/// Something took too long.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: not done within {limit:?}")]
pub struct TimedOut {
    what: String,
    limit: Duration,
}

#[cfg(test)]
mod tests;
