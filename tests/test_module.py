"""DVLAModule between loss and optimizer: warm-up, accumulation windows, stops."""

import copy
import itertools

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from dvla_lightning.module import DVLAModule
from dvla_lightning.objectives import TrajectoryPPO
from tests.short_fits import AfterEveryBatch, GivenBatches, fit, rollout_minibatches

LR = 1e-3


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=LR, weight_decay=0.1)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1.0)


def backbone(module):
    return {name: weight.detach().clone() for name, weight in module.policy.backbone.named_parameters()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


# -- value warm-up -----------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "AdamW": adamw,
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=LR, weight_decay=0.1),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=LR, momentum=0.9, weight_decay=0.1),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=LR, momentum=0.9, weight_decay=0.1),
    "Adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=LR, weight_decay=0.1),
}
ACCUMULATED = {"accumulate_grad_batches": 3, "gradient_clip_val": 1e-3}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, ACCUMULATED], ids=["plain", "bf16", "clipped"])
def test_warm_up_touches_nothing_but_the_value_head(optimizer, options, tiny_policy, tmp_path):
    minibatches = rollout_minibatches(tiny_policy, 4)
    before, head = copy.deepcopy(tiny_policy.backbone.state_dict()), tiny_policy.value_head[0].weight.detach().clone()
    objective = TrajectoryPPO(value_warmup_iterations=1, value_gradient=True, kl_coef=0.0, entropy_coef=0.1)
    module = DVLAModule(tiny_policy, objective, OPTIMIZERS[optimizer])
    trainer = fit(module, [minibatches], tmp_path, **options)
    assert same(before, tiny_policy.backbone.state_dict())
    assert not torch.equal(head, tiny_policy.value_head[0].weight)
    state = trainer.optimizers[0].state
    assert not any(state.get(parameter) for parameter in tiny_policy.backbone.parameters())


@pytest.mark.parametrize("warm_up", [64, 160])
def test_the_first_policy_step_after_warm_up_is_an_adam_step_of_one_lr(warm_up, tiny_policy, tmp_path):
    """Adam's first step is lr g / (|g| + eps), by hand, whatever came before; two runs agree to the bit."""
    minibatches, fresh = rollout_minibatches(tiny_policy, 4), copy.deepcopy(tiny_policy)
    start, start_gradients = copy.deepcopy(dict(fresh.backbone.named_parameters())), {}
    TrajectoryPPO()(tiny_policy, minibatches[0]).loss.backward()
    for name, weight in tiny_policy.backbone.named_parameters():  # the last layer's prompt output has no readers
        start_gradients[name] = torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
    parameters = lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0.0)  # noqa: E731
    warm = DVLAModule(tiny_policy, TrajectoryPPO(value_warmup_iterations=1), parameters)
    fit(warm, [list(itertools.islice(itertools.cycle(minibatches), warm_up)), minibatches[:1]], tmp_path)
    cold = DVLAModule(fresh, TrajectoryPPO(), parameters)
    fit(cold, [minibatches[:1]], tmp_path)
    assert same(backbone(warm), backbone(cold))
    for name, g in start_gradients.items():
        by_hand = -LR * g / (g.abs() + 1e-8)
        torch.testing.assert_close(backbone(warm)[name] - start[name], by_hand, rtol=0, atol=1e-6)
    assert max(float((after - start[name]).abs().max()) for name, after in backbone(warm).items()) / LR < 1.001


def test_clipping_in_warm_up_knows_the_value_head_alone(tiny_policy, tmp_path):
    """SGD with lr 1 moves the head by its gradient, scaled to the clip norm."""
    minibatches = rollout_minibatches(tiny_policy, 1)
    before = [weight.detach().clone() for weight in tiny_policy.value_head.parameters()]
    module = DVLAModule(tiny_policy, TrajectoryPPO(value_warmup_iterations=1, value_gradient=True), sgd)
    fit(module, [minibatches], tmp_path, gradient_clip_val=1e-3)
    moved = torch.cat(
        [(after - b).flatten() for after, b in zip(tiny_policy.value_head.parameters(), before, strict=True)]
    )
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_a_run_resumed_inside_the_warm_up_is_the_run_that_went_through(tiny_policy, tmp_path):
    minibatches, halved = rollout_minibatches(tiny_policy, 4), copy.deepcopy(tiny_policy)
    epochs = [minibatches] * 3
    make = lambda policy: DVLAModule(policy, TrajectoryPPO(value_warmup_iterations=2), adamw)  # noqa: E731
    whole = make(tiny_policy)
    fit(whole, epochs, tmp_path)
    start = backbone(make(halved))
    saving = {"callbacks": [ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)]}
    first = make(halved)
    fit(first, epochs[:1], tmp_path, enable_checkpointing=True, **saving)
    assert same(start, backbone(first))
    resumed = make(halved)
    fit(resumed, epochs, tmp_path, ckpt_path=str(tmp_path / "last.ckpt"))
    expected, found = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not same(start, backbone(resumed))


# -- accumulation windows ----------------------------------------------------------------------------------------------


def mean_gradients(policy, minibatches):
    """By hand: the gradient of the mean of the minibatches' losses."""
    policy.zero_grad()
    objective = TrajectoryPPO()
    torch.stack([objective(policy, batch).loss for batch in minibatches]).mean().backward()
    return {name: weight.grad.clone() for name, weight in policy.named_parameters()}


@pytest.mark.parametrize("has_length", [False, True], ids=["RL", "SFT"])
@pytest.mark.parametrize(("accumulate", "limit"), [(1, None), (2, None), (4, None), (100, None), (4, 2)])
def test_a_short_last_window_counts_in_full(accumulate, limit, has_length, tiny_policy, tmp_path):
    """Three minibatches (or two): the weights move by the mean gradient of each window."""
    minibatches, expected = rollout_minibatches(tiny_policy, 3), copy.deepcopy(tiny_policy)
    data = GivenBatches([minibatches], has_length)
    fit(DVLAModule(tiny_policy, TrajectoryPPO(), sgd), [minibatches], tmp_path, data=data,
        accumulate_grad_batches=accumulate, limit_train_batches=limit)  # fmt: skip
    used = minibatches[:limit]
    for window in (used[n : n + accumulate] for n in range(0, len(used), accumulate)):
        gradients = mean_gradients(expected, window)
        with torch.no_grad():
            for name, weight in expected.named_parameters():
                weight -= gradients[name]
    for (name, found), weight in zip(tiny_policy.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, weight, rtol=1e-4, atol=1e-6, msg=name)


def test_a_window_that_exceeds_target_kl_makes_no_update(tiny_policy, tmp_path):
    """The first window moves the policy far; the second shows it, and neither it nor what follows counts."""
    minibatches, expected = rollout_minibatches(tiny_policy, 6), copy.deepcopy(tiny_policy)
    strong = lambda parameters: torch.optim.SGD(parameters, lr=30.0)  # noqa: E731
    looking = AfterEveryBatch(lambda module: module.stop_iteration)
    module = DVLAModule(tiny_policy, TrajectoryPPO(target_kl=1e-3), strong)
    fit(module, [minibatches], tmp_path, accumulate_grad_batches=2, callbacks=[looking])
    assert looking.seen == [False, False, True, True]  # and the last two were not even looked at
    fit(DVLAModule(expected, TrajectoryPPO(), strong), [minibatches[:2]], tmp_path, accumulate_grad_batches=2)
    assert same(expected.state_dict(), tiny_policy.state_dict())
