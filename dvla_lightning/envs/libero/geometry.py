"""The geometry of a LIBERO scene: collision shapes as points and boxes, in world coordinates (metres)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

COLLISION_GROUP = 0  # robosuite's convention: geom group 0 collides, group 1 is drawn


class Scene:
    """Reads the geometry of one robosuite environment in its present state.

    Args:
        domain: the robosuite environment (`ControlEnv.env`).
    """

    def __init__(self, domain: Any) -> None:
        self.domain = domain
        self.model = domain.sim.model._model
        self.data = domain.sim.data._data
        self._geoms_of: dict[int, list[int]] = {}

    def root(self, name: str) -> NDArray[np.float64]:
        """Position of an object's root body, (3,)."""
        return self.data.xpos[self.domain.obj_body_id[name]].copy()

    def points(self, name: str) -> NDArray[np.float64]:
        """Corner points of an object's collision shapes, (N, 3)."""
        return np.concatenate([self._geom_points(geom) for geom in self._geoms(name)])

    def reach(self, point: NDArray[np.float64]) -> float:
        """Horizontal distance of a point from the robot's base, m."""
        return float(np.linalg.norm(point[:2] - self.domain.robots[0].base_pos[:2]))

    def hand_position(self) -> NDArray[np.float64]:
        """The point between the fingertips, (3,)."""
        return self.data.site_xpos[self.domain.robots[0].eef_site_id].copy()

    def hand_rotation(self) -> NDArray[np.float64]:
        """Orientation of the hand, (3, 3)."""
        return self.data.site_xmat[self.domain.robots[0].eef_site_id].reshape(3, 3).copy()

    def site_box(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Centre (3,) and half extents along the world's axes (3,) of a region's site."""
        site = self.domain.sim.model.site_name2id(name)
        half = np.abs(self.data.site_xmat[site].reshape(3, 3)) @ self.model.site_size[site]
        return self.data.site_xpos[site].copy(), half

    def rotation(self, name: str) -> NDArray[np.float64]:
        """Orientation of an object's root body, (3, 3)."""
        return self.data.xmat[self.domain.obj_body_id[name]].reshape(3, 3).copy()

    def clearances(self, points_P3: NDArray[np.float64], ignored: str) -> NDArray[np.float64]:
        """Distance of each point from the nearest object's or furniture's collision box, (P,) m; 0 inside.

        Args:
            points_P3: (P, 3).
            ignored: the object that does not count.
        """
        others = [name for name in self.domain.obj_body_id if name != ignored]
        geoms = np.array([geom for name in others for geom in self._geoms(name)], int)
        if not len(geoms):
            return np.full(len(points_P3), np.inf)
        rotation_G33 = self.data.geom_xmat[geoms].reshape(-1, 3, 3)
        local_PG3 = np.einsum("gij,pgi->pgj", rotation_G33, points_P3[:, None] - self.data.geom_xpos[geoms])
        centre_G3, half_G3 = self.model.geom_aabb[geoms, :3], self.model.geom_aabb[geoms, 3:]
        outside_PG3 = np.maximum(np.abs(local_PG3 - centre_G3) - half_G3, 0.0)
        return np.linalg.norm(outside_PG3, axis=-1).min(axis=1)

    def highest(
        self, start: NDArray[np.float64], end: NDArray[np.float64], margin: float, ignored: Sequence[str] = ()
    ) -> float:
        """Height of the highest object or furniture near a straight way, m; -inf where there is none.

        Args:
            start: of the way; only horizontal positions count.
            end: of the way.
            margin: horizontal distance within which a thing is near, m.
            ignored: names of what does not count.
        """
        way_W12 = np.linspace(start[:2], end[:2], 20)[:, None]
        low_G3, high_G3 = self.boxes(ignored)
        away_WG2 = np.maximum(np.maximum(low_G3[:, :2] - way_W12, way_W12 - high_G3[:, :2]), 0.0)
        near_G = np.linalg.norm(away_WG2, axis=-1).min(axis=0, initial=np.inf) < margin
        return float(high_G3[near_G, 2].max(initial=-np.inf))

    def boxes(self, ignored: Sequence[str] = ()) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper corners, (G, 3) each, of all collision shapes of objects and furniture.

        Args:
            ignored: names of what does not count.
        """
        bodies = [body for name, body in self.domain.obj_body_id.items() if name not in ignored]
        shapes = [points for body in bodies for points in self.shapes(body)]
        return (
            np.array([points.min(0) for points in shapes]).reshape(-1, 3),
            np.array([points.max(0) for points in shapes]).reshape(-1, 3),
        )

    def extent(
        self, name: str, points_P3: NDArray[np.float64], direction: NDArray[np.float64]
    ) -> tuple[float, float] | None:
        """First and last place, in m along a direction from the points, where lines through them meet an object.

        Args:
            name: of the object.
            points_P3: (P, 3), one line each.
            direction: (3,), length 1.

        Returns:
            None if no line meets it.
        """
        far = 0.5  # m; farther than any object is wide
        hits = [
            (-far + from_below, far - from_above)
            for geom in self._geoms(name)
            for point in points_P3
            if (from_below := self._ray(geom, point - far * direction, direction)) >= 0.0
            and (from_above := self._ray(geom, point + far * direction, -direction)) >= 0.0
        ]
        return (min(low for low, _ in hits), max(high for _, high in hits)) if hits else None

    def _ray(self, geom: int, start: NDArray[np.float64], direction: NDArray[np.float64]) -> float:
        """Distance to a collision shape along a ray, m; -1 if it does not meet it."""
        if self.model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
            return mujoco.mj_rayMesh(self.model, self.data, geom, start, direction)
        place = self.data.geom_xpos[geom], self.data.geom_xmat[geom], self.model.geom_size[geom]
        return mujoco.mju_rayGeom(*place, start, direction, self.model.geom_type[geom])

    def shapes(self, body: int) -> list[NDArray[np.float64]]:
        """Corner points (N, 3) of each collision shape of a body, given by number, and of the bodies below it."""
        return [self._geom_points(geom) for geom in self._geoms_below(body)]

    def speed(self) -> float:
        """Speed of the fastest thing that is not the robot, m/s."""
        roots = [body for name, body in self.domain.obj_body_id.items() if name in self.domain.objects_dict]
        return float(np.abs(self.data.cvel[roots, 3:]).max(initial=0.0))

    def _geoms(self, name: str) -> list[int]:
        """Ids of the collision geoms of all bodies below an object's root."""
        return self._geoms_below(self.domain.obj_body_id[name])

    def _geoms_below(self, body: int) -> list[int]:
        if body in self._geoms_of:
            return self._geoms_of[body]
        below = {body}
        for child in range(body + 1, self.model.nbody):  # MuJoCo numbers parents before children
            if self.model.body_parentid[child] in below:
                below.add(child)
        self._geoms_of[body] = [
            geom
            for geom in range(self.model.ngeom)
            if self.model.geom_bodyid[geom] in below and self.model.geom_group[geom] == COLLISION_GROUP
        ]
        return self._geoms_of[body]

    def _geom_points(self, geom: int) -> NDArray[np.float64]:
        """A mesh's vertices or a primitive's bounding box, (N, 3)."""
        if self.model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
            mesh = self.model.geom_dataid[geom]
            first = self.model.mesh_vertadr[mesh]
            local = self.model.mesh_vert[first : first + self.model.mesh_vertnum[mesh]]
        else:
            signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
            local = self.model.geom_aabb[geom, :3] + signs * self.model.geom_aabb[geom, 3:]
        return local @ self.data.geom_xmat[geom].reshape(3, 3).T + self.data.geom_xpos[geom]


def about(axis: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """Rotation by an angle (rad) about an axis of length 1, (3, 3); Rodrigues' formula."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross


def rotation_vector(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Axis times angle (rad) of a rotation, (3,); not defined for half turns, where it is 0."""
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0],
                     rotation[1, 0] - rotation[0, 1]]) / 2  # fmt: skip
    sine, cosine = np.linalg.norm(axis), (np.trace(rotation) - 1.0) / 2.0
    return axis * (np.arctan2(sine, cosine) / sine) if sine > 1e-9 else np.zeros(3)
