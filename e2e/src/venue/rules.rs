//! Rules of single orders: their shape, stops, limits and parts.

use rust_decimal::Decimal;

use super::order::{NewOrder, Order, OrderType, Refusal, Side};

/// Whether the order type is given a stop price by the client.
pub(super) fn has_stop(kind: OrderType) -> bool {
    matches!(kind, OrderType::Stop | OrderType::StopLimit)
}

/// Each order type takes exactly its own price fields.
pub(super) fn check_shape(new: &NewOrder) -> Result<(), Refusal> {
    if !matches!(new.order_class.as_deref(), None | Some("" | "simple")) {
        return Err(Refusal::invalid("order_class: this venue takes simple orders only"));
    }
    if new.symbol.is_empty() || !new.symbol.bytes().all(|b| b.is_ascii_alphanumeric() || b"./".contains(&b)) {
        return Err(Refusal::invalid(format!("asset \"{}\" not found", new.symbol)));
    }
    let limited = matches!(new.order_type, OrderType::Limit | OrderType::StopLimit);
    let trailing = new.order_type == OrderType::TrailingStop;
    let trails = usize::from(new.trail_price.is_some()) + usize::from(new.trail_percent.is_some());
    let problem = if limited != new.limit_price.is_some() {
        if limited { "limit orders require a limit price" } else { "only limit orders take a limit price" }
    } else if has_stop(new.order_type) != new.stop_price.is_some() {
        if has_stop(new.order_type) { "stop orders require a stop price" } else { "only stop orders take a stop price" }
    } else if trails != usize::from(trailing) {
        if trailing {
            "trailing stop orders must specify one of trail_price or trail_percent"
        } else {
            "only trailing stop orders take a trail"
        }
    } else if [new.limit_price, new.stop_price, new.trail_price, new.trail_percent]
        .iter()
        .flatten()
        .any(|p| *p <= Decimal::ZERO)
    {
        "prices must be > 0"
    } else {
        return Ok(());
    };
    Err(Refusal::invalid(problem))
}

/// Lets a trailing stop follow the price, and notes when a stop was reached.
pub(super) fn follow(order: &mut Order, price: Decimal) {
    if order.order_type == OrderType::TrailingStop && !order.triggered {
        let best = match (order.hwm, order.side) {
            (None, _) => price,
            (Some(seen), Side::Sell) => seen.max(price),
            (Some(seen), Side::Buy) => seen.min(price),
        };
        let percent = order.trail_percent.map(|p| best * p / Decimal::ONE_HUNDRED);
        let distance = order.trail_price.or(percent).unwrap_or_default();
        order.hwm = Some(best);
        order.stop_price = Some(if order.side == Side::Sell { best - distance } else { best + distance });
    }
    if let Some(stop) = order.stop_price {
        order.triggered |= if order.side == Side::Sell { price <= stop } else { price >= stop };
    }
}

/// Whether the order may fill at this price.
pub(super) fn marketable(order: &Order, price: Decimal) -> bool {
    let in_limit = order.limit_price.is_none_or(|l| if order.side == Side::Buy { price <= l } else { price >= l });
    (order.stop_price.is_none() || order.triggered) && in_limit
}

/// The size of one partial fill: whole shares where the order is in whole shares.
pub(super) fn step_of(qty: Decimal, steps: u32) -> Decimal {
    let part = qty / Decimal::from(steps.max(1));
    let part = if qty.fract().is_zero() { part.ceil() } else { part.round_dp(9) };
    if part.is_zero() { qty } else { part }
}
