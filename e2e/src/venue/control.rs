//! The venue's control plane below `/_control`: what a test or the demo does to the venue from outside.
//!
//! It asks for no keys and belongs on loopback or inside a test network. `{account}` is the account's key.
//!
//! | request | body | what |
//! |---|---|---|
//! | `PUT /_control/accounts/{account}` | `{"secret": …, "cash"?, "blocked"?}` | creates or changes an account |
//! | `GET /_control/accounts/{account}` | | open orders, positions, settings |
//! | `PUT, DELETE /_control/accounts/{account}/behaviour` | a behaviour | how this account's orders fill |
//! | `PUT /_control/accounts/{account}/positions/{symbol}` | `{"qty", "avgEntryPrice"}` | sets a holding |
//! | `POST /_control/accounts/{account}/orders/{id}/revive` | | a cancelled order reappears |
//! | `PUT /_control/prices` | `{"AAPL": "190.5", …}` | sets prices |
//! | `PUT /_control/behaviour` | a behaviour | how orders fill |
//! | `PUT /_control/market` | `{"open"?, "suspendBlocksClosing"?}` | opening hours and rules |
//! | `POST, GET, DELETE /_control/faults`, `DELETE /_control/faults/{id}` | a fault | faults on demand |
//! | `GET, DELETE /_control/ledger` (`?since=`, `?account=`) | | what happened |
//! | `GET /_control/accounts/{account}/closes` | | closes per symbol |

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, Query, State as Shared};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use rust_decimal::Decimal;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::core::Core;
use super::faults::Fault;
use super::ledger::{What, closes};
use super::market::Behaviour;
use super::order::{Order, Refusal, text};

type Result = std::result::Result<Json<Value>, Refusal>;
type Venue = Shared<Arc<Core>>;

/// The routes below `/_control`.
pub(super) fn routes() -> Router<Arc<Core>> {
    Router::new()
        .route("/_control/accounts/{account}", put(set_account).get(show_account))
        .route("/_control/accounts/{account}/behaviour", put(set_account_behaviour).delete(clear_account_behaviour))
        .route("/_control/accounts/{account}/positions/{symbol}", put(set_position))
        .route("/_control/accounts/{account}/orders/{id}/revive", post(revive))
        .route("/_control/accounts/{account}/closes", get(show_closes))
        .route("/_control/prices", put(set_prices))
        .route("/_control/behaviour", put(set_behaviour))
        .route("/_control/market", put(set_market))
        .route("/_control/faults", post(add_fault).get(list_faults).delete(clear_faults))
        .route("/_control/faults/{id}", delete(remove_fault))
        .route("/_control/ledger", get(show_ledger).delete(clear_ledger))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountBody {
    secret: String,
    cash: Option<Decimal>,
    blocked: Option<bool>,
}

async fn set_account(Shared(core): Venue, Path(key): Path<String>, body: Bytes) -> Result {
    let body: AccountBody = parse(&body)?;
    core.with(|state| {
        state.account(&key, &body.secret);
        let (book, _) = state.book(&key)?;
        book.cash = body.cash.unwrap_or(book.cash);
        book.blocked = body.blocked.unwrap_or(book.blocked);
        Ok(Json(json!({"account": key, "id": book.id})))
    })
}

async fn show_account(Shared(core): Venue, Path(key): Path<String>) -> Result {
    core.with(|state| {
        let (book, market) = known(state.book(&key))?;
        let open: Vec<Value> = book.open_orders().map(Order::to_json).collect();
        let positions: Vec<Value> = book.positions(market).iter().map(|p| p.to_json()).collect();
        Ok(Json(json!({
            "openOrders": open,
            "positions": positions,
            "suspended": book.settings.suspend_trade,
            "blocked": book.blocked,
            "cash": text(book.cash),
        })))
    })
}

async fn set_account_behaviour(Shared(core): Venue, Path(key): Path<String>, body: Bytes) -> Result {
    let behaviour: Behaviour = parse(&body)?;
    core.with(|state| {
        state.market.overrides.insert(key, behaviour);
        done()
    })
}

async fn clear_account_behaviour(Shared(core): Venue, Path(key): Path<String>) -> Result {
    core.with(|state| {
        state.market.overrides.remove(&key);
        done()
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PositionBody {
    qty: Decimal,
    avg_entry_price: Decimal,
}

async fn set_position(Shared(core): Venue, Path((key, symbol)): Path<(String, String)>, body: Bytes) -> Result {
    let body: PositionBody = parse(&body)?;
    core.with(|state| {
        known(state.book(&key))?.0.set_position(&symbol, body.qty, body.avg_entry_price);
        done()
    })
}

async fn revive(Shared(core): Venue, Path((key, id)): Path<(String, String)>) -> Result {
    core.with(|state| {
        let now = state.now();
        known(state.book(&key))?.0.revive(&id, now)?;
        state.ledger.push(now, Some(&key), What::Revived { order_id: id });
        done()
    })
}

async fn show_closes(Shared(core): Venue, Path(key): Path<String>) -> Result {
    core.read(|state| Ok(Json(json!(closes(state.ledger.since(0), &key)))))
}

async fn set_prices(Shared(core): Venue, body: Bytes) -> Result {
    let prices: BTreeMap<String, Decimal> = parse(&body)?;
    core.with(|state| {
        state.market.prices.extend(prices);
        done()
    })
}

async fn set_behaviour(Shared(core): Venue, body: Bytes) -> Result {
    let behaviour = parse(&body)?;
    core.with(|state| {
        state.market.behaviour = behaviour;
        done()
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MarketBody {
    open: Option<bool>,
    suspend_blocks_closing: Option<bool>,
}

async fn set_market(Shared(core): Venue, body: Bytes) -> Result {
    let body: MarketBody = parse(&body)?;
    core.with(|state| {
        state.market.open = body.open.unwrap_or(state.market.open);
        state.market.suspend_blocks_closing =
            body.suspend_blocks_closing.unwrap_or(state.market.suspend_blocks_closing);
        done()
    })
}

async fn add_fault(Shared(core): Venue, body: Bytes) -> Result {
    let fault: Fault = parse(&body)?;
    core.with(|state| Ok(Json(json!({"id": state.faults.add(fault)}))))
}

async fn list_faults(Shared(core): Venue) -> Result {
    core.read(|state| {
        let list: Vec<Value> = state.faults.list().iter().map(|(id, f)| json!({"id": id, "fault": f})).collect();
        Ok(Json(json!(list)))
    })
}

async fn clear_faults(Shared(core): Venue) -> Result {
    core.with(|state| {
        state.faults.clear();
        done()
    })
}

async fn remove_fault(Shared(core): Venue, Path(id): Path<u64>) -> Result {
    core.with(
        |state| {
            if state.faults.remove(id) { done() } else { Err(Refusal::new(404, 40_410_000, "no such fault")) }
        },
    )
}

#[derive(Deserialize)]
struct LedgerQuery {
    #[serde(default)]
    since: u64,
    account: Option<String>,
}

async fn show_ledger(Shared(core): Venue, Query(query): Query<LedgerQuery>) -> Result {
    core.read(|state| {
        let wanted = state.ledger.since(query.since);
        let wanted: Vec<_> = wanted.filter(|e| query.account.is_none() || e.account == query.account).collect();
        Ok(Json(json!(wanted)))
    })
}

async fn clear_ledger(Shared(core): Venue) -> Result {
    core.with(|state| {
        state.ledger.clear();
        done()
    })
}

fn done() -> Result {
    Ok(Json(json!({})))
}

/// An account that does not exist is 404 here, not 401.
fn known<T>(found: std::result::Result<T, Refusal>) -> std::result::Result<T, Refusal> {
    found.map_err(|_| Refusal::new(404, 40_410_000, "no such account"))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> std::result::Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|e| Refusal::invalid(e.to_string()))
}
