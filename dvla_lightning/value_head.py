"""The value head of a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn


class ValueHead(nn.Sequential):
    """Hidden state of the first action position in the all-masked pass -> return; always in float32.

    GELU layers, last one without bias and drawn from N(0, 0.02) (RLinf, modules/value_head.py). Advantages are
    differences of values: in bfloat16 these would move in steps of 0.4 to 0.8 %. So neither autocast nor casting the
    policy around it changes its dtype.
    """

    def __init__(self, dim: int, hidden_dims: Sequence[int]) -> None:
        sizes = [dim, *hidden_dims]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.GELU()]
        last = nn.Linear(sizes[-1], 1, bias=False)
        nn.init.normal_(last.weight, std=0.02)
        super().__init__(*layers, last)

    def forward(self, hidden_BD: Tensor) -> Tensor:
        with torch.autocast(hidden_BD.device.type, enabled=False):
            values_B1: Tensor = super().forward(hidden_BD.float())  # type: ignore[no-untyped-call]  # untyped in torch
            return values_B1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_dtype(x: Tensor) -> Tensor:
            moved = fn(x)
            return moved if moved.dtype == x.dtype else x.to(moved.device)

        return super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]  # untyped in torch
