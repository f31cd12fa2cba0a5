"""The worker of a simulator in another Python: `<interpreter> foreign_worker.py <descriptor of a socket> <0 or 1>`.

Standard library and numpy alone, Python 3.8 or newer, numpy 1 or 2: it runs where this package is not installed.

The socket is one end of a pair that the parent made, so nobody else can reach it, and what a simulator prints cannot
get into it: standard output and error go to the log that the parent opened. Messages are JSON, followed by the bytes
of the arrays they mention; never pickles, which numpy 2 writes in a way that numpy 1 cannot read.

    worker -> parent   {"kind": "hello", "value": versions}                                once, before anything else
    parent -> worker   {"command": "build", "argument": see `Environment.foreign_build`}     no reply
    parent -> worker   {"command": a method of `Runner`, "argument": ...}
    worker -> parent   {"kind": "alive", "value": null}     while a long command goes on; the time limit begins anew
    worker -> parent   {"kind": "ok" | "user_error" | "failure", "value": result or text}

End of the connection is the order to stop.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray  # numpy 1.17 has none

if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file: names in it must not hide the simulator's own modules

try:
    import numpy as np
except ImportError:
    sys.exit("numpy is not installed in {}".format(sys.executable))  # noqa: UP032 - even Python 2 says it

PROTOCOL = 1
ORPHAN_CHECK_SECONDS = 1.0
MOST_HEADER_BYTES = 2**26
MOST_ARRAY_BYTES = 2**30
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


# ---------------------------------------------------------------------- messages


def send_message(connection: Connection, message: Any) -> None:
    """Sends plain types (None, bool, numbers, str, list, tuple, dict with str keys) and numpy arrays.

    Raises:
        TypeError: for anything else, and for arrays of objects.
    """
    arrays: list[NDArray[Any]] = []
    header = {"message": _encode(message, arrays), "arrays": [(a.dtype.str, a.shape) for a in arrays]}
    connection.send_bytes(json.dumps(header).encode())
    for array in arrays:
        if array.size:
            connection.send_bytes(array.reshape(-1).view(np.uint8).data)


def receive_message(connection: Connection) -> Any:
    """The next message; tuples come out as lists.

    Raises:
        EOFError: if the other side is gone.
        Exception: of any kind, if what came is no message: the other side may be anybody's code.
    """
    header = json.loads(_receive_bytes(connection, MOST_HEADER_BYTES).decode())
    arrays = []
    for dtype, shape in header["arrays"]:
        dtype = np.dtype(dtype)
        if dtype.hasobject or any(type(size) is not int or size < 0 for size in shape):
            raise ValueError("array of {} and shape {}".format(dtype, shape))  # noqa: UP032 - Python 3.8's style
        size = dtype.itemsize * functools.reduce(lambda a, b: a * b, shape, 1)
        data = _receive_bytes(connection, min(size, MOST_ARRAY_BYTES)) if size else b""
        if len(data) != size:
            raise ValueError("{} bytes of an array of {}".format(len(data), size))  # noqa: UP032
        arrays.append(np.frombuffer(bytearray(data), dtype).reshape(shape))
    return _decode(header["message"], arrays)


def _receive_bytes(connection: Connection, most: int) -> bytes:
    """A part of a message; a longer one is refused before it takes memory, and nothing after it can be read."""
    try:
        return connection.recv_bytes(most)
    except OSError as error:
        if str(error) == "bad message length":
            raise ValueError("a part of more than {} bytes".format(most)) from error  # noqa: UP032
        raise


def _encode(value: Any, arrays: list[NDArray[Any]]) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError("arrays of Python objects cannot be sent to another interpreter")
        arrays.append(np.ascontiguousarray(value).reshape(value.shape))  # ascontiguousarray makes 0-d arrays 1-d
        return {"__array__": len(arrays) - 1}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_encode(item, arrays) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) and key != "__array__" for key in value):
        return {key: _encode(item, arrays) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} cannot be sent to another interpreter")


def _decode(value: Any, arrays: Sequence[NDArray[Any]]) -> Any:
    if isinstance(value, list):
        return [_decode(item, arrays) for item in value]
    if isinstance(value, dict):
        if "__array__" in value:
            return arrays[value["__array__"]]
        return {key: _decode(item, arrays) for key, item in value.items()}
    return value


# ---------------------------------------------------------------------- commands


class Runner:
    """Holds one simulator (see `envs.base.SimulatorEnv`) and executes commands on it; builds it at the first one.

    Results are dicts with the fields of `rollout.episode.Transition`, as the simulator gives them: `rollout.checks`
    looks at them on the other side.

    Args:
        make: builds the simulator.
        on_progress: given to simulators that have an attribute `on_progress`, to be called while a reset makes progress
            that can take longer than any time limit.
    """

    def __init__(self, make: Callable[[], Any], on_progress: Callable[[], object] | None = None) -> None:
        self.make, self.on_progress = make, on_progress
        self.env: Any = None
        self.pictures = False

    def reset(self, episode: Mapping[str, Any]) -> dict[str, Any]:
        """Starts an episode; `episode` holds the arguments of the simulator's reset and whether to keep pictures."""
        self._build()
        start = time.perf_counter()
        observation, _ = self.env.reset(seed=episode["seed"], options=episode["options"])
        self.pictures = episode["pictures"]
        none_yet = np.zeros((0, episode["action_dim"]), dtype=np.float32)
        seconds = time.perf_counter() - start
        return self._transition(observation, none_yet, 0.0, False, False, False, seconds, 0.0)

    def execute(self, actions: NDArray[np.float32]) -> dict[str, Any]:
        """Executes a chunk (T, action_dim) until it is used up or the episode ends."""
        _check_action(actions)
        observation, reward, terminated, truncated, info = self.env.step_chunk(actions)
        executed = np.asarray(actions[: _count(info["num_env_steps"], len(actions))], dtype=np.float32)
        seconds = info["simulation_seconds"], info["rendering_seconds"]
        return self._transition(observation, executed, reward, terminated, truncated, info["is_success"], *seconds)

    def demonstrate(self, num_actions: int) -> dict[str, Any]:
        """Runs the scripted expert for up to `num_actions` control steps, re-planning at every one."""
        actions: list[NDArray[np.float32]] = []
        total, info = 0.0, {"is_success": False}
        terminated = truncated = False
        start = time.perf_counter()
        while len(actions) < num_actions and not (terminated or truncated):
            actions.append(np.asarray(self.env.expert_action(), dtype=np.float32))
            _check_action(actions[-1])
            reward, terminated, truncated, info = self.env.advance(actions[-1])
            total += reward
        simulated = time.perf_counter()
        observation = self.env.observe()
        seconds = simulated - start, time.perf_counter() - simulated
        success = info["is_success"]
        return self._transition(observation, np.stack(actions), total, terminated, truncated, success, *seconds)

    def describe(self, _: object) -> dict[str, Any]:
        """The simulator's description of itself (versions, devices); builds it, but starts no episode."""
        self._build()
        return self.env.describe()

    def close(self) -> None:
        """Closes the simulator."""
        if self.env is not None:
            self.env.close()
            self.env = None

    def _build(self) -> None:
        if self.env is None:
            self.env = self.make()
            if self.on_progress and hasattr(self.env, "on_progress"):
                self.env.on_progress = self.on_progress

    def _transition(
        self,
        observation: Any,
        actions: NDArray[np.float32],
        reward: float,
        terminated: bool,
        truncated: bool,
        success: bool,
        simulated: float,
        rendered: float,
    ) -> dict[str, Any]:
        return {
            "observation": observation,
            "actions": actions,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "is_success": success,
            "simulation_seconds": simulated,
            "rendering_seconds": rendered,
            "picture": np.asarray(self.env.render()) if self.pictures else None,
        }


def _count(executed: Any, sent: int) -> int:
    """Number of executed actions; raises ValueError for what cannot be true."""
    if (
        isinstance(executed, (bool, np.bool_))
        or not isinstance(executed, (int, np.integer))
        or not 0 <= executed <= sent
    ):
        raise ValueError("num_env_steps is {!r} after {} actions".format(executed, sent))  # noqa: UP032
    return int(executed)


def _check_action(action: NDArray[np.float32]) -> None:
    """Raises ValueError for what is not finite: simulators take it, and warn at most."""
    if not np.isfinite(action).all():
        raise ValueError("an action is not finite: {}".format(np.asarray(action).tolist()))  # noqa: UP032


# ---------------------------------------------------------------------- the process


def build(packages: Mapping[str, str], factory: str, arguments: Mapping[str, Any]) -> Any:
    """Mounts folders as packages and calls the factory in them.

    A folder is made importable alone: with its parent on sys.path, the simulator could find the packages of another
    Python there.

    Args:
        packages: name -> folder; their `__init__.py` is not run.
        factory: "module:function".
        arguments: keyword arguments of the factory.
    """
    for name, folder in packages.items():
        mounted = types.ModuleType(name)
        mounted.__path__ = [folder]
        sys.modules[name] = mounted
    module, _, function = factory.partition(":")
    return getattr(importlib.import_module(module), function)(**arguments)


def seed_everything(seed: int) -> None:
    """Seeds Python's and numpy's global generators, and torch's where the simulator has imported it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def serve(connection: Connection) -> None:
    """Says hello, then runs one command after the other until the connection ends."""
    versions = {"python": sys.version.split()[0], "numpy": np.__version__, "executable": sys.executable}
    send_message(connection, {"kind": "hello", "value": dict(versions, protocol=PROTOCOL)})
    say_alive = functools.partial(send_message, connection, {"kind": "alive", "value": None})
    runner: Runner | None = None
    while True:
        try:
            message = receive_message(connection)
        except (EOFError, OSError):
            break
        if message["command"] == "build":
            runner = Runner(functools.partial(build, **message["argument"]), say_alive)
            continue
        send_message(connection, _answer(runner, message["command"], message["argument"]))
    if runner is not None:
        runner.close()


def _answer(runner: Runner | None, command: str, argument: Any) -> dict[str, Any]:
    try:
        if command == "reset":
            seed_everything(argument["seed"])
        value = getattr(runner, command)(argument)
        _encode(value, [])  # what cannot be sent must fail here, where it is reported
        return {"kind": "ok", "value": value}
    except Exception as error:
        # By name: the simulator's code cannot import this package's UserError.
        if type(error).__name__ == "UserError":
            return {"kind": "user_error", "value": str(error)}
        if isinstance(error, ModuleNotFoundError) and runner is not None and runner.env is None:
            text = "the simulator's Python ({}) lacks the package {!r}: install it there, or name another interpreter"
            return {"kind": "user_error", "value": text.format(sys.executable, error.name)}
        return {"kind": "failure", "value": traceback.format_exc().strip()}


def end_with_parent(ask_kernel: bool, kill: Callable[[], object]) -> None:
    """Makes this process end with its parent from now on, even in the middle of a hanging command.

    Args:
        ask_kernel: on Linux, let the kernel kill it; that helps where native code hangs and holds Python's
            lock. The kernel takes the thread that started this process for the parent: only for a main thread.
        kill: ends this process, and what it has started.
    """
    parent = os.getppid()
    if ask_kernel and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    threading.Thread(target=_watch, args=(parent, kill), daemon=True).start()


def _watch(parent: int, kill: Callable[[], object]) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHAN_CHECK_SECONDS)
    kill()


def main() -> None:
    """Takes over the socket whose descriptor is the first argument; the second is 1 if the kernel may end us."""
    from multiprocessing.connection import Connection

    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)  # a child that outlives us must not keep the connection open
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    end_with_parent(sys.argv[2] == "1", lambda: os.killpg(os.getpgrp(), signal.SIGKILL))
    serve(Connection(descriptor))


if __name__ == "__main__":
    main()
