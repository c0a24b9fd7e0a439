use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use http::{Request, Response};
use kube::client::Body;
use rstest::rstest;
use serde_json::{Value, json};
use tower::service_fn;

use super::*;

/// Answers in turn, and tells what was sent.
#[derive(Default)]
struct Venue {
    answers: Mutex<VecDeque<Result<Reply, CallError>>>,
    sent: Mutex<Vec<Call>>,
}

#[async_trait]
impl Transport for Venue {
    async fn send(&self, call: Call) -> Result<Reply, CallError> {
        self.sent.lock().unwrap().push(call);
        self.answers.lock().unwrap().pop_front().unwrap_or(Err(CallError::NotSent("no answer is left".into())))
    }

    async fn probe(&self, _: &str, _: &str, _: Duration) -> Result<(), CallError> {
        Ok(())
    }
}

impl Venue {
    fn sent(&self) -> Vec<String> {
        self.sent.lock().unwrap().iter().map(|call| format!("{} {}", call.method, call.url)).collect()
    }
}

fn reply(status: u16, body: impl Into<Bytes>) -> Result<Reply, CallError> {
    Ok(Reply { status, body: body.into() })
}

fn answer(body: &Value) -> Result<Reply, CallError> {
    reply(200, body.to_string())
}

/// A Kubernetes API with one Secret, `venue`, for `venue.example`; it counts what is asked.
fn cluster() -> (kube::Client, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let service = service_fn(move |request: Request<Body>| {
        count.fetch_add(1, Ordering::SeqCst);
        let (status, body) = match (request.method().as_str(), request.uri().path()) {
            ("GET", "/api/v1/namespaces/trading/secrets/venue") => (
                200,
                json!({
                    "apiVersion": "v1", "kind": "Secret",
                    "metadata": {
                        "name": "venue", "namespace": "trading",
                        "labels": {"standfast.dev/use": "true"},
                        "annotations": {"standfast.dev/allowed-hosts": "venue.example"},
                    },
                    "data": {"token": "aHVudGVyMg==", "lines": "YQpi"},
                }),
            ),
            ("GET", "/api/v1/namespaces/trading/secrets/tls") => (
                200,
                json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tls"}, "data": {"token": "eA=="}}),
            ),
            ("GET", "/api/v1/namespaces/trading/secrets/broken") => {
                (500, json!({"kind": "Status", "status": "Failure", "message": "hunter2", "code": 500}))
            }
            ("GET", _) => (404, json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404})),
            _ => (405, json!({"kind": "Status", "status": "Failure", "code": 405})),
        };
        let response = Response::builder().status(status).body(Body::from(body.to_string().into_bytes())).unwrap();
        async move { Ok::<_, Infallible>(response) }
    });
    (kube::Client::new(service, "default"), asked)
}

fn caller(answers: impl IntoIterator<Item = Result<Reply, CallError>>) -> (Caller, Arc<Venue>) {
    let venue = Arc::new(Venue { answers: Mutex::new(answers.into_iter().collect()), ..Venue::default() });
    (Caller::new(venue.clone(), cluster().0, Metrics::new()), venue)
}

fn request(extra: Value) -> HttpRequest {
    let mut request = json!({"url": "https://venue.example/v2/orders"});
    for (name, value) in extra.as_object().unwrap() {
        request[name] = value.clone();
    }
    serde_json::from_value(request).unwrap()
}

fn authenticated(secret: &str, key: &str) -> HttpRequest {
    let reference = json!({"name": secret, "key": key});
    request(json!({"method": "DELETE", "auth": {"headers": [
        {"name": "Authorization", "prefix": "Bearer ", "secretKeyRef": reference},
        {"name": "X-Again", "secretKeyRef": reference},
    ]}}))
}

fn orders_read(extra: Value) -> OrdersRead {
    let mut read = json!({"http": {"url": "https://venue.example/v2/orders?limit=2"}});
    for (name, value) in extra.as_object().unwrap() {
        read[name] = value.clone();
    }
    serde_json::from_value(read).unwrap()
}

#[tokio::test]
async fn a_call_has_everything() {
    let (client, asked) = cluster();
    let caller = Caller::new(Arc::new(Venue::default()), client, Metrics::new());
    let mut wanted = authenticated("venue", "token");
    wanted.url = "https://venue.example/v2/orders/{id}".into();
    wanted.headers = vec![standfast_crds::v1alpha1::Header { name: "X-Plain".into(), value: "v".into() }];
    wanted.body = Some(json!({"qty": "{quantity}"}));
    let item = Item { id: "a/b".into(), symbol: "S".into(), quantity: "1.50".into(), ..Item::default() };
    let call = caller.prepare("trading", &wanted, Some(&item)).await.unwrap();
    assert_eq!(call.url, "https://venue.example/v2/orders/a%2Fb");
    assert_eq!(call.method, Method::DELETE);
    assert_eq!(call.namespace, "trading");
    assert_eq!(call.timeout, Duration::from_secs(5));
    assert_eq!(call.body.as_deref(), Some(&br#"{"qty":"1.50"}"#[..]));
    let headers: Vec<_> = call.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(headers, [("x-plain", "v"), ("authorization", "Bearer hunter2"), ("x-again", "hunter2")]);
    assert!(!format!("{call:?}").contains("hunter2"));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn many_calls_read_each_secret_once() {
    let (client, asked) = cluster();
    let caller = Caller::new(Arc::new(Venue::default()), client, Metrics::new());
    let (a, b) = (authenticated("venue", "token"), authenticated("tls", "token"));
    let calls = caller.prefetch("trading", &[&a, &b, &a]).await;
    assert_eq!(calls.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    let mut one = authenticated("venue", "token");
    one.url.push_str("/{id}");
    let items: Vec<Item> = (0..300).map(|id| Item { id: id.to_string(), ..Item::default() }).collect();
    let calls = caller.prepare_items("trading", &one, &items).await;
    assert_eq!(calls[299].as_ref().unwrap().url, "https://venue.example/v2/orders/299");
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}

#[rstest]
#[case(authenticated("tls", "token"), "label secret tls standfast.dev/use=true", true)]
#[case(authenticated("gone", "token"), "Secret trading/gone does not exist", true)]
#[case(authenticated("venue", "key"), "Secret trading/venue has no key key", true)]
#[case(authenticated("venue", "lines"), "line break", true)]
#[case(authenticated("broken", "token"), "the API server answered 500", false)]
#[case({ let mut r = authenticated("venue", "token"); r.url = "https://evil.example/".into(); r }, "may not be sent to evil.example:443", true)]
#[case(request(json!({"url": "https://u:p@venue.example/"})), "a user or a password", true)]
#[case(request(json!({"url": "https://venue.example/{id}"})), "{id} cannot be filled", true)]
#[case(request(json!({"headers": [{"name": "X", "value": "a\r\nHost: evil"}]})), "the value of header X", true)]
#[case(request(json!({"headers": [{"name": "X:", "value": "a"}]})), "not the name of a header", true)]
#[tokio::test]
async fn calls_that_cannot_be_made(#[case] request: HttpRequest, #[case] expected: &str, #[case] refused: bool) {
    let (caller, venue) = caller([]);
    let error = caller.prepare("trading", &request, None).await.unwrap_err();
    assert_eq!(matches!(error, CallError::Refused(_)), refused, "{error}");
    assert!(error.to_string().contains(expected) && !error.to_string().contains("hunter2"), "{error}");
    let outcome = caller.act("trading", &request, None).await;
    assert_eq!(outcome.state, ActionState::Failed);
    assert!(outcome.message.contains(expected), "{}", outcome.message);
    assert_eq!(venue.sent(), Vec::<String>::new());
}

#[tokio::test]
async fn nobody_waits_longer_than_a_minute() {
    let (caller, _) = caller([]);
    for (given, expected) in [("24h", 60), ("7s", 7)] {
        let call = caller.prepare("trading", &request(json!({"timeout": given})), None).await.unwrap();
        assert_eq!(call.timeout, Duration::from_secs(expected));
    }
}

#[rstest]
#[case(reply(200, ""), ActionState::Done, "answered 200")]
#[case(reply(204, ""), ActionState::Done, "answered 204")]
#[case(reply(207, r#"[{"status":200},{"status":"500"},{"status":422}]"#), ActionState::Done, "2 of 3 parts failed")]
#[case(reply(207, "<multistatus/>"), ActionState::Done, "answered 207")]
#[case(reply(301, ""), ActionState::Unknown, "not followed")]
#[case(reply(303, ""), ActionState::Done, "answered 303")]
#[case(reply(400, "hunter2"), ActionState::Failed, "answered 400")]
#[case(reply(401, ""), ActionState::Failed, "check auth")]
#[case(reply(403, ""), ActionState::Failed, "check auth")]
#[case(reply(404, ""), ActionState::Done, "nothing there")]
#[case(reply(405, ""), ActionState::Failed, "answered 405")]
#[case(reply(408, ""), ActionState::Unknown, "answered 408")]
#[case(reply(409, ""), ActionState::Done, "not in a state")]
#[case(reply(422, ""), ActionState::Failed, "answered 422")]
#[case(reply(429, ""), ActionState::Failed, "too many requests")]
#[case(reply(500, "hunter2"), ActionState::Unknown, "may have had an effect")]
#[case(reply(503, ""), ActionState::Unknown, "answered 503")]
#[case(Err(CallError::Refused("why".into())), ActionState::Failed, "why")]
#[case(Err(CallError::NotSent("why".into())), ActionState::Failed, "why")]
#[case(Err(CallError::UnknownOutcome("why".into())), ActionState::Unknown, "why")]
#[tokio::test]
async fn outcomes(#[case] answer: Result<Reply, CallError>, #[case] state: ActionState, #[case] message: &str) {
    for method in ["DELETE", "GET"] {
        let (caller, venue) = caller([answer.clone(), reply(200, "")]);
        let outcome = caller.act("trading", &request(json!({"method": method})), None).await;
        assert_eq!(outcome.state, state);
        assert!(outcome.message.starts_with(&format!("{method} venue.example: ")), "{}", outcome.message);
        assert!(outcome.message.contains(message) && !outcome.message.contains("hunter2"), "{}", outcome.message);
        assert_eq!(venue.sent().len(), 1, "an action is sent once");
    }
}

#[tokio::test]
async fn reads_with_get_are_repeated_once() {
    let lost = || Err(CallError::UnknownOutcome("lost".into()));
    let (caller, venue) = caller([lost(), answer(&json!([{}]))]);
    assert_eq!(caller.read_orders("trading", &orders_read(json!({}))).await.unwrap().count, 1);
    assert_eq!(venue.sent().len(), 2);

    let (caller, venue) = self::caller([lost(), lost(), answer(&json!([]))]);
    let error = caller.read_orders("trading", &orders_read(json!({}))).await.unwrap_err();
    assert!(error.to_string().contains("GET venue.example: lost"), "{error}");
    assert_eq!(venue.sent().len(), 2);

    let (caller, venue) = self::caller([lost(), answer(&json!([]))]);
    let read = orders_read(json!({"http": {"method": "POST", "url": "https://venue.example/info"}}));
    caller.read_orders("trading", &read).await.unwrap_err();
    assert_eq!(venue.sent().len(), 1, "who knows what a POST does");

    let (caller, venue) = self::caller([Err(CallError::Refused("no".into())), answer(&json!([]))]);
    caller.ask("trading", &request(json!({}))).await.unwrap_err();
    assert_eq!(venue.sent().len(), 1);
}

#[rstest]
#[case(reply(200, ""), "not JSON")]
#[case(reply(200, "[{}"), "not JSON")]
#[case(reply(200, "<html>"), "not JSON")]
#[case(reply(200, "{}"), "no list at $")]
#[case(reply(200, r#"{"code":-2015,"msg":"hunter2"}"#), "no list at $")]
#[case(reply(202, "[]"), "not a whole one")]
#[case(reply(206, "[]"), "not a whole one")]
#[case(reply(207, "[]"), "not a whole one")]
#[case(reply(204, ""), "not JSON")]
#[case(reply(302, "[]"), "redirected")]
#[case(reply(304, "[]"), "answered 304")]
#[case(reply(401, "[]"), "check auth")]
#[case(reply(404, "[]"), "answered 404")]
#[case(reply(429, "[]"), "answered 429")]
#[case(reply(500, "[]"), "answered 500")]
#[tokio::test]
async fn answers_that_prove_nothing(#[case] answer: Result<Reply, CallError>, #[case] expected: &str) {
    let (caller, _) = caller([answer.clone()]);
    let error = caller.read_orders("trading", &orders_read(json!({}))).await.unwrap_err().to_string();
    assert!(error.starts_with("GET venue.example: "), "{error}");
    assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
    let (caller, _) = self::caller([answer]);
    let read = serde_json::from_value(json!({"http": {"url": "https://venue.example/p"}})).unwrap();
    caller.read_positions("trading", &read).await.unwrap_err();
}

#[tokio::test]
async fn pages_are_followed() {
    let page = |ids: &[u32], next: Value| {
        answer(&json!({"o": ids.iter().map(|id| json!({"id": id})).collect::<Vec<_>>(), "n": next}))
    };
    let (caller, venue) = caller([page(&[1, 2], json!("x y")), page(&[3, 4], json!(7)), page(&[], json!(null))]);
    let read = orders_read(json!({"items": "$.o[*]", "next": "$.n", "nextParameter": "cursor", "pageSize": 2}));
    let orders = caller.read_orders("trading", &read).await.unwrap();
    assert_eq!((orders.count, orders.listed, orders.orders.len()), (4, true, 4));
    assert_eq!(
        venue.sent(),
        [
            "GET https://venue.example/v2/orders?limit=2",
            "GET https://venue.example/v2/orders?limit=2&cursor=x+y",
            "GET https://venue.example/v2/orders?limit=2&cursor=7",
        ]
    );
}

#[rstest]
#[case::other_host("https://evil.example/steal", "another host", 1)]
#[case::same_page("?limit=2", "read before", 1)]
#[case::for_ever("?", "more than 50 pages", 50)]
#[tokio::test]
async fn pages_that_are_not_followed(#[case] next: &str, #[case] expected: &str, #[case] sent: usize) {
    let answers = (0..60).map(|turn| {
        let next = if next == "?" { format!("?page={turn}") } else { next.to_owned() };
        answer(&json!({"o": [{}], "n": next}))
    });
    let (caller, venue) = caller(answers);
    let read = orders_read(json!({"items": "$.o[*]", "next": "$.n"}));
    let error = caller.read_orders("trading", &read).await.unwrap_err();
    assert!(error.to_string().contains(expected), "{error}");
    assert_eq!(venue.sent().len(), sent);
}

#[tokio::test]
async fn too_many_items() {
    let items = vec![json!({}); 10_000];
    let (caller, venue) = caller((0..60).map(|turn| answer(&json!({"o": items, "n": format!("?page={turn}")}))));
    let error = caller.read_orders("trading", &orders_read(json!({"items": "$.o[*]", "next": "$.n"}))).await;
    assert!(error.unwrap_err().to_string().contains("more than 50000 items"));
    assert_eq!(venue.sent().len(), 6);
}

#[tokio::test]
async fn too_much_text() {
    let part = "x".repeat(256);
    let order = json!({"id": part, "client_order_id": part, "symbol": part, "type": part});
    // One MiB of text on each page.
    let answers = (0..60).map(|turn| answer(&json!({"o": vec![&order; 1024], "n": format!("?page={turn}")})));
    let (caller, venue) = caller(answers);
    let error = caller.read_orders("trading", &orders_read(json!({"items": "$.o[*]", "next": "$.n"}))).await;
    let expected = "GET venue.example: the items hold more than 8 MiB of text: let count name their number";
    assert_eq!(error.unwrap_err().to_string(), expected);
    assert_eq!(venue.sent().len(), 9);
}

/// What is read of an answer is larger than it: its place among the long ones is taken until that is gone too.
#[tokio::test]
async fn a_document_keeps_its_body() {
    struct Tracked {
        _there: Arc<()>,
    }
    impl AsRef<[u8]> for Tracked {
        fn as_ref(&self) -> &[u8] {
            b"[]"
        }
    }
    let there = Arc::new(());
    let (caller, _) = caller([reply(200, Bytes::from_owner(Tracked { _there: Arc::clone(&there) }))]);
    let call = caller.prepare("trading", &request(json!({})), None).await.unwrap();
    let document = caller.document(call).await.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(Arc::strong_count(&there), 2);
    drop(document);
    assert_eq!(Arc::strong_count(&there), 1);
}

#[tokio::test]
async fn a_broken_later_page_breaks_the_read() {
    let (caller, _) = caller([answer(&json!({"o": [{}], "n": "?p=2"})), reply(500, "")]);
    let read = orders_read(json!({"items": "$.o[*]", "next": "$.n"}));
    caller.read_orders("trading", &read).await.unwrap_err();
}

#[tokio::test]
async fn counts_and_positions() {
    let (caller, _) = caller([answer(&json!({"total": "12"})), answer(&json!([{"qty": "0"}, {"qty": "-1"}]))]);
    let orders = caller.read_orders("trading", &orders_read(json!({"count": "$.total"}))).await.unwrap();
    assert_eq!((orders.count, orders.listed), (12, false));
    let read = serde_json::from_value(json!({"http": {"url": "https://venue.example/p"}})).unwrap();
    let positions = caller.read_positions("trading", &read).await.unwrap();
    assert_eq!((positions.count, positions.listed), (1, true));
}

#[tokio::test]
async fn a_job_is_not_called() {
    let (caller, _) = caller([]);
    let read = serde_json::from_value(json!({"job": {"image": "x"}})).unwrap();
    caller.read_orders("trading", &read).await.unwrap_err();
}

#[rstest]
#[case(json!({"suspended": true}), Some(true))]
#[case(json!({"suspended": false}), Some(false))]
#[case(json!({"suspended": "true"}), Some(false))]
#[case(json!({"suspended": {}}), None)]
#[case(json!({}), None)]
#[tokio::test]
async fn states(#[case] body: Value, #[case] expected: Option<bool>) {
    let (caller, _) = caller([answer(&body)]);
    let read = json!({"http": {"url": "https://venue.example/a"}, "path": "$.suspended", "expect": {"equals": true}});
    let state = caller.read_state("trading", &serde_json::from_value(read).unwrap()).await;
    assert_eq!(state.ok(), expected);
}

#[test]
fn values_of_answers() {
    let reply = Reply { status: 200, body: r#"{"lag": 0.10}"#.into() };
    assert_eq!(value_at(&reply, "$.lag").unwrap(), Scalar::Number("0.10".into()));
    value_at(&reply, "$.lags").unwrap_err();
}

#[tokio::test]
async fn calls_are_counted_by_how_they_ended() {
    let lost = || Err(CallError::UnknownOutcome("no whole answer".into()));
    let refused = Err(CallError::Refused("loopback".into()));
    let answers = [reply(500, "no"), lost(), reply(200, "{}"), refused, Err(CallError::NotSent("no name".into()))];
    let venue = Arc::new(Venue { answers: Mutex::new(answers.into_iter().collect()), ..Venue::default() });
    let metrics = Metrics::new();
    let caller = Caller::new(venue, cluster().0, metrics.clone());
    let cancel = request(json!({"method": "DELETE"}));
    caller.act("trading", &cancel, None).await;
    // Sent twice: the first answer was lost.
    caller.ask("trading", &request(json!({}))).await.unwrap();
    caller.act("trading", &cancel, None).await;
    let call = caller.prepare("trading", &cancel, None).await.unwrap();
    caller.transport().send(call).await.unwrap_err();
    caller.probe("trading", &cancel, None).await.unwrap();
    let text = metrics.encode();
    for (result, count) in [("answered", 2), ("unknown", 1), ("refused", 1), ("not_sent", 1)] {
        let line = format!("standfast_outbound_calls_total{{result=\"{result}\"}} {count}\n");
        assert!(text.contains(&line), "{line}{text}");
    }
}
