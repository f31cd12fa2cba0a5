"""The self-check of a policy: a few passes of its network show whether it is what it declares to be."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from dvla_lightning.errors import UserError
from dvla_lightning.policy_parts import PolicyParts

CLOSE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest difference between logits that must be the same, in standard deviations of the logits."""
CLOSE_ROUNDED = 0.2
"""The same for logits in half precision (an 8B network in bfloat16: up to 0.06, measured between batch sizes)."""
NUM_CHANGED = 4
CLEARLY = 2.0
"""How many times as far a token must move other logits than its own before these count as shifted."""
Denoise = Callable[[Tensor], tuple[Tensor, Tensor]]


@torch.no_grad()
def check_policy(policy: PolicyParts) -> str:
    """Checks a policy that has statistics and weights.

    Returns:
        One line that says that it passed.

    Raises:
        UserError: naming what is wrong with its statistics, tokens or network.
    """
    start = time.perf_counter()
    _check_statistics(policy)
    _check_tokens(policy)
    _check_network(policy)
    return (
        "self-check passed (statistics, tokens, attention, alignment, views, batches) in "
        f"{time.perf_counter() - start:.2f} s"
    )


def _fail(sentence: str) -> UserError:
    return UserError(f"the policy does not pass its self-check: {sentence}")


def _check_statistics(policy: PolicyParts) -> None:
    for name in ("action", "proprioception"):
        normalizer = getattr(policy, f"{name}_normalizer")
        for d, (low, high) in enumerate(zip(normalizer.low.tolist(), normalizer.high.tolist(), strict=True)):
            if not -float("inf") < low <= high < float("inf"):
                raise _fail(f"the statistics of {name} dimension {d} go from {low} to {high}: save the policy again")


def _check_tokens(policy: PolicyParts) -> None:
    tokenizer, dim = policy.action_tokenizer, policy.action_dim
    tokens_VD = torch.arange(tokenizer.vocab_size, device=policy.device)[:, None].expand(-1, dim)
    actions = tokenizer.decode(tokens_VD, dim)
    again = tokenizer.decode(tokenizer.encode(actions), dim)  # bins of a dimension that never moves may be equal
    if not torch.equal(actions, again):
        token = int((actions != again).flatten(1).any(1).nonzero()[0])
        raise _fail(f"token {token} of {type(tokenizer).__name__} is an action that encodes to another token")
    if policy.mask_id != policy.network.vocab_size:
        raise _fail(
            f"the id of MASK is {policy.mask_id}, it must be {policy.network.vocab_size}, one past the last token"
        )


def _check_network(policy: PolicyParts) -> None:
    rows = policy.make_rows([policy.processor.example(number) for number in range(2)])
    prompt, backbone = policy.collate(rows), policy.backbone
    views_SL, changed = _views(policy)
    noisy_BSL = views_SL.expand(2, -1, -1)
    try:
        context = backbone.encode(prompt)
        logits, hidden = backbone.denoise(context, noisy_BSL)
    except (IndexError, RuntimeError) as error:
        raise _fail(f"the network cannot read masked tokens ({str(error).splitlines()[0]})") from error
    shapes = [(*noisy_BSL.shape, size) for size in (policy.network.vocab_size, policy.network.hidden_dim)]
    if [tuple(logits.shape), tuple(hidden.shape)] != shapes:
        raise _fail(f"denoise returns {tuple(logits.shape)} and {tuple(hidden.shape)}, not {shapes[0]} and {shapes[1]}")
    if bool(logits.isnan().any()) or not bool(hidden.isfinite().all()):
        raise _fail("the network's logits or hidden states are not finite")
    again = backbone.denoise(context, noisy_BSL)[0]
    _check_same(policy, logits, again, "two equal passes give different logits: is dropout on?")
    _check_same(policy, logits, backbone.score_views(prompt, noisy_BSL)[0], "score_views is not denoise(encode)")
    alone = backbone.denoise(context, noisy_BSL[:, :1])[0]
    _check_same(policy, logits[:, :1], alone, "a view's logits depend on the other views beside it")
    for row in range(2):
        index = torch.tensor([row], device=policy.device)
        selected = backbone.denoise(context.select(index), noisy_BSL[:1])[0]
        _check_same(policy, logits[row : row + 1], selected, "context.select gives other rows than it was asked for")
        single = backbone.score_views(policy.collate([rows[row]]), noisy_BSL[:1])[0]
        problem = "a prompt's logits depend on the longer or shorter prompt beside it: pads must change nothing"
        _check_same(policy, logits[row : row + 1], single, problem)
    if bool((logits.float().std(-1) > 0).any()):  # a network that is all zeros shows nothing
        _check_influence(policy, logits, changed)


def _views(policy: PolicyParts) -> tuple[Tensor, Tensor]:
    """(S, L) views and the positions: half committed, the same with one token changed at each position, all masked."""
    generator, length = torch.Generator().manual_seed(0), policy.num_positions
    tokens = torch.randint(policy.network.vocab_size, (length,), generator=generator)
    base = torch.where(torch.arange(length) % 2 == 0, tokens, policy.mask_id)
    committed = torch.arange(0, length, 2)
    middle = committed[(committed > 0) & (committed < length - 1)]  # with neighbours on both sides
    changed = (middle if len(middle) else committed)[:: max(1, len(middle) // NUM_CHANGED)][:NUM_CHANGED]
    views = [base]
    for position in changed.tolist():
        other = base.clone()
        other[position] = (other[position] + 1 + policy.network.vocab_size // 3) % policy.network.vocab_size
        views.append(other)
    views.append(torch.full_like(base, policy.mask_id))
    return torch.stack(views).to(policy.device), changed


def _check_same(policy: PolicyParts, one: Tensor, other: Tensor, problem: str) -> None:
    finite = one.isfinite() & other.isfinite()  # a network may forbid tokens with -inf
    largest = (one.float() - other.float())[finite].abs().max()
    if not largest <= _allowed(one):
        raise _fail(f"{problem} (logits differ by {float(largest):.2g})")


def _allowed(logits: Tensor) -> float:
    """Largest difference between logits that must be the same."""
    spread = logits.float()[logits.isfinite()].std().clamp(min=1e-6)
    return CLOSE.get(logits.dtype, CLOSE_ROUNDED) * float(spread)


def _check_influence(policy: PolicyParts, logits_BSLV: Tensor, changed: Tensor) -> None:
    """Checks which logits move when one committed token changes. A trained network may well ignore some of them."""
    allowed, logits_BSLV = _allowed(logits_BSLV), logits_BSLV.float()
    moved_CL = (logits_BSLV[:, 1:-1] - logits_BSLV[:, :1]).nan_to_num(0.0).abs().amax((0, 3)).cpu()
    distance_CL = torch.arange(policy.num_positions) - changed[:, None]
    before, after = moved_CL[distance_CL < 0], moved_CL[distance_CL > 0]
    is_blind = torch.equal(logits_BSLV[0, -1], logits_BSLV[1, -1])
    if is_blind and not bool((before > 0).any() or (after > 0).any()):
        return  # all of its layers may begin at zero
    if is_blind:
        raise _fail("other pictures and another instruction change nothing: the network does not see its prompt")
    if policy.network.is_causal and bool((before > allowed).any()):
        raise _fail("is_causal is declared, and a token moves logits before it")
    if not policy.network.is_causal and len(before) and not bool((before > 0).any()):
        raise _fail("no token moves logits before it: the network is causal, and is_causal is not declared")
    if len(after) and not bool((after > 0).any()):
        raise _fail("no token moves logits after it: those must see it")
    _check_alignment(moved_CL, changed)


def _check_alignment(moved_CL: Tensor, changed: Tensor) -> None:
    """Checks that a token moves the logits of its own position most, through the residual stream.

    Logits of a network that predicts the next token have been shifted back, so there it is the next position. Trained
    networks do not always keep to it: all tokens must agree, and clearly.
    """
    offset, count = Counter((moved_CL.argmax(-1) - changed).tolist()).most_common(1)[0]
    if offset in (0, 1) or count < len(changed) or count < 3:
        return
    own_C, there_C = (moved_CL.gather(1, (changed + each)[:, None]) for each in (0, offset))
    if bool((there_C > CLEARLY * own_C).all()):
        raise _fail(
            f"a token moves the logits {abs(offset)} position{'s' * (abs(offset) > 1)} "
            f"{'behind' if offset > 0 else 'before'} its own most: logits_BSLV[:, :, l] must predict token l"
        )
