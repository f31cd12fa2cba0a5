"""Facts about LIBERO's tasks without importing LIBERO (its import asks questions and loads a simulator)."""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dvla_lightning.errors import UserError

# Control steps after the wait, as evaluated by OpenVLA-OFT: moojink/openvla-oft@213c5ff,
# experiments/robot/libero/run_libero_eval.py (TASK_MAX_STEPS). LeRobot uses 280 for libero_spatial.
MAX_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}

NUM_PUBLISHED_STATES = 50  # rows of every published .pruned_init file

INSTALL_REMEDY = "run `make libero`, or see README.md for the pip commands"


@dataclass(frozen=True)
class Task:
    """One task of a suite.

    Attributes:
        name: LIBERO's name, which is also the stem of its files.
        instruction: the sentence given to the policy; made from the name, as every published VLA reads it (the
            sentence inside the BDDL file differs in libero_spatial).
        bddl: the file that defines objects, regions and goal.
        initial_states: the file of the published initial states.
    """

    name: str
    instruction: str
    bddl: Path
    initial_states: Path


@cache
def package_root() -> Path:
    """The folder `libero/libero` of the installed hf-libero.

    Raises:
        UserError: if hf-libero is not installed.
    """
    # find_spec of a top-level name does not execute the package, and so cannot reach LIBERO's input() prompt.
    spec = importlib.util.find_spec("libero")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        root = Path(location) / "libero"
        if (root / "benchmark" / "libero_suite_task_map.py").is_file():
            return root
    raise UserError(f"LIBERO is not installed in this Python (package hf-libero): {INSTALL_REMEDY}")


@cache
def _task_map() -> dict[str, list[str]]:
    source = (package_root() / "benchmark" / "libero_suite_task_map.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "libero_task_map":
            return ast.literal_eval(node.value)
    raise UserError(f"this LIBERO lists its tasks in an unknown way; hf-libero 0.1.4 is needed: {INSTALL_REMEDY}")


def instruction_of(name: str) -> str:
    """The sentence in a task name: without the scene prefix of LIBERO-100, underscores as spaces."""
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", name).replace("_", " ")


@cache
def suite_tasks(suite: str) -> dict[str, Task]:
    """All tasks of a suite by name, in the published order.

    Raises:
        UserError: for an unknown suite, or if hf-libero is not installed.
    """
    if suite not in MAX_STEPS:
        raise UserError(f"unknown LIBERO suite {suite!r}; choose from: {', '.join(MAX_STEPS)}")
    root = package_root()
    return {
        name: Task(
            name=name,
            instruction=instruction_of(name),
            bddl=root / "bddl_files" / suite / f"{name}.bddl",
            initial_states=root / "init_files" / suite / f"{name}.pruned_init",
        )
        for name in _task_map()[suite]
    }
