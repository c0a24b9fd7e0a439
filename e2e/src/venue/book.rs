//! One account's book: a state machine without clocks, sockets or locks.
//!
//! Time and prices come in as arguments, so every rule here can be tested step by step. Rules that come from Alpaca
//! name their source: the API reference at <https://docs.alpaca.markets/reference>, or a reply its users have seen.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde_json::json;

use super::market::{Behaviour, Market};
use super::order::{CloseAmount, NewOrder, Order, OrderStatus, OrderType, Refusal, Replacement, Side, text, uuid};
use super::rules::{check_shape, follow, has_stop, marketable, step_of};

/// The user's settings of an account: `GET /v2/account/configurations`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// New orders are refused; cancels still work.
    pub suspend_trade: bool,
    /// Selling what is not held is refused.
    pub no_shorting: bool,
    /// Quantities with a fraction are accepted.
    pub fractional_trading: bool,
}

/// What happened in a book as time and prices moved on.
#[derive(Clone, Debug, PartialEq)]
pub enum BookEvent {
    /// An order was filled, wholly or in part.
    Fill {
        /// The order.
        order_id: String,
        /// What was traded.
        symbol: String,
        /// Which way.
        side: Side,
        /// How much in this step.
        qty: Decimal,
        /// At what price.
        price: Decimal,
        /// What is held afterwards.
        position: Decimal,
        /// Whether the order was made by a request to close a position.
        closing: bool,
    },
    /// A cancel took effect after its delay.
    Canceled {
        /// The order.
        order_id: String,
        /// Its symbol.
        symbol: String,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Holding {
    pub(super) qty: Decimal,
    pub(super) avg_entry_price: Decimal,
}

/// One account: cash, orders and positions.
#[derive(Debug)]
pub struct Book {
    /// Account id (UUID).
    pub id: String,
    /// When it was opened.
    pub created_at: Timestamp,
    /// Money, which fills move.
    pub cash: Decimal,
    /// The user's settings.
    pub settings: Settings,
    /// The venue's own block: every new order is refused.
    pub blocked: bool,
    pub(super) orders: Vec<Order>,
    by_id: HashMap<String, usize>,
    pub(super) by_client_id: HashMap<String, usize>,
    pub(super) open: BTreeSet<usize>,
    pub(super) holdings: BTreeMap<String, Holding>,
    /// When positions were opened, where somebody told it.
    pub(super) opened: BTreeMap<String, Timestamp>,
    seed: RandomState,
}

impl Book {
    /// An account with money and nothing else.
    pub fn new(cash: Decimal, now: Timestamp) -> Self {
        let seed = RandomState::new();
        Book {
            id: uuid(seed.hash_one("account"), seed.hash_one("id")),
            created_at: now,
            cash,
            settings: Settings { suspend_trade: false, no_shorting: false, fractional_trading: true },
            blocked: false,
            orders: Vec::new(),
            by_id: HashMap::new(),
            by_client_id: HashMap::new(),
            open: BTreeSet::new(),
            holdings: BTreeMap::new(),
            opened: BTreeMap::new(),
            seed,
        }
    }

    /// Takes an order, or says why not.
    pub fn submit(&mut self, new: &NewOrder, market: &Market, now: Timestamp) -> Result<&Order, Refusal> {
        self.may_trade()?;
        check_shape(new)?;
        let price = market.price(&new.symbol);
        let qty = match (new.qty, new.notional) {
            (Some(qty), None) => qty,
            (None, Some(money)) if new.order_type == OrderType::Market => (money / price).round_dp(9),
            (None, Some(_)) => return Err(Refusal::invalid("notional orders must be market orders")),
            (None, None) => return Err(Refusal::invalid("qty or notional is required")),
            (Some(_), Some(_)) => return Err(Refusal::invalid("only one of qty or notional is accepted")),
        };
        if qty <= Decimal::ZERO {
            return Err(Refusal::invalid("qty must be > 0"));
        }
        let client_order_id = self.take_client_id(new.client_order_id.as_deref())?;
        self.check_position(&new.symbol, new.side, qty)?;
        if new.side == Side::Buy && !self.reduces(&new.symbol, new.side) {
            let worst = new.limit_price.or(new.stop_price).unwrap_or(price);
            if worst * qty > self.buying_power(market) {
                // Seen by users: {"code":40310000,"message":"insufficient buying power"}.
                return Err(Refusal::new(403, 40_310_000, "insufficient buying power"));
            }
        }
        let index = self.insert(new, qty, client_order_id, market, now);
        Ok(&self.orders[index])
    }

    /// Requests that an order be cancelled (`DELETE /v2/orders/{id}`: 204, 404, or 422 when it is no longer cancelable).
    pub fn cancel(&mut self, id: &str, delay: jiff::SignedDuration, now: Timestamp) -> Result<(), Refusal> {
        let index = self.index(id)?;
        let order = &mut self.orders[index];
        match order.status {
            OrderStatus::PendingCancel => Ok(()),
            status if !status.is_open() => {
                let message = format!("order is already in \"{}\" state", status.as_str());
                Err(Refusal::new(422, 42_210_000, message))
            }
            _ if delay.is_zero() => {
                self.finish(index, OrderStatus::Canceled, now);
                Ok(())
            }
            _ => {
                order.status = OrderStatus::PendingCancel;
                order.cancel_due = Some(now + delay);
                order.updated_at = now;
                Ok(())
            }
        }
    }

    /// Replaces an open order by a changed copy (`PATCH /v2/orders/{id}`).
    pub fn replace(
        &mut self,
        id: &str,
        change: &Replacement,
        market: &Market,
        now: Timestamp,
    ) -> Result<&Order, Refusal> {
        self.may_trade()?;
        let index = self.index(id)?;
        let old = self.orders[index].clone();
        if !old.status.is_open() || old.status == OrderStatus::PendingCancel {
            let message = format!("order is already in \"{}\" state", old.status.as_str());
            return Err(Refusal::new(422, 42_210_000, message));
        }
        let trail = |now: Option<Decimal>| if now.is_some() { change.trail.or(now) } else { None };
        let new = NewOrder {
            symbol: old.symbol.clone(),
            qty: Some(change.qty.unwrap_or(old.qty)),
            notional: None,
            side: old.side,
            order_type: old.order_type,
            time_in_force: change.time_in_force.unwrap_or(old.time_in_force),
            limit_price: change.limit_price.or(old.limit_price),
            stop_price: change.stop_price.or(old.stop_price),
            trail_price: trail(old.trail_price),
            trail_percent: trail(old.trail_percent),
            client_order_id: change.client_order_id.clone(),
            order_class: None,
        };
        check_shape(&NewOrder { stop_price: new.stop_price.filter(|_| has_stop(new.order_type)), ..new.clone() })?;
        let qty = new.qty.unwrap_or(old.qty) - old.filled_qty;
        if qty <= Decimal::ZERO {
            return Err(Refusal::invalid("qty must be greater than filled qty"));
        }
        let client_order_id = self.take_client_id(new.client_order_id.as_deref())?;
        self.finish(index, OrderStatus::Replaced, now);
        if let Err(refusal) = self.check_position(&new.symbol, new.side, qty) {
            self.reopen(index, old);
            return Err(refusal);
        }
        let next = self.insert(&new, qty, client_order_id, market, now);
        self.orders[next].replaces = Some(old.id);
        self.orders[index].replaced_by = Some(self.orders[next].id.clone());
        Ok(&self.orders[next])
    }

    /// Closes a position with a market order (`DELETE /v2/positions/{symbol}`).
    ///
    /// What open orders hold cannot be closed: 403 with `available`, `existing_qty`, `held_for_orders` and
    /// `related_orders` (seen: <https://github.com/alpacahq/Alpaca-API/issues/111>).
    pub fn close(
        &mut self,
        symbol: &str,
        amount: CloseAmount,
        market: &Market,
        now: Timestamp,
    ) -> Result<&Order, Refusal> {
        let Some(holding) = self.holdings.get(symbol) else {
            return Err(Refusal::new(404, 40_410_000, "position does not exist"));
        };
        let (held, side) = (holding.qty.abs(), if holding.qty > Decimal::ZERO { Side::Sell } else { Side::Buy });
        if market.suspend_blocks_closing {
            self.may_trade()?;
        }
        let qty = match amount {
            CloseAmount::All => held,
            // "Can accept up to 9 decimal points", the same page says.
            CloseAmount::Quantity(qty) if qty.normalize().scale() > 9 => {
                return Err(Refusal::invalid("qty must have at most 9 decimal places"));
            }
            CloseAmount::Quantity(qty) => qty,
            CloseAmount::Percentage(percent) if percent > Decimal::ZERO && percent <= Decimal::ONE_HUNDRED => {
                let qty = held * percent / Decimal::ONE_HUNDRED;
                // "Would only sell fractional if position is originally fractional": <https://docs.alpaca.markets/reference/deleteopenposition-1>
                if held.is_integer() { qty.floor() } else { qty.round_dp(9) }
            }
            CloseAmount::Percentage(_) => return Err(Refusal::invalid("percentage must be between 0 and 100")),
        };
        if qty <= Decimal::ZERO {
            return Err(Refusal::invalid("qty must be > 0"));
        }
        self.check_position(symbol, side, qty)?;
        let client_order_id = self.take_client_id(None)?;
        let index = self.insert(&NewOrder::market(symbol, side, qty), qty, client_order_id, market, now);
        self.orders[index].closing = true;
        Ok(&self.orders[index])
    }

    /// Brings a cancelled order back to life, as a venue does whose cancel was lost.
    pub fn revive(&mut self, id: &str, now: Timestamp) -> Result<(), Refusal> {
        let index = self.index(id)?;
        if self.orders[index].status != OrderStatus::Canceled {
            return Err(Refusal::invalid("only a cancelled order can be revived"));
        }
        let partly = !self.orders[index].filled_qty.is_zero();
        let status = if partly { OrderStatus::PartiallyFilled } else { OrderStatus::New };
        let order = Order { status, canceled_at: None, updated_at: now, ..self.orders[index].clone() };
        self.reopen(index, order);
        Ok(())
    }

    /// Sets a holding directly, without an order; zero removes it.
    pub fn set_position(&mut self, symbol: &str, qty: Decimal, avg_entry_price: Decimal) {
        if qty.is_zero() {
            self.holdings.remove(symbol);
        } else {
            self.holdings.insert(symbol.to_owned(), Holding { qty, avg_entry_price });
        }
    }

    /// Carries out everything that is due: delayed cancels, triggered stops, fills.
    pub fn advance(&mut self, market: &Market, behaviour: &Behaviour, now: Timestamp) -> Vec<BookEvent> {
        let mut events = Vec::new();
        for index in self.open.clone() {
            if market.open {
                self.work(index, market.price(&self.orders[index].symbol), behaviour, now, &mut events);
            }
            let order = &self.orders[index];
            if order.status.is_open() && order.cancel_due.is_some_and(|due| due <= now) {
                events.push(BookEvent::Canceled { order_id: order.id.clone(), symbol: order.symbol.clone() });
                self.finish(index, OrderStatus::Canceled, now);
            }
        }
        events
    }

    /// When something will be due next, if nothing else happens.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.open.iter().flat_map(|&i| [self.orders[i].next_fill, self.orders[i].cancel_due]).flatten().min()
    }

    fn work(
        &mut self,
        index: usize,
        price: Decimal,
        behaviour: &Behaviour,
        now: Timestamp,
        events: &mut Vec<BookEvent>,
    ) {
        let order = &mut self.orders[index];
        if order.status == OrderStatus::Accepted {
            order.status = OrderStatus::New;
        }
        follow(order, price);
        if !marketable(order, price) || !behaviour.fills {
            order.next_fill = None;
            return;
        }
        let mut due = *order.next_fill.get_or_insert(now + behaviour.delay());
        let step = step_of(order.qty, behaviour.steps);
        while due <= now && self.orders[index].status.is_open() {
            let qty = step.min(self.orders[index].remaining());
            events.push(self.fill(index, qty, price, now));
            due += behaviour.interval();
            if self.orders[index].status.is_open() {
                self.orders[index].next_fill = Some(due);
            }
        }
    }

    fn fill(&mut self, index: usize, qty: Decimal, price: Decimal, now: Timestamp) -> BookEvent {
        let order = &mut self.orders[index];
        let before = order.filled_qty * order.filled_avg_price.unwrap_or_default();
        order.filled_qty += qty;
        order.filled_avg_price = Some(((before + qty * price) / order.filled_qty).round_dp(9));
        order.filled_at = Some(now);
        order.updated_at = now;
        let change = order.side.signed(qty);
        let (id, symbol, side, closing) = (order.id.clone(), order.symbol.clone(), order.side, order.closing);
        self.cash -= change * price;
        let position = self.hold(&symbol, change, price);
        let order = &mut self.orders[index];
        if order.remaining().is_zero() {
            self.finish(index, OrderStatus::Filled, now);
        } else if order.status != OrderStatus::PendingCancel {
            order.status = OrderStatus::PartiallyFilled;
        }
        BookEvent::Fill { order_id: id, symbol, side, qty, price, position, closing }
    }

    fn hold(&mut self, symbol: &str, change: Decimal, price: Decimal) -> Decimal {
        let zero = Holding { qty: Decimal::ZERO, avg_entry_price: Decimal::ZERO };
        let old = self.holdings.get(symbol).cloned().unwrap_or(zero);
        let qty = old.qty + change;
        let same_way = old.qty.is_zero() || (old.qty > Decimal::ZERO) == (change > Decimal::ZERO);
        let avg = if same_way {
            ((old.qty * old.avg_entry_price + change * price) / qty).round_dp(9)
        } else if (old.qty > Decimal::ZERO) == (qty > Decimal::ZERO) {
            old.avg_entry_price
        } else {
            price
        };
        self.set_position(symbol, qty, avg);
        qty
    }

    fn insert(
        &mut self,
        new: &NewOrder,
        qty: Decimal,
        client_order_id: String,
        market: &Market,
        now: Timestamp,
    ) -> usize {
        let index = self.orders.len();
        let id = uuid(self.seed.hash_one(index), index as u64);
        self.by_id.insert(id.clone(), index);
        self.by_client_id.insert(client_order_id.clone(), index);
        self.open.insert(index);
        self.orders.push(Order {
            id,
            client_order_id,
            symbol: new.symbol.clone(),
            side: new.side,
            order_type: new.order_type,
            time_in_force: new.time_in_force,
            qty: qty.normalize(),
            notional: new.notional,
            limit_price: new.limit_price,
            stop_price: new.stop_price.filter(|_| has_stop(new.order_type)),
            trail_price: new.trail_price,
            trail_percent: new.trail_percent,
            hwm: None,
            status: if market.open { OrderStatus::New } else { OrderStatus::Accepted },
            filled_qty: Decimal::ZERO,
            filled_avg_price: None,
            submitted_at: now,
            updated_at: now,
            filled_at: None,
            canceled_at: None,
            replaced_at: None,
            replaced_by: None,
            replaces: None,
            closing: false,
            triggered: false,
            next_fill: None,
            cancel_due: None,
        });
        index
    }

    fn finish(&mut self, index: usize, status: OrderStatus, now: Timestamp) {
        self.open.remove(&index);
        let order = &mut self.orders[index];
        order.status = status;
        order.updated_at = now;
        order.next_fill = None;
        order.cancel_due = None;
        match status {
            OrderStatus::Canceled => order.canceled_at = Some(now),
            OrderStatus::Replaced => order.replaced_at = Some(now),
            _ => {}
        }
    }

    fn reopen(&mut self, index: usize, order: Order) {
        self.orders[index] = order;
        self.open.insert(index);
    }

    pub(super) fn index(&self, id: &str) -> Result<usize, Refusal> {
        self.by_id.get(id).copied().ok_or_else(|| Refusal::new(404, 40_410_000, format!("order not found for {id}")))
    }

    fn take_client_id(&self, wanted: Option<&str>) -> Result<String, Refusal> {
        let Some(id) = wanted.filter(|id| !id.is_empty()) else {
            let n = self.orders.len();
            return Ok(uuid(self.seed.hash_one(("client", n)), n as u64));
        };
        if id.len() > 128 {
            return Err(Refusal::invalid("client_order_id must be no more than 128 characters"));
        }
        if self.by_client_id.contains_key(id) {
            // Seen by users: 422 {"code":40010001,"message":"client_order_id must be unique"}.
            return Err(Refusal::invalid("client_order_id must be unique"));
        }
        Ok(id.to_owned())
    }

    fn may_trade(&self) -> Result<(), Refusal> {
        if self.blocked {
            return Err(Refusal::new(403, 40_310_000, "account is not authorized to trade"));
        }
        if self.settings.suspend_trade {
            // The reply to an order while `suspend_trade` is set: https://github.com/Lumiwealth/lumibot/issues/373
            return Err(Refusal::new(403, 40_310_000, "new orders are rejected by user request"));
        }
        Ok(())
    }

    pub(super) fn reduces(&self, symbol: &str, side: Side) -> bool {
        self.holdings.get(symbol).is_some_and(|h| (h.qty > Decimal::ZERO) == (side == Side::Sell))
    }

    pub(super) fn held_by_orders(&self, symbol: &str, side: Side) -> (Decimal, Vec<&str>) {
        let orders = self.open.iter().map(|&i| &self.orders[i]).filter(|o| o.symbol == symbol && o.side == side);
        orders.fold((Decimal::ZERO, Vec::new()), |(sum, mut ids), order| {
            ids.push(order.id.as_str());
            (sum + order.remaining(), ids)
        })
    }

    /// A position cannot be closed beyond zero, nor both ways be opened at once: the long side must be gone before a
    /// short one is opened (<https://github.com/alpacahq/alpaca-trade-api-python/issues/129>).
    fn check_position(&self, symbol: &str, side: Side, qty: Decimal) -> Result<(), Refusal> {
        if self.reduces(symbol, side) {
            let existing = self.holdings[symbol].qty.abs();
            let (held, related) = self.held_by_orders(symbol, side);
            let available = (existing - held).max(Decimal::ZERO);
            if qty > available {
                let (wanted, left) = (text(qty), text(available));
                let message = format!("insufficient qty available for order (requested: {wanted}, available: {left})");
                let mut refusal = Refusal::new(403, 40_310_000, message);
                refusal.details.insert("available".into(), json!(left));
                refusal.details.insert("existing_qty".into(), json!(text(existing)));
                refusal.details.insert("held_for_orders".into(), json!(text(held)));
                refusal.details.insert("related_orders".into(), json!(related));
                refusal.details.insert("symbol".into(), json!(symbol));
                return Err(refusal);
            }
            return Ok(());
        }
        let flat = !self.holdings.contains_key(symbol);
        let opposite = if side == Side::Buy { Side::Sell } else { Side::Buy };
        if flat && !self.held_by_orders(symbol, opposite).1.is_empty() {
            let message = match side {
                Side::Sell => "cannot open a short sell while a long buy order is open",
                Side::Buy => "cannot open a long buy while a short sell order is open",
            };
            return Err(Refusal::new(403, 40_310_000, message));
        }
        if side == Side::Sell && self.settings.no_shorting {
            return Err(Refusal::new(403, 40_310_000, "account is not allowed to short"));
        }
        Ok(())
    }
}
