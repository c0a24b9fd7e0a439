//! Bybit, API v5: HMAC-SHA256 of time, key, window, and the query of a GET or the body of a POST, in headers.
//! <https://bybit-exchange.github.io/docs/v5/guide>

use standfast_crds::v1alpha1::{HttpMethod, HttpRequest};
use url::Url;

use super::{Call, Document, Reply, Signing, Verdict, clock, code, set};

pub(super) const HEADERS: [&str; 4] = ["x-bapi-api-key", "x-bapi-timestamp", "x-bapi-recv-window", "x-bapi-sign"];

pub(super) fn fits(request: &HttpRequest, url: &Url) -> Result<(), String> {
    let query = url.query().is_some_and(|query| !query.is_empty());
    match request.method {
        HttpMethod::Get if request.body.is_some() => {
            Err("Bybit takes the parameters of a GET in the query: put them into the url, and leave body out".into())
        }
        HttpMethod::Post if query => {
            Err("Bybit takes the parameters of a POST in the body: take the query out of the url".into())
        }
        HttpMethod::Get | HttpMethod::Post => Ok(()),
        _ => Err("Bybit takes method: GET or POST only".into()),
    }
}

/// The text that is signed.
pub(super) fn text(now: u64, key: &str, window: u64, parameters: &str) -> String {
    format!("{now}{key}{window}{parameters}")
}

pub(super) fn sign(call: &mut Call, url: &Url, signing: &Signing, window: u64, now: u64) {
    let key = signing.key.expose();
    let parameters = match &call.body {
        // It was made of a text.
        Some(body) => String::from_utf8_lossy(body).into_owned(),
        None => url.query().unwrap_or_default().to_owned(),
    };
    let signature = signing.sha256(&text(now, key, window, &parameters));
    for (name, value) in HEADERS.into_iter().zip([key, &now.to_string(), &window.to_string(), &signature]) {
        set(call, name, value);
    }
}

/// Bybit answers 200 to what it refuses. Codes: <https://bybit-exchange.github.io/docs/v5/error>
pub(super) fn verdict(reply: &Reply, now: u64) -> Verdict {
    let Some(code) = code(reply, "retCode") else {
        return match reply.status {
            200..=299 => Verdict::Unknown("the answer is none of Bybit's: it has no retCode".into()),
            _ => Verdict::Plain,
        };
    };
    match code {
        0 => Verdict::Plain,
        10002 => clock("Bybit", code, ahead(reply, now)),
        10004 => Verdict::Declined("Bybit says that the signature is wrong (10004): check the API secret".into()),
        10003 | 10005 | 10007 | 10010 | 33004 => Verdict::Declined(format!(
            "Bybit refused the API key ({code}): check the key, its rights and the addresses that it may be used from"
        )),
        10006 | 10018 => Verdict::Declined(format!("Bybit says that there are too many requests ({code})")),
        10000 | 10016 | 10019 => Verdict::Unknown(format!("Bybit does not know what became of the request ({code})")),
        // "Order does not exist."
        110001 | 170213 => Verdict::Nothing,
        _ => Verdict::Declined(format!("Bybit did not do it (retCode {code})")),
    }
}

/// How far our clock is ahead of the venue's, in milliseconds.
fn ahead(reply: &Reply, now: u64) -> Option<i64> {
    let theirs = Document::parse(&reply.body).ok()?.root().value().get("time")?.as_i64()?;
    i64::try_from(now).ok()?.checked_sub(theirs)
}
