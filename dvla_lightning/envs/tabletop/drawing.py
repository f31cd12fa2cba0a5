"""Pictures of the table: anti-aliased shapes, each blended into the small patch of pixels that it covers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dvla_lightning.envs.tabletop.scene import (
    BLOCK_RADIUS,
    PAD_HALF_SIZE,
    TOOL_RADIUS,
    WALL_HALF_SIZE,
    Point,
    Scene,
)

MIN_IMAGE_SIZE = 16  # below this a block is smaller than two pixels

_RGB = {
    "red": (228.0, 52.0, 48.0),
    "green": (52.0, 188.0, 84.0),
    "blue": (64.0, 120.0, 250.0),
    "yellow": (246.0, 208.0, 52.0),
}
_TABLE = (84.0, 80.0, 78.0)
_WALL = (14.0, 14.0, 18.0)
_TOOL = (255.0, 255.0, 255.0)
_TRAIL = (190.0, 190.0, 190.0)
_SOLVED = (52.0, 188.0, 84.0)
_FAILED = (228.0, 52.0, 48.0)


class Shape(NamedTuple):
    """A disc or square, filled or only its outline.

    Attributes:
        x, y: centre, in table units.
        radius: radius or half side, in table units; outlines are centred on it.
        rgb: colour, 0 to 255.
        is_square: a square instead of a disc.
        outline: width of the outline in table units; 0 fills the shape.
    """

    x: float
    y: float
    radius: float
    rgb: tuple[float, float, float]
    is_square: bool = False
    outline: float = 0.0


def blend(canvas: NDArray[np.float32], shape: Shape) -> None:
    """Draws a shape into a (size, size, 3) float32 picture, in place.

    A pixel's opacity is its coverage, taken from the signed distance between its centre and the shape's edge.
    """
    size = canvas.shape[0]
    scale = 0.5 * size  # pixels per table unit
    column, row = (shape.x + 1.0) * scale - 0.5, (1.0 - shape.y) * scale - 0.5
    radius, outline = shape.radius * scale, shape.outline * scale
    reach = radius + 0.5 * outline + 0.5
    left, top = max(0, int(column - reach)), max(0, int(row - reach))
    right, bottom = min(size, int(column + reach) + 2), min(size, int(row + reach) + 2)
    across = np.arange(left - column, right - column - 0.5, dtype=np.float32)
    down = np.arange(top - row, bottom - row - 0.5, dtype=np.float32)[:, None]
    if shape.is_square:
        distance = np.maximum(np.abs(across), np.abs(down)) - radius
    else:
        distance = np.sqrt(across * across + down * down) - radius
    if outline:
        distance = np.abs(distance) - 0.5 * outline
    opacity = np.minimum(np.maximum(0.5 - distance, 0.0), min(1.0, outline) if outline else 1.0)[:, :, None]
    patch = canvas[top:bottom, left:right]
    patch += opacity * (np.array(shape.rgb, np.float32) - patch)


def paint_ground(scene: Scene, size: int) -> NDArray[np.float32]:
    """The part of the picture that never changes in an episode: table, pads and wall; (size, size, 3) float32."""
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = _TABLE
    for pad in scene.pads:
        blend(canvas, Shape(pad.x, pad.y, PAD_HALF_SIZE, _RGB[pad.colour], is_square=True, outline=0.06))
    if scene.has_wall:
        blend(canvas, Shape(0.0, 0.0, WALL_HALF_SIZE, _WALL, is_square=True))
    return canvas


def paint(scene: Scene, ground: NDArray[np.float32], trail: list[Point] | None = None) -> NDArray[np.uint8]:
    """The picture of a scene.

    Args:
        scene: what to draw.
        ground: its unchanging part, from `paint_ground`; not modified.
        trail: earlier positions of the tool, drawn as dots.

    Returns:
        (size, size, 3) uint8.
    """
    canvas = ground.copy()
    for x, y in trail or ():
        blend(canvas, Shape(x, y, 0.018, _TRAIL))
    for block in scene.blocks[scene.collected :]:
        blend(canvas, Shape(block.x, block.y, BLOCK_RADIUS, _RGB[block.colour]))
    if scene.holding:  # a white ring shows that the block sticks to the tool
        blend(canvas, Shape(scene.x, scene.y, BLOCK_RADIUS, _TOOL, outline=0.03))
    blend(canvas, Shape(scene.x, scene.y, TOOL_RADIUS, _TOOL))
    return canvas.astype(np.uint8)


def mark_outcome(picture: NDArray[np.uint8], is_success: bool) -> None:
    """Draws a green (solved) or red (failed) border into a picture, in place."""
    width = max(1, picture.shape[0] // 48)
    for edge in (picture[:width], picture[-width:], picture[:, :width], picture[:, -width:]):
        edge[:] = _SOLVED if is_success else _FAILED
