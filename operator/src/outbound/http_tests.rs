use ::http::HeaderName;
use rstest::rstest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

use super::*;
use crate::outbound::{
    fakes::{
        After, Names, ONE_VENUE, PATIENCE, Server, call, get, gzipped, ok, pass, transport, transport_with, until,
    },
    guard::{Guard, GuardConfig},
};

/// Until then a call is over that is to be too late.
const SOON: Duration = Duration::from_millis(500);

#[tokio::test]
async fn sends_what_was_asked_for_and_keeps_the_connection() {
    let mut server = Server::start(ok("[]"), After::KeepOpen).await;
    let transport = transport();
    let mut call = call(http::Method::PATCH, format!("http://venue.test:{}/v2/config?a=b%20c#part", server.port));
    call.body = Some(Bytes::from_static(b"{\"x\":1}"));
    call.headers.push((HeaderName::from_static("x-key"), HeaderValue::from_static("k")));
    for _ in 0..3 {
        let reply = transport.send(call.clone()).await.unwrap();
        assert_eq!((reply.status, &reply.body[..]), (200, &b"[]"[..]));
    }
    assert_eq!(server.connections(), 1);
    let requests = server.requests().concat();
    assert_eq!(requests.matches("PATCH /v2/config?a=b%20c HTTP/1.1\r\n").count(), 3);
    for part in [
        format!("host: venue.test:{}\r\n", server.port),
        "x-key: k\r\n".into(),
        "content-type: application/json\r\n".into(),
        "content-length: 7\r\n".into(),
        "accept-encoding: gzip\r\n".into(),
        format!("user-agent: {AGENT}\r\n"),
    ] {
        assert_eq!(requests.matches(&part).count(), 3, "{part} in {requests}");
    }
}

#[tokio::test]
async fn a_post_without_body_says_so() {
    let mut server = Server::start(ok(""), After::KeepOpen).await;
    let url = format!("http://venue.test:{}/halt", server.port);
    transport().send(call(http::Method::POST, url)).await.unwrap();
    let request = server.requests().concat();
    assert!(request.contains("content-length: 0\r\n"), "{request}");
    assert!(!request.contains("content-type"), "{request}");
}

#[tokio::test]
async fn a_probe_sends_nothing_and_leaves_a_warm_connection() {
    let mut server = Server::start(ok("[]"), After::KeepOpen).await;
    let transport = transport();
    let url = format!("http://venue.test:{}/", server.port);
    transport.probe("trading", &url, PATIENCE).await.unwrap();
    transport.warm("trading", &url, PATIENCE).await.unwrap();
    assert_eq!(server.requests(), Vec::<String>::new());
    transport.send(get(url)).await.unwrap();
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn namespaces_share_no_connection() {
    let server = Server::start(ok("[]"), After::KeepOpen).await;
    let transport = transport();
    for namespace in ["trading", "other"] {
        let mut call = get(format!("http://venue.test:{}/", server.port));
        call.namespace = namespace.into();
        transport.send(call).await.unwrap();
    }
    assert_eq!(server.connections(), 2);
}

/// A connection that only waits does not hide for long that its name leads elsewhere now.
#[tokio::test]
async fn warmth_grows_old() {
    let server = Server::start(ok("[]"), After::KeepOpen).await;
    let names = Names::of(&[("venue.test", &[&["127.0.0.1"], &["169.254.169.254"]])]);
    let transport = transport_with(names, &["127.0.0.0/8"]);
    let url = format!("http://venue.test:{}/", server.port);
    transport.warm("trading", &url, PATIENCE).await.unwrap();
    pass((IDLE - WARM) / 2).await;
    transport.warm("trading", &url, PATIENCE).await.unwrap();
    pass(IDLE - WARM).await;
    let error = transport.warm("trading", &url, PATIENCE).await.unwrap_err();
    assert!(matches!(error, CallError::Refused(_)), "{error}");
}

#[tokio::test]
async fn a_connection_that_the_peer_closed_is_replaced() {
    let mut server = Server::start(ok("[]"), After::Close).await;
    let transport = transport();
    for _ in 0..5 {
        transport.send(call(http::Method::POST, format!("http://venue.test:{}/", server.port))).await.unwrap();
    }
    assert_eq!(server.requests().len(), 5);
}

/// The peer takes the request and closes: it may have been carried out, so it is not sent again.
#[tokio::test]
async fn a_request_that_was_sent_is_never_repeated() {
    let mut server = Server::start("", After::Close).await;
    let transport = transport();
    let url = format!("http://venue.test:{}/", server.port);
    transport.probe("trading", &url, PATIENCE).await.unwrap();
    for method in [http::Method::GET, http::Method::POST, http::Method::DELETE] {
        let error = transport.send(call(method, url.clone())).await.unwrap_err();
        assert!(matches!(error, CallError::UnknownOutcome(_)), "{error}");
    }
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let answer = "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/latest/meta-data\r\ncontent-length: 0\r\n\r\n";
    let mut server = Server::start(answer, After::KeepOpen).await;
    let reply = transport().send(get(format!("http://venue.test:{}/", server.port))).await.unwrap();
    assert_eq!(reply.status, 302);
    assert_eq!(server.requests().len(), 1);
}

#[rstest]
#[case::metadata(&["169.254.169.254"])]
#[case::loopback_v6(&["::1"])]
#[case::mapped(&["::ffff:169.254.169.254"])]
#[case::several(&["169.254.169.254", "::1", "fe80::1"])]
#[tokio::test]
async fn names_that_lead_to_refused_addresses(#[case] ips: &[&str]) {
    let transport = transport_with(Names::of(&[("evil.test", &[ips])]), &["127.0.0.0/8"]);
    let error = transport.send(get("http://evil.test/".into())).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused(why) if why.starts_with("evil.test leads to")), "{error}");
    let error = transport.probe("trading", "http://evil.test/", PATIENCE).await.unwrap_err();
    assert!(matches!(error, CallError::Refused(_)), "{error}");
}

/// A Service of the type ExternalName stands for any name: of its namespace is only its own name.
#[rstest]
#[case::other_namespace("victim.other.svc.cluster.local")]
#[case::outside("venue.example")]
#[case::like_it("bot.trading.svc.cluster.local.venue.example")]
#[tokio::test]
async fn services_that_are_aliases(#[case] alias: &'static str) {
    let server = Server::start(ok("[]"), After::KeepOpen).await;
    let names = Names::of(&[
        ("bot.trading.svc.cluster.local", &[&[alias, "127.0.0.1"]]),
        ("plain.trading.svc.cluster.local", &[&["127.0.0.1"]]),
        ("venue.test", &[&[alias, "127.0.0.1"]]),
    ]);
    let transport = transport_with(names, &["127.0.0.0/8"]);
    let url = |host: &str| format!("http://{host}:{}/", server.port);
    let expected = format!(
        "bot.trading.svc is only another name for {alias:?}: Services of the type ExternalName are not followed; put \
         the name that is meant into the url"
    );
    let error = transport.send(get(url("bot.trading.svc"))).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused(why) if *why == expected), "{error}");
    assert_eq!(server.connections(), 0);
    transport.send(get(url("plain.trading.svc"))).await.unwrap();
    // Names outside of the cluster often are aliases; where they lead is checked as it is for all.
    transport.send(get(url("venue.test"))).await.unwrap();
}

#[tokio::test]
async fn loopback_is_refused_unless_opened() {
    let mut server = Server::start(ok("[]"), After::KeepOpen).await;
    let transport = transport_with(Names::of(ONE_VENUE), &[]);
    for url in [format!("http://venue.test:{}/", server.port), format!("http://127.0.0.1:{}/", server.port)] {
        let error = transport.send(get(url)).await.unwrap_err();
        assert!(matches!(error, CallError::Refused(_)), "{error}");
    }
    assert_eq!((server.requests().len(), server.connections()), (0, 0));
}

/// The refused address among allowed ones is left out, not tried.
#[tokio::test]
async fn only_allowed_addresses_are_tried() {
    let server = Server::start(ok("[]"), After::KeepOpen).await;
    let names = Names::of(&[("venue.test", &[&["169.254.169.254", "127.0.0.1"]])]);
    let transport = transport_with(names, &["127.0.0.0/8"]);
    transport.send(get(format!("http://venue.test:{}/", server.port))).await.unwrap();
}

/// What the probe resolved does not count for the call: the address of its own connection is checked.
#[tokio::test]
async fn rebinding_between_probe_and_call() {
    let server = Server::start(ok("[]"), After::Close).await;
    let names = Names::of(&[("venue.test", &[&["127.0.0.1"], &["127.0.0.1"], &["169.254.169.254"]])]);
    let transport = transport_with(names, &["127.0.0.0/8"]);
    let url = format!("http://venue.test:{}/", server.port);
    transport.probe("trading", &url, PATIENCE).await.unwrap();
    transport.send(get(url.clone())).await.unwrap();
    transport.send(get(url.clone())).await.unwrap();
    let error = transport.send(get(url)).await.unwrap_err();
    assert!(matches!(error, CallError::Refused(_)), "{error}");
}

#[rstest]
#[tokio::test]
async fn headers_that_are_refused(
    #[values(
        "host",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "proxy-authorization",
        "proxy-connection",
        "content-length",
        "expect",
        "accept-encoding"
    )]
    name: &'static str,
) {
    let mut server = Server::start(ok("[]"), After::KeepOpen).await;
    let mut call = get(format!("http://venue.test:{}/", server.port));
    call.headers.push((HeaderName::from_static(name), HeaderValue::from_static("x")));
    let error = transport().send(call).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused(why) if why.contains(name)), "{error}");
    assert_eq!(server.requests(), Vec::<String>::new());
}

/// Values with line breaks cannot even be made.
#[test]
fn header_values_hold_no_line_break() {
    for value in ["a\r\nhost: evil", "a\nb", "a\rb", "a\0b"] {
        HeaderValue::from_str(value).unwrap_err();
    }
}

#[rstest]
#[case::redirect_like("GET / HTTP/1.1\r\n\r\n")]
#[case::garbage("\u{0}\u{1}garbage\r\n\r\n")]
#[case::truncated("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n[]")]
#[case::truncated_chunk("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10\r\n[]")]
#[case::no_last_chunk("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n[]\r\n")]
#[case::two_lengths("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n[]")]
#[case::half_a_head("HTTP/1.1 200 OK\r\nx: ")]
#[case::wrong_encoding("HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 2\r\n\r\n[]")]
#[case::twice_encoded("HTTP/1.1 200 OK\r\ncontent-encoding: gzip, gzip\r\ncontent-length: 2\r\n\r\n[]")]
#[case::broken_gzip("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n[]")]
#[tokio::test]
async fn broken_answers_are_unknown_outcomes(#[case] answer: &str) {
    let server = Server::start(answer, After::Close).await;
    let error = transport().send(get(format!("http://venue.test:{}/", server.port))).await.unwrap_err();
    assert!(matches!(error, CallError::UnknownOutcome(_)), "{error}");
    assert!(error.to_string().contains("venue.test"), "{error}");
}

#[tokio::test]
async fn gzip_is_read() {
    let server = Server::start(gzipped(b"[{\"id\":1}]"), After::KeepOpen).await;
    let reply = transport().send(get(format!("http://venue.test:{}/", server.port))).await.unwrap();
    assert_eq!(&reply.body[..], b"[{\"id\":1}]");
}

#[rstest]
#[case::just_fits(BODY_LIMIT, true)]
#[case::one_too_many(BODY_LIMIT + 1, false)]
#[case::bomb(64 << 20, false)]
#[tokio::test]
async fn the_limit_holds_after_decompression(#[case] size: usize, #[case] fits: bool) {
    let server = Server::start(gzipped(&vec![b' '; size]), After::KeepOpen).await;
    match transport().send(get(format!("http://venue.test:{}/", server.port))).await {
        Ok(reply) => assert!(fits && reply.body.len() == size),
        Err(error) => assert!(!fits && error.to_string().contains("longer than 4 MiB"), "{error}"),
    }
}

#[tokio::test]
async fn a_huge_body_is_not_read() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n";
    let server = Server::start(head, After::Forever(&[b'x'; 1 << 16], Duration::ZERO)).await;
    let error = transport().send(get(format!("http://venue.test:{}/", server.port))).await.unwrap_err();
    assert!(matches!(&error, CallError::UnknownOutcome(why) if why.contains("longer than 4 MiB")), "{error}");
}

#[rstest]
#[case::silence("", After::KeepOpen)]
#[case::slow_head("HTTP/1.1 200 OK\r\n", After::Forever(b"x: y\r\n", Duration::from_millis(20)))]
#[case::slow_body("HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n", After::Forever(b"x", Duration::from_millis(20)))]
#[case::endless_chunks(
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    After::Forever(b"1\r\nx\r\n", Duration::from_millis(1))
)]
#[case::endless_continue("", After::Forever(b"HTTP/1.1 100 Continue\r\n\r\n", Duration::from_millis(1)))]
#[tokio::test]
async fn the_deadline_holds(#[case] answer: &str, #[case] after: After) {
    let server = Server::start(answer, after).await;
    let transport = transport();
    let mut call = get(format!("http://venue.test:{}/", server.port));
    call.timeout = SOON;
    // Connected before, so that it is the answer that is late.
    transport.probe("trading", &call.url, PATIENCE).await.unwrap();
    let error = timeout(PATIENCE, transport.send(call)).await.expect("it ends").unwrap_err();
    assert!(matches!(error, CallError::UnknownOutcome(_)), "{error}");
    assert!(error.to_string().contains("within 500ms"), "{error}");
}

#[tokio::test]
async fn an_endless_head_is_cut_off() {
    let server =
        Server::start("HTTP/1.1 200 OK\r\n", After::Forever(b"x: yyyyyyyyyyyyyyyyyyyyyy\r\n", Duration::ZERO)).await;
    let error = transport().send(get(format!("http://venue.test:{}/", server.port))).await.unwrap_err();
    assert!(error.to_string().contains("message head is too large"), "{error}");
}

#[tokio::test]
async fn what_was_certainly_not_sent() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let plain = Server::start(ok("[]"), After::KeepOpen).await;
    for (url, expected) in [
        (format!("http://venue.test:{closed}/"), "no connection to venue.test port"),
        ("http://unknown.test/".into(), "did not resolve"),
        (format!("https://venue.test:{silent_port}/"), "within 500ms"),
        (format!("https://venue.test:{}/", plain.port), "TLS with venue.test"),
    ] {
        let mut call = call(http::Method::POST, url.clone());
        if expected.starts_with("within") {
            call.timeout = SOON;
        }
        let limit = call.timeout;
        let error = transport().send(call).await.unwrap_err();
        assert!(matches!(&error, CallError::NotSent(why) if why.contains(expected)), "{url}: {error}");
        let error = transport().probe("trading", &url, limit).await.unwrap_err();
        assert!(matches!(&error, CallError::NotSent(why) if why.contains(expected)), "{url}: {error}");
    }
}

#[tokio::test]
async fn at_most_so_many_calls_at_once() {
    let mut server = Server::start("", After::KeepOpen).await;
    let transport = Arc::new(transport());
    let url = format!("http://venue.test:{}/", server.port);
    let places = transport.per_namespace;
    let unanswered = hang(&transport, &url, places);
    for _ in 0..places {
        server.request().await;
    }
    // Those that wait for a place give up before one is free.
    let others = (0..16).map(|_| {
        let mut call = get(url.clone());
        call.timeout = Duration::from_millis(50);
        transport.send(call)
    });
    for answer in futures::future::join_all(others).await {
        let error = answer.unwrap_err();
        assert!(matches!(&error, CallError::NotSent(why) if why.contains("too many calls at once")), "{error}");
    }
    assert_eq!((places, server.requests()), (4, vec![]));
    drop(unanswered);
}

/// Calls that are under way until they are dropped.
fn hang(transport: &Arc<HttpTransport>, url: &str, calls: usize) -> JoinSet<Result<Reply, CallError>> {
    let one = |_| {
        let (transport, mut call) = (Arc::clone(transport), get(url.to_owned()));
        call.timeout = Duration::from_secs(3600);
        async move { transport.send(call).await }
    };
    (0..calls).map(one).collect()
}

/// Long answers wait for each other, short ones do not wait for them.
#[tokio::test]
async fn few_long_answers_at_once() {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n{}", "x".repeat(LONG + 1));
    let (long, short) = (Server::start(head, After::KeepOpen).await, Server::start(ok("[]"), After::KeepOpen).await);
    let transport = Arc::new(transport());
    let tenant = transport.tenant("trading");
    let unfinished = hang(&transport, &format!("http://venue.test:{}/", long.port), LONG_ANSWERS.1 + 1);
    until("all places are taken", || tenant.long.available_permits() == 0).await;
    assert_eq!(transport.long.available_permits(), LONG_ANSWERS.0 - LONG_ANSWERS.1);
    transport.send(get(format!("http://venue.test:{}/", short.port))).await.unwrap();
    assert_eq!(tenant.long.available_permits(), 0);
    drop(unfinished);
    until("all places are free", || transport.long.available_permits() == LONG_ANSWERS.0).await;
}

/// However short it was on the way, and for as long as any of it is there.
#[rstest]
#[case::long(ok(&" ".repeat(LONG + 1)).into_bytes(), 1)]
#[case::short(ok(&" ".repeat(LONG)).into_bytes(), 0)]
#[case::long_when_decompressed(gzipped(&[b' '; LONG + 1]), 1)]
#[case::short_when_decompressed(gzipped(&[b' '; LONG]), 0)]
#[tokio::test]
async fn a_long_answer_keeps_its_place(#[case] answer: Vec<u8>, #[case] places: usize) {
    let server = Server::start(answer, After::KeepOpen).await;
    let transport = transport();
    let tenant = transport.tenant("trading");
    let free = || (transport.long.available_permits(), tenant.long.available_permits());
    let reply = transport.send(get(format!("http://venue.test:{}/", server.port))).await.unwrap();
    let part = reply.body.slice(7..8);
    drop(reply);
    assert_eq!(free(), (LONG_ANSWERS.0 - places, LONG_ANSWERS.1 - places));
    drop(part);
    assert_eq!(free(), LONG_ANSWERS);
}

/// An answer that turns out to be long waits for its place before it is whole.
#[tokio::test]
async fn a_long_answer_waits_for_a_place() {
    let server = Server::start(gzipped(&vec![b' '; BODY_LIMIT]), After::KeepOpen).await;
    let transport = transport();
    let url = format!("http://venue.test:{}/", server.port);
    let mut held = Vec::new();
    for _ in 0..LONG_ANSWERS.1 {
        held.push(transport.send(get(url.clone())).await.unwrap());
    }
    let mut call = get(url);
    call.timeout = SOON;
    let error = transport.send(call.clone()).await.unwrap_err();
    assert!(error.to_string().contains("the answer was not whole within 500ms"), "{error}");
    held.pop();
    call.timeout = PATIENCE;
    transport.send(call).await.unwrap();
}

#[tokio::test]
async fn certificates_are_checked() {
    let made = rcgen::generate_simple_self_signed(["venue.test".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut buffer = [0; 4096];
                while let Ok(1..) = stream.read(&mut buffer).await {
                    stream.write_all(ok("[]").as_bytes()).await.unwrap();
                    stream.flush().await.unwrap();
                }
            });
        }
    });
    let names = || Names::of(&[("venue.test", &[&["127.0.0.1"]]), ("other.test", &[&["127.0.0.1"]])]);
    let guard = || {
        let allow_cidrs = vec!["127.0.0.0/8".parse().unwrap()];
        Arc::new(Guard::new(GuardConfig { allow_cidrs, ..GuardConfig::default() }))
    };
    let trusting = Connector::new(guard(), names(), vec![made.cert.der().clone()]).unwrap();
    let trusting = HttpTransport::new(trusting, 8);
    let reply = trusting.send(get(format!("https://venue.test:{port}/"))).await.unwrap();
    assert_eq!(&reply.body[..], b"[]");
    let wrong_name = trusting.send(get(format!("https://other.test:{port}/"))).await.unwrap_err();
    assert!(matches!(wrong_name, CallError::NotSent(_)), "{wrong_name}");
    let strict = HttpTransport::new(Connector::new(guard(), names(), Vec::new()).unwrap(), 8);
    let unknown_issuer = strict.send(get(format!("https://venue.test:{port}/"))).await.unwrap_err();
    assert!(matches!(&unknown_issuer, CallError::NotSent(why) if why.contains("certificate")), "{unknown_issuer}");
}

#[tokio::test]
async fn secrets_do_not_print() {
    let mut call = get("http://venue.test/".into());
    let mut value = HeaderValue::from_static("hunter2");
    value.set_sensitive(true);
    call.headers.push((HeaderName::from_static("authorization"), value));
    assert!(!format!("{call:?}").contains("hunter2"));
}
