"""RoboTwin's task object: built, set up with a seed, played by its expert, closed."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from .arguments import setup_arguments
from .checkout import ASSETS_REMEDY, Checkout
from .errors import UserError
from .expert import ExpertRun, close, run_expert
from .options import Options
from .planner import install_mplib
from .rendering import choose_rendering
from .scenes import Scenes
from .seed_book import SeedBook

VULKAN_REMEDY = (
    "it needs a GPU driver with Vulkan; on a CPU Mesa 25 (lavapipe), sapien 3.0.3, and the options shader: default, "
    "shadow: false"
)


class Stage:
    """Keeps one task object for all episodes of a task, as upstream does.

    Args:
        options: of the run.

    Attributes:
        on_progress: called while a search for a solvable scene makes progress.
        task: RoboTwin's object of the task that was selected last.
        name: of that task; empty before.

    Raises:
        UserError: if the checkout, its assets or its packages cannot be used.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.checkout = Checkout(options.root, options.assets_root)
        try:
            self.checkout.enter()
            if options.planner == "mplib" and self.checkout.layout != "RLinf_support":
                install_mplib(self.checkout)
            choose_rendering(options.shader, options.shadow)
        except ImportError as error:
            raise UserError(_import_remedy(error)) from error
        self.commit = self.checkout.commit()
        self.on_progress: Callable[[], object] = lambda: None
        self.task: Any = None
        self.name = ""
        self.arguments: dict[str, Any] = {}
        self._is_set_up, self._num_scenes = False, 0
        self._books: dict[tuple[str, ...], SeedBook] = {}
        self._last_run: tuple[tuple[str, int, str], ExpertRun] | None = None

    def select(self, name: str) -> None:
        """Makes the object of a task.

        Raises:
            UserError: if the checkout has no such task, its models are missing, or it cannot run what is asked for.
        """
        if name == self.name:
            return
        self.close()
        missing, folder = self.checkout.missing_models(name), self.checkout.assets
        if missing:
            raise UserError(
                f"task {name!r} needs the model {missing[0]}, which is not in {folder / 'objects'}; "
                f"{ASSETS_REMEDY.format(folder)}"
            )
        task = self.checkout.make_task(name)
        if self.options.execution == "chunk" and not hasattr(task, "gen_sparse_reward_data"):
            raise UserError(
                f"execution: chunk needs the branch RLinf_support of RoboTwin, {self.checkout.root} is "
                f"{self.checkout.layout}: set execution: per_action"
            )
        self.arguments = setup_arguments(self.checkout, name, self.options)
        self.task, self.name = task, name

    def find_scene(self, split: str, number: int) -> tuple[int, dict[str, str] | None]:
        """Seed of an initial state of the selected task, and the placeholders of its instruction (None: unknown)."""
        book = self._book(split) if self.options.validity == "expert" else None
        scenes = Scenes(self.options, book, lambda seed: self.run_expert(seed, split).verdict, self.on_progress)
        return scenes.find(self.name, split, number)

    def set_up(self, seed: int, split: str) -> None:
        """Builds a scene; raises what RoboTwin raises, UnStableError for instance."""
        self.leave()
        limit = self.options.max_steps[self.name]
        random.seed(seed)  # RoboTwin seeds numpy and torch, but not this one
        np.random.seed(seed % 2**32)
        # eval_mode decides about the textures too: those of evaluation are never seen in training.
        arguments = dict(self.arguments, eval_mode=split == "heldout", step_lim=limit)
        self._is_set_up = True  # also a scene that breaks half way is closed
        self._num_scenes += 1
        try:
            self.task.setup_demo(now_ep_num=self._num_scenes, seed=seed, is_test=True, **arguments)
        except RuntimeError as error:
            if "rendering device" in str(error):
                raise UserError(f"SAPIEN cannot render here ({error}): {VULKAN_REMEDY}") from error
            raise
        self.task.step_lim = limit

    def run_expert(self, seed: int, split: str) -> ExpertRun:
        """Runs the expert on a scene; the last run is remembered: demonstrating a scene often follows its check."""
        key = self.name, seed, split
        if self._last_run is None or self._last_run[0] != key:
            try:
                run = run_expert(self.task, lambda: self.set_up(seed, split), self.options.action_type)
            finally:
                self.leave()
            self._last_run = key, run
        return self._last_run[1]

    def leave(self) -> None:
        """Closes the scene, and every few scenes clears SAPIEN's cache, which grows on the GPU."""
        if self._is_set_up:
            every = max(1, int(self.arguments.get("clear_cache_freq", 5)))
            close(self.task, clear_cache=self._num_scenes % every == 0)
        self._is_set_up = False

    def close(self) -> None:
        """Closes the scene and drops the task."""
        self.leave()
        self.task, self.name = None, ""

    def _book(self, split: str) -> SeedBook:
        """The verdicts on seeds, which depend on the task, split, configuration, robots, planner and code."""
        robots = "+".join(str(part).rstrip("/").rsplit("/", 1)[-1] for part in self.arguments["embodiment"])
        facts = {"config": self.options.task_config, "embodiment": robots, "planner": self.options.planner}
        facts.update(commit=self.commit[:12], split=split)
        key = (self.name, *facts.values())
        if key not in self._books:
            self._books[key] = SeedBook(self.options.cache_dir, self.name, facts)
        return self._books[key]


def _import_remedy(error: ImportError) -> str:
    where = f"RoboTwin cannot be imported in {sys.executable}"
    if "CuroboPlanner" in str(error):
        return f"{where}: its planner needs curobo; install it there, or set planner: mplib"
    if isinstance(error, ModuleNotFoundError) and error.name == "mplib":
        return f"{where}, which lacks the package 'mplib': pip install mplib==0.2.1 there, as RoboTwin pins it"
    if isinstance(error, ModuleNotFoundError):
        return (
            f"{where}, which lacks the package {error.name!r}: name the Python of your RoboTwin installation as "
            "`interpreter` or in the environment variable ROBOTWIN_PYTHON"
        )
    return f"{where} ({error}): repair that installation, or name another Python as `interpreter`"
