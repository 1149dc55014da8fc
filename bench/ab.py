"""How often an experiment with daily looks is wrong, and what it finds: ``python -m bench.ab``, about a minute.

``--example=FILE`` writes a store instead, of one simulated month, for ``python -m layer3.ab.report``.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from layer3.ab.assignment import Design
from layer3.ab.planner import POWER, plan
from layer3.ab.rehearsal import START_NS, rehearse
from layer3.ab.simulate import World, simulate
from layer3.ab.store import Store
from layer3.ab.wording import BP
from layer3.experiment import Experiment
from layer3.types import Action, Regime, TacticalSignal

EXPERIMENTS = 2_000
MONTH = World()
HALF = ((0.0, 0.5),)
NO_DIFFERENCE = {
    "48 decisions a day": (MONTH, HALF),
    "12 decisions a day": (replace(MONTH, decisions=12), HALF),
    "10 % get the policy": (MONTH, ((0.0, 0.1),)),
    "10, 30, 50 % in ten days": (MONTH, ((0.0, 0.1), (5.0, 0.3), (10.0, 0.5))),
    "a market without drift": (replace(MONTH, drift=0.0), HALF),
    "a strong drift": (replace(MONTH, drift=0.002), HALF),
}
SKILLS = (0.1, 0.15, 0.2, 0.3)
HEAD = f"{'':<26}{'naive t':>9}{'plain':>9}{'adjusted':>10}{'held':>9}{'held once':>11}{'median day':>12}{'removed':>9}"


def design_of(world: World, ramp: tuple[tuple[float, float], ...] = HALF) -> Design:
    return Design("bench", ramp=ramp, expected_units=world.decisions * world.days)


def row(label: str, world: World, design: Design, seed: int) -> str:
    rates = simulate(world, design, EXPERIMENTS, seed)
    shares = (
        f"{rates.naive:>9.1%}{rates.plain:>9.1%}{rates.adjusted:>10.1%}{rates.covered:>9.1%}{rates.covered_once:>11.1%}"
    )
    day = "" if rates.median_day is None else f"{rates.median_day:.0f}"
    return f"{label:<26}{shares}{day:>12}{rates.removed:>9.1%}"


def rates() -> None:
    print(f"{EXPERIMENTS:,} experiments of {MONTH.days} days a row, a look at the end of each day, limit 5 %")
    print("  naive t: a t test on each day    plain: always valid    adjusted: always valid after variance reduction")
    print("  held: the adjusted interval held the truth on all days; held once: the usual one on the last day\n")
    print(f"no difference: stopped wrongly\n{HEAD}")
    for seed, (label, (world, ramp)) in enumerate(NO_DIFFERENCE.items(), start=1):
        print(row(label, world, design_of(world, ramp), seed), flush=True)
    print(f"\na difference, {MONTH.decisions} decisions a day: found\n{HEAD}")
    for seed, skill in enumerate(SKILLS, start=101):
        world = replace(MONTH, skill=skill)
        print(row(f"{world.effect * BP:.2f} bp per decision", world, design_of(world), seed), flush=True)
    print("seeds: 1, 2, ... and 101, 102, ... from the first row of each table on")


def plans() -> None:
    # What is left of a unit's noise is mostly what the multiplier itself adds.
    base = MONTH.largest / 3.0**0.5
    noise = base * MONTH.volatility * MONTH.spread * 0.5**0.5
    print(f"\nplanned for a power of {POWER:.0%}, {MONTH.decisions} decisions a day, noise {noise * BP:.2f} bp")
    for skill in SKILLS:
        effect = replace(MONTH, skill=skill).effect
        found = plan(effect, noise, MONTH.decisions, design_of(MONTH))
        days = f"{found.days:5.1f} days with daily looks, {found.fixed_days:5.1f} with one at the end"
        print(f"  {effect * BP:.2f} bp: {days}")


def recording() -> None:
    signal = TacticalSignal("m", "BTC-USDT", Action.BUY, 0.8, 0.2, Regime.RANGING, START_NS)
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "ab.sqlite") as store:
        experiment = Experiment(store, Design("bench"))
        seconds: dict[str, list[float]] = {"assign": [], "record_decision": [], "record_outcome": []}
        for number in range(300):
            started = time.perf_counter()
            assigned = experiment.assign(replace(signal, timestamp_ns=START_NS + number))
            seconds["assign"].append(time.perf_counter() - started)
            started = time.perf_counter()
            experiment.record_decision(
                assigned,
                decision_id=str(number),
                kelly_usd=1_000.0,
                policy_usd=1_500.0,
                portfolio_value=1e5,
                source="api",
                decided_ns=time.time_ns(),
            )
            seconds["record_decision"].append(time.perf_counter() - started)
            started = time.perf_counter()
            experiment.record_outcome(str(number), pnl_usd=1.0, realised_return=0.001, duration_s=0.0)
            seconds["record_outcome"].append(time.perf_counter() - started)
    print(
        "\non the disk when the call returns: "
        + ", ".join(f"{name} {statistics.median(times) * 1e3:.1f} ms" for name, times in seconds.items())
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ab", description="How often an experiment is wrong.")
    parser.add_argument("--example", type=Path, metavar="FILE", help="write the store of one simulated month")
    options = parser.parse_args()
    if options.example is None:
        rates()
        plans()
        recording()
        return
    with Store(options.example) as store:
        design = Design("rehearsal on a simulated market", ramp=((0.0, 0.1), (3.0, 0.5)), expected_units=1_440)
        rehearse(store, design, replace(MONTH, skill=0.25, days=21), seed=1)
    print(f"python -m layer3.ab.report --store={options.example} --html=ab.html")


if __name__ == "__main__":
    main()
