"""MiniBackbone: packed views against one masked pass over the whole sequence, and what it refuses to read."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dvla_lightning.backbones import MiniBackbone
from dvla_lightning.backbones.attention import attend_to_prompt_and_view
from dvla_lightning.backbones.vision import MAX_TEXT_IDS, hashed_text_ids
from dvla_lightning.errors import UserError

BATCH, PROMPT, VIEWS, LENGTH, VOCAB = 3, 9, 4, 6, 7
ARGS = {
    "cameras": ["front", "wrist"],
    "image_size": 32,
    "proprioception_dim": 3,
    "num_positions": LENGTH,
    "vocab_size": VOCAB,
    "dim": 16,
    "num_layers": 3,
    "num_heads": 4,
    "channels": 8,
    "text_buckets": 128,
    "text_length": 64,
}


@pytest.fixture
def backbone():
    return MiniBackbone(**ARGS).eval()


def make_observation(seed=0, instruction="push the red block to the left"):
    generator = np.random.default_rng(seed)
    images = {name: generator.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in ARGS["cameras"]}
    proprioception = generator.normal(size=3).astype(np.float32)
    return {"images": images, "proprioception": proprioception, "instruction": instruction}


def make_inputs(dtype=torch.float32, seed=0):
    """Embedded prompt tokens and masked views."""
    generator = torch.Generator().manual_seed(seed)
    prompt_BPD = torch.randn(BATCH, PROMPT, ARGS["dim"], generator=generator, dtype=torch.float64).to(dtype)
    noisy_BSL = torch.randint(VOCAB + 1, (BATCH, VIEWS, LENGTH), generator=generator)
    return prompt_BPD, noisy_BSL


def visible(num_prompt: int, num_views: int, length: int) -> Tensor:
    """(P + S L, P + S L) bool: the prompt sees the prompt; a view sees the prompt and itself."""
    owner = torch.cat([torch.zeros(num_prompt), 1 + torch.arange(num_views).repeat_interleave(length)])
    return (owner[None, :] == 0) | (owner[:, None] == owner[None, :])


def masked_full_pass(backbone: MiniBackbone, prompt_BPD: Tensor, noisy_BSL: Tensor) -> tuple[Tensor, Tensor]:
    """The same network as one ordinary transformer over [prompt, view 1, .., view S], with an attention mask."""
    batch, num_views, length = noisy_BSL.shape
    actions = backbone.action_embedding.weight[noisy_BSL.flatten(1)] + backbone.action_position.repeat(num_views, 1)
    x = torch.cat([prompt_BPD, actions], dim=1)
    mask = visible(prompt_BPD.shape[1], num_views, length)
    for layer in backbone.layers:
        normed = F.layer_norm(x, x.shape[-1:], layer.attention_norm.weight, layer.attention_norm.bias)
        heads = [
            part.view(batch, -1, backbone.num_heads, x.shape[-1] // backbone.num_heads).transpose(1, 2)
            for part in F.linear(normed, layer.qkv.weight, layer.qkv.bias).chunk(3, dim=-1)
        ]
        attended = F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + F.linear(attended, layer.attention_out.weight, layer.attention_out.bias)
        normed = F.layer_norm(x, x.shape[-1:], layer.mlp_norm.weight, layer.mlp_norm.bias)
        inner = F.gelu(F.linear(normed, layer.mlp[0].weight, layer.mlp[0].bias))
        x = x + F.linear(inner, layer.mlp[2].weight, layer.mlp[2].bias)
    x = F.layer_norm(x, x.shape[-1:], backbone.final_norm.weight, backbone.final_norm.bias)
    hidden = x[:, prompt_BPD.shape[1] :].unflatten(1, (num_views, length))
    return F.linear(hidden, backbone.head.weight, backbone.head.bias), hidden


def run_both(backbone, prompt_BPD, noisy_BSL):
    """(logits, hidden, gradients) of the package and of the oracle, for one random linear function of the logits."""
    results = []
    for function in (
        lambda p, n: backbone.denoise(backbone.encode_tokens(p), n),
        lambda p, n: masked_full_pass(backbone, p, n),
    ):
        leaf = prompt_BPD.clone().requires_grad_()
        logits, hidden = function(leaf, noisy_BSL)
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5)).to(logits.dtype)
        used = {
            "prompt": leaf,
            **{n: p for n, p in backbone.named_parameters() if "encoder" not in n and "proprio" not in n},
        }
        grads = torch.autograd.grad(
            (weights * logits).sum(), list(used.values()), allow_unused=True, materialize_grads=True
        )
        results.append((logits, hidden, dict(zip(used, grads, strict=True))))
    return results


def prompt_of(backbone, observations):
    """Of observations whose proprioception is normalised already."""
    processor = backbone.processor
    for observation in observations:
        processor.check(observation)
    return processor.collate([processor.row(o, torch.from_numpy(o["proprioception"]).float()) for o in observations])


# -- attention ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_packed_views_equal_one_masked_full_pass(backbone, dtype, tolerance):
    backbone = backbone.to(dtype)
    (logits, hidden, grads), (want_logits, want_hidden, want_grads) = run_both(backbone, *make_inputs(dtype))
    torch.testing.assert_close(logits, want_logits, rtol=0, atol=tolerance)
    torch.testing.assert_close(hidden, want_hidden, rtol=0, atol=tolerance)
    for name, want in want_grads.items():
        torch.testing.assert_close(
            grads[name], want, rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=10 * tolerance
        )
    assert all(grads[f"layers.{number}.qkv.weight"].abs().max() > 1e-3 for number in range(3))
    assert grads["prompt"].abs().max() > 1e-3


@pytest.mark.parametrize(("prompt", "views", "length"), [(1, 1, 1), (1, 3, 5), (11, 1, 5), (4, 2, 1)])
def test_attention_at_every_shape(prompt, views, length):
    batch, heads, width = 2, 3, 4
    shape = (batch, heads, views, length, width)
    query, view_key, view_value = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    prompt_key, prompt_value = (torch.randn(batch, heads, prompt, width, dtype=torch.float64) for _ in range(2))
    out = attend_to_prompt_and_view(query, prompt_key, prompt_value, view_key, view_value)
    key = torch.cat([prompt_key, view_key.flatten(2, 3)], dim=2)
    value = torch.cat([prompt_value, view_value.flatten(2, 3)], dim=2)
    mask = visible(prompt, views, length)[prompt:]
    want = F.scaled_dot_product_attention(query.flatten(2, 3), key, value, attn_mask=mask)
    torch.testing.assert_close(out, want.unflatten(2, (views, length)), rtol=0, atol=1e-12)


def test_attention_survives_large_scores():
    query = torch.full((1, 1, 1, 2, 4), 60.0)
    key = torch.stack([torch.full((4,), 60.0), torch.full((4,), -60.0)])
    out = attend_to_prompt_and_view(query, key[None, None], key[None, None], query, query)
    torch.testing.assert_close(out, torch.full_like(out, 60.0))


def test_views_do_not_see_each_other(backbone):
    prompt, noisy = make_inputs(torch.float64)
    backbone = backbone.double()
    context = backbone.encode_tokens(prompt)
    before, _ = backbone.denoise(context, noisy)
    changed = noisy.clone()
    changed[:, 1] = (changed[:, 1] + 1) % (VOCAB + 1)
    after, _ = backbone.denoise(context, changed)
    others = [0, 2, 3]
    torch.testing.assert_close(after[:, others], before[:, others], rtol=0, atol=1e-13)
    assert (after[:, 1] - before[:, 1]).abs().amax(-1).min() > 1e-4, "every position of a view sees all of it"
    alone = torch.cat([backbone.denoise(context, noisy[:, [view]])[0] for view in range(VIEWS)], dim=1)
    torch.testing.assert_close(alone, before, rtol=0, atol=1e-13)


def test_denoising_leaves_the_prompt_cache_alone(backbone):
    prompt, noisy = make_inputs()
    context = backbone.encode_tokens(prompt)
    before = [tensor.clone() for tensor in (*context.keys, *context.values)]
    backbone.denoise(context, noisy)
    assert all(torch.equal(one, two) for one, two in zip(before, (*context.keys, *context.values), strict=True))
    assert len(context.keys) == len(context.values) == ARGS["num_layers"]


def test_permuting_the_batch_permutes_everything(backbone):
    backbone = backbone.double()
    prompt, noisy = make_inputs(torch.float64)
    rows = torch.tensor([2, 0, 1])
    context = backbone.encode_tokens(prompt)
    want, _ = backbone.denoise(context, noisy)
    for permuted in (context.select(rows), backbone.encode_tokens(prompt[rows])):
        torch.testing.assert_close(backbone.denoise(permuted, noisy[rows])[0], want[rows], rtol=0, atol=1e-13)


def test_prompt_is_read_row_by_row(backbone):
    """The whole way from observations: a batch gives what each observation gives alone."""
    observations = [make_observation(seed, f"pick block {seed}") for seed in range(3)]
    _, noisy = make_inputs()
    together, _ = backbone.denoise(backbone.encode(prompt_of(backbone, observations)), noisy)
    for row, observation in enumerate(observations):
        alone, _ = backbone.denoise(backbone.encode(prompt_of(backbone, [observation])), noisy[[row]])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)


# -- what it reads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", ["instruction", "front", "wrist", "proprioception"])
def test_every_part_of_the_observation_matters(backbone, changed):
    one, other = make_observation(), make_observation()
    if changed == "instruction":
        other["instruction"] = "push the blue block to the left"
    elif changed == "proprioception":
        other["proprioception"] = other["proprioception"] + 1
    else:
        other["images"][changed] = 255 - other["images"][changed]
    prompt = prompt_of(backbone, [one, other])
    assert prompt["pixels"].dtype == torch.uint8
    assert {len(value) for value in prompt.values()} == {2}
    logits, _ = backbone.denoise(backbone.encode(prompt), torch.full((2, 1, LENGTH), VOCAB))
    assert (logits[0] - logits[1]).abs().max() > 1e-4


def test_word_order_matters_case_and_punctuation_do_not():
    one = hashed_text_ids("collect the red block, then the blue block", 1024)
    other = hashed_text_ids("collect the blue block, then the red block", 1024)
    assert sorted(one) != sorted(other)  # the encoder averages, so the bag of ids must differ, not their order
    assert one == hashed_text_ids("Collect the red block then THE blue block.", 1024)
    assert len(one) == MAX_TEXT_IDS
    assert len([i for i in one if i]) == 8 + 8
    assert all(0 <= i < 1024 for i in one)
    assert hashed_text_ids("", 1024) == (0,) * MAX_TEXT_IDS


@pytest.mark.parametrize(("count", "read", "placed"), [(33, 33, 31), (64, 64, 0), (100, 64, 0)])
def test_a_sentence_that_is_too_long_is_warned_about_once_with_its_words(count, read, placed):
    sentence = " ".join(f"w{n}" for n in range(count))
    message = (
        f"reads {read} of the {count} words of the instruction 'w0 w1 .*, and the places of {placed}: .* text_length"
    )
    with pytest.warns(UserWarning, match=message):
        ids = hashed_text_ids(sentence, 1024)
    assert len(ids) == MAX_TEXT_IDS and 0 not in ids
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hashed_text_ids(sentence, 1024)  # once
        whole = hashed_text_ids(sentence, 1024, 2 * count)
        hashed_text_ids(" ".join(["word"] * 32), 1024)  # read to its end
    assert len(whole) == 2 * count and 0 not in whole and whole[:read] == ids[:read]


def test_words_beyond_ascii_have_one_form():
    composed, combining = "pousse le caf\u00e9", "pousse le cafe\u0301"
    assert composed != combining and hashed_text_ids(composed, 1024) == hashed_text_ids(combining, 1024)
    assert hashed_text_ids(composed, 1024) != hashed_text_ids("pousse le cafe", 1024)


def test_the_length_of_texts_is_an_option_of_the_backbone():
    options = {"cameras": ["front"], "image_size": 32, "proprioception_dim": 3, "num_positions": 4, "vocab_size": 8}
    backbone = MiniBackbone(**options, dim=16, num_layers=1, num_heads=2, channels=8, text_length=100)
    assert backbone.init_args["text_length"] == 100
    prompt = prompt_of(backbone, [make_observation(instruction=" ".join(f"w{n}" for n in range(50)))])
    assert prompt["text_ids"].shape == (1, 100) and (prompt["text_ids"] > 0).all()
    for bad in ({"text_buckets": 1}, {"text_length": 0}):
        with pytest.raises(UserError, match=r"text_(buckets|length) must be a number at least"):
            MiniBackbone(**options, **bad)


def test_an_empty_instruction_gives_finite_logits(backbone):
    context = backbone.encode(prompt_of(backbone, [make_observation(instruction="")]))
    assert backbone.denoise(context, torch.full((1, 1, LENGTH), VOCAB))[0].isfinite().all()


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("camera", r"reads camera 'wrist', the environment has \['front'\]: use"),
        ("first size", r"reads 32 x 32 RGB images, the environment gives shape \(48, 48, 3\): set image_size: 32"),
        ("second size", r"reads 32 x 32 RGB images, the environment gives shape \(16, 32, 3\): set image_size: 32"),
        ("proprioception", "reads 3 proprioception numbers, the environment gives 5"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(backbone, part, message, row):
    """Wherever in the batch it is: environments of a pool may be configured differently."""
    bad = make_observation()
    if part == "camera":
        del bad["images"]["wrist"]
    elif part == "first size":
        bad["images"]["front"] = np.zeros((48, 48, 3), np.uint8)
    elif part == "second size":
        bad["images"]["wrist"] = np.zeros((16, 32, 3), np.uint8)
    else:
        bad["proprioception"] = np.zeros(5, np.float32)
    observations = [make_observation(), make_observation()]
    observations[row] = bad
    with pytest.raises(UserError, match=message):
        prompt_of(backbone, observations)


@pytest.mark.parametrize("change", [{"image_size": 40}, {"channels": 12}, {"num_heads": 3}])
def test_sizes_that_do_not_fit_together_are_refused(change):
    with pytest.raises(UserError, match="MiniBackbone: image_size"):
        MiniBackbone(**{**ARGS, **change})


def test_init_args_rebuild_the_same_architecture(backbone):
    args = json.loads(json.dumps(backbone.init_args))
    assert args == ARGS
    rebuilt = MiniBackbone(**args).eval()
    rebuilt.load_state_dict(backbone.state_dict())
    _, noisy = make_inputs()
    prompt = prompt_of(backbone, [make_observation(seed) for seed in range(BATCH)])
    want, _ = backbone.denoise(backbone.encode(prompt), noisy)
    assert torch.equal(rebuilt.denoise(rebuilt.encode(prompt), noisy)[0], want)


@pytest.mark.parametrize("image_size", [16, 32, 48, 64, 128])
def test_every_multiple_of_16_is_read(image_size):
    backbone = MiniBackbone(**{**ARGS, "image_size": image_size, "cameras": ["front"]})
    image = np.zeros((image_size, image_size, 3), np.uint8)
    observation = {"images": {"front": image}, "proprioception": np.zeros(3, np.float32), "instruction": "go"}
    context = backbone.encode(prompt_of(backbone, [observation]))
    assert context.keys[0].shape == (1, 4, 2 + 17, 4)
    logits, hidden = backbone.denoise(context, torch.full((1, 2, LENGTH), VOCAB))
    assert logits.shape == (1, 2, LENGTH, VOCAB)
    assert hidden.shape == (1, 2, LENGTH, 16)
    assert math.isfinite(logits.sum().item())
