"""docs/data-reader.md: its example trains, and what a reader brings that does not fit is named."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from dvla_lightning.cli import main
from dvla_lightning.data import Demonstration, DemonstrationDataModule, DemonstrationSet
from dvla_lightning.data.episode_files import load_demonstrations
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.tools.collect import collect

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data-reader.md").read_text()
BLOCKS = dict(re.findall(r"```(python|bash|yaml)\n(.*?)```", PAGE, re.DOTALL))
TINY = {
    "model.policy.backbone.dim": 16,
    "model.policy.backbone.num_layers": 1,
    "model.policy.backbone.num_heads": 2,
    "data.batch_size": 8,
    "trainer.max_steps": 3,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
}


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collected")
    collect(Collector(Tabletop(), num_envs=5, progress=False), str(folder / "demos"), 5)
    return folder / "demos"


@pytest.fixture
def mine(collected, tmp_path, monkeypatch):
    """The working directory of the page's reader, with the same episodes in the format of the page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_reader.py").write_text(BLOCKS["python"])
    importlib.invalidate_caches()
    for number, demo in enumerate(load_demonstrations(collected)[1]):
        folder = tmp_path / "data" / "mine" / f"{number:03}"
        folder.mkdir(parents=True)
        for name, array in (("actions", demo.actions), ("states", demo.proprioception), ("top", demo.images["top"])):
            np.save(folder / f"{name}.npy", array.astype(float) if name != "top" else array)
        (folder / "task.json").write_text(json.dumps({"instruction": demo.instruction, "task": demo.task}))
    return tmp_path


def command(mine):
    """The command of the page, on a small policy and without a validation."""
    words = BLOCKS["bash"].split()
    assert words[:2] == ["PYTHONPATH=.", "dvla"] and len(BLOCKS["python"].splitlines()) <= 40
    words[words.index("configs/sft.yaml")] = str(ROOT / "configs/sft.yaml")
    options = {**TINY, "data.evaluation.num_episodes": 0, "trainer.default_root_dir": mine / "run"}
    return [*words[2:], *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def test_the_reader_of_the_page_trains(mine):
    main(command(mine))
    assert (mine / "run" / "policy" / "model.safetensors").exists()
    saved = yaml.safe_load((mine / "run" / "config.yaml").read_text())["data"]
    shown = yaml.safe_load(BLOCKS["yaml"])["data"]
    assert saved["class_path"] == shown["class_path"] and set(shown["init_args"]) <= set(saved["init_args"])


def test_it_reads_what_the_built_in_reader_reads(mine, collected):
    reader = importlib.import_module("my_reader").FolderDemonstrations
    own, known = reader("data/mine").demonstrations, DemonstrationDataModule(str(collected)).demonstrations
    for a, b in zip(own, known, strict=True):
        assert np.array_equal(a.actions, b.actions) and np.array_equal(a.observed_at, b.observed_at)
        assert np.array_equal(a.images["top"], b.images["top"]) and isinstance(a.images["top"], np.memmap)
        assert np.array_equal(a.proprioception, b.proprioception)
        assert (a.instruction, a.task) == (b.instruction, b.task)


def test_a_demonstration_that_does_not_fit_is_named(mine, refusal):
    file = mine / "data" / "mine" / "003" / "states.npy"
    np.save(file, np.load(file)[:-1])
    sentence = refusal(command(mine))
    assert "data/mine, as FolderDemonstrations.read() reads it: demonstration 3: proprioception has shape" in sentence


class CountedFrames:
    """Pictures that are made when they are asked for, and a count of them."""

    dtype = np.dtype(np.uint8)

    def __init__(self, num, size=32):
        self.shape, self.asked = (num, size, size, 3), []

    def __getitem__(self, number):
        self.asked.append(number)
        return np.full(self.shape[1:], number, np.uint8)


def demonstration(num=6, **changes):
    fields = {
        "actions": np.zeros((num, 2), np.float32),
        "observed_at": np.arange(num),
        "images": {"top": CountedFrames(num)},
        "proprioception": np.zeros((num, 4), np.float32),
        "instruction": "reach the red block",
        "task": "reach",
    }
    return Demonstration(**{**fields, **changes})


def read_by(found):
    """A data module whose reader returns `found`."""

    class Given(DemonstrationDataModule):
        def read(self):
            return found

    return Given("somewhere")


def test_pictures_are_read_for_their_batch_alone(tiny_policy):
    from dvla_lightning.data.demonstrations import ChunkDataset

    data = read_by(DemonstrationSet((demonstration(), demonstration()), "seen the test"))
    data.statistics_data()
    assert data.training_remark() == "seen the test" and not data.demonstrations[1].images["top"].asked
    batch = ChunkDataset(data.demonstrations, tiny_policy).__getitems__([2, 9])
    assert [demo.images["top"].asked for demo in data.demonstrations] == [[2], [3]]
    assert len(batch.actions) == 2


BAD = {
    "nothing": (DemonstrationSet([]), "there is no demonstration"),
    "a list": ([demonstration()], "must return a DemonstrationSet, it returned list"),
    "actions in a list": (DemonstrationSet([demonstration(actions=[[0.0, 0.0]])]), "actions is of type list, it must"),
    "actions of doubles": (DemonstrationSet([demonstration(actions=np.zeros((6, 2)))]), "actions has type float64"),
    "flat actions": (DemonstrationSet([demonstration(actions=np.zeros(6, np.float32))]), "it must be (6, any)"),
    "a number as actions": (DemonstrationSet([demonstration(actions=np.float32(0))]), "actions has shape ()"),
    "NaN": (
        DemonstrationSet([demonstration(), demonstration(actions=np.full((6, 2), np.nan, np.float32))]),
        "demonstration 1: actions holds nan in row 0",
    ),
    "too few pictures": (
        DemonstrationSet([demonstration(images={"top": CountedFrames(5)})]),
        "image_top has shape (5,",
    ),
    "no instruction": (DemonstrationSet([demonstration(instruction="")]), "demonstration 0: instruction is empty"),
    "another camera": (
        DemonstrationSet([demonstration(), demonstration(images={"wrist": CountedFrames(6)})]),
        "demonstration 1 has cameras ['wrist'], demonstration 0 has ['top']",
    ),
    "another size": (
        DemonstrationSet([demonstration(), demonstration(images={"top": CountedFrames(6, 16)})]),
        "demonstration 1 has images of size {'top': (16, 16)}, demonstration 0 has {'top': (32, 32)}",
    ),
    "another robot": (
        DemonstrationSet([demonstration(), demonstration(actions=np.zeros((6, 7), np.float32))]),
        "demonstration 1 has action_dim 7, demonstration 0 has 2",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_reader_returns_is_checked(name):
    found, sentence = BAD[name]
    with pytest.raises(UserError) as refusal:
        _ = read_by(found).demonstrations
    assert sentence in str(refusal.value) and "Given.read()" in str(refusal.value)
