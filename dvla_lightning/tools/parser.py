"""Command lines of the tools: a function's signature and docstring are its options."""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from dvla_lightning.errors import UserError

UNKNOWN_OPTION = re.compile(
    r"(?:Group '([\w.]+)' )?(?:unrecognized arguments:|Option|does not accept option) '?([-\w.=]+)"
)
UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\w+(\(.*\))?)$")

NO_CLASS = re.compile(r"Not a valid subclass of \w+$")
COMPOUND = ("{", "[{", "Namespace(", "[Namespace(", "NestedArg")
ONE_WORD = re.compile(r"Expected a typing\.Literal\[[^]]*\]$")
DASH = re.compile(r"argument --[-\w.]+: expected one argument$")
NO_HELP = ("Expected a <class 'NoneType'>", "Expected a path")
MOVED = {
    "num_eval_episodes": "evaluation.num_episodes",
    "eval_num_steps": "evaluation.num_steps",
    "eval_seed": "evaluation.seed",
    "eval_split": "evaluation.split",
    "num_recorded_episodes": "evaluation.num_recorded_episodes",
    "save_videos": "evaluation.save_videos",
    "eval_shard": "evaluation.shard",
}
"""Options of data modules that had another name."""
FOLLOWS = {"num_positions": "chunk_size x action_dim", "vocab_size": "the action tokenizer"}
"""Former options of backbones, and what they follow from."""
NO_CLASS_PATH = re.compile(r"Subclasses are disabled for (\w+),")


class ConfigFile(ActionConfigFile):
    """`--config`, with the name of the file in errors about its content."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        """Reads the file.

        Raises:
            UserError: if it is no YAML, or no mapping.
        """
        try:
            super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]
        except (TypeError, UserError, UnicodeDecodeError) as error:
            found = error.__context__ if isinstance(error, UserError) else error
            if str(found).startswith("Unexpected config"):
                raise UserError(f"--config {values} holds no mapping from options to values") from error
            fault = found if isinstance(found, UnicodeDecodeError) else found and found.__cause__
            if isinstance(fault, (yaml.YAMLError, UnicodeDecodeError)):
                words = " ".join(str(fault).replace('in "<unicode string>", ', "in ").split())
                raise UserError(f"--config {values} is not YAML ({words})") from error
            raise


class OneSentenceParser(ArgumentParser):
    """Raises `UserError` with the one useful line of jsonargparse's report; options are written in full."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        raise UserError(useful_line(message, self))


def useful_line(message: str, parser: ArgumentParser | None = None) -> str:
    """The line that says what is wrong, with the key it is about; with a parser also what may have been meant."""
    text = str(message).replace("collections.abc.Sequence", "list")
    lines = [line.strip(" -") for line in text.splitlines() if line.strip()]
    noise = ("Parser key", "Problem with", "Does not validate", "Subtypes", "Errors", "Given value", *NO_HELP)
    useful = [line for line in lines if not line.startswith(noise)] or lines[-1:]
    keys = [line.split('"')[1] for line in lines if line.startswith("Parser key") and '"' in line]
    given = next((line.removeprefix("Given value: ") for line in lines if line.startswith("Given value: ")), None)
    if given is not None and given.startswith(COMPOUND):  # it is no word, but something inside it is wrong
        useful = [line for line in useful if not ONE_WORD.match(line)] or useful
    where = f"{keys[-1]}: " if keys and keys[-1] not in useful[0] else ""
    if not keys and (moved := _moved(useful[0], parser)):
        return moved
    if plain := NO_CLASS_PATH.match(useful[0]):
        place = {"PolicyRecipe": "model.policy", "Evaluation": "data.evaluation"}.get(plain[1], plain[1])
        return f"{place}: its options stand directly under it, without class_path and init_args"
    found = re.sub(r'^Parser key "([\w.]+)": ', r"\1: ", _all_expected(useful, given))
    return where + found + _meant(useful[0], keys, parser)


def _all_expected(useful: Sequence[str], given: str | None) -> str:
    """The first line, with all types that would fit."""
    expected = [
        line.removeprefix("Expected a ").split(". Got value")[0] for line in useful if line.startswith("Expected a ")
    ]
    if given is None or given.startswith(COMPOUND) or not expected or re.search("(?i)got value|import path", useful[0]):
        return useful[0]
    names = [re.sub(r"<class '(\w+)'>|typing\.Literal\[(.*)\]", r"\1\2", line) for line in expected]
    return f"Expected {' or '.join(dict.fromkeys(names))}, got {given}"


def read_mapping(file: str) -> dict[str, Any]:
    """The content of a YAML file; empty if there is no such file or it holds no mapping, which the parser reports.

    Args:
        file: its path; any other text does no harm.
    """
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def moved_options(file: str, part: str) -> str:
    """A sentence about all options of a part in a YAML file that have another name now; empty if there are none."""
    options = read_mapping(file).get(part)
    options = options.get("init_args", options) if isinstance(options, dict) else None
    return ", ".join(f"{name} is now {part}.{MOVED[name]}" for name in options or () if name in MOVED)


def _moved(line: str, parser: ArgumentParser | None) -> str | None:
    """A sentence about an option that has another name now; None if this parser has no such option."""
    option = UNKNOWN_OPTION.search(line)
    if option is None or parser is None:
        return None
    name = option[2].lstrip("-").split("=")[0]
    is_ours = MOVED.get(name) in {action.dest for action in parser._actions}
    return f"{name} is now data.{MOVED[name]}" if is_ours else None


def _meant(line: str, keys: Sequence[str], parser: ArgumentParser | None) -> str:
    """The end of a sentence about a mistake: the most similar option, or the known classes."""
    if parser is None:
        return ""
    if DASH.match(line):
        return ": a value that begins with - is joined to its option by =, as in --option=-1"
    if line.startswith('Parser key "config": File does not exist'):
        return ": `dvla config ls` lists the shipped ones, `dvla config cp` brings them here"
    if option := UNKNOWN_OPTION.search(line):
        if option[2] in FOLLOWS and keys and keys[-1].endswith("backbone"):
            return f": it follows from {FOLLOWS[option[2]]}, leave it out"
        known = {action.dest: None for action in _actions(parser) if action.dest != "help"}
        wrong = (f"{option[1]}." if option[1] else "") + option[2].lstrip("-").split("=")[0]
        near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.7)
        last = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}  # the last word is right, the group is not
        near = near or [last[name] for name in difflib.get_close_matches(wrong.rsplit(".", 1)[-1], last, 1, 0.8)]
        return f": did you mean {near[0]}?" if near else ""
    if keys and ((wrong_class := UNKNOWN_CLASS.search(line)) or NO_CLASS.match(line)):
        hints = [getattr(action, "_typehint", None) for action in _actions(parser) if action.dest == keys[-1]]
        names = sorted({kind.__name__ for hint in hints for kind in known_classes(hint)})
        if wrong_class is None:
            return f": name its class first, one of {', '.join(names)}, or your own by its dotted path"
        near = difflib.get_close_matches(wrong_class[1], names, n=1)
        arguments = ", and its arguments as init_args" if wrong_class[2] else ""
        meant = f", did you mean {near[0]}{arguments}?" if near else ""
        return f"{meant} (known are: {', '.join(names)}; others by their dotted path)" if names else ""
    return ""


def check_nulls(name: str, part: Any) -> None:
    """Raises `UserError` for null where a class takes none: jsonargparse lets it pass in the arguments of a class.

    Args:
        name: of the option.
        part: its value in a parsed configuration.
    """
    if not isinstance(part, Namespace) or not isinstance(part.get("init_args"), Namespace):
        return
    parameters = inspect.signature(pkgutil.resolve_name(part.class_path)).parameters
    for argument, value in vars(part.init_args).items():
        if value is not None or argument not in parameters or parameters[argument].default is None:
            continue
        if not re.search(r"\bNone\b|\bOptional\b|\bAny\b|_empty", str(parameters[argument].annotation)):
            raise UserError(f"{name}.{argument} cannot be null")


def _actions(parser: ArgumentParser) -> list[Any]:
    """The options of a parser and of its verbs."""
    verbs = [verb for action in parser._actions for verb in getattr(action, "_name_parser_map", {}).values()]
    return [action for each in (parser, *verbs) for action in each._actions]


def known_classes(hint: Any) -> Iterator[type]:
    """Classes that a type hint allows, are imported and not abstract."""
    below: type
    for kind in typing.get_args(hint) or [hint]:
        if typing.get_origin(kind) is not None:
            yield from known_classes(kind)
        elif isinstance(kind, type) and kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
            if not inspect.isabstract(kind) and not kind.__name__.startswith("_"):
                yield kind
            subclasses: list[type] = kind.__subclasses__()
            for below in subclasses:
                yield from known_classes(below)


def run_tool(function: Callable[..., Any], args: Sequence[str], name: str, **given: Any) -> Any:
    """Parses `args` into the arguments of `function` and calls it; those in `given` are no options.

    Raises:
        UserError: for arguments that do not fit.
    """
    parser = OneSentenceParser(prog=name, description=(function.__doc__ or "").split("\n")[0])
    parser.add_argument("--config", action=ConfigFile, help="YAML file with the options below")
    parser.add_function_arguments(function, fail_untyped=True, sub_configs=True, skip=set(given))
    config = parser.parse_args(list(args))
    for option, part in vars(config).items():
        check_nulls(option, part)
    try:
        arguments = parser.instantiate(config)
    except UserError:
        raise
    except ValueError as error:  # of a dataclass such as the sampler, which knows nothing of users
        raise UserError(useful_line(str(error))) from error
    arguments.pop("config", None)
    return function(**vars(arguments), **given)
