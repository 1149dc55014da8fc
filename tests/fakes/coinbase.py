"""A loopback stand-in for Coinbase's public REST API, as far as ccxt's ``coinbase`` uses it.

Serves the product list, the currency lists that ``load_markets`` asks for, and product candles
(newest first, numbers as text, an error above 350 per request), over real HTTP on a free port.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from tests.fakes.web import Handler, answering

HOUR = 3600
PRODUCTS = ("BTC-USD", "BTC-EUR", "ETH-USD", "SOL-USD")


def candle(opened: int) -> dict[str, str]:
    """A bar that is a function of its time alone, so that any answer can be checked."""
    base = 30_000 + (opened // HOUR) % 1_000
    return {
        "start": str(opened),
        "low": f"{base - 10}.25",
        "high": f"{base + 10}.75",
        "open": f"{base}.5",
        "close": f"{base + 1}.5",
        "volume": f"{opened // HOUR % 97}.125",
    }


@dataclass
class Coinbase:
    """The exchange's record and temper; tests set them."""

    listed: int
    now: int
    missing: set[int] = field(default_factory=set)
    #: HTTP status of the next candle requests, e.g. [503, 429]; then 200 again.
    failures: list[int] = field(default_factory=list)
    url: str = ""
    requests: list[str] = field(default_factory=list)

    def candles(self, start: int, end: int) -> list[dict[str, str]]:
        first = -(-start // HOUR) * HOUR
        opens = range(max(first, self.listed), min(end, self.now) + 1, HOUR)
        return [candle(opened) for opened in reversed(opens) if opened not in self.missing]

    def answer(self, path: str, query: dict[str, list[str]]) -> tuple[int, object]:
        if path == "/v2/currencies":
            return 200, {"data": [{"id": code, "name": code, "min_size": "0.01"} for code in ("USD", "EUR")]}
        if path == "/v2/currencies/crypto":
            coins = [{"asset_id": code, "code": code, "name": code, "exponent": 8, "type": "crypto"} for code in _COINS]
            return 200, {"data": coins}
        if path == "/v2/exchange-rates":
            return 200, {"data": {"currency": "USD", "rates": dict.fromkeys(("EUR", *_COINS), "1.0")}}
        if path == "/api/v3/brokerage/market/products":
            # ccxt asks once for spot and once for each kind of contract.
            listed = [] if "product_type" in query else [_product(name) for name in PRODUCTS]
            return 200, {"products": listed, "num_products": len(listed)}
        if path.startswith("/api/v3/brokerage/market/products/") and path.endswith("/candles"):
            if self.failures:
                return self.failures.pop(0), {"error": "unavailable", "message": "try again"}
            if path.split("/")[-2] not in PRODUCTS:
                return 404, {"error": "NOT_FOUND", "error_details": "valid product_id is required"}
            start, end = int(query["start"][0]), int(query["end"][0])
            if query["granularity"] != ["ONE_HOUR"] or (end - start) // HOUR > 350:
                return 400, {"error": "INVALID_ARGUMENT", "error_details": "number of candles should be less than 350"}
            return 200, {"candles": self.candles(start, end)}
        return 404, {"error": "NOT_FOUND", "error_details": path}


_COINS = ("BTC", "ETH", "SOL")


def _product(name: str) -> dict[str, object]:
    base, quote = name.split("-")
    return {
        "product_id": name,
        "price": "30000",
        "base_increment": "0.00000001",
        "quote_increment": "0.01",
        "price_increment": "0.01",
        "quote_min_size": "1",
        "quote_max_size": "150000000",
        "base_min_size": "0.00000001",
        "base_max_size": "3400",
        "status": "online",
        "trading_disabled": False,
        "product_type": "SPOT",
        "quote_currency_id": quote,
        "base_currency_id": base,
        "display_name": name,
    }


@contextmanager
def serve(state: Coinbase) -> Iterator[Coinbase]:
    """Run the stand-in on a free loopback port; ``state.url`` is its address."""

    class Candles(Handler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            state.requests.append(self.path)
            status, body = state.answer(parts.path, parse_qs(parts.query))
            self.reply(status, json.dumps(body).encode(), {"Content-Type": "application/json"})

    with answering(Candles) as state.url:
        yield state
