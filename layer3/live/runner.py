"""Size a stream of signals: ``python -m layer3.live.runner`` (``make run-layer3``).

One JSON document in, one JSON line out. A signal (:mod:`layer3.live.messages`) is answered with its decision; what
is none, with a line that names what is wrong and the size zero. ``{"residual": {"symbol": "BTC-USDT", "predicted":
0.01, "realised": 0.02}}`` teaches the conformal scale one forecast of a one-day return and what came of it, and is
answered too. Where an experiment runs (``experiment`` in the configuration), ``{"outcome": {"decision_id": "7f3a-01",
"pnl_usd": 12.5, "realised_return": 0.01, "duration_s": 3600.0}}`` joins to a decision what became of its trade
(:class:`layer3.ab.records.Outcome`). Each answer says in ``line`` (and ``entry``, of a Redis stream) what it answers.

A decision is logged before it is out, and acknowledged to a Redis stream after that. A message that comes again
after a crash is answered from the log if it was logged, and is not sized twice. SIGTERM and SIGINT let the message
in hand be finished; the engine's state is saved, and the exit status is 0. It is 1 where the output or the log
cannot be written, and 2 where nothing could begin.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from layer3.ab.live import LiveExperiment
from layer3.ab.store import Store
from layer3.errors import ConfigurationError, DataError, HimariError, SourceError
from layer3.live import logs
from layer3.live.configuration import DecisionLogSettings, Layer3Config, load_config
from layer3.live.decision_log import DecisionLog
from layer3.live.loop import Runner, SignalClock, decisions
from layer3.live.metrics import Metrics, MetricsServer
from layer3.live.phase1 import Layer3Phase1
from layer3.live.recorder import Recorder, head
from layer3.live.recovery import recovered
from layer3.live.reload import ConfigWatcher, fingerprint
from layer3.live.streams import Stop, open_sink, open_source, shown
from layer3.live.table import DecisionTable
from layer3.live.tally import Tally

__all__ = ["main"]

_log = logging.getLogger("layer3.live.runner")  # run as a program its __name__ is another


@contextlib.contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    """SIGTERM and SIGINT set ``stop``; afterwards they mean what they meant before."""
    before = {each: signal.signal(each, lambda *_: stop.set()) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        stop.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m layer3.live.runner",
        description="Size a stream of signals: one JSON document in, one decision as a JSON line out.",
        epilog="Addresses: - (standard input or output), a file, or redis://host:port/db?stream=NAME, as input also "
        "with &group=GROUP&consumer=NAME. Settings: the file, and HIMARI_L3__SECTION__KEY in the environment.",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="like config/layer3.yaml (default: the built-in one)"
    )
    parser.add_argument("--input", default="-", metavar="ADDRESS", help="where signals come from (default: -)")
    parser.add_argument("--output", default="-", metavar="ADDRESS", help="where decisions go (default: -)")
    parser.add_argument(
        "--clock", choices=("machine", "signal"), default="machine",
        help="signal: it is as late as the latest signal says, for a recorded stream; never to trade by",
    )  # fmt: skip
    parser.add_argument("--limit", type=_count, metavar="N", help="end after N messages")
    parser.add_argument("--once", action="store_const", const=1, dest="limit", help="end after one message")
    parser.add_argument("--log", metavar="FILE", help="the decision log, instead of the configured one")
    parser.add_argument("--no-table", action="store_true", help="no table, even in a terminal")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def main(given: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    options = _parser().parse_args(given)
    stop = Stop()
    with _signals(stop):
        try:
            seen = None if options.config is None else fingerprint(options.config)
            config = load_config(options.config, _overrides(options))
        except HimariError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        logs.configure(sys.stderr, config.logging.level)
        try:
            return _run(options, config, seen, stop)
        except OSError as error:
            _log.error("the state or the log could not be saved at the end", extra={"error": str(error)})
            return 1


def _run(options: argparse.Namespace, config: Layer3Config, seen: bytes | None, stop: Stop) -> int:
    with contextlib.ExitStack() as open_things:
        try:
            runner = _assemble(options, config, seen, stop, open_things)
        except (HimariError, OSError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            with contextlib.suppress(OSError):  # the state that could not be saved cannot be saved
                open_things.close()
            return 2
        try:
            runner.run(options.limit)
        except (SourceError, DataError, OSError) as error:
            if not (stop.is_set and isinstance(error, SourceError)):
                return _failed(error)
            # Told to stop while Redis was away: what was in hand was not acknowledged and comes again.
            _log.warning("Redis was away at the end", extra={"error": str(error)})
        runner.say("stopped by a signal" if stop.is_set else "done")
        summary = runner.tally.text(_places(options, config))
    if options.output != "-":  # and the table is closed
        print(summary)
    return 0


def _places(options: argparse.Namespace, config: Layer3Config) -> dict[str, str]:
    """Where to look further, by a word."""
    log, store = config.decision_log.path, config.experiment.path
    found = {"decisions": shown(options.output)}
    if log is not None:
        found["log"] = f"{log}, made again by: make replay LOG={log}"
    if store is not None:
        found["experiment"] = f"{store}, judged by: make ab-report STORE={store}"
    return found


def _overrides(options: argparse.Namespace) -> dict[str, dict[str, str]]:
    return {} if options.log is None else {"decision_log": {"path": options.log}}


def _failed(error: Exception) -> int:
    _log.error("ended: what was answered last is not out or not logged", extra={"error": str(error)})
    return 1


def _assemble(
    options: argparse.Namespace,
    config: Layer3Config,
    seen: bytes | None,
    stop: Stop,
    open_things: contextlib.ExitStack,
) -> Runner:
    """The runner and all it needs, which ``open_things`` closes in the reverse order: the state is saved last.
    ``seen`` is the fingerprint of the configuration's file when it was read."""
    _require_apart(options, config)
    clock = SignalClock() if options.clock == "signal" else None
    now = time.time_ns if clock is None else clock
    experiment = None if config.experiment.path is None else open_things.enter_context(_experiment(config))
    engine = open_things.enter_context(Layer3Phase1(config, clock=now, assigner=experiment, state=recovered(config)))
    with _telling(f"the state {config.state.path}"):
        engine.save()  # from here on a missing snapshot is one that somebody moved away
    recorder = None
    if config.decision_log.path is not None:
        recorder = Recorder(open_things.enter_context(_log_of(engine, config.decision_log)), engine)
        engine.observers.append(recorder.observe)
    if experiment is not None:
        if recorder is not None:
            for record in decisions(recorder.log.path):  # what a killed process told and did not record
                experiment.record_again(record["decision"])
        engine.observers.append(experiment.observe)
    watcher = None
    if config.hot_reload and options.config is not None:
        watcher = ConfigWatcher(options.config, lambda: load_config(options.config, _overrides(options)), engine, seen)
        open_things.callback(watcher.stop)
    if config.metrics.enabled:
        registry = CollectorRegistry()
        metrics = Metrics(registry, engine, watcher=watcher, experiment=experiment)
        engine.observers.append(metrics.observe)
        server = open_things.enter_context(MetricsServer(registry, config.metrics.host, config.metrics.port))
        _log.info("metrics are served", extra={"host": config.metrics.host, "port": server.port})
    source = open_source(options.input, stop)
    open_things.callback(source.close)
    sink = open_sink(options.output, stop)
    open_things.callback(sink.close)
    table, tally = None, Tally()
    if sys.stdout.isatty() and options.output != "-" and not options.no_table:
        from rich.console import Console

        table = DecisionTable(Console(), tally, lambda: None if engine.breaker is None else engine.breaker.state)
        open_things.enter_context(table)
        logs.configure(sys.stderr, config.logging.level)  # the table shows it above itself
    mode = {"deployment_mode": config.deployment_mode, "config_hash": engine.config_hash}
    _log.info("ready", extra={**mode, "input": shown(options.input), "output": shown(options.output)})
    return Runner(
        engine,
        source,
        sink,
        tally=tally,
        recorder=recorder,
        table=table,
        clock=clock,
        experiment=experiment,
        wait_s=config.experiment.wait_ms / 1e3,
    )


def _require_apart(options: argparse.Namespace, config: Layer3Config) -> None:
    """Raise where two of the files are one: what is written into it would spoil it for the other."""
    files = {
        "--config": options.config,
        "--input": options.input,
        "--output": options.output,
        "the decision log": config.decision_log.path,
        "the state": config.state.path,
    }
    known: dict[Path, str] = {}
    for what, name in files.items():
        if name is None or str(name) == "-" or "://" in str(name):
            continue
        path = Path(os.path.realpath(name))
        if path in known and (not path.exists() or path.is_file()):
            raise ConfigurationError(f"{known[path]} and {what} are one file, {name}: name two")
        known[path] = what


def _log_of(engine: Layer3Phase1, settings: DecisionLogSettings) -> DecisionLog:
    with _telling(f"the decision log {settings.path}"):
        return DecisionLog(
            Path(settings.path or ""),
            lambda: head(engine),
            fsync=settings.fsync,
            interval_s=settings.interval_s,
            max_bytes=settings.max_bytes,
        )


@contextlib.contextmanager
def _telling(what: str) -> Iterator[None]:
    """A disk that refuses is a ConfigurationError that says ``what`` cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{what} cannot be written: {error.strerror}") from error


def _experiment(config: Layer3Config) -> LiveExperiment:
    """The configured experiment; by the machine's clock, so that a recorded stream gets the ramp's first share."""
    settings = config.experiment
    path = Path(settings.path or "")
    with contextlib.ExitStack() as opened:
        stores = opened.enter_context(Store(path)), opened.enter_context(Store(path, read_only=True))
        live = LiveExperiment(*stores, settings.design, forced=settings.forced)
        opened.pop_all()
    return live


if __name__ == "__main__":
    sys.exit(main())
