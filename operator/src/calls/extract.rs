//! Orders and positions in answers.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use rust_decimal::Decimal as Number;
use serde_json::Value;
use standfast_crds::v1alpha1::{
    LossScale, NumberRead, OrderFields, OrderSummary, OrdersRead, PositionFields, PositionSide, PositionSummary,
    PositionsRead,
};
use url::Url;

use super::{
    Order, Orders, Positions, ReadError,
    decimal::Decimal,
    document::{Document, ListPath, Node, Path, Scalar},
    expect, number,
};

/// The longest part of an order or position, in characters: no status takes a longer one.
const PART: usize = 256;
/// The longest token or address of a next page, in characters; a url is no longer.
const NEXT: usize = 2048;

/// What is made of an item, and kept.
pub trait Kept {
    /// How much text that is.
    fn bytes(&self) -> usize;
}

impl Kept for Order {
    fn bytes(&self) -> usize {
        let OrderSummary { id, client_order_id, symbol, type_, side, quantity } = &self.summary;
        [id, client_order_id, symbol, type_, side, quantity].into_iter().flatten().map(String::len).sum()
    }
}

impl Kept for PositionSummary {
    fn bytes(&self) -> usize {
        let Self { symbol, quantity, market_value, unrealized_loss_percent, side: _, opened_at: _ } = self;
        [symbol, quantity, market_value, unrealized_loss_percent].into_iter().flatten().map(String::len).sum()
    }
}

/// What a page says.
#[derive(Debug)]
pub enum Page<T> {
    /// The source only counts.
    Count(usize),
    /// The items, and the token or address of the next page.
    Items {
        /// What stands on the page.
        items: Vec<T>,
        /// Where it goes on.
        next: Option<String>,
    },
}

/// How a read is evaluated: its paths, ready for use.
#[derive(Debug)]
pub struct Reader<T> {
    count: Option<Path>,
    items: ListPath,
    page_size: Option<usize>,
    next: Option<Path>,
    next_parameter: Option<String>,
    parts: Parts<T>,
}

type Parts<T> = Box<dyn ItemParser<T>>;

/// Makes something of one item; `None` when it is not one after all.
trait ItemParser<T>: Send + Sync + std::fmt::Debug {
    fn parse(&self, item: Node<'_>) -> Result<Option<T>, String>;
}

/// The settings that reads of orders and of positions share.
struct Source<'a> {
    items: Option<&'a str>,
    default_items: &'a str,
    count: Option<&'a str>,
    page_size: Option<u32>,
    next: Option<&'a str>,
    next_parameter: Option<&'a str>,
}

/// Prepares a read of orders. The error says which part of it is wrong.
pub fn order_reader(read: &OrdersRead) -> Result<Reader<Order>, ReadError> {
    let source = Source {
        items: read.items.as_deref(),
        default_items: if read.job.is_some() { "$.openOrders[*]" } else { "$[*]" },
        count: read.count.as_deref(),
        page_size: read.page_size,
        next: read.next.as_deref(),
        next_parameter: read.next_parameter.as_deref(),
    };
    source.reader(|| Ok(Box::new(OrderParts::new(&read.fields, &read.protective)?))).map_err(ReadError)
}

/// Prepares a read of positions. The error says which part of it is wrong.
pub fn position_reader(read: &PositionsRead) -> Result<Reader<PositionSummary>, ReadError> {
    let source = Source {
        items: read.items.as_deref(),
        default_items: if read.job.is_some() { "$.positions[*]" } else { "$[*]" },
        count: read.count.as_deref(),
        page_size: read.page_size,
        next: read.next.as_deref(),
        next_parameter: read.next_parameter.as_deref(),
    };
    source.reader(|| Ok(Box::new(PositionParts::new(&read.fields)?))).map_err(ReadError)
}

impl Source<'_> {
    fn reader<T>(&self, parts: impl FnOnce() -> Result<Parts<T>, String>) -> Result<Reader<T>, String> {
        let path =
            |name: &str, text: Option<&str>| text.map(Path::parse).transpose().map_err(|why| format!("{name}: {why}"));
        Ok(Reader {
            count: path("count", self.count)?,
            items: ListPath::parse(self.items.unwrap_or(self.default_items)).map_err(|why| format!("items: {why}"))?,
            page_size: self.page_size.map(|size| size as usize),
            next: path("next", self.next)?,
            next_parameter: self.next_parameter.map(str::to_owned),
            parts: parts()?,
        })
    }
}

impl<T> Reader<T> {
    /// Evaluates one page.
    pub fn page(&self, document: &Document) -> Result<Page<T>, ReadError> {
        self.evaluate(document.root()).map_err(ReadError)
    }

    fn evaluate(&self, root: Node<'_>) -> Result<Page<T>, String> {
        if let Some(path) = &self.count {
            let found = root.one(path)?.ok_or_else(|| format!("the answer has no count at {path}"))?;
            return Ok(Page::Count(whole(found).ok_or_else(|| format!("what stands at {path} is not a count"))?));
        }
        let nodes = self.items.select(root)?;
        let next = match &self.next {
            Some(path) => {
                let next = root.one(path)?.and_then(Scalar::into_text).filter(|next| !next.is_empty());
                short(next, NEXT).map_err(|why| format!("next: what stands at {path} {why}"))?
            }
            None => match self.page_size {
                Some(size) if nodes.len() >= size => {
                    return Err(format!(
                        "the answer is a full page of {} items, so there may be more: this is not a count; give next, \
                         or a larger page and pageSize",
                        nodes.len()
                    ));
                }
                _ => None,
            },
        };
        let mut items = Vec::with_capacity(nodes.len());
        for node in nodes {
            items.extend(self.parts.parse(node)?);
        }
        Ok(Page::Items { items, next })
    }

    /// The address of the next page: of the same host, and for the same credentials.
    pub fn next_url(&self, current: &Url, next: &str) -> Result<Url, ReadError> {
        let url = match &self.next_parameter {
            Some(parameter) => {
                let mut url = current.clone();
                let others: Vec<(String, String)> = current
                    .query_pairs()
                    .filter(|(name, _)| name != parameter)
                    .map(|(k, v)| (k.into(), v.into()))
                    .collect();
                url.query_pairs_mut().clear().extend_pairs(others).append_pair(parameter, next);
                url
            }
            None => current.join(next).map_err(|e| ReadError(format!("the address of the next page is wrong: {e}")))?,
        };
        let origin =
            |url: &Url| (url.scheme().to_owned(), url.host_str().map(str::to_owned), url.port_or_known_default());
        if origin(&url) != origin(current) || !url.username().is_empty() || url.password().is_some() {
            return Err(ReadError(format!(
                "the next page is on another host than {}: it is not followed",
                current.host_str().unwrap_or_default()
            )));
        }
        Ok(url)
    }
}

/// A number of things.
fn whole(found: Scalar) -> Option<usize> {
    let (Scalar::Number(text) | Scalar::Text(text)) = found else { return None };
    let whole = match text.split_once('.') {
        Some((whole, part)) if !part.is_empty() && part.bytes().all(|b| b == b'0') => whole,
        Some(_) => return None,
        None => &text,
    };
    whole.bytes().all(|b| b.is_ascii_digit()).then(|| whole.parse().ok()).flatten()
}

/// Where the parts of an order are.
#[derive(Debug)]
struct OrderParts {
    id: Path,
    client_order_id: Path,
    symbol: Path,
    type_: Path,
    side: Path,
    quantity: Path,
    protective: BTreeMap<String, Vec<String>>,
}

fn field(name: &str, given: Option<&str>, default: &str) -> Result<Path, String> {
    Path::parse(given.unwrap_or(default)).map_err(|why| format!("fields.{name}: {why}"))
}

fn text(item: Node<'_>, path: &Path, name: &str) -> Result<Option<String>, String> {
    let found = item.one(path).map_err(|why| format!("fields.{name}: {why}"))?.and_then(Scalar::into_text);
    short(found, PART).map_err(|why| format!("fields.{name}: what stands at {path} {why}"))
}

/// A text that is not longer than `limit` characters: it is kept, and there are many.
fn short(text: Option<String>, limit: usize) -> Result<Option<String>, String> {
    match text {
        Some(text) if text.chars().count() > limit => Err(format!("is longer than {limit} characters")),
        text => Ok(text),
    }
}

impl OrderParts {
    fn new(fields: &OrderFields, protective: &BTreeMap<String, Vec<String>>) -> Result<Self, String> {
        const NAMES: [&str; 6] = ["id", "clientOrderId", "symbol", "type", "side", "quantity"];
        if let Some(unknown) = protective.keys().find(|name| !NAMES.contains(&name.as_str())) {
            return Err(format!("protective names the field {unknown:?}: use {}", NAMES.join(", ")));
        }
        Ok(Self {
            id: field("id", fields.id.as_deref(), "$.id")?,
            client_order_id: field("clientOrderId", fields.client_order_id.as_deref(), "$.client_order_id")?,
            symbol: field("symbol", fields.symbol.as_deref(), "$.symbol")?,
            type_: field("type", fields.type_.as_deref(), "$.type")?,
            side: field("side", fields.side.as_deref(), "$.side")?,
            quantity: field("quantity", fields.quantity.as_deref(), "$.qty")?,
            protective: protective.clone(),
        })
    }

    fn protective(&self, order: &OrderSummary) -> bool {
        let part = |name: &str| match name {
            "id" => &order.id,
            "clientOrderId" => &order.client_order_id,
            "symbol" => &order.symbol,
            "type" => &order.type_,
            "side" => &order.side,
            _ => &order.quantity,
        };
        let matches =
            |(name, values): (&String, &Vec<String>)| part(name).as_ref().is_some_and(|found| values.contains(found));
        !self.protective.is_empty() && self.protective.iter().all(matches)
    }
}

impl ItemParser<Order> for OrderParts {
    fn parse(&self, item: Node<'_>) -> Result<Option<Order>, String> {
        let summary = OrderSummary {
            id: text(item, &self.id, "id")?,
            client_order_id: text(item, &self.client_order_id, "clientOrderId")?,
            symbol: text(item, &self.symbol, "symbol")?,
            type_: text(item, &self.type_, "type")?,
            side: text(item, &self.side, "side")?,
            quantity: text(item, &self.quantity, "quantity")?,
        };
        let protective = self.protective(&summary);
        Ok(Some(Order { summary, protective }))
    }
}

/// Where the parts of a position are.
#[derive(Debug)]
struct PositionParts {
    symbol: Path,
    quantity: Path,
    market_value: Path,
    side: Option<Path>,
    loss: Option<(Path, LossScale)>,
    opened_at: Option<Path>,
}

impl PositionParts {
    fn new(fields: &PositionFields) -> Result<Self, String> {
        Ok(Self {
            symbol: field("symbol", fields.symbol.as_deref(), "$.symbol")?,
            quantity: field("quantity", fields.quantity.as_deref(), "$.qty")?,
            market_value: field("marketValue", fields.market_value.as_deref(), "$.market_value")?,
            side: optional("side", fields.side.as_deref())?,
            loss: match &fields.unrealized_loss {
                Some(loss) => Some((field("unrealizedLoss.path", Some(&loss.path), "")?, loss.scale)),
                None => None,
            },
            opened_at: optional("openedAt", fields.opened_at.as_deref())?,
        })
    }

    /// Which way a position goes; `None` when it is not told.
    fn side(&self, item: Node<'_>, quantity: Option<&str>) -> Result<Option<PositionSide>, String> {
        let said = match &self.side {
            Some(path) => text(item, path, "side")?.map(|side| side.to_ascii_lowercase()),
            None => None,
        };
        let signed = || {
            let quantity = number::exact(quantity?)?;
            Some(if quantity < Number::ZERO { PositionSide::Short } else { PositionSide::Long })
        };
        Ok(match said.as_deref() {
            Some("long" | "buy") => Some(PositionSide::Long),
            Some("short" | "sell") => Some(PositionSide::Short),
            // What an account that does not keep both ways apart says.
            None | Some("both" | "net") => signed(),
            Some(_) => None,
        })
    }

    /// The loss in percent; `None` when it is not told, or is not a number.
    fn loss(&self, item: Node<'_>) -> Result<Option<String>, String> {
        let Some((path, scale)) = &self.loss else { return Ok(None) };
        let profit = text(item, path, "unrealizedLoss")?.as_deref().and_then(number::exact);
        let loss = profit.and_then(|profit| match scale {
            LossScale::ProfitFraction => profit.checked_mul(Number::NEGATIVE_ONE)?.checked_mul(Number::ONE_HUNDRED),
            LossScale::ProfitPercent => profit.checked_mul(Number::NEGATIVE_ONE),
        });
        Ok(loss.map(number::text))
    }

    /// When it was opened; `None` when it is not told, or is not a time.
    fn opened_at(&self, item: Node<'_>) -> Result<Option<MicroTime>, String> {
        let Some(path) = &self.opened_at else { return Ok(None) };
        let found = item.one(path).map_err(|why| format!("fields.openedAt: {why}"))?;
        Ok(found.as_ref().and_then(expect::time).map(MicroTime))
    }
}

fn optional(name: &str, given: Option<&str>) -> Result<Option<Path>, String> {
    given.map(|path| field(name, Some(path), "")).transpose()
}

impl ItemParser<PositionSummary> for PositionParts {
    /// An item of which it is not certain that its quantity is zero is a position.
    fn parse(&self, item: Node<'_>) -> Result<Option<PositionSummary>, String> {
        let quantity = text(item, &self.quantity, "quantity")?;
        if quantity.as_deref().and_then(Decimal::parse).is_some_and(|quantity| quantity.is_zero()) {
            return Ok(None);
        }
        Ok(Some(PositionSummary {
            symbol: text(item, &self.symbol, "symbol")?,
            market_value: text(item, &self.market_value, "marketValue")?,
            side: self.side(item, quantity.as_deref())?,
            unrealized_loss_percent: self.loss(item)?,
            opened_at: self.opened_at(item)?,
            quantity,
        }))
    }
}

/// Open orders in what a Job said. Without `items` and `count`, `openOrders` may be a list or a number.
pub fn job_orders(read: &OrdersRead, value: &Value) -> Result<Orders, ReadError> {
    let mut read = read.clone();
    if read.items.is_none() && read.count.is_none() && value.get("openOrders").is_some_and(Value::is_number) {
        read.count = Some("$.openOrders".into());
    }
    let reader = order_reader(&read)?;
    Ok(match only_page(&reader, value)? {
        Page::Count(count) => Orders { count, ..Orders::default() },
        Page::Items { items, .. } => Orders { count: items.len(), orders: items, listed: true },
    })
}

/// Open positions in what a Job said. Without `items` and `count`, `positions` may be a list or a number.
pub fn job_positions(read: &PositionsRead, value: &Value) -> Result<Positions, ReadError> {
    let mut read = read.clone();
    if read.items.is_none() && read.count.is_none() && value.get("positions").is_some_and(Value::is_number) {
        read.count = Some("$.positions".into());
    }
    let reader = position_reader(&read)?;
    Ok(match only_page(&reader, value)? {
        Page::Count(count) => Positions { count, ..Positions::default() },
        Page::Items { items, .. } => Positions { count: items.len(), positions: items, listed: true },
    })
}

/// The number in what a Job said.
pub fn job_number(read: &NumberRead, value: &Value) -> Result<String, ReadError> {
    let path = number_path(read)?;
    number_at(&Document::of(value.clone()), &path).map_err(|why| ReadError(format!("the Job's result: {why}")))
}

/// Where the number of a read is.
pub fn number_path(read: &NumberRead) -> Result<Path, ReadError> {
    Path::parse(read.path.as_deref().unwrap_or("$.equity")).map_err(|why| ReadError(format!("path: {why}")))
}

/// The number at `path`, as it was written.
pub fn number_at(document: &Document, path: &Path) -> Result<String, String> {
    let found = document.root().one(path)?.ok_or_else(|| format!("the answer has nothing at {path}"))?;
    match found {
        Scalar::Number(text) | Scalar::Text(text) if Decimal::parse(&text).is_some() && text.len() <= PART => Ok(text),
        _ => Err(format!("what stands at {path} is not a number")),
    }
}

fn only_page<T>(reader: &Reader<T>, value: &Value) -> Result<Page<T>, ReadError> {
    match reader.page(&Document::of(value.clone()))? {
        Page::Items { next: Some(_), .. } => {
            Err(ReadError("the Job's result has a next page: a Job must report everything at once".into()))
        }
        page => Ok(page),
    }
}

#[cfg(test)]
#[path = "extract_tests.rs"]
mod tests;
