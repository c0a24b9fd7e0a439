//! Exchanges that take signed requests only: as much of Binance, Bybit and Kraken as cancelling needs, on one port of
//! loopback. Signatures are checked by Python's own `hmac`, as the exchanges' examples make them.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use axum::{
    Json, Router,
    body::to_bytes,
    extract::Request,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinSet,
};

/// The API key of all exchanges.
pub const KEY: &str = "key-of-the-account";
/// Its secret at Binance and Bybit.
pub const SECRET: &str = "c2VjcmV0LWNhbmFyeQ==";
/// How far a time may be from that of an exchange, in milliseconds.
const WINDOW: i64 = 5_000;

/// A line of JSON in, a line with the signature out.
const SCRIPT: &str = r#"
import base64, hashlib, hmac, json, sys
secret = sys.argv[1]
for line in sys.stdin:
    kind, path, nonce, message = json.loads(line)
    message = message.encode()
    if kind == "kraken":
        message = path.encode() + hashlib.sha256(nonce.encode() + message).digest()
        signature = hmac.new(base64.b64decode(secret), message, hashlib.sha512).digest()
        print(base64.b64encode(signature).decode(), flush=True)
    else:
        print(hmac.new(secret.encode(), message, hashlib.sha256).hexdigest(), flush=True)
"#;

/// What the exchanges know.
#[derive(Default)]
pub struct Books {
    /// Open orders by exchange: their symbols.
    pub orders: HashMap<&'static str, Vec<&'static str>>,
    /// How far the clocks of the exchanges are ahead of ours, in milliseconds.
    pub ahead: i64,
    /// Nonces in the order that they came in.
    pub nonces: Vec<u64>,
    /// All signatures that came in.
    pub signatures: Vec<String>,
    /// Why requests were refused, by exchange.
    pub refused: Vec<(&'static str, &'static str)>,
}

/// The exchanges. They end with it.
pub struct Exchanges {
    /// Where they are.
    pub url: String,
    books: Arc<Mutex<Books>>,
    _server: JoinSet<()>,
}

impl Exchanges {
    /// Opens them.
    pub async fn open() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let books = Arc::new(Mutex::new(Books::default()));
        let exchange = Arc::new(Exchange { books: Arc::clone(&books), signer: Signer::start()? });
        let app = Router::new().fallback(async move |request: Request| {
            // Whoever hangs up does not stop it halfway.
            match tokio::spawn(async move { answer(&exchange, request).await }).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response(),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
            }
        });
        let mut server = JoinSet::new();
        server.spawn(async move { drop(axum::serve(listener, app).await) });
        Ok(Self { url, books, _server: server })
    }

    /// What they know.
    pub fn books(&self) -> MutexGuard<'_, Books> {
        lock(&self.books)
    }
}

fn lock(books: &Mutex<Books>) -> MutexGuard<'_, Books> {
    books.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is known, and who signs.
struct Exchange {
    books: Arc<Mutex<Books>>,
    signer: Signer,
}

/// One Python for all requests: to start one for each takes longer than a venue may.
struct Signer {
    pipes: tokio::sync::Mutex<(ChildStdin, Lines<BufReader<ChildStdout>>)>,
    _python: Child,
}

impl Signer {
    fn start() -> Result<Self> {
        let mut python = Command::new("python3")
            .args(["-c", SCRIPT, SECRET])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = python.stdin.take().context("no input")?;
        let output = BufReader::new(python.stdout.take().context("no output")?).lines();
        Ok(Self { pipes: tokio::sync::Mutex::new((input, output)), _python: python })
    }

    async fn sign(&self, kind: &str, path: &str, nonce: &str, message: &str) -> Result<String> {
        let line = format!("{}\n", json!([kind, path, nonce, message]));
        let mut pipes = self.pipes.lock().await;
        pipes.0.write_all(line.as_bytes()).await?;
        pipes.1.next_line().await?.context("python3 ended")
    }
}

/// The time at the exchanges.
fn clock(books: &Mutex<Books>) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    i64::try_from(now).unwrap_or_default() + lock(books).ahead
}

fn in_time(now: i64, time: &str) -> bool {
    time.parse::<i64>().is_ok_and(|time| time < now + 1_000 && now - time <= WINDOW)
}

fn header(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

fn parameter<'a>(text: &'a str, name: &str) -> &'a str {
    text.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
}

async fn answer(exchange: &Exchange, request: Request) -> Result<Response> {
    let (head, body) = request.into_parts();
    let body = String::from_utf8(to_bytes(body, 1 << 16).await?.to_vec())?;
    let query = head.uri.query().unwrap_or_default().to_owned();
    let (path, headers) = (head.uri.path(), &head.headers);
    let asked = (head.method.as_str(), path);
    Ok(match path.split('/').nth(1) {
        Some("api") => binance(exchange, asked, headers, &query).await?,
        Some("v5") => bybit(exchange, asked, headers, if body.is_empty() { &query } else { &body }).await?,
        _ => kraken(exchange, path, headers, &body).await?,
    })
}

async fn binance(
    Exchange { books, signer }: &Exchange,
    asked: (&str, &str),
    headers: &HeaderMap,
    query: &str,
) -> Result<Response> {
    let refuse = |status: u16, code: i64, why: &'static str| {
        lock(books).refused.push(("binance", why));
        Ok((StatusCode::from_u16(status)?, Json(json!({"code": code, "msg": why}))).into_response())
    };
    let (signed, signature) = query.rsplit_once("&signature=").unwrap_or((query, ""));
    lock(books).signatures.push(signature.into());
    if header(headers, "x-mbx-apikey") != KEY {
        return refuse(401, -2015, "Invalid API-key, IP, or permissions for action.");
    }
    if !in_time(clock(books), parameter(signed, "timestamp")) {
        return refuse(400, -1021, "Timestamp for this request is outside of the recvWindow.");
    }
    if signer.sign("sha256", "", "", signed).await? != signature {
        return refuse(400, -1022, "Signature for this request is not valid.");
    }
    let mut known = lock(books);
    let orders = known.orders.entry("binance").or_default();
    let show = |symbol: &&str| json!({"symbol": symbol, "orderId": 1, "clientOrderId": "c", "side": "BUY"});
    match asked {
        ("GET", "/api/v3/openOrders") => Ok(Json(json!(orders.iter().map(show).collect::<Vec<_>>())).into_response()),
        ("DELETE", "/api/v3/openOrders") => {
            let symbol = parameter(signed, "symbol");
            let (gone, left): (Vec<_>, Vec<_>) = orders.drain(..).partition(|order| *order == symbol);
            *orders = left;
            drop(known);
            if gone.is_empty() {
                return refuse(400, -2011, "Unknown order sent.");
            }
            Ok(Json(json!(gone.iter().map(show).collect::<Vec<_>>())).into_response())
        }
        _ => Ok(StatusCode::NOT_FOUND.into_response()),
    }
}

async fn bybit(
    Exchange { books, signer }: &Exchange,
    asked: (&str, &str),
    headers: &HeaderMap,
    parameters: &str,
) -> Result<Response> {
    let now = clock(books);
    let tell = |code: i64, result: Value| {
        Ok(Json(json!({"retCode": code, "retMsg": "", "result": result, "time": now})).into_response())
    };
    let refuse = |code: i64, why: &'static str| {
        lock(books).refused.push(("bybit", why));
        tell(code, json!({}))
    };
    let [key, time, window, signature] =
        ["x-bapi-api-key", "x-bapi-timestamp", "x-bapi-recv-window", "x-bapi-sign"].map(|name| header(headers, name));
    lock(books).signatures.push(signature.clone());
    if key != KEY {
        return refuse(10003, "API key is invalid.");
    }
    if !in_time(now, &time) {
        return refuse(10002, "The request time exceeds the time window range.");
    }
    if signer.sign("sha256", "", "", &format!("{time}{key}{window}{parameters}")).await? != signature {
        return refuse(10004, "Error sign.");
    }
    let mut known = lock(books);
    let orders = known.orders.entry("bybit").or_default();
    let show =
        |symbol: &&str| json!({"symbol": symbol, "orderId": "o-1", "orderLinkId": "c", "side": "Buy", "qty": "1"});
    match asked {
        ("GET", "/v5/order/realtime") => tell(0, json!({"list": orders.iter().map(show).collect::<Vec<_>>()})),
        ("POST", "/v5/order/cancel-all") if parameters == r#"{"category":"linear","settleCoin":"USDT"}"# => {
            let gone: Vec<_> = std::mem::take(orders);
            tell(0, json!({"list": gone.iter().map(show).collect::<Vec<_>>(), "success": "1"}))
        }
        _ => Ok(StatusCode::NOT_FOUND.into_response()),
    }
}

async fn kraken(
    Exchange { books, signer }: &Exchange,
    path: &str,
    headers: &HeaderMap,
    form: &str,
) -> Result<Response> {
    let tell = |errors: &[&str], result: Value| Ok(Json(json!({"error": errors, "result": result})).into_response());
    let refuse = |why: &'static str| {
        lock(books).refused.push(("kraken", why));
        Ok(Json(json!({"error": [why]})).into_response())
    };
    let signature = header(headers, "api-sign");
    lock(books).signatures.push(signature.clone());
    if header(headers, "api-key") != KEY || header(headers, "content-type") != "application/x-www-form-urlencoded" {
        return refuse("EAPI:Invalid key");
    }
    let nonce = parameter(form, "nonce");
    if signer.sign("kraken", path, nonce, form).await? != signature {
        return refuse("EAPI:Invalid signature");
    }
    let nonce: u64 = nonce.parse()?;
    let stale = lock(books).nonces.last().is_some_and(|last| nonce <= *last);
    if stale {
        return refuse("EAPI:Invalid nonce");
    }
    let mut known = lock(books);
    known.nonces.push(nonce);
    let orders = known.orders.entry("kraken").or_default();
    match path {
        "/0/private/OpenOrders" => {
            let show = |(n, pair): (usize, &&str)| {
                (
                    format!("OQCLML-{n}"),
                    json!({"vol": "1.0", "descr": {"pair": pair, "type": "buy", "ordertype": "limit"}}),
                )
            };
            let open: serde_json::Map<String, Value> = orders.iter().enumerate().map(show).collect();
            tell(&[], json!({"open": open}))
        }
        "/0/private/CancelAll" => {
            let count = orders.drain(..).count();
            tell(&[], json!({"count": count}))
        }
        _ => Ok(StatusCode::NOT_FOUND.into_response()),
    }
}
