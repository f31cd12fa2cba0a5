"""Instructions: RoboTwin's templates of a task, filled with the objects of a scene."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .checkout import Checkout
from .errors import UserError

# Descriptions to draw one from; script/eval_policy.py asks for as many as it runs episodes.
NUM_DESCRIPTIONS = 100

REMEDY = "restore the file from RoboTwin's repository (git checkout -- description)"


def instruction(checkout: Checkout, task: str, info: Mapping[str, str] | None, split: str, seed: int) -> str:
    """One sentence for a scene; the same for the same seed.

    Args:
        checkout: entered.
        task: name of the task.
        info: the scene's placeholders, or nothing if they are not known: then the task's general description is taken.
        split: "seen" or "unseen".
        seed: of the scene.

    Raises:
        UserError: if the checkout's file of wordings is missing, damaged or empty, or none fits the scene.
    """
    file = checkout.root / "description" / "task_instruction" / f"{task}.json"
    wordings = _read(file)
    if not info:
        return _sentence(wordings.get("full_description"), file, "full_description")
    for template in _not_empty(wordings.get(split), file, split):
        _sentence(template, file, split)
    generator = importlib.import_module("generate_episode_instructions")
    random.seed(seed)  # it draws from both global generators and seeds neither
    np.random.seed(seed)
    try:
        described = generator.generate_episode_descriptions(task, [info], NUM_DESCRIPTIONS)[0][split]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"RoboTwin cannot fill the wordings of {file} with {info} ({error!r}): {REMEDY}") from error
    return _sentence(str(np.random.choice(_not_empty(described, file, split))), file, split)


def _read(file: Path) -> dict[str, Any]:
    try:
        wordings = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(wordings, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"RoboTwin's wordings {file} cannot be read ({reason}): {REMEDY}") from error
    return wordings


def _not_empty(wordings: Any, file: Path, key: str) -> list[Any]:
    if not isinstance(wordings, list) or not wordings:
        raise UserError(f"RoboTwin's wordings {file} hold no {key!r} instruction that fits: {REMEDY}")
    return wordings


def _sentence(text: Any, file: Path, key: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"RoboTwin's wordings {file} hold {text!r} as {key!r}, no sentence: {REMEDY}")
    return text
