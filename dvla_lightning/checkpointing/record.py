"""The record of the run that wrote a checkpoint, and the check that it fits the run that reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from dvla_lightning.checkpointing.contents import RECORD, check_form
from dvla_lightning.checkpointing.optimizer_states import misfit
from dvla_lightning.checkpointing.progress import EPOCHS, at_epoch_end, begin_next_epoch
from dvla_lightning.errors import UserError

START_ANEW = "resume with the configuration of the run, or start a new one with --model.policy.pretrained"


class RunRecord(Callback):
    """Adds to every checkpoint what its tensors do not show, and refuses to resume from one that does not fit.

    Without it Lightning resumes with the optimizer state of another optimizer, on other frozen weights, with other
    LoRA scaling, or in the middle of an epoch whose remaining minibatches it cannot know.
    """

    def __init__(self) -> None:
        self._loaded: Mapping[str, Any] | None = None
        self._frozen: str | None = None

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[RECORD] = {
            **_describe(module),
            "buffers": [name for name, _ in module.named_buffers()],
            "frozen_weights": self._frozen_weights(module),
            "precision": str(trainer.precision),
            "optimizers": [_name(optimizer) for optimizer in trainer.optimizers],
            "lr_schedulers": [_name(config.scheduler) for config in trainer.lr_scheduler_configs],
            "is_epoch_end": at_epoch_end(trainer),
        }

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compares before anything but weights has been restored."""
        path, record = trainer.ckpt_path, checkpoint[RECORD]
        self._loaded = checkpoint
        assert trainer.state.fn is not None
        loop = f"{trainer.state.fn.value}_loop"
        subject = f"{path} is no checkpoint of a run: it"
        check_form(record, {"actions": {}, "lora_scaling": [], "frozen_weights": "", "precision": ""}, subject)
        check_form(checkpoint["loops"][loop], getattr(trainer, loop).state_dict(), subject)
        # Infinity is let through in what it calls a buffer.
        if weights := set(record.get("buffers", [])) & {name for name, _ in module.named_parameters()}:
            raise UserError(f"{subject} calls {min(weights)} a buffer, and it is a weight here")
        own = _describe(module)
        for key, meaning in (("actions", "action tokens"), ("lora_scaling", "lora_alpha / r")):
            if record[key] != own[key]:
                raise UserError(
                    f"{path} was written with other {meaning} ({record[key]}, not {own[key]}): {START_ANEW}"
                )
        if trainer.state.fn != "fit":
            return
        check_form(record, {"objective": "", "optimizers": [], "lr_schedulers": [], "is_epoch_end": True}, subject)
        if record["objective"] != own["objective"]:
            raise UserError(f"{path} was written by {record['objective']}, not {own['objective']}: {START_ANEW}")
        _check_callbacks(trainer, checkpoint["callbacks"], subject)
        _begin_next_epoch(checkpoint, path)

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Compares the optimizers, which exist by now; their state has not been restored yet."""
        if trainer.ckpt_path is None:
            return
        if self._loaded is None:  # it has no callbacks, so that Lightning did not ask
            raise UserError(f"{trainer.ckpt_path} holds weights alone, training cannot go on from it: {START_ANEW}")
        self._check_frozen(trainer, module)
        record, path = self._loaded[RECORD], trainer.ckpt_path
        optimizers = [_name(optimizer) for optimizer in trainer.optimizers]
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        for option, saved, own in (
            ("model.optimizer", record["optimizers"], optimizers),
            ("model.lr_scheduler", record["lr_schedulers"], [_name(scheduler) for scheduler in schedulers]),
        ):
            if saved != own:
                words = [", ".join(names) or "none" for names in (saved, own)]
                raise UserError(f"{path} was written with another {option} ({words[0]}, not {words[1]}): {START_ANEW}")
        subject = f"{path} does not fit this run: its"
        for key, count in (("optimizer_states", len(optimizers)), ("lr_schedulers", len(schedulers))):
            if len(self._loaded[key]) != count:
                raise UserError(f"{subject} {key} are {len(self._loaded[key])}, and not {count}: {START_ANEW}")
        for state, optimizer in zip(self._loaded["optimizer_states"], trainer.optimizers, strict=True):
            if problem := misfit(state, optimizer):
                raise UserError(f"{subject} optimizer {problem}: {START_ANEW}")
            for group, own_group in zip(state["param_groups"], optimizer.param_groups, strict=True):
                check_form(group, own_group, f"{subject} optimizer")
        for state, scheduler in zip(self._loaded["lr_schedulers"], schedulers, strict=True):
            check_form(state, scheduler.state_dict(), f"{subject} lr_scheduler")
        self._loaded = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_frozen(trainer, pl_module)
        self._loaded = None

    on_test_start = on_predict_start = on_validation_start

    def _check_frozen(self, trainer: Trainer, module: LightningModule) -> None:
        """Compares frozen weights; in `on_load_checkpoint` the strategy has not given them their precision yet."""
        if self._loaded is None:
            return
        record = self._loaded.get(RECORD)
        # Weights of another precision are rounded, so that nothing can be said about them.
        if record is None or record["precision"] != str(trainer.precision):
            return
        if record["frozen_weights"] != self._frozen_weights(module):
            raise UserError(
                f"{trainer.ckpt_path} was trained on other frozen weights than those of model.policy.pretrained: give "
                "the policy that the run started from"
            )

    def _frozen_weights(self, module: LightningModule) -> str:
        """SHA-256 of what is not in a checkpoint because it is not trained; it stays the same through a run."""
        if self._frozen is None:
            digest = hashlib.sha256()
            rewritten = {f"policy.{name}" for name in getattr(module.policy, "rewritten_parameters", ())}  # are saved
            for name, value in module.named_parameters():
                if not value.requires_grad and name not in rewritten:
                    digest.update(name.encode())
                    digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            self._frozen = digest.hexdigest()
        return self._frozen


def _check_callbacks(trainer: Any, saved: Mapping[str, Any], subject: str) -> None:
    for callback in trainer.callbacks:
        if callback.state_key in saved:
            check_form(saved[callback.state_key], callback.state_dict(), subject)


def _describe(module: Any) -> dict[str, Any]:
    """Describes in plain values what is trained by which objective, and what the network's outputs mean."""
    policy = module.policy
    scaling = {float(value) for part in policy.modules() for value in getattr(part, "scaling", {}).values()}
    tokenizer = policy.action_tokenizer
    return {
        "objective": type(module.objective).__name__,
        "actions": {
            "tokenizer": type(tokenizer).__name__,
            "options": repr(sorted(tokenizer.init_args.items())),
            "normalization": policy.normalization.plain(),
            "chunk_size": policy.chunk_size,
        },
        "lora_scaling": sorted(scaling),
    }


def _name(part: Any) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


def _begin_next_epoch(checkpoint: dict[str, Any], path: Any) -> None:
    """Begins the next epoch; raises `UserError` for a checkpoint from inside an epoch, which cannot be continued."""
    fit_loop = checkpoint["loops"]["fit_loop"]
    if not checkpoint[RECORD]["is_epoch_end"]:
        epoch = fit_loop[EPOCHS]["current"]["ready"] - 1
        raise UserError(
            f"{path} was written inside epoch {epoch}, and training goes on from the end of an epoch only: resume from "
            "last.ckpt of that run; the weights of this one are good for `dvla validate`"
        )
    begin_next_epoch(fit_loop)
