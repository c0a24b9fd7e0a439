//! Binance: HMAC-SHA256 of the query, in hexadecimal, as its last parameter.
//! <https://developers.binance.com/docs/binance-spot-api-docs/rest-api/request-security>

use standfast_crds::v1alpha1::HttpRequest;
use url::Url;

use super::{Call, Reply, Signing, Verdict, clock, code, set};

pub(super) const HEADERS: [&str; 1] = ["x-mbx-apikey"];
/// Parameters that are added.
const OWN: [&str; 3] = ["timestamp", "recvWindow", "signature"];

pub(super) fn fits(request: &HttpRequest, url: &Url) -> Result<(), String> {
    if request.body.is_some() {
        return Err("Binance takes all parameters in the query: put them into the url, and leave body out".into());
    }
    match url.query_pairs().find(|(name, _)| OWN.contains(&name.as_ref())) {
        Some((name, _)) => Err(format!("{name} is added when the request is signed: take it out of the url")),
        None => Ok(()),
    }
}

pub(super) fn sign(call: &mut Call, mut url: Url, signing: &Signing, window: u64, now: u64) {
    let given = url.query().filter(|query| !query.is_empty()).map(|query| format!("{query}&")).unwrap_or_default();
    url.set_fragment(None);
    url.set_query(Some(&format!("{given}recvWindow={window}&timestamp={now}")));
    // As it is sent: percent-encoded.
    let query = url.query().unwrap_or_default().to_owned();
    url.set_query(Some(&format!("{query}&signature={}", signing.sha256(&query))));
    call.url = url.into();
    set(call, HEADERS[0], signing.key.expose());
}

/// Codes: <https://developers.binance.com/docs/binance-spot-api-docs/errors>
pub(super) fn verdict(reply: &Reply) -> Verdict {
    // Anything else says by its status what it is.
    if !(400..500).contains(&reply.status) {
        return Verdict::Plain;
    }
    match code(reply, "code") {
        Some(code @ -1021) => clock("Binance", code, None),
        Some(-1022) => {
            Verdict::Declined("Binance says that the signature is wrong (-1022): check the API secret".into())
        }
        Some(code @ (-1002 | -2014 | -2015)) => Verdict::Declined(format!(
            "Binance refused the API key ({code}): check the key, its rights and the addresses that it may be used from"
        )),
        Some(code @ (-1006 | -1007)) => {
            Verdict::Unknown(format!("Binance does not know what became of the request ({code})"))
        }
        // "Unknown order sent.": also where all orders of a symbol are cancelled and there is none.
        Some(-2011) => Verdict::Nothing,
        _ => Verdict::Plain,
    }
}
