"""Data sets that cannot be used: each kind of damage ends in exit code 2 and one sentence, and writes nothing."""

import functools
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import yaml

from dvla_lightning.data.demonstrations import ChunkDataset
from dvla_lightning.data.episode_files import load_demonstrations, num_copies
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.tools.collect import collect

pytestmark = pytest.mark.usefixtures("quiet_logging")

FIRST = "episode_000000.npz"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Three demonstrations."""
    directory = tmp_path_factory.mktemp("good") / "demos"
    collect(Collector(Tabletop(), num_envs=1, progress=False), str(directory), 3, tasks="reach", observe_every=3)
    return directory


@pytest.fixture
def demos(good, tmp_path):
    shutil.copytree(good, tmp_path / "demos")
    return tmp_path / "demos"


def fit(refusal, tmp_path, demos, *more):
    """What SFT of a small policy says."""
    backbone = {"cameras": ["top"], "image_size": 32, "proprioception_dim": 4}
    backbone |= {"dim": 16, "num_layers": 1, "num_heads": 2, "channels": 8}
    policy = {
        "backbone": {"class_path": "MiniBackbone", "init_args": backbone},
        "action_tokenizer": {"class_path": "UniformBins", "init_args": {"num_bins": 8}},
        "action_dim": 2,
        "chunk_size": 4,
    }
    config = {
        "model": {"policy": policy, "objective": {"class_path": "SupervisedObjective"}},
        "data": {"class_path": "DemonstrationDataModule", "init_args": {"path": str(demos)}},
        "trainer": {"default_root_dir": str(tmp_path / "run"), "max_epochs": 1, "accelerator": "cpu"},
    }
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(config))
    sentence = refusal(["fit", "--config", tmp_path / "sft.yaml", *more])
    assert not list(tmp_path.glob("run/**/*.ckpt")) and not (tmp_path / "run/policy").exists()
    return sentence


# -- kinds of damage: each makes a function of the directory ----------------------------------------------------------

REMOVED = object()


def change(record, changes):
    return {name: value for name, value in {**record, **changes}.items() if value is not REMOVED}


def header(**changes):
    def damage(demos):
        file = demos / "dataset.json"
        file.write_text(json.dumps(change(json.loads(file.read_text()), changes)))

    return damage


def row(line=0, **changes):
    def damage(demos):
        file = demos / "episodes.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows[line] = change(rows[line], changes)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return damage


def arrays(**changes):
    """New arrays of the first episode; a function gets the old one."""

    def damage(demos):
        with np.load(demos / FIRST) as file:
            old = dict(file)
        new = {name: value(old[name].copy()) if callable(value) else value for name, value in changes.items()}
        np.savez(demos / FIRST, **change(old, new))

    return damage


def text(name, content):
    def damage(demos):
        (demos / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def put(value, *place):
    def spoil(array):
        array[place] = value
        return array

    return spoil


def both(*damages):
    def damage(demos):
        for one in damages:
            one(demos)

    return damage


def file(action):
    """Does something to the first episode's file."""
    return lambda demos: action(demos / FIRST)


def become_a_directory(path):
    path.unlink()
    path.mkdir()


def cut(path):
    path.write_bytes(path.read_bytes()[:-300])


def zero_a_hundred_bytes(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 100] = bytes(100)
    path.write_bytes(content)


def become_one_array(path):
    with path.open("wb") as out:
        np.save(out, np.zeros(3))


def become_a_link_out(path):
    path.rename(path.parents[1] / "elsewhere.npz")
    path.symlink_to(path.parents[1] / "elsewhere.npz")


def become_a_link_to_itself(path):
    path.unlink()
    path.symlink_to(path)


def promise_terabytes(path):
    """A file of a few kB whose header declares 3 TB of zeros."""
    with np.load(path) as old:
        kept = {name: old[name] for name in old.files if name != "image_top"}
    np.savez(path, **kept)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("image_top.npy", "w") as member:
        declared = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 32, 32, 3)}
        np.lib.format.write_array_header_1_0(member, declared)
        member.write(bytes(10**5))


def encrypt(path):
    """Sets the flag of encryption in the zip's directory."""
    content = path.read_bytes()
    place = content.rindex(b"PK\x01\x02") + 8
    first = content.index(b"PK\x01\x02") + 8
    spoiled = bytearray(content)
    for at in (place, first):
        spoiled[at] |= 1
    path.write_bytes(spoiled)


class Evil:
    """Unpickling it would leave a file."""

    def __reduce__(self):
        return os.system, ("touch evil",)


def repeat_last_row(demos):
    log = demos / "episodes.jsonl"
    rows = log.read_text().splitlines()
    again = {**json.loads(rows[-1]), "number": 9}
    shutil.copy(demos / again["file"], demos / "episode_000009.npz")
    log.write_text("\n".join([*rows, json.dumps({**again, "file": "episode_000009.npz"})]) + "\n")


bad_header = functools.partial(text, "dataset.json")
bad_log = functools.partial(text, "episodes.jsonl")
grey = functools.partial(np.mean, axis=-1)
DIFFERENT_SIZE = arrays(image_top=lambda a: a[:, ::2, ::2])

DAMAGES = {
    # dataset.json
    "header: missing": (lambda demos: (demos / "dataset.json").unlink(), "no dataset.json"),
    "header: empty": (bad_header(""), "dataset.json is damaged"),
    "header: a list": (bad_header("[]"), "dataset.json is damaged (it is no JSON object)"),
    "header: no UTF-8": (bad_header(b"\xff\xfe{"), "dataset.json is damaged"),
    "header: nested": (bad_header("[" * 10**5), "dataset.json is damaged"),
    "header: version 2": (header(format_version=2), "format_version 2, this release reads 1"),
    "header: no version": (header(format_version=REMOVED), "it has no format_version"),
    "header: version true": (header(format_version=True), "format_version is True, it must be 1"),
    "header: no environment": (header(environment=REMOVED), "it has no environment"),
    "header: environment is text": (header(environment="Tabletop"), "environment is 'Tabletop'"),
    "header: environment without class": (header(environment={}), "environment is {}"),
    "header: remark is a number": (header(environment={"class": "T", "training_remark": 3}), "environment is {"),
    "header: no cameras": (header(cameras=REMOVED), "it has no cameras"),
    "header: a camera twice": (header(cameras=["top", "top"]), "cameras is ['top', 'top']"),
    "header: cameras is text": (header(cameras="top"), "cameras is 'top'"),
    "header: another camera": (header(cameras=["top", "wrist"]), "it has no array image_wrist"),
    "header: no action_dim": (header(action_dim=REMOVED), "it has no action_dim"),
    "header: negative action_dim": (header(action_dim=-2), "action_dim is -2, it must be a positive whole number"),
    "header: action_dim true": (header(action_dim=True), "action_dim is True"),
    "header: other action_dim": (header(action_dim=3), "actions has shape"),
    "header: proprioception_dim is text": (header(proprioception_dim="4"), "proprioception_dim is '4'"),
    "header: observe_every 0": (header(observe_every=0), "observe_every is 0"),
    "header: expert_noise NaN": (header(expert_noise=float("nan")), "expert_noise is nan"),
    # episodes.jsonl
    "log: missing": (lambda demos: (demos / "episodes.jsonl").unlink(), "holds no successful episode"),
    "log: empty": (bad_log(""), "holds no successful episode"),
    "log: only half a line": (bad_log('{"number": 0'), "holds no successful episode"),
    "log: a damaged line": (bad_log("{]\n"), "episodes.jsonl is damaged in line 1"),
    "log: a number": (bad_log("3\n"), "damaged in line 1 (it is no JSON object): remove line 1"),
    "log: no task": (row(1, task=REMOVED), "damaged in line 2 (it has no task)"),
    "log: empty task": (row(task=""), "task is ''"),
    "log: negative state": (row(initial_state=-1), "initial_state is -1"),
    "log: state is a fraction": (row(initial_state=1.5), "initial_state is 1.5"),
    "log: success is text": (row(success="yes"), "success is 'yes'"),
    "log: success without a file": (row(file=None), "success is True, but file is None"),
    "log: failure with a file": (row(success=False), f"success is False, but file is '{FIRST}'"),
    "log: numbers decrease": (row(number=7), "number 1 follows number 7"),
    "log: seconds infinite": (row(seconds=float("inf")), "seconds is inf"),
    "log: an episode twice": (repeat_last_row, "are the same episode; remove one of the two lines"),
    "log: a file twice": (row(1, file=FIRST), "numbers 0 and 1 are the same episode"),
    "log: file above": (row(file="../elsewhere.npz"), "file is '../elsewhere.npz'"),
    "log: file absolute": (row(file="/etc/passwd"), "file is '/etc/passwd'"),
    "log: file in a folder": (row(file="a/b.npz"), "file is 'a/b.npz'"),
    "log: file is the directory": (row(file=".."), "file is '..'"),
    "log: file missing": (row(file="episode_7.npz"), "episode_7.npz is missing or no file"),
    "log: other length": (row(num_env_steps=1), "actions has shape"),
    "log: other task": (row(task="push"), "task is 'reach', the log says 'push'"),
    # a data file as such
    "file: a directory": (file(become_a_directory), "is missing or no file"),
    "file: cut": (file(cut), f"{FIRST} is damaged"),
    "file: zeroed bytes": (file(zero_a_hundred_bytes), f"{FIRST} is damaged"),
    "file: empty": (text(FIRST, ""), f"{FIRST} is damaged"),
    "file: text": (text(FIRST, "hello"), f"{FIRST} is damaged (File is not a zip file)"),
    "file: one array": (file(become_one_array), f"{FIRST} is damaged (File is not a zip file)"),
    "file: a link out": (file(become_a_link_out), "is a link to a file outside of the data set"),
    "file: a link to itself": (file(become_a_link_to_itself), "is missing or no file"),
    "file: terabytes": (file(promise_terabytes), "image_top has shape (1000000000, 32, 32, 3)"),
    "file: encrypted": (file(encrypt), f"{FIRST} is damaged"),
    "file: pickled": (arrays(actions=np.array([Evil()], object)), "actions has type object"),
    "file: pickled task": (arrays(task=np.array(Evil(), object)), "task has type object"),
    # its arrays
    "actions: missing": (arrays(actions=REMOVED), "it has no array actions"),
    "actions: none": (arrays(actions=lambda a: a[:0]), "actions has shape (0, 2)"),
    "no steps at all": (both(arrays(actions=lambda a: a[:0]), row(num_env_steps=0)), "actions is empty"),
    "actions: inf": (
        arrays(actions=put(np.inf, 2, 1)),
        f"{FIRST} is damaged (actions holds inf in row 2, ",
    ),
    "actions: -inf": (arrays(actions=put(-np.inf, 0, 0)), "actions holds -inf in row 0, dimension 0"),
    "actions: NaN twice": (arrays(actions=put(np.nan, 1)), "nan in row 1, dimension 0, the first of 2 such values"),
    "actions: float64": (arrays(actions=np.float64), "actions has type float64, it must be float32"),
    "actions: other width": (arrays(actions=lambda a: a[:, :1]), "actions has shape"),
    "actions: one line": (arrays(actions=np.ravel), "actions has shape"),
    "proprioception: NaN": (arrays(proprioception=put(np.nan, 1, 3)), "proprioception holds nan in row 1, dimension 3"),
    "proprioception: fewer": (arrays(proprioception=lambda a: a[:-1]), "proprioception has shape"),
    "proprioception: other width": (arrays(proprioception=lambda a: a[:, :3]), "proprioception has shape"),
    "observed_at: late": (arrays(observed_at=lambda a: a + 1), "observed_at must begin with 0"),
    "observed_at: backwards": (arrays(observed_at=lambda a: a[::-1].copy()), "observed_at must begin with 0"),
    "observed_at: twice": (arrays(observed_at=put(0, 1)), "observed_at must begin with 0, increase"),
    "observed_at: beyond": (arrays(observed_at=put(10**6, -1)), "stay below"),
    "observed_at: float": (arrays(observed_at=np.float32), "observed_at has type float32, it must be int64"),
    "observed_at: a number": (arrays(observed_at=np.int64(0)), "observed_at has shape ()"),
    "images: fewer": (arrays(image_top=lambda a: a[:-1]), "image_top has shape"),
    "images: float": (arrays(image_top=lambda a: (a / 255).astype(np.float32)), "image_top has type float32"),
    "images: uint16": (arrays(image_top=np.uint16), "image_top has type uint16, it must be uint8"),
    "images: bool": (arrays(image_top=lambda a: a > 9), "image_top has type bool"),
    "images: grey": (arrays(image_top=lambda a: grey(a).astype(np.uint8)), "image_top has shape"),
    "images: with alpha": (arrays(image_top=lambda a: a[..., [0, 1, 2, 0]]), "image_top has shape"),
    "images: channels first": (arrays(image_top=lambda a: a.transpose(0, 3, 1, 2)), "image_top has shape"),
    "images: empty": (arrays(image_top=lambda a: a[:, :0]), "image_top is empty"),
    "images: other size in one": (
        DIFFERENT_SIZE,
        "of size (32, 32), episode_000000.npz of size (16, 16)",
    ),
    "instruction: bytes": (arrays(instruction=np.array(b"reach")), "instruction has type |S5, it must be str"),
    "instruction: a list": (arrays(instruction=np.array(["reach", "it"])), "instruction has shape (2,), it must be ()"),
    "instruction: a number": (arrays(instruction=np.array(3)), "instruction has type int64, it must be str"),
    "instruction: empty": (arrays(instruction=np.array("")), "instruction is empty"),
    "instruction: blank": (arrays(instruction=np.array(" \n")), "instruction is empty"),
    "instruction: missing": (arrays(instruction=REMOVED), "it has no array instruction"),
    "task: bytes": (arrays(task=np.array(b"reach")), "task has type |S5, it must be str"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_data_set_is_refused_with_one_sentence(name, tmp_path, demos, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where what is unpickled would leave its mark
    damage, sentence = DAMAGES[name]
    damage(demos)
    with pytest.raises(UserError) as found:
        load_demonstrations(demos)
    said = str(found.value)
    assert sentence in said and str(demos) in said and "\n" not in said
    assert not (tmp_path / "evil").exists()


# One of every kind through the whole command, which takes longer.
KINDS = ["header: empty", "header: version 2", "header: a camera twice", "log: empty", "log: a damaged line"]
KINDS += ["log: an episode twice", "log: file above", "log: file missing", "file: cut", "file: zeroed bytes"]
KINDS += ["file: pickled", "actions: inf", "proprioception: NaN", "observed_at: late", "images: float"]
KINDS += ["images: other size in one", "instruction: bytes"]


@pytest.mark.parametrize("name", KINDS)
def test_training_on_a_damaged_data_set_ends_with_one_sentence(name, refusal, tmp_path, demos):
    damage, sentence = DAMAGES[name]
    damage(demos)
    said = fit(refusal, tmp_path, demos)
    assert sentence in said and str(demos) in said


OTHER_ROBOT = {
    "another number of actions": (["--model.policy.action_dim", 4, "--model.policy.chunk_size", 2], "has action_dim 2"),
    "another camera": (["--model.policy.backbone.cameras", "[side]"], "the policy reads camera 'side'"),
    "another image size": (["--model.policy.backbone.image_size", 64], "the policy reads 64 x 64 RGB images"),
    "another proprioception": (["--model.policy.backbone.proprioception_dim", 7], "reads 7 proprioception numbers"),
    "batches of nothing": (["--data.batch_size", 0], "batch_size must be a number at least 1"),
    "no such directory": (["--data.path", "nowhere"], "nowhere is no directory of demonstrations"),
    "a file for a directory": (["--data.path", "sft.yaml"], "sft.yaml is no directory of demonstrations"),
}


@pytest.mark.parametrize("name", OTHER_ROBOT)
def test_data_that_do_not_fit_the_policy_are_refused(name, refusal, tmp_path, demos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options, sentence = OTHER_ROBOT[name]
    assert sentence in fit(refusal, tmp_path, demos, *options)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cameras": ("top", "wrist")}, "has cameras ['top'], Tabletop, the environment of the evaluation, has"),
        ({"proprioception_dim": 5}, "has proprioception_dim 4, Tabletop, the environment of the evaluation, has 5"),
    ],
)
def test_data_of_another_robot_than_the_evaluation_are_refused(
    changes, sentence, refusal, tmp_path, demos, monkeypatch
):
    for name, value in changes.items():
        monkeypatch.setattr(Tabletop, name, value)
    more = ["--data.collector.environment", "Tabletop", "--data.num_steps", 2, "--data.evaluation.num_episodes", 5]
    assert sentence in fit(refusal, tmp_path, demos, *more)


def listing(seeds):
    return json.dumps({"stack_blocks_two": {"success_seeds": seeds}})


COLLECT = {
    "noise negative": (["--expert_noise", -1], "--expert_noise must be a number from 0, got -1"),
    "noise NaN": (["--expert_noise", "nan"], "expert_noise: Expected a"),
    "noise infinite": (["--expert_noise", "inf"], "expert_noise: Expected a"),
    "no attempts": (["--num_attempts", 0], "--num_attempts must be at least 1, got 0"),
    "never observed": (["--observe_every", 0], "--observe_every must be at least 1, got 0"),
    "seed negative": (["--seed", -1], "--seed must not be negative, got -1"),
    "seed is text": (["--seed", "zero"], "zero"),
    "too few": (["--num_episodes", 4], "num_episodes must be at least the number of tasks (5), got 4"),
    "negative": (["--num_episodes", -3], "num_episodes must be at least the number of tasks (5), got -3"),
    "unknown task": (["--tasks", "[fly]"], "unknown task 'fly'; choose from: reach"),
    "no task": (["--tasks", "[]"], "no task given"),
    "a task twice": (["--tasks", "[reach, reach]"], "task 'reach' is given twice"),
    "no place": (["--out", ""], "--out is empty"),
    "a file": (["--out", "a_file"], "a_file cannot be written"),
    "not writable": (["--out", "/proc/self/demos"], "/proc/self/demos cannot be written"),
    "other observe_every": (
        ["--out", "demos", "--observe_every", 2],
        "holds demonstrations with another observe_every",
    ),
    "unknown environment": (["--collector.environment", "Tablecloth"], "Tablecloth"),
}


@pytest.mark.parametrize("name", COLLECT)
def test_bad_arguments_of_collect(name, refusal, tmp_path, demos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").touch()
    options, sentence = COLLECT[name]
    words = [
        "--collector.environment",
        "Tabletop",
        "--num_episodes",
        5,
        "--out",
        "new",
        "--collector.progress",
        "false",
    ]
    assert sentence in refusal(["collect", *words, *options], unchanged=tmp_path)


def test_collecting_into_a_damaged_data_set_leaves_it_as_it_is(refusal, tmp_path, demos):
    row(1, task=REMOVED)(demos)
    damaged = (demos / "episodes.jsonl").read_text()
    args = ["--collector.environment", "Tabletop", "--num_episodes", 5, "--out", demos, "--observe_every", 3]
    assert "damaged in line 2" in refusal(["collect", *args])
    assert (demos / "episodes.jsonl").read_text() == damaged
    (demos / "dataset.json").unlink()
    assert "holds episodes but no dataset.json" in refusal(["collect", *args])


SEEDS = {
    "missing": (None, "No such file or directory"),
    "twice": (listing([100001, 100002, 100001]), "entry 2, lists seed 100001 again"),
    "fraction": (listing([100001.7]), "entry 0, is 100001.7, no whole number"),
    "bool": (listing([True]), "entry 0, is True"),
    "misspelt": ('{"stack_block_two": {"success_seeds": [1]}}', "did you mean 'stack_blocks_two'?"),
    "no key": ('{"stack_blocks_two": {}}', "has no success_seeds"),
}


@pytest.mark.parametrize("name", SEEDS)
def test_bad_lists_of_seeds(name, refusal, tmp_path):
    content, sentence = SEEDS[name]
    if content is not None:
        (tmp_path / "seeds.json").write_text(content)
    words = ["collect", "--collector.environment", "RoboTwin", "--collector.environment.validity", "seed_file"]
    words += ["--collector.environment.train_seed_file", tmp_path / "seeds.json"]
    said = refusal([*words, "--out", tmp_path / "new", "--num_episodes", 50])
    assert sentence in said and "seeds.json" in said and not (tmp_path / "new").exists()


def test_a_chunk_longer_than_an_episode_is_padded_and_no_mistake(demos, tiny_policy):
    both(arrays(actions=lambda a: a[:1], observed_at=lambda a: a[:1], proprioception=lambda a: a[:1],
                image_top=lambda a: a[:1]), row(num_env_steps=1))(demos)  # fmt: skip
    _, demonstrations = load_demonstrations(demos)
    short = next(demo for demo in demonstrations if len(demo.actions) == 1)
    assert ChunkDataset([short], tiny_policy).__getitems__([0]).is_pad.tolist() == [[False, True, True, True]]


def test_copies_under_other_names_are_counted(demos):
    shutil.copy(demos / FIRST, demos / "episode_000002.npz")
    row(2, num_env_steps=json.loads((demos / "episodes.jsonl").read_text().splitlines()[0])["num_env_steps"])(demos)
    assert num_copies(load_demonstrations(demos)[1]) == 1
