//! Where the bot's view of its account and a venue's differ: no clock, no calls.

use std::collections::{BTreeMap, BTreeSet};

use rust_decimal::Decimal;
use standfast_crds::v1alpha1::{Break, BreakKind, Compared, Comparison, shorten};

/// Breaks that a status lists at most. With more of them nothing is resumed, and none can be accepted.
pub const BREAK_LIMIT: usize = 256;

/// One position, order, fill or balance, as one side knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The symbol.
    pub symbol: String,
    /// How much: of a position with its sign, a short one is negative.
    pub quantity: Decimal,
    /// The id that the client chose, of an order or fill. What was placed by hand has none.
    pub client_order_id: Option<String>,
}

/// What one side knows, by what the other side must know too.
type Book<'a> = BTreeMap<(Option<&'a str>, &'a str), Decimal>;

/// Where the two sides differ by more than the tolerance. The error says why they cannot be compared.
pub fn breaks(comparison: &Comparison, bot: &[Line], venue: &[Line]) -> Result<Vec<Break>, String> {
    let tolerance = tolerance(comparison)?;
    let (bot, venue) = (book(comparison.compare, bot, "the bot")?, book(comparison.compare, venue, "the venue")?);
    let keys: BTreeSet<_> = bot.keys().chain(venue.keys()).copied().collect();
    let mut found = vec![];
    for key in keys {
        let (ours, theirs) = (bot.get(&key), venue.get(&key));
        let difference = theirs
            .copied()
            .unwrap_or_default()
            .checked_sub(ours.copied().unwrap_or_default())
            .ok_or("the quantities have too many digits to be compared")?;
        // An order that one side does not know is a break, however small it is.
        let unknown = by_order(comparison.compare) && (ours.is_none() || theirs.is_none());
        if difference.abs() <= tolerance && !unknown {
            continue;
        }
        let (client_order_id, symbol) = key;
        found.push(Break {
            venue: comparison.venue.clone(),
            symbol: symbol.to_owned(),
            kind: kind(comparison.compare),
            difference: rounded(difference, tolerance).to_string(),
            client_order_id: client_order_id.map(str::to_owned),
        });
    }
    Ok(found)
}

/// The breaks that none of these lists names. What is accepted may have become less in between.
pub fn remaining(current: &[Break], accepted: &[Break]) -> Vec<Break> {
    current.iter().filter(|b| !accepted.contains(b)).cloned().collect()
}

/// Breaks in words, the first ones with symbol and size.
pub fn in_words(breaks: &[Break]) -> String {
    let said = |b: &Break| {
        let id = b.client_order_id.as_deref().map(|id| format!(" {id}")).unwrap_or_default();
        format!("{} {:?}{id} at {}: venue minus bot {}", b.symbol, b.kind, b.venue, b.difference)
    };
    let first: Vec<_> = breaks.iter().take(3).map(said).collect();
    let more = if breaks.len() > 3 { format!("; and {} more", breaks.len() - 3) } else { String::new() };
    let what = if breaks.len() == 1 { "break" } else { "breaks" };
    shorten(&format!("{} {what}: {}{more}", breaks.len(), first.join("; ")))
}

fn tolerance(comparison: &Comparison) -> Result<Decimal, String> {
    let text = comparison.tolerance.as_deref().unwrap_or("0");
    text.parse().map_err(|_| format!("the tolerance {text:?} is not a decimal number of at most 28 digits"))
}

fn by_order(compared: Compared) -> bool {
    matches!(compared, Compared::OpenOrders | Compared::Fills)
}

fn kind(compared: Compared) -> BreakKind {
    match compared {
        Compared::Positions => BreakKind::Position,
        Compared::OpenOrders => BreakKind::OpenOrder,
        Compared::Balance => BreakKind::Balance,
        Compared::Fills => BreakKind::Fill,
    }
}

/// The lines of one side brought together: positions by symbol, orders and fills by client order id. Parts of one position
/// and fills of one order add up; an order that is listed twice is not known.
fn book<'a>(compared: Compared, lines: &'a [Line], whose: &str) -> Result<Book<'a>, String> {
    let mut book = Book::new();
    for line in lines {
        let id = line.client_order_id.as_deref().filter(|_| by_order(compared));
        // Which way an order goes has a field of its own at every venue.
        let quantity = if by_order(compared) { line.quantity.abs() } else { line.quantity };
        let twice = compared == Compared::OpenOrders && id.is_some();
        match book.entry((id, line.symbol.as_str())) {
            std::collections::btree_map::Entry::Occupied(_) if twice => {
                return Err(format!("{whose} lists the order {} twice", id.unwrap_or_default()));
            }
            std::collections::btree_map::Entry::Occupied(mut known) => {
                let sum = known.get().checked_add(quantity);
                known.insert(
                    sum.ok_or_else(|| format!("{whose} has quantities of {} with too many digits", line.symbol))?,
                );
            }
            std::collections::btree_map::Entry::Vacant(new) => {
                new.insert(quantity);
            }
        }
    }
    // Nothing held is no position, whether it is listed or not.
    if compared == Compared::Positions {
        book.retain(|_, quantity| !quantity.is_zero());
    }
    Ok(book)
}

/// The difference as a whole number of tolerances, so that a break keeps its name when prices move a little. Never zero.
fn rounded(difference: Decimal, tolerance: Decimal) -> Decimal {
    if tolerance.is_zero() {
        return difference.normalize();
    }
    let steps = difference.checked_div(tolerance).map(|s| s.round()).filter(|s| !s.is_zero());
    steps.and_then(|s| s.checked_mul(tolerance)).unwrap_or(difference).normalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn comparison(compare: &str, tolerance: &str) -> Comparison {
        serde_json::from_value(json!({"name": "books", "venue": "alpaca", "compare": compare, "tolerance": tolerance,
            "bot": {"http": {"url": "http://books.bots.svc/positions"}}}))
        .unwrap()
    }

    fn line(symbol: &str, quantity: &str, id: Option<&str>) -> Line {
        Line { symbol: symbol.into(), quantity: quantity.parse().unwrap(), client_order_id: id.map(Into::into) }
    }

    fn lines(rows: &[(&str, &str, Option<&str>)]) -> Vec<Line> {
        rows.iter().map(|(s, q, id)| line(s, q, *id)).collect()
    }

    type Rows<'a> = &'a [(&'a str, &'a str, Option<&'a str>)];

    #[rstest]
    #[case::equal("Positions", "0", &[("AAPL", "5", None)], &[("AAPL", "5.0", None)], &[])]
    #[case::the_venue_has_more("Positions", "0", &[("AAPL", "5", None)], &[("AAPL", "8", None)], &[("AAPL", "3")])]
    #[case::shorts_have_a_sign("Positions", "0", &[("AAPL", "5", None)], &[("AAPL", "-5", None)], &[("AAPL", "-10")])]
    #[case::only_at_the_venue("Positions", "0", &[], &[("MSFT", "2.50", None)], &[("MSFT", "2.5")])]
    #[case::only_in_the_books("Positions", "0", &[("MSFT", "2", None)], &[], &[("MSFT", "-2")])]
    #[case::nothing_held_is_no_position("Positions", "0", &[("MSFT", "0", None)], &[], &[])]
    #[case::parts_add_up("Positions", "0", &[("A", "1", None), ("A", "2", None)], &[("A", "3", None)], &[])]
    #[case::within_the_tolerance("Positions", "0.01", &[("BTC", "1.005", None)], &[("BTC", "1", None)], &[])]
    #[case::rounded("Positions", "0.01", &[("BTC", "1", None)], &[("BTC", "1.0149", None)], &[("BTC", "0.01")])]
    #[case::an_order_of_nobody("OpenOrders", "0", &[], &[("A", "1", Some("x"))], &[("A", "1")])]
    #[case::an_order_that_is_gone("OpenOrders", "0", &[("A", "1", Some("x"))], &[], &[("A", "-1")])]
    #[case::however_small("OpenOrders", "10", &[], &[("A", "1", Some("x"))], &[("A", "1")])]
    #[case::the_side_is_elsewhere("OpenOrders", "0", &[("A", "-1", Some("x"))], &[("A", "1", Some("x"))], &[])]
    #[case::placed_by_hand("OpenOrders", "0", &[], &[("A", "1", None), ("A", "2", None)], &[("A", "3")])]
    #[case::partial_fills("Fills", "0", &[("A", "3", Some("x"))], &[("A", "1", Some("x")), ("A", "2", Some("x"))], &[])]
    #[case::a_fill_is_missing("Fills", "0", &[], &[("A", "1", Some("x"))], &[("A", "1")])]
    #[case::a_balance("Balance", "1", &[("cash", "100", None)], &[("cash", "90", None)], &[("cash", "-10")])]
    fn differences(
        #[case] compare: &str,
        #[case] tolerance: &str,
        #[case] bot: Rows<'_>,
        #[case] venue: Rows<'_>,
        #[case] expected: &[(&str, &str)],
    ) {
        let found = breaks(&comparison(compare, tolerance), &lines(bot), &lines(venue)).unwrap();
        let found: Vec<_> = found.iter().map(|b| (b.symbol.as_str(), b.difference.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn an_order_that_is_listed_twice_is_not_known() {
        let twice = lines(&[("A", "1", Some("x")), ("A", "1", Some("x"))]);
        let error = breaks(&comparison("OpenOrders", "0"), &twice, &twice).unwrap_err();
        assert_eq!(error, "the bot lists the order x twice");
    }

    #[test]
    fn breaks_are_told_with_symbol_and_size() {
        let venue = lines(&[("A", "1", None), ("B", "2", None), ("C", "-3", None), ("D", "4", None)]);
        let found = breaks(&comparison("Positions", "0"), &[], &venue).unwrap();
        let said = in_words(&found);
        assert!(said.starts_with("4 breaks: A Position at alpaca: venue minus bot 1; B Position"), "{said}");
        assert!(said.ends_with("C Position at alpaca: venue minus bot -3; and 1 more"), "{said}");
    }

    #[test]
    fn only_what_was_shown_is_accepted() {
        let compare = |venue: Rows<'_>| breaks(&comparison("Positions", "0"), &[], &lines(venue)).unwrap();
        let shown = compare(&[("A", "1", None), ("B", "2", None)]);
        assert_eq!(remaining(&compare(&[("B", "2", None)]), &shown), []);
        assert_eq!(remaining(&compare(&[("B", "3", None)]), &shown), compare(&[("B", "3", None)]));
        assert_eq!(remaining(&compare(&[("A", "1", None), ("C", "1", None)]), &shown), compare(&[("C", "1", None)]));
    }

    fn side() -> impl Strategy<Value = Vec<Line>> {
        let id = proptest::option::of("[xyz]");
        proptest::collection::vec(("[ABC]", -9i64..9, 0u32..3, id), 0..6).prop_map(|rows| {
            let line = |(symbol, number, scale, client_order_id)| Line {
                symbol,
                quantity: Decimal::new(number, scale),
                client_order_id,
            };
            rows.into_iter().map(line).collect()
        })
    }

    proptest! {
        #[test]
        fn a_book_agrees_with_itself(lines in side(), compare in "Positions|Fills|Balance") {
            prop_assert_eq!(breaks(&comparison(&compare, "0"), &lines, &lines).unwrap(), []);
        }

        /// The other way round the same breaks, with the other sign: nothing is lost by where it is looked from.
        #[test]
        fn both_sides_see_the_same_breaks(a in side(), b in side(), compare in "Positions|Fills", tolerance in "0|0[.]1|1") {
            let comparison = comparison(&compare, &tolerance);
            let there = breaks(&comparison, &a, &b).unwrap();
            let mut back = breaks(&comparison, &b, &a).unwrap();
            for one in &mut back {
                one.difference = (-one.difference.parse::<Decimal>().unwrap()).normalize().to_string();
            }
            prop_assert_eq!(there, back);
        }

        #[test]
        fn accepting_all_leaves_none(a in side(), b in side()) {
            let found = breaks(&comparison("Positions", "0"), &a, &b).unwrap();
            prop_assert_eq!(remaining(&found, &found), []);
            prop_assert_eq!(remaining(&found, &[]), found);
        }
    }
}
