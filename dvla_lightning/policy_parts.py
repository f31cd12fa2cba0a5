"""The parts of a policy, and whether they fit each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dvla_lightning.actions.normalization import GroupedNormalization, Normalization, Normalizer
from dvla_lightning.actions.tokenizer import ActionTokenizer
from dvla_lightning.backbones.base import Backbone, Processor, Prompt, PromptRow
from dvla_lightning.diffusion.sampler import Sampler
from dvla_lightning.envs.base import Observation
from dvla_lightning.errors import UserError
from dvla_lightning.policy_adapters import is_adapted, rewritten_names
from dvla_lightning.policy_base import BaseReference
from dvla_lightning.value_head import ValueHead


class PolicyParts(nn.Module):
    """Backbone, action tokenizer, normalisation, sampler and value head of a policy.

    Args:
        backbone: the network; its processor makes the prompts. LoRA adapters may be on it.
        action_tokenizer: actions <-> tokens; its vocabulary must be the backbone's.
        action_dim: numbers in one action.
        chunk_size: actions predicted by one decision.
        num_action_steps: actions executed of each chunk; None executes all.
        normalization: how actions and proprioception are scaled; statistics come from the training data.
        sampler: how tokens are drawn and committed.
        value_hidden_dims: hidden widths of the value head.

    Attributes:
        is_fitted: whether the policy has statistics and trained weights.
        remarks: notes under every table about this policy, for example that it was trained on test states.
        directory: that it was read from, as it is there; None if it is new, has new adapters or came from a repository.
        base: where the frozen weights below an adapter come from; None if they are trained or new.
        reference: trainable tensors of the backbone at the start of training, which make the policy the reference of a
            KL; None before `DVLAPolicy.keep_reference`. They are no part of the policy: neither saved with it nor in
            its fingerprint.
        version: number of updates of its weights in this training; decisions carry it.

    Raises:
        UserError: if the parts do not fit together.
    """

    def __init__(
        self,
        backbone: Backbone,
        action_tokenizer: ActionTokenizer,
        action_dim: int,
        chunk_size: int,
        num_action_steps: int | None = None,
        normalization: GroupedNormalization | Normalization = "min_max",
        sampler: Sampler | None = None,
        value_hidden_dims: Sequence[int] = (128,),
    ) -> None:
        super().__init__()
        sizes = {"action_dim": action_dim, "chunk_size": chunk_size}
        sizes |= {f"value_hidden_dims[{index}]": size for index, size in enumerate(value_hidden_dims)}
        for name, size in sizes.items():
            if size < 1:
                raise UserError(f"policy: {name} must be at least 1, got {size}")
        if chunk_size * action_dim != backbone.num_positions:
            raise UserError(
                f"policy: chunk_size ({chunk_size}) x action_dim ({action_dim}) = {chunk_size * action_dim} must equal "
                f"the backbone's num_positions ({backbone.num_positions})"
            )
        if action_tokenizer.vocab_size != backbone.vocab_size:
            raise UserError(
                f"policy: the action tokenizer has {action_tokenizer.vocab_size} tokens, "
                f"the backbone's vocab_size is {backbone.vocab_size}"
            )
        self.num_action_steps = chunk_size if num_action_steps is None else num_action_steps
        if not 1 <= self.num_action_steps <= chunk_size:
            raise UserError(f"policy: num_action_steps must be in 1..{chunk_size}, got {num_action_steps}")
        if not isinstance(normalization, Normalization):
            normalization = Normalization(normalization, normalization)
        self.backbone: Any = backbone  # or peft's wrapper around it
        self.action_tokenizer = action_tokenizer
        self.action_dim, self.chunk_size = action_dim, chunk_size
        self.normalization, self.value_hidden_dims = normalization, list(value_hidden_dims)
        self.action_normalizer = Normalizer(action_dim, normalization.actions)
        self.proprioception_normalizer = Normalizer(backbone.proprioception_dim, normalization.proprioception)
        self.value_head = ValueHead(backbone.hidden_dim, value_hidden_dims)
        self.sampler = sampler or Sampler()
        self.is_fitted = False
        self.remarks: list[str] = []
        self.directory: Path | None = None
        self.base: BaseReference | None = None
        self.reference: dict[str, Tensor] | None = None
        self.version = 0
        self.eval()

    @property
    def device(self) -> torch.device:
        return next(self.value_head.parameters()).device

    @property
    def num_positions(self) -> int:
        """L, number of action tokens of a chunk."""
        return self.chunk_size * self.action_dim

    @property
    def mask_id(self) -> int:
        return self.action_tokenizer.mask_id

    @property
    def processor(self) -> Processor:
        """Makes the backbone's prompt rows."""
        processor: Processor = self.backbone.processor
        return processor

    @property
    def network(self) -> Backbone:
        """The backbone without peft's wrapper; adapters stay in its layers."""
        network: Backbone = self.backbone.get_base_model() if is_adapted(self.backbone) else self.backbone
        return network

    @property
    def rewritten_parameters(self) -> set[str]:
        """Frozen parameters that differ from the base's: `lora.init_lora_weights` moved a part into the adapter."""
        return {f"backbone.{name}" for name in rewritten_names(self.backbone)}

    def fit_statistics(self, actions_ND: Any, proprioception_ND: Any) -> None:
        """Takes normalisation statistics (and data-dependent bins) from demonstrations.

        Args:
            actions_ND: all demonstrated actions.
            proprioception_ND: all observed proprioception vectors.

        Raises:
            UserError: if their sizes differ from the policy's.
        """
        self.action_normalizer.fit(actions_ND)
        self.proprioception_normalizer.fit(proprioception_ND)
        actions = torch.as_tensor(actions_ND, dtype=torch.float32).to(self.device)
        self.action_tokenizer.fit(self.action_normalizer.normalize(actions))
        self.is_fitted = True

    @property
    def is_sharded(self) -> bool:
        """Whether ranks share its weights, so that every pass gathers them."""
        return any(hasattr(parameter, "full_tensor") for parameter in self.parameters())

    # -- prompts -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def make_rows(self, observations: Sequence[Observation]) -> list[PromptRow]:
        """Observations -> prompt rows, proprioception normalised and frozen encoders run.

        Raises:
            UserError: if an observation does not fit the policy or holds a number that is not finite.
        """
        return self._rows(observations, self._proprioception(observations))

    def _rows(self, observations: Sequence[Observation], proprioception_BD: Tensor) -> list[PromptRow]:
        normal_BD = self.proprioception_normalizer.normalize(proprioception_BD).cpu()
        rows = [self.processor.row(*pair) for pair in zip(observations, normal_BD, strict=True)]
        prepared: list[PromptRow] = self.backbone.prepare(rows)
        return prepared

    def collate(self, rows: Sequence[PromptRow]) -> Prompt:
        """Prompt rows -> prompt on the policy's device."""
        return {name: value.to(self.device) for name, value in self.processor.collate(rows).items()}

    def make_prompt(self, observations: Sequence[Observation]) -> Prompt:
        """`make_rows` and `collate` in one."""
        return self.collate(self.make_rows(observations))

    def _proprioception(self, observations: Sequence[Observation]) -> Tensor:
        """(B, proprioception_dim) of checked observations, on the policy's device, in their units."""
        for observation in observations:
            self.processor.check(observation)
        if not self.processor.proprioception_dim:
            return torch.zeros(len(observations), 0, device=self.device)
        values_BD = torch.from_numpy(np.stack([seen["proprioception"] for seen in observations])).float()
        check_outputs({"proprioception": values_BD}, "the observation holds numbers that are not finite: {}")
        return values_BD.to(self.device)


def check_outputs(tensors: Mapping[str, Tensor], sentence: str) -> None:
    """Raises `UserError` with the name of the first tensor that is not finite in the place of {}."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(sentence.format(name))
