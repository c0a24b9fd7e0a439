"""A small trading bot for demos and tests: it holds positions, quotes around them and protects them with stops.

It trades on a venue that speaks Alpaca's API, with the broker's own client, and stores orders and trades in SQLite.
Stopping it does not cancel its orders: that is what a halt is for.

    GET  /health             200 while the loop lives and the venue has answered lately, else 503
    GET  /status/trading     {"trading": …, "lastOrderTime": …, "ordersPlaced": …, …}
    GET  /limits             {"maxPositionPercent": "2", "riskMode": "normal"}
    PUT  /limits             the same; both are enforced from the next round on         (bearer token)
    PUT  /limits/<name>      {"value": "0.5"}: only this one                            (bearer token)
    POST /emergency/halt     no order is sent after the answer                          (bearer token)
    POST /emergency/resume   trading goes on                                            (bearer token)

With BOT_LIMITS_FOLDER the limits are the files of these names in it, such as a mounted ConfigMap, read in every round.

Configuration is by environment, see `Config`.
"""

import json
import logging
import os
import signal
import sqlite3
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import ROUND_DOWN, Decimal, InvalidOperation
from hmac import compare_digest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests
from alpaca.common.exceptions import APIError
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import OrderSide, OrderStatus, OrderType, QueryOrderStatus, TimeInForce
from alpaca.trading.requests import GetOrdersRequest, LimitOrderRequest, MarketOrderRequest, StopOrderRequest

log = logging.getLogger("bot")

# How much of the position limit each mode uses.
RISK_MODES = {"normal": Decimal(1), "conservative": Decimal("0.5")}
FINAL = {OrderStatus.FILLED, OrderStatus.CANCELED, OrderStatus.REPLACED, OrderStatus.EXPIRED, OrderStatus.REJECTED}


def flag(name):
    return os.environ.get(name, "").lower() in {"1", "true", "yes"}


@dataclass
class Config:
    url: str = field(default_factory=lambda: os.environ["VENUE_URL"])
    key: str = field(default_factory=lambda: os.environ["APCA_API_KEY_ID"])
    secret: str = field(default_factory=lambda: os.environ["APCA_API_SECRET_KEY"])
    token: str = field(default_factory=lambda: os.environ["BOT_TOKEN"])
    symbols: list = field(default_factory=lambda: os.environ.get("BOT_SYMBOLS", "AAPL,MSFT").split(","))
    address: str = field(default_factory=lambda: os.environ.get("BOT_ADDRESS", "0.0.0.0"))
    port: int = field(default_factory=lambda: int(os.environ.get("BOT_PORT", "8080")))
    database: str = field(default_factory=lambda: os.environ.get("BOT_DB", "/data/trades.db"))
    interval: float = field(default_factory=lambda: float(os.environ.get("BOT_INTERVAL_SECONDS", "1")))
    venue_timeout: float = field(default_factory=lambda: float(os.environ.get("BOT_VENUE_TIMEOUT_SECONDS", "5")))
    max_age: float = field(default_factory=lambda: float(os.environ.get("BOT_HEALTH_MAX_AGE_SECONDS", "15")))
    # Quotes are replaced every so many rounds.
    refresh: int = field(default_factory=lambda: int(os.environ.get("BOT_REFRESH_ROUNDS", "5")))
    max_position_percent: str = field(default_factory=lambda: os.environ.get("BOT_MAX_POSITION_PERCENT", "2"))
    risk_mode: str = field(default_factory=lambda: os.environ.get("BOT_RISK_MODE", "normal"))
    limits_folder: str = field(default_factory=lambda: os.environ.get("BOT_LIMITS_FOLDER", ""))
    starts_halted: bool = field(default_factory=lambda: flag("BOT_STARTS_HALTED"))
    # For tests of a bot that does not go away when asked.
    ignore_sigterm: bool = field(default_factory=lambda: flag("BOT_IGNORE_SIGTERM"))


class Limits:
    """The limits the bot sizes its orders by."""

    def __init__(self, percent, mode):
        self.percent, self.mode = self.check({"maxPositionPercent": percent, "riskMode": mode})

    @staticmethod
    def check(body):
        if not isinstance(body, dict) or set(body) != {"maxPositionPercent", "riskMode"}:
            raise ValueError("give exactly maxPositionPercent and riskMode")
        try:
            percent = Decimal(str(body["maxPositionPercent"]))
        except InvalidOperation:
            raise ValueError("maxPositionPercent must be a decimal number, such as \"0.5\"") from None
        if not percent.is_finite() or not 0 < percent <= 100:
            raise ValueError("maxPositionPercent must be above 0 and at most 100")
        if body["riskMode"] not in RISK_MODES:
            raise ValueError(f"riskMode must be one of {', '.join(RISK_MODES)}")
        return percent, body["riskMode"]

    def set(self, body):
        self.percent, self.mode = self.check(body)

    def set_one(self, name, body):
        if not isinstance(body, dict) or set(body) != {"value"}:
            raise ValueError("give exactly value")
        self.set({**self.json(), name: body["value"]})

    def read(self, folder):
        """Takes over what stands in a folder. What cannot be read, or is no limit, changes nothing."""
        found = self.json()
        for name in found:
            try:
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    found[name] = file.read().strip()
            except OSError:
                pass
        if found != self.json():
            try:
                self.set(found)
            except ValueError as error:
                log.warning("the limits in %s are not taken over: %s", folder, error)

    def json(self):
        return {"maxPositionPercent": f"{self.percent:f}", "riskMode": self.mode}

    def cap(self, equity):
        """The most money one position may be worth."""
        return equity * self.percent / 100 * RISK_MODES[self.mode]


class Store:
    """Orders and trades in SQLite; used by the trading thread only."""

    def __init__(self, path):
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.executescript(
            """
            CREATE TABLE IF NOT EXISTS orders (
                client_order_id TEXT PRIMARY KEY, order_id TEXT, symbol TEXT NOT NULL, side TEXT NOT NULL,
                type TEXT NOT NULL, qty TEXT NOT NULL, price TEXT, status TEXT NOT NULL, placed_at TEXT NOT NULL);
            CREATE TABLE IF NOT EXISTS trades (
                id INTEGER PRIMARY KEY, order_id TEXT NOT NULL UNIQUE, symbol TEXT NOT NULL, side TEXT NOT NULL,
                qty TEXT NOT NULL, price TEXT NOT NULL, pnl REAL NOT NULL, traded_at TEXT NOT NULL);
            """
        )

    def intend(self, request, price):
        """Written before the order is sent, so that one whose reply was lost can be found again by its id."""
        row = (request.client_order_id, request.symbol, request.side.value, request.type.value)
        self.db.execute(
            "INSERT INTO orders VALUES (?, NULL, ?, ?, ?, ?, ?, 'sending', ?)",
            (*row, str(request.qty), price and str(price), now()),
        )

    def update(self, client_order_id, status, order_id=None):
        self.db.execute(
            "UPDATE orders SET status = ?, order_id = coalesce(?, order_id) WHERE client_order_id = ?",
            (status, order_id, client_order_id),
        )

    def unfinished(self):
        final = ["refused", *(s.value for s in FINAL)]
        marks = ",".join("?" * len(final))
        return [r[0] for r in self.db.execute(f"SELECT client_order_id FROM orders WHERE status NOT IN ({marks})", final)]

    def trade(self, order, pnl):
        self.db.execute(
            "INSERT OR IGNORE INTO trades (order_id, symbol, side, qty, price, pnl, traded_at) VALUES (?,?,?,?,?,?,?)",
            (str(order.id), order.symbol, order.side.value, order.filled_qty, order.filled_avg_price, pnl, now()),
        )


class Halted(Exception):
    """No order may be sent."""


class Bot:
    """One trading loop over all symbols."""

    def __init__(self, config):
        self.config = config
        self.limits = Limits(config.max_position_percent, config.risk_mode)
        if config.limits_folder:
            self.limits.read(config.limits_folder)
        self.trading = not config.starts_halted
        self.stopping = threading.Event()
        # Held while an order is on its way: whoever takes it after clearing `trading` knows that none follows.
        self.sending = threading.Lock()
        self.last_order_time = None
        self.orders_placed = 0
        self.last_error = None
        self.last_contact = self.last_round = float("-inf")
        self.broker = TradingClient(config.key, config.secret, paper=True, url_override=config.url)
        # The client has no time-out of its own and would wait for ever for a venue that hangs.
        self.broker._session = Session(config.venue_timeout)
        self.average = {}
        self.prices = {}
        self.rounds = 0

    def halt(self):
        """No order is sent once this has returned."""
        self.trading = False
        with self.sending:
            pass
        log.warning("trading is halted")

    def resume(self):
        self.trading = True
        log.warning("trading goes on")

    def status(self):
        return {
            "trading": self.trading and not self.stopping.is_set(),
            "lastOrderTime": self.last_order_time,
            "ordersPlaced": self.orders_placed,
            "lastError": self.last_error,
        }

    def healthy(self):
        oldest = time.monotonic() - self.config.max_age
        return self.last_contact > oldest and self.last_round > oldest

    def run(self):
        self.store = Store(self.config.database)
        while not self.stopping.is_set():
            started = time.monotonic()
            try:
                self.round()
                self.last_error = None
            except Halted:
                pass
            except (APIError, requests.RequestException) as error:
                self.last_error = str(error)
                log.warning("round %d failed: %s", self.rounds, error)
            self.last_round = time.monotonic()
            self.rounds += 1
            self.stopping.wait(max(0.0, started + self.config.interval - time.monotonic()))

    def round(self):
        if self.config.limits_folder:
            self.limits.read(self.config.limits_folder)
        equity = Decimal(self.broker.get_account().equity)
        positions = {p.symbol: p for p in self.broker.get_all_positions()}
        orders = self.broker.get_orders(GetOrdersRequest(status=QueryOrderStatus.OPEN, limit=500))
        self.last_contact = time.monotonic()
        self.book(orders)
        self.average.update({s: Decimal(p.avg_entry_price) for s, p in positions.items()})
        self.prices.update({s: Decimal(p.current_price) for s, p in positions.items()})
        if not self.trading:
            return
        failure = None
        for symbol in self.config.symbols:
            try:
                self.trade(symbol, positions.get(symbol), [o for o in orders if o.symbol == symbol], equity)
            except APIError as error:
                # One symbol's trouble does not keep the others from trading.
                failure = error
        if failure:
            raise failure

    def book(self, open_orders):
        """Notes in the store what became of our orders."""
        working = {o.client_order_id: o.status.value for o in open_orders}
        for client_id in self.store.unfinished():
            if client_id in working:
                self.store.update(client_id, working[client_id])
                continue
            try:
                order = self.broker.get_order_by_client_id(client_id)
            except APIError as error:
                if error.status_code != 404:
                    raise
                self.store.update(client_id, "refused")
                continue
            if Decimal(order.filled_qty or 0) > 0 and order.status in FINAL:
                price, qty = Decimal(order.filled_avg_price), Decimal(order.filled_qty)
                gain = price - self.average.get(order.symbol, price) if order.side == OrderSide.SELL else Decimal(0)
                self.store.trade(order, float(gain * qty))
            self.store.update(client_id, order.status.value, str(order.id))

    def trade(self, symbol, position, orders, equity):
        """Moves one symbol towards: 60 % of the limit held, a bid for the rest, an offer, a stop for what remains."""
        if any(o.type == OrderType.MARKET or o.status == OrderStatus.PENDING_CANCEL for o in orders):
            return
        if position is None:
            # One share shows the price: the trading API has no quotes.
            if not orders and self.prices.get(symbol, 0) <= self.limits.cap(equity):
                self.market(symbol, OrderSide.BUY, 1)
            return
        price, held = Decimal(position.current_price), int(Decimal(position.qty))
        most = int((self.limits.cap(equity) / price).to_integral_value(ROUND_DOWN))
        wanted = most * 6 // 10
        offer = held // 4
        bid = most - held
        if held > most:
            self.cancel(orders)
            self.market(symbol, OrderSide.SELL, held - wanted)
            return
        if held < wanted:
            # The bid counts against the limit too.
            self.cancel([o for o in orders if o.side == OrderSide.BUY])
            self.market(symbol, OrderSide.BUY, wanted - held)
            return
        quotes = [o for o in orders if o.type == OrderType.LIMIT]
        stops = [o for o in orders if o.type == OrderType.STOP]
        wrong_size = sum(int(Decimal(o.qty)) for o in quotes if o.side == OrderSide.BUY) > bid
        wrong_stop = sum(int(Decimal(o.qty)) for o in stops) != held - offer
        if wrong_size or wrong_stop or self.rounds % self.config.refresh == 0:
            self.cancel(quotes + (stops if wrong_stop else []))
            quotes, stops = [], [] if wrong_stop else stops
        if held > offer and not stops:
            self.stop(symbol, held - offer, price * Decimal("0.95"))
        if bid > 0 and not any(o.side == OrderSide.BUY for o in quotes):
            self.quote(symbol, OrderSide.BUY, bid, price * Decimal("0.99"))
        if offer > 0 and not any(o.side == OrderSide.SELL for o in quotes):
            self.quote(symbol, OrderSide.SELL, offer, price * Decimal("1.01"))

    def market(self, symbol, side, qty):
        if qty > 0:
            self.send(MarketOrderRequest(**order(symbol, side, qty, TimeInForce.DAY)))

    def quote(self, symbol, side, qty, price):
        price = cents(price)
        self.send(LimitOrderRequest(**order(symbol, side, qty, TimeInForce.GTC), limit_price=float(price)), price)

    def stop(self, symbol, qty, price):
        price = cents(price)
        self.send(
            StopOrderRequest(**order(symbol, OrderSide.SELL, qty, TimeInForce.GTC), stop_price=float(price)), price
        )

    def cancel(self, orders):
        for o in orders:
            if not self.trading or self.stopping.is_set():
                raise Halted
            try:
                self.broker.cancel_order_by_id(o.id)
            except APIError as error:
                # 422: it was filled or cancelled meanwhile.
                if error.status_code not in (404, 422):
                    raise

    def send(self, request, price=None):
        with self.sending:
            if not self.trading or self.stopping.is_set():
                raise Halted
            self.store.intend(request, price)
            try:
                placed = self.broker.submit_order(request)
            except APIError as error:
                if error.status_code is not None and 400 <= error.status_code < 500:
                    self.store.update(request.client_order_id, "refused")
                raise
        self.store.update(request.client_order_id, placed.status.value, str(placed.id))
        self.last_contact = time.monotonic()
        self.last_order_time = now()
        self.orders_placed += 1
        log.info("%s %s %s %s at %s", request.type.value, request.side.value, request.qty, request.symbol, price)


class Session(requests.Session):
    """A session in which no request waits for ever."""

    def __init__(self, timeout):
        super().__init__()
        self.timeout = timeout

    def request(self, method, url, **options):
        return super().request(method, url, timeout=self.timeout, **options)


def order(symbol, side, qty, time_in_force):
    client_order_id = f"bot-{symbol}-{uuid.uuid4().hex}"
    return {
        "symbol": symbol, "side": side, "qty": qty, "time_in_force": time_in_force, "client_order_id": client_order_id,
    }  # fmt: skip


def cents(price):
    return price.quantize(Decimal("0.01"))


def now():
    return datetime.now(timezone.utc).isoformat()


def handler(bot):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self):
            match self.path:
                case "/health":
                    self.reply(200 if bot.healthy() else 503, {"healthy": bot.healthy(), "rounds": bot.rounds})
                case "/status/trading":
                    self.reply(200, bot.status())
                case "/limits":
                    self.reply(200, bot.limits.json())
                case _:
                    self.reply(404, {"error": "not found"})

        def do_POST(self):
            actions = {"/emergency/halt": bot.halt, "/emergency/resume": bot.resume}
            self.change(actions.get(self.path) and (lambda _: actions[self.path]() or bot.status()))

        def do_PUT(self):
            folder, _, name = self.path.rpartition("/")
            if self.path == "/limits":
                self.change(lambda body: bot.limits.set(json.loads(body)) or bot.limits.json())
            elif folder == "/limits" and name in bot.limits.json():
                self.change(lambda body: bot.limits.set_one(name, json.loads(body)) or bot.limits.json())
            else:
                self.change(None)

        def change(self, action):
            body = self.rfile.read(min(int(self.headers.get("Content-Length") or 0), 65536))
            wanted, given = f"Bearer {bot.config.token}", self.headers.get("Authorization", "")
            if action is None:
                self.reply(404, {"error": "not found"})
            elif not compare_digest(wanted.encode(), given.encode("utf-8", "surrogateescape")):
                self.reply(401, {"error": "unauthorised"})
            else:
                try:
                    self.reply(200, action(body))
                except ValueError as error:
                    self.reply(400, {"error": str(error)})

        def reply(self, status, body):
            data = json.dumps(body).encode()
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", "Bearer")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    return Handler


def main():
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    config = Config()
    bot = Bot(config)

    def terminate(number, _):
        if config.ignore_sigterm and number == signal.SIGTERM:
            log.warning("SIGTERM is ignored, as configured")
        else:
            bot.stopping.set()

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, terminate)
    server = ThreadingHTTPServer((config.address, config.port), handler(bot))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    trader = threading.Thread(target=bot.run, daemon=True)
    trader.start()
    log.info("trading %s, listening on port %d", ",".join(config.symbols), server.server_port)

    # A lost trading thread ends the program, so that whoever runs it can start it again.
    while trader.is_alive() and not bot.stopping.wait(0.2):
        pass
    stopped = bot.stopping.is_set()
    trader.join(1)
    log.info("stopped; open orders stay at the venue")
    logging.shutdown()
    os._exit(0 if stopped else 1)


if __name__ == "__main__":
    main()
