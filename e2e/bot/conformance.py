"""Drives a venue with the broker's own client and checks every answer.

Usage: conformance.py URL KEY SECRET

The account must be empty and exclusively ours; the venue's control plane is used for prices and fills only.
Exits with 0 when everything is as Alpaca does it, else with a traceback that names the check.
"""

import json
import sys
import time
import urllib.request
import uuid
from datetime import timedelta

from alpaca.common.enums import Sort
from alpaca.common.exceptions import APIError
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import OrderSide, OrderStatus, OrderType, PositionSide, QueryOrderStatus, TimeInForce
from alpaca.trading.models import FailedClosePositionDetails, Order
from alpaca.trading.requests import (
    ClosePositionRequest,
    GetOrdersRequest,
    LimitOrderRequest,
    MarketOrderRequest,
    ReplaceOrderRequest,
    StopLimitOrderRequest,
    StopOrderRequest,
    TrailingStopOrderRequest,
)

URL, KEY, SECRET = sys.argv[1:4]
CHECKS = []


def check(function):
    """Registers a check; they run in the order they are written."""
    CHECKS.append(function)
    return function


def control(method, path, body=None):
    request = urllib.request.Request(
        f"{URL}/_control{path}", method=method, data=None if body is None else json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        return json.load(reply)


def client(key=KEY, secret=SECRET):
    return TradingClient(key, secret, paper=True, url_override=URL)


def refused(call, status, code, message):
    """The call fails with exactly this status, code and message."""
    try:
        call()
    except APIError as error:
        got = (error.status_code, error.code, error.message)
        assert got == (status, code, message), f"expected {(status, code, message)}, got {got}"
        return error
    raise AssertionError(f"{message}: was not refused")


def until(condition, what, limit=20):
    end = time.monotonic() + limit
    while not (result := condition()):
        assert time.monotonic() < end, f"still not: {what}"
        time.sleep(0.02)
    return result


def limit_order(symbol, side, qty, price, **more):
    return LimitOrderRequest(
        symbol=symbol, qty=qty, side=side, time_in_force=TimeInForce.GTC, limit_price=price, **more
    )


def filled(broker, order):
    return until(
        lambda: (o := broker.get_order_by_id(order.id)).status == OrderStatus.FILLED and o, f"{order.symbol} filled"
    )


def open_orders(broker, **filters):
    return broker.get_orders(GetOrdersRequest(status=QueryOrderStatus.OPEN, **filters))


@check
def account_and_clock(broker):
    account = broker.get_account()
    assert account.status.value == "ACTIVE" and account.currency == "USD", account
    assert account.cash == account.equity == account.buying_power == "1000000", account
    assert account.trade_suspended_by_user is False and account.trading_blocked is False
    clock = broker.get_clock()
    assert clock.is_open is True and clock.timestamp < clock.next_close < clock.next_open, clock
    assert clock.timestamp.utcoffset() is not None


@check
def unknown_keys_are_refused(_):
    refused(client("PKNOBODY", SECRET).get_account, 401, 40110000, "request is not authorized")
    refused(client(KEY, "wrong").cancel_orders, 401, 40110000, "request is not authorized")


@check
def market_orders_fill(broker):
    control("PUT", "/prices", {"AAPL": "190.5", "MSFT": 400})
    control("PUT", f"/accounts/{KEY}/behaviour", {"fill_delay_ms": 100, "steps": 2, "step_interval_ms": 100})
    bought = broker.submit_order(
        MarketOrderRequest(symbol="AAPL", qty=10, side=OrderSide.BUY, time_in_force=TimeInForce.DAY)
    )
    assert (bought.status, bought.filled_qty, bought.qty) == (OrderStatus.NEW, "0", "10"), bought
    assert bought.order_type == OrderType.MARKET and bought.submitted_at and bought.filled_at is None
    done = filled(broker, bought)
    assert (done.filled_qty, done.filled_avg_price, done.filled_at > done.submitted_at) == ("10", "190.5", True), done
    fills = [e for e in control("GET", f"/ledger?account={KEY}") if e["kind"] == "fill"]
    assert [f["qty"] for f in fills] == ["5", "5"], fills
    control("DELETE", f"/accounts/{KEY}/behaviour")

    position = broker.get_open_position("AAPL")
    assert (position.qty, position.qty_available, position.side) == ("10", "10", PositionSide.LONG), position
    assert (position.avg_entry_price, position.market_value, position.unrealized_pl) == ("190.5", "1905", "0")
    assert broker.get_open_position(position.asset_id).symbol == "AAPL"
    refused(lambda: broker.get_open_position("TSLA"), 404, 40410000, "position does not exist")

    short = broker.submit_order(
        MarketOrderRequest(symbol="MSFT", qty=2, side=OrderSide.SELL, time_in_force=TimeInForce.DAY)
    )
    filled(broker, short)
    position = broker.get_open_position("MSFT")
    assert (position.qty, position.side, position.market_value) == ("-2", PositionSide.SHORT, "-800"), position
    assert [p.symbol for p in broker.get_all_positions()] == ["AAPL", "MSFT"]

    control("PUT", "/prices", {"AAPL": 200})
    account = broker.get_account()
    assert (account.long_market_value, account.short_market_value) == ("2000", "-800"), account
    assert account.equity == "1000095", account.equity


@check
def orders_of_every_type_rest(broker):
    broker.submit_order(limit_order("AAPL", OrderSide.BUY, 1, 150.25, client_order_id="rests-1"))
    broker.submit_order(
        StopOrderRequest(symbol="AAPL", qty=4, side=OrderSide.SELL, time_in_force=TimeInForce.GTC, stop_price=150)
    )
    broker.submit_order(
        StopLimitOrderRequest(
            symbol="AAPL", qty=1, side=OrderSide.SELL, time_in_force=TimeInForce.GTC, stop_price=140, limit_price=139
        )
    )
    broker.submit_order(
        TrailingStopOrderRequest(
            symbol="AAPL", qty=1, side=OrderSide.SELL, time_in_force=TimeInForce.GTC, trail_percent=5
        )
    )
    orders = open_orders(broker)
    types = [OrderType.TRAILING_STOP, OrderType.STOP_LIMIT, OrderType.STOP, OrderType.LIMIT]
    assert [o.type for o in orders] == types, orders
    trailing, _, stop, limit = orders
    assert (trailing.hwm, trailing.stop_price, trailing.trail_percent) == ("200", "190", "5"), trailing
    assert (stop.stop_price, stop.limit_price, stop.qty) == ("150", None, "4"), stop
    assert (limit.limit_price, limit.client_order_id) == ("150.25", "rests-1"), limit
    assert broker.get_order_by_id(limit.id) == limit
    assert broker.get_order_by_client_id("rests-1") == limit
    assert broker.get_open_position("AAPL").qty_available == "4"


@check
def defect_1_status_as_a_keyword(broker):
    """The plan's kill switch calls get_orders(status='open'), which the broker's client has never taken."""
    try:
        broker.get_orders(status="open")
    except TypeError as error:
        assert "unexpected keyword argument 'status'" in str(error), error
    else:
        raise AssertionError("get_orders(status='open') works now: defect 1 of the plan is gone")
    assert len(open_orders(broker)) == 4, "the script dies before it cancels anything"


@check
def lists_are_filtered_and_paged(broker):
    everything = broker.get_orders(GetOrdersRequest(status=QueryOrderStatus.ALL, direction=Sort.ASC))
    assert len(everything) == 6 and everything == sorted(everything, key=lambda o: o.submitted_at)
    closed = broker.get_orders(GetOrdersRequest(status=QueryOrderStatus.CLOSED))
    assert [o.symbol for o in closed] == ["MSFT", "AAPL"], closed
    assert broker.get_orders() == open_orders(broker), "open is the default"
    assert len(broker.get_orders(GetOrdersRequest(status=QueryOrderStatus.ALL, symbols=["MSFT", "TSLA"]))) == 1
    assert len(open_orders(broker, side=OrderSide.SELL)) == 3
    assert open_orders(broker, until=everything[0].submitted_at + timedelta(microseconds=1)) == []

    pages, after = [], None
    while page := broker.get_orders(
        GetOrdersRequest(status=QueryOrderStatus.ALL, direction=Sort.ASC, limit=4, after=after)
    ):
        pages.append(len(page))
        after = page[-1].submitted_at
    assert pages == [4, 2], pages
    refused(lambda: open_orders(broker, limit=501), 422, 40010001, "limit must be between 1 and 500")


@check
def orders_are_replaced(broker):
    old = broker.get_order_by_client_id("rests-1")
    new = broker.replace_order_by_id(old.id, ReplaceOrderRequest(limit_price=149.5, qty=3))
    assert (new.limit_price, new.qty, new.replaces) == ("149.5", "3", old.id), new
    old = broker.get_order_by_id(old.id)
    assert (old.status, old.replaced_by) == (OrderStatus.REPLACED, new.id) and old.replaced_at, old
    refused(
        lambda: broker.replace_order_by_id(old.id, ReplaceOrderRequest(limit_price=1)),
        422, 42210000, 'order is already in "replaced" state',
    )  # fmt: skip


@check
def mistakes_are_refused(broker):
    refused(
        lambda: broker.submit_order(limit_order("AAPL", OrderSide.BUY, 1, 100, client_order_id="rests-1")),
        422, 40010001, "client_order_id must be unique",
    )  # fmt: skip
    refused(
        lambda: broker.submit_order(limit_order("NVDA", OrderSide.BUY, 100_000, 100)),
        403, 40310000, "insufficient buying power",
    )  # fmt: skip
    nobody = uuid.uuid4()
    refused(lambda: broker.get_order_by_id(nobody), 404, 40410000, f"order not found for {nobody}")
    refused(lambda: broker.cancel_order_by_id(nobody), 404, 40410000, f"order not found for {nobody}")


@check
def single_cancels(broker):
    order = open_orders(broker, side=OrderSide.BUY)[0]
    assert broker.cancel_order_by_id(order.id) is None
    order = broker.get_order_by_id(order.id)
    assert order.status == OrderStatus.CANCELED and order.canceled_at, order
    done = broker.get_orders(GetOrdersRequest(status=QueryOrderStatus.CLOSED, symbols=["MSFT"]))[0]
    refused(lambda: broker.cancel_order_by_id(done.id), 422, 42210000, 'order is already in "filled" state')


@check
def a_slow_cancel_is_pending(broker):
    control("PUT", f"/accounts/{KEY}/behaviour", {"cancel_delay_ms": 200})
    order = broker.submit_order(limit_order("NVDA", OrderSide.BUY, 1, 10))
    broker.cancel_order_by_id(order.id)
    assert broker.get_order_by_id(order.id).status == OrderStatus.PENDING_CANCEL
    assert order.id in [o.id for o in open_orders(broker)], "it is open until it is cancelled"
    until(lambda: broker.get_order_by_id(order.id).status == OrderStatus.CANCELED, "cancelled")
    control("DELETE", f"/accounts/{KEY}/behaviour")


@check
def held_quantities_cannot_be_closed(broker):
    held = {str(o.id) for o in open_orders(broker)}
    assert len(held) == 3
    message = "insufficient qty available for order (requested: 10, available: 4)"
    error = refused(lambda: broker.close_position("AAPL"), 403, 40310000, message)
    body = json.loads(str(error))
    assert (body["existing_qty"], body["held_for_orders"], body["symbol"]) == ("10", "6", "AAPL"), body
    assert set(body["related_orders"]) == held, body

    failed, closed = broker.close_all_positions(cancel_orders=False)
    assert (failed.symbol, failed.status) == ("AAPL", 403), failed
    assert isinstance(failed.body, FailedClosePositionDetails) and failed.body.available == 4, failed
    assert (closed.symbol, closed.status) == ("MSFT", 200) and isinstance(closed.body, Order), closed
    filled(broker, closed.body)
    assert [p.symbol for p in broker.get_all_positions()] == ["AAPL"]


@check
def trading_is_suspended_by_configuration(broker):
    settings = broker.get_account_configurations()
    assert settings.suspend_trade is False
    settings.suspend_trade = True
    assert broker.set_account_configurations(settings).suspend_trade is True
    assert broker.get_account_configurations().suspend_trade is True
    assert broker.get_account().trade_suspended_by_user is True
    message = "new orders are rejected by user request"
    refused(lambda: broker.submit_order(limit_order("AAPL", OrderSide.BUY, 1, 100)), 403, 40310000, message)

    # Cancels work all the same, and one of them fails on demand.
    control("POST", "/faults", {
        "method": "DELETE", "path": "/v2/orders", "times": 1, "action": {"do": "partial", "symbols": ["AAPL"]},
    })  # fmt: skip
    lines = broker.cancel_orders()
    assert [line.status for line in lines] == [500] * 3, lines
    assert lines[0].body["message"] == "failed to cancel order", lines
    lines = broker.cancel_orders()
    assert [line.status for line in lines] == [200] * 3, lines
    assert open_orders(broker) == [] and broker.cancel_orders() == []

    settings.suspend_trade = False
    assert broker.set_account_configurations(settings).suspend_trade is False
    order = broker.submit_order(limit_order("AAPL", OrderSide.SELL, 1, 300))
    assert order.status == OrderStatus.NEW
    broker.cancel_order_by_id(order.id)


@check
def positions_are_closed(broker):
    half = broker.close_position("AAPL", ClosePositionRequest(percentage="50"))
    assert (half.qty, half.side, half.type) == ("5", OrderSide.SELL, OrderType.MARKET), half
    filled(broker, half)
    filled(broker, broker.close_position("AAPL", ClosePositionRequest(qty="2")))
    assert broker.get_open_position("AAPL").qty == "3"

    # While the market is closed the close is accepted, waits, and holds what it closes.
    control("PUT", "/market", {"open": False})
    try:
        assert broker.get_clock().is_open is False
        waiting = broker.close_position("AAPL")
        assert waiting.status == OrderStatus.ACCEPTED, waiting
        message = "insufficient qty available for order (requested: 3, available: 0)"
        refused(lambda: broker.close_position("AAPL"), 403, 40310000, message)
        broker.cancel_order_by_id(waiting.id)
    finally:
        control("PUT", "/market", {"open": True})

    broker.submit_order(
        StopOrderRequest(symbol="AAPL", qty=3, side=OrderSide.SELL, time_in_force=TimeInForce.GTC, stop_price=150)
    )
    filled(broker, broker.submit_order(
        MarketOrderRequest(symbol="MSFT", notional=1000, side=OrderSide.BUY, time_in_force=TimeInForce.DAY)
    ))  # fmt: skip
    assert broker.get_open_position("MSFT").qty == "2.5"
    closes = broker.close_all_positions(cancel_orders=True)
    assert [(c.symbol, c.status, c.body.qty) for c in closes] == [("AAPL", 200, "3"), ("MSFT", 200, "2.5")], closes
    for close in closes:
        filled(broker, close.body)
    assert broker.get_all_positions() == [] and open_orders(broker) == []
    assert broker.close_all_positions(cancel_orders=True) == []
    refused(lambda: broker.close_position("AAPL"), 404, 40410000, "position does not exist")


def main():
    broker = client()
    for function in CHECKS:
        function(broker)
        print(f"ok {function.__name__}", flush=True)
    print(f"{len(CHECKS)} checks passed with {URL}")


if __name__ == "__main__":
    main()
