"""Finds where a number stopped being finite."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from dvla_lightning.objectives.base import LossOutput


def loss_fault(output: LossOutput, batch: Any) -> str:
    """Names the term of a loss that is not finite, and where its minibatch already held such a number."""
    terms = [(name, value) for name, value in output.metrics.items() if not bool(value.isfinite().all())]
    name, value = terms[0] if terms else ("loss", output.loss.detach())
    return f"{name} is {float(value)}, {not_finite_place(batch) or 'all numbers of the minibatch are finite'}"


def not_finite_place(batch: Any) -> str | None:
    """Field and row of the first number that is not finite in dataclasses and mappings of tensors; None: there is none.

    The first dimension of a tensor is the row.
    """
    for name, value in _tensors(batch, ""):
        if value.is_floating_point() and not bool(value.isfinite().all()):
            index = tuple((~value.isfinite()).nonzero()[0].tolist())
            return f"{name} is {float(value[index])}" + (f" in row {index[0]}" if index else "")
    return None


def _tensors(x: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(x, Tensor):
        yield name, x
        return
    fields: Mapping[str, Any] = {}
    if isinstance(x, Mapping):
        fields = x
    elif dataclasses.is_dataclass(x):
        fields = {field.name: getattr(x, field.name) for field in dataclasses.fields(x)}
    for key, value in fields.items():
        yield from _tensors(value, f"{name}.{key}" if name else str(key))
