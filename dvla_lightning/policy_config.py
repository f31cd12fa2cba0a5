"""config.json of a policy directory: how to build the policy. It may be a stranger's: checked before anything is built.

A class is looked up among the backbones and tokenizers that are imported already; the file itself imports nothing.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dvla_lightning.actions.normalization import Normalization, NormalizationGroup, NormalizationMode
from dvla_lightning.actions.tokenizer import ActionTokenizer
from dvla_lightning.backbones import Backbone
from dvla_lightning.diffusion.sampler import Sampler
from dvla_lightning.errors import UserError
from dvla_lightning.policy_adapters import is_adapted
from dvla_lightning.policy_base import BaseReference
from dvla_lightning.policy_parts import PolicyParts

FORMAT_VERSION = 2
"""Version 1 has one normalisation for everything, and always the weights below an adapter."""
CONFIG = "config.json"
KEYS = {
    "backbone": dict[str, Any],
    "action_tokenizer": dict[str, Any],
    "action_dim": int,
    "chunk_size": int,
    "num_action_steps": int,
    "normalization": Any,
    "value_hidden_dims": list[int],
    "sampler": dict[str, Any],
}
"""Keys of config.json beside format_version, and their types."""
OPTIONAL_KEYS = {"remarks": list[str], "adapter": bool, "base": dict[str, Any]}
"""Remarks and the base of an adapter are written where there are some; older files have no "adapter"."""
BASE_KEYS = {"pretrained": str, "revision": str | None, "fingerprint": str, "is_copied": bool}


def describe(policy: PolicyParts, base: BaseReference | None = None, is_copied: bool = True) -> dict[str, Any]:
    """Builds the content of config.json.

    Args:
        policy: to describe.
        base: of its adapter, as the directory names it.
        is_copied: whether the directory holds the weights of the base.
    """
    return {
        "format_version": FORMAT_VERSION,
        "backbone": _describe(policy.network),
        "action_tokenizer": _describe(policy.action_tokenizer),
        "action_dim": policy.action_dim,
        "chunk_size": policy.chunk_size,
        "num_action_steps": policy.num_action_steps,
        "normalization": policy.normalization.plain(),
        "value_hidden_dims": policy.value_hidden_dims,
        "sampler": dataclasses.asdict(policy.sampler),
        "adapter": is_adapted(policy.backbone),
        **({"base": {**dataclasses.asdict(base), "is_copied": is_copied}} if base else {}),
        **({"remarks": policy.remarks} if policy.remarks else {}),
    }


@dataclasses.dataclass
class PolicyConfig:
    """A checked config.json.

    Attributes:
        parts: constructor arguments of `PolicyParts`, backbone and tokenizer built (their weights are not those of the
            policy).
        remarks: of the policy.
        has_adapter: whether adapter/ must be there.
        base: of the adapter, None where there is none or an older release wrote the file.
        is_base_copied: whether the weights of the base are in the directory itself.
    """

    parts: dict[str, Any]
    remarks: list[str]
    has_adapter: bool
    base: BaseReference | None
    is_base_copied: bool


def read(directory: Path, trusted_modules: Sequence[str] = ()) -> PolicyConfig:
    """Reads config.json and builds the parts it names.

    Args:
        directory: of the policy.
        trusted_modules: modules that may be imported because config.json names a class in them or below them.

    Raises:
        UserError: if the file is missing, not valid, or of another format version, or names a class that is not known.
    """
    path = directory / CONFIG
    config = parse(directory)
    version = config.pop("format_version", None)
    if version not in (1, FORMAT_VERSION) or isinstance(version, bool):
        raise UserError(f"{path} has format_version {version}, this release reads 1 and {FORMAT_VERSION}")
    known = {**KEYS, **OPTIONAL_KEYS}
    for name in sorted((KEYS.keys() - config.keys()) | (config.keys() - known.keys())):
        what = "lacks the key" if name in KEYS else "has the unknown key"
        raise UserError(f"{path} {what} {name!r}: save the policy again")
    for name, value in config.items():
        _check(value, known[name], f"{path}: {name}")
    base = config.pop("base", None)
    if base is not None:
        check_keys(base, BASE_KEYS, f"{path}: base")
    backbone = known_class(config["backbone"], Backbone, f"{path}: backbone", trusted_modules)
    tokenizer = known_class(config["action_tokenizer"], ActionTokenizer, f"{path}: action_tokenizer", trusted_modules)
    return PolicyConfig(
        remarks=config.pop("remarks", []),
        has_adapter=config.pop("adapter", (directory / "adapter").exists()),
        is_base_copied=base is None or base.pop("is_copied"),
        base=None if base is None else BaseReference(**base).found_from(directory),
        parts={
            **config,
            "normalization": _normalization(config["normalization"], f"{path}: normalization"),
            "sampler": build(Sampler, config["sampler"], f"{path}: sampler"),
            "backbone": build(backbone, config["backbone"]["init_args"], f"{path}: backbone"),
            "action_tokenizer": build(tokenizer, config["action_tokenizer"]["init_args"], f"{path}: action_tokenizer"),
        },
    )


def _normalization(value: Any, where: str) -> Normalization:
    if not isinstance(value, dict):
        _check(value, NormalizationMode, where)
        return Normalization(value, value)
    check_keys(value, dict.fromkeys(("actions", "proprioception"), NormalizationMode | list[dict[str, Any]]), where)
    modes = {}
    for name, mode in value.items():
        groups = None if isinstance(mode, str) else [build(NormalizationGroup, x, f"{where}.{name}") for x in mode]
        modes[name] = mode if groups is None else groups
    return Normalization(**modes)


def check_keys(value: dict[str, Any], keys: Mapping[str, Any], where: str) -> None:
    """Raises `UserError`, beginning with `where`, unless an object from JSON has just these keys, of these types."""
    for name in sorted(keys.keys() ^ value.keys()):
        what = "lacks the key" if name in keys else "has the unknown key"
        raise UserError(f"{where} {what} {name!r}: save the policy again")
    for name, hint in keys.items():
        _check(value[name], hint, f"{where}.{name}")


def _describe(part: Any) -> dict[str, Any]:
    from torch.distributed.fsdp import FSDPModule

    # FSDP2 makes a class of its own out of FSDPModule and the class of what it shards.
    kind = type(part).__mro__[2] if isinstance(part, FSDPModule) else type(part)
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": part.init_args}


def parse(directory: Path) -> dict[str, Any]:
    """Reads config.json without a look at what it says.

    Raises:
        UserError: if it is missing or no object in JSON.
    """
    path = directory / CONFIG

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


def known_class(description: dict[str, Any], base: type, where: str, trusted_modules: Sequence[str]) -> Any:
    """The class that a description names, if it is known; nothing is imported but `trusted_modules`."""
    check_keys(description, {"class_path": str, "init_args": dict[str, Any]}, where)
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
    each: type
    for each in base.__subclasses__():
        yield each
        yield from _subclasses(each)


def build(cls: type, init_args: dict[str, Any], where: str) -> Any:
    """Calls a constructor with arguments from JSON, after checking them against its annotations."""
    try:
        inspect.signature(cls).bind(**init_args)
    except TypeError as error:
        raise UserError(f"{where} does not fit {cls.__name__}: {error}") from error
    try:
        hints = get_type_hints(cls.__init__)  # type: ignore[misc]  # of the class that is called below
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
