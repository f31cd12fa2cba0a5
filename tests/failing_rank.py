"""A callback for tests of several ranks: one of them fails in the first minibatch, in one of several ways."""

import json
import os
import signal
from pathlib import Path

from lightning import Callback

from dvla_lightning.errors import UserError


class FailingRank(Callback):
    """Fails on one rank.

    Args:
        rank: which one; -1: all.
        how: "error", or "kill".
        sockets: file for the addresses that this process listens on; none are written without.
    """

    def __init__(self, rank: int, how: str, sockets: str | None = None):
        self.rank, self.how, self.sockets = rank, how, sockets

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        trainer.strategy.barrier()
        if self.sockets is not None:
            Path(f"{self.sockets}-{trainer.global_rank}").write_text(json.dumps(listening(os.getpid())))
            trainer.strategy.barrier()
        if trainer.global_rank == self.rank or self.rank < 0:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise UserError(f"the scale of rank {self.rank} is wrong: mend it")


def listening(pid):
    """Local addresses of a process's listening TCP sockets, as the kernel writes them: hexadecimal, without port."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    own = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in own]
