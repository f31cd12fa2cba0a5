"""The evaluation that a policy directory carries: how to run it again, and its results.

evaluation/recipe.json        environment, tasks, K, seed and number of episodes, in plain types
evaluation/evaluation.jsonl   the manifest of the author's evaluation, where it was published
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dvla_lightning.diffusion.sampler import Sampler
from dvla_lightning.envs.base import Environment
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.header import Header, grid, grown
from dvla_lightning.evaluation.manifest import read_directory, write_manifest
from dvla_lightning.evaluation.plan import Evaluation
from dvla_lightning.evaluation.records import EpisodeKey, EpisodeRecord, one_per_episode
from dvla_lightning.evaluation.success import SuccessCount, count_by_task
from dvla_lightning.files import whole_file
from dvla_lightning.policy_config import build, check_keys, known_class, parse
from dvla_lightning.policy_directory import EVALUATION
from dvla_lightning.policy_parts import PolicyParts

FOLDER, RECIPE = EVALUATION, "recipe.json"
KEYS = {
    "format_version": int,
    "environment": dict[str, Any],
    "tasks": list[str],
    "num_episodes": int | Literal["all"],
    "num_steps": dict[str, int],
    "seed": int,
}


def make_recipe(
    environment: Environment, tasks: Sequence[str], evaluation: Evaluation, steps: Mapping[str, int]
) -> dict[str, Any] | None:
    """Describes a held-out evaluation in plain types; None if the environment cannot be described like that.

    Options that name programs and folders of this machine are left out.
    """
    cls = type(environment)
    init_args: dict[str, Any] = {}
    local: dict[str, Any] = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if name in cls.machine_options:
            local |= {name: getattr(environment, name)} if hasattr(environment, name) else {}
            continue
        value = getattr(environment, name, parameter.default)
        value = list(value) if isinstance(value, tuple) else value
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        if value != default:
            init_args[name] = value
    try:
        init_args = json.loads(json.dumps(init_args))
        if cls(**init_args, **local).identity() != environment.identity():
            return None
    except (TypeError, ValueError):  # of json, or of the environment
        return None
    return {
        "format_version": 1,
        "environment": {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": init_args},
        "tasks": list(tasks),
        "num_episodes": evaluation.num_episodes,
        "num_steps": dict(steps),
        "seed": evaluation.seed,
    }


def write_recipe(directory: Path, recipe: Mapping[str, Any]) -> None:
    """Adds a recipe to a policy directory."""
    (directory / FOLDER).mkdir(exist_ok=True)
    with whole_file(directory / FOLDER / RECIPE) as partial:
        partial.write_text(json.dumps(recipe, indent=2) + "\n")


def read_recipe(directory: Path, trusted_modules: Sequence[str] = ()) -> dict[str, Any] | None:
    """Reads the recipe of a policy directory as a configuration of `EvaluationDataModule`.

    It may be a stranger's: a class must be known or trusted to be imported, and nothing may name a program or folder.

    Returns:
        The arguments, in plain types; None if the directory has no recipe.

    Raises:
        UserError: if it is damaged or asks for something that is not allowed.
    """
    path = directory / FOLDER / RECIPE
    if not path.is_file():
        return None
    try:
        recipe = json.loads(path.read_text())
        if not isinstance(recipe, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): give --data.collector.environment") from error
    check_keys(recipe, KEYS, str(path))
    if recipe["format_version"] != 1:
        raise UserError(f"{path} has format_version {recipe['format_version']}, this release reads 1")
    described = recipe["environment"]
    cls = known_class(described, Environment, f"{path}: environment", trusted_modules)
    if local := sorted(set(described["init_args"]) & set(cls.machine_options)):
        raise UserError(f"{path}: environment.{local[0]} names something on one machine: give it on the command line")
    build(cls, described["init_args"], f"{path}: environment")
    evaluation = {name: recipe[name] for name in ("num_episodes", "num_steps", "seed")}
    return {"collector": {"environment": described}, "tasks": recipe["tasks"], "evaluation": evaluation}


def check_publishable(policy: PolicyParts, recipe: Mapping[str, Any] | None) -> None:
    """Raises `UserError` unless `publish` may write into the policy's directory once all episodes have run."""
    assert policy.directory is not None
    where = f"the evaluation cannot be published in {policy.directory}"
    if recipe is None:
        raise UserError(f"{where}: the environment cannot be described in plain types")
    config = parse(policy.directory)
    saved = {"sampler": Sampler(**config["sampler"]), "num_action_steps": config["num_action_steps"]}
    for name, value in saved.items():
        if getattr(policy, name) != value:
            raise UserError(f"{where}: {name} is not the one the policy was saved with: save the policy with it first")


def publish(
    directory: Path, recipe: Mapping[str, Any], header: Header, records: Mapping[EpisodeKey, EpisodeRecord]
) -> Path:
    """Writes the record of a whole evaluation, and how to repeat it, into the policy directory it is about.

    Raises:
        UserError: if it is not whole.
    """
    if len(records) < len(grid(header)) or any(record.error is not None for record in records.values()):
        raise UserError(
            f"the evaluation was not published in {directory}: episodes are missing or ended in an error: run it to "
            "its end"
        )
    write_recipe(directory, recipe)
    return write_manifest(directory / FOLDER, header, list(records.values()))


def compare_with_published(directory: Path, header: Header) -> str | None:
    """One line with the published success; None if the policy directory carries no record."""
    if not (directory / FOLDER).is_dir():
        return None
    try:
        published, records = read_directory(directory / FOLDER)
    except UserError as error:  # the evaluation that has just ended is none the worse for it
        return f"no success to compare with: {str(error).partition(':')[0]}"
    if published is None:
        return None
    is_same = {**grown(published, 0), "versions": None} == {**grown(header, 0), "versions": None}
    counts = count_by_task(published["num_steps"], one_per_episode(records).values())
    total = sum(counts.values(), SuccessCount(0, 0))
    return f"published with the policy{'' if is_same else ', under other settings'}: {total}"
