"""Training beside its peers and its bound: speed, and never without what was learned.

Every figure is of a process of its own, warmed up first; repeats are interleaved, medians are shown.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from bench.alone import Run, alone, measure
from bench.page import Requirement, at_least, at_most, table, title
from bench.plan import FULL, QUICK, Plan

#: Markets where there is nothing to learn, and why.
CONTROLS = {"shuffled": "its returns in random order", "no edge": "a regime that means nothing"}
#: Published float32 operations per second.
GPU_RATES = {"T4": 8.1e12, "V100": 15.7e12, "A100": 19.5e12, "L4": 30.3e12, "H100": 67e12, "H200": 67e12}


@dataclass(frozen=True)
class Peer:
    """A setting of stable-baselines3."""

    batched: bool
    windows: int
    threads: int

    def __str__(self) -> str:
        kind = "windows of our batched environment" if self.batched else "lean scalar environments"
        return f"{self.windows} {kind}, {self.threads} thread{'s' * (self.threads > 1)}"


PEERS = [Peer(*kind, threads) for kind in ((False, 16), (False, 128), (True, 128)) for threads in (1, 2)]


def main() -> None:
    """Measure everything, and print it as it comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="run everything on next to nothing, in about a minute")
    plan = QUICK if parser.parse_args().quick else FULL
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before anything runs here: times want it near 0.")
    if plan is QUICK:
        print("QUICK: everything runs, on far too little to learn or to time anything.")
    describe_market()
    requirements = side_by_side(plan) + controls(plan) + time_to_learn(plan) + walk_forward(plan) + curves(plan)
    settings_at_once(plan)
    on_gpu(plan)
    title("What was asked" + " (QUICK: the answers mean nothing)" * (plan is QUICK))
    table(("", "is", "asked", "met"), [(r.name, r.value, r.asked, "yes" if r.met else "NO") for r in requirements])


def ours(steps: int, seeds: Sequence[int], market: str = "planted") -> Run:
    run: Run = measure(f"ours, {market}: {len(seeds)} x {steps:,} steps", "ours", "learn", market, steps, seeds)
    return run


def guide(steps: int, seed: int) -> Run:
    run: Run = measure(f"the guide's way: {steps:,} steps", "guide", "learn", "planted", steps, seed)
    return run


def stable(peer: Peer, steps: int, seed: int) -> Run:
    arguments = (steps, seed, peer.batched, peer.windows, peer.threads)
    run: Run = measure(f"SB3, {peer}: {steps:,} steps", "stable", "learn", "planted", *arguments)
    return run


def describe_market() -> None:
    """What can be earned on the market, and on its controls."""
    title("The market: mean reward per step in % of equity on 40,000 held-out bars; 40,000 others are trained on")
    scores = {name: measure(name, "arena", "references", name) for name in ("planted", *CONTROLS)}
    rows = [(name, *(f"{value:+.4f}" for value in found.values())) for name, found in scores.items()]
    table(("", *scores["planted"]), rows)


def best_peers(plan: Plan) -> list[Peer]:
    """The fastest setting of stable-baselines3 with its own environments, and with ours; each was tried once."""
    trials = {peer: stable(peer, plan.trial_steps, 0).seconds_each(plan.steps) for peer in PEERS}
    title(f"SB3's settings, each tried for {plan.trial_steps:,} steps: the best of each kind goes on")
    table(("", f"s for {plan.steps:,} steps"), [(peer, f"{seconds:.1f}") for peer, seconds in trials.items()])
    return [min((peer for peer in PEERS if peer.batched is kind), key=trials.__getitem__) for kind in (False, True)]


def race(contenders: Mapping[str, Callable[[int], Run]], repeats: int) -> tuple[dict[str, float], dict[str, list[Run]]]:
    """Every contender in turn, again and again, and the rates of matrix products beside them."""
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    found: list[dict[str, float]] = []
    for repeat in range(repeats):
        found.append(measure("matrix products", "bound", "rates"))
        for name, learn in contenders.items():
            runs[name].append(learn(repeat))
    return {name: statistics.median(each[name] for each in found) for name in found[0]}, runs


def side_by_side(plan: Plan) -> list[Requirement]:
    """The table: all trainers, the bound, and what each learned."""
    slow, single, many = "the guide's way", "ours, one policy", f"ours, {plan.population} at once"
    peers = {f"SB3, {peer}": partial(stable, peer, plan.steps) for peer in best_peers(plan)}
    contenders: dict[str, Callable[[int], Run]] = {
        slow: partial(guide, plan.guide_steps),
        **peers,
        single: lambda seed: ours(plan.steps, [seed]),
        many: lambda _: ours(plan.steps, range(plan.population)),
    }
    rates, runs = race(contenders, plan.repeats)
    whole = guide(plan.guide_scored, 0)

    operations = alone("bench.bound", "operations") * plan.steps
    bounds = {name: operations / rate for name, rate in rates.items()}
    taken = {name: [run.seconds_each(plan.steps) for run in each] for name, each in runs.items()}
    seconds = {name: statistics.median(each) for name, each in taken.items()}
    stock, batched = peers
    best = min(peers, key=seconds.__getitem__)
    # A policy is the same whoever else is trained: the population's first five stand for five trained alone.
    shares: dict[str, Sequence[float]] = {name: [run.shares[0] for run in each] for name, each in runs.items()}
    shares |= {slow: whole.shares, single: runs[many][0].shares[:5], many: runs[many][0].shares}

    title(f"Side by side: {plan.steps:,} steps, actor and critic 16-128-128, median of {plan.repeats}, interleaved")
    rows = [
        (f"bound: the matrix products at {name}'s {rate / 1e9:,.0f} Gflop/s", f"{bounds[name]:.2f}", *[""] * 5)
        for name, rate in rates.items()
    ]
    for name, each in taken.items():
        ratios = [f"{seconds[name] / bound:.2f}" for bound in bounds.values()]
        learned = f"{min(shares[name]):.1%} of {len(shares[name])}"
        faster = f"{seconds[best] / seconds[name]:.2f}"
        rows.append((name, f"{seconds[name]:.2f}", f"{min(each):.2f}-{max(each):.2f}", *ratios, faster, learned))
    head = ("", "s per policy", "range", *(f"/ {name} bound" for name in bounds), "x SB3's best", "worst share of rule")
    table(head, rows)
    print(
        f"\nThe stricter bound is {min(bounds, key=bounds.__getitem__)}'s.\n"
        f"Worst share of rule: held-out score as a share of the rule's, of the worst of so many seeds.\n"
        f"The guide's way is timed over {plan.guide_steps:,} steps and scaled; the run that was scored took "
        f"{whole.seconds:.0f} s for {whole.steps:,}."
    )
    return [
        at_least("one policy, speed / SB3's best stock setting", seconds[stock] / seconds[single], 2.5),
        at_least("one policy, speed / SB3 on our environment", seconds[batched] / seconds[single], 2.5),
        *(at_most(f"population, seconds / {name} bound", seconds[many] / bound, 1.6) for name, bound in bounds.items()),
        at_least("population, speed / SB3's best stock setting", seconds[stock] / seconds[many], 5.0),
        at_least("population, speed / SB3 on our environment", seconds[batched] / seconds[many], 5.0),
        at_least("population, speed / the guide's way", seconds[slow] / seconds[many], 80.0, "{:.0f}"),
        at_least("share of the rule's score, worst of 5 seeds", min(shares[single]), 0.9, "{:.1%}"),
    ]


def controls(plan: Plan) -> list[Requirement]:
    """Where there is nothing to learn, nobody may beat multiplier 1 beyond noise."""
    runs = {name: ours(plan.steps, range(5), name) for name in CONTROLS}
    title("Controls: five seeds on the same market without its signal; gain: mean score less that of multiplier 1")
    gains = {name: f"{run.excess:+.4f} +- {run.noise:.4f}" for name, run in runs.items()}
    rows = [
        (f"{name}: {CONTROLS[name]}", gains[name], *(f"{score:+.4f}" for score in run.scores))
        for name, run in runs.items()
    ]
    table(("", "gain", *(f"seed {seed}" for seed in range(5))), rows)
    asked = "<= 2 errors"
    return [
        Requirement(f"gain without a signal, {name}", gains[name], asked, run.excess <= 2.0 * run.noise)
        for name, run in runs.items()
    ]


def time_to_learn(plan: Plan) -> list[Requirement]:
    """The smallest budget from which on the worst of five seeds has 90 % of the rule's score, and how long it takes."""
    shares = {steps: sorted(ours(steps, range(5)).shares) for steps in plan.budgets}
    enough = None
    for steps in reversed(plan.budgets):
        if shares[steps][0] < 0.9:
            break
        enough = steps
    title("Time to 90 % of the rule's score: five seeds trained anew for each budget of steps")
    rows = [(f"{steps:,}", f"{found[0]:.1%}", f"{found[2]:.1%}", f"{found[4]:.1%}") for steps, found in shares.items()]
    table(("steps", "worst", "median", "best"), rows)
    name, asked = "time to 90 % of the rule's score, worst of 5 seeds", "<= 2 s"
    if enough is None:
        print("The worst seed does not stay above 90 % by the largest budget.")
        return [Requirement(name, "not reached", asked, False)]
    timed = [ours(enough, [seed]).seconds for seed in range(plan.repeats)]
    seconds = statistics.median(timed)
    print(f"The worst stays above from {enough:,} steps on: {seconds:.2f} s ({min(timed):.2f}-{max(timed):.2f}) alone.")
    return [Requirement(name, f"{seconds:.2f} s", asked, seconds <= 2.0)]


def walk_forward(plan: Plan) -> list[Requirement]:
    """Folds x seeds in one call."""
    folds, seeds, steps = plan.walk
    run: Run = measure("walk-forward", "ours", "walk_forward", *plan.walk)
    memory = run.peak_bytes / 2**30
    title(f"Walk-forward: {folds} folds of 10,000 bars x {seeds} seeds x {steps:,} steps in one call")
    print(
        f"{run.seconds:.1f} s, at most {memory:.2f} GiB; share of the rule's score on the held-out bars: "
        f"worst {min(run.shares):.1%}, median {statistics.median(run.shares):.1%} of {len(run.shares)}"
    )
    return [
        Requirement("walk-forward", f"{run.seconds:.0f} s", "<= 180 s", run.seconds <= 180.0),
        Requirement("walk-forward, memory", f"{memory:.2f} GiB", "< 4 GiB", memory < 4.0),
    ]


def curves(plan: Plan) -> list[Requirement]:
    """Seconds against steps, and seconds per policy against policies."""
    short = plan.curve_steps[0]
    tasks = [(steps, 1) for steps in plan.curve_steps] + [(short, count) for count in plan.curve_policies[1:]]
    rounds = [{(steps, count): ours(steps, range(count)) for steps, count in tasks} for _ in range(plan.repeats)]
    seconds = {task: statistics.median(each[task].seconds_each(task[0]) for each in rounds) for task in tasks}
    each = [1e6 * seconds[steps, 1] / steps for steps in plan.curve_steps]
    per_policy = [seconds[short, count] for count in plan.curve_policies]

    title(f"Curves, median of {plan.repeats}, interleaved")
    rows = [
        ("seconds, one policy", *(f"{seconds[steps, 1]:.2f}" for steps in plan.curve_steps)),
        ("µs per step", *(f"{value:.2f}" for value in each)),
    ]
    table(("steps", *(f"{steps:,}" for steps in plan.curve_steps)), rows)
    print()
    rows = [
        ("seconds per policy", *(f"{value:.2f}" for value in per_policy)),
        ("speed / one after another", *(f"{per_policy[0] / value:.2f}" for value in per_policy)),
    ]
    table((f"policies of {short:,} steps", *plan.curve_policies), rows)
    return [
        at_most("µs per step over all budgets, most / least", max(each) / min(each), 1.2),
        at_most(
            f"policies: s per policy, {plan.curve_policies[-1]} at once / one alone",
            per_policy[-1] / per_policy[0],
            1.0,
        ),
    ]


def settings_at_once(plan: Plan) -> None:
    """What a search gains from training its settings in the same products."""
    settings, seeds, steps = plan.settings
    what = f"{settings} settings x {seeds} seeds x {steps:,} steps"
    together, apart = measure(what, "ours", "settings_at_once", *plan.settings)
    title(f"{what}: in one call, and one setting after another")
    print(f"{together:.1f} s and {apart:.1f} s: {apart / together:.2f} times as fast at once.")


def on_gpu(plan: Plan) -> None:
    """The same training on a GPU, where there is one."""
    operations, rows = alone("bench.bound", "operations"), []
    for count in plan.gpu_policies:
        found = measure(f"{count} on a GPU", "ours", "on_gpu", count, plan.steps)
        if found is None:
            break
        published = next((rate for name, rate in GPU_RATES.items() if name in found["name"]), None)
        estimate = f"{found['steps'] * GPU_RATES['T4'] / published:,.0f}" if published else "?"
        share = found["steps"] * operations / found["rate"]
        rows.append((count, found["name"], f"{found['steps']:,.0f}", f"{share:.1%}", f"{found['share']:.1%}", estimate))
    title("GPU")
    if not rows:
        print("No CUDA device here: nothing was measured.")
        return
    table(("policies", "", "steps/s", "of its sgemm", "worst share of rule", "T4 ESTIMATE, steps/s"), rows)
    print("The estimate scales by the published float32 rates, as if only products took time; it is not a measurement.")


if __name__ == "__main__":
    main()
