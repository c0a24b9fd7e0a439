//! Leader election with a Lease.
//!
//! One process acts at a time. The Lease carries who and in which term (`leaseTransitions`, the *epoch*); how long that
//! holds is judged by every process on its own monotonic clock alone: a leader counts from the moment *before* it sent
//! a renewal that succeeded, a standby from the moment *after* it saw the Lease change. So the leader always stops
//! before a standby may start, whatever the wall clocks of the two machines say.
//!
//! A Lease is not a lock on the outside world: a process that is stopped between a check and its effect may still act
//! late. Effects are therefore repeatable or carry a key; see the design of a halt.

use std::{fmt, sync::Arc, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client, Error,
    api::{ObjectMeta, PostParams},
};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tracing::{debug, info, warn};

/// A recorded duration above this is not believed: a mistaken edit must not keep everybody from leading for hours.
const LONGEST_DURATION: Duration = Duration::from_secs(60);

/// How often a write that met a newer version of our own Lease is tried again at once.
const CONFLICT_TRIES: usize = 3;

/// What a candidate needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub lease: String,
    /// Who we are: the pod's uid. Two running processes must never share one.
    pub identity: String,
    /// How long a standby waits, after the Lease last changed, before it takes over.
    pub duration: Duration,
    /// How long a leader goes on without a successful renewal before it gives up.
    pub renew_deadline: Duration,
    /// Pause between two renewals of a leader, and between two looks of a standby.
    pub retry: Duration,
    /// Wall clock for the times shown in the Lease. They are for people: nothing is decided on them.
    pub wall_clock: fn() -> Timestamp,
}

impl Settings {
    /// The product's times: 6 s, 4 s, 1 s.
    pub fn new(namespace: impl Into<String>, lease: impl Into<String>, identity: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            lease: lease.into(),
            identity: identity.into(),
            duration: Duration::from_secs(6),
            renew_deadline: Duration::from_secs(4),
            retry: Duration::from_secs(1),
            wall_clock: Timestamp::now,
        }
    }

    /// The longest that one call to the API server may take: two of them fit before the renewal deadline.
    fn call(&self) -> Duration {
        self.renew_deadline / 2
    }

    fn check(&self) -> Result<(), SettingsError> {
        let Self { duration, renew_deadline, retry, .. } = self;
        if self.identity.is_empty() {
            return Err(SettingsError("the identity of a candidate must not be empty".into()));
        }
        if retry.is_zero() || *retry * 2 > *renew_deadline || renew_deadline >= duration {
            return Err(SettingsError(format!(
                "leader election needs 2 × retry ≤ renew deadline < duration, got {retry:?}, {renew_deadline:?}, {duration:?}"
            )));
        }
        if duration.subsec_nanos() != 0 || *duration > LONGEST_DURATION {
            return Err(SettingsError(format!(
                "the duration of a lease is in whole seconds up to {LONGEST_DURATION:?}, got {duration:?}"
            )));
        }
        Ok(())
    }
}

/// Settings with which two processes could lead at a time.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(String);

/// Why no effect may start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Still the leader, but not for long enough.
    #[error("leadership is certain for another {remaining:?} only, {needed:?} are needed")]
    TooShort {
        /// How long the effect may take.
        needed: Duration,
        /// How long leadership is certain.
        remaining: Duration,
    },
    /// No renewal succeeded before the renewal deadline.
    #[error("the lease was not renewed for {silent:?}; last error: {last_error}")]
    NotRenewed {
        /// Time since the last successful renewal.
        silent: Duration,
        /// What the last attempt met.
        last_error: String,
    },
    /// Somebody else holds the Lease.
    #[error("the lease was taken by {by:?} in term {epoch}")]
    Taken {
        /// Who holds it now; empty when nobody does.
        by: String,
        /// The term it is now in.
        epoch: i64,
    },
    /// The Lease is gone.
    #[error("the lease was deleted")]
    Deleted,
    /// This process gave it up.
    #[error("leadership was given up")]
    Released,
}

/// Whether, and for how long, this process is the leader. Cheap to clone and to ask; asked before every effect.
#[derive(Clone)]
pub struct Leadership(Validity);

#[derive(Clone)]
enum Validity {
    Always,
    Term { epoch: i64, state: watch::Receiver<State> },
}

#[derive(Clone, Debug)]
enum State {
    Until(Instant),
    Lost(Lost),
}

impl Leadership {
    /// Leads for ever, in term 0: for tests.
    pub fn always() -> Self {
        Self(Validity::Always)
    }

    /// The term: `leaseTransitions` of the Lease. Grows with every change of leader; the first one is 1.
    pub fn epoch(&self) -> i64 {
        match &self.0 {
            Validity::Always => 0,
            Validity::Term { epoch, .. } => *epoch,
        }
    }

    /// For how long nobody else can become the leader, unless this process gives up. Zero once leadership is lost.
    pub fn remaining(&self) -> Duration {
        match &self.0 {
            Validity::Always => Duration::MAX,
            Validity::Term { state, .. } => match &*state.borrow() {
                State::Until(end) => end.saturating_duration_since(Instant::now()),
                State::Lost(_) => Duration::ZERO,
            },
        }
    }

    /// Whether an effect that takes at most `needed` may start now.
    pub fn check(&self, needed: Duration) -> Result<(), Lost> {
        if let Validity::Term { state, .. } = &self.0
            && let State::Lost(reason) = &*state.borrow()
        {
            return Err(reason.clone());
        }
        let remaining = self.remaining();
        if remaining > needed { Ok(()) } else { Err(Lost::TooShort { needed, remaining }) }
    }

    /// Resolves when leadership is lost, with the reason. The process is then to exit.
    pub async fn lost(&self) -> Lost {
        match &self.0 {
            Validity::Always => std::future::pending().await,
            Validity::Term { state, .. } => {
                let mut state = state.clone();
                match state.wait_for(|state| matches!(state, State::Lost(_))).await.as_deref() {
                    Ok(State::Lost(reason)) => reason.clone(),
                    // The renewing task is gone.
                    _ => Lost::Released,
                }
            }
        }
    }
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leadership").field("epoch", &self.epoch()).field("remaining", &self.remaining()).finish()
    }
}

type Healthy = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A process that waits to become the leader.
pub struct Candidate {
    leases: Api<Lease>,
    settings: Settings,
    healthy: Healthy,
    holder: watch::Sender<Option<String>>,
    /// The record last seen and when it was first seen like that.
    seen: Option<(LeaseSpec, Instant)>,
    /// The highest term ever seen, so that terms grow even when the Lease is deleted under us.
    highest: i64,
}

impl Candidate {
    /// A candidate that has not looked yet.
    pub fn new(client: Client, settings: Settings) -> Result<Self, SettingsError> {
        settings.check()?;
        Ok(Self {
            leases: Api::namespaced(client, &settings.namespace),
            settings,
            healthy: Arc::new(|| Ok(())),
            holder: watch::Sender::new(None),
            seen: None,
            highest: 0,
        })
    }

    /// Neither takes nor renews the lease while `healthy` fails: a leader that is stuck makes way for a standby.
    pub fn while_healthy(mut self, healthy: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.healthy = Arc::new(healthy);
        self
    }

    /// Who holds the lease, as last seen: `None` before the first look, empty when nobody does.
    pub fn holder(&self) -> watch::Receiver<Option<String>> {
        self.holder.subscribe()
    }

    /// Waits until this process is the leader. Dropping the future ends the candidacy.
    pub async fn acquire(mut self) -> Term {
        loop {
            let started = Instant::now();
            let attempt = match (self.healthy)() {
                Ok(()) => timeout(self.settings.call(), self.attempt()).await,
                Err(reason) => Ok(Err(format!("not a candidate: {reason}"))),
            };
            match attempt {
                Ok(Ok(Some((lease, from)))) => return Term::start(self, lease, from),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => warn!(lease = self.settings.lease, error, "cannot become the leader"),
                Err(_) => warn!(lease = self.settings.lease, "no answer about the lease"),
            }
            sleep_until(started + self.settings.retry).await;
        }
    }

    /// One look, and one write if the lease may be taken.
    async fn attempt(&mut self) -> Result<Option<(Lease, Instant)>, String> {
        let found = self.leases.get_opt(&self.settings.lease).await.map_err(|error| format!("reading it: {error}"))?;
        let Some(mut lease) = found else {
            // Somebody deleted it: who held it believes in it until the next renewal fails.
            if !self.may_take() && self.seen.is_some() {
                return Ok(None);
            }
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.settings.lease.clone()), ..ObjectMeta::default() },
                spec: Some(self.record(self.highest + 1)),
            };
            let from = Instant::now();
            return won(self.leases.create(&PostParams::default(), &lease).await, from);
        };
        self.look(&lease);
        if !self.may_take() {
            return Ok(None);
        }
        // Also when the holder is an earlier process of this pod: its intents belong to an older term.
        lease.spec = Some(self.record(self.highest + 1));
        let from = Instant::now();
        won(self.leases.replace(&self.settings.lease, &PostParams::default(), &lease).await, from)
    }

    fn look(&mut self, lease: &Lease) {
        let spec = lease.spec.clone().unwrap_or_default();
        self.highest = self.highest.max(epoch(&spec));
        self.holder.send_replace(Some(spec.holder_identity.clone().unwrap_or_default()));
        if self.seen.as_ref().is_none_or(|(known, _)| *known != spec) {
            self.seen = Some((spec, Instant::now()));
        }
    }

    fn may_take(&self) -> bool {
        let Some((spec, since)) = &self.seen else { return false };
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == self.settings.identity {
            return true;
        }
        // A holder with other settings (an upgrade) is given the longer of the two.
        let recorded = Duration::from_secs(spec.lease_duration_seconds.unwrap_or(0).max(0).unsigned_abs().into());
        since.elapsed() >= self.settings.duration.max(recorded.min(LONGEST_DURATION))
    }

    fn record(&self, epoch: i64) -> LeaseSpec {
        let now = MicroTime((self.settings.wall_clock)());
        LeaseSpec {
            holder_identity: Some(self.settings.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.settings.duration.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(i32::try_from(epoch).unwrap_or(i32::MAX)),
            ..LeaseSpec::default()
        }
    }
}

/// What came of a write that takes the lease. Somebody who was quicker is no error.
fn won(written: Result<Lease, Error>, from: Instant) -> Result<Option<(Lease, Instant)>, String> {
    match written {
        Ok(lease) => Ok(Some((lease, from))),
        Err(Error::Api(status)) if status.code == 409 => Ok(None),
        Err(error) => Err(format!("taking it: {error}")),
    }
}

fn epoch(spec: &LeaseSpec) -> i64 {
    spec.lease_transitions.unwrap_or(0).into()
}

/// A term of leadership, renewed by a task of its own. Dropped, it is no longer renewed and lapses by itself.
pub struct Term {
    leadership: Leadership,
    state: watch::Sender<State>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Renewal>,
    call: Duration,
}

impl Term {
    fn start(candidate: Candidate, lease: Lease, from: Instant) -> Self {
        let Candidate { leases, settings, healthy, holder, .. } = candidate;
        let epoch = lease.spec.as_ref().map_or(0, epoch);
        info!(lease = settings.lease, epoch, "became the leader");
        holder.send_replace(Some(settings.identity.clone()));
        let state = watch::Sender::new(State::Until(from + settings.duration));
        let leadership = Leadership(Validity::Term { epoch, state: state.subscribe() });
        let (stop, stopped) = oneshot::channel();
        let call = settings.call();
        let renewal = Renewal { leases, settings, healthy, epoch, lease };
        let task = tokio::spawn(renewal.run(from, state.clone(), stopped));
        Self { leadership, state, stop, task, call }
    }

    /// To be handed to everything that has effects.
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// Resolves when leadership is lost, with the reason. The process is then to exit.
    pub async fn lost(&self) -> Lost {
        self.leadership.lost().await
    }

    /// Gives the lease up, so that a standby takes over at its next look. To be called when nothing acts any more.
    /// A failure is only logged: the lease then lapses by itself.
    pub async fn release(self) {
        let Self { leadership, state, stop, task, call } = self;
        let held = leadership.check(Duration::ZERO).is_ok();
        // From here no effect may start.
        state.send_if_modified(|state| {
            let held = matches!(state, State::Until(_));
            if held {
                *state = State::Lost(Lost::Released);
            }
            held
        });
        // The task ends by itself when leadership was lost.
        let _ = stop.send(());
        let Ok(mut renewal) = task.await else { return };
        if !held {
            return;
        }
        match timeout(call, renewal.write(released)).await {
            Ok(Ok(())) => info!(lease = renewal.settings.lease, epoch = renewal.epoch, "gave the lease up"),
            Ok(Err(error)) => warn!(lease = renewal.settings.lease, %error, "could not give the lease up"),
            Err(_) => warn!(lease = renewal.settings.lease, "no answer to giving the lease up"),
        }
    }
}

fn released(spec: &mut LeaseSpec) {
    spec.holder_identity = Some(String::new());
    spec.lease_duration_seconds = Some(1);
}

/// Keeps a term going.
struct Renewal {
    leases: Api<Lease>,
    settings: Settings,
    healthy: Healthy,
    epoch: i64,
    lease: Lease,
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("{0}")]
    Lost(Lost),
    #[error("{0}")]
    Failed(Error),
}

impl Renewal {
    async fn run(mut self, from: Instant, state: watch::Sender<State>, mut stop: oneshot::Receiver<()>) -> Self {
        let mut renewed = from;
        let mut next = from + self.settings.retry;
        let mut last_error = String::from("none");
        let lost = loop {
            let give_up = renewed + self.settings.renew_deadline;
            tokio::select! {
                _ = &mut stop => return self,
                () = sleep_until(next.min(give_up)) => {}
            }
            let sent = Instant::now();
            if sent >= give_up {
                break Lost::NotRenewed { silent: sent - renewed, last_error };
            }
            next = sent + self.settings.retry;
            if let Err(reason) = (self.healthy)() {
                last_error = format!("this process is not healthy: {reason}");
                continue;
            }
            let deadline = give_up.min(sent + self.settings.call());
            let written = tokio::select! {
                _ = &mut stop => return self,
                written = timeout_at(deadline, self.write(|_| {})) => written,
            };
            match written {
                Ok(Ok(())) => {
                    renewed = sent;
                    state.send_replace(State::Until(sent + self.settings.duration));
                }
                Ok(Err(WriteError::Lost(lost))) => break lost,
                Ok(Err(WriteError::Failed(error))) => last_error = error.to_string(),
                Err(_) => last_error = format!("no answer within {:?}", deadline - sent),
            }
            debug!(lease = self.settings.lease, remaining = ?(renewed + self.settings.duration - sent), "renewed");
        };
        warn!(lease = self.settings.lease, epoch = self.epoch, reason = %lost, "lost the leadership");
        state.send_replace(State::Lost(lost));
        self
    }

    /// Writes the Lease under the version last seen. When that is not the newest one, the newest must still be of this
    /// term, such as after a renewal whose answer was lost.
    async fn write(&mut self, change: fn(&mut LeaseSpec)) -> Result<(), WriteError> {
        let mut tries = 0;
        loop {
            let mut lease = self.lease.clone();
            let spec = lease.spec.get_or_insert_default();
            let last = spec.renew_time.take().map(|time| time.0);
            spec.renew_time = Some(MicroTime(self.later_than(last)));
            change(spec);
            match self.leases.replace(&self.settings.lease, &PostParams::default(), &lease).await {
                Ok(lease) => {
                    self.lease = lease;
                    return Ok(());
                }
                Err(Error::Api(status)) if status.code == 404 => return Err(WriteError::Lost(Lost::Deleted)),
                Err(Error::Api(status)) if status.code == 409 && tries < CONFLICT_TRIES => tries += 1,
                Err(error) => return Err(WriteError::Failed(error)),
            }
            let newest = self.leases.get_opt(&self.settings.lease).await.map_err(WriteError::Failed)?;
            let newest = newest.ok_or(WriteError::Lost(Lost::Deleted))?;
            let spec = newest.spec.clone().unwrap_or_default();
            let by = spec.holder_identity.clone().unwrap_or_default();
            if by != self.settings.identity || epoch(&spec) != self.epoch {
                return Err(WriteError::Lost(Lost::Taken { by, epoch: epoch(&spec) }));
            }
            self.lease = newest;
        }
    }

    /// The wall clock's time, but never the one written last: a standby sees a renewal by the record's change.
    fn later_than(&self, last: Option<Timestamp>) -> Timestamp {
        let now = (self.settings.wall_clock)();
        match last {
            // The server keeps microseconds.
            Some(last) if last.as_microsecond() == now.as_microsecond() => {
                now.checked_add(SignedDuration::from_micros(1)).unwrap_or(now)
            }
            _ => now,
        }
    }
}

#[cfg(test)]
mod tests;
