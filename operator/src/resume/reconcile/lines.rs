//! What each side says, made comparable: no clock, no calls. A line that cannot be understood is an error, never left out.

use rust_decimal::Decimal;
use standfast_crds::v1alpha1::{BotView, Compared, PositionSide, PositionSummary};

use super::compare::Line;
use crate::calls::{
    Order,
    document::{Document, ListPath, Node, Path, Scalar},
    number,
};

/// Lines of one side at most.
const LINES: usize = 10_000;

/// The bot's lines in its answer.
pub fn of_bot(compared: Compared, view: &BotView, answer: &Document) -> Result<Vec<Line>, String> {
    let items = ListPath::parse(view.items.as_deref().unwrap_or("$[*]")).map_err(|why| format!("items: {why}"))?;
    let path = |name: &str, given: &Option<String>, default: &str| {
        Path::parse(given.as_deref().unwrap_or(default)).map_err(|why| format!("fields.{name}: {why}"))
    };
    let symbol = path("symbol", &view.fields.symbol, "$.symbol")?;
    let quantity = path("quantity", &view.fields.quantity, "$.quantity")?;
    let id = path("clientOrderId", &view.fields.client_order_id, "$.client_order_id")?;
    let nodes = items.select(answer.root())?;
    if nodes.len() > LINES {
        return Err(format!("there are more than {LINES} lines"));
    }
    let line = |(number, node): (usize, Node<'_>)| {
        let part = |path: &Path| {
            let found = node.one(path).map_err(|why| format!("line {number}: {why}"))?;
            Ok::<_, String>(found.and_then(Scalar::into_text).filter(|t| !t.is_empty()))
        };
        let client_order_id = if by_order(compared) { part(&id)? } else { None };
        if by_order(compared) && client_order_id.is_none() {
            return Err(format!("line {number} has no client order id at {id}"));
        }
        let symbol = match (part(&symbol)?, compared) {
            (Some(symbol), _) => symbol,
            (None, Compared::Balance) => BALANCE.into(),
            (None, _) => return Err(format!("line {number} has no symbol at {symbol}")),
        };
        let quantity = amount(part(&quantity)?, &format!("line {number}, {symbol}"), &quantity.to_string())?;
        Ok(Line { symbol, quantity, client_order_id })
    };
    (1..).zip(nodes).map(line).collect()
}

/// The symbol of a balance that names none.
const BALANCE: &str = "balance";

/// A balance that the venue tells.
pub fn of_balance(text: &str) -> Result<Vec<Line>, String> {
    let quantity = amount(Some(text.to_owned()), "the balance", "its path")?;
    Ok(vec![Line { symbol: BALANCE.into(), quantity, client_order_id: None }])
}

/// Orders, or fills, of a venue.
pub fn of_orders(orders: &[Order]) -> Result<Vec<Line>, String> {
    let line = |(number, order): (usize, &Order)| {
        let order = &order.summary;
        let symbol = order.symbol.clone().ok_or_else(|| format!("item {number} has no symbol: check fields.symbol"))?;
        let quantity = amount(order.quantity.clone(), &format!("item {number}, {symbol}"), "fields.quantity")?;
        Ok(Line { symbol, quantity, client_order_id: order.client_order_id.clone().filter(|id| !id.is_empty()) })
    };
    (1..).zip(orders).map(line).collect()
}

/// Positions of a venue, short ones negative.
pub fn of_positions(positions: &[PositionSummary]) -> Result<Vec<Line>, String> {
    let line = |(number, position): (usize, &PositionSummary)| {
        let symbol =
            position.symbol.clone().ok_or_else(|| format!("item {number} has no symbol: check fields.symbol"))?;
        let quantity = amount(position.quantity.clone(), &format!("item {number}, {symbol}"), "fields.quantity")?;
        let quantity = if position.side == Some(PositionSide::Short) { -quantity.abs() } else { quantity };
        Ok(Line { symbol, quantity, client_order_id: None })
    };
    (1..).zip(positions).map(line).collect()
}

fn amount(text: Option<String>, line: &str, path: &str) -> Result<Decimal, String> {
    let text = text.ok_or_else(|| format!("{line} has no quantity at {path}"))?;
    number::exact(&text).ok_or_else(|| format!("{line} has a quantity that is no number of at most 28 digits"))
}

fn by_order(compared: Compared) -> bool {
    matches!(compared, Compared::OpenOrders | Compared::Fills)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};
    use standfast_crds::v1alpha1::OrderSummary;

    use super::*;

    fn view(more: Value) -> BotView {
        let mut view = json!({"http": {"url": "http://books.bots.svc/positions"}});
        for (name, value) in more.as_object().unwrap() {
            view[name] = value.clone();
        }
        serde_json::from_value(view).unwrap()
    }

    fn told(lines: &[Line]) -> Vec<String> {
        let id = |l: &Line| l.client_order_id.as_deref().map(|id| format!(" {id}")).unwrap_or_default();
        lines.iter().map(|l| format!("{} {}{}", l.symbol, l.quantity, id(l))).collect()
    }

    #[rstest]
    #[case::plain(Compared::Positions, json!({}), json!([{"symbol": "A", "quantity": "-1.50"}, {"symbol": "B", "quantity": 2}]), &["A -1.50", "B 2"])]
    #[case::elsewhere(
        Compared::Positions, json!({"items": "$.rows[*]", "fields": {"symbol": "$.s", "quantity": "$.n"}}),
        json!({"rows": [{"s": "A", "n": 1}]}), &["A 1"]
    )]
    #[case::none(Compared::Positions, json!({}), json!([]), &[])]
    #[case::orders(Compared::OpenOrders, json!({}), json!([{"symbol": "A", "quantity": 1, "client_order_id": "x"}]), &["A 1 x"])]
    #[case::a_balance_needs_no_symbol(Compared::Balance, json!({}), json!([{"quantity": "12.3"}]), &["balance 12.3"])]
    fn lines_of_the_bot(
        #[case] compared: Compared,
        #[case] more: Value,
        #[case] answer: Value,
        #[case] expected: &[&str],
    ) {
        assert_eq!(told(&of_bot(compared, &view(more), &Document::of(answer)).unwrap()), expected);
    }

    #[rstest]
    #[case::no_list(Compared::Positions, json!({"error": "x"}), "the answer has no list at $")]
    #[case::no_symbol(Compared::Positions, json!([{"quantity": 1}]), "line 1 has no symbol at $.symbol")]
    #[case::no_quantity(Compared::Positions, json!([{"symbol": "A"}]), "line 1, A has no quantity at $.quantity")]
    #[case::null(Compared::Positions, json!([{"symbol": "A", "quantity": null}]), "line 1, A has no quantity at $.quantity")]
    #[case::not_a_number(
        Compared::Positions, json!([{"symbol": "A", "quantity": "NaN"}]),
        "line 1, A has a quantity that is no number of at most 28 digits"
    )]
    #[case::no_id(
        Compared::Fills, json!([{"symbol": "A", "quantity": 1}]), "line 1 has no client order id at $.client_order_id"
    )]
    fn what_is_not_understood_is_an_error(#[case] compared: Compared, #[case] answer: Value, #[case] expected: &str) {
        assert_eq!(of_bot(compared, &view(json!({})), &Document::of(answer)).unwrap_err(), expected);
    }

    #[test]
    fn lines_of_a_venue() {
        let order = |symbol: Option<&str>, quantity: &str, id: Option<&str>| Order {
            summary: serde_json::from_value::<OrderSummary>(
                json!({"symbol": symbol, "quantity": quantity, "clientOrderId": id}),
            )
            .unwrap(),
            protective: false,
        };
        let known = [order(Some("A"), "1", Some("x")), order(Some("B"), "2", Some("")), order(Some("C"), "3", None)];
        assert_eq!(told(&of_orders(&known).unwrap()), ["A 1 x", "B 2", "C 3"]);
        assert_eq!(of_orders(&[order(None, "1", None)]).unwrap_err(), "item 1 has no symbol: check fields.symbol");
        assert!(of_orders(&[order(Some("A"), "many", None)]).is_err());
        let position = |quantity: &str, side: Option<PositionSide>| {
            let position = json!({"symbol": "A", "quantity": quantity, "side": side});
            serde_json::from_value::<PositionSummary>(position).unwrap()
        };
        let known =
            [position("5", Some(PositionSide::Short)), position("-5", None), position("5", Some(PositionSide::Long))];
        assert_eq!(told(&of_positions(&known).unwrap()), ["A -5", "A -5", "A 5"]);
        assert_eq!(told(&of_balance("1.20").unwrap()), ["balance 1.20"]);
    }
}
