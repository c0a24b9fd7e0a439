//! Whether a value is as expected.

use jiff::{SignedDuration, Timestamp};
use standfast_crds::v1alpha1::Expectation;

use super::{ReadError, decimal::Decimal, document::Scalar};

/// Whole numbers from here on are milliseconds since 1970, smaller ones are seconds.
const MILLISECONDS_FROM: i128 = 100_000_000_000;

/// Whether all that is expected holds. An error means that it cannot be said, because the value is of another kind.
pub fn holds(expectation: &Expectation, found: &Scalar, now: Timestamp) -> Result<bool, ReadError> {
    let mut all = true;
    let mut any = false;
    if let Some(wanted) = &expectation.equals {
        let wanted = Scalar::of(wanted)
            .ok_or_else(|| ReadError("expect.equals is an object or a list: give one value".into()))?;
        all &= equal(&wanted, found);
        any = true;
    }
    for (name, limit, wrong) in [
        ("atLeast", &expectation.at_least, std::cmp::Ordering::Less),
        ("atMost", &expectation.at_most, std::cmp::Ordering::Greater),
    ] {
        if let Some(limit) = limit {
            let limit = Decimal::parse(limit)
                .ok_or_else(|| ReadError(format!("expect.{name} is {limit:?}, which is not a decimal number")))?;
            let value =
                number(found).ok_or_else(|| ReadError(format!("the value is not a number, as expect.{name} needs")))?;
            all &= value.cmp(&limit) != wrong;
            any = true;
        }
    }
    if let Some(age) = expectation.newer_than {
        let time = time(found).ok_or_else(|| {
            ReadError(
                "the value is not a time (RFC 3339, Unix seconds or milliseconds), as expect.newerThan needs".into(),
            )
        })?;
        let age = SignedDuration::try_from(age.get()).unwrap_or(SignedDuration::MAX);
        all &= now.duration_since(time) <= age;
        any = true;
    }
    if !any {
        return Err(ReadError("expect is empty: give one of equals, atLeast, atMost, newerThan".into()));
    }
    Ok(all)
}

/// Numbers are compared as numbers if either side is one; two strings must be the same.
fn equal(wanted: &Scalar, found: &Scalar) -> bool {
    match (wanted, found) {
        (Scalar::Text(a), Scalar::Text(b)) => a == b,
        (Scalar::Number(_), _) | (_, Scalar::Number(_)) => {
            matches!((number(wanted), number(found)), (Some(a), Some(b)) if a == b)
        }
        (a, b) => a == b,
    }
}

fn number(scalar: &Scalar) -> Option<Decimal> {
    match scalar {
        Scalar::Number(text) | Scalar::Text(text) => Decimal::parse(text),
        _ => None,
    }
}

/// A time: RFC 3339, or Unix seconds or milliseconds.
pub fn time(scalar: &Scalar) -> Option<Timestamp> {
    let (Scalar::Number(text) | Scalar::Text(text)) = scalar else { return None };
    if let Scalar::Text(text) = scalar
        && let Ok(time) = text.parse::<Timestamp>()
    {
        return Some(time);
    }
    Decimal::parse(text)?;
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let whole: i128 = whole.parse().ok()?;
    let scale: i128 = if whole.abs() >= MILLISECONDS_FROM { 1_000_000 } else { 1_000_000_000 };
    let digits: String = part.bytes().chain(std::iter::repeat(b'0')).take(9).map(char::from).collect();
    let part: i128 = digits.parse::<i128>().ok()? * scale / 1_000_000_000;
    let part = if text.starts_with('-') { -part } else { part };
    Timestamp::from_nanosecond(whole.checked_mul(scale)?.checked_add(part)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    fn now() -> Timestamp {
        "2025-06-01T12:00:00Z".parse().unwrap()
    }

    fn check(expectation: Value, found: Value) -> Result<bool, String> {
        let expectation: Expectation = serde_json::from_value(expectation).unwrap();
        holds(&expectation, &Scalar::of(&found).unwrap(), now()).map_err(|e| e.to_string())
    }

    #[rstest]
    #[case(json!({"equals": 1}), json!(1), true)]
    #[case(json!({"equals": 1}), json!("1"), true)]
    #[case(json!({"equals": "1"}), json!(1), true)]
    #[case(json!({"equals": 1}), json!(1.0), true)]
    #[case(json!({"equals": 1}), json!("1.00"), true)]
    #[case(json!({"equals": 0}), json!("-0.0"), true)]
    #[case(json!({"equals": 1}), json!("one"), false)]
    #[case(json!({"equals": 1}), json!(true), false)]
    #[case(json!({"equals": "1.10"}), json!("1.1"), false)]
    #[case(json!({"equals": "open"}), json!("open"), true)]
    #[case(json!({"equals": "open"}), json!("Open"), false)]
    #[case(json!({"equals": true}), json!(true), true)]
    #[case(json!({"equals": true}), json!(false), false)]
    #[case(json!({"equals": true}), json!("true"), false)]
    #[case(json!({"equals": null, "atLeast": "0"}), json!(1), true)]
    #[case(json!({"atLeast": "10"}), json!(9.99), false)]
    #[case(json!({"atLeast": "10"}), json!("10.0"), true)]
    #[case(json!({"atMost": "0.3"}), json!("0.30000000000000001"), false)]
    #[case(json!({"atMost": "0.3"}), json!("0.3"), true)]
    #[case(json!({"atLeast": "1", "atMost": "2"}), json!(1.5), true)]
    #[case(json!({"atLeast": "1", "atMost": "2"}), json!(3), false)]
    #[case(json!({"newerThan": "30s"}), json!("2025-06-01T11:59:31Z"), true)]
    #[case(json!({"newerThan": "30s"}), json!("2025-06-01T11:59:29Z"), false)]
    #[case(json!({"newerThan": "30s"}), json!("2025-06-01T13:59:31+02:00"), true)]
    #[case(json!({"newerThan": "30s"}), json!(1_748_779_171), true)]
    #[case(json!({"newerThan": "30s"}), json!(1_748_779_169), false)]
    #[case(json!({"newerThan": "30s"}), json!(1_748_779_170_000_u64), true)]
    #[case(json!({"newerThan": "30s"}), json!("1748779170000"), true)]
    #[case(json!({"newerThan": "30s"}), json!(1_748_779_169_999_u64), false)]
    #[case(json!({"newerThan": "30s"}), json!("1748779169.999"), false)]
    #[case(json!({"newerThan": "30s"}), json!("1748779170.001"), true)]
    fn answers(#[case] expectation: Value, #[case] found: Value, #[case] expected: bool) {
        assert_eq!(check(expectation, found), Ok(expected));
    }

    #[rstest]
    #[case(json!({"atLeast": "1"}), json!("many"))]
    #[case(json!({"atLeast": "1"}), json!(null))]
    #[case(json!({"atMost": "1"}), json!(true))]
    #[case(json!({"newerThan": "1s"}), json!("yesterday"))]
    #[case(json!({"newerThan": "1s"}), json!(true))]
    #[case(json!({"newerThan": "1s"}), json!("99999999999999999999999999"))]
    #[case(json!({"equals": [1]}), json!(1))]
    #[case(json!({}), json!(1))]
    fn cannot_say(#[case] expectation: Value, #[case] found: Value) {
        check(expectation, found).unwrap_err();
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,60}", age in any::<u64>()) {
            let expectation = Expectation {
                equals: Some(Value::String(text.clone())),
                at_least: Some("1".into()),
                at_most: Some(text.clone()),
                newer_than: Some(standfast_crds::v1alpha1::Duration::from_secs(age)),
            };
            let _ = holds(&expectation, &Scalar::Text(text.clone()), now());
            let _ = time(&Scalar::Number(text));
        }
    }
}
