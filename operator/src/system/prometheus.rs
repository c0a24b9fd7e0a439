//! Checks by an instant query to a server that speaks the HTTP API of Prometheus.
//! <https://prometheus.io/docs/prometheus/latest/querying/api/>

use jiff::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use standfast_crds::v1alpha1::{CheckState, HttpMethod, HttpRequest, PrometheusCheck};

use super::checks::{compare, wanted};
use crate::{
    calls::document::{Document, Scalar},
    outbound::Reply,
};

/// Kinds of error that the API names.
const KINDS: [&str; 8] =
    ["timeout", "canceled", "execution", "bad_data", "internal", "unavailable", "not_found", "not_acceptable"];

/// The request that asks the query.
pub(super) fn request(check: &PrometheusCheck) -> HttpRequest {
    let query = utf8_percent_encode(&check.query, NON_ALPHANUMERIC);
    HttpRequest {
        method: HttpMethod::Get,
        url: format!("{}/api/v1/query?query={query}", check.url.trim_end_matches('/')),
        headers: check.headers.clone(),
        auth: check.auth.clone(),
        body: None,
        timeout: check.timeout,
    }
}

/// What an answer says. Only values of it are repeated.
pub(super) fn judge(check: &PrometheusCheck, what: &str, reply: &Reply, now: Timestamp) -> (CheckState, String) {
    let unknown = |why: &str| (CheckState::Unknown, format!("{what} answered {}: {why}", reply.status));
    let Ok(document) = Document::parse(&reply.body) else {
        return match reply.status {
            200..=299 => unknown("it is not JSON: check that url is that of a Prometheus server"),
            401 | 403 => unknown("check auth"),
            _ => unknown("wanted 200"),
        };
    };
    let answer = document.root().value();
    match answer.get("status").and_then(Value::as_str) {
        Some("success") if (200..300).contains(&reply.status) => {}
        Some("error") => {
            let kind = answer.get("errorType").and_then(Value::as_str).unwrap_or_default();
            let kind = KINDS.into_iter().find(|known| *known == kind).unwrap_or("error");
            return unknown(&format!("the query failed ({kind}): try it at the server"));
        }
        _ => return unknown("it is no answer of the Prometheus API: check the url"),
    }
    // The answer may lack what another server did not tell.
    let warnings = answer.get("warnings").and_then(Value::as_array).map_or(0, Vec::len);
    if warnings > 0 {
        return unknown(&format!("with {warnings} warnings, so it may not be whole: try the query at the server"));
    }
    let result = answer.pointer("/data/result");
    let kind = answer.pointer("/data/resultType").and_then(Value::as_str);
    let values: Option<Vec<&str>> = match (kind, result) {
        (Some("vector"), Some(Value::Array(series))) => series.iter().map(|one| sample(one.get("value")?)).collect(),
        (Some("scalar" | "string"), Some(one)) => sample(one).map(|value| vec![value]),
        (Some("matrix"), _) => {
            return unknown("the query gives a range: ask for one moment, for example with last_over_time");
        }
        _ => None,
    };
    let Some(values) = values else { return unknown("it holds something else than numbers, a histogram for example") };
    every(check, &values, kind == Some("string"), now)
}

/// The value of a sample: a time and a text.
fn sample(sample: &Value) -> Option<&str> {
    match sample.as_array()?.as_slice() {
        [_, Value::String(value)] => Some(value),
        _ => None,
    }
}

/// What is expected must hold for each of the values.
fn every(check: &PrometheusCheck, values: &[&str], text: bool, now: Timestamp) -> (CheckState, String) {
    let answers = values.iter().map(|value| {
        if text {
            return compare(&check.expect, &Scalar::Text((*value).to_owned()), "", now);
        }
        match *value {
            odd @ ("NaN" | "+Inf" | "-Inf") => {
                (CheckState::Failing, format!("found {odd}, which is no number, wanted {}", wanted(&check.expect)))
            }
            number => compare(&check.expect, &Scalar::Number(number.to_owned()), "", now),
        }
    });
    let answers: Vec<_> = answers.collect();
    let count = |state| answers.iter().filter(|(s, _)| *s == state).count();
    let (failing, unknown) = (count(CheckState::Failing), count(CheckState::Unknown));
    // The worst one is shown.
    let worst = [CheckState::Failing, CheckState::Unknown, CheckState::Passing];
    let first = worst.into_iter().find_map(|state| answers.iter().find(|(s, _)| *s == state));
    match (first, values.len()) {
        (None, _) => {
            let text = format!("the query found no series, wanted {}", wanted(&check.expect));
            (CheckState::Failing, text)
        }
        (Some((state, message)), 1) => (*state, message.clone()),
        (Some((CheckState::Passing, message)), n) => {
            (CheckState::Passing, format!("all {n} series: {message}, the first"))
        }
        (Some((state, message)), n) => {
            let how = if *state == CheckState::Failing { failing } else { unknown };
            let word = if *state == CheckState::Failing { "fail" } else { "cannot be compared" };
            (*state, format!("{how} of {n} series {word}: {message}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn check(expect: Value) -> PrometheusCheck {
        let query = r#"up{job="bot"} > 0 or vector(0)"#;
        serde_json::from_value(json!({"url": "https://p.example/prom/", "query": query, "expect": expect})).unwrap()
    }

    fn judged(expect: Value, status: u16, body: &str) -> (CheckState, String) {
        let reply = Reply { status, body: Bytes::from(body.to_owned()) };
        judge(&check(expect), "GET p.example", &reply, "2025-06-01T12:00:00Z".parse().unwrap())
    }

    fn vector(values: &[&str]) -> String {
        let series: Vec<_> =
            values.iter().map(|v| json!({"metric": {"instance": "hunter2"}, "value": [1748779200.1, v]})).collect();
        json!({"status": "success", "data": {"resultType": "vector", "result": series}}).to_string()
    }

    #[test]
    fn the_query_is_asked_as_it_is() {
        let request = request(&check(json!({"equals": 1})));
        let url = url::Url::parse(&crate::calls::template::url(&request.url, None).unwrap()).unwrap();
        assert_eq!(url.path(), "/prom/api/v1/query");
        let pairs: Vec<_> = url.query_pairs().into_owned().collect();
        assert_eq!(pairs, [("query".to_owned(), r#"up{job="bot"} > 0 or vector(0)"#.to_owned())]);
    }

    #[rstest]
    #[case(json!({"atLeast": "1"}), &["1"], CheckState::Passing, "found 1, wanted at least 1")]
    #[case(json!({"atLeast": "1"}), &["0"], CheckState::Failing, "found 0, wanted at least 1")]
    #[case(json!({"atLeast": "1"}), &["1", "2"], CheckState::Passing, "all 2 series: found 1, wanted at least 1, the first")]
    #[case(json!({"atLeast": "1"}), &["1", "0", "0"], CheckState::Failing, "2 of 3 series fail: found 0, wanted at least 1")]
    #[case(json!({"atMost": "5"}), &[], CheckState::Failing, "the query found no series, wanted at most 5")]
    #[case(json!({"atMost": "5"}), &["NaN"], CheckState::Failing, "found NaN, which is no number, wanted at most 5")]
    #[case(json!({"equals": "NaN"}), &["NaN"], CheckState::Failing, "found NaN, which is no number, wanted \"NaN\"")]
    #[case(json!({"atLeast": "5"}), &["+Inf"], CheckState::Failing, "found +Inf, which is no number, wanted at least 5")]
    #[case(json!({"atMost": "5"}), &["1", "-Inf"], CheckState::Failing, "1 of 2 series fail: found -Inf, which is no number, wanted at most 5")]
    #[case(json!({"newerThan": "1m"}), &["1748779199.97"], CheckState::Passing, "found 1748779199.97, wanted not older than 1m")]
    #[case(json!({"atMost": "0.001"}), &["1e-06"], CheckState::Passing, "found 1e-06, wanted at most 0.001")]
    fn values_are_judged(
        #[case] expect: Value,
        #[case] values: &[&str],
        #[case] state: CheckState,
        #[case] message: &str,
    ) {
        assert_eq!(judged(expect, 200, &vector(values)), (state, message.to_owned()));
    }

    #[rstest]
    #[case(
        200,
        r#"{"status": "success", "data": {"resultType": "scalar", "result": [1, "3"]}}"#,
        CheckState::Passing,
        "found 3, wanted 3"
    )]
    #[case(
        200,
        r#"{"status": "success", "data": {"resultType": "string", "result": [1, "3"]}}"#,
        CheckState::Passing,
        "found \"3\", wanted 3"
    )]
    #[case(
        200,
        r#"{"status": "success", "infos": ["hunter2"], "data": {"resultType": "scalar", "result": [1, "3"]}}"#,
        CheckState::Passing,
        "found 3, wanted 3"
    )]
    #[case(
        200,
        r#"{"status": "success", "warnings": ["hunter2"], "data": {"resultType": "scalar", "result": [1, "3"]}}"#,
        CheckState::Unknown,
        "GET p.example answered 200: with 1 warnings, so it may not be whole: try the query at the server"
    )]
    #[case(
        200,
        r#"{"status": "success", "data": {"resultType": "matrix", "result": []}}"#,
        CheckState::Unknown,
        "GET p.example answered 200: the query gives a range: ask for one moment, for example with last_over_time"
    )]
    #[case(
        200,
        r#"{"status": "success", "data": {"resultType": "vector", "result": [{"histogram": [1, {}]}]}}"#,
        CheckState::Unknown,
        "GET p.example answered 200: it holds something else than numbers, a histogram for example"
    )]
    #[case(
        200,
        r#"{"status": "success", "data": {"resultType": "vector"}}"#,
        CheckState::Unknown,
        "GET p.example answered 200: it holds something else than numbers, a histogram for example"
    )]
    #[case(
        400,
        r#"{"status": "error", "errorType": "bad_data", "error": "hunter2"}"#,
        CheckState::Unknown,
        "GET p.example answered 400: the query failed (bad_data): try it at the server"
    )]
    #[case(
        200,
        r#"{"status": "error", "errorType": "hunter2"}"#,
        CheckState::Unknown,
        "GET p.example answered 200: the query failed (error): try it at the server"
    )]
    #[case(
        503,
        r#"{"status": "success", "data": {"resultType": "scalar", "result": [1, "3"]}}"#,
        CheckState::Unknown,
        "GET p.example answered 503: it is no answer of the Prometheus API: check the url"
    )]
    #[case(
        200,
        r#"{"password": "hunter2"}"#,
        CheckState::Unknown,
        "GET p.example answered 200: it is no answer of the Prometheus API: check the url"
    )]
    #[case(
        200,
        "<html>hunter2",
        CheckState::Unknown,
        "GET p.example answered 200: it is not JSON: check that url is that of a Prometheus server"
    )]
    #[case(401, "hunter2", CheckState::Unknown, "GET p.example answered 401: check auth")]
    #[case(502, "hunter2", CheckState::Unknown, "GET p.example answered 502: wanted 200")]
    fn answers_are_read(#[case] status: u16, #[case] body: &str, #[case] state: CheckState, #[case] message: &str) {
        assert_eq!(judged(json!({"equals": 3}), status, body), (state, message.to_owned()));
    }
}
