//! The bot's books, in a real PostgreSQL, compared with the paper venue's.

use k8s_openapi::api::core::v1::Secret;
use standfast_crds::v1alpha1::Break;
use standfast_e2e::postgres::Postgres;

use super::{approvals::Desk, *};

/// Books that say what the venue says: 10 AAPL, 4 MSFT short.
async fn books() -> Result<Postgres> {
    let database = Postgres::start().await?;
    database
        .run(
            "CREATE TABLE positions (symbol text, quantity numeric); \
             INSERT INTO positions VALUES ('AAPL', 10.0), ('MSFT', -4); \
             CREATE TABLE orders (symbol text, quantity float, client_order_id text)",
        )
        .await?;
    Ok(database)
}

async fn connect(world: &World, database: &Postgres) -> Result<()> {
    world.venue.set_position(KEY, "AAPL", 10, 190);
    world.venue.set_position(KEY, "MSFT", -4, 410);
    let secret = json!({"metadata": {"name": "database", "labels": {"standfast.dev/use": "true"},
        "annotations": {"standfast.dev/allowed-hosts": "127.0.0.1"}}, "stringData": {"url": database.url()}});
    world.create::<Secret>(secret).await.map(drop)
}

fn comparison(name: &str, compare: &str, query: &str) -> Value {
    json!({"name": name, "venue": "alpaca", "compare": compare,
        "bot": {"sql": {"connectionSecretRef": {"name": "database", "key": "url"}, "query": query}}})
}

fn positions() -> Value {
    comparison("positions", "Positions", "SELECT symbol, quantity FROM positions")
}

/// The venue's fills are its filled orders.
fn venue_with_fills(world: &World) -> Value {
    let mut venue = world.venue_spec();
    let mut request = venue["openOrders"][0]["http"].clone();
    let url = request["url"].as_str().unwrap_or_default().replace("status=open", "status=closed&after={since}");
    request["url"] = url.into();
    venue["fills"] = json!({"http": request, "pageSize": 500, "fields": {"quantity": "$.filled_qty"},
        "items": "$[?@.filled_qty != '0']"});
    let mut account = venue["openPositions"][0]["http"].clone();
    account["url"] = account["url"].as_str().unwrap_or_default().replace("positions", "account").into();
    venue["balance"] = json!({"http": account, "path": "$.cash"});
    venue
}

fn breaks(resume: &TradingResume) -> Vec<String> {
    status(resume).breaks.iter().map(|b| format!("{} {:?} {}", b.symbol, b.kind, b.difference)).collect()
}

/// S1-34, S4-25, S3-19: a break is told with symbol and size and keeps the halt; when the books agree it goes on.
#[tokio::test]
async fn s4_25_a_break_is_told_with_symbol_and_size_and_keeps_the_halt() -> Result<()> {
    let database = books().await?;
    let world = world("books").await?;
    world.bot("bot", 2).await?;
    connect(&world, &database).await?;
    database
        .run("UPDATE positions SET quantity = 7.5 WHERE symbol = 'AAPL'; DELETE FROM positions WHERE symbol = 'MSFT'")
        .await?;
    world.system(&["bot"], json!({"resumePolicy": {"reconciliation": [positions()]}})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    world.resume("go", "stale").await?;
    let said = "reconcile: 2 breaks: AAPL Position at alpaca: venue minus bot 2.5; MSFT Position at alpaca: venue minus bot -4";
    let resume = saying(&world, "go", said).await?;
    assert_eq!(status(&resume).phase, ResumePhase::Reconciling);
    assert_eq!(breaks(&resume), ["AAPL Position 2.5", "MSFT Position -4"]);
    assert_held(&world, "stale").await?;
    // Repaired by half, then wholly.
    database.run("UPDATE positions SET quantity = 10 WHERE symbol = 'AAPL'").await?;
    let half = world.resume_until("go", "one break is left", |r| breaks(r) == ["MSFT Position -4"]).await?;
    assert!(message(&half).contains("1 break: MSFT"), "{}", message(&half));
    database.run("INSERT INTO positions VALUES ('MSFT', -3), ('MSFT', -1)").await?;
    let done = world.resume_in("go", ResumePhase::Completed).await?;
    assert_eq!(breaks(&done), Vec::<String>::new());
    assert_trading(&world, 2).await
}

/// S1-61, S3-11, S2-35: positions, open orders, balance and fills, each with a tolerance of its own.
#[tokio::test]
async fn s1_61_four_comparisons_must_agree() -> Result<()> {
    let database = books().await?;
    let world = world("four").await?;
    world.bot("bot", 1).await?;
    connect(&world, &database).await?;
    world.venue.place_order(KEY, &NewOrder::limit("NVDA", Side::Buy, 3, 50)).expect("an order");
    let venue = venue_with_fills(&world);
    let open = world.venue.open_orders(KEY).remove(0);
    let mut orders = comparison("orders", "OpenOrders", "SELECT symbol, quantity, client_order_id FROM orders");
    orders["tolerance"] = "0.001".into();
    let mut balance = comparison("cash", "Balance", "SELECT 90 AS quantity");
    balance["tolerance"] = "0.01".into();
    let mut fills = comparison("fills", "Fills", "SELECT symbol, quantity, client_order_id FROM orders WHERE false");
    fills["since"] = "24h".into();
    let policy = json!({"reconciliation": [positions(), orders, balance, fills]});
    world.system(&["bot"], json!({"venues": [venue], "resumePolicy": policy})).await?;
    let _operator = world.operator().await?;
    // An order that is kept on purpose has to be in the books.
    world.halt("stale", json!({"orders": {"cancel": "None"}})).await?;
    world.halted("stale").await?;
    let resume = json!({"metadata": {"name": "go"}, "spec": {"haltRef": {"name": "stale"}, "requestedBy": "admin"}});
    world.create::<TradingResume>(resume).await?;
    let wanted = |r: &TradingResume| status(r).breaks.len() == 2;
    let resume = world.resume_until("go", "two breaks", wanted).await?;
    let found: Vec<Break> = status(&resume).breaks;
    let order = found.iter().find(|b| b.symbol == "NVDA").context("no break of the order")?;
    assert_eq!((order.difference.as_str(), order.client_order_id.as_ref()), ("3", Some(&open.client_order_id)));
    let cash = found.iter().find(|b| b.symbol == "balance").context("no break of the balance")?;
    assert!(cash.difference.parse::<f64>()? > 1000.0, "{cash:?}");
    database.run(&format!("INSERT INTO orders VALUES ('NVDA', 3, '{}')", open.client_order_id)).await?;
    let only_cash = |r: &TradingResume| status(r).breaks.iter().all(|b| b.symbol == "balance") && !breaks(r).is_empty();
    world.resume_until("go", "only the balance is left", only_cash).await?;
    assert_held(&world, "stale").await
}

/// What is not known is no agreement: rows that make no sense, a page that may not be the last, a database that is away.
#[tokio::test]
async fn what_cannot_be_read_keeps_the_gate_shut() -> Result<()> {
    let database = books().await?;
    let world = world("unread").await?;
    world.bot("bot", 1).await?;
    connect(&world, &database).await?;
    let mut venue = world.venue_spec();
    venue["openPositions"][0]["pageSize"] = 3.into();
    world.venue.set_position(KEY, "NVDA", 1, 120);
    database.run("INSERT INTO positions VALUES ('NVDA', NULL)").await?;
    world.system(&["bot"], json!({"venues": [venue], "resumePolicy": {"reconciliation": [positions()]}})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    world.resume("go", "stale").await?;
    saying(&world, "go", "positions cannot be compared: the bot: line 3, NVDA has no quantity at $.quantity").await?;
    database.run("UPDATE positions SET quantity = 1 WHERE symbol = 'NVDA'").await?;
    saying(&world, "go", "positions cannot be compared: venue alpaca: ").await?;
    saying(&world, "go", "the answer is a full page of 3 items, so there may be more").await?;
    database.run("ALTER TABLE positions RENAME TO gone").await?;
    saying(&world, "go", "the bot: 127.0.0.1: relation \"positions\" does not exist").await?;
    assert_held(&world, "stale").await
}

/// HALT.md 6.5: exactly the breaks that were shown can be accepted, by somebody who did not ask for the resume.
#[tokio::test]
async fn breaks_that_were_shown_can_be_accepted() -> Result<()> {
    let database = books().await?;
    let desk = Desk::new(world("accept").await?).await?;
    connect(&desk.world, &database).await?;
    database.run("UPDATE positions SET quantity = 9 WHERE symbol = 'AAPL'").await?;
    let _operator = desk.halted(json!({"reconciliation": [positions()]})).await?;
    desk.ask_as("anna").await?;
    let resume = desk.world.resume_until("go", "a break", |r| breaks(r) == ["AAPL Position 1"]).await?;
    let shown = json!({ "breaks": status(&resume).breaks });
    // Her own resume, and something that was not shown.
    desk.decide("anna", "of-anna", &resume, shown.clone()).await?;
    let other = json!({"breaks": [{"venue": "alpaca", "symbol": "AAPL", "kind": "Position", "difference": "2"}]});
    desk.decide("carl", "of-carl", &resume, other).await?;
    saying(&desk.world, "go", "or accept exactly these by Approvals that list them, wanting 1 of anybody").await?;
    assert_held(&desk.world, "stale").await?;
    desk.decide("bert", "of-bert", &resume, shown).await?;
    let done = desk.world.resume_in("go", ResumePhase::Completed).await?;
    let status = status(&done);
    assert_eq!((status.breaks, status.accepted_breaks.len()), (vec![], 1));
    assert_eq!(status.approvals.iter().map(|a| a.approver.as_str()).collect::<Vec<_>>(), ["bert"]);
    assert_trading(&desk.world, 2).await
}

/// What the running bot tells is compared when it runs, and not before.
#[tokio::test]
async fn the_running_bots_own_books_are_compared_when_it_runs() -> Result<()> {
    let world = world("live").await?;
    world.bot("bot", 1).await?;
    let service = json!({"metadata": {"name": "bot"}, "spec": {"selector": {"app": "bot"}, "ports": [{"port": 80}]}});
    world.create::<Service>(service).await?;
    let url = format!("http://bot.{}.svc/positions", world.namespace);
    let live = json!({"name": "live", "venue": "alpaca", "compare": "Positions", "bot": {"http": {"url": url}}});
    world.system(&["bot"], json!({"resumePolicy": {"reconciliation": [live]}})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    world.resume("go", "stale").await?;
    // Nothing answers for the bot here: it is asked once it runs.
    let resume = saying(&world, "go", "reconcile-live: live cannot be compared: the bot: ").await?;
    let state = |name: &str| status(&resume).steps.into_iter().find(|s| s.name == name).map(|s| s.state);
    assert_eq!(state("reconcile"), None, "nothing is compared while it is stopped");
    assert_eq!(state("ready"), Some(StepState::Succeeded));
    assert_trading(&world, 1).await
}

/// S2-21, S2-27: the books come back from a backup with other risk parameters than declared, and with a portfolio that the
/// venue does not hold. The resume names neither gate: the TradingSystem's policy and checks bind it all the same.
#[tokio::test]
async fn s2_21_risk_parameters_and_portfolio_must_be_as_declared_before_trading_resumes() -> Result<()> {
    let database = books().await?;
    database
        .run(
            "CREATE TABLE risk (name text, value numeric); INSERT INTO risk VALUES ('max_position_pct', 5); \
             UPDATE positions SET quantity = 12 WHERE symbol = 'AAPL'",
        )
        .await?;
    let world = world("restored").await?;
    world.bot("bot", 2).await?;
    connect(&world, &database).await?;
    let declared = json!({"connectionSecretRef": {"name": "database", "key": "url"},
        "query": "SELECT value FROM risk WHERE name = 'max_position_pct'", "expect": {"equals": 2}});
    let checks = json!([
        {"name": "risk-parameters", "group": "data", "interval": "1s", "sql": declared},
        {"name": "bot", "group": "trading", "interval": "1s", "workload": {"kind": "Deployment", "name": "bot"}},
    ]);
    let policy = json!({"reconciliation": [positions()], "thresholds": {"interval": "1s"}});
    world.system(&["bot"], json!({"checks": checks, "resumePolicy": policy})).await?;
    let _operator = world.operator().await?;
    world.halt("corrupted", json!({})).await?;
    world.halted("corrupted").await?;
    world.resume("go", "corrupted").await?;
    saying(&world, "go", "checks: check risk-parameters is failing: found 5, wanted 2").await?;
    assert_held(&world, "corrupted").await?;
    database.run("UPDATE risk SET value = 2").await?;
    let resume = saying(&world, "go", "reconcile: 1 break: AAPL Position at alpaca: venue minus bot -2").await?;
    assert_held(&world, "corrupted").await?;
    let state =
        |resume: &TradingResume, name: &str| status(resume).steps.into_iter().find(|s| s.name == name).map(|s| s.state);
    assert_eq!(state(&resume, "request-release"), Some(StepState::Pending), "not before the books agree");
    database.run("UPDATE positions SET quantity = 10 WHERE symbol = 'AAPL'").await?;
    let done = world.resume_in("go", ResumePhase::Completed).await?;
    for step in ["ready", "verify"] {
        assert_eq!(state(&done, step), Some(StepState::Succeeded), "{step}");
    }
    assert_trading(&world, 2).await
}
