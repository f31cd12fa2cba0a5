"""Lines of an environment's doctor, and the way it reaches a simulator, which `dvla doctor` brings along."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol


class Check(NamedTuple):
    """One line of the report.

    Attributes:
        ok: True works, False is broken, None is absent but optional.
        name: what was looked at.
        finding: what was found.
        remedy: what to do where it is not ok.
    """

    ok: bool | None
    name: str
    finding: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = {True: "ok  ", False: "FAIL", None: "-   "}[self.ok]
        remedy = f"\n     -> {self.remedy}" if self.remedy and not self.ok else ""
        return f"{mark} {self.name}: {self.finding}{remedy}"


class NoAnswer(Exception):
    """The simulator died, hung or raised; the message is the last line of what it said."""


class Simulator(Protocol):
    """A simulator in a process of its own, which may die or hang."""

    @property
    def hello(self) -> dict[str, Any] | None:
        """Versions of a process that another Python runs; None before its first answer, or of this Python."""

    def reset(self, task: str, split: str, seconds: float) -> Any:
        """Begins the first episode of a task; raises `NoAnswer`, or `UserError` for what the user can mend."""

    def call(self, command: str, argument: Any, seconds: float) -> Any:
        """Sends another command and returns its answer; raises the same."""

    def close(self) -> None:
        """Ends the process."""
