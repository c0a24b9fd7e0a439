//! Candidates against a Lease API in memory, on paused time: every wait is exact and takes no real time.

use std::sync::Mutex;

use bytes::Bytes;
use http::{Method, Request, Response};
use kube::client::Body;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::time::sleep;
use tower::{BoxError, service_fn};

use super::*;
use crate::admin::{STUCK, Watchdog};

/// What the network does to the calls of one candidate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Net {
    #[default]
    Up,
    /// Nothing arrives, nothing comes back.
    Cut,
    /// Calls arrive and take effect, answers are lost.
    Deaf,
    /// The server answers 500.
    Failing,
}

/// The API server: one Lease, versions, conflicts.
#[derive(Default)]
struct Server {
    lease: Mutex<Option<Value>>,
    version: Mutex<u64>,
}

impl Server {
    fn answer(&self, method: &Method, body: &[u8]) -> (u16, Value) {
        let mut lease = self.lease.lock().unwrap();
        let store = |mut new: Value| {
            let mut version = self.version.lock().unwrap();
            *version += 1;
            new["metadata"]["resourceVersion"] = json!(version.to_string());
            new
        };
        match (method, &*lease) {
            (&Method::GET, Some(found)) => (200, found.clone()),
            (&Method::GET | &Method::PUT, None) => (404, failure(404, "NotFound")),
            (&Method::POST, Some(_)) => (409, failure(409, "AlreadyExists")),
            (&Method::POST, None) => {
                let new = store(serde_json::from_slice(body).unwrap());
                *lease = Some(new.clone());
                (201, new)
            }
            (&Method::PUT, Some(found)) => {
                let new: Value = serde_json::from_slice(body).unwrap();
                assert!(new["metadata"]["resourceVersion"].is_string(), "a replace must name the version it replaces");
                if new["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"] {
                    return (409, failure(409, "Conflict"));
                }
                let new = store(new);
                *lease = Some(new.clone());
                (200, new)
            }
            _ => unreachable!("{method} is not used"),
        }
    }

    /// Somebody edits the Lease by hand.
    fn edit(&self, change: impl FnOnce(&mut Value)) {
        let mut lease = self.lease.lock().unwrap();
        let mut new = lease.clone().unwrap();
        change(&mut new);
        let mut version = self.version.lock().unwrap();
        *version += 1;
        new["metadata"]["resourceVersion"] = json!(version.to_string());
        *lease = Some(new);
    }

    fn delete(&self) {
        *self.lease.lock().unwrap() = None;
    }

    fn spec(&self) -> Value {
        self.lease.lock().unwrap().as_ref().unwrap()["spec"].clone()
    }

    fn version(&self) -> u64 {
        *self.version.lock().unwrap()
    }
}

fn failure(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason})
}

/// A pod with its own link to the server.
#[derive(Clone, Default)]
struct Link {
    net: Arc<Mutex<Net>>,
    delay: Arc<Mutex<Duration>>,
}

impl Link {
    fn set(&self, net: Net) {
        *self.net.lock().unwrap() = net;
    }

    fn client(&self, server: &Arc<Server>) -> Client {
        let (link, server) = (self.clone(), Arc::clone(server));
        let service = service_fn(move |request: Request<Body>| {
            let (link, server) = (link.clone(), Arc::clone(&server));
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await?;
                let (net, delay) = (*link.net.lock().unwrap(), *link.delay.lock().unwrap());
                if net == Net::Cut {
                    std::future::pending::<()>().await;
                }
                sleep(delay / 2).await;
                let (code, answer) = match net {
                    Net::Failing => (500, failure(500, "InternalError")),
                    _ => server.answer(&head.method, &body),
                };
                if net == Net::Deaf {
                    std::future::pending::<()>().await;
                }
                sleep(delay / 2).await;
                let body = http_body_util::Full::new(Bytes::from(answer.to_string()));
                Ok::<_, BoxError>(Response::builder().status(code).body(body)?)
            }
        });
        Client::new(service, "standfast")
    }
}

fn settings(identity: &str) -> Settings {
    Settings::new("standfast", "standfast", identity)
}

fn candidate(server: &Arc<Server>, link: &Link, identity: &str) -> Candidate {
    Candidate::new(link.client(server), settings(identity)).unwrap()
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

#[tokio::test(start_paused = true)]
async fn the_first_candidate_leads_at_once_and_renews() {
    let (server, link) = (Arc::new(Server::default()), Link::default());
    let candidate = candidate(&server, &link, "a");
    let holder = candidate.holder();
    assert_eq!(*holder.borrow(), None, "nothing is known before the first look");
    let began = Instant::now();
    let term = candidate.acquire().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(holder.borrow().as_deref(), Some("a"));
    let leadership = term.leadership();
    assert_eq!((leadership.epoch(), leadership.remaining()), (1, seconds(6.0)));
    for _ in 0..100 {
        sleep(seconds(0.99)).await;
        assert!(leadership.remaining() >= seconds(5.0), "{leadership:?}");
    }
    assert_eq!(leadership.check(seconds(4.9)), Ok(()));
    let needed = seconds(6.0);
    let Err(Lost::TooShort { needed: n, .. }) = leadership.check(needed) else { panic!("{leadership:?}") };
    assert_eq!(n, needed);
    assert_eq!(server.spec()["holderIdentity"], "a");
    assert_eq!(server.spec()["leaseDurationSeconds"], 6);
    assert_eq!(server.version(), 99, "one write a second");
}

#[tokio::test(start_paused = true)]
async fn nobody_takes_over_while_the_leader_renews() {
    let server = Arc::new(Server::default());
    let term = candidate(&server, &Link::default(), "a").acquire().await;
    let standby = candidate(&server, &Link::default(), "b");
    let holder = standby.holder();
    assert!(timeout(seconds(600.0), standby.acquire()).await.is_err());
    assert_eq!(holder.borrow().as_deref(), Some("a"));
    assert_eq!(term.leadership().epoch(), 1);
    assert_eq!(server.spec()["leaseTransitions"], 1);
}

#[rstest]
#[case(Net::Cut)]
#[case(Net::Failing)]
#[case(Net::Deaf)]
#[tokio::test(start_paused = true)]
async fn a_leader_without_renewals_stops_before_a_standby_starts(#[case] net: Net) {
    let (server, link) = (Arc::new(Server::default()), Link::default());
    let term = candidate(&server, &link, "a").acquire().await;
    let old = term.leadership();
    let standby = tokio::spawn(candidate(&server, &Link::default(), "b").acquire());
    sleep(seconds(20.5)).await;
    link.set(net);
    let cut = Instant::now();

    let reason = term.lost().await;
    assert!(matches!(reason, Lost::NotRenewed { .. }), "{reason}");
    let gave_up = cut.elapsed();
    assert!((seconds(3.0)..=seconds(4.0)).contains(&gave_up), "{gave_up:?}");
    assert_eq!(old.remaining(), Duration::ZERO);
    assert_eq!(old.check(Duration::ZERO), Err(reason));
    assert!(!standby.is_finished());

    let new = standby.await.unwrap().leadership();
    let taken = cut.elapsed();
    // Renewals that arrive although their answers are lost put the takeover off.
    let latest = if net == Net::Deaf { 11.0 } else { 7.0 };
    assert!((seconds(5.0)..=seconds(latest)).contains(&taken), "{taken:?}");
    assert_eq!((old.epoch(), new.epoch()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn validity_counts_from_before_the_renewal_was_sent() {
    let (server, link) = (Arc::new(Server::default()), Link::default());
    *link.delay.lock().unwrap() = seconds(1.8);
    let began = Instant::now();
    let candidate = Candidate::new(link.client(&server), settings("a")).unwrap();
    // A look takes 1.8 s, and so does the creation: more than one attempt may take.
    assert!(timeout(seconds(1.9), candidate.acquire()).await.is_err());
    server.delete();
    *link.delay.lock().unwrap() = seconds(0.8);
    let candidate = Candidate::new(link.client(&server), settings("a")).unwrap();
    let term = candidate.acquire().await;
    assert!(began.elapsed() >= seconds(3.5));
    assert_eq!(term.leadership().remaining(), seconds(6.0 - 0.8));
    for _ in 0..1000 {
        sleep(seconds(0.013)).await;
        let remaining = term.leadership().remaining();
        assert!((seconds(4.0)..=seconds(6.0 - 0.8)).contains(&remaining), "{remaining:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_released_lease_is_taken_at_the_next_look() {
    let server = Arc::new(Server::default());
    let term = candidate(&server, &Link::default(), "a").acquire().await;
    let old = term.leadership();
    let standby = tokio::spawn(candidate(&server, &Link::default(), "b").acquire());
    sleep(seconds(10.3)).await;
    let began = Instant::now();
    term.release().await;
    assert_eq!(old.check(Duration::ZERO), Err(Lost::Released));
    assert_eq!(server.spec()["holderIdentity"], "");
    let new = standby.await.unwrap().leadership();
    assert!(began.elapsed() <= seconds(1.0), "{:?}", began.elapsed());
    assert_eq!(new.epoch(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_release_never_takes_the_lease_from_its_next_holder() {
    let server = Arc::new(Server::default());
    let term = candidate(&server, &Link::default(), "a").acquire().await;
    server.edit(|lease| {
        lease["spec"]["holderIdentity"] = json!("b");
        lease["spec"]["leaseTransitions"] = json!(2);
    });
    term.release().await;
    assert_eq!(server.spec()["holderIdentity"], "b");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_whose_answer_was_lost_is_no_loss() {
    let (server, link) = (Arc::new(Server::default()), Link::default());
    let term = candidate(&server, &link, "a").acquire().await;
    sleep(seconds(10.5)).await;
    link.set(Net::Deaf);
    sleep(seconds(2.0)).await;
    link.set(Net::Up);
    let version = server.version();
    sleep(seconds(10.0)).await;
    assert!(server.version() > version + 5);
    assert_eq!(term.leadership().check(seconds(4.5)), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_is_no_loss() {
    let (server, link) = (Arc::new(Server::default()), Link::default());
    let term = candidate(&server, &link, "a").acquire().await;
    let standby = tokio::spawn(candidate(&server, &Link::default(), "b").acquire());
    for net in [Net::Failing, Net::Cut] {
        sleep(seconds(10.5)).await;
        link.set(net);
        sleep(seconds(2.0)).await;
        link.set(Net::Up);
    }
    sleep(seconds(2.0)).await;
    assert_eq!(term.leadership().check(seconds(4.5)), Ok(()));
    assert!(!standby.is_finished());
}

#[rstest]
#[case("b", 2)]
// A second process with our own identity.
#[case("a", 2)]
#[case("", 1)]
#[tokio::test(start_paused = true)]
async fn whoever_finds_the_lease_in_other_hands_stops_at_once(#[case] holder: &'static str, #[case] epoch: i64) {
    let server = Arc::new(Server::default());
    let term = candidate(&server, &Link::default(), "a").acquire().await;
    sleep(seconds(5.5)).await;
    server.edit(|lease| {
        lease["spec"]["holderIdentity"] = json!(holder);
        lease["spec"]["leaseTransitions"] = json!(epoch);
    });
    let began = Instant::now();
    assert_eq!(term.lost().await, Lost::Taken { by: holder.into(), epoch });
    assert!(began.elapsed() <= seconds(1.0));
    assert_eq!(term.leadership().remaining(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_label_on_the_lease_disturbs_nobody() {
    let server = Arc::new(Server::default());
    let term = candidate(&server, &Link::default(), "a").acquire().await;
    for _ in 0..20 {
        sleep(seconds(0.7)).await;
        server.edit(|lease| lease["metadata"]["labels"] = json!({"team": "sre"}));
    }
    assert_eq!(term.leadership().check(seconds(4.5)), Ok(()));
    assert_eq!(server.lease.lock().unwrap().as_ref().unwrap()["metadata"]["labels"]["team"], "sre");
}

#[tokio::test(start_paused = true)]
async fn edits_that_are_no_renewals_do_not_keep_a_dead_leader_alive() {
    let (server, link) = (Arc::new(Server::default()), Link::default());
    let _term = candidate(&server, &link, "a").acquire().await;
    link.set(Net::Cut);
    let standby = tokio::spawn(candidate(&server, &Link::default(), "b").acquire());
    for _ in 0..16 {
        server.edit(|lease| lease["metadata"]["annotations"] = json!({"looked-at": "again"}));
        sleep(seconds(0.5)).await;
    }
    assert!(standby.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_deleted_lease_ends_the_term_and_terms_still_grow() {
    let server = Arc::new(Server::default());
    let term = candidate(&server, &Link::default(), "a").acquire().await;
    let standby = tokio::spawn(candidate(&server, &Link::default(), "b").acquire());
    sleep(seconds(3.5)).await;
    server.delete();
    let reason = term.lost().await;
    assert_eq!(reason, Lost::Deleted);
    assert!(!standby.is_finished(), "somebody else led before the old leader knew");
    assert_eq!(standby.await.unwrap().leadership().epoch(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_container_leads_at_once_in_a_new_term() {
    let server = Arc::new(Server::default());
    let term = candidate(&server, &Link::default(), "a").acquire().await;
    drop(term);
    let began = Instant::now();
    let term = candidate(&server, &Link::default(), "a").acquire().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(term.leadership().epoch(), 2);
}

#[tokio::test(start_paused = true)]
async fn of_two_that_begin_together_one_leads() {
    let server = Arc::new(Server::default());
    let links = [Link::default(), Link::default()];
    links.iter().for_each(|link| *link.delay.lock().unwrap() = seconds(0.1));
    let a = tokio::spawn(candidate(&server, &links[0], "a").acquire());
    let b = tokio::spawn(candidate(&server, &links[1], "b").acquire());
    sleep(seconds(30.0)).await;
    assert_eq!(usize::from(a.is_finished()) + usize::from(b.is_finished()), 1);
}

#[tokio::test(start_paused = true)]
async fn a_longer_recorded_duration_is_waited_for_within_reason() {
    for (recorded, expected) in [(30, 30.0), (1, 6.0), (-5, 6.0), (1_000_000, 60.0)] {
        let server = Arc::new(Server::default());
        drop(candidate(&server, &Link::default(), "a").acquire().await);
        tokio::task::yield_now().await;
        server.edit(|lease| lease["spec"]["leaseDurationSeconds"] = json!(recorded));
        let began = Instant::now();
        candidate(&server, &Link::default(), "b").acquire().await;
        assert_eq!(began.elapsed(), seconds(expected), "recorded {recorded}");
    }
}

#[tokio::test(start_paused = true)]
async fn wall_clocks_decide_nothing() {
    fn stopped() -> Timestamp {
        Timestamp::from_second(946_684_800).unwrap()
    }
    fn ahead() -> Timestamp {
        Timestamp::now() + SignedDuration::from_hours(24 * 365)
    }
    for (leader_clock, standby_clock) in [(stopped as fn() -> _, ahead as fn() -> _), (ahead, stopped)] {
        let (server, link) = (Arc::new(Server::default()), Link::default());
        let with = |link: &Link, identity, wall_clock| {
            let settings = Settings { wall_clock, ..settings(identity) };
            Candidate::new(link.client(&server), settings).unwrap()
        };
        let term = with(&link, "a", leader_clock).acquire().await;
        let standby = tokio::spawn(with(&Link::default(), "b", standby_clock).acquire());
        sleep(seconds(300.5)).await;
        assert!(!standby.is_finished(), "taken from a leader that renews");
        assert_eq!(term.leadership().check(seconds(4.0)), Ok(()));
        link.set(Net::Cut);
        let cut = Instant::now();
        term.lost().await;
        assert!(!standby.is_finished());
        standby.await.unwrap();
        assert!((seconds(5.0)..=seconds(7.0)).contains(&cut.elapsed()), "{:?}", cut.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_stuck_makes_way() {
    let server = Arc::new(Server::default());
    let stuck = Arc::new(Mutex::new(false));
    let health = Arc::clone(&stuck);
    let healthy = move || if *health.lock().unwrap() { Err("halts: stuck".into()) } else { Ok(()) };
    let term = candidate(&server, &Link::default(), "a").while_healthy(healthy.clone()).acquire().await;
    sleep(seconds(10.5)).await;
    *stuck.lock().unwrap() = true;
    let Lost::NotRenewed { last_error, .. } = term.lost().await else { panic!("lost for another reason") };
    assert!(last_error.contains("halts: stuck"), "{last_error}");
    // And it does not come back before it is well again.
    let again = candidate(&server, &Link::default(), "a").while_healthy(healthy);
    assert!(timeout(seconds(60.0), again.acquire()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_turns_is_healthy_whatever_the_server_does() {
    let (server, link) = (Arc::new(Server::default()), Link::default());
    let watchdog = Watchdog::new();
    let watched = |link| candidate(&server, link, "a").while_healthy(watchdog.asked_by("lease", STUCK));
    let leader = watched(&link).acquire().await;
    sleep(seconds(600.0)).await;
    assert_eq!(watchdog.check(), Ok(()), "leading");
    drop(leader);
    sleep(seconds(600.0)).await;
    assert_eq!(watchdog.check(), Ok(()), "not running any more");
    link.set(Net::Cut);
    let standby = watched(&link).acquire();
    let mut standby = std::pin::pin!(standby);
    assert!(timeout(seconds(600.0), &mut standby).await.is_err());
    assert_eq!(watchdog.check(), Ok(()), "without the API server");
    tokio::time::advance(seconds(61.0)).await;
    assert!(watchdog.check().unwrap_err().starts_with("lease: no progress for"), "nobody drives it");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_term_is_not_renewed() {
    let server = Arc::new(Server::default());
    let term = candidate(&server, &Link::default(), "a").acquire().await;
    let leadership = term.leadership();
    drop(term);
    assert_eq!(leadership.lost().await, Lost::Released);
    sleep(seconds(7.0)).await;
    assert!(leadership.check(Duration::ZERO).is_err());
    assert_eq!(server.version(), 1);
}

#[tokio::test(start_paused = true)]
async fn always_leads_for_ever() {
    let always = Leadership::always();
    sleep(seconds(1e6)).await;
    assert_eq!((always.epoch(), always.check(seconds(1e9))), (0, Ok(())));
    assert!(timeout(seconds(1e6), always.lost()).await.is_err());
}

#[rstest]
#[case(|s: &mut Settings| s.renew_deadline = s.duration, "2 × retry ≤ renew deadline < duration")]
#[case(|s: &mut Settings| s.retry = s.renew_deadline, "2 × retry ≤ renew deadline < duration")]
#[case(|s: &mut Settings| s.retry = Duration::ZERO, "2 × retry ≤ renew deadline < duration")]
#[case(|s: &mut Settings| s.duration = Duration::from_millis(6500), "whole seconds")]
#[case(|s: &mut Settings| s.identity.clear(), "must not be empty")]
#[tokio::test]
async fn settings_that_are_not_safe_are_refused(#[case] change: fn(&mut Settings), #[case] expected: &str) {
    let mut settings = settings("a");
    change(&mut settings);
    let client = Link::default().client(&Arc::new(Server::default()));
    let error = Candidate::new(client, settings).err().unwrap().to_string();
    assert!(error.contains(expected), "{error}");
}

#[derive(Clone, Copy, Debug)]
struct Weather {
    pod: usize,
    net: Net,
    delay: f64,
    lasts: f64,
}

fn weather() -> impl Strategy<Value = Weather> {
    let net = prop_oneof![3 => Just(Net::Up), 2 => Just(Net::Cut), 2 => Just(Net::Deaf), 1 => Just(Net::Failing)];
    (0..3_usize, net, 0.0..3.0, 0.05..9.0).prop_map(|(pod, net, delay, lasts)| Weather { pod, net, delay, lasts })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Three pods whose links fail, delay and lose answers at any moment; a pod that lost its term starts again.
    #[test]
    fn never_two_leaders_and_terms_only_grow(weather in prop::collection::vec(weather(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let server = Arc::new(Server::default());
            let links = [Link::default(), Link::default(), Link::default()];
            let leaders: Arc<Mutex<[Option<Leadership>; 3]>> = Arc::default();
            let terms: Arc<Mutex<Vec<i64>>> = Arc::default();
            for (pod, link) in links.iter().enumerate() {
                let (server, link) = (Arc::clone(&server), link.clone());
                let (leaders, terms) = (Arc::clone(&leaders), Arc::clone(&terms));
                tokio::spawn(async move {
                    loop {
                        let term = candidate(&server, &link, &format!("pod-{pod}")).acquire().await;
                        terms.lock().unwrap().push(term.leadership().epoch());
                        leaders.lock().unwrap()[pod] = Some(term.leadership());
                        term.lost().await;
                        leaders.lock().unwrap()[pod] = None;
                    }
                });
            }
            for change in weather {
                links[change.pod].set(change.net);
                *links[change.pod].delay.lock().unwrap() = seconds(change.delay);
                let end = Instant::now() + seconds(change.lasts);
                while Instant::now() < end {
                    sleep(seconds(0.037)).await;
                    let leading: Vec<_> = leaders.lock().unwrap().iter().flatten()
                        .filter(|leader| leader.check(Duration::ZERO).is_ok()).cloned().collect();
                    assert!(leading.len() <= 1, "{leading:?}");
                }
            }
            let terms = terms.lock().unwrap().clone();
            assert!(terms.is_sorted_by(|a, b| a < b), "{terms:?}");
            // With good links somebody leads, soon.
            for link in &links {
                link.set(Net::Up);
                *link.delay.lock().unwrap() = Duration::ZERO;
            }
            sleep(seconds(12.0)).await;
            assert!(leaders.lock().unwrap().iter().flatten().any(|leader| leader.check(seconds(4.0)).is_ok()));
        });
    }
}
