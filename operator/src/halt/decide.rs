//! What to do next for a halt, and what may be said of it. Pure: no I/O, no clock.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use standfast_crds::v1alpha1::{
    CancelOrders, HaltPhase, HaltPolicy, PositionSelection, PositionSummary, TradingHaltSpec, halt_conditions as c,
};

use super::{approvals::Approved, closing, selection::Lost};
use crate::{calls::Item, scale::Size, workloads::Key};

/// Something that was looked at, or the reason why it is not known.
pub type Known<T> = Result<T, String>;

/// Pods of the halted workloads that are neither gone nor terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// How many.
    pub running: usize,
    /// In words, some that should be gone by now: their grace period is over for a while. Their node may be cut off,
    /// and they may be trading.
    pub overdue: Option<String>,
}

/// Open orders of a venue, sorted by what the halt asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// Open, and to be cancelled.
    pub to_cancel: usize,
    /// Open, and kept on purpose.
    pub kept: usize,
    /// Open, and belonging to our own closing of positions.
    pub closing: usize,
    /// Those to be cancelled one by one, when the venue lists them.
    pub items: Vec<Item>,
}

/// Open positions of a venue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// How many.
    pub open: usize,
    /// Those to be closed one by one, when the venue lists them.
    pub items: Vec<Item>,
    /// The same with what is known of each.
    pub held: Vec<PositionSummary>,
}

/// What a venue offers, from the TradingSystem as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offers {
    /// The venue is not in the TradingSystem any more.
    pub removed: bool,
    /// Number of requests that cancel all orders.
    pub cancel_all: usize,
    /// Orders can be cancelled one by one.
    pub cancel_one: bool,
    /// Number of requests that close all positions.
    pub close_all: usize,
    /// Positions can be closed one by one.
    pub close_one: bool,
    /// Open orders can be read.
    pub reads_orders: bool,
    /// Open positions can be read.
    pub reads_positions: bool,
    /// Number of requests that suspend trading.
    pub suspend: usize,
    /// Number of requests that allow it again.
    pub allow: usize,
    /// The venue refuses closing while suspended.
    pub suspend_blocks_closing: bool,
}

/// A venue, as it was read in this tick.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VenueFacts {
    /// The venue's name.
    pub name: String,
    /// What it offers.
    pub offers: Offers,
    /// Open orders; an error when they could not be read.
    pub orders: Option<Known<Orders>>,
    /// Open positions.
    pub positions: Option<Known<Positions>>,
    /// Orders are not known yet: the first Job that reads them is running.
    pub orders_awaited: bool,
    /// The same for positions.
    pub positions_awaited: bool,
    /// The positions were read when everything was stopped and no order was open any more.
    pub positions_current: bool,
    /// Whether the venue itself says that it refuses new orders.
    pub suspended: Option<Known<bool>>,
    /// Reads in a row that found nothing to cancel, each begun after the last pod was gone.
    pub clean_reads: u32,
    /// Reads in a row that found the same positions and no order of our own closing.
    pub stable_reads: u32,
    /// Reads in a row that found no position.
    pub flat_reads: u32,
    /// A cancel was begun after the last pod was gone, or none is needed.
    pub cancelled_after_stop: bool,
    /// Enough time has passed since cancelling was last tried.
    pub cancel_due: bool,
    /// What cancelled orders when the halt began was taken from the TradingSystem, and nothing else cancels them.
    pub cancel_removed: bool,
    /// All requests to suspend were answered.
    pub suspend_done: bool,
    /// Another held halt of the system has asked the venue to suspend trading.
    pub suspended_elsewhere: bool,
    /// All requests to allow trading, so that positions can be closed, were answered.
    pub allow_done: bool,
    /// A close was intended already, by this halt or by one that closes in its place.
    pub close_intended: bool,
    /// Another held halt of the system is closing positions here, and not done: this one leaves that to it.
    pub closing_elsewhere: bool,
    /// Why positions may not close now: the market is closed, for example.
    pub close_hindrance: Option<String>,
    /// When the positions were read.
    pub as_of: Timestamp,
    /// What the account is worth, where that is needed.
    pub equity: Option<Known<String>>,
    /// It is not known yet: the Job that reads it is running.
    pub equity_awaited: bool,
    /// The smallest step of a quantity, if parts of a position can be closed.
    pub quantity_step: Option<String>,
    /// What the venue would have to declare so that positions can be selected and closed one by one.
    pub selection_lacks: Option<String>,
    /// What was selected, as far as it is closed.
    pub selection: Option<PositionSelection>,
    /// Those of it that cannot be followed any more.
    pub lost: Vec<Lost>,
}

/// What is known of the latch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LatchFact {
    /// A scale-up was refused by our policy, not long ago.
    Proven,
    /// It was not refused, or cannot be: why.
    Open(String),
    /// It is not known: why.
    Unknown(String),
}

/// A workload that is not stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveWorkload {
    /// Which one.
    pub key: Key,
    /// Its size.
    pub size: Size,
}

/// Everything that was looked at in one tick.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Time since the halt committed itself, or since something was raised again, as far as this process saw it.
    pub elapsed: Duration,
    /// For how long everything has been stopped.
    pub stopped_for: Duration,
    /// Time since the first close was sent, if one was.
    pub closing_for: Option<Duration>,
    /// The TradingSystem could be read.
    pub system: Known<()>,
    /// Workloads that the system names and that are not there.
    pub missing: Vec<String>,
    /// Workloads of the halt that are not stopped.
    pub active: Vec<ActiveWorkload>,
    /// Active Jobs of halted CronJobs.
    pub jobs: Known<Vec<String>>,
    /// Their pods.
    pub pods: Known<Pods>,
    /// The latch's ConfigMap is there and says what it should.
    pub latch_written: Known<bool>,
    /// What a trial said.
    pub latch: LatchFact,
    /// The venues.
    pub venues: Vec<VenueFacts>,
    /// The bot's own halt endpoint has not answered yet, and is due again.
    pub application_retry: bool,
    /// Whether people allow what the policy does not.
    pub approved: Approved,
}

impl Facts {
    /// Nothing that could place an order runs any more.
    pub fn stopped(&self) -> bool {
        self.active.is_empty()
            && matches!(&self.jobs, Ok(jobs) if jobs.is_empty())
            && matches!(&self.pods, Ok(pods) if pods.running == 0)
    }
}

/// Something to be done now. Everything but `Close…`, `Allow` and `Select` may be repeated at will.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write the latch's ConfigMap.
    WriteLatch,
    /// Stop a workload.
    Stop(Key, Size),
    /// Suspend a Job of a halted CronJob.
    SuspendJob(String),
    /// Send a request that cancels all orders.
    CancelAll(String, usize),
    /// Cancel one order.
    CancelOne(String, Item),
    /// Read the open orders, and cancel those that guard no position one by one.
    CancelListed(String),
    /// Send a request that suspends trading at the venue.
    Suspend(String, usize),
    /// Send a request that allows trading at the venue, because it takes no closes while trading is suspended: nothing
    /// of the system runs that could trade. Its intent is recorded first.
    Allow(String, usize),
    /// Ask the bot to stop by itself.
    ApplicationHalt,
    /// Send a request that closes all positions. Its intent is recorded first.
    CloseAll(String, usize),
    /// Close one position. Its intent is recorded first.
    CloseOne(String, Item),
    /// Write down which positions are closed, before the first of them is.
    Select(String, Box<PositionSelection>),
}

impl Effect {
    /// Whether its intent has to be in the status before it is begun.
    pub fn needs_intent(&self) -> bool {
        self.closes_at().is_some()
    }

    /// The venue at which it closes positions, or prepares that.
    pub fn closes_at(&self) -> Option<&str> {
        match self {
            Self::CloseAll(venue, _) | Self::CloseOne(venue, _) | Self::Allow(venue, _) | Self::Select(venue, _) => {
                Some(venue)
            }
            _ => None,
        }
    }
}

/// The first wave: everything that may be repeated, at once, with nothing looked at before. Whether the halt `closes`
/// positions: a venue that takes no closes while trading is suspended is suspended afterwards.
pub fn first_wave(
    spec: &TradingHaltSpec,
    closes: bool,
    active: Vec<ActiveWorkload>,
    venues: &[(String, Offers)],
    application: bool,
) -> Vec<Effect> {
    // All are begun at once, in this order: what an open order may cost comes before everything else.
    let mut effects = vec![];
    for (name, offers) in venues {
        match spec.orders.cancel {
            CancelOrders::All if offers.cancel_all > 0 => {
                effects.extend((0..offers.cancel_all).map(|n| Effect::CancelAll(name.clone(), n)));
            }
            CancelOrders::All | CancelOrders::NonProtective if offers.cancel_one && offers.reads_orders => {
                effects.push(Effect::CancelListed(name.clone()));
            }
            _ => {}
        }
        if !(offers.suspend_blocks_closing && closes) {
            effects.extend((0..offers.suspend).map(|n| Effect::Suspend(name.clone(), n)));
        }
    }
    effects.push(Effect::WriteLatch);
    if application {
        effects.push(Effect::ApplicationHalt);
    }
    effects.extend(active.into_iter().map(|w| Effect::Stop(w.key, w.size)));
    effects
}

/// How many orders or positions are handled one by one in a tick.
pub(super) const ITEMS_PER_TICK: usize = 50;

/// What to do next.
pub fn effects(spec: &TradingHaltSpec, policy: &HaltPolicy, facts: &Facts) -> Vec<Effect> {
    let mut effects = vec![];
    if matches!(facts.latch_written, Ok(false)) {
        effects.push(Effect::WriteLatch);
    }
    effects.extend(facts.active.iter().map(|w| Effect::Stop(w.key.clone(), w.size)));
    if let Ok(jobs) = &facts.jobs {
        effects.extend(jobs.iter().cloned().map(Effect::SuspendJob));
    }
    if facts.application_retry {
        effects.push(Effect::ApplicationHalt);
    }
    for venue in &facts.venues {
        cancels(spec, venue, facts.stopped(), &mut effects);
        let closing = closing::closes(spec, policy, venue, facts, &mut effects);
        let suspended = matches!(venue.suspended, Some(Ok(true)));
        let unsuspended = matches!(venue.suspended, Some(Ok(false)));
        let blocked = venue.offers.suspend_blocks_closing && (closing || venue.closing_elsewhere);
        if !blocked && !suspended && (unsuspended || !venue.suspend_done) {
            effects.extend((0..venue.offers.suspend).map(|n| Effect::Suspend(venue.name.clone(), n)));
        }
    }
    effects
}

fn cancels(spec: &TradingHaltSpec, venue: &VenueFacts, stopped: bool, effects: &mut Vec<Effect>) {
    let cancel = spec.orders.cancel;
    let (open, items) = match &venue.orders {
        Some(Ok(orders)) => (orders.to_cancel > 0, orders.items.as_slice()),
        // Not known: cancelling everything does no harm, unless orders of our own closing are among it.
        Some(Err(_)) | None => (!venue.close_intended, [].as_slice()),
    };
    // Zero read while a pod was alive proves nothing; a cancel before its end is repeated after it.
    let again = stopped && !venue.cancelled_after_stop && !venue.close_intended;
    if cancel == CancelOrders::None || !(open || again) || !venue.cancel_due {
        return;
    }
    let spares_closing = !venue.close_intended || matches!(&venue.orders, Some(Ok(o)) if o.closing == 0);
    if cancel == CancelOrders::All && venue.offers.cancel_all > 0 && spares_closing {
        effects.extend((0..venue.offers.cancel_all).map(|n| Effect::CancelAll(venue.name.clone(), n)));
    } else if venue.offers.cancel_one {
        let items = items.iter().take(ITEMS_PER_TICK).cloned();
        effects.extend(items.map(|i| Effect::CancelOne(venue.name.clone(), i)));
    }
}

/// One condition: type, status, reason, message.
pub type Verdict = (&'static str, &'static str, &'static str, String);

/// What may be said of the halt.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// `Latched, WorkloadsStopped, OrdersCancelled, PositionsClosed, Verified, Halted`.
    pub conditions: Vec<Verdict>,
    /// The digest of them.
    pub phase: HaltPhase,
}

impl Judgement {
    /// Status of one condition.
    pub fn status(&self, type_: &str) -> &'static str {
        self.conditions.iter().find(|v| v.0 == type_).map_or("Unknown", |v| v.1)
    }
}

/// How long orders may stay open after everything was stopped before a person is called, in seconds.
const CANCEL_PATIENCE: Duration = Duration::from_secs(60);

/// What may be said, from what was read back and nothing else.
pub fn judge(spec: &TradingHaltSpec, policy: &HaltPolicy, facts: &Facts) -> Judgement {
    let latched = match &facts.latch {
        LatchFact::Proven => (c::LATCHED, "True", "ScaleUpRefused", "a scale-up was refused by the policy".into()),
        LatchFact::Open(why) => (c::LATCHED, "False", "ScaleUpNotRefused", why.clone()),
        LatchFact::Unknown(why) => (c::LATCHED, "Unknown", "NotProven", why.clone()),
    };
    let workloads = workloads(policy, facts);
    let orders = orders(spec, policy, facts);
    let positions = closing::verdict(spec, policy, facts);
    let unknown = [&workloads, &orders, &positions].into_iter().find(|v| v.1 == "Unknown").cloned();
    let verified = match (&unknown, &facts.system) {
        (Some(v), _) => (c::VERIFIED, "Unknown", v.2, v.3.clone()),
        (None, Err(why)) => (c::VERIFIED, "Unknown", SYSTEM_UNREADABLE, why.clone()),
        (None, Ok(())) => (c::VERIFIED, "True", "ReadBack", "everything that is said here was read back".into()),
    };
    let done = |v: &Verdict| v.1 == "True";
    // Kept, and said so: that is no reason to doubt the rest.
    let kept = closing::keeps(&positions);
    let halted = done(&workloads) && done(&orders) && (done(&positions) || kept) && done(&verified);
    let late = workloads.2 == PODS_LATE || workloads.2 == NODE_UNREACHABLE || orders.2 == ORDERS_LATE;
    let phase = if halted {
        HaltPhase::Halted
    } else if verified.1 != "True" || late {
        HaltPhase::Unverified
    } else if !done(&workloads) || orders.2 == ORDERS_OPEN {
        HaltPhase::Fencing
    } else if closing::allowed(spec, policy, facts.approved.granted()).is_some() && !done(&positions) {
        HaltPhase::Closing
    } else {
        HaltPhase::Verifying
    };
    let halted = if halted {
        let kept = if kept { format!("; {}", positions.3) } else { String::new() };
        let open = if latched.1 == "True" { String::new() } else { format!("; not latched: {}", latched.3) };
        (c::HALTED, "True", "Proven", format!("no trading pod runs, no order is open that should not be{kept}{open}"))
    } else {
        let why = [&verified, &workloads, &orders, &positions].into_iter().find(|v| v.1 != "True");
        let (status, reason, message) = why.map_or(("False", "Verifying", String::new()), |v| (v.1, v.2, v.3.clone()));
        (c::HALTED, status, reason, message)
    };
    Judgement { conditions: vec![latched, workloads, orders, positions, verified, halted], phase }
}

/// Reason of `OrdersCancelled` when it was proven that none is open.
pub const ZERO_ORDERS: &str = "ZeroOrders";
pub(super) const SYSTEM_UNREADABLE: &str = "SystemUnreadable";
const PODS_LATE: &str = "PodsStillRunning";
const NODE_UNREACHABLE: &str = "NodeUnreachable";
const ORDERS_OPEN: &str = "OrdersOpen";
const ORDERS_LATE: &str = "OrdersStillOpen";

fn workloads(policy: &HaltPolicy, facts: &Facts) -> Verdict {
    let verdict = |status, reason, message| (c::WORKLOADS_STOPPED, status, reason, message);
    if let Some(missing) = facts.missing.first() {
        return verdict("Unknown", "WorkloadNotFound", missing.clone());
    }
    let (pods, jobs) = match (&facts.pods, &facts.jobs) {
        (Ok(pods), Ok(jobs)) => (pods, jobs),
        (Err(why), _) | (_, Err(why)) => return verdict("Unknown", "PodsNotRead", why.clone()),
    };
    if let Some(overdue) = &pods.overdue {
        return verdict("False", NODE_UNREACHABLE, overdue.clone());
    }
    if pods.running == 0 && jobs.is_empty() {
        return match facts.active.as_slice() {
            [] => verdict("True", "Stopped", "no pod of a trading workload is left".into()),
            [first, ..] => verdict("False", "ScalingDown", format!("{} is not at zero yet", first.key)),
        };
    }
    let left = format!("{} pods of trading workloads are left", pods.running);
    if facts.elapsed > policy.stop_grace_period.get() {
        return verdict("False", PODS_LATE, format!("{left} after {}", policy.stop_grace_period));
    }
    verdict("False", "PodsEnding", left)
}

fn orders(spec: &TradingHaltSpec, policy: &HaltPolicy, facts: &Facts) -> Verdict {
    let verdict = |status, reason, message| (c::ORDERS_CANCELLED, status, reason, message);
    if spec.orders.cancel == CancelOrders::None {
        return verdict("True", "NotRequested", "open orders are kept, as the halt asks".into());
    }
    if let Err(why) = &facts.system {
        return verdict("Unknown", SYSTEM_UNREADABLE, why.clone());
    }
    if facts.venues.is_empty() {
        let message = "the TradingSystem names no venue: whether orders are open is not known";
        return verdict("Unknown", "NoVenues", message.into());
    }
    let (mut open, mut kept, mut clean) = (0, 0, true);
    for venue in &facts.venues {
        let name = &venue.name;
        if venue.offers.removed {
            let message =
                format!("venue {name} was removed from the TradingSystem under the halt: its orders cannot be read");
            return verdict("Unknown", "VenueRemoved", message);
        }
        if venue.cancel_removed {
            let message = format!("venue {name}: cancelOrders was removed from the TradingSystem under the halt");
            return verdict("Unknown", "CancelRemoved", message);
        }
        if spec.orders.cancel == CancelOrders::NonProtective && !venue.offers.cancel_one {
            let message = format!("venue {name} has no cancelOrder: single orders cannot be cancelled");
            return verdict("Unknown", "NonProtectiveNotPossible", message);
        }
        match &venue.orders {
            Some(Ok(orders)) => {
                if let (1.., Some(Err(why))) = (orders.closing, &venue.positions) {
                    let message = format!("venue {name}: whether its open orders are closes is not known: {why}");
                    return verdict("Unknown", "PositionsNotRead", message);
                }
                open += orders.to_cancel;
                kept += orders.kept;
            }
            Some(Err(why)) if venue.orders_awaited => {
                return verdict("False", "Verifying", format!("venue {name}: {why}"));
            }
            Some(Err(why)) => return verdict("Unknown", "OrdersNotRead", format!("venue {name}: {why}")),
            None => {
                let message = format!("venue {name} has no openOrders: whether orders are open is not known");
                return verdict("Unknown", "OrdersNotReadable", message);
            }
        }
        clean &= venue.clean_reads >= policy.verify_reads;
    }
    if open > 0 {
        let reason = if facts.stopped() && facts.stopped_for > CANCEL_PATIENCE { ORDERS_LATE } else { ORDERS_OPEN };
        return verdict("False", reason, format!("{open} orders are open"));
    }
    let kept = if kept > 0 { format!(", {kept} are kept on purpose") } else { String::new() };
    if !clean {
        return verdict("False", "Verifying", format!("no order is open so far{kept}; reading again"));
    }
    verdict("True", ZERO_ORDERS, format!("{} reads in a row found no open order{kept}", policy.verify_reads))
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
