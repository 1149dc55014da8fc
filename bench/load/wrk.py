"""wrk, told by a Lua script what to send and how to say what came of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MISSING", "Load", "found", "load"]

MISSING = (
    "wrk is not installed, and it is what puts the servers under load: apt-get install wrk (Debian, Ubuntu), "
    "brew install wrk, or https://github.com/wg/wrk"
)
_SCRIPT = """
local prepared, sent = {}, 0
function init(arguments)
  local headers = { %(headers)s }
  for index, body in ipairs({ %(bodies)s }) do
    prepared[index] = wrk.format("POST", %(path)s, headers, body)
  end
end
function request()
  sent = sent %% #prepared + 1
  return prepared[sent]
end
function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '\\nRESULT {"requests": %%d, "seconds": %%.6f, "p50_us": %%.1f, "p99_us": %%.1f, "refused": %%d, "broken": %%d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
"""


@dataclass(frozen=True)
class Load:
    """What wrk saw: answers, seconds, latency in microseconds, answers that were no 2xx or 3xx, broken connections."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float
    refused: int
    broken: int

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds

    @property
    def errors(self) -> int:
        """Requests that were not answered as they should have been."""
        return self.refused + self.broken


def found() -> bool:
    """Whether wrk is installed."""
    return shutil.which("wrk") is not None


def load(
    port: int,
    path: str,
    bodies: Sequence[bytes],
    headers: Mapping[str, str],
    *,
    connections: int,
    seconds: float,
) -> Load:
    """POST ``bodies`` in turn to a server on loopback over kept connections, from one thread on our own cores."""
    fields = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json", **headers}
    script = _SCRIPT % {
        "headers": ", ".join(f"[{_quoted(name)}] = {_quoted(value)}" for name, value in fields.items()),
        "bodies": ", ".join(_quoted(body.decode()) for body in bodies),
        "path": _quoted(path),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "load.lua")
        file.write_text(script)
        # wrk takes whole seconds only, and would count who waits for more than two as an error.
        options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", str(file)]
        done = subprocess.run(
            ["wrk", *options, f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, check=False
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or len(lines) != 1:
        raise RuntimeError(f"wrk ended with status {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}")
    return Load(**json.loads(lines[0].removeprefix("RESULT ")))


def _quoted(text: str) -> str:
    # JSON's quoting of ASCII is Lua's too, but for \\u and \\/, which nothing here holds.
    quoted = json.dumps(text)
    if "\\u" in quoted:
        raise ValueError(f"not plain ASCII: {text[:80]!r}")
    return quoted
