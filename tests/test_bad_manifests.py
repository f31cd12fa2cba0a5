"""Bad manifests, records, schedules and runs: each ends in its one sentence and exit code 2, and nothing is touched."""

import json
import shutil

import pytest
import torch

from dvla_lightning.cli import main
from dvla_lightning.evaluation import chain
from dvla_lightning.evaluation.manifest import read_whole_evaluation
from tests.test_training import arguments

DEEP = b"[" * 200_000 + b"]" * 200_000
LONG = b"9" * 10_000


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A finished evaluation of five episodes; nobody writes here."""
    from dvla_lightning.actions.tokenizer import UniformBins
    from dvla_lightning.backbones import MiniBackbone
    from dvla_lightning.policy import DVLAPolicy

    root = tmp_path_factory.mktemp("good")
    torch.manual_seed(0)
    shape = {"num_positions": 8, "vocab_size": 8, "dim": 16, "num_layers": 1, "num_heads": 2, "channels": 8}
    policy = DVLAPolicy(
        backbone=MiniBackbone(cameras=["top"], image_size=32, proprioception_dim=4, **shape),
        action_tokenizer=UniformBins(8),
        action_dim=2,
        chunk_size=4,
        normalization="identity",
    )
    policy.is_fitted = True
    policy.save_pretrained(root / "policy")
    main(validate(root))
    return root


def validate(root, **options):
    """The command line of the evaluation in `root`."""
    options = {name.replace("__", "."): value for name, value in options.items()}
    return arguments(
        "validate",
        "rl.yaml",
        {
            "model.policy.pretrained": root / "policy",
            "data.evaluation.num_episodes": 5,
            "data.evaluation.num_recorded_episodes": 0,
            "data.collector.progress": "false",
            "trainer.accelerator": "cpu",
            "trainer.enable_progress_bar": "false",
            "trainer.default_root_dir": root / "run",
            **options,
        },
    )


@pytest.fixture
def copy(good, tmp_path):
    """A copy of it that a test may damage."""
    return shutil.copytree(good, tmp_path / "copy")


# -- manifests ---------------------------------------------------------------------------------------------------------


def rows(data):
    """The lines of a manifest as dictionaries without checksums."""
    return [{k: v for k, v in json.loads(line).items() if k != chain.KEY} for line in data.splitlines()]


def sealed(contents):
    """A chain over some contents, as one who knows how would write it."""
    last, lines = chain.START, []
    for content in contents:
        line, last = chain.seal(last, content)
        lines.append(line)
    return b"".join(lines)


def change(number, **fields):
    """One line changed, and the chain written anew."""
    return lambda data: sealed([{**row, **(fields if n == number else {})} for n, row in enumerate(rows(data))])


def lines(edit):
    """The lines edited, the chain left alone."""
    return lambda data: b"".join(edit(data.splitlines(keepends=True)))


MANIFESTS = {
    "binary": (lambda data: bytes(range(256)) + b"\n", "line 1 (it is no JSON)"),
    "no UTF-8": (lambda data: data.replace(b"reach", b"re\xffch", 1), "line 1 (it is no JSON)"),
    "a list": (lambda data: b"[]\n" + data, "line 1 (it is no JSON object)"),
    "a number": (lambda data: b"7\n", "line 1 (it is no JSON object)"),
    "null": (lambda data: b"null\n", "line 1 (it is no JSON object)"),
    "an empty line first": (lambda data: b"\n" + data, "line 1 (it is no JSON)"),
    "nested": (lambda data: DEEP + b"\n", "line 1 (it is no JSON)"),
    "a long number": (lambda data: data.replace(b'"seed": 0', b'"seed": ' + LONG, 1), "line 1 (it is no JSON)"),
    "NaN": (lambda data: data.replace(b'"seed": 0', b'"seed": NaN', 1), "line 1 (it is no JSON)"),
    "an older version": (
        change(0, format_version=1),
        "it has format version 1, this release of dvla-lightning reads 2",
    ),
    "no version": (lambda data: b"{}\n", "it has format version None"),
    "no tasks": (change(0, num_steps={}), "num_steps must say K"),
    "tasks in a list": (change(0, num_steps=["reach"]), "num_steps is missing or of a wrong type"),
    "K is true": (change(0, num_steps={"reach": True}), "num_steps must say K"),
    "no episodes": (change(0, episodes_per_task=0), "episodes_per_task cannot be 0"),
    "half an episode": (change(0, episodes_per_task=0.5), "episodes_per_task is missing or of a wrong type"),
    "more than memory": (change(0, episodes_per_task=10**15), "episodes_per_task cannot be 1000000000000000"),
    "another split": (change(0, split="train"), "unknown split 'train'"),
    "a seed in text": (change(0, seed="0"), "seed is missing or of a wrong type"),
    "remarks of numbers": (change(0, remarks=[1]), "tasks, remarks, suite and protocol must be printable text"),
    "a task of half a character": (change(0, num_steps={"\ud800": 4}), "must be printable text"),
    "a remark that moves the cursor": (change(0, remarks=["\x1b[2J"]), "must be printable text"),
    "a suite in a list": (change(0, environment={"suite": ["x"]}), "must be printable text"),
    "header twice": (lines(lambda all: [all[0], *all]), "line 2 (its checksum does not fit"),
    "header gone": (lines(lambda all: all[1:]), "line 1 (it has format version None"),
    "a line gone": (lines(lambda all: [*all[:2], *all[3:]]), "line 3 (its checksum does not fit"),
    "a line twice": (lines(lambda all: [*all[:3], *all[2:]]), "line 4 (its checksum does not fit"),
    "lines exchanged": (lines(lambda all: [all[0], all[2], all[1], *all[3:]]), "line 2 (its checksum does not fit"),
    "a success made": (lambda data: data.replace(b'"success": false', b'"success": true', 1), "checksum does not fit"),
    "zeros inside": (lambda data: data[:900] + bytes(100) + data[1000:], "is damaged in line"),
    "cut inside": (lambda data: data[:900] + data[1000:], "is damaged in line"),
    "an unknown task": (change(2, task="juggle"), "the evaluation has no task 'juggle'"),
    "a state beyond": (change(2, initial_state=1), "the evaluation has no initial state 1"),
    "a state below": (change(2, initial_state=-1), "the evaluation has no initial state -1"),
    "a huge state": (change(2, initial_state=10**300), "the evaluation has no initial state 1000000"),
    "another seed": (change(2, seed=7), "the seed is not the one of this episode"),
    "another K": (change(2, num_steps=1), "num_steps is not the one of this task"),
    "success in text": (change(2, success="yes"), "success is of a wrong type"),
    "success is 1": (change(2, success=1), "success is of a wrong type"),
    "steps below zero": (change(2, num_env_steps=-1), "cannot be negative"),
    "steps beyond counting": (change(2, num_decisions=10**400), "cannot be negative or so large"),
    "seconds in a list": (change(2, seconds=[]), "seconds is of a wrong type"),
    "an error that succeeded": (change(2, error="died", success=True), "an episode with an error cannot be a success"),
    "an unknown field": (change(2, colour="red"), "'colour' is missing or unknown"),
    "a task that is a list": (change(2, task=["reach"]), "task is of a wrong type"),
    "an episode twice": (lambda data: sealed([*rows(data), rows(data)[1]]), "initial state 0 is there already"),
    "grown to text": (lambda data: sealed([*rows(data), {"episodes_per_task": "9"}]), "episodes_per_task cannot be 9"),
}


@pytest.mark.parametrize("damage", MANIFESTS)
def test_a_damaged_manifest_is_neither_merged_nor_reported(damage, copy, good, refusal):
    edit, sentence = MANIFESTS[damage]
    path = copy / "run" / "evaluation.jsonl"
    path.write_bytes(edit(path.read_bytes()))
    report = ["report", "--before", good / "run", "--after", copy / "run", "--run", copy, "--out", copy / "r.png"]
    for command in (["merge", copy / "run", "--out", copy / "all"], report):
        found = refusal(command, unchanged=copy)
        assert f"{path} is damaged in line" in found and sentence in found and "delete the file" in found


def test_a_damaged_manifest_is_not_continued(copy, refusal):
    path = copy / "run" / "evaluation.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"success": false', b'"success": true', 1))
    assert "is damaged in line" in refusal(validate(copy), unchanged=copy)
    path.unlink()
    path.mkdir()
    assert f"{path} cannot be written (Is a directory)" in refusal(validate(copy), unchanged=copy)
    path.rmdir()
    (copy / "run" / "evaluation.rank-3.jsonl").mkdir()
    assert "evaluation.rank-3.jsonl cannot be read (Is a directory)" in refusal(validate(copy), unchanged=copy)


def test_merge_refuses_what_is_no_shard_and_where_it_cannot_write(copy, refusal):
    run, out = copy / "run", copy / "all"
    (copy / "file").write_text("x")
    (copy / "empty").mkdir()
    (copy / "empty" / "evaluation.jsonl").touch()
    for shard in ("file", "empty", "nowhere"):
        assert "holds no evaluation.jsonl" in refusal(["merge", copy / shard, "--out", out], unchanged=copy)
    assert "is in both" in refusal(["merge", run, run, "--out", out], unchanged=copy)
    assert "holds an evaluation already" in refusal(["merge", run, "--out", run], unchanged=copy)
    assert "cannot be written (" in refusal(["merge", run, "--out", copy / "file" / "all"], unchanged=copy)
    assert "cannot be read (File name too long)" in refusal(["merge", run, "--out", "x" * 300], unchanged=copy)
    path = run / "evaluation.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert "1 of 5 episodes are in none of the shards" in refusal(["merge", run, "--out", out], unchanged=copy)


# -- the rest of a report ----------------------------------------------------------------------------------------------


def test_report_refuses_what_it_cannot_read_or_write(copy, good, refusal):
    def sentence(before=good / "run", run=copy, out=copy / "r.png"):
        command = ["report", "--before", before, "--after", good / "run", "--run", run, "--out", out]
        return refusal(command, unchanged=copy)

    path = copy / "run" / "evaluation.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # killed while it wrote the last line
    assert "holds 4 of 5 episodes: run its command again to finish it" in sentence(before=copy / "run")
    path.unlink()
    path.mkdir()
    assert "cannot be read (Is a directory)" in sentence(before=copy / "run")
    assert "holds no evaluation.jsonl: `dvla validate` writes it" in sentence(before=copy / "nowhere")
    (copy / "older").mkdir()
    (copy / "older" / "evaluation.json").write_text("{}")
    assert "holds only the evaluation.json of an older release: run `dvla validate` again" in sentence(copy / "older")
    (copy / "events.out.tfevents.1").write_bytes(bytes(range(256)) * 9)
    assert "has no TensorBoard scalar" in sentence()
    (copy / "events.out.tfevents.1").unlink()
    write_scalars(copy / "curve", ["rollout/success_rate"])
    assert "has no TensorBoard scalar 'epoch'" in sentence(run=copy / "curve")
    write_scalars(copy / "run", ["epoch", "rollout/success_rate"])
    (copy / "file").write_text("x")
    assert "cannot be written (" in sentence(run=copy / "run", out=copy / "file" / "r.png")
    (copy / "folder.png").mkdir()
    assert "cannot be written (Is a directory)" in sentence(run=copy / "run", out=copy / "folder.png")
    (copy / "run" / "pictures").mkdir()
    (copy / "run" / "pictures" / "success.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    assert "success.png is damaged (" in sentence(run=copy / "run")


def write_scalars(folder, names):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name in names:
            writer.add_scalar(name, 1.0, 1)


# -- schedules ---------------------------------------------------------------------------------------------------------

ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

SCHEDULES = {
    "empty": (b"", "is not a step schedule"),
    "binary": (bytes(range(256)), "is not YAML"),
    "no UTF-8": (b"num_steps: {re\xffch: 1}", "is not YAML"),
    "a list": (b"[1, 2]", "is not a step schedule"),
    "nested": (b"[" * 5000, "is not YAML"),
    "unknown key": (b"num_steps: {reach: 1}\ncolour: red", "has the unknown key 'colour'"),
    "no tasks": (b"num_steps: {}", "num_steps must say K for every task"),
    "one number": (b"num_steps: 4", "num_steps must say K for every task"),
    "K is zero": (b"num_steps: {reach: 0}", "must be a positive integer, got 0"),
    "K is true": (b"num_steps: {reach: true}", "must be a positive integer, got True"),
    "K is text": (b"num_steps: {reach: four}", "must be a positive integer, got 'four'"),
    "K is half a step": (b"num_steps: {reach: 1.5}", "must be a positive integer, got 1.5"),
    "K is null": (b"num_steps: {reach: null}", "must be a positive integer, got None"),
    "a list of steps": (b"num_steps: [1]", "num_steps must say K for every task"),
    "nothing of each": (b"num_steps:", "num_steps must say K for every task"),
    "a scalar": (b"4", "is not a step schedule"),
    "K is NaN": (b"num_steps: {reach: .nan}", "must be a positive integer, got nan"),
    "K is a long number": (b"num_steps: {reach: " + LONG + b"}", "is not YAML"),
    "an impossible day": (b"num_steps: {reach: 2024-13-45}", "is not YAML"),
    "an odd tag": (b"num_steps: {reach: !!timestamp soon}", "is not YAML"),
    "an empty number": (b"num_steps: {reach: !!int ''}", "is not YAML"),
    "code": (b"num_steps: !!python/object/apply:os.getcwd []", "is not YAML"),
    "a task that is a number": (b"num_steps: {1: 1}", "is not the name of a task"),
    "evidence of text": (b"num_steps: {reach: 1}\nevidence: good", "evidence must be what `dvla schedule` wrote"),
    "aliases": (f"{ALIASES}num_steps: {{reach: *i}}".encode(), "aliases are not allowed"),
    "a task is missing": (b"num_steps: {reach: 1}", "has no entry for task 'carry'"),
    "an unknown task": (b"num_steps: {juggle: 1}", "unknown task 'juggle'"),
    "too many steps": (b"num_steps: {reach: 1000}", "task 'reach': "),
}


@pytest.mark.parametrize("damage", SCHEDULES)
def test_a_bad_schedule_evaluates_nothing(damage, copy, refusal):
    content, sentence = SCHEDULES[damage]
    path = copy / "schedule.yaml"
    path.write_bytes(content)
    found = refusal(validate(copy, data__schedule=path, trainer__default_root_dir=copy / "new"), unchanged=copy)
    assert str(path) in found and sentence in found


def test_a_schedule_that_is_a_directory_or_nowhere(copy, refusal):
    for path, sentence in ((copy, "cannot be read (Is a directory)"), (copy / "nowhere.yaml", "does not exist")):
        assert sentence in refusal(validate(copy, data__schedule=path), unchanged=copy)


# -- the command itself ------------------------------------------------------------------------------------------------

OPTIONS = {
    "a negative number": (
        {"data.evaluation.num_episodes": -5},
        "num_episodes must be a number at least 0, got -5",
    ),
    "an uneven grid": ({"data.evaluation.num_episodes": 7}, "must be a positive multiple of the 5 tasks"),
    "a huge grid": ({"data.evaluation.num_episodes": 10**12}, "can be 1000000 at most"),
    "an unknown split": ({"data.evaluation.split": "train"}, "split"),
    "an old directory": ({"data.evaluation.seed": 5}, "different are: seed (0 there, 5 here)"),
    "fewer episodes": ({"data.tasks": "[reach, push]", "data.evaluation.num_episodes": 2}, "different are: num_steps"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_evaluation_that_cannot_be(name, copy, refusal):
    options, sentence = OPTIONS[name]
    assert sentence in refusal(validate(copy, **options), unchanged=copy)


def test_seeds_may_be_any_number(copy):
    main(validate(copy, data__evaluation__seed=-1, trainer__default_root_dir=copy / "new"))
    main(validate(copy, data__evaluation__seed=2**70, trainer__default_root_dir=copy / "newer"))
    first, second = (read_whole_evaluation(copy / name) for name in ("new", "newer"))
    assert (first[0]["seed"], second[0]["seed"]) == (-1, 2**70) and first[1] != second[1]
