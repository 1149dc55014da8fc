from __future__ import annotations

import copy
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layer3 import contract
from layer3.agent.policy import Policy
from layer3.champion import Champion, Channel
from layer3.size import main
from layer3.sizing.request import EXAMPLE
from tests.fakes.policies import small_policy
from tests.fakes.strict import strict_server
from tests.fakes.web import Handler, answering

NAMED = {"policy_sha256": "0" * 64, "contract": contract.VERSION, "released_at": "2026-01-01", "run_id": "run-1"}


@pytest.fixture
def nobody() -> str:
    """An endpoint where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def served() -> Iterator[tuple[str, list[list[float]]]]:
    """A champion that answers 1.5, and the states that it was asked."""
    asked: list[list[float]] = []

    class Champion(Handler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.content())["state"])
            body = b'{"position_multiplier": 1.5, "confidence": 0.7, "latency_ms": 1, "model_version": "m1"}'
            self.reply(200, body)

    with answering(Champion) as url:
        yield url, asked


def release(store: Path) -> Policy:
    policy = small_policy(store / "scratch")
    (store / "models").mkdir()
    (store / "scratch").rename(store / "models" / policy.model_id)
    (store / "channels").mkdir()
    name_champion(store, policy.model_id, policy.manifest["policy_sha256"])
    return policy


def name_champion(store: Path, model_id: str, policy_sha256: str) -> None:
    named = Champion(model_id, policy_sha256, contract.VERSION, "2026-01-01T00:00:00+00:00", "run-1")
    (store / "channels" / "production.json").write_text(Channel(named).to_json())


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main([str(a) for a in (*arguments, "--json")]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_the_endpoint_may_ask_for_a_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("the-desks-own-key\n")
    with strict_server() as server:
        asked = ("--endpoint", server.url, "--store", tmp_path, "--timeout-ms", 5000, "--api-key-file", key)
        refused = run(capsys, *asked)
        assert refused["multiplier_source"] == "fallback_kelly"
        assert "refused the API key: HTTP 401" in refused["passed_over"][0]
        server.accepted = {"the-desks-own-key"}
        assert run(capsys, *asked)["multiplier_source"] == "gcp_api"
        key.write_text("")
        assert main([*map(str, asked)]) == 2
    assert capsys.readouterr().err == f"error: {key} is empty: write the API key there\n"


def test_the_served_champion_comes_first(
    capsys: pytest.CaptureFixture[str], served: tuple[str, list[list[float]]], tmp_path: Path
) -> None:
    release(tmp_path)
    url, asked = served
    decision = run(capsys, "--endpoint", url, "--store", tmp_path, "--timeout-ms", 5000)
    assert (decision["multiplier"], decision["multiplier_source"], decision["model_version"]) == (1.5, "gcp_api", "m1")
    assert decision["passed_over"] == []
    assert decision["exposure"] == pytest.approx(decision["base_fraction"] * 1.5)
    expected = contract.build_state(
        confidence=0.85, side=1, tier=2, exposure=0.0, unrealised_pnl=0.0, return_1h=0.004, return_4h=0.011,
        volatility=0.028, win_rate=0.6, cascade_risk=decision["cascade_risk"],
    )  # fmt: skip
    np.testing.assert_array_equal(np.array(asked, dtype=np.float32), expected[None])


def test_then_the_local_file(capsys: pytest.CaptureFixture[str], nobody: str, tmp_path: Path) -> None:
    policy = release(tmp_path)
    decision = run(capsys, "--endpoint", nobody, "--store", tmp_path)
    assert (decision["multiplier_source"], decision["model_version"]) == ("local_model", policy.model_id)
    assert 0.0 < decision["multiplier"] < 2.0
    assert decision["passed_over"][0].startswith(f"gcp_api: {nobody} did not answer: Connection refused")


def test_then_the_chain_alone(capsys: pytest.CaptureFixture[str], nobody: str, tmp_path: Path) -> None:
    decision = run(capsys, "--endpoint", nobody, "--store", tmp_path)
    assert (decision["multiplier"], decision["multiplier_source"]) == (1.0, "fallback_kelly")
    assert decision["multiplier_confidence"] is None
    assert "local_model: no champion yet" in decision["passed_over"][1]


@pytest.mark.parametrize(
    ("channel", "says"),
    [
        ("{", "is not a channel file"),
        ("[]", "is not a channel file"),
        ('{"model_id": 3}', "model_id is 3, expected a string"),
        (json.dumps(NAMED | {"model_id": "../../etc"}), "model id '../../etc': expected letters"),
        (json.dumps(NAMED | {"model_id": "gone"}), "no policy at"),
    ],
)
def test_a_damaged_store_falls_back_and_says_why(
    capsys: pytest.CaptureFixture[str], nobody: str, tmp_path: Path, channel: str, says: str
) -> None:
    (tmp_path / "channels").mkdir()
    (tmp_path / "channels" / "production.json").write_text(channel)
    decision = run(capsys, "--endpoint", nobody, "--store", tmp_path)
    assert decision["multiplier_source"] == "fallback_kelly"
    assert says in decision["passed_over"][1]


def test_a_changed_policy_file_is_passed_over(capsys: pytest.CaptureFixture[str], nobody: str, tmp_path: Path) -> None:
    policy = release(tmp_path)
    weights = tmp_path / "models" / policy.model_id / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    decision = run(capsys, "--endpoint", nobody, "--store", tmp_path)
    assert decision["multiplier_source"] == "fallback_kelly"
    assert "sha256" in decision["passed_over"][1]


def test_a_policy_other_than_the_released_one_is_passed_over(
    capsys: pytest.CaptureFixture[str], nobody: str, tmp_path: Path
) -> None:
    policy = release(tmp_path)
    name_champion(tmp_path, policy.model_id, "0" * 64)
    decision = run(capsys, "--endpoint", nobody, "--store", tmp_path)
    assert decision["multiplier_source"] == "fallback_kelly"
    assert "it is not the model that was released" in decision["passed_over"][1]


def test_a_store_in_a_bucket_is_no_local_policy(capsys: pytest.CaptureFixture[str], nobody: str) -> None:
    decision = run(capsys, "--endpoint", nobody, "--store", "gs://bucket/store")
    assert decision["multiplier_source"] == "fallback_kelly"
    assert "gs://bucket/store is no local folder" in decision["passed_over"][1]


def test_what_a_person_reads(
    capsys: pytest.CaptureFixture[str], nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    assert main(["--endpoint", nobody, "--store", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0].startswith("BTC-USDT  BUY  confidence 0.85")
    assert "2026-01-01 09:00:00 UTC" in text
    assert "LONG  $" in text
    assert max(len(line) for line in lines) <= 90
    for stage in ("validate", "kelly", "conformal", "sentiment", "regime", "cascade", "base cap", "multiplier", "cap"):
        assert any(line.startswith(f"  {stage}") for line in lines)
    assert "from fallback_kelly" in text
    assert text.count("passed over") == 2
    rows = [line for line in lines if line.startswith(("  kelly", "  conformal", "  cap "))]
    assert len({line.index("%") for line in rows}) == 1  # aligned


def request(**changes: Any) -> dict[str, Any]:
    document = copy.deepcopy(dict(EXAMPLE))
    for path, value in changes.items():
        section, _, field = path.partition("__")
        if field:
            document[section][field] = value
        else:
            document[section] = value
    return document


def refused(capsys: pytest.CaptureFixture[str], path: Path) -> str:
    assert main(["--input", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    return captured.err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"signal__confidence": 1.2}, "signal.confidence is 1.2, expected a number in [0, 1]"),
        ({"signal__confidence": "0.8"}, "signal.confidence is '0.8', expected a number"),
        ({"signal__confidence": True}, "signal.confidence is True, expected a number"),
        ({"signal__confidence": None}, "signal.confidence is missing, expected a number"),
        ({"signal__action": "long"}, "signal.action is 'long', expected one of strong_buy, buy, hold"),
        ({"signal__regime": 3}, "signal.regime is 3, expected one of trending_up"),
        ({"signal__timestamp_ns": 1.5}, "signal.timestamp_ns is 1.5, expected a whole number"),
        ({"signal__symbol": ""}, "signal.symbol is '', expected a name"),
        ({"signal__symbol": "BTC\x1b[31m"}, r"signal.symbol is 'BTC\x1b[31m', expected a name of at most 100"),
        ({"signal__strategy_id": "x" * 5_000}, "expected a name of at most 100 printable characters"),
        ({"signal__confidense": 0.5}, "unknown field 'signal.confidense'; did you mean 'confidence'?"),
        ({"signal__expected_return": 10**400}, "signal.expected_return is too large"),
        ({"cascade__onchain_whale_pressure": 7}, "cascade.onchain_whale_pressure is 7.0, expected a number in [0, 1]"),
        ({"cascade": []}, "cascade is [], expected an object of fields"),
        ({"market__win_rate": 55}, "market.win_rate is 55.0, expected a number in [0, 1]"),
        ({"market__return_2h": 0.0}, "unknown field 'market.return_2h'; did you mean 'return_"),
        ({"portfolio_value": 0}, "portfolio_value is 0.0, expected dollars above 0"),
        ({"portfolio_value": None}, "portfolio_value is None, expected a number"),
        ({"porfolio": 1}, "unknown field 'porfolio'; did you mean 'portfolio_value'?"),
    ],
)
def test_bad_input_is_one_line_that_names_the_field(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(request(**changes)))
    assert says in refused(capsys, path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "not a text file in UTF-8"),
        (b"[]", "the document is [], expected an object"),
        (b'{"portfolio_value": NaN}', "the number NaN is not allowed"),
        (b'{"portfolio_value": -Infinity}', "the number -Infinity is not allowed"),
        (b'{"signal": {}, "signal": {}}', "field 'signal' is given twice"),
        (b'{"portfolio_value": 1}', "signal is missing"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_bad_files(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: bytes, says: str) -> None:
    path = tmp_path / "request.json"
    path.write_bytes(text)
    assert says in refused(capsys, path)
    assert "cannot read" in refused(capsys, tmp_path / "absent.json")


def test_optional_sections_may_be_left_out(capsys: pytest.CaptureFixture[str], nobody: str, tmp_path: Path) -> None:
    document = request()
    del document["cascade"], document["market"], document["signal"]["predicted_volatility"]
    path = tmp_path / "request.json"
    path.write_text(json.dumps(document))
    decision = run(capsys, "--input", path, "--endpoint", nobody, "--store", tmp_path)
    assert any("no feeds" in stage["reason"] for stage in decision["stages"])
    assert any("no volatility given" in stage["reason"] for stage in decision["stages"])


def test_a_hold_and_a_sell(capsys: pytest.CaptureFixture[str], nobody: str, tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    got = {}
    for action in ("buy", "hold", "sell"):
        path.write_text(json.dumps(request(signal__action=action, signal__sentiment_score=0.5)))
        got[action] = run(capsys, "--input", path, "--endpoint", nobody, "--store", tmp_path)["position_size_usd"]
    assert got["buy"] > got["hold"] == 0.0
    assert got["sell"] == -got["buy"]


def test_its_own_configuration(capsys: pytest.CaptureFixture[str], nobody: str, tmp_path: Path) -> None:
    config = tmp_path / "sizing.yaml"
    config.write_text("max_exposure: 0.1\n")
    decision = run(capsys, "--config", config, "--endpoint", nobody, "--store", tmp_path)
    assert decision["exposure"] == 0.1
    config.write_text("max_exposure: 1\n")
    assert main(["--config", str(config)]) == 2
    assert "max_exposure is 1" in capsys.readouterr().err


def test_bad_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--endpoint", "somewhere"]) == 2
    assert "endpoint 'somewhere' must look like http" in capsys.readouterr().err
    assert main(["--timeout-ms", "-3"]) == 2
    assert "timeout_s" in capsys.readouterr().err


def test_as_a_program_and_without_heavy_imports(nobody: str, tmp_path: Path) -> None:
    code = (
        "import sys; from layer3.size import main; "
        f"rc = main(['--endpoint', {nobody!r}, '--store', {str(tmp_path)!r}]); "
        "heavy = {'torch', 'pandas', 'yaml', 'fastapi'} & set(sys.modules); "
        "sys.exit(rc or (7 if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "fallback_kelly" in done.stdout
