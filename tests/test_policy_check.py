"""The self-check: good policies pass, each of the seeded faults is named in one sentence."""

import logging
import re
from pathlib import Path

import pytest
import torch

from dvla_lightning.actions.tokenizer import QuantileBins, UniformBins
from dvla_lightning.backbones import MiniBackbone
from dvla_lightning.errors import UserError
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.policy_check import _check_alignment, check_policy
from tests.small_policy import ACTION_DIM, BINS, lora, make_policy, make_tiny_policy

ROOT = Path(__file__).parents[1]
GOOD = {
    "small": make_policy,
    "tiny": make_tiny_policy,
    "fitted bins": lambda: make_policy(action_tokenizer=QuantileBins(BINS, ACTION_DIM)),
    "adapted": lambda: make_policy(lora=lora()),
    "bfloat16": lambda: make_policy().to(torch.bfloat16),
    "tabletop-sft": lambda: DVLAPolicy.from_pretrained(ROOT / "checkpoints/tabletop-sft", check=False),
    "libero-spatial-sft": lambda: DVLAPolicy.from_pretrained(ROOT / "checkpoints/libero-spatial-sft", check=False),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_policy_passes_in_one_line(name):
    assert re.fullmatch(r"self-check passed \(.*\) in \d+\.\d\d s", check_policy(GOOD[name]()))


# -- seeded faults: networks -------------------------------------------------------------------------------------------


class Causal(MiniBackbone):
    """Every action token sees those before it alone: one pass per position, with the later ones left out."""

    def denoise(self, context, noisy_BSL):
        outputs = []
        for end in range(1, noisy_BSL.shape[-1] + 1):
            position, self.action_position = self.action_position, torch.nn.Parameter(self.action_position[:end])
            outputs.append([x[:, :, -1] for x in super().denoise(context, noisy_BSL[..., :end])])
            self.action_position = position
        logits, hidden = zip(*outputs, strict=True)
        return torch.stack(logits, 2), torch.stack(hidden, 2)


class SaysCausal(MiniBackbone):
    is_causal = True


class CausalAsDeclared(Causal):
    is_causal = True


class Shifted(MiniBackbone):
    """As a next-token network gives them: the logits of a position lie one before it."""

    def denoise(self, context, noisy_BSL):
        logits, hidden = super().denoise(context, noisy_BSL)
        return logits.roll(-1, dims=2), hidden


class MixesViews(MiniBackbone):
    def denoise(self, context, noisy_BSL):
        logits, hidden = super().denoise(context, noisy_BSL)
        return logits + 0.1 * logits.mean(1, keepdim=True), hidden


class SeesPads(MiniBackbone):
    """Whatever lies beside a prompt in the batch changes it."""

    def encode(self, prompt):
        context = super().encode(prompt)
        context.keys = [key + 0.5 * key.mean(0, keepdim=True) for key in context.keys]
        return context


class PromptSeesActions(MiniBackbone):
    """Its packed pass lets the prompt look at the views, its cached one cannot."""

    def score_views(self, prompt, noisy_BSL):
        context = self.encode(prompt)
        seen = self.action_embedding(noisy_BSL).mean((1, 2))
        context.values = [value + seen.unflatten(-1, (self.num_heads, 1, -1)) for value in context.values]
        return self.denoise(context, noisy_BSL)


class SelectsOthers(MiniBackbone):
    def encode(self, prompt):
        context = super().encode(prompt)
        context.select = lambda rows: type(context)([k[:1] for k in context.keys], [v[:1] for v in context.values])
        return context


class Blind(MiniBackbone):
    def encode(self, prompt):
        return super().encode({name: torch.zeros_like(value) for name, value in prompt.items()})


class Dropout(MiniBackbone):
    def denoise(self, context, noisy_BSL):
        logits, hidden = super().denoise(context, noisy_BSL)
        return torch.nn.functional.dropout(logits, 0.1), hidden


class NoMask(MiniBackbone):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.action_embedding = torch.nn.Embedding(self.vocab_size, self.hidden_dim)


class WiderHead(MiniBackbone):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.head = torch.nn.Linear(self.hidden_dim, self.vocab_size + 1)


class Deaf(MiniBackbone):
    """Action tokens do not see each other."""

    def denoise(self, context, noisy_BSL):
        outputs = []
        whole = self.action_position
        for place in range(noisy_BSL.shape[-1]):
            self.action_position = torch.nn.Parameter(whole[place : place + 1])
            outputs.append(super().denoise(context, noisy_BSL[..., place : place + 1]))
        self.action_position = whole
        logits, hidden = zip(*outputs, strict=True)
        return torch.cat(logits, 2), torch.cat(hidden, 2)


class OffByOne(UniformBins):
    def _encode(self, actions):
        return (super()._encode(actions) + 1).clamp(max=self.num_bins - 1)


class MaskIsAToken(UniformBins):
    mask_id = 3


def with_backbone(kind):
    def make():
        policy = make_policy()
        policy.backbone = kind(**policy.backbone.init_args).eval()
        with torch.no_grad():
            policy.backbone.head.weight.mul_(6)
        return policy

    return make


def changed(change):
    def make():
        policy = make_policy()
        with torch.no_grad():
            change(policy)
        return policy

    return make


FAULTS = {
    "no statistics": (
        changed(lambda p: p.action_normalizer.low[1].fill_(float("nan"))),
        "statistics of action dimension 1 go from nan to 14",
    ),
    "infinite statistics": (
        changed(lambda p: p.proprioception_normalizer.high[2].fill_(float("inf"))),
        "statistics of proprioception dimension 2 go from .* to inf",
    ),
    "statistics upside down": (
        changed(lambda p: p.action_normalizer.low[0].fill_(7.0)),
        r"statistics of action dimension 0 go from 7\.0 to -1",
    ),
    "tokens do not come back": (
        lambda: make_policy(action_tokenizer=OffByOne(BINS)),
        "token 0 of OffByOne is an action that encodes to another token",
    ),
    "MASK is a token": (
        lambda: make_policy(action_tokenizer=MaskIsAToken(BINS)),
        "the id of MASK is 3, it must be 16",
    ),
    "weights are broken": (
        changed(lambda p: p.backbone.head.weight[0].fill_(float("nan"))),
        "logits or hidden states are not finite",
    ),
    "no embedding of MASK": (with_backbone(NoMask), "the network cannot read masked tokens"),
    "head of another size": (
        with_backbone(WiderHead),
        r"denoise returns \(2, \d, 8, 17\) and .*, not \(2, \d, 8, 16\)",
    ),
    "dropout": (with_backbone(Dropout), "two equal passes give different logits: is dropout on"),
    "prompt sees actions": (with_backbone(PromptSeesActions), r"score_views is not denoise\(encode\)"),
    "views see each other": (with_backbone(MixesViews), "a view's logits depend on the other views"),
    "rows of another prompt": (with_backbone(SelectsOthers), "context.select gives other rows"),
    "pads are seen": (with_backbone(SeesPads), "depend on the longer or shorter prompt beside it"),
    "prompt is not seen": (with_backbone(Blind), "the network does not see its prompt"),
    "causal": (with_backbone(Causal), r"no token moves logits before it: the network is causal, and is_causal is not"),
    "not causal": (with_backbone(SaysCausal), "is_causal is declared, and a token moves logits before it"),
    "tokens are alone": (with_backbone(Deaf), "no token moves logits before it"),
    "shifted": (with_backbone(Shifted), r"moves the logits 1 position before its own most: logits_BSLV\[:, :, l\]"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_in_one_sentence(name):
    make, sentence = FAULTS[name]
    with pytest.raises(UserError, match=f"^the policy does not pass its self-check: .*{sentence}") as caught:
        check_policy(make())
    assert "\n" not in str(caught.value)


class ShiftedBack(MiniBackbone):
    """Predicts the next token, as the language model did that it was made from: what it says of one is moved there."""

    def denoise(self, context, noisy_BSL):
        logits, hidden = super().denoise(context, noisy_BSL)
        return torch.cat([logits[:, :, :1], logits[:, :, :-1]], 2), hidden


class LayersBeginAtZero(MiniBackbone):
    """As diffusion transformers are initialised: every layer adds nothing yet."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        for name, parameter in self.named_parameters():
            if ".attention_out." in name or ".mlp.2." in name:
                torch.nn.init.zeros_(parameter)


class Rounds(MiniBackbone):
    """A pass of a device whose sums depend on what else it computes."""

    def denoise(self, context, noisy_BSL):
        logits, hidden = super().denoise(context, noisy_BSL)
        return logits * (1 + 1e-6 * torch.rand_like(logits)), hidden


@pytest.mark.parametrize("backbone", [CausalAsDeclared, ShiftedBack, LayersBeginAtZero, Rounds])
def test_a_network_that_is_unusual_and_right_passes(backbone):
    check_policy(with_backbone(backbone)())


def test_trained_networks_may_look_elsewhere_first():
    """Tokens of a trained one may say most about a neighbour, all of them about the same one."""
    moved_CL = torch.eye(8)[[2, 4, 6]] + 1.5 * torch.eye(8)[[1, 3, 5]]
    _check_alignment(moved_CL, torch.tensor([2, 4, 6]))
    with pytest.raises(UserError, match="1 position before its own"):
        _check_alignment(moved_CL - 0.5 * torch.eye(8)[[2, 4, 6]], torch.tensor([2, 4, 6]))


def test_loading_checks_unless_it_is_told_not_to(tmp_path, caplog):
    with_backbone(Shifted)().save_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match="self-check"):
        DVLAPolicy.from_pretrained(tmp_path / "policy")
    DVLAPolicy.from_pretrained(tmp_path / "policy", check=False)
    make_policy().save_pretrained(tmp_path / "good")
    with caplog.at_level(logging.INFO, "dvla_lightning"):
        DVLAPolicy.from_pretrained(tmp_path / "good")
    assert len(caplog.messages) == 1 and "good: self-check passed" in caplog.messages[0]
