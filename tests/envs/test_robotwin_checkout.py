"""RoboTwin itself, wherever ROBOTWIN_ROOT names a checkout; slow on a CPU.

ROBOTWIN_OPTIONS may name a YAML file of the environment, as `dvla doctor --environment` takes it, for machines without
a GPU or without RoboTwin's own robots; `tests/robotwin_pandas.py` writes one.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from dvla_lightning.cli import main
from dvla_lightning.data.episode_files import load_demonstrations
from dvla_lightning.envs.robotwin import RoboTwin
from dvla_lightning.envs.robotwin.simulator.checkout import Checkout
from dvla_lightning.envs.robotwin.tasks import ARM_JOINTS, CAMERA_SIZES, PRIMITIVE_TASKS, STEP_LIMITS
from dvla_lightning.rollout.episode import EpisodeSpec
from dvla_lightning.rollout.foreign_slot import ForeignSlot

pytestmark = [pytest.mark.robotwin, pytest.mark.timeout(3600)]

TASKS = ("stack_blocks_two", "blocks_ranking_rgb")
SECONDS = 1200.0


@pytest.fixture(scope="module")
def checkout():
    return Checkout(os.environ["ROBOTWIN_ROOT"])


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    file = os.environ.get("ROBOTWIN_OPTIONS")
    given = yaml.safe_load(Path(file).read_text())["init_args"] if file else {}
    interpreter = os.environ.get("ROBOTWIN_PYTHON", sys.executable)
    return {"interpreter": interpreter, "cache_dir": str(tmp_path_factory.mktemp("seeds")), **given}


@pytest.fixture(scope="module")
def slot(options):
    made = ForeignSlot(RoboTwin(**{**options, "image_size": None}))
    yield made
    made.close()


def test_our_tables_are_those_of_the_checkout(checkout):
    assert yaml.safe_load((checkout.configs / "_eval_step_limit.yml").read_text()) == STEP_LIMITS
    cameras = yaml.safe_load((checkout.configs / "_camera_config.yml").read_text())
    assert {name: (c["w"], c["h"]) for name, c in cameras.items()} == CAMERA_SIZES
    assert set(ARM_JOINTS) <= set(yaml.safe_load((checkout.configs / "_embodiment_config.yml").read_text()))
    assert all((checkout.root / "envs" / f"{task}.py").is_file() for task in STEP_LIMITS)


def test_which_tasks_need_no_models(checkout):
    assert {task for task in STEP_LIMITS if not checkout.task_models(task)} >= set(PRIMITIVE_TASKS)
    assert checkout.task_models("beat_block_hammer") == ["020_hammer"]


@pytest.mark.parametrize("task", TASKS)
def test_the_recorded_expert_is_replayed_to_success(task, slot):
    spec = EpisodeSpec(task, "heldout", 0, seed=0)
    transitions = [slot.call("reset", spec, SECONDS)]
    first = transitions[0]["observation"]
    assert {image.shape for image in first["images"].values()} == {(240, 320, 3)} and len(first["images"]) == 3
    contrast = {camera: int(image.max()) - int(image.min()) for camera, image in first["images"].items()}
    assert contrast["head"] > 50 and min(contrast.values()) > 0  # a wrist camera may see nothing but the table
    assert len(first["instruction"].split()) > 3 and "{" not in first["instruction"]
    while not (transitions[-1]["terminated"] or transitions[-1]["truncated"]):
        transitions.append(slot.call("demonstrate", 50, SECONDS))
    assert transitions[-1]["is_success"]
    actions = np.concatenate([t["actions"] for t in transitions])
    again = slot.call("reset", spec, SECONDS)["observation"]
    assert again["instruction"] == first["instruction"]
    np.testing.assert_array_equal(again["proprioception"], first["proprioception"])
    assert slot.call("execute", actions, SECONDS)["is_success"]


def test_a_hand_pose_moves_the_hand(options):
    slot = ForeignSlot(RoboTwin(**{**options, "image_size": None, "action_type": "ee", "validity": "none"}))
    try:
        first = slot.call("reset", EpisodeSpec(TASKS[0], "heldout", 0, seed=0), SECONDS)["observation"]
        before = np.asarray(first["proprioception"])
        assert before.shape == (16,)  # position, quaternion, gripper, left and right
        up = before + 0.03 * (np.arange(16) == 2)
        after = np.asarray(slot.call("execute", up[None], SECONDS)["observation"]["proprioception"])
    finally:
        slot.close()
    assert after[2] - before[2] == pytest.approx(0.03, abs=0.005)
    np.testing.assert_allclose(after[:2], before[:2], atol=0.005)
    np.testing.assert_allclose(after[8:], before[8:], atol=0.005)


def words(prefix, options):
    """Command line options."""
    plain = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
    return [f"--{prefix}{name}={value}" for name, value in plain.items()]


@pytest.mark.slow
def test_collect_train_and_validate(options, tmp_path, capsys):
    environment = {"environment": "RoboTwin", **{f"environment.{k}": v for k, v in options.items()}}
    environment |= {"environment.image_size": 64, "num_workers": 1, "progress": False}
    environment |= {"reset_timeout": SECONDS, "step_timeout": SECONDS}
    one = {"tasks": [TASKS[0]]}
    data = {"out": str(tmp_path / "data"), "num_episodes": 2, "observe_every": 8}
    main(["collect", *words("collector.", environment), *words("", {**one, **data})])
    assert len(load_demonstrations(tmp_path / "data")[1]) == 2
    dim = RoboTwin(**options).action_dim
    network = {"backbone.image_size": 64, "backbone.proprioception_dim": dim}
    sft = words("model.policy.", {**network, "action_dim": dim})
    sft += [f"--data.path={tmp_path / 'data'}", f"--trainer.default_root_dir={tmp_path / 'sft'}"]
    main(["fit", "--config", "configs/robotwin/sft.yaml", *sft, "--trainer.max_epochs=1"])
    rl = words("data.collector.", environment)
    rl += words("data.", {**one, "evaluation.num_episodes": 2, "evaluation.num_recorded_episodes": 1})
    rl += [f"--model.policy.pretrained={tmp_path / 'sft' / 'policy'}", f"--trainer.default_root_dir={tmp_path / 'v'}"]
    main(["validate", "--config", "configs/robotwin/rl.yaml", *rl])
    assert "(n = 2)" in capsys.readouterr().out
