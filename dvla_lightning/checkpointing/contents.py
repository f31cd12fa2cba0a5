"""Checks the contents of a checkpoint: its form, and that its numbers are finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import __version__ as lightning_version
from packaging.version import InvalidVersion, Version
from torch import Tensor

from dvla_lightning.checkpointing.optimizer_states import is_optimizer_state, listed
from dvla_lightning.errors import UserError

RECORD = "dvla"
"""The key of the record that `RunRecord` writes."""
VERSION = "pytorch-lightning_version"
ALWAYS: dict[str, type] = {"epoch": int, "global_step": int, VERSION: str, "state_dict": dict, "loops": dict}
FOR_TRAINING: dict[str, type] = {"callbacks": dict, "optimizer_states": list, "lr_schedulers": list, RECORD: dict}
"""Absent, all together, in a checkpoint of weights alone (`save_weights_only` of ModelCheckpoint)."""
LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")


def check_contents(checkpoint: Any, path: Path) -> None:
    """Raises `UserError` where a checkpoint does not have the form that Lightning reads."""
    form = dict(ALWAYS)
    if isinstance(checkpoint, Mapping) and any(key in checkpoint for key in FOR_TRAINING):
        form |= FOR_TRAINING
    check_form(checkpoint, {key: kind() for key, kind in form.items()}, f"{path} is no checkpoint of a run: it")
    _check_version(checkpoint[VERSION], path)
    problem = _wrong_part(checkpoint)
    if problem is not None:
        raise UserError(f"{path} is no checkpoint of a run: {problem}")


def check_form(saved: Any, own: Any, subject: str) -> None:
    """Raises `UserError` where `saved` lacks a key of `own`, or has a value of another type there, at any depth.

    Args:
        saved: from a checkpoint.
        own: the value that this run would write in its place. None allows any type.
        subject: beginning of the sentence.
    """
    if isinstance(own, tuple) and isinstance(saved, (tuple, list)) and len(saved) != len(own):
        raise UserError(f"{subject} holds {len(saved)} numbers where {len(own)} should be")
    if isinstance(own, Mapping):
        if not isinstance(saved, Mapping):
            raise UserError(f"{subject} holds a {type(saved).__name__} where a dict should be")
        for key, value in own.items():
            if key not in saved:
                raise UserError(f"{subject} lacks the key {key!r}")
            check_form(saved[key], value, f"{subject}, at {key!r}," if isinstance(value, Mapping) else subject)
            if not _same_kind(saved[key], value):
                expected, found = type(value).__name__, type(saved[key]).__name__
                raise UserError(f"{subject} holds a {found} at {key!r}, where a {expected} should be")


def check_finite(checkpoint: Mapping[str, Any], problem: str) -> None:
    """Raises `UserError`, beginning with `problem`, for the first tensor of weights or optimizer that is not finite.

    Infinity is allowed in buffers, where it may be a mask.
    """
    buffers = checkpoint.get(RECORD, {}).get("buffers", ())
    for name, number in _numbers(checkpoint):
        value = torch.as_tensor(number)
        if not (value.is_floating_point() or value.is_complex()):
            continue
        may_be_infinite = name in buffers and name in checkpoint["state_dict"]
        if bool((value.isnan() if may_be_infinite else ~value.isfinite()).any()):
            raise UserError(f"{problem}: {name} holds numbers that are not finite")


def _numbers(checkpoint: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of all that must be finite: weights, the state of optimizers, their options."""
    yield from checkpoint["state_dict"].items()
    for n, optimizer in enumerate(checkpoint.get("optimizer_states", [])):
        for index, values in optimizer["state"].items():
            for key, value in values.items():
                for each in listed(value):
                    if each is not None:
                        yield f"optimizer {n}, {key} of parameter {index}", each
        for index, group in enumerate(optimizer["param_groups"]):
            for key, value in group.items():
                if isinstance(value, float):
                    yield f"optimizer {n}, {key} of group {index}", value


def _same_kind(saved: Any, own: Any) -> bool:
    if own is None or isinstance(own, Mapping):
        return True
    if type(own) in (int, float):  # not isinstance: a bool is no number
        return type(saved) in (int, float)
    return isinstance(saved, type(own))


def _check_version(text: str, path: Path) -> None:
    try:
        is_newer = Version(text).release[:2] > Version(lightning_version).release[:2]
    except InvalidVersion:
        raise UserError(f"{path} is no checkpoint of a run: {text!r} is no version of Lightning") from None
    if is_newer:
        raise UserError(
            f"{path} was written with Lightning {text}, and this is {lightning_version}: install that version"
        )


def _wrong_part(checkpoint: Mapping[str, Any]) -> str | None:
    """Says what is wrong inside the parts whose kind has been checked."""
    for name, value in checkpoint["state_dict"].items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            return f"{name!r} of its state_dict is a {type(value).__name__} and no tensor"
        if value.layout != torch.strided or value.is_meta:
            return f"{name} of its state_dict is a tensor without plain values"
    record = checkpoint.get(RECORD, {})
    for key in ("buffers", "optimizers", "lr_schedulers"):
        names = record.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return f"{key} of its record is no list of names"
    if any(checkpoint[key] < 0 for key in ("epoch", "global_step")):
        return "its counters are negative"
    for name in LOOPS:
        if not isinstance(checkpoint["loops"].get(name), dict):
            return f"its loops lack {name}"
    if not all(isinstance(state, dict) for state in checkpoint.get("lr_schedulers", [])):
        return "its lr_schedulers are no dicts"
    if not all(isinstance(name, str) for name in checkpoint.get("callbacks", {})):
        return "its callbacks have no names"
    if not all(map(is_optimizer_state, checkpoint.get("optimizer_states", []))):
        return "its optimizer_states are those of no optimizer"
    return None
