"""DVLAPolicy: observation -> prompt -> K denoising steps -> action chunk, and the scoring of masked views."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor

from dvla_lightning import policy_directory
from dvla_lightning.backbones.base import Prompt
from dvla_lightning.decisions import Decisions
from dvla_lightning.diffusion.entropy import entropy
from dvla_lightning.diffusion.sampler import Sampler, SamplerOverrides
from dvla_lightning.diffusion.views import MaskedViews
from dvla_lightning.envs.base import Environment, Observation
from dvla_lightning.errors import UserError
from dvla_lightning.paths import local_path
from dvla_lightning.policy_check import check_policy
from dvla_lightning.policy_parts import PolicyParts, check_outputs

if TYPE_CHECKING:  # importing peft takes seconds
    from peft import LoraConfig

logger = logging.getLogger(__name__)
MAX_SEED = 2**63 - 1
NOT_FINITE = "the policy's {} are not finite: its weights or statistics are of no use any more"


class Scores(NamedTuple):
    """The network's scores of the clean tokens of masked views (all float32).

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
        """Entropy of the predicted distributions, in nats; computed at every access."""
        return entropy(self.log_probs_BSLV)


class DVLAPolicy(PolicyParts):
    """A discrete-diffusion VLA policy: acts on observations, and scores the tokens of masked views.

    It is made of parts, see `PolicyParts` for the arguments, or read from a policy directory by `from_pretrained`.
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained: str | Path,
        *,
        sampler: SamplerOverrides | Sampler | None = None,
        num_action_steps: int | None = None,
        lora: LoraConfig | None = None,
        base: str | None = None,
        trusted_modules: Sequence[str] = (),
        device: torch.device | str | None = None,
        check: bool = True,
    ) -> Self:
        """Reads a policy directory.

        Args:
            pretrained: directory written by `save_pretrained`, or id of a Hugging Face repository with that content.
            sampler: fields that replace those saved with the policy; a whole `Sampler` replaces all of them.
            num_action_steps: actions executed of each chunk; None keeps the policy's.
            lora: adapters to train instead of the backbone (peft). Without target_modules the backbone chooses. An
                adapter found in the directory is merged first.
            base: policy directory or repository with the frozen weights below the adapter, if the one that the
                directory names has moved.
            trusted_modules: modules of yours that may be imported because the directory names a backbone or tokenizer
                class in them. Loading imports nothing else; classes that your program has imported are known, too.
            device: where the weights go; None is torch's default device.
            check: run the self-check, a few passes of the network, which finds a wrong declaration, a damaged file or
                another version of the network; see `check_policy`.

        Returns:
            The policy, in eval mode.

        Raises:
            UserError: if the directory is missing, corrupt, or does not fit what is asked for, or the check fails.
        """
        policy = policy_directory.load(
            cls,
            str(pretrained),
            sampler=sampler,
            num_action_steps=num_action_steps,
            lora=lora,
            base=base,
            trusted_modules=trusted_modules,
            device=device,
        )
        if check:
            logger.info("%s: %s", pretrained, check_policy(policy))
        return policy

    def save_pretrained(self, path: str | Path, card: str = "", copy_base: bool | None = None) -> None:
        """Writes config.json, model.safetensors, adapter/ (with LoRA) and README.md; replaces the directory at once.

        Under a strategy that shards weights every rank must call it; the first one writes.

        Args:
            path: directory to write.
            card: how the policy was made; goes into README.md.
            copy_base: with LoRA on a frozen base: whether its weights are written, too, or only where they are. None
                copies up to 256 MiB, so that a small policy needs no other directory.

        Raises:
            UserError: if the policy is not finite, the place holds something else, or it cannot be written; what was
                there before stays.
        """
        policy_directory.save(self, local_path(path, "policy directory"), card, copy_base)

    # -- acting ------------------------------------------------------------------------------------------------------

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
            UserError: if an observation does not fit the policy or holds a number that is not finite, or the network's
                probabilities or values are not finite.
        """
        if not len(observations) == len(num_steps) == len(seeds):
            raise ValueError(f"{len(observations)} observations, {len(num_steps)} num_steps, {len(seeds)} seeds")
        proprioception_BD = self._proprioception(observations)
        rows = self._rows(observations, proprioception_BD)
        context = self.backbone.encode(self.collate(rows))
        first_hidden: list[Tensor] = []

        def denoise(noisy_NL: Tensor, rows: Tensor) -> Tensor:
            part = context if len(rows) == len(observations) else context.select(rows.to(self.device))
            logits, hidden = self.backbone.denoise(part, noisy_NL[:, None].to(self.device))
            first_hidden.append(hidden[:, 0, 0])
            return logits[:, 0]

        path = self.sampler.sample(denoise, self.num_positions, self.mask_id, num_steps, seeds)
        actions = self.decode(path.tokens_BL)[:, : self.num_action_steps]
        values_B = self._value(first_hidden[0])
        # Tokens are drawn even from NaN, so actions alone would not tell.
        outputs = {"log-probabilities": path.log_prob_BL, "values": values_B, "actions": actions}
        check_outputs(outputs, NOT_FINITE)
        return Decisions(actions, rows, path, values_B, self._outside(proprioception_BD), self.version)

    def _outside(self, proprioception_BD: Tensor) -> Tensor:
        """(B,) float32 on the CPU: see `Decisions.outside_B`."""
        outside_BD = self.proprioception_normalizer.outside(proprioception_BD).float()
        return outside_BD.sum(-1).cpu() / max(1, outside_BD.shape[-1])

    @torch.no_grad()
    def estimate_values(self, observations: Sequence[Observation]) -> Tensor:
        """(B,) float32 values of observations on which nothing is decided (the last one of a truncated episode)."""
        all_masked_BSL = torch.full((len(observations), 1, self.num_positions), self.mask_id, device=self.device)
        _, hidden_BSLD = self.backbone.denoise(self.backbone.encode(self.make_prompt(observations)), all_masked_BSL)
        values_B = self._value(hidden_BSLD[:, 0, 0])
        check_outputs({"values": values_B}, NOT_FINITE)
        return values_B

    def act(
        self,
        observation: Observation,
        num_steps: int | Mapping[str, int],
        seed: int | None = None,
        task: str | None = None,
    ) -> Decisions:
        """One decision for one observation (batch of 1): `.actions[0]` is (num_action_steps, action_dim).

        Args:
            observation: what the simulator shows.
            num_steps: denoising steps K, or task -> K, as in a `StepSchedule`.
            seed: of the draws, in 0..2^63 - 1; an episode needs another one at every decision. None draws anew at every
                call, from torch's global generator: `torch.manual_seed` before an episode makes it come out again.
            task: name of the task; a step schedule needs it.

        Raises:
            UserError: if K is not in 1..L, the schedule does not know the task, or the observation does not fit the
                policy.
        """
        if seed is None:
            seed = int(torch.randint(MAX_SEED, ()))
        elif not 0 <= seed <= MAX_SEED:
            raise UserError(f"policy.act: seed must be in 0..2^63 - 1, got {seed}")
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
        logits_BSLV, hidden_BSLD = self.backbone.score_views(prompt, views.noisy_BSL)
        log_probs_BSLV = (logits_BSLV.float() / temperature).log_softmax(-1)
        clean_BSL = views.tokens_BSL.expand(-1, log_probs_BSLV.shape[1], -1)
        first_BD = hidden_BSLD[:, 0, 0]
        return Scores(
            log_probs_BSLV,
            log_probs_BSLV.gather(-1, clean_BSL[..., None])[..., 0],
            self._value(first_BD if value_gradient else first_BD.detach()),
        )

    def _value(self, hidden_BD: Tensor) -> Tensor:
        return self.value_head(hidden_BD)[:, 0]

    forward = score  # for `functional_call`, which runs a module's forward

    @torch.no_grad()
    def reference_log_prob(self, prompt: Prompt, views: MaskedViews, temperature: float) -> Tensor:
        """(B, S, L) log-probabilities under the policy as it was at `keep_reference`.

        Raises:
            UserError: if there is no reference.
        """
        if self.reference is None:
            raise UserError("the policy keeps no reference: call keep_reference() before training")
        now = self.get_parameter
        self.reference = {name: value.to(now(name)) for name, value in self.reference.items()}  # device and dtype
        scores: Scores = torch.func.functional_call(self, self.reference, (prompt, views, temperature))
        return scores.log_prob_BSL

    def keep_reference(self) -> None:
        """Keeps the present policy as the reference: copies the trainable parameters of the backbone."""
        self.reference = {
            f"backbone.{name}": parameter.detach().clone()
            for name, parameter in self.backbone.named_parameters()
            if parameter.requires_grad
        }


def _scheduled(schedule: Mapping[str, int], task: str | None) -> int:
    if task is None:
        raise UserError("policy.act: a step schedule needs the name of the task, as in act(..., task='reach')")
    if task not in schedule:
        raise UserError(f"policy.act: the step schedule has no task {task!r}; it has: {', '.join(schedule)}")
    return schedule[task]
