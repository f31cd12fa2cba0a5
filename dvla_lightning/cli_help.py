"""`dvla fit --help`: our own options first, the Trainer's last, and at the top how to get the help of each part."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from typing import Any

from jsonargparse import DefaultHelpFormatter

from dvla_lightning.actions.tokenizer import ActionTokenizer
from dvla_lightning.backbones.base import Backbone
from dvla_lightning.data.base import DVLADataModule
from dvla_lightning.envs.base import Environment
from dvla_lightning.objectives.base import Objective
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.tools.parser import known_classes

# option -> base of the classes that may be named there; each class has options of its own
PARTS = {
    "model.policy.backbone": Backbone,
    "model.policy.action_tokenizer": ActionTokenizer,
    "model.objective": Objective,
    "data": DVLADataModule,
    "data.collector": Collector,
    "data.collector.environment": Environment,
}
# how the options of a group begin -> its title; in this order
GROUPS = {
    "model.policy": "Policy: read from a directory, or made of new parts",
    "model": "Objective and optimizer",
    "data": "Episodes, demonstrations and evaluation",
    "help": "The run",
    "ckpt_path": "Checkpoints",
    "trainer": "The Trainer of Lightning",
}


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the text at the top."""


def introduction(verb: str, summary: str) -> str:
    """The text at the top of `dvla <verb> --help`."""
    words = {option: f"{_owner(option, verb)}--{option}.help NAME" for option in PARTS}
    width = max(map(len, words.values()))
    commands = [f"  dvla {verb} {words[option]:<{width}}  {', '.join(sorted(known_names(option)))}" for option in PARTS]
    return "\n".join(
        [
            f"{summary[0].upper()}{summary[1:]}.",
            "",
            "Every option below, and every one of the parts, can be set in YAML or here: --data.num_steps 2.",
            "What a part takes depends on its class; NAME is one of those behind it, or your own by its dotted path:",
            "",
            *commands,
            "",
            "`dvla config ls` lists the shipped configurations, --print_config shows what a command would run with.",
        ]
    )


def _owner(option: str, verb: str) -> str:
    """The option that must come before it: `dvla fit` has no data module by default."""
    return "--data RolloutDataModule " if verb == "fit" and option.startswith("data.") else ""


def known_names(option: str) -> list[str]:
    """The classes of a part that this package brings along."""
    return [kind.__name__ for kind in known_classes(PARTS[option])]


def arrange(parser: Any, verb: str) -> None:
    """Puts the options of a verb into the order of `GROUPS`, and a short line in the place of the usage.

    Left out is the group of links, which repeats what the help of the seed says.
    """
    parser.usage = f"dvla {verb} --config FILE [options]"
    arranged = []
    for word, title in GROUPS.items():
        group = next(group for group in parser._action_groups if _begins_with(group, word))
        group.title = title
        arranged.append(group)
    parser._action_groups = arranged


def _begins_with(group: Any, word: str) -> bool:
    options = [action.dest for action in group._group_actions if action.option_strings]
    return word in options or any(option.partition(".")[0] == word for option in options)
