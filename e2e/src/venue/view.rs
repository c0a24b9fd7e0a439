//! Reading a book.

use rust_decimal::Decimal;

use super::book::Book;
use super::market::Market;
use super::order::{Order, Position, Refusal, Side, asset_id};

impl Book {
    /// Every order, oldest first.
    pub fn orders(&self) -> &[Order] {
        &self.orders
    }

    /// The open orders, oldest first.
    pub fn open_orders(&self) -> impl Iterator<Item = &Order> {
        self.open.iter().map(|&i| &self.orders[i])
    }

    /// One order.
    pub fn order(&self, id: &str) -> Result<&Order, Refusal> {
        self.index(id).map(|i| &self.orders[i])
    }

    /// One order by the client's identifier.
    pub fn order_by_client_id(&self, id: &str) -> Result<&Order, Refusal> {
        let index = self.by_client_id.get(id);
        index
            .map(|&i| &self.orders[i])
            .ok_or_else(|| Refusal::new(404, 40_410_000, format!("order not found for {id}")))
    }

    /// Every position, by symbol.
    pub fn positions(&self, market: &Market) -> Vec<Position> {
        self.holdings.keys().filter_map(|symbol| self.position(symbol, market).ok()).collect()
    }

    /// One position, by symbol or asset id.
    pub fn position(&self, symbol_or_id: &str, market: &Market) -> Result<Position, Refusal> {
        let symbol = self.symbol_of(symbol_or_id);
        let holding =
            self.holdings.get(symbol).ok_or_else(|| Refusal::new(404, 40_410_000, "position does not exist"))?;
        let side = if holding.qty > Decimal::ZERO { Side::Sell } else { Side::Buy };
        let held = self.held_by_orders(symbol, side).0.min(holding.qty.abs());
        Ok(Position {
            symbol: symbol.to_owned(),
            qty: holding.qty,
            avg_entry_price: holding.avg_entry_price,
            available: holding.qty.abs() - held,
            current_price: market.price(symbol),
            opened_at: self.opened.get(symbol).copied(),
        })
    }

    /// The symbol that an asset id stands for, among the positions; anything else is taken as a symbol.
    pub fn symbol_of<'a>(&'a self, symbol_or_id: &'a str) -> &'a str {
        self.holdings.keys().find(|symbol| asset_id(symbol) == symbol_or_id).map_or(symbol_or_id, String::as_str)
    }

    /// Cash less what open buy orders may cost.
    pub fn buying_power(&self, market: &Market) -> Decimal {
        let buys = self.open_orders().filter(|o| o.side == Side::Buy && !self.reduces(&o.symbol, Side::Buy));
        let cost: Decimal = buys
            .map(|o| o.remaining() * o.limit_price.or(o.stop_price).unwrap_or_else(|| market.price(&o.symbol)))
            .sum();
        (self.cash - cost).max(Decimal::ZERO)
    }
}
