"""Episode specs and episodes: the records that travel between the policy side and the simulators."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvla_lightning.envs.base import Observation


@dataclass(frozen=True)
class EpisodeSpec:
    """One episode to run.

    Attributes:
        task: name of the task.
        split: "train", "selection" or "heldout".
        initial_state: which initial state of that task and split.
        seed: everything random in the episode (policy draws, expert noise) follows from it.
        num_steps: denoising steps K of every decision; 0 when an expert runs the episode.
        expert_noise: see `SimulatorEnv`.
        expert_attempt: see `SimulatorEnv`.
        pictures: whether to keep a picture for people after every chunk.
    """

    task: str
    split: str
    initial_state: int
    seed: int
    num_steps: int = 0
    expert_noise: float = 0.0
    expert_attempt: int = 0
    pictures: bool = False

    def reset_arguments(self) -> dict[str, Any]:
        """Keyword arguments of the environment's `reset`."""
        names = ("task", "split", "initial_state", "expert_noise", "expert_attempt")
        return {"seed": self.seed, "options": {name: getattr(self, name) for name in names}}


@dataclass
class Transition:
    """The result of a reset (no actions yet) or after executing a chunk.

    Attributes:
        observation: what the policy would look at next (also at the end of the episode: truncation needs its value);
            None once nobody needs it any more.
        actions: (T, action_dim) float32, the executed actions.
        reward: sum over the executed actions.
        terminated: the episode ended inside the simulation.
        truncated: the step limit was reached.
        is_success: whether the task is solved.
        simulation_seconds: wall time of the physics.
        rendering_seconds: wall time of the observation.
        picture: (H, W, 3) uint8 for people, where the spec asks for it.
    """

    observation: Observation | None
    actions: NDArray[np.float32]
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    is_success: bool = False
    simulation_seconds: float = 0.0
    rendering_seconds: float = 0.0
    picture: NDArray[np.uint8] | None = None

    @property
    def done(self) -> bool:
        return self.terminated or self.truncated


@dataclass
class Episode:
    """One episode that was run.

    Attributes:
        spec: what was asked for.
        transitions: the reset and then one per decision; `observation` is kept only where the caller asked for it.
        decisions: what the actor noted about each decision.
        seconds: wall time from reset to end.
        error: why the episode could not be run, else None. Errors are counted apart from failures.
        retries: how often it was run again because its worker died or hung.
    """

    spec: EpisodeSpec
    transitions: list[Transition] = field(default_factory=list)
    decisions: list[Any] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None
    retries: int = 0

    @property
    def success(self) -> bool:
        """Whether the task was solved (False for an episode with an error)."""
        return self.error is None and bool(self.transitions) and self.transitions[-1].is_success

    @property
    def observation(self) -> Observation:
        """The last one, on which the next decision rests."""
        observation = self.transitions[-1].observation
        assert observation is not None  # the pool drops earlier ones only
        return observation

    @property
    def pictures(self) -> list[NDArray[np.uint8]]:
        """Its pictures from start to end, where the spec asks for them."""
        return [transition.picture for transition in self.transitions if transition.picture is not None]

    @property
    def num_decisions(self) -> int:
        """Number of policy calls, or expert calls."""
        return max(0, len(self.transitions) - 1)

    @property
    def num_env_steps(self) -> int:
        """Number of executed actions."""
        return sum(len(transition.actions) for transition in self.transitions)

    @property
    def episode_return(self) -> float:
        """Sum of rewards, not discounted; rounded once, so that the order in which they came leaves no trace."""
        return math.fsum(transition.reward for transition in self.transitions)
