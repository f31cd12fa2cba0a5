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


def read_tensors(
    path: Path,
    own: Mapping[str, Tensor],
    what: str,
    buffers: Collection[str] = (),
    device: torch.device | str = "cpu",
    only: str = "",
) -> dict[str, Tensor]:
    """Reads a file whose tensors must be those of `own`, one after the other.

    Args:
        path: the file.
        own: names, shapes and dtypes that are wanted; may lie on the meta device.
        what: their owner, for messages.
        buffers: see `check_finite`.
        device: where they go.
        only: prefix of the names to read; the file may hold others.

    Returns:
        The tensors in the dtypes of `own`; another floating dtype is converted.

    Raises:
        UserError: if the file is missing or corrupt, or a tensor is missing, unknown, of another shape or kind, or not
            finite.
    """
    state, checksum = {}, 0
    try:
        with safetensors.safe_open(path, "pt") as file:
            names = set(file.keys())
            for name in sorted(own.keys() | {name for name in names if name.startswith(only)}):
                if name not in own or name not in names:
                    fault = "is missing" if name in own else "has no place there"
                    raise UserError(f"{path} does not fit {what}: tensor {name!r} {fault}")
            wanted = (file.metadata() or {}).get(CHECKSUM)  # a file of another program has none
            for name in sorted(names):
                value = file.get_tensor(name)
                checksum = _crc32(value, checksum)
                if name not in own:
                    continue
                if problem := _misfit(value, own[name]):
                    raise UserError(f"{path} does not fit {what}: tensor {name!r} {problem}")
                # A copy: what is read lies in the file, and the file may be written over.
                state[name] = value.to(device, own[name].dtype, copy=True)
        if wanted is not None and wanted != f"{checksum:08x}":
            raise UserError(f"{path} is corrupt (its checksum differs): copy or save the policy again")
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}: copy the whole policy directory") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is corrupt ({error}): copy or save the policy again") from error
    check_finite(state, f"{path} cannot be used", buffers)
    return state


def _misfit(value: Tensor, own: Tensor) -> str | None:
    if own.shape != value.shape:
        return f"has the shape {list(value.shape)} instead of {list(own.shape)}"
    if own.is_floating_point() != value.is_floating_point():
        return f"holds {value.dtype} instead of {own.dtype}"
    return None


def write_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors from any device, with a checksum of their bytes."""
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    safetensors.torch.save_file(state, path, {"format": "pt", CHECKSUM: _checksum(state)})


def _checksum(state: Mapping[str, Tensor]) -> str:
    value = 0
    for name in sorted(state):
        value = _crc32(state[name], value)
    return f"{value:08x}"


def _crc32(tensor: Tensor, value: int) -> int:
    return zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, value)


def check_finite(state: Mapping[str, Tensor], problem: str, buffers: Collection[str] = ()) -> None:
    """Raises `UserError`, beginning with `problem`, for the first tensor that is not finite.

    Args:
        state: tensors by name.
        problem: its consequence.
        buffers: names that may hold infinities (a network's mask of logits, say), but no NaN.
    """
    for name, value in state.items():
        if not value.is_floating_point():
            continue
        wrong = value.isnan() if name in buffers else ~value.isfinite()
        if bool(wrong.any()):
            first = float(value[wrong][0])
            raise UserError(f"{problem}: tensor {name!r} holds {first} in {int(wrong.sum())} of {value.numel()} places")
