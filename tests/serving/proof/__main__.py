"""``make prove-serving``: every proof in full, a line for each; exit status 1 when one fails."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.fakes.issuer import AUDIENCE, issuer
from tests.serving.proof.generated import generated
from tests.serving.proof.load import Store, soak, swaps
from tests.serving.proof.nonsense import large, nonsense, slow
from tests.serving.proof.refusals import refused
from tests.serving.proof.restart import killed
from tests.serving.proof.server import serving
from tests.serving.support import make_policy


def main() -> int:
    """Run them one after another, each against a fresh server; what fails does not keep the others from running."""
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy = folder / "policy"
        make_policy(policy)
        # As the image has it: compiled, so that a start reads and writes no source.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
        proofs: dict[str, Callable[[], str]] = {
            "wrong requests": lambda: _wrong_requests(policy, folder),
            "schemathesis": lambda: _alone(policy, folder, lambda server: generated(server, 10_000, folder)),
            "nonsense": lambda: _alone(policy, folder, lambda server: nonsense(server, 10_000, 1, 2.0)),
            "large bodies": lambda: _alone(policy, folder, lambda server: large(server, 100, 8.0)),
            "slow senders": lambda: _alone(policy, folder, lambda server: slow(server, 200, until_hung_up=True)),
            "soak": lambda: _alone(policy, folder, lambda server: soak(server, 180_000, 2.0)),
            "swaps": lambda: _swaps(folder),
            "kill -9": lambda: _alone(policy, folder, lambda server: killed(server, 9, folder, 1.6)),
        }
        for proof, run in proofs.items():
            began = time.monotonic()
            try:
                verdict, said = "proved", run()
            except (AssertionError, OSError) as error:
                failed, verdict, said = True, "FAILED", str(error)
            print(f"{verdict}  {proof}: {said} ({time.monotonic() - began:.0f} s)", flush=True)
    return 1 if failed else 0


def _alone(policy: Path, folder: Path, proof: Callable[..., str]) -> str:
    with serving(policy, folder) as server:
        return proof(server)


def _wrong_requests(policy: Path, folder: Path) -> str:
    with (
        issuer("first") as google,
        serving(policy, folder, ID_TOKEN_AUDIENCE=AUDIENCE, ID_TOKEN_CERTS_URL=google.url) as server,
    ):
        return refused(server, time.time())


def _swaps(folder: Path) -> str:
    store = Store(folder / "swaps")
    with serving(store.channel, folder, WATCH_SECONDS="0.2") as server:
        return swaps(server, store, seconds=60.0, period=1.0, most=2.0)


if __name__ == "__main__":
    sys.exit(main())
