"""Schedules: the value head's rate keeps its ratio, plateaus, lengths that do not fit the run."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.optim import lr_scheduler

from dvla_lightning.errors import UserError
from dvla_lightning.learning_rates import CosineAnnealing, LearningRateSchedule
from dvla_lightning.module import DVLAModule
from dvla_lightning.objectives import TrajectoryPPO
from tests.short_fits import fit, rollout_minibatches

LR, VALUE_LR = 2e-4, 3e-3
SCHEDULERS = {
    "OneCycleLR": (lambda o: lr_scheduler.OneCycleLR(o, max_lr=1e-2, total_steps=9)),
    "CyclicLR": (lambda o: lr_scheduler.CyclicLR(o, base_lr=1e-5, max_lr=1e-2, step_size_up=3)),
    "CosineAnnealingLR with eta_min": (lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=8, eta_min=1e-4)),
    "CosineAnnealingWarmRestarts": (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3, eta_min=1e-4)),
    "CosineAnnealingLR": (lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=8)),
    "LinearLR": (lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=4)),
    "ExponentialLR": (lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9)),
    "StepLR": (lambda o: lr_scheduler.StepLR(o, step_size=2)),
    "ReduceLROnPlateau with min_lr": (lambda o: ReduceLROnPlateau(o, "loss", patience=0, min_lr=5e-5)),
}


def optimizer(value_lr=VALUE_LR):
    """SGD, which CyclicLR cycles without complaint, on one weight in the policy and one in the value head."""
    groups = [{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": value_lr}]
    return torch.optim.SGD(groups, lr=LR, momentum=0.9)


def alone(make):
    """The rates that the scheduler gives a single group, which is what the policy must have."""
    single = torch.optim.SGD([torch.zeros(1)], lr=LR, momentum=0.9)
    scheduler, rates = make(single), []
    for _ in range(8):
        rates.append(single.param_groups[0]["lr"])
        single.step()
        scheduler.step(*[1.0] * isinstance(scheduler, lr_scheduler.ReduceLROnPlateau))
    return rates


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_value_head_keeps_its_ratio_under_every_scheduler(name):
    both = optimizer()
    schedule = LearningRateSchedule(both, SCHEDULERS[name], has_value_lr=True)
    rates = []
    for _ in range(8):
        rates.append([group["lr"] for group in both.param_groups])
        both.step()
        schedule.step(1.0 if schedule.monitor else None)
    assert [rate for rate, _ in rates] == pytest.approx(alone(SCHEDULERS[name]), rel=1e-6)
    assert [value for _, value in rates] == pytest.approx([15 * rate for rate, _ in rates], rel=1e-6)
    assert len({rate for rate, _ in rates}) > 1


def test_relative_schedulers_are_left_as_torch_has_them_to_the_bit():
    both, plain = optimizer(), optimizer()
    schedule = LearningRateSchedule(both, SCHEDULERS["CosineAnnealingLR"], has_value_lr=True)
    scheduler = SCHEDULERS["CosineAnnealingLR"](plain)
    for _ in range(8):
        assert [group["lr"] for group in both.param_groups] == [group["lr"] for group in plain.param_groups]
        both.step(), plain.step(), schedule.step(), scheduler.step()


def test_without_a_value_lr_the_rates_of_each_group_are_the_schedulers():
    both = optimizer(value_lr=LR)
    make = lambda o: lr_scheduler.OneCycleLR(o, max_lr=[1e-2, 5e-2], total_steps=9)  # noqa: E731
    LearningRateSchedule(both, make, has_value_lr=False)
    assert both.param_groups[1]["lr"] == pytest.approx(5 * both.param_groups[0]["lr"])


BAD = {
    "no length": (lambda o: lr_scheduler.OneCycleLR(o, max_lr=1e-2), "model.lr_scheduler: You must define"),
    "no monitor": (lambda o: lr_scheduler.ReduceLROnPlateau(o), "lightning.pytorch.cli.ReduceLROnPlateau"),
    "wrong way": (lambda o: ReduceLROnPlateau(o, "val/success_rate"), "val/success_rate should rise: .* mode: max"),
}


@pytest.mark.parametrize("case", BAD)
def test_schedulers_that_cannot_work_are_one_sentence(case):
    make, sentence = BAD[case]
    with pytest.raises(UserError, match=sentence):
        LearningRateSchedule(optimizer(), make, has_value_lr=True)


LENGTHS = {
    "cosine": ("CosineAnnealingLR", 8, []),
    "cosine, longer run": ("CosineAnnealingLR", 9, ["the learning rate rises again after T_max = 8 epochs"]),
    "cosine, no limit": ("CosineAnnealingLR", -1, ["the learning rate rises again after T_max = 8 epochs"]),
    "restarts are meant to rise": ("CosineAnnealingWarmRestarts", 90, []),
    "one cycle": ("OneCycleLR", 9, []),
}


@pytest.mark.parametrize("case", LENGTHS)
def test_a_schedule_shorter_than_the_run_gets_a_remark(case):
    name, max_epochs, expected = LENGTHS[case]
    remarks = LearningRateSchedule(optimizer(), SCHEDULERS[name], True, max_epochs).check_length(None)
    assert len(remarks) == len(expected) and all(text in remark for text, remark in zip(expected, remarks, strict=True))


def test_polynomial_decay_that_ends_before_the_run_gets_a_remark():
    make = lambda o: lr_scheduler.PolynomialLR(o, total_iters=5)  # noqa: E731
    assert LearningRateSchedule(optimizer(), make, True, 5).check_length(None) == []
    assert "is 0 after total_iters = 5 epochs" in LearningRateSchedule(optimizer(), make, True, 6).check_length(None)[0]


def test_one_cycle_has_no_step_beyond_its_last():
    schedule = LearningRateSchedule(optimizer(), SCHEDULERS["OneCycleLR"], True, 10)
    with pytest.raises(UserError, match=r"given ends after 9 epochs \(total_steps\), but trainer\.max_epochs is 10"):
        schedule.check_length(None)
    schedule = LearningRateSchedule(optimizer(), SCHEDULERS["OneCycleLR"], True, -1)
    assert schedule.check_length(None) == []  # the number of epochs is not known, as with max_steps
    with pytest.raises(UserError, match=r"model\.lr_scheduler: Tried to step"):
        for _ in range(10):
            schedule.step()


def test_the_checkpoint_decides_about_lengths_and_must_be_of_the_same_scheduler():
    saved = LearningRateSchedule(optimizer(), SCHEDULERS["OneCycleLR"], True).scheduler.state_dict()
    longer = lambda o: lr_scheduler.OneCycleLR(o, max_lr=1e-2, total_steps=20)  # noqa: E731
    with pytest.raises(UserError, match="in the checkpoint ends after 9 epochs"):
        LearningRateSchedule(optimizer(), longer, True, 20).check_length(saved)
    remarks = LearningRateSchedule(optimizer(), longer, True, 9).check_length(saved)
    assert remarks == ["lr_scheduler: total_steps stays 9, as in the checkpoint, and is not 20"]
    cosine = LearningRateSchedule(optimizer(), SCHEDULERS["CosineAnnealingLR"], True, 9)
    with pytest.raises(UserError, match=r"another model\.lr_scheduler"):
        cosine.check_length(saved)


@pytest.mark.parametrize("num_epochs", [None, 8, 12])
def test_cosine_annealing_ends_with_the_run_unless_it_is_told_where(num_epochs):
    ours, torchs = optimizer(), optimizer()
    schedule = LearningRateSchedule(ours, lambda o: CosineAnnealing(o, num_epochs, 1e-5), True, max_epochs=8)
    scheduler = lr_scheduler.CosineAnnealingLR(torchs, T_max=num_epochs or 8, eta_min=1e-5)
    for _ in range(8):
        assert ours.param_groups[0]["lr"] == torchs.param_groups[0]["lr"]
        ours.step(), torchs.step(), schedule.step(), scheduler.step()
    assert schedule.check_length(None) == []


def test_cosine_annealing_of_a_run_without_a_length_is_one_sentence():
    with pytest.raises(UserError, match=r"no trainer\.max_epochs to follow: set num_epochs"):
        LearningRateSchedule(optimizer(), CosineAnnealing, True, max_epochs=-1)
    with pytest.raises(UserError, match="num_epochs must be a number at least 1, got 0"):
        CosineAnnealing(optimizer(), 0)


# -- in a fit ----------------------------------------------------------------------------------------------------------


def make_module(policy, scheduler, **options):
    return DVLAModule(policy, TrajectoryPPO(), lambda p: torch.optim.SGD(p, lr=LR), VALUE_LR, scheduler, **options)


def test_a_one_cycle_run_resumed_with_more_epochs_is_one_sentence(tiny_policy, tmp_path):
    minibatches = rollout_minibatches(tiny_policy, 1)
    one_cycle = lambda steps: lambda o: lr_scheduler.OneCycleLR(o, max_lr=1e-3, total_steps=steps)  # noqa: E731
    saving = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(tmp_path, "last", every_n_epochs=1)]}
    fit(make_module(tiny_policy, one_cycle(2)), [minibatches] * 2, tmp_path, **saving)
    with pytest.raises(UserError, match="in the checkpoint ends after 2 epochs"):
        fit(make_module(tiny_policy, one_cycle(4)), [minibatches] * 4, tmp_path, ckpt_path=str(tmp_path / "last.ckpt"))


def test_a_plateau_lowers_both_rates_and_a_resumed_run_has_seen_as_much(tiny_policy, tmp_path):
    """The metric stays where it is: with patience 1 the third and the fifth epoch halve the rates."""
    minibatches = rollout_minibatches(tiny_policy, 1)
    make = lambda o: ReduceLROnPlateau(  # noqa: E731
        o, "train/skipped_updates", factor=0.5, patience=1, threshold_mode="abs", threshold=1.0
    )
    whole = fit(make_module(copy.deepcopy(tiny_policy), make), [minibatches] * 5, tmp_path)
    rates = [group["lr"] for group in whole.optimizers[0].param_groups]
    assert rates == pytest.approx([LR / 4, VALUE_LR / 4])
    saving = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(tmp_path, "last", every_n_epochs=1)]}
    fit(make_module(tiny_policy, make), [minibatches] * 3, tmp_path, **saving)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(LR / 2)
    resumed = fit(make_module(tiny_policy, make), [minibatches] * 5, tmp_path, ckpt_path=str(tmp_path / "last.ckpt"))
    assert [group["lr"] for group in resumed.optimizers[0].param_groups] == pytest.approx(rates)


UNKNOWN = {
    "train/nothing": "nothing logs 'train/nothing'; there are .*train/policy_loss",
    "val/success_rate": r"nothing logs val/success_rate: set data\.evaluation\.num_episodes",
}


@pytest.mark.parametrize("monitor", UNKNOWN)
def test_a_metric_that_nobody_logs_is_named(monitor, tiny_policy, tmp_path):
    make = lambda o: ReduceLROnPlateau(o, monitor, mode="max")  # noqa: E731
    with pytest.raises(UserError, match=UNKNOWN[monitor]):
        fit(make_module(tiny_policy, make), [rollout_minibatches(tiny_policy, 1)], tmp_path)


def test_optimizers_that_cannot_work_are_one_sentence(tiny_policy, tmp_path):
    for make in (lambda p: torch.optim.AdamW(p, lr=-1.0), torch.optim.LBFGS):
        with pytest.raises(UserError, match=r"model\.optimizer: "):
            fit(DVLAModule(tiny_policy, TrajectoryPPO(), make), [rollout_minibatches(tiny_policy, 1)], tmp_path)
