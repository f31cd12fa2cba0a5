"""A simulator in another Python: the same episodes, whatever it prints and however it ends."""

import ast
import os
import socket
import sys
import time
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import numpy as np
import pytest

from dvla_lightning.envs.libero import Libero
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.rollout import foreign_worker
from dvla_lightning.rollout.episode import EpisodeSpec
from dvla_lightning.rollout.foreign_slot import ForeignSlot
from dvla_lightning.rollout.worker import WorkerFailure
from tests.faulty_environment import FAULTY_STATE
from tests.foreign_environment import ForeignFaultyTabletop, ForeignTabletop
from tests.rollout.test_collector import make_specs, run, summary

SPEC = EpisodeSpec("reach", "train", 0, seed=0)


@pytest.fixture
def slot(request):
    made = ForeignSlot(getattr(request, "param", None) or ForeignTabletop())
    yield made
    made.close()


def through_a_pipe(message):
    ours, theirs = Pipe()
    foreign_worker.send_message(ours, message)
    return foreign_worker.receive_message(theirs)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[:, ::-1],
        np.array([[1.5, np.nan]], ">f8"),
        np.zeros((0, 7), np.float32),
        np.array(3),
        np.array([True, False]),
        np.array(["a", "longer"]),
    ],
    ids=str,
)
def test_arrays_arrive_as_they_were(array):
    received = through_a_pipe({"a": [array]})["a"][0]
    assert received.dtype == array.dtype and received.shape == array.shape
    np.testing.assert_array_equal(received, array)
    received[...] = received  # writable


def test_plain_types_arrive_and_numpy_scalars_become_plain():
    sent = {
        "n": None,
        "x": np.float32(0.5),
        "i": np.int64(3),
        "b": np.bool_(True),
        "t": (1, "two", {"z": [float("inf")]}),
    }
    received = through_a_pipe(sent)
    assert received == {"n": None, "x": 0.5, "i": 3, "b": True, "t": [1, "two", {"z": [float("inf")]}]}
    assert [type(received[key]) for key in "xib"] == [float, int, bool]


@pytest.mark.parametrize(
    "value", [object, np.bytes_(b"x"), {1: 2}, {"__array__": 0}, np.array([None]), b"bytes"], ids=repr
)
def test_what_another_python_cannot_read_is_refused(value):
    with pytest.raises(TypeError, match="another interpreter"):
        through_a_pipe([value])


def test_the_worker_file_needs_nothing_and_runs_on_python_3_8():
    """No import but the standard library's and numpy, and no syntax that is newer."""
    tree = ast.parse(Path(foreign_worker.__file__).read_text(), feature_version=(3, 8))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= {*sys.stdlib_module_names, "numpy"}


def test_episodes_are_the_same_as_in_this_process(tiny_policy):
    specs = make_specs()
    expected = summary(run(Tabletop(), tiny_policy, specs, num_envs=1))
    assert summary(run(ForeignTabletop(), tiny_policy, specs, num_workers=2)) == expected
    assert summary(run(ForeignTabletop(), tiny_policy, specs[:2])) == expected[:2]  # num_workers 0: one process


def test_a_death_is_explained_by_what_the_simulator_printed_last(tiny_policy, tmp_path):
    environment = ForeignFaultyTabletop("kill", times=99, marker=str(tmp_path / "faults"))
    broken = run(environment, tiny_policy, make_specs(), num_workers=2, max_retries=0)[FAULTY_STATE]
    assert "exit code -9" in broken.error and "last words" in broken.error


def test_an_unusable_simulator_ends_the_run_with_its_sentence(tiny_policy, tmp_path):
    environment = ForeignFaultyTabletop("unusable", times=99, marker=str(tmp_path / "faults"))
    with pytest.raises(UserError, match=r"^the meshes are missing: download them$"):
        run(environment, tiny_policy, make_specs(), num_workers=1)


def script(tmp_path, text):
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "echo numpy is not installed in it >&2; exit 1",
            r"exit code 1\); its last output: numpy is not installed in it",
        ),
        ("exit 0", r"cannot run the simulator's worker \(exit code 0\)"),
    ],
)
def test_a_wrong_interpreter_is_one_sentence(text, sentence, tiny_policy, tmp_path):
    with pytest.raises(UserError, match=sentence + ".*; give the Python 3.8 or newer"):
        run(ForeignTabletop(interpreter=script(tmp_path, text)), tiny_policy, make_specs(1))


def test_an_interpreter_that_is_no_program(tiny_policy, tmp_path):
    with pytest.raises(UserError, match="is no program that can be run"):
        run(ForeignTabletop(interpreter=tmp_path / "nowhere"), tiny_policy, make_specs(1))


def test_an_interpreter_that_says_nothing_is_a_timeout(tiny_policy, tmp_path):
    environment = ForeignTabletop(interpreter=script(tmp_path, "sleep 60"))
    (episode,) = run(environment, tiny_policy, make_specs(1), reset_timeout=0.5, max_retries=0)
    assert "did not answer within 0.5 s" in episode.error


def test_a_package_that_the_interpreter_lacks_is_named(tiny_policy, monkeypatch):
    environment = ForeignTabletop()
    build = {"packages": {}, "factory": "no_such_simulator:make", "arguments": {}}
    monkeypatch.setattr(environment, "foreign_build", lambda: build)
    with pytest.raises(UserError, match="lacks the package 'no_such_simulator': install it there"):
        run(environment, tiny_policy, make_specs(1))


@pytest.mark.parametrize("bytes_sent", [b"\x00\x01 no JSON", b"{}", b'{"message": 1, "arrays": []}'])
def test_a_message_that_is_none_is_a_failure_of_the_worker(bytes_sent, slot):
    kept, (ours, theirs) = slot.connection, socket.socketpair()
    slot.connection = Connection(ours.detach())
    Connection(theirs.detach()).send_bytes(bytes_sent)
    with pytest.raises(WorkerFailure, match="sent what is no message"):
        slot.receive()
    slot.connection.close()
    slot.connection = kept


def test_the_worker_introduces_itself_and_sees_only_the_named_packages(slot):
    slot.send("reset", SPEC, 60.0)
    slot.connection.poll(60.0)
    assert slot.receive() is None  # a sign of life
    assert slot.hello["numpy"] == np.__version__ and slot.hello["protocol"] == foreign_worker.PROTOCOL
    slot.connection.poll(60.0)
    assert slot.receive().observation["images"]["top"].shape == (32, 32, 3)


def test_a_worker_does_not_outlive_its_parent(tmp_path):
    """Even while it hangs in a command, where it cannot see the end of the connection."""
    parent = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from dvla_lightning.rollout.foreign_slot import ForeignSlot
from tests.foreign_environment import ForeignFaultyTabletop
from dvla_lightning.rollout.episode import EpisodeSpec
import numpy as np, os
slot = ForeignSlot(ForeignFaultyTabletop("hang", 1, {str(tmp_path / "m")!r}))
slot.call("reset", EpisodeSpec("reach", "train", {FAULTY_STATE}, seed=0), 60.0)
slot.send("execute", np.zeros((4, 2), np.float32), 60.0)
while not os.path.exists({str(tmp_path / "m")!r}): pass
print(slot.process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    import subprocess

    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, timeout=120)
    pid, deadline = int(done.stdout), time.monotonic() + 30
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(pid)


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z" and os.path.exists(f"/proc/{pid}")


def test_libero_can_live_in_another_interpreter():
    pytest.importorskip("mujoco")
    build = Libero(suite="libero_goal", cameras=(), interpreter="/opt/libero/bin/python").foreign_build()
    assert build["arguments"]["options"]["suite"] == "libero_goal"
    assert "interpreter" not in build["arguments"]["options"]
    assert through_a_pipe(build)["arguments"]["options"]["cameras"] == []


class Recorder:
    """Keeps the bytes that a connection would carry."""

    def __init__(self):
        self.sent = []

    def send_bytes(self, data):
        self.sent.append(bytes(data))


def test_the_bytes_on_the_wire_name_no_numpy():
    """As numpy 1.26 on Python 3.10 wrote them, to the byte: a change here needs another `PROTOCOL`."""
    recorder = Recorder()
    message = {"kind": "ok", "value": {"rgb": np.arange(6, dtype=np.uint8).reshape(2, 3), "q": np.float32([0.5])}}
    foreign_worker.send_message(recorder, message)
    header = (
        b'{"message": {"kind": "ok", "value": {"rgb": {"__array__": 0}, "q": {"__array__": 1}}}, '
        b'"arrays": [["|u1", [2, 3]], ["<f4", [1]]]}'
    )
    assert recorder.sent == [header, bytes(range(6)), b"\x00\x00\x00\x3f"]


@pytest.mark.skipif("DVLA_OTHER_PYTHON" not in os.environ, reason="DVLA_OTHER_PYTHON names no Python with numpy 1")
def test_numpy_1_and_numpy_2_understand_each_other():
    environment = ForeignTabletop(interpreter=os.environ["DVLA_OTHER_PYTHON"])
    simulators = Path(__file__).parents[2] / "benchmarks" / "simulators"
    build = {"packages": {"simulators": str(simulators)}, "factory": "simulators.pictures:Pictures", "arguments": {}}
    environment.foreign_build = lambda: build
    slot = ForeignSlot(environment)
    try:
        first = slot.call("reset", SPEC, 60.0)
        then = slot.call("execute", np.zeros((1, 2), np.float32), 60.0)
        assert slot.hello["numpy"].startswith("1.")
    finally:
        slot.close()
    expected = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    np.testing.assert_array_equal(first["observation"]["images"]["head"], expected)
    np.testing.assert_array_equal(then["observation"]["images"]["head"], expected)
    assert then["actions"].dtype == np.float32
