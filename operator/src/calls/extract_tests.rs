use kube::CustomResourceExt;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;
use standfast_crds::v1alpha1::TradingHalt;

use super::*;

fn orders_read(extra: Value) -> OrdersRead {
    let mut read = json!({"http": {"url": "https://venue.example/orders"}});
    for (name, value) in extra.as_object().unwrap() {
        read[name] = value.clone();
    }
    serde_json::from_value(read).unwrap()
}

fn orders(extra: Value, answer: Value) -> Result<Page<Order>, String> {
    let reader = order_reader(&orders_read(extra)).map_err(|e| e.to_string())?;
    reader.page(&Document::of(answer)).map_err(|e| e.to_string())
}

fn items(extra: Value, answer: Value) -> Vec<Order> {
    match orders(extra, answer).unwrap() {
        Page::Items { items, .. } => items,
        Page::Count(_) => panic!("counted"),
    }
}

fn positions(extra: Value, answer: Value) -> Result<Page<PositionSummary>, String> {
    let read: PositionsRead = serde_json::from_value(extra).unwrap();
    let reader = position_reader(&read).map_err(|e| e.to_string())?;
    reader.page(&Document::of(answer)).map_err(|e| e.to_string())
}

#[test]
fn an_order_has_the_documented_fields() {
    let found = items(
        json!({}),
        json!([{"id": "a1", "client_order_id": "c1", "symbol": "AAPL", "type": "limit", "side": "buy", "qty": "0.10"}, {}]),
    );
    let text = |text: &str| Some(text.to_owned());
    let first = OrderSummary {
        id: text("a1"),
        client_order_id: text("c1"),
        symbol: text("AAPL"),
        type_: text("limit"),
        side: text("buy"),
        quantity: text("0.10"),
    };
    let nothing =
        OrderSummary { id: None, client_order_id: None, symbol: None, type_: None, side: None, quantity: None };
    assert_eq!(found.iter().map(|order| &order.summary).collect::<Vec<_>>(), [&first, &nothing]);
    assert!(found.iter().all(|order| !order.protective));
}

#[test]
fn fields_may_be_elsewhere() {
    let fields = json!({"id": "$[0]", "symbol": "$[1].name", "quantity": "$[2]", "type": "$[3]"});
    let document = Document::parse(br#"[[123456789012345678901, {"name": "BTC"}, 0.00000010, null]]"#).unwrap();
    let reader = order_reader(&orders_read(json!({"fields": fields}))).unwrap();
    let Page::Items { items, .. } = reader.page(&document).unwrap() else { panic!() };
    let summary = &items[0].summary;
    assert_eq!(summary.id.as_deref(), Some("123456789012345678901"));
    assert_eq!(summary.symbol.as_deref(), Some("BTC"));
    assert_eq!(summary.quantity.as_deref(), Some("0.00000010"));
    assert_eq!(summary.type_, None);
}

#[test]
fn protective_orders_match_every_field_named() {
    let found = items(
        json!({"protective": {"type": ["stop", "stop_limit"], "side": ["sell"]}}),
        json!([
            {"type": "stop", "side": "sell"},
            {"type": "stop_limit", "side": "sell"},
            {"type": "stop", "side": "buy"},
            {"type": "limit", "side": "sell"},
            {"type": "stop"},
            {"type": "STOP", "side": "sell"},
        ]),
    );
    let protective: Vec<bool> = found.iter().map(|order| order.protective).collect();
    assert_eq!(protective, [true, true, false, false, false, false]);
}

#[rstest]
#[case(json!({"n": 0}), Ok(0))]
#[case(json!({"n": 17}), Ok(17))]
#[case(json!({"n": "17"}), Ok(17))]
#[case(json!({"n": 2.0}), Ok(2))]
#[case(json!({"n": -1}), Err("not a count"))]
#[case(json!({"n": 0.5}), Err("not a count"))]
#[case(json!({"n": "none"}), Err("not a count"))]
#[case(json!({"n": ""}), Err("not a count"))]
#[case(json!({"n": false}), Err("not a count"))]
#[case(json!({"n": "99999999999999999999999999"}), Err("not a count"))]
#[case(json!({"n": null}), Err("no count"))]
#[case(json!({"n": []}), Err("an object or a list"))]
#[case(json!({}), Err("no count"))]
#[case(json!([]), Err("no count"))]
fn counts(#[case] answer: Value, #[case] expected: Result<usize, &str>) {
    match (orders(json!({"count": "$.n"}), answer), expected) {
        (Ok(Page::Count(count)), Ok(wanted)) => assert_eq!(count, wanted),
        (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
        (got, _) => panic!("{got:?} is not {expected:?}"),
    }
}

#[rstest]
#[case(2, json!({"pageSize": 3}), true)]
#[case(3, json!({"pageSize": 3}), false)]
#[case(4, json!({"pageSize": 3}), false)]
#[case(0, json!({"pageSize": 3}), true)]
#[case(3, json!({}), true)]
fn a_full_page_is_not_a_count(#[case] size: usize, #[case] read: Value, #[case] fine: bool) {
    match orders(read, json!(vec![json!({"id": 1}); size])) {
        Ok(Page::Items { items, next: None }) => assert!(fine && items.len() == size),
        Err(error) => assert!(!fine && error.contains("full page"), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[rstest]
#[case(json!({"o": [{}], "next": "/page2"}), Some("/page2"))]
#[case(json!({"o": [{}], "next": 7}), Some("7"))]
#[case(json!({"o": [{}], "next": ""}), None)]
#[case(json!({"o": [{}], "next": null}), None)]
#[case(json!({"o": [{}]}), None)]
fn next_pages(#[case] answer: Value, #[case] expected: Option<&str>) {
    let page = orders(json!({"items": "$.o[*]", "next": "$.next", "pageSize": 1}), answer).unwrap();
    let Page::Items { next, .. } = page else { panic!() };
    assert_eq!(next.as_deref(), expected);
}

#[rstest]
#[case(None, "/orders?page=2", Ok("https://venue.example/orders?page=2"))]
#[case(None, "?page=2", Ok("https://venue.example/v2/orders?page=2"))]
#[case(None, "https://venue.example:443/x", Ok("https://venue.example/x"))]
#[case(None, "https://VENUE.example/x", Ok("https://venue.example/x"))]
#[case(None, "http://venue.example/x", Err("another host"))]
#[case(None, "https://venue.example:8443/x", Err("another host"))]
#[case(None, "https://evil.example/x", Err("another host"))]
#[case(None, "//evil.example/x", Err("another host"))]
#[case(None, "\\\\evil.example/x", Err("another host"))]
#[case(None, "https://u:p@venue.example/x", Err("another host"))]
#[case(None, "https://venue.example.evil/x", Err("another host"))]
#[case(None, "file:///etc/passwd", Err("another host"))]
#[case(None, "http://[", Err("is wrong"))]
#[case(Some("cursor"), "a&b=c#d", Ok("https://venue.example/v2/orders?a=b+c&cursor=a%26b%3Dc%23d"))]
#[case(Some("a"), "https://evil.example/", Ok("https://venue.example/v2/orders?a=https%3A%2F%2Fevil.example%2F"))]
fn next_addresses(#[case] parameter: Option<&str>, #[case] next: &str, #[case] expected: Result<&str, &str>) {
    let mut read = orders_read(json!({"next": "$.n"}));
    read.next_parameter = parameter.map(str::to_owned);
    let current = "https://venue.example/v2/orders?a=b%20c".parse().unwrap();
    match (order_reader(&read).unwrap().next_url(&current, next), expected) {
        (Ok(url), Ok(wanted)) => assert_eq!(url.as_str(), wanted),
        (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
        (got, _) => panic!("{got:?} is not {expected:?}"),
    }
}

#[test]
fn positions_of_zero_are_none() {
    let answer = json!([
        {"symbol": "A", "qty": "0"},
        {"symbol": "B", "qty": 0},
        {"symbol": "C", "qty": "-0.000"},
        {"symbol": "D", "qty": "0E-8"},
        {"symbol": "E", "qty": "-0.00000001", "market_value": "-12.5"},
        {"symbol": "F", "qty": 3},
        {"symbol": "G"},
        {"symbol": "H", "qty": "unknown"},
        {"symbol": "I", "qty": ""},
    ]);
    let Page::Items { items, .. } = positions(json!({}), answer).unwrap() else { panic!() };
    let symbols: Vec<&str> = items.iter().filter_map(|position| position.symbol.as_deref()).collect();
    assert_eq!(symbols, ["E", "F", "G", "H", "I"]);
    assert_eq!(items[0].market_value.as_deref(), Some("-12.5"));
}

#[rstest]
#[case(json!({"items": "$.orders"}), "items: $.orders does not name the items")]
#[case(json!({"items": "orders"}), "items: ")]
#[case(json!({"count": "]"}), "count: ")]
#[case(json!({"next": "]"}), "next: ")]
#[case(json!({"fields": {"id": "id"}}), "fields.id: ")]
#[case(json!({"fields": {"type": "id"}}), "fields.type: ")]
#[case(json!({"protective": {"kind": ["stop"]}}), "use id, clientOrderId, symbol, type, side, quantity")]
fn wrong_reads_say_where(#[case] read: Value, #[case] expected: &str) {
    let error = orders(read, json!([])).unwrap_err();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn fields_must_be_scalars() {
    let error = orders(json!({}), json!([{"id": {"a": 1}}])).unwrap_err();
    assert!(error.contains("fields.id: $.id selects an object"), "{error}");
}

#[rstest]
#[case::fits("é".repeat(256), None)]
#[case::does_not("é".repeat(257), Some("fields.id: what stands at $.id is longer than 256 characters"))]
fn parts_are_short(#[case] id: String, #[case] expected: Option<&str>) {
    let found = orders(json!({}), json!([{"id": id}]));
    assert_eq!(found.err().as_deref(), expected);
    let read: OrdersRead = job_read(json!({}));
    assert_eq!(job_orders(&read, &json!({"openOrders": [{"id": id}]})).err().map(|e| e.0).as_deref(), expected);
    let found = positions(json!({}), json!([{"symbol": id}]));
    let expected = expected.map(|text| text.replace("id", "symbol"));
    assert_eq!(found.err(), expected);
}

/// What was read is written into a status: it must not be refused there.
#[test]
fn parts_are_as_long_as_a_status_takes_them() {
    let crd = serde_json::to_value(TradingHalt::crd()).unwrap();
    let venue = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["venues"]
        ["items"]["properties"];
    for (list, parts) in [("orders", 6), ("positions", 4)] {
        let fields = venue[list]["items"]["properties"].as_object().unwrap();
        // What is one of a few words, or a time, was made by us.
        let texts = fields.values().filter(|field| field["enum"].is_null() && field["format"].is_null());
        let longest: Vec<_> = texts.map(|field| field["maxLength"].as_u64()).collect();
        assert_eq!(longest, vec![Some(PART as u64); parts], "{list}");
    }
}

#[test]
fn the_next_page_has_a_short_address() {
    let error = orders(json!({"next": "$.n", "items": "$.o[*]"}), json!({"o": [], "n": "x".repeat(2049)})).unwrap_err();
    assert_eq!(error, "next: what stands at $.n is longer than 2048 characters");
}

fn job_read<T: serde::de::DeserializeOwned>(extra: Value) -> T {
    let mut read = json!({"job": {"image": "x"}});
    for (name, value) in extra.as_object().unwrap() {
        read[name] = value.clone();
    }
    serde_json::from_value(read).unwrap()
}

#[test]
fn jobs_report_numbers_or_lists() {
    let found = job_orders(&job_read(json!({})), &json!({"openOrders": 3, "positions": []})).unwrap();
    assert_eq!((found.count, found.listed), (3, false));
    let found = job_orders(&job_read(json!({})), &json!({"openOrders": [{"id": 1}]})).unwrap();
    assert_eq!((found.count, found.listed, found.orders[0].summary.id.as_deref()), (1, true, Some("1")));
    let found = job_orders(&job_read(json!({"count": "$.n"})), &json!({"openOrders": 3, "n": 0})).unwrap();
    assert_eq!((found.count, found.listed), (0, false));
    let found = job_positions(&job_read(json!({})), &json!({"positions": [{"symbol": "A", "qty": 0.5}]})).unwrap();
    assert_eq!((found.count, found.listed, found.positions[0].quantity.as_deref()), (1, true, Some("0.5")));
    let found = job_positions(&job_read(json!({})), &json!({"positions": 2})).unwrap();
    assert_eq!((found.count, found.listed), (2, false));
    for wrong in [json!({}), json!(null), json!({"openOrders": "many"}), json!({"openOrders": -1}), json!([])] {
        job_orders(&job_read(json!({})), &wrong).unwrap_err();
        job_positions(&job_read(json!({})), &wrong).unwrap_err();
    }
}

proptest! {
    #[test]
    fn never_panics_and_never_finds_nothing_where_there_is_no_list(text in r#"[\[\]{}":,a-c0-9.\-e ]{0,60}"#) {
        if let Ok(document) = Document::parse(text.as_bytes()) {
            for read in [json!({}), json!({"count": "$.a"}), json!({"items": "$.a[*]", "next": "$.b"})] {
                let page = order_reader(&orders_read(read)).unwrap().page(&document);
                if !text.contains('[') {
                    let counted = matches!(page, Ok(Page::Count(_)) | Err(_));
                    prop_assert!(counted);
                }
            }
        }
    }
}

/// What is known of a position: which way it goes, what it loses, when it was opened. What is not told is not known.
#[rstest]
#[case::alpaca(json!({"qty": "-5", "side": "short", "unrealized_plpc": "-0.125"}), Some(PositionSide::Short), Some("12.5"), None)]
#[case::by_its_sign(json!({"qty": "-5", "unrealized_plpc": 0.03}), Some(PositionSide::Short), Some("-3"), None)]
#[case::one_way_account(json!({"qty": 5, "side": "BOTH"}), Some(PositionSide::Long), None, None)]
#[case::unsigned(json!({"qty": "5", "side": "Sell"}), Some(PositionSide::Short), None, None)]
#[case::another_word(json!({"qty": "5", "side": "flat"}), None, None, None)]
#[case::no_number(json!({"qty": "many", "unrealized_plpc": "n/a", "opened": "yesterday"}), None, None, None)]
#[case::milliseconds(json!({"qty": "5", "opened": 1_767_225_600_000_u64}), Some(PositionSide::Long), None, Some("2026-01-01T00:00:00Z"))]
#[case::rfc_3339(json!({"qty": "5", "opened": "2026-01-01T01:00:00+01:00"}), Some(PositionSide::Long), None, Some("2026-01-01T00:00:00Z"))]
fn a_position_tells_what_it_can(
    #[case] item: Value,
    #[case] side: Option<PositionSide>,
    #[case] loss: Option<&str>,
    #[case] opened: Option<&str>,
) {
    let fields = json!({"side": "$.side", "openedAt": "$.opened",
        "unrealizedLoss": {"path": "$.unrealized_plpc", "scale": "ProfitFraction"}});
    let read = json!({"http": {"url": "https://venue.example"}, "fields": fields});
    let Ok(Page::Items { items, .. }) = positions(read, json!([item])) else { panic!("no list") };
    let found = &items[0];
    let at = found.opened_at.as_ref().map(|at| at.0.to_string());
    assert_eq!((found.side, found.unrealized_loss_percent.as_deref(), at.as_deref()), (side, loss, opened));
}

#[rstest]
#[case(json!({"equity": "1500.50"}), Ok("1500.50"))]
#[case(json!({"equity": 1500.5}), Ok("1500.5"))]
#[case(json!({"equity": "much"}), Err("the Job's result: what stands at $.equity is not a number"))]
#[case(json!({}), Err("the Job's result: the answer has nothing at $.equity"))]
fn a_job_tells_a_number(#[case] said: Value, #[case] expected: Result<&str, &str>) {
    let read: NumberRead = serde_json::from_value(json!({"job": {"image": "bot"}})).unwrap();
    let found = job_number(&read, &said).map_err(|e| e.0);
    assert_eq!(found.as_deref().map_err(String::as_str), expected);
}
