"""A tabletop whose simulator dies, hangs, raises or cannot be used, a given number of times."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dvla_lightning.envs.tabletop import Tabletop, TabletopEnv
from dvla_lightning.errors import UserError

FAULTY_STATE = 3  # the initial state whose episode meets the fault


class FaultyEnv(TabletopEnv):
    def __init__(self, fault, times, marker):
        super().__init__()
        self.fault, self.times, self.marker = fault, times, Path(marker)

    def reset(self, *, seed=None, options=None):
        self.is_faulty = options["initial_state"] == FAULTY_STATE
        return super().reset(seed=seed, options=options)

    def step_chunk(self, actions):
        if self.is_faulty and self.count() < self.times:
            self.marker.open("a").write("x")
            {"kill": self.kill, "hang": self.hang, "raise": self.fail, "unusable": self.refuse}[self.fault]()
        return super().step_chunk(actions)

    def count(self):
        return len(self.marker.read_text()) if self.marker.exists() else 0

    def kill(self):
        print("the simulator's last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def hang(self):
        time.sleep(600)

    def fail(self):
        raise RuntimeError("contact solver diverged")

    def refuse(self):
        raise UserError("the meshes are missing: download them")


class FaultyTabletop(Tabletop):
    """Tabletop whose first `times` visits of one initial state end in a fault.

    Args:
        fault: kill, hang, raise or unusable.
        times: how often.
        marker: file that counts the faults over all processes.
    """

    def __init__(self, fault: str, times: int, marker: str) -> None:
        super().__init__()
        self.fault, self.times, self.marker = fault, times, marker

    def make(self):
        return FaultyEnv(self.fault, self.times, self.marker)


class NanRewards(Tabletop):
    def make(self):
        return NanRewardsEnv()


class NanRewardsEnv(TabletopEnv):
    def advance(self, action):
        _, *rest = super().advance(action)
        return float("nan"), *rest


class SlowAtTimes(Tabletop):
    def make(self):
        return SlowAtTimesEnv()


class SlowAtTimesEnv(TabletopEnv):
    def step_chunk(self, actions):
        time.sleep(os.urandom(1)[0] / 10_000)
        return super().step_chunk(actions)


class Hanging(Tabletop):
    def make(self):
        time.sleep(600)


class Exiting(Tabletop):
    def make(self):
        sys.exit(0)


class WithChild(Tabletop):
    def __init__(self, file):
        super().__init__()
        self.file = file

    def make(self):
        Path(self.file).write_text(str(subprocess.Popen(["sleep", "600"]).pid))
        raise RuntimeError("has a child")
