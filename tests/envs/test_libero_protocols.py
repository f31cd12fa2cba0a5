"""LIBERO's published protocols: the table in the documentation, what the recipe makes of them, and the simulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dvla_lightning.envs.libero import Libero
from dvla_lightning.envs.libero.protocols import PROTOCOLS
from dvla_lightning.envs.libero.suites import MAX_STEPS, suite_tasks
from dvla_lightning.errors import UserError

ROOT = Path(__file__).parents[2]
TASK = "pick_up_the_black_bowl_in_the_top_drawer_of_the_wooden_cabinet_and_place_it_on_the_plate"  # has furniture

STATE = {"hand": "position 3, axis-angle 3, finger joints 2", "joints": "arm joints 7, first finger joint 1"}
GRIPPER = {"robosuite": "-1 open, +1 closed", "rlds": "1 open, 0 closed; the nearer one counts"}


def documented_table():
    """docs/libero.md's table, made from the code."""
    rows = {
        "control steps: spatial, object, goal, 10, 90": lambda p: " / ".join(str(p.max_steps[s]) for s in MAX_STEPS),
        "the chunk that crosses the limit": lambda p: "executed to its end" if p.finishes_chunks else "cut off",
        "waiting steps before": lambda p: f"{p.num_wait_steps} x (0, 0, 0, 0, 0, 0, -1)",
        "pictures": lambda p: f"{p.image_size} x {p.image_size}, turned by 180 degrees",
        "state": lambda p: STATE[p.state],
        "gripper in an action": lambda p: GRIPPER[p.gripper],
        "furniture": lambda p: (
            f"seed {p.furniture_seed} + trial, at every reset"
            if p.seeds_every_reset
            else f"seed {p.furniture_seed} once per task, trials in order"
        ),
        "initial states per task": lambda p: f"0 to {p.num_trials - 1}",
        "other seed": lambda p: str(p.seed),
        "source": lambda p: p.source,
    }
    lines = [f"| | {' | '.join(f'`{name}`' for name in PROTOCOLS)} |", "|---" * (len(PROTOCOLS) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cell(p) for p in PROTOCOLS.values())} |" for name, cell in rows.items()]
    return "\n".join(lines)


def test_the_documentation_shows_the_constants():
    assert documented_table() in (ROOT / "docs" / "libero.md").read_text(), documented_table()


@pytest.mark.libero
class TestRecipe:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    @pytest.mark.parametrize("suite", MAX_STEPS)
    def test_a_protocol_sets_everything(self, protocol, suite):
        recipe, rules = Libero(suite=suite, protocol=protocol), PROTOCOLS[protocol]
        assert recipe.max_steps == rules.max_steps[suite]
        assert (recipe.image_size, recipe.num_wait_steps, recipe.rendering) == (256, 10, "faithful")
        assert (recipe.state, recipe.gripper) == (rules.state, rules.gripper)
        assert {recipe.num_trials(task) for task in recipe.tasks} == {rules.num_trials}
        assert recipe.identity()["protocol"] == protocol

    def test_the_protocols_differ_where_their_sources_do(self):
        limits = {name: Libero(protocol=name).max_steps for name in PROTOCOLS}
        assert limits == {"openvla_oft": 220, "lerobot": 280, "mm_act": 220}
        assert Libero(protocol="lerobot").num_trials(Libero().tasks[0]) == 10

    def test_single_options_win_and_are_recorded(self):
        recipe = Libero(
            protocol="mm_act", image_size=64, max_steps=7, num_wait_steps=0, rendering="fast", state="hand",
            gripper="rlds",
        )  # fmt: skip
        identity = recipe.identity()
        assert identity["protocol"] == "mm_act" and identity["gripper"] == "rlds" and "state" not in identity
        assert [identity[name] for name in ("image_size", "max_steps", "num_wait_steps")] == [64, 7, 0]
        assert identity["rendering"] == "fast"

    def test_without_a_protocol_everything_is_as_it_was(self):
        recipe = Libero()
        assert (recipe.image_size, recipe.rendering, recipe.max_steps, recipe.num_wait_steps) == (128, "fast", 220, 10)
        assert (recipe.state, recipe.gripper, recipe.num_trials(recipe.tasks[0])) == ("hand", "robosuite", 50)
        assert set(recipe.identity()) == {
            *("class", "suite", "image_size", "cameras", "rendering", "reset_mode", "max_steps", "num_wait_steps"),
            "versions",
        }

    @pytest.mark.parametrize("wrong", [{"protocol": "openvla"}, {"state": "quaternion"}, {"gripper": "hook"}])
    def test_a_wrong_name_is_one_sentence(self, wrong):
        with pytest.raises(UserError, match="is not one of") as error:
            Libero(**wrong)
        assert "\n" not in str(error.value)

    def test_training_on_published_states_is_recorded(self):
        assert "on which evaluation runs" in Libero(train_on_published_states=True).identity()["training_remark"]


def furniture(domain):
    bodies = [domain.sim.model.body_name2id(fixture.root_body) for fixture in domain.fixtures_dict.values()]
    return np.concatenate([domain.sim.model.body_pos[bodies], domain.sim.model.body_quat[bodies]], axis=1)


def blind(**options):
    """Without cameras and without the wait: for what is about states only."""
    return Libero(**{"cameras": (), "rendering": "fast", "num_wait_steps": 0, **options}).make()


def place(env, number, split="heldout"):
    env.reset(options={"task": TASK, "split": split, "initial_state": number})


@pytest.mark.libero
class TestSimulator:
    @pytest.mark.parametrize("reset_mode", ["soft", "hard"])
    def test_the_furniture_follows_upstreams_trials(self, reset_mode):
        """Upstream seeds once and resets trial after trial; here trials come in any order."""
        env = blind(protocol="openvla_oft", reset_mode=reset_mode)  # imports LIBERO quietly
        try:
            from libero.libero.envs.env_wrapper import ControlEnv

            bddl = str(suite_tasks("libero_spatial")[TASK].bddl)
            upstream = ControlEnv(bddl_file_name=bddl, use_camera_obs=False, has_offscreen_renderer=False)
            upstream.seed(0)
            expected = []
            for _ in range(3):
                upstream.reset()
                expected.append(furniture(upstream.env))
                upstream.step(np.zeros(7))  # physics draws nothing
            upstream.close()
            assert np.abs(expected[0] - expected[1]).max() > 1e-4
            for trial in (2, 0, 1, 2):
                place(env, trial)
                np.testing.assert_array_equal(furniture(env._domain), expected[trial])
        finally:
            env.close()

    def test_grippers_states_and_limits(self):
        ours, rlds = blind(), blind(protocol="openvla_oft", max_steps=4)
        joints = blind(protocol="mm_act", max_steps=4)
        try:
            for env in (ours, rlds, joints):
                place(env, 0, "train")
            action = np.array([0.3, 0, 0, 0, 0, 0, 0.0])
            for close in (True, False):
                ours.advance(action + np.array([0, 0, 0, 0, 0, 0, 1.0 if close else -1.0]))
                rlds.advance(action + np.array([0, 0, 0, 0, 0, 0, 0.4 if close else 0.6]))
                np.testing.assert_array_equal(ours._domain.sim.data.qpos, rlds._domain.sim.data.qpos)
            assert rlds.expert_action()[6] == 1.0 == -ours.expert_action()[6]  # both open
            arm = joints._domain.sim.data.qpos[:7]
            np.testing.assert_allclose(joints.observe()["proprioception"][:7], arm, atol=1e-6)
            assert 0.0 < joints.observe()["proprioception"][7] < 0.05
            chunk = np.zeros((3, 7), np.float32)
            ended = [(env.step_chunk(chunk)[3], env.step_chunk(chunk)[3:]) for env in (joints,)]
            assert ended[0][0] is False and ended[0][1][0] is True and ended[0][1][1]["num_env_steps"] == 3
            _, _, _, truncated, info = rlds.step_chunk(chunk)  # two of four steps are done
            assert truncated and info["num_env_steps"] == 2
        finally:
            for env in (ours, rlds, joints):
                env.close()

    def test_training_on_published_states_needs_its_option(self):
        states = {}
        for option in (False, True):
            env = blind(train_on_published_states=option)
            try:
                for split, number in (("heldout", 3), ("train", 53), ("selection", 53)):
                    place(env, number, split)
                    states[option, split] = env._domain.sim.data.qpos.copy()
            finally:
                env.close()
        np.testing.assert_array_equal(states[True, "train"], states[True, "heldout"])
        assert np.abs(states[False, "train"] - states[False, "heldout"]).max() > 1e-3
        # What was trained on is not what is chosen on.
        np.testing.assert_array_equal(states[True, "selection"], states[False, "selection"])
        assert np.abs(states[True, "selection"] - states[True, "train"]).max() > 1e-3
