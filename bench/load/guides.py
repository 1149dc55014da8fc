"""The guide's server: FastAPI, pydantic models in and out, torch behind ``get_action``, CORS and a logging middleware.

``MODEL_URI`` names a policy folder, whose first member answers, and ``PORT`` where; written from the guide's
description, with its defaults: uvicorn's access log and a line of its own for each request.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from torch import Tensor, nn

from layer3.agent.policy_file import load_policy

logger = logging.getLogger(__name__)


class Prediction(BaseModel):
    """What is asked."""

    state: list[float] = Field(min_length=16, max_length=16)


class Answer(BaseModel):
    """What is answered."""

    position_multiplier: float = Field(ge=0.0, le=2.0)
    confidence: float = Field(ge=0.0, le=1.0)
    latency_ms: float
    model_version: str


class Agent:
    """A PPO agent as such agents are written: an actor with a normal distribution, and a critic."""

    def __init__(self, folder: Path) -> None:
        policy = load_policy(folder)
        self.version = policy.model_id
        own = {name: torch.from_numpy(tensor[0]) for name, tensor in policy.tensors.items()}
        self._mean, self._std = own["mean"], own["std"]
        self._actor, self._critic = _network(2), _network(1)
        with torch.no_grad():
            for layer, number in zip((0, 2, 4), (1, 2, 3), strict=True):
                self._actor[layer].weight.copy_(own[f"w{number}"].T)
                self._actor[layer].bias.copy_(own[f"b{number}"])
        self._actor.eval()
        self._critic.eval()

    def forward(self, states: Tensor) -> Tensor:
        """m and log s, (n, 2), for states (n, 16)."""
        out: Tensor = self._actor(((states - self._mean) / self._std).clamp(-10.0, 10.0))
        return out

    def get_action(self, state: NDArray[np.float32], deterministic: bool) -> tuple[float, dict[str, float]]:
        """Multiplier in [0, 2], and what a trainer would want to know of it."""
        with torch.no_grad():
            states = torch.FloatTensor(state).unsqueeze(0)
            m, log_s = self.forward(states).unbind(-1)
            distribution = torch.distributions.Normal(m, log_s.clamp(-4.0, 1.5).exp())
            u = m if deterministic else distribution.sample()
            about = {"log_prob": distribution.log_prob(u).item(), "value": self._critic(states).item()}
            return float((2.0 * torch.sigmoid(u)).cpu().numpy()[0]), about


def _network(outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(16, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, outputs)
    )  # fmt: skip


def create_app(agent: Agent) -> FastAPI:
    """The application over ``agent``."""
    app = FastAPI()
    app.add_middleware(
        CORSMiddleware, allow_origins=["*"], allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
    )

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "healthy"}

    @app.post("/predict", response_model=Answer)
    async def predict(request: Prediction) -> Answer:
        began = time.perf_counter()
        state = np.array(request.state, dtype=np.float32)
        if state.shape[0] != 16:
            raise HTTPException(400, f"expected 16 numbers, got {state.shape[0]}")
        multiplier, _ = agent.get_action(state, deterministic=True)
        milliseconds = (time.perf_counter() - began) * 1e3
        return Answer(
            position_multiplier=multiplier, confidence=0.95, latency_ms=milliseconds, model_version=agent.version
        )

    @app.middleware("http")
    async def log(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.perf_counter()
        response = await call_next(request)
        milliseconds = (time.perf_counter() - began) * 1e3
        logger.info(f"{request.method} {request.url.path} status={response.status_code} latency={milliseconds:.2f}ms")
        return response

    return app


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    app = create_app(Agent(Path(os.environ["MODEL_URI"])))
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="info")
