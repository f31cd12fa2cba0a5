"""`dvla validate --model.policy.pretrained DIR` alone: the data section that the policy directory brings along."""

from __future__ import annotations

import json
from typing import Any

import yaml

from dvla_lightning.data.evaluation import EvaluationDataModule
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.published import FOLDER, read_recipe
from dvla_lightning.policy_directory import resolve
from dvla_lightning.tools.parser import read_mapping

PRETRAINED, TRUSTED = "--model.policy.pretrained", "--model.policy.trusted_modules"


def with_published_data(args: list[str]) -> list[str]:
    """Puts the data section of the policy's recipe before the other arguments, so that each of them overrules it.

    Args:
        args: the verb and its arguments; unchanged for `fit`, if they name a data section themselves, or if the policy
            has no recipe.

    Raises:
        UserError: if the recipe is damaged, or the policy cannot be found.
    """
    if args[0] == "fit" or any(word == "--data" or word.startswith("--data=") for word in args):
        return args
    configs = [content for word in _values(args, "--config", "-c") if (content := read_mapping(word))]
    if any("data" in content for content in configs):
        return args
    given = [policy for content in configs if isinstance(policy := _at(content, "model", "policy"), dict)]
    options: dict[str, Any] = {name: value for policy in given for name, value in policy.items()}
    for name, option in (("pretrained", PRETRAINED), ("trusted_modules", TRUSTED)):
        if values := _values(args, option):
            options[name] = yaml.safe_load(values[-1])
    if not isinstance(pretrained := options.get("pretrained"), str):
        return args
    directory, _ = resolve(pretrained)
    recipe = read_recipe(directory, options.get("trusted_modules") or ())
    if recipe is None:
        if not any(word.startswith("--data.collector") for word in args):
            raise UserError(
                f"{directory} does not say where it is evaluated: give --data.collector.environment or a "
                "configuration with it"
            )
        return args
    print(f"environment, tasks, K and number of episodes are those of {directory / FOLDER}", flush=True)
    data = {"class_path": f"{EvaluationDataModule.__module__}.EvaluationDataModule", "init_args": recipe}
    return [args[0], "--data", json.dumps(data), *args[1:]]


def _values(args: list[str], *names: str) -> list[str]:
    """The values of an option, in either spelling."""
    pairs = zip(args, [*args[1:], ""], strict=True)
    spelt = [following if word in names else word.partition("=")[2] for word, following in pairs if _is(word, names)]
    return [value for value in spelt if value]


def _is(word: str, names: tuple[str, ...]) -> bool:
    return word in names or word.partition("=")[0] in names


def _at(content: Any, *keys: str) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content
