"""The scripted expert: one action from the present state of the scene, so that noise never derails a plan.

Every rule aims the tool at a point and moves towards it, at full speed from afar and proportionally once the point is
less than one step away.
"""

from __future__ import annotations

import math

from dvla_lightning.envs.tabletop.scene import (
    BLOCK_RADIUS,
    MAX_STEP,
    TOOL_RADIUS,
    WALL_HALF_SIZE,
    Point,
    Scene,
)

_CLEARANCE = 0.26  # distance kept from the centre of anything that must not be touched: two noisy steps fit in
_CONTACT = BLOCK_RADIUS + TOOL_RADIUS
_BEHIND = _CONTACT + 0.07  # push: where the tool lines up, measured from the block
_ALIGNED = 0.09  # push: sideways offset below which the block is well in the tool's way
_UNDECIDED = 0.06  # detour: this near the diagonal neither way is shorter, so the drawn one decides
_LEAST_GAP = 0.06  # detour: distance from the wall below which the tool steers away from it
_LANE = 0.20  # detour: distance from the wall that the tool keeps once it is well under way
_DRIFT_FROM = -0.3  # detour: where along the wall the tool begins to leave it for the lane; near the end of chunk 1
_DRIFT_LENGTH = 0.5


def expert_action(task: str, scene: Scene, way: int) -> Point:
    """The best next action, both components in [-1, 1].

    Args:
        task: name of the task.
        scene: the present state.
        way: 0 or 1; where two ways are equally good, which one to take.
    """
    if task == "detour":
        return _detour(scene, way)
    if task == "push":
        return _push(scene)
    return _towards(scene.tool, _next_target(task, scene))


def _next_target(task: str, scene: Scene) -> Point:
    """The next place to go to, so as to touch the right thing without touching a wrong one."""
    if task == "carry" and scene.holding:
        return _steer(scene.tool, scene.pads[0].centre, [scene.blocks[1].centre, scene.pads[1].centre])
    goal, *others = scene.blocks[scene.collected :]
    return _steer(scene.tool, goal.centre, [other.centre for other in others])


def _towards(tool: Point, target: Point) -> Point:
    """The action that moves straight to `target`, or as far in its direction as one action goes."""
    dx, dy = (target[0] - tool[0]) / MAX_STEP, (target[1] - tool[1]) / MAX_STEP
    excess = max(abs(dx), abs(dy), 1.0)
    return dx / excess, dy / excess


def _steer(tool: Point, goal: Point, obstacles: list[Point], clearance: float = _CLEARANCE) -> Point:
    """A point to aim at: the goal, or where the straight line meets an obstacle first, a tangent to its circle.

    Args:
        tool: where the tool is.
        goal: where it should go; no nearer to an obstacle than `clearance`.
        obstacles: centres of what must be avoided.
        clearance: radius of the circle to keep out of.
    """
    goal_x, goal_y = goal[0] - tool[0], goal[1] - tool[1]
    length = math.hypot(goal_x, goal_y)
    for x, y in sorted(obstacles, key=lambda obstacle: math.dist(tool, obstacle)):
        away_x, away_y = x - tool[0], y - tool[1]
        along = (away_x * goal_x + away_y * goal_y) / max(length, 1e-9)
        side = (goal_x * away_y - goal_y * away_x) / max(length, 1e-9)  # > 0: the obstacle is to the left
        if not 0.0 < along < length or abs(side) >= clearance:
            continue
        distance = math.hypot(away_x, away_y)
        # Inside the circle the angle exceeds a right angle: the tool moves out while it goes round.
        excess = max(0.0, 1.0 - distance / clearance)
        turn = math.asin(min(1.0, clearance / max(distance, 1e-9))) + excess
        heading = math.atan2(away_y, away_x) - math.copysign(turn, side)
        return tool[0] + math.cos(heading), tool[1] + math.sin(heading)
    return goal


def _push(scene: Scene) -> Point:
    """Gets behind the block, seen from its edge, then pushes; gets behind it again if the block is lost."""
    block, (unit_x, unit_y) = scene.blocks[0].centre, scene.goal_edge
    dx, dy = block[0] - scene.x, block[1] - scene.y
    ahead, side = dx * unit_x + dy * unit_y, unit_x * dy - unit_y * dx
    if ahead <= 0.0 or abs(side) > _ALIGNED:
        behind = (block[0] - unit_x * _BEHIND, block[1] - unit_y * _BEHIND)
        return _towards(scene.tool, _steer(scene.tool, behind, [block], clearance=_BEHIND - 0.02))
    return unit_x, unit_y  # the block moves with the tool once they touch


def _detour(scene: Scene, way: int) -> Point:
    """Turns the table so that the pad lies top right and the way taken goes right first, then up."""
    pad = scene.pads[0]
    sign_x, sign_y = math.copysign(1.0, pad.x), math.copysign(1.0, pad.y)
    x, y, pad_x, pad_y = scene.x * sign_x, scene.y * sign_y, abs(pad.x), abs(pad.y)
    at_corner = max(x, y) < -WALL_HALF_SIZE and abs(x - y) < _UNDECIDED
    upwards = way == 1 if at_corner else y > x
    if upwards:
        action_y, action_x = _right_then_up((y, x), (pad_y, pad_x))
    else:
        action_x, action_y = _right_then_up((x, y), (pad_x, pad_y))
    return action_x * sign_x, action_y * sign_y


def _right_then_up(tool: Point, pad: Point) -> Point:
    """Along the wall's lower side, then along its right side, both at a safe distance.

    The first steps go straight to the right: the two ways then differ in both components of every action.
    """
    x, y = tool
    corner = WALL_HALF_SIZE + _LANE
    if x < WALL_HALF_SIZE + 0.10:
        under_way = min(max((x - _DRIFT_FROM) / _DRIFT_LENGTH, 0.0), 1.0)
        near = min(y, -WALL_HALF_SIZE - _LEAST_GAP)  # as the tool came, but not closer than this
        lane = near * (1.0 - under_way) - corner * under_way
        return 1.0, min(max((lane - y) / MAX_STEP, -1.0), 1.0)
    if y < WALL_HALF_SIZE:
        return _towards(tool, (max(corner, pad[0] - 0.02), y + MAX_STEP))
    return _towards(tool, pad)
