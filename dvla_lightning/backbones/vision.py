"""Image and instruction encoders of `MiniBackbone`: small enough to learn grounding from scratch on a CPU."""

from __future__ import annotations

import unicodedata
import warnings
import zlib
from functools import lru_cache

import torch
from torch import Tensor, nn

MAX_TEXT_IDS = 64


@lru_cache(maxsize=4096)
def hashed_text_ids(sentence: str, num_buckets: int, length: int = MAX_TEXT_IDS) -> tuple[int, ...]:
    """Words, and words with their place, of a sentence, hashed into 1..num_buckets-1; 0 pads to `length`.

    The hashing trick (Weinberger et al., arXiv 0902.2206) needs no vocabulary file. The plain words carry over between
    sentences; the placed ones tell "the red block, then the blue block" from its reverse, which word pairs would not.
    A sentence of more than length / 2 words is not read to its end: first the places of its last words are left out,
    then the words themselves; a warning says so once per sentence.
    """
    # One form of letters with accents: a combining accent would part the word.
    letters = unicodedata.normalize("NFC", sentence).lower()
    words = "".join(c if c.isalnum() else " " for c in letters).split()
    placed = [f"{place}:{word}" for place, word in enumerate(words)]
    if 2 * len(words) > length:
        warnings.warn(
            f"MiniBackbone reads {min(len(words), length)} of the {len(words)} words of the instruction "
            f"{sentence[:60]!r}..., and the places of {max(0, length - len(words))}: a policy with text_length "
            f"{2 * len(words)} reads them all",
            stacklevel=2,
        )
    ids = [1 + zlib.crc32(text.encode()) % (num_buckets - 1) for text in [*words, *placed]][:length]
    return (*ids, *[0] * (length - len(ids)))


class InstructionEncoder(nn.Module):
    """Mean of hashed word and placed-word embeddings, then an MLP: (B, T) int64 -> (B, D)."""

    def __init__(self, num_buckets: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(num_buckets, dim, mode="mean", padding_idx=0)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, text_ids_BT: Tensor) -> Tensor:
        return self.mlp(self.embedding(text_ids_BT) * 8)  # a mean of many small embeddings is too faint otherwise


class FilmBlock(nn.Module):
    """Convolution whose normalised channels the instruction scales and shifts (FiLM, arXiv 1709.07871)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, condition_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(8, out_channels, affine=False)
        self.film = nn.Linear(condition_dim, 2 * out_channels)

    def forward(self, x: Tensor, condition_BD: Tensor) -> Tensor:
        scale, shift = self.film(condition_BD)[..., None, None].chunk(2, dim=1)
        return torch.relu(self.norm(self.conv(x)) * (1 + scale) + shift)


class ImageEncoder(nn.Module):
    """One camera -> a keypoint token and a grid of patch tokens.

    Stride-2 blocks bring the image down to about 16 x 16; spatial soft-argmax (Levine et al., arXiv 1504.00702) reads
    keypoint coordinates from it, and average pooling a 4 x 4 grid of patch features.

    Args:
        image_size: height and width in pixels, a multiple of 16.
        channels: width of the feature maps, a multiple of 8.
        dim: width D of the tokens; also the width of the instruction vector.
    """

    def __init__(self, image_size: int, channels: int, dim: int) -> None:
        super().__init__()
        num_halvings = max(1, (image_size // 16).bit_length() - 1)
        blocks = [FilmBlock(3, channels, 2, dim)]
        blocks += [FilmBlock(channels, channels, 2, dim) for _ in range(num_halvings - 1)]
        blocks += [FilmBlock(channels, channels, 1, dim) for _ in range(2)]
        self.blocks = nn.ModuleList(blocks)
        self.keypoint_logits = nn.Conv2d(channels, channels, 1)
        self.keypoint_token = nn.Linear(2 * channels, dim)
        self.patch_token = nn.Linear(channels, dim)
        self.patch_position = nn.Parameter(torch.randn(16, dim) * 0.02)

    def forward(self, pixels_BHW3: Tensor, condition_BD: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 and (B, D) -> (B, 17, D)."""
        x = pixels_BHW3.permute(0, 3, 1, 2).to(condition_BD.dtype) / 127.5 - 1
        for block in self.blocks:
            x = block(x, condition_BD)
        keypoints = self.keypoint_token(_soft_argmax(self.keypoint_logits(x)))[:, None]
        patches = nn.functional.adaptive_avg_pool2d(x, 4).flatten(2).transpose(1, 2)
        return torch.cat([keypoints, self.patch_token(patches) + self.patch_position], dim=1)


def _soft_argmax(logits_BCHW: Tensor) -> Tensor:
    """Expected (y, x) in [-1, 1] of each channel's softmax over the map: (B, 2C)."""
    height, width = logits_BCHW.shape[-2:]
    weights = logits_BCHW.flatten(2).softmax(-1).unflatten(-1, (height, width))
    ys = torch.linspace(-1, 1, height, device=weights.device, dtype=weights.dtype)
    xs = torch.linspace(-1, 1, width, device=weights.device, dtype=weights.dtype)
    return torch.cat([(weights.sum(3) * ys).sum(-1), (weights.sum(2) * xs).sum(-1)], dim=-1)
