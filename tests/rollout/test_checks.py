"""What simulators return is looked at as it enters, wherever they live."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.simulators.faults import FAULTS
from benchmarks.soak import soak
from dvla_lightning.data.assembly import assemble
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.rollout import foreign_worker
from dvla_lightning.rollout.checks import check_transition
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec, Transition
from dvla_lightning.rollout.worker import WorkerFailure
from tests.faulty_environment import Exiting, Hanging, NanRewards, SlowAtTimes, WithChild
from tests.rollout.test_collector import make_specs, run

SPEC = EpisodeSpec("reach", "train", 0, seed=0, num_steps=1)
IMAGE = np.zeros((32, 32, 3), np.uint8)
OBSERVATION = {"images": {"top": IMAGE}, "proprioception": np.zeros(4, np.float32), "instruction": "reach the cup"}
GOOD = Transition(OBSERVATION, np.zeros((4, 2), np.float32), 1.0)


def see(**changes):
    images = {"images": {"top": changes.pop("top")}} if "top" in changes else {}
    own = {name: changes.pop(name) for name in ("images", "proprioception", "instruction") if name in changes}
    transition = dataclasses.replace(GOOD, **{"observation": {**OBSERVATION, **images, **own}, **changes})
    check_transition(transition, SPEC, GOOD, 4, Tabletop())
    return transition


def test_numpys_numbers_become_pythons():
    seen = see(reward=np.float32(0.5), terminated=np.True_, is_success=np.bool_(False))
    assert (type(seen.reward), seen.terminated, seen.is_success) == (float, True, False)
    assert type(seen.terminated) is bool


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward": float("nan")}, "reward is nan"),
        ({"reward": float("-inf")}, "reward is -inf"),
        ({"reward": "1.0"}, "reward is '1.0'"),
        ({"reward": 10**400}, "reward is inf"),
        ({"reward": True}, "reward is True"),
        ({"reward": None}, "reward is None"),
        ({"simulation_seconds": -0.1}, "simulation_seconds is -0.1, below 0"),
        ({"rendering_seconds": np.float32(-1)}, "rendering_seconds is -1.0, below 0"),
        ({"terminated": {"success": False}}, "terminated is {'success': False}"),
        ({"is_success": "False"}, "is_success is 'False'"),
        ({"truncated": 1.0}, "truncated is 1.0"),
        ({"simulation_seconds": float("nan")}, "simulation_seconds is nan"),
        ({"actions": np.zeros((5, 2), np.float32)}, r"shape \(5, 2\)"),
        ({"actions": np.zeros((0, 2), np.float32)}, r"shape \(0, 2\)"),
        ({"actions": np.zeros((4, 3), np.float32)}, r"shape \(4, 3\)"),
        ({"actions": np.full((4, 2), np.nan, np.float32)}, r"actions holds nan at \[0, 0\]"),
        ({"actions": [[0.0, 0.0]]}, "actions is"),
        ({"observation": None}, "observation is None"),
        ({"observation": {"images": {}}}, "has no instruction"),
        ({"images": {"front": IMAGE}}, "no image of camera 'top'"),
        ({"images": [IMAGE]}, "images are"),
        ({"top": IMAGE / 255}, "float64, not of uint8"),
        ({"top": IMAGE.astype(np.uint16)}, "uint16, not of uint8"),
        ({"top": IMAGE.astype(bool)}, "bool, not of uint8"),
        ({"top": IMAGE[..., 0]}, r"shape \(32, 32\), not"),
        ({"top": np.zeros((3, 32, 32), np.uint8)}, r"shape \(3, 32, 32\), not"),
        ({"top": np.zeros((0, 32, 3), np.uint8)}, r"shape \(0, 32, 3\), not"),
        ({"top": IMAGE[:16]}, r"\(32, 32, 3\) before and \(16, 32, 3\) now"),
        ({"top": None}, "None, not of uint8"),
        ({"proprioception": np.array([0, 0, np.inf, 0], np.float32)}, r"holds inf at \[2\]"),
        ({"proprioception": np.full(4, 1e300)}, "holds 1e\\+300"),
        ({"proprioception": np.zeros(3, np.float32)}, r"shape \(3,\), not \(4,\)"),
        ({"proprioception": np.array(["0"] * 4)}, "no array of numbers"),
        ({"proprioception": [0.0] * 4}, "no array of numbers"),
        ({"instruction": b"reach"}, "instruction is b'reach'"),
        ({"instruction": "  "}, "instruction is ' '"),
        ({"instruction": "reach \ud800"}, "surrogates not allowed"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_the_simulators_fault(changes, words):
    with pytest.raises(WorkerFailure, match=f"task 'reach'.*{words}"):
        see(**changes)


def test_a_picture_that_was_asked_for_must_be_one():
    spec = dataclasses.replace(SPEC, pictures=True)
    with pytest.raises(WorkerFailure, match="picture is None"):
        check_transition(dataclasses.replace(GOOD), spec, GOOD, 4, Tabletop())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_simulator_that_keeps_returning_nonsense_is_an_error_and_never_a_result(num_workers, tiny_policy):
    specs = make_specs(4)
    episodes = run(NanRewards(), tiny_policy, specs, num_workers=num_workers, num_envs=2, max_retries=1)
    assert [episode.success for episode in episodes] == [False] * 4
    assert all("reward is nan" in episode.error and episode.retries == 1 for episode in episodes)


def test_an_action_that_is_not_finite_reaches_no_simulator():
    runner = foreign_worker.Runner(Tabletop().make)
    runner.reset({**SPEC.reset_arguments(), "pictures": False, "action_dim": 2})
    with pytest.raises(ValueError, match="an action is not finite"):
        runner.execute(np.array([[0, 0], [np.nan, 0]], np.float32))


@pytest.mark.parametrize("count", [-1, 5, 99, True, 2.0, None, "4"])
def test_a_count_of_actions_that_cannot_be_true_is_refused(count):
    with pytest.raises(ValueError, match=f"num_env_steps is {count!r} after 4 actions"):
        foreign_worker._count(count, 4)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_simulator_that_exits_does_not_end_the_run(num_workers, tiny_policy):
    episodes = run(Exiting(), tiny_policy, make_specs(2), num_workers=num_workers, num_envs=2, max_retries=0)
    assert all("SystemExit: 0" in episode.error for episode in episodes)


def test_what_a_dead_worker_started_dies_with_it(tiny_policy, tmp_path):
    """The grandchild writes its process id; the fault then ends the worker."""
    episodes = run(WithChild(str(tmp_path / "pid")), tiny_policy, make_specs(1), num_workers=1, max_retries=0)
    assert "has a child" in episodes[0].error
    assert ends(int((tmp_path / "pid").read_text()), 10)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\xff\xfe\x00garbage",
        b"[1, 2]",
        b"null",
        b'{"message": 1, "arrays": []}',
        b'{"message": {"kind": "ok"}, "arrays": []}',
        b'{"message": {"kind": "ok", "value": 3}, "arrays": []}',
        b'{"message": {"kind": "ok", "value": {"no": 1}}, "arrays": []}',
        b'{"message": {"kind": "ok", "value": {"__array__": 4}}, "arrays": []}',
        b'{"message": {"kind": "hello", "value": 3}, "arrays": []}',
        b'{"message": {"kind": "ok", "value": null}, "arrays": [["|O", [2]]]}',
        b'{"message": {"kind": "ok", "value": null}, "arrays": [["<f4", [-2]]]}',
        b'{"message": {"kind": "ok", "value": null}, "arrays": [["no type", [2]]]}',
        b'{"message": {"kind": "ok", "value": null}, "arrays": 3}',
        b"[" * 100_000,
    ],
    ids=range(15),
)
def test_a_malformed_reply_is_a_failure_of_the_worker(sent, foreign_slot):
    slot, theirs = foreign_slot
    theirs.send_bytes(sent)
    with pytest.raises(WorkerFailure, match="sent what is no"):
        slot.receive()


@pytest.mark.parametrize(
    "raw",
    [
        (100).to_bytes(4, "big") + b"only a part",
        (-1).to_bytes(4, "big", signed=True) + (2**50).to_bytes(8, "big") + b"x",
    ],
    ids=["half a message", "a huge message"],
)
def test_a_message_that_does_not_end_is_a_failure_of_the_worker(raw, foreign_slot, monkeypatch):
    slot, theirs = foreign_slot
    os.write(theirs.fileno(), raw)
    with pytest.raises(WorkerFailure, match=r"stopped in the middle of a message|sent what is no message"):
        slot.receive()


@pytest.fixture
def foreign_slot(monkeypatch):
    from multiprocessing.connection import Connection

    from dvla_lightning.rollout import worker
    from dvla_lightning.rollout.foreign_slot import ForeignSlot
    from tests.foreign_environment import ForeignTabletop

    monkeypatch.setattr(worker, "MESSAGE_SECONDS", 1)
    slot = ForeignSlot(ForeignTabletop())
    slot.deadline = time.monotonic() + 60
    kept, (ours, theirs) = slot.connection, socket.socketpair()
    slot.connection, other = Connection(ours.detach()), Connection(theirs.detach())
    worker.limit_patience(slot.connection)
    yield slot, other
    other.close()
    slot.connection.close()
    slot.connection = kept
    slot.close()


def test_ten_kinds_of_faults_lose_nothing_repeat_nothing_and_hide_nothing(tiny_policy, tmp_path, capfd):
    assert soak(tiny_policy, 4 * len(FAULTS), 4, str(tmp_path), num_workers=3, step_timeout=1.5) == []
    assert {file.read_text() for file in tmp_path.iterdir()} == set(FAULTS)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_reproducible_decisions_are_those_of_one_simulator_to_the_bit(num_workers, tiny_policy):
    def decisions(environment, **options):
        episodes = run(environment, tiny_policy, make_specs(6), reproducible=True, **options)
        batch = assemble(episodes, 0.9, 0.8)
        return [batch.path.tokens_BL, batch.old_log_prob_NSL, batch.old_values_N, batch.advantages_N]

    expected = decisions(Tabletop(), num_envs=1)
    for options in ({"num_envs": 4}, {"num_workers": num_workers}):
        found = decisions(SlowAtTimes(), **options)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    return path


RUN = """
    from dvla_lightning.envs.tabletop import Tabletop
    from dvla_lightning.rollout.collector import Collector
    from dvla_lightning.rollout.episode import EpisodeSpec
    collector = Collector({recipe}, num_workers=2, progress=False)
    collector.demonstrate([EpisodeSpec("reach", "train", n, seed=n) for n in range(4)], 4)
"""


@pytest.mark.parametrize("from_stdin", [False, True])
def test_a_script_without_a_main_guard_ends_at_once_and_says_why(tmp_path, from_stdin):
    text = textwrap.dedent(RUN.format(recipe="Tabletop()"))
    path = script(tmp_path, text)
    command = [sys.executable, "-"] if from_stdin else [sys.executable, path]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=100, env=environment, cwd=tmp_path
    )
    assert done.returncode != 0
    assert '`if __name__ == "__main__":`' in done.stderr.strip().splitlines()[-1]


def test_a_recipe_that_cannot_be_pickled_is_one_sentence():
    class Local(Tabletop):
        pass

    collector = Collector(Local(), num_workers=1, progress=False)
    with pytest.raises(UserError, match="Local cannot be sent to a worker process"):
        collector.demonstrate([SPEC], 4)
    collector.close()


def test_workers_of_a_killed_parent_end_although_they_hang(tmp_path):
    path = script(
        tmp_path,
        """
        import os, threading, time
        from tests.faulty_environment import Hanging
        from dvla_lightning.rollout.worker import ProcessSlot
        from dvla_lightning.rollout.episode import EpisodeSpec
        if __name__ == "__main__":
            slot = ProcessSlot(Hanging())
            slot.send("reset", EpisodeSpec("reach", "train", 0, seed=0), 600.0)
            slot.connection.poll(100)
            print(slot.process.pid, flush=True)
            time.sleep(600)
        """,
    )
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    parent = subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True, env=environment)
    worker = int(parent.stdout.readline())
    time.sleep(0.5)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert ends(worker, 10)


def test_hanging_simulators_are_ended_together():
    collector = Collector(Hanging(), num_workers=4, progress=False)
    pool = collector._open()
    for slot in pool.slots:
        slot.send("reset", SPEC, 600.0)
    for slot in pool.slots:
        assert slot.connection.poll(60) and slot.receive() is None
    start = time.monotonic()
    collector.close()
    assert time.monotonic() - start < 3 * 4, "one after the other each would have its own patience"


def ends(pid, seconds):
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False
