"""DVLAPolicy: observation -> prompt -> K denoising steps -> action chunk, and the scoring of masked views."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dvla_lightning import policy_directory
from dvla_lightning.actions.normalization import Normalizer
from dvla_lightning.actions.tokenizer import ActionTokenizer
from dvla_lightning.backbones.base import Backbone, Prompt
from dvla_lightning.diffusion.path import DenoisingPath
from dvla_lightning.diffusion.sampler import Sampler
from dvla_lightning.diffusion.views import MaskedViews
from dvla_lightning.envs.base import Environment, Observation
from dvla_lightning.errors import UserError
from dvla_lightning.paths import local_path

if TYPE_CHECKING:  # importing peft takes seconds
    from peft import LoraConfig


@dataclass
class Decisions:
    """What the policy decided for a batch of observations.

    Attributes:
        actions: (B, num_action_steps, action_dim) float32 in the robot's units.
        prompt: what the backbone read.
        path: how the chunk was decoded.
        values_B: float32, the value head's estimate of the return.
    """

    actions: Tensor
    prompt: Prompt
    path: DenoisingPath
    values_B: Tensor


class Scores(NamedTuple):
    """What the network says about the clean tokens of masked views (all float32).

    Attributes:
        log_probs_BSLV: log-probability of every token at every position.
        log_prob_BSL: of the clean token; meaningful where the view scores it.
        value_B: from view 0, which must be all-masked to mean anything.
    """

    log_probs_BSLV: Tensor
    log_prob_BSL: Tensor
    value_B: Tensor

    @property
    def entropy_BSL(self) -> Tensor:
        """Of the predicted distributions, in nats; computed at every access."""
        return -(self.log_probs_BSLV.exp() * self.log_probs_BSLV).sum(-1)


class ValueHead(nn.Sequential):
    """Hidden state of the first action position in the all-masked pass -> return.

    GELU layers, last one without bias and drawn from N(0, 0.02) (RLinf, modules/value_head.py).
    """

    def __init__(self, dim: int, hidden_dims: Sequence[int]) -> None:
        sizes = [dim, *hidden_dims]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.GELU()]
        last = nn.Linear(sizes[-1], 1, bias=False)
        nn.init.normal_(last.weight, std=0.02)
        super().__init__(*layers, last)


class DVLAPolicy(nn.Module):
    """A discrete-diffusion VLA policy: backbone, action tokenizer, sampler and value head.

    Either `pretrained` names a policy directory and the architecture comes from there, or `backbone`,
    `action_tokenizer`, `action_dim` and `chunk_size` describe a new one.

    Args:
        pretrained: policy directory written by `save_pretrained`, or the id of a Hugging Face repository with that
            content.
        backbone: the network of a new policy.
        action_tokenizer: of a new policy; its vocabulary must be the backbone's.
        action_dim: numbers in one action of a new policy.
        chunk_size: actions predicted by one decision of a new policy.
        num_action_steps: actions executed of each chunk; None executes all.
        normalization: how a new policy scales actions and proprioception; statistics come from the training data.
        sampler: how tokens are drawn and committed; None takes the one saved with the policy, or the default.
        value_hidden_dims: hidden widths of a new policy's value head.
        lora: adapters to train instead of the backbone (peft); the backbone without them is then the reference policy.
            An adapter found in `pretrained` is merged first.

    Attributes:
        remarks: what every table about this policy must say, for example that it was trained on test states.

    Raises:
        UserError: if the parts do not fit together, or the directory is missing, corrupt or of another architecture.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        backbone: Backbone | None = None,
        action_tokenizer: ActionTokenizer | None = None,
        action_dim: int | None = None,
        chunk_size: int | None = None,
        num_action_steps: int | None = None,
        normalization: Literal["min_max", "quantile", "identity"] = "min_max",
        sampler: Sampler | None = None,
        value_hidden_dims: Sequence[int] = (128,),
        lora: LoraConfig | None = None,
    ) -> None:
        super().__init__()
        self.remarks: list[str] = []
        new = {
            "backbone": backbone,
            "action_tokenizer": action_tokenizer,
            "action_dim": action_dim,
            "chunk_size": chunk_size,
        }
        if pretrained is None:
            missing = [name for name, value in new.items() if value is None]
            if missing:
                raise UserError(f"policy: give pretrained, or all of {', '.join(new)} (missing: {', '.join(missing)})")
            architecture = {**new, "normalization": normalization, "value_hidden_dims": list(value_hidden_dims)}
        else:
            given = [name for name, value in new.items() if value is not None]
            if given:
                raise UserError(f"policy: {given[0]} comes from pretrained={pretrained!r}; give one or the other")
            directory = policy_directory.resolve(pretrained)
            architecture = policy_directory.read_architecture(directory)
            saved_sampler, saved_steps = architecture.pop("sampler"), architecture.pop("num_action_steps")
            self.remarks = architecture.pop("remarks")
            sampler = sampler or saved_sampler
            num_action_steps = saved_steps if num_action_steps is None else num_action_steps
        self._build(**architecture)
        self.num_action_steps = self.chunk_size if num_action_steps is None else num_action_steps
        if not 1 <= self.num_action_steps <= self.chunk_size:
            raise UserError(f"policy: num_action_steps must be in 1..{self.chunk_size}, got {num_action_steps}")
        self.sampler = sampler or Sampler()
        self.is_fitted = pretrained is not None
        self.reference_backbone: nn.Module | None = None
        if pretrained is not None:
            policy_directory.load_weights(self, directory, merge_adapter=lora is not None)
        if lora is not None:
            self.backbone = policy_directory.add_adapter(self.backbone, lora)
        self.eval()

    def _build(
        self,
        backbone: Backbone,
        action_tokenizer: ActionTokenizer,
        action_dim: int,
        chunk_size: int,
        normalization: Literal["min_max", "quantile", "identity"],
        value_hidden_dims: Sequence[int],
    ) -> None:
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
        self.backbone: Any = backbone
        self.action_tokenizer = action_tokenizer
        self.action_dim, self.chunk_size = action_dim, chunk_size
        self.normalization, self.value_hidden_dims = normalization, list(value_hidden_dims)
        self.action_normalizer = Normalizer(action_dim, normalization)
        self.proprioception_normalizer = Normalizer(backbone.proprioception_dim, normalization)
        self.value_head = ValueHead(backbone.hidden_dim, value_hidden_dims)

    @classmethod
    def from_pretrained(cls, pretrained: str | Path, **overrides: Any) -> DVLAPolicy:
        """Loads a policy directory, in eval mode; see the constructor for `overrides` (sampler, lora, ...)."""
        return cls(pretrained=str(pretrained), **overrides)

    def save_pretrained(self, path: str | Path, card: str = "") -> None:
        """Writes config.json, model.safetensors, adapter/ (with LoRA) and README.md; replaces the directory at once.

        Args:
            path: directory to write.
            card: how the policy was made; goes into README.md.
        """
        policy_directory.save(self, local_path(path, "policy directory"), card)

    @property
    def device(self) -> torch.device:
        return self.value_head[0].weight.device

    @property
    def num_positions(self) -> int:
        return self.chunk_size * self.action_dim

    @property
    def mask_id(self) -> int:
        return self.action_tokenizer.mask_id

    # -- acting ------------------------------------------------------------------------------------------------------

    def make_prompt(self, observations: Sequence[Observation]) -> Prompt:
        """Observations -> prompt tensors on the policy's device, proprioception normalised."""
        prompt = {name: value.to(self.device) for name, value in self.backbone.prompt(observations).items()}
        prompt["proprioception"] = self.proprioception_normalizer.normalize(prompt["proprioception"])
        return prompt

    def check_num_steps(self, num_steps: int) -> None:
        """Raises `UserError` unless 1 <= K <= L."""
        if not 1 <= num_steps <= self.num_positions:
            raise UserError(
                f"num_steps must be between 1 and {self.num_positions} (the policy's chunk has {self.num_positions} "
                f"action tokens), got {num_steps}"
            )

    def check_environment(self, environment: Environment) -> None:
        """Raises `UserError` unless the environment takes actions with as many dimensions as the policy's."""
        if environment.action_dim != self.action_dim:
            raise UserError(
                f"the policy's actions have {self.action_dim} dimensions, those of {type(environment).__name__} have "
                f"{environment.action_dim}"
            )

    @torch.no_grad()
    def decide(self, observations: Sequence[Observation], num_steps: Sequence[int], seeds: Sequence[int]) -> Decisions:
        """One decision for each of B observations.

        Args:
            observations: B observations.
            num_steps: K of each.
            seeds: one per observation; equal observation, K and seed give an equal chunk in any batch.

        Returns:
            The decisions; gradients are off.

        Raises:
            ValueError: if the three lists differ in length.
        """
        if not len(observations) == len(num_steps) == len(seeds):
            raise ValueError(f"{len(observations)} observations, {len(num_steps)} num_steps, {len(seeds)} seeds")
        prompt = self.make_prompt(observations)
        context = self.backbone.encode(prompt)
        first_hidden: list[Tensor] = []

        def denoise(noisy_NL: Tensor, rows: Tensor) -> Tensor:
            part = context if len(rows) == len(observations) else context.select(rows.to(self.device))
            logits, hidden = self.backbone.denoise(part, noisy_NL[:, None].to(self.device))
            first_hidden.append(hidden[:, 0, 0])
            return logits[:, 0]

        path = self.sampler.sample(denoise, self.num_positions, self.mask_id, num_steps, seeds)
        values_B = self._value(first_hidden[0])
        return Decisions(self.decode(path.tokens_BL)[:, : self.num_action_steps], prompt, path, values_B)

    @torch.no_grad()
    def estimate_values(self, observations: Sequence[Observation]) -> Tensor:
        """(B,) float32 values of observations on which nothing is decided (the last one of a truncated episode)."""
        all_masked_BSL = torch.full((len(observations), 1, self.num_positions), self.mask_id, device=self.device)
        _, hidden_BSLD = self.backbone.denoise(self.backbone.encode(self.make_prompt(observations)), all_masked_BSL)
        return self._value(hidden_BSLD[:, 0, 0])

    def act(
        self, observation: Observation, num_steps: int | Mapping[str, int], seed: int = 0, task: str | None = None
    ) -> Decisions:
        """One decision for one observation (batch of 1): `.actions[0]` is (num_action_steps, action_dim).

        Args:
            observation: what the simulator shows.
            num_steps: denoising steps K, or task -> K, as in a `StepSchedule`.
            seed: of the draws.
            task: name of the task; a step schedule needs it.

        Raises:
            UserError: if K is not in 1..L, the schedule does not know the task, or the observation does not fit the
                policy.
        """
        steps = _scheduled(num_steps, task) if isinstance(num_steps, Mapping) else num_steps
        self.check_num_steps(steps)
        return self.decide([observation], [steps], [seed])

    def encode_actions(self, actions_BTA: Tensor) -> Tensor:
        """Action chunks in the robot's units -> (B, L) tokens."""
        return self.action_tokenizer.encode(self.action_normalizer.normalize(actions_BTA))

    def decode(self, tokens_BL: Tensor) -> Tensor:
        """(B, L) tokens -> (B, chunk_size, action_dim) float32 in the robot's units."""
        return self.action_normalizer.denormalize(self.action_tokenizer.decode(tokens_BL, self.action_dim))

    # -- scoring -----------------------------------------------------------------------------------------------------

    def score(
        self, prompt: Prompt, views: MaskedViews, temperature: float = 1.0, value_gradient: bool = False
    ) -> Scores:
        """Scores the clean tokens in every view; the one path to log-probabilities for SFT and RL.

        Args:
            prompt: of B decisions.
            views: S views of each.
            temperature: of the token distribution; RL must pass the sampler's.
            value_gradient: let the value's gradient reach the backbone.

        Returns:
            Log-probabilities and the value.
        """
        logits_BSLV, hidden_BSLD = self.backbone.denoise(self.backbone.encode(prompt), views.noisy_BSL)
        log_probs_BSLV = (logits_BSLV.float() / temperature).log_softmax(-1)
        clean_BSL = views.tokens_BSL.expand(-1, log_probs_BSLV.shape[1], -1)
        first_BD = hidden_BSLD[:, 0, 0]
        return Scores(
            log_probs_BSLV,
            log_probs_BSLV.gather(-1, clean_BSL[..., None])[..., 0],
            self._value(first_BD if value_gradient else first_BD.detach()),
        )

    def _value(self, hidden_BD: Tensor) -> Tensor:
        return self.value_head(hidden_BD)[:, 0].float()

    @torch.no_grad()
    def reference_log_prob(self, prompt: Prompt, views: MaskedViews, temperature: float) -> Tensor:
        """(B, S, L) log-probabilities under the reference policy: adapters off, or the copy kept at the start.

        Raises:
            UserError: if there is no reference.
        """
        if hasattr(self.backbone, "disable_adapter"):
            with self.backbone.disable_adapter():
                return self.score(prompt, views, temperature).log_prob_BSL
        if self.reference_backbone is None:
            raise UserError("the policy keeps no reference: call keep_reference() before training")
        trained, self.backbone = self.backbone, self.reference_backbone
        try:
            return self.score(prompt, views, temperature).log_prob_BSL
        finally:
            self.backbone = trained

    def keep_reference(self) -> None:
        """Remembers the present weights as the reference policy; with LoRA nothing needs to be kept."""
        if not hasattr(self.backbone, "disable_adapter"):
            self.reference_backbone = copy.deepcopy(self.backbone).requires_grad_(False).eval()

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
        if hasattr(self.action_tokenizer, "fit"):
            actions = torch.as_tensor(actions_ND, dtype=torch.float32).to(self.device)
            self.action_tokenizer.fit(self.action_normalizer.normalize(actions))
        self.is_fitted = True


def _scheduled(schedule: Mapping[str, int], task: str | None) -> int:
    if task is None:
        raise UserError("policy.act: a step schedule needs the name of the task, as in act(..., task='reach')")
    if task not in schedule:
        raise UserError(f"policy.act: the step schedule has no task {task!r}; it has: {', '.join(schedule)}")
    return schedule[task]
