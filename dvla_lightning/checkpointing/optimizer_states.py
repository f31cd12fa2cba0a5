"""The state of optimizers in a checkpoint: which parameters it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Size, Tensor
from torch.optim import LBFGS, Optimizer

FACTORS = {"row_var": -1, "col_var": -2}
"""Adafactor's state: the dimension of the parameter over which each is a mean."""


def is_optimizer_state(state: Any) -> bool:
    """Whether this has the form of what `Optimizer.state_dict` returns."""
    if not isinstance(state, dict) or set(state) != {"state", "param_groups"}:
        return False
    values, groups = state["state"], state["param_groups"]
    plain = (int, float, Tensor, type(None))
    if not isinstance(values, dict) or not isinstance(groups, list):
        return False
    return all(
        isinstance(value, dict) and all(isinstance(x, plain) for each in value.values() for x in listed(each))
        for value in values.values()
    ) and all(
        isinstance(group, dict)
        and isinstance(group.get("params"), list)
        and all(isinstance(number, int) for number in group["params"])
        for group in groups
    )


def listed(value: Any) -> list[Any]:
    """The values in an entry of a state: LBFGS keeps lists, the others single ones."""
    return value if isinstance(value, list) else [value]


def misfit(saved: Mapping[str, Any], optimizer: Optimizer) -> str | None:
    """Says why a saved state does not belong to this optimizer's parameters; torch notices late or never.

    Args:
        saved: for which `is_optimizer_state` is true.
        optimizer: of the same class, with or without a state.

    Returns:
        What to say after "its optimizer"; None if it fits.
    """
    parameters = [group["params"] for group in optimizer.param_groups]
    numbers = [group["params"] for group in saved["param_groups"]]
    if [len(group) for group in numbers] != [len(group) for group in parameters]:
        return "has other groups of parameters"
    shapes = {
        number: parameter.shape
        for numbers_of, parameters_of in zip(numbers, parameters, strict=True)
        for number, parameter in zip(numbers_of, parameters_of, strict=True)
    }
    if isinstance(optimizer, LBFGS):  # one state, of all parameters in a row, kept under the first
        shapes = dict.fromkeys(list(shapes)[:1], Size([sum(shape.numel() for shape in shapes.values())]))
    keys: dict[bool, set[str]] = {}
    for number, values in saved["state"].items():
        if number not in shapes:
            return f"has a state of parameter {number!r}, which does not exist"
        is_matrix = len(shapes[number]) > 1  # Adafactor keeps something else for these
        if set(values) != keys.setdefault(is_matrix, set(values)):
            return f"does not have the same state for parameter {number} as for the others"
        for key, value in values.items():
            if any(_has_other_shape(key, each, shapes[number]) for each in listed(value)):
                return f"has {key} of another shape for parameter {number}"
    return None


def _has_other_shape(key: str, value: Any, shape: Size) -> bool:
    if not isinstance(value, Tensor) or value.numel() == 1:
        return False
    expected = list(shape)
    if key in FACTORS and len(shape) > 1:
        expected[FACTORS[key]] = 1
    return list(value.shape) != expected
