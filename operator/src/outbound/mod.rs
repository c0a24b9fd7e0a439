//! HTTP calls to the outside, made for the owner of a namespace.
//!
//! Everything that leaves the operator goes through [`Transport`], so that tests can put faults between. The real one
//! ([`http::HttpTransport`]) refuses addresses that a namespace's owner has no business with ([`guard`]).

pub mod api_server;
pub mod connect;
pub mod guard;
pub mod http;

#[cfg(test)]
mod attack_tests;
#[cfg(test)]
pub(crate) mod fakes;

use std::time::Duration;

use ::http::{HeaderName, HeaderValue, Method};
use async_trait::async_trait;
use bytes::Bytes;

use crate::calls::signing::Signing;

/// A request, ready to be sent, or to be signed and sent. Values of secret headers are marked sensitive and print as
/// `Sensitive`.
#[derive(Clone, Debug)]
pub struct Call {
    /// Namespace on whose behalf it is made: its cluster services may be called, those of others may not.
    pub namespace: String,
    /// The method.
    pub method: Method,
    /// The whole address.
    pub url: String,
    /// Headers, secret ones included.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Body: JSON, unless a header says something else.
    pub body: Option<Bytes>,
    /// What it is signed with when it is sent. Transports that send do not look at it.
    pub signing: Option<Signing>,
    /// The longest that the call may take, from the resolution of the name to the last byte of the answer.
    pub timeout: Duration,
}

/// What came back, whatever the status code says.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Body, decompressed, at most [`BODY_LIMIT`] bytes. A long one takes the place of another one until it is dropped:
    /// it is to be kept for as long as what was made of it.
    pub body: Bytes,
}

/// The longest answer that is read, after decompression, in bytes.
pub const BODY_LIMIT: usize = 4 << 20;

/// Why there is no answer. The text names the host and what to do, never a header or a body.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The call is not allowed; nothing was sent.
    #[error("{0}")]
    Refused(String),
    /// Nothing was sent: the name did not resolve, nobody listens, TLS failed.
    #[error("{0}")]
    NotSent(String),
    /// It was answered that it was not done, and why.
    #[error("{0}")]
    Declined(String),
    /// Something was sent and no whole answer came: the request may have had an effect.
    #[error("{0}")]
    UnknownOutcome(String),
}

/// Sends calls.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Sends one request, once. Never repeats it, never follows a redirect.
    async fn send(&self, call: Call) -> Result<Reply, CallError>;

    /// Whether `url` could be called now: name resolution, TCP and TLS, without sending a request.
    async fn probe(&self, namespace: &str, url: &str, timeout: Duration) -> Result<(), CallError>;

    /// The same, where calls are to find a connection later: one that waits for them already is as good as a new one.
    async fn warm(&self, namespace: &str, url: &str, timeout: Duration) -> Result<(), CallError> {
        self.probe(namespace, url, timeout).await
    }
}
