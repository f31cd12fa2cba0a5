"""What both data modules share: the collector and the episodes of validation, test and prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader, Dataset

from dvla_lightning.errors import UserError, check_number
from dvla_lightning.evaluation.header import Header, make_header
from dvla_lightning.evaluation.run import EvaluationRun
from dvla_lightning.evaluation.specs import Shard, SpecBatch, evaluation_specs, num_protocol_episodes
from dvla_lightning.evaluation.step_schedule import StepSchedule, sampler_mismatch
from dvla_lightning.evaluation.videos import require_av
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec

EvaluationSplit = Literal["selection", "heldout"]


class EvaluationDataModule(LightningDataModule):
    """Closed-loop evaluation, in `dvla fit` on the initial states of selection, else on those of `eval_split`.

    What is chosen by its success on some episodes looks better on them than it is: the policy of the best epoch, the
    settings of the best run. So there are two splits beside training, one to choose on and one to report.

    Args:
        collector: runs the episodes; None if this run never evaluates.
        tasks: "all", one name, or a list of names.
        num_steps: denoising steps K of every decision, where there is no schedule.
        schedule: step schedule, a YAML file of `dvla schedule`: K per task.
        num_eval_episodes: evaluation episodes of all tasks together; 0 evaluates nothing, "all" runs as many as the
            environment's protocol asks for.
        eval_num_steps: K in evaluation; None evaluates with the schedule or `num_steps`.
        eval_seed: seed of the policy's draws in evaluation, the same at every evaluation.
        eval_split: initial states of an evaluation outside `dvla fit`: "heldout", or "selection" to compare settings.
        num_recorded_episodes: how many of them keep pictures for the log.
        save_videos: `dvla validate` also writes the recorded episodes to videos/*.mp4, one picture per decision.
        eval_shard: "i/n" evaluates the i-th of n parts, i from 0; `dvla merge` joins them. None evaluates everything.

    Attributes:
        steps: task -> K of training episodes, and of evaluation where nothing else is said.
    """

    def __init__(
        self,
        collector: Collector | None,
        tasks: str | list[str],
        num_steps: int,
        schedule: str | None,
        num_eval_episodes: int | Literal["all"],
        eval_num_steps: int | None,
        eval_seed: int,
        eval_split: EvaluationSplit,
        num_recorded_episodes: int,
        save_videos: bool,
        eval_shard: str | None,
    ) -> None:
        super().__init__()
        check_number("data", "num_steps", num_steps, low=1)
        if num_eval_episodes != "all":
            check_number("data", "num_eval_episodes", num_eval_episodes, low=0)
        if eval_num_steps is not None:
            check_number("data", "eval_num_steps", eval_num_steps, low=1)
        check_number("data", "eval_seed", eval_seed)
        check_number("data", "num_recorded_episodes", num_recorded_episodes, low=0)
        if collector is None and num_eval_episodes:
            raise UserError("data: evaluation needs a collector; give one or set num_eval_episodes: 0")
        if save_videos:
            require_av()
            if not num_recorded_episodes:
                raise UserError("data: save_videos saves the recorded episodes: set num_recorded_episodes, too")
        self.collector = collector
        self.tasks = collector.environment.select_tasks(tasks) if collector else ()
        if schedule is None:
            self.steps: Mapping[str, int] = dict.fromkeys(self.tasks, num_steps)
        else:
            self.steps = StepSchedule.read(schedule)
        self.num_eval_episodes = num_eval_episodes
        self.eval_num_steps = eval_num_steps
        self.eval_seed, self.eval_split = eval_seed, eval_split
        self.num_recorded_episodes = num_recorded_episodes
        self.save_videos = save_videos
        self.eval_shard = Shard.parse(eval_shard)
        self._evaluation: EvaluationRun | None = None
        self.val_dataloader = self.test_dataloader = self.predict_dataloader = self._evaluation_dataloader

    @property
    def split(self) -> EvaluationSplit:
        """Of the evaluation that runs now."""
        is_fit = self.trainer is not None and self.trainer.state.fn == "fit"
        return "selection" if is_fit else self.eval_split

    @property
    def eval_steps(self) -> dict[str, int]:
        """Task -> K in evaluation."""
        if self.eval_num_steps is not None:
            return dict.fromkeys(self.tasks, self.eval_num_steps)
        return {task: self.steps[task] for task in self.tasks}

    def prepare_steps(self, policy: DVLAPolicy) -> None:
        """Reduces a schedule that was read to the tasks of this run, and complains about any K that does not fit.

        Called before every fit or evaluation; from the second time on only K is checked, which RL may have changed.

        Raises:
            UserError: for a K or a schedule that does not fit the policy and the environment's tasks.
        """
        if isinstance(self.steps, StepSchedule):
            self.steps.check(self.collector.environment.tasks, policy)
            warning = sampler_mismatch(self.steps, policy.sampler)
            self.steps = dict(self.steps.restricted(self.tasks))
            if warning:
                rank_zero_warn(warning)
        for steps in {*self.steps.values(), *self.eval_steps.values()}:
            policy.check_num_steps(steps)

    def check_policy(self, policy: DVLAPolicy) -> None:
        """Complains about a policy that cannot be trained on these data."""

    def training_remark(self) -> str | None:
        """What every table about a policy trained on this data must say, if anything."""
        return None

    def evaluation_specs(self) -> list[EpisodeSpec]:
        """The grid of all shards and ranks; the recorded episodes are spread over the tasks."""
        environment, num_episodes = self.collector.environment, self.num_eval_episodes
        if num_episodes == "all":
            num_episodes = num_protocol_episodes(environment, self.tasks)
        if self.trainer is not None and self.trainer.fast_dev_run:
            num_episodes = len(self.tasks)
        specs = evaluation_specs(environment, self.split, self.tasks, num_episodes, self.eval_steps, self.eval_seed)
        stride = max(1, len(specs) // max(1, self.num_recorded_episodes))
        recorded = set(list(range(0, len(specs), stride))[: self.num_recorded_episodes])
        return [dataclasses.replace(spec, pictures=n in recorded) for n, spec in enumerate(specs)]

    def _evaluation_dataloader(self) -> DataLoader | list:
        if not self.num_eval_episodes:
            return []
        return DataLoader(EvaluationEpisodes(self), batch_size=None, collate_fn=_identity)

    def begin_evaluation(self, policy: DVLAPolicy) -> EvaluationRun:
        """Prepares an evaluation; a stand-alone validation or test keeps a manifest in the run directory.

        Raises:
            UserError: if the manifest there is of another evaluation.
        """
        self._end_evaluation()
        trainer = self.trainer
        stands_alone = trainer.state.fn in ("validate", "test") and not trainer.fast_dev_run
        root = Path(trainer.default_root_dir)
        videos = root / "videos" if stands_alone and self.save_videos else None
        self._evaluation = EvaluationRun(self.collector, policy, videos)
        if stands_alone:
            self._evaluation.keep_manifest(root, self._header(policy), trainer.global_rank)
        return self._evaluation

    def _header(self, policy: DVLAPolicy) -> Header:
        return make_header(
            self.collector.environment,
            policy,
            self.split,
            self.eval_steps,
            len(self.evaluation_specs()) // len(self.tasks),
            self.eval_seed,
            str(self.trainer.precision),
        )

    def stop_on_sigterm(self) -> None:
        """Lightning looks at the signal between batches only; the episodes of one can take hours."""
        if self.trainer.received_sigterm:
            raise SIGTERMException

    def _end_evaluation(self) -> None:
        if self._evaluation is not None:
            self._evaluation.close()

    def on_exception(self, exception: BaseException) -> None:
        """Gives the manifest free: the process may live on, and Lightning skips `teardown`."""
        self._end_evaluation()

    def teardown(self, stage: str) -> None:
        self._end_evaluation()
        if self.collector is not None:
            self.collector.close()


class EvaluationEpisodes(Dataset):
    """One item: this rank's share of this shard of the grid, each episode on one rank.

    Made when it is asked for: Lightning keeps a dataloader for the whole of fit, in which the schedule may change. A
    rank without episodes has an empty item and still takes part in the reduction.
    """

    def __init__(self, data: EvaluationDataModule) -> None:
        self.data = data

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> SpecBatch:
        trainer = self.data.trainer
        specs = self.data.eval_shard.of(self.data.evaluation_specs())
        return SpecBatch(specs[trainer.global_rank :: trainer.world_size])


def _identity(batch: SpecBatch) -> SpecBatch:
    return batch
