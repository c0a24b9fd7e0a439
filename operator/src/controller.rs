//! Runs one reconciler over the objects of a cache: triggers in, one reconcile of an object at a time, retries with
//! backoff. A reconcile that fails or panics concerns its object only.

use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet, hash_map::Entry},
    convert::Infallible,
    hash::Hash,
    ops::Deref,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use kube::{
    Resource, ResourceExt,
    core::{DeserializeGuard, NamespaceResourceScope},
    runtime::{
        controller::{self, Action, Config, applier},
        reflector::ObjectRef,
    },
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::Instant,
};

use crate::{cache::Cache, metrics::Metrics};

/// An object, or the reason why it could not be read.
pub type Guarded<K> = DeserializeGuard<K>;

/// Why a reconcile did not come to its end. The text names what was attempted on which object.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

impl Failure {
    /// `what` failed because of `error`.
    pub fn new(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {error}"))
    }
}

/// What a controller does for one object.
#[async_trait]
pub trait Reconcile: Send + Sync + 'static {
    /// The kind of object.
    type Kind: Resource;
    /// The controller's name in logs and metrics.
    const NAME: &'static str;
    /// The first wait after a failure; it doubles up to [`Self::RETRY_LIMIT`].
    const RETRY: Duration = Duration::from_secs(1);
    /// The longest wait after a failure.
    const RETRY_LIMIT: Duration = Duration::from_secs(300);

    /// Brings one object a step forward.
    async fn reconcile(&self, object: Arc<Self::Kind>) -> Result<Action, Failure>;

    /// An object that could not be read: said once for each of its versions.
    async fn undecodable(&self, _object: &ObjectRef<Guarded<Self::Kind>>, _error: &str)
    where
        Self::Kind: Resource<DynamicType = ()>,
    {
    }
}

/// Asks for reconciles.
pub struct Trigger<K: Resource> {
    sender: UnboundedSender<ObjectRef<K>>,
    asked: Asked<K>,
}

/// Where what was asked for arrives: each object once, however often it was asked for meanwhile. A standby asks for weeks
/// before anybody listens.
pub struct Arrivals<K: Resource> {
    receiver: UnboundedReceiver<ObjectRef<K>>,
    asked: Asked<K>,
}

type Asked<K> = Arc<Mutex<HashSet<ObjectRef<K>>>>;

impl<K: Resource> Clone for Trigger<K> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), asked: Arc::clone(&self.asked) }
    }
}

impl<K: Resource<DynamicType = ()>> Trigger<K> {
    /// A trigger and where it arrives.
    pub fn channel() -> (Self, Arrivals<K>) {
        let (sender, receiver) = unbounded_channel();
        let asked = Asked::default();
        (Self { sender, asked: Arc::clone(&asked) }, Arrivals { receiver, asked })
    }

    /// Asks for a reconcile of the object of this name.
    pub fn pull(&self, namespace: &str, name: &str) {
        let object = ObjectRef::new(name).within(namespace);
        if self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(object.clone()) {
            // Nobody listens only when the controller has ended, and the process with it.
            let _ = self.sender.send(object);
        }
    }
}

impl<K: Resource<DynamicType = ()>> Arrivals<K> {
    /// The next object. What is asked for from now on is asked for again.
    pub async fn next(&mut self) -> Option<ObjectRef<K>> {
        let object = self.receiver.recv().await?;
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&object);
        Some(object)
    }
}

/// Runs until the triggers end.
pub async fn run<R>(
    reconciler: Arc<R>,
    cache: Cache<Guarded<R::Kind>>,
    triggers: Arrivals<Guarded<R::Kind>>,
    concurrency: u16,
    metrics: Metrics,
) where
    R: Reconcile,
    R::Kind: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Send + Sync + std::fmt::Debug,
{
    let failures = Arc::new(Mutex::new(HashMap::<ObjectRef<Guarded<R::Kind>>, u32>::new()));
    let backoff = Arc::clone(&failures);
    metrics.max_workers(R::NAME, concurrency);
    let waiting = Arc::new(Waiting { controller: R::NAME, since: Mutex::default(), metrics: metrics.clone() });
    let (begun, gone) = (Arc::clone(&waiting), Arc::clone(&waiting));
    let queue = futures::stream::unfold((triggers, waiting), |(mut triggers, waiting)| async {
        let asked = triggers.next().await?;
        waiting.begin(&asked.namespace, &asked.name);
        Some((Ok::<_, Infallible>(asked), (triggers, waiting)))
    });
    let retries = metrics.clone();
    let step = move |object: Arc<Guarded<R::Kind>>, reconciler: Arc<R>| {
        let (failures, metrics) = (Arc::clone(&failures), metrics.clone());
        let reference = ObjectRef::from_obj(&*object);
        begun.end(&reference.namespace, &reference.name);
        async move {
            let _working = metrics.working(R::NAME);
            let kind = match &object.0 {
                Ok(kind) => Arc::new(kind.clone()),
                Err(error) => {
                    tracing::error!(object = %reference, error = %error.error, "this object cannot be read and is left alone");
                    reconciler.undecodable(&reference, &error.error).await;
                    return Ok(Action::await_change());
                }
            };
            let started = Instant::now();
            let done = AssertUnwindSafe(reconciler.reconcile(kind)).catch_unwind().await;
            let (result, outcome) = match done {
                Ok(Ok(action)) => ("success", Ok(action)),
                Ok(Err(failure)) => ("error", Err(failure)),
                Err(_) => ("panic", Err(Failure("the reconciler panicked: this is a bug".into()))),
            };
            metrics.reconciled(R::NAME, result, started.elapsed());
            let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
            match &outcome {
                Ok(_) => drop(failures.remove(&reference)),
                Err(failure) => {
                    *failures.entry(reference.clone()).or_default() += 1;
                    tracing::warn!(controller = R::NAME, object = %reference, %failure, "reconcile failed, will be tried again");
                }
            }
            outcome
        }
        .boxed()
    };
    let policy = move |object: Arc<Guarded<R::Kind>>, _: &Failure, _: Arc<R>| {
        retries.retried(R::NAME);
        let failures = backoff.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.get(&ObjectRef::from_obj(&*object)).copied().unwrap_or(1);
        Action::requeue(wait(R::RETRY, R::RETRY_LIMIT, count, jitter_seed(&*object)))
    };
    let config = Config::default().concurrency(concurrency);
    let ends = applier(step, policy, reconciler, cache.store(), queue, config);
    ends.for_each(|end| {
        // It was deleted while it waited.
        if let Err(controller::Error::ObjectNotFound(reference)) = end {
            gone.end(&reference.namespace, &reference.name);
        }
        std::future::ready(())
    })
    .await;
}

/// Objects that were asked for and whose reconcile has not begun. The queue of `kube` has them too, but does not tell. What
/// comes back by itself, after a failure or as planned, is not among them.
struct Waiting {
    controller: &'static str,
    since: Mutex<HashMap<(Option<String>, String), Instant>>,
    metrics: Metrics,
}

impl Waiting {
    fn begin(&self, namespace: &Option<String>, name: &str) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Vacant(entry) = since.entry((namespace.clone(), name.to_owned())) {
            entry.insert(Instant::now());
            self.metrics.queued(self.controller);
        }
    }

    fn end(&self, namespace: &Option<String>, name: &str) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = since.remove(&(namespace.clone(), name.to_owned())) {
            self.metrics.dequeued(self.controller, at.elapsed());
        }
    }
}

/// Doubles with each failure, less up to a quarter, so that objects that failed together do not come back together.
fn wait(first: Duration, limit: Duration, failures: u32, seed: u32) -> Duration {
    let full = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(limit);
    full - full * (seed % 256) / 1024
}

fn jitter_seed<K: Resource>(object: &K) -> u32 {
    object.meta().uid.iter().flat_map(|u| u.bytes()).fold(7, |h: u32, b| h.wrapping_mul(31).wrapping_add(b.into()))
}

/// A readable object of a cache: no copy of it, however long it is.
pub struct Readable<K>(Arc<Guarded<K>>);

impl<K> Readable<K> {
    fn new(object: Arc<Guarded<K>>) -> Option<Self> {
        object.0.is_ok().then_some(Self(object))
    }
}

impl<K> Deref for Readable<K> {
    type Target = K;

    fn deref(&self) -> &K {
        match &self.0.0 {
            Ok(object) => object,
            Err(_) => unreachable!("it is made of readable objects only"),
        }
    }
}

impl<K> Borrow<K> for Readable<K> {
    fn borrow(&self) -> &K {
        self
    }
}

/// The readable objects of a cache.
impl<K> Cache<Guarded<K>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Send + Sync + 'static,
    K::DynamicType: Hash + Eq,
{
    /// The object of this name, if it can be read.
    pub fn read(&self, namespace: &str, name: &str) -> Option<K> {
        self.get(namespace, name).and_then(|g| g.0.as_ref().ok().cloned())
    }

    /// All readable objects of a namespace.
    pub fn read_namespace(&self, namespace: &str) -> Vec<Readable<K>> {
        self.in_namespace(namespace).into_iter().filter_map(Readable::new).collect()
    }

    /// Names of the objects of a namespace, sorted, at most five.
    pub fn some_names(&self, namespace: &str) -> Vec<String> {
        let mut names: Vec<_> = self.in_namespace(namespace).iter().map(|g| g.name_any()).collect();
        names.sort();
        names.truncate(5);
        names
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use standfast_crds::v1alpha1::TradingHalt;
    use tokio::sync::Semaphore;

    use super::*;

    /// Waits for a turn; fails, or panics, where the name says so.
    struct Turns(Semaphore);

    #[async_trait]
    impl Reconcile for Turns {
        type Kind = TradingHalt;
        const NAME: &'static str = "test";

        async fn reconcile(&self, object: Arc<TradingHalt>) -> Result<Action, Failure> {
            self.0.acquire().await.unwrap().forget();
            match object.name_any().as_str() {
                "bad" => Err(Failure("no".into())),
                "worse" => panic!("on purpose"),
                _ => Ok(Action::await_change()),
            }
        }
    }

    fn halt(name: &str) -> Guarded<TradingHalt> {
        let spec = json!({"systemRef": {"name": "bot"}, "reason": "test"});
        serde_json::from_value(json!({
            "apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt",
            "metadata": {"name": name, "namespace": "bots"}, "spec": spec,
        }))
        .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_and_what_works_is_counted() {
        let metrics = Metrics::new();
        let shown = |line: &str| {
            let text = metrics.encode();
            let found = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
            found.map(str::to_owned)
        };
        let worker = |name: &str| shown(&format!(r#"controller_runtime_{name}{{controller="test"}}"#));
        let queue = |name: &str| shown(&format!(r#"workqueue_{name}{{controller="test",name="test"}}"#));
        let is = |value: &str| Some(value.to_owned());
        let turns = Arc::new(Turns(Semaphore::new(0)));
        let (trigger, arrivals) = Trigger::channel();
        let cache = Cache::holding(["first", "bad", "worse"].map(halt));
        let run = tokio::spawn(run(Arc::clone(&turns), cache, arrivals, 1, metrics.clone()));

        trigger.pull("bots", "first");
        tokio::time::sleep(Duration::from_millis(200)).await;
        // The last one does not exist any more, and one is asked for twice.
        for name in ["bad", "worse", "bad", "gone"] {
            trigger.pull("bots", name);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(worker("max_concurrent_reconciles"), is("1"));
        assert_eq!(worker("active_workers"), is("1"));
        assert_eq!(queue("adds_total"), is("4"));
        assert_eq!(queue("depth"), is("3"));
        assert_eq!(queue("queue_duration_seconds_count"), is("1"));

        turns.0.add_permits(3);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(worker("active_workers"), is("0"));
        assert_eq!(queue("depth"), is("0"));
        assert_eq!(queue("queue_duration_seconds_count"), is("4"));
        assert_eq!(queue("retries_total"), is("2"));
        assert_eq!(worker("reconcile_errors_total"), is("2"));
        assert_eq!(worker("reconcile_panics_total"), is("1"));
        assert_eq!(worker("reconcile_time_seconds_count"), is("3"));
        assert_eq!(shown(r#"controller_runtime_reconcile_total{controller="test",result="success"}"#), is("1"));
        assert_eq!(shown(r#"controller_runtime_reconcile_total{controller="test",result="error"}"#), is("2"));
        run.abort();
    }

    #[tokio::test]
    async fn what_is_asked_for_many_times_arrives_once_until_it_has_arrived() {
        let (trigger, mut arrivals) = Trigger::<standfast_crds::v1alpha1::TradingHalt>::channel();
        for _ in 0..1000 {
            trigger.pull("bots", "stale");
        }
        trigger.pull("bots", "other");
        assert_eq!(arrivals.next().await.unwrap().name, "stale");
        trigger.pull("bots", "stale");
        assert_eq!(arrivals.next().await.unwrap().name, "other");
        assert_eq!(arrivals.next().await.unwrap().name, "stale");
        assert!(arrivals.receiver.is_empty());
    }

    #[test]
    fn waits_double_and_stay_below_the_limit() {
        let (first, limit) = (Duration::from_secs(1), Duration::from_secs(300));
        assert_eq!(wait(first, limit, 1, 0), first);
        assert_eq!(wait(first, limit, 4, 0), Duration::from_secs(8));
        assert_eq!(wait(first, limit, 60, 0), limit);
        assert!(wait(first, limit, 4, 255) >= Duration::from_secs(6));
    }
}
