"""The frozen weights below an adapter: where they are, and how to recognise them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

SMALL_BASE = 256 * 2**20
"""Bytes up to which frozen weights are copied into a policy directory, so that it needs no other one."""


@dataclasses.dataclass(frozen=True)
class BaseReference:
    """The policy directory that frozen weights were read from.

    Attributes:
        pretrained: the directory, or the id of a Hugging Face repository.
        revision: commit of the repository; None for a directory.
        fingerprint: see `fingerprint`; of the backbone's weights.
    """

    pretrained: str
    revision: str | None
    fingerprint: str

    def found_from(self, directory: Path) -> BaseReference:
        """The inverse of `seen_from`."""
        if self.revision is not None:
            return self
        return dataclasses.replace(self, pretrained=str((directory / self.pretrained).resolve()))

    def seen_from(self, directory: Path) -> BaseReference:
        """The same base with its path relative to a policy directory, so that both can be moved together."""
        if self.revision is not None:
            return self
        try:
            relative = os.path.relpath(self.pretrained, directory)
        except ValueError:  # another drive
            return self
        return dataclasses.replace(self, pretrained=Path(relative).as_posix())


def fingerprint(tensors: Mapping[str, Tensor], base: str = "") -> str:
    """First 16 hex digits of a SHA-256.

    Args:
        tensors: whose names and bytes are hashed.
        base: fingerprint of the weights below them.
    """
    digest = hashlib.sha256(base.encode())
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
