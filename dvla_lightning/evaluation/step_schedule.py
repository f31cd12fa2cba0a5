"""The step schedule: denoising steps K per task, with the measurement behind it, as a YAML file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dvla_lightning.diffusion.sampler import Sampler
from dvla_lightning.errors import UserError
from dvla_lightning.files import atomic_text
from dvla_lightning.paths import local_path
from dvla_lightning.policy import DVLAPolicy

MEASURE = "measure it with `dvla schedule`"
HEADER = "# Denoising steps K per task, measured on the environment named below by"


class StepSchedule(Mapping[str, int]):
    """Denoising steps K per task: `schedule[task]`. Immutable.

    Args:
        num_steps: task -> K, at least 1.
        evidence: results of the measurement, in plain YAML types; empty for a schedule written by hand.
        source: its origin, for error messages.

    Raises:
        UserError: if there is no task, a task is no string, or a K is not a positive integer.
    """

    def __init__(
        self, num_steps: Mapping[str, int], evidence: Mapping[str, Any] | None = None, source: str = "step schedule"
    ) -> None:
        if not isinstance(num_steps, Mapping) or not num_steps:
            raise UserError(f"{source}: num_steps must say K for every task, as in {{reach: 1, push: 4}}")
        for task, steps in num_steps.items():
            if not isinstance(task, str):
                raise UserError(f"{source}: {task!r} is not the name of a task; put quotes around it if it is")
            if type(steps) is not int or steps < 1:  # YAML's true is an int to isinstance
                raise UserError(f"{source}: num_steps of task {task!r} must be a positive integer, got {steps!r}")
        if evidence is not None and not isinstance(evidence, Mapping):
            raise UserError(f"{source}: evidence must be what `dvla schedule` wrote, or absent, got {evidence!r}")
        self._num_steps = dict(num_steps)
        self.evidence: dict[str, Any] = dict(evidence or {})
        self.source = source

    def __getitem__(self, task: str) -> int:
        return self._num_steps[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self._num_steps)

    def __len__(self) -> int:
        return len(self._num_steps)

    def __repr__(self) -> str:
        return f"StepSchedule({self._num_steps})"

    def restricted(self, tasks: Sequence[str]) -> StepSchedule:
        """The schedule of some tasks, in their order.

        Raises:
            UserError: if one of them is missing.
        """
        missing = [task for task in tasks if task not in self]
        if missing:
            raise UserError(f"{self.source} has no entry for task {missing[0]!r}: {MEASURE}")
        return StepSchedule({task: self[task] for task in tasks}, self.evidence, self.source)

    def check(self, environment_tasks: Sequence[str], policy: DVLAPolicy) -> None:
        """Checks that this environment and policy can run it.

        Args:
            environment_tasks: names of all tasks of the environment.
            policy: has at most as many steps as action tokens in its chunk.

        Raises:
            UserError: for an unknown task, or a K above L.
        """
        for task, steps in self.items():
            if task not in environment_tasks:
                raise UserError(f"{self.source}: unknown task {task!r}; choose from: {', '.join(environment_tasks)}")
            try:
                policy.check_num_steps(steps)
            except UserError as error:
                raise UserError(f"{self.source}, task {task!r}: {error}") from None

    @classmethod
    def read(cls, path: str | Path) -> StepSchedule:
        """Reads a file written by `write`, or by hand (`num_steps` alone).

        Raises:
            UserError: if the file is missing, not YAML or not a schedule.
        """
        place = local_path(path, "the step schedule")
        try:
            content = yaml.load(place.read_text(encoding="utf-8"), _Loader)
        except FileNotFoundError:
            raise UserError(f"the step schedule {path} does not exist: {MEASURE}") from None
        except OSError as error:
            raise UserError(f"the step schedule {path} cannot be read ({error.strerror})") from error
        except Exception as error:  # of no YAML and no UTF-8; for odd tags and numbers PyYAML raises whatever comes
            raise UserError(f"{path} is not YAML ({' '.join(str(error).split())})") from error
        if not isinstance(content, dict) or "num_steps" not in content:
            raise UserError(f"{path} is not a step schedule (it has no key num_steps): {MEASURE}")
        unknown = [key for key in content if key not in ("num_steps", "evidence")]
        if unknown:
            raise UserError(f"{path} has the unknown key {unknown[0]!r}; a step schedule has num_steps and evidence")
        return cls(content["num_steps"], content.get("evidence"), str(path))

    def write(self, path: str | Path, command: str = "dvla schedule") -> None:
        """Writes the file; it appears whole or not at all.

        Args:
            path: YAML file; missing folders are made.
            command: of the measurement, for the comment at its head.

        Raises:
            UserError: if it cannot be written.
        """
        content = {"num_steps": self._num_steps, **({"evidence": self.evidence} if self.evidence else {})}
        content = json.loads(json.dumps(content))  # nothing in it twice, which YAML would write as an alias
        # None: what holds no other list or mapping is on one line.
        text = yaml.safe_dump(content, sort_keys=False, width=120, default_flow_style=None)
        atomic_text(local_path(path, "the step schedule"), f"{HEADER}\n#   {command}\n{text}")


def sampler_mismatch(schedule: StepSchedule, sampler: Sampler) -> str | None:
    """One sentence if the schedule was measured with another sampler, else None (also if it has no evidence).

    Commit order and K cannot be chosen apart: a K that suffices in one order may fail in another.
    """
    recorded = schedule.evidence.get("sampler")
    if not isinstance(recorded, Mapping):
        return None
    used = dataclasses.asdict(sampler)
    # A schedule written before an option existed was measured without it, that is with its default.
    measured = {**dataclasses.asdict(Sampler()), **recorded}
    different = [name for name in measured if name not in used or measured[name] != used[name]]
    if not different:
        return None
    name = different[0]
    return (
        f"{schedule.source} was measured with sampler {name} {measured[name]!r}, the policy's has "
        f"{used.get(name)!r}: measure it again with `dvla schedule`"
    )


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses aliases, which no schedule has: ten lines with them can stand for more than memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed: write their content out")
        return super().compose_node(parent, index)
