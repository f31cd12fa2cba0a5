"""The safetensors files of a policy directory: nothing goes in or comes out that is not finite or does not fit."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dvla_lightning.errors import UserError

CHECKSUM = "crc32"
"""Key in a file's metadata: CRC-32 of the bytes of all tensors, in the order of their names."""


def read_tensors(path: Path, own: Mapping[str, Tensor], what: str, buffers: Collection[str] = ()) -> dict[str, Tensor]:
    """Reads a file whose tensors must be those of `own`.

    Args:
        path: the file.
        own: names, shapes and dtypes that are wanted.
        what: whose they are, for messages.
        buffers: see `check_finite`.

    Returns:
        The tensors in the dtypes of `own`; another floating dtype is converted.

    Raises:
        UserError: if the file is missing or corrupt, or a tensor is missing, unknown, of another shape or kind, or not
            finite.
    """
    try:
        state = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            checksum = (file.metadata() or {}).get(CHECKSUM)  # a file of another program has none
        if checksum is not None and checksum != _checksum(state):
            raise UserError(f"{path} is corrupt (its checksum differs): copy or save the policy again")
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}: copy the whole policy directory") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is corrupt ({error}): copy or save the policy again") from error
    for name in sorted(own.keys() | state.keys()):
        if name not in own or name not in state:
            problem = "is missing" if name in own else "has no place there"
        elif own[name].shape != state[name].shape:
            problem = f"has the shape {list(state[name].shape)} instead of {list(own[name].shape)}"
        elif own[name].is_floating_point() != state[name].is_floating_point():
            problem = f"holds {state[name].dtype} instead of {own[name].dtype}"
        else:
            continue
        raise UserError(f"{path} does not fit {what}: tensor {name!r} {problem}")
    state = {name: value.to(own[name].dtype) for name, value in state.items()}
    check_finite(state, f"{path} cannot be used", buffers)
    return state


def write_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors from any device, with a checksum of their bytes."""
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    safetensors.torch.save_file(state, path, {"format": "pt", CHECKSUM: _checksum(state)})


def _checksum(state: Mapping[str, Tensor]) -> str:
    value = 0
    for name in sorted(state):
        value = zlib.crc32(state[name].contiguous().flatten().view(torch.uint8).numpy(), value)
    return f"{value:08x}"


def check_finite(state: Mapping[str, Tensor], problem: str, buffers: Collection[str] = ()) -> None:
    """Raises `UserError`, beginning with `problem`, for the first tensor that is not finite.

    Args:
        state: tensors by name.
        problem: what cannot be done then.
        buffers: names that may hold infinities (a network's mask of logits, say), but no NaN.
    """
    for name, value in state.items():
        if not value.is_floating_point():
            continue
        wrong = value.isnan() if name in buffers else ~value.isfinite()
        if bool(wrong.any()):
            first = float(value[wrong][0])
            raise UserError(f"{problem}: tensor {name!r} holds {first} in {int(wrong.sum())} of {value.numel()} places")
