"""Demonstrations on disk and as chunks."""

import json

import numpy as np
import pytest
import torch

from dvla_lightning.data.demonstration_set import Demonstration
from dvla_lightning.data.demonstration_writer import DemonstrationWriter
from dvla_lightning.data.demonstrations import ChunkDataset, DemonstrationDataModule
from dvla_lightning.data.episode_files import load_demonstrations
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.tools.collect import collect


@pytest.fixture
def directory(tmp_path):
    collect(Collector(Tabletop(), num_envs=4, progress=False), str(tmp_path / "demos"), 6, observe_every=3)
    return tmp_path / "demos"


def test_recorded_actions_replay_to_success(directory):
    """What is on disk is what was done: open loop from the same initial state it solves the task again."""
    rows = [json.loads(line) for line in (directory / "episodes.jsonl").read_text().splitlines()]
    rows.sort(key=lambda row: (row["task"], row["initial_state"]))
    _, demonstrations = load_demonstrations(directory)
    env = Tabletop().make()
    assert len(demonstrations) == len([row for row in rows if row["success"]]) == 6
    for row, demo in zip(rows, demonstrations, strict=True):
        options = {"task": row["task"], "split": "train", "initial_state": row["initial_state"]}
        observation, _ = env.reset(seed=row["seed"], options=options)
        assert demo.observed_at.tolist() == list(range(0, len(demo.actions), 3))
        for number, action in enumerate(demo.actions):
            if number % 3 == 0:
                kept = demo.observation(number // 3)
                assert np.array_equal(kept["images"]["top"], observation["images"]["top"])
                assert np.array_equal(kept["proprioception"], observation["proprioception"])
            observation, _, _, _, info = env.step(action)
        assert info["is_success"] and demo.instruction == observation["instruction"]


def test_chunks_start_at_observations_and_mark_what_lies_beyond_the_end(tiny_policy):
    image = np.zeros((2, 32, 32, 3), np.uint8)
    demo = Demonstration(
        np.arange(10, dtype=np.float32).reshape(5, 2) / 10, np.array([0, 3]), {"top": image},
        np.zeros((2, 4), np.float32), "reach the red block", "reach",
    )  # fmt: skip
    batch = ChunkDataset([demo], tiny_policy).__getitems__([0, 1])
    torch.testing.assert_close(batch.actions[0], torch.from_numpy(demo.actions[:4]))
    torch.testing.assert_close(batch.actions[1], torch.from_numpy(demo.actions[[3, 4, 4, 4]]))
    assert batch.is_pad.tolist() == [[False] * 4, [False, False, True, True]]
    assert batch.prompt["pixels"].shape == (2, 1, 32, 32, 3)


def test_a_damaged_file_is_named(directory):
    file = sorted(directory.glob("*.npz"))[2]
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"episode_000002.npz is damaged .*delete it and collect again"):
        load_demonstrations(directory)


def test_a_damaged_header_is_named(directory):
    (directory / "dataset.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json is damaged"):
        load_demonstrations(directory)


def test_a_log_line_cut_short_by_a_crash_is_dropped(directory):
    log = directory / "episodes.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"number": 9')
    environment = Tabletop()
    observe_every = json.loads((directory / "dataset.json").read_text())["observe_every"]
    writer = DemonstrationWriter(directory, environment, observe_every, 0.0)
    assert len(writer.rows) == len(whole.splitlines()) and log.read_text() == whole


def test_another_format_version_is_refused(directory):
    header = json.loads((directory / "dataset.json").read_text())
    (directory / "dataset.json").write_text(json.dumps({**header, "format_version": 99}))
    with pytest.raises(UserError, match="format_version 99"):
        load_demonstrations(directory)


def test_what_tables_must_say_comes_with_the_demonstrations(tmp_path, monkeypatch):
    collect(Collector(Tabletop(), progress=False), str(tmp_path / "plain"), 5)
    monkeypatch.setattr(Tabletop, "identity", lambda self: {"class": "Tabletop", "training_remark": "seen the test"})
    collect(Collector(Tabletop(), progress=False), str(tmp_path / "remarkable"), 5)
    remarks = [DemonstrationDataModule(str(tmp_path / name)).training_remark() for name in ("plain", "remarkable")]
    assert remarks == [None, "seen the test"]
