"""Ways to grasp an object from above, the most promising first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dvla_lightning.envs.libero.geometry import Scene

RIM_NAMES = ("bowl", "ramekin", "mug", "plate")  # held at the rim, one finger inside

EASY_REACH = 0.7  # m from the robot's base; farther out the arm gets slow and inexact (measured on libero_spatial)

MAX_WIDTH = 0.076  # m; the Panda's fingers open 80 mm


@dataclass(frozen=True)
class Grasp:
    """A pose of the hand.

    Attributes:
        position: of the point between the fingertips, (3,) in metres.
        yaw: turn about the vertical, rad, relative to the hand at the start (fingers along y).
        score: lower is better.
    """

    position: NDArray[np.float64]
    yaw: float
    score: float


def grasps(scene: Scene, name: str) -> list[Grasp]:
    """All grasp candidates of an object, best first."""
    make = rim_grasps if any(word in name for word in RIM_NAMES) else across_grasps
    return sorted(make(scene, name), key=lambda grasp: grasp.score)


def rim_grasps(scene: Scene, name: str) -> list[Grasp]:
    """Fingers astride the wall of a round vessel, at 12 places of its rim.

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
    for angle in np.deg2rad(np.arange(-150.0, 181.0, 30.0)):
        outward = np.array([np.cos(angle - own_yaw), np.sin(angle - own_yaw)])
        position = root + rotation @ np.append(centre + (radius - 0.004) * outward, height)
        outer = root + rotation @ np.append(centre + (radius + 0.03) * outward, height)
        yaw = _wrap_half_turn(angle - np.pi / 2)  # the two fingers are alike
        finger, hand = scene.clearance(outer[None], name), _hand_clearance(scene, name, position, yaw)
        score = -20.0 * (min(finger, 0.05) + min(hand, 0.03)) + 0.25 * abs(yaw)
        score += 1.0 if hand < 0.005 else 0.0
        score += 5.0 * max(scene.reach(position) - EASY_REACH, 0.0)
        candidates.append(Grasp(position, yaw, score))
    return candidates


def _hand_clearance(scene: Scene, name: str, position: NDArray[np.float64], yaw: float) -> float:
    """Distance from the hand to the nearest other thing, m; the Panda's hand is 204 mm wide along its fingers."""
    finger_axis = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
    offsets = [side * finger_axis + [0.0, 0.0, up] for side in (-0.1, 0.1) for up in (0.045, 0.1, 0.15, 0.2)]
    return scene.clearance(position + np.array(offsets), name)


def across_grasps(scene: Scene, name: str) -> list[Grasp]:
    """Fingers on both sides of an object, at 12 angles."""
    points = scene.points(name)
    low, high = points.min(0), points.max(0)
    height = high[2] - low[2]
    z = max(high[2] - 0.035 if height > 0.05 else low[2] + height / 2, low[2] + 0.01)
    position = np.append((low[:2] + high[:2]) / 2, z)
    candidates = []
    for yaw in np.deg2rad(np.arange(-75.0, 91.0, 15.0)):
        finger_axis = np.array([-np.sin(yaw), np.cos(yaw)])
        width = float(np.ptp(points[:, :2] @ finger_axis))
        score = 60.0 * width + 0.3 * abs(yaw) + (10.0 if width > MAX_WIDTH else 0.0)
        candidates.append(Grasp(position, float(yaw), score))
    return candidates


def _wrap_half_turn(angle: float) -> float:
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)
