"""The place at which the gripper lets go of an object."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dvla_lightning.envs.libero.expert.parts import Part, joint_names
from dvla_lightning.envs.libero.geometry import Scene

Vector = NDArray[np.float64]

AIR = 0.008  # m around an object that is to be kept free

DRAWER_FRONT = 0.012  # m from the middle of an open drawer to its front, because the rear stays inside the furniture

ROOM = 0.04  # m; lower than the roofs of microwave and shelf, higher than the plate above a burner's region

INSIDE = "contain"  # in the names of regions that are the inside of a basket, tray or caddy


def place(scene: Scene, source: str, target: str, sharing: list[str]) -> Vector:
    """Position of the object's root, (3,) m.

    Args:
        scene: where things are.
        source: the object.
        target: the object or region that it goes to.
        sharing: all objects that go to this target, in a fixed order; they lie side by side.
    """
    if target in scene.domain.object_sites_dict:
        centre, half = scene.site_box(target)
        # Into a basket it is dropped, from 60 mm above its bottom.
        underside = centre[2] - half[2] + (0.06 if INSIDE in target else 0.012)
        centre[:2] += _offset(scene, sharing, half[:2])[sharing.index(source)]
        if joint_names(scene.domain, target):
            centre += DRAWER_FRONT * _outward(scene, target, centre)
    else:
        centre = scene.root(target)
        underside = scene.points(target)[:, 2].min() + 0.02 if "bowl" in target else centre[2] + 0.012
    return np.append(centre[:2], underside + root_height(scene, source))


def carry_height(scene: Scene, source: str, goal: Vector) -> float:
    """Height of the object's root on the way to its place: above everything on the way, and above both ends."""
    start = scene.root(source)
    highest = scene.highest(start, goal, margin=0.08, ignored=[source])
    return max(highest + root_height(scene, source) + 0.04, start[2] + 0.1, goal[2] + 0.06)


def root_height(scene: Scene, name: str) -> float:
    """Height of an object's root above its underside, m."""
    return float(scene.root(name)[2] - scene.points(name)[:, 2].min())


def covered(scene: Scene, region: str) -> bool:
    """Whether a region that does not move has a roof, so that nothing can be put there from above."""
    site = scene.domain.object_sites_dict.get(region)
    if site is None or site.parent_name not in scene.domain.fixtures_dict:
        return False
    centre, _ = scene.site_box(region)
    shapes = scene.shapes(scene.domain.obj_body_id[site.parent_name])
    return any(
        (points[:, :2].min(0) < centre[:2]).all()
        and (points[:, :2].max(0) > centre[:2]).all()
        and points[:, 2].min() > centre[2] + ROOM
        for points in shapes
    )


def way_out(scene: Scene, source: str) -> Vector:
    """Horizontal shift, (3,) m, after which nothing hangs over an object any more, such as an open drawer.

    The shortest along an axis that leads into no furniture, and if possible into no other object; zero if there is
    none, or nothing to get away from.
    """
    points = scene.points(source)
    low, high = points.min(0) - AIR, points.max(0) + AIR
    furniture = scene.boxes(ignored=list(scene.domain.objects_dict))

    def meets(boxes: tuple[Vector, Vector], shift: Vector) -> NDArray[np.bool_]:
        start, end = np.minimum(low, low + shift), np.maximum(high, high + shift)
        return ((boxes[0] < end) & (boxes[1] > start))[:, :2].all(1)

    def bumps(boxes: tuple[Vector, Vector], shift: Vector) -> bool:
        beside = (boxes[0][:, 2] < points[:, 2].max()) & (boxes[1][:, 2] > points[:, 2].min() + AIR)
        return bool((meets(boxes, shift) & beside).any())

    overhang = meets(furniture, np.zeros(3)) & (furniture[0][:, 2] > points[:, 2].max())
    if not overhang.any():
        return np.zeros(3)
    roof_low, roof_high = furniture[0][overhang].min(0), furniture[1][overhang].max(0)
    ways = np.concatenate([np.diag(roof_low - high)[:2], np.diag(roof_high - low)[:2]])
    objects = scene.boxes(ignored=[source, *scene.domain.fixtures_dict])
    free = [way for way in ways if not bumps(furniture, way)]
    return min(free, key=lambda way: np.linalg.norm(way) + 0.1 * bumps(objects, way), default=np.zeros(3))


def _outward(scene: Scene, drawer: str, centre: Vector) -> Vector:
    part = Part(scene, drawer)
    return part.heading(centre, part.position_for("open") - part.position_for("close"))


def _offset(scene: Scene, sharing: list[str], half: Vector) -> Vector:
    """Horizontal offsets (N, 2) m from a region's centre that put N objects next to each other."""
    sizes = np.array([np.ptp(scene.points(name)[:, :2], axis=0) for name in sharing])
    axis = int(sizes.max(0).argmin())  # the narrow way: most room between them
    step = sizes.max(0)[axis] + 0.003
    offsets = np.zeros((len(sharing), 2))
    offsets[:, axis] = (np.arange(len(sharing)) - (len(sharing) - 1) / 2) * step
    return np.clip(offsets, 0.005 - half, half - 0.005)
