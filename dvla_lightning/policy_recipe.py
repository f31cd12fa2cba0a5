"""A policy as YAML describes it: read from a directory, or made of new parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from dvla_lightning.actions.normalization import Normalization, NormalizationMode
from dvla_lightning.actions.tokenizer import ActionTokenizer
from dvla_lightning.backbones.base import Backbone
from dvla_lightning.diffusion.sampler import Sampler, SamplerOverrides
from dvla_lightning.errors import UserError
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.policy_adapters import add_adapter

if TYPE_CHECKING:  # importing peft takes seconds
    from dvla_lightning.lora_config import LoraOptions


@dataclasses.dataclass
class PolicyRecipe:
    """The origin of a policy: a directory (`pretrained`), or a new network with its sizes.

    Attributes:
        pretrained: policy directory written by `dvla fit`, or the id of a Hugging Face repository with that content.
        base: policy directory or repository with the frozen weights below the adapter of `pretrained`, if the one that
            it names has moved.
        backbone: class of a new policy's network; its num_positions and vocab_size follow from the options below.
        action_tokenizer: of a new policy.
        action_dim: numbers in one action of a new policy.
        chunk_size: actions predicted by one decision of a new policy.
        num_action_steps: actions executed of each chunk; null executes all, or as many as `pretrained` says.
        normalization: how a new policy scales actions and proprioception; statistics come from the training data. null
            is "min_max".
        sampler: how tokens are drawn and committed. Fields that are given replace those saved with the policy (of a new
            one: the defaults), the others stay.
        value_hidden_dims: hidden widths of a new policy's value head; null is one layer of 128.
        lora: adapters to train instead of the backbone (peft). Without target_modules the backbone chooses. An adapter
            found in `pretrained` is merged first.
        trusted_modules: modules of yours that may be imported because `pretrained` names a backbone or tokenizer class
            in them. Loading a policy imports nothing else.
    """

    pretrained: str | None = None
    base: str | None = None
    backbone: Callable[[int, int], Backbone] | None = None
    action_tokenizer: ActionTokenizer | None = None
    action_dim: int | None = None
    chunk_size: int | None = None
    num_action_steps: int | None = None
    normalization: NormalizationMode | Normalization | None = None
    sampler: SamplerOverrides | None = None
    value_hidden_dims: list[int] | None = None
    lora: LoraOptions | None = None
    trusted_modules: list[str] = dataclasses.field(default_factory=list)

    def build(self, device: torch.device | str | None = None) -> DVLAPolicy:
        """Builds the policy.

        Args:
            device: where its weights go; None is torch's default device.

        Raises:
            UserError: if the options contradict each other, the parts do not fit together, or the directory is missing,
                corrupt or of another architecture.
        """
        needed = ("backbone", "action_tokenizer", "action_dim", "chunk_size")
        if self.pretrained is None:
            missing = [name for name in needed if getattr(self, name) is None]
            if missing:
                raise UserError(
                    f"policy: give pretrained, or all of {', '.join(needed)} (missing: {', '.join(missing)})"
                )
            return self._new()
        given = [name for name in (*needed, "normalization", "value_hidden_dims") if getattr(self, name) is not None]
        if given:
            raise UserError(f"policy: {given[0]} comes from pretrained={self.pretrained!r}; give one or the other")
        return DVLAPolicy.from_pretrained(
            self.pretrained,
            sampler=self.sampler,
            num_action_steps=self.num_action_steps,
            lora=self.lora,
            base=self.base,
            trusted_modules=self.trusted_modules,
            device=device,
        )

    def _new(self) -> DVLAPolicy:
        assert self.backbone and self.action_tokenizer and self.action_dim is not None and self.chunk_size is not None
        if self.base is not None:
            raise UserError("policy: base is for the adapter of a policy directory: give pretrained, too")
        for name in ("action_dim", "chunk_size"):
            if getattr(self, name) < 1:  # before the network is asked to be so small
                raise UserError(f"policy: {name} must be at least 1, got {getattr(self, name)}")
        try:
            sampler = self.sampler.over(Sampler()) if self.sampler else Sampler()
        except ValueError as error:
            raise UserError(f"policy: {error}") from error
        policy = DVLAPolicy(
            self.backbone(self.chunk_size * self.action_dim, self.action_tokenizer.vocab_size),
            self.action_tokenizer,
            self.action_dim,
            self.chunk_size,
            self.num_action_steps,
            self.normalization or "min_max",
            sampler,
            (128,) if self.value_hidden_dims is None else self.value_hidden_dims,
        )
        if self.lora is not None:
            policy.backbone = add_adapter(policy.backbone, self.lora)
        return policy
