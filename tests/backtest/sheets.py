"""Made-up evaluations, and a reader of the HTML that is made from them; shared by tests of pages."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layer3.backtest.record import (
    BUY_AND_HOLD,
    CHAMPION,
    FLAT,
    KELLY_ONLY,
    POLICY,
    Criterion,
    Evaluation,
    Track,
    Verdict,
)
from tests.backtest.sheet_evidence import make_evidence

HOUR_NS = 3_600_000_000_000
VOID = {"meta", "br", "hr", "img", "link", "input"}


def make_evaluation(bars: int = 2_000, start: str = "2023-03-10", seed: int = 1, **context: Any) -> Evaluation:
    """A seeded geometric random walk with fat tails, held by five strategies that guess half of its drift, and a
    made-up evidence of every kind."""
    rng = np.random.default_rng(seed)
    timestamps = np.datetime64(start, "ns").astype(np.int64) + np.arange(bars) * HOUR_NS
    pieces = bars // 48 + 1
    side = rng.choice([-1, 0, 1], pieces)
    drift = np.repeat(side * 0.0005, 48)[:bars]
    returns = rng.standard_t(4, bars) * 0.004 + 0.00004 + drift
    base = np.repeat(side * rng.uniform(0.05, 0.35, pieces), 48)[:bars]
    multiplier = np.clip(np.repeat(rng.normal(1.1, 0.4, bars // 6 + 1), 6)[:bars], 0, 2)
    held = {
        POLICY: (np.clip(base * multiplier, -0.5, 0.5), multiplier),
        KELLY_ONLY: (base * 0.6, np.ones(bars)),
        BUY_AND_HOLD: (np.ones(bars), np.ones(bars)),
        FLAT: (np.zeros(bars), np.ones(bars)),
        CHAMPION: (base * 0.8, np.full(bars, 0.8)),
    }
    tracks = {}
    for name, (exposure, sizes) in held.items():
        turnover = np.abs(np.diff(exposure, prepend=0))
        equity = 1e5 * np.cumprod(np.r_[1.0, 1.0 + exposure * returns - turnover * 0.0015])
        tracks[name] = Track(
            equity,
            exposure,
            sizes,
            turnover,
            turnover * 0.0015 * equity[:-1],
            np.zeros(bars),
            rng.normal(0, 0.01, 80),
        )
    metrics = {
        name: {
            "total_return": float(track.equity[-1] / 1e5 - 1),
            "annual_return": 0.123,
            "sharpe": None if name == FLAT else 1.4142,
            "sortino": None,
            "calmar": 0.71,
            "max_drawdown": float((1 - track.equity / np.maximum.accumulate(track.equity)).max()),
            "volatility": 0.11,
            "turnover": 12.34,
            "costs_paid": float(track.cost.sum()),
            "win_rate": 0.54,
            "trades": 80.0,
            "mean_exposure": float(np.abs(track.exposure).mean()),
            "probabilistic_sharpe": 0.987,
        }
        for name, track in tracks.items()
    }
    details = {
        "symbol": "BTC-USDT",
        "source": "simulated market",
        "synthetic": True,
        "model_id": "himari-1",
        "seed": 7,
        "data_sha256": "9f" * 32,
        "interval_seconds": 3600,
        "period": {"start": "2023-03-10T00:00:00+00:00", "end": "2025-03-09T00:00:00+00:00"},
        "training_period": {"start": "2019-01-01T00:00:00+00:00", "end": "2023-03-01T00:00:00+00:00"},
        "signals": "simulator",
        "costs": {"commission": 0.001, "slippage": 0.0005},
        "code_version": "0.1.0",
        "contract": "himari-state-16/1",
        "capital": 100000.0,
    }
    evidence = make_evidence(timestamps, tracks[POLICY].equity / 1e5, tracks[KELLY_ONLY].equity / 1e5, rng)
    return Evaluation(timestamps, tracks, metrics, details | context, evidence)


def make_verdict(passed: bool = True, criteria: int = 8) -> Verdict:
    """A verdict of ``criteria`` criteria; when it is not passed, every second one failed."""
    names = [
        "sharpe",
        "probabilistic_sharpe",
        "max_drawdown",
        "trades",
        "excess_over_kelly",
        "spread",
        "seven",
        "eight",
    ]
    made = tuple(
        Criterion(
            name,
            (0.15 if name == "max_drawdown" else 1.5) if passed or i % 2 else None,
            "<=" if name == "max_drawdown" else ">=",
            0.2 if name == "max_drawdown" else 1.0,
            passed or bool(i % 2),
            f"Sentence number {i} says it in words.",
        )
        for i, name in enumerate(names[:criteria])
    )
    return Verdict(passed, made)


class Page(HTMLParser):
    """What a page holds: text, ids, references; fails where tags do not balance or ids repeat."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[tuple[str, str, str]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))
        known = set(self.ids)
        for _, name, target in self.references:
            assert not target.startswith("#") or target[1:] in known, (name, target)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href", "data", "action", "poster", "srcset"):
                self.references.append((tag, name, value or ""))
            if value and "url(" in value:
                self.references.append((tag, "url", value.split("url(")[1].split(")")[0]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(filter(None, self.texts))


def open_in_chromium(page: Path, scratch: Path) -> str:
    """The DOM after Chromium opened ``page`` from disk without the network; fails on any console message."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine: the page was checked by its text only")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-dev-shm-usage",
    ]
    done = subprocess.run(
        [chromium, *flags, "--enable-logging=stderr", f"--user-data-dir={scratch}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout
