//! What all accounts share: prices, opening hours, and how orders fill.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// How the venue fills and cancels. The default does both at once, between two requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// Whether anything fills at all.
    pub fills: bool,
    /// From being marketable to the first fill.
    pub fill_delay_ms: u64,
    /// In how many parts an order fills.
    pub steps: u32,
    /// Between two parts.
    pub step_interval_ms: u64,
    /// From a cancel that was taken to its effect; the order is `pending_cancel` meanwhile and may fill.
    pub cancel_delay_ms: u64,
}

impl Default for Behaviour {
    fn default() -> Self {
        Behaviour { fills: true, fill_delay_ms: 0, steps: 1, step_interval_ms: 0, cancel_delay_ms: 0 }
    }
}

impl Behaviour {
    /// Fills in equal parts: the first after `delay`, the others `interval` apart.
    pub fn partial(delay: Duration, steps: u32, interval: Duration) -> Self {
        Behaviour { fill_delay_ms: ms(delay), steps, step_interval_ms: ms(interval), ..Self::default() }
    }

    /// Nothing fills; orders stay as they are.
    pub fn frozen() -> Self {
        Behaviour { fills: false, ..Self::default() }
    }

    /// Cancels take effect after a while.
    pub fn slow_cancels(delay: Duration) -> Self {
        Behaviour { cancel_delay_ms: ms(delay), ..Self::default() }
    }

    pub(super) fn delay(&self) -> SignedDuration {
        span(self.fill_delay_ms)
    }

    pub(super) fn interval(&self) -> SignedDuration {
        span(self.step_interval_ms)
    }

    pub(super) fn cancel_delay(&self) -> SignedDuration {
        span(self.cancel_delay_ms)
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn span(ms: u64) -> SignedDuration {
    SignedDuration::from_millis(i64::try_from(ms.min(86_400_000)).unwrap_or(0))
}

/// Prices and rules common to all accounts.
#[derive(Debug)]
pub struct Market {
    /// While closed, orders are accepted and wait.
    pub open: bool,
    /// Whether a suspended account's closes are refused too. A close is a new order, so the default is yes.
    pub suspend_blocks_closing: bool,
    /// How orders fill.
    pub behaviour: Behaviour,
    pub(super) overrides: HashMap<String, Behaviour>,
    pub(super) prices: BTreeMap<String, Decimal>,
}

impl Default for Market {
    fn default() -> Self {
        Market {
            open: true,
            suspend_blocks_closing: true,
            behaviour: Behaviour::default(),
            overrides: HashMap::new(),
            prices: BTreeMap::new(),
        }
    }
}

impl Market {
    /// The price of a symbol; 100 until one was set.
    pub fn price(&self, symbol: &str) -> Decimal {
        self.prices.get(symbol).copied().unwrap_or(Decimal::ONE_HUNDRED)
    }

    /// How an account's orders fill.
    pub fn behaviour_of(&self, account: &str) -> &Behaviour {
        self.overrides.get(account).unwrap_or(&self.behaviour)
    }

    /// When the market changes between open and closed next, for `GET /v2/clock`: on the whole hour.
    pub fn next_bell(now: Timestamp) -> Timestamp {
        Timestamp::from_second(now.as_second() / 3600 * 3600 + 3600).unwrap_or(now)
    }
}
