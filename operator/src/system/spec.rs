//! What a spec asks for: the requests and Jobs in it with the names people know them by, and what cannot be right.

use std::collections::{BTreeMap, BTreeSet};

use standfast_crds::v1alpha1::{
    Action, Expectation, HttpRequest, ItemAction, JobAction, PositionAction, Problem, StateRead, TradingSystemSpec,
    Venue, shorten,
};

use super::prometheus;
use crate::{
    calls::{
        Item,
        document::{Path, Scalar},
        extract, signing, template,
    },
    halt::selection,
    outbound::guard,
};

/// A problem with a one-line message of limited length.
pub(super) fn problem(reason: &str, message: impl AsRef<str>) -> Problem {
    Problem { reason: reason.into(), message: shorten(message.as_ref()) }
}

/// A request of a spec.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    /// The request.
    pub http: &'a HttpRequest,
    /// Made for one order or position, whose parts its placeholders take.
    pub per_item: bool,
    /// Needed while the trading workloads are stopped.
    pub under_halt: bool,
    /// A halt works without it.
    pub best_effort: bool,
}

/// An item that every request for one item can be made of.
pub(super) fn sample() -> Item {
    Item {
        id: "id".into(),
        symbol: "symbol".into(),
        quantity: "1".into(),
        side: "sell".into(),
        client_order_id: "id".into(),
    }
}

impl Request<'_> {
    /// What its placeholders are filled with when it is only looked at.
    pub fn item(&self) -> Option<Item> {
        self.per_item.then(sample)
    }
}

fn requests_of_venue(venue: &Venue) -> Vec<(String, Request<'_>)> {
    let name = |field: &str| format!("venues[{}].{field}", venue.name);
    let needed = |http| Request { http, per_item: false, under_halt: true, best_effort: false };
    let mut all = vec![];
    for (field, actions, under_halt) in [
        ("suspendTrading", &venue.suspend_trading, true),
        ("allowTrading", &venue.allow_trading, false),
        ("cancelOrders", &venue.cancel_orders, true),
        ("closePositions", &venue.close_positions, true),
    ] {
        for (at, http) in actions.iter().enumerate().filter_map(|(at, a)| Some((at, a.http.as_ref()?))) {
            all.push((name(&format!("{field}[{at}]")), Request { under_halt, ..needed(http) }));
        }
    }
    for (at, http) in venue.open_orders.iter().enumerate().filter_map(|(at, r)| Some((at, r.http.as_ref()?))) {
        all.push((name(&format!("openOrders[{at}]")), needed(http)));
    }
    for (at, http) in venue.open_positions.iter().enumerate().filter_map(|(at, r)| Some((at, r.http.as_ref()?))) {
        all.push((name(&format!("openPositions[{at}]")), needed(http)));
    }
    for (field, state) in [("tradingSuspended", &venue.trading_suspended), ("marketOpen", &venue.market_open)] {
        all.extend(state.iter().map(|s| (name(field), needed(&s.http))));
    }
    all.extend(venue.equity.iter().filter_map(|r| r.http.as_ref()).map(|http| (name("equity"), needed(http))));
    for (field, action) in [("cancelOrder", &venue.cancel_order), ("closePosition", &venue.close_position)] {
        all.extend(action.iter().map(|a| (name(field), Request { per_item: true, ..needed(&a.http) })));
    }
    all
}

/// All requests that halting and resuming send, with the paths of their fields below `spec`.
pub(super) fn requests(spec: &TradingSystemSpec) -> Vec<(String, Request<'_>)> {
    let mut all: Vec<_> = spec.venues.iter().flat_map(requests_of_venue).collect();
    // The bot's own endpoint goes away with the bot.
    let own = |http| Request { http, per_item: false, under_halt: false, best_effort: true };
    if let Some(halt) = &spec.application_halt {
        all.push(("applicationHalt.request".into(), own(&halt.request)));
        all.extend(halt.resume.iter().map(|r| ("applicationHalt.resume".into(), own(r))));
        all.extend(halt.status.iter().map(|s| ("applicationHalt.status".into(), own(&s.http))));
    }
    if let Some(http) = spec.sync_positions.as_ref().and_then(|a| a.http.as_ref()) {
        let later = Request { http, per_item: false, under_halt: false, best_effort: false };
        all.push(("syncPositions".into(), later));
    }
    all
}

/// All Jobs of a spec, with the paths of their fields below `spec`.
pub(super) fn jobs(spec: &TradingSystemSpec) -> Vec<(String, &JobAction)> {
    let mut all: Vec<(String, Option<&JobAction>)> = vec![];
    for venue in &spec.venues {
        let name = |field: &str, at: usize| format!("venues[{}].{field}[{at}]", venue.name);
        for (field, actions) in [
            ("suspendTrading", &venue.suspend_trading),
            ("allowTrading", &venue.allow_trading),
            ("cancelOrders", &venue.cancel_orders),
            ("closePositions", &venue.close_positions),
        ] {
            all.extend(actions.iter().enumerate().map(|(at, action)| (name(field, at), action.job.as_ref())));
        }
        all.extend(venue.open_orders.iter().enumerate().map(|(at, r)| (name("openOrders", at), r.job.as_ref())));
        all.extend(venue.open_positions.iter().enumerate().map(|(at, r)| (name("openPositions", at), r.job.as_ref())));
        all.extend(venue.equity.iter().map(|r| (format!("venues[{}].equity", venue.name), r.job.as_ref())));
    }
    all.extend(spec.sync_positions.iter().map(|a| ("syncPositions".to_owned(), a.job.as_ref())));
    all.extend(spec.checks.iter().map(|c| (format!("checks[{}].job", c.name), c.job.as_ref().map(|job| &job.run))));
    all.into_iter().filter_map(|(path, job)| Some((path, job?))).collect()
}

/// Whether the request can be built at all.
fn request_error(request: &Request<'_>) -> Option<String> {
    let item = request.item();
    let url = template::url(&request.http.url, item.as_ref()).and_then(|url| guard::parse(&url));
    let body = request.http.body.as_ref().map_or(Ok(()), |b| template::body(b, item.as_ref()).map(drop));
    let signed = url.as_ref().map_or(Ok(()), |url| signing::fits(request.http, url));
    url.err()
        .map(|why| format!("url: {why}"))
        .or_else(|| body.err().map(|why| format!("body: {why}")))
        .or_else(|| signed.err().map(|why| format!("auth: {why}")))
}

/// Whether the request can be built, its Secrets aside.
pub(super) fn buildable(request: &Request<'_>) -> bool {
    request_error(request).is_none()
}

/// Whether a request for one item says which one.
fn names_item(action: &ItemAction, placeholders: &[&str]) -> bool {
    placeholders.iter().any(|p| template::uses(&action.http, p))
}

fn expectation_error(expect: &Expectation) -> Option<String> {
    if let Some(value) = &expect.equals
        && Scalar::of(value).is_none()
    {
        return Some("expect.equals is an object or a list: give one value".into());
    }
    for (name, limit) in [("atLeast", &expect.at_least), ("atMost", &expect.at_most)] {
        if let Some(text) = limit
            && crate::calls::decimal::Decimal::parse(text).is_none()
        {
            return Some(format!("expect.{name}: {text:?} is not a decimal number"));
        }
    }
    let empty =
        expect.equals.is_none() && expect.at_least.is_none() && expect.at_most.is_none() && expect.newer_than.is_none();
    empty.then(|| "expect is empty: give one of equals, atLeast, atMost, newerThan".into())
}

fn state_error(read: &StateRead) -> Option<String> {
    Path::parse(&read.path).err().map(|why| format!("path: {why}")).or_else(|| expectation_error(&read.expect))
}

/// What in the spec cannot be right, with the path of the field.
pub(super) fn invalid(spec: &TradingSystemSpec) -> Vec<Problem> {
    let mut found: Vec<(String, String)> = vec![];
    found.extend(requests(spec).iter().filter_map(|(path, r)| Some((path.clone(), request_error(r)?))));
    for venue in &spec.venues {
        let name = |field: String| format!("venues[{}].{field}", venue.name);
        for (at, read) in venue.open_orders.iter().enumerate() {
            found.extend(extract::order_reader(read).err().map(|e| (name(format!("openOrders[{at}]")), e.to_string())));
        }
        for (at, read) in venue.open_positions.iter().enumerate() {
            let error = extract::position_reader(read).err();
            found.extend(error.map(|e| (name(format!("openPositions[{at}]")), e.to_string())));
        }
        let equity = venue.equity.as_ref().and_then(|read| extract::number_path(read).err());
        found.extend(equity.map(|e| (name("equity".into()), e.to_string())));
        for (field, state) in [("tradingSuspended", &venue.trading_suspended), ("marketOpen", &venue.market_open)] {
            found.extend(state.as_ref().and_then(state_error).map(|why| (name(field.into()), why)));
        }
        for (field, action, placeholders) in [
            ("cancelOrder", &venue.cancel_order, &["{id}"][..]),
            ("closePosition", &venue.close_position, &["{id}", "{symbol}"][..]),
        ] {
            if action.as_ref().is_some_and(|a| !names_item(a, placeholders)) {
                let why = format!("neither url nor body has {}: it would not name one", placeholders.join(" or "));
                found.push((name(field.into()), why));
            }
        }
    }
    if let Some(read) = spec.application_halt.as_ref().and_then(|a| a.status.as_ref()) {
        found.extend(state_error(read).map(|why| ("applicationHalt.status".into(), why)));
    }
    for check in &spec.checks {
        let name = |field: &str| format!("checks[{}].{field}", check.name);
        if let Some(http) = &check.http {
            let request = Request { http: &http.request, per_item: false, under_halt: false, best_effort: true };
            found.extend(request_error(&request).map(|why| (name("http.request"), why)));
            let path = http.path.as_ref().and_then(|p| Path::parse(p).err()).map(|why| format!("path: {why}"));
            found.extend(
                path.or_else(|| http.expect.as_ref().and_then(expectation_error)).map(|why| (name("http"), why)),
            );
        }
        if let Some(sql) = &check.sql {
            found.extend(expectation_error(&sql.expect).map(|why| (name("sql"), why)));
        }
        if let Some(query) = &check.prometheus {
            let http = &prometheus::request(query);
            let request = Request { http, per_item: false, under_halt: false, best_effort: true };
            let error = request_error(&request).or_else(|| expectation_error(&query.expect));
            found.extend(error.map(|why| (name("prometheus"), why)));
        }
        if let Some(job) = &check.job {
            let path = job.path.as_ref().and_then(|p| Path::parse(p).err()).map(|why| format!("path: {why}"));
            found
                .extend(path.or_else(|| job.expect.as_ref().and_then(expectation_error)).map(|why| (name("job"), why)));
        }
    }
    let mut seen = BTreeSet::new();
    found.retain(|f| seen.insert(f.clone()));
    found.into_iter().map(|(path, why)| problem("InvalidSpec", format!("spec.{path}: {why}"))).collect()
}

/// What the spec leaves out that a halt needs.
pub(super) fn lacking(spec: &TradingSystemSpec) -> Vec<Problem> {
    if spec.venues.is_empty() {
        let message = "spec.venues is empty: a halt would stop workloads, but cancel no orders; name where orders live";
        return vec![problem("NoVenues", message)];
    }
    let mut found = vec![];
    let closing = spec.halt_policy.allowed_position_actions.contains(&PositionAction::CloseAll);
    let selecting = spec.halt_policy.allowed_position_actions.iter().filter(|a| a.selects()).collect::<Vec<_>>();
    for venue in &spec.venues {
        let name = &venue.name;
        if venue.cancel_orders.is_empty() {
            let message = format!("spec.venues[{name}] has no cancelOrders: a halt could not cancel orders there");
            found.push(problem("CancelOrdersMissing", message));
        }
        if venue.open_orders.is_empty() {
            let message = format!("spec.venues[{name}] has no openOrders: that no order is open could not be proven");
            found.push(problem("OpenOrdersNotReadable", message));
        }
        let closes = !venue.close_positions.is_empty() || venue.close_position.is_some();
        if closing && (!closes || venue.open_positions.is_empty()) {
            let message = format!(
                "spec.haltPolicy allows CloseAll, and spec.venues[{name}] lacks closePositions or openPositions: \
                 positions could not be closed, or not be proven closed"
            );
            found.push(problem("ClosePositionsMissing", message));
        }
        for (action, lacking) in selecting.iter().filter_map(|a| Some((a, selection::unprepared(venue, **a)?))) {
            let message = format!(
                "spec.haltPolicy allows {}, and spec.venues[{name}] lacks {lacking}: which positions to close could not \
                 be told, or they could not be closed one by one",
                action.as_str()
            );
            found.push(problem("SelectionNotPossible", message));
        }
    }
    found
}

/// How orders are cancelled, at the worst of all venues.
pub(super) fn cancel_path(spec: &TradingSystemSpec) -> &'static str {
    let by_job = |a: &Action| a.job.is_some();
    if spec.venues.is_empty() || spec.venues.iter().any(|v| v.cancel_orders.is_empty()) {
        "None"
    } else if spec.venues.iter().flat_map(|v| &v.cancel_orders).any(by_job) {
        "Job (slow)"
    } else {
        "HTTP"
    }
}

/// Venues at which `orders.cancel: NonProtective` is not possible.
pub(super) fn not_selective(spec: &TradingSystemSpec) -> Vec<&str> {
    let selective = |v: &Venue| v.cancel_order.is_some() && v.open_orders.iter().any(|r| !r.protective.is_empty());
    spec.venues.iter().filter(|v| !selective(v)).map(|v| v.name.as_str()).collect()
}

/// The objectives in words.
pub(super) fn objectives(spec: &TradingSystemSpec) -> Option<String> {
    let objectives = spec.objectives.as_ref()?;
    let mut parts = vec![];
    for (name, objective) in [("RTO", &objectives.rto), ("RPO", &objectives.rpo)] {
        if let Some(objective) = objective {
            let target = objective.target.map(|t| format!(" (target {t})")).unwrap_or_default();
            parts.push(format!("{name} {}{target}", objective.maximum));
        }
    }
    parts.extend(objectives.lost_trades.as_ref().map(|lost| match lost.maximum {
        0 => "no lost trades".into(),
        1 => "at most 1 lost trade".into(),
        n => format!("at most {n} lost trades"),
    }));
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// The hosts of what can be built, each once, with the first request to it and the fields that use it.
pub(super) fn services<'a>(
    namespace: &str,
    requests: &[(String, Request<'a>)],
) -> BTreeMap<String, Vec<(String, &'a HttpRequest)>> {
    let mut found: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for (path, request) in requests.iter().filter(|(_, r)| r.under_halt) {
        if let Some(service) = service(namespace, request.http) {
            found.entry(service).or_default().push((path.clone(), request.http));
        }
    }
    found
}

/// The Service of `namespace` that a request goes to, if it is one of the cluster's names.
pub(super) fn service(namespace: &str, request: &HttpRequest) -> Option<String> {
    service_of(namespace, guard::parse(&request.url).ok()?.host_str()?)
}

/// The Service of `namespace` that a host names, if it is one of the cluster's names.
pub(super) fn service_of(namespace: &str, host: &str) -> Option<String> {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let labels: Vec<&str> = host.split('.').collect();
    let before = match labels.iter().position(|l| *l == "svc") {
        Some(at) => &labels[..at],
        None if labels.len() == 2 => &labels[..],
        None => return None,
    };
    match before {
        [.., service, of] if *of == namespace => Some((*service).to_owned()),
        _ => None,
    }
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
