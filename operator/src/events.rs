//! Kubernetes Events: what happened to an object, for people. They are written by one task, in order. Whoever has
//! something to say never waits and never fails: what cannot be written is counted and logged.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::sync::mpsc;
use tracing::warn;

use crate::{client, metrics::Metrics};

/// Events that may wait to be written.
const WAITING: usize = 1024;
/// The longest that writing one may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Limits of events.k8s.io, in bytes.
const NOTE_LIMIT: usize = 1024;
const WORD_LIMIT: usize = 128;

/// The name that Events are reported under.
pub const CONTROLLER: &str = "standfast.dev/operator";

/// Emits Events. Cheap to clone; all clones share one task.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<(ObjectReference, Event)>,
    metrics: Metrics,
}

impl Events {
    /// Starts the task that writes; it ends when all clones are dropped and everything was written. `pod` is the
    /// operator's.
    pub fn start(client: Client, pod: &str, metrics: Metrics) -> Self {
        // One recorder for all: it joins repetitions into series.
        let reporter = Reporter { controller: CONTROLLER.into(), instance: Some(pod.to_owned()) };
        let recorder = Recorder::new(client, reporter);
        let (queue, waiting) = mpsc::channel(WAITING);
        tokio::spawn(write(recorder, waiting, metrics.clone()));
        Self { queue, metrics }
    }

    /// Events that go nowhere: for tests.
    pub fn none() -> Self {
        Self { queue: mpsc::channel(1).0, metrics: Metrics::new() }
    }

    /// Says of an object that something happened. Repetitions of the same `kind`, `reason` and `action` for an object
    /// are joined within six minutes and show the first `note`: what must be told apart goes into `action`.
    pub fn emit(&self, object: ObjectReference, kind: EventType, reason: &str, action: &str, note: &str) {
        let event = Event {
            type_: kind,
            reason: cut(reason, WORD_LIMIT),
            action: cut(action, WORD_LIMIT),
            note: Some(cut(note, NOTE_LIMIT)),
            secondary: None,
        };
        if let Err(error) = self.queue.try_send((object, event)) {
            self.metrics.event("dropped");
            let (object, event) = match error {
                mpsc::error::TrySendError::Full(lost) | mpsc::error::TrySendError::Closed(lost) => lost,
            };
            let Event { reason, action, .. } = event;
            warn!(
                kind = object.kind,
                namespace = object.namespace,
                name = object.name,
                reason,
                action,
                "event dropped"
            );
        }
    }
}

impl Events {
    /// Says of an object that it cannot be read: whoever wrote it looks there first.
    pub fn unreadable(&self, object: ObjectReference, error: &str) {
        let note = format!("this version of the operator cannot read it and leaves it alone: {error}");
        self.emit(object, EventType::Warning, "Unreadable", "Unreadable", &note);
    }
}

async fn write(recorder: Recorder, mut waiting: mpsc::Receiver<(ObjectReference, Event)>, metrics: Metrics) {
    while let Some((object, event)) = waiting.recv().await {
        let what = format!("writing event {}", event.reason);
        match client::write(DEADLINE, what, recorder.publish(&event, &object)).await {
            Ok(()) => metrics.event("written"),
            Err(error) => {
                metrics.event("failed");
                let ObjectReference { kind, namespace, name, .. } = object;
                warn!(kind, namespace, name, action = event.action, %error, "event not written");
            }
        }
    }
}

/// At most `limit` bytes, with an ellipsis for what is left out.
fn cut(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let end = (0..=limit - '…'.len_utf8()).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    };

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::Value;
    use tokio::sync::{Notify, Semaphore};
    use tower::{BoxError, service_fn};

    use super::*;

    /// An API server that keeps what it is sent, and answers when told to.
    struct Server {
        calls: Mutex<Vec<(String, Value)>>,
        status: AtomicU16,
        turns: Semaphore,
        called: Notify,
    }

    impl Server {
        fn start() -> (Arc<Self>, Client) {
            let server = Arc::new(Self {
                calls: Mutex::default(),
                status: AtomicU16::new(201),
                turns: Semaphore::new(Semaphore::MAX_PERMITS),
                called: Notify::new(),
            });
            let shared = Arc::clone(&server);
            let service = service_fn(move |request: Request<Body>| {
                let server = Arc::clone(&shared);
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect_bytes().await?;
                    let call = (format!("{} {}", head.method, head.uri.path()), serde_json::from_slice(&body)?);
                    server.calls.lock().unwrap().push(call);
                    server.called.notify_one();
                    server.turns.acquire().await?.forget();
                    let status = server.status.load(Ordering::SeqCst);
                    Ok::<_, BoxError>(Response::builder().status(status).body(http_body_util::Full::new(body))?)
                }
            });
            (server, Client::new(service, "default"))
        }

        async fn calls(&self, count: usize) -> Vec<(String, Value)> {
            loop {
                let called = self.called.notified();
                let calls = self.calls.lock().unwrap().clone();
                if calls.len() >= count {
                    return calls;
                }
                called.await;
            }
        }
    }

    fn halt() -> ObjectReference {
        ObjectReference {
            kind: Some("TradingHalt".into()),
            namespace: Some("bots".into()),
            name: Some("night".into()),
            ..ObjectReference::default()
        }
    }

    fn count(metrics: &Metrics, result: &str) -> usize {
        let line = format!("standfast_events_total{{result=\"{result}\"}} ");
        metrics.encode().lines().find_map(|l| l.strip_prefix(&line)?.parse().ok()).unwrap_or(0)
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_arrives_with_its_parts() {
        let (server, client) = Server::start();
        let events = Events::start(client, "standfast-0", Metrics::new());
        events.emit(halt(), EventType::Warning, "Unverified", "ReadOrders", "the venue does not answer");
        let (call, body) = server.calls(1).await.remove(0);
        assert_eq!(call, "POST /apis/events.k8s.io/v1/namespaces/bots/events");
        assert_eq!(body["type"], "Warning");
        assert_eq!(body["reason"], "Unverified");
        assert_eq!(body["action"], "ReadOrders");
        assert_eq!(body["note"], "the venue does not answer");
        assert_eq!(body["regarding"]["name"], "night");
        assert_eq!(body["reportingController"], CONTROLLER);
        assert_eq!(body["reportingInstance"], "standfast-0");
    }

    #[tokio::test(start_paused = true)]
    async fn repetitions_are_joined() {
        let (server, client) = Server::start();
        let events = Events::start(client, "standfast-0", Metrics::new());
        events.emit(halt(), EventType::Normal, "Latched", "Latch", "first");
        events.emit(halt(), EventType::Normal, "Latched", "Latch", "second");
        let calls = server.calls(2).await;
        assert!(calls[1].0.starts_with("PATCH "), "{calls:?}");
        assert_eq!(calls[1].1["series"]["count"], 2);
    }

    #[tokio::test(start_paused = true)]
    async fn long_texts_are_cut_between_characters() {
        let (server, client) = Server::start();
        let events = Events::start(client, "standfast-0", Metrics::new());
        let note = "ä".repeat(600);
        events.emit(halt(), EventType::Normal, &"R".repeat(200), &"A".repeat(128), &note);
        let (_, body) = server.calls(1).await.remove(0);
        let cut = body["note"].as_str().unwrap();
        assert!(cut.len() <= 1024 && cut.len() > 1018 && cut.ends_with("ä…"), "{}", cut.len());
        assert_eq!(body["reason"].as_str().unwrap().len(), 128);
        assert_eq!(body["action"].as_str().unwrap(), "A".repeat(128));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_counted_and_the_next_one_is_written() {
        let (server, client) = Server::start();
        let metrics = Metrics::new();
        let events = Events::start(client, "standfast-0", metrics.clone());
        server.status.store(403, Ordering::SeqCst);
        events.emit(halt(), EventType::Normal, "Latched", "Latch", "");
        server.calls(1).await;
        while count(&metrics, "failed") == 0 {
            tokio::task::yield_now().await;
        }
        server.status.store(201, Ordering::SeqCst);
        events.emit(halt(), EventType::Normal, "Halted", "Verify", "");
        server.calls(2).await;
        while count(&metrics, "written") == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!((count(&metrics, "failed"), count(&metrics, "dropped")), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_never_answers_costs_events_and_nothing_else() {
        let (server, client) = Server::start();
        server.turns.forget_permits(Semaphore::MAX_PERMITS);
        let metrics = Metrics::new();
        let events = Events::start(client, "standfast-0", metrics.clone());
        let began = tokio::time::Instant::now();
        for turn in 0..WAITING + 10 {
            events.emit(halt(), EventType::Normal, "Latched", &format!("Latch{turn}"), "");
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(count(&metrics, "dropped"), 10);
        // Each is given up after its deadline, and the next one is tried.
        server.calls(3).await;
        assert!(
            (2.0..3.0).contains(&(began.elapsed().as_secs_f64() / DEADLINE.as_secs_f64())),
            "{:?}",
            began.elapsed()
        );
    }

    #[tokio::test]
    async fn what_goes_nowhere_disturbs_nobody() {
        Events::none().emit(halt(), EventType::Normal, "Latched", "Latch", "");
    }
}
