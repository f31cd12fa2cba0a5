"""Ranks that this command starts on one machine: they meet on loopback, and end together, with one sentence.

Rank 0 starts the others and watches them. A rank that fails sends its sentence to rank 0 through a pipe, so that it is
printed once; for one that is killed rank 0 makes up a sentence. Ranks watch rank 0 in the same way.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers.subprocess_script import (
    _basic_subprocess_cmd,
    _SubprocessScriptLauncher,
)
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException

from dvla_lightning.errors import UserError
from dvla_lightning.launch.trainer_flags import check_port

WORDS = "DVLA_LAST_WORDS"
"""Environment variable of a started rank: descriptor of the pipe to rank 0, and the process id of rank 0."""
GRACE_SECONDS = 5.0
"""Time for a rank to notice the loss of another by itself, and to close its simulators."""
RESUME = "continue with --ckpt_path auto"
# How gloo and NCCL say, in exceptions without a class of their own, that a peer is gone.
LOST = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe")


class RankLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher with another end: Lightning's kills rank 0, and the last message is one of gloo."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        self.trainer = trainer
        self.is_over = False
        started = os.environ.get(WORDS)
        if started is not None and os.environ.get("LOCAL_RANK", "0") != "0":
            self._watch(lambda: os.getppid() != int(started.split(":")[1]), _rank_0_is_gone)
        return super().launch(function, *args, trainer=trainer, **kwargs)

    def _call_children_scripts(self) -> None:
        self._check_can_spawn_children()
        check_port()
        if self.num_nodes == 1 and "MASTER_ADDR" not in os.environ:
            self._store = meet_on_loopback()
        environment = self.cluster_environment
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
        os.environ["NODE_RANK"], os.environ["LOCAL_RANK"] = str(environment.node_rank()), "0"
        os.environ["WORLD_SIZE"] = str(self.num_processes * self.num_nodes)
        self._words, theirs = os.pipe()
        os.set_blocking(self._words, False)
        for rank in range(1, self.num_processes):
            given = {**os.environ, "LOCAL_RANK": str(rank), WORDS: f"{theirs}:{os.getpid()}"}
            self.procs.append(subprocess.Popen(_basic_subprocess_cmd(), env=given, pass_fds=[theirs]))
        os.close(theirs)
        self._watch(lambda: self.failed() is not None, lambda: self.sentence() or "")

    def failed(self) -> tuple[int, int] | None:
        """Rank and exit code of a rank that failed."""
        codes = [process.poll() for process in self.procs]
        return next(((rank, code) for rank, code in enumerate(codes, 1) if code), None)

    def sentence(self) -> str | None:
        """The reason why a rank failed, in its own words if it sent any; None if none failed."""
        if (failed := self.failed()) is None:
            return None
        rank, code = failed
        with contextlib.suppress(BlockingIOError):
            if words := os.read(self._words, 65536).decode(errors="replace"):
                self._last_words = words.splitlines()[0]
        if sent := getattr(self, "_last_words", None):
            return sent
        if code < 0:
            return f"rank {rank} was killed ({signal.Signals(-code).name}; out of memory?), so this run ends: {RESUME}"
        return f"rank {rank} ended with exit code {code}, see its message above, so this run ends: {RESUME}"

    def end_others(self) -> None:
        """Kills what is left of the other ranks: nothing else ends one that waits for a lost peer."""
        self.is_over = True
        for process in self.procs:
            if process.poll() is None:
                process.kill()

    def _watch(self, is_lost: Callable[[], bool], why: Callable[[], str]) -> None:
        """Ends this process where it does not notice by itself that another rank is gone."""

        def watch() -> None:
            while not is_lost():
                if self.is_over:
                    return
                time.sleep(0.2)
            deadline = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < deadline or self.trainer.state.status == TrainerStatus.INTERRUPTED:
                if self.is_over:
                    return
                time.sleep(0.1)
            self.end_others()
            print(f"dvla: error: {why()}", file=sys.stderr, flush=True)
            os._exit(2)

        threading.Thread(target=watch, name="rank-watch", daemon=True).start()


def _rank_0_is_gone() -> str:
    return f"rank 0 ended without a word (killed? out of memory?), so this run ends: {RESUME}"


def meet_on_loopback() -> torch.distributed.Store:
    """Opens the rendezvous of ranks on this machine where nobody else can reach it; torch listens on all interfaces.

    Interfaces that the user chose stay. The store must live as long as the run.
    """
    names = {name for _, name in socket.if_nameindex()}
    for loopback in names & {"lo", "lo0"}:
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, loopback)
    port = int(os.environ.get("MASTER_PORT") or os.environ.get("STANDALONE_PORT") or 0)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except OSError as error:
        raise UserError(
            f"the environment variable MASTER_PORT: {port} is in use ({error.strerror}): unset it"
        ) from error
    listening.listen(128)
    port = listening.getsockname()[1]
    os.environ["MASTER_PORT"] = str(port)
    # env:// of torch finds this server by its port, since both are multi_tenant.
    return torch.distributed.TCPStore(
        "127.0.0.1", port, is_master=True, multi_tenant=True, wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )  # fmt: skip


def use_launcher(trainer: Any) -> None:
    """Replaces Lightning's launcher by `RankLauncher` where this command starts the ranks."""
    theirs = trainer.strategy.launcher
    if type(theirs) is _SubprocessScriptLauncher and isinstance(theirs.cluster_environment, LightningEnvironment):
        trainer.strategy._launcher = RankLauncher(theirs.cluster_environment, theirs.num_processes, theirs.num_nodes)


@contextlib.contextmanager
def ending_together(launcher: Any) -> Iterator[None]:
    """Ends all ranks where one fails, and prints the reason once.

    Raises:
        UserError: the reason, on the rank that prints it.
        SystemExit: on the others.
    """
    try:
        yield
    except BaseException as error:
        is_ours = isinstance(launcher, RankLauncher)
        if is_ours and launcher.procs:
            _end_as_rank_0(launcher, error)
        elif is_ours and os.environ.get("LOCAL_RANK", "0") != "0" and WORDS in os.environ:
            _end_as_started_rank(launcher, error)
        elif _is_lost_peer(error):
            raise UserError(f"another rank of this run ended, its own message says why; then {RESUME}") from error
        raise
    finally:
        if isinstance(launcher, RankLauncher):
            launcher.is_over = True


def _end_as_rank_0(launcher: RankLauncher, error: BaseException) -> None:
    sentence = None
    if isinstance(error, Exception) and not isinstance(error, (UserError, SIGTERMException)):
        deadline = time.monotonic() + (2 * GRACE_SECONDS if _is_lost_peer(error) else 0)
        while (sentence := launcher.sentence()) is None and time.monotonic() < deadline:
            time.sleep(0.1)
    launcher.is_over = True
    if isinstance(error, SIGTERMException):  # they were told, too: let them close their simulators
        with contextlib.suppress(subprocess.TimeoutExpired):
            for process in launcher.procs:
                process.wait(GRACE_SECONDS)
    launcher.end_others()
    if sentence is not None:
        raise UserError(sentence) from error


def _end_as_started_rank(launcher: RankLauncher, error: BaseException) -> None:
    descriptor, parent = map(int, os.environ[WORDS].split(":"))
    if isinstance(error, UserError):
        with contextlib.suppress(OSError):
            os.write(descriptor, (" ".join(str(error).split()) + "\n").encode()[:4096])  # whole, up to PIPE_BUF
            launcher.is_over = True
            raise SystemExit(2) from error
    elif _is_lost_peer(error):
        # Rank 0 ends this process when it has said why; if rank 0 is what is lost, nobody else can.
        deadline = time.monotonic() + 12 * GRACE_SECONDS
        while os.getppid() == parent and time.monotonic() < deadline:
            time.sleep(0.1)
        launcher.is_over = True
        if os.getppid() != parent:
            raise UserError(_rank_0_is_gone()) from error
        raise SystemExit(2) from error


def _is_lost_peer(error: BaseException) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST)
