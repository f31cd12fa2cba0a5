"""Episodes as pictures for people."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from numpy.typing import NDArray

from dvla_lightning.rollout.episode import Episode


def picture_strip(episode: Episode, num_frames: int = 6) -> NDArray[np.uint8]:
    """Frames of an episode side by side, from its start to its end.

    Args:
        episode: run with `pictures`.
        num_frames: at most this many, evenly spaced.

    Returns:
        (H, W * frames, 3) uint8.
    """
    pictures = [transition.picture for transition in episode.transitions]
    chosen = np.unique(np.linspace(0, len(pictures) - 1, num_frames).round().astype(int))
    return np.concatenate([pictures[n] for n in chosen], axis=1)


def save_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Writes a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    imageio.imwrite(path, picture)
