"""Drawers, doors and knobs: one joint and what moves with it."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from dvla_lightning.envs.libero.geometry import Scene, about

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

TESTS = {"open": "is_open", "close": "is_close", "turnon": "turn_on", "turnoff": "turn_off"}  # LIBERO's methods


class Part:
    """The part of a piece of furniture that a goal names.

    Args:
        scene: where things are.
        name: of a drawer's region, or of furniture with one joint.

    Attributes:
        hinged: whether it turns; else it slides.
    """

    def __init__(self, scene: Scene, name: str) -> None:
        site = scene.domain.object_sites_dict.get(name)
        self._scene, self._owner = scene, scene.domain.get_object(site.parent_name if site else name)
        self._joint = scene.domain.sim.model.joint_name2id(joint_names(scene.domain, name)[0])
        self.hinged = bool(scene.model.jnt_type[self._joint] == mujoco.mjtJoint.mjJNT_HINGE)

    @property
    def position(self) -> float:
        """Position of the joint, m or rad."""
        return float(self._scene.data.qpos[self._scene.model.jnt_qposadr[self._joint]])

    @property
    def anchor(self) -> Vector:
        """A point on the joint's axis, (3,)."""
        return self._scene.data.xanchor[self._joint].copy()

    def shapes(self) -> list[Vector]:
        """Corner points (N, 3) of each of its collision shapes."""
        return self._scene.shapes(self._scene.model.jnt_bodyid[self._joint])

    def position_for(self, predicate: str) -> float:
        """A joint position at which a predicate holds: a quarter into the interval, coming from where it is now."""
        holds = getattr(self._owner, TESTS[predicate])
        low, high = self._scene.model.jnt_range[self._joint]
        values = np.linspace(low, high, 4001)  # turnoff: 5 mrad of 2.1 rad
        good = values[[bool(holds(value)) for value in values]]
        distances = np.abs(good - self.position)
        nearest, farthest = good[distances.argmin()], good[distances.argmax()]
        return float(nearest + (farthest - nearest) / 4)

    def carry(self, point: Vector, by: float) -> Vector:
        """Place that a point fixed to the part reaches when the joint moves, (3,)."""
        axis = self._scene.data.xaxis[self._joint]
        if not self.hinged:
            return point + by * axis
        return self.anchor + about(axis, by) @ (point - self.anchor)

    def turn(self, rotation: Matrix, by: float) -> Matrix:
        """Orientation that something fixed to the part has after the joint moves, (3, 3)."""
        return about(self._scene.data.xaxis[self._joint], by) @ rotation if self.hinged else rotation

    def heading(self, point: Vector, by: float) -> Vector:
        """Direction in which a point of the part sets out when the joint moves by something of this sign, (3,)."""
        away = self.carry(point, np.sign(by) * 1e-3) - point
        return away / np.linalg.norm(away)


def joint_names(domain: Any, name: str) -> list[str]:
    """Joints of a region's drawer, or else of the furniture itself; none for what does not open."""
    return list(getattr(domain.object_sites_dict.get(name) or domain.get_object(name), "joints", None) or [])
