"""Number formats of a run: which settings of `trainer.precision` keep log-probabilities and statistics in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from lightning import Trainer
from lightning.pytorch.plugins.precision import HalfPrecision, Precision
from torch import nn

from dvla_lightning.errors import UserError

SUPPORTED = ("32-true", "16-mixed", "bf16-mixed", "bf16-true")


class BFloat16Weights(Precision):
    """bf16-true: the network's weights are bfloat16, and it computes as under bf16-mixed.

    Lightning's own plugin would also round what enters a step, behaviour log-probabilities and returns among it, and
    make bfloat16 the default of every tensor created in a collection.
    """

    precision: Literal["bf16-true"] = "bf16-true"

    def __init__(self, device: str) -> None:
        self.device = device

    def convert_module(self, module: nn.Module) -> nn.Module:
        module.get_submodule("policy").to(torch.bfloat16)  # statistics and the value head stay as they are
        return module

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        with torch.autocast(self.device, torch.bfloat16, cache_enabled=False):
            yield


def apply_precision(trainer: Trainer) -> None:
    """Checks the precision of a run, and replaces Lightning's bf16-true by `BFloat16Weights`.

    Raises:
        UserError: for a precision that this package does not train and evaluate with.
    """
    name = str(trainer.precision)
    if name not in SUPPORTED:
        reason = ": half precision without a scaled loss loses gradients" if name == "16-true" else ""
        raise UserError(f"trainer.precision {name} is not supported{reason}; choose one of {', '.join(SUPPORTED)}")
    if name == "bf16-true":
        if not isinstance(trainer.precision_plugin, (HalfPrecision, BFloat16Weights)):
            raise UserError("trainer.precision bf16-true needs trainer.strategy auto or ddp; use bf16-mixed")
        trainer.strategy.precision_plugin = BFloat16Weights(trainer.strategy.root_device.type)
