"""Where a simulator lives: in this process, or in a child process that can be killed and replaced.

Both kinds of slot take a command and later hand out its result, so the pool drives them alike.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
import traceback
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import IO, Any, Protocol

import numpy as np

from dvla_lightning.envs.base import Environment, SimulatorEnv
from dvla_lightning.errors import UserError
from dvla_lightning.rollout.episode import EpisodeSpec, Transition


class WorkerFailure(Exception):
    """A worker died, hung or raised; its episode has to be run again."""


class Runner:
    """Holds one simulator and executes commands on it; built lazily, in the process that runs it."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.env: SimulatorEnv | None = None
        self.pictures = False

    def reset(self, spec: EpisodeSpec) -> Transition:
        """Starts an episode."""
        if self.env is None:
            self.env = self.environment.make()
        start = time.perf_counter()
        observation, _ = self.env.reset(**spec.reset_arguments())
        self.pictures = spec.pictures
        none_yet = np.zeros((0, self.environment.action_dim), dtype=np.float32)
        return Transition(
            observation, none_yet, simulation_seconds=time.perf_counter() - start, picture=self._picture()
        )

    def execute(self, actions: np.ndarray) -> Transition:
        """Executes a chunk (T, action_dim) until it is used up or the episode ends."""
        observation, reward, terminated, truncated, info = self.env.step_chunk(actions)
        return Transition(
            observation,
            np.asarray(actions[: info["num_env_steps"]], dtype=np.float32),
            reward,
            terminated,
            truncated,
            bool(info["is_success"]),
            info["simulation_seconds"],
            info["rendering_seconds"],
            self._picture(),
        )

    def demonstrate(self, num_actions: int) -> Transition:
        """Lets the scripted expert act for up to `num_actions` control steps, re-planning at every one."""
        actions, total, info = [], 0.0, {"is_success": False}
        terminated = truncated = False
        start = time.perf_counter()
        while len(actions) < num_actions and not (terminated or truncated):
            actions.append(np.asarray(self.env.expert_action(), dtype=np.float32))
            reward, terminated, truncated, info = self.env.advance(actions[-1])
            total += reward
        simulated = time.perf_counter()
        observation = self.env.observe()
        rendered = time.perf_counter() - simulated
        return Transition(
            observation,
            np.stack(actions),
            total,
            terminated,
            truncated,
            bool(info["is_success"]),
            simulated - start,
            rendered,
            self._picture(),
        )

    def close(self) -> None:
        """Closes the simulator."""
        if self.env is not None:
            self.env.close()
            self.env = None

    def _picture(self) -> np.ndarray | None:
        return np.asarray(self.env.render()) if self.pictures else None


class Slot(Protocol):
    """One simulator as the pool sees it."""

    connection: Connection | None

    def send(self, command: str, argument: Any, timeout: float) -> None:
        """Starts a command of `Runner`; a failure shows up in `receive`."""
        ...

    def receive(self) -> Transition:
        """Result of the last command; raises `WorkerFailure`, or `UserError` if the simulator cannot be used."""
        ...

    def replace(self) -> None:
        """Kills the simulator and starts afresh."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


class LocalSlot:
    """A simulator in this process: nothing to wait for, and nothing can save it from hanging."""

    connection = None

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.runner = Runner(environment)
        self.result: Transition | Exception | None = None

    def send(self, command: str, argument: Any, timeout: float) -> None:
        try:
            self.result = getattr(self.runner, command)(argument)
        except Exception as error:
            self.result = error

    def receive(self) -> Transition:
        if isinstance(self.result, UserError):
            raise self.result
        if isinstance(self.result, Exception):
            raise WorkerFailure("".join(traceback.format_exception(self.result)).strip()) from self.result
        return self.result

    def replace(self) -> None:
        self.close()
        self.runner = Runner(self.environment)

    def close(self) -> None:
        self.runner.close()


class ProcessSlot:
    """A simulator in a spawned child process (never forked: GL and CUDA do not survive a fork)."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        # The child's prints and native errors go to a file: they must not tear the progress bar, yet explain a death.
        self.log: IO[str] = tempfile.NamedTemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = context.Process(target=serve, args=(theirs, self.environment, self.log.name), daemon=True)
        self.process.start()
        theirs.close()
        self.deadline = time.monotonic()

    def send(self, command: str, argument: Any, timeout: float) -> None:
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        with suppress(BrokenPipeError, ConnectionResetError):  # receive() reports the death
            self.connection.send((command, argument))

    def receive(self) -> Transition:
        if not self.connection.poll() and time.monotonic() >= self.deadline:
            raise WorkerFailure(f"worker {self.process.pid} did not answer within {self.timeout:g} s")
        try:
            kind, value = self.connection.recv()
        except (EOFError, ConnectionResetError, OSError):
            self.process.join(5)
            raise WorkerFailure(
                f"worker {self.process.pid} died (exit code {self.process.exitcode}){self._last_output()}"
            ) from None
        if kind == "user_error":
            raise UserError(value)
        if kind == "failure":
            raise WorkerFailure(value)
        return value

    def replace(self) -> None:
        self._kill()
        self._start()

    def close(self) -> None:
        with suppress(OSError):
            self.connection.send(("stop", None))
            self.process.join(10)
        self._kill()

    def _kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.log.close()

    def _last_output(self) -> str:
        self.log.seek(0)
        lines = [line for line in self.log.read().splitlines() if line.strip()]
        return "; its last output: " + " | ".join(lines[-3:]) if lines else ""


def serve(connection: Connection, environment: Environment, log_path: str) -> None:
    """Main loop of a child process: one command in, one result out, until told to stop or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _redirect_output(log_path)
    runner = Runner(environment)
    while True:
        try:
            command, argument = connection.recv()
        except (EOFError, OSError):
            break
        if command == "stop":
            break
        try:
            reply = ("ok", getattr(runner, command)(argument))
        except UserError as error:
            reply = ("user_error", str(error))
        except Exception:
            reply = ("failure", traceback.format_exc().strip())
        connection.send(reply)
    runner.close()


def _redirect_output(path: str) -> None:
    log = os.open(path, os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):  # native libraries write to the descriptors, not to sys.stdout
        os.dup2(log, descriptor)
