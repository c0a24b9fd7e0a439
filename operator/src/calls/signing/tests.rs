//! Signatures against what the venues publish, and their answers.

use std::{collections::VecDeque, sync::Mutex};

use bytes::Bytes;
use http::Method;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::HttpRequest;

use super::*;
use crate::calls::{Item, template};

/// The key and secret of Binance's examples.
const BINANCE: (&str, &str) = (
    "vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A",
    "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j",
);
/// The secret of Kraken's example, which has no key.
const KRAKEN: (&str, &str) =
    ("key", "kQH5HW/8p1uGOVjbgWA7FunAmGO8lsSUXNsu3eow76sz84Q18fWxnyRzBHCd3pd5nE9qa99HAZtuZuj6F1huXg==");
/// The key of Bybit's examples, which keep their secret to themselves.
const BYBIT: (&str, &str) = ("XXXXXXXXXX", "XXXXXXXXXX");

fn request(venue: &str, method: &str, url: &str, body: Option<Value>) -> HttpRequest {
    let auth = json!({"apiKeyRef": {"name": "s", "key": "key"}, "apiSecretRef": {"name": "s", "key": "secret"}});
    serde_json::from_value(json!({"method": method, "url": url, "body": body, "auth": {venue: auth}})).unwrap()
}

fn call(request: &HttpRequest, (key, secret): (&str, &str), item: Option<&Item>) -> Result<Call, String> {
    let url = template::url(&request.url, item)?;
    fits(request, &Url::parse(&url).unwrap())?;
    let value = |r: &SecretKeyRef| Ok(Sensitive::of(if r.key == "key" { key } else { secret }));
    let signing = Signing::of(request, "trading", value).map_err(|e| e.to_string())?.unwrap();
    let body = request.body.as_ref().map(|body| template::body(body, item)).transpose()?;
    let body = signing.body(body.as_ref())?.map(Bytes::from);
    let method = if request.method == standfast_crds::v1alpha1::HttpMethod::Get { Method::GET } else { Method::POST };
    let (namespace, timeout) = ("trading".to_owned(), Duration::from_secs(5));
    Ok(Call { namespace, method, url, headers: vec![], body, signing: Some(signing), timeout })
}

fn signed(call: &Call, at: u64) -> Call {
    call.signing.as_ref().unwrap().sign(call, at).unwrap()
}

fn headers(call: &Call) -> Vec<(&str, &str)> {
    call.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect()
}

/// Examples 1 and 2 of "HMAC Keys" in
/// <https://developers.binance.com/docs/binance-spot-api-docs/rest-api/request-security>, the second with letters that
/// are percent-encoded.
#[rstest]
#[case("LTCBTC", "LTCBTC", "c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71")]
#[case(
    "１２３４５６",
    "%EF%BC%91%EF%BC%92%EF%BC%93%EF%BC%94%EF%BC%95%EF%BC%96",
    "e1353ec6b14d888f1164ae9af8228a3dbd508bc82eb867db8ab6046442f33ef3"
)]
fn binance_signs_as_published(#[case] symbol: &str, #[case] encoded: &str, #[case] signature: &str) {
    let rest = "side=BUY&type=LIMIT&timeInForce=GTC&quantity=1&price=0.1";
    let address = "https://api.binance.com/api/v3/order?symbol=";
    let expected = format!("{address}{encoded}&{rest}&recvWindow=5000&timestamp=1499827319559&signature={signature}");
    let item = Item { symbol: symbol.into(), ..Item::default() };
    // Written down, and filled in.
    for (written, item) in [(symbol, None), ("{symbol}", Some(&item))] {
        let request = request("binance", "POST", &format!("{address}{written}&{rest}"), None);
        let call = signed(&call(&request, BINANCE, item).unwrap(), 1_499_827_319_559);
        assert_eq!(call.url, expected);
        assert_eq!(headers(&call), [("x-mbx-apikey", BINANCE.0)]);
    }
}

/// <https://docs.kraken.com/api/docs/guides/spot-rest-auth>, "Setting the API-Sign Parameter".
#[test]
fn kraken_signs_as_published() {
    let body = json!({"ordertype": "limit", "pair": "XBTUSD", "price": "37500", "type": "buy", "volume": "1.25"});
    let request = request("kraken", "POST", "https://api.kraken.com/0/private/AddOrder", Some(body));
    let call = signed(&call(&request, KRAKEN, None).unwrap(), 1_616_492_376_594);
    let form = "nonce=1616492376594&ordertype=limit&pair=XBTUSD&price=37500&type=buy&volume=1.25";
    assert_eq!(call.body.as_deref(), Some(form.as_bytes()));
    let signature = "4/dpxb3iT4tp/ZCVEwSnEsLxx0bqyhLpdfOpc6fn7OR8+UClSV5n9E6aSS8MPtnRfp32bAb0nmbRn6H8ndwLUQ==";
    let content_type = "application/x-www-form-urlencoded";
    assert_eq!(headers(&call), [("api-key", "key"), ("api-sign", signature), ("content-type", content_type)]);
}

/// The texts are those of <https://bybit-exchange.github.io/docs/v5/guide>, "Create A Request"; the signatures
/// published there are made with a secret that is not. These are made by `printf %s TEXT | openssl dgst -sha256 -hmac
/// XXXXXXXXXX`.
#[rstest]
#[case(
    ("GET", "https://api-testnet.bybit.com/v5/order/realtime?category=option&symbol=BTC-29JUL22-25000-C", None),
    1_658_384_314_791,
    "1658384314791XXXXXXXXXX5000category=option&symbol=BTC-29JUL22-25000-C",
    "c00720f96c5934ca7057ac28ae65b823f83b8b67a8fe784e7795ca0fa3c148ec"
)]
#[case(
    ("POST", "https://api-testnet.bybit.com/v5/order/create", Some(json!({"category": "option"}))),
    1_658_385_579_423,
    r#"1658385579423XXXXXXXXXX5000{"category":"option"}"#,
    "ff137e622dc52629f41b52ea614eab59502e2b0663f153c528cb570379c469b7"
)]
fn bybit_signs_the_published_text(
    #[case] (method, url, body): (&str, &str, Option<Value>),
    #[case] at: u64,
    #[case] text: &str,
    #[case] signature: &str,
) {
    let request = request("bybit", method, url, body);
    let call = signed(&call(&request, BYBIT, None).unwrap(), at);
    let parameters =
        call.body.as_deref().map_or_else(|| url.split_once('?').unwrap().1, |b| str::from_utf8(b).unwrap());
    assert_eq!(bybit::text(at, BYBIT.0, 5000, parameters), text);
    let time = at.to_string();
    let expected = [
        ("x-bapi-api-key", BYBIT.0),
        ("x-bapi-timestamp", time.as_str()),
        ("x-bapi-recv-window", "5000"),
        ("x-bapi-sign", signature),
    ];
    assert_eq!(headers(&call), expected);
}

#[test]
fn nothing_that_is_secret_prints() {
    let request = request("binance", "GET", "https://api.binance.com/api/v3/openOrders", None);
    let call = call(&request, BINANCE, None).unwrap();
    for text in [format!("{call:?}"), format!("{:?}", signed(&call, 1).headers)] {
        assert!(!text.contains(BINANCE.0) && !text.contains(BINANCE.1), "{text}");
    }
}

#[rstest]
#[case("binance", "GET", "https://h/a?timestamp=1", None, "timestamp is added")]
#[case("binance", "GET", "https://h/a?x=1&%73ignature=1", None, "signature is added")]
#[case("binance", "POST", "https://h/a", Some(json!({"symbol": "X"})), "Binance takes all parameters in the query")]
#[case("bybit", "GET", "https://h/a", Some(json!({})), "leave body out")]
#[case("bybit", "POST", "https://h/a?category=linear", None, "take the query out")]
#[case("bybit", "DELETE", "https://h/a", None, "GET or POST only")]
#[case("kraken", "GET", "https://h/a", None, "method: POST only")]
#[case("kraken", "POST", "https://h/a?x=1", None, "take the query out")]
#[case("kraken", "POST", "https://h/a", Some(json!({"nonce": 1})), "nonce is added")]
#[case("kraken", "POST", "https://h/a", Some(json!({"a": [1]})), "let a in the body be")]
#[case("kraken", "POST", "https://h/a", Some(json!([1])), "let body be an object")]
fn what_cannot_be_signed_is_told(
    #[case] venue: &str,
    #[case] method: &str,
    #[case] url: &str,
    #[case] body: Option<Value>,
    #[case] told: &str,
) {
    let error = call(&request(venue, method, url, body), ("key", "c2VjcmV0"), None).unwrap_err();
    assert!(error.contains(told), "{error}");
}

#[rstest]
#[case("binance", "X-MBX-APIKEY")]
#[case("bybit", "x-bapi-sign")]
#[case("kraken", "API-Sign")]
#[case("kraken", "Content-Type")]
fn headers_of_a_signature_are_set_once(#[case] venue: &str, #[case] name: &str) {
    let mut request = request(venue, "POST", "https://h/a", None);
    request.headers = vec![standfast_crds::v1alpha1::Header { name: name.into(), value: "x".into() }];
    let error = call(&request, ("key", "c2VjcmV0"), None).unwrap_err();
    assert_eq!(error, format!("the header {name} is set by auth: take it out of headers"));
}

#[rstest]
#[case("kraken", ("key", "hunter2!"), "which is base64")]
#[case("kraken", ("key", ""), "the value of secret in Secret trading/s is empty")]
#[case("binance", ("", "secret"), "the value of key in Secret trading/s is no API key")]
#[case("binance", ("hunter2\nx", "secret"), "the value of key in Secret trading/s is no API key")]
fn secrets_of_another_kind_are_told(#[case] venue: &str, #[case] secrets: (&str, &str), #[case] told: &str) {
    let error = call(&request(venue, "POST", "https://h/a", None), secrets, None).unwrap_err();
    assert!(error.contains(told) && !error.contains("hunter2"), "{error}");
}

const BINANCE_LATE: &str = r#"{"code":-1021,"msg":"Timestamp for this request is outside of the recvWindow."}"#;
const BYBIT_LATE: &str = r#"{"retCode":10002,"retMsg":"invalid request, hunter2","result":{},"time":1700000000000}"#;

#[rstest]
#[case("binance", 200, "[]", Ok(200))]
#[case("binance", 400, BINANCE_LATE, Err("Binance refused the time of the request (-1021), clock skew"))]
#[case("binance", 400, r#"{"code":-1022,"msg":"hunter2"}"#, Err("signature is wrong (-1022)"))]
#[case("binance", 401, r#"{"code":-2015,"msg":"hunter2"}"#, Err("refused the API key (-2015)"))]
#[case("binance", 400, r#"{"code":-2011,"msg":"Unknown order sent."}"#, Ok(404))]
#[case("binance", 400, r#"{"code":-1007,"msg":"hunter2"}"#, Err("? Binance does not know what became"))]
#[case("binance", 400, r#"{"code":-1121,"msg":"hunter2"}"#, Ok(400))]
#[case("binance", 503, "hunter2", Ok(503))]
#[case("bybit", 200, r#"{"retCode":0,"result":{"list":[]}}"#, Ok(200))]
#[case(
    "bybit",
    200,
    BYBIT_LATE,
    Err(
        "Bybit refused the time of the request (10002), clock skew: the clock of the operator's node differs from the venue's by 7000 ms"
    )
)]
#[case("bybit", 200, r#"{"retCode":10003,"retMsg":"hunter2"}"#, Err("refused the API key (10003)"))]
#[case("bybit", 200, r#"{"retCode":10004,"retMsg":"hunter2"}"#, Err("signature is wrong"))]
#[case("bybit", 200, r#"{"retCode":110001,"retMsg":"hunter2"}"#, Ok(404))]
#[case("bybit", 200, r#"{"retCode":10016,"retMsg":"hunter2"}"#, Err("? Bybit does not know"))]
#[case("bybit", 200, r#"{"retCode":170131,"retMsg":"hunter2"}"#, Err("retCode 170131"))]
#[case("bybit", 200, "<html>hunter2", Err("? the answer is none of Bybit's"))]
#[case("bybit", 403, "<html>hunter2", Ok(403))]
#[case("kraken", 200, r#"{"error":[],"result":{"open":{}}}"#, Ok(200))]
#[case("kraken", 200, r#"{"error":["WDatabase:hunter2"],"result":{}}"#, Ok(200))]
#[case("kraken", 200, r#"{"error":["EAPI:Invalid key"]}"#, Err("Kraken refused the API key"))]
#[case("kraken", 200, r#"{"error":["EAPI:Invalid signature"]}"#, Err("signature is wrong"))]
#[case("kraken", 200, r#"{"error":["EOrder:Unknown order"]}"#, Ok(404))]
#[case("kraken", 200, r#"{"error":["EService:Unavailable"]}"#, Err("? Kraken does not know"))]
#[case("kraken", 200, r#"{"error":["EOrder:hunter2"]}"#, Err("an error of the kind EOrder"))]
#[case("kraken", 200, r#"{"error":["hunter2"]}"#, Err("an error of the kind E)"))]
#[case("kraken", 200, r#"{"open":{}}"#, Err("? the answer is none of Kraken's"))]
fn answers_are_read_as_the_venue_means_them(
    #[case] venue: &str,
    #[case] status: u16,
    #[case] body: &str,
    #[case] expected: Result<u16, &str>,
) {
    let call = call(&request(venue, "POST", "https://h/a", None), ("key", "c2VjcmV0"), None).unwrap();
    let reply = Reply { status, body: Bytes::from(body.to_owned()) };
    let verdict = call.signing.unwrap().verdict(&reply, 1_700_000_007_000);
    match (verdict.apply(reply).map(|reply| reply.status), expected) {
        (Ok(status), Ok(expected)) => assert_eq!(status, expected),
        (Err(error), Err(told)) => {
            let unknown = matches!(error, CallError::UnknownOutcome(_));
            let text = error.to_string();
            assert!(text.contains(told.trim_start_matches("? ")) && unknown == told.starts_with('?'), "{error:?}");
            assert!(!text.contains("hunter2") && text.chars().count() <= 256, "{text}");
        }
        (got, expected) => panic!("{got:?} is not {expected:?}"),
    }
}

/// A venue that looks at nonces only.
#[derive(Default)]
struct Counting {
    seen: Mutex<u64>,
    asked: Mutex<Vec<u64>>,
    answers: Mutex<VecDeque<&'static str>>,
}

#[async_trait]
impl Transport for Counting {
    async fn send(&self, call: Call) -> Result<Reply, CallError> {
        let body = String::from_utf8(call.body.unwrap().to_vec()).unwrap();
        let nonce: u64 = body.strip_prefix("nonce=").unwrap().parse().unwrap();
        self.asked.lock().unwrap().push(nonce);
        // Others come in between if they may.
        tokio::task::yield_now().await;
        let mut seen = self.seen.lock().unwrap();
        let good = nonce > *seen;
        *seen = nonce.max(*seen);
        let body = if good { r#"{"error":[]}"# } else { r#"{"error":["EAPI:Invalid nonce"]}"# };
        let body = self.answers.lock().unwrap().pop_front().unwrap_or(body);
        Ok(Reply { status: 200, body: Bytes::from(body) })
    }

    async fn probe(&self, _: &str, _: &str, _: Duration) -> Result<(), CallError> {
        Ok(())
    }
}

fn kraken_call() -> Call {
    call(&request("kraken", "POST", "https://h/0/private/CancelAll", None), KRAKEN, None).unwrap()
}

fn at(time: u64) -> Signer {
    Signer { clock: Arc::new(move || time), ..Signer::default() }
}

#[tokio::test]
async fn numbers_grow_whatever_is_sent_at_once() {
    let venue = Arc::new(Counting::default());
    let signed = Arc::new(Signed::new(venue.clone(), at(1_000)));
    let all = (0..50).map(|_| {
        let signed = Arc::clone(&signed);
        tokio::spawn(async move { signed.send(kraken_call()).await })
    });
    for answer in futures::future::join_all(all).await {
        assert_eq!(answer.unwrap().unwrap().status, 200);
    }
    let expected: Vec<u64> = (1_000..1_050).collect();
    assert_eq!(*venue.asked.lock().unwrap(), expected, "each once, in order");
}

#[tokio::test]
async fn a_restart_and_a_second_operator_go_on_above_what_was_seen() {
    let venue = Arc::new(Counting::default());
    // The clocks of the three differ: the second is 3 s behind, the third a minute.
    for (clock, first_try) in [(1_000_000, true), (997_000, false), (940_500, false), (1_100_000, true)] {
        let before = venue.asked.lock().unwrap().len();
        let reply = Signed::new(venue.clone(), at(clock)).send(kraken_call()).await.unwrap();
        assert_eq!(reply.status, 200, "{clock}");
        assert_eq!(venue.asked.lock().unwrap().len() - before == 1, first_try, "{clock}");
    }
    // A key that another program uses.
    *venue.seen.lock().unwrap() = u64::MAX;
    let error = Signed::new(venue.clone(), at(2_000_000)).send(kraken_call()).await.unwrap_err();
    assert!(
        matches!(&error, CallError::Declined(why) if why.contains("an API key that nothing else uses")),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_does_not_wait_longer_for_its_turn_than_it_may_take() {
    struct Silent;
    #[async_trait]
    impl Transport for Silent {
        async fn send(&self, call: Call) -> Result<Reply, CallError> {
            tokio::time::sleep(call.timeout * 2).await;
            Err(CallError::UnknownOutcome("nothing".into()))
        }
        async fn probe(&self, _: &str, _: &str, _: Duration) -> Result<(), CallError> {
            Ok(())
        }
    }
    let signed = Signed::new(Arc::new(Silent), Signer::default());
    let (first, second) = tokio::join!(signed.send(kraken_call()), signed.send(kraken_call()));
    assert!(matches!(first, Err(CallError::UnknownOutcome(_))));
    assert!(matches!(&second, Err(CallError::NotSent(why)) if why.contains("came first")), "{second:?}");
}

proptest! {
    /// What is signed is what is sent, whatever an item holds.
    #[test]
    fn binance_signs_what_is_sent(id in ".{1,30}", symbol in ".{1,30}") {
        let item = Item { id, symbol, quantity: "1".into(), ..Item::default() };
        let request = request("binance", "DELETE", "https://h/api/v3/order?symbol={symbol}&orderId={id}", None);
        if let Ok(call) = call(&request, BINANCE, Some(&item)) {
            let signed = signed(&call, 7);
            // As the transport takes the URL apart.
            let url = Url::parse(&signed.url).unwrap();
            let sent = &url[url::Position::BeforeQuery..url::Position::AfterQuery];
            prop_assert_eq!(url.as_str(), &signed.url);
            let (query, signature) = sent.rsplit_once("&signature=").unwrap();
            prop_assert_eq!(call.signing.unwrap().sha256(query), signature);
            let pairs: Vec<_> = url.query_pairs().map(|(_, v)| v.into_owned()).collect();
            prop_assert_eq!(&pairs[..4], &[item.symbol, item.id, "5000".into(), "7".into()]);
        }
    }

    /// A form says what the body said.
    #[test]
    fn kraken_signs_what_is_sent(txid in ".{1,30}") {
        let item = Item { id: txid.clone(), ..Item::default() };
        let body = json!({"txid": "{id}", "n": 1, "flag": true});
        let request = request("kraken", "POST", "https://h/0/private/CancelOrder", Some(body));
        if let Ok(call) = call(&request, KRAKEN, Some(&item)) {
            let signed = signed(&call, 7);
            let sent = signed.body.unwrap();
            let pairs: Vec<(String, String)> = url::form_urlencoded::parse(&sent).into_owned().collect();
            let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
            prop_assert_eq!(pairs, vec![pair("nonce", "7"), pair("flag", "true"), pair("n", "1"), pair("txid", &txid)]);
        }
    }
}
