from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layer3.engine import Layer3Phase1RL
from layer3.live.configuration import Layer3Config, load_config
from layer3.live.reload import ConfigWatcher, fingerprint
from tests.fakes.policies import small_policy
from tests.fakes.servers import wait_for
from tests.live.desk import CALM, NOON, OFF, Desk, Scripted, signal_of


def replaced(file: Path, text: str) -> None:
    """Write as an editor does: nobody sees an empty file on the way."""
    partial = file.with_name("partial")
    partial.write_text(text)
    partial.rename(file)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "layer3.yaml"
    path.write_text("portfolio_value: 1000\n")
    # A file system's clock may tick in hundredths of a second: what a test writes next is of another time.
    os.utime(path, (0, 0))
    return path


@pytest.fixture
def watched(file: Path) -> Iterator[tuple[Desk, ConfigWatcher]]:
    desk = Desk({**OFF, "portfolio_value": 1_000.0})
    watcher = ConfigWatcher(file, lambda: load_config(file, OFF), desk.engine)
    yield desk, watcher
    watcher.stop()


def test_a_changed_file_takes_effect(file: Path, watched: tuple[Desk, ConfigWatcher]) -> None:
    desk, watcher = watched
    told: list[Layer3Config] = []
    watcher.callbacks.append(told.append)
    before = desk.size()
    file.write_text("portfolio_value: 2000\n")
    wait_for(lambda: watcher.reloads == 1 and bool(told))
    after = desk.size()
    assert after.position_size_usd == pytest.approx(2.0 * before.position_size_usd)
    assert after.config_hash == told[0].digest() != before.config_hash
    replaced(file, "portfolio_value: 3000\n")
    wait_for(lambda: watcher.reloads == 2)
    assert desk.engine.config.portfolio_value == 3_000.0


def test_a_change_between_the_first_reading_and_the_watch_takes_effect(file: Path) -> None:
    desk, seen = Desk({**OFF, "portfolio_value": 1_000.0}), fingerprint(file)
    written = file.stat()
    file.write_text("portfolio_value: 2000\n")
    os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))  # of the same size, within one tick of the clock
    watcher = ConfigWatcher(file, lambda: load_config(file, OFF), desk.engine, seen)
    try:
        wait_for(lambda: watcher.reloads == 1)
    finally:
        watcher.stop()
    assert desk.engine.config.portfolio_value == 2_000.0


def test_a_change_while_the_engine_is_made_takes_effect(file: Path) -> None:
    cloud = "deployment_mode: cloud\npolicy: {endpoint: 'http://127.0.0.1:9'}\nportfolio_value: "

    def connect(*_: object) -> Scripted:
        file.write_text(f"{cloud}2000\n")
        return Scripted(1.0)

    file.write_text(f"{cloud}1000\n")
    with Layer3Phase1RL(config_path=file, connect=connect) as engine:
        wait_for(lambda: engine.config.portfolio_value == 2_000.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# being written",
        "portfolio_value: -1",
        "portfolo_value: 1",
        "a: [",
        "1: 2",
        f"decision_log: {{max_bytes: {10**400}}}",
        "policy: {enabled: true, model_path: /nowhere}",
    ],
)
def test_a_bad_file_keeps_the_one_before_and_says_so(file: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    desk = Desk({**OFF, "portfolio_value": 1_000.0})
    watcher = ConfigWatcher(file, lambda: load_config(file), desk.engine)
    with caplog.at_level(logging.ERROR):
        file.write_text(text)
        wait_for(lambda: watcher.rejected >= 1)
    assert desk.engine.config.portfolio_value == 1_000.0
    assert "the one before stays" in caplog.text
    assert desk.size().refusal is None
    file.unlink()
    wait_for(lambda: watcher.rejected >= 2)
    assert watcher.reloads == 0
    watcher.stop()


def test_what_was_refused_for_something_beside_the_file_is_tried_again_by_a_touch(file: Path, tmp_path: Path) -> None:
    desk, folder = Desk({**OFF, "portfolio_value": 1_000.0}), tmp_path / "model"
    watcher = ConfigWatcher(file, lambda: load_config(file), desk.engine)
    try:
        replaced(file, f"portfolio_value: 2000\npolicy: {{model_path: {folder}}}\n")
        wait_for(lambda: watcher.rejected == 1)
        small_policy(folder)
        os.utime(file, (0, 0))
        wait_for(lambda: watcher.reloads == 1)
    finally:
        watcher.stop()
    assert desk.engine.config.portfolio_value == 2_000.0


def test_a_fault_of_the_program_does_not_end_the_watching(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    desk, loads = Desk({**OFF, "portfolio_value": 1_000.0}), [lambda: 1 / 0, lambda: load_config(file, OFF)]
    watcher = ConfigWatcher(file, lambda: loads.pop(0)(), desk.engine)  # type: ignore[arg-type, return-value]
    replaced(file, "portfolio_value: 2000\n")
    wait_for(lambda: watcher.rejected == 1)
    assert "ZeroDivisionError" in caplog.text
    replaced(file, "portfolio_value: 3000\n")
    wait_for(lambda: watcher.reloads == 1)
    assert desk.engine.config.portfolio_value == 3_000.0
    watcher.stop()


def test_a_change_that_changes_nothing_is_none(watched: tuple[Desk, ConfigWatcher], file: Path) -> None:
    desk, watcher = watched
    file.write_text("# a comment\nportfolio_value: 1000.0\n")
    assert not watcher.check()
    assert (watcher.reloads, desk.engine.counters["reloads"]) == (0, 0)


def test_a_callback_that_fails_harms_nothing(
    watched: tuple[Desk, ConfigWatcher], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    desk, watcher = watched
    told: list[Layer3Config] = []

    def failing(config: Layer3Config) -> None:
        raise ValueError("no")

    watcher.callbacks += [failing, told.append]
    file.write_text("portfolio_value: 5000\n")
    wait_for(lambda: len(told) == 1)
    assert watcher.callback_errors == 1
    assert "a callback of the configuration failed" in caplog.text
    assert desk.engine.config.portfolio_value == 5_000.0


def test_decisions_go_on_under_reloads() -> None:
    desk = Desk()
    configs = [load_config(None, {**OFF, "portfolio_value": value}) for value in (1_000.0, 2_000.0)]
    expected = {config.digest(): config.portfolio_value for config in configs} | {desk.engine.config_hash: 100_000.0}
    for i in range(50):
        desk.engine.reload(configs[i % 2])
        got = desk.size()
        assert got.refusal is None
        assert got.portfolio_value == expected[got.config_hash]


def test_the_older_constructor_follows_its_file(file: Path) -> None:
    file.write_text("portfolio_value: 1000\npolicy: {enabled: false}\n")
    os.utime(file, (0, 0))
    with Layer3Phase1RL(config_path=file, kelly_fraction=0.2, clock=lambda: NOON) as engine:
        assert engine.watcher is not None
        file.write_text("portfolio_value: 4000\npolicy: {enabled: false}\n")
        wait_for(lambda: engine.config.portfolio_value == 4_000.0)
        assert engine.config.chain.kelly.kelly_share == 0.2  # what code says stays above the file
        assert engine.calculate_position(signal_of(), CALM, 100.0).portfolio_value == 4_000.0
