"""API keys: what the file may hold, who is known by it, and how it is exchanged while the server runs."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3.errors import ConfigurationError
from serving import keys
from serving.keys import KeyFile, parse_keys
from tests.fakes.servers import wait_for

OLD, NEW, OTHER = "old-key-0123456789", "new-key-0123456789", "other:key:0123456789"


def file_of(folder: Path, text: str) -> Path:
    path = folder / "keys"
    path.write_text(text)
    return path


def test_lines_comments_and_rotation(tmp_path: Path) -> None:
    text = f"\n# who may call\n  desk:{OLD}  \r\ndesk:{NEW}\n\ncanary.2:{OTHER}"
    assert parse_keys(text, "keys") == {OLD: "desk", NEW: "desk", OTHER: "canary.2"}
    found = KeyFile(file_of(tmp_path, text))
    known = {key: found.name_of(key.encode()) for key in (OLD, NEW, OTHER)}
    assert known == {OLD: "desk", NEW: "desk", OTHER: "canary.2"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no key"),
        ("# nothing\n\n", "holds no key"),
        (OLD, "line 1"),
        (f":{OLD}", "line 1"),
        ("desk:", "line 1"),
        ("desk:too-short-012345"[:20], "line 1"),
        (f"desk:{'x' * 257}", "line 1"),
        (f"a desk:{OLD}", "line 1"),
        (f"desk:{OLD} # mine", "line 1"),
        (f"{'d' * 65}:{OLD}", "line 1"),
        (f"# one\ndesk:{OLD}\nother:{OLD}", "line 3: this key also stands under another name"),
    ],
)
def test_what_is_wrong_is_said_by_line_and_never_quoted(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_keys(text, "the file")
    assert why in str(caught.value)
    assert OLD not in str(caught.value)
    assert "too-short" not in str(caught.value)


@given(st.text(max_size=80))
def test_any_text_is_keys_or_a_sentence(text: str) -> None:
    try:
        found = parse_keys(text, "the file")
    except ConfigurationError:
        return
    assert found


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"desk:" + b"\xff" * 20, "not ASCII"), (b"#" * 70_000, "larger than"), (None, "No such file")],
)
def test_a_file_that_cannot_be_used_stops_the_start(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=why):
        KeyFile(path)


@given(st.binary(max_size=400))
def test_no_other_bytes_are_a_key(tmp_path_factory: pytest.TempPathFactory, key: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    found = KeyFile(file_of(folder, f"desk:{OLD}\nother:{OTHER}"))
    assert found.name_of(key) is None


@pytest.mark.parametrize("key", [OLD[:-1], OLD + "x", OLD.upper(), OLD + "\0", " " + OLD, OLD + "x" * 5000, ""])
def test_a_key_is_the_whole_key(tmp_path: Path, key: str) -> None:
    assert KeyFile(file_of(tmp_path, f"desk:{OLD}")).name_of(key.encode()) is None


def test_the_longest_key_counts_to_its_last_character(tmp_path: Path) -> None:
    longest = "k" * 256
    found = KeyFile(file_of(tmp_path, f"desk:{longest}"))
    assert found.name_of(longest.encode()) == "desk"
    assert found.name_of(longest.encode() + b"k") is None
    assert found.name_of(longest[:-1].encode()) is None


def test_neither_keys_nor_their_plain_digests_are_kept(tmp_path: Path) -> None:
    path = file_of(tmp_path, f"desk:{OLD}")
    first, second = KeyFile(path), KeyFile(path)
    assert not first._digests.keys() & second._digests.keys()
    assert OLD not in repr(vars(first))


def test_a_changed_file_is_taken_up_by_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_SECONDS", 0.01)
    path = file_of(tmp_path, f"desk:{OLD}")
    found = KeyFile(path)
    found.start()
    try:
        path.write_text(f"desk:{OLD}\ndesk:{NEW}")
        wait_for(lambda: found.name_of(NEW.encode()) == "desk")
        assert found.name_of(OLD.encode()) == "desk"
        replacement = tmp_path / "beside"
        replacement.write_text(f"desk:{NEW}")
        replacement.replace(path)
        wait_for(lambda: found.name_of(OLD.encode()) is None)
        assert found.name_of(NEW.encode()) == "desk"
    finally:
        found.close()
    assert not found._thread.is_alive()


def test_a_change_between_reading_and_the_thread_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_SECONDS", 0.01)
    path = file_of(tmp_path, f"desk:{OLD}")
    found = KeyFile(path)
    path.write_text(f"desk:{NEW}\n")
    found.start()
    try:
        wait_for(lambda: found.name_of(NEW.encode()) == "desk")
    finally:
        found.close()


def test_a_mounted_secret_whose_time_never_changes_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(keys, "READ_SECONDS", 0.05)
    path = file_of(tmp_path, f"desk:{OLD}")
    before = path.stat()
    found = KeyFile(path)
    path.write_text(f"desk:{NEW}")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert keys._time_of_change(path) == found._seen
    found.start()
    try:
        wait_for(lambda: found.name_of(NEW.encode()) == "desk")
    finally:
        found.close()


@pytest.mark.parametrize("broken", ["", "desk:short", f"desk:{NEW}\nother:{NEW}", "desk:ééééééééééééééééé", None])
def test_a_broken_file_keeps_the_old_keys_and_says_so_once(
    tmp_path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = file_of(tmp_path, f"desk:{OLD}")
    found = KeyFile(path)
    if broken is None:
        path.unlink()
    else:
        path.write_text(broken)
    for _ in range(3):
        found.refresh()
    assert found.name_of(OLD.encode()) == "desk"
    assert found.name_of(NEW.encode()) is None
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "the API keys stay as they were" in caplog.text
    path.write_text(f"desk:{NEW}")
    found.refresh()
    found.refresh()
    assert found.name_of(NEW.encode()) == "desk"
    assert found.name_of(OLD.encode()) is None
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert OLD not in caplog.text
    assert NEW not in caplog.text


def test_a_file_mended_to_what_it_was_may_be_complained_of_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = file_of(tmp_path, f"desk:{OLD}")
    found = KeyFile(path)
    for text in ("", f"desk:{OLD}", ""):
        path.write_text(text)
        found.refresh()
    assert [record.levelname for record in caplog.records if record.levelno >= logging.ERROR] == ["ERROR", "ERROR"]


def test_closing_what_was_never_started_is_nothing(tmp_path: Path) -> None:
    KeyFile(file_of(tmp_path, f"desk:{OLD}")).close()
