//! Actions and reads of a TradingSystem, carried out: secrets resolved, placeholders filled, answers parsed.

pub mod caller;
pub mod decimal;
pub mod document;
pub mod expect;
pub mod extract;
pub mod number;
pub mod secrets;
pub mod signing;
pub mod template;

use std::collections::BTreeMap;

use standfast_crds::v1alpha1::{ActionState, OrderSummary, PositionSummary};

pub use caller::Caller;

/// One order or position that a request is about; fills `{id}`, `{symbol}`, `{quantity}`, `{side}` and `{clientOrderId}`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item {
    /// The venue's id.
    pub id: String,
    /// The symbol.
    pub symbol: String,
    /// The quantity, as the venue writes it; of a position that is to be closed, without a sign.
    pub quantity: String,
    /// Which way the order goes that closes a position: `buy` or `sell`. Empty when not known.
    pub side: String,
    /// An id for that order.
    pub client_order_id: String,
}

/// What became of an action. A success code is neither proof nor failure: only the read-back decides.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// `Done` when any answer came that is not a refusal, `Failed` when it certainly had no effect, else `Unknown`.
    pub state: ActionState,
    /// For people: status code or error, never a body.
    pub message: String,
}

/// Open orders, as one complete read found them.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    /// How many.
    pub count: usize,
    /// Each of them; empty when the source only counts.
    pub orders: Vec<Order>,
    /// Whether `orders` lists all of them.
    pub listed: bool,
}

/// An open order.
#[derive(Clone, Debug)]
pub struct Order {
    /// Its parts.
    pub summary: OrderSummary,
    /// Whether it guards a position.
    pub protective: bool,
}

/// Open positions, as one complete read found them.
#[derive(Clone, Debug, Default)]
pub struct Positions {
    /// How many.
    pub count: usize,
    /// Each of them; empty when the source only counts.
    pub positions: Vec<PositionSummary>,
    /// Whether `positions` lists all of them.
    pub listed: bool,
}

/// Why a read told nothing. The text says what was read where, and what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct ReadError(pub String);

/// What the user's code is told in its environment, and what names Jobs: `STANDFAST_SYSTEM`, `STANDFAST_HALT`, …
pub type Environment = BTreeMap<String, String>;
