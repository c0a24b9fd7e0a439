//! What Prometheus reads. Reconciles, queues and leadership have the names and labels that dashboards made for
//! controller-runtime expect; what is our own begins with `standfast_`. Labels are words of the code, never names of
//! objects, except for the verified age of a held halt, which is removed with its release.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Registry,
};
use standfast_crds::v1alpha1::HaltPhase;
use tokio::time::Instant;

use crate::outbound::{Call, CallError, Reply, Transport};

/// Bounds of controller-runtime's histogram of reconcile times.
const RECONCILE_BUCKETS: [f64; 40] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5,
    1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0,
];

/// Bounds for what a halt does: the goals are tens of milliseconds, a bot that ignores SIGTERM takes minutes.
const HALT_BUCKETS: [f64; 18] =
    [0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Histograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;
type Verified = Arc<Mutex<BTreeMap<(String, String), Age>>>;

/// All metrics. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    reconciles: Family<Labels<2>, Counter>,
    reconcile_errors: Family<Labels<1>, Counter>,
    reconcile_panics: Family<Labels<1>, Counter>,
    reconcile_seconds: Histograms<1>,
    active_workers: Family<Labels<1>, Gauge>,
    max_workers: Family<Labels<1>, Gauge>,
    queue_depth: Family<Labels<2>, Gauge>,
    queue_adds: Family<Labels<2>, Counter>,
    queue_retries: Family<Labels<2>, Counter>,
    queue_seconds: Histograms<2>,
    leader: Family<[(&'static str, String); 1], Gauge>,
    halts: Family<Labels<1>, Gauge>,
    commit_to_cancel: Histogram,
    commit_to_scaled: Histogram,
    proven: Histogram,
    verified: Verified,
    outbound_calls: Family<Labels<1>, Counter>,
    guardrails_intact: Gauge,
    watch_stale: Family<Labels<1>, Counter>,
    events: Family<Labels<1>, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics of which nothing was counted yet.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let r = &mut registry;
        // Counters get `_total` appended when they are written.
        let verified = Verified::default();
        r.register_collector(Box::new(VerifiedAges(Arc::clone(&verified))));
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        r.register("standfast_build", "Version of the operator", version);
        let metrics = Self {
            reconciles: add(r, "controller_runtime_reconcile", "Reconciles per controller and result"),
            reconcile_errors: add(r, "controller_runtime_reconcile_errors", "Failed reconciles per controller"),
            reconcile_panics: add(r, "controller_runtime_reconcile_panics", "Panics of reconciles per controller"),
            reconcile_seconds: seconds(r, "controller_runtime_reconcile_time_seconds", "Length of reconciles", || {
                Histogram::new(RECONCILE_BUCKETS)
            }),
            active_workers: add(r, "controller_runtime_active_workers", "Reconciles under way per controller"),
            max_workers: add(r, "controller_runtime_max_concurrent_reconciles", "Bound of reconciles under way"),
            queue_depth: add(r, "workqueue_depth", "Objects that were asked for and wait for a reconcile"),
            queue_adds: add(
                r,
                "workqueue_adds",
                "Objects that began to wait; a look that was planned before does not count",
            ),
            queue_retries: add(r, "workqueue_retries", "Failed reconciles that are tried again"),
            queue_seconds: seconds(
                r,
                "workqueue_queue_duration_seconds",
                "From the first asking to the reconcile",
                || Histogram::new(exponential_buckets(1e-8, 10.0, 12)),
            ),
            leader: add(r, "leader_election_master_status", "Whether this process holds the lease"),
            halts: add(r, "standfast_halts", "TradingHalts per phase"),
            commit_to_cancel: histogram(
                r,
                "standfast_halt_commit_to_cancel_seconds",
                "From the status write that commits a halt to the first cancel request sent",
            ),
            commit_to_scaled: histogram(
                r,
                "standfast_halt_commit_to_scaled_seconds",
                "From the status write that commits a halt to the last workload accepted at zero",
            ),
            proven: histogram(
                r,
                "standfast_halt_proven_seconds",
                "From the status write that commits a halt to its first Halted",
            ),
            verified,
            outbound_calls: add(r, "standfast_outbound_calls", "Calls to venues and bots, by how they ended"),
            guardrails_intact: add(r, "standfast_guardrails_intact", "1 while the admission policies are as shipped"),
            watch_stale: add(r, "standfast_watch_stale", "Watches begun again because a list showed what they missed"),
            events: add(r, "standfast_events", "Kubernetes Events, by what became of them"),
            registry: Arc::default(),
        };
        for phase in HaltPhase::ALL {
            metrics.halts.get_or_create(&[("phase", phase.as_str())]).set(0);
        }
        Self { registry: Arc::new(registry), ..metrics }
    }

    /// Everything in OpenMetrics text, see [`CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        let mut out = String::new();
        // Writing into a string does not fail.
        if let Err(error) = text::encode(&mut out, &self.registry) {
            tracing::error!(%error, "metrics could not be written");
        }
        out
    }

    /// A reconcile of `controller` begins. It ends when the guard is dropped.
    pub fn working(&self, controller: &'static str) -> Working {
        let workers = self.active_workers.get_or_create(&[("controller", controller)]).clone();
        workers.inc();
        Working(workers)
    }

    /// A reconcile of `controller` took this long; `result` is `success`, `error` or `panic`.
    pub fn reconciled(&self, controller: &'static str, result: &'static str, took: Duration) {
        let label = [("controller", controller)];
        // controller-runtime counts a panic as an error, and on its own.
        let panicked = result == "panic";
        let result = if panicked { "error" } else { result };
        self.reconciles.get_or_create(&[("controller", controller), ("result", result)]).inc();
        self.reconcile_seconds.get_or_create(&label).observe(took.as_secs_f64());
        if result == "error" {
            self.reconcile_errors.get_or_create(&label).inc();
        }
        if panicked {
            self.reconcile_panics.get_or_create(&label).inc();
        }
    }

    /// The bound of reconciles of `controller` that are under way.
    pub fn max_workers(&self, controller: &'static str, workers: u16) {
        self.max_workers.get_or_create(&[("controller", controller)]).set(workers.into());
    }

    /// An object that was not waiting is asked for: it waits for a reconcile of `controller`.
    pub fn queued(&self, controller: &'static str) {
        let labels = queue(controller);
        self.queue_adds.get_or_create(&labels).inc();
        self.queue_depth.get_or_create(&labels).inc();
    }

    /// An object waits no more for a reconcile of `controller`, after this long.
    pub fn dequeued(&self, controller: &'static str, waited: Duration) {
        let labels = queue(controller);
        self.queue_depth.get_or_create(&labels).dec();
        self.queue_seconds.get_or_create(&labels).observe(waited.as_secs_f64());
    }

    /// A reconcile of `controller` failed and will be tried again.
    pub fn retried(&self, controller: &'static str) {
        self.queue_retries.get_or_create(&queue(controller)).inc();
    }

    /// Whether this process holds the lease of this name.
    pub fn leader(&self, lease: &str, leads: bool) {
        self.leader.get_or_create(&[("name", lease.to_owned())]).set(leads.into());
    }

    /// The phases of all halts; phases that are not among them are at zero.
    pub fn halts(&self, phases: impl IntoIterator<Item = HaltPhase>) {
        let mut counts: BTreeMap<HaltPhase, i64> = HaltPhase::ALL.iter().map(|phase| (*phase, 0)).collect();
        for phase in phases {
            *counts.entry(phase).or_default() += 1;
        }
        for (phase, count) in counts {
            self.halts.get_or_create(&[("phase", phase.as_str())]).set(count);
        }
    }

    /// Time from the status write that commits a halt to the first cancel request sent.
    pub fn commit_to_cancel(&self, took: Duration) {
        self.commit_to_cancel.observe(took.as_secs_f64());
    }

    /// Time from the status write that commits a halt to the last workload accepted at zero.
    pub fn commit_to_scaled(&self, took: Duration) {
        self.commit_to_scaled.observe(took.as_secs_f64());
    }

    /// Time from the status write that commits a halt to its first Halted.
    pub fn proven(&self, took: Duration) {
        self.proven.observe(took.as_secs_f64());
    }

    /// A held halt was last verified `age` ago, which counts until it is as old as `limit`; from now on its age grows by
    /// itself.
    pub fn halt_verified(&self, namespace: &str, name: &str, age: Duration, limit: Duration) {
        self.ages().insert((namespace.to_owned(), name.to_owned()), Age { age, limit, at: Instant::now() });
    }

    /// A halt was released or deleted: its age is no longer shown.
    pub fn halt_gone(&self, namespace: &str, name: &str) {
        self.ages().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// A call to a venue or bot ended like this.
    fn outbound_call(&self, ended: &Result<Reply, CallError>) {
        let result = match ended {
            // Whatever it said.
            Ok(_) | Err(CallError::Declined(_)) => "answered",
            Err(CallError::Refused(_)) => "refused",
            Err(CallError::NotSent(_)) => "not_sent",
            Err(CallError::UnknownOutcome(_)) => "unknown",
        };
        self.outbound_calls.get_or_create(&[("result", result)]).inc();
    }

    /// Whether the admission policies are as shipped.
    pub fn guardrails_intact(&self, intact: bool) {
        self.guardrails_intact.set(intact.into());
    }

    /// The watch of `kind` had silently missed something.
    pub fn watch_stale(&self, kind: &'static str) {
        self.watch_stale.get_or_create(&[("kind", kind)]).inc();
    }

    /// An Event was `written`, `failed` or `dropped`.
    pub(crate) fn event(&self, result: &'static str) {
        self.events.get_or_create(&[("result", result)]).inc();
    }

    fn ages(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, String), Age>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A reconcile that is under way.
#[must_use = "the reconcile counts as ended when this is dropped"]
pub struct Working(Gauge);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A transport whose calls are counted. Probes send nothing and are not.
pub(crate) struct Counted {
    /// What sends.
    pub transport: Arc<dyn Transport>,
    /// What counts.
    pub metrics: Metrics,
}

#[async_trait]
impl Transport for Counted {
    async fn send(&self, call: Call) -> Result<Reply, CallError> {
        let ended = self.transport.send(call).await;
        self.metrics.outbound_call(&ended);
        ended
    }

    async fn probe(&self, namespace: &str, url: &str, timeout: Duration) -> Result<(), CallError> {
        self.transport.probe(namespace, url, timeout).await
    }

    async fn warm(&self, namespace: &str, url: &str, timeout: Duration) -> Result<(), CallError> {
        self.transport.warm(namespace, url, timeout).await
    }
}

/// How old the proof of a halt is.
#[derive(Clone, Copy, Debug)]
struct Age {
    age: Duration,
    limit: Duration,
    /// When it was so old.
    at: Instant,
}

/// Ages are worked out when they are read.
#[derive(Debug)]
struct VerifiedAges(Verified);

impl Collector for VerifiedAges {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        type Look = fn(&Age) -> Duration;
        let families: [(&str, &str, Look); 2] = [
            ("standfast_halt_verified_age_seconds", "Seconds since a held halt was last verified", |a| {
                a.age + a.at.elapsed()
            }),
            (
                "standfast_halt_verified_limit_seconds",
                "Age in seconds up to which a proof of a held halt counts",
                |a| a.limit,
            ),
        ];
        let ages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (family, help, look) in families {
            let gauge = ConstGauge::new(0.0);
            let mut metric = encoder.encode_descriptor(family, help, None, gauge.metric_type())?;
            for ((namespace, name), age) in &*ages {
                let labels = [("namespace", namespace.as_str()), ("name", name.as_str())];
                ConstGauge::new(look(age).as_secs_f64()).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

const fn queue(controller: &'static str) -> Labels<2> {
    [("controller", controller), ("name", controller)]
}

fn add<M: Default + Clone + prometheus_client::registry::Metric>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn seconds<const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    buckets: fn() -> Histogram,
) -> Histograms<N> {
    let family = Histograms::<N>::new_with_constructor(buckets);
    registry.register(name, help, family.clone());
    family
}

fn histogram(registry: &mut Registry, name: &str, help: &str) -> Histogram {
    let metric = Histogram::new(HALT_BUCKETS);
    registry.register(name, help, metric.clone());
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(metrics: &Metrics, line: &str) -> Option<f64> {
        metrics.encode().lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' ')?.parse().ok())
    }

    #[test]
    fn reconciles_have_the_names_that_dashboards_expect() {
        let metrics = Metrics::new();
        metrics.reconciled("tradinghalt", "success", Duration::from_millis(3));
        metrics.reconciled("tradinghalt", "error", Duration::from_millis(30));
        metrics.reconciled("tradinghalt", "panic", Duration::from_millis(1));
        let of = |line: &str| value(&metrics, line);
        assert_eq!(of(r#"controller_runtime_reconcile_total{controller="tradinghalt",result="success"}"#), Some(1.0));
        assert_eq!(of(r#"controller_runtime_reconcile_total{controller="tradinghalt",result="error"}"#), Some(2.0));
        assert_eq!(of(r#"controller_runtime_reconcile_errors_total{controller="tradinghalt"}"#), Some(2.0));
        assert_eq!(of(r#"controller_runtime_reconcile_panics_total{controller="tradinghalt"}"#), Some(1.0));
        assert_eq!(of(r#"controller_runtime_reconcile_time_seconds_count{controller="tradinghalt"}"#), Some(3.0));
        assert_eq!(
            of(r#"controller_runtime_reconcile_time_seconds_bucket{le="0.005",controller="tradinghalt"}"#),
            Some(2.0)
        );
    }

    #[test]
    fn phases_without_a_halt_are_shown_as_zero_and_return_to_it() {
        let metrics = Metrics::new();
        metrics.halts([HaltPhase::Halted, HaltPhase::Halted, HaltPhase::Unverified]);
        assert_eq!(value(&metrics, r#"standfast_halts{phase="Halted"}"#), Some(2.0));
        assert_eq!(value(&metrics, r#"standfast_halts{phase="Unverified"}"#), Some(1.0));
        metrics.halts([HaltPhase::Halted]);
        assert_eq!(value(&metrics, r#"standfast_halts{phase="Halted"}"#), Some(1.0));
        assert_eq!(value(&metrics, r#"standfast_halts{phase="Unverified"}"#), Some(0.0));
        assert_eq!(value(&metrics, r#"standfast_halts{phase="Released"}"#), Some(0.0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_verified_age_grows_by_itself_until_the_halt_is_gone() {
        let metrics = Metrics::new();
        let line = r#"standfast_halt_verified_age_seconds{namespace="bots",name="night"}"#;
        metrics.halt_verified("bots", "night", Duration::from_secs(5), Duration::from_secs(180));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(value(&metrics, line), Some(65.0));
        metrics.halt_verified("bots", "night", Duration::ZERO, Duration::from_secs(180));
        let limit = r#"standfast_halt_verified_limit_seconds{namespace="bots",name="night"}"#;
        assert_eq!(value(&metrics, limit), Some(180.0));
        assert_eq!(value(&metrics, line), Some(0.0));
        metrics.halt_gone("bots", "other");
        assert_eq!(value(&metrics, line), Some(0.0));
        metrics.halt_gone("bots", "night");
        assert_eq!(value(&metrics, line), None);
    }

    #[test]
    fn the_rest_is_counted_under_its_name() {
        let metrics = Metrics::new();
        metrics.leader("standfast", true);
        metrics.guardrails_intact(true);
        metrics.watch_stale("TradingHalt");
        metrics.commit_to_cancel(Duration::from_millis(4));
        metrics.commit_to_scaled(Duration::from_millis(40));
        metrics.proven(Duration::from_secs(4));
        let of = |line: &str| value(&metrics, line);
        assert_eq!(of(r#"leader_election_master_status{name="standfast"}"#), Some(1.0));
        assert_eq!(of("standfast_guardrails_intact"), Some(1.0));
        assert_eq!(of(r#"standfast_watch_stale_total{kind="TradingHalt"}"#), Some(1.0));
        assert_eq!(of(r#"standfast_halt_commit_to_cancel_seconds_bucket{le="0.005"}"#), Some(1.0));
        assert_eq!(of(r#"standfast_halt_commit_to_scaled_seconds_bucket{le="0.035"}"#), Some(0.0));
        assert_eq!(of("standfast_halt_proven_seconds_sum"), Some(4.0));
        metrics.leader("standfast", false);
        metrics.guardrails_intact(false);
        assert_eq!(value(&metrics, r#"leader_election_master_status{name="standfast"}"#), Some(0.0));
        assert_eq!(value(&metrics, "standfast_guardrails_intact"), Some(0.0));
        assert!(metrics.encode().contains(r#"standfast_build_info{version=""#));
        assert!(metrics.encode().ends_with("# EOF\n"));
    }
}
