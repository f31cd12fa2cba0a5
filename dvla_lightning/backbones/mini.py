"""MiniBackbone: a prefix-attention transformer trained from scratch, small enough for a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dvla_lightning.backbones.attention import attend_to_prompt_and_view
from dvla_lightning.backbones.base import Backbone, Processor, Prompt, PromptRow
from dvla_lightning.backbones.vision import MAX_TEXT_IDS, ImageEncoder, InstructionEncoder, hashed_text_ids
from dvla_lightning.envs.base import Observation
from dvla_lightning.errors import UserError, check_number


@dataclass
class PromptCache:
    """Keys and values of the prompt in every layer, each (B, H, P, d)."""

    keys: list[Tensor]
    values: list[Tensor]

    def select(self, rows: Tensor) -> PromptCache:
        """The caches of some rows."""
        return PromptCache([key[rows] for key in self.keys], [value[rows] for value in self.values])


class Layer(nn.Module):
    """Pre-norm transformer layer; prompt tokens and action tokens share its weights."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attention_out = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, ..., D) -> query, key, value, each (B, H, ..., d)."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.movedim((-3, -2), (0, 2))
        return query, key, value

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual update of (B, ..., D) from attended (B, H, ..., d)."""
        x = x + self.attention_out(attended.movedim(1, -2).flatten(-2))
        return x + self.mlp(self.mlp_norm(x))


class MiniProcessor(Processor):
    """Pixels of the cameras, hashed words of the instruction, proprioception; arguments as in `MiniBackbone`."""

    def __init__(
        self, cameras: Sequence[str], image_size: int, proprioception_dim: int, text_buckets: int, text_length: int
    ) -> None:
        self.cameras, self.image_size, self.proprioception_dim = list(cameras), image_size, proprioception_dim
        self.text_buckets, self.text_length = text_buckets, text_length

    def check(self, observation: Observation) -> None:
        for part in ("images", "proprioception", "instruction"):
            if part not in observation:
                raise UserError(f"the policy reads {part}, which the observation does not have")
        if not isinstance(observation["instruction"], str):
            raise UserError(f"the policy reads an instruction as text, got {type(observation['instruction']).__name__}")
        missing = [camera for camera in self.cameras if camera not in observation["images"]]
        if missing:
            raise UserError(
                f"the policy reads camera {missing[0]!r}, the environment has {sorted(observation['images'])}: "
                "use the environment options the policy was trained with"
            )
        for camera in self.cameras:
            shape, dtype = observation["images"][camera].shape, observation["images"][camera].dtype
            if dtype != np.uint8:
                raise UserError(f"the policy reads images of uint8 in 0..255, camera {camera!r} gives {dtype}")
            if shape != (self.image_size, self.image_size, 3):
                raise UserError(
                    f"the policy reads {self.image_size} x {self.image_size} RGB images, the environment gives shape "
                    f"{tuple(shape)}: set image_size: {self.image_size} on the environment"
                )
        found = np.shape(observation["proprioception"])
        if found != (self.proprioception_dim,):
            raise UserError(
                f"the policy reads {self.proprioception_dim} proprioception numbers, the environment gives "
                f"{found[0] if len(found) == 1 else f'shape {found}'}"
            )

    def example(self, number: int) -> Observation:
        stripes = np.arange(self.image_size**2 * 3).reshape(self.image_size, self.image_size, 3) * (7 + 4 * number)
        return {
            "images": {camera: (stripes + 50 * n).astype(np.uint8) for n, camera in enumerate(self.cameras)},
            "proprioception": np.linspace(-1, 1 + number, self.proprioception_dim, dtype=np.float32),
            "instruction": " ".join(["put the block on the plate", "and close the drawer"][: 1 + number]),
        }

    def row(self, observation: Observation, proprioception_D: Tensor) -> PromptRow:
        pixels = np.stack([observation["images"][camera] for camera in self.cameras])
        text_ids = hashed_text_ids(observation["instruction"], self.text_buckets, self.text_length)
        return {
            "pixels": torch.from_numpy(pixels),  # (cameras, H, W, 3) uint8
            "text_ids": torch.tensor(text_ids),
            "proprioception": proprioception_D,
        }


class MiniBackbone(Backbone):
    """Convolutions modulated by the instruction, soft keypoints and patch tokens, a proprioception token, transformer.

    Attention is prefix-type: the prompt does not look at the action tokens, so its cache is exact.

    Args:
        num_positions: L, number of action tokens of a chunk (chunk_size * action_dim).
        vocab_size: V, number of action tokens (bins of the action tokenizer).
        cameras: names of the images it reads, in order.
        image_size: height and width of every image in pixels, a multiple of 16.
        proprioception_dim: size of the proprioception vector.
        dim: width D of the transformer.
        num_layers: transformer layers.
        num_heads: attention heads; divides `dim`.
        channels: width of the image feature maps, a multiple of 8.
        text_buckets: hash buckets for the words of the instruction, at least 2.
        text_length: hashes that are read of an instruction, two per word (the word, and the word with its place).

    Raises:
        UserError: if the sizes do not fit together.
    """

    attention = "prefix"
    layers: Sequence[Layer]

    def __init__(
        self,
        num_positions: int,
        vocab_size: int,
        cameras: list[str],
        image_size: int,
        proprioception_dim: int,
        dim: int = 64,
        num_layers: int = 3,
        num_heads: int = 4,
        channels: int = 32,
        text_buckets: int = 1024,
        text_length: int = MAX_TEXT_IDS,
    ) -> None:
        super().__init__()
        sizes = {"image_size": image_size, "proprioception_dim": proprioception_dim, "num_positions": num_positions}
        sizes |= {"vocab_size": vocab_size, "dim": dim, "num_layers": num_layers, "num_heads": num_heads}
        for name, size in {**sizes, "channels": channels, "text_buckets": text_buckets}.items():
            if size < 1:
                raise UserError(f"MiniBackbone: {name} must be at least 1, got {size}")
        if not cameras or len(set(cameras)) < len(cameras):
            raise UserError(f"MiniBackbone: cameras must be one or more different names, got {cameras}")
        if image_size % 16 or channels % 8 or dim % num_heads:
            raise UserError(
                f"MiniBackbone: image_size ({image_size}) must be a multiple of 16, channels ({channels}) of 8, "
                f"and dim ({dim}) of num_heads ({num_heads})"
            )
        check_number("MiniBackbone", "text_buckets", text_buckets, low=2)
        check_number("MiniBackbone", "text_length", text_length, low=1)
        self.processor: MiniProcessor = MiniProcessor(
            cameras, image_size, proprioception_dim, text_buckets, text_length
        )
        self.num_positions, self.vocab_size, self.hidden_dim = num_positions, vocab_size, dim
        self.num_layers, self.num_heads, self.channels = num_layers, num_heads, channels
        self.instruction_encoder = InstructionEncoder(text_buckets, dim)
        self.image_encoders = nn.ModuleList(ImageEncoder(image_size, channels, dim) for _ in cameras)
        self.proprioception_token = nn.Sequential(nn.Linear(proprioception_dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.action_embedding = nn.Embedding(vocab_size + 1, dim)  # the last row is MASK
        self.action_position = nn.Parameter(torch.randn(num_positions, dim) * 0.02)
        self.layers = nn.ModuleList(Layer(dim, num_heads) for _ in range(num_layers))  # type: ignore[assignment]
        self.final_norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab_size)

    @property
    def init_args(self) -> dict[str, Any]:
        names = ("num_positions", "vocab_size", "num_layers", "num_heads", "channels")
        return {**vars(self.processor), **{name: getattr(self, name) for name in names}, "dim": self.hidden_dim}

    def encode(self, prompt: Prompt) -> PromptCache:
        condition_BD = self.instruction_encoder(prompt["text_ids"])
        proprioception = prompt["proprioception"].to(condition_BD.dtype)
        tokens = [condition_BD[:, None], self.proprioception_token(proprioception)[:, None]]
        for index, encoder in enumerate(self.image_encoders):
            tokens.append(encoder(prompt["pixels"][:, index], condition_BD))
        return self.encode_tokens(torch.cat(tokens, dim=1))

    def encode_tokens(self, x_BPD: Tensor) -> PromptCache:
        """Caches keys and values of prompt tokens that are already embedded."""
        cache = PromptCache([], [])
        for number, layer in enumerate(self.layers):
            query, key, value = layer.project(x_BPD)
            # contiguous: otherwise every denoising step copies them again, and the views keep the queries in memory
            cache.keys.append(key.contiguous())
            cache.values.append(value.contiguous())
            if number + 1 < len(self.layers):  # nobody reads the prompt's output of the last layer
                attended = nn.functional.scaled_dot_product_attention(query, key, value)
                x_BPD = layer.finish(x_BPD, attended)
        return cache

    def denoise(self, context: PromptCache, noisy_BSL: Tensor) -> tuple[Tensor, Tensor]:
        x = self.action_embedding(noisy_BSL) + self.action_position
        for layer, prompt_key, prompt_value in zip(self.layers, context.keys, context.values, strict=True):
            query, key, value = layer.project(x)
            x = layer.finish(x, attend_to_prompt_and_view(query, prompt_key, prompt_value, key, value))
        hidden_BSLD = self.final_norm(x)
        return self.head(hidden_BSLD), hidden_BSLD
