"""The plan of an evaluation: `data.evaluation`, the same part of every data module."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from dvla_lightning.envs.base import Environment
from dvla_lightning.errors import UserError, check_number
from dvla_lightning.evaluation.specs import Shard, evaluation_specs, num_protocol_episodes
from dvla_lightning.evaluation.videos import require_av
from dvla_lightning.rollout.episode import EpisodeSpec

OPTION = "data.evaluation"
EvaluationSplit = Literal["selection", "heldout"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Closed-loop evaluation, in `dvla fit` on the initial states of selection, else on those of `split`.

    What is chosen by its success on some episodes looks better on them than it is: the policy of the best epoch, the
    settings of the best run. So there are two splits beside training, one to choose on and one to report.

    Attributes:
        num_episodes: of all tasks together; 0 evaluates nothing, "all" runs as many as the environment's protocol asks
            for.
        num_steps: denoising steps K, one number or a mapping from tasks to numbers; None evaluates with the schedule or
            `data.num_steps`.
        seed: of the policy's draws, the same at every evaluation.
        split: initial states of an evaluation outside `dvla fit`: "heldout", or "selection" to compare settings.
        num_recorded_episodes: how many of them keep pictures for the log.
        save_videos: `dvla validate` also writes the recorded episodes to videos/*.mp4, one picture per decision.
        publish: `dvla validate` also writes its record, and how to repeat it, into the policy directory.
        shard: "i/n" evaluates the i-th of n parts, i from 0; `dvla merge` joins them. None evaluates everything.

    Raises:
        UserError: for values that make no sense.
    """

    num_episodes: int | Literal["all"] = 0
    num_steps: int | dict[str, int] | None = None
    seed: int = 0
    split: EvaluationSplit = "heldout"
    num_recorded_episodes: int = 0
    save_videos: bool = False
    publish: bool = False
    shard: str | None = None

    def __post_init__(self) -> None:
        if self.num_episodes != "all":
            check_number(OPTION, "num_episodes", self.num_episodes, low=0)
        if isinstance(self.num_steps, Mapping):
            for task, steps in self.num_steps.items():
                check_number(OPTION, f"num_steps of task {task!r}", steps, low=1)
        elif self.num_steps is not None:
            check_number(OPTION, "num_steps", self.num_steps, low=1)
        check_number(OPTION, "seed", self.seed)
        check_number(OPTION, "num_recorded_episodes", self.num_recorded_episodes, low=0)
        Shard.parse(self.shard)
        if self.publish and (self.split != "heldout" or self.is_partial):
            raise UserError(f"{OPTION}: publish is for all held-out episodes: leave out split and shard")
        if self.save_videos:
            require_av()
            if not self.num_recorded_episodes:
                raise UserError(f"{OPTION}: save_videos saves the recorded episodes: set num_recorded_episodes, too")

    @property
    def is_partial(self) -> bool:
        """Whether it is one of several shards."""
        return Shard.parse(self.shard).count > 1

    def check_tasks(self, environment: Environment, tasks: Sequence[str]) -> None:
        """Raises `UserError` if a mapping `num_steps` names an unknown task, or lacks one that is evaluated."""
        if not isinstance(self.num_steps, Mapping):
            return
        if unknown := [task for task in self.num_steps if task not in environment.tasks]:
            known = ", ".join(environment.tasks)
            raise UserError(f"{OPTION}: num_steps names the unknown task {unknown[0]!r}; choose from: {known}")
        if missing := [task for task in tasks if task not in self.num_steps]:
            raise UserError(f"{OPTION}: num_steps has no K for task {missing[0]!r}: give one, or one number for all")

    def steps(self, tasks: Sequence[str], default: Mapping[str, int]) -> dict[str, int]:
        """Task -> K.

        Args:
            tasks: that are evaluated.
            default: task -> K without `num_steps`.
        """
        if isinstance(self.num_steps, int):
            return dict.fromkeys(tasks, self.num_steps)
        chosen = default if self.num_steps is None else self.num_steps
        return {task: chosen[task] for task in tasks}

    def specs(
        self, environment: Environment, split: EvaluationSplit, tasks: Sequence[str], steps: Mapping[str, int]
    ) -> list[EpisodeSpec]:
        """The grid of all shards and ranks; the recorded episodes are spread over the tasks.

        Args:
            environment: where they run.
            split: of the initial states.
            tasks: that are evaluated.
            steps: task -> K.

        Raises:
            UserError: if there are fewer initial states, or the episodes do not divide evenly among the tasks.
        """
        num_episodes = self.num_episodes
        if num_episodes == "all":
            num_episodes = num_protocol_episodes(environment, tasks)
        specs = evaluation_specs(environment, split, tasks, num_episodes, steps, self.seed)
        stride = max(1, len(specs) // max(1, self.num_recorded_episodes))
        recorded = set(list(range(0, len(specs), stride))[: self.num_recorded_episodes])
        return [dataclasses.replace(spec, pictures=n in recorded) for n, spec in enumerate(specs)]

    def share(self, specs: Sequence[EpisodeSpec], rank: int, num_ranks: int) -> list[EpisodeSpec]:
        """The part of the grid that one rank of this shard runs."""
        return Shard.parse(self.shard).of(specs)[rank::num_ranks]
