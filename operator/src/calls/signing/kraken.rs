//! Kraken, spot: HMAC-SHA512 of the path and of SHA-256(nonce + form), with a nonce that always grows.
//! <https://docs.kraken.com/api/docs/guides/spot-rest-auth>

use http::header::CONTENT_TYPE;
use serde_json::Value;
use sha2::{Digest, Sha256};
use standfast_crds::v1alpha1::{HttpMethod, HttpRequest};
use url::{Url, form_urlencoded};

use super::{Call, Document, HeaderValue, Reply, Signing, Verdict, set};

pub(super) const HEADERS: [&str; 3] = ["api-key", "api-sign", "content-type"];

pub(super) fn fits(request: &HttpRequest, url: &Url) -> Result<(), String> {
    if request.method != HttpMethod::Post {
        return Err("Kraken takes signed requests by method: POST only".into());
    }
    if url.query().is_some_and(|query| !query.is_empty()) {
        return Err("Kraken takes the parameters of a signed request in the body: take the query out of the url".into());
    }
    form(request.body.as_ref()).map(drop)
}

/// The members of a body as a form.
pub(super) fn form(body: Option<&Value>) -> Result<String, String> {
    let mut form = form_urlencoded::Serializer::new(String::new());
    let members = match body {
        None | Some(Value::Null) => return Ok(String::new()),
        Some(Value::Object(members)) => members,
        Some(_) => return Err("Kraken takes a form: let body be an object".into()),
    };
    for (name, value) in members {
        if name == "nonce" {
            return Err("nonce is added when the request is signed: take it out of the body".into());
        }
        match value {
            Value::String(text) => form.append_pair(name, text),
            Value::Number(number) => form.append_pair(name, &number.to_string()),
            Value::Bool(value) => form.append_pair(name, &value.to_string()),
            _ => return Err(format!("Kraken takes a form: let {name} in the body be a text, a number, true or false")),
        };
    }
    Ok(form.finish())
}

pub(super) fn sign(call: &mut Call, url: &Url, signing: &Signing, nonce: u64) {
    let given = String::from_utf8_lossy(call.body.as_deref().unwrap_or_default()).into_owned();
    let form = if given.is_empty() { format!("nonce={nonce}") } else { format!("nonce={nonce}&{given}") };
    let digest = Sha256::digest(format!("{nonce}{form}"));
    let signature = signing.sha512([url.path().as_bytes(), &digest]);
    call.body = Some(form.into());
    set(call, HEADERS[0], signing.key.expose());
    set(call, HEADERS[1], &signature);
    call.headers.push((CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded")));
}

/// Kraken answers 200 to what it refuses. Errors: <https://docs.kraken.com/api/docs/guides/spot-errors>
pub(super) fn verdict(reply: &Reply) -> Verdict {
    let document = Document::parse(&reply.body).ok();
    let errors = document.as_ref().and_then(|document| document.root().value().get("error")?.as_array());
    let Some(errors) = errors else {
        return match reply.status {
            200..=299 => Verdict::Unknown("the answer is none of Kraken's: it has no error list".into()),
            _ => Verdict::Plain,
        };
    };
    // What begins with W is a warning: the request was done.
    let errors: Vec<&str> =
        errors.iter().map(|e| e.as_str().unwrap_or_default()).filter(|e| !e.starts_with('W')).collect();
    let declined = |why: &str| Verdict::Declined(format!("Kraken {why}"));
    match errors.as_slice() {
        [] => Verdict::Plain,
        errors if errors.contains(&"EAPI:Invalid nonce") => Verdict::Stale,
        errors if errors.iter().any(|e| e.starts_with("EService:") || *e == "EGeneral:Internal error") => {
            Verdict::Unknown("Kraken does not know what became of the request: its service has a problem".into())
        }
        ["EAPI:Invalid key"] => declined("refused the API key: check it"),
        ["EAPI:Invalid signature"] => declined("says that the signature is wrong: check the API secret"),
        ["EGeneral:Permission denied"] => declined("says that the API key lacks a right, or may not be used from here"),
        ["EAPI:Rate limit exceeded" | "EOrder:Rate limit exceeded" | "EGeneral:Temporary lockout"] => {
            declined("says that there are too many requests")
        }
        ["EOrder:Unknown order"] => Verdict::Nothing,
        [first, ..] => {
            let kind = ["EAPI", "EQuery", "EGeneral", "EOrder", "ETrade", "EFunding", "EAccount", "EAuth", "ESession"];
            let kind =
                kind.into_iter().find(|kind| first.strip_prefix(*kind).is_some_and(|rest| rest.starts_with(':')));
            declined(&format!("did not do it (an error of the kind {})", kind.unwrap_or("E")))
        }
    }
}
