"""What every test gets: no network, one thread, and a clear word about tests whose simulator is missing."""

import logging
import os
from importlib.util import find_spec
from pathlib import Path

# Before torch and huggingface_hub are imported, and inherited by worker processes. One thread: sums come out in the
# same order on every machine, and workers do not fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

REQUIRE_LIBERO = "DVLA_REQUIRE_LIBERO"


@pytest.fixture
def quiet_logging(monkeypatch):
    """Lightning's log handler keeps the stderr of the test in which it was made, which is closed by now."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


@pytest.fixture
def refusal(capfd, quiet_logging):
    """A function that returns the sentence a command must end with, after seeing to it that nothing else happened."""

    def sentence(command, *args, unchanged=None, **kwargs):
        """`command`: the words after `dvla`, or what runs it with the arguments; `unchanged`: a folder."""
        from dvla_lightning.cli import main

        before = contents(unchanged)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            command(*args, **kwargs) if callable(command) else main([str(word) for word in command])
        printed = capfd.readouterr().err.rstrip()
        lines = [line for line in printed.splitlines() if line.startswith("dvla: error: ")]
        assert stop.value.code == 2 and len(lines) == 1 and "Traceback" not in printed, printed
        assert printed.endswith(lines[0]) and len(lines[0]) < 700, printed  # of one line, and the last one
        assert contents(unchanged) == before, "something was written"
        return lines[0]

    return sentence


def contents(folder):
    """File -> bytes; but for the configuration, which the command line writes before anything is evaluated."""
    files = [] if folder is None else [path for path in folder.rglob("*") if path.name != "validate.yaml"]
    return {path: path.read_bytes() if path.is_file() else None for path in files}


@pytest.fixture(autouse=True)
def _restore_torch_state():
    """Global state of torch that one test may change and the next must not see."""
    dtype, deterministic = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(deterministic)


def missing_for_libero() -> str | None:
    """Why the tests marked `libero` cannot run here; None if they can."""
    absent = [name for name in ("libero", "robosuite", "mujoco") if find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed: run `make libero`"
    assets = os.environ.get("LIBERO_ASSETS")
    if not assets:
        return "LIBERO_ASSETS is not set: point it at LIBERO's assets folder"
    if not (Path(assets) / "scenes").is_dir():
        return f"LIBERO_ASSETS={assets} is not LIBERO's assets folder: it has no folder scenes/"
    return None


def missing_for_robotwin() -> str | None:
    """Why the tests marked `robotwin` cannot run here; None if they can."""
    root = os.environ.get("ROBOTWIN_ROOT")
    if not root:
        return "ROBOTWIN_ROOT is not set: point it at a RoboTwin checkout, and ROBOTWIN_PYTHON at its Python"
    if not (Path(root) / "envs" / "_base_task.py").is_file():
        return f"ROBOTWIN_ROOT={root} is no RoboTwin checkout: it has no envs/_base_task.py"
    return None


def pytest_collection_modifyitems(items):
    for marker, missing in (("libero", missing_for_libero), ("robotwin", missing_for_robotwin)):
        marked = [item for item in items if item.get_closest_marker(marker)]
        reason = missing() if marked else None
        for item in marked if reason else ():
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Where LIBERO is required, a skipped LIBERO test is a failure, whatever skipped it."""
    report = yield
    required = os.environ.get(REQUIRE_LIBERO) == "1" and item.get_closest_marker("libero")
    if required and report.skipped and not hasattr(report, "wasxfail"):
        _, _, reason = report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{REQUIRE_LIBERO}=1, but this test was skipped. {reason}"
    return report


@pytest.fixture
def tiny_policy():
    """An untrained policy for Tabletop; its actions are random but valid."""
    from tests.small_policy import make_tiny_policy

    torch.manual_seed(0)
    return make_tiny_policy()
