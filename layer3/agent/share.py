"""What one worker does of a population's training, and the board that all workers share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layer3.agent import ppo
from layer3.agent.bars import Bars
from layer3.agent.crew import shared
from layer3.agent.networks import INPUTS, Adam, Network, initial_weights, layers_of, logistic
from layer3.agent.ppo import Columns, Experience, PPOConfig
from layer3.agent.team import Member, Team

__all__ = ["FIGURES", "Board", "Half", "Share", "Walk", "assign", "blank_board", "chunks_of", "walked"]

#: Most policies that are improved together: enough to share the calls' cost, few enough for the cache.
_CHUNK: Final = 4
#: What the columns of ``Board.figures`` are.
FIGURES = ("explained_variance", "kl", "clip_fraction", "gradient", "entropy")
#: One network's half of the update of the policies of a chunk.
Half = tuple[Literal["actor", "critic"], slice]
#: Where a team's windows are, and where its policies' random streams.
Walk = tuple[dict[str, NDArray[Any]], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Board:
    """Tensors of P policies, T steps and n windows that every worker sees.

    ``state`` weights and optimiser by name, each (P, N) or (P, 1); ``seen`` the last rollout, without
    what each team keeps to itself; ``growth`` (P, T, n); ``order`` (P, epochs, T n); ``advantages``
    and ``goals`` (P, T n); ``figures`` (P, 5).
    """

    state: dict[str, Tensor]
    seen: Experience
    growth: Tensor
    order: Tensor
    advantages: Tensor
    goals: Tensor
    figures: Tensor


def blank_board(members: Sequence[Member], device: torch.device) -> Board:
    """Policies that have learnt nothing yet, of one shape."""

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        if device.type == "cpu":
            return shared(*shape, dtype=dtype)
        return torch.zeros(shape, dtype=dtype, device=device)

    config = members[0].settings.ppo
    count, t, n = len(members), config.rollout, config.environments
    first = [_first_weights(member.seed, member.settings.ppo) for member in members]
    state: dict[str, Tensor] = {}
    for name, rows in zip(("actor", "critic"), zip(*first, strict=True), strict=True):
        weights = torch.stack(rows)
        state |= {f"{name}{part}": zeros(*weights.shape) for part in ("", ".mean", ".square")}
        state[name].copy_(weights)
        state[f"{name}.steps"] = zeros(count, 1)
    seen = Experience(
        states=zeros(count, t, n, INPUTS),
        last_states=zeros(count, n, INPUTS),
        actions=zeros(count, t, n),
        log_density=zeros(count, t, n),
        rewards=zeros(count, t, n),
        terminated=zeros(count, t, n, dtype=torch.bool),
        truncated=torch.zeros(t, n, dtype=torch.bool, device=device),
        final_states=torch.zeros(count, 0, INPUTS, device=device),
    )
    for states in (seen.states, seen.last_states):
        states[..., -1] = 1.0
    return Board(
        state,
        seen,
        zeros(count, t, n, dtype=torch.float64),
        zeros(count, config.epochs, config.samples, dtype=torch.int64),
        zeros(count, config.samples),
        zeros(count, config.samples),
        zeros(count, len(FIGURES)),
    )


def _first_weights(seed: int, config: PPOConfig) -> tuple[Tensor, Tensor]:
    """Actor's and critic's, (N,) each."""
    generator = torch.Generator().manual_seed(seed)
    actor = initial_weights(config.hidden, [0.0, config.log_sd_start], 0.01, generator)
    return actor, initial_weights(config.hidden, [0.0], 1.0, generator)


def walked(halves: Sequence[Half]) -> slice:
    """The policies whose actors are among a worker's ``halves``; they are neighbours."""
    chunks = [chunk for name, chunk in halves if name == "actor"]
    return slice(chunks[0].start, chunks[-1].stop) if chunks else slice(0, 0)


def teams_of(places: slice, members: Sequence[Member]) -> Iterator[slice]:
    """The neighbours among ``places`` that can walk one environment: the more, the fewer calls for each."""
    for _, same in groupby(range(places.start, places.stop), lambda place: members[place].settings.environment):
        first, *others = same
        yield slice(first, first + 1 + len(others))


def pieces_of(team: slice, chunks: Sequence[slice]) -> list[slice]:
    """A team's parts of each of ``chunks``: how many workers there are changes the team, and not them.

    A product of few numbers is summed in another order when it is made together with others.
    """
    met = [slice(max(team.start, chunk.start), min(team.stop, chunk.stop)) for chunk in chunks]
    return [piece for piece in met if piece.start < piece.stop]


def chunks_of(count: int) -> list[slice]:
    """``count`` policies as even chunks of at most four, two at least where there are two policies.

    How many workers there are is not asked: a policy's last digits depend on whose products are made with its own.
    """
    number = min(max(-(-count // _CHUNK), 2), count)
    return [slice(k * count // number, (k + 1) * count // number) for k in range(number)]


def assign(chunks: Sequence[slice], workers: int) -> list[list[Half]]:
    """Each worker's halves: as even as it goes, and both of a chunk by one worker where possible.

    Who walks a chunk is who improves its actors.
    """
    halves: list[Half] = [half for chunk in chunks for half in (("actor", chunk), ("critic", chunk))]
    count = min(workers, len(halves))
    return [halves[k * len(halves) // count : (k + 1) * len(halves) // count] for k in range(count)]


class Share:
    """One worker's halves, and the teams whose actors are among them."""

    def __init__(
        self,
        bars: Bars,
        members: Sequence[Member],
        board: Board,
        halves: Sequence[Half],
        walks: Mapping[int, Walk],
    ) -> None:
        """``walks``: what to go on from, by the first policy of each team."""
        self._board, self._halves = board, halves
        self._configs = [member.settings.ppo for member in members]
        config, device = self._configs[0], board.growth.device
        self._batch = config.batch
        chunks = [chunk for name, chunk in halves if name == "actor"]
        largest = max(chunk.stop - chunk.start for _, chunk in halves)
        # One set of buffers for all: they stay in the cache.
        self._network = Network(largest, max(config.batch, config.environments), config.hidden, device)
        self._teams = [
            Team(bars, pieces_of(places, chunks), members[places], self._network, device, on_host=device.type == "cpu")
            for places in teams_of(walked(halves), members)
        ]
        for team in self._teams:
            if team.places.start in walks:
                team.resume(*walks[team.places.start])

    def gather(self, update: int) -> None:
        """Walk one rollout with every team, of update number ``update``, and judge it; who improves what needs
        nothing else."""
        board, columns = self._board, self._columns(update)
        for team in self._teams:
            places = team.places
            seen = team.walk(board.state["actor"][places], board.seen.part(places), board.growth[places])
            board.order[places] = torch.from_numpy(team.orders()).to(board.order.device)
            for few in team.pieces:
                own = seen.part(slice(few.start - places.start, few.stop - places.start))
                board.advantages[few], board.goals[few], board.figures[few, 0] = ppo.advantages_of(
                    self._network,
                    logistic(layers_of(board.state["critic"][few], self._network.hidden, 1)),
                    own,
                    columns.part(few),
                    self._batch,
                )

    def improve(self, update: int) -> None:
        """Every half's update, number ``update``."""
        board, columns, batch = self._board, self._columns(update), self._batch
        for name, chunk in self._halves:
            adam = Adam(*(board.state[f"{name}{part}"][chunk] for part in ("", ".mean", ".square", ".steps")))
            seen, order, own = board.seen.part(chunk), board.order[chunk], columns.part(chunk)
            if name == "critic":
                ppo.improve_critic(self._network, adam, seen, board.goals[chunk], order, own, batch)
                continue
            figures = ppo.improve_actor(self._network, adam, seen, board.advantages[chunk], order, own, batch)
            board.figures[chunk, 1:] = torch.stack(
                (figures.kl, figures.clip_fraction, figures.gradient, figures.entropy), dim=1
            )

    def _columns(self, update: int) -> Columns:
        return Columns.of(self._configs, update, self._board.growth.device)

    def walks(self) -> dict[int, Walk]:
        """Where every team stands, by its first policy."""
        return {
            team.places.start: (
                team.environment.snapshot(),
                [dict(rng.bit_generator.state) for rng in team.generators],
            )
            for team in self._teams
        }

    def observations(self) -> dict[int, tuple[NDArray[np.float32], ...]]:
        """Centre and scale (G, 16) of each team's observations, and some of the states (G, m, 16)."""
        return {
            team.places.start: (team.mean[:, 0].cpu().numpy(), team.std[:, 0].cpu().numpy(), team.kept)
            for team in self._teams
        }
