"""RoboTwin against a stand-in checkout: episodes of every task and layout, in a Python of their own."""

import json
import os
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from dvla_lightning.envs.robotwin import RoboTwin
from dvla_lightning.envs.robotwin.simulator.planner import MplibPlanner
from dvla_lightning.envs.robotwin.simulator.rendering import resize
from dvla_lightning.envs.robotwin.tasks import PAPER_TASKS, PRIMITIVE_TASKS, STEP_LIMITS
from dvla_lightning.errors import UserError
from dvla_lightning.rollout.episode import EpisodeSpec
from dvla_lightning.rollout.foreign_slot import ForeignSlot
from tests.robotwin_checkout import LAYOUTS, make_checkout, model_of

TASK = "stack_blocks_two"
SECONDS = 120.0


@pytest.fixture(autouse=True)
def no_real_one(monkeypatch):
    monkeypatch.delenv("ROBOTWIN_ROOT", raising=False)
    monkeypatch.delenv("ROBOTWIN_PYTHON", raising=False)


@pytest.fixture(scope="module", params=list(LAYOUTS))
def any_checkout(request, tmp_path_factory):
    return make_checkout(tmp_path_factory.mktemp("robotwin") / request.param, request.param)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return make_checkout(tmp_path_factory.mktemp("robotwin") / "stable")


@pytest.fixture
def recipe(checkout, tmp_path):
    """A recipe on the stand-in; options override."""

    def make(root=checkout, **options):
        defaults = {"interpreter": sys.executable, "cache_dir": str(tmp_path / "seeds")}
        return RoboTwin(root=str(root), **{**defaults, **options})

    return make


@pytest.fixture
def worker():
    """Opens a worker on a recipe; all are closed at the end."""
    slots = []

    def open_worker(recipe):
        slots.append(ForeignSlot(recipe))
        return slots[-1]

    yield open_worker
    for slot in slots:
        slot.close()


def spec(task=TASK, split="heldout", state=0, **more):
    return EpisodeSpec(task, split, state, seed=0, **more)


def demonstrate(slot, asked=None, every=3):
    """All transitions of an expert episode."""
    transitions = [slot.call("reset", asked or spec(), SECONDS)]
    while not (transitions[-1]["terminated"] or transitions[-1]["truncated"]):
        transitions.append(slot.call("demonstrate", every, SECONDS))
    return transitions


# ---------------------------------------------------------------------- the tables


def test_the_tables():
    assert len(STEP_LIMITS) == 50 and sum(limit == 400 for limit in STEP_LIMITS.values()) == 24
    assert {STEP_LIMITS[task] for task in ("place_empty_cup", "handover_mic", "put_bottles_dustbin")} == {
        500,
        600,
        1700,
    }
    assert len(PAPER_TASKS) == 8 and {*PAPER_TASKS, *PRIMITIVE_TASKS} < set(STEP_LIMITS)


@pytest.mark.parametrize("task", STEP_LIMITS)
def test_every_task_can_be_configured(task):
    recipe = RoboTwin(max_steps={task: 7})
    assert recipe.select_tasks(task) == (task,) and recipe.num_heldout_states(task) is None
    assert recipe.num_trials(task) == 100
    assert (recipe.action_dim, recipe.proprioception_dim) == (14, 14)


# ---------------------------------------------------------------------- episodes


def test_every_task_and_layout_runs_an_expert_episode_through_our_actions(any_checkout, recipe, worker):
    slot = worker(recipe(any_checkout, image_size=16, cameras=["head"], shader="default", shadow=False))
    for task in STEP_LIMITS:
        transitions = demonstrate(slot, spec(task), every=10)
        assert transitions[-1]["is_success"] and transitions[-1]["reward"] == 1.0, task
        assert task in transitions[0]["observation"]["instruction"]


def test_an_observation(recipe, worker):
    first = worker(recipe()).call("reset", spec(), SECONDS)["observation"]
    assert {name: image.shape for name, image in first["images"].items()} == dict.fromkeys(
        ("head", "left", "right"), (240, 320, 3)
    )
    assert first["images"]["head"].dtype == np.uint8
    assert first["proprioception"].tolist() == [0, 0, 0, 0, 0, 0, 1] * 2
    assert first["images"]["head"][0, 0].tolist() == [1, len("rt"), 1]  # shadows, ray tracing, evaluation's textures
    small = worker(recipe(image_size=32, shader="default", shadow=False, camera_type="L515", cameras=["right"]))
    first = small.call("reset", spec(split="train"), SECONDS)["observation"]
    assert {name: image.shape for name, image in first["images"].items()} == {"right": (32, 32, 3)}


@pytest.mark.parametrize(("options", "dim"), [({}, 14), ({"embodiment": ["franka-panda", "franka-panda", 0.8]}, 16)])
def test_replaying_the_experts_actions_solves_the_same_scene(options, dim, recipe, worker):
    made = recipe(cameras=["head"], **options)
    slot = worker(made)
    recorded = demonstrate(slot, every=1)
    actions = np.concatenate([t["actions"] for t in recorded])
    assert actions.shape[1] == made.action_dim == dim and actions.dtype == np.float32
    slot.call("reset", spec(), SECONDS)
    replayed = slot.call("execute", actions, SECONDS)
    assert replayed["is_success"] and replayed["terminated"] and len(replayed["actions"]) == len(actions)
    np.testing.assert_array_equal(
        replayed["observation"]["images"]["head"], recorded[-1]["observation"]["images"]["head"]
    )
    slot.call("reset", spec(state=1), SECONDS)
    other = slot.call("execute", actions, SECONDS)
    assert not other["is_success"]  # another scene needs other actions


def test_hand_poses(recipe, worker):
    made = recipe(action_type="ee")
    slot = worker(made)
    transitions = demonstrate(slot)
    assert made.action_dim == made.proprioception_dim == 16
    assert transitions[-1]["is_success"] and transitions[1]["actions"].shape == (3, 16)
    assert transitions[0]["observation"]["proprioception"][[6, 7, 14, 15]].tolist() == [1, 1, 1, 1]


def test_grippers_are_clipped_and_joints_are_not(recipe, worker):
    slot = worker(recipe())
    slot.call("reset", spec(), SECONDS)
    shown = slot.call("execute", np.full((1, 14), 3.0, np.float32), SECONDS)["observation"]["proprioception"]
    assert shown.tolist() == [3, 3, 3, 3, 3, 3, 1] * 2


def test_an_episode_is_truncated_at_its_limit(recipe, worker):
    slot = worker(recipe(max_steps={TASK: 5}))
    for split in ("train", "heldout"):
        slot.call("reset", spec(split=split), SECONDS)
        end = slot.call("execute", np.zeros((8, 14), np.float32), SECONDS)
        assert end["truncated"] and not end["terminated"] and len(end["actions"]) == 5


def test_a_chunk_as_one_trajectory(tmp_path, recipe, worker):
    checkout = make_checkout(tmp_path / "rlinf", "RLinf_support")
    slot = worker(recipe(checkout, execution="chunk", max_steps={TASK: 5}))
    slot.call("reset", spec(), SECONDS)
    first = slot.call("execute", np.zeros((3, 14), np.float32), SECONDS)
    assert not (first["is_success"] or first["terminated"] or first["truncated"]) and first["reward"] == 0.0
    end = slot.call("execute", np.zeros((8, 14), np.float32), SECONDS)
    assert end["truncated"] and not end["is_success"] and len(end["actions"]) == 2


def test_a_chunk_as_one_trajectory_solves_the_task(tmp_path, recipe, worker):
    slot = worker(recipe(make_checkout(tmp_path / "rlinf", "RLinf_support"), execution="chunk"))
    actions = np.concatenate([t["actions"] for t in demonstrate(slot)])
    slot.call("reset", spec(), SECONDS)
    end = slot.call("execute", actions, SECONDS)
    assert end["is_success"] and end["terminated"] and end["reward"] == 1.0


def test_a_scene_is_reproduced_with_its_instruction(recipe, worker):
    slots = worker(recipe()), worker(recipe())
    first, again = (slot.call("reset", spec(state=4), SECONDS)["observation"] for slot in slots)
    assert first["instruction"] == again["instruction"] and first["instruction"].startswith("seen way")
    np.testing.assert_array_equal(first["images"]["head"], again["images"]["head"])
    assert (
        demonstrate(slots[0], spec(state=4))[1]["actions"].tolist()
        == demonstrate(slots[1], spec(state=4))[1]["actions"].tolist()
    )
    assert len({slots[0].call("reset", spec(state=n), SECONDS)["observation"]["instruction"] for n in range(8)}) > 2


def test_instruction_splits(recipe):
    assert recipe().eval_instructions == recipe().train_instructions == "seen"
    assert recipe(task_config="demo_randomized").eval_instructions == "unseen"
    assert recipe(eval_instructions="unseen", train_instructions="unseen").eval_instructions == "unseen"


def test_instructions_follow_the_split_of_the_episode(recipe, worker):
    slot = worker(recipe(eval_instructions="unseen"))
    shown = [slot.call("reset", spec(split=split), SECONDS)["observation"] for split in ("train", "heldout")]
    assert [text["instruction"].split()[0] for text in shown] == ["seen", "unseen"]


def test_without_the_expert_only_rlinf_names_the_objects(checkout, tmp_path, recipe, worker):
    rlinf = make_checkout(tmp_path / "rlinf", "RLinf_support")
    shown = [worker(recipe(root, validity="none")).call("reset", spec(), SECONDS) for root in (checkout, rlinf)]
    plain, filled = (first["observation"]["instruction"] for first in shown)
    assert plain == f"do {TASK}" and filled.startswith("seen way") and "the third arm" in filled


def test_an_expert_that_fails_ends_its_episode_unsolved(recipe, worker):
    slot = worker(recipe(validity="none"))
    transitions = demonstrate(slot, spec(state=2 - 100_000 % 7 + 7))  # a multiple of 7, and 2: no motion plan
    assert not transitions[-1]["is_success"] and transitions[-1]["truncated"] and len(transitions) == 2


def test_this_process_can_run_it_too(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)
    try:
        env = recipe(interpreter=None, image_size=16).make()
        observation, info = env.reset(seed=0, options={"task": TASK, "split": "train", "initial_state": 0})
        assert env.observation_space.contains(observation) and info["scene_seed"] < 100_000
        _, reward, terminated, truncated, info = env.step_chunk(np.zeros((2, 14), np.float32))
        assert (reward, terminated, truncated, info["num_env_steps"]) == (0.0, False, False, 2)
        assert env.describe()["layout"] == "stable_2.0" and env.render().shape == (240, 320, 3)
        env.close()
    finally:
        for name in set(sys.modules) - before:
            if name.split(".")[0] in ("envs", "sapien", "curobo", "generate_episode_instructions"):
                del sys.modules[name]


def test_images_are_squeezed_by_area():
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, :4] = 200
    assert resize(wide, 2)[:, :, 0].tolist() == [[200, 0], [200, 0]]
    assert resize(wide, 3)[0, :, 0].tolist() == [200, 100, 0]  # the middle third is half bright


# ---------------------------------------------------------------------- what users get wrong


def refused(made, asked=None):
    slot = ForeignSlot(made)
    try:
        with pytest.raises(UserError) as error:
            slot.call("reset", asked or spec(), SECONDS)
    finally:
        slot.close()
    return str(error.value)


def test_no_checkout(recipe, tmp_path):
    with pytest.raises(UserError, match="no checkout is named: give its folder as `root`"):
        RoboTwin().simulator_options()
    assert "no RoboTwin checkout at" in refused(recipe(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="git clone -b"):
        recipe(tmp_path / "nowhere").identity()


def test_environment_variables_name_checkout_and_python(monkeypatch, checkout):
    monkeypatch.setenv("ROBOTWIN_ROOT", str(checkout))
    monkeypatch.setenv("ROBOTWIN_PYTHON", "/opt/robotwin/bin/python")
    assert RoboTwin(interpreter="python3.9").interpreter == "python3.9"
    made = RoboTwin()
    assert made.simulator_options()["root"] == str(checkout) and made.interpreter == "/opt/robotwin/bin/python"
    assert made.identity()["layout"] == "stable_2.0" and len(made.identity()["commit"]) == 40
    json.dumps(made.identity())


@pytest.fixture
def broken(tmp_path):
    return make_checkout(tmp_path / "broken")


def test_an_unknown_layout(broken, recipe):
    shutil.rmtree(broken / "task_config")
    assert "a layout that this release does not know" in refused(recipe(broken))


@pytest.mark.parametrize(
    ("path", "asked", "sentence"),
    [
        ("assets/objects/objaverse/list.json", spec(), "no .*list.json; unpack embodiments.zip"),
        ("assets/embodiments/aloha-agilex", spec(), "no .*aloha-agilex/config.yml; unpack"),
        (f"assets/objects/{model_of('lift_pot')}", spec("lift_pot"), "'lift_pot' needs the model .*lift-pot.*; unpack"),
        ("curobo.py", spec(), "its planner needs curobo; install it there, or set planner: mplib"),
        ("sapien", spec(), "lacks the package 'sapien': name the Python of your RoboTwin installation"),
        ("envs/lift_pot.py", spec("lift_pot"), "has no task 'lift_pot'"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(path, asked, sentence, broken, recipe):
    import re

    target = broken / path
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    if path == "sapien" and "sapien" in sys.modules:
        pytest.skip("a real SAPIEN is installed")
    assert re.search(sentence, refused(recipe(broken), asked))


def test_a_plan_to_where_the_hand_is_holds_the_arm(monkeypatch):
    monkeypatch.setitem(sys.modules, "mplib", SimpleNamespace(Pose=lambda p, q: (p, q)))
    nothing = {"status": "Success", "position": np.zeros((0, 2)), "velocity": np.zeros((0, 2))}
    planner = MplibPlanner.__new__(MplibPlanner)
    planner.planner = SimpleNamespace(move_group_joint_indices=[1, 2], plan_screw=lambda *a, **k: nothing)
    plan = planner.plan_path([5.0, 6.0, 7.0], np.arange(7.0))
    assert plan["status"] == "Success"
    np.testing.assert_array_equal(plan["position"], [[6.0, 7.0]])
    np.testing.assert_array_equal(plan["velocity"], [[0.0, 0.0]])


def test_mplib_takes_the_place_of_curobo(broken, recipe, worker):
    (broken / "curobo.py").unlink()
    transitions = demonstrate(worker(recipe(broken, planner="mplib")))
    assert transitions[-1]["is_success"]
    (broken / "mplib.py").unlink()
    assert "lacks the package 'mplib': pip install mplib==0.2.1 there" in refused(recipe(broken, planner="mplib"))


def test_no_vulkan_device(tmp_path, recipe):
    checkout = make_checkout(tmp_path / "robotwin", faults={"setup": ["vulkan", 9]})
    sentence = refused(recipe(checkout))
    assert "SAPIEN cannot render here (failed to find a rendering device)" in sentence and "shader: default" in sentence


def test_background_textures_are_asked_for_only_where_they_are_shown(recipe, worker):
    assert "background_texture; unpack" in refused(recipe(task_config="demo_randomized"))


def test_an_unknown_embodiment_configuration_or_camera_type(recipe):
    with pytest.raises(UserError, match=r"unknown embodiment 'octopus': choose from: aloha-agilex, .*arm_joints"):
        recipe(embodiment=["octopus"])
    assert "has no embodiment 'octopus'; choose from: ARX-X5, aloha-agilex" in refused(
        recipe(embodiment=["octopus"], arm_joints=6)
    )
    assert "choose from: demo_clean, demo_randomized" in refused(recipe(task_config="demo_messy"))


def test_chunks_need_rlinf(recipe):
    assert "execution: chunk needs the branch RLinf_support" in refused(recipe(execution="chunk"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_steps": {"fly": 3}}, "unknown task 'fly'"),
        ({"action_type": "delta"}, "action_type='delta' is not one of: qpos, ee"),
        ({"camera_type": "GoPro"}, "camera_type='GoPro' is not one of: D435"),
        ({"embodiment": ["piper", "piper"]}, "must be one name, or left name, right name and distance"),
        ({"action_type": "ee", "execution": "chunk"}, "takes joint targets"),
        (
            {"embodiment": ["franka-panda", "franka-panda", 0.8], "execution": "chunk"},
            "moves arms of 6 joints, not of 7",
        ),
        ({"num_train_scenes": 10_001}, "num_train_scenes must be in 1..10000"),
        ({"validity": "seed_file"}, "needs train_seed_file or eval_seed_file"),
        ({"eval_seed_file": "nowhere.json"}, "nowhere.json is no list of seeds"),
    ],
)
def test_options_that_make_no_sense(options, sentence, recipe):
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        recipe(**options)


def test_a_camera_that_is_not_shown(recipe):
    assert "shows no camera 'ceiling' here; choose from: head, front, left, right" in refused(
        recipe(cameras=["ceiling"])
    )


def test_noise_is_refused(recipe):
    assert "set expert_noise: 0" in refused(recipe(), spec(expert_noise=0.5))


@pytest.mark.skipif("DVLA_OTHER_PYTHON" not in os.environ, reason="DVLA_OTHER_PYTHON names no Python with numpy 1")
def test_in_an_older_python(recipe, worker):
    slot = worker(recipe(interpreter=os.environ["DVLA_OTHER_PYTHON"]))
    assert demonstrate(slot)[-1]["is_success"]


def test_the_simulators_side_needs_nothing_of_ours_and_no_new_python():
    """Imports at the head of its files are the standard library's, numpy and each other; the syntax is Python 3.8's."""
    import ast
    from pathlib import Path

    from dvla_lightning.envs.robotwin import simulator

    for file in Path(simulator.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text(), feature_version=(3, 8))
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module)
            assert {name.split(".")[0] for name in names} <= {*sys.stdlib_module_names, "numpy"}, file
