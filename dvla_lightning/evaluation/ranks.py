"""Episodes shared among the ranks of a run, and objects gathered from all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from dvla_lightning.errors import UserError

T = TypeVar("T")


def rank_share(items: Sequence[T]) -> Sequence[T]:
    """This rank's share: every world-size-th item; everything where there is no process group."""
    if not _is_distributed():
        return items
    return items[torch.distributed.get_rank() :: torch.distributed.get_world_size()]


def gather_objects(item: T) -> list[T]:
    """The picklable item of each rank, in their order, on every rank; every rank must call it."""
    if not _is_distributed():
        return [item]
    gathered: list[T] = [item] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, item)
    return gathered


def gather_or_raise(outcome: T | UserError) -> list[T]:
    """As `gather_objects`, but all ranks raise the first error: one that stopped alone would leave the others waiting.

    Raises:
        UserError: of any rank.
    """
    gathered = gather_objects(outcome)
    for each in gathered:
        if isinstance(each, UserError):
            raise each
    return gathered  # type: ignore[return-value]  # no error is among them


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
