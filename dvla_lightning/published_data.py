"""`dvla validate --model.policy.pretrained DIR` alone: the data section that the policy directory brings along."""

from __future__ import annotations

import argparse
import functools
import json
from typing import Any

import yaml

from dvla_lightning import policy_config
from dvla_lightning.data.evaluation import EvaluationDataModule
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.published import FOLDER, read_recipe
from dvla_lightning.launch.cluster import is_first_process
from dvla_lightning.policy_directory import resolve
from dvla_lightning.tools.parser import read_mapping

OPTIONS = ("", "data", "model", "model.policy", "model.policy.pretrained", "model.policy.trusted_modules")
"""What may say which policy is evaluated, and on what; "" is --config."""


def with_published_data(args: list[str]) -> list[str]:
    """Puts the data section of the policy's recipe before the other arguments, so that each of them overrules it.

    Args:
        args: the verb, and what is given to it. Nothing changes for `fit`, or where they ask for help, name a data
            section themselves, or no policy.

    Raises:
        UserError: if the recipe is damaged, or missing where nothing else says what is run, or the policy cannot be
            found.
    """
    if args[0] == "fit" or any(map(_asks_for_help, args)):
        return args
    layers = _layers(args[1:])
    if any("data" in layer for layer in layers):
        return args
    policy: dict[str, Any] = {}
    for layer in layers:
        policy |= _mapping(_mapping(layer.get("model")).get("policy"))
    if not isinstance(pretrained := policy.get("pretrained"), str):
        if not layers and not any(word.startswith("--data") for word in args):
            raise UserError("nothing says what is evaluated: give --model.policy.pretrained, or a --config")
        return args
    directory, _ = resolve(pretrained)
    policy_config.parse(directory)
    try:
        recipe = read_recipe(directory, policy.get("trusted_modules") or ())
    except UserError:
        if any(word.partition("=")[0] == "--data.collector.environment" for word in args):
            return args  # nothing of it is needed
        raise
    if recipe is None:
        if not any(word.startswith("--data.collector") for word in args):
            raise UserError(
                f"{directory} does not say where it is evaluated: give --data.collector.environment or a "
                "configuration with it"
            )
        return args
    if is_first_process():
        print(f"environment, tasks, K and number of episodes are those of {directory / FOLDER}", flush=True)
    data = {"class_path": f"{EvaluationDataModule.__module__}.EvaluationDataModule", "init_args": recipe}
    return [args[0], "--data", json.dumps(data), *args[1:]]


def _asks_for_help(word: str) -> bool:
    option = word.partition("=")[0]
    return option in ("-h", "--help", "--print_config") or (option.startswith("--") and option.endswith(".help"))


def _layers(args: list[str]) -> list[dict[str, Any]]:
    """Each of `OPTIONS` that is given as a part of a configuration, in order."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in OPTIONS:
        names = [f"--{option}"] if option else ["-c", "--config"]
        read = functools.partial(_layer, option)
        parser.add_argument(*names, dest="layers", action="append", default=[], type=read)
    try:
        layers: list[dict[str, Any]] = parser.parse_known_args(args)[0].layers
    except argparse.ArgumentError:  # an option without its value: the command's own parser has a sentence
        return [{"data": None}]
    return layers


def _layer(option: str, word: str) -> dict[str, Any]:
    if not option:
        return read_mapping(word)
    value: Any = word
    if option != "model.policy.pretrained" or word == "null":
        try:
            value = yaml.safe_load(word)
        except yaml.YAMLError:
            value = None
    for key in reversed(option.split(".")):
        value = {key: value}
    layer: dict[str, Any] = value
    return layer


def _mapping(content: Any) -> dict[str, Any]:
    """A section of a configuration, which may be the name of a file that holds it."""
    if isinstance(content, str):
        return read_mapping(content)
    return content if isinstance(content, dict) else {}
