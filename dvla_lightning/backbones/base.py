"""The contract between the policy and a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from dvla_lightning.envs.base import Observation

Prompt = dict[str, Tensor]
"""The observations as a backbone reads them: named tensors whose first dimension is the batch."""


class Context(Protocol):
    """An encoded prompt, e.g. its key/value cache."""

    def select(self, rows: Tensor) -> Context:
        """The contexts of some rows of the batch."""
        ...


class Backbone(nn.Module, ABC):
    """A network that predicts action tokens from a prompt and a partly masked chunk.

    Attributes:
        attention: "prefix" if prompt tokens never attend to action tokens (then `encode` is an exact cache), "full" if
            they do (then `encode` only prepares the prompt, and every `denoise` is a full pass).
        vocab_size: V, number of action tokens; the id V is MASK.
        num_positions: L, number of action-token positions.
        hidden_dim: width D of the hidden states handed to the value head.
        proprioception_dim: size of the proprioception vector it reads.
    """

    attention: Literal["prefix", "full"]
    vocab_size: int
    num_positions: int
    hidden_dim: int
    proprioception_dim: int

    @abstractmethod
    def prompt(self, observations: Sequence[Observation]) -> Prompt:
        """Turns observations into one batch of prompt tensors on the CPU (images stay uint8).

        Raises:
            UserError: if an observation does not fit the network (cameras, image size, proprioception).
        """

    @abstractmethod
    def encode(self, prompt: Prompt) -> Context:
        """Reads the prompt; everything about it that does not depend on the action tokens is computed here."""

    @abstractmethod
    def denoise(self, context: Context, noisy_BSL: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts the clean tokens of S independent masked views of each prompt.

        Args:
            context: of B prompts.
            noisy_BSL: int64, values in [0, V]; V is MASK. Views of one prompt do not see each other.

        Returns:
            logits_BSLV and hidden_BSLD (the states the logits were read from).
        """

    @property
    @abstractmethod
    def init_args(self) -> dict[str, Any]:
        """Constructor arguments, as plain JSON types, from which the same architecture can be built."""
