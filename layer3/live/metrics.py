"""What layer 3 does, as Prometheus metrics under ``himari_l3_``.

A decision costs a few additions under one lock; text and whatever can be read from the engine is made when
Prometheus asks. A gauge is that of the latest decision that judged a signal, and has no sample before there is
a value. Names follow the dashboards in use; ``circuit_breaker_timeout_sec`` is one of them, although Prometheus
would have it end in ``_seconds``.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from types import TracebackType
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from layer3.ab.assignment import Arm
from layer3.ab.records import Stop
from layer3.breaker import CircuitBreaker
from layer3.errors import ConfigurationError
from layer3.live.configuration import Layer3Config
from layer3.live.figures import SymbolFigures
from layer3.live.inputs import Inputs, check
from layer3.live.sources import UNAUTHORISED
from layer3.sizing import cascade, kelly
from layer3.types import GCP_API, PositionSizingDecision, Regime

__all__ = ["LATENCY_BUCKETS", "OTHER", "Engine", "Metrics", "MetricsServer"]

#: The label of every strategy beyond the first ``strategies``, so that no caller can flood Prometheus.
OTHER: Final = "other"
#: Upper bounds in seconds, about the budget of 150 ms and of what a decision costs without a server.
LATENCY_BUCKETS: Final = (
    0.00003, 0.00006, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.16, 0.25, 1.0,
)  # fmt: skip
_PREFIX: Final = "himari_l3_"
_BREAKER: Final = {"closed": 0, "half_open": 1, "open": 2}
_ACTIONS: Final = (cascade.NORMAL, cascade.REDUCE_50, cascade.REDUCE_75, cascade.EXIT)


class Engine(Protocol):
    """What is read of :class:`layer3.engine.Layer3Phase1`."""

    @property
    def config(self) -> Layer3Config:
        """The configuration that sizes now."""

    @property
    def breaker(self) -> CircuitBreaker | None:
        """The breaker before the served policy."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Counts by name."""

    def figures(self, symbol: str) -> SymbolFigures | None:
        """What is known of a symbol."""


class Watcher(Protocol):
    """What is read of :class:`layer3.live.reload.ConfigWatcher`."""

    @property
    def callbacks(self) -> Sized:
        """Functions that wait for a change of the configuration."""

    @property
    def rejected(self) -> int:
        """Changes that could not be used."""


class Trial(Protocol):
    """What is read of :class:`layer3.ab.live.LiveExperiment`."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Counts by name."""

    @property
    def waiting(self) -> int:
        """Records that are not on the disk yet."""

    @property
    def stopped(self) -> Stop | None:
        """The stop of the policy's arm."""


class Metrics(Collector):
    """Counts decisions and answers Prometheus; thread-safe. Append :meth:`observe` to the engine's observers.

    ``strategies`` is how many names of strategies become labels, from 1; ``watcher`` follows the configuration file and
    ``experiment`` runs beside the engine, if one does.

    Raises
    ------
    ValueError : the registry has metrics of these names already
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        engine: Engine,
        *,
        strategies: int = 50,
        watcher: Watcher | None = None,
        experiment: Trial | None = None,
    ) -> None:
        self._engine, self._most, self._watcher, self._experiment = engine, strategies, watcher, experiment
        self._lock = threading.Lock()
        self._decisions: Counter[str] = Counter()
        self._sources: Counter[str] = Counter()
        self._actions: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._reductions: Counter[str] = Counter()
        self._latencies = [0] * (len(LATENCY_BUCKETS) + 1)
        self._seconds = 0.0
        self._transitions = self._false_flips = self._fallbacks = 0
        self._symbols: dict[str, SymbolFigures] = {}
        self._judged: tuple[PositionSizingDecision, Inputs, SymbolFigures] | None = None
        self._final: float | None = None
        registry.register(self)

    def observe(self, decision: PositionSizingDecision, inputs: Inputs) -> None:
        """Count one decision and what it was made from."""
        judged = decision.state is not None
        figures = self._engine.figures(decision.symbol) if judged else None
        seconds = decision.latency_ms / 1e3
        with self._lock:
            name = decision.strategy_id
            known = name in self._decisions or len(self._decisions) - (OTHER in self._decisions) < self._most
            self._decisions[name if known else OTHER] += 1
            self._sources[decision.multiplier_source] += 1
            self._latencies[bisect_left(LATENCY_BUCKETS, seconds)] += 1
            self._seconds += seconds
            self._final = decision.position_size_usd
            if decision.refusal is not None:
                self._refusals[decision.refusal] += 1
            if figures is None:
                return
            self._actions[decision.cascade_action] += 1
            self._fallbacks += any(why.startswith(GCP_API) for why in decision.passed_over)
            self._reductions.update(_reductions(decision))
            self._compare(self._symbols.get(decision.symbol), figures)
            self._symbols[decision.symbol] = figures
            self._judged = (decision, inputs, figures)

    def _compare(self, before: SymbolFigures | None, now: SymbolFigures) -> None:
        if before is None or before.regime is None:
            return
        if now.regime is not before.regime:
            self._transitions += 1
        elif now.pending == 0 and before.pending > 0:
            self._false_flips += 1

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names are checked when they are collected."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every metric now."""
        with self._lock:
            found = [*self._of_decisions(), *self._of_regimes()]
            names, judged = tuple(self._symbols), self._judged
        yield from found
        yield from _of_symbols([known for name in names if (known := self._engine.figures(name)) is not None])
        yield from _of_one(judged, self._engine.config)
        yield from _of_breaker(self._engine.breaker, self._fallbacks)
        if self._experiment is not None:
            yield from _of_experiment(self._experiment)
        counters = self._engine.counters
        unknown = counters.get(UNAUTHORISED, 0)
        yield _counter("policy_unauthorised", "Calls whose key or token the served policy refused.", unknown)
        yield _counter("config_reloads", "Configurations taken up while running.", counters.get("reloads", 0))
        watcher = self._watcher
        rejected, callbacks = (0, 0) if watcher is None else (watcher.rejected, len(watcher.callbacks))
        yield _counter("config_rejections", "Configurations that could not be taken up while running.", rejected)
        yield _gauge("config_callbacks", "Functions that wait for a change of the configuration.", callbacks)
        failed = counters.get("observer_errors", 0)
        yield _counter("observer_errors", "Observers that failed after a decision, which stands.", failed)

    def _of_decisions(self) -> Iterator[Metric]:
        yield _counters("position_decisions", "Decisions by strategy.", "strategy_id", self._decisions)
        yield _counters("multiplier_sources", "Decisions by who gave the multiplier.", "source", self._sources)
        yield _counters("refusals", "Decisions that were zero without judging the signal.", "reason", self._refusals)
        why = "Decisions that something made smaller than Kelly alone would be, by what."
        yield _counters("position_reductions", why, "by", self._reductions)
        yield _gauge("final_position_size_usd", "Position that the latest decision wants, signed.", self._final)
        actions = {action: self._actions[action] for action in _ACTIONS}
        what = "Decisions by what the cascade risk asks for."
        yield _counters("cascade_recommendations", what, "action", actions)
        breaches = {
            word.lower(): sum(actions[action] for action in _ACTIONS[i:]) for i, word in enumerate(_ACTIONS) if i
        }
        what = "Decisions whose cascade risk was above a threshold."
        yield _counters("cascade_threshold_breaches", what, "threshold", breaches)
        latency = HistogramMetricFamily(f"{_PREFIX}decision_latency_seconds", "How long a decision took, all in all.")
        bounds, total, buckets = [*map(str, LATENCY_BUCKETS), "+Inf"], 0, []
        for bound, count in zip(bounds, self._latencies, strict=True):
            total += count
            buckets.append((bound, total))
        latency.add_metric([], buckets, self._seconds)
        yield latency

    def _of_regimes(self) -> Iterator[Metric]:
        yield _counter("regime_transitions", "Changes of the regime that holds.", self._transitions)
        yield _counter("regime_false_flips", "Calmer regimes that were not confirmed.", self._false_flips)


class MetricsServer:
    """Serves a registry on ``host`` and ``port`` (0: any free one, see ``port``) from a thread, until it is closed.

    Raises
    ------
    ConfigurationError : nothing can listen there
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ConfigurationError(
                f"metrics cannot be served on {host}:{port}: {error.strerror}: choose another port (metrics.port)"
            ) from error
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _reductions(decision: PositionSizingDecision) -> Iterator[str]:
    """What made this decision smaller, one word each."""
    if decision.kelly_fraction > 0.0:
        for name, factor in (
            ("conformal", decision.conformal_scale),
            ("sentiment", decision.sentiment_multiplier),
            ("regime", decision.regime_multiplier),
        ):
            if factor < 1.0:
                yield name
        if decision.cascade_action != cascade.NORMAL:
            yield "cascade"
    if decision.base_fraction > 0.0:
        arms = decision.experiment
        multiplier = 1.0 if arms is not None and arms.arm == Arm.KELLY else decision.multiplier
        if multiplier < 1.0:
            yield "policy"
        if abs(decision.exposure) < decision.base_fraction * multiplier * (1.0 - 1e-12):
            yield "limits"


def _of_symbols(known: Sequence[SymbolFigures]) -> Iterator[Metric]:
    yield _counter("bayesian_trades", "Closed trades that taught the posterior.", sum(s.trades for s in known))
    nulls, nans = sum(s.nulls for s in known), sum(s.nans for s in known)
    yield _counter("conformal_null_rejections", "Residuals refused because a number was missing.", nulls)
    yield _counter("conformal_nan_rejections", "Residuals refused because a number was not finite.", nans)


def _of_one(
    judged: tuple[PositionSizingDecision, Inputs, SymbolFigures] | None, config: Layer3Config
) -> Iterator[Metric]:
    """The gauges of the latest decision that judged a signal."""
    decision, inputs, figures = judged or (None, None, None)
    regime = GaugeMetricFamily(f"{_PREFIX}current_regime", "1 for the regime that holds.", labels=["regime"])
    parts = GaugeMetricFamily(f"{_PREFIX}cascade_risk_components", "Share of the risk.", labels=["component"])
    found: dict[str, float | None] = {}
    if decision is not None and inputs is not None and figures is not None:
        # As the engine took them: numpy's numbers count otherwise. The limits of now need not be those of then.
        taken = check(inputs._replace(recent_trades=None), 0, 0)
        chain, signal = config.chain, taken.signal
        belief = kelly.estimate(
            chain.kelly,
            figures.win_rate,
            signal.confidence,
            signal.risk_score,
            signal.expected_return,
            signal.predicted_volatility,
        )
        for each in Regime:
            regime.add_metric([each.value], float(each is figures.regime))
        for part in cascade.components(chain.cascade, taken.cascade):
            parts.add_metric([part.name.replace(" ", "_")], part.share)
        found = {
            "kelly_fraction": decision.kelly_fraction,
            "kelly_position_size_usd": decision.kelly_position_usd,
            "conformal_scale_factor": decision.conformal_scale,
            "conformal_residuals": figures.residual,
            "conformal_samples": figures.residuals,
            "bayesian_win_rate": figures.win_rate,
            "bayesian_edge": belief.edge,
            "regime_multiplier": decision.regime_multiplier,
            "regime_confirmation_progress": figures.pending / chain.regime.confirmations,
            "cascade_risk_score": decision.cascade_risk,
            "rl_multiplier": decision.multiplier,
        }
    yield regime
    yield parts
    for name, what in _GAUGES.items():
        yield _gauge(name, what, found.get(name))


_GAUGES: Final = {
    "kelly_fraction": "Fraction of equity that Kelly alone would hold.",
    "kelly_position_size_usd": "Position that Kelly alone would hold, signed.",
    "conformal_scale_factor": "Factor on the size for how well forecasts did lately.",
    "conformal_residuals": "Error of a one-day forecast that the covered share of the latest stayed within.",
    "conformal_samples": "Forecast errors known.",
    "bayesian_win_rate": "Posterior probability that a trade wins.",
    "bayesian_edge": "Expected return over the Kelly horizon, as a fraction.",
    "regime_multiplier": "Factor on the size for the regime that holds.",
    "regime_confirmation_progress": "Share of the bars seen that it takes to believe a calmer regime.",
    "cascade_risk_score": "Risk of a liquidation cascade, from 0 to 1.",
    "rl_multiplier": "Factor on the size from the policy.",
}


def _of_breaker(breaker: CircuitBreaker | None, fallbacks: int) -> Iterator[Metric]:
    figures = None if breaker is None else breaker.figures()
    state = None if figures is None else _BREAKER[figures.state]
    failures = 0 if figures is None else figures.failures
    yield _gauge("circuit_breaker_state", "0 closed, 1 half-open, 2 open.", state)
    yield _counter("circuit_breaker_failures", "Calls to the served policy that failed.", failures)
    yield _counter("circuit_breaker_fallbacks", "Decisions that the served policy had no part in.", fallbacks)
    wait = None if figures is None else figures.wait
    yield _gauge("circuit_breaker_timeout_sec", "Seconds that the breaker waits, or would, before a probe.", wait)
    rate = None if figures is None else figures.success_rate
    yield _gauge("circuit_breaker_success_rate", "Share of the latest calls that succeeded.", rate)


def _of_experiment(experiment: Trial) -> Iterator[Metric]:
    counts = experiment.counters
    arms = {arm: counts.get(arm, 0) for arm in (*Arm, "unrecorded")}
    what = "Decisions in the experiment by whose size is held; unrecorded ones had to be Kelly's."
    yield _counters("experiment_decisions", what, "arm", arms)
    what = "Attempts to write the experiment's store that the disk refused."
    yield _counter("experiment_store_errors", what, counts.get("store_errors", 0))
    what = "Records that contradict the experiment's store and were left out."
    yield _counter("experiment_refused_records", what, counts.get("refused", 0))
    yield _gauge("experiment_waiting_records", "Records that are not on the disk yet.", experiment.waiting)
    yield _gauge("experiment_stopped", "1 when a guardrail stopped the policy's arm.", experiment.stopped is not None)


def _gauge(name: str, what: str, value: float | None) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, what)
    if value is not None:
        family.add_metric([], value)
    return family


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(_PREFIX + name, what, value=value)


def _counters(name: str, what: str, label: str, values: Mapping[str, Any]) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, what, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
