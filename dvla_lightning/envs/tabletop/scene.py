"""The objects on the table and their motion: the state, its sizes, and contact; no task rules and no pictures.

Lengths are in table units: the table is the square [-1, 1] x [-1, 1], x to the right and y up in the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Point = tuple[float, float]

VERSION = 1  # to be raised whenever the same (task, split, initial_state) or the same action gives something else
MAX_STEP = 0.12  # how far an action of 1.0 moves the tool along its axis
TOOL_RADIUS = 0.05
BLOCK_RADIUS = 0.10
PAD_HALF_SIZE = 0.14
WALL_HALF_SIZE = 0.45
TOUCH_DISTANCE = BLOCK_RADIUS  # the tool touches a block when the tool's centre is over it
PAD_TOLERANCE = 0.12  # something is on a pad when its centre is this near the pad's centre
OBJECT_RANGE = 0.80  # coordinates of blocks and pads: leaves room to pass between an object and the table's edge
EDGES = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "top": (0.0, 1.0), "bottom": (0.0, -1.0)}  # name -> direction
COLOURS = ("red", "green", "blue", "yellow")
_CONTACT_SUBSTEPS = 4  # 0.12 / 4 is far less than a block's radius, so contact turns a block smoothly


@dataclass
class Thing:
    """A coloured block or pad; `x`, `y` is its centre."""

    colour: str
    x: float
    y: float

    @property
    def centre(self) -> Point:
        return self.x, self.y


@dataclass
class Scene:
    """The whole state of an episode. The thing the instruction names first is always number 0 of its list.

    Attributes:
        x, y: centre of the tool.
        instruction: what to do, one sentence.
        blocks: all blocks; the first `collected` of them have been taken off the table.
        pads: all pads.
        goal_edge: direction in which block 0 must be pushed; (0, 0) in other tasks.
        has_wall: whether the square wall stands in the middle of the table.
        solid_blocks: whether the tool pushes blocks instead of moving over them.
        holding: whether block 0 sticks to the tool.
        collected: how many blocks have been collected.
    """

    x: float
    y: float
    instruction: str
    blocks: list[Thing] = field(default_factory=list)
    pads: list[Thing] = field(default_factory=list)
    goal_edge: Point = (0.0, 0.0)
    has_wall: bool = False
    solid_blocks: bool = False
    holding: bool = False
    collected: int = 0

    @property
    def tool(self) -> Point:
        return self.x, self.y

    def touches(self, block: Thing) -> bool:
        """Whether the tool is over a block."""
        return math.dist(self.tool, block.centre) <= TOUCH_DISTANCE

    def hits_wall(self) -> bool:
        """Whether the tool's centre is inside the wall."""
        return self.has_wall and max(abs(self.x), abs(self.y)) < WALL_HALF_SIZE


def move_tool(scene: Scene, action_x: float, action_y: float) -> None:
    """Moves the tool, and what it holds or pushes, by one action (components in [-1, 1]); changes `scene`."""
    parts = _CONTACT_SUBSTEPS if scene.solid_blocks else 1
    for _ in range(parts):
        before = scene.tool
        scene.x = min(max(scene.x + action_x * MAX_STEP / parts, -1.0), 1.0)
        scene.y = min(max(scene.y + action_y * MAX_STEP / parts, -1.0), 1.0)
        if scene.solid_blocks:
            for block in scene.blocks:
                _push(scene, block, before)
    if scene.holding:
        scene.blocks[0].x, scene.blocks[0].y = scene.tool


def _push(scene: Scene, block: Thing, before: Point) -> None:
    """A rough tool: a block in its way goes along with its motion; what overlap is left moves it along the normal."""
    if math.dist(scene.tool, block.centre) >= BLOCK_RADIUS + TOOL_RADIUS:
        return
    move_x, move_y = scene.x - before[0], scene.y - before[1]
    if (block.x - before[0]) * move_x + (block.y - before[1]) * move_y > 0.0:
        block.x, block.y = block.x + move_x, block.y + move_y
    dx, dy = block.x - scene.x, block.y - scene.y
    distance = math.hypot(dx, dy)
    if 0.0 < distance < BLOCK_RADIUS + TOOL_RADIUS:
        scale = (BLOCK_RADIUS + TOOL_RADIUS) / distance
        block.x, block.y = scene.x + dx * scale, scene.y + dy * scale
    room = 1.0 - BLOCK_RADIUS  # the table has a rim
    block.x, block.y = min(max(block.x, -room), room), min(max(block.y, -room), room)


def place_apart(rng: np.random.Generator, count: int, apart: float) -> list[Point]:
    """Draws positions that keep their distance from each other, uniformly over the table's inner part.

    Args:
        rng: where the numbers come from.
        count: how many positions; together they must cover less than about half of the table.
        apart: least distance between any two.
    """
    while True:
        points = [(float(x), float(y)) for x, y in rng.uniform(-OBJECT_RANGE, OBJECT_RANGE, size=(count, 2))]
        if least_distance(points) >= apart:
            return points


def least_distance(points: Sequence[Point]) -> float:
    """Least distance between any two of the points."""
    return min(math.dist(a, b) for i, a in enumerate(points) for b in points[:i])


def draw_colours(rng: np.random.Generator, count: int) -> list[str]:
    """Draws different colours."""
    return [COLOURS[i] for i in rng.permutation(len(COLOURS))[:count]]
