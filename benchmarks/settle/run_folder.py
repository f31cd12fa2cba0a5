"""Compares the options that are written down in a run folder with those of the arm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.settle.arms import NUM_EVAL_EPISODES, TRAINING, Arm
from dvla_lightning.evaluation.header import grid
from dvla_lightning.evaluation.manifest import read_directory
from dvla_lightning.evaluation.records import one_per_episode


def is_finished(folder: Path) -> bool:
    """Whether every episode of the evaluation, an arm's last output, has ended."""
    header, records = read_directory(folder)
    return header is not None and len(one_per_episode(records)) == len(grid(header))


def difference(folder: Path, arm: Arm) -> str | None:
    """The first option that was another one, in words; None if all agree.

    Args:
        folder: of a unit that has begun or finished: config.yaml comes from `dvla fit`, validate.yaml from `dvla
            validate`.
        arm: what it should be.
    """
    always = {"model.policy.sampler": arm.sampler, **arm.steps("")}
    wanted = {
        "config.yaml": {**always, **TRAINING, **arm.changes},
        "validate.yaml": {**always, "data.evaluation.num_episodes": NUM_EVAL_EPISODES},
    }
    for name, options in wanted.items():
        if not (folder / name).exists():
            continue
        if name == "config.yaml" and not arm.trained:
            return "it was trained"
        content = yaml.safe_load((folder / name).read_text())
        for option, value in options.items():
            found = _get(content, option)
            # of a schedule only that there is one: the file is the seed's, or the run's own
            agrees = found is not None if option == "data.schedule" else _covers(found, yaml.safe_load(str(value)))
            if not agrees:
                return f"{option} was {found}, not {value}"
        if arm.num_steps and _get(content, "data.schedule") is not None:
            return f"it followed a schedule, not K = {arm.num_steps}"
    return None


def _get(content: Any, option: str) -> Any:
    """The value of a command-line option; `init_args` may be left out on the way, as on the command line."""
    for name in option.split("."):
        if not isinstance(content, Mapping):
            return None
        if name not in content and "init_args" in content:
            content = content["init_args"]
        content = content.get(name)
    return content


def _covers(found: Any, wanted: Any) -> bool:
    """Equal, or a mapping in which all that is wanted is equal: configurations name defaults, too."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(_covers(found.get(key), value) for key, value in wanted.items())
    return found == wanted
