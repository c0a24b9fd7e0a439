//! Orders, positions and refusals: the data of the paper venue.

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Which way an order trades.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Raises the position.
    Buy,
    /// Lowers the position.
    Sell,
}

impl Side {
    /// The quantity with the sign it adds to a position.
    pub fn signed(self, quantity: Decimal) -> Decimal {
        match self {
            Side::Buy => quantity,
            Side::Sell => -quantity,
        }
    }
}

/// Order types of Alpaca's equity trading (alpaca-py, `OrderType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderType {
    /// Fills at the price of the moment.
    Market,
    /// Rests until the price is at least as good as the limit.
    Limit,
    /// Becomes a market order when the price reaches the stop.
    Stop,
    /// Becomes a limit order when the price reaches the stop.
    StopLimit,
    /// A stop that follows the best price seen.
    TrailingStop,
}

/// How long an order stays in force. The venue has no end of day, so both rest until cancelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeInForce {
    /// For the trading day.
    #[default]
    Day,
    /// Until cancelled.
    Gtc,
}

/// The states of an order that this venue knows (a subset of alpaca-py's `OrderStatus`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderStatus {
    /// Taken while the market was closed.
    Accepted,
    /// Working.
    New,
    /// Working, filled in part.
    PartiallyFilled,
    /// Done.
    Filled,
    /// A cancel was taken and has not happened yet; the order may still fill.
    PendingCancel,
    /// Cancelled.
    Canceled,
    /// Superseded by another order.
    Replaced,
}

impl OrderStatus {
    /// Whether `GET /v2/orders?status=open` lists it.
    pub fn is_open(self) -> bool {
        !matches!(self, OrderStatus::Filled | OrderStatus::Canceled | OrderStatus::Replaced)
    }

    /// The word Alpaca uses.
    pub fn as_str(self) -> &'static str {
        match self {
            OrderStatus::Accepted => "accepted",
            OrderStatus::New => "new",
            OrderStatus::PartiallyFilled => "partially_filled",
            OrderStatus::Filled => "filled",
            OrderStatus::PendingCancel => "pending_cancel",
            OrderStatus::Canceled => "canceled",
            OrderStatus::Replaced => "replaced",
        }
    }
}

/// A request for an order: the body of `POST /v2/orders`. Numbers may come as strings or as JSON numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewOrder {
    /// What to trade.
    pub symbol: String,
    /// How much; either this or `notional`.
    #[serde(default)]
    pub qty: Option<Decimal>,
    /// For how much money; market orders only.
    #[serde(default)]
    pub notional: Option<Decimal>,
    /// Which way.
    pub side: Side,
    /// What kind.
    #[serde(rename = "type")]
    pub order_type: OrderType,
    /// How long it rests.
    #[serde(default)]
    pub time_in_force: TimeInForce,
    /// For limit and stop-limit orders.
    #[serde(default)]
    pub limit_price: Option<Decimal>,
    /// For stop and stop-limit orders.
    #[serde(default)]
    pub stop_price: Option<Decimal>,
    /// For trailing stops: distance in money.
    #[serde(default)]
    pub trail_price: Option<Decimal>,
    /// For trailing stops: distance in percent.
    #[serde(default)]
    pub trail_percent: Option<Decimal>,
    /// The client's own identifier, unique for the account.
    #[serde(default)]
    pub client_order_id: Option<String>,
    /// Only `simple` (or empty) is taken here.
    #[serde(default)]
    pub order_class: Option<String>,
}

impl NewOrder {
    /// A market order.
    pub fn market(symbol: &str, side: Side, qty: impl Into<Decimal>) -> Self {
        NewOrder {
            symbol: symbol.to_owned(),
            qty: Some(qty.into()),
            notional: None,
            side,
            order_type: OrderType::Market,
            time_in_force: TimeInForce::Day,
            limit_price: None,
            stop_price: None,
            trail_price: None,
            trail_percent: None,
            client_order_id: None,
            order_class: None,
        }
    }

    /// A resting limit order.
    pub fn limit(symbol: &str, side: Side, qty: impl Into<Decimal>, price: impl Into<Decimal>) -> Self {
        NewOrder {
            order_type: OrderType::Limit,
            limit_price: Some(price.into()),
            time_in_force: TimeInForce::Gtc,
            ..Self::market(symbol, side, qty)
        }
    }

    /// A stop order.
    pub fn stop(symbol: &str, side: Side, qty: impl Into<Decimal>, price: impl Into<Decimal>) -> Self {
        NewOrder {
            order_type: OrderType::Stop,
            stop_price: Some(price.into()),
            time_in_force: TimeInForce::Gtc,
            ..Self::market(symbol, side, qty)
        }
    }

    /// The same with a client order id.
    #[must_use]
    pub fn id(mut self, client_order_id: &str) -> Self {
        self.client_order_id = Some(client_order_id.to_owned());
        self
    }
}

/// An order in the venue's book.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// The venue's identifier (UUID).
    pub id: String,
    /// The client's identifier.
    pub client_order_id: String,
    /// What is traded.
    pub symbol: String,
    /// Which way.
    pub side: Side,
    /// What kind.
    pub order_type: OrderType,
    /// How long it rests.
    pub time_in_force: TimeInForce,
    /// How much.
    pub qty: Decimal,
    /// Set when the order was given as an amount of money.
    pub notional: Option<Decimal>,
    /// Limit of limit and stop-limit orders.
    pub limit_price: Option<Decimal>,
    /// Stop of stop and stop-limit orders; moves for trailing stops.
    pub stop_price: Option<Decimal>,
    /// Trailing distance in money.
    pub trail_price: Option<Decimal>,
    /// Trailing distance in percent.
    pub trail_percent: Option<Decimal>,
    /// Best price seen by a trailing stop.
    pub hwm: Option<Decimal>,
    /// Where it stands.
    pub status: OrderStatus,
    /// How much was filled.
    pub filled_qty: Decimal,
    /// At what average price.
    pub filled_avg_price: Option<Decimal>,
    /// When it was taken; unique, so that paging by time loses nothing.
    pub submitted_at: Timestamp,
    /// Last change.
    pub updated_at: Timestamp,
    /// When the last fill happened.
    pub filled_at: Option<Timestamp>,
    /// When it was cancelled.
    pub canceled_at: Option<Timestamp>,
    /// When it was replaced.
    pub replaced_at: Option<Timestamp>,
    /// The order that replaced it.
    pub replaced_by: Option<String>,
    /// The order it replaces.
    pub replaces: Option<String>,
    /// Made by a request to close a position.
    pub closing: bool,
    pub(super) triggered: bool,
    pub(super) next_fill: Option<Timestamp>,
    pub(super) cancel_due: Option<Timestamp>,
}

impl Order {
    /// What is left to fill.
    pub fn remaining(&self) -> Decimal {
        self.qty - self.filled_qty
    }

    /// The order as the REST API writes it.
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "client_order_id": self.client_order_id,
            "created_at": time(self.submitted_at),
            "updated_at": time(self.updated_at),
            "submitted_at": time(self.submitted_at),
            "filled_at": self.filled_at.filter(|_| self.status == OrderStatus::Filled).map(time),
            "expired_at": null,
            "canceled_at": self.canceled_at.map(time),
            "failed_at": null,
            "replaced_at": self.replaced_at.map(time),
            "replaced_by": self.replaced_by,
            "replaces": self.replaces,
            "asset_id": asset_id(&self.symbol),
            "symbol": self.symbol,
            "asset_class": "us_equity",
            "notional": self.notional.map(text),
            "qty": if self.notional.is_some() { Value::Null } else { json!(text(self.qty)) },
            "filled_qty": text(self.filled_qty),
            "filled_avg_price": self.filled_avg_price.map(text),
            "order_class": "",
            "order_type": self.order_type,
            "type": self.order_type,
            "side": self.side,
            "time_in_force": self.time_in_force,
            "limit_price": self.limit_price.map(text),
            "stop_price": self.stop_price.map(text),
            "status": self.status,
            "extended_hours": false,
            "legs": null,
            "trail_percent": self.trail_percent.map(text),
            "trail_price": self.trail_price.map(text),
            "hwm": self.hwm.map(text),
        })
    }
}

/// A holding of one symbol.
#[derive(Clone, Debug, PartialEq)]
pub struct Position {
    /// What is held.
    pub symbol: String,
    /// How much; negative when short.
    pub qty: Decimal,
    /// Average price paid.
    pub avg_entry_price: Decimal,
    /// How much no open order holds.
    pub available: Decimal,
    /// The price of the moment.
    pub current_price: Decimal,
    /// When it was opened, where a test told it. Alpaca does not tell it, other venues do.
    pub opened_at: Option<Timestamp>,
}

impl Position {
    /// The position as the REST API writes it.
    pub fn to_json(&self) -> Value {
        let value = self.qty * self.current_price;
        let cost = self.qty * self.avg_entry_price;
        let profit = value - cost;
        let share = if cost.is_zero() { Decimal::ZERO } else { (profit / cost.abs()).round_dp(10) };
        let mut body = json!({
            "asset_id": asset_id(&self.symbol),
            "symbol": self.symbol,
            "exchange": "NASDAQ",
            "asset_class": "us_equity",
            "asset_marginable": true,
            "qty": text(self.qty),
            "avg_entry_price": text(self.avg_entry_price),
            "side": if self.qty.is_sign_negative() { "short" } else { "long" },
            "market_value": text(value),
            "cost_basis": text(cost),
            "unrealized_pl": text(profit),
            "unrealized_plpc": text(share),
            "unrealized_intraday_pl": text(profit),
            "unrealized_intraday_plpc": text(share),
            "current_price": text(self.current_price),
            "lastday_price": text(self.current_price),
            "change_today": "0",
            "qty_available": text(self.available),
        });
        if let Some(at) = self.opened_at {
            body["opened_at"] = json!(time(at));
        }
        body
    }
}

/// A request the venue did not carry out: HTTP status and Alpaca's error body.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Alpaca's code; its first three digits are the status.
    pub code: u32,
    /// What a person reads.
    pub message: String,
    /// Further fields of the body.
    pub details: Map<String, Value>,
}

impl Refusal {
    /// A refusal without further fields.
    pub fn new(status: u16, code: u32, message: impl Into<String>) -> Self {
        Refusal { status, code, message: message.into(), details: Map::new() }
    }

    /// A malformed or impossible request (422).
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(422, 40_010_001, message)
    }

    /// The body as the REST API writes it.
    pub fn to_json(&self) -> Value {
        let mut body = self.details.clone();
        body.insert("code".into(), json!(self.code));
        body.insert("message".into(), json!(self.message));
        Value::Object(body)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.status, self.code, self.message)
    }
}

impl std::error::Error for Refusal {}

/// How much of a position to close: `DELETE /v2/positions/{symbol}`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CloseAmount {
    /// Everything.
    All,
    /// So many shares.
    Quantity(Decimal),
    /// So much of it, 0 to 100.
    Percentage(Decimal),
}

/// What `PATCH /v2/orders/{id}` may change (alpaca-py, `ReplaceOrderRequest`).
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Replacement {
    /// New quantity.
    #[serde(default)]
    pub qty: Option<Decimal>,
    /// New time in force.
    #[serde(default)]
    pub time_in_force: Option<TimeInForce>,
    /// New limit.
    #[serde(default)]
    pub limit_price: Option<Decimal>,
    /// New stop.
    #[serde(default)]
    pub stop_price: Option<Decimal>,
    /// New trailing distance.
    #[serde(default)]
    pub trail: Option<Decimal>,
    /// Client order id of the new order.
    #[serde(default)]
    pub client_order_id: Option<String>,
}

/// A number as Alpaca writes it: a string without trailing zeros.
pub(super) fn text(number: Decimal) -> String {
    number.normalize().to_string()
}

/// A time with microseconds, as Alpaca writes it.
pub(super) fn time(at: Timestamp) -> String {
    format!("{at:.6}")
}

/// The made-up but stable asset id of a symbol.
pub(super) fn asset_id(symbol: &str) -> String {
    let hash = |salt: u64| {
        symbol.bytes().fold(0xcbf2_9ce4_8422_2325_u64 ^ salt, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    };
    uuid(hash(0), hash(0x9e37_79b9_7f4a_7c15))
}

/// Formats 128 bits as a version 4 UUID.
pub(super) fn uuid(high: u64, low: u64) -> String {
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        0x8000 | ((low >> 48) & 0x3fff),
        low & 0xffff_ffff_ffff
    )
}
