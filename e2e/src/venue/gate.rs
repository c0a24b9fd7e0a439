//! What every request of the trading API passes: the ledger, the faults and the keys.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Request as HttpRequest, State as Shared};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::core::Core;
use super::faults::{Action, When};
use super::ledger::{Effect, Outcome, Request, What};
use super::net::Connection;
use super::order::Refusal;

const KEY: &str = "APCA-API-KEY-ID";
const SECRET: &str = "APCA-API-SECRET-KEY";

/// Whose request it is; put there once the keys were checked.
#[derive(Clone, Debug)]
pub(super) struct Caller(pub(super) String);

/// The symbols for which a request about many is to fail.
#[derive(Clone, Debug, Default)]
pub(super) struct Failing(pub(super) Vec<String>);

/// What a handler did, on its way to the ledger.
#[derive(Clone, Debug)]
pub(super) struct Done(pub(super) Vec<Effect>);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, axum::Json(self.to_json())).into_response()
    }
}

/// Ends the ledger's line even when the client goes away and this task with it.
struct Line {
    core: Arc<Core>,
    seq: u64,
}

impl Line {
    fn finish(&self, outcome: Outcome) {
        self.core.with(|state| state.ledger.finish(self.seq, outcome));
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.finish(Outcome::Abandoned);
    }
}

/// The middleware around the trading API.
pub(super) async fn pass(
    Shared(core): Shared<Arc<Core>>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: HttpRequest,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let method = parts.method.to_string();
    let path = parts.uri.path_and_query().map_or_else(String::new, ToString::to_string);
    let key = text_of(&parts.headers, KEY);
    let arrived = |body: Option<Value>| {
        core.with(|state| {
            let now = state.now();
            let known = key.clone().filter(|k| state.accounts.contains_key(k));
            let line = Request {
                method: method.clone(),
                path: path.clone(),
                body,
                effects: Vec::new(),
                result: Outcome::Pending,
                took_us: None,
            };
            let seq = state.ledger.push(now, known.as_deref(), What::Request(line));
            (seq, state.faults.hit(&method, &path, known.as_deref()))
        })
    };
    let Ok(bytes) = to_bytes(body, 1 << 20).await else {
        return Refusal::new(413, 41_310_000, "request body too large").into_response();
    };
    let (seq, faults) = arrived(serde_json::from_slice(&bytes).ok());
    let line = Line { core: core.clone(), seq };

    let mut failing = Failing::default();
    for (when, action) in &faults {
        if let Action::Partial { symbols } = action {
            failing.0.extend(symbols.iter().cloned());
        } else if *when == When::Before
            && let Some(reply) = strike(action, &connection, &line).await
        {
            return reply;
        }
    }

    let mut reply = match authenticate(&core, &parts.headers) {
        Ok(caller) => {
            let mut request = HttpRequest::from_parts(parts, Body::from(bytes));
            request.extensions_mut().insert(caller);
            request.extensions_mut().insert(failing);
            next.run(request).await
        }
        Err(body) => (StatusCode::UNAUTHORIZED, axum::Json(body)).into_response(),
    };
    if let Some(Done(effects)) = reply.extensions_mut().remove() {
        core.with(|state| state.ledger.effects(seq, effects));
    }

    for (when, action) in &faults {
        if *when == When::After
            && let Some(reply) = strike(action, &connection, &line).await
        {
            return reply;
        }
    }
    line.finish(Outcome::Replied { status: reply.status().as_u16() });
    reply
}

/// Lets a fault strike; the reply, if that is the end of the request.
async fn strike(action: &Action, connection: &Connection, line: &Line) -> Option<Response> {
    let reply = match action {
        Action::Partial { .. } => return None,
        Action::Delay { ms } => {
            tokio::time::sleep(Duration::from_millis(*ms)).await;
            return None;
        }
        Action::Hang => std::future::pending().await,
        Action::Drop => {
            connection.cut();
            line.finish(Outcome::Dropped);
            return Some(StatusCode::INTERNAL_SERVER_ERROR.into_response());
        }
        Action::Garbage => (StatusCode::OK, "<html>\u{0}{{{ not JSON").into_response(),
        Action::Reply { status, body, headers } => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut reply = (status, body.clone()).into_response();
            reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            for (name, value) in headers {
                if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                    reply.headers_mut().insert(name, value);
                }
            }
            reply
        }
    };
    line.finish(Outcome::Replied { status: reply.status().as_u16() });
    Some(reply)
}

/// Both headers must be there and belong together (<https://docs.alpaca.markets/docs/authentication-1>); else the body
/// of a 401.
fn authenticate(core: &Core, headers: &HeaderMap) -> Result<Caller, Value> {
    let (Some(key), Some(secret)) = (text_of(headers, KEY), text_of(headers, SECRET)) else {
        return Err(json!({"message": "unauthorized."}));
    };
    if core.read(|state| state.accounts.get(&key).is_some_and(|a| a.secret == secret)) {
        Ok(Caller(key))
    } else {
        // Seen by users with wrong keys.
        Err(Refusal::new(401, 40_110_000, "request is not authorized").to_json())
    }
}

fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}
