"""Demonstrations on disk survive crashes, full disks and second writers, and do not depend on how they were made."""

import json
import os
import resource
import traceback
from types import SimpleNamespace

import numpy as np
import pytest

from dvla_lightning.data.demonstration_writer import DemonstrationWriter
from dvla_lightning.data.demonstrations import DemonstrationDataModule
from dvla_lightning.data.episode_files import load_demonstrations
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.objectives import SupervisedObjective
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import Episode, EpisodeSpec, Transition
from dvla_lightning.tools.collect import collect

TASKS = ["detour", "reach"]
KILLED = 9


def collect_five(directory, num_envs=3, num_workers=0, noise=2.0):
    """Five demonstrations, of an expert that fails now and then."""
    collector = Collector(Tabletop(), num_workers=num_workers, num_envs=num_envs, progress=False)
    collect(collector, str(directory), 5, tasks=TASKS, expert_noise=noise, observe_every=3, seed=1)


def in_child(function, *args):
    """Runs a function in a forked child; 0, `KILLED`, or the sentence of a UserError."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            function(*args)
        except UserError as error:
            os.write(writer, str(error).encode())
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        sentence = pipe.read()
    _, status = os.waitpid(pid, 0)
    return sentence or os.waitstatus_to_exitcode(status)


def die_at(number, function, *args):
    """Ends the process, without any clean-up, before the n-th step that makes something durable."""
    steps = iter(range(number))

    def dying(step):
        def call(*args, **kwargs):
            if next(steps, None) is None:
                os._exit(KILLED)
            return step(*args, **kwargs)

        return call

    os.replace, os.fsync = dying(os.replace), dying(os.fsync)
    function(*args)


def content(directory):
    """Everything a training run reads, as bytes."""
    _, demonstrations = load_demonstrations(directory)
    return [
        (d.task, d.instruction, *(x.tobytes() for x in (d.actions, d.observed_at, d.proprioception, d.images["top"])))
        for d in demonstrations
    ]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    directory = tmp_path_factory.mktemp("reference") / "demos"
    collect_five(directory)
    rows = [json.loads(line) for line in (directory / "episodes.jsonl").read_text().splitlines()]
    assert len(rows) > 5 == sum(row["success"] for row in rows)  # some failed: what follows is about them, too
    return directory


def test_killed_at_any_moment_it_is_a_data_set_that_continues_to_the_same_one(reference, tmp_path):
    outcomes = []
    for number in range(100):
        directory = tmp_path / str(number)
        outcomes.append(in_child(die_at, number, collect_five, directory))
        assert outcomes[-1] in (0, KILLED)
        try:
            assert set(content(directory)) <= set(content(reference))
        except UserError as error:
            assert "no successful episode" in str(error) or "no dataset.json" in str(error)
        collect_five(directory)
        assert content(directory) == content(reference)
        assert not list(directory.glob("*.partial"))
        if outcomes[-1] == 0:
            break
    assert outcomes[-1] == 0 and len(outcomes) > 2 + 5 * 3  # a header, and five episodes of three steps each


def sft_losses(directory, tiny_policy):
    """Losses of one epoch, and the statistics of the data."""
    data = DemonstrationDataModule(str(directory), batch_size=8)
    progress = SimpleNamespace(current=SimpleNamespace(processed=0))
    data.trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(policy=tiny_policy), world_size=1, global_rank=0,
        fit_loop=SimpleNamespace(epoch_progress=progress),
    )  # fmt: skip
    objective = SupervisedObjective()
    losses = [float(objective(tiny_policy, batch).loss.detach()) for batch in data.train_dataloader()]
    return losses, [x.sum(0).tolist() for x in data.statistics_data()]


@pytest.mark.parametrize("how", ["other number of simulators", "two workers", "interrupted and continued"])
def test_training_does_not_depend_on_how_demonstrations_were_collected(how, reference, tmp_path, tiny_policy):
    directory = tmp_path / "demos"
    if how == "interrupted and continued":
        assert in_child(die_at, 9, collect_five, directory, 5) == KILLED
    collect_five(directory, num_envs=1, num_workers=2 * (how == "two workers"))
    assert content(directory) == content(reference)
    losses, statistics = sft_losses(directory, tiny_policy)
    assert len(losses) > 2 and (losses, statistics) == sft_losses(reference, tiny_policy)


def test_two_writers_at_once_are_refused_and_the_first_goes_on(reference, tmp_path):
    with DemonstrationWriter(tmp_path / "d", Tabletop(), 3, 2.0):
        sentence = in_child(collect_five, tmp_path / "d")
        assert f"another `dvla collect` (process {os.getpid()} on " in sentence and "is writing to" in sentence
    collect_five(tmp_path / "d")
    assert content(tmp_path / "d") == content(reference)


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_a_full_disk_ends_in_a_sentence_and_leaves_what_continues(size, reference, tmp_path):
    """The limit on file sizes makes the kernel refuse to write on, as a full disk does."""

    def on_a_small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        collect_five(tmp_path / "d")

    sentence = in_child(on_a_small_disk)
    assert "cannot be written (File too large)" in sentence and "Traceback" not in sentence
    collect_five(tmp_path / "d")
    assert content(tmp_path / "d") == content(reference)


def test_what_an_interrupted_collection_of_old_left_is_taken_up(reference, tmp_path):
    """An empty dataset.json, or half a line at the end of the log."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d/dataset.json").touch()
    collect_five(tmp_path / "d")
    with (tmp_path / "d/episodes.jsonl").open("a") as log:
        log.write('{"number": 7, "ta')
    assert content(tmp_path / "d") == content(reference)
    collect_five(tmp_path / "d")
    assert json.loads((tmp_path / "d/episodes.jsonl").read_text().splitlines()[-1])


def test_reading_changes_nothing(reference):
    log = reference / "episodes.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"number": 7, "ta')
    load_demonstrations(reference)
    assert log.read_text() == whole + '{"number": 7, "ta'
    log.write_text(whole)


def test_a_deleted_file_is_named_and_collected_again(reference, tmp_path, capsys):
    collect_five(tmp_path / "d")
    file = sorted((tmp_path / "d").glob("*.npz"))[1]
    file.unlink()
    with pytest.raises(UserError, match=f"{file.name} is missing or no file, though the log names it"):
        load_demonstrations(tmp_path / "d")
    collect_five(tmp_path / "d")
    assert f"1 files are gone, {file.name} the first" in capsys.readouterr().out
    assert content(tmp_path / "d") == content(reference)


@pytest.mark.parametrize("place", ["/proc/self/demos", "a file"])
def test_a_directory_that_cannot_be_written_ends_in_a_sentence(place, tmp_path):
    (tmp_path / "a file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        collect_five(tmp_path / place)


def make_episode(spoil=None):
    """A successful episode of two chunks; `spoil` changes its transitions."""
    transitions = [
        Transition(
            {"images": {"top": np.zeros((32, 32, 3), np.uint8)}, "proprioception": np.zeros(4), "instruction": "go"},
            np.zeros((0 if n == 0 else 2, 2), np.float32), terminated=n == 2, is_success=n == 2,
        )
        for n in range(3)
    ]  # fmt: skip
    if spoil:
        spoil(transitions)
    return Episode(EpisodeSpec("reach", "train", 5, 7), transitions, [None, None])


def spoil_action(transitions):
    transitions[2].actions[1, 0] = np.inf


def spoil_proprioception(transitions):
    transitions[1].observation["proprioception"][3] = np.nan


def spoil_overflow(transitions):
    transitions[1].observation["proprioception"][3] = 1e300


def spoil_image(transitions):
    transitions[1].observation["images"]["top"] = np.zeros((32, 32, 3), np.float32)


def spoil_size(transitions):
    transitions[1].observation["images"]["top"] = np.zeros((16, 16, 3), np.uint8)


def spoil_camera(transitions):
    for transition in transitions:
        transition.observation["images"] = {"side": transition.observation["images"]["top"]}


def spoil_instruction(transitions):
    for transition in transitions:
        transition.observation["instruction"] = b"go"


def spoil_width(transitions):
    transitions[2].actions = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_action, "actions holds inf in row 3, dimension 0"),
        (spoil_proprioception, "proprioception holds nan in row 1, dimension 3"),
        (spoil_overflow, "proprioception holds inf in row 1, dimension 3"),
        (spoil_image, "image_top has type float32, it must be uint8"),
        (spoil_size, "shape"),
        (spoil_camera, "top"),
        (spoil_instruction, "instruction has type"),
        (spoil_width, "dimension"),
    ],
)
def test_an_episode_that_is_no_demonstration_is_an_error_and_never_kept(spoil, reason, tmp_path):
    with DemonstrationWriter(tmp_path / "d", Tabletop(), 2, 0.0) as writer:
        writer.add(make_episode())
        spoiled = make_episode(spoil)
        writer.add(spoiled)
        writer.add(make_episode())
    good, bad, _ = [json.loads(line) for line in (tmp_path / "d/episodes.jsonl").read_text().splitlines()]
    assert good["success"] and good["error"] is None
    assert not bad["success"] and bad["file"] is None and reason in bad["error"]
    assert spoiled.error == bad["error"] and len(list((tmp_path / "d").glob("*.npz"))) == 2


def test_collecting_only_broken_episodes_names_what_is_broken(tmp_path, monkeypatch):
    from dvla_lightning.envs.tabletop import TabletopEnv

    observe = TabletopEnv.observe
    monkeypatch.setattr(
        TabletopEnv, "observe", lambda self: {**observe(self), "proprioception": np.full(4, np.nan, np.float32)}
    )
    with pytest.raises(UserError, match=r"every episode ended in an error, the first one in: .*nan"):
        collect_five(tmp_path / "d", noise=0.0)
