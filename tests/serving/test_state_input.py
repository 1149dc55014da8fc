"""The two decoders of a request's body: what the fast one takes, the careful one takes with the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from layer3 import contract
from serving import state_input
from serving.problems import Problem
from serving.state_input import MAX_STATES, parse_batch, parse_instances, parse_state

DIM = contract.STATE_DIM


def refuse(body: bytes) -> Any:
    raise msgspec.DecodeError("never")


def outcome(parse: Callable[[bytes], Any], body: bytes) -> tuple[Any, ...]:
    try:
        return ("numbers", parse(body))
    except Problem as problem:
        return (problem.status, problem.detail, problem.errors)


DECODERS = {parse_state: "_decode_one", parse_batch: "_decode_many", parse_instances: "_decode_instances"}


def agree(parse: Callable[[bytes], Any], body: bytes) -> tuple[Any, ...]:
    """What ``parse`` makes of ``body``, after seeing that the careful decoder alone makes the same of it."""
    both = outcome(parse, body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_input, DECODERS[parse], refuse)
        careful = outcome(parse, body)
    assert both == careful
    return both


#: Spellings of numbers, right and wrong, as JSON and its imitations know them.
spellings = st.sampled_from(
    [
        "0",
        "-0",
        "1",
        "-1",
        "0.5",
        "-0.5",
        "1.0",
        "1e0",
        "1E-3",
        "-1e-400",
        "1e-308",
        "5e-324",
        "0.1e1",
        "10e-1",
        "1.0000000000000001",
        "1.0000000000000003",
        "2",
        "-2",
        "1e400",
        "-1e400",
        "NaN",
        "Infinity",
        "-Infinity",
        "01",
        "+1",
        ".5",
        "1.",
        "1e",
        "0x1",
        "1_0",
        "true",
        "false",
        "null",
        '"0.5"',
        "[0.5]",
        "{}",
        "0.30000000000000004",
        "1e-7",
        "0.1000000000000000055511151231257827021181583404541015625",
        "9007199254740993",
        "18446744073709551616",
        "-",
    ]
) | st.floats(-1, 1).map(repr)
states = st.lists(spellings, min_size=DIM - 1, max_size=DIM + 1).map(lambda texts: f"[{','.join(texts)}]")
good = st.lists(st.floats(-1, 1) | st.sampled_from([0, 1, -1]), min_size=DIM, max_size=DIM)
keys = st.sampled_from(['"state"', '"states"', '"instances"', '"st\\u0061te"', '"state "', '"\\ud800"', "state", '"x"'])
spaces = st.sampled_from(["", " ", "\n\t\r ", "\ufeff", "\u00a0", "\x00"])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Nearly right requests: a key or two, values nearly right, spaces and commas where they may go and may not."""
    value = states | st.lists(states, max_size=3).map(lambda rows: f"[{','.join(rows)}]")
    wrapped = value | states.map(lambda state: f'[{{"state":{state}}}]')
    pairs = draw(st.lists(st.tuples(keys, wrapped), min_size=1, max_size=2))
    space, comma = draw(spaces), draw(st.sampled_from(["", "", "", ","]))
    return f"{space}{{{','.join(f'{key}{space}:{value}' for key, value in pairs)}{comma}}}{space}".encode(
        "utf-8", "surrogatepass"
    )


@settings(max_examples=400, deadline=None)
@given(body=bodies() | st.binary(max_size=60), parse=st.sampled_from(list(DECODERS)))
@example(body=b'{"state":[' + b"0," * 15 + b'0],"state":[' + b"1," * 15 + b"1]}", parse=parse_state)
@example(body=b'{"instances":[{"state":[' + b"0," * 15 + b"0]," + b'"state":[0]}]}', parse=parse_instances)
@example(body=b'{"state":[' + b"0," * 15 + b"0]}\xff", parse=parse_state)
@example(body=b'{"st\xffate":[' + b"0," * 15 + b"0]}", parse=parse_state)
def test_the_decoders_agree_on_anything(body: bytes, parse: Callable[[bytes], Any]) -> None:
    agree(parse, body)


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(good, min_size=1, max_size=4))
def test_every_state_in_range_is_taken_to_the_bit(rows: list[list[float]]) -> None:
    for indent in (None, 1):
        one = json.dumps({"state": rows[0]}, indent=indent).encode()
        assert agree(parse_state, one) == ("numbers", rows[0])
        assert agree(parse_batch, json.dumps({"states": rows}, indent=indent).encode()) == ("numbers", rows)
        mixed = [row if i % 2 else {"state": row} for i, row in enumerate(rows)]
        assert agree(parse_instances, json.dumps({"instances": mixed}, indent=indent).encode()) == ("numbers", rows)


def test_what_is_right_never_meets_the_careful_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def careful(*_: object) -> Any:
        raise AssertionError("the slow way")

    monkeypatch.setattr(state_input, "_decode", careful)
    state = [0, 1, -1, 0.25] * 4
    assert parse_state(json.dumps({"state": state}).encode()) == state
    assert parse_batch(json.dumps({"states": [state] * 3}).encode()) == [state] * 3
    assert parse_instances(json.dumps({"instances": [state, {"state": state}]}).encode()) == [state] * 2


@pytest.mark.parametrize(("parse", "key"), [(parse_batch, "states"), (parse_instances, "instances")])
def test_the_number_of_states_is_exact(parse: Callable[[bytes], Any], key: str) -> None:
    row = [0.0] * DIM
    assert len(parse(json.dumps({key: [row] * MAX_STATES}).encode())) == MAX_STATES
    for count in (0, MAX_STATES + 1):
        status, detail, _ = agree(parse, json.dumps({key: [row] * count}).encode())
        assert (status, detail) == (422, f"{key}: expected 1 to 4096 states, got {count}")


@pytest.mark.parametrize(("parse", "key"), [(parse_batch, "states"), (parse_instances, "instances")])
def test_a_key_without_a_name_is_one_too_many(parse: Callable[[bytes], Any], key: str) -> None:
    row = [0.0] * DIM
    for parse_it, value in ((parse_state, {"state": row}), (parse, {key: [row]})):
        status, detail, _ = agree(parse_it, json.dumps({**value, "": 1}).encode())
        assert status == 422
        assert "no other key" in detail
