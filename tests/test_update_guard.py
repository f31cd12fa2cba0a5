"""Numbers that are not finite: none reaches weights or optimizer, few are forgiven, and the first one is named."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision

from dvla_lightning.errors import UserError
from dvla_lightning.module import DVLAModule
from dvla_lightning.objectives import TrajectoryPPO
from tests import two_ranks
from tests.short_fits import AfterEveryBatch, fit, rollout_minibatches

NAN, INF = float("nan"), float("inf")


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)


def poisoned(batch, field, value=NAN, row=2):
    """The minibatch with one number replaced; `field` may name one of the prompt."""
    batch = copy.deepcopy(batch)
    tensor = batch.prompt[field] if field in batch.prompt else getattr(batch, field)
    tensor[row] = value
    return batch


def states(trainer, policy):
    """Weights and the optimizer's state of each."""
    return [
        (weight.detach().clone(), copy.deepcopy(trainer.optimizers[0].state[weight])) for weight in policy.parameters()
    ]


def assert_same(first, second):
    for (weight, state), (other, other_state) in zip(first, second, strict=True):
        assert torch.equal(weight, other) and state.keys() == other_state.keys()
        assert all(torch.equal(value, other_state[name]) for name, value in state.items())


FAULTS = {
    "a NaN advantage": ("advantages_B", NAN, "policy_loss is nan, advantages_B is nan in row 2"),
    "an infinite return": ("returns_B", INF, "value_loss is inf, returns_B is inf in row 2"),
    "a NaN old value": ("old_values_B", NAN, "value_loss is nan, old_values_B is nan in row 2"),
    "a NaN old log-probability": ("old_log_prob_BSL", NAN, "policy_loss is nan, old_log_prob_BSL is nan in row 2"),
    "a NaN in the prompt": ("proprioception", NAN, "policy_loss is nan, prompt.proprioception is nan in row 2"),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_minibatch_with_one_bad_number_leaves_no_trace(fault, accumulate, tiny_policy, tmp_path):
    """The run is the one without its window, optimizer state included; the warning says what and where."""
    field, value, sentence = FAULTS[fault]
    minibatches, expected = rollout_minibatches(tiny_policy, 4), copy.deepcopy(tiny_policy)
    bad = [*minibatches[:2], poisoned(minibatches[2], field, value), minibatches[3]]
    module = DVLAModule(tiny_policy, TrajectoryPPO(), adam)
    with pytest.warns(UserWarning, match=rf"skipped update 1 \(at most 10\): epoch 0, minibatch 2: {sentence}"):
        trainer = fit(module, [bad], tmp_path, accumulate_grad_batches=accumulate)
    kept = minibatches[:2] if accumulate == 2 else [*minibatches[:2], minibatches[3]]
    oracle = fit(DVLAModule(expected, TrajectoryPPO(), adam), [kept], tmp_path, accumulate_grad_batches=accumulate)
    assert_same(states(oracle, expected), states(trainer, tiny_policy))
    assert float(trainer.callback_metrics["train/skipped_updates"]) == 1


class Sharp(TrajectoryPPO):
    """The square root of 0 is finite, its slope is not."""

    def __call__(self, policy, batch):
        output = super().__call__(policy, batch)
        output.loss = output.loss + (policy.backbone.head.bias * 0).sqrt().sum()
        return output


def test_a_gradient_that_alone_is_not_finite_is_named(tiny_policy, tmp_path):
    before = copy.deepcopy(tiny_policy.state_dict())
    module = DVLAModule(tiny_policy, Sharp(), adam, max_skipped_updates=0)
    sentence = "epoch 0, minibatch 0: the loss is finite, but not the gradient of backbone.head.bias"
    with pytest.raises(UserError, match=sentence):
        fit(module, [rollout_minibatches(tiny_policy, 1)], tmp_path)
    assert all(torch.equal(value, tiny_policy.state_dict()[name]) for name, value in before.items())


def test_a_gradient_whose_square_overflows_is_refused(tiny_policy, tmp_path):
    """1e25 is finite in float32, Adam's second moment of it is not."""
    minibatches = rollout_minibatches(tiny_policy, 1)
    module = DVLAModule(tiny_policy, TrajectoryPPO(value_coef=1e28), adam)
    trainer = fit(module, [minibatches], tmp_path)
    assert module.guard.skipped == 1 and not any(trainer.optimizers[0].state.values())


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_the_run_ends_at_the_fault_after_the_last_one_allowed(allowed, tiny_policy, tmp_path):
    minibatches = rollout_minibatches(tiny_policy, 2)
    bad = [minibatches[0], poisoned(minibatches[1], "returns_B"), minibatches[0]]
    looking = AfterEveryBatch(lambda module: module.guard.skipped)
    module = DVLAModule(tiny_policy, TrajectoryPPO(), adam, max_skipped_updates=allowed)
    with pytest.raises(
        UserError, match=rf"update number {allowed + 1} .* allows {allowed} .*returns_B is nan in row 2"
    ):
        fit(module, [bad] * 5, tmp_path, callbacks=[looking])
    assert len(looking.seen) == 3 * allowed + 1
    assert all(weight.isfinite().all() for weight in tiny_policy.parameters())


def test_a_resumed_run_goes_on_counting(tiny_policy, tmp_path):
    minibatches = rollout_minibatches(tiny_policy, 2)
    epochs = [[*minibatches, poisoned(minibatches[0], "returns_B"), minibatches[1]]] * 3
    make = lambda: DVLAModule(tiny_policy, TrajectoryPPO(), adam, max_skipped_updates=2)  # noqa: E731
    callback = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    fit(make(), epochs[:2], tmp_path, enable_checkpointing=True, callbacks=[callback])
    with pytest.raises(UserError, match="update number 3 of this run"):
        fit(make(), epochs, tmp_path, ckpt_path=str(tmp_path / "last.ckpt"))


LAST = [{}, {"limit_train_batches": 2}, {"max_steps": 5}]


@pytest.mark.parametrize(
    ("lr", "minibatches", "end"), [(1e30, 1, {}), (1e16, 1, {}), *((1e16, 4, end) for end in LAST)]
)
def test_weights_destroyed_by_a_step_are_never_saved(lr, minibatches, end, tiny_policy, tmp_path):
    """1e30: weights nothing can be computed with. 1e16: they are finite, what they compute is not."""
    batches = rollout_minibatches(tiny_policy, minibatches)
    callback = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    saving = {"enable_checkpointing": True, "callbacks": [callback]}
    # the learning rate explodes in the second epoch
    explode = lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: lr if n else 1.0)  # noqa: E731
    module = DVLAModule(tiny_policy, TrajectoryPPO(), lambda p: torch.optim.SGD(p, lr=1.0), lr_scheduler=explode)
    with pytest.raises(UserError, match="the last updates have destroyed the weights"):
        fit(module, [batches] * 3, tmp_path, **saving, **end)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["epoch"] == 0 and all(value.isfinite().all() for value in saved["state_dict"].values())


def test_an_accident_in_the_last_minibatch_ends_no_run(tiny_policy, tmp_path):
    """Good weights give a finite loss on the other minibatches, whatever the last one holds."""
    minibatches = rollout_minibatches(tiny_policy, 3)
    module = DVLAModule(tiny_policy, TrajectoryPPO(), adam)
    fit(module, [[*minibatches[:2], poisoned(minibatches[2], "returns_B")]] * 2, tmp_path)
    assert module.guard.skipped == 2


def test_nan_stops_an_iteration_and_fails_parity(tiny_policy, tmp_path):
    minibatches = rollout_minibatches(tiny_policy, 4)
    looking = AfterEveryBatch(lambda module: module.stop_iteration)
    bad = [minibatches[0], poisoned(minibatches[1], "old_log_prob_BSL"), *minibatches[2:]]
    fit(DVLAModule(tiny_policy, TrajectoryPPO(target_kl=10.0), adam), [bad], tmp_path, callbacks=[looking])
    assert looking.seen == [False, True, True]
    first = poisoned(minibatches[0], "old_log_prob_BSL")
    first.version_B[:] = tiny_policy.version
    with pytest.raises(UserError, match="scores its own rollouts differently"):
        TrajectoryPPO()(tiny_policy, first)


def test_overflow_of_a_scaled_loss_is_the_scalers_business(tiny_policy, tmp_path):
    """float16: the scale starts too high on purpose, is lowered step by step, and no update counts as skipped."""
    minibatches = rollout_minibatches(tiny_policy, 4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = tiny_policy.backbone.head.weight.detach().clone()
    module = DVLAModule(tiny_policy, TrajectoryPPO(parity_tolerance=0.1), adam)
    fit(module, [minibatches * 8], tmp_path, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert module.guard.skipped == 0 and scaler.get_scale() < 2.0**40
    assert not torch.equal(before, tiny_policy.backbone.head.weight)


def test_a_gradient_that_no_scale_mends_is_a_fault_in_float16_too(tiny_policy, tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    module = DVLAModule(tiny_policy, Sharp(parity_tolerance=0.1), adam, max_skipped_updates=2)
    with pytest.raises(UserError, match="allows 2"):
        fit(module, [rollout_minibatches(tiny_policy, 4)], tmp_path,
            plugins=[MixedPrecision("16-mixed", "cpu", scaler)])  # fmt: skip


def test_two_ranks_decide_together(tmp_path):
    """Rank 1 alone has a bad minibatch: nobody's window counts. The weights are those worked out by hand."""
    words = [sys.executable, "-m", "tests.two_ranks", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        "skipped update 1 (at most 10): rank 1, epoch 1, minibatch 0: value_loss is nan, returns_B is nan"
        in done.stderr
    )
    expected, ranks = two_ranks.by_hand(), [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for name, weight in expected.items():
        torch.testing.assert_close(ranks[0][name], weight, rtol=1e-4, atol=1e-6, msg=name)
        assert torch.equal(ranks[0][name], ranks[1][name])


def test_a_negative_allowance_is_refused(tiny_policy):
    with pytest.raises(UserError, match="max_skipped_updates must be a number at least 0, got -1"):
        DVLAModule(tiny_policy, TrajectoryPPO(), max_skipped_updates=-1)
