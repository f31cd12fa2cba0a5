"""One line of `dvla doctor`."""

from __future__ import annotations

from typing import NamedTuple


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
