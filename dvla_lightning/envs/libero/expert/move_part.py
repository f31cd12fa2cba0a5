"""The skill that opens and closes drawers and doors and turns knobs.

A part can move in one way only. So all of these are one skill: take hold of the part or touch it, then ask the hand to
be where the part's own path takes it, always a little ahead. They differ in the contact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dvla_lightning.envs.libero.expert.arm import CLOSED, OPEN, UP, Arm
from dvla_lightning.envs.libero.expert.parts import Part

Vector = NDArray[np.float64]

FINGER = 0.012  # m from the point between the fingertips to a finger's narrow side, and 1 mm of air

# How far ahead on the path the hand is asked to be: what moves drawers against a damper of 50 N s/m at 0.1 m/s.
LEAD, LEAD_ANGLE = 0.08, 0.35  # m, rad

# Degrees from the vertical. The more level the hand, the freer of the drawer above; the steeper, the freer of what
# lies on the table: the hand is 204 mm wide along its fingers.
PULL_TILTS = (72.0, 80.0, 65.0)
MAX_SLIP = 0.04  # m between the hand and its place on the part; beyond, it has lost it

PUSH_TILT = 25.0  # degrees; leans the wrist away from the furniture above the drawer


@dataclass(frozen=True)
class Contact:
    """The place and the way in which the hand meets a part.

    Attributes:
        position: of the point between the fingertips, (3,) m.
        rotation: of the hand, (3, 3): columns are finger axis, narrow side, direction in which it points.
        start: where the hand comes from and goes back to, (3,) m.
        grips: whether the fingers close on the part there, or come closed.
    """

    position: Vector
    rotation: Vector
    start: Vector
    grips: bool


def move_part(arm: Arm, part: Part, predicate: str, attempt: int) -> Iterator[Vector]:
    """Brings a part to where a predicate holds. Step limits, tolerances and gains as in `pick_place.py`."""
    goal = part.position_for(predicate)
    contact = find_contact(part, predicate, goal - part.position, attempt)
    hand, before = arm.scene.hand_position, OPEN if contact.grips else CLOSED
    arm.turn_to(contact.rotation)
    yield from arm.travel(contact.start + 0.06 * UP + arm.stray(), before, tolerance=0.03)
    yield from arm.servo(hand, contact.start, before, tolerance=0.015, max_steps=50, gain=12.0)
    yield from arm.servo(hand, contact.position, before, tolerance=0.007, max_steps=40, gain=12.0, max_speed=0.7)
    yield from arm.stay(CLOSED, 8 if contact.grips else 0)
    yield from _follow(arm, part, goal)
    if contact.grips:
        yield from arm.stay(OPEN, 6)
    back = hand() + contact.start - contact.position
    yield from arm.servo(hand, back, OPEN, tolerance=0.04, max_steps=30, gain=12.0)
    arm.face()


def _follow(arm: Arm, part: Part, goal: float) -> Iterator[Vector]:
    """Leads the part along its path until the joint is at the goal."""
    begin, place, rotation = part.position, arm.scene.hand_position(), arm.rotation
    sign = np.sign(goal - begin)
    lead = sign * (LEAD_ANGLE if part.hinged else LEAD)

    def ahead() -> Vector:
        by = part.position - begin + lead
        arm.rotation = part.turn(rotation, by)
        return part.carry(place, by)

    def over() -> bool:
        arrived = sign * (part.position - goal) >= 0.0
        slipped = np.linalg.norm(part.carry(place, part.position - begin) - arm.scene.hand_position()) > MAX_SLIP
        return bool(arrived or slipped)

    yield from arm.servo(
        arm.scene.hand_position, ahead, CLOSED, tolerance=0.0, max_steps=120, gain=10.0, until=over, patience=120
    )


def find_contact(part: Part, predicate: str, by: float, attempt: int) -> Contact:
    """The contact for a motion of the joint by `by`."""
    if predicate in ("turnon", "turnoff"):
        return pinch_knob(part)
    if predicate == "open":
        return grip_handle(part, by, PULL_TILTS[attempt % len(PULL_TILTS)])
    return push_door(part, by) if part.hinged else push_drawer(part, by)


def pinch_knob(part: Part) -> Contact:
    """From above across the knob's ridge, over the axis of its joint."""
    points = np.concatenate(part.shapes())
    top = points[:, 2].max()
    ridge = points[points[:, 2] > top - 0.025, :2]
    angles = np.deg2rad(np.arange(0.0, 180.0, 5.0))
    axes = np.stack([np.cos(angles), np.sin(angles)], 1)
    narrow = axes[np.ptp(ridge @ axes.T, axis=0).argmin()]
    middle = part.anchor[:2] + ((ridge - part.anchor[:2]) @ narrow).mean() * narrow
    position = np.append(middle, top - 0.02)
    return Contact(position, _hand(np.append(narrow, 0.0), -UP), position + 0.06 * UP, grips=True)


def grip_handle(part: Part, by: float, tilt: float) -> Contact:
    """Fingers on both sides of the bar that sticks out farthest; from above if it stands, else slanting."""
    bar, outward = _foremost(part, by)
    centre = bar.mean(0)
    if abs(_long_axis(bar)[2]) > 0.7:
        position = np.append(centre[:2], bar[:, 2].max() - 0.012)
        return Contact(position, _hand(np.cross(UP, outward), -UP), position + 0.08 * UP, grips=True)
    cos, sin = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
    pointing = -cos * UP - sin * outward
    # Not quite to the middle of the bar: the fingertips reach 9 mm farther, and behind the bar are 16 mm of air.
    position = centre - 0.006 * pointing
    return Contact(position, _hand(sin * UP - cos * outward, pointing), position - 0.08 * pointing, grips=True)


def push_drawer(part: Part, by: float) -> Contact:
    """Closed fingers, side by side along the handle, against its front."""
    handle, outward = _foremost(part, -by)
    cos, sin = np.cos(np.deg2rad(PUSH_TILT)), np.sin(np.deg2rad(PUSH_TILT))
    centre = handle.mean(0)
    front = ((handle - centre) @ outward).max()
    position = centre + (front + FINGER / cos) * outward
    rotation = _hand(np.cross(UP, outward), -cos * UP - sin * outward)
    return Contact(position, rotation, position + 0.04 * outward, grips=False)


def push_door(part: Part, by: float) -> Contact:
    """Closed fingers from above against the panel, 60 % of the way from the hinge to its end, near its upper edge."""
    panel = max(part.shapes(), key=lambda shape: np.prod(np.ptp(shape, axis=0)))
    along = (panel.mean(0) - part.anchor) * (1.0 - UP)
    along /= np.linalg.norm(along)
    reach = ((panel - part.anchor) @ along).max()
    spot = np.append((part.anchor + 0.6 * reach * along)[:2], panel[:, 2].max() - 0.02)
    inward = part.heading(spot, by)
    position = spot + (((panel - spot) @ inward).min() - FINGER) * inward
    return Contact(position, _hand(along, -UP), position - 0.05 * inward, grips=False)


def _foremost(part: Part, by: float) -> tuple[Vector, Vector]:
    """Corner points of the shape that is foremost when the joint moves, and the direction in which it moves."""
    shapes = part.shapes()
    heading = part.heading(np.concatenate(shapes).mean(0), by)
    return max(shapes, key=lambda shape: shape.mean(0) @ heading), heading


def _long_axis(points: Vector) -> Vector:
    return np.linalg.svd(points - points.mean(0))[2][0]


def _hand(fingers: Vector, pointing: Vector) -> Vector:
    return np.stack([fingers, np.cross(pointing, fingers), pointing], axis=1)
