//! The venue's state behind one lock, and the clock that drives it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rust_decimal::Decimal;
use tokio::sync::Notify;

use super::book::{Book, BookEvent};
use super::faults::Faults;
use super::ledger::{Ledger, What};
use super::market::Market;
use super::order::Refusal;

/// An account: its secret and its book.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) secret: String,
    pub(super) book: Book,
}

/// Everything the venue knows.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) accounts: BTreeMap<String, Account>,
    pub(super) market: Market,
    pub(super) faults: Faults,
    pub(super) ledger: Ledger,
    last: Timestamp,
}

impl State {
    /// The time in µs, later than every time given out before.
    pub(super) fn now(&mut self) -> Timestamp {
        let next = |t: Timestamp| Timestamp::from_microsecond(t.as_microsecond() + 1).unwrap_or(t);
        let clock = Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap_or(self.last);
        self.last = if clock > self.last { clock } else { next(self.last) };
        self.last
    }

    /// The book of an account.
    pub(super) fn book(&mut self, key: &str) -> Result<(&mut Book, &Market), Refusal> {
        let account = self.accounts.get_mut(key).ok_or_else(|| {
            // Seen by users with wrong keys: 401 {"code":40110000,"message":"request is not authorized"}.
            Refusal::new(401, 40_110_000, "request is not authorized")
        })?;
        Ok((&mut account.book, &self.market))
    }

    /// Creates an account, or gives an existing one a new secret.
    pub(super) fn account(&mut self, key: &str, secret: &str) {
        let now = self.now();
        let fresh = || Account { secret: String::new(), book: Book::new(Decimal::from(1_000_000), now) };
        self.accounts.entry(key.to_owned()).or_insert_with(fresh).secret = secret.to_owned();
    }

    /// Carries out what is due; says whether anything was.
    fn advance(&mut self) -> bool {
        let (now, mut any) = (self.now(), false);
        for (key, account) in &mut self.accounts {
            for event in account.book.advance(&self.market, self.market.behaviour_of(key), now) {
                self.ledger.push(now, Some(key), line(event));
                any = true;
            }
        }
        any
    }

    /// The book of an account, to read.
    pub(super) fn view(&self, key: &str) -> Option<(&Book, &Market)> {
        Some((&self.accounts.get(key)?.book, &self.market))
    }
}

fn line(event: BookEvent) -> What {
    match event {
        BookEvent::Fill { order_id, symbol, side, qty, price, position, closing } => {
            What::Fill { order_id, symbol, side, qty, price, position, closing }
        }
        BookEvent::Canceled { order_id, symbol } => What::Canceled { order_id, symbol },
    }
}

/// The shared core of a venue.
#[derive(Debug, Default)]
pub(super) struct Core {
    state: Mutex<State>,
    kick: Notify,
    changed: Notify,
}

impl Core {
    /// Does something with the state. What is due by then has happened before, what it makes due at once happens
    /// right after.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        state.advance();
        let result = act(&mut state);
        state.advance();
        drop(state);
        self.kick.notify_one();
        self.changed.notify_waiters();
        result
    }

    /// Looks at the state as it is by now. Only what became due counts as a change, the look does not.
    pub(super) fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        let mut state = self.lock();
        let changed = state.advance();
        let result = look(&state);
        drop(state);
        if changed {
            self.kick.notify_one();
            self.changed.notify_waiters();
        }
        result
    }

    /// Carries out what becomes due while nobody asks.
    pub(super) async fn drive(self: Arc<Self>) {
        loop {
            let due = self.lock().accounts.values().filter_map(|a| a.book.next_due()).min();
            let wait = due.map_or(Duration::from_secs(3600), |due| {
                Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default()
            });
            tokio::select! {
                () = self.kick.notified() => {}
                () = tokio::time::sleep(wait) => {
                    self.lock().advance();
                    self.changed.notify_waiters();
                }
            }
        }
    }

    /// Waits until a look at the state gives something, or the time is over.
    pub(super) async fn until<R>(&self, limit: Duration, mut look: impl FnMut() -> Option<R>) -> Option<R> {
        let end = tokio::time::Instant::now() + limit;
        loop {
            let change = self.changed.notified();
            tokio::pin!(change);
            change.as_mut().enable();
            if let Some(found) = look() {
                return Some(found);
            }
            // The clock is asked first: a look that changes something would be its own reason to look again for ever.
            if tokio::time::Instant::now() >= end || tokio::time::timeout_at(end, change).await.is_err() {
                return look();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
