"""Ask the served policy for a multiplier, within a deadline that nothing on the other side can stretch."""

from __future__ import annotations

import json
import math
import re
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from layer3 import contract
from layer3.breaker import CircuitBreaker, Permit
from layer3.contract import HEADER
from layer3.errors import (
    CircuitOpenError,
    ConfigurationError,
    ContractError,
    RefusedError,
    SourceError,
    UnauthorisedError,
)
from layer3.net import keys
from layer3.net.address import Place, lookup
from layer3.net.refreshed import Refreshed
from layer3.net.tokens import TokenSource, checked_token
from layer3.net.transport import Address, Budget, Pool, Steps, arun, run
from layer3.net.wire import Answer, brief, completed, request_head

__all__ = ["REQUEST_ID_HEADER", "PolicyClient", "RemoteAnswer", "fetch_multiplier"]

#: Sent with each request; a server that sends one back must send the same.
REQUEST_ID_HEADER: Final = "X-Request-Id"
_ENDING: Final = "/predict"
_LONGEST_TIMEOUT: Final = 600.0
#: Seconds between two looks for the addresses of the host's name.
_LOOKUP_PERIOD: Final = 60.0
#: Seconds between two readings of the key's file. It may be a mounted secret, whose time of change says nothing.
_KEY_PERIOD: Final = 5.0
_AUTHORIZATION: Final = "Authorization"
_BEARER: Final = "Bearer "
#: The headers that hold a secret, in words.
_SECRETS: Final = {keys.HEADER: "the API key", _AUTHORIZATION: "the ID token"}
_REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True, slots=True)
class RemoteAnswer:
    """What the server said: multiplier in [0, 2], confidence in [0, 1], and which model it was."""

    multiplier: float
    confidence: float
    model_version: str


class PolicyClient:
    """Asks ``POST {endpoint}/predict``; for any number of threads and event loops at once.

    Connections are kept alive and shared. Names are resolved, tokens fetched and the key's file read
    ahead, in the background. Close it, or use it as a context manager.

    Parameters
    ----------
    endpoint : the server's URL, with or without ``/predict`` at its end
    timeout_s : seconds for a whole call: name, connection, TLS, every byte sent and received
    breaker : is asked before each call and told how it ended; without one every call is made.
        No answer, HTTP 5xx and an answer that cannot be used are failures; HTTP 4xx is not
    token_source : returns an identity token and its expiry in Unix seconds, such as
        :func:`layer3.net.tokens.metadata_tokens`; a token is sent over https or loopback only
    api_key_file : a file with nothing but an API key, which goes in ``X-API-Key``, by the same rule.
        It is read every 5 s, and at once when the key was refused; while it cannot be used, the key
        before it is sent
    contract : the state contract that the caller was built for

    Raises
    ------
    ConfigurationError : an argument cannot be used
    """

    def __init__(
        self,
        endpoint: str,
        *,
        timeout_s: float = 0.15,
        breaker: CircuitBreaker | None = None,
        token_source: TokenSource | None = None,
        api_key_file: Path | None = None,
        contract: str = contract.VERSION,
    ) -> None:
        if not 0.0 < timeout_s <= _LONGEST_TIMEOUT:
            raise ConfigurationError(
                f"timeout_s is {timeout_s!r}; it must be a number of seconds above 0, at most {_LONGEST_TIMEOUT:g}"
            )
        place = Place.parse(endpoint)
        if (token_source or api_key_file) and place.scheme != "https" and not place.is_loopback:
            raise ConfigurationError(
                f"endpoint {endpoint!r}: tokens and API keys are secrets; they are sent over https only"
            )
        key = None if api_key_file is None else keys.read_key(api_key_file)
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._breaker = breaker
        self._contract = contract
        target = place.path if place.path.endswith(_ENDING) else place.path + _ENDING
        same = {"Accept": "application/json", "Content-Type": "application/json", HEADER: contract}
        self._head = request_head("POST", target, {"Host": place.authority, **same})
        self._addresses: Refreshed[tuple[Address, ...]] | None = None
        self._tokens: Refreshed[str] | None = None
        self._key: Refreshed[str] | None = None
        tls = ssl.create_default_context() if place.scheme == "https" else None
        if place.is_literal:
            known = lookup(place)
            self._pool = Pool(lambda: known, place.host, tls)
        else:
            self._addresses = Refreshed(
                f"the addresses of {place.host}", lambda: (lookup(place), math.inf), period=_LOOKUP_PERIOD
            )
            self._pool = Pool(self._addresses.peek, place.host, tls)
        if token_source is not None:
            self._tokens = Refreshed(f"a token for {endpoint}", lambda: checked_token(token_source))
        if api_key_file is not None and key is not None:
            self._key = Refreshed(
                f"the API key for {endpoint}",
                keys.key_source(api_key_file, key),
                first=key,
                period=_KEY_PERIOD,
            )
        self._closed = False

    def ask(self, state: ArrayLike, request_id: str | None = None) -> RemoteAnswer:
        """The served policy's answer to ``state``, the 16 numbers of the contract.

        Returns or raises within ``timeout_s`` in total. ``request_id`` (printable ASCII, at most 128
        characters) goes along for the server's log; a random one if there is none.

        Raises
        ------
        CircuitOpenError : the breaker forbids the call; nothing was sent
        UnauthorisedError : HTTP 401 or 403, the server refuses the key or the token; as the next
        RefusedError : HTTP 4xx, our fault or our caller's; says nothing about the server's health
        ContractError : the server names another state contract
        SourceError : no connection, no complete answer in time, another status than 200, or an answer
            that is not the one that the API promises; the message says which
        ConfigurationError : ``state`` or ``request_id`` cannot be used
        """
        return run(self._steps(state, request_id))

    async def aask(self, state: ArrayLike, request_id: str | None = None) -> RemoteAnswer:
        """:meth:`ask` for callers in an event loop; a cancelled call tells the breaker nothing."""
        return await arun(self._steps(state, request_id))

    def close(self) -> None:
        """Close idle connections and end the background threads; calls under way end by themselves."""
        self._closed = True
        self._pool.close()
        for kept in (self._addresses, self._tokens, self._key):
            if kept is not None:
                kept.close()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _steps(self, state: ArrayLike, request_id: str | None) -> Steps[RemoteAnswer]:
        budget = Budget.start(self._endpoint, self._timeout_s)
        name = secrets.token_hex(8) if request_id is None else request_id
        body = _body(state)
        headers = {REQUEST_ID_HEADER: _checked_id(name)}
        if self._closed:
            raise SourceError(f"the client of {self._endpoint} is closed")
        permit, secret = self._acquire(), dict[str, str]()
        try:
            secret = yield from self._secret_headers(budget)
            answer = yield from self._pool.exchange(completed(self._head, headers | secret, body), budget)
            result = self._read(answer, name, secret)
        except (SourceError, ContractError) as error:
            if permit is not None and not isinstance(error, RefusedError):
                permit.failure()
            if keys.repeats(str(error).replace(self._endpoint, ""), map(_bare, secret.values())):
                # Not even as the cause, which may hold the whole answer.
                raise self._unshown(error) from None
            raise
        else:
            if permit is not None:
                permit.success()
            return result
        finally:
            # A call that was cancelled or refused says nothing; after an answer this changes nothing.
            if permit is not None:
                permit.ignore()

    def _acquire(self) -> Permit | None:
        if self._breaker is None:
            return None
        permit = self._breaker.try_acquire()
        if permit is None:
            figures = self._breaker.figures()
            raise CircuitOpenError(
                f"{self._endpoint} failed too often and was not asked: the breaker is {figures.state}, "
                f"the next try is in {figures.retry_in:.1f} s"
            )
        return permit

    def _secret_headers(self, budget: Budget) -> Steps[dict[str, str]]:
        found: dict[str, str] = {}
        if self._key is not None and (key := self._key.peek()) is not None:
            found[keys.HEADER] = key
        if self._tokens is not None:
            found[_AUTHORIZATION] = _BEARER + (yield from self._token(self._tokens, budget))
        return found

    def _unshown(self, error: SourceError | ContractError) -> SourceError:
        """An error of the same kind, for an answer that says back the key or the token."""
        kind = type(error) if isinstance(error, SourceError) else SourceError
        return kind(f"{self._endpoint} repeats in its answer the key or token that it was sent: it is not shown")

    def _token(self, tokens: Refreshed[str], budget: Budget) -> Steps[str]:
        while (token := tokens.peek()) is None:
            if not (yield None, 0, budget.end):
                raise SourceError(f"{self._endpoint} was not asked: no token within {budget.seconds * 1000:.0f} ms")
        return token

    def _read(self, answer: Answer, request_id: str, secret: Mapping[str, str]) -> RemoteAnswer:
        where = self._endpoint
        if answer.status in (401, 403):
            raise self._unauthorised(answer, secret)
        if answer.status != 200:
            kind = RefusedError if 400 <= answer.status < 500 else SourceError
            raise kind(f"{where} answered HTTP {answer.status}: {brief(answer.body)}")
        theirs = answer.headers.get(REQUEST_ID_HEADER.lower(), request_id)
        if theirs != request_id:
            self._pool.drop_idle()
            raise SourceError(f"{where} answered request {theirs[:128]!r}, asked was {request_id!r}")
        version = answer.headers.get(HEADER.lower(), self._contract)
        if version != self._contract:
            raise ContractError(theirs=version[:80], ours=self._contract, where=where)
        return _parse(where, answer.body)

    def _unauthorised(self, answer: Answer, secret: Mapping[str, str]) -> UnauthorisedError:
        """The error for an answer 401 or 403; what was sent is fetched or read anew where that may help."""
        if self._tokens is not None and answer.status == 401:
            self._tokens.refresh()
        if self._key is not None:
            self._key.refresh()
        sent = " and ".join(word for name, word in _SECRETS.items() if name in secret)
        refused = f"refused {sent}" if sent else "asks for an API key or an ID token, and was sent none"
        return UnauthorisedError(f"{self._endpoint} {refused}: HTTP {answer.status}: {brief(answer.body)}")


def fetch_multiplier(
    endpoint: str,
    state: ArrayLike,
    *,
    timeout_s: float = 0.15,
    api_key_file: Path | None = None,
    expected_contract: str = contract.VERSION,
) -> RemoteAnswer:
    """One :meth:`PolicyClient.ask` with a client of its own; returns and raises as that does."""
    with PolicyClient(endpoint, timeout_s=timeout_s, api_key_file=api_key_file, contract=expected_contract) as client:
        return client.ask(state)


def _bare(value: str) -> str:
    return value.removeprefix(_BEARER)


def _body(state: ArrayLike) -> bytes:
    try:
        numbers = np.asarray(state, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"state must be {contract.STATE_DIM} finite numbers: {error}") from error
    if numbers.shape != (contract.STATE_DIM,) or not np.isfinite(numbers).all():
        raise ConfigurationError(
            f"state must be {contract.STATE_DIM} finite numbers, got shape {numbers.shape}: {state!r}"
        )
    return json.dumps({"state": numbers.tolist()}).encode("ascii")


def _checked_id(request_id: str) -> str:
    if not isinstance(request_id, str) or not _REQUEST_ID.fullmatch(request_id):
        raise ConfigurationError(f"request_id is {request_id!r}, expected 1 to 128 printable characters of ASCII")
    return request_id


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("a key is given twice")
    return document


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique)


def _parse(endpoint: str, body: bytes) -> RemoteAnswer:
    try:
        # By hand: json.loads would also take UTF-16 and UTF-32.
        answer = _DECODER.decode(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{endpoint} answered something that is not JSON: {error}") from error
    if not isinstance(answer, dict):
        raise SourceError(f"{endpoint} answered {_brief(answer)}, expected a JSON object")
    for name, value in answer.items():
        # Python's reader takes NaN and Infinity, which are not JSON, and makes infinity of 1e400.
        if isinstance(value, float) and not math.isfinite(value):
            raise SourceError(f"{endpoint}: {name[:60]} is {value}, expected finite numbers")
    version = answer.get("model_version")
    if not isinstance(version, str) or not version:
        raise SourceError(f"{endpoint}: model_version is {_brief(version)}, expected a name")
    return RemoteAnswer(
        multiplier=_number(endpoint, answer, "position_multiplier", contract.MULTIPLIER_LOW, contract.MULTIPLIER_HIGH),
        confidence=_number(endpoint, answer, "confidence", 0.0, 1.0),
        model_version=version,
    )


def _number(endpoint: str, answer: dict[str, Any], name: str, low: float, high: float) -> float:
    value = answer.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise SourceError(f"{endpoint}: {name} is {_brief(value)}, expected a number in [{low:g}, {high:g}]")
    return float(value)


def _brief(value: object) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
