"""A process that appends to a decision log and tells a pipe which records were acknowledged, until it is killed.

Run as ``python appender.py LOG FSYNC THREADS MAX_BYTES FIRST``; each acknowledged number is a line on standard output.
"""

import os
import random
import sys
import threading
from pathlib import Path

from layer3.live.decision_log import DecisionLog


def main() -> None:
    path, fsync, threads, max_bytes, first = sys.argv[1:]
    log = DecisionLog(Path(path), lambda: {"first": int(first)}, fsync=fsync, max_bytes=int(max_bytes))  # type: ignore[arg-type]
    numbers = iter(range(int(first), 10**9))
    lock = threading.Lock()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        while True:
            with lock:
                number = next(numbers)
            log.append({"kind": "decision", "number": number, "padding": "x" * rng.randrange(20_000)})
            os.write(1, f"{number}\n".encode())
            if seed == 0:
                log.roll()

    os.write(1, b"ready\n")
    for seed in range(1, int(threads)):
        threading.Thread(target=work, args=(seed,), daemon=True).start()
    work(0)


main()
