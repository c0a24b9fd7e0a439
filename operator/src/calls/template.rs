//! Placeholders in requests for one order or position.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use standfast_crds::v1alpha1::HttpRequest;

use super::Item;

/// All but the unreserved characters of RFC 3986.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Whether a request has this placeholder, written with its braces.
pub fn uses(request: &HttpRequest, placeholder: &str) -> bool {
    request.url.contains(placeholder)
        || request.body.as_ref().is_some_and(|body| body.to_string().contains(placeholder))
}

/// Fills the placeholders of a URL, percent-encoded. They may not stand in the host.
pub fn url(text: &str, item: Option<&Item>) -> Result<String, String> {
    let (authority, rest) = text.split_at(authority_end(text));
    if authority.contains('{') {
        return Err(IN_THE_HOST.into());
    }
    let filled = fill(rest, item, true, |value| utf8_percent_encode(value, ENCODED).to_string())?;
    Ok(format!("{authority}{filled}"))
}

/// Fills the placeholders in the strings of a body. Names of members are left alone.
pub fn body(value: &Value, item: Option<&Item>) -> Result<Value, String> {
    Ok(match value {
        Value::String(text) => Value::String(fill(text, item, false, str::to_owned)?),
        Value::Array(items) => Value::Array(items.iter().map(|value| body(value, item)).collect::<Result<_, _>>()?),
        Value::Object(members) => Value::Object(
            members
                .iter()
                .map(|(name, value)| Ok((name.clone(), body(value, item)?)))
                .collect::<Result<_, String>>()?,
        ),
        other => other.clone(),
    })
}

/// A request with one placeholder of its own filled, percent-encoded in the address. Others stay.
pub fn with(request: &HttpRequest, name: &str, value: &str) -> Result<HttpRequest, String> {
    if value.is_empty() || value == "." || value == ".." || value.len() > 256 || value.chars().any(char::is_control) {
        return Err(format!("the {name} {value:?} is not fit for a request"));
    }
    let (mut filled, place) = (request.clone(), format!("{{{name}}}"));
    let (authority, rest) = request.url.split_at(authority_end(&request.url));
    if authority.contains(&place) {
        return Err(IN_THE_HOST.into());
    }
    filled.url = format!("{authority}{}", rest.replace(&place, &utf8_percent_encode(value, ENCODED).to_string()));
    filled.body = request.body.as_ref().map(|body| replaced(body, &place, value));
    Ok(filled)
}

/// Whether a request has a place for something of this name.
pub fn takes(request: &HttpRequest, name: &str) -> bool {
    fn holds(value: &Value, place: &str) -> bool {
        match value {
            Value::String(text) => text.contains(place),
            Value::Array(items) => items.iter().any(|v| holds(v, place)),
            Value::Object(members) => members.values().any(|v| holds(v, place)),
            _ => false,
        }
    }
    let place = format!("{{{name}}}");
    request.url.contains(&place) || request.body.as_ref().is_some_and(|b| holds(b, &place))
}

fn replaced(value: &Value, place: &str, with: &str) -> Value {
    match value {
        Value::String(text) => Value::String(text.replace(place, with)),
        Value::Array(items) => items.iter().map(|v| replaced(v, place, with)).collect(),
        Value::Object(members) => members.iter().map(|(k, v)| (k.clone(), replaced(v, place, with))).collect(),
        other => other.clone(),
    }
}

const IN_THE_HOST: &str = "a placeholder stands in the host of the url: only the path and the query may have them";

/// Where the host of an address ends.
fn authority_end(text: &str) -> usize {
    text.find("//").map_or(text.len(), |start| {
        text[start + 2..].find(['/', '?', '#', '\\']).map_or(text.len(), |end| start + 2 + end)
    })
}

/// Replaces `{name}`. Other braces are an error if `strict`, else they are left as they are.
fn fill(text: &str, item: Option<&Item>, strict: bool, encode: impl Fn(&str) -> String) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        let after = &rest[open + 1..];
        let name = after.split_once('}').map(|(name, _)| name);
        match name.filter(|name| strict || is_name(name)) {
            Some(name) => {
                out.push_str(&encode(value(name, item)?));
                rest = &after[name.len() + 1..];
            }
            None if strict => return Err("the url holds a { without a }".into()),
            None => {
                out.push('{');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_')
}

fn value<'a>(name: &str, item: Option<&'a Item>) -> Result<&'a str, String> {
    let known = matches!(name, "id" | "symbol" | "quantity" | "side" | "clientOrderId");
    let Some(item) = item.filter(|_| known) else {
        let hint = if known { "it is only for requests for one order or position" } else { "it is not known" };
        return Err(format!(
            "the placeholder {{{name}}} cannot be filled: {hint}; use {{id}}, {{symbol}}, {{quantity}}, \
             and to close a position {{side}}, {{clientOrderId}}"
        ));
    };
    let value = match name {
        "id" => &item.id,
        "symbol" => &item.symbol,
        "side" => &item.side,
        "clientOrderId" => &item.client_order_id,
        _ => &item.quantity,
    };
    // An empty one would turn "cancel this order" into "cancel all", dots would lead to another path.
    if value.is_empty() || value == "." || value == ".." || value.len() > 256 || value.chars().any(char::is_control) {
        return Err(format!("the {name} is empty or not fit for a request: check fields.{name} of the read"));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    fn item() -> Item {
        Item {
            id: "a/b?c#d&e=f %".into(),
            symbol: "BTC/USD".into(),
            quantity: "-0.10".into(),
            side: "buy".into(),
            client_order_id: "sf-1".into(),
        }
    }

    #[rstest]
    #[case("https://h/o/{id}", "https://h/o/a%2Fb%3Fc%23d%26e%3Df%20%25")]
    #[case("https://h/p/{symbol}?qty={quantity}&s={symbol}", "https://h/p/BTC%2FUSD?qty=-0.10&s=BTC%2FUSD")]
    #[case("https://h/{side}/{clientOrderId}", "https://h/buy/sf-1")]
    #[case("https://h/plain", "https://h/plain")]
    #[case("https://h", "https://h")]
    fn fills_urls(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(url(text, Some(&item())).unwrap(), expected);
    }

    #[rstest]
    #[case("https://{id}/", "in the host")]
    #[case("https://x@{symbol}:80/", "in the host")]
    #[case("https://h?{id", "without a }")]
    #[case("https://h/{qty}", "{qty} cannot be filled: it is not known")]
    #[case("https://h/{}", "{} cannot be filled")]
    #[case("https://h/{ID}", "{ID} cannot be filled")]
    fn refuses_urls(#[case] text: &str, #[case] expected: &str) {
        let error = url(text, Some(&item())).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }

    #[rstest]
    fn refuses_values_that_change_the_meaning(#[values("", ".", "..", "a\nb", "\u{0}")] id: &str) {
        let item = Item { id: id.into(), ..item() };
        let error = url("https://h/orders/{id}", Some(&item)).unwrap_err();
        assert!(error.contains("fields.id"), "{error}");
        assert!(body(&json!("{id}"), Some(&item)).is_err());
    }

    #[test]
    fn needs_an_item() {
        let error = url("https://h/orders/{id}", None).unwrap_err();
        assert!(error.contains("only for requests for one order"), "{error}");
    }

    #[test]
    fn fills_bodies() {
        let given = json!({"{id}": "{symbol}", "n": 1, "list": ["x{quantity}y", null], "json": "{\"a\":1} { }"});
        let expected = json!({"{id}": "BTC/USD", "n": 1, "list": ["x-0.10y", null], "json": "{\"a\":1} { }"});
        assert_eq!(body(&given, Some(&item())).unwrap(), expected);
        assert!(body(&json!({"a": ["{qty}"]}), Some(&item())).unwrap_err().contains("{qty}"));
    }

    #[test]
    fn a_value_of_its_own_is_encoded_in_the_address_and_plain_in_the_body() {
        let request = |url: &str| -> HttpRequest {
            serde_json::from_value(
                json!({"method": "PUT", "url": url, "body": {"{value}": ["{value}", 1], "b": "x{value}"}}),
            )
            .unwrap()
        };
        let put = request("https://h/limits/{value}?v={value}&i={id}");
        let filled = with(&put, "value", "a/b \"c").unwrap();
        assert_eq!(filled.url, "https://h/limits/a%2Fb%20%22c?v=a%2Fb%20%22c&i={id}");
        assert_eq!(filled.body.unwrap(), json!({"{value}": ["a/b \"c", 1], "b": "xa/b \"c"}));
        assert!(takes(&put, "value") && takes(&put, "id") && !takes(&put, "since"));
        assert!(with(&request("https://{value}/x"), "value", "h").unwrap_err().contains("in the host"));
        for unfit in ["", "..", "a\nb"] {
            with(&put, "value", unfit).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn a_value_never_leaves_its_place(id in ".{1,40}") {
            let item = Item { id: id.clone(), ..Item::default() };
            if let Ok(text) = url("https://h/orders/{id}/cancel?x=1", Some(&item)) {
                let parsed = url::Url::parse(&text).unwrap();
                prop_assert_eq!(parsed.host_str(), Some("h"));
                prop_assert_eq!(parsed.query(), Some("x=1"));
                prop_assert_eq!(parsed.path_segments().unwrap().count(), 3);
                let segment = parsed.path_segments().unwrap().nth(1).unwrap().to_owned();
                prop_assert_eq!(percent_encoding::percent_decode_str(&segment).decode_utf8().unwrap(), id);
            }
        }

        #[test]
        fn never_panics(text in ".{0,80}") {
            let _ = url(&text, Some(&Item::default()));
            let _ = body(&Value::String(text), None);
        }
    }
}
