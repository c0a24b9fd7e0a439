//! A venue, seen from a halt: what is asked of it, what that means for the halt, and how it is shown.

use std::time::Duration;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::{SignedDuration, Timestamp},
};
use standfast_crds::v1alpha1::{
    CancelOrders, OrderSummary, PositionAction, PositionSelection, PositionSummary, TradingHalt, TradingHaltStatus,
    Venue, VenueStatus, shorten,
};
use tokio::time::Instant;

use super::{
    HaltReconciler, act,
    decide::{Known, Offers, Orders, Positions, VenueFacts},
    jobs::{self, Answer, Begun, JobReads},
    memory::Memory,
    others::{ClosesIn, Others},
    selection,
};
use crate::calls::{self, Item, extract, number, template};

/// How long what was proven counts, when nothing is proven anew.
pub const PROOF_LIFE: Duration = Duration::from_secs(180);

/// How long a Job that reads waits for the last pod to go, and for the cancel after that.
pub(super) const JOB_PATIENCE: Duration = Duration::from_secs(60);
/// The same for the first counts: the first wave is recorded after them.
const FIRST_READS: Duration = Duration::from_secs(3);
/// Orders and positions that a status lists, of each venue.
const ORDERS_SHOWN: usize = 20;
const POSITIONS_SHOWN: usize = 50;

/// What a venue offers.
pub fn offers(venue: &Venue) -> Offers {
    Offers {
        removed: false,
        cancel_all: venue.cancel_orders.len(),
        cancel_one: venue.cancel_order.is_some(),
        close_all: venue.close_positions.len(),
        close_one: venue.close_position.is_some(),
        reads_orders: !venue.open_orders.is_empty(),
        reads_positions: !venue.open_positions.is_empty(),
        suspend: venue.suspend_trading.len(),
        allow: venue.allow_trading.len(),
        suspend_blocks_closing: venue.suspend_blocks_closing,
    }
}

pub(super) struct VenueRead {
    orders: Option<Known<calls::Orders>>,
    positions: Option<Known<calls::Positions>>,
    suspended: Option<Known<bool>>,
    market_open: Option<Known<bool>>,
    equity: Option<Known<String>>,
    equity_awaited: bool,
    orders_from: Source,
    positions_from: Source,
}

/// Where what was read comes from: answers of this moment, or of Jobs that ran before.
#[derive(Clone, Copy)]
struct Source {
    /// It is new since the last look.
    fresh: bool,
    /// A Job has to answer first.
    awaited: bool,
    /// When the oldest of its reads was begun.
    begun: Begun,
}

impl VenueRead {
    /// The moment that everything in it is at least as new as.
    pub(super) fn as_of(&self) -> Timestamp {
        self.orders_from.begun.1.min(self.positions_from.begun.1)
    }
}

impl Source {
    fn now() -> Self {
        Self { fresh: true, awaited: false, begun: (Instant::now(), Timestamp::now()) }
    }

    fn join(&mut self, answer: &Answer) {
        self.fresh &= answer.fresh;
        self.awaited |= answer.awaited;
        self.begun = self.begun.min(answer.begun);
    }
}

impl HaltReconciler {
    /// Counts open orders and positions while the first cancel is under way. Jobs are too slow for it.
    pub(super) async fn read_before(
        &self,
        namespace: &str,
        halt: &TradingHalt,
        venue: &Venue,
    ) -> (Option<i64>, Option<i64>) {
        let quick = Venue {
            open_orders: venue.open_orders.iter().filter(|r| r.http.is_some()).cloned().collect(),
            open_positions: venue.open_positions.iter().filter(|r| r.http.is_some()).cloned().collect(),
            trading_suspended: None,
            market_open: None,
            equity: None,
            ..venue.clone()
        };
        let read = self.read_venue_in_time(namespace, halt, &quick, (&JobReads::new(0), false), FIRST_READS).await;
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let orders = read.orders.and_then(Result::ok).and_then(|o| were_open(halt, count(o.count)));
        (orders, read.positions.and_then(Result::ok).map(|p| count(p.count)))
    }

    /// The same, with a limit for all of it: the slowest venue must not hold up the rest of the halt.
    pub(super) async fn read_venue_in_time(
        &self,
        namespace: &str,
        halt: &TradingHalt,
        venue: &Venue,
        jobs: (&JobReads, bool),
        limit: Duration,
    ) -> VenueRead {
        let from = Source::now();
        let read = tokio::time::timeout(limit, self.read_venue(namespace, halt, venue, jobs)).await;
        read.unwrap_or_else(|_| {
            let late = || format!("not read within {} s", limit.as_secs());
            VenueRead {
                orders: (!venue.open_orders.is_empty()).then(|| Err(late())),
                positions: (!venue.open_positions.is_empty()).then(|| Err(late())),
                suspended: venue.trading_suspended.is_some().then(|| Err(late())),
                market_open: None,
                equity: venue.equity.is_some().then(|| Err(late())),
                equity_awaited: false,
                orders_from: from,
                positions_from: from,
            }
        })
    }

    async fn read_venue(
        &self,
        namespace: &str,
        halt: &TradingHalt,
        venue: &Venue,
        (jobs, begin): (&JobReads, bool),
    ) -> VenueRead {
        let begun = Source::now();
        let orders = async {
            let mut all = calls::Orders { listed: true, ..calls::Orders::default() };
            let mut from = begun;
            for (index, read) in venue.open_orders.iter().enumerate() {
                let one = match &read.job {
                    Some(job) => {
                        let what = format!("{}/openOrders/{index}", venue.name);
                        let answer = self.job_read(halt, jobs, &what, job, begin).await;
                        from.join(&answer);
                        answer.value.and_then(|v| extract::job_orders(read, &v).map_err(|e| e.0))
                    }
                    None => self.caller.read_orders(namespace, read).await.map_err(|e| e.0),
                };
                match one {
                    Ok(one) => {
                        all.count += one.count;
                        all.listed &= one.listed;
                        all.orders.extend(one.orders);
                    }
                    Err(why) => return (Err(why), from),
                }
            }
            (Ok(all), from)
        };
        let positions = async {
            let mut all = calls::Positions { listed: true, ..calls::Positions::default() };
            let mut from = begun;
            for (index, read) in venue.open_positions.iter().enumerate() {
                let one = match &read.job {
                    Some(job) => {
                        let what = format!("{}/openPositions/{index}", venue.name);
                        let answer = self.job_read(halt, jobs, &what, job, begin).await;
                        from.join(&answer);
                        answer.value.and_then(|v| extract::job_positions(read, &v).map_err(|e| e.0))
                    }
                    None => self.caller.read_positions(namespace, read).await.map_err(|e| e.0),
                };
                match one {
                    Ok(one) => {
                        all.count += one.count;
                        all.listed &= one.listed;
                        all.positions.extend(one.positions);
                    }
                    Err(why) => return (Err(why), from),
                }
            }
            (Ok(all), from)
        };
        let suspended = async {
            match &venue.trading_suspended {
                Some(read) => Some(self.caller.read_state(namespace, read).await.map_err(|e| e.0)),
                None => None,
            }
        };
        let closing = halt.spec.positions.action != PositionAction::Keep;
        let market_open = async {
            match &venue.market_open {
                Some(read) if closing => Some(self.caller.read_state(namespace, read).await.map_err(|e| e.0)),
                _ => None,
            }
        };
        // What is selected stays so: it is not asked for again.
        let selects = halt.spec.positions.action == PositionAction::ReduceTo && selected(halt, &venue.name).is_none();
        let equity = async {
            match venue.equity.as_ref().filter(|_| selects).map(|read| (read, &read.job)) {
                None => (None, false),
                Some((read, Some(job))) => {
                    let answer = self.job_read(halt, jobs, &format!("{}/equity", venue.name), job, begin).await;
                    let value = answer.value.and_then(|v| extract::job_number(read, &v).map_err(|e| e.0));
                    (Some(value), answer.awaited)
                }
                Some((read, None)) => (Some(self.caller.read_number(namespace, read).await.map_err(|e| e.0)), false),
            }
        };
        let (orders, positions, suspended, market_open, (equity, equity_awaited)) =
            tokio::join!(orders, positions, suspended, market_open, equity);
        let ((orders, orders_from), (positions, positions_from)) = (orders, positions);
        VenueRead {
            orders_from,
            positions_from,
            orders: (!venue.open_orders.is_empty()).then_some(orders),
            positions: (!venue.open_positions.is_empty()).then_some(positions),
            suspended,
            market_open,
            equity,
            equity_awaited,
        }
    }
}

/// What this halt has selected at a venue.
fn selected<'a>(halt: &'a TradingHalt, venue: &str) -> Option<&'a PositionSelection> {
    halt.status.as_ref()?.venues.iter().find(|v| v.name == venue)?.selection.as_ref()
}

/// How many requests have to cancel the orders of a venue after everything stopped.
pub(super) fn cancels_needed(halt: &TradingHalt, venue: &Venue, close_intended: bool) -> usize {
    // Orders of our own closing are not to be cancelled.
    let all = halt.spec.orders.cancel == CancelOrders::All && !close_intended;
    if all { venue.cancel_orders.len() } else { 0 }
}

/// How long a proof counts: three minutes; where Jobs read, until the next one should have answered.
pub(super) fn life(venues: &[Option<Venue>]) -> SignedDuration {
    let venues = || venues.iter().flatten();
    let orders = venues().flat_map(|v| &v.open_orders).filter_map(|r| r.job.as_ref());
    let positions = venues().flat_map(|v| &v.open_positions).filter_map(|r| r.job.as_ref());
    let slowest = orders.chain(positions).map(|job| job.timeout.map_or(jobs::READ_TIMEOUT, |t| t.get())).max();
    let life = slowest.map_or(PROOF_LIFE, |slowest| jobs::PAUSE + slowest + JOB_PATIENCE);
    SignedDuration::try_from(life).unwrap_or(SignedDuration::MAX)
}

pub(super) fn judge_venue(
    halt: &TradingHalt,
    status: &TradingHaltStatus,
    before: VenueStatus,
    venue: Option<&Venue>,
    read: Option<VenueRead>,
    memory: &mut Memory,
    (stopped, others, verify_reads): (bool, Others, u32),
) -> (VenueFacts, VenueStatus) {
    let name = before.name.clone();
    let (Some(venue), Some(read)) = (venue, read) else {
        let removed = Offers { removed: true, ..Offers::default() };
        let last_error = Some("the venue is not in the TradingSystem any more".into());
        let shown = VenueStatus { open_orders: None, kept_orders: None, open_positions: None, last_error, ..before };
        return (VenueFacts { name, offers: removed, ..VenueFacts::default() }, shown);
    };
    // Orders that close positions are not the bot's, whichever halt sent them.
    let close_intended = act::close_attempts(status, &name) > 0 || others.close_intended;
    let cancel = halt.spec.orders.cancel;
    let held = match &read.positions {
        Some(Ok(p)) => Some(p.positions.iter().filter_map(|p| p.symbol.clone()).collect::<Vec<_>>()),
        Some(Err(_)) => None,
        None => Some(vec![]),
    };
    let mut closes_in = ClosesIn::of(status, &name);
    closes_in.add(others.closes_in.clone());
    let tagged = venue.close_position.as_ref().is_some_and(|a| template::uses(&a.http, "{clientOrderId}"));
    let ours = |order: &OrderSummary| is_close(order, &closes_in, tagged, held.as_deref());
    let orders =
        read.orders.as_ref().map(|r| r.as_ref().map(|o| sort(o, cancel, &closes_in, ours)).map_err(Clone::clone));
    let positions = read.positions.as_ref().map(|r| r.as_ref().map(open).map_err(Clone::clone));
    let stopped_since = memory.stopped_since;
    let cancels = cancels_needed(halt, venue, close_intended);
    let cancelled_after_stop = cancels == 0 || memory.cancelled_after_stop(&name, cancels);
    let remembered = memory.venues.entry(name.clone()).or_default();
    // The answer of a Job is counted once, and only if the Job began after the last pod was gone.
    let after_stop = |from: &Source| stopped && stopped_since.is_some_and(|since| from.begun.0 >= since);
    // Before that a fill may still change them: what is closed by quantity would be closed too far.
    let current = after_stop(&read.positions_from)
        && remembered.clean_since.is_some_and(|since| read.positions_from.begun.0 >= since);
    let errs = matches!(&orders, Some(Err(_)));
    if let (Some(orders), true) = (&orders, read.orders_from.fresh || errs) {
        remembered.note_orders(orders, after_stop(&read.orders_from) && cancelled_after_stop, Instant::now());
    }
    if let (Some(positions), true) = (&positions, read.positions_from.fresh || !current) {
        let settled = matches!(&orders, Some(Ok(o)) if o.closing == 0);
        remembered.note_positions(positions, settled, current);
    }
    let settled = remembered.stable >= verify_reads;
    let (selection, lost) = match (&before.selection, &read.positions) {
        (Some(selection), Some(Ok(positions))) if positions.listed || positions.count == 0 => {
            let (selection, lost) = selection::follow(selection, &positions.positions, settled);
            (Some(selection), lost)
        }
        (selection, _) => (selection.clone(), vec![]),
    };
    let close_hindrance = match &read.market_open {
        Some(Ok(false)) => Some("the market is closed".to_owned()),
        _ => None,
    };
    // One that came before another halt allowed trading, to close positions, does not hold any more.
    let suspend_done = remembered.suspended && act::last_tried(status, &name, "suspendTrading") >= others.allowed_at;
    let cancel_intended = status.actions.iter().any(|a| a.name.starts_with(&format!("{name}/cancelOrder")));
    let cancel_removed = venue.cancel_orders.is_empty() && venue.cancel_order.is_none() && cancel_intended;
    let before = VenueStatus { selection: selection.clone(), ..before };
    let shown = show(before, &read, (&orders, &positions), cancel_intended);
    let fact = VenueFacts {
        name,
        offers: offers(venue),
        orders,
        positions,
        orders_awaited: read.orders_from.awaited,
        positions_awaited: read.positions_from.awaited,
        positions_current: current,
        suspended: read.suspended,
        clean_reads: remembered.clean,
        stable_reads: remembered.stable,
        flat_reads: remembered.flat,
        cancelled_after_stop,
        suspend_done,
        cancel_due: remembered.cancel_due(Instant::now()),
        cancel_removed,
        suspended_elsewhere: others.suspended,
        allow_done: remembered.allowed,
        close_intended,
        closing_elsewhere: others.closing,
        close_hindrance,
        as_of: read.positions_from.begun.1,
        equity: read.equity,
        equity_awaited: read.equity_awaited,
        quantity_step: venue.quantity_step.clone(),
        selection_lacks: selection::lacks(venue, &halt.spec.positions),
        selection,
        lost,
    };
    (fact, shown)
}

/// Whether an open order is taken for one of our own closing: it is in a symbol that is being closed. Where our closes
/// carry an id of ours (`tagged`), one with another id is not.
fn is_close(order: &OrderSummary, closes_in: &ClosesIn, tagged: bool, held: Option<&[String]>) -> bool {
    let symbol = order.symbol.clone().unwrap_or_default();
    match closes_in {
        ClosesIn::Nothing => false,
        ClosesIn::Symbols(symbols) => {
            let foreign = tagged && order.client_order_id.as_deref().is_some_and(|id| !selection::is_ours(id));
            symbols.contains(&symbol) && !foreign
        }
        // Without positions any of them may be a close.
        ClosesIn::Whatever => held.is_none_or(|held| held.contains(&symbol)),
    }
}

/// Sorts open orders by what the halt asks for.
fn sort(
    orders: &calls::Orders,
    cancel: CancelOrders,
    closes_in: &ClosesIn,
    ours: impl Fn(&OrderSummary) -> bool,
) -> Orders {
    if !orders.listed {
        return match (cancel, closes_in) {
            (CancelOrders::None, _) => Orders { kept: orders.count, ..Orders::default() },
            // Without a list none can be told to be protective: all of them count.
            (_, ClosesIn::Nothing) => Orders { to_cancel: orders.count, ..Orders::default() },
            (..) => Orders { closing: orders.count, ..Orders::default() },
        };
    }
    let mut sorted = Orders::default();
    for order in &orders.orders {
        let symbol = order.summary.symbol.clone().unwrap_or_default();
        let keep = cancel == CancelOrders::None || cancel == CancelOrders::NonProtective && order.protective;
        if ours(&order.summary) {
            sorted.closing += 1;
        } else if keep {
            sorted.kept += 1;
        } else {
            sorted.to_cancel += 1;
            let id = order.summary.id.clone().unwrap_or_default();
            let quantity = order.summary.quantity.clone().unwrap_or_default();
            sorted.items.push(Item { id, symbol, quantity, ..Item::default() });
        }
    }
    sorted
}

fn open(positions: &calls::Positions) -> Positions {
    let items = positions.positions.iter().map(|p| Item {
        id: p.symbol.clone().unwrap_or_default(),
        symbol: p.symbol.clone().unwrap_or_default(),
        // The side says which way: a request takes a quantity without a sign.
        quantity: match p.quantity.as_deref().and_then(number::exact) {
            Some(quantity) => number::text(quantity.abs()),
            None => p.quantity.clone().unwrap_or_default(),
        },
        side: p.side.map(selection::closing_side).unwrap_or_default().into(),
        client_order_id: String::new(),
    });
    Positions { open: positions.count, items: items.collect(), held: positions.positions.clone() }
}

/// What a count that begins together with the first cancel tells of the orders that were open before: at least so many.
/// That none is left says nothing then.
fn were_open(halt: &TradingHalt, count: i64) -> Option<i64> {
    (count > 0 || halt.spec.orders.cancel == CancelOrders::None).then_some(count)
}

/// What the status says of a venue. What is counted after a cancel was intended says nothing of before.
fn show(
    before: VenueStatus,
    read: &VenueRead,
    (orders, positions): (&Option<Known<Orders>>, &Option<Known<Positions>>),
    cancel_intended: bool,
) -> VenueStatus {
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let orders = orders.as_ref().and_then(|o| o.as_ref().ok());
    let positions = positions.as_ref().and_then(|p| p.as_ref().ok());
    // Those that close positions were sent by a halt.
    let bots = |o: &Orders| count(o.to_cancel + o.kept);
    let errors = [
        read.orders.as_ref().and_then(|r| r.as_ref().err()),
        read.positions.as_ref().and_then(|r| r.as_ref().err()),
        read.suspended.as_ref().and_then(|r| r.as_ref().err()),
    ];
    let listed: Vec<OrderSummary> = match &read.orders {
        Some(Ok(o)) => o.orders.iter().take(ORDERS_SHOWN).map(|o| o.summary.clone()).collect(),
        _ => vec![],
    };
    let held: Vec<PositionSummary> = match &read.positions {
        Some(Ok(p)) => p.positions.iter().take(POSITIONS_SHOWN).cloned().collect(),
        _ => vec![],
    };
    VenueStatus {
        orders_before: before.orders_before.or_else(|| orders.filter(|_| !cancel_intended).map(bots)),
        positions_before: before.positions_before.or_else(|| positions.map(|p| count(p.open))),
        open_orders: orders.map(|o| count(o.to_cancel + o.closing)),
        kept_orders: orders.map(|o| count(o.kept)),
        open_positions: positions.map(|p| count(p.open)),
        trading_suspended: read.suspended.as_ref().and_then(|s| s.as_ref().ok().copied()),
        orders: listed,
        positions: held,
        last_error: errors.into_iter().flatten().next().map(|e| shorten(e)),
        read_at: Some(MicroTime(read.as_of())),
        selection: before.selection,
        name: before.name,
    }
}
