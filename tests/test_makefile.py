"""What a user writes behind ``make`` reaches the program as it stands, whatever characters it holds."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
AWKWARD = '/tmp/it\'s a "path" with `ticks`; python3 ünï.csv'


def say(tmp_path: Path, *words: str) -> list[str]:
    """The arguments of the last program that ``make`` starts, in an environment whose python only shows them."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/bash\nprintf "%s\\n" "MODEL_URI=${MODEL_URI:-}" "PORT=${PORT:-}" "$@" > "$SHOWN"\n')
    python.chmod(0o755)
    (tmp_path / ".ready").touch()
    shown = tmp_path / "shown"
    command = ["make", *words, f"VENV={tmp_path}", f"SHOWN={shown}"]
    # Whatever make or shell these tests were started from, only what is written behind make counts.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment = inherited | {"DATA": "else.csv", "HOST": "0.0.0.0", "PORT": "1", "STORE": "elsewhere"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return shown.read_text().splitlines()


def test_run_local(tmp_path: Path) -> None:
    shown = say(tmp_path, "run-local", f"DATA={AWKWARD}", f"STORE={AWKWARD}", "SYMBOL=BTC-USDT", "THRESHOLD=-1")
    assert {f"--data={AWKWARD}", f"--store={AWKWARD}", "--symbol=BTC-USDT", "--threshold=-1", "--seed=1"} <= set(shown)


def test_run_local_without_limits_names_none(tmp_path: Path) -> None:
    shown = say(tmp_path, "run-local")
    assert {"--folds=6", "--fold-seeds=2", "--fold-kind=rolling", "--override-name=", "--override-reason="} <= set(
        shown
    )
    assert not [word for word in shown if word.startswith(("--threshold", "--gate", "--sizing", "--members"))]


@pytest.mark.parametrize("target", ["run-local", "run-pipeline", "schedule"])
def test_the_size_of_the_ensemble(tmp_path: Path, target: str) -> None:
    assert "--members=8" in say(tmp_path, target, "MEMBERS=8")


def test_the_gates_limits_and_who_overrides_it(tmp_path: Path) -> None:
    shown = say(
        tmp_path,
        "run-local",
        f"GATE={AWKWARD}",
        f"OVERRIDE_NAME={AWKWARD}",
        f"OVERRIDE_REASON={AWKWARD}",
        "FOLDS=0",
        "FOLD_SEEDS=3",
        "FOLD_KIND=expanding",
    )
    assert {f"--gate={AWKWARD}", f"--override-name={AWKWARD}", f"--override-reason={AWKWARD}"} <= set(shown)
    assert {"--folds=0", "--fold-seeds=3", "--fold-kind=expanding"} <= set(shown)


def test_explain(tmp_path: Path) -> None:
    shown = say(tmp_path, "explain", f"RUN={AWKWARD}", f"STORE={AWKWARD}")
    assert {"pipelines.explain", f"--run={AWKWARD}", f"--store={AWKWARD}"} <= set(shown)


@pytest.mark.parametrize(
    ("target", "module"), [("calibrate", "bench.gate_calibration"), ("bench-evaluation", "bench.evaluation")]
)
def test_benchmarks_of_the_evaluation(tmp_path: Path, target: str, module: str) -> None:
    assert say(tmp_path, target)[-2:] == ["-m", module]


def test_market_names_the_simulator(tmp_path: Path) -> None:
    assert "--data=synthetic:edge=3,bars=12000" in say(tmp_path, "run-local", "MARKET=edge=3,bars=12000")


def test_tune(tmp_path: Path) -> None:
    shown = say(tmp_path, "tune", f"DATA={AWKWARD}", "SYMBOL=BTC-USDT", "TRIALS=7", "SEEDS=4", "JOBS=3", "STEPS=9999")
    assert {"layer3.experiments.tune", f"--data={AWKWARD}", "--symbol=BTC-USDT", "--trials=7"} <= set(shown)
    assert {"--seeds=4", "--jobs=3", "--steps=9999", "--store=."} <= set(shown)


def test_assets(tmp_path: Path) -> None:
    shown = say(tmp_path, "assets", f"ASSETS={AWKWARD}", f"STORE={AWKWARD}")
    assert {"layer3.experiments.assets", f"--assets={AWKWARD}", "--data=coinbase:{asset}-USD"} <= set(shown)
    assert {"--steps=500000", f"--store={AWKWARD}"} <= set(shown)
    assert not [word for word in shown if word.startswith("--seeds")]


def test_assets_take_data_too(tmp_path: Path) -> None:
    assert "--data=synthetic:seed=5" in say(tmp_path, "assets", "DATA=synthetic:seed=5")


def test_serve(tmp_path: Path) -> None:
    assert {f"MODEL_URI={AWKWARD}/channels/production.json", "PORT=8123"} <= set(
        say(tmp_path, "serve", f"STORE={AWKWARD}", "PORT=8123")
    )


def test_size(tmp_path: Path) -> None:
    shown = say(tmp_path, "size", f"SIGNAL={AWKWARD}", "PORT=8123")
    assert {f"--input={AWKWARD}", "--endpoint=http://127.0.0.1:8123", "--store=."} <= set(shown)


def test_the_key_of_a_size(tmp_path: Path) -> None:
    assert f"--api-key-file={AWKWARD}" in say(tmp_path, "size", f"API_KEY_FILE={AWKWARD}")


@pytest.mark.parametrize("target", ["rollback", "release-status"])
def test_releases(tmp_path: Path, target: str) -> None:
    assert f"--store={AWKWARD}" in say(tmp_path, target, f"STORE={AWKWARD}")
