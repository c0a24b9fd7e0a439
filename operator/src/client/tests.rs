use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn as serve;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams, PostParams, WatchParams},
};
use rstest::rstest;
use serde_json::json;
use tokio::{net::TcpListener, sync::Barrier, time::Instant};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

use super::*;

#[derive(Clone, Copy)]
enum Answer {
    Status(u16),
    Wait(u16, &'static str),
    Broken,
}

/// A client whose server gives these answers in turn and then 200, and how often it was called.
fn server(answers: impl IntoIterator<Item = Answer>) -> (Client, Arc<AtomicUsize>) {
    let answers = Arc::new(Mutex::new(answers.into_iter().collect::<VecDeque<_>>()));
    let calls = Arc::<AtomicUsize>::default();
    let counter = Arc::clone(&calls);
    let service = service_fn(move |_: Request<Body>| {
        counter.fetch_add(1, Ordering::SeqCst);
        let answer = answers.lock().unwrap().pop_front().unwrap_or(Answer::Status(200));
        async move {
            let (code, wait) = match answer {
                Answer::Broken => return Err(BoxError::from(std::io::Error::other("connection reset"))),
                Answer::Status(code) => (code, None),
                Answer::Wait(code, wait) => (code, Some(wait)),
            };
            let body = if code == 200 {
                json!({"metadata": {"name": "found"}, "items": []})
            } else {
                json!({"kind": "Status", "status": "Failure", "code": code, "reason": "", "message": "no"})
            };
            let mut answer = Response::builder().status(code);
            if let Some(wait) = wait {
                answer = answer.header("retry-after", wait);
            }
            Ok(answer.body(Full::new(Bytes::from(body.to_string())))?)
        }
    });
    (Client::new(service, "bots"), calls)
}

fn maps(client: Client) -> Api<ConfigMap> {
    Api::default_namespaced(client)
}

#[rstest]
#[case(Answer::Status(429))]
#[case(Answer::Status(500))]
#[case(Answer::Status(503))]
#[case(Answer::Status(504))]
#[case(Answer::Broken)]
#[tokio::test(start_paused = true)]
async fn a_read_is_sent_at_most_three_times(#[case] answer: Answer) {
    let (client, calls) = server([answer; 2]);
    maps(retry_reads(client)).get("a").await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    let (client, calls) = server([answer; 9]);
    let began = Instant::now();
    maps(retry_reads(client)).list(&ListParams::default()).await.unwrap_err();
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    assert_eq!(began.elapsed(), Duration::from_millis(300));
}

#[rstest]
#[case(400)]
#[case(401)]
#[case(403)]
#[case(404)]
#[case(409)]
#[case(410)]
#[case(422)]
#[tokio::test(start_paused = true)]
async fn an_answer_that_will_not_change_is_passed_on(#[case] code: u16) {
    let (client, calls) = server([Answer::Status(code); 9]);
    let error = maps(retry_reads(client)).get("a").await.unwrap_err();
    assert!(matches!(error, Error::Api(status) if status.code == code));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[rstest]
#[case("1", 2, 1000)]
#[case("2", 2, 2000)]
#[case("0", 2, 100)]
#[case("soon", 2, 100)]
#[case("3", 1, 0)]
#[case("86400", 1, 0)]
#[tokio::test(start_paused = true)]
async fn the_server_says_how_long_to_wait_within_bounds(
    #[case] wait: &'static str,
    #[case] sent: usize,
    #[case] millis: u64,
) {
    let (client, calls) = server([Answer::Wait(429, wait)]);
    let began = Instant::now();
    let answer = maps(retry_reads(client)).get("a").await;
    assert_eq!(answer.is_ok(), sent == 2);
    assert_eq!(calls.load(Ordering::SeqCst), sent);
    assert_eq!(began.elapsed(), Duration::from_millis(millis));
}

#[rstest]
#[case(Answer::Status(429))]
#[case(Answer::Status(503))]
#[case(Answer::Broken)]
#[tokio::test(start_paused = true)]
async fn a_write_or_a_watch_is_sent_once(#[case] answer: Answer) {
    let (client, calls) = server([answer; 9]);
    let api = maps(retry_reads(client));
    api.create(&PostParams::default(), &ConfigMap::default()).await.unwrap_err();
    api.replace("a", &PostParams::default(), &ConfigMap::default()).await.unwrap_err();
    api.patch("a", &PatchParams::default(), &Patch::Merge(json!({}))).await.unwrap_err();
    api.delete("a", &Default::default()).await.unwrap_err();
    assert!(api.watch(&WatchParams::default(), "0").await.is_err());
    assert_eq!(calls.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn as_many_turns_are_taken_as_there_are() {
    let turns = Turns::new(2);
    let (first, second) = (turns.take().await, turns.clone().take().await);
    let mut third = Box::pin(turns.take());
    assert!(futures::poll!(&mut third).is_pending());
    drop(first);
    let third = third.await;
    let mut given_up = Box::pin(turns.take());
    assert!(futures::poll!(&mut given_up).is_pending());
    drop((given_up, second, third));
    let _all = (turns.take().await, turns.take().await);
}

/// A TLS server that speaks `protocols` and answers only when `together` calls have arrived; counts its connections.
async fn tls_server(protocols: &[&str], together: usize) -> (Config, Arc<AtomicUsize>) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let mut tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    tls.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = Config::new(format!("https://{}", listener.local_addr().unwrap()).parse().unwrap());
    config.root_cert = Some(vec![cert.der().to_vec()]);
    let connections = Arc::<AtomicUsize>::default();
    let (counter, barrier) = (Arc::clone(&connections), Arc::new(Barrier::new(together)));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            let (acceptor, barrier) = (acceptor.clone(), Arc::clone(&barrier));
            tokio::spawn(async move {
                let stream = acceptor.accept(tcp).await.unwrap();
                let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let answer = serve(move |request: Request<hyper::body::Incoming>| {
                    let barrier = Arc::clone(&barrier);
                    async move {
                        if request.method() == Method::PATCH {
                            barrier.wait().await;
                        }
                        let body = json!({"metadata": {"name": "found"}}).to_string();
                        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(body))))
                    }
                });
                let stream = TokioIo::new(stream);
                if h2 {
                    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(stream, answer)
                        .await;
                } else {
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(stream, answer).await;
                }
            });
        }
    });
    (config, connections)
}

#[rstest]
// One more finds out what the server speaks.
#[case::shared(&["h2", "http/1.1"], shared::CONNECTIONS + 1)]
#[case::one_for_each_call(&["http/1.1"], 50)]
#[case::one_for_each_call_without_negotiation(&[], 50)]
#[tokio::test]
async fn calls_of_a_halt_share_few_connections_where_the_server_can(
    #[case] protocols: &[&str],
    #[case] expected: usize,
) {
    let (config, connections) = tls_server(protocols, 50).await;
    let halt = maps(Clients::new(&config, 64).unwrap().halt);
    // All at once, and no connection is open yet.
    let (params, patch) = (PatchParams::default(), Patch::Merge(json!({})));
    let all = futures::future::join_all((0..50).map(|_| halt.patch("a", &params, &patch))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(connections.load(Ordering::SeqCst), expected);
    let all = futures::future::join_all((0..50).map(|_| halt.patch("a", &params, &patch))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(connections.load(Ordering::SeqCst), expected, "and they stay open");
}

#[tokio::test]
async fn every_client_has_connections_of_its_own() {
    let (config, connections) = tls_server(&["h2", "http/1.1"], 1).await;
    let Clients { watch, api, lease, .. } = Clients::new(&config, 64).unwrap();
    for client in [&watch, &api, &lease, &watch, &api, &lease] {
        maps(client.clone()).get("a").await.unwrap();
    }
    assert_eq!(connections.load(Ordering::SeqCst), 3);
}

fn api_error(code: u16) -> Error {
    Error::Api(Status::failure("no", "").with_code(code).boxed())
}

#[rstest]
#[case(400, Class::Invalid, Class::Invalid)]
#[case(401, Class::Denied, Class::Denied)]
#[case(403, Class::Denied, Class::Denied)]
#[case(404, Class::NotFound, Class::NotFound)]
#[case(408, Class::UnknownOutcome, Class::Transient)]
#[case(409, Class::Conflict, Class::Conflict)]
#[case(410, Class::NotFound, Class::Transient)]
#[case(413, Class::Invalid, Class::Invalid)]
#[case(422, Class::Invalid, Class::Invalid)]
#[case(429, Class::Throttled, Class::Throttled)]
#[case(500, Class::UnknownOutcome, Class::Transient)]
#[case(503, Class::UnknownOutcome, Class::Transient)]
#[case(504, Class::UnknownOutcome, Class::Transient)]
fn status_codes_have_a_class(#[case] code: u16, #[case] write: Class, #[case] read: Class) {
    assert_eq!(Class::of_write(&api_error(code)), write);
    assert_eq!(Class::of_read(&api_error(code)), read);
}

#[test]
fn an_answer_that_cannot_be_read_is_unknown_after_a_write() {
    let error = || Error::SerdeError(serde_json::from_str::<u8>("x").unwrap_err());
    assert_eq!(Class::of_write(&error()), Class::UnknownOutcome);
    assert_eq!(Class::of_read(&error()), Class::Invalid);
}

fn config(address: impl fmt::Display) -> Config {
    Config::new(format!("http://{address}").parse().unwrap())
}

#[tokio::test]
async fn nobody_listening_means_that_nothing_was_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let clients = Clients::new(&config(address), 4).unwrap();
    for client in [clients.api, clients.halt, clients.lease, clients.watch] {
        let api = maps(client);
        let (params, patch) = (PatchParams::default(), Patch::Merge(json!({})));
        let call = api.patch("a", &params, &patch);
        let error = write(Duration::from_secs(5), "patching ConfigMap bots/a", call).await.unwrap_err();
        assert_eq!(error.class(), Class::Transient, "{error}");
        assert!(error.to_string().starts_with("patching ConfigMap bots/a: client error (Connect)"), "{error}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_a_write_unknown() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // The request has arrived when the connection is closed.
            let mut buffer = [0; 8];
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut buffer).await;
        }
    });
    let api = maps(Clients::new(&config(address), 4).unwrap().halt);
    let (params, patch) = (PatchParams::default(), Patch::Merge(json!({})));
    let call = api.patch("a", &params, &patch);
    let error = write(Duration::from_secs(5), "patching ConfigMap bots/a", call).await.unwrap_err();
    assert_eq!(error.class(), Class::UnknownOutcome, "{error}");
}

#[tokio::test(start_paused = true)]
async fn no_answer_in_time_is_unknown_for_a_write_and_transient_for_a_read() {
    let never = || std::future::pending::<kube::Result<()>>();
    let began = Instant::now();
    let error = write(Duration::from_millis(1500), "scaling Deployment bots/mm to 0", never()).await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::from_millis(1500));
    assert_eq!(error.class(), Class::UnknownOutcome);
    assert_eq!(error.to_string(), "scaling Deployment bots/mm to 0: no answer within 1.5s");
    let error = read(Duration::from_secs(1), "reading Pod bots/mm-0", never()).await.unwrap_err();
    assert_eq!(error.class(), Class::Transient);
    let error = deadline(Duration::from_secs(2), "halting", std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(error.to_string(), "halting: not done within 2s");
    assert_eq!(deadline(Duration::from_secs(2), "halting", async { 7 }).await, Ok(7));
}

async fn failed(status: serde_json::Value) -> ApiError {
    let error = Error::Api(serde_json::from_value(status).unwrap());
    write(Duration::from_secs(1), "scaling", std::future::ready(Err::<(), _>(error))).await.unwrap_err()
}

#[tokio::test]
async fn a_failed_test_is_told_from_a_refusal() {
    // Both as Kubernetes 1.35 answers.
    let message = "the server rejected our request due to an error in our request";
    let test = failed(json!({"code": 422, "reason": "Invalid", "message": message, "details": {}})).await;
    assert!(test.is_failed_test());
    let refused = failed(json!({"code": 422, "reason": "Invalid", "message": "deployments.apps \"d\" is forbidden",
        "details": {"name": "d", "group": "apps", "kind": "deployments", "causes": [{"message": "held"}]}}));
    assert!(!refused.await.is_failed_test());
    assert!(!failed(json!({"code": 409, "reason": "Conflict", "message": "no"})).await.is_failed_test());
}

#[tokio::test]
async fn what_the_server_said_can_be_asked_for() {
    let exists = failed(json!({"code": 409, "reason": "AlreadyExists", "message": "it is there"})).await;
    assert!(exists.is_already_exists());
    assert_eq!(exists.retry_after(), None);
    let busy = failed(json!({"code": 429, "reason": "TooManyRequests", "message": "busy",
        "details": {"retryAfterSeconds": 3}}));
    assert_eq!(busy.await.retry_after(), Some(Duration::from_secs(3)));
}

#[tokio::test]
async fn messages_are_one_short_line() {
    let message = format!("first\nsecond\t{}", "é".repeat(400));
    let error = failed(json!({"code": 403, "reason": "Forbidden", "message": message})).await;
    let text = error.to_string();
    assert!(text.starts_with("scaling: 403 first second é") && text.ends_with("é…"), "{text}");
    assert_eq!(text.chars().count(), "scaling: 403 ".len() + MESSAGE_LIMIT + 1);
}
