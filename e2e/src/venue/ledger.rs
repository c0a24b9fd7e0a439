//! What reached the venue and what it did: an ordered log that tests and the demo read.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::Value;

use super::order::Side;

/// How many entries are kept; older ones are dropped.
pub const CAPACITY: usize = 100_000;

/// One line of the ledger.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Position in the log; never reused.
    pub seq: u64,
    /// When, by the wall clock.
    pub at: Timestamp,
    /// The same in µs since the epoch.
    pub at_us: i64,
    /// When, by the clock that never jumps.
    #[serde(skip)]
    pub instant: Instant,
    /// The account's key, when one is known.
    pub account: Option<String>,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// A request or an event.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// A request of the trading API.
    Request(Request),
    /// An order was filled, wholly or in part.
    Fill {
        /// The order.
        order_id: String,
        /// What was traded.
        symbol: String,
        /// Which way.
        side: Side,
        /// How much.
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
    /// An order came back to life (control plane).
    Revived {
        /// The order.
        order_id: String,
    },
}

/// A request, from its arrival to its reply.
#[derive(Clone, Debug, Serialize)]
pub struct Request {
    /// HTTP method.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// JSON body, if any.
    pub body: Option<Value>,
    /// What it did to the account.
    pub effects: Vec<Effect>,
    /// How it ended for the client.
    pub result: Outcome,
    /// From arrival to the reply, in µs.
    pub took_us: Option<u64>,
}

/// What a request did.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "effect", rename_all = "snake_case")]
pub enum Effect {
    /// An order was taken.
    Submitted {
        /// The order.
        order_id: String,
        /// The client's identifier.
        client_order_id: String,
        /// What is traded.
        symbol: String,
        /// Which way.
        side: Side,
        /// How much.
        qty: Decimal,
        /// Whether it lowers a position.
        reduces: bool,
    },
    /// A cancel was taken.
    CancelTaken {
        /// The order.
        order_id: String,
        /// Its symbol.
        symbol: String,
    },
    /// An order was replaced.
    Replaced {
        /// The old order.
        order_id: String,
        /// The new one.
        by: String,
    },
    /// A market order that closes a position was made.
    Closing {
        /// The order.
        order_id: String,
        /// What is closed.
        symbol: String,
        /// How much.
        qty: Decimal,
    },
    /// `suspend_trade` was set.
    Suspended {
        /// To what.
        suspended: bool,
    },
}

/// How a request ended for the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Not yet.
    Pending,
    /// With a reply.
    Replied {
        /// HTTP status.
        status: u16,
    },
    /// The venue cut the connection without a reply.
    Dropped,
    /// The client gave up first.
    Abandoned,
}

/// What was closed of one symbol, as the ledger tells it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Closes {
    /// Closing orders that the venue took, by whichever request.
    pub orders: usize,
    /// How much of them was filled.
    pub filled: Decimal,
    /// Client order ids of closes that were sent as orders.
    pub client_order_ids: Vec<String>,
}

/// The log.
#[derive(Debug, Default)]
pub struct Ledger {
    next: u64,
    entries: VecDeque<Entry>,
}

impl Ledger {
    /// Adds a line and returns its number.
    pub fn push(&mut self, at: Timestamp, account: Option<&str>, what: What) -> u64 {
        if self.entries.len() == CAPACITY {
            self.entries.pop_front();
        }
        let seq = self.next;
        self.next += 1;
        let (at_us, account) = (at.as_microsecond(), account.map(str::to_owned));
        self.entries.push_back(Entry { seq, at, at_us, instant: Instant::now(), account, what });
        seq
    }

    /// Notes what a request did, before its reply is under way.
    pub fn effects(&mut self, seq: u64, effects: Vec<Effect>) {
        if let Some((_, request)) = self.request(seq) {
            request.effects = effects;
        }
    }

    /// Notes how a request ended; only the first word counts.
    pub fn finish(&mut self, seq: u64, result: Outcome) {
        if let Some((arrived, request)) = self.request(seq)
            && request.result == Outcome::Pending
        {
            request.result = result;
            request.took_us = Some(micros(arrived.elapsed()));
        }
    }

    /// The lines from a number on.
    pub fn since(&self, seq: u64) -> impl Iterator<Item = &Entry> {
        self.entries.iter().skip_while(move |e| e.seq < seq)
    }

    /// Forgets everything; numbers go on.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    fn request(&mut self, seq: u64) -> Option<(Instant, &mut Request)> {
        let first = self.entries.front()?.seq;
        let entry = self.entries.get_mut(usize::try_from(seq.checked_sub(first)?).ok()?)?;
        match &mut entry.what {
            What::Request(request) => Some((entry.instant, request)),
            _ => None,
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Closes per symbol of one account: each reducing order and how much of it was filled.
///
/// The invariant of an emergency close is `orders == 1` (no double close) and `filled` equal to what was held.
pub fn closes<'a>(entries: impl Iterator<Item = &'a Entry>, account: &str) -> BTreeMap<String, Closes> {
    let mut result: BTreeMap<String, Closes> = BTreeMap::new();
    let mut reducing = BTreeMap::new();
    for entry in entries.filter(|e| e.account.as_deref() == Some(account)) {
        match &entry.what {
            What::Request(request) => {
                for effect in &request.effects {
                    let (order, symbol, client_id) = match effect {
                        Effect::Closing { order_id, symbol, .. } => (order_id, symbol, None),
                        Effect::Submitted { order_id, symbol, client_order_id, reduces: true, .. } => {
                            (order_id, symbol, Some(client_order_id))
                        }
                        _ => continue,
                    };
                    reducing.insert(order.clone(), symbol.clone());
                    let closes = result.entry(symbol.clone()).or_default();
                    closes.orders += 1;
                    closes.client_order_ids.extend(client_id.cloned());
                }
            }
            What::Fill { order_id, symbol, qty, .. } if reducing.contains_key(order_id) => {
                result.entry(symbol.clone()).or_default().filled += qty;
            }
            _ => {}
        }
    }
    result
}
