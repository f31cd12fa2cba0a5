"""Running the experiment with stubs for its units: what is missing, what fails, and how it stops."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.settle import run
from benchmarks.settle.arms import ARMS, BY_NAME
from tests.evaluations import write_evaluation

ROOT = Path(__file__).parents[2]
TWO = [BY_NAME["sft-max_prob-K4"], BY_NAME["trajectory-K4"]]


def prepare(root, seed):
    (root / f"seed-{seed}").mkdir(parents=True, exist_ok=True)
    if seed == 9:
        raise RuntimeError("no demonstrations")


def unit(root, seed, arm):
    folder = root / f"seed-{seed}" / arm.name
    with (root / "log").open("a") as log:
        log.write(f"{seed} {arm.name}\n")
    if (seed, arm.name) == (1, "trajectory-K4") and not (root / "mended").exists():
        raise RuntimeError("diverged")
    write_evaluation(folder, [True])


def endless(root, seed, arm):
    if arm.name != TWO[0].name:
        while True:
            (root / "beat").write_text(str(os.getpid()))
            time.sleep(0.02)


def main(root):
    """In a process of its own, to be killed."""
    run.prepare, run.train_and_evaluate = prepare, endless
    run.run_all(root, [0], 1)


@pytest.fixture
def stubs(monkeypatch):
    def use(train_and_evaluate):
        monkeypatch.setattr(run, "ARMS", TWO)
        monkeypatch.setattr(run, "prepare", prepare)
        monkeypatch.setattr(run, "train_and_evaluate", train_and_evaluate)

    return use


def test_failures_are_told_and_only_what_is_missing_runs_again(tmp_path, stubs, capsys, monkeypatch):
    monkeypatch.setattr(run, "UNITS_PER_WORKER", 1)  # batches of two
    stubs(unit)
    failures = run.run_all(tmp_path, [0, 1, 9], 2)
    assert len(failures) == 2
    assert failures[0] == "seed 9, SFT policy and schedule: no demonstrations"
    assert failures[1].endswith("seed 1, trajectory-K4: diverged")
    log = tmp_path / "log"
    assert len(log.read_text().splitlines()) == 4
    assert "FAILED: diverged" in capsys.readouterr().out
    (tmp_path / "mended").touch()
    log.unlink()
    assert run.run_all(tmp_path, [0, 1], 1) == []
    assert log.read_text() == "1 trajectory-K4\n"
    assert run.run_all(tmp_path, [0, 1], 1) == []


def test_an_exception_stops_the_workers_at_once(tmp_path, stubs, monkeypatch):
    stubs(endless)

    def interrupted(units):
        while not (tmp_path / "beat").exists():
            time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "as_completed", interrupted)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run.run_all(tmp_path, [0], 1)
    assert time.monotonic() - start < 60
    assert_silent(tmp_path / "beat")


def test_workers_end_with_a_killed_parent(tmp_path):
    code = f"from pathlib import Path; from tests.benchmarks.test_run import main; main(Path({str(tmp_path)!r}))"
    script = tmp_path / "experiment.py"
    script.write_text(f"if __name__ == '__main__':\n    {code}\n")
    parent = subprocess.Popen([sys.executable, str(script)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "beat").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert (tmp_path / "beat").exists()
    finally:
        parent.kill()
        parent.wait()
    time.sleep(1.5)
    assert_silent(tmp_path / "beat")


def assert_silent(beat):
    beat.unlink()
    time.sleep(0.3)
    assert not beat.exists()


def test_fit_goes_on_from_the_last_checkpoint(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(run, "dvla", lambda log, verb, config, **options: calls.append(options.get("ckpt_path")))
    run.fit(tmp_path / "log", "rl.yaml", tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    run.fit(tmp_path / "log", "rl.yaml", tmp_path / "run")
    (tmp_path / "run" / "policy").mkdir()
    run.fit(tmp_path / "log", "rl.yaml", tmp_path / "run")
    assert calls == [None, "last"]


def test_a_folder_of_another_run_is_not_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "dvla", lambda *_, **__: pytest.fail("nothing must run"))
    folder = tmp_path / "seed-0" / "trajectory-K4"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("data: {num_steps: 2}\n")
    with pytest.raises(RuntimeError, match="holds another run"):
        run.train_and_evaluate(tmp_path, 0, BY_NAME["trajectory-K4"])


def test_every_arm_has_a_start_and_another_name():
    assert len({arm.name for arm in ARMS}) == len(ARMS)
    assert all(not BY_NAME[arm.start()].trained for arm in ARMS)
