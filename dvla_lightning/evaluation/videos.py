"""Episodes as MP4 files, through PyAV (which brings FFmpeg along)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from dvla_lightning.errors import UserError
from dvla_lightning.files import whole_file
from dvla_lightning.rollout.episode import Episode

# One picture per decision. At 20 control steps per second and 8 actions per decision that is twice real time.
FRAMES_PER_SECOND = 5

INSTALL_AV = "pip install 'dvla-lightning[video]'"


def require_av() -> None:
    """Raises `UserError` if videos cannot be written here."""
    if importlib.util.find_spec("av") is None:
        raise UserError(f"videos need the package av, which is not installed: {INSTALL_AV}")


def save_video(folder: Path, episode: Episode) -> Path:
    """Writes <task>-<initial state>-<success or failure>.mp4 (H.264), which appears whole or not at all.

    Args:
        folder: where to; created.
        episode: run with `pictures`, all of one size.

    Returns:
        The file.
    """
    import av
    import numpy as np

    outcome = "success" if episode.success else "failure"
    path = folder / f"{episode.spec.task}-{episode.spec.initial_state}-{outcome}.mp4"
    pictures = episode.pictures
    height, width = (size - size % 2 for size in pictures[0].shape[:2])  # H.264 halves the resolution of colours
    with whole_file(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
