//! The paper venue: a broker that speaks a subset of Alpaca's trading API v2 and does what a test asks of it.
//!
//! In tests, [`PaperVenue::start`] gives a venue of one's own on loopback, with typed methods for everything that the
//! control plane ([`control`]) does over HTTP. It runs on a thread and runtime of its own, so it outlives a runtime
//! that a test drops, and it stops when it is dropped. The program `paper-venue` serves the same for the demo.

mod api;
mod book;
pub mod bot;
pub mod control;
mod core;
pub mod faults;
mod gate;
pub mod ledger;
mod market;
mod net;
mod order;
mod rules;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use tokio::sync::oneshot;

use self::book::Book;
pub use self::book::Settings;
use self::core::Core;
pub use self::faults::{Action, Fault, When};
pub use self::ledger::{Closes, Effect, Entry, Outcome, Request, What};
pub use self::market::Behaviour;
use self::market::Market;
use self::net::{Connection, CuttableListener};
pub use self::order::{CloseAmount, NewOrder, Order, OrderStatus, OrderType, Position, Refusal, Side, TimeInForce};
pub use rust_decimal::Decimal;

/// A running venue.
#[derive(Debug)]
pub struct PaperVenue {
    /// Where it listens.
    pub addr: SocketAddr,
    core: Arc<Core>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Starting and stopping.
impl PaperVenue {
    /// A venue on a free port of the loopback address.
    ///
    /// # Panics
    /// When no port can be bound: no test can go on without its venue.
    pub async fn start() -> Self {
        match Self::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))) {
            Ok(venue) => venue,
            Err(error) => panic!("the paper venue cannot listen on loopback: {error}"),
        }
    }

    /// A venue on this address.
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        let (listener, addr) = net::bind(addr)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let core = Arc::new(Core::default());
        let (stop, stopped) = oneshot::channel();
        let served = core.clone();
        let thread = std::thread::Builder::new().name("paper-venue".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    result = serve(listener, served.clone()) => {
                        if let Err(error) = result {
                            tracing::error!(%error, "the paper venue stopped serving");
                        }
                    }
                    () = served.drive() => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(PaperVenue { addr, core, stop: Some(stop), thread: Some(thread) })
    }

    /// The base URL, for `url_override` of alpaca-py or a `TradingSystem`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

impl Drop for PaperVenue {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: std::net::TcpListener, core: Arc<Core>) -> io::Result<()> {
    let listener = CuttableListener(tokio::net::TcpListener::from_std(listener)?);
    let trading = api::routes().layer(from_fn_with_state(core.clone(), gate::pass));
    let app = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .merge(control::routes())
        .merge(trading)
        .with_state(core)
        .into_make_service_with_connect_info::<Connection>();
    axum::serve(listener, app).await
}

/// Accounts.
impl PaperVenue {
    /// Creates an account with 1,000,000 in cash, or gives an existing one a new secret.
    pub fn account(&self, key: &str, secret: &str) {
        self.core.with(|state| state.account(key, secret));
    }

    /// Places an order as the account's client would, without HTTP and without a line in the ledger.
    pub fn place_order(&self, key: &str, new: &NewOrder) -> Result<Order, Refusal> {
        self.core.with(|state| {
            let now = state.now();
            let (book, market) = state.book(key)?;
            book.submit(new, market, now).cloned()
        })
    }

    /// Sets a holding directly; zero removes it.
    pub fn set_position(&self, key: &str, symbol: &str, qty: impl Into<Decimal>, avg_entry_price: impl Into<Decimal>) {
        let (qty, price) = (qty.into(), avg_entry_price.into());
        self.change(key, |book| book.set_position(symbol, qty, price));
    }

    /// Tells when a position was opened: Alpaca does not, other venues do.
    pub fn set_opened(&self, key: &str, symbol: &str, at: jiff::Timestamp) {
        self.change(key, |book| {
            book.opened.insert(symbol.to_owned(), at);
        });
    }

    /// The open orders, oldest first.
    pub fn open_orders(&self, key: &str) -> Vec<Order> {
        self.see(key, |book, _| book.open_orders().cloned().collect())
    }

    /// Every order there ever was, oldest first.
    pub fn orders(&self, key: &str) -> Vec<Order> {
        self.see(key, |book, _| book.orders().to_vec())
    }

    /// The positions, by symbol.
    pub fn positions(&self, key: &str) -> Vec<Position> {
        self.see(key, |book, market| book.positions(market))
    }

    /// The account's settings, `suspend_trade` among them.
    pub fn settings(&self, key: &str) -> Settings {
        self.see(key, |book, _| book.settings.clone())
    }

    /// Whether new orders are refused at the account's own wish.
    pub fn suspended(&self, key: &str) -> bool {
        self.settings(key).suspend_trade
    }

    /// Sets or lifts `suspend_trade`, as a person does on the broker's site.
    pub fn suspend(&self, key: &str, suspended: bool) {
        self.change(key, |book| book.settings.suspend_trade = suspended);
    }

    /// Brings a cancelled order back.
    pub fn revive_order(&self, key: &str, id: &str) -> Result<(), Refusal> {
        self.core.with(|state| {
            let now = state.now();
            state.book(key)?.0.revive(id, now)?;
            state.ledger.push(now, Some(key), What::Revived { order_id: id.to_owned() });
            Ok(())
        })
    }

    fn see<R>(&self, key: &str, look: impl FnOnce(&Book, &Market) -> R) -> R {
        let found = self.core.read(|state| state.view(key).map(|(book, market)| look(book, market)));
        found.unwrap_or_else(|| no_account(key))
    }

    fn change(&self, key: &str, act: impl FnOnce(&mut Book)) {
        let done = self.core.with(|state| state.book(key).map(|(book, _)| act(book)));
        done.unwrap_or_else(|_| no_account(key));
    }
}

/// An account that a test asks for and never made is a mistake in the test.
fn no_account(key: &str) -> ! {
    panic!("the paper venue has no account {key}")
}

/// The market.
impl PaperVenue {
    /// Sets a price; every symbol costs 100 until then.
    pub fn set_price(&self, symbol: &str, price: impl Into<Decimal>) {
        let price = price.into();
        self.core.with(|state| state.market.prices.insert(symbol.to_owned(), price));
    }

    /// How orders fill and cancels take effect.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        self.core.with(|state| state.market.behaviour = behaviour);
    }

    /// The same for one account; `None` goes back to the common one.
    pub fn set_account_behaviour(&self, key: &str, behaviour: Option<Behaviour>) {
        self.core.with(|state| match behaviour {
            Some(behaviour) => state.market.overrides.insert(key.to_owned(), behaviour),
            None => state.market.overrides.remove(key),
        });
    }

    /// Opens or closes the market; while it is closed, orders are accepted and wait.
    pub fn set_market_open(&self, open: bool) {
        self.core.with(|state| state.market.open = open);
    }

    /// Whether `suspend_trade` refuses closes too, which it does by default.
    pub fn set_suspend_blocks_closing(&self, blocks: bool) {
        self.core.with(|state| state.market.suspend_blocks_closing = blocks);
    }
}

/// Faults and the ledger.
impl PaperVenue {
    /// Adds a fault and returns its number.
    pub fn fault(&self, fault: Fault) -> u64 {
        self.core.with(|state| state.faults.add(fault))
    }

    /// Takes one fault away; says whether it was still there.
    pub fn remove_fault(&self, id: u64) -> bool {
        self.core.with(|state| state.faults.remove(id))
    }

    /// Takes all faults away.
    pub fn clear_faults(&self) {
        self.core.with(|state| state.faults.clear());
    }

    /// Everything that happened, in order.
    pub fn ledger(&self) -> Vec<Entry> {
        self.ledger_since(0)
    }

    /// What happened from a line on.
    pub fn ledger_since(&self, seq: u64) -> Vec<Entry> {
        self.core.read(|state| state.ledger.since(seq).cloned().collect())
    }

    /// Forgets what happened so far.
    pub fn clear_ledger(&self) {
        self.core.with(|state| state.ledger.clear());
    }

    /// The requests with this method and path prefix.
    pub fn requests(&self, method: &str, path: &str) -> Vec<(Entry, Request)> {
        let ledger = self.ledger().into_iter();
        let requests = ledger.filter_map(|entry| match &entry.what {
            What::Request(request) => Some((entry.clone(), request.clone())),
            _ => None,
        });
        requests.filter(|(_, r)| r.method == method && r.path.starts_with(path)).collect()
    }

    /// What was closed of each symbol; an emergency close is right when `orders` is 1 and `filled` is what was held.
    pub fn closes(&self, key: &str) -> BTreeMap<String, Closes> {
        self.core.read(|state| ledger::closes(state.ledger.since(0), key))
    }

    /// Waits until a look at the venue gives something; `None` when the time is over. Looks again at every change.
    pub async fn until<R>(&self, limit: Duration, mut look: impl FnMut(&Self) -> Option<R>) -> Option<R> {
        self.core.until(limit, || look(self)).await
    }
}
