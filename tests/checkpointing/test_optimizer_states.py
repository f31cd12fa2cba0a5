"""What every optimizer of torch writes into a checkpoint can be read again, and nothing else."""

import copy
import inspect
import io
import math

import pytest
import torch
from torch import nn

from dvla_lightning.checkpointing.contents import check_finite
from dvla_lightning.checkpointing.optimizer_states import is_optimizer_state, misfit
from dvla_lightning.errors import UserError

OPTIMIZERS = {name: kind for name, kind in vars(torch.optim).items() if inspect.isclass(kind) and name != "Optimizer"}
OPTIONS = [
    *((name, {}) for name in OPTIMIZERS),
    *(("SGD", {"momentum": 0.9}), ("RMSprop", {"momentum": 0.9, "centered": True}), ("AdamW", {"amsgrad": True})),
    ("LBFGS", {"line_search_fn": "strong_wolfe"}),
]


def trained(name, options, steps=3):
    """An optimizer, the closure of its step, and its parameters after some steps; the last of them has no gradient."""
    torch.manual_seed(0)
    layer = nn.Embedding(4, 3, sparse=True) if name == "SparseAdam" else nn.Linear(3, 4, bias=name != "Muon")
    unused = nn.Parameter(torch.zeros(2, 2))
    optimizer = OPTIMIZERS[name]([*layer.parameters(), unused], lr=0.01, **options)

    def closure():
        optimizer.zero_grad()
        inputs = torch.tensor([1, 2]) if name == "SparseAdam" else torch.ones(2, 3)
        loss = (layer(inputs) - 1).square().sum()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return optimizer, closure, list(layer.parameters())


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_every_optimizer_of_torch_goes_on_from_its_state(name, options):
    optimizer, closure, parameters = trained(name, options)
    state = through_a_file(optimizer.state_dict())
    assert is_optimizer_state(state)
    check_finite({"state_dict": {}, "optimizer_states": [state]}, "wrong")
    resumed, again, copies = trained(name, options, steps=0)
    assert misfit(state, resumed) is None
    resumed.load_state_dict(state)
    with torch.no_grad():
        for own, other in zip(copies, parameters, strict=True):
            own.copy_(other)
    for _ in range(2):
        optimizer.step(closure)
        resumed.step(again)
    assert all(own.equal(other) for own, other in zip(copies, parameters, strict=True))


@pytest.mark.parametrize("value", ["text", {}, (1,), b"x", [torch.zeros(1), "text"], [[torch.zeros(1)]], {1}])
def test_a_state_of_anything_else_is_refused(value):
    optimizer, _, _ = trained("Adam", {})
    state = optimizer.state_dict()
    state["state"][0]["exp_avg"] = value
    assert not is_optimizer_state(state)


@pytest.mark.parametrize("value", [None, True, [torch.zeros(1), None], []])
def test_what_torch_may_write_is_accepted(value):
    optimizer, _, _ = trained("LBFGS", {})
    state = optimizer.state_dict()
    state["state"][0]["al"] = value
    assert is_optimizer_state(state)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("LBFGS", "d", torch.zeros(3)),
        ("LBFGS", "old_dirs", [torch.zeros(3)]),
        ("Adafactor", "row_var", torch.zeros(1, 3)),
        ("Adafactor", "col_var", torch.zeros(4, 3)),
        ("Adam", "exp_avg", torch.zeros(1, 3)),
    ],
)
def test_moments_of_another_shape_are_refused(name, key, value):
    state = trained(name, {})[0].state_dict()
    state["state"][0][key] = value
    assert misfit(state, trained(name, {}, steps=0)[0]) == f"has {key} of another shape for parameter 0"


def test_states_that_are_not_alike_are_refused():
    optimizer = trained("Adam", {}, steps=0)[0]
    state = trained("Adam", {})[0].state_dict()
    lacking = copy.deepcopy(state)
    lacking["state"][2] = {"step": 1}  # a matrix like parameter 0
    assert "not have the same state for parameter 2" in misfit(lacking, optimizer)
    state["state"][1]["col_var"] = torch.zeros(9)
    assert misfit(state, optimizer) == "has col_var of another shape for parameter 1"


@pytest.mark.parametrize("place", [0, -1])
def test_no_number_in_a_list_may_be_infinite(place):
    state = trained("LBFGS", {})[0].state_dict()
    state["state"][0]["old_dirs"][place][2] = math.inf
    with pytest.raises(UserError, match="old_dirs of parameter 0 holds numbers that are not finite"):
        check_finite({"state_dict": {}, "optimizer_states": [state]}, "wrong")
