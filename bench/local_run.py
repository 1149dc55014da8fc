"""What the local runner adds to a step: wall time of a step that does next to nothing, beside the floor.

The floor is a fresh Python that imports kfp's executor, which every containerized component needs
anywhere. Interleaved, medians.
"""

import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from compile import compile_pipelines
from pipelines import local

REPEATS = 5


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec, _ = compile_pipelines(folder / "build")
        arguments = {
            "data": "synthetic:no-edge,bars=6000",
            "symbol": "SYNTH-USD",
            "train_steps": 2_048,
            "folds": 0,
            "store": str(folder),
        }
        steps, floors = [], []
        with contextlib.redirect_stdout(io.StringIO()):
            # The first run fills the cache; the others evaluate, gate, reject and notify only.
            local.run(spec, arguments, store=folder)
            for _ in range(REPEATS):
                manifest = local.run(spec, arguments, store=folder)
                steps.append(next(step["seconds"] for step in manifest["steps"] if step["name"] == "notify"))
                started = time.perf_counter()
                subprocess.run([sys.executable, "-c", "import kfp.dsl.executor_main"], check=True)
                floors.append(time.perf_counter() - started)
    step, floor = statistics.median(steps), statistics.median(floors)
    print(f"step 'notify' {step:.2f} s, floor {floor:.2f} s, ratio {step / floor:.2f} (median of {REPEATS})")
    print(f"added by the local runner: {step - floor:+.2f} s; whole overhead of a step at most {max(steps):.2f} s")


if __name__ == "__main__":
    main()
