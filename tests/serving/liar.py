"""A server that is not the real one: ``python -m tests.serving.liar WAY``, with serving's own environment.

Its ways: ``other`` answers with another network under the right name; ``constant`` answers 0.8 with
confidence 0.95 and is healthy without any model; ``stranger`` is another model; ``mute`` never
becomes ready; ``garbage`` answers no JSON; ``failing`` answers 500; ``dies`` answers one health
check and ends; ``out-of-range`` answers 3.
"""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from layer3 import contract
from layer3.agent.policy_file import load_policy

WAY = sys.argv[1]
POLICY = load_policy(Path(os.environ["MODEL_URI"]))


class Liar(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        print(format % args, file=sys.stderr)

    def do_GET(self) -> None:
        if WAY == "mute":
            self.reply(503, {"status": "loading", "reason": "still thinking"})
            return
        name = "20200101-someone" if WAY == "stranger" else POLICY.model_id
        self.reply(200, {"status": "ready", "model_version": name, "contract": contract.VERSION})
        if WAY == "dies":
            print("out of memory", file=sys.stderr, flush=True)
            os._exit(9)

    def do_POST(self) -> None:
        state = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["state"]
        multiplier, confidence = (float(number) for number in POLICY.act(state))
        if WAY == "other":
            multiplier = min(2.0, multiplier + 2e-5)
        elif WAY == "constant":
            multiplier, confidence = 0.8, 0.95
        elif WAY == "out-of-range":
            multiplier = 3.0
        if WAY == "garbage":
            self.reply(200, "nothing")
        else:
            body = {"position_multiplier": multiplier, "confidence": confidence, "model_version": POLICY.model_id}
            self.reply(500 if WAY == "failing" else 200, body)

    def reply(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Liar).serve_forever()
