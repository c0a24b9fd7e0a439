//! The paper venue, proven with the broker's own client, under faults, and with the demo bot.

use std::process::Stdio;
use std::time::{Duration, Instant};

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use standfast_e2e::venue::bot::{self, DemoBot};
use standfast_e2e::venue::{
    Action, Behaviour, Decimal, Effect, Fault, NewOrder, OrderStatus, OrderType, Outcome, PaperVenue, Side, What,
};

const KEY: &str = "PKTEST";
const SECRET: &str = "a-secret";
const LONG: Duration = Duration::from_secs(60);

/// A venue with one account, and a client that has no pool to hide what happens to a connection.
struct Desk {
    venue: PaperVenue,
    http: Client,
}

impl Desk {
    async fn new() -> Self {
        let venue = PaperVenue::start().await;
        venue.account(KEY, SECRET);
        let http = Client::builder().pool_max_idle_per_host(0).no_proxy().timeout(LONG).build().unwrap();
        Desk { venue, http }
    }

    async fn with_orders(symbols: &[&str]) -> Self {
        let desk = Self::new().await;
        for symbol in symbols {
            desk.venue.place_order(KEY, &NewOrder::limit(symbol, Side::Buy, 1, 50)).unwrap();
        }
        desk
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.venue.url()));
        request.header("APCA-API-KEY-ID", KEY).header("APCA-API-SECRET-KEY", SECRET)
    }

    async fn cancel_all(&self) -> reqwest::Result<reqwest::Response> {
        self.request(Method::DELETE, "/v2/orders").send().await
    }

    fn open(&self) -> usize {
        self.venue.open_orders(KEY).len()
    }

    fn outcomes(&self) -> Vec<Outcome> {
        self.venue.requests("DELETE", "/v2/orders").into_iter().map(|(_, r)| r.result).collect()
    }
}

#[tokio::test]
async fn the_brokers_own_client_agrees_and_defect_1_is_shown() {
    let desk = Desk::new().await;
    let run = tokio::process::Command::new(bot::python().await.unwrap())
        .arg(bot::folder().join("conformance.py"))
        .args([&desk.venue.url(), KEY, SECRET])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(180), run).await.expect("conformance.py hangs").unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "conformance.py failed\n{out}\n{err}");
    assert!(out.contains("ok defect_1_status_as_a_keyword"), "{out}");
}

#[tokio::test]
async fn a_dropped_connection_has_an_effect_only_when_asked() {
    let desk = Desk::with_orders(&["AAPL", "MSFT"]).await;
    desk.venue.fault(Fault::on("DELETE", "/v2/orders", Action::Drop).times(1));
    assert!(desk.cancel_all().await.unwrap_err().is_request());
    assert_eq!(desk.open(), 2);
    desk.venue.fault(Fault::on("DELETE", "/v2/orders", Action::Drop).times(1).after());
    assert!(desk.cancel_all().await.unwrap_err().is_request());
    assert_eq!(desk.open(), 0);
    assert_eq!(desk.cancel_all().await.unwrap().status(), StatusCode::MULTI_STATUS);

    assert_eq!(desk.outcomes(), [Outcome::Dropped, Outcome::Dropped, Outcome::Replied { status: 207 }]);
    let effects: Vec<usize> =
        desk.venue.requests("DELETE", "/v2/orders").iter().map(|(_, r)| r.effects.len()).collect();
    assert_eq!(effects, [0, 2, 0]);
}

#[tokio::test]
async fn a_reply_that_never_comes_is_noted_as_abandoned() {
    let desk = Desk::with_orders(&["AAPL"]).await;
    desk.venue.fault(Fault::on("DELETE", "/v2/orders", Action::Hang).times(1).after());
    let call = desk.request(Method::DELETE, "/v2/orders").timeout(Duration::from_millis(300)).send();
    assert!(call.await.unwrap_err().is_timeout());
    assert_eq!(desk.open(), 0);
    let abandoned = desk.venue.until(LONG, |_| (desk.outcomes() == [Outcome::Abandoned]).then_some(())).await;
    assert!(abandoned.is_some(), "{:?}", desk.outcomes());
}

#[tokio::test]
async fn replies_are_wrong_late_or_partial_on_demand() {
    let desk = Desk::with_orders(&["AAPL", "MSFT"]).await;
    let venue = &desk.venue;
    let busy = Action::Reply {
        status: 429,
        body: r#"{"message":"too many requests"}"#.into(),
        headers: vec![("Retry-After".into(), "1".into())],
    };
    venue.fault(Fault::on("DELETE", "/v2/orders", busy).times(1));
    venue.fault(Fault::on("DELETE", "/v2/orders", Action::Garbage).skip(1).times(1));
    venue.fault(Fault::on("DELETE", "/v2/orders", Action::status(500)).skip(2).times(1));
    venue.fault(Fault::on("DELETE", "/v2/orders", Action::partial(&["MSFT"])).skip(3).times(1));

    let reply = desk.cancel_all().await.unwrap();
    assert_eq!((reply.status().as_u16(), &reply.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    let reply = desk.cancel_all().await.unwrap();
    assert_eq!(reply.status(), StatusCode::OK);
    assert!(reply.json::<Value>().await.is_err());
    assert_eq!(desk.cancel_all().await.unwrap().status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(desk.open(), 2);
    let lines: Value = desk.cancel_all().await.unwrap().json().await.unwrap();
    assert_eq!((&lines[0]["status"], &lines[1]["status"]), (&json!(200), &json!(500)));
    assert_eq!(venue.open_orders(KEY)[0].symbol, "MSFT");

    let delay = Duration::from_millis(150);
    venue.fault(Fault::on("DELETE", "/v2/orders", Action::delay(delay)).times(1));
    let started = Instant::now();
    desk.cancel_all().await.unwrap();
    assert!(started.elapsed() >= delay);
    assert_eq!(desk.open(), 0);

    // Faults are for whom they are meant, and end when they are taken away.
    venue.account("PKOTHER", SECRET);
    venue.fault(Fault::on("DELETE", "/v2/orders", Action::status(500)).account("PKOTHER"));
    let all = venue.fault(Fault::any("/v2/clock", Action::status(503)));
    assert_eq!(desk.cancel_all().await.unwrap().status(), StatusCode::MULTI_STATUS);
    let clock = || async { desk.request(Method::GET, "/v2/clock").send().await.unwrap().status().as_u16() };
    assert_eq!(clock().await, 503);
    assert!(venue.remove_fault(all));
    assert_eq!(clock().await, 200);
}

#[tokio::test]
async fn the_ledger_keeps_the_order_and_counts_closes() {
    let desk = Desk::new().await;
    let venue = &desk.venue;
    venue.set_behaviour(Behaviour::partial(Duration::from_millis(20), 2, Duration::from_millis(20)));
    venue.set_position(KEY, "AAPL", 10, 100);
    venue.set_position(KEY, "MSFT", -4, 100);
    let reply = desk.request(Method::DELETE, "/v2/positions").send().await.unwrap();
    assert_eq!(reply.status(), StatusCode::MULTI_STATUS);
    venue.until(LONG, |v| v.positions(KEY).is_empty().then_some(())).await.expect("flat");
    // A second close finds nothing, and a refused one counts for nothing.
    desk.request(Method::DELETE, "/v2/positions/AAPL").send().await.unwrap();

    let closes = venue.closes(KEY);
    let seen: Vec<_> = closes.iter().map(|(s, c)| (s.as_str(), c.orders, c.filled)).collect();
    assert_eq!(seen, [("AAPL", 1, Decimal::from(10)), ("MSFT", 1, Decimal::from(4))]);

    // A partial close sent as an order is counted with the client's id.
    venue.set_position(KEY, "AAPL", 10, 100);
    let order =
        json!({"symbol": "AAPL", "side": "sell", "type": "market", "qty": "5", "client_order_id": "uid-AAPL-1"});
    desk.request(Method::POST, "/v2/orders").json(&order).send().await.unwrap().error_for_status().unwrap();
    let closes = venue.closes(KEY);
    assert_eq!((closes["AAPL"].orders, closes["AAPL"].client_order_ids.clone()), (2, vec!["uid-AAPL-1".to_owned()]));

    let ledger = venue.ledger();
    assert!(ledger.windows(2).all(|w| w[0].seq < w[1].seq && w[0].at_us <= w[1].at_us && w[0].instant <= w[1].instant));
    let kinds: Vec<&str> = ledger
        .iter()
        .map(|e| match &e.what {
            What::Request(_) => "request",
            What::Fill { .. } => "fill",
            _ => "other",
        })
        .collect();
    assert_eq!(kinds, ["request", "fill", "fill", "fill", "fill", "request", "request"]);
    assert!(matches!(venue.requests("DELETE", "/v2/positions")[0].1.effects[0], Effect::Closing { .. }));
    let text = serde_json::to_string(&ledger).unwrap();
    assert!(text.contains(KEY) && !text.contains(SECRET), "no secret is written down");
}

#[tokio::test]
async fn an_order_reappears_and_the_control_plane_says_the_same() {
    let desk = Desk::with_orders(&["AAPL"]).await;
    let control = |method: Method, path: String, body: Value| {
        let request = desk.http.request(method, format!("{}/_control{path}", desk.venue.url())).json(&body);
        async move { request.send().await.unwrap().error_for_status().unwrap().json::<Value>().await.unwrap() }
    };
    desk.cancel_all().await.unwrap();
    let id = desk.venue.orders(KEY)[0].id.clone();
    control(Method::POST, format!("/accounts/{KEY}/orders/{id}/revive"), Value::Null).await;
    assert_eq!(desk.venue.open_orders(KEY)[0].status, OrderStatus::New);
    let account = control(Method::GET, format!("/accounts/{KEY}"), Value::Null).await;
    assert_eq!(account["openOrders"][0]["id"], id);

    let hang = json!({"method": "DELETE", "path": "/v2/orders", "times": 1, "when": "after", "action": {"do": "drop"}});
    control(Method::POST, "/faults".into(), hang).await;
    assert!(desk.cancel_all().await.is_err());
    control(Method::PUT, "/prices".into(), json!({"TSLA": "250.5"})).await;
    control(Method::PUT, "/behaviour".into(), json!({"fills": false})).await;
    control(Method::PUT, format!("/accounts/{KEY}/positions/TSLA"), json!({"qty": 2, "avgEntryPrice": 200})).await;
    assert_eq!(desk.venue.positions(KEY)[0].current_price, "250.5".parse().unwrap());
    let ledger = control(Method::GET, format!("/ledger?account={KEY}"), Value::Null).await;
    let kinds: Vec<_> = ledger.as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["request", "revived", "request"]);
    assert_eq!(ledger[2]["result"]["outcome"], "dropped");
    assert_eq!(ledger[2]["effects"][0]["effect"], "cancel_taken");
}

#[tokio::test]
async fn waiting_sleeps_between_changes_and_ends_in_time() {
    let desk = Desk::with_orders(&["AAPL"]).await;
    let mut looks = 0;
    let never = desk.venue.until(Duration::from_millis(200), |venue| {
        looks += 1;
        (venue.open_orders(KEY).len() == 2 || !venue.positions(KEY).is_empty()).then_some(())
    });
    assert_eq!(never.await, None);
    assert!(looks < 10, "{looks} looks at a venue where nothing happens");

    desk.venue.set_behaviour(Behaviour::partial(Duration::from_millis(50), 1, Duration::ZERO));
    desk.venue.place_order(KEY, &NewOrder::market("MSFT", Side::Buy, 1)).unwrap();
    let filled = desk.venue.until(LONG, |venue| venue.positions(KEY).first().map(|p| p.qty)).await;
    assert_eq!(filled, Some(Decimal::ONE), "the venue's own clock fills what nobody asks about");
}

#[test]
fn the_venue_outlives_a_dropped_runtime_and_stops_when_dropped() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let desk = runtime().block_on(Desk::with_orders(&["AAPL"]));
    let first = runtime();
    desk.venue.fault(Fault::on("DELETE", "/v2/orders", Action::Hang).times(1).after());
    let cancel = desk.request(Method::DELETE, "/v2/orders");
    first.spawn(async { cancel.send().await });
    first.block_on(async { desk.venue.until(LONG, |_| (desk.open() == 0).then_some(())).await.expect("cancelled") });
    drop(first);
    let (addr, http) = (desk.venue.addr, Client::builder().no_proxy().build().unwrap());
    let health = |http: Client| async move { http.get(format!("http://{addr}/healthz")).send().await };
    runtime().block_on(async { health(http.clone()).await.unwrap().error_for_status().unwrap() });
    drop(desk);
    runtime().block_on(async { health(http).await.unwrap_err() });
}

/// The demo bot and what it may do.
mod demo_bot {
    use super::*;

    async fn bot(desk: &Desk, env: &[(&str, &str)]) -> DemoBot {
        let mut all = vec![("BOT_SYMBOLS", "AAPL,MSFT"), ("BOT_MAX_POSITION_PERCENT", "2")];
        all.extend(env);
        DemoBot::start(&desk.venue.url(), KEY, SECRET, &all).await.unwrap()
    }

    /// Positions in both symbols, quotes on both sides, and a stop behind each position.
    async fn trading(desk: &Desk, bot: &DemoBot) {
        let settled = |venue: &PaperVenue| {
            let orders = venue.open_orders(KEY);
            let has = |symbol: &str, side, kind| {
                orders.iter().any(|o| o.symbol == symbol && o.side == side && o.order_type == kind)
            };
            let all = ["AAPL", "MSFT"].iter().all(|symbol| {
                has(symbol, Side::Buy, OrderType::Limit)
                    && has(symbol, Side::Sell, OrderType::Limit)
                    && has(symbol, Side::Sell, OrderType::Stop)
            });
            (all && venue.positions(KEY).len() == 2).then_some(())
        };
        let found = desk.venue.until(LONG, settled).await;
        assert!(found.is_some(), "the bot does not trade:\n{}\n{:#?}", bot.log(), desk.venue.open_orders(KEY));
    }

    async fn ask(desk: &Desk, bot: &DemoBot, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = desk.http.request(method, format!("{}{path}", bot.url)).bearer_auth(&bot.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let reply = request.send().await.unwrap();
        (reply.status().as_u16(), reply.json().await.unwrap())
    }

    /// Waits for requests that arrive after this moment, which the bot sends in every round.
    async fn rounds(desk: &Desk, count: usize) {
        let seen = || desk.venue.requests("GET", "/v2/account").len();
        let target = seen() + count;
        desk.venue.until(LONG, |_| (seen() >= target).then_some(())).await.expect("the bot's loop stands still");
    }

    fn submitted(desk: &Desk) -> usize {
        desk.venue.requests("POST", "/v2/orders").len()
    }

    #[tokio::test]
    async fn it_trades_and_a_halt_stops_its_orders() {
        let desk = Desk::new().await;
        let bot = bot(&desk, &[]).await;
        trading(&desk, &bot).await;
        let (status, trading_now) = ask(&desk, &bot, Method::GET, "/status/trading", None).await;
        assert_eq!((status, &trading_now["trading"]), (200, &json!(true)));
        assert!(trading_now["ordersPlaced"].as_u64() >= Some(8) && trading_now["lastOrderTime"].is_string());
        assert_eq!(ask(&desk, &bot, Method::GET, "/health", None).await.0, 200);

        for path in ["/emergency/halt", "/emergency/resume"] {
            let reply = desk.http.post(format!("{}{path}", bot.url)).bearer_auth("wrong").send().await.unwrap();
            assert_eq!(reply.status(), StatusCode::UNAUTHORIZED, "{path}");
        }
        let halted = ask(&desk, &bot, Method::POST, "/emergency/halt", None).await;
        assert_eq!((halted.0, &halted.1["trading"]), (200, &json!(false)));
        let before = submitted(&desk);
        // Without its orders a trading bot would place new ones in its next round.
        desk.cancel_all().await.unwrap();
        rounds(&desk, 5).await;
        assert_eq!((submitted(&desk), desk.open()), (before, 0), "{}", bot.log());
        assert_eq!(ask(&desk, &bot, Method::GET, "/health", None).await.0, 200, "it is halted, not ill");

        ask(&desk, &bot, Method::POST, "/emergency/resume", None).await;
        trading(&desk, &bot).await;
        let ids = desk.venue.orders(KEY).iter().map(|o| o.client_order_id.clone()).collect::<Vec<_>>();
        assert!(ids.iter().all(|id| id.starts_with("bot-")));
        let query = "SELECT count(*) FROM trades WHERE pnl IS NOT NULL";
        let script = "import sqlite3,sys;print(sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchone()[0])";
        let count = tokio::process::Command::new(bot::python().await.unwrap())
            .args(["-c", script])
            .arg(bot.database())
            .arg(query)
            .output()
            .await
            .unwrap();
        let count: u32 = String::from_utf8_lossy(&count.stdout).trim().parse().unwrap();
        assert!(count >= 4, "its trades are in the database, {count} of them");
    }

    #[tokio::test]
    async fn it_keeps_to_limits_that_change() {
        let desk = Desk::new().await;
        let bot = bot(&desk, &[]).await;
        trading(&desk, &bot).await;
        assert!(desk.venue.positions(KEY).iter().all(|p| p.qty > Decimal::from(25)));
        let limits = json!({"maxPositionPercent": "0.5", "riskMode": "conservative"});
        let reply = desk.http.put(format!("{}/limits", bot.url)).json(&limits).send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::UNAUTHORIZED);
        for bad in [json!({"maxPositionPercent": "0.5"}), json!({"maxPositionPercent": "x", "riskMode": "normal"})] {
            assert_eq!(ask(&desk, &bot, Method::PUT, "/limits", Some(bad)).await.0, 400);
        }
        assert_eq!(ask(&desk, &bot, Method::PUT, "/limits", Some(limits.clone())).await, (200, limits.clone()));
        assert_eq!(ask(&desk, &bot, Method::GET, "/limits", None).await, (200, limits.clone()));
        // One of them alone.
        let normal = json!({"maxPositionPercent": "0.5", "riskMode": "normal"});
        let one = async |name: &str, value: &str| {
            ask(&desk, &bot, Method::PUT, &format!("/limits/{name}"), Some(json!({"value": value}))).await
        };
        assert_eq!(one("riskMode", "normal").await, (200, normal));
        assert_eq!((one("riskMode", "wild").await.0, one("other", "1").await.0), (400, 404));
        assert_eq!(one("riskMode", "conservative").await, (200, limits));
        // 0.5 % of a million, halved by the mode, at 100 a share: 25 shares, resting bids included.
        let within = |venue: &PaperVenue| {
            let bids = venue.open_orders(KEY);
            let small = venue.positions(KEY).iter().all(|p| {
                let bid: Decimal =
                    bids.iter().filter(|o| o.symbol == p.symbol && o.side == Side::Buy).map(|o| o.remaining()).sum();
                p.qty + bid <= Decimal::from(25)
            });
            small.then_some(())
        };
        assert!(desk.venue.until(LONG, within).await.is_some(), "{:#?}", desk.venue.positions(KEY));
        trading(&desk, &bot).await;
        rounds(&desk, 10).await;
        assert!(within(&desk.venue).is_some());
    }

    #[tokio::test]
    async fn it_stops_at_sigterm_and_leaves_its_orders() {
        let desk = Desk::new().await;
        let mut bot = bot(&desk, &[]).await;
        trading(&desk, &bot).await;
        bot.terminate().unwrap();
        assert!(bot.wait(LONG).await.unwrap().success(), "{}", bot.log());
        assert!(desk.open() >= 2, "a bot that goes away does not cancel");
    }

    #[tokio::test]
    async fn it_ignores_sigterm_when_configured() {
        let desk = Desk::new().await;
        let bot = bot(&desk, &[("BOT_IGNORE_SIGTERM", "true")]).await;
        trading(&desk, &bot).await;
        bot.terminate().unwrap();
        let before = submitted(&desk);
        rounds(&desk, 2).await;
        desk.venue.until(LONG, |_| (submitted(&desk) > before).then_some(())).await.expect("it trades on");
    }

    #[tokio::test]
    async fn it_is_ill_when_the_venue_is_silent() {
        let desk = Desk::new().await;
        let env = [("BOT_VENUE_TIMEOUT_SECONDS", "0.5"), ("BOT_HEALTH_MAX_AGE_SECONDS", "2")];
        let bot = bot(&desk, &env).await;
        trading(&desk, &bot).await;
        desk.venue.fault(Fault::any("/v2/", Action::Hang));
        let health = async |wanted: u16| {
            let end = Instant::now() + LONG;
            while ask(&desk, &bot, Method::GET, "/health", None).await.0 != wanted {
                assert!(Instant::now() < end, "its health is not {wanted}:\n{}", bot.log());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        health(503).await;
        desk.venue.clear_faults();
        health(200).await;
        trading(&desk, &bot).await;
    }
}
