"""Cron expressions: what both sides take, what is refused here, and how often one comes true."""

from __future__ import annotations

import pytest

from layer3.errors import ConfigurationError
from pipelines.cron import checked_cron, runs_per_month
from tests.fakes.vertex.schedules import _cron


@pytest.mark.parametrize(
    "text",
    [
        "0 6 * * 1",
        "TZ=Etc/UTC 0 6 * * 1",
        "CRON_TZ=America/Toronto */15 0-6/2 1,15 jan *",
        "0 6 30 2 mon",
        "5/10 * * * *",
    ],
)
def test_cron_expressions_that_both_sides_take(text: str) -> None:
    assert checked_cron(f"  {text.replace(' ', '  ')} ") == text
    _cron(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("@weekly", "1 fields"),
        ("60 6 * * *", "'60' is no minute"),
        ("0 6 0 * *", "'0' is no day of the month"),
        ("0 6 * 13 *", "'13' is no month: it must be 1 to 12, or jan to dec"),
        ("0 6 * * 7", "'7' is no day of the week"),
        ("0 6 * * fri-mon", "'fri-mon' is no day of the week"),
        ("*/0 * * * *", "is no minute"),
        ("٣ * * * *", "is no minute"),
        ("1,,2 * * * *", "'' is no minute"),
        ("0 6 30 2 *", "that day never comes"),
        ("0 6 31 4,6 *", "that day never comes"),
        ("TZ= 0 6 * * *", "no time zone ''"),
        ("TZ=../../etc/passwd 0 6 * * *", "no time zone"),
    ],
)
def test_cron_expressions_that_cannot_be(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        checked_cron(text)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("TZ=Etc/UTC 0 6 * * 1", 365.25 / 7 / 12),
        ("0 6,18 * * *", 2 * 365.25 / 12),
        ("0 6 1 * *", 1.0),
        ("0 6 1 jan *", 1 / 12),
        ("0 6 29 2 *", 1 / 48),
        ("*/15 * * * *", 4 * 24 * 365.25 / 12),
        ("0 6 1 * sun", 1.0 + 365.25 / 7 / 12 - 1 / 7),  # either day will do, and every seventh first is both
    ],
)
def test_how_often_a_month(text: str, runs: float) -> None:
    assert runs_per_month(text) == pytest.approx(runs)
