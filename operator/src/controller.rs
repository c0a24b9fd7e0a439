//! Runs one reconciler over the objects of a cache: triggers in, one reconcile of an object at a time, retries with
//! backoff. A reconcile that fails or panics concerns its object only.

use std::{
    collections::HashMap,
    convert::Infallible,
    hash::Hash,
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
        controller::{Action, Config, applier},
        reflector::ObjectRef,
    },
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::cache::Cache;

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

/// Hears how reconciles go.
pub trait Observer: Send + Sync + 'static {
    /// A reconcile of this controller took this long; `result` is `success`, `error` or `panic`.
    fn reconciled(&self, controller: &'static str, result: &'static str, took: Duration);
}

/// Asks for reconciles.
pub struct Trigger<K: Resource>(UnboundedSender<ObjectRef<K>>);

impl<K: Resource> Clone for Trigger<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Resource<DynamicType = ()>> Trigger<K> {
    /// A trigger and where it arrives.
    pub fn channel() -> (Self, UnboundedReceiver<ObjectRef<K>>) {
        let (sender, receiver) = unbounded_channel();
        (Self(sender), receiver)
    }

    /// Asks for a reconcile of the object of this name.
    pub fn pull(&self, namespace: &str, name: &str) {
        // Nobody listens only when the controller has ended, and the process with it.
        let _ = self.0.send(ObjectRef::new(name).within(namespace));
    }
}

/// Runs until the triggers end.
pub async fn run<R>(
    reconciler: Arc<R>,
    cache: Cache<Guarded<R::Kind>>,
    triggers: UnboundedReceiver<ObjectRef<Guarded<R::Kind>>>,
    concurrency: u16,
    observer: Arc<dyn Observer>,
) where
    R: Reconcile,
    R::Kind: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Send + Sync + std::fmt::Debug,
{
    let failures: Arc<Mutex<HashMap<ObjectRef<Guarded<R::Kind>>, u32>>> = Arc::default();
    let backoff = Arc::clone(&failures);
    let queue = futures::stream::unfold(triggers, |mut t| async { Some((Ok::<_, Infallible>(t.recv().await?), t)) });
    let step = move |object: Arc<Guarded<R::Kind>>, reconciler: Arc<R>| {
        let (failures, observer) = (Arc::clone(&failures), Arc::clone(&observer));
        async move {
            let reference = ObjectRef::from_obj(&*object);
            let kind = match &object.0 {
                Ok(kind) => Arc::new(kind.clone()),
                Err(error) => {
                    tracing::error!(object = %reference, error = %error.error, "this object cannot be read and is left alone");
                    reconciler.undecodable(&reference, &error.error).await;
                    return Ok(Action::await_change());
                }
            };
            let begun = tokio::time::Instant::now();
            let done = AssertUnwindSafe(reconciler.reconcile(kind)).catch_unwind().await;
            let (result, outcome) = match done {
                Ok(Ok(action)) => ("success", Ok(action)),
                Ok(Err(failure)) => ("error", Err(failure)),
                Err(_) => ("panic", Err(Failure("the reconciler panicked: this is a bug".into()))),
            };
            observer.reconciled(R::NAME, result, begun.elapsed());
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
        let failures = backoff.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.get(&ObjectRef::from_obj(&*object)).copied().unwrap_or(1);
        Action::requeue(wait(R::RETRY, R::RETRY_LIMIT, count, jitter_seed(&*object)))
    };
    let config = Config::default().concurrency(concurrency);
    applier(step, policy, reconciler, cache.store(), queue, config).for_each(|_| std::future::ready(())).await;
}

/// Doubles with each failure, less up to a quarter, so that objects that failed together do not come back together.
fn wait(first: Duration, limit: Duration, failures: u32, seed: u32) -> Duration {
    let full = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(limit);
    full - full * (seed % 256) / 1024
}

fn jitter_seed<K: Resource>(object: &K) -> u32 {
    object.meta().uid.iter().flat_map(|u| u.bytes()).fold(7, |h: u32, b| h.wrapping_mul(31).wrapping_add(b.into()))
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
    pub fn read_namespace(&self, namespace: &str) -> Vec<K> {
        self.in_namespace(namespace).iter().filter_map(|g| g.0.as_ref().ok().cloned()).collect()
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
    use super::*;

    #[test]
    fn waits_double_and_stay_below_the_limit() {
        let (first, limit) = (Duration::from_secs(1), Duration::from_secs(300));
        assert_eq!(wait(first, limit, 1, 0), first);
        assert_eq!(wait(first, limit, 4, 0), Duration::from_secs(8));
        assert_eq!(wait(first, limit, 60, 0), limit);
        assert!(wait(first, limit, 4, 255) >= Duration::from_secs(6));
    }
}
