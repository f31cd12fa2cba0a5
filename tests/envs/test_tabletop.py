"""The built-in table: the contract of a simulator, the rules of its tasks, its expert, and its pictures."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from dvla_lightning.envs.base import SPLITS
from dvla_lightning.envs.tabletop import Tabletop, TabletopEnv
from dvla_lightning.envs.tabletop.scene import WALL_HALF_SIZE, Point
from dvla_lightning.envs.tabletop.tasks import TASKS
from dvla_lightning.errors import UserError

NOWHERE = np.zeros(2, np.float32)


@pytest.fixture
def env() -> TabletopEnv:
    return Tabletop().make()


def start(env: TabletopEnv, task: str, state: int = 0, seed: int = 0, **options: Any) -> dict[str, Any]:
    options = {"task": task, "split": "train", "initial_state": state, **options}
    return dict(env.reset(seed=seed, options=options)[0])


def run_expert(env: TabletopEnv) -> dict[str, Any]:
    """Lets the expert finish the episode; returns the last info with the number of steps."""
    for count in range(1, 1000):
        _, terminated, truncated, info = env.advance(env.expert_action())
        if terminated or truncated:
            return {**info, "steps": count}
    raise AssertionError("the episode has no end")


def go(env: TabletopEnv, target: Point) -> tuple[float, bool, bool, dict[str, Any]]:
    """Moves the tool straight to a point, or until the episode is over."""
    while True:
        away = ((np.array(target) - env.scene.tool) / 0.12).astype(np.float32)
        result = env.advance(away / max(1.0, float(np.abs(away).max())))
        if result[1] or result[2] or float(np.abs(away).max()) <= 1.0:
            return result


def find_state(env: TabletopEnv, task: str, target: str, index: int, keep_off: tuple[tuple[str, int], ...]) -> Point:
    """Resets to a state in which the straight way to a thing passes no other thing; returns the thing's centre."""
    for state in range(200):
        start(env, task, state)
        scene = env.scene
        goal, tool = np.array(getattr(scene, target)[index].centre), np.array(scene.tool)
        path = tool + np.linspace(0, 1, 50)[:, None] * (goal - tool)
        others = [np.array(getattr(scene, kind)[number].centre) for kind, number in keep_off]
        if all(np.linalg.norm(path - other, axis=1).min() > 0.2 for other in others):
            return float(goal[0]), float(goal[1])
    raise AssertionError("no such state")


# ---------------------------------------------------------------- the contract


def test_gymnasium_accepts_the_registered_environment() -> None:
    check_env(gymnasium.make("dvla/Tabletop-v0").unwrapped)


def test_recipe_pickles_and_knows_its_spaces() -> None:
    recipe = pickle.loads(pickle.dumps(Tabletop(image_size=48)))
    observation, _ = recipe.make().reset(seed=0)
    assert observation["images"][recipe.cameras[0]].shape == (48, 48, 3)
    assert observation["proprioception"].shape == (recipe.proprioception_dim,)
    assert recipe.make().action_space.shape == (recipe.action_dim,)
    assert recipe.identity()["image_size"] == 48
    assert recipe.tasks == ("reach", "carry", "push", "collect", "detour")
    assert recipe.num_heldout_states("reach") is None


@pytest.mark.parametrize("task", Tabletop.tasks)
def test_the_same_number_gives_the_same_state_and_another_number_another(env: TabletopEnv, task: str) -> None:
    first = start(env, task, 5, seed=1)
    assert env.observation_space.contains(first)
    scene = env.scene
    start(env, task, 6)
    assert env.scene != scene
    again = start(env, task, 5, seed=2)
    assert env.scene == scene
    np.testing.assert_array_equal(first["images"]["top"], again["images"]["top"])


@pytest.mark.parametrize("task", Tabletop.tasks)
def test_the_splits_share_no_state(env: TabletopEnv, task: str) -> None:
    tools: dict[str, set[Point]] = {split: set() for split in SPLITS}
    for split, seen in tools.items():
        for state in range(100):
            start(env, task, state, split=split)
            seen.add(env.scene.tool)
        assert len(seen) == 100
    assert len(tools) == 3 and len(set().union(*tools.values())) == 300


RECORDED = {
    ("train", "reach"): (0.392313, 0.129411), ("heldout", "reach"): (0.653215, -0.438796),
    ("train", "carry"): (0.661616, 0.465493), ("heldout", "carry"): (-0.036542, 0.36575),
    ("train", "push"): (0.294275, -0.79363), ("heldout", "push"): (-0.341818, -0.497162),
    ("train", "collect"): (-0.740083, -0.143123), ("heldout", "collect"): (-0.616099, 0.524468),
    ("train", "detour"): (0.530102, -0.537734), ("heldout", "detour"): (-0.530652, 0.532194),
}  # fmt: skip


@pytest.mark.parametrize(("split", "task"), RECORDED)
def test_the_states_of_recorded_results_stay(env: TabletopEnv, split: str, task: str) -> None:
    """Golden: where the tool starts in state 3, as it was before there was a split for selection."""
    start(env, task, 3, split=split)
    assert env.scene.tool == pytest.approx(RECORDED[split, task], abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"task": "juggle"}, {"split": "test"}, {"initial_state": -1}, {"expert_noise": -1.0}, {"colour": "red"}],
)
def test_wrong_options_are_user_errors(env: TabletopEnv, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Tabletop"):
        env.reset(options=options)


def test_wrong_arguments_are_user_errors(env: TabletopEnv) -> None:
    with pytest.raises(UserError, match="image_size"):
        Tabletop(image_size=4)
    with pytest.raises(UserError, match="juggle"):
        Tabletop().num_heldout_states("juggle")
    start(env, "reach")
    with pytest.raises(UserError, match="finite"):
        env.advance(np.array([np.nan, 0.0], np.float32))
    with pytest.raises(UserError, match="2 components"):
        env.advance(np.zeros(3, np.float32))


def test_actions_are_clipped_to_the_action_space_and_the_tool_to_the_table(env: TabletopEnv) -> None:
    start(env, "reach")
    x, y = env.scene.tool
    env.advance(np.array([5.0, 0.5], np.float32))
    assert env.scene.tool == pytest.approx((x + 0.12, y + 0.06))
    go(env, (2.0, y + 0.06))
    assert env.scene.x <= 1.0


def test_a_chunk_sums_its_rewards_and_stops_at_the_end_of_the_episode(env: TabletopEnv) -> None:
    start(env, "reach")
    actions = [env.expert_action()]
    while not env.advance(actions[-1])[1]:
        actions.append(env.expert_action())
    start(env, "reach")
    observation, reward, terminated, truncated, info = env.step_chunk(np.array([*actions, NOWHERE, NOWHERE]))
    assert (reward, terminated, truncated, info["num_env_steps"]) == (1.0, True, False, len(actions))
    assert info["is_success"] and env.observation_space.contains(observation)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.advance(NOWHERE)


@pytest.mark.parametrize("task", Tabletop.tasks)
def test_the_step_limit_truncates(env: TabletopEnv, task: str) -> None:
    start(env, task)
    limit = TASKS[task].step_limit
    _, reward, terminated, truncated, info = env.step_chunk(np.zeros((limit + 5, 2), np.float32))
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert (info["is_success"], info["outcome"], info["num_env_steps"]) == (False, "step_limit", limit)


# ---------------------------------------------------------------- the rules


def test_reaching_the_other_block_fails(env: TabletopEnv) -> None:
    target = find_state(env, "reach", "blocks", 1, keep_off=(("blocks", 0),))
    reward, terminated, _, info = go(env, target)
    assert (reward, terminated, info["is_success"], info["outcome"]) == (0.0, True, False, "wrong_block")


def test_carry_attaches_the_named_block_and_the_wrong_pad_does_not_count(env: TabletopEnv) -> None:
    target = find_state(env, "carry", "blocks", 0, keep_off=(("blocks", 1),))
    assert env.observe()["proprioception"][2] == 0.0
    go(env, target)
    assert env.scene.holding and env.observe()["proprioception"][2] == 1.0
    assert env.scene.blocks[0].centre == env.scene.tool
    reached = 0
    for state in range(50):  # straight from the block to the wrong pad
        start(env, "carry", state)
        go(env, env.scene.blocks[0].centre)
        if env.scene.holding:
            info = go(env, env.scene.pads[1].centre)[3]
            at_wrong_pad = np.linalg.norm(np.array(env.scene.tool) - env.scene.pads[1].centre) < 0.05
            reached += at_wrong_pad
            assert not (at_wrong_pad and info["is_success"])
    assert reached > 5


def test_carry_fails_on_the_wrong_block(env: TabletopEnv) -> None:
    target = find_state(env, "carry", "blocks", 1, keep_off=(("blocks", 0),))
    assert go(env, target)[3]["outcome"] == "wrong_block"


def test_collect_in_the_wrong_order_fails_and_a_collected_block_is_gone(env: TabletopEnv) -> None:
    target = find_state(env, "collect", "blocks", 1, keep_off=(("blocks", 0),))
    assert go(env, target)[3] == {"is_success": False, "outcome": "wrong_block"}
    target = find_state(env, "collect", "blocks", 0, keep_off=(("blocks", 1),))
    assert not go(env, target)[1]
    assert env.scene.collected == 1 and env.observe()["proprioception"][3] == 1.0
    assert not go(env, target)[1]


def test_push_moves_the_block_ahead_of_the_tool_and_the_rim_keeps_it_on_the_table(env: TabletopEnv) -> None:
    at_the_rim = 0
    for state in range(20):
        start(env, "push", state)
        block = np.array(env.scene.blocks[0].centre)
        ahead = block - env.scene.tool  # straight at the block, whatever the edge it should go to
        for _ in range(34):
            _, terminated, truncated, _ = env.advance(ahead / np.abs(ahead).max())
            if terminated or truncated:
                break
        after = np.array(env.scene.blocks[0].centre)
        assert np.linalg.norm(after - block) > 0.1 and np.abs(after).max() <= 0.9
        at_the_rim += np.abs(after).max() == pytest.approx(0.9)
    assert at_the_rim > 3


def test_the_wall_ends_the_episode(env: TabletopEnv) -> None:
    start(env, "detour")
    assert go(env, (0.0, 0.0))[3] == {"is_success": False, "outcome": "wall"}


# ---------------------------------------------------------------- the expert


@pytest.mark.parametrize("task", Tabletop.tasks)
@pytest.mark.parametrize(("noise", "least"), [(0.0, 0.98), (0.3, 0.95)])
def test_the_expert_succeeds(env: TabletopEnv, task: str, noise: float, least: float) -> None:
    successes = 0
    for state in range(200):
        start(env, task, state, seed=state, split="heldout", expert_noise=noise)
        successes += run_expert(env)["is_success"]
    assert successes >= least * 200


def test_the_expert_noise_follows_the_seed(env: TabletopEnv) -> None:
    def action(seed: int, noise: float) -> NDArray[np.float32]:
        start(env, "reach", seed=seed, expert_noise=noise)
        return env.expert_action()

    np.testing.assert_array_equal(action(1, 0.5), action(1, 0.5))
    assert not np.array_equal(action(1, 0.5), action(2, 0.5))
    np.testing.assert_array_equal(action(1, 0.0), action(2, 0.0))


def test_both_ways_of_the_detour_are_taken_from_every_corner(env: TabletopEnv) -> None:
    corners: dict[tuple[bool, bool], list[int]] = {}
    for state in range(400):
        start(env, "detour", state, seed=state)
        corner = (env.scene.x > 0, env.scene.y > 0)
        corners.setdefault(corner, []).append(int(np.abs(env.expert_action()).argmax()))
    assert len(corners) == 4
    assert all(0.3 < np.mean(ways) < 0.7 for ways in corners.values())


def first_chunk(env: TabletopEnv, state: int, attempt: int) -> NDArray[np.float32]:
    start(env, "detour", state, seed=state, expert_noise=0.3, expert_attempt=attempt)
    actions = []
    for _ in range(4):
        actions.append(env.expert_action())
        env.advance(actions[-1])
    return np.array(actions)


def test_mixing_the_two_ways_of_the_detour_independently_crashes(env: TabletopEnv) -> None:
    rng = np.random.default_rng(0)
    successes = {"consistent": 0, "independent": 0}
    for state in range(200):
        ways = np.stack([first_chunk(env, state, attempt) for attempt in (0, 1)])
        for mode in successes:
            pick = rng.integers(2, size=(4, 2)) if mode == "independent" else rng.integers(2)
            start(env, "detour", state, seed=1000 + state, expert_noise=0.3)
            *_, terminated, _, info = env.step_chunk(np.where(pick, ways[1], ways[0]))
            successes[mode] += (info if terminated else run_expert(env))["is_success"]
    assert successes["consistent"] >= 0.95 * 200
    assert successes["independent"] <= 0.25 * 200


# ---------------------------------------------------------------- the pictures


def pixel(image: NDArray[np.uint8], point: Point) -> NDArray[np.int64]:
    size = image.shape[0]
    column, row = int((point[0] + 1) * size / 2), int((1 - point[1]) * size / 2)
    return np.asarray(image[row, column], np.int64)


@pytest.mark.parametrize("image_size", [32, 64])
def test_things_are_drawn_where_they_are(image_size: int) -> None:
    env = Tabletop(image_size).make()
    strongest = {"red": 0, "green": 1, "blue": 2}
    for state in range(20):
        image = start(env, "reach", state)["images"]["top"]
        assert pixel(image, env.scene.tool).min() > 120  # a small white disc on a dark table
        for block in env.scene.blocks:
            red_green_blue = pixel(image, block.centre)
            if block.colour == "yellow":
                assert red_green_blue[:2].min() > 2 * red_green_blue[2]
            else:
                assert red_green_blue.argmax() == strongest[block.colour]
    image = start(env, "detour")["images"]["top"]
    assert pixel(image, (0.0, 0.0)).max() < 30
    assert pixel(image, (WALL_HALF_SIZE - 0.1, -WALL_HALF_SIZE + 0.1)).max() < 30
    assert pixel(image, (WALL_HALF_SIZE + 0.2, -WALL_HALF_SIZE - 0.2)).min() > 60


def test_render_is_the_same_scene_at_a_larger_size(env: TabletopEnv) -> None:
    start(env, "reach")
    picture = env.render()
    assert picture is not None and picture.shape == (256, 256, 3) and picture.dtype == np.uint8
    small = env.observe()["images"]["top"].astype(float)
    shrunk = picture.reshape(32, 8, 32, 8, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small).mean() < 2.0
    run_expert(env)
    solved = env.render()
    assert solved is not None and solved[0, 128].argmax() == 1  # a green border
