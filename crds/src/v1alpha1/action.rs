//! What Standfast calls on somebody's behalf: HTTP requests and Jobs, and how their answers are read.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Duration, SecretKeyRef, any_json};

/// Method of an HTTP request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "the names say it")]
pub enum HttpMethod {
    #[default]
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

/// A header with a value that anybody may read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// Name of the header. `Host` and hop-by-hop headers are refused.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub name: String,
    /// Its value, on one line.
    #[schemars(length(max = 1024), regex(pattern = r"^[^\r\n]*$"))]
    pub value: String,
}

/// A header whose value comes from a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretHeader {
    /// Name of the header.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub name: String,
    /// Put before the secret value, for example `"Bearer "`.
    #[schemars(length(max = 64), regex(pattern = r"^[^\r\n]*$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Where the value is.
    pub secret_key_ref: SecretKeyRef,
}

/// How a request proves who sends it. Exactly one way is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("(has(self.headers) ? 1 : 0) + (has(self.binance) ? 1 : 0) + (has(self.bybit) ? 1 : 0) + (has(self.kraken) ? 1 : 0) == 1", "auth needs exactly one way to authenticate: headers, binance, bybit or kraken"))]
pub struct HttpAuth {
    /// Headers with values from Secrets.
    #[schemars(length(min = 1, max = 8))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Vec<SecretHeader>>,
    /// Signed as Binance asks: `timestamp`, `recvWindow` and `signature` are added to the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binance: Option<TimedSignature>,
    /// Signed as the API v5 of Bybit asks, in headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bybit: Option<TimedSignature>,
    /// Signed as the spot API of Kraken asks: `body` is sent as a form, with a `nonce` before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kraken: Option<NonceSignature>,
}

/// A signature (HMAC) that counts for a while only: the operator's clock must be right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.recvWindow) || (duration(self.recvWindow) >= duration('1ms') && duration(self.recvWindow) <= duration('60s'))", "recvWindow is between 1ms and 60s; 5s is usual"))]
pub struct TimedSignature {
    /// Where the API key is.
    pub api_key_ref: SecretKeyRef,
    /// Where its secret is. It never leaves the operator.
    pub api_secret_ref: SecretKeyRef,
    /// How long after its time the venue accepts the request, 5s if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recv_window: Option<Duration>,
}

/// A signature (HMAC) over a number that is greater with each request. The API key must be used by nothing else: another
/// program's numbers would make the venue refuse these, and the other way round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NonceSignature {
    /// Where the API key is.
    pub api_key_ref: SecretKeyRef,
    /// Where its secret is, as the venue shows it (base64). It never leaves the operator.
    pub api_secret_ref: SecretKeyRef,
}

impl HttpAuth {
    /// All keys of Secrets that are needed.
    pub fn secret_key_refs(&self) -> impl Iterator<Item = &SecretKeyRef> {
        let headers = self.headers.iter().flatten().map(|header| &header.secret_key_ref);
        let timed = self.binance.iter().chain(&self.bybit).flat_map(|s| [&s.api_key_ref, &s.api_secret_ref]);
        headers.chain(timed).chain(self.kraken.iter().flat_map(|s| [&s.api_key_ref, &s.api_secret_ref]))
    }
}

/// An HTTP request that the operator sends itself. Redirects are not followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.url.startsWith('https://') || self.url.startsWith('http://')", "url must start with https:// or http://, for example https://paper-api.alpaca.markets/v2/orders"))]
#[x_kube(validation = ("!has(self.auth) || !has(self.auth.kraken) || self.method == 'POST'", "Kraken takes signed requests by method: POST only"))]
pub struct HttpRequest {
    /// The method; `GET` if none is given.
    #[serde(default)]
    pub method: HttpMethod,
    /// The whole address. Requests for one order or position may use `{id}`, `{symbol}` and `{quantity}`, those for a
    /// position `{side}` and `{clientOrderId}` too; those that set a limit `{value}`, those that ask since when `{since}`.
    /// All are percent-encoded.
    #[schemars(length(min = 1, max = 2048))]
    pub url: String,
    /// Headers with plain values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<Header>,
    /// How the request authenticates itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<HttpAuth>,
    /// JSON body. Strings in it may use the placeholders of `url`. With `auth.kraken`, its members are sent as a form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_json")]
    pub body: Option<Value>,
    /// The longest that the call may take, 5s if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// An environment variable of a Job. Exactly one of `value` and `secretKeyRef` is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.value) != has(self.secretKeyRef)", "give either value or secretKeyRef"))]
pub struct JobEnv {
    /// Name of the variable.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub name: String,
    /// Its value as it is.
    #[schemars(length(max = 4096))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Or the key of a Secret. The kubelet reads it; the operator does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKeyRef>,
}

/// A Job that runs the user's own code, without a shell, as non-root, without a service-account token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobAction {
    /// The image, best named by digest.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// The program and its first arguments; the image's entry point if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub command: Vec<String>,
    /// Further arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub args: Vec<String>,
    /// Environment, beside the `STANDFAST_…` variables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub env: Vec<JobEnv>,
    /// The longest that the Job may run, 60s if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// User id, where the image names none that is not root.
    #[schemars(range(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as_user: Option<i64>,
}

/// Something done to the outside world. Exactly one transport is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.http) != has(self.job)", "an action has exactly one transport: give either http or job"))]
pub struct Action {
    /// Sent by the operator itself: the fast way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpRequest>,
    /// Run as a Job: slow (scheduling, image), for what HTTP cannot do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobAction>,
}

/// What is done to one order or one position. Only HTTP, because it may be needed hundreds of times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ItemAction {
    /// The request, with `{id}`, `{symbol}` and `{quantity}` in its address or body. `closePosition` also has `{side}`
    /// (`buy` or `sell`: which way the closing order goes) and `{clientOrderId}` (at most 36 of `a-z0-9-`, another one for
    /// each attempt); its `{quantity}` has no sign.
    pub http: HttpRequest,
}

/// Where the parts of an order are in one item of the answer (JSONPath, RFC 9535). What is not given has the field's own name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderFields {
    /// The venue's id of the order, `$.id` if not given.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The id that the client chose, `$.client_order_id` if not given.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_order_id: Option<String>,
    /// The symbol, `$.symbol` if not given.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
    /// The type of the order, `$.type` if not given.
    #[serde(rename = "type")]
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub type_: Option<String>,
    /// Buy or sell, `$.side` if not given.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<String>,
    /// The quantity, `$.qty` if not given.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantity: Option<String>,
}

/// Where the parts of a position are in one item of the answer (JSONPath, RFC 9535).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PositionFields {
    /// The symbol, `$.symbol` if not given.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
    /// The quantity, `$.qty` if not given. Items of quantity zero are no positions.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantity: Option<String>,
    /// What the position is worth, `$.market_value` if not given.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub market_value: Option<String>,
    /// Which way it goes: `long` or `buy`, `short` or `sell`, in any case. Where it is not given, the sign of the quantity
    /// tells it.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<String>,
    /// What the position would lose if it was closed now. Needed for `unrealizedLossBelowPercent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unrealized_loss: Option<LossField>,
    /// When the position was opened: RFC 3339, or Unix seconds or milliseconds. Needed for `heldLongerThan`.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened_at: Option<String>,
}

/// Where the unrealized loss of a position is, and how it is written there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LossField {
    /// JSONPath of the value in the item, for example `$.unrealized_plpc`.
    #[schemars(length(min = 1, max = 256))]
    pub path: String,
    /// How the value is to be read.
    pub scale: LossScale,
}

/// How a venue writes what a position has won or lost, relative to what was paid for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LossScale {
    /// The profit as a fraction: `-0.1` is a loss of 10 %.
    ProfitFraction,
    /// The profit in percent: `-10` is a loss of 10 %.
    ProfitPercent,
}

/// A read of one number. Exactly one transport is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.http) != has(self.job)", "a read has exactly one transport: give either http or job"))]
#[x_kube(validation = ("!has(self.http) || self.http.method in ['GET', 'POST']", "a read changes nothing: write method: GET, or POST where the source is asked that way"))]
#[x_kube(validation = ("!has(self.http) || has(self.path)", "path is missing: the JSONPath of the number in the answer, for example $.equity"))]
pub struct NumberRead {
    /// The request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpRequest>,
    /// The Job; repeated at most every 5 minutes. It answers by its termination message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobAction>,
    /// JSONPath of the number in the answer; for a Job `$.equity` if not given.
    #[schemars(length(min = 1, max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// A read of open orders. Exactly one transport is set. A Job answers by its termination message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.http) != has(self.job)", "a read has exactly one transport: give either http or job"))]
#[x_kube(validation = ("!has(self.nextParameter) || has(self.next)", "nextParameter needs next: the JSONPath of the token"))]
#[x_kube(validation = ("!has(self.http) || self.http.method in ['GET', 'POST']", "a read changes nothing: write method: GET, or POST where the source is asked that way"))]
pub struct OrdersRead {
    /// The request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpRequest>,
    /// The Job; repeated at most every 5 minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobAction>,
    /// JSONPath of the orders: `$[*]` if not given, for a Job `$.openOrders[*]`.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<String>,
    /// JSONPath of a number, for a source that only counts. Then single orders are not known.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<String>,
    /// How many items a full page holds. A full page without `next` is not a count: the result is unknown.
    #[schemars(range(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_size: Option<u32>,
    /// JSONPath of the next page's address, or, with `nextParameter`, of its token. Absent, null or empty on the last page.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The query parameter that takes the token.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_parameter: Option<String>,
    /// Where the parts of an order are.
    #[serde(default)]
    pub fields: OrderFields,
    /// An order is protective (a stop that guards a position) when every field named here has one of the values.
    /// Field names are those of `fields`: `type`, `side`, `symbol`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 8))]
    pub protective: BTreeMap<String, Vec<String>>,
}

/// A read of open positions. Exactly one transport is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.http) != has(self.job)", "a read has exactly one transport: give either http or job"))]
#[x_kube(validation = ("!has(self.nextParameter) || has(self.next)", "nextParameter needs next: the JSONPath of the token"))]
#[x_kube(validation = ("!has(self.http) || self.http.method in ['GET', 'POST']", "a read changes nothing: write method: GET, or POST where the source is asked that way"))]
pub struct PositionsRead {
    /// The request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpRequest>,
    /// The Job; repeated at most every 5 minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobAction>,
    /// JSONPath of the positions: `$[*]` if not given, for a Job `$.positions[*]`.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<String>,
    /// JSONPath of a number, for a source that only counts.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<String>,
    /// How many items a full page holds. A full page without `next` is not a count.
    #[schemars(range(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_size: Option<u32>,
    /// JSONPath of the next page's address, or, with `nextParameter`, of its token.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The query parameter that takes the token.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_parameter: Option<String>,
    /// Where the parts of a position are.
    #[serde(default)]
    pub fields: PositionFields,
}

/// What an answer must be: at least one of `equals`, `atLeast`, `atMost` and `newerThan`. All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("minProperties" = 1))]
pub struct Expectation {
    /// The value is this scalar. Numbers are compared as numbers, `"1"` and `1` are alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_json")]
    pub equals: Option<Value>,
    /// The value is a number not below this one (a decimal string).
    #[schemars(length(max = 40), regex(pattern = r"^-?[0-9]+(\.[0-9]+)?$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<String>,
    /// The value is a number not above this one (a decimal string).
    #[schemars(length(max = 40), regex(pattern = r"^-?[0-9]+(\.[0-9]+)?$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<String>,
    /// The value is a time (RFC 3339, or Unix seconds or milliseconds) not older than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newer_than: Option<Duration>,
}

/// A question to an HTTP endpoint with one value as its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.http.method in ['GET', 'POST']", "a read changes nothing: write method: GET, or POST where the source is asked that way"))]
pub struct StateRead {
    /// The request.
    pub http: HttpRequest,
    /// JSONPath of the value in the answer.
    #[schemars(length(min = 1, max = 256))]
    pub path: String,
    /// What the value is when the answer is yes.
    pub expect: Expectation,
}
