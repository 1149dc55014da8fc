"""Size one signal from the command line: ``python -m layer3.size`` (``make size``).

The multiplier comes from the first of these that answers, and the output says which and why the
ones before it did not: the served champion over HTTP (``gcp_api``), the champion's file in a local
store (``local_model``), and 1.0, which is the Phase 1 chain alone (``fallback_kelly``).

Each call starts a fresh chain: it knows no closed trades, no forecast errors and no earlier regime,
where the chain behind training and backtest has learnt from the bars before.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from layer3 import champion, contract, storage
from layer3.agent.policy import Policy
from layer3.errors import ConfigurationError, ContractError, DataError, PolicyError, ReleaseError, SourceError
from layer3.remote import fetch_multiplier
from layer3.sizing.chain import Assessment, SizingChain, decide
from layer3.sizing.config import ChainConfig, load_chain_config
from layer3.sizing.request import EXAMPLE, SizingRequest, parse_request, read_request
from layer3.types import FALLBACK_KELLY, GCP_API, LOCAL_MODEL, PositionSizingDecision

__all__ = ["Multiplier", "choose_multiplier", "main"]


@dataclass(frozen=True, slots=True)
class Multiplier:
    """The multiplier in [0, 2], who gave it, and which sources were passed over and why.

    ``confidence`` in [0, 1] and ``model_version`` are ``None`` for the fallback.
    """

    value: float
    source: str
    confidence: float | None
    model_version: str | None
    passed_over: tuple[str, ...]


def choose_multiplier(
    endpoint: str, store: str, state: NDArray[np.float32], timeout_s: float, api_key_file: Path | None = None
) -> Multiplier:
    """Ask the served champion, else the local file, else answer 1.0; never silent about which.

    Raises
    ------
    ConfigurationError : ``endpoint``, ``timeout_s`` or ``api_key_file`` cannot be used at all
    """
    passed_over: list[str] = []
    try:
        answer = fetch_multiplier(endpoint, state, timeout_s=timeout_s, api_key_file=api_key_file)
        return Multiplier(answer.multiplier, GCP_API, answer.confidence, answer.model_version, ())
    except (SourceError, ContractError) as error:
        passed_over.append(f"{GCP_API}: {error}")
    try:
        policy = _champion(store)
        values, confidences = policy.act(state)
        return Multiplier(float(values), LOCAL_MODEL, float(confidences), policy.model_id, tuple(passed_over))
    except (PolicyError, ContractError, ReleaseError) as error:
        passed_over.append(f"{LOCAL_MODEL}: {error}")
    return Multiplier(1.0, FALLBACK_KELLY, None, None, tuple(passed_over))


def _champion(store: str) -> Policy:
    """The verified policy that the channel of a local store names; a PolicyError where nothing was released yet."""
    if storage.is_remote(store):
        raise PolicyError(f"{store} is no local folder: ask the served champion, or name a copy of the store")
    try:
        policy = champion.load(store)
    except OSError as error:
        raise PolicyError(f"cannot read the champion of {store}: {error.strerror}: {error.filename}") from error
    if policy is None:
        raise PolicyError(f"no champion yet: {storage.join(store, *champion.CHANNEL)} does not exist")
    return policy


def _state(request: SizingRequest, assessment: Assessment, config: ChainConfig) -> NDArray[np.float32]:
    signal, market = request.signal, request.market
    volatility = market.volatility
    if volatility is None:
        volatility = signal.predicted_volatility
    if volatility is None:
        volatility = config.kelly.default_daily_volatility
    return contract.build_state(
        confidence=signal.confidence,
        side=signal.action.side,
        tier=contract.tier_of(signal.risk_score),
        exposure=market.exposure,
        unrealised_pnl=market.unrealised_pnl,
        return_1h=market.return_1h,
        return_4h=market.return_4h,
        volatility=volatility,
        win_rate=market.win_rate,
        cascade_risk=assessment.cascade_risk,
    )


def _render(request: SizingRequest, decision: PositionSizingDecision, chosen: Multiplier, width: int) -> str:
    """The decision as aligned text of at most ``width`` columns."""
    signal = request.signal
    when = datetime.fromtimestamp(signal.timestamp_ns // 1_000_000_000, tz=UTC)
    side = {1: "LONG", -1: "SHORT", 0: "FLAT"}[decision.direction if decision.exposure != 0.0 else 0]
    lines = [
        f"{signal.symbol}  {signal.action.upper()}  confidence {signal.confidence:.2f}  {signal.strategy_id}",
        f"{when:%Y-%m-%d %H:%M:%S} UTC",
        "",
        f"  {side}  ${abs(decision.position_size_usd):,.2f}",
        f"  {decision.exposure:+.2%} of ${request.portfolio_value:,.2f}",
        "",
        f"  {'stage':<12}{'in':>9}{'out':>10}   why",
        "  " + "-" * (width - 2),
    ]
    for stage in decision.stages:
        head = f"  {stage.name:<12}{stage.input:>9.2%}{stage.output:>10.2%}   "
        lines.append(_wrapped(head, stage.reason, width))
    model = (
        "" if chosen.model_version is None else f"  model {chosen.model_version}  confidence {chosen.confidence:.2f}"
    )
    lines += ["", f"  {'multiplier':<12}{chosen.value:>9.3f}   from {chosen.source}{model}"]
    lines += [_wrapped(f"  {'passed over':<12}  ", text, width) for text in chosen.passed_over]
    return "\n".join(lines)


def _width() -> int:
    return max(72, min(shutil.get_terminal_size((100, 24)).columns, 120))


def _wrapped(head: str, text: str, width: int) -> str:
    return textwrap.fill(text, width, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)


def _as_json(decision: PositionSizingDecision) -> str:
    return json.dumps(decision.to_json(), indent=2, allow_nan=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m layer3.size", description="Size one signal and print why.")
    parser.add_argument("--input", type=Path, metavar="FILE", help="request as JSON (default: the built-in example)")
    parser.add_argument(
        "--endpoint", default="http://127.0.0.1:8080", metavar="URL", help="where the champion is served"
    )
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="holds the API key for the endpoint, alone")
    parser.add_argument("--store", default=".", metavar="DIR", help="holds channels/ and models/")
    parser.add_argument(
        "--timeout-ms", type=float, default=150.0, metavar="MS", help="budget for the endpoint, in total"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="sizing configuration (default: the built-in one)")
    parser.add_argument("--json", action="store_true", help="print the decision as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 on a decision and 2 on an input that cannot be used."""
    options = _parser().parse_args(arguments)
    try:
        config = ChainConfig() if options.config is None else load_chain_config(options.config)
        request = parse_request(EXAMPLE) if options.input is None else read_request(options.input)
        assessment = SizingChain(config).assess(request.signal, request.cascade)
        state = _state(request, assessment, config)
        timeout_s = options.timeout_ms / 1000.0
        chosen = choose_multiplier(options.endpoint, options.store, state, timeout_s, options.api_key_file)
        decision = dataclasses.replace(
            decide(
                request.signal,
                assessment,
                multiplier=chosen.value,
                multiplier_source=chosen.source,
                portfolio_value=request.portfolio_value,
                max_exposure=config.max_exposure,
            ),
            timestamp_ns=request.signal.timestamp_ns,
            passed_over=chosen.passed_over,
            multiplier_confidence=chosen.confidence,
            model_version=chosen.model_version,
            state=state,
        )
    except (DataError, ConfigurationError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if options.json:
        print(_as_json(decision))
    else:
        print(_render(request, decision, chosen, _width()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
