"""A simulator in another Python interpreter, as the pool sees it; the other side is `foreign_worker.py`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from dvla_lightning.envs.base import Environment
from dvla_lightning.errors import UserError
from dvla_lightning.rollout import foreign_worker
from dvla_lightning.rollout.output import LastOutput
from dvla_lightning.rollout.worker import (
    CLOSE_SECONDS,
    ChildSlot,
    WorkerFailure,
    limit_patience,
    parent_for_kernel,
    plain_argument,
)


class ForeignSlot(ChildSlot):
    """A simulator in a child process that another Python runs, where this package need not be installed.

    Args:
        environment: recipe with an `interpreter`.

    Attributes:
        hello: versions of the other side; None until it has answered for the first time. A replacement keeps it.

    Raises:
        UserError: if the interpreter is no program.
    """

    process: subprocess.Popen[bytes]

    def __init__(self, environment: Environment) -> None:
        self.hello: dict[str, Any] | None = None
        super().__init__(environment)

    def _start(self) -> None:
        interpreter = str(self.environment.interpreter)
        program = shutil.which(os.path.expanduser(interpreter))
        if program is None:
            raise UserError(
                f"interpreter {interpreter!r} is no program that can be run: give the path of the Python that has the "
                "simulator installed"
            )
        build = self.environment.foreign_build()
        ours, theirs = socket.socketpair()
        reader, writer = os.pipe()
        self.process = subprocess.Popen(
            [program, foreign_worker.__file__, str(theirs.fileno()), str(int(parent_for_kernel()))],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,  # some simulators ask questions at their first import
            stdout=writer,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is not for it, and it is killed together with its own children
        )
        theirs.close()
        os.close(writer)
        self.output = LastOutput(reader)
        self.connection = Connection(ours.detach())
        limit_patience(self.connection)
        self.deadline = time.monotonic()
        self._write("build", build)

    def _write(self, command: str, argument: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # receive() reports the death
            message = {"command": command, "argument": plain_argument(argument, self.environment)}
            foreign_worker.send_message(self.connection, message)

    def _read(self) -> tuple[str, Any]:
        message = foreign_worker.receive_message(self.connection)
        kind, value = message["kind"], message["value"]
        if kind == "hello":
            self.hello = dict(value)
        return kind, value

    def _death(self) -> Exception:
        """Says why the worker is gone; before its first word it is the interpreter that cannot be used."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        if self.hello is not None:
            return WorkerFailure(
                f"worker {self.process.pid} died (exit code {self.process.returncode}){self.output.last_lines()}"
            )
        return UserError(
            f"interpreter {self.environment.interpreter!r} cannot run the simulator's worker (exit code "
            f"{self.process.returncode}){self.output.last_lines()}; give the Python 3.8 or newer that has the "
            "simulator and numpy installed"
        )

    def stop(self) -> None:
        self.connection.close()  # the order to stop

    def close(self, patience: float = CLOSE_SECONDS) -> None:
        self.stop()
        if self.hello is not None:  # else nobody listens
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()
        self.output.close()
