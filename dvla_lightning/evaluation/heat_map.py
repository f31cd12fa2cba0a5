"""The commit order as a picture: which actions and dimensions of a chunk the policy decides first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dvla_lightning.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def commit_order_figure(commit_order: Mapping[int, Tensor], chunk_size: int, action_dim: int, title: str) -> Figure:
    """One panel per K: chunk_size rows (time runs down) x action_dim columns, all on one colour scale from 0 to 1.

    Inside a denoising step the order is that of decreasing selection score; with K = 1 it is nothing else.

    Args:
        commit_order: K -> (L,) mean place of each action-token position in the order of commits, 0 (first) to 1 (last);
            L = chunk_size * action_dim, the dimensions of one action side by side. Not empty.
        chunk_size: actions in a chunk.
        action_dim: numbers in an action.
        title: above all panels.

    Returns:
        A figure that pyplot knows nothing about: it needs no display and no closing.
    """
    from matplotlib.figure import Figure  # slow to import
    from matplotlib.ticker import MaxNLocator

    width = max(1.6, 0.36 * action_dim)  # inches of a panel
    height = min(8.0, max(2.2, 0.3 * chunk_size))
    figure = Figure(figsize=(1.8 + len(commit_order) * (width + 0.6), height + 1.2), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(commit_order), squeeze=False, sharex=True, sharey=True)[0]
    for panel, num_steps in zip(panels, sorted(commit_order), strict=True):
        places = commit_order[num_steps].reshape(chunk_size, action_dim).numpy()
        image = panel.imshow(places, vmin=0, vmax=1, aspect="auto")
        if chunk_size <= 16:  # means lie close together: read them off where there is room, white on dark colours
            for (row, column), place in np.ndenumerate(places):
                colour = "white" if place < 0.6 else "black"
                panel.text(column, row, f"{place:.2f}", color=colour, ha="center", va="center", fontsize="x-small")
        panel.set_title(f"K = {num_steps}")
        panel.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        panel.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    figure.supxlabel("action dimension", fontsize="medium")
    panels[0].set_ylabel("action in the chunk")
    bar = figure.colorbar(image, ax=list(panels), label="mean place in the order of commits")
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["first", "0.25", "0.5", "0.75", "last"])
    figure.suptitle(title, fontsize="medium")
    return figure


def save_figure(path: Path, figure: Figure) -> NDArray[np.uint8]:
    """Writes a PNG file, which appears whole or not at all.

    Returns:
        (H, W, 3) uint8, what was written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # matplotlib has no types for what follows
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    with whole_file(path) as partial:
        Image.fromarray(picture).save(partial, format="png")
    return picture
