//! Caches of the objects that controllers look at, kept by watches.
//!
//! One cache may be fed by several watches (one for each namespace, where the operator does not watch the whole
//! cluster) and, for kinds where minutes of silence would hurt, by a short list poll beside the watch: a connection
//! that died silently is noticed by a watch only after minutes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Debug,
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, StreamExt, stream::SelectAll};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::ListParams,
    core::NamespaceResourceScope,
    runtime::{
        WatchStreamExt,
        reflector::{ObjectRef, Store, store::Writer},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    admin::{Heartbeat, STUCK, Watchdog},
    args::Scope,
};

/// The longest that a list poll waits for its answer.
const POLL: Duration = Duration::from_secs(5);
/// How long after a deletion was told a poll may still have the object: it began before, and waits in the queue for as long
/// as the caches have something else to do.
const BURIED: Duration = Duration::from_secs(120);

fn apis<K>(scope: &Scope, client: &Client) -> Vec<(Option<String>, Api<K>)>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match scope {
        Scope::Cluster => vec![(None, Api::all(client.clone()))],
        Scope::Namespaces(names) => {
            names.iter().map(|n| (Some(n.clone()), Api::namespaced(client.clone(), n))).collect()
        }
    }
}

/// How a cache is fed.
#[derive(Clone, Copy, Debug)]
pub struct Feed {
    /// The longest that one watch request lasts, in seconds. A silent one is replaced after it.
    pub watch_timeout: u32,
    /// How often the objects are listed beside the watch.
    pub poll: Option<Duration>,
}

impl Feed {
    /// For kinds of which there are many: a watch that died silently is replaced within 15 seconds.
    pub const RENEWED: Self = Self { watch_timeout: 10, poll: None };
    /// For kinds that are read live whenever something depends on them.
    pub const EASY: Self = Self { watch_timeout: 60, poll: None };
    /// For kinds whose changes must be seen within 15 seconds, whatever happens to a connection.
    pub const PROMPT: Self = Self { watch_timeout: 60, poll: Some(Duration::from_secs(5)) };
}

/// A change of one object.
pub enum Change<'a, K> {
    /// It is new, or different: the old one, if known, and the new one.
    Applied(Option<&'a K>, &'a K),
    /// It is gone.
    Deleted(&'a K),
}

/// Reads a cache. Cheap to clone.
pub struct Cache<K>
where
    K: Resource + 'static,
    K::DynamicType: Hash + Eq,
{
    store: Store<K>,
    kind: K::DynamicType,
}

impl<K> Clone for Cache<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Hash + Eq + Clone,
{
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), kind: self.kind.clone() }
    }
}

impl<K> Cache<K>
where
    K: Resource + Clone + Send + Sync + 'static,
    K::DynamicType: Hash + Eq + Clone,
{
    /// The object of this name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.store.get(&ObjectRef::new_with(name, self.kind.clone()).within(namespace))
    }

    /// All objects of a namespace.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.labelled(namespace, &BTreeMap::new())
    }

    /// The objects of a namespace that carry all these labels. The objects of the whole cluster are looked through, so
    /// nothing is copied for one that is not wanted.
    pub fn labelled(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Vec<Arc<K>> {
        self.store.state_filter(|k| {
            let meta = k.meta();
            let carries = |(key, value)| meta.labels.as_ref().and_then(|l| l.get(key)) == Some(value);
            meta.namespace.as_deref() == Some(namespace) && labels.iter().all(carries)
        })
    }

    /// All objects.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.store.state()
    }

    /// Waits until the first lists are in. Never ends if the feeding task is gone.
    pub async fn ready(&self) {
        if self.store.wait_until_ready().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether the first lists are in.
    pub fn is_ready(&self) -> bool {
        self.store.wait_until_ready().now_or_never().is_some_and(|ready| ready.is_ok())
    }

    /// The store, for the machinery of `kube`.
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }
}

#[cfg(test)]
impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    /// A cache of these objects that nothing feeds.
    pub fn holding(objects: impl IntoIterator<Item = K>) -> Self {
        let mut writer = Writer::default();
        let store = writer.as_reader();
        writer.apply_watcher_event(&Event::Init);
        objects.into_iter().for_each(|object| writer.apply_watcher_event(&Event::InitApply(object)));
        writer.apply_watcher_event(&Event::InitDone);
        Self { store, kind: () }
    }
}

enum Input<K> {
    Watch(Option<String>, Result<Event<K>, watcher::Error>),
    Poll(Vec<K>),
}

/// Opens a cache: the reader, and the future that feeds it for ever and must be driven.
///
/// `lean` strips what nobody reads before an object is kept. `on_change` is told of every change after it is in the
/// cache; `on_stale` of every object that a poll saw and the watch had not. `watchdog` misses a poll that is not driven.
pub fn open<K>(
    client: &Client,
    scope: &Scope,
    feed: Feed,
    watchdog: Option<&Watchdog>,
    lean: impl Fn(&mut K) + Send + 'static,
    on_change: impl Fn(Change<'_, K>) + Send + 'static,
    on_stale: impl Fn() + Send + 'static,
) -> (Cache<K>, impl Future<Output = ()> + Send + 'static)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    open_of((), apis(scope, client), feed, watchdog, lean, on_change, on_stale)
}

/// The same for objects of a kind that is not known before the operator runs, from these places.
pub fn open_of<K>(
    kind: K::DynamicType,
    apis: Vec<(Option<String>, Api<K>)>,
    feed: Feed,
    watchdog: Option<&Watchdog>,
    lean: impl Fn(&mut K) + Send + 'static,
    on_change: impl Fn(Change<'_, K>) + Send + 'static,
    on_stale: impl Fn() + Send + 'static,
) -> (Cache<K>, impl Future<Output = ()> + Send + 'static)
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Hash + Eq + Clone + Send + Sync,
{
    let mut writer = Writer::<K>::new(kind.clone());
    let reader = writer.as_reader();
    // The store becomes ready when every watch has delivered its first list.
    writer.apply_watcher_event(&Event::Init);
    let cache = Cache { store: reader.clone(), kind: kind.clone() };
    let watchdog = watchdog.cloned();
    let waiting = apis.iter().map(|(namespace, _)| namespace.clone()).collect();
    let buried = feed.poll.map(|_| HashMap::new());
    let mut feeder = Feeder { writer, reader, kind: kind.clone(), waiting, buried, lean, on_change };
    let drive = async move {
        let config = watcher::Config::default().timeout(feed.watch_timeout).page_size(500);
        let mut inputs = SelectAll::new();
        for (namespace, api) in apis {
            if let Some(every) = feed.poll {
                let heartbeat = watchdog.as_ref().map(|w| w.watch(format!("lists of {}", K::kind(&kind)), STUCK));
                inputs.push(poll(api.clone(), every, heartbeat).boxed());
            }
            let watch = watcher::watcher(api, config.clone()).default_backoff();
            inputs.push(watch.map(move |event| Input::Watch(namespace.clone(), event)).boxed());
        }
        let mut lists: Vec<(Option<String>, Vec<K>)> = vec![];
        while let Some(input) = inputs.next().await {
            match input {
                Input::Watch(scope, Err(error)) => {
                    tracing::warn!(kind = %K::kind(&kind), %error, "a watch failed and is begun again");
                    // Without the kind there is nothing to list. Later that says nothing of what is known.
                    if is_absent(&error) {
                        feeder.arrived(&scope);
                    }
                }
                Input::Watch(scope, Ok(Event::Init)) => {
                    lists.retain(|(s, _)| *s != scope);
                    lists.push((scope, vec![]));
                }
                Input::Watch(scope, Ok(Event::InitApply(object))) => {
                    if let Some((_, list)) = lists.iter_mut().find(|(s, _)| *s == scope) {
                        list.push(object);
                    }
                }
                Input::Watch(scope, Ok(Event::InitDone)) => {
                    if let Some(at) = lists.iter().position(|(s, _)| *s == scope) {
                        feeder.listed(lists.swap_remove(at));
                    }
                }
                Input::Watch(_, Ok(Event::Apply(object))) => feeder.apply(object),
                Input::Watch(_, Ok(Event::Delete(object))) => feeder.delete(object),
                Input::Poll(objects) if feeder.started() => {
                    feeder.forget_old_burials();
                    for object in objects {
                        if feeder.is_buried(&object) {
                            continue;
                        }
                        let known = feeder.reader.get(&ObjectRef::from_obj_with(&object, kind.clone()));
                        if known.is_none_or(|k| newer(&object, &k)) {
                            on_stale();
                            feeder.apply(object);
                        }
                    }
                }
                Input::Poll(_) => {}
            }
        }
    };
    (cache, drive)
}

struct Feeder<K, L, C>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Hash + Eq + Clone,
{
    writer: Writer<K>,
    reader: Store<K>,
    kind: K::DynamicType,
    /// Where the first list is not in yet.
    waiting: HashSet<Option<String>>,
    /// uids of the objects that were deleted of late, and when that was told. A poll that was answered before must not
    /// bring them back: nothing would take them away again. Where there are no polls, nothing is kept.
    buried: Option<HashMap<String, Instant>>,
    lean: L,
    on_change: C,
}

impl<K, L, C> Feeder<K, L, C>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Hash + Eq + Clone,
    L: Fn(&mut K),
    C: Fn(Change<'_, K>),
{
    fn started(&self) -> bool {
        self.waiting.is_empty()
    }

    fn forget_old_burials(&mut self) {
        self.buried.iter_mut().for_each(|buried| buried.retain(|_, at| at.elapsed() <= BURIED));
    }

    fn is_buried(&self, object: &K) -> bool {
        let uid = object.uid();
        self.buried.as_ref().zip(uid).is_some_and(|(buried, uid)| buried.contains_key(&uid))
    }

    fn apply(&mut self, mut new: K) {
        (self.lean)(&mut new);
        if !self.started() {
            return self.writer.apply_watcher_event(&Event::InitApply(new));
        }
        let old = self.reader.get(&ObjectRef::from_obj_with(&new, self.kind.clone()));
        self.writer.apply_watcher_event(&Event::Apply(new.clone()));
        (self.on_change)(Change::Applied(old.as_deref(), &new));
    }

    fn delete(&mut self, object: K) {
        if let Some(buried) = &mut self.buried {
            buried.extend(object.uid().map(|uid| (uid, Instant::now())));
        }
        self.writer.apply_watcher_event(&Event::Delete(object.clone()));
        (self.on_change)(Change::Deleted(&object));
    }

    /// A watch delivered its list: what is not on it is gone.
    fn listed(&mut self, (scope, list): (Option<String>, Vec<K>)) {
        let names: HashSet<_> = list.iter().map(|o| (o.namespace(), o.name_any())).collect();
        for gone in self.reader.state() {
            let in_scope = scope.is_none() || gone.namespace() == scope;
            if in_scope && !names.contains(&(gone.namespace(), gone.name_any())) {
                self.delete((*gone).clone());
            }
        }
        for object in list {
            self.apply(object);
        }
        self.arrived(&scope);
    }

    /// With the last of the first lists everything is there at once, and told.
    fn arrived(&mut self, scope: &Option<String>) {
        if self.waiting.remove(scope) && self.started() {
            self.writer.apply_watcher_event(&Event::InitDone);
            for object in self.reader.state() {
                (self.on_change)(Change::Applied(None, &object));
            }
        }
    }
}

/// Whether the API server does not know the kind.
fn is_absent(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}

/// Whether `a` is a later state of the object than `b`. Resource versions of one kind are ordered numbers.
fn newer<K: ResourceExt>(a: &K, b: &K) -> bool {
    let version = |k: &K| k.resource_version().and_then(|v| v.parse::<u128>().ok());
    match (version(a), version(b)) {
        (Some(a), Some(b)) => a > b,
        _ => false,
    }
}

fn poll<K>(api: Api<K>, every: Duration, heartbeat: Option<Heartbeat>) -> impl futures::Stream<Item = Input<K>> + Send
where
    K: Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut interval = tokio::time::interval(every);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    futures::stream::unfold((api, interval, heartbeat), |(api, mut interval, heartbeat)| async move {
        loop {
            interval.tick().await;
            heartbeat.iter().for_each(Heartbeat::beat);
            match tokio::time::timeout(POLL, api.list(&ListParams::default())).await {
                Ok(Ok(list)) => return Some((Input::Poll(list.items), (api, interval, heartbeat))),
                Ok(Err(error)) => tracing::warn!(%error, "the list poll beside a watch failed"),
                Err(_) => tracing::warn!("the list poll beside a watch had no answer within 5 s"),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, OnceLock};

    use futures::stream;
    use http::{Request, Response};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::client::Body;
    use rstest::rstest;
    use serde_json::json;
    use tower::{BoxError, service_fn};

    use super::*;

    /// The lists of namespace `b` have one object, those of `a` are refused so.
    #[rstest]
    #[case::no_such_kind(404, true)]
    #[case::forbidden(403, false)]
    #[tokio::test(start_paused = true)]
    async fn what_is_not_there_is_known_and_what_may_not_be_listed_is_not(#[case] code: u16, #[case] ready: bool) {
        let service = service_fn(move |request: Request<Body>| async move {
            let answer = match request.uri().to_string() {
                uri if uri.contains("/namespaces/a/") => json!({"kind": "Status", "apiVersion": "v1", "code": code}),
                uri if uri.contains("watch=true") => return std::future::pending().await,
                _ => json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"},
                    "items": [{"metadata": {"name": "one", "namespace": "b"}}]}),
            };
            let status = answer["code"].as_u64().map_or(200, |_| code);
            Ok::<_, BoxError>(Response::builder().status(status).body(Body::from(answer.to_string().into_bytes()))?)
        });
        let scope = Scope::Namespaces(vec!["a".into(), "b".into()]);
        let (opened, told) = (Arc::new(OnceLock::<Cache<ConfigMap>>::new()), Arc::new(Mutex::new(vec![])));
        let (reader, seen) = (Arc::clone(&opened), Arc::clone(&told));
        let on_change = move |change: Change<'_, ConfigMap>| {
            let Change::Applied(None, new) = change else { panic!("it is new") };
            let there = reader.get().is_some_and(|cache| cache.get("b", "one").is_some());
            seen.lock().unwrap().push((new.name_any(), there));
        };
        let (cache, feed) =
            open::<ConfigMap>(&Client::new(service, "bots"), &scope, Feed::EASY, None, |_| {}, on_change, || {});
        let _ = opened.set(cache.clone());
        assert!(!cache.is_ready());
        assert!(tokio::time::timeout(Duration::from_secs(50), feed).await.is_err());
        assert_eq!(cache.is_ready(), ready);
        // What is told can be read.
        let all = if ready { vec![("one".to_owned(), true)] } else { vec![] };
        assert_eq!(*told.lock().unwrap(), all);
    }

    /// A poll has read the object, then the watch tells that it is gone, then the poll's answer arrives.
    #[tokio::test(start_paused = true)]
    async fn a_poll_does_not_bring_back_what_was_deleted_meanwhile() {
        let object = json!({"metadata": {"name": "one", "namespace": "a", "uid": "u-1", "resourceVersion": "1"}});
        let list = json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"},
            "items": [object]});
        let service = service_fn(move |request: Request<Body>| {
            let (list, object) = (list.to_string(), object.clone());
            async move {
                let uri = request.uri().to_string();
                if uri.contains("watch=true") {
                    let deleted = json!({"type": "DELETED", "object": object}).to_string() + "\n";
                    let told = stream::once(async move {
                        tokio::time::sleep(Duration::from_secs(6)).await;
                        Ok::<_, BoxError>(deleted)
                    });
                    return Ok(Response::new(axum::body::Body::from_stream(told.chain(stream::pending()))));
                }
                // The polls: the second one begins after 5 s.
                if !uri.contains("limit=") {
                    tokio::time::sleep(Duration::from_secs(3)).await;
                }
                Ok::<_, BoxError>(Response::new(axum::body::Body::from(list)))
            }
        });
        let (cache, feed) =
            open::<ConfigMap>(&Client::new(service, "a"), &Scope::Cluster, Feed::PROMPT, None, |_| {}, |_| {}, || {});
        let mut feed = std::pin::pin!(feed);
        assert!(tokio::time::timeout(Duration::from_millis(5500), &mut feed).await.is_err());
        assert!(cache.get("a", "one").is_some());
        for seconds in [1, 2, 10] {
            assert!(tokio::time::timeout(Duration::from_secs(seconds), &mut feed).await.is_err());
            assert!(cache.get("a", "one").is_none(), "it was deleted, and is there again");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cache_is_missed_when_nothing_drives_it_and_not_when_the_api_server_is_gone() {
        let service = service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, BoxError>>());
        let (client, watchdog) = (Client::new(service, "bots"), Watchdog::new());
        let (_cache, feed) =
            open::<ConfigMap>(&client, &Scope::Cluster, Feed::PROMPT, Some(&watchdog), |_| {}, |_| {}, || {});
        let mut feed = std::pin::pin!(feed);
        assert!(tokio::time::timeout(Duration::from_secs(3600), &mut feed).await.is_err());
        assert_eq!(watchdog.check(), Ok(()));
        tokio::time::advance(STUCK + Duration::from_secs(1)).await;
        assert!(watchdog.check().unwrap_err().starts_with("lists of ConfigMap: no progress for"));
    }
}
