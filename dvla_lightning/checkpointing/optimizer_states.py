"""The state of optimizers in a checkpoint: which parameters it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def is_optimizer_state(state: Any) -> bool:
    """Whether this has the form of what `Optimizer.state_dict` returns."""
    if not isinstance(state, dict) or set(state) != {"state", "param_groups"}:
        return False
    values, groups = state["state"], state["param_groups"]
    if not isinstance(values, dict) or not isinstance(groups, list):
        return False
    numbers = (int, float, Tensor)
    return all(
        isinstance(value, dict) and all(isinstance(each, numbers) for each in value.values())
        for value in values.values()
    ) and all(
        isinstance(group, dict)
        and isinstance(group.get("params"), list)
        and all(isinstance(number, int) for number in group["params"])
        for group in groups
    )


def misfit(saved: Mapping[str, Any], optimizer: Optimizer) -> str | None:
    """Why a saved state is not that of the parameters of this optimizer, which torch would find out later or never.

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
    keys: set[str] | None = None
    for number, values in saved["state"].items():
        if number not in shapes:
            return f"has a state of parameter {number!r}, which does not exist"
        if set(values) != (keys := keys or set(values)):
            return f"has not the same state for parameter {number} as for the others"
        for key, value in values.items():
            if isinstance(value, Tensor) and value.numel() != 1 and value.shape != shapes[number]:
                return f"has {key} of another shape for parameter {number}"
    return None
