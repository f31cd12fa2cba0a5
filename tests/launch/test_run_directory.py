"""One directory per run: what it holds is not overwritten, and two fits never share it."""

import os
import subprocess
import sys

import pytest

from dvla_lightning import locks
from dvla_lightning.errors import UserError
from dvla_lightning.launch.run_directory import RunDirectory


@pytest.fixture
def root(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return tmp_path / "run"


def add(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return path


def test_auto_is_last_where_there_is_one_and_a_new_run_elsewhere(root):
    directory = RunDirectory(root)
    assert directory.checkpoint("fit", "auto") is None
    with pytest.raises(UserError, match="no run to resume"):
        directory.checkpoint("fit", "last")
    last = add(root / "checkpoints" / "last.ckpt")
    assert directory.checkpoint("fit", "auto") == directory.checkpoint("validate", "last") == last
    with pytest.raises(UserError, match="auto is for fit"):
        directory.checkpoint("validate", "auto")


def test_an_empty_directory_and_one_with_other_things_are_free(root):
    add(root / "notes.txt")
    add(root / "policy-best" / "config.json")  # of a run that was killed before its first checkpoint
    RunDirectory(root).check_free(None)


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ("checkpoints/last.ckpt", "continue it with --ckpt_path last"),
        ("checkpoints/epoch=3.ckpt", "without a last checkpoint"),
        ("policy/config.json", "without a last checkpoint"),
    ],
)
def test_a_run_is_not_overwritten(held, expected, root, tmp_path):
    add(root / held)
    with pytest.raises(UserError, match=expected):
        RunDirectory(root).check_free(None)
    with pytest.raises(UserError, match="is of another one"):
        RunDirectory(root).check_free(add(tmp_path / "other" / "checkpoints" / "last.ckpt"))


def test_going_back_to_an_earlier_checkpoint_of_the_run_is_allowed(root, monkeypatch, tmp_path):
    add(root / "checkpoints" / "last.ckpt")
    monkeypatch.chdir(tmp_path)
    relative = RunDirectory("run").checkpoint("fit", str(add(root / "checkpoints" / "epoch=3.ckpt")))
    RunDirectory("run").check_free(relative)


HOLD = """
import sys
from dvla_lightning.launch.run_directory import RunDirectory
held = RunDirectory(sys.argv[1])
held.lock()
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_second_fit_is_told_who_holds_the_directory_until_that_one_ends(root):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"being written to by another fit .process {holder.pid} on "):
            RunDirectory(root).lock()
    finally:
        holder.kill()
        holder.communicate()
    after = RunDirectory(root)
    after.lock()  # what a killed process left is no lock
    assert str(os.getpid()) in (root / ".lock").read_text()
    with pytest.raises(UserError, match="another fit"):
        RunDirectory(root).lock()  # in the same process, too
    after.release()
    RunDirectory(root).lock()


def test_without_locks_on_the_file_system_a_run_goes_on_and_says_so(root, monkeypatch, capsys):
    import errno

    def unsupported(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unsupported)
    RunDirectory(root).lock()
    assert "no locks on this file system" in capsys.readouterr().err


def locked(path):
    directory = RunDirectory(path)
    directory.lock()
    return directory


def test_a_directory_in_which_nothing_was_trained_goes_away_with_its_lock_and_log(tmp_path):
    directory = locked(tmp_path / "runs" / "a")
    add(directory.root / f"events.out.tfevents.1.host.{os.getpid()}.0")
    directory.checkpoints.mkdir()
    directory.release()
    assert list(tmp_path.iterdir()) == []
    locked(tmp_path / "runs" / "a")  # and can be made again


@pytest.mark.parametrize(
    "other", ["config.yaml", "notes.txt", "checkpoints/last.ckpt", "events.out.tfevents.1.host.1.0"]
)
def test_a_directory_that_holds_anything_else_stays_as_it_is(other, tmp_path):
    directory = locked(tmp_path / "run")
    for name in (other, f"events.out.tfevents.1.host.{os.getpid()}.0"):
        add(directory.root / name)
    before = set(tmp_path.rglob("*"))
    directory.release()
    assert set(tmp_path.rglob("*")) == before and tmp_path / "run" / ".lock" in before


def test_a_directory_that_was_there_before_stays(tmp_path):
    (tmp_path / "run").mkdir()
    locked(tmp_path / "run").release()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_lock_that_is_removed_while_somebody_takes_it_is_taken_again(tmp_path, monkeypatch):
    first, take = locked(tmp_path / "run"), locks.lock_descriptor

    def late(*args, **options):
        monkeypatch.undo()
        first.release()
        return take(*args, **options)

    monkeypatch.setattr(locks, "lock_descriptor", late)
    second = locked(tmp_path / "run")
    with pytest.raises(UserError, match="another fit"):
        RunDirectory(tmp_path / "run").lock()
    second.release()
