"""Faults of disk and numbers in the middle of a run: one sentence, exit code 2, and the last checkpoint is good."""

import errno
import os
import subprocess
import threading

import pytest
import torch

from dvla_lightning.launch.quiet import faults_said_once
from dvla_lightning.module import DVLAModule
from tests.checkpointing.tiny_runs import UPDATES, damage, load


def good(path, iterations):
    return load(path)["global_step"] == iterations * UPDATES


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses_the_third_checkpoint(number, run_rl, whole, tmp_path, refusal, monkeypatch):
    """After half of its bytes; the run goes on from the second one."""
    save, calls = torch.save, []

    def refuse(checkpoint, file):
        calls.append(file)
        if len(calls) == 3:
            file.write(bytes(100_000))
            raise OSError(number, os.strerror(number))
        save(checkpoint, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", refuse)
        assert f"last.ckpt cannot be written ({os.strerror(number)})" in refusal(run_rl, tmp_path)
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert good(folder / "last.ckpt", 2) and good(folder / "previous.ckpt", 1)
    run_rl(tmp_path, ckpt_path="last")
    expected, found = load(whole / "checkpoints" / "last.ckpt"), load(folder / "last.ckpt")
    assert all(value.equal(found["state_dict"][name]) for name, value in expected["state_dict"].items())


def test_a_full_disk_before_the_first_checkpoint(run_rl, tmp_path, refusal, monkeypatch):
    def refuse(checkpoint, file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", refuse)
    assert "last.ckpt cannot be written (No space left on device): free some space" in refusal(run_rl, tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.fixture
def tiny_disk(tmp_path):
    """A function that mounts a file system of some kilobytes; skips where that is not allowed."""
    mounted = []

    def mount(kilobytes, *options):
        place = tmp_path / f"disk{kilobytes}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={kilobytes}k", *options]), "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True)
        except OSError:
            pytest.skip("there is no mount")
        if done.returncode:
            pytest.skip("mounting is not allowed here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize(("kilobytes", "iterations"), [(12, 0), (600, 1), (1000, 2)])
def test_a_disk_that_is_really_full(kilobytes, iterations, tiny_disk, run_rl, refusal):
    """In 12 kB there is not even room for the log of TensorBoard."""
    run = tiny_disk(kilobytes) / "run"
    assert "cannot be written (No space left on device): free some space" in refusal(run_rl, run)
    assert not list(run.glob("checkpoints/.*"))
    if iterations:
        assert good(run / "checkpoints" / "last.ckpt", iterations)


def test_a_disk_that_is_read_only(tiny_disk, run_rl, refusal):
    assert "may not be written to: choose another directory" in refusal(run_rl, tiny_disk(100, "ro") / "run")


def test_a_log_that_cannot_be_written_is_a_sentence(run_rl, tmp_path, refusal, monkeypatch):
    """The thread in which TensorBoard writes hands the error over to the training; it must not print it, too."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    write, printed = RecordWriter.write, []

    def refuse(writer, data):
        if (tmp_path / "checkpoints" / "last.ckpt").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(writer, data)

    monkeypatch.setattr(RecordWriter, "write", refuse)
    monkeypatch.setattr(threading, "excepthook", printed.append)
    assert "cannot be written (No space left on device)" in refusal(run_rl, tmp_path) and not printed
    assert load(tmp_path / "checkpoints" / "last.ckpt")


def test_other_threads_still_say_what_happened_to_them(monkeypatch):
    printed = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    with faults_said_once():
        thread = threading.Thread(target=os.stat, args=("/no/such/file",))
        thread.start()
        thread.join()
    assert len(printed) == 1 and threading.excepthook == printed.append


def test_weights_that_become_nan_end_the_run_and_are_not_saved(run_rl, tmp_path, refusal, monkeypatch):
    """Whatever made them: here, something behind the back of every other guard."""

    def poison(module):
        if module.current_epoch == 1:
            with torch.no_grad():
                next(module.policy.backbone.head.parameters())[0] = float("nan")

    monkeypatch.setattr(DVLAModule, "on_train_epoch_end", poison)
    line = refusal(run_rl, tmp_path)
    assert "last.ckpt was not written: policy.backbone.head.weight holds numbers that are not finite" in line
    assert good(tmp_path / "checkpoints" / "last.ckpt", 1)
    assert not (tmp_path / "policy").exists()


def test_a_damaged_last_checkpoint_is_recognised_and_the_previous_one_serves(run_rl, tmp_path, refusal):
    run_rl(tmp_path, trainer__max_epochs=2)
    last, previous = (tmp_path / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    whole = load(last)
    damage(last)
    line = refusal(run_rl, tmp_path, ckpt_path="last")
    assert "last.ckpt is damaged" in line
    assert f"{previous} is whole, go on from there with --ckpt_path {previous}" in line
    run_rl(tmp_path, ckpt_path=previous, trainer__max_epochs=2)
    found = load(last)["state_dict"]
    assert good(last, 2) and good(previous, 1)
    assert all(value.equal(found[name]) for name, value in whole["state_dict"].items())


@pytest.mark.parametrize("word", ["auto", "last"])
def test_a_previous_checkpoint_alone_is_not_overlooked(word, run_rl, tmp_path, refusal):
    run_rl(tmp_path, trainer__max_epochs=2)
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    if word == "auto":
        run_rl(tmp_path, ckpt_path=word, trainer__max_epochs=2)
        assert good(tmp_path / "checkpoints" / "last.ckpt", 2)
    else:
        line = refusal(run_rl, tmp_path, ckpt_path=word, trainer__max_epochs=2)
        assert "last.ckpt does not exist, go on from" in line and "previous.ckpt" in line


def test_a_development_run_writes_nothing(run_rl, tmp_path):
    run_rl(
        tmp_path / "run",
        trainer__fast_dev_run="true",
        data__evaluation__num_episodes=1,
        data__evaluation__num_recorded_episodes=1,
    )
    left = [path for path in (tmp_path / "run").rglob("*") if path.is_file()] if (tmp_path / "run").exists() else []
    assert not left
