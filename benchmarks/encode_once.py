"""Encode once, denoise many: what K = 4 denoising steps cost relative to K = 1.

Times sampling (forward) and scoring (forward and backward) in two ways, interleaved in one run: with MiniBackbone's
cached prompt and packed views, and naively, with one full pass over [prompt, chunk] for every step or view. Both must
give the same logits.

    python benchmarks/encode_once.py

Prints seconds and ratios; exits 1 if K = 4 costs more than --limit times K = 1, or if the logits differ.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dvla_lightning.backbones import MiniBackbone
from dvla_lightning.diffusion.estimators import Trajectory
from dvla_lightning.diffusion.path import DenoisingPath
from dvla_lightning.diffusion.sampler import Sampler
from dvla_lightning.diffusion.views import MaskedViews

MAX_LOGIT_DIFFERENCE = 1e-5


def naive_logits(backbone: MiniBackbone, prompt_BPD: Tensor, noisy_BL: Tensor) -> Tensor:
    """One full pass over [prompt, chunk]; a prefix mask keeps the prompt from looking at the chunk.

    Args:
        backbone: whose weights are used.
        prompt_BPD: embedded prompt tokens.
        noisy_BL: one masked chunk per prompt.

    Returns:
        (B, L, V).
    """
    num_prompt = prompt_BPD.shape[1]
    x = torch.cat([prompt_BPD, backbone.action_embedding(noisy_BL) + backbone.action_position], dim=1)
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
    mask[:num_prompt, num_prompt:] = False
    for layer in backbone.layers:
        x = layer.finish(x, F.scaled_dot_product_attention(*layer.project(x), attn_mask=mask))
    return backbone.head(backbone.final_norm(x[:, num_prompt:]))


class Case:
    """The four things that are timed, for one K; every method returns the logits it computed, (B, K, L, V)."""

    def __init__(self, backbone: MiniBackbone, prompt_BPD: Tensor, num_steps: int) -> None:
        self.backbone, self.prompt_BPD, self.num_steps = backbone, prompt_BPD, num_steps
        # deterministic selection and fixed seeds: our sampler and the naive one pass through the same states
        self.path, _ = self._sample(lambda noisy, rows: naive_logits(backbone, prompt_BPD[rows], noisy))
        self.views: MaskedViews = Trajectory().views(self.path, backbone.vocab_size)

    def _sample(self, denoise: Callable[[Tensor, Tensor], Tensor]) -> tuple[DenoisingPath, Tensor]:
        logits = []

        def record(noisy: Tensor, rows: Tensor) -> Tensor:
            logits.append(denoise(noisy, rows))
            return logits[-1]

        batch = len(self.prompt_BPD)
        length, mask_id = self.backbone.num_positions, self.backbone.vocab_size
        path = Sampler().sample(record, length, mask_id, [self.num_steps] * batch, range(batch))
        return path, torch.stack(logits, dim=1)

    @torch.no_grad()
    def sample_ours(self) -> Tensor:
        context = self.backbone.encode_tokens(self.prompt_BPD)
        return self._sample(lambda noisy, rows: self.backbone.denoise(context, noisy[:, None])[0][:, 0])[1]

    @torch.no_grad()
    def sample_naive(self) -> Tensor:
        return self._sample(lambda noisy, rows: naive_logits(self.backbone, self.prompt_BPD[rows], noisy))[1]

    def score_ours(self) -> Tensor:
        return self._score(self.backbone.denoise(self.backbone.encode_tokens(self.prompt_BPD), self.views.noisy_BSL)[0])

    def score_naive(self) -> Tensor:
        # views fold into the batch, and the prompt is repeated for each
        prompts = self.prompt_BPD.repeat_interleave(self.num_steps, dim=0)
        logits = naive_logits(self.backbone, prompts, self.views.noisy_BSL.flatten(0, 1))
        return self._score(logits.unflatten(0, (-1, self.num_steps)))

    def _score(self, logits_BSLV: Tensor) -> Tensor:
        """Log-probability of the path, and its gradient."""
        self.backbone.zero_grad()
        clean = self.views.tokens_BSL[..., None].expand(-1, self.num_steps, -1, -1)
        log_prob = logits_BSLV.log_softmax(-1).gather(-1, clean)[..., 0]
        (log_prob * self.views.scored_BSL).sum().backward()
        return logits_BSLV.detach()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"batch": 4, "prompt": 600, "length": 56, "vocab": 256, "dim": 256, "layers": 4, "heads": 8, "steps": 4}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--repetitions", type=int, default=7, help="the median of so many is printed; default: 7")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; default: 1")
    parser.add_argument("--limit", type=float, default=1.6, help="largest ratio allowed; 0 allows any; default: 1.6")
    return parser.parse_args(arguments)


def build_cases(options: argparse.Namespace) -> tuple[Case, Case]:
    """K = 1 and K = steps, on one network and one prompt of random tokens."""
    torch.manual_seed(0)
    sizes = {"dim": options.dim, "num_layers": options.layers, "num_heads": options.heads}
    backbone = MiniBackbone(options.length, options.vocab, ["camera"], 16, 8, **sizes).eval()
    prompt_BPD = torch.randn(options.batch, options.prompt, options.dim)
    return Case(backbone, prompt_BPD, 1), Case(backbone, prompt_BPD, options.steps)


def largest_difference(cases: tuple[Case, Case]) -> float:
    """Between ours and the naive logits, over sampling and scoring; also warms everything up."""
    pairs = [(case.sample_ours(), case.sample_naive()) for case in cases]
    pairs += [(case.score_ours(), case.score_naive()) for case in cases]
    return max((ours - naive).abs().max().item() for ours, naive in pairs)


def measure(functions: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of every call; the functions take turns, so that a slow minute slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repetitions):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    cases = build_cases(options)
    difference = largest_difference(cases)
    names = ["sample_ours", "sample_naive", "score_ours", "score_naive"]
    seconds = measure(
        {f"{name} {case.num_steps}": getattr(case, name) for name in names for case in cases}, options.repetitions
    )
    print(
        f"prompt {options.prompt}, chunk {options.length} tokens, batch {options.batch}, {options.layers} layers of "
        f"width {options.dim}; median of {options.repetitions}, {options.threads} thread(s)"
    )
    print(f"{'':14}{'K = 1':>10}{f'K = {options.steps}':>10}{'ratio':>8}")
    worst = 0.0
    for name in names:
        one, many = (seconds[f"{name} {case.num_steps}"] for case in cases)
        # calls next to each other met the same load of the machine: the ratio is the median over pairs
        ratio = statistics.median(b / a for a, b in zip(one, many, strict=True))
        print(f"{name.replace('_', ', '):14}{statistics.median(one):9.3f}s{statistics.median(many):9.3f}s{ratio:8.2f}")
        if name.endswith("ours"):
            worst = max(worst, ratio)
    print(f"largest difference of logits, ours and naive: {difference:.1e}")
    too_slow = options.limit > 0 and worst > options.limit
    if too_slow:
        print(f"FAILED: K = {options.steps} costs {worst:.2f} times K = 1, allowed: {options.limit}")
    if difference >= MAX_LOGIT_DIFFERENCE:
        print(f"FAILED: logits differ by {difference:.1e}, allowed: {MAX_LOGIT_DIFFERENCE:.0e}")
    return int(too_slow or difference >= MAX_LOGIT_DIFFERENCE)


if __name__ == "__main__":
    sys.exit(main())
