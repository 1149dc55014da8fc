"""The threads of the other tests: nothing that goes wrong on one of them stays there."""

from __future__ import annotations

import threading

import pytest

from tests.fakes.threads import at_once, beside


def test_each_gets_a_thread_of_its_own() -> None:
    together = threading.Barrier(4, timeout=60)
    names: set[str] = set()

    def work(number: int) -> None:
        together.wait()
        names.add(threading.current_thread().name)

    at_once(work, range(4))
    assert names == {f"work({number})" for number in range(4)}


def test_what_one_raises_is_raised() -> None:
    def work(number: int) -> None:
        assert number != 2, "two"

    with pytest.raises(AssertionError, match="two"):
        at_once(work, range(4))


def test_what_hangs_is_named_with_where_it_stands() -> None:
    go_on = threading.Event()

    def work(number: int) -> None:
        if number == 1:
            go_on.wait()

    with pytest.raises(AssertionError, match=r"not ended after 0\.1 s:\nwork\(1\), here:\n[\s\S]*go_on\.wait\(\)"):
        at_once(work, range(2), seconds=0.1)
    go_on.set()


def test_the_cause_goes_before_those_who_wait_for_it() -> None:
    never = threading.Event()

    def work(number: int) -> None:
        if number == 0:
            never.wait()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        at_once(work, range(2), seconds=0.1)
    never.set()


def test_a_block_runs_beside_them_and_is_heard_first() -> None:
    asked, answered = threading.Event(), threading.Event()

    def work(_: int) -> None:
        asked.set()
        assert answered.wait(60)

    with beside(work, range(2)):
        assert asked.wait(60)
        answered.set()
    answered.clear()
    with pytest.raises(KeyError), beside(work, range(2)):
        raise KeyError
    answered.set()


def test_a_block_that_raises_says_what_a_thread_raised_before() -> None:
    def work(_: int) -> None:
        raise ZeroDivisionError

    def meanwhile() -> None:
        for thread in threading.enumerate():
            if thread.name == "work(0)":
                thread.join()
        raise KeyError

    with pytest.raises(KeyError) as told, beside(work, range(1)):
        meanwhile()
    assert told.value.__notes__ == ["before, on a thread: ZeroDivisionError()"]
