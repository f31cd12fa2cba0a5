"""The lock behind runs, collections and evaluations; what each says about it is tested beside them."""

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dvla_lightning.locks import Held, ProcessLock

PACKAGE = Path(__file__).parents[1] / "dvla_lightning"


def test_one_holds_it_until_released(tmp_path):
    path = tmp_path / "lock"
    first = ProcessLock(path)
    for _ in range(2):  # asking takes nothing away, not even who holds it
        with pytest.raises(Held, match=f"process {os.getpid()} on "):
            ProcessLock(path)
    first.release()
    ProcessLock(path).release()


@pytest.mark.parametrize("end", ["os._exit(1)", "os.kill(os.getpid(), 9)", "raise SystemExit"])
def test_it_is_gone_with_its_process_however_that_ends(end, tmp_path):
    path = tmp_path / "lock"
    code = (
        f"import os, pathlib; from dvla_lightning.locks import *; x = ProcessLock(pathlib.Path({str(path)!r})); {end}"
    )
    subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)})
    assert '"pid"' in path.read_text()
    ProcessLock(path).release()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "\x00"])
def test_a_holder_that_cannot_be_read_is_a_holder(content, tmp_path):
    path = tmp_path / "lock"
    held = ProcessLock(path)
    path.write_text(content)
    with pytest.raises(Held, match="a process that has not said which"):
        ProcessLock(path)
    held.release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_remarked_on(number, tmp_path, monkeypatch, capsys):
    def unsupported(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", unsupported)
    ProcessLock(tmp_path / "lock").release()
    assert f"no locks on this file system ({os.strerror(number)})" in capsys.readouterr().err


def test_other_faults_are_not_taken_for_that(tmp_path, monkeypatch):
    def broken(*args):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("fcntl.flock", broken)
    with pytest.raises(OSError, match="broken"):
        ProcessLock(tmp_path / "lock")


def test_no_module_of_the_package_needs_unix_to_be_imported():
    """At its head; functions may import what they need."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {"fcntl", "resource", "pwd", "grp", "termios", "pty"} & set(names), path
