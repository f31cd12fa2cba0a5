"""The contract between the policy and a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from dvla_lightning.envs.base import Observation

PromptRow = dict[str, Tensor]
"""One observation as a backbone reads it: named tensors on the CPU without a batch dimension."""

Prompt = dict[str, Tensor]
"""Several rows, collated: named tensors whose first dimension is the batch."""


class Processor(ABC):
    """Turns observations into prompt rows. It holds no weights and can be pickled, so that data loaders can use it.

    Attributes:
        proprioception_dim: size of the proprioception vector it reads; 0 reads none.
    """

    proprioception_dim: int

    @abstractmethod
    def check(self, observation: Observation) -> None:
        """Raises `UserError` if an observation does not fit the network (cameras, image size, proprioception)."""

    @abstractmethod
    def row(self, observation: Observation, proprioception_D: Tensor) -> PromptRow:
        """Builds the row of one observation that `check` accepts (images stay uint8).

        Args:
            observation: what the simulator shows.
            proprioception_D: float32, normalised.
        """

    @abstractmethod
    def example(self, number: int) -> Observation:
        """Makes up an observation that `check` accepts; another number gives other pictures and other text.

        The self-check of a loaded policy uses them. Where prompts differ in length, those of 0 and 1 must.
        """

    def collate(self, rows: Sequence[PromptRow]) -> Prompt:
        """Joins rows to a prompt on the CPU; a processor whose rows differ in length pads them and makes the mask."""
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class Context(Protocol):
    """An encoded prompt, e.g. its key/value cache."""

    def select(self, rows: Tensor) -> Context:
        """The contexts of some rows of the batch."""
        ...


class Backbone(nn.Module, ABC):
    """A network that predicts action tokens from a prompt and a partly masked chunk.

    Attributes:
        attention: "prefix" if prompt tokens never attend to action tokens (then `encode` is an exact cache), "full" if
            they do (then `encode` only prepares the prompt, and every `denoise` is a full pass), "segments" if some
            parts of the prompt do.
        vocab_size: V, number of action tokens; the id V is MASK.
        num_positions: L, number of action-token positions.
        hidden_dim: width D of the hidden states handed to the value head.
        processor: makes its prompt rows.
        is_causal: whether an action token sees only those before it; for a network that was trained like that.
        lora_targets: regular expression of the modules that get a LoRA adapter where the user names none; None: every
            linear layer.
        sharded_layers: layers that a strategy may shard one by one: all they compute is in their `forward`. Empty: the
            network cannot be sharded.
        forward_methods: names of the methods that compute with weights, beside those layers: before each of them a
            strategy that shards must gather the rest of the weights.
    """

    attention: Literal["prefix", "full", "segments"]
    vocab_size: int
    num_positions: int
    hidden_dim: int
    processor: Processor
    is_causal: bool = False
    lora_targets: str | None = None
    forward_methods: ClassVar[tuple[str, ...]] = ("prepare", "encode", "denoise", "score_views")

    @property
    def sharded_layers(self) -> Sequence[nn.Module]:
        return ()

    @property
    def proprioception_dim(self) -> int:
        """Size of the proprioception vector it reads; 0 reads none."""
        return self.processor.proprioception_dim

    def prepare(self, rows: Sequence[PromptRow]) -> list[PromptRow]:
        """Runs frozen encoders once per frame: rows whose pixels have become image ids, say. By default unchanged.

        Decisions keep the prepared rows, so that the passes of an update do not encode their pictures again.
        """
        return list(rows)

    @abstractmethod
    def encode(self, prompt: Prompt) -> Context:
        """Encodes the prompt: computes everything that does not depend on the action tokens."""

    @abstractmethod
    def denoise(self, context: Any, noisy_BSL: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts the clean tokens of S independent masked views of each prompt.

        Args:
            context: of B prompts, from `encode`; every network has its own kind.
            noisy_BSL: int64, values in [0, V]; V is MASK. Views of one prompt do not see each other.

        Returns:
            logits_BSLV and hidden_BSLD (the states the logits were read from).
        """

    def score_views(self, prompt: Prompt, noisy_BSL: Tensor) -> tuple[Tensor, Tensor]:
        """The same as `denoise(encode(prompt), noisy_BSL)`, with gradients.

        A backbone that recomputes its activations overrides this with one packed pass: between two passes every layer's
        prompt keys and values would stay in memory.
        """
        return self.denoise(self.encode(prompt), noisy_BSL)

    def materialize(self, device: torch.device) -> None:
        """Fills the buffers that no file holds (persistent=False), after a build on the meta device.

        By default they are copied from a second network of the same arguments; a large one overrides this.
        """
        with torch.device(device):
            twin = type(self)(**self.init_args)
        for name, buffer in twin.named_buffers():
            owner = self.get_submodule(name.rpartition(".")[0])
            if self.get_buffer(name).is_meta:
                owner.register_buffer(name.rpartition(".")[2], buffer, persistent=False)

    @property
    @abstractmethod
    def init_args(self) -> dict[str, Any]:
        """Constructor arguments, as plain JSON types, from which the same architecture can be built."""
