"""config.json of a policy directory: how to build the policy. It may be a stranger's: checked before anything is built.

A class is looked up among the backbones and tokenizers that are imported already; the file itself imports nothing.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from dvla_lightning.actions.normalization import NormalizationMode
from dvla_lightning.actions.tokenizer import ActionTokenizer
from dvla_lightning.backbones import Backbone
from dvla_lightning.diffusion.sampler import Sampler
from dvla_lightning.errors import UserError
from dvla_lightning.policy_adapters import is_adapted

if TYPE_CHECKING:
    from dvla_lightning.policy import DVLAPolicy

FORMAT_VERSION = 1
CONFIG = "config.json"
KEYS = {
    "backbone": dict[str, Any],
    "action_tokenizer": dict[str, Any],
    "action_dim": int,
    "chunk_size": int,
    "num_action_steps": int,
    "normalization": NormalizationMode,
    "value_hidden_dims": list[int],
    "sampler": dict[str, Any],
}
"""What config.json holds beside format_version, and of which type."""
OPTIONAL_KEYS = {"remarks": list[str], "adapter": bool}
"""Remarks are written where there are some; older files do not say whether there is an adapter."""


def describe(policy: DVLAPolicy) -> dict[str, Any]:
    """What config.json holds."""
    backbone = policy.backbone.get_base_model() if is_adapted(policy.backbone) else policy.backbone
    return {
        "format_version": FORMAT_VERSION,
        "backbone": _describe(backbone),
        "action_tokenizer": _describe(policy.action_tokenizer),
        "action_dim": policy.action_dim,
        "chunk_size": policy.chunk_size,
        "num_action_steps": policy.num_action_steps,
        "normalization": policy.normalization,
        "value_hidden_dims": policy.value_hidden_dims,
        "sampler": dataclasses.asdict(policy.sampler),
        "adapter": is_adapted(policy.backbone),
        **({"remarks": policy.remarks} if policy.remarks else {}),
    }


def read(directory: Path, trusted_modules: Sequence[str] = ()) -> dict[str, Any]:
    """Builds the parts named in config.json (weights still random).

    Args:
        directory: of the policy.
        trusted_modules: modules that may be imported because config.json names a class in them or below them.

    Returns:
        The keys of the file (without format_version), with the parts in the place of their descriptions.

    Raises:
        UserError: if the file is missing, not valid, or of another format version, or names a class that is not known.
    """
    path = directory / CONFIG
    config = _parse(path)
    version = config.pop("format_version", None)
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise UserError(f"{path} has format_version {version}, this release reads {FORMAT_VERSION}")
    known = {**KEYS, **OPTIONAL_KEYS}
    for name in sorted((KEYS.keys() - config.keys()) | (config.keys() - known.keys())):
        what = "lacks the key" if name in KEYS else "has the unknown key"
        raise UserError(f"{path} {what} {name!r}: save the policy again")
    for name, value in config.items():
        _check(value, known[name], f"{path}: {name}")
    backbone = _class(config["backbone"], Backbone, f"{path}: backbone", trusted_modules)
    tokenizer = _class(config["action_tokenizer"], ActionTokenizer, f"{path}: action_tokenizer", trusted_modules)
    return {
        "remarks": [],
        "adapter": (directory / "adapter").exists(),
        **config,
        "sampler": _build(Sampler, config["sampler"], f"{path}: sampler"),
        "backbone": _build(backbone, config["backbone"]["init_args"], f"{path}: backbone"),
        "action_tokenizer": _build(tokenizer, config["action_tokenizer"]["init_args"], f"{path}: action_tokenizer"),
    }


def _describe(part: Any) -> dict[str, Any]:
    return {"class_path": f"{type(part).__module__}.{type(part).__qualname__}", "init_args": part.init_args}


def _parse(path: Path) -> dict[str, Any]:
    def refuse(text: str) -> None:
        raise ValueError(f"{text} is no number")

    try:
        config = json.loads(path.read_text(), parse_constant=refuse)
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except FileNotFoundError:
        inside = path.parent / "policy" / CONFIG
        hint = f"; did you mean {inside.parent}?" if inside.exists() else ""
        raise UserError(f"{path.parent} is not a policy directory: it has no {CONFIG}{hint}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): save the policy again") from error
    return config


def _class(description: dict[str, Any], base: type, where: str, trusted_modules: Sequence[str]) -> type:
    """The class that a description names, if it is known; nothing is imported but `trusted_modules`."""
    for name in sorted({"class_path", "init_args"} ^ description.keys()):
        what = "lacks the key" if name in ("class_path", "init_args") else "has the unknown key"
        raise UserError(f"{where} {what} {name!r}: save the policy again")
    _check(description["class_path"], str, f"{where}.class_path")
    _check(description["init_args"], dict[str, Any], f"{where}.init_args")
    class_path = description["class_path"]
    module = class_path.rpartition(".")[0]
    is_trusted = any(module == name or module.startswith(f"{name}.") for name in trusted_modules)
    if is_trusted:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"{where} names {class_path!r}, whose module cannot be imported ({error})") from error
    for known in reversed([*_subclasses(base)]):  # a notebook may have defined a class again: its last definition
        if f"{known.__module__}.{known.__qualname__}" == class_path:
            return known
    hint = "" if is_trusted or not module else f"; if it is yours, name its module in trusted_modules: [{module}]"
    raise UserError(f"{where} names {class_path!r}, which is no known {base.__name__}{hint}")


def _subclasses(base: type) -> Iterator[type]:
    for each in base.__subclasses__():
        yield each
        yield from _subclasses(each)


def _build(cls: type, init_args: dict[str, Any], where: str) -> Any:
    """Calls a constructor with arguments from JSON, after checking them against its annotations."""
    try:
        inspect.signature(cls).bind(**init_args)
    except TypeError as error:
        raise UserError(f"{where} does not fit {cls.__name__}: {error}") from error
    try:
        hints = get_type_hints(cls.__init__)
    except NameError:  # a user's class that imports its types for type checkers alone
        hints = {}
    for name, value in init_args.items():
        _check(value, hints.get(name, Any), f"{where}.{name}")
    try:
        return cls(**init_args)
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError) as error:
        raise UserError(f"{where} cannot be built: {(str(error) or type(error).__name__).splitlines()[0]}") from error


def _check(value: Any, hint: Any, where: str) -> None:
    if not _fits(value, hint):
        options = get_args(hint) if get_origin(hint) is Literal else ()
        wanted = f"one of {', '.join(map(str, options))}" if options else getattr(hint, "__name__", str(hint))
        wanted = wanted if get_origin(hint) in (None, Literal) else str(hint).replace("typing.", "")
        raise UserError(f"{where} must be {wanted}, got {json.dumps(value)[:60]}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of an annotated type; types that JSON does not know are left to the constructor."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in args)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in args)
    if hint is float:
        return type(value) in (int, float) and abs(value) < 1e300
    if hint in (int, bool, str, types.NoneType):
        return type(value) is hint
    if origin in (dict,):
        return isinstance(value, dict) and all(_fits(each, args[1]) for each in value.values())
    if origin in (list, Sequence):
        return isinstance(value, list) and all(_fits(each, args[0]) for each in value)
    return True
