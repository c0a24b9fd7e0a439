//! Tests of the book, step by step, with time and prices given.

use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;

use super::book::{Book, BookEvent};
use super::market::{Behaviour, Market};
use super::order::{CloseAmount, NewOrder, OrderStatus, OrderType, Replacement, Side};

struct Desk {
    book: Book,
    market: Market,
    behaviour: Behaviour,
    now: Timestamp,
}

impl Desk {
    fn new() -> Self {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let book = Book::new(Decimal::from(100_000), now);
        Desk { book, market: Market::default(), behaviour: Behaviour::default(), now }
    }

    fn holding(symbol: &str, qty: i64) -> Self {
        let mut desk = Self::new();
        desk.book.set_position(symbol, qty.into(), Decimal::ONE_HUNDRED);
        desk
    }

    fn price(&mut self, symbol: &str, price: i64) -> Vec<BookEvent> {
        self.market.prices.insert(symbol.to_owned(), price.into());
        self.pass(0)
    }

    fn pass(&mut self, ms: i64) -> Vec<BookEvent> {
        self.now += SignedDuration::from_millis(ms);
        self.book.advance(&self.market, &self.behaviour, self.now)
    }

    fn submit(&mut self, order: &NewOrder) -> String {
        self.try_submit(order).unwrap()
    }

    fn try_submit(&mut self, order: &NewOrder) -> Result<String, super::Refusal> {
        self.now += SignedDuration::from_micros(1);
        self.book.submit(order, &self.market, self.now).map(|order| order.id.clone())
    }

    fn close(&mut self, symbol: &str, amount: CloseAmount) -> Result<String, super::Refusal> {
        self.book.close(symbol, amount, &self.market, self.now).map(|order| order.id.clone())
    }

    fn status(&self, id: &str) -> OrderStatus {
        self.book.order(id).unwrap().status
    }

    fn held(&self, symbol: &str) -> Decimal {
        self.book.position(symbol, &self.market).map_or(Decimal::ZERO, |p| p.qty)
    }
}

fn filled(events: &[BookEvent]) -> Vec<Decimal> {
    let fills = events.iter().filter_map(|e| if let BookEvent::Fill { qty, .. } = e { Some(*qty) } else { None });
    fills.collect()
}

fn d(number: i64) -> Decimal {
    number.into()
}

#[test]
fn a_market_order_fills_after_its_delay_and_moves_cash() {
    let mut desk = Desk::new();
    desk.behaviour.fill_delay_ms = 50;
    let id = desk.submit(&NewOrder::market("AAPL", Side::Buy, 10));
    assert_eq!(desk.pass(0), []);
    assert_eq!(desk.pass(49), []);
    assert_eq!(desk.book.next_due(), Some(desk.now + SignedDuration::from_millis(1)));
    assert_eq!(filled(&desk.pass(1)), [d(10)]);
    assert_eq!(desk.status(&id), OrderStatus::Filled);
    assert_eq!((desk.held("AAPL"), desk.book.cash), (d(10), d(99_000)));
    assert_eq!(desk.book.next_due(), None);
}

#[test]
fn partial_fills_come_in_whole_shares_and_add_up() {
    let mut desk = Desk::new();
    desk.behaviour = Behaviour { steps: 3, step_interval_ms: 10, ..Behaviour::default() };
    let id = desk.submit(&NewOrder::market("AAPL", Side::Buy, 10));
    assert_eq!(filled(&desk.pass(0)), [d(4)]);
    assert_eq!(desk.status(&id), OrderStatus::PartiallyFilled);
    desk.price("AAPL", 110);
    assert_eq!(filled(&desk.pass(25)), [d(4), d(2)]);
    let order = desk.book.order(&id).unwrap();
    assert_eq!((order.status, order.filled_qty), (OrderStatus::Filled, d(10)));
    assert_eq!(order.filled_avg_price, Some(d(106)));
}

#[test]
fn limits_and_stops_rest_until_the_price_crosses() {
    let mut desk = Desk::holding("AAPL", 30);
    let buy = desk.submit(&NewOrder::limit("AAPL", Side::Buy, 5, 95));
    let stop = desk.submit(&NewOrder::stop("AAPL", Side::Sell, 10, 90));
    let limited = NewOrder {
        order_type: OrderType::StopLimit,
        limit_price: Some(d(93)),
        ..NewOrder::stop("AAPL", Side::Sell, 10, 94)
    };
    let limited = desk.submit(&limited);
    assert_eq!(desk.pass(0), []);
    desk.price("AAPL", 95);
    assert_eq!(desk.status(&buy), OrderStatus::Filled);
    assert_eq!((desk.status(&stop), desk.status(&limited)), (OrderStatus::New, OrderStatus::New));
    // 92: the stop-limit is triggered and its limit is not met; then the price comes back to it.
    desk.price("AAPL", 92);
    assert_eq!((desk.status(&stop), desk.status(&limited)), (OrderStatus::New, OrderStatus::New));
    desk.price("AAPL", 96);
    assert_eq!(desk.status(&limited), OrderStatus::Filled);
    desk.price("AAPL", 89);
    assert_eq!((desk.status(&stop), desk.held("AAPL")), (OrderStatus::Filled, d(15)));
}

#[test]
fn a_trailing_stop_follows_the_best_price() {
    let mut desk = Desk::holding("AAPL", 10);
    let order = NewOrder {
        order_type: OrderType::TrailingStop,
        trail_percent: Some(d(10)),
        ..NewOrder::market("AAPL", Side::Sell, 10)
    };
    let id = desk.submit(&order);
    desk.pass(0);
    desk.price("AAPL", 200);
    assert_eq!(desk.book.order(&id).unwrap().stop_price, Some(d(180)));
    desk.price("AAPL", 181);
    assert_eq!(desk.status(&id), OrderStatus::New);
    desk.price("AAPL", 180);
    assert_eq!(desk.status(&id), OrderStatus::Filled);
}

#[test]
fn a_closed_market_accepts_and_waits() {
    let mut desk = Desk::holding("AAPL", 10);
    desk.market.open = false;
    let id = desk.close("AAPL", CloseAmount::All).unwrap();
    assert_eq!((desk.pass(60_000), desk.status(&id)), (vec![], OrderStatus::Accepted));
    desk.market.open = true;
    assert_eq!(filled(&desk.pass(0)), [d(10)]);
    assert_eq!(desk.held("AAPL"), d(0));
}

#[test]
fn what_orders_hold_cannot_be_closed_until_they_are_cancelled() {
    let mut desk = Desk::holding("AAPL", 10);
    let stop = desk.submit(&NewOrder::stop("AAPL", Side::Sell, 7, 90));
    let refusal = desk.close("AAPL", CloseAmount::All).unwrap_err();
    assert_eq!((refusal.status, refusal.code), (403, 40_310_000));
    assert_eq!(refusal.message, "insufficient qty available for order (requested: 10, available: 3)");
    assert_eq!(refusal.details["held_for_orders"], "7");
    assert_eq!(refusal.details["related_orders"][0], stop.as_str());
    assert_eq!(desk.book.position("AAPL", &desk.market).unwrap().available, d(3));

    desk.book.cancel(&stop, SignedDuration::ZERO, desk.now).unwrap();
    desk.close("AAPL", CloseAmount::All).unwrap();
    let again = desk.close("AAPL", CloseAmount::All).unwrap_err();
    assert!(again.message.ends_with("available: 0)"), "the close itself holds the quantity: {again}");
}

#[test]
fn closes_take_a_quantity_or_a_percentage() {
    let mut desk = Desk::holding("AAPL", -8);
    desk.close("AAPL", CloseAmount::Percentage(d(25))).unwrap();
    desk.pass(0);
    assert_eq!(desk.held("AAPL"), d(-6));
    desk.close("AAPL", CloseAmount::Quantity(d(6))).unwrap();
    desk.pass(0);
    assert_eq!(desk.close("AAPL", CloseAmount::All).unwrap_err().status, 404);
    let mut desk = Desk::holding("AAPL", 8);
    assert_eq!(desk.close("AAPL", CloseAmount::Percentage(d(101))).unwrap_err().status, 422);
    assert_eq!(desk.close("AAPL", CloseAmount::Quantity(d(9))).unwrap_err().status, 403);
}

#[test]
fn a_suspended_account_cancels_but_does_not_order() {
    let mut desk = Desk::holding("AAPL", 10);
    let id = desk.submit(&NewOrder::limit("AAPL", Side::Buy, 1, 50));
    desk.book.settings.suspend_trade = true;
    let refusal = desk.try_submit(&NewOrder::market("AAPL", Side::Buy, 1)).unwrap_err();
    assert_eq!(refusal.to_string(), "403 40310000: new orders are rejected by user request");
    let change = Replacement { limit_price: Some(d(51)), ..Replacement::default() };
    assert_eq!(desk.book.replace(&id, &change, &desk.market, desk.now).unwrap_err().status, 403);
    assert_eq!(desk.close("AAPL", CloseAmount::All).unwrap_err().status, 403);
    desk.market.suspend_blocks_closing = false;
    desk.close("AAPL", CloseAmount::All).unwrap();
    desk.book.cancel(&id, SignedDuration::ZERO, desk.now).unwrap();
    assert_eq!(desk.status(&id), OrderStatus::Canceled);
}

#[test]
fn a_slow_cancel_can_lose_against_a_fill() {
    let mut desk = Desk::new();
    let delay = SignedDuration::from_millis(100);
    let lost = desk.submit(&NewOrder::limit("AAPL", Side::Buy, 1, 90));
    let won = desk.submit(&NewOrder::limit("AAPL", Side::Buy, 1, 80));
    for id in [&lost, &won] {
        desk.book.cancel(id, delay, desk.now).unwrap();
        desk.book.cancel(id, delay, desk.now).unwrap();
        assert_eq!(desk.status(id), OrderStatus::PendingCancel);
    }
    assert_eq!(desk.book.open_orders().count(), 2);
    desk.price("AAPL", 85);
    assert_eq!(desk.status(&lost), OrderStatus::Filled);
    let canceled = BookEvent::Canceled { order_id: won.clone(), symbol: "AAPL".into() };
    assert_eq!(desk.pass(100), [canceled]);
    for (id, word) in [(&lost, "filled"), (&won, "canceled")] {
        let refusal = desk.book.cancel(id, delay, desk.now).unwrap_err();
        assert_eq!(refusal.to_string(), format!("422 42210000: order is already in \"{word}\" state"));
    }
    desk.book.revive(&won, desk.now).unwrap();
    assert_eq!(desk.status(&won), OrderStatus::New);
    assert!(desk.book.revive(&lost, desk.now).is_err());
}

#[test]
fn a_client_order_id_is_used_once() {
    let mut desk = Desk::new();
    let order = NewOrder::limit("AAPL", Side::Buy, 1, 50).id("mine");
    let id = desk.submit(&order);
    desk.book.cancel(&id, SignedDuration::ZERO, desk.now).unwrap();
    let refusal = desk.try_submit(&order).unwrap_err();
    assert_eq!(refusal.to_string(), "422 40010001: client_order_id must be unique");
    assert_eq!(desk.book.order_by_client_id("mine").unwrap().id, id);
    assert_eq!(desk.try_submit(&order.id(&"x".repeat(129))).unwrap_err().status, 422);
}

#[test]
fn a_replacement_takes_the_place_of_the_order() {
    let mut desk = Desk::holding("AAPL", 10);
    let old = desk.submit(&NewOrder::limit("AAPL", Side::Sell, 10, 120));
    let change = Replacement { limit_price: Some(d(130)), ..Replacement::default() };
    let new = desk.book.replace(&old, &change, &desk.market, desk.now).unwrap().clone();
    assert_eq!((new.limit_price, new.qty, new.replaces.as_deref()), (Some(d(130)), d(10), Some(old.as_str())));
    assert_eq!(desk.status(&old), OrderStatus::Replaced);
    assert_eq!(desk.book.order(&old).unwrap().replaced_by, Some(new.id.clone()));
    // More than there is: refused, and the order stays as it was.
    let change = Replacement { qty: Some(d(11)), ..Replacement::default() };
    assert_eq!(desk.book.replace(&new.id, &change, &desk.market, desk.now).unwrap_err().status, 403);
    assert_eq!(desk.status(&new.id), OrderStatus::New);
    assert_eq!(desk.book.open_orders().count(), 1);
}

#[test]
fn orders_are_refused_that_no_broker_takes() {
    let mut desk = Desk::new();
    let limit = NewOrder::limit("AAPL", Side::Buy, 1, 50);
    let cases = [
        (NewOrder { limit_price: None, ..limit.clone() }, 422, "limit orders require a limit price"),
        (NewOrder { stop_price: Some(d(1)), ..limit.clone() }, 422, "only stop orders take a stop price"),
        (NewOrder { qty: None, ..limit.clone() }, 422, "qty or notional is required"),
        (NewOrder { qty: Some(d(0)), ..limit.clone() }, 422, "qty must be > 0"),
        (NewOrder { limit_price: Some(d(-1)), ..limit.clone() }, 422, "prices must be > 0"),
        (
            NewOrder { order_class: Some("oco".into()), ..limit.clone() },
            422,
            "order_class: this venue takes simple orders only",
        ),
        (NewOrder { symbol: "A B".into(), ..limit.clone() }, 422, "asset \"A B\" not found"),
        (NewOrder::market("AAPL", Side::Buy, 1001), 403, "insufficient buying power"),
        (
            NewOrder { order_type: OrderType::TrailingStop, limit_price: None, ..limit.clone() },
            422,
            "trailing stop orders must specify one of trail_price or trail_percent",
        ),
    ];
    for (order, status, message) in cases {
        let refusal = desk.try_submit(&order).unwrap_err();
        assert_eq!((refusal.status, refusal.message.as_str()), (status, message), "{order:?}");
    }
    desk.submit(&limit);
    let short = desk.try_submit(&NewOrder::market("AAPL", Side::Sell, 1)).unwrap_err();
    assert_eq!(short.message, "cannot open a short sell while a long buy order is open");
    desk.submit(&NewOrder::market("MSFT", Side::Sell, 1));
    desk.pass(0);
    assert_eq!(desk.held("MSFT"), d(-1));
}

#[test]
fn notional_orders_buy_for_an_amount() {
    let mut desk = Desk::new();
    desk.price("AAPL", 300);
    let order = NewOrder { qty: None, notional: Some(d(100)), ..NewOrder::market("AAPL", Side::Buy, 1) };
    let id = desk.submit(&order);
    desk.pass(0);
    let order = desk.book.order(&id).unwrap();
    assert_eq!(order.filled_qty, "0.333333333".parse().unwrap());
    assert_eq!((&order.to_json()["qty"], &order.to_json()["notional"]), (&serde_json::Value::Null, &"100".into()));
}
