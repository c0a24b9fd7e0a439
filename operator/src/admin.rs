//! Health, readiness and metrics over HTTP.
//!
//! - `/healthz` fails when a loop that never ends does not turn any more: the process is to be restarted. What the loops
//!   meet does not matter: an API server that is slow or gone is no reason to kill an operator that waits for it.
//! - `/readyz` fails while something is missing that work needs; a standby is ready too.
//! - `/metrics` is for Prometheus.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::TcpListener, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::metrics::{self, Metrics};

/// How long a loop may take for one turn. Each waits a few seconds at most for an answer.
pub const STUCK: Duration = Duration::from_secs(60);

/// What is ready. Clones share it.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<String, Result<(), String>>>>);

impl Readiness {
    /// Nothing is expected yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes this process not ready until `name` is set to `Ok`.
    pub fn expect(&self, name: impl Into<String>) {
        self.set(name, Err("not yet".into()));
    }

    /// Whether `name` is ready, or why not.
    pub fn set(&self, name: impl Into<String>, state: Result<(), String>) {
        lock(&self.0).insert(name.into(), state);
    }

    /// What is missing, with reasons. Nothing was ever set: not ready either, so that a process that has just begun is
    /// not taken for one that is.
    pub fn check(&self) -> Result<(), BTreeMap<String, String>> {
        let all = lock(&self.0);
        if all.is_empty() {
            return Err(BTreeMap::from([("start".into(), "not yet".into())]));
        }
        let missing: BTreeMap<_, _> =
            all.iter().filter_map(|(name, state)| Some((name.clone(), state.clone().err()?))).collect();
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    }
}

/// Tasks that show that they make progress. Clones share them.
#[derive(Clone, Default)]
pub struct Watchdog(Arc<Mutex<Beats>>);

#[derive(Default)]
struct Beats {
    next: u64,
    beats: BTreeMap<u64, Beat>,
}

struct Beat {
    task: String,
    allowed: Duration,
    last: Instant,
}

impl Watchdog {
    /// No task is watched yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Watches a task that beats at least every `allowed`, until its heartbeat is dropped.
    pub fn watch(&self, task: impl Into<String>, allowed: Duration) -> Heartbeat {
        let mut all = lock(&self.0);
        all.next += 1;
        let id = all.next;
        all.beats.insert(id, Beat { task: task.into(), allowed, last: Instant::now() });
        Heartbeat { watchdog: self.clone(), id }
    }

    /// Watches a task by its asking: each time it shows that it makes progress, and hears which tasks are stuck.
    pub fn asked_by(&self, task: &str, allowed: Duration) -> impl Fn() -> Result<(), String> + use<> {
        let heartbeat = self.watch(task, allowed);
        move || {
            heartbeat.beat();
            heartbeat.watchdog.check()
        }
    }

    /// Which tasks are stuck, and for how long they have not been heard of.
    pub fn check(&self) -> Result<(), String> {
        let all = lock(&self.0);
        let mut stuck = String::new();
        for Beat { task, allowed, last } in all.beats.values() {
            let silent = last.elapsed();
            if silent > *allowed {
                let separator = if stuck.is_empty() { "" } else { "; " };
                // Writing into a string does not fail.
                let _ = write!(
                    stuck,
                    "{separator}{task}: no progress for {} s, {} s are allowed",
                    silent.as_secs(),
                    allowed.as_secs()
                );
            }
        }
        if stuck.is_empty() { Ok(()) } else { Err(stuck) }
    }
}

/// A watched task's way of showing that it makes progress.
#[must_use = "the task is watched only while this is kept"]
pub struct Heartbeat {
    watchdog: Watchdog,
    id: u64,
}

impl Heartbeat {
    /// Progress was made.
    pub fn beat(&self) {
        if let Some(beat) = lock(&self.watchdog.0).beats.get_mut(&self.id) {
            beat.last = Instant::now();
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        lock(&self.watchdog.0).beats.remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the server tells.
#[derive(Clone)]
pub struct Admin {
    /// For `/healthz`.
    pub watchdog: Watchdog,
    /// For `/readyz`.
    pub readiness: Readiness,
    /// For `/metrics`.
    pub metrics: Metrics,
}

impl Admin {
    /// Serves on `listen` until `stop`, then ends when the requests that are under way have been answered.
    pub async fn serve(self, listen: SocketAddr, stop: CancellationToken) -> std::io::Result<()> {
        self.serve_on(TcpListener::bind(listen).await?, stop).await
    }

    /// [`Self::serve`] on a socket that listens already.
    pub async fn serve_on(self, listener: TcpListener, stop: CancellationToken) -> std::io::Result<()> {
        axum::serve(listener, self.router()).with_graceful_shutdown(stop.cancelled_owned()).await
    }

    fn router(self) -> Router {
        Router::new()
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(self)
    }
}

async fn healthz(State(admin): State<Admin>) -> Response {
    match admin.watchdog.check() {
        Ok(()) => "ok\n".into_response(),
        Err(stuck) => {
            tracing::error!(stuck, "not healthy");
            (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", stuck.replace("; ", "\n"))).into_response()
        }
    }
}

async fn readyz(State(admin): State<Admin>) -> Response {
    match admin.readiness.check() {
        Ok(()) => "ok\n".into_response(),
        Err(missing) => {
            let body: String = missing.iter().map(|(name, reason)| format!("{name}: {reason}\n")).collect();
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], admin.metrics.encode()).into_response()
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };
    use tower::ServiceExt;

    use super::*;

    fn admin() -> Admin {
        Admin { watchdog: Watchdog::new(), readiness: Readiness::new(), metrics: Metrics::new() }
    }

    async fn get(admin: &Admin, path: &str) -> (u16, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = admin.clone().router().oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn ready_when_nothing_is_missing() {
        let admin = admin();
        assert_eq!(get(&admin, "/readyz").await, (503, "start: not yet\n".into()));
        admin.readiness.expect("lease");
        admin.readiness.set("crds", Err("tradinghalts.standfast.dev is not installed".into()));
        let body = "crds: tradinghalts.standfast.dev is not installed\nlease: not yet\n";
        assert_eq!(get(&admin, "/readyz").await, (503, body.into()));
        admin.readiness.set("crds", Ok(()));
        assert_eq!(get(&admin, "/readyz").await, (503, "lease: not yet\n".into()));
        admin.readiness.clone().set("lease", Ok(()));
        assert_eq!(get(&admin, "/readyz").await, (200, "ok\n".into()));
        admin.readiness.set("lease", Err("the API server does not answer".into()));
        assert_eq!(get(&admin, "/readyz").await.0, 503);
    }

    #[tokio::test(start_paused = true)]
    async fn healthy_while_every_watched_task_beats() {
        let admin = admin();
        let halts = admin.watchdog.watch("halts", Duration::from_secs(10));
        let systems = admin.watchdog.watch("systems", Duration::from_secs(30));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(get(&admin, "/healthz").await, (200, "ok\n".into()));
        tokio::time::advance(Duration::from_secs(5)).await;
        let stuck = "halts: no progress for 15 s, 10 s are allowed\n";
        assert_eq!(get(&admin, "/healthz").await, (503, stuck.into()));
        tokio::time::advance(Duration::from_secs(20)).await;
        let (status, body) = get(&admin, "/healthz").await;
        assert!(status == 503 && body.lines().count() == 2 && body.contains("systems: no progress for 35 s"), "{body}");
        halts.beat();
        systems.beat();
        assert_eq!(get(&admin, "/healthz").await.0, 200);
        drop(halts);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(get(&admin, "/healthz").await.0, 200, "a task that ended is not missed");
    }

    #[tokio::test]
    async fn metrics_are_openmetrics() {
        let admin = admin();
        admin.metrics.guardrails_intact(true);
        let request = Request::get("/metrics").body(Body::empty()).unwrap();
        let answer = admin.clone().router().oneshot(request).await.unwrap();
        assert_eq!(answer.headers()[CONTENT_TYPE], metrics::CONTENT_TYPE);
        assert!(get(&admin, "/metrics").await.1.contains("standfast_guardrails_intact 1\n"));
    }

    #[tokio::test]
    async fn serves_until_it_is_stopped() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(admin().serve_on(listener, stop.clone()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok\n"), "{answer}");
        stop.cancel();
        serving.await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
