"""DVLAModule: wires policy, objective and evaluation into Lightning; no maths lives here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from dvla_lightning.errors import UserError, check_number, last_line
from dvla_lightning.evaluation.run import EvaluationRun
from dvla_lightning.evaluation.specs import SpecBatch
from dvla_lightning.evaluation.success import SuccessCount, TaskSuccess, network_evaluations, success_by_steps
from dvla_lightning.learning_rates import LearningRateSchedule
from dvla_lightning.objectives.base import LossOutput, Objective
from dvla_lightning.objectives.supervised import SupervisedObjective
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.policy_recipe import PolicyRecipe
from dvla_lightning.precision import apply_precision
from dvla_lightning.update_guard import UpdateGuard
from dvla_lightning.wiring import RunData, data_of


class DVLAModule(LightningModule):
    """Trains a policy with an objective and evaluates it in closed loop.

    Args:
        policy: the policy, or a recipe to build it from once the strategy is set up.
        objective: the loss of a training step; evaluation does not use it.
        optimizer: its parameters are the trainable ones of the policy alone.
        value_lr: learning rate of the value head; None is the optimizer's. The head is new while the policy has been
            trained before, so RL needs it 10 to 100 times higher (RLinf: 20 to 30 times). Whatever the scheduler does,
            its ratio to the optimizer's stays.
        lr_scheduler: stepped once per epoch, so that T_max, total_steps and the like count epochs; None keeps the
            learning rate. ReduceLROnPlateau is `lightning.pytorch.cli.ReduceLROnPlateau`, whose monitor is any logged
            metric; one that begins with val/ is read after each evaluation.
        max_skipped_updates: a loss or gradient that is not finite makes no update; after so many of them in a run the
            next one ends it, and the error says where its first such number arose.

    Raises:
        UserError: for values that make no sense; in training for weights, losses and gradients that are not finite.
    """

    policy: DVLAPolicy
    task_success: TaskSuccess
    evaluation: EvaluationRun

    def __init__(
        self,
        policy: DVLAPolicy | PolicyRecipe,
        objective: Objective = SupervisedObjective(),  # noqa: B008 - it has no state
        optimizer: OptimizerCallable = torch.optim.AdamW,
        value_lr: float | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_skipped_updates: int = 10,
    ) -> None:
        super().__init__()
        if value_lr is not None:
            check_number("model", "value_lr", value_lr, low=0)
        self._recipe = policy if isinstance(policy, PolicyRecipe) else None
        if isinstance(policy, DVLAPolicy):
            self.policy = policy
        self.objective = objective
        self.optimizer_factory: Callable[..., torch.optim.Optimizer] = optimizer
        self.lr_scheduler_factory = lr_scheduler
        self.value_lr = value_lr
        self.guard = UpdateGuard(max_skipped_updates)
        self.schedule: LearningRateSchedule | None = None
        self._saved_schedule: dict[str, Any] | None = None
        self._window_size = 1
        self.stop_iteration = False

    @property
    def _data(self) -> RunData:
        return data_of(self)

    def setup(self, stage: str) -> None:
        apply_precision(self.trainer)

    def configure_model(self) -> None:
        """Builds the policy, at the first call alone, and checks that it fits data and objective."""
        if self._recipe is not None:
            self.policy, self._recipe = self._recipe.build(), None
        data = self._data
        if self.trainer.state.fn == "fit":
            self._check_training(data)
        elif not data.evaluation.num_episodes:
            raise UserError("there is nothing to evaluate: set data.evaluation.num_episodes")
        if data.collector is not None:
            self.policy.check_environment(data.collector.environment)
            data.prepare_steps(self.policy)
            if data.evaluation.num_episodes:
                data.evaluation_specs()  # complains now, not after the first hour of training
            self.task_success = TaskSuccess(data.tasks).to(self.device)
        # Not in fit alone: what it freezes is not in a checkpoint, which `dvla validate --ckpt_path` reads, too.
        self.objective.prepare(self.policy)

    def _check_training(self, data: RunData) -> None:
        """Checks that policy, data and objective fit each other; a new policy gets its statistics."""
        if data.evaluation.is_partial:
            raise UserError(
                "data.evaluation.shard would evaluate a part only, all through fit: use it in `dvla validate`"
            )
        if data.batch_type is not self.objective.batch_type:
            raise UserError(
                f"{type(data).__name__} does not fit {type(self.objective).__name__}: demonstrations are for "
                "SupervisedObjective, rollouts for TrajectoryPPO"
            )
        data.check_policy(self.policy)
        if not self.policy.is_fitted:
            statistics = data.statistics_data()
            if statistics is None:
                raise UserError("RL needs a trained policy to start from: set model.policy.pretrained")
            self.policy.fit_statistics(*statistics)
        self.objective.check_policy(self.policy)
        self._add_remarks(filter(None, [data.training_remark()]))

    def _add_remarks(self, remarks: Iterable[str]) -> None:
        self.policy.remarks = sorted({*self.policy.remarks, *remarks})

    def on_train_start(self) -> None:
        """Keeps the reference policy, now that all ranks have the same weights; a resumed run has it already."""
        if not self.objective.needs_reference or self.policy.reference is not None:
            return
        if self.trainer.ckpt_path is not None:
            raise UserError(
                f"{self.trainer.ckpt_path} holds no reference policy, it was written without a KL to it: "
                "resume without, or start a new run with --model.policy.pretrained"
            )
        self.policy.keep_reference()

    # -- training ----------------------------------------------------------------------------------------------------

    def begin_iteration(self, iteration: int) -> None:
        """Called by the data module before the data of an epoch is collected."""
        self.stop_iteration = False
        self.policy.version = self.trainer.global_step
        self.objective.begin_iteration(iteration)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.policy.version = self.trainer.global_step
        output: LossOutput = self.objective(self.policy, batch)
        for name, value in output.metrics.items():
            self.log(f"train/{name}", value, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        for name, value in output.diagnostics.items():
            self.log(f"train/{name}", value, on_step=False, on_epoch=True, sync_dist=False, batch_size=1)
        if output.stop is not None:
            # All ranks decide together: one that stopped alone would leave the others waiting.
            mean = self.trainer.strategy.reduce(output.stop, reduce_op="mean")
            self.stop_iteration |= not bool(mean <= output.stop_limit)  # NaN stops, too
        self.guard.see(output, batch, f"epoch {self.current_epoch}, minibatch {batch_idx}")
        return output.loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Checks and scales gradients, summed over a window of minibatches and averaged over ranks, before clipping.

        No optimizer of torch changes a parameter whose gradient is None, nor its state, by weight decay either. Leaving
        it out of the loss or freezing it would not do: ddp needs a gradient for each.
        """
        scaler = self.trainer.scaler
        is_scaled = scaler is not None and scaler.get_scale() > 1
        for parameter in self.objective.held_parameters(self.policy):
            parameter.grad = None
        refused = self.guard.refuses(self._trained(), is_scaled, self._any_rank)
        if refused is not None:
            rank_zero_warn(f"skipped update {self.guard.skipped} (at most {self.guard.max_skipped}): {refused}")
        skipped = float(self.guard.skipped)
        self.log("train/skipped_updates", skipped, on_step=False, on_epoch=True, reduce_fx="max", batch_size=1)
        if refused is not None or self.stop_iteration:
            optimizer.zero_grad(set_to_none=True)
            return
        # Lightning divides by accumulate_grad_batches, also in a last window that holds fewer minibatches.
        missing = self.trainer.accumulate_grad_batches / self._window_size
        if missing != 1:
            for _, parameter in self._trained():
                if parameter.grad is not None:
                    parameter.grad *= missing

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        self._window_size = batch_idx % self.trainer.accumulate_grad_batches + 1
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.guard.check_weights(self._trained(), self._any_rank)
        trainer = self.trainer
        ends_run = trainer.global_step + 1 == trainer.max_steps
        if ends_run or trainer.is_last_batch or batch_idx + 1 == trainer.num_training_batches:
            self.guard.check_last_weights(self._loss, self._any_rank)

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, p) for name, p in self.policy.named_parameters() if p.requires_grad]

    def _any_rank(self, flag: bool) -> bool:
        count = torch.tensor(float(flag), device=self.device)
        return bool(self.trainer.strategy.reduce(count, reduce_op="sum") > 0)

    @torch.no_grad()
    def _loss(self, batch: Any) -> Tensor:
        with self.trainer.precision_plugin.forward_context():
            return self.objective(self.policy, batch).loss

    def configure_optimizers(self) -> Any:
        value = [p for p in self.policy.value_head.parameters() if p.requires_grad]
        is_value = {id(p) for p in value}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.policy.parameters() if p.requires_grad and id(p) not in is_value]}
        ]
        if value:
            groups.append({"params": value} if self.value_lr is None else {"params": value, "lr": self.value_lr})
        try:
            optimizer = self.optimizer_factory(groups)
        except (TypeError, ValueError) as error:
            raise UserError(f"model.optimizer: {error}") from error
        for group in optimizer.param_groups:  # torch refuses what is below 0 alone
            check_number("model.optimizer", "lr", float(group["lr"]), low=0)
        if self.lr_scheduler_factory is None:
            return optimizer
        has_value_lr, max_epochs = self.value_lr is not None, self.trainer.max_epochs
        self.schedule = LearningRateSchedule(optimizer, self.lr_scheduler_factory, has_value_lr, max_epochs)
        for remark in self.schedule.check_length(self._saved_schedule):
            rank_zero_warn(remark)
        monitor, frequency = self.schedule.monitor, 1
        if monitor is None:
            return [optimizer], [self.schedule.scheduler]
        if monitor.startswith("val/"):
            if not self._data.evaluation.num_episodes:
                raise UserError(f"model.lr_scheduler: nothing logs {monitor}: set data.evaluation.num_episodes")
            frequency = self.trainer.check_val_every_n_epoch or 1
        config = {"scheduler": self.schedule.scheduler, "monitor": monitor, "frequency": frequency}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if self.schedule is not None and self.schedule.monitor is None:
            self.schedule.step()

    def on_train_epoch_end(self) -> None:
        """Steps a ReduceLROnPlateau: Lightning does so after the epoch's checkpoint, and resuming would lose that."""
        schedule, epoch = self.schedule, self.current_epoch + 1
        if schedule is None or schedule.monitor is None or epoch % self.trainer.lr_scheduler_configs[0].frequency:
            return
        metrics = self.trainer.callback_metrics
        value = self.trainer.strategy.broadcast(metrics.get(schedule.monitor))  # some metrics are those of rank 0 alone
        if value is None:
            raise UserError(
                f"model.lr_scheduler: nothing logs {schedule.monitor!r}; there are {', '.join(sorted(metrics))}"
            )
        schedule.step(float(value))

    # -- evaluation --------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        if not self.policy.is_fitted:
            raise UserError("the policy is new: evaluate a trained one with --model.policy.pretrained or --ckpt_path")
        self.evaluation = self._data.begin_evaluation(self.policy)
        self.task_success.reset()

    def validation_step(self, batch: SpecBatch, batch_idx: int) -> None:
        stop = self._data.stop_on_sigterm
        self.task_success.update(self.evaluation.run(batch.specs, "evaluation", stop))

    @property
    def evaluation_prefix(self) -> str:
        """The prefix of an evaluation's logged numbers: val for selection, test for held-out, by whatever command."""
        return "test" if self._data.split == "heldout" else "val"

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def predict_step(self, batch: SpecBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Runs the episodes and returns one record of each."""
        stop = self._data.stop_on_sigterm
        return [dataclasses.asdict(record) for record in self.evaluation.run(batch.specs, "prediction", stop)]

    def on_validation_epoch_end(self) -> None:
        """Logs the success; counts are summed over ranks by the metric, so nothing is averaged when logging."""
        prefix, counts = self.evaluation_prefix, self.task_success.by_task()
        total = sum(counts.values(), SuccessCount(0, 0))
        if total.errors and not total.n:
            errors = [last_line(r.error) for r in self.evaluation.records.values() if r.error]
            first = next(iter(errors), "see the other ranks")
            raise UserError(f"every evaluation episode ended in an error, the first one in: {first}")
        values = {f"{prefix}/success_rate": total.rate, f"{prefix}/num_episodes": float(total.n)}
        values[f"{prefix}/num_errors"] = float(total.errors)
        values |= {f"{prefix}/success_rate/{task}": count.rate for task, count in counts.items() if count.n}
        steps = self._data.evaluation_steps
        values[f"{prefix}/network_evaluations_per_decision"] = network_evaluations(counts, steps).per_decision
        by_steps = success_by_steps(counts, steps)
        if len(by_steps) > 1:
            values |= {f"{prefix}/success_rate/K{k}": count.rate for k, count in by_steps.items() if count.n}
        for name, value in values.items():
            self.log(name, value, sync_dist=False)

    on_test_epoch_end = on_validation_epoch_end

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _saved_names(self) -> set[str]:
        """Trainable parameters, and the statistics that came from the training data."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        rewritten = {f"policy.{name}" for name in self.policy.rewritten_parameters}
        return set(self.state_dict()) - (frozen - rewritten)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps only what is trained: the rest is in the policy directory the run started from."""
        names = self._saved_names()
        checkpoint["state_dict"] = {name: x for name, x in checkpoint["state_dict"].items() if name in names}
        checkpoint["policy_remarks"] = list(self.policy.remarks)
        checkpoint["policy_reference"] = self.policy.reference
        checkpoint["skipped_updates"] = self.guard.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fills in what was not saved, after checking that the trained names are the same."""
        own, saved = self.state_dict(), checkpoint["state_dict"]
        different = sorted(self._saved_names() ^ set(saved))
        problem = "is in only one of them"
        if not different:
            different = [name for name in saved if saved[name].shape != own[name].shape]
            problem = "has another shape"
        if not different:
            different = [name for name in saved if saved[name].is_floating_point() != own[name].is_floating_point()]
            problem = "holds another kind of numbers"
        if different:
            raise UserError(
                f"the checkpoint does not fit this policy: parameter {different[0]!r} {problem}; resume "
                "with the configuration of the run, or start a new one with --model.policy.pretrained"
            )
        checkpoint["state_dict"] = {**own, **saved}
        self._load_extras(checkpoint)
        self.policy.is_fitted = True
        self._saved_schedule = next(iter(checkpoint.get("lr_schedulers", [])), None)

    def _load_extras(self, checkpoint: dict[str, Any]) -> None:
        """Restores everything but weights, after checking that it has the form that `on_save_checkpoint` writes."""
        remarks, skipped = checkpoint.get("policy_remarks", []), checkpoint.get("skipped_updates", 0)
        reference = checkpoint.get("policy_reference")
        shapes = {f"backbone.{name}": p.shape for name, p in self.policy.backbone.named_parameters() if p.requires_grad}
        problem = None
        if not isinstance(remarks, list) or not all(isinstance(x, str) and x.isprintable() for x in remarks):
            problem = "policy_remarks are no list of printable texts"
        elif type(skipped) is not int or skipped < 0:
            problem = f"skipped_updates must be a whole number of at least 0, got {skipped!r}"
        elif reference is not None and (not isinstance(reference, dict) or set(reference) != set(shapes)):
            problem = "policy_reference does not have the names of the trained parameters"
        elif reference is not None:
            for name, x in reference.items():
                if not isinstance(x, Tensor) or x.shape != shapes[name] or not bool(x.isfinite().all()):
                    problem = f"policy_reference is of another shape or not finite at {name}"
        if problem is not None:
            raise UserError(f"{self.trainer.ckpt_path} is no checkpoint of this run: its {problem}")
        self._add_remarks(remarks)
        self.policy.reference, self.guard.skipped = reference, skipped
