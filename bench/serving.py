"""The server beside bare uvicorn and the guide's: wrk against each in turn, one core each, in one run.

The policy is a random one of the default shape, the same for all. Medians over short rounds in which the servers
take turns. Ours runs as it is served: API key, validation, metrics, request ids and log on, the rate limit set high.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.alone import alone
from bench.hot_path import random_policy
from bench.load import measure, wrk
from bench.load.bucket import in_a_bucket
from bench.load.servers import Contender, contenders, memory, running, seconds_to_ready
from bench.load.weight import LEFT_OUT, STRIPPED, can_strip, closure, mebibytes
from bench.page import Requirement, at_least, at_most, table, title
from layer3.agent.policy import Policy

BARE, OURS, GUIDES = "bare uvicorn", "ours", "the guide's"
OURS_REMOTE = f"{OURS}, model on gs://"


@dataclass(frozen=True)
class Plan:
    """How long to measure: rounds and seconds of each load, starts of the first ``started`` servers, forward passes."""

    connections: tuple[int, ...]
    rounds: int
    seconds: float
    starts: int
    started: int
    calls: int


FULL = Plan((1, 8, 64), rounds=7, seconds=3.0, starts=9, started=3, calls=5_000)
QUICK = Plan((1, 64), rounds=1, seconds=1.0, starts=1, started=2, calls=10)


def main() -> int:
    """Measure everything, and print it as it comes; 2 where it cannot be measured, 1 where a request failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="run everything once and briefly, in about 20 s")
    plan = QUICK if parser.parse_args().quick else FULL
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not wrk.found():
        print(wrk.MISSING, file=sys.stderr)
        return 2
    if len(cores) < 2:
        print("two cores are needed, one for the server and one for wrk, on Linux", file=sys.stderr)
        return 2
    server_core, client_core = cores[:2]
    os.sched_setaffinity(0, {client_core})
    print(
        f"Servers on core {server_core}, clients on core {client_core}; load {os.getloadavg()[0]:.1f} before anything "
        "runs here: times want it near 0."
    )
    if plan is QUICK:
        print("QUICK: everything runs, far too briefly to time anything.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "policy")
        policy = random_policy(np.random.default_rng(0), path, 1)
        all_three = contenders(Path(folder), path)
        with in_a_bucket(all_three[1], policy, path, Path(folder, "machine")) as remote:
            requirements = under_load(all_three, remote, policy, plan, Path(folder), server_core)
            requirements += forward(path, plan)
            requirements += starting((*all_three[: plan.started], remote), plan, server_core)
    requirements += on_disk()
    title("What was asked" + " (QUICK: the answers mean nothing)" * (plan is QUICK))
    table(("", "is", "asked", "met"), [(r.name, r.value, r.asked, "yes" if r.met else "NO") for r in requirements])
    return 0 if next(r for r in requirements if r.name == "requests that failed").met else 1


def tell(text: str) -> None:
    """Tell whoever waits what is measured."""
    print(f"  … {text}", file=sys.stderr, flush=True)


def under_load(
    all_three: Sequence[Contender], remote: Contender, policy: Policy, plan: Plan, folder: Path, core: int
) -> list[Requirement]:
    """Everything that needs the servers running: all three at once, then ours with its model in a bucket."""
    with ExitStack() as stack:
        servers = [stack.enter_context(running(each, folder / f"{each.module}.log", {core})) for each in all_three]
        for server in servers:
            seconds_to_ready(server)
            measure.check(server, policy)
        first_two = servers[:2]
        measure.check_everything_is_on(servers[1])
        tell("warming up")
        measure.loads(servers, (plan.connections[-1],), 1, 1.0)
        tell("one state a request")
        loads = measure.loads(servers, plan.connections, plan.rounds, plan.seconds)
        tell("many states a request")
        batches = measure.batches(first_two, (1, 8), plan.rounds, 1.0)
        half = 0.5 * loads[OURS, plan.connections[-1]].rate
        tell(f"{half:,.0f} requests/s, whoever is slow")
        arrivals = measure.random_arrivals(first_two, half, plan.rounds, plan.seconds)
        held = {server.contender.name: memory(server.pid) for server in servers}
        measure.look_at_pages(servers[1])
        held[f"{OURS}, after a look at /docs"] = memory(servers[1].pid)
    with running(remote, folder / "remote.log", {core}) as server:
        seconds_to_ready(server)
        measure.check(server, policy)
        tell(remote.name)
        loads |= measure.loads((server,), plan.connections[-1:], plan.rounds, plan.seconds)
        held[remote.name] = memory(server.pid)
    failed = sum(each.errors for each in (*loads.values(), *batches.values(), *arrivals.values()))
    asked = sum(each.requests for each in (*loads.values(), *batches.values(), *arrivals.values()))
    return [
        Requirement("requests that failed", f"{failed} of {asked:,}", "0", failed == 0),
        *rates(loads, plan),
        *latencies(loads, plan),
        *many_states(batches),
        *whoever_is_slow(arrivals, half),
        *resident(held),
    ]


def rates(loads: dict[tuple[str, int], measure.Figures], plan: Plan) -> list[Requirement]:
    """Requests per second, as shares of bare's and multiples of the guide's."""
    title(f"POST /predict, kept connections, requests/s: median of {plan.rounds} rounds of {plan.seconds:g} s")
    names = [f"{count} connection{'s' * (count > 1)}" for count in plan.connections]
    rows = []
    for name in (BARE, OURS, GUIDES):
        own = [loads[name, count].rate for count in plan.connections]
        shares = [rate / loads[BARE, count].rate for rate, count in zip(own, plan.connections, strict=True)]
        errors = sum(loads[name, count].errors for count in plan.connections)
        rows.append((name, *(f"{rate:,.0f}" for rate in own), *(f"{share:.0%}" for share in shares), errors))
    table(("", *names, *(f"of bare, {count}" for count in plan.connections), "errors"), rows)
    asked = []
    for count, name in zip(plan.connections, names, strict=True):
        ours, bare, guides = (loads[who, count].rate for who in (OURS, BARE, GUIDES))
        asked.append(at_least(f"requests/s / bare's, {name}", ours / bare, 0.70, "{:.1%}"))
        asked.append(
            at_least(f"requests/s / the guide's, {name}", ours / guides, 8.0 if count == 1 else 15.0, "{:.1f}")
        )
    return asked


def latencies(loads: dict[tuple[str, int], measure.Figures], plan: Plan) -> list[Requirement]:
    """Latency at one connection and at many, in microseconds and as multiples of bare's."""
    least, most = plan.connections[0], plan.connections[-1]
    columns = {
        f"p50 at {least}": ("p50_us", least),
        f"p99 at {least}": ("p99_us", least),
        f"p99 at {most}": ("p99_us", most),
    }
    found = {
        who: [getattr(loads[who, count], figure) for figure, count in columns.values()] for who in (BARE, OURS, GUIDES)
    }
    title("POST /predict, latency in µs, and as a multiple of bare's")
    rows = []
    for who, own in found.items():
        pairs = [(f"{value:,.0f}", f"{value / floor:.2f}x") for value, floor in zip(own, found[BARE], strict=True)]
        rows.append((who, *(cell for pair in pairs for cell in pair)))
    table(("", *(cell for name in columns for cell in (name, ""))), rows)
    limits = (1.3, 1.3, 1.5)
    return [
        at_most(f"{name} connection{'s' * (count > 1)} / bare's", ours / bare, limit)
        for (name, (_, count)), ours, bare, limit in zip(columns.items(), found[OURS], found[BARE], limits, strict=True)
    ]


def many_states(batches: dict[tuple[str, int], measure.Figures]) -> list[Requirement]:
    """States per second where a request carries many."""
    title(f"POST /predict:batch, {measure.BATCH:,} states a request in all their digits: states/s")
    counts = sorted({count for _, count in batches})
    rows = [
        (
            f"{name}{' (reads the body only)' * (name == BARE)}",
            *(f"{batches[name, c].rate * measure.BATCH:,.0f}" for c in counts),
        )
        for name in (BARE, OURS)
    ]
    table(("", *(f"{count} connection{'s' * (count > 1)}" for count in counts)), rows)
    best = max(batches[OURS, count].rate for count in counts) * measure.BATCH
    return [at_least(f"states/s in batches of {measure.BATCH:,}", best, 200_000.0, "{:,.0f}")]


def whoever_is_slow(arrivals: dict[str, measure.Arrivals], rate: float) -> list[Requirement]:
    """Latency from the moment a request was meant to leave."""
    title(f"Open loop: {rate:,.0f} requests/s at random moments, half of our most; µs from the moment meant")
    bare = arrivals[BARE]
    rows = [
        (
            name,
            *(f"{value:,.0f}" for value in (own.p50_us, own.p99_us, own.p999_us)),
            f"{own.p999_us / bare.p999_us:.2f}x",
            f"{own.requests:,}",
            own.errors,
        )
        for name, own in arrivals.items()
    ]
    table(("", "p50", "p99", "p99.9", "p99.9 / bare's", "requests", "errors"), rows)
    return []


def resident(held: dict[str, dict[str, float]]) -> list[Requirement]:
    """Memory after all of that."""
    title("Memory after the load, MiB: resident, and with shared pages in proportion")
    table(("", "resident", "proportional"), [(n, f"{m['Rss']:.1f}", f"{m['Pss']:.1f}") for n, m in held.items()])
    return [at_most(f"resident, MiB, {name}", held[name]["Rss"], 60.0, "{:.1f}") for name in (OURS, OURS_REMOTE)]


def forward(folder: Path, plan: Plan) -> list[Requirement]:
    """The arithmetic of one state alone."""
    tell("the forward pass")
    found = alone("bench.load.arithmetic", "forward_seconds", folder, 9, plan.calls)
    title("One state through the network, µs")
    table(("", "µs"), [(name, f"{seconds * 1e6:.1f}") for name, seconds in found.items()])
    ours = next(seconds for name, seconds in found.items() if name.startswith("ours"))
    return [at_most("forward pass with its confidence, µs", ours * 1e6, 6.0, "{:.1f}")]


def starting(servers: Sequence[Contender], plan: Plan, core: int) -> list[Requirement]:
    """From exec to the first 200 of /health."""
    tell("starts")
    found = measure.starts(servers, plan.starts, core)
    title(
        f"Exec to the first 200 of GET /health, s: median of {plan.starts} starts in turn; and as a multiple of bare's"
    )
    rows = []
    for each in servers:
        cells = [(found[each.name, cached], found[BARE, cached]) for cached in (True, False)]
        rows.append((each.name, *(text for own, bare in cells for text in (f"{own:.3f}", f"{own / bare:.2f}x"))))
    table(("", "byte code cached", "", "not cached", ""), rows)
    # Without byte code it is shown only: the image compiles what it holds.
    return [
        at_most(f"exec to ready / bare's, byte code cached, {name}", found[name, True] / found[BARE, True], 1.6)
        for name in (OURS, OURS_REMOTE)
    ]


def on_disk() -> list[Requirement]:
    """What the server's packages take."""
    packages = closure("himari", frozenset({"serve", "identity"}))
    found = {name: (mebibytes(each, image=False), mebibytes(each, image=True)) for name, each in packages.items()}
    installed, image = (sum(sizes[column] for sizes in found.values()) for column in (0, 1))
    title("site-packages of himari[serve,identity], MiB, byte code too: as pip installs, as the image keeps")
    largest = sorted(found, key=found.__getitem__, reverse=True)[:6]
    others = [found[name] for name in found if name not in largest]
    rows = [(name, *found[name]) for name in largest]
    rows += [(f"{len(others)} others", *(sum(sizes[column] for sizes in others) for column in (0, 1)))]
    rows += [("all", installed, image)]
    table(("", "installed", "image"), [(name, f"{first:.1f}", f"{second:.1f}") for name, first, second in rows])
    print(
        f"The image drops tests and {' '.join(LEFT_OUT)} files, and strips the modules of {', '.join(STRIPPED)}"
        f"{'' if can_strip() else ', which is not counted: strip is not installed here'}."
    )
    return [at_most("site-packages of the image, MiB", image, 95.0, "{:.1f}")]


if __name__ == "__main__":
    sys.exit(main())
