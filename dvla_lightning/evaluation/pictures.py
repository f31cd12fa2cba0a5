"""Episodes as pictures for people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dvla_lightning.errors import UserError
from dvla_lightning.files import whole_file
from dvla_lightning.rollout.episode import Episode


def picture_strip(episode: Episode, num_frames: int = 6) -> NDArray[np.uint8]:
    """Frames of an episode side by side, from its start to its end.

    Args:
        episode: run with `pictures`.
        num_frames: at most this many, evenly spaced.

    Returns:
        (H, W * frames + gaps, 3) uint8.
    """
    pictures = episode.pictures
    chosen = np.unique(np.linspace(0, len(pictures) - 1, num_frames).round().astype(int))
    gap = np.full((pictures[0].shape[0], 4, 3), 255, np.uint8)
    parts = [part for n in chosen for part in (gap, pictures[n])]
    return np.concatenate(parts[1:], axis=1)


def save_strip(path: Path, strip: NDArray[np.uint8], caption: str) -> None:
    """Writes a PNG file, its caption in the file's metadata; it appears whole or not at all."""
    information = PngInfo()
    information.add_text("Description", caption)
    with whole_file(path) as partial:
        Image.fromarray(strip).save(partial, format="png", pnginfo=information)


def load_strip(path: Path) -> tuple[NDArray[np.uint8], str]:
    """A picture written by `save_strip` and its caption.

    Raises:
        UserError: if it is damaged.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB")), str(image.info.get("Description", ""))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"the picture {path} is damaged ({error}): delete it") from error
