"""From the bytes of a request to checked numbers, or to a :class:`serving.problems.Problem`.

There are two decoders. msgspec checks types, lengths and ranges while it reads, in half a microsecond, and
says little about what it refuses; whatever it refuses goes through the careful decoder, which names each
wrong number, and whose word is final. What the first accepts, the second accepts with the same numbers.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec

from layer3 import contract
from serving.problems import Problem

__all__ = [
    "MAX_BATCH_BODY",
    "MAX_BODY",
    "MAX_STATES",
    "STATE_HIGH",
    "STATE_LOW",
    "check_content_type",
    "parse_batch",
    "parse_instances",
    "parse_state",
]

#: Largest request body in bytes; a state is about 300.
MAX_BODY: Final = 64 * 1024
#: Largest body of many states, in bytes.
MAX_BATCH_BODY: Final = 4 * 1024 * 1024
#: Most states of one request.
MAX_STATES: Final = 4096
#: Bounds of every number of the state contract.
STATE_LOW: Final = -1.0
STATE_HIGH: Final = 1.0

_STATE: Final = f"[{contract.STATE_DIM} numbers]"
_ONE: Final = f'{{"state": {_STATE}}}'
_MANY: Final = f'{{"states": [{_STATE}, ...]}}'
_INSTANCES: Final = f'{{"instances": [{_STATE} or {_ONE}, ...]}}'
_RANGE: Final = f"a number in [{STATE_LOW:g}, {STATE_HIGH:g}]"
_SHOWN: Final = 40
#: Digits of an integer that is still read as one: Python stops at 4300, and any of that length is out of range.
_DIGITS: Final = 4000
#: Wrong numbers of one request that are listed; the others are counted.
_LISTED: Final = 100

_Number = Annotated[float, msgspec.Meta(ge=STATE_LOW, le=STATE_HIGH)]
_Row = Annotated[list[_Number], msgspec.Meta(min_length=contract.STATE_DIM, max_length=contract.STATE_DIM)]
_Count = msgspec.Meta(min_length=1, max_length=MAX_STATES)


class _One(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    state: _Row


class _Many(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    states: Annotated[list[_Row], _Count]


class _Instances(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    instances: Annotated[list[_Row | _One], _Count]


_decode_one: Final = msgspec.json.Decoder(_One).decode
_decode_many: Final = msgspec.json.Decoder(_Many).decode
_decode_instances: Final = msgspec.json.Decoder(_Instances).decode
#: What msgspec raises; the second where a key is not UTF-8.
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError)


def check_content_type(content_type: bytes | None, coding: bytes | None) -> None:
    """Raise a Problem 415 unless the headers Content-Type and Content-Encoding say plain JSON in UTF-8."""
    if coding is not None and coding.lower() != b"identity":
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"expected a body without Content-Encoding, got {_show(coding.decode('latin-1'))}",
        )
    if content_type == b"application/json":
        return
    text = (content_type or b"").decode("latin-1")
    media_type, _, parameters = text.partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if media_type.strip().lower() != "application/json" or charset not in ("", "utf-8", "utf8"):
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"expected Content-Type application/json in UTF-8, got {_show(text) if text else 'none'}",
        )


def parse_state(body: bytes) -> list[float]:
    """The state of ``{"state": [...]}``: 16 finite numbers in [-1, 1], in the order of ``contract.FEATURES``.

    Raises
    ------
    Problem : 400 when it is not JSON in UTF-8, 422 when it is not such a state; each wrong number is named
    """
    if body.count(b'"') == 2:  # one key: msgspec would not mind if it came twice
        try:
            return _decode_one(body).state
        except _UNREADABLE:
            pass  # the careful decoder finds the words, or disagrees
    document = _object(body, _ONE, "state")
    return _numbers([_list_of_state(document["state"], "state")], "state")[0]


def parse_batch(body: bytes) -> list[list[float]]:
    """The states of ``{"states": [[...], ...]}``, 1 to :data:`MAX_STATES`; a Problem as from :func:`parse_state`."""
    if body.count(b'"') == 2:
        try:
            return _decode_many(body).states
        except _UNREADABLE:
            pass
    document = _object(body, _MANY, "states")
    rows = _list_of_states(document["states"], "states")
    return _numbers([_list_of_state(row, f"states[{i}]") for i, row in enumerate(rows)], "states[{}]")


def parse_instances(body: bytes) -> list[list[float]]:
    """The states of Vertex AI's ``{"instances": [...]}``, each a list of numbers or ``{"state": [...]}``.

    ``parameters`` may be there, and must be empty: this model knows none. A Problem as from :func:`parse_state`.
    """
    try:
        instances = _decode_instances(body).instances
    except _UNREADABLE:
        pass
    else:
        wrapped = sum(type(instance) is _One for instance in instances)
        if body.count(b'"') == 2 + 2 * wrapped:
            return [instance.state if type(instance) is _One else instance for instance in instances]  # type: ignore[misc]
    document = _object(body, _INSTANCES, "instances", optional="parameters")
    if document.get("parameters") not in (None, {}):
        raise _unfit(f"parameters: this model knows none, got {_keys_or_value(document['parameters'])}")
    rows = []
    for i, instance in enumerate(_list_of_states(document["instances"], "instances")):
        where = f"instances[{i}]"
        if isinstance(instance, dict):
            if set(instance) != {"state"}:
                raise _unfit(f"{where}: expected {_STATE} or {_ONE}, got {_keys(instance)}")
            instance = instance["state"]
        rows.append(_list_of_state(instance, where))
    return _numbers(rows, "instances[{}]")


def _object(body: bytes, expected: str, key: str, *, optional: str | None = None) -> dict[str, Any]:
    document = _decode(body, expected)
    if not isinstance(document, dict):
        raise _unfit(f"expected {expected}, got {_show(document)}")
    if key not in document:
        raise _unfit(f'expected {expected}, the key "{key}" is missing; got {_keys(document)}')
    if set(document) - {key, optional}:
        raise _unfit(f"expected {expected} and no other key, got {_keys(document)}")
    return document


def _list_of_states(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _unfit(f"{where}: expected a list of 1 to {MAX_STATES} states, got {_show(value)}")
    if not 1 <= len(value) <= MAX_STATES:
        raise _unfit(f"{where}: expected 1 to {MAX_STATES} states, got {len(value)}")
    return value


def _list_of_state(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _unfit(f"{where}: expected a list of {contract.STATE_DIM} numbers, got {_show(value)}")
    if len(value) != contract.STATE_DIM:
        raise _unfit(f"{where}: expected {contract.STATE_DIM} numbers, got {len(value)}")
    return value


def _numbers(rows: Sequence[Sequence[Any]], where: str) -> list[list[float]]:
    """The rows as floats, or a Problem that names each number that is none or out of range.

    ``where`` is what a row is called, with ``{}`` for its number where there may be several.
    """
    wrong = [(i, j, value) for i, row in enumerate(rows) for j, value in enumerate(row) if not _is_in_range(value)]
    if wrong:
        several = "{}" in where
        i, j, value = wrong[0]
        more = f" (and {len(wrong) - 1} more, see errors)" if len(wrong) > 1 else ""
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"{where.format(i)}[{j}] ({contract.FEATURES[j]}): expected {_RANGE}, got {_show(value)}{more}",
            list(_faults(wrong[:_LISTED], several)),
        )
    return [[float(value) for value in row] for row in rows]


def _faults(wrong: Iterable[tuple[int, int, Any]], several: bool) -> Iterable[dict[str, Any]]:
    for i, j, value in wrong:
        fault = {"index": j, "feature": contract.FEATURES[j], "expected": _RANGE, "got": _show(value)}
        yield {"state": i, **fault} if several else fault


def _unfit(detail: str) -> Problem:
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail)


def _decode(body: bytes, expected: str) -> Any:
    if not body.strip():
        raise Problem(HTTPStatus.BAD_REQUEST, f"expected {expected}, got an empty body")
    if body.startswith(codecs.BOM_UTF8):
        raise Problem(HTTPStatus.BAD_REQUEST, "expected JSON in UTF-8 without a byte-order mark, got one")
    try:
        # By hand: json.loads(bytes) would also take UTF-16 and UTF-32.
        return json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_int=_integer)
    except UnicodeDecodeError as error:
        got = f"byte {error.start} is 0x{body[error.start]:02x}"
        raise Problem(HTTPStatus.BAD_REQUEST, f"expected JSON in UTF-8, but {got}") from None
    except RecursionError:
        raise Problem(HTTPStatus.BAD_REQUEST, f"expected {expected}, got JSON that is nested too deeply") from None
    except ValueError as error:
        raise Problem(HTTPStatus.BAD_REQUEST, f"expected {expected}, got no JSON: {error}") from None


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _DIGITS else float(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("a key is given twice")
    return document


def _is_in_range(value: object) -> bool:
    # bool is an int in Python and not a number in JSON; NaN fails the comparison.
    return isinstance(value, int | float) and not isinstance(value, bool) and STATE_LOW <= value <= STATE_HIGH


def _keys(document: dict[str, Any]) -> str:
    if not document:
        return "no key"
    shown = ", ".join(_show(key) for key in list(document)[:4])
    return f"the keys {shown}{', …' if len(document) > 4 else ''}"


def _keys_or_value(value: object) -> str:
    return _keys(value) if isinstance(value, dict) else _show(value)


def _show(value: object) -> str:
    """``value`` as a caller would write it, cut to a length that fits in a sentence."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
