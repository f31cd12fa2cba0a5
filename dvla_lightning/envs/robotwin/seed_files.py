"""Lists of seeds, as RLinf and SimpleVLA-RL write them: JSON {task: {"success_seeds": [...]}}."""

from __future__ import annotations

import difflib
import json
import reprlib
from pathlib import Path
from typing import Any

from dvla_lightning.envs.robotwin.tasks import STEP_LIMITS
from dvla_lightning.errors import UserError

MAX_SEED = 2**32 - 1  # RoboTwin seeds numpy with it


def read_seed_file(file: str | None) -> dict[str, list[int]]:
    """Task -> different seeds, in the order of the file; empty without a file.

    Other entries than `success_seeds` are left alone: the field keeps names and reasons there.

    Raises:
        UserError: naming the file and the entry that is wrong: a scene that is listed twice would count twice.
    """
    if file is None:
        return {}
    try:
        content = json.loads(Path(file).expanduser().read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
        if not isinstance(content, dict) or not content:
            raise ValueError("there is no task in it")
        return {task: _seeds(task, entry) for task, entry in content.items()}
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f'RoboTwin: {file} is no list of seeds: {reason}; it must be JSON {{task: {{"success_seeds": [...]}}}}'
        ) from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return content


def _seeds(task: str, entry: Any) -> list[int]:
    if task not in STEP_LIMITS:
        near = difflib.get_close_matches(task, STEP_LIMITS, 1)
        raise ValueError(f"there is no task {task!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    if not isinstance(entry, dict) or "success_seeds" not in entry:
        raise ValueError(f"task {task!r} has no success_seeds")
    seeds = entry["success_seeds"]
    if not isinstance(seeds, list):
        raise ValueError(f"success_seeds of task {task!r} is {reprlib.repr(seeds)}, no list")
    seen = set()
    for place, seed in enumerate(seeds):
        where = f"success_seeds of task {task!r}, entry {place}"
        if type(seed) is not int or not 0 <= seed <= MAX_SEED:
            raise ValueError(f"{where}, is {reprlib.repr(seed)}, no whole number from 0 to {MAX_SEED}")
        if seed in seen:
            raise ValueError(f"{where}, lists seed {seed} again")
        seen.add(seed)
    return seeds
