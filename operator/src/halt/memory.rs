//! What the operator remembers of a halt between two looks. Losing it costs time, never safety: counts begin at zero.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::{
    decide::{ActiveWorkload, Known, LatchFact, Orders, Positions},
    jobs::JobReads,
    proven::ProvenFor,
};
use crate::{calls::Item, workloads::Key};

/// What is remembered of one halt.
pub struct Memory {
    /// When this process first saw the halt committed.
    pub started: Instant,
    /// Since when the workloads are being stopped: since the beginning, or since one was raised again.
    pub moving_since: Instant,
    /// Since when nothing that could place an order runs.
    pub stopped_since: Option<Instant>,
    /// What the last trial of the latch said, and when.
    pub latch: Option<(Instant, LatchFact)>,
    /// The venues.
    pub venues: HashMap<String, VenueMemory>,
    /// Whether this process has looked at the halt before.
    pub looked: bool,
    /// The bot's own endpoint: when it is tried again, and how often it was.
    pub application: Option<Retry>,
    /// When the first close was sent.
    pub closing_since: Option<Instant>,
    /// Reads that run as Jobs.
    pub job_reads: JobReads,
    /// When somebody last undid a part of the halt.
    pub contended: Option<Instant>,
    /// For how long it was proven; none before this process's first look.
    pub proven: Option<ProvenFor>,
    /// Workloads that were neither seen stopped nor stopped with an answer since they belong to the halt: that they run is
    /// nobody's doing, and their size is what to go back to.
    pub stopping: HashSet<Key>,
    /// Workloads that the cache says were stopped before, and that could not be read live yet.
    pub unread: Vec<Key>,
    /// When it was first seen in the status that people allowed to close positions.
    pub approved: Option<Instant>,
}

/// When something is tried again.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Not before.
    pub at: Instant,
    /// How often it was tried.
    pub attempts: u32,
}

/// What is remembered of one venue.
#[derive(Default)]
pub struct VenueMemory {
    /// Reads in a row that found nothing to cancel.
    pub clean: u32,
    /// When the first of them had answered.
    pub clean_since: Option<Instant>,
    /// Reads in a row that found no position.
    pub flat: u32,
    /// Reads in a row that found the same positions, and no order of our own closing.
    pub stable: u32,
    /// The positions of the read before, to see whether they change.
    pub last_positions: Option<Vec<(String, String)>>,
    /// When each request that cancels all orders was last begun and may have had an effect.
    pub cancels: HashMap<usize, Instant>,
    /// When cancelling was last tried, and how often in a row without getting rid of all orders.
    pub cancel_tries: (Option<Instant>, u32),
    /// The requests to suspend were answered, and none to allow was sent since.
    pub suspended: bool,
    /// The requests to allow trading were answered, and none to suspend was sent since.
    pub allowed: bool,
    /// A resume may be making the venue accept orders.
    pub allowing: bool,
}

impl Memory {
    /// Nothing remembered yet.
    pub fn new(now: Instant) -> Self {
        Self {
            started: now,
            moving_since: now,
            stopped_since: None,
            latch: None,
            venues: HashMap::new(),
            looked: false,
            application: None,
            closing_since: None,
            job_reads: JobReads::new(Timestamp::now().as_nanosecond()),
            contended: None,
            proven: None,
            stopping: HashSet::new(),
            unread: vec![],
            approved: None,
        }
    }

    /// The first of these workloads that was stopped before.
    pub fn raised<'a>(&mut self, active: &'a [ActiveWorkload]) -> Option<&'a ActiveWorkload> {
        self.stopping.retain(|key| active.iter().any(|w| w.key == *key));
        active.iter().find(|w| !self.stopping.contains(&w.key))
    }

    /// Takes note of stops that were acknowledged. The cache may still show the sizes before; a size that is raised from
    /// now on is somebody's doing.
    pub fn note_stops<'a>(&mut self, stopped: impl Iterator<Item = &'a Key>) {
        for key in stopped {
            self.stopping.remove(key);
        }
    }

    /// Takes note that everything is stopped, or is not.
    pub fn note_stopped(&mut self, stopped: bool, now: Instant) {
        if !stopped {
            if self.stopped_since.take().is_some() {
                self.moving_since = now;
            }
            self.venues.values_mut().for_each(|v| (v.clean, v.clean_since, v.flat, v.stable) = (0, None, 0, 0));
        } else if self.stopped_since.is_none() {
            self.stopped_since = Some(now);
        }
    }

    /// Whether each of so many requests that cancel all orders of a venue was begun after everything had stopped.
    pub fn cancelled_after_stop(&self, venue: &str, requests: usize) -> bool {
        let begun = |n: usize| self.venues.get(venue).and_then(|v| v.cancels.get(&n));
        self.stopped_since.is_some_and(|since| (0..requests).all(|n| begun(n).is_some_and(|at| *at >= since)))
    }

    /// Whether the latch is due for a trial: at once while it is not proven, then every minute.
    pub fn latch_due(&self, now: Instant) -> bool {
        match &self.latch {
            Some((at, LatchFact::Proven)) => now.duration_since(*at) >= Duration::from_secs(60),
            _ => true,
        }
    }
}

impl VenueMemory {
    /// Takes note of a wave that cancelled.
    pub fn note_cancel(&mut self, now: Instant) {
        self.cancel_tries = (Some(now), self.cancel_tries.1.saturating_add(1));
    }

    /// Whether cancelling is to be tried again now: after some tries the venue is given more and more time, up to half a
    /// minute.
    pub fn cancel_due(&self, now: Instant) -> bool {
        let (Some(last), tries) = self.cancel_tries else { return true };
        let pause = match tries {
            0..5 => Duration::ZERO,
            more => Duration::from_secs(1 << (more - 4).min(5)).min(Duration::from_secs(30)),
        };
        now.duration_since(last) >= pause
    }

    /// Takes note of whether a resume may be making the venue accept orders. Then nothing that was sent by now counts.
    pub fn note_allowing(&mut self, allowing: bool) {
        self.allowing = allowing;
        self.suspended &= !allowing;
    }

    /// Takes note of requests to suspend, and whether all of them were answered.
    pub fn note_suspended(&mut self, answered: bool) {
        (self.suspended, self.allowed) = (answered && !self.allowing, false);
    }

    /// Takes note of a read that was begun at `begun`; it counts only if everything was stopped before, and a cancel
    /// was sent after that where one is needed.
    pub fn note_orders(&mut self, read: &Known<Orders>, counts: bool, now: Instant) {
        match read {
            Ok(orders) if counts && orders.to_cancel == 0 => {
                self.clean = self.clean.saturating_add(1);
                self.cancel_tries = (None, 0);
                self.clean_since.get_or_insert(now);
            }
            _ => (self.clean, self.clean_since) = (0, None),
        }
    }

    /// Takes note of a close that is about to be sent: only reads after it tell whether anything moves.
    pub fn note_close(&mut self) {
        (self.stable, self.last_positions) = (0, None);
    }

    /// Takes note of a read of positions; it counts only if it began when no order was open any more.
    pub fn note_positions(&mut self, read: &Known<Positions>, orders_settled: bool, counts: bool) {
        let (Ok(positions), true) = (read, counts) else {
            (self.flat, self.stable, self.last_positions) = (0, 0, None);
            return;
        };
        self.flat = if positions.open == 0 { self.flat.saturating_add(1) } else { 0 };
        let signed = |i: &Item| (i.symbol.clone(), format!("{} {}", i.side, i.quantity));
        let now: Vec<_> = positions.items.iter().map(signed).collect();
        let same = self.last_positions.as_ref() == Some(&now) && orders_settled;
        self.stable = if same { self.stable.saturating_add(1) } else { 0 };
        self.last_positions = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use standfast_crds::v1alpha1::WorkloadKind;

    use super::*;
    use crate::scale::Size;

    fn positions(quantities: &[&str]) -> Known<Positions> {
        let items: Vec<_> = quantities
            .iter()
            .map(|q| Item { symbol: "AAPL".into(), quantity: (*q).into(), ..Item::default() })
            .collect();
        Ok(Positions { open: items.len(), items, ..Positions::default() })
    }

    #[test]
    fn a_workload_is_raised_only_after_it_was_stopped() {
        let active = |name: &str| ActiveWorkload {
            key: Key { namespace: "n".into(), kind: WorkloadKind::Deployment, name: name.into() },
            size: Size::Replicas(1),
        };
        let (one, two) = (active("one"), active("two"));
        let mut memory = Memory::new(Instant::now());
        memory.stopping = HashSet::from([one.key.clone(), two.key.clone()]);
        assert_eq!(memory.raised(&[one.clone(), two.clone()]), None);
        assert_eq!(memory.raised(std::slice::from_ref(&two)), None);
        assert_eq!(memory.raised(&[one.clone(), two.clone()]), Some(&one));
        memory.note_stops(std::iter::once(&two.key));
        assert_eq!(memory.raised(std::slice::from_ref(&two)), Some(&two), "its stop was acknowledged");
    }

    #[test]
    fn only_reads_after_the_stop_count_and_an_error_begins_again() {
        let mut venue = VenueMemory::default();
        let (zero, open) = (Ok(Orders::default()), Ok(Orders { to_cancel: 1, ..Orders::default() }));
        let (first, later) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        venue.note_orders(&zero, false, first);
        assert_eq!((venue.clean, venue.clean_since), (0, None));
        venue.note_orders(&zero, true, first);
        venue.note_orders(&zero, true, later);
        assert_eq!((venue.clean, venue.clean_since), (2, Some(first)));
        venue.note_orders(&Err("timeout".into()), true, later);
        assert_eq!((venue.clean, venue.clean_since), (0, None));
        venue.note_orders(&zero, true, later);
        venue.note_orders(&open, true, later);
        assert_eq!((venue.clean, venue.clean_since), (0, None));
    }

    #[test]
    fn a_venue_that_does_not_cancel_is_asked_less_and_less_often() {
        let (mut venue, begun) = (VenueMemory::default(), Instant::now());
        let after = |seconds| begun + Duration::from_secs(seconds);
        for _ in 0..4 {
            assert!(venue.cancel_due(begun));
            venue.note_cancel(begun);
        }
        venue.note_cancel(begun);
        assert_eq!([1, 2].map(|s| venue.cancel_due(after(s))), [false, true]);
        (0..40).for_each(|_| venue.note_cancel(begun));
        assert_eq!([29, 30].map(|s| venue.cancel_due(after(s))), [false, true]);
        venue.note_orders(&Ok(Orders::default()), true, begun);
        assert!(venue.cancel_due(begun));
    }

    #[test]
    fn positions_are_stable_only_while_neither_they_nor_orders_move() {
        let mut venue = VenueMemory::default();
        for (quantity, settled, stable) in
            [("5", true, 0), ("5", true, 1), ("5", true, 2), ("3", true, 0), ("3", false, 0), ("3", true, 1)]
        {
            venue.note_positions(&positions(&[quantity]), settled, true);
            assert_eq!(venue.stable, stable, "{quantity} {settled}");
        }
        venue.note_positions(&positions(&["3"]), true, true);
        assert_eq!(venue.stable, 2);
        venue.note_close();
        venue.note_positions(&positions(&["3"]), true, true);
        assert_eq!(venue.stable, 0, "a close was sent in between");
        venue.note_positions(&positions(&[]), true, true);
        assert_eq!((venue.flat, venue.stable), (1, 0));
        venue.note_positions(&Err("timeout".into()), true, true);
        assert_eq!(venue.flat, 0);
        venue.note_positions(&positions(&[]), true, false);
        assert_eq!(venue.flat, 0, "read while an order could still be filled");
    }

    #[test]
    fn every_request_that_cancels_is_begun_after_the_stop() {
        let (before, now) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let mut memory = Memory::new(before);
        assert!(!memory.cancelled_after_stop("v", 0), "pods run");
        memory.note_stopped(true, now);
        assert!(memory.cancelled_after_stop("v", 0), "none is needed");
        assert!(!memory.cancelled_after_stop("v", 1));
        let cancels = [(0, now), (1, before)].into();
        memory.venues.insert("v".into(), VenueMemory { cancels, ..VenueMemory::default() });
        assert_eq!([1, 2, 3].map(|n| memory.cancelled_after_stop("v", n)), [true, false, false]);
    }

    #[test]
    fn a_pod_that_comes_back_takes_every_count_away() {
        let now = Instant::now();
        let mut memory = Memory::new(now);
        memory.note_stopped(true, now);
        memory.venues.insert("v".into(), VenueMemory { clean: 3, flat: 2, stable: 1, ..VenueMemory::default() });
        memory.note_stopped(false, now);
        assert_eq!((memory.venues["v"].clean, memory.venues["v"].flat, memory.stopped_since), (0, 0, None));
        assert_eq!(memory.moving_since, now);
    }
}
