"""The home of a simulator: this process, or a child process that can be killed and replaced.

All kinds of slot take a command and later hand out its result, so the pool drives them alike. `foreign_slot.py` has the
third kind, a child process of another Python.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import struct
import subprocess
import threading
import time
import traceback
from abc import ABC, abstractmethod
from contextlib import suppress
from multiprocessing import current_process, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pickle import PicklingError
from typing import Any, Protocol

from dvla_lightning.envs.base import Environment
from dvla_lightning.errors import UserError
from dvla_lightning.rollout.episode import EpisodeSpec, Transition
from dvla_lightning.rollout.foreign_worker import Runner, end_with_parent
from dvla_lightning.rollout.output import LastOutput

MESSAGE_SECONDS = 10
"""A message of a few MB takes milliseconds; one that stands still for so long will not go on."""
CLOSE_SECONDS = 3.0
"""Time for simulators to end by themselves."""

MAIN_GUARD = (
    "worker processes import the script that started them, so it must be a file and run only below `if __name__ == "
    '"__main__":`; or set num_workers: 0'
)


class WorkerFailure(Exception):
    """A worker died, hung or raised; its episode has to be run again."""


def plain_argument(argument: Any, environment: Environment) -> Any:
    """The argument of a command in plain types and arrays: what a worker without this package understands."""
    if not isinstance(argument, EpisodeSpec):
        return argument
    return {**argument.reset_arguments(), "pictures": argument.pictures, "action_dim": environment.action_dim}


def run_command(runner: Runner, command: str, argument: Any, environment: Environment) -> Transition:
    """Executes a command of `Runner` in this process."""
    return Transition(**getattr(runner, command)(plain_argument(argument, environment)))


class Slot(Protocol):
    """One simulator as the pool sees it."""

    @property
    def connection(self) -> Connection | None:
        """The object to wait for; None where `send` has done the work already."""
        ...

    @property
    def deadline(self) -> float:
        """When the command must be done, in seconds of `time.monotonic`."""
        ...

    def send(self, command: str, argument: Any, timeout: float) -> None:
        """Starts a command of `Runner`; a failure shows up in `receive`."""
        ...

    def receive(self) -> Transition | None:
        """Returns the result of the last command; None for a sign of life, after which it is still to come.

        Raises:
            WorkerFailure: if the worker died, hung or raised.
            UserError: if the simulator cannot be used.
        """
        ...

    def replace(self) -> None:
        """Kills the simulator and starts afresh."""
        ...

    def stop(self) -> None:
        """Tells it to end, and does not wait."""
        ...

    def close(self, patience: float = CLOSE_SECONDS) -> None:
        """Ends it; kills it after `patience` seconds."""
        ...


class LocalSlot:
    """A simulator in this process: nothing to wait for, and nothing can save it from hanging."""

    connection = None
    deadline = math.inf

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.runner = Runner(environment.make)
        self.result: Transition | Exception | SystemExit

    def send(self, command: str, argument: Any, timeout: float) -> None:
        try:
            self.result = run_command(self.runner, command, argument, self.environment)
        except (Exception, SystemExit) as error:  # some simulators call sys.exit where they fail
            self.result = error

    def receive(self) -> Transition:
        if isinstance(self.result, UserError):
            raise self.result
        if isinstance(self.result, (Exception, SystemExit)):
            raise WorkerFailure("".join(traceback.format_exception(self.result)).strip()) from self.result
        return self.result

    def replace(self) -> None:
        with suppress(Exception):  # what has failed may fail at its end, too
            self.close()
        self.runner = Runner(self.environment.make)

    def stop(self) -> None:
        pass

    def close(self, patience: float = CLOSE_SECONDS) -> None:
        self.runner.close()


class ChildSlot(ABC):
    """A simulator in a child process.

    Raises:
        UserError: if workers cannot be started here at all.
    """

    process: BaseProcess | subprocess.Popen[bytes]
    connection: Connection
    output: LastOutput
    deadline: float

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.is_up = False  # whether a worker of this slot has ever said a word; a replacement keeps it
        self.timeout = 0.0
        self._start()

    def send(self, command: str, argument: Any, timeout: float) -> None:
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        self._write(command, argument)

    def receive(self) -> Transition | None:
        answer = self._answer()
        if answer is None:
            return None
        try:
            return answer[0] if isinstance(answer[0], Transition) else Transition(**answer[0])
        except TypeError as error:
            raise WorkerFailure(f"worker {self.process.pid} sent what is no result ({error})") from error

    def call(self, command: str, argument: Any, timeout: float) -> Any:
        """Runs one command of `Runner` and waits for it; for what is not an episode.

        Raises:
            WorkerFailure: if the worker fails or takes longer than `timeout` seconds.
            UserError: if the simulator cannot be used.
        """
        self.send(command, argument, timeout)
        while True:
            self.connection.poll(max(0.0, self.deadline - time.monotonic()))
            answer = self._answer()
            if answer is not None:
                return answer[0]

    def _answer(self) -> tuple[Any] | None:
        """The result of a command; None for a sign of life."""
        if not self.connection.poll() and time.monotonic() >= self.deadline:
            raise WorkerFailure(f"worker {self.process.pid} did not answer within {self.timeout:g} s")
        try:
            kind, value = self._read()
        except BlockingIOError:
            raise WorkerFailure(f"worker {self.process.pid} stopped in the middle of a message") from None
        except (EOFError, OSError):
            raise self._death() from None
        except Exception as error:  # what comes from outside may fail in any way
            raise WorkerFailure(f"worker {self.process.pid} sent what is no message ({error!r})") from error
        self.is_up = True
        if kind == "user_error":
            raise UserError(str(value))
        if kind == "failure":
            raise WorkerFailure(str(value))
        if kind == "alive":
            self.deadline = time.monotonic() + self.timeout
        return (value,) if kind == "ok" else None

    def replace(self) -> None:
        self._kill()
        self._start()

    @abstractmethod
    def _start(self) -> None:
        """Starts the process."""

    @abstractmethod
    def _write(self, command: str, argument: Any) -> None:
        """Sends a command; `receive` reports that nobody is there."""

    @abstractmethod
    def _read(self) -> tuple[str, Any]:
        """Takes the next message: its kind and value."""

    @abstractmethod
    def _death(self) -> Exception:
        """Says why the worker is gone."""

    @abstractmethod
    def stop(self) -> None: ...

    @abstractmethod
    def close(self, patience: float = CLOSE_SECONDS) -> None: ...

    @abstractmethod
    def _kill(self) -> None:
        """Ends the process at once, with all that it started."""


class ProcessSlot(ChildSlot):
    """A simulator in a spawned child process (never forked: GL and CUDA do not survive a fork)."""

    process: BaseProcess

    def _start(self) -> None:
        if getattr(current_process(), "_inheriting", False):  # a worker that imports the script which started it
            raise UserError(f"this is a worker process: {MAIN_GUARD}")
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        # The child's prints and native errors must not tear the progress bar, yet explain a death.
        reader, writer = context.Pipe(duplex=False)
        args = (theirs, self.environment, writer, parent_for_kernel())
        self.process = context.Process(target=serve, args=args, daemon=True)
        try:
            self.process.start()
        except (PicklingError, AttributeError, TypeError) as error:
            raise UserError(
                f"{type(self.environment).__name__} cannot be sent to a worker process ({error}): define its class at "
                "the top of a module, with attributes that can be pickled, or set num_workers: 0"
            ) from error
        finally:
            theirs.close()
            writer.close()
        self.output = LastOutput(os.dup(reader.fileno()))
        reader.close()
        limit_patience(self.connection)
        self.deadline = time.monotonic()

    def _write(self, command: str, argument: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # receive() reports the death
            self.connection.send((command, argument))

    def _read(self) -> tuple[str, Any]:
        kind, value = self.connection.recv()
        return kind, value

    def _death(self) -> Exception:
        """Says why the worker is gone; one that never said a word would not in the next attempt, either."""
        self.process.join(5)
        end = f"worker {self.process.pid} died (exit code {self.process.exitcode})"
        if self.is_up:
            return WorkerFailure(end + self.output.last_lines())
        return UserError(f"{end} before it could start, its error stands above: {MAIN_GUARD}")

    def stop(self) -> None:
        with suppress(OSError):
            self.connection.send(("stop", None))

    def close(self, patience: float = CLOSE_SECONDS) -> None:
        self.stop()
        if self.is_up:  # else nobody listens yet
            self.process.join(patience)
        self._kill()

    def _kill(self) -> None:
        if self.is_up and self.process.pid is not None:  # its own group once it has spoken; before, it is in ours
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.output.close()


def limit_patience(connection: Connection) -> None:
    """Makes reading raise BlockingIOError where a message has begun and does not go on."""
    with socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", MESSAGE_SECONDS, 0))


def parent_for_kernel() -> bool:
    """Whether the kernel may end a worker with its parent: for Linux that is the thread which starts it."""
    return threading.current_thread() is threading.main_thread()


def serve(connection: Connection, environment: Environment, output: Connection, ask_kernel: bool) -> None:
    """Main loop of a child process: one command in, one result out, until told to stop or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    for descriptor in (1, 2):  # native libraries write to the descriptors, not to sys.stdout
        os.dup2(output.fileno(), descriptor)
    output.close()
    os.setsid()  # a group of its own: it is killed together with what it starts
    end_with_parent(ask_kernel, lambda: os.killpg(os.getpgrp(), signal.SIGKILL))
    connection.send(("up", None))
    runner = Runner(environment.make)
    while True:
        try:
            command, argument = connection.recv()
        except (EOFError, OSError):
            break
        if command == "stop":
            break
        reply: tuple[str, Any]
        try:
            reply = ("ok", run_command(runner, command, argument, environment))
        except UserError as error:
            reply = ("user_error", str(error))
        except (Exception, SystemExit):
            reply = ("failure", traceback.format_exc().strip())
        try:
            connection.send(reply)
        except (PicklingError, AttributeError, TypeError) as error:
            connection.send(("failure", f"what the simulator returned cannot be sent to another process: {error}"))
    runner.close()
