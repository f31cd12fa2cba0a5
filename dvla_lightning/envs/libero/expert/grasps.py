"""Ways to grasp an object from above, the most promising first."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dvla_lightning.envs.libero.geometry import Scene

Vector = NDArray[np.float64]

RIM_NAMES = ("bowl", "ramekin", "mug", "plate")  # held at the rim, one finger inside

EASY_REACH = 0.7  # m from the robot's base; farther out the arm gets slow and inexact (measured on libero_spatial)

# The Panda's hand, as a box above the fingertips: half of its length along the fingers, of its width and of its height,
# and the height of its centre, m. It holds the model's collision mesh of the hand and, above it, room for the wrist.
HAND_HALF = np.array([0.104, 0.032, 0.08])
HAND_HEIGHT = 0.115

MAX_WIDTH = 0.074  # m; the Panda's fingers open 80 mm

MISFIT = 10.0  # added to the score of what does not fit between the fingers


@dataclass(frozen=True)
class Grasp:
    """A pose of the hand.

    Attributes:
        position: of the point between the fingertips, (3,) in metres.
        yaw: turn about the vertical, rad, relative to the hand at the start (fingers along y).
        score: lower is better.
    """

    position: Vector
    yaw: float
    score: float


def grasps(scene: Scene, name: str, shift: Vector) -> list[Grasp]:
    """All grasp candidates of an object, best first.

    Args:
        scene: where things are.
        name: the object.
        shift: from where the object is to where it is going, (3,) m; there has to be room for the hand, too.
    """
    make = rim_grasps if any(word in name for word in RIM_NAMES) else across_grasps
    boxes = scene.boxes(ignored=[name])
    candidates = []
    for grasp in make(scene, name):
        room = hand_room(boxes, grasp.position, grasp.yaw)
        crowding = _crowding(room) + _crowding(hand_room(boxes, grasp.position + shift, grasp.yaw))
        candidates.append(replace(grasp, score=grasp.score - 20.0 * min(max(room, 0.0), 0.03) + crowding))
    return _distinct(sorted(candidates, key=lambda grasp: grasp.score))


def _distinct(candidates: list[Grasp]) -> list[Grasp]:
    """Leaves out grasps that nearly equal a better one: another attempt should differ."""
    kept: list[Grasp] = []
    for grasp in candidates:
        if all(
            np.linalg.norm(grasp.position - other.position) > 0.015 or abs(grasp.yaw - other.yaw) > np.deg2rad(25.0)
            for other in kept
        ):
            kept.append(grasp)
    return kept


def rim_grasps(scene: Scene, name: str) -> list[Grasp]:
    """Fingers astride the wall of a round vessel, at 24 places of its rim, straight, or slanting as a second choice.

    The rim is looked for in the vessel's own frame: on a ramekin a bowl stands tilted.
    """
    root, rotation = scene.root(name), scene.rotation(name)
    points = (scene.points(name) - root) @ rotation
    top, bottom = points[:, 2].max(), points[:, 2].min()
    rim = points[points[:, 2] > top - 0.015]
    low, high = rim[:, :2].min(0), rim[:, :2].max(0)
    centre, radius = (low + high) / 2, float((high - low).mean()) / 2
    height = max(top - 0.014, bottom + 0.005)
    own_yaw = np.arctan2(rotation[1, 0], rotation[0, 0])
    candidates = []
    for angle in np.deg2rad(np.arange(-165.0, 181.0, 15.0)):
        outward = np.array([np.cos(angle - own_yaw), np.sin(angle - own_yaw)])
        position = root + rotation @ np.append(centre + (radius - 0.004) * outward, height)
        outer = root + rotation @ np.append(centre + (radius + 0.03) * outward, height)
        finger = scene.clearances(outer[None], name).min()
        for slant in np.deg2rad([0.0, -30.0, 30.0, -45.0, 45.0]):
            yaw = _wrap_half_turn(angle - np.pi / 2 + slant)  # the two fingers are alike
            score = -20.0 * min(finger, 0.05) + 0.25 * abs(yaw) + 0.8 * abs(slant)
            score += 5.0 * max(scene.reach(position) - EASY_REACH, 0.0)
            candidates.append(Grasp(position, yaw, score))
    return candidates


def hand_room(boxes: tuple[Vector, Vector], position: Vector, yaw: float) -> float:
    """Gap between the hand and the nearest box, m; how deep it would be inside, where it is negative.

    The hand points down; two boxes are apart if they are along some axis of one of them.

    Args:
        boxes: lower and upper corners of what is around, (G, 3) each.
        position: of the point between the fingertips, (3,).
        yaw: of the hand, rad.
    """
    low_G3, high_G3 = boxes
    if not len(low_G3):
        return np.inf
    centre_G3, half_G3 = (low_G3 + high_G3) / 2, (high_G3 - low_G3) / 2
    axes_A3 = np.array([[-np.sin(yaw), np.cos(yaw), 0.0], [np.cos(yaw), np.sin(yaw), 0.0], *np.eye(3)])
    own_A = np.abs(axes_A3 @ axes_A3[[0, 1, 4]].T) @ HAND_HALF
    middle = position + np.array([0.0, 0.0, HAND_HEIGHT])
    gap_GA = np.abs((centre_G3 - middle) @ axes_A3.T) - half_G3 @ np.abs(axes_A3.T) - own_A
    return float(gap_GA.max(axis=1).min())


def _crowding(room: float) -> float:
    """The cost to the score if the hand does not fit: more, the more of it is in the way."""
    return 0.0 if room >= 0.005 else 0.3 + 60.0 * (0.005 - room)


def across_grasps(scene: Scene, name: str) -> list[Grasp]:
    """Fingers on both sides of an object, at 12 angles; off its middle only where it is too wide there (a pan)."""
    points = scene.points(name)
    low, high = points.min(0), points.max(0)
    height = high[2] - low[2]
    z = max(high[2] - 0.035 if height > 0.05 else low[2] + height / 2, low[2] + 0.01)
    middle, axis = np.append((low[:2] + high[:2]) / 2, z), int(np.argmax((high - low)[:2]))
    candidates: list[Grasp] = []
    for along in (0.0, 0.5, -0.5, 0.7, -0.7, 0.9, -0.9):
        position = middle + along * (high - low)[axis] / 2 * np.eye(3)[axis]
        candidates += _grasps_at(scene, name, position, 4.0 * abs(along))
        if any(grasp.score < MISFIT for grasp in candidates):
            break
    return candidates


def _grasps_at(scene: Scene, name: str, position: Vector, penalty: float) -> list[Grasp]:
    """Grasps at a point inside an object, one per angle, centred between what the fingers will touch."""
    candidates = []
    for yaw in np.deg2rad(np.arange(-75.0, 91.0, 15.0)):
        fingers, narrow = np.array([-np.sin(yaw), np.cos(yaw), 0.0]), np.array([np.cos(yaw), np.sin(yaw), 0.0])
        lines = np.array([position + a * narrow + [0.0, 0.0, up] for a in (-0.01, 0.0, 0.01) for up in (-0.006, 0.006)])
        extent = scene.extent(name, lines, fingers)
        if extent is None:
            continue
        width = extent[1] - extent[0]
        score = 60.0 * width + 0.3 * abs(yaw) + penalty + (MISFIT if width > MAX_WIDTH else 0.0)
        candidates.append(Grasp(position + sum(extent) / 2 * fingers, float(yaw), score))
    return candidates


def _wrap_half_turn(angle: float) -> float:
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)
