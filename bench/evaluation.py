"""How long it takes to judge a candidate, and our engine beside its peers on an equal task.

Every figure is of a process of its own, on one thread. The peers are in the optional extra "peers".
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys

from bench.alone import measure
from bench.page import Requirement, at_most, table, title
from layer3.backtest.evidence import Effort

PEERS = ("backtesting", "vectorbt")
#: Largest difference of final equity between engines that is one of conventions: whether the commission comes out
#: of the equity that the target is a share of, and whole units.
CONVENTIONS = 0.01


def main() -> int:
    """Measure everything, and print it as it comes; 2 where a peer is not installed, 1 where engines disagree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="run everything on next to nothing, in about a minute")
    quick = parser.parse_args().quick
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"{' and '.join(missing)} not installed: .venv/bin/python -m pip install --constraint requirements.lock "
            "--editable '.[peers]'",
            file=sys.stderr,
        )
        return 2
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before anything runs here: times want it near 0.")
    if quick:
        print("QUICK: everything runs, on far too little to time anything.")
    asked = evaluation(quick) + permutations(quick)
    agreed = engines(quick)
    title("What was asked" + " (QUICK: the answers mean nothing)" * quick)
    asked.append(agreed)
    table(("", "is", "asked", "met"), [(r.name, r.value, r.asked, "yes" if r.met else "NO") for r in asked])
    return 0 if agreed.met else 1


def evaluation(quick: bool) -> list[Requirement]:
    """The whole evaluation of one candidate, section by section."""
    effort = Effort(20, 50) if quick else Effort()
    lengths = (0.25,) if quick else (1.0, 2.0)
    kinds = {"own": "the file's signals", "baseline": "the baseline's"}
    found = {
        (years, signals): measure(f"evaluation, {years:g} years, {what}", "judged", "evaluated", years, effort, signals)
        for years in lengths
        for signals, what in kinds.items()
    }
    title(
        f"One candidate: {effort.permutations} permutations of each of 2 kinds, {effort.resamples:,} resamples, "
        "one policy 16-128-128; seconds"
    )
    names = list(next(iter(found.values())).seconds)
    rows = [(name, *(f"{each.seconds[name]:.2f}" for each in found.values())) for name in names]
    rows.append(("all", *(f"{sum(each.seconds.values()):.1f}" for each in found.values())))
    rows.append(("peak GiB", *(f"{each.peak_bytes / 2**30:.2f}" for each in found.values())))
    table(("", *(f"{years:g} y, {kinds[signals]}" for years, signals in found)), rows)
    for each in found.values():
        for section, why in each.problems.items():
            print(f"{section}: {why}")
    return [
        at_most(f"evaluation, {years:g} years, {kinds[signals]}, s", sum(each.seconds.values()), 60.0, "{:.0f}")
        for (years, signals), each in found.items()
    ]


def permutations(quick: bool) -> list[Requirement]:
    """Many permutations of two years through signals, chain and policy in one run."""
    paths, years = (20, 0.25) if quick else (1_000, 2.0)
    rows = []
    for signals, what in (("own", "the file's signals, kept"), ("baseline", "signals computed anew on each path")):
        found = measure(f"{paths:,} permutations, {what}", "judged", "permuted", paths, years, signals)
        rate = found.paths * found.bars / found.seconds
        rows.append((what, f"{found.seconds:.1f}", f"{rate:,.0f}", f"{found.peak_bytes / 2**30:.2f}"))
    title(f"{paths:,} permutations of {years:g} years of hours through signals, chain and one policy 16-128-128")
    table(("", "seconds", "bars/s", "peak GiB"), rows)
    return []


def engines(quick: bool) -> Requirement:
    """Hold given shares of equity: bars per second, and whether the engines agree on what is left."""
    paths, repeats = (5, 1) if quick else (200, 3)
    plan = [
        ("ours, the backtest", 1),
        ("ours, accounts side by side", 1),
        ("vectorbt", 1),
        ("backtesting.py", 1),
        ("ours, accounts side by side", paths),
        ("vectorbt", paths),
    ]
    runs = {
        (engine, n): measure(f"{engine}, {n} paths", "following", "follow", engine, n, repeats) for engine, n in plan
    }
    title("Given shares of equity held over two years of hours, traded anew every hour: fastest of so many repeats")
    rows, worst = [], 0.0
    for (engine, n), found in runs.items():
        # Path k is the same in every run.
        reference = runs["ours, accounts side by side", n].equity
        apart = max(abs(one / other - 1.0) for one, other in zip(found.equity, reference, strict=True))
        worst = max(worst, apart)
        ours = runs["ours, accounts side by side", n]
        ratio = (ours.bars / ours.seconds) / (found.bars / found.seconds)
        rows.append(
            (engine, n, f"{found.seconds:.3f}", f"{found.bars / found.seconds:,.0f}", f"{ratio:.2f}", f"{apart:.3%}")
        )
    table(("", "paths", "seconds", "bars/s", "our accounts / it", "equity apart"), rows)
    versions = ", ".join(f"{name} {number}" for name, number in measure("versions", "following", "versions").items())
    print(
        f"{versions}. Ours, the backtest, also builds the state that a policy would see and keeps the whole record.\n"
        "Equity apart: of final equity from our accounts', the most of all paths. Conventions differ: ours takes\n"
        "the commission out of the equity that the target is a share of, the peers do not;\n"
        "backtesting.py has whole units only."
    )
    return Requirement(
        "engines, largest difference of final equity", f"{worst:.3%}", f"<= {CONVENTIONS:.0%}", worst <= CONVENTIONS
    )


if __name__ == "__main__":
    sys.exit(main())
