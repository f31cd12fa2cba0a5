"""Checkpoint files: a fault of the disk costs nothing that was there, and what is read is what was written."""

import errno
import os
import stat
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from dvla_lightning.checkpointing.storage import RunCheckpointIO, guard_checkpoints, read_checkpoint
from dvla_lightning.errors import UserError
from tests.checkpointing.tiny_runs import damage, load, loops


def contents(number=0.0):
    return {
        "epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.0.0", "loops": loops(),
        "state_dict": {"weight": torch.full((1000,), number)},
    }  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """last.ckpt (2) and previous.ckpt (1)."""
    for number in (1.0, 2.0):
        RunCheckpointIO().save_checkpoint(contents(number), tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def number_in(path):
    return float(RunCheckpointIO().load_checkpoint(path)["state_dict"]["weight"][0])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_checkpoint_before_stays(saved):
    assert (number_in(saved), number_in(saved.with_name("previous.ckpt"))) == (2, 1)
    assert names(saved.parent) == ["last.ckpt", "previous.ckpt"]


def test_other_checkpoints_keep_no_previous_one(tmp_path):
    for number in (1.0, 2.0):
        RunCheckpointIO().save_checkpoint(contents(number), tmp_path / "best.ckpt")
    assert names(tmp_path) == ["best.ckpt"]


def test_a_damaged_last_checkpoint_does_not_replace_the_previous_one_that_a_run_went_on_from(saved):
    damage(saved)
    storage = RunCheckpointIO()
    previous = saved.with_name("previous.ckpt")
    storage.load_checkpoint(previous)
    storage.save_checkpoint(contents(3.0), saved)
    assert (number_in(previous), number_in(saved)) == (1, 3)
    storage.save_checkpoint(contents(4.0), saved)
    assert (number_in(previous), number_in(saved)) == (3, 4)


def test_nothing_is_written_to_tmpdir(tmp_path, monkeypatch):
    """It may be another file system, from which a copy is not atomic."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    RunCheckpointIO().save_checkpoint(contents(), tmp_path / "last.ckpt")
    assert names(tmp_path) == ["last.ckpt"]


def test_access_rights_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        RunCheckpointIO().save_checkpoint(contents(), tmp_path / "last.ckpt")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "last.ckpt").stat().st_mode) == 0o640


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("num_bytes", [0, 3000])
def test_a_fault_of_the_disk_after_any_number_of_bytes_leaves_both_checkpoints(number, num_bytes, saved, monkeypatch):
    save = torch.save

    class Disk:
        """Takes a number of bytes and no more."""

        def __init__(self, file):
            self.file, self.taken = file, 0

        def write(self, data):
            self.taken += len(data)
            if self.taken > num_bytes:
                raise OSError(number, os.strerror(number))
            return self.file.write(data)

    monkeypatch.setattr(torch, "save", lambda checkpoint, file: save(checkpoint, Disk(file)))
    with pytest.raises(UserError, match=rf"last.ckpt cannot be written \({os.strerror(number)}\): "):
        RunCheckpointIO().save_checkpoint(contents(3.0), saved)
    assert (number_in(saved), number_in(saved.with_name("previous.ckpt"))) == (2, 1)
    assert names(saved.parent) == ["last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["weights", "optimizer"])
def test_no_checkpoint_that_is_not_finite_is_written(place, value, saved):
    bad = contents(3.0)
    if place == "weights":
        bad["state_dict"]["weight"][7] = value
    else:
        bad["optimizer_states"] = [{"state": {0: {"exp_avg_sq": torch.tensor([0.0, value])}}, "param_groups": []}]
    name = "weight" if place == "weights" else "optimizer 0, exp_avg_sq of parameter 0"
    with pytest.raises(UserError, match=f"last.ckpt was not written: {name} holds numbers that are not finite"):
        RunCheckpointIO().save_checkpoint(bad, saved)
    assert (number_in(saved), number_in(saved.with_name("previous.ckpt"))) == (2, 1)


@pytest.mark.parametrize("num_bytes", [1, 100])
def test_damaged_bytes_are_seen_and_the_previous_checkpoint_is_offered(num_bytes, saved):
    damage(saved, num_bytes)
    load(saved)  # torch itself does not look at checksums
    with pytest.raises(UserError) as caught:
        read_checkpoint(saved)
    previous = saved.with_name("previous.ckpt")
    assert "last.ckpt is damaged (the checksum of " in str(caught.value)
    assert str(caught.value).endswith(f"{previous} is whole, go on from there with --ckpt_path {previous}")


def test_a_damaged_checkpoint_is_never_offered(saved):
    damage(saved)
    damage(saved.with_name("previous.ckpt"))
    with pytest.raises(UserError, match="there is no other one in its directory"):
        read_checkpoint(saved)


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("variable", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
@pytest.mark.parametrize("place", ["everything", "state_dict", "hyper_parameters"])
def test_code_in_a_checkpoint_never_runs(place, variable, tmp_path, monkeypatch):
    if variable:
        monkeypatch.setenv(variable, "1")
    attack, victim = Attack(tmp_path / "ran"), tmp_path / "last.ckpt"
    torch.save(attack if place == "everything" else {**contents(), place: {"weight": attack}}, victim)
    for read in (read_checkpoint, RunCheckpointIO().load_checkpoint):
        with pytest.raises(UserError, match="may be code, and was not read"):
            read(victim)
    with pytest.raises(UserError, match="may be code, and was not read"):
        RunCheckpointIO().load_checkpoint(victim, weights_only=False)
    assert not (tmp_path / "ran").exists()
    torch.load(victim, weights_only=False)
    assert (tmp_path / "ran").exists()  # the attack works where it is let in


def test_contradicting_variables_are_a_sentence(saved, monkeypatch):
    for variable in ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        monkeypatch.setenv(variable, "1")
    with pytest.raises(UserError, match="Only one of"):
        read_checkpoint(saved)


def test_a_trainer_is_guarded_unless_the_user_brings_a_plugin(tmp_path):
    options = {"default_root_dir": tmp_path, "logger": False, "accelerator": "cpu"}
    elsewhere = ModelCheckpoint(dirpath=tmp_path / "elsewhere", monitor="x")
    trainer = Trainer(**options, callbacks=[ModelCheckpoint(), elsewhere])
    guard_checkpoints(trainer)
    assert type(trainer.strategy.checkpoint_io) is RunCheckpointIO
    folders = [Path(callback.dirpath).name for callback in trainer.checkpoint_callbacks]
    assert folders == ["checkpoints", "elsewhere"]
    with_plugin = Trainer(**options, plugins=[AsyncCheckpointIO()])
    guard_checkpoints(with_plugin)
    assert type(with_plugin.strategy.checkpoint_io) is AsyncCheckpointIO


@pytest.mark.parametrize("options", [{"save_last": True}, {"filename": "last"}, {"filename": "previous"}], ids=str)
def test_nothing_else_takes_the_place_of_the_runs_own_checkpoints(options, tmp_path):
    trainer = {"default_root_dir": tmp_path, "logger": False, "accelerator": "cpu"}
    with pytest.raises(UserError, match="the run's own and always written"):
        guard_checkpoints(Trainer(**trainer, callbacks=[ModelCheckpoint(**options)]))
    guard_checkpoints(Trainer(**trainer, callbacks=[ModelCheckpoint(dirpath=tmp_path / "elsewhere", **options)]))
