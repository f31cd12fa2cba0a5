"""A file is whole or as it was before, whatever the disk says."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest
import torch

from dvla_lightning.errors import UserError
from dvla_lightning.files import atomic_file, atomic_text, make_folder, remove_partial
from tests.full_disk import largest_file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def old(tmp_path):
    (tmp_path / "a").write_text("old")
    return tmp_path / "a"


def test_the_file_is_replaced_at_the_end_of_the_block(old):
    with atomic_file(old) as file:
        file.write(b"new")
        assert old.read_text() == "old"
    assert old.read_text() == "new" and names(old.parent) == ["a"]


def test_missing_folders_are_made_and_text_is_utf8(tmp_path):
    atomic_text(tmp_path / "b" / "c" / "d.txt", "\N{GREEK SMALL LETTER GAMMA}")
    assert (tmp_path / "b" / "c" / "d.txt").read_bytes() == b"\xce\xb3"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_access_rights_follow_the_umask(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        atomic_text(tmp_path / "a", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_a_failing_block_leaves_the_old_file_alone(old):
    with pytest.raises(ZeroDivisionError), atomic_file(old, old.with_name("previous")) as file:
        file.write(b"new")
        file.flush()
        1 / 0  # noqa: B018
    assert old.read_text() == "old" and names(old.parent) == ["a"]


def test_what_was_there_before_is_kept_under_its_new_name(old):
    previous = old.with_name("b")
    for text in ("one", "two"):
        with atomic_file(old, previous) as file:
            file.write(text.encode())
    assert (previous.read_text(), old.read_text()) == ("one", "two") and names(old.parent) == ["a", "b"]


def test_without_hard_links_the_previous_file_is_kept_too(old, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    with atomic_file(old, old.with_name("b")) as file:
        file.write(b"new")
    assert (old.with_name("b").read_text(), old.read_text()) == ("old", "new")


@pytest.mark.parametrize("write", [lambda f: f.write(b"x" * 100_000), lambda f: torch.save(torch.zeros(100_000), f)])
def test_a_file_that_may_not_grow_is_a_sentence(write, old):
    """With torch.save as well, which hides the error of the operating system in its own."""
    sentence = r"a cannot be written \(File too large\): raise the limit"
    with pytest.raises(UserError, match=sentence), largest_file(50_000), atomic_file(old) as file:
        write(file)
    assert old.read_text() == "old" and names(old.parent) == ["a"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_is_a_sentence_wherever_it_shows(step, old, monkeypatch):
    """Network file systems say only at fsync, or at close, that there was no room."""

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if step != "write":
        monkeypatch.setattr(os, step, full)
    sentence = r"a cannot be written \(No space left on device\): free some space"
    with pytest.raises(UserError, match=sentence), atomic_file(old) as file:
        file.write(b"new")
        if step == "write":
            full()
    monkeypatch.undo()
    assert old.read_text() == "old" and names(old.parent) == ["a"]


def test_a_path_through_a_file_is_a_sentence(old):
    for write in (lambda: atomic_text(old / "b" / "c", ""), lambda: make_folder(old), lambda: make_folder(old / "b")):
        with pytest.raises(UserError, match="a part of that path is a file: choose another directory"):
            write()
    assert old.read_text() == "old"


def test_a_directory_in_the_place_of_the_file_is_a_sentence(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="there is a directory of that name"):
        atomic_text(tmp_path / "a", "")
    assert names(tmp_path) == ["a"]


def test_other_errors_of_the_block_pass_unchanged(old):
    with pytest.raises(RuntimeError, match=r"^mine$"), atomic_file(old):
        raise RuntimeError("mine")


def test_writers_at_the_same_time_do_not_mix(tmp_path):
    texts = [str(n) * 300_000 for n in range(8)]
    threads = [threading.Thread(target=atomic_text, args=(tmp_path / "a", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_text() in texts and names(tmp_path) == ["a"]


def test_a_killed_writer_leaves_the_old_file_and_its_rest_can_be_removed(old):
    code = (
        "import os, signal, sys\nfrom dvla_lightning.files import atomic_file\n"
        "with atomic_file(sys.argv[1]) as file:\n"
        "    file.write(b'new'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(old)])
    assert done.returncode == -signal.SIGKILL and old.read_text() == "old" and len(names(old.parent)) == 2
    remove_partial(old.parent)
    assert names(old.parent) == ["a"]
