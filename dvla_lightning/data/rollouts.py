"""Rollouts as a LightningDataModule, for RL: one Lightning epoch is one RL iteration."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dvla_lightning.data.assembly import assemble, check_finite
from dvla_lightning.data.base import DVLADataModule
from dvla_lightning.data.clipping import clipping_metrics
from dvla_lightning.data.groups import AdvantageName, EpisodeGroups
from dvla_lightning.data.minibatches import IterationStream, minibatches
from dvla_lightning.data.rescheduling import Rescheduling, measurement_metrics
from dvla_lightning.data.rollout_metrics import episode_metrics, mean_commit_order, normalize_advantages, time_metrics
from dvla_lightning.data.seeding import seed_epoch
from dvla_lightning.errors import UserError, check_number
from dvla_lightning.evaluation.plan import Evaluation
from dvla_lightning.evaluation.specs import training_specs
from dvla_lightning.objectives.rollout_batch import RolloutBatch, Rollouts
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rollout.collector import CollectionTimes, Collector
from dvla_lightning.rollout.episode import Episode, EpisodeSpec
from dvla_lightning.wiring import learner_of


class RolloutDataModule(DVLADataModule):
    """Collects episodes with the present policy at the start of every epoch and yields them as minibatches.

    Args:
        collector: runs the episodes of training and evaluation.
        tasks: "all", one name, or a list of names.
        num_steps: denoising steps K of every decision, where there is no schedule.
        schedule: step schedule, a YAML file of `dvla schedule`: K per task.
        reschedule: measure the schedule again during RL, which may remove the need for steps. Without a `schedule` the
            first measurement comes before the first collection; a given one holds until iteration `every`.
        episodes_per_iteration: training episodes per iteration, over all tasks and ranks together.
        minibatch_size: decisions per step and rank, at most.
        ppo_epochs: passes over the decisions of an iteration.
        gamma: discount per decision; "grpo" and "rloo" use it for the value head alone.
        gae_lambda: of generalised advantage estimation, over decisions.
        bootstrap_truncated: what follows an episode that ran out of time: the value of its last observation, so that
            the limit itself costs nothing, or (false) nothing, so that it is a failure as in evaluation. "gae" only:
            the other advantages never bootstrap.
        advantage: "gae" (with the value head), "grpo" or "rloo" (the sum of rewards against that of the group's other
            episodes), or "reinforce++" (discounted returns); see `rl.advantages`. gae and reinforce++ are normalised
            over the batch.
        group_size: episodes that begin in the same initial state; "grpo" and "rloo" need at least 2.
        max_refills: with groups: leave out those in which all episodes had the same outcome, and collect new ones in
            their place, at most this many times (dynamic sampling of DAPO); null: train on every group.
        evaluation: which episodes are evaluated; inside `dvla fit` those of selection.
        seed: of the training episodes; the command line sets it from seed_everything.

    Attributes:
        rollout_metrics: name -> number of the last collection, over all ranks; `RolloutMetrics` logs them.
        commit_order: K -> (L,) float32, mean place of each position in the order of commits, 0 (first) to 1 (last);
            of this rank's last collection.
    """

    epoch_name = "iteration"
    batch_type = RolloutBatch
    collector: Collector

    def __init__(
        self,
        collector: Collector,
        tasks: str | list[str] = "all",
        num_steps: int = 4,
        schedule: str | None = None,
        reschedule: Rescheduling | None = None,
        episodes_per_iteration: int = 384,
        minibatch_size: int = 512,
        ppo_epochs: int = 2,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        bootstrap_truncated: bool = True,
        advantage: AdvantageName = "gae",
        group_size: int = 1,
        max_refills: int | None = None,
        evaluation: Evaluation = Evaluation(num_episodes=100, num_recorded_episodes=10),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        super().__init__(collector, tasks, num_steps, schedule, evaluation)
        check_number("data", "episodes_per_iteration", episodes_per_iteration, low=1)
        check_number("data", "minibatch_size", minibatch_size, low=1)
        check_number("data", "ppo_epochs", ppo_epochs, low=1)
        check_number("data", "gamma", gamma, low=0, high=1)
        check_number("data", "gae_lambda", gae_lambda, low=0, high=1)
        self.episodes_per_iteration = episodes_per_iteration
        self.minibatch_size, self.ppo_epochs = minibatch_size, ppo_epochs
        self.gamma, self.gae_lambda, self.bootstrap_truncated = gamma, gae_lambda, bootstrap_truncated
        self.advantage: AdvantageName = advantage
        self.groups = EpisodeGroups(advantage, group_size, max_refills, episodes_per_iteration)
        self.reschedule, self.is_schedule_given = reschedule, schedule is not None
        self.seed = seed
        self.rollout_metrics: dict[str, float] = {}
        self.commit_order: dict[int, Tensor] = {}

    def setup(self, stage: str) -> None:
        """Refuses shares of an iteration: its number of minibatches is known only when it is collected."""
        for name in ("limit_train_batches", "val_check_interval"):
            share = getattr(self._trainer, name)
            if stage == "fit" and isinstance(share, float) and share != 1.0:
                raise UserError(
                    f"trainer.{name} {share}: the number of minibatches in an iteration is not known beforehand: give "
                    "a whole number of them, or set data.episodes_per_iteration"
                )

    def train_dataloader(self) -> IterationStream:
        """The stream of minibatches; deliberately not a DataLoader and without a length."""
        return IterationStream(self._run_iteration)

    def prepare_steps(self, policy: DVLAPolicy) -> None:
        super().prepare_steps(policy)
        if self.reschedule is not None:
            self.reschedule.check(policy, self.collector, self.tasks)

    def training_remark(self) -> str | None:
        return self.collector.environment.identity().get("training_remark")

    def _run_iteration(self) -> Iterator[RolloutBatch]:
        """One RL iteration: collects, then yields minibatches until the learner wants no more."""
        trainer, learner = self._trainer, learner_of(self)
        # Not current_epoch: that is one too low in the first collection after a resume.
        iteration = trainer.fit_loop.epoch_progress.current.processed
        seed_epoch(self.seed, iteration, trainer.global_rank)
        learner.begin_iteration(iteration)
        rollouts = self.collect(iteration)
        sizes = [int(size) for size in self.gather(torch.tensor([float(len(rollouts))]))[:, 0]]
        num_passes = self._num_passes(rollouts) if learner.policy.is_sharded else 0
        order = (sizes, trainer.global_rank, self.minibatch_size, self.ppo_epochs, self.seed, iteration, num_passes)
        for minibatch in minibatches(rollouts, learner.policy.collate, *order):
            if learner.stop_iteration:
                return
            yield minibatch

    def _num_passes(self, rollouts: Rollouts) -> int:
        """Number of different K among the decisions of all ranks."""
        used = torch.zeros(rollouts.path.tokens_BL.shape[1] + 1)
        used[rollouts.path.num_steps_B] = 1
        return int(self.gather(used).amax(0).sum())

    def collect(self, iteration: int) -> Rollouts:
        """Runs this rank's training episodes of an iteration and computes their advantages.

        Returns:
            All decisions of this rank; advantages are normalised over all ranks.

        Raises:
            UserError: if a rank could run no episode, or what it collected holds numbers that are not finite.
        """
        learner = learner_of(self)
        # The same autocast as in training_step: other dtypes would give other log-probabilities.
        with torch.no_grad(), self._trainer.precision_plugin.forward_context():
            cost = self._measure_if_due(learner.policy, iteration)
            start = time.perf_counter()
            ran, chosen, times = self._collect_episodes(learner.policy, iteration)
            self.groups.check_trainable(ran, chosen, self.gather)
            rollouts = assemble(chosen, self.gamma, self.gae_lambda, self.advantage, self.bootstrap_truncated)
            learner.objective.prepare_batch(learner.policy, rollouts, self.minibatch_size)
        check_finite(rollouts)
        self.rollout_metrics = {
            **normalize_advantages(rollouts, self.gather, in_place=self.advantage in ("gae", "reinforce++")),
            **episode_metrics(ran, self.steps, time.perf_counter() - start, self.gather),
            **time_metrics(times, self.collector.num_workers),
            **clipping_metrics(ran, self.gather),
            **cost,
        }
        self.commit_order = mean_commit_order(rollouts.path)
        return rollouts

    def _measure_if_due(self, policy: DVLAPolicy, iteration: int) -> dict[str, float]:
        """Replaces the step schedule where this iteration begins with a measurement; returns its metrics."""
        if self.reschedule is None or not self.reschedule.is_due(iteration, self.is_schedule_given):
            return measurement_metrics()
        schedule, cost = self.reschedule.measure(
            self._trainer, policy, self.collector, self.tasks, self.seed, iteration, self.stop_on_sigterm
        )
        self.steps = dict(schedule)
        return cost

    def _collect_episodes(
        self, policy: DVLAPolicy, iteration: int
    ) -> tuple[list[Episode], list[Episode], list[CollectionTimes]]:
        """All episodes this rank ran, those to train on, and where the time of each collection went."""
        ranks = self._trainer.world_size
        num_episodes = self.episodes_per_iteration
        if self._trainer.fast_dev_run:
            num_episodes = max(len(self.tasks), ranks) * self.groups.size
        self.groups.check_share(num_episodes, ranks)
        times: list[CollectionTimes] = []

        def run(refill: int, count: int) -> list[Episode]:
            specs = self._rank_specs(num_episodes, iteration, refill)[:count]
            title = f"rollout {iteration}" + (f", refill {refill}" if refill else "")
            bootstrap = self.advantage == "gae" and self.bootstrap_truncated
            episodes = self.collector.run(policy, specs, title, self.stop_on_sigterm, bootstrap=bootstrap)
            times.append(self.collector.times)
            return episodes

        ran, chosen = self.groups.fill(run, len(self._rank_specs(num_episodes, iteration, 0)))
        return ran, chosen, times

    def _rank_specs(self, num_episodes: int, iteration: int, refill: int) -> list[EpisodeSpec]:
        """This rank's share of the training episodes."""
        specs = training_specs(self.tasks, num_episodes, self.steps, self.seed, iteration, self.groups.size, refill)
        return self.groups.share(specs, self._trainer.global_rank, self._trainer.world_size)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": dict(self.steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.reschedule is None:  # the command line decides
            return
        steps = state_dict.get("steps")
        if (
            not isinstance(steps, dict)
            or any(type(steps.get(task)) is not int for task in self.tasks)
            or min(steps.values()) < 1
        ):
            raise UserError(
                f"the checkpoint's step schedule {steps!r} is not one of these tasks: {', '.join(self.tasks)}"
            )
        self.steps = steps

    def gather(self, values: Tensor) -> Tensor:
        """(world_size, len(values)): the values of every rank, on the CPU."""
        learner = learner_of(self)
        return learner.all_gather(values.to(learner.device)).reshape(-1, len(values)).cpu()
