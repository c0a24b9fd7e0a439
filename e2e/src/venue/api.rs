//! The REST subset of Alpaca's trading API v2 (<https://docs.alpaca.markets/reference>).
//!
//! The fields and forms are those that alpaca-py 0.44 reads; `e2e/bot/conformance.py` proves it.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, Query, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Extension, Json, Router};
use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::book::Book;
use super::core::{Core, State};
use super::gate::{Caller, Done, Failing};
use super::ledger::Effect;
use super::market::Market;
use super::order::{CloseAmount, NewOrder, Order, Refusal, Replacement, Side, text, time};

type Result<T = Reply> = std::result::Result<T, Refusal>;
type Venue = Shared<Arc<Core>>;

/// The routes below `/v2`.
pub(super) fn routes() -> Router<Arc<Core>> {
    Router::new()
        .route("/v2/account", get(account))
        .route("/v2/account/configurations", get(settings).patch(change_settings))
        .route("/v2/orders", get(orders).post(submit).delete(cancel_all))
        .route("/v2/orders:by_client_order_id", get(order_by_client_id))
        .route("/v2/orders/{id}", get(order).patch(replace).delete(cancel))
        .route("/v2/positions", get(positions).delete(close_all))
        .route("/v2/positions/{symbol}", get(position).delete(close))
        .route("/v2/clock", get(clock))
        .fallback(delete(not_found).get(not_found).post(not_found).patch(not_found).put(not_found))
}

/// A reply with what the request did.
struct Reply {
    status: StatusCode,
    body: Option<Value>,
    effects: Vec<Effect>,
}

impl Reply {
    fn ok(body: Value) -> Self {
        Reply { status: StatusCode::OK, body: Some(body), effects: Vec::new() }
    }

    fn did(self, effect: Effect) -> Self {
        Reply { effects: vec![effect], ..self }
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let done = Extension(Done(self.effects));
        match self.body {
            Some(body) => (self.status, done, Json(body)).into_response(),
            None => (self.status, done).into_response(),
        }
    }
}

async fn not_found() -> Refusal {
    Refusal::new(404, 40_410_000, "endpoint not found")
}

async fn account(Shared(core): Venue, Extension(Caller(key)): Extension<Caller>) -> Result {
    core.with(|state| {
        let (book, market) = state.book(&key)?;
        Ok(Reply::ok(account_json(book, market)))
    })
}

fn account_json(book: &Book, market: &Market) -> Value {
    let positions = book.positions(market);
    let value = |side: Side| -> Decimal {
        let of_side = positions.iter().filter(|p| (p.qty > Decimal::ZERO) == (side == Side::Buy));
        of_side.map(|p| p.qty * p.current_price).sum()
    };
    let (long, short) = (value(Side::Buy), value(Side::Sell));
    let equity = text(book.cash + long + short);
    let power = text(book.buying_power(market));
    json!({
        "id": book.id,
        "account_number": format!("PA{}", book.id[..8].to_uppercase()),
        "status": "ACTIVE",
        "crypto_status": "ACTIVE",
        "currency": "USD",
        "buying_power": power,
        "regt_buying_power": power,
        "options_buying_power": power,
        "effective_buying_power": power,
        "non_marginable_buying_power": power,
        "cash": text(book.cash),
        "accrued_fees": "0",
        "pending_transfer_in": "0",
        "pending_transfer_out": "0",
        "portfolio_value": equity,
        "trading_blocked": book.blocked,
        "transfers_blocked": false,
        "account_blocked": false,
        "created_at": time(book.created_at),
        "trade_suspended_by_user": book.settings.suspend_trade,
        "multiplier": "1",
        "shorting_enabled": !book.settings.no_shorting,
        "equity": equity,
        "last_equity": equity,
        "long_market_value": text(long),
        "short_market_value": text(short),
        "position_market_value": text(long + short.abs()),
        "initial_margin": "0",
        "maintenance_margin": "0",
        "last_maintenance_margin": "0",
        "sma": "0",
        "options_approved_level": 0,
        "options_trading_level": 0,
    })
}

async fn settings(Shared(core): Venue, Extension(Caller(key)): Extension<Caller>) -> Result {
    core.with(|state| Ok(Reply::ok(settings_json(state.book(&key)?.0))))
}

fn settings_json(book: &Book) -> Value {
    json!({
        "fractional_trading": book.settings.fractional_trading,
        "max_margin_multiplier": "1",
        "no_shorting": book.settings.no_shorting,
        "suspend_trade": book.settings.suspend_trade,
        "trade_confirm_email": "all",
        "ptp_no_exception_entry": false,
        "max_options_trading_level": null,
    })
}

/// `suspend_trade`: "if true, account becomes unable to submit new orders". Fields that are absent or null stay.
async fn change_settings(Shared(core): Venue, Extension(Caller(key)): Extension<Caller>, body: Bytes) -> Result {
    let change: Map<String, Value> = parse(&body)?;
    let flag = |name: &str| match change.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(_) => Err(Refusal::invalid(format!("{name} must be a boolean"))),
    };
    let (suspend, no_shorting, fractional) =
        (flag("suspend_trade")?, flag("no_shorting")?, flag("fractional_trading")?);
    core.with(|state| {
        let (book, _) = state.book(&key)?;
        book.settings.suspend_trade = suspend.unwrap_or(book.settings.suspend_trade);
        book.settings.no_shorting = no_shorting.unwrap_or(book.settings.no_shorting);
        book.settings.fractional_trading = fractional.unwrap_or(book.settings.fractional_trading);
        let reply = Reply::ok(settings_json(book));
        Ok(match suspend {
            Some(suspended) => reply.did(Effect::Suspended { suspended }),
            None => reply,
        })
    })
}

/// The filters of `GET /v2/orders`. Those of nested orders are read and mean nothing here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OrderFilter {
    status: Option<String>,
    limit: Option<usize>,
    after: Option<Timestamp>,
    until: Option<Timestamp>,
    direction: Option<String>,
    side: Option<Side>,
    symbols: Option<String>,
}

impl OrderFilter {
    /// By time of submission, newest first unless asked otherwise; 50 by default and 500 at most; `after` and `until`
    /// leave out their own instant, so paging by the last time seen repeats nothing.
    fn select<'a>(&self, orders: &'a [Order]) -> Result<Vec<&'a Order>> {
        let status = self.status.as_deref().unwrap_or("open");
        if !["open", "closed", "all"].contains(&status) {
            return Err(Refusal::invalid("status must be one of open, closed, all"));
        }
        let limit = self.limit.unwrap_or(50);
        if limit == 0 || limit > 500 {
            return Err(Refusal::invalid("limit must be between 1 and 500"));
        }
        let symbols: Option<Vec<&str>> =
            self.symbols.as_deref().filter(|s| !s.is_empty()).map(|s| s.split(',').collect());
        let wanted = |order: &&Order| {
            (status == "all" || order.status.is_open() == (status == "open"))
                && self.after.is_none_or(|t| order.submitted_at > t)
                && self.until.is_none_or(|t| order.submitted_at < t)
                && self.side.is_none_or(|side| order.side == side)
                && symbols.as_ref().is_none_or(|list| list.contains(&order.symbol.as_str()))
        };
        match self.direction.as_deref() {
            Some("asc") => Ok(orders.iter().filter(wanted).take(limit).collect()),
            None | Some("desc") => Ok(orders.iter().rev().filter(wanted).take(limit).collect()),
            Some(_) => Err(Refusal::invalid("direction must be asc or desc")),
        }
    }
}

async fn orders(
    Shared(core): Venue,
    Extension(Caller(key)): Extension<Caller>,
    filter: std::result::Result<Query<OrderFilter>, axum::extract::rejection::QueryRejection>,
) -> Result {
    let Query(filter) = filter.map_err(|e| Refusal::invalid(e.body_text()))?;
    core.with(|state| {
        let (book, _) = state.book(&key)?;
        let orders: Vec<Value> = filter.select(book.orders())?.into_iter().map(Order::to_json).collect();
        Ok(Reply::ok(json!(orders)))
    })
}

async fn submit(Shared(core): Venue, Extension(Caller(key)): Extension<Caller>, body: Bytes) -> Result {
    let new: NewOrder = parse(&body)?;
    core.with(|state| {
        let now = state.now();
        let (book, market) = state.book(&key)?;
        let (order, effect) = submit_order(book, market, &new, now)?;
        Ok(Reply::ok(order.to_json()).did(effect))
    })
}

/// Takes an order and tells what the ledger should say of it.
pub(super) fn submit_order(
    book: &mut Book,
    market: &Market,
    new: &NewOrder,
    now: Timestamp,
) -> Result<(Order, Effect)> {
    let reduces = book.reduces(&new.symbol, new.side);
    let order = book.submit(new, market, now)?.clone();
    let effect = Effect::Submitted {
        order_id: order.id.clone(),
        client_order_id: order.client_order_id.clone(),
        symbol: order.symbol.clone(),
        side: order.side,
        qty: order.qty,
        reduces,
    };
    Ok((order, effect))
}

async fn order(Shared(core): Venue, Extension(Caller(key)): Extension<Caller>, Path(id): Path<String>) -> Result {
    core.with(|state| Ok(Reply::ok(state.book(&key)?.0.order(&id)?.to_json())))
}

#[derive(Deserialize)]
struct ByClientId {
    client_order_id: String,
}

async fn order_by_client_id(
    Shared(core): Venue,
    Extension(Caller(key)): Extension<Caller>,
    Query(query): Query<ByClientId>,
) -> Result {
    core.with(|state| Ok(Reply::ok(state.book(&key)?.0.order_by_client_id(&query.client_order_id)?.to_json())))
}

async fn replace(
    Shared(core): Venue,
    Extension(Caller(key)): Extension<Caller>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result {
    let change: Replacement = parse(&body)?;
    core.with(|state| {
        let now = state.now();
        let (book, market) = state.book(&key)?;
        let order = book.replace(&id, &change, market, now)?;
        let effect = Effect::Replaced { order_id: id.clone(), by: order.id.clone() };
        Ok(Reply::ok(order.to_json()).did(effect))
    })
}

async fn cancel(Shared(core): Venue, Extension(Caller(key)): Extension<Caller>, Path(id): Path<String>) -> Result {
    core.with(|state| {
        let effect = cancel_one(state, &key, &id, None)?;
        Ok(Reply { status: StatusCode::NO_CONTENT, body: None, effects: vec![effect] })
    })
}

fn cancel_one(state: &mut State, key: &str, id: &str, delay: Option<SignedDuration>) -> Result<Effect> {
    let now = state.now();
    let (book, market) = state.book(key)?;
    let symbol = book.order(id)?.symbol.clone();
    book.cancel(id, delay.unwrap_or_else(|| market.behaviour_of(key).cancel_delay()), now)?;
    Ok(Effect::CancelTaken { order_id: id.to_owned(), symbol })
}

/// 207 with one `{id, status}` for each order; 500 for one that could not be cancelled
/// (<https://docs.alpaca.markets/reference/deleteallorders>).
async fn cancel_all(
    Shared(core): Venue,
    Extension(Caller(key)): Extension<Caller>,
    Extension(Failing(failing)): Extension<Failing>,
) -> Result {
    core.with(|state| {
        let (lines, effects) = cancel_open(state, &key, &failing, None)?;
        Ok(Reply { status: StatusCode::MULTI_STATUS, body: Some(json!(lines)), effects })
    })
}

fn cancel_open(
    state: &mut State,
    key: &str,
    failing: &[String],
    delay: Option<SignedDuration>,
) -> Result<(Vec<Value>, Vec<Effect>)> {
    let open: Vec<(String, String)> =
        state.book(key)?.0.open_orders().map(|o| (o.id.clone(), o.symbol.clone())).collect();
    let (mut lines, mut effects) = (Vec::new(), Vec::new());
    for (id, symbol) in open {
        let done = if failing.contains(&symbol) {
            Err(Refusal::new(500, 50_010_000, "failed to cancel order"))
        } else {
            cancel_one(state, key, &id, delay)
        };
        match done {
            Ok(effect) => {
                lines.push(json!({"id": id, "status": 200}));
                effects.push(effect);
            }
            Err(refusal) => lines.push(json!({"id": id, "status": 500, "body": refusal.to_json()})),
        }
    }
    Ok((lines, effects))
}

async fn positions(Shared(core): Venue, Extension(Caller(key)): Extension<Caller>) -> Result {
    core.with(|state| {
        let (book, market) = state.book(&key)?;
        let positions: Vec<Value> = book.positions(market).iter().map(|p| p.to_json()).collect();
        Ok(Reply::ok(json!(positions)))
    })
}

async fn position(
    Shared(core): Venue,
    Extension(Caller(key)): Extension<Caller>,
    Path(symbol): Path<String>,
) -> Result {
    core.with(|state| {
        let (book, market) = state.book(&key)?;
        Ok(Reply::ok(book.position(&symbol, market)?.to_json()))
    })
}

/// `qty` or `percentage`, not both.
#[derive(Debug, Default, Deserialize)]
struct CloseQuery {
    qty: Option<Decimal>,
    percentage: Option<Decimal>,
}

async fn close(
    Shared(core): Venue,
    Extension(Caller(key)): Extension<Caller>,
    Path(symbol): Path<String>,
    query: std::result::Result<Query<CloseQuery>, axum::extract::rejection::QueryRejection>,
) -> Result {
    let Query(query) = query.map_err(|e| Refusal::invalid(e.body_text()))?;
    let amount = match (query.qty, query.percentage) {
        (None, None) => CloseAmount::All,
        (Some(qty), None) => CloseAmount::Quantity(qty),
        (None, Some(percent)) => CloseAmount::Percentage(percent),
        (Some(_), Some(_)) => return Err(Refusal::invalid("only one of qty or percentage is accepted")),
    };
    core.with(|state| {
        let (order, effect) = close_one(state, &key, &symbol, amount)?;
        Ok(Reply::ok(order).did(effect))
    })
}

fn close_one(state: &mut State, key: &str, symbol: &str, amount: CloseAmount) -> Result<(Value, Effect)> {
    let now = state.now();
    let (book, market) = state.book(key)?;
    let symbol = book.symbol_of(symbol).to_owned();
    let order = book.close(&symbol, amount, market, now)?;
    let effect = Effect::Closing { order_id: order.id.clone(), symbol, qty: order.qty };
    Ok((order.to_json(), effect))
}

#[derive(Deserialize)]
struct CloseAllQuery {
    cancel_orders: Option<String>,
}

/// 207 with one `{symbol, status, body}` for each position; with `cancel_orders` the open orders go first
/// (<https://docs.alpaca.markets/reference/deleteallopenpositions>).
async fn close_all(
    Shared(core): Venue,
    Extension(Caller(key)): Extension<Caller>,
    Extension(Failing(failing)): Extension<Failing>,
    Query(query): Query<CloseAllQuery>,
) -> Result {
    let cancel_first = query.cancel_orders.is_some_and(|v| v.eq_ignore_ascii_case("true"));
    core.with(|state| {
        let mut effects = Vec::new();
        if cancel_first {
            effects = cancel_open(state, &key, &[], Some(SignedDuration::ZERO))?.1;
        }
        let (book, market) = state.book(&key)?;
        let symbols: Vec<String> = book.positions(market).into_iter().map(|p| p.symbol).collect();
        let mut lines = Vec::new();
        for symbol in symbols {
            let done = if failing.contains(&symbol) {
                Err(Refusal::new(500, 50_010_000, "failed to close position"))
            } else {
                close_one(state, &key, &symbol, CloseAmount::All)
            };
            let (status, body) = match done {
                Ok((order, effect)) => {
                    effects.push(effect);
                    (200, order)
                }
                Err(refusal) => (refusal.status, refusal.to_json()),
            };
            lines.push(json!({"symbol": symbol, "status": status, "body": body}));
        }
        Ok(Reply { status: StatusCode::MULTI_STATUS, body: Some(json!(lines)), effects })
    })
}

async fn clock(Shared(core): Venue) -> Reply {
    core.with(|state| {
        let now = state.now();
        let bell = Market::next_bell(now);
        let later = bell + SignedDuration::from_hours(1);
        let (next_open, next_close) = if state.market.open { (later, bell) } else { (bell, later) };
        Reply::ok(json!({
            "timestamp": time(now),
            "is_open": state.market.open,
            "next_open": time(next_open),
            "next_close": time(next_close),
        }))
    })
}

/// Reads a JSON body whatever its content type, as the real API does; an unreadable one is a 422.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|e| Refusal::invalid(format!("request body format is invalid: {e}")))
}
