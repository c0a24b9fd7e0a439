//! What the steps of one resume have in common, and how they look at the cluster.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::OwnerReference, jiff::Timestamp};
use kube::{Api, Client, ResourceExt, api::ListParams, core::DeserializeGuard};
use standfast_crds::v1alpha1::{Break, Check, CheckState, HttpRequest, OrdersRead, TradingHalt};

use super::{
    approvals::Tally,
    plan::ResumePlan,
    reconcile::Ledger,
    restore::{Names, stopped_by},
    watch::{Memory, Record},
};
use crate::{
    calls::{Caller, Orders, template},
    client,
    guardrails::Guardrails,
    outbound::CallError,
    scale::Scaler,
    system::checks::{Asker, Checker, Told, evaluate},
    workloads::Workloads,
};

/// How long a request may take whose call must be over before the lease is: two leaders must not call at the same time.
pub(super) const LEASED: Duration = Duration::from_millis(3500);
/// The longest that one call to the API server may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(4);
/// How many checks or workloads are looked at at a time.
pub(super) const PARALLEL: usize = 32;
/// How long an HTTP request or a check may take if it does not say.
const HTTP_TIMEOUT: Duration = Duration::from_secs(5);
const SQL_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything outside.
pub(super) struct Outside {
    pub client: Client,
    pub caller: Arc<Caller>,
    pub checker: Checker,
    pub guardrails: Guardrails,
    pub scaler: Scaler,
    pub workloads: Workloads,
}

/// One resume, as its steps see it.
pub(super) struct Context {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The resume, as the owner of its Jobs.
    pub owner: OwnerReference,
    pub plan: ResumePlan,
    /// SHA-256 of the plan: what people approve.
    pub plan_hash: String,
    /// When the resume was created.
    pub born: Option<Timestamp>,
    /// The approvals that were counted.
    pub tally: Tally,
    /// Nothing may be begun.
    pub paused: bool,
    /// The workloads that were brought back.
    pub restored: Names,
    /// What the comparisons found.
    pub ledger: Ledger,
    /// The breaks that people accepted for the release.
    pub accepted: Vec<Break>,
    /// What the steps find out of stages.
    pub record: Record,
    /// What this process knows beyond the status.
    pub memory: Arc<Mutex<Memory>>,
    /// When the release was asked for, if it was.
    pub requested_at: Option<Timestamp>,
    /// When the gates must have passed.
    pub until: Timestamp,
    pub outside: Arc<Outside>,
}

/// What came back from an HTTP request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// This status code.
    Answered(u16),
    /// It was certainly not received.
    Never(String),
    /// It may have been received.
    Unknown(String),
}

/// A halt by name, or why it cannot be read.
type GuardedHalt = (String, Result<TradingHalt, String>);

/// The halts of a namespace, if all of them can be read: one that cannot might hold anything.
pub(super) fn readable(namespace: &str, halts: Vec<GuardedHalt>) -> Result<Vec<TradingHalt>, String> {
    let unread = |name, error| format!("TradingHalt {namespace}/{name} cannot be read, it may hold: {error}");
    halts.into_iter().map(|(name, halt)| halt.map_err(|error| unread(name, error))).collect()
}

impl Outside {
    /// All halts of a namespace, live. One that cannot be read might hold anything: that is an error.
    pub async fn halts(&self, namespace: &str) -> Result<Vec<TradingHalt>, String> {
        readable(namespace, self.guarded_halts(namespace).await?)
    }

    /// All halts of a namespace, live, by name: each, or why it cannot be read.
    pub async fn guarded_halts(&self, namespace: &str) -> Result<Vec<GuardedHalt>, String> {
        let api: Api<DeserializeGuard<TradingHalt>> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("listing TradingHalts in {namespace}");
        let list = client::read(DEADLINE, what, api.list(&ListParams::default())).await.map_err(|e| e.to_string())?;
        Ok(list.items.into_iter().map(|guarded| (guarded.name_any(), guarded.0.map_err(|e| e.error))).collect())
    }
}

impl Context {
    /// Looks at what this process knows, or changes it.
    pub fn with_memory<T>(&self, use_it: impl FnOnce(&mut Memory) -> T) -> T {
        use_it(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All halts of the namespace, live.
    pub async fn halts(&self) -> Result<Vec<TradingHalt>, String> {
        self.outside.halts(&self.namespace).await
    }

    /// The answers to these checks, asked now.
    pub async fn ask<'a>(&self, checks: impl Iterator<Item = &'a Check>) -> Vec<(String, CheckState, String)> {
        let questions: Vec<_> = checks
            .cloned()
            .map(|check| async move {
                let system = self.plan.system.owner_ref();
                let asker = Asker { namespace: &self.namespace, system: &system, gate: true };
                match evaluate(&self.outside.checker, &asker, &check).await {
                    Told::Answer(state, message) => (check.name, state, message),
                    Told::Awaited(why) => (check.name, CheckState::Unknown, why),
                }
            })
            .collect();
        stream::iter(questions).buffered(PARALLEL).collect().await
    }

    /// Reads orders, or fills, since a time, over HTTP.
    pub async fn orders_since(&self, read: &OrdersRead, at: Timestamp) -> Result<Orders, String> {
        let mut read = read.clone();
        read.http = read.http.map(|http| template::with(&http, "since", &since(at))).transpose()?;
        self.outside.caller.read_orders(&self.namespace, &read).await.map_err(|e| e.to_string())
    }

    /// The halts, live, unless one of them forbids to raise anything now: a new one that has not said yet what it holds,
    /// or that ends this resume. Every step asks it before it acts on what may trade.
    pub async fn unstopped(&self) -> Result<Vec<TradingHalt>, String> {
        let halts = self.halts().await?;
        match stopped_by(self, &halts) {
            Some(why) => Err(why),
            None => Ok(halts),
        }
    }

    /// Sends a request once. It takes at most `limit`.
    pub async fn send(&self, request: &HttpRequest, limit: Duration) -> Sent {
        let mut call = match self.outside.caller.prepare(&self.namespace, request, None).await {
            Ok(call) => call,
            Err(error) => return Sent::Never(error.to_string()),
        };
        call.timeout = call.timeout.min(limit);
        match self.outside.caller.transport().send(call).await {
            Ok(reply) => Sent::Answered(reply.status),
            Err(error @ (CallError::Refused(_) | CallError::NotSent(_) | CallError::Declined(_))) => {
                Sent::Never(error.to_string())
            }
            Err(error @ CallError::UnknownOutcome(_)) => Sent::Unknown(error.to_string()),
        }
    }
}

/// A time in a request for what happened since: RFC 3339, in whole seconds.
pub(super) fn since(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// How long asking these checks may take, all at once.
pub(super) fn time_for<'a>(checks: impl Iterator<Item = &'a Check>) -> Duration {
    let limit = |check: &Check| {
        let own = |given: Option<standfast_crds::v1alpha1::Duration>| {
            given.map_or(HTTP_TIMEOUT, |t| t.get()).min(crate::calls::caller::TIMEOUT_LIMIT)
        };
        match check {
            // Sent once more when the first one had no answer.
            Check { http: Some(http), .. } => time_of(&http.request) * 2,
            Check { prometheus: Some(query), .. } => own(query.timeout) * 2,
            Check { tcp: Some(tcp), .. } => own(tcp.timeout),
            Check { sql: Some(sql), .. } => sql.timeout.map_or(SQL_TIMEOUT, |t| t.get()) + DEADLINE,
            // It is read with its Pods, deleted with its Secrets looked at, and created.
            Check { job: Some(_), .. } => DEADLINE * 8,
            _ => DEADLINE * 2,
        }
    };
    let longest = checks.map(limit).max().unwrap_or_default();
    (longest + Duration::from_secs(2)).min(Duration::from_secs(150))
}

/// How long a request may take.
pub(super) fn time_of(request: &HttpRequest) -> Duration {
    request.timeout.map_or(HTTP_TIMEOUT, |t| t.get()).min(crate::calls::caller::TIMEOUT_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_in_a_request_is_written_as_rfc_3339() {
        assert_eq!(since(Timestamp::from_millisecond(1_500).unwrap()), "1970-01-01T00:00:01Z");
    }
}
