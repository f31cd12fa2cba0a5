"""Where things are in a LIBERO scene: collision shapes as points and boxes, in world coordinates (metres)."""

from __future__ import annotations

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
        self._geoms_of: dict[str, list[int]] = {}

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

    def clearance(self, points_P3: NDArray[np.float64], ignored: str) -> float:
        """Smallest distance from any of the points to another object's or furniture's collision boxes, m.

        Args:
            points_P3: (P, 3).
            ignored: the object that does not count.
        """
        others = [name for name in self.domain.obj_body_id if name != ignored]
        geoms = np.array([geom for name in others for geom in self._geoms(name)], int)
        if not len(geoms):
            return np.inf
        rotation_G33 = self.data.geom_xmat[geoms].reshape(-1, 3, 3)
        local_PG3 = np.einsum("gij,pgi->pgj", rotation_G33, points_P3[:, None] - self.data.geom_xpos[geoms])
        centre_G3, half_G3 = self.model.geom_aabb[geoms, :3], self.model.geom_aabb[geoms, 3:]
        outside_PG3 = np.maximum(np.abs(local_PG3 - centre_G3) - half_G3, 0.0)
        return float(np.linalg.norm(outside_PG3, axis=-1).min())

    def _geoms(self, name: str) -> list[int]:
        """Ids of the collision geoms of all bodies below an object's root."""
        if name in self._geoms_of:
            return self._geoms_of[name]
        body = self.domain.obj_body_id[name]
        below = {body}
        for child in range(body + 1, self.model.nbody):  # MuJoCo numbers parents before children
            if self.model.body_parentid[child] in below:
                below.add(child)
        self._geoms_of[name] = [
            geom
            for geom in range(self.model.ngeom)
            if self.model.geom_bodyid[geom] in below and self.model.geom_group[geom] == COLLISION_GROUP
        ]
        return self._geoms_of[name]

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
