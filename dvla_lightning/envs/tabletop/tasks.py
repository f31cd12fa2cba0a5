"""The five tasks: how an initial state is drawn, what ends an episode, and after how many steps it is cut off.

Step limits are two to three times the mean length of the noise-free expert: over 1,000 training states that is 7.0
(reach), 14.0 (carry), 12.2 (push), 14.1 (collect) and 19.8 (detour).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dvla_lightning.envs.base import SPLITS
from dvla_lightning.envs.tabletop.scene import (
    EDGES,
    OBJECT_RANGE,
    PAD_TOLERANCE,
    WALL_HALF_SIZE,
    Point,
    Scene,
    Thing,
    draw_colours,
    place_apart,
)
from dvla_lightning.errors import UserError

SUCCESS = "success"  # every other outcome is a failure and names its reason
EDGE_REACHED = 0.8  # push: how far towards the edge the block's centre must come
_SEED_TAG = 0x7AB1E  # keeps these states apart from other users of small seeds
# Fixed, as are the places of the tasks below: they name the scenes of every result. The four numbers of a scene's seed
# leave nothing open: the first three are small and always there.
_SPLIT_NUMBERS = {"train": 0, "heldout": 1, "selection": 2}
_CORNER_GAP = 0.075  # detour: distance from the start to the wall, along either axis
_CORNER_JITTER = 0.015
_FAR_PAD = 0.66  # detour: |x| and |y| of the pad
_FAR_PAD_JITTER = 0.06


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        build: draws an initial state.
        judge: applies the task's rule after a move (it may attach or collect a block) and returns None, or the
            outcome that ends the episode.
        step_limit: number of actions after which the episode is truncated.
    """

    build: Callable[[np.random.Generator], Scene]
    judge: Callable[[Scene], str | None]
    step_limit: int


def initial_scene(task: str, split: str, initial_state: int) -> Scene:
    """The initial state with a given number.

    Raises:
        UserError: for an unknown task or split, or a negative number.
    """
    if task not in TASKS:
        raise UserError(f"Tabletop: unknown task {task!r}; choose from: {', '.join(TASKS)}")
    if split not in SPLITS:
        raise UserError(f"Tabletop: unknown split {split!r}; choose from: {', '.join(SPLITS)}")
    if initial_state < 0:
        raise UserError(f"Tabletop: initial_state is {initial_state}; give a number from 0 up")
    entropy = (_SEED_TAG, _SPLIT_NUMBERS[split], list(TASKS).index(task), initial_state)
    return TASKS[task].build(np.random.default_rng(np.random.SeedSequence(entropy)))


def _on_pad(point: Point, pad: Thing) -> bool:
    return math.dist(point, pad.centre) <= PAD_TOLERANCE


def _things(colours: list[str], points: list[Point]) -> list[Thing]:
    return [Thing(colour, x, y) for colour, (x, y) in zip(colours, points, strict=True)]


def _build_reach(rng: np.random.Generator) -> Scene:
    (x, y), *points = place_apart(rng, 3, apart=0.4)
    blocks = _things(draw_colours(rng, 2), points)
    return Scene(x, y, f"reach the {blocks[0].colour} block", blocks)


def _judge_reach(scene: Scene) -> str | None:
    if scene.touches(scene.blocks[0]):
        return SUCCESS
    return "wrong_block" if scene.touches(scene.blocks[1]) else None


def _build_carry(rng: np.random.Generator) -> Scene:
    (x, y), *points = place_apart(rng, 5, apart=0.45)
    things = _things(draw_colours(rng, 4), points)
    blocks, pads = things[:2], things[2:]
    return Scene(x, y, f"carry the {blocks[0].colour} block to the {pads[0].colour} pad", blocks, pads)


def _judge_carry(scene: Scene) -> str | None:
    if scene.holding:
        return SUCCESS if _on_pad(scene.tool, scene.pads[0]) else None
    if scene.touches(scene.blocks[1]):
        return "wrong_block"
    scene.holding = scene.touches(scene.blocks[0])
    if scene.holding:
        scene.blocks[0].x, scene.blocks[0].y = scene.tool
    return None


def _build_push(rng: np.random.Generator) -> Scene:
    """The tool starts behind the block or beside it: it must line up, but not find its way around."""
    block_x, block_y = rng.uniform(-0.45, 0.45, size=2)
    edge, (unit_x, unit_y) = list(EDGES.items())[int(rng.integers(len(EDGES)))]
    while True:
        x, y = rng.uniform(-OBJECT_RANGE, OBJECT_RANGE, size=2)
        is_behind = (block_x - x) * unit_x + (block_y - y) * unit_y >= 0.1
        if is_behind and math.dist((x, y), (block_x, block_y)) >= 0.35:
            break
    block = Thing(draw_colours(rng, 1)[0], float(block_x), float(block_y))
    instruction = f"push the {block.colour} block to the {edge} edge"
    return Scene(float(x), float(y), instruction, [block], goal_edge=(unit_x, unit_y), solid_blocks=True)


def _judge_push(scene: Scene) -> str | None:
    block = scene.blocks[0]
    reached = block.x * scene.goal_edge[0] + block.y * scene.goal_edge[1] >= EDGE_REACHED
    return SUCCESS if reached else None


def _build_collect(rng: np.random.Generator) -> Scene:
    (x, y), *points = place_apart(rng, 3, apart=0.5)
    blocks = _things(draw_colours(rng, 2), points)
    first, second = blocks
    return Scene(x, y, f"collect the {first.colour} block, then the {second.colour} block", blocks)


def _judge_collect(scene: Scene) -> str | None:
    if scene.touches(scene.blocks[scene.collected]):
        scene.collected += 1
        return SUCCESS if scene.collected == len(scene.blocks) else None
    return "wrong_block" if any(map(scene.touches, scene.blocks[scene.collected :])) else None


def _build_detour(rng: np.random.Generator) -> Scene:
    """The start is so near the wall's corner that about one step along both axes, in any order, hits the wall."""
    sign_x, sign_y = rng.choice((-1.0, 1.0), size=2)
    gap_x, gap_y = _CORNER_GAP + rng.uniform(-_CORNER_JITTER, _CORNER_JITTER, size=2)
    far_x, far_y = _FAR_PAD + rng.uniform(-_FAR_PAD_JITTER, _FAR_PAD_JITTER, size=2)
    pad = Thing(draw_colours(rng, 1)[0], float(-sign_x * far_x), float(-sign_y * far_y))
    x, y = float(sign_x * (WALL_HALF_SIZE + gap_x)), float(sign_y * (WALL_HALF_SIZE + gap_y))
    return Scene(x, y, f"go around the wall to the {pad.colour} pad", pads=[pad], has_wall=True)


def _judge_detour(scene: Scene) -> str | None:
    if scene.hits_wall():
        return "wall"
    return SUCCESS if _on_pad(scene.tool, scene.pads[0]) else None


TASKS = {
    "reach": Task(_build_reach, _judge_reach, step_limit=20),
    "carry": Task(_build_carry, _judge_carry, step_limit=36),
    "push": Task(_build_push, _judge_push, step_limit=42),
    "collect": Task(_build_collect, _judge_collect, step_limit=32),
    "detour": Task(_build_detour, _judge_detour, step_limit=42),
}
