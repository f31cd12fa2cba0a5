"""The contract with simulators: a picklable recipe (`Environment`) and what it builds (`SimulatorEnv`)."""

from __future__ import annotations

import importlib
import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import gymnasium
import numpy as np
from numpy.typing import NDArray

from dvla_lightning.errors import UserError

# Split -> its name for people. Policies learn on the first, are chosen on the second and reported on the third.
SPLIT_NAMES = {"train": "training", "selection": "selection", "heldout": "held-out"}
SPLITS = tuple(SPLIT_NAMES)
REQUIRED = ("tasks", "cameras", "action_dim", "proprioception_dim")


class Observation(TypedDict):
    """The policy's view of the world at one decision.

    Attributes:
        images: camera name -> (H, W, 3) uint8, upright as the policy was trained on it.
        proprioception: (proprioception_dim,) float32 in the simulator's units.
        instruction: one sentence.
    """

    images: dict[str, NDArray[np.uint8]]
    proprioception: NDArray[np.float32]
    instruction: str


class SimulatorEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """A gymnasium environment that runs a whole action chunk and draws pictures only at its end.

    Subclasses implement `reset`, `advance` and `observe`; `expert_action` if they have a scripted expert, and `render`
    for videos. docs/environment.md has a complete example. One instance serves every task of its recipe; `reset`
    switches between them. The reset options are

    * ``task`` (str): one of the recipe's tasks,
    * ``split`` (str): "train", "selection" or "heldout"; no two share an initial state, unless the recipe was asked to,
    * ``initial_state`` (int): number of the initial state in that task and split; the same number gives the same state.
      In training any number below 2^31 can come,
    * ``expert_noise`` (float): size of the noise on the expert's actions, 0 = none,
    * ``expert_attempt`` (int): which of its plans the expert follows, 0 = the most promising one.

    ``reset(seed=...)`` seeds everything random that happens after the initial state (expert noise, choice of a way).
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}  # type: ignore[misc] # gymnasium's is one, too
    action_space: gymnasium.spaces.Box[np.float32]
    observation_space: gymnasium.Space[Any]

    def advance(self, action: NDArray[np.float32]) -> tuple[float, bool, bool, dict[str, Any]]:
        """Runs one control step without making an observation.

        Args:
            action: (action_dim,) in the robot's units; values outside the action space are clipped.

        Returns:
            reward, terminated, truncated, info; ``info["is_success"]`` is a bool.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement advance()")

    def observe(self) -> Observation:
        """Makes the observation of the present state, and renders the cameras for it."""
        raise NotImplementedError(f"{type(self).__name__} does not implement observe()")

    def expert_action(self) -> NDArray[np.float32]:
        """The scripted expert's next action, (action_dim,), computed from privileged state.

        Raises:
            UserError: if this environment has no scripted expert.
        """
        raise UserError(f"{type(self).__name__} has no scripted expert: collect demonstrations with a policy instead")

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Runs one control step and observes (the gymnasium interface)."""
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def step_chunk(self, actions: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Runs a chunk until it is used up or the episode is over, and observes once, at the end.

        Args:
            actions: (T, action_dim).

        Returns:
            As `step`, with the sum of the rewards; ``info`` also has ``num_env_steps`` (executed actions) and the
            wall time ``simulation_seconds`` and ``rendering_seconds``.
        """
        start = time.perf_counter()
        total, executed = 0.0, 0
        terminated = truncated = False
        info: dict[str, Any] = {}
        for action in actions:
            reward, terminated, truncated, info = self.advance(action)
            total += reward
            executed += 1
            if terminated or truncated:
                break
        simulated = time.perf_counter()
        observation = self.observe()
        cost = {
            "num_env_steps": executed,
            "simulation_seconds": simulated - start,
            "rendering_seconds": time.perf_counter() - simulated,
        }
        return observation, total, terminated, truncated, {**info, **cost}


class Environment(ABC):
    """A picklable recipe, sent to worker processes, which build the simulator.

    It holds everything about the tasks that must be known before a simulator exists. Constructing it is cheap and
    imports no simulator.

    Attributes:
        tasks: names of all tasks.
        cameras: names of the images of an observation.
        action_dim: size of one action.
        proprioception_dim: size of the proprioception vector.
        interpreter: path of the Python in which workers run the simulator; None runs it in ours. For simulators that
            need package versions which do not fit this package.
        machine_options: constructor arguments that name programs or folders of one machine. They are not recorded with
            a policy, and never taken from one: it may be a stranger's.
    """

    tasks: tuple[str, ...]
    cameras: tuple[str, ...]
    action_dim: int
    proprioception_dim: int
    interpreter: str | None = None
    machine_options: ClassVar[tuple[str, ...]] = ("interpreter",)

    if not TYPE_CHECKING:  # or type checkers would accept any name

        def __getattr__(self, name: str) -> Any:
            """Called for what a subclass leaves out."""
            if name in REQUIRED:
                raise UserError(f"{type(self).__name__} has no {name}: an environment gives {', '.join(REQUIRED)}")
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @abstractmethod
    def make(self) -> SimulatorEnv:
        """Builds the simulator; called in the process that will run it.

        Raises:
            UserError: if the simulator is not installed or its files are missing, naming the remedy.
        """

    @abstractmethod
    def num_heldout_states(self, task: str) -> int | None:
        """Number of held-out initial states of a task; None without limit."""

    def num_selection_states(self, task: str) -> int | None:
        """Number of initial states of a task on which policies are chosen during training; None without limit."""
        return None

    def num_states(self, task: str, split: str) -> int | None:
        """Number of initial states of a task in split "selection" or "heldout"; None without limit."""
        return self.num_heldout_states(task) if split == "heldout" else self.num_selection_states(task)

    def num_trials(self, task: str) -> int | None:
        """Number of held-out episodes of a task in the benchmark's protocol; None if it does not say."""
        return self.num_heldout_states(task)

    def identity(self) -> Mapping[str, Any]:
        """Facts about this environment that a result table or a data set must record (class, options, versions).

        The keys `suite` and `protocol`, if present, are printed above tables. `training_remark` is a sentence that is
        printed below every table about a policy that was trained here.
        """
        return {"class": type(self).__name__}

    def foreign_build(self) -> dict[str, Any]:
        """Says in plain types how a worker in another interpreter builds the simulator.

        The default constructs the recipe there, from the attributes with the names of its constructor arguments, and
        calls `make`. It needs gymnasium in that interpreter, but no installation of this package.

        Returns:
            Keyword arguments of `foreign_worker.build`: packages, factory, arguments.
        """
        cls = type(self)
        options = {name: getattr(self, name) for name in inspect.signature(cls).parameters if name != "interpreter"}
        return {
            "packages": {"dvla_lightning": str(Path(__file__).parents[1])},
            "factory": f"{__name__}:make_simulator",
            "arguments": {"module": cls.__module__, "recipe": cls.__qualname__, "options": options},
        }

    def select_tasks(self, tasks: str | list[str]) -> tuple[str, ...]:
        """Checks the tasks that a configuration asks for and returns their names.

        Args:
            tasks: "all", one name, or a list of names.

        Raises:
            UserError: for a name this environment does not have, one that is given twice, or no name at all.
        """
        if tasks == "all":
            return self.tasks
        if not isinstance(tasks, (str, list, tuple)):
            raise UserError(f"{type(self).__name__}: tasks must be all, one name or a list of names, got {tasks!r}")
        names = tuple([tasks] if isinstance(tasks, str) else tasks)
        if repeated := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{type(self).__name__}: task {repeated[0]!r} is given twice")
        unknown = [name for name in names if name not in self.tasks]
        if unknown or not names:
            what = f"unknown task {unknown[0]!r}" if unknown else "no task given"
            raise UserError(f"{type(self).__name__}: {what}; choose from: {', '.join(self.tasks)}")
        return names


def make_simulator(module: str, recipe: str, options: Mapping[str, Any]) -> SimulatorEnv:
    """Constructs a recipe by its name and builds its simulator; called in another interpreter."""
    return getattr(importlib.import_module(module), recipe)(**options).make()
