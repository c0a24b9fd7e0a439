use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::*;

fn one(document: &Document, path: &str) -> Result<Option<Scalar>, String> {
    document.root().one(&Path::parse(path)?)
}

#[test]
fn numbers_keep_their_text() {
    let body = br#" {"a":0.00000001,"b":[1.50,-0,1E+2,12345678901234567890.123],"c":"7","d":"say \"1\" \\","e":{"f/~g":2.0}} "#;
    let document = Document::parse(body).unwrap();
    for (path, expected) in [
        ("$.a", "0.00000001"),
        ("$.b[0]", "1.50"),
        ("$.b[1]", "-0"),
        ("$.b[2]", "1E+2"),
        ("$.b[3]", "12345678901234567890.123"),
        ("$.e['f/~g']", "2.0"),
    ] {
        assert_eq!(one(&document, path), Ok(Some(Scalar::Number(expected.into()))), "{path}");
    }
    assert_eq!(one(&document, "$.c"), Ok(Some(Scalar::Text("7".into()))));
    assert_eq!(one(&document, "$.d"), Ok(Some(Scalar::Text("say \"1\" \\".into()))));
    // In filters, numbers are numbers.
    assert_eq!(one(&document, "$.b[?@ == 1.5]"), Ok(Some(Scalar::Number("1.50".into()))));
}

#[test]
fn numbers_of_values_have_no_exponent() {
    let document = Document::of(json!({"small": 1e-8, "large": 1e20, "whole": 5}));
    assert_eq!(one(&document, "$.small"), Ok(Some(Scalar::Number("0.00000001".into()))));
    assert_eq!(one(&document, "$.large"), Ok(Some(Scalar::Number("100000000000000000000".into()))));
    assert_eq!(one(&document, "$.whole"), Ok(Some(Scalar::Number("5".into()))));
}

#[rstest]
fn what_is_not_json(#[values("", "[", "<html>", "[1,]", "[1] x", "01", "NaN", "{\"a\":1", "\"\u{1}\"")] body: &str) {
    assert!(Document::parse(body.as_bytes()).unwrap_err().contains("not JSON"));
}

#[rstest]
#[case("{},", OBJECTS - 2, true)]
#[case("{},", OBJECTS + 1, false)]
#[case("0,", VALUES + 1, false)]
#[case("[],", VALUES / 2 + 1, false)]
#[case("\"{,[\",", 300_000, true)]
fn too_many_values(#[case] item: &str, #[case] times: usize, #[case] fine: bool) {
    let body = format!("[{}{{}}]", item.repeat(times));
    match Document::parse(body.as_bytes()) {
        Ok(_) => assert!(fine),
        Err(error) => assert!(!fine && error.contains("smaller pages"), "{error}"),
    }
}

#[test]
fn errors_do_not_repeat_the_answer() {
    let error = Document::parse(b"hunter2 hunter2").unwrap_err();
    assert!(!error.contains("hunter"), "{error}");
}

#[test]
fn one_value_is_one() {
    let document = Document::of(json!({"a": [1, 2], "n": null}));
    assert_eq!(one(&document, "$.x"), Ok(None));
    assert_eq!(one(&document, "$.n"), Ok(None));
    one(&document, "$.a").unwrap_err();
    one(&document, "$.a[*]").unwrap_err();
    one(&document, "a").unwrap_err();
}

#[rstest]
#[case("$[*]", json!([{}, {}]), Ok(2))]
#[case("$[*]", json!([]), Ok(0))]
#[case("$.*", json!([{}]), Ok(1))]
#[case("$.orders[*]", json!({"orders": [{}]}), Ok(1))]
#[case("$.orders[*]", json!({"orders": []}), Ok(0))]
#[case("$['orders'][*]", json!({"orders": [{}]}), Ok(1))]
#[case("$[\"a]b\"][ * ]", json!({"a]b": [{}]}), Ok(1))]
#[case("$.result.orders[?@.status == 'open']", json!({"result": {"orders": [{"status": "open"}, {"status": "]"}]}}), Ok(1))]
#[case("$.a[*].orders[*]", json!({"a": [{"orders": [{}]}, {"orders": []}]}), Ok(1))]
#[case("$[0].orders[*]", json!([{"orders": [{}]}]), Ok(1))]
#[case("$[*]", json!([[1, "BTC"], [2, "ETH"]]), Ok(2))]
#[case("$.result.open.*", json!({"result": {"open": {"OQ-1": {}, "OQ-2": {}}}}), Ok(2))]
#[case("$.result.open.*", json!({"result": {"open": {}}}), Ok(0))]
#[case("$.result.open.*", json!({"result": {"open": [{}]}}), Ok(1))]
// Answers without the list are not empty lists.
#[case("$.*", json!({}), Err("no list at $"))]
#[case("$.result.open.*", json!({"result": {}}), Err("no list at $.result.open"))]
#[case("$.result.open.*", json!({"result": {"open": null}}), Err("no list at $.result.open"))]
#[case("$.result.open[*]", json!({"result": {"open": {}}}), Err("no list at $.result.open"))]
#[case("$[*]", json!({}), Err("no list at $"))]
#[case("$[*]", json!({"code": -1, "msg": "denied"}), Err("no list at $"))]
#[case("$[*]", json!(null), Err("no list at $"))]
#[case("$[*]", json!("orders"), Err("no list at $"))]
#[case("$.orders[*]", json!({"error": "x"}), Err("no list at $.orders"))]
#[case("$.orders[*]", json!({"orders": null}), Err("no list at $.orders"))]
#[case("$.orders[*]", json!({"orders": {}}), Err("no list at $.orders"))]
#[case("$.orders[*]", json!([]), Err("no list at $.orders"))]
#[case("$.orders[?@.open]", json!({"order": []}), Err("no list at $.orders"))]
#[case("$.a[*].orders[*]", json!({"a": [{"orders": []}, {"error": "x"}]}), Err("no list at $.a[*].orders"))]
#[case("$.a[*].orders[*]", json!({"b": []}), Err("no list at $.a"))]
#[case("$[0].orders[*]", json!([]), Err("no list at $[0].orders"))]
#[case("$[*]", json!([1]), Err("neither objects nor lists"))]
#[case("$[*]", json!([null]), Err("neither objects nor lists"))]
fn lists(#[case] path: &str, #[case] answer: Value, #[case] expected: Result<usize, &str>) {
    let document = Document::of(answer);
    match (ListPath::parse(path).unwrap().select(document.root()), expected) {
        (Ok(items), Ok(count)) => assert_eq!(items.len(), count),
        (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
        (got, expected) => panic!("{got:?} is not {expected:?}"),
    }
}

#[rstest]
fn paths_that_name_no_items(
    #[values("$", "$.orders", "$.orders[0]", "$['orders']", "$..orders[*]", "$..*", "$..[*]")] path: &str,
) {
    let error = ListPath::parse(path).unwrap_err();
    assert!(error.contains("end it with [*]"), "{error}");
}

#[rstest]
fn paths_that_are_wrong_or_cost_too_much(
    #[values(
        "",
        "orders",
        "$.",
        "$[",
        "$[?]",
        "$..a..b",
        "$[?count($[*]) > 1]",
        "$[?match(@.a, 'x+')]",
        "$[?search (@.a, 'x')]",
        "$[?@[?@[?@[?@[?@[?@[?@]]]]]]]"
    )]
    path: &str,
) {
    Path::parse(path).unwrap_err();
}

#[test]
fn brackets_do_not_take_long_to_read() {
    let started = std::time::Instant::now();
    for path in
        ["$[?((((((((((((((1==1))))))))))))))]", "$[?!(!(!(!(!(@.a)))))]", &format!("$[?{}1==1]", "(".repeat(200))]
    {
        let _ = Path::parse(path);
    }
    for path in ["$[?((((@.a || @.b) && @.c) || @.d) && @.e)]", &format!("$[?@.a{}]", " || @.a".repeat(30))] {
        Path::parse(path).unwrap();
    }
    // A moment, or for ever.
    assert!(started.elapsed() < std::time::Duration::from_secs(60), "{:?}", started.elapsed());
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::hash_map("(id|symbol|qty|orders|.{0,4})", inner, 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn text_and_value_agree(value in json_value(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();
        let document = Document::parse(&text).unwrap();
        prop_assert_eq!(document.root().value(), &value);
        for path in ["$..*", "$[*]", "$.orders[*]", "$..id"] {
            let path = Path::parse(path).unwrap();
            let plain = path.path.query(&value).all();
            let nodes = document.root().select(&path);
            prop_assert_eq!(plain.len(), nodes.len());
            for (plain, node) in plain.into_iter().zip(nodes) {
                if let (Value::Number(number), Some(Scalar::Number(text))) = (plain, node.scalar()) {
                    prop_assert_eq!(number.to_string(), text);
                }
                prop_assert_eq!(node.scalar().is_none(), plain.is_object() || plain.is_array());
            }
        }
    }

    #[test]
    fn nothing_panics(body in prop::collection::vec(any::<u8>(), 0..60), path in "[$.@*\\[\\]'\"?(){}a-c0-9<=! \\\\é|&]{0,30}") {
        let _ = Document::parse(&body);
        let _ = quote_numbers(&body);
        let _ = segments(&path).is_some();
        if let Ok(path) = ListPath::parse(&path) {
            let _ = path.select(Document::of(json!([{"a": [1]}, {"b": 2}])).root());
        }
    }
}
