"""``make probe URL=…``: how long a caller of a server waits, over connections that are kept and over new ones.

The key comes from ``API_KEY`` or the Google ID token from ``ID_TOKEN``, both from the environment.
Exit status: 0 when every request was answered; 1 when the server cannot be reached, refuses the
caller or failed a request; 2 when a setting is wrong.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import numpy as np

from layer3 import contract
from layer3.errors import ConfigurationError, HimariError, RefusedError, SourceError
from layer3.net.address import Place
from layer3.net.wire import brief

__all__ = ["Target", "Trial", "histogram", "main", "measure", "report", "target"]

#: Seconds that layer 3 gives a prediction, and after which the probe gives a request up.
BUDGET_S: Final = 0.15
TIMEOUT_S: Final = 10.0
_BARS: Final = 12
_WIDTH: Final = 50
_SECRET: Final = re.compile(r"[!-~]+")
_BODY: Final = json.dumps(
    {
        "state": contract.build_state(
            confidence=0.85,
            side=1,
            tier=1,
            exposure=0.15,
            unrealised_pnl=0.01,
            return_1h=0.0015,
            return_4h=0.0046,
            volatility=0.018,
            win_rate=0.65,
            cascade_risk=0.2,
        ).tolist()
    }
)
_ADVICE: Final[Mapping[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "it wants another key in API_KEY, or another token in ID_TOKEN",
    HTTPStatus.FORBIDDEN: "it knows the caller and does not let it in",
    HTTPStatus.NOT_FOUND: "nothing is served there: is it the address of the service?",
    HTTPStatus.TOO_MANY_REQUESTS: "the caller asks more often than its rate allows: wait a little",
}


@dataclass(frozen=True)
class Target:
    """Where to ask and with which headers."""

    place: Place
    path: str
    headers: Mapping[str, str]
    tls: ssl.SSLContext | None

    def connect(self) -> http.client.HTTPConnection:
        """A connection that is made with its first request."""
        if self.tls is None:
            return http.client.HTTPConnection(self.place.host, self.place.port, timeout=TIMEOUT_S)
        return http.client.HTTPSConnection(self.place.host, self.place.port, timeout=TIMEOUT_S, context=self.tls)


@dataclass(frozen=True)
class Trial:
    """Seconds of each request that was answered with a prediction, and the others by what befell them."""

    name: str
    seconds: Sequence[float]
    failures: Counter[str]


def target(url: str, environment: Mapping[str, str]) -> Target:
    """What ``url`` and the environment name, or a ConfigurationError.

    A key or token is a secret: it goes over https, or stays on this machine.
    """
    place = Place.parse(url)
    headers = {"Content-Type": "application/json", contract.HEADER: contract.VERSION}
    for name, header, prefix in (("API_KEY", "X-API-Key", ""), ("ID_TOKEN", "Authorization", "Bearer ")):
        if secret := environment.get(name):
            if not _SECRET.fullmatch(secret):
                raise ConfigurationError(f"{name} holds a space, a line end or a character that no header carries")
            if place.scheme != "https" and not place.is_loopback:
                raise ConfigurationError(f"{name} is a secret, it is sent over https only: {url} is not")
            headers[header] = prefix + secret
    path = place.path if place.path.endswith("/predict") else f"{place.path}/predict"
    return Target(place, path, headers, ssl.create_default_context() if place.scheme == "https" else None)


def check(where: Target) -> str:
    """Ask once; the version of the model that answered.

    Raises
    ------
    SourceError : no answer, or not the one of such a server
    RefusedError : it refuses the caller
    """
    with closing(where.connect()) as connection:
        try:
            status, body = _ask(connection, where)
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(f"{where.place.url} cannot be reached: {_kind(error)}") from error
    if status != HTTPStatus.OK:
        advice = f"; {_ADVICE[status]}" if status in _ADVICE else ""
        kind = RefusedError if 400 <= status < 500 else SourceError
        raise kind(f"{where.place.url} answered HTTP {status}: {_detail(body)}{advice}")
    try:
        return str(json.loads(body)["model_version"])
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(f"{where.place.url} is no server of predictions, it answered {brief(body)}") from error


def measure(where: Target, requests: int, concurrent: int, *, keep: bool) -> Trial:
    """``requests`` requests from ``concurrent`` callers, each over one kept connection or a new one every time."""
    shares = [requests // concurrent + (number < requests % concurrent) for number in range(concurrent)]
    with ThreadPoolExecutor(concurrent) as pool:
        each = list(pool.map(lambda share: _caller(where, share, keep=keep), shares))
    callers = "1 caller" if concurrent == 1 else f"{concurrent} callers"
    return Trial(
        f"{'kept' if keep else 'new'} connections, {callers}",
        [second for seconds, _ in each for second in seconds],
        sum((failures for _, failures in each), Counter()),
    )


def report(trials: Sequence[Trial]) -> str:
    """The table, what failed, and how the budget of layer 3 fares."""
    head = ("ms", "answered", "failed", "min", "p50", "p90", "p99", "max", f"in {BUDGET_S * 1000:g} ms")
    rows = [head, *(_row(trial) for trial in trials)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    for trial in trials:
        lines += [f"failed, {trial.name}: {count} x {kind}" for kind, count in trial.failures.most_common()]
    everything = [second for trial in trials for second in trial.seconds]
    asked = len(everything) + sum(trial.failures.total() for trial in trials)
    within = sum(second <= BUDGET_S for second in everything)
    lines.append(f"{within / asked:.2%} of {asked:,} requests were answered within layer 3's {BUDGET_S * 1000:g} ms.")
    return "\n".join(lines)


def histogram(trial: Trial) -> str:
    """How the answers spread, in classes of equal ratio."""
    if not trial.seconds:
        return f"{trial.name}: no answer"
    milliseconds = np.array(trial.seconds) * 1000.0
    low, high = float(milliseconds.min()), float(milliseconds.max())
    # A class has a width even where all answers took the same time.
    edges = np.geomspace(low, max(high, low * 1.01), _BARS + 1)
    counts, _ = np.histogram(np.clip(milliseconds, edges[0], edges[-1]), edges)
    bars = [
        f"{left:10.2f} to {right:8.2f} ms  {count:6d}  {'#' * round(_WIDTH * count / counts.max())}".rstrip()
        for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return "\n".join([trial.name, *bars])


def main(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Check the server, measure, print; returns the exit status."""
    parser = argparse.ArgumentParser(prog="probe", description="How long a caller of a prediction server waits.")
    parser.add_argument("--url", required=True, help="https://host, with or without /predict; http on this machine")
    parser.add_argument("--requests", type=_count, default=100, help="requests of each kind; default 100")
    parser.add_argument("--concurrent", type=_count, default=8, help="callers at once; default 8")
    chosen = parser.parse_args(arguments)
    try:
        where = target(chosen.url, environment)
        print(f"{where.place.url} answers with model {check(where)}")
    except HimariError as error:
        print(f"probe: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) else 1
    trials = [
        measure(where, chosen.requests, callers, keep=keep)
        for keep in (True, False)
        for callers in dict.fromkeys((1, chosen.concurrent))
    ]
    print(report(trials))
    print("", histogram(trials[0]), sep="\n")
    return 1 if any(trial.failures for trial in trials) else 0


def _caller(where: Target, requests: int, *, keep: bool) -> tuple[list[float], Counter[str]]:
    seconds: list[float] = []
    failures: Counter[str] = Counter()
    with closing(where.connect()) as connection:
        for number in range(requests + keep):
            if not keep:
                connection.close()
            began = time.perf_counter()
            try:
                status, _ = _ask(connection, where)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                failures[_kind(error)] += 1
                continue
            if status != HTTPStatus.OK:
                failures[f"HTTP {status} {http.client.responses.get(status, '')}".rstrip()] += 1
            elif number >= keep:  # the first one over a kept connection made it
                seconds.append(time.perf_counter() - began)
    return seconds, failures


def _ask(connection: http.client.HTTPConnection, where: Target) -> tuple[int, bytes]:
    connection.request("POST", where.path, _BODY, dict(where.headers))
    answer = connection.getresponse()
    return answer.status, answer.read()


def _kind(error: Exception) -> str:
    """What befell a request, in words that do not depend on the moment."""
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    if isinstance(error, ssl.SSLError):
        return f"no TLS: {error.reason or error}"
    if isinstance(error, ConnectionRefusedError):
        return "the connection was refused: nothing listens there"
    if isinstance(error, http.client.RemoteDisconnected | ConnectionError):
        return "the connection broke"
    return f"{type(error).__name__}: {error}"


def _detail(body: bytes) -> str:
    """The sentence of a problem document, or the head of whatever it is."""
    try:
        document = json.loads(body)
    except ValueError:
        return brief(body)
    detail = document.get("detail") if isinstance(document, dict) else None
    return detail[:300] if isinstance(detail, str) else brief(body)


def _row(trial: Trial) -> tuple[str, ...]:
    answered, failed = len(trial.seconds), trial.failures.total()
    if not answered:
        return (trial.name, "0", str(failed), *["-"] * 5, "0.0%")
    figures = np.percentile(np.array(trial.seconds) * 1000.0, (0, 50, 90, 99, 100))
    within = sum(second <= BUDGET_S for second in trial.seconds) / (answered + failed)
    return (trial.name, str(answered), str(failed), *(f"{figure:.2f}" for figure in figures), f"{within:.1%}")


def _count(text: str) -> int:
    if not (re.fullmatch("[0-9]{1,7}", text) and 1 <= int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1,000,000")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
