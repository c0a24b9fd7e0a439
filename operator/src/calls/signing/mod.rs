//! Requests that a venue wants signed (HMAC): when they are sent they get their time or number and their signature, and
//! what the venue answers to them is read as the venue means it.
//!
//! Signing is the last thing before sending: a request that waits grows too old, and one that is sent again needs a new
//! number. What is signed is what the transport sends, byte for byte.

mod binance;
mod bybit;
mod kraken;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;
use sha2::{Sha256, Sha512};
use standfast_crds::v1alpha1::{HttpAuth, HttpRequest, SecretKeyRef};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::{document::Document, secrets::Sensitive};
use crate::outbound::{Call, CallError, Reply, Transport, guard};

/// How long a venue accepts a request that does not say, in milliseconds: the default of Binance and of Bybit.
const RECV_WINDOW: u64 = 5_000;
/// By how much a number is set ahead when the venue has seen a greater one, at each try, in milliseconds: another
/// operator whose clock is ahead used the key before.
const AHEAD: [u64; 3] = [0, 5_000, 60_000];
/// API keys whose turns are kept before unused ones are forgotten.
const KEYS: usize = 256;

/// A venue and its way to sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    /// HMAC-SHA256 of the query.
    Binance { window: u64 },
    /// HMAC-SHA256 of time, key, window and query or body.
    Bybit { window: u64 },
    /// HMAC-SHA512 of the path and a SHA-256 of number and form.
    Kraken,
}

impl Scheme {
    fn of(auth: &HttpAuth) -> Option<(Self, &SecretKeyRef, &SecretKeyRef)> {
        let window = |given: Option<standfast_crds::v1alpha1::Duration>| {
            given.map_or(RECV_WINDOW, |d| u64::try_from(d.get().as_millis()).unwrap_or(u64::MAX).max(1))
        };
        if let Some(signed) = &auth.binance {
            let scheme = Self::Binance { window: window(signed.recv_window) };
            return Some((scheme, &signed.api_key_ref, &signed.api_secret_ref));
        }
        if let Some(signed) = &auth.bybit {
            let scheme = Self::Bybit { window: window(signed.recv_window) };
            return Some((scheme, &signed.api_key_ref, &signed.api_secret_ref));
        }
        auth.kraken.as_ref().map(|signed| (Self::Kraken, &signed.api_key_ref, &signed.api_secret_ref))
    }

    /// Headers that the signature sets.
    const fn headers(self) -> &'static [&'static str] {
        match self {
            Self::Binance { .. } => &binance::HEADERS,
            Self::Bybit { .. } => &bybit::HEADERS,
            Self::Kraken => &kraken::HEADERS,
        }
    }
}

/// What a call is signed with. Does not print.
#[derive(Clone)]
pub struct Signing {
    scheme: Scheme,
    key: Sensitive,
    secret: Arc<[u8]>,
}

impl fmt::Debug for Signing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signing").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

impl Signing {
    /// Reads what a request is signed with, if it is; `value` gives what a key of a Secret holds. The error never
    /// repeats any of it.
    pub fn of(
        request: &HttpRequest,
        namespace: &str,
        value: impl Fn(&SecretKeyRef) -> Result<Sensitive, CallError>,
    ) -> Result<Option<Self>, CallError> {
        let Some((scheme, key, secret)) = request.auth.as_ref().and_then(Scheme::of) else { return Ok(None) };
        let unfit = |reference: &SecretKeyRef, what: &str| {
            let (name, key) = (&reference.name, &reference.key);
            CallError::Refused(format!("the value of {key} in Secret {namespace}/{name} {what}"))
        };
        let (api_key, api_secret) = (value(key)?, value(secret)?);
        if api_key.expose().is_empty() || header(api_key.expose()).is_none() {
            return Err(unfit(key, "is no API key: it is empty, or holds a line break or a control character"));
        }
        let bytes = match scheme {
            Scheme::Kraken => BASE64_STANDARD
                .decode(api_secret.expose())
                .map_err(|_| unfit(secret, "is not the secret of a Kraken API key, which is base64"))?,
            _ => api_secret.expose().as_bytes().to_vec(),
        };
        if bytes.is_empty() {
            return Err(unfit(secret, "is empty"));
        }
        Ok(Some(Self { scheme, key: api_key, secret: bytes.into() }))
    }

    /// The body as the venue wants it, before it is signed.
    pub fn body(&self, body: Option<&serde_json::Value>) -> Result<Option<Vec<u8>>, String> {
        match (self.scheme, body) {
            (Scheme::Kraken, body) => kraken::form(body).map(|form| Some(form.into_bytes())),
            (_, body) => Ok(body.map(|body| body.to_string().into_bytes())),
        }
    }

    /// The call as it is sent at this time, or with this number.
    fn sign(&self, call: &Call, at: u64) -> Result<Call, CallError> {
        let url = guard::parse(&call.url).map_err(CallError::Refused)?;
        let mut call = Call { signing: None, ..call.clone() };
        match self.scheme {
            Scheme::Binance { window } => binance::sign(&mut call, url, self, window, at),
            Scheme::Bybit { window } => bybit::sign(&mut call, &url, self, window, at),
            Scheme::Kraken => kraken::sign(&mut call, &url, self, at),
        }
        Ok(call)
    }

    fn verdict(&self, reply: &Reply, now: u64) -> Verdict {
        match self.scheme {
            Scheme::Binance { .. } => binance::verdict(reply),
            Scheme::Bybit { .. } => bybit::verdict(reply, now),
            Scheme::Kraken => kraken::verdict(reply),
        }
    }

    fn sha256(&self, text: &str) -> String {
        let mut mac = mac::<Hmac<Sha256>>(&self.secret);
        mac.update(text.as_bytes());
        mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect()
    }

    fn sha512(&self, parts: [&[u8]; 2]) -> String {
        let mut mac = mac::<Hmac<Sha512>>(&self.secret);
        parts.iter().for_each(|part| mac.update(part));
        BASE64_STANDARD.encode(mac.finalize().into_bytes())
    }
}

/// HMAC takes keys of any length.
fn mac<M: Mac + KeyInit>(secret: &[u8]) -> M {
    M::new_from_slice(secret).unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"))
}

/// A header value that does not print.
fn header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Sets a header; all values here can be sent: the key was looked at, the rest is digits and letters.
fn set(call: &mut Call, name: &'static str, text: &str) {
    call.headers.extend(header(text).map(|value| (HeaderName::from_static(name), value)));
}

/// Whether a request can be signed, its Secrets aside. The error says what to write instead.
pub fn fits(request: &HttpRequest, url: &Url) -> Result<(), String> {
    let Some((scheme, ..)) = request.auth.as_ref().and_then(Scheme::of) else { return Ok(()) };
    let own = |name: &str| scheme.headers().contains(&name.to_ascii_lowercase().as_str());
    if let Some(header) = request.headers.iter().find(|header| own(&header.name)) {
        return Err(format!("the header {} is set by auth: take it out of headers", header.name));
    }
    match scheme {
        Scheme::Binance { .. } => binance::fits(request, url),
        Scheme::Bybit { .. } => bybit::fits(request, url),
        Scheme::Kraken => kraken::fits(request, url),
    }
}

/// What an answer means at the venue that gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is what it seems.
    Plain,
    /// There is nothing of what the request is about.
    Nothing,
    /// It was not done, for this reason.
    Declined(String),
    /// It may have been done.
    Unknown(String),
    /// Its number was not greater than those before: it was not done.
    Stale,
}

impl Verdict {
    fn apply(self, reply: Reply) -> Result<Reply, CallError> {
        match self {
            Self::Plain => Ok(reply),
            // 404 says just that, and is what other venues answer.
            Self::Nothing => Ok(Reply { status: 404, ..reply }),
            Self::Declined(why) => Err(CallError::Declined(why)),
            Self::Unknown(why) => Err(CallError::UnknownOutcome(why)),
            Self::Stale => Err(CallError::Declined(
                "Kraken refused the nonce: give Standfast an API key that nothing else uses; if it has one, the clock \
                 of the operator's node went back"
                    .into(),
            )),
        }
    }
}

/// The number that stands in an answer under this name.
fn code(reply: &Reply, name: &str) -> Option<i64> {
    Document::parse(&reply.body).ok()?.root().value().get(name)?.as_i64()
}

/// What a venue that looks at the time says of it.
fn clock(venue: &str, code: i64, off: Option<i64>) -> Verdict {
    let off = off.map(|off| format!(" by {off} ms")).unwrap_or_default();
    Verdict::Declined(format!(
        "{venue} refused the time of the request ({code}), clock skew: the clock of the operator's node differs from \
         the venue's{off}; synchronise it (NTP), or give a longer recvWindow if the way is slow"
    ))
}

/// Numbers that grow, and the turn of each API key. Shared by everything of one operator that signs.
#[derive(Debug, Default)]
struct Numbers {
    last: AtomicU64,
}

impl Numbers {
    /// A number greater than all before: the time if it can be, so that it is greater after a restart too.
    fn next(&self, now: u64, ahead: u64) -> u64 {
        let next = |last: u64| (last + 1).max(now) + ahead;
        // The closure always gives a number.
        let last = self.last.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| Some(next(last)));
        next(last.unwrap_or_else(|last| last))
    }
}

/// Tells the time in milliseconds since 1970.
type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What all that signs has in common: numbers that grow, and a clock. Cheap to clone.
#[derive(Clone)]
pub struct Signer {
    numbers: Arc<Numbers>,
    clock: Clock,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("numbers", &self.numbers).finish_non_exhaustive()
    }
}

impl Default for Signer {
    fn default() -> Self {
        let now = || u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
        Self { numbers: Arc::default(), clock: Arc::new(now) }
    }
}

type Turn = Arc<tokio::sync::Mutex<()>>;

/// Sends calls, signed where they ask for it.
pub(super) struct Signed {
    inner: Arc<dyn Transport>,
    signer: Signer,
    /// Numbers must arrive in order: calls with the same API key wait for each other.
    turns: Mutex<HashMap<(String, Vec<u8>), Turn>>,
}

impl Signed {
    pub fn new(inner: Arc<dyn Transport>, signer: Signer) -> Self {
        Self { inner, signer, turns: Mutex::default() }
    }

    fn turn(&self, call: &Call, signing: &Signing) -> Turn {
        use sha2::Digest;
        let key = (call.namespace.clone(), Sha256::digest(signing.key.expose()).to_vec());
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.len() >= KEYS {
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        Arc::clone(turns.entry(key).or_default())
    }

    /// One at a time, and again with a greater number when the venue has seen one as great: it did nothing then.
    async fn numbered(&self, call: Call, signing: &Signing) -> Result<Reply, CallError> {
        let limit = call.timeout;
        let deadline = Instant::now() + limit;
        let turn = self.turn(&call, signing);
        let _turn = timeout_at(deadline, turn.lock()).await.map_err(|_| {
            CallError::NotSent(format!(
                "nothing was sent within {limit:?}: other calls with the same API key came first"
            ))
        })?;
        let mut answer = Verdict::Stale.apply(Reply { status: 0, body: bytes::Bytes::new() });
        for ahead in AHEAD {
            let left = deadline.saturating_duration_since(Instant::now());
            if left < Duration::from_millis(1) {
                break;
            }
            let now = (self.signer.clock)();
            let signed = signing.sign(&call, self.signer.numbers.next(now, ahead))?;
            let reply = self.inner.send(Call { timeout: left, ..signed }).await?;
            let verdict = signing.verdict(&reply, now);
            let stale = verdict == Verdict::Stale;
            answer = verdict.apply(reply);
            if !stale {
                break;
            }
        }
        answer
    }
}

#[async_trait]
impl Transport for Signed {
    async fn send(&self, mut call: Call) -> Result<Reply, CallError> {
        let Some(signing) = call.signing.take() else { return self.inner.send(call).await };
        if signing.scheme == Scheme::Kraken {
            return self.numbered(call, &signing).await;
        }
        let now = (self.signer.clock)();
        let reply = self.inner.send(signing.sign(&call, now)?).await?;
        signing.verdict(&reply, (self.signer.clock)()).apply(reply)
    }

    async fn probe(&self, namespace: &str, url: &str, timeout: Duration) -> Result<(), CallError> {
        self.inner.probe(namespace, url, timeout).await
    }

    async fn warm(&self, namespace: &str, url: &str, timeout: Duration) -> Result<(), CallError> {
        self.inner.warm(namespace, url, timeout).await
    }
}

#[cfg(test)]
mod tests;
