"""The one exception that the `dvla` command turns into a sentence and exit code 2; the gist of all others."""

import math
from numbers import Real


class UserError(ValueError):
    """Something the user gave (configuration, path, checkpoint, data set, shape) cannot be used.

    The message is one sentence that says what is wrong, where, and what to do. The command line prints it without
    a traceback and exits with code 2; in Python code it is an ordinary `ValueError`.
    """


def check_number(
    owner: str,
    name: str,
    value: float,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Raises `UserError` unless `value` is a finite number with low <= value <= high and above < value < below."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and low <= value <= high and above < value < below):
        parts = [f"at least {low}"] * (low > -math.inf) + [f"above {above}"] * (above > -math.inf)
        parts += [f"at most {high}"] * (high < math.inf) + [f"below {below}"] * (below < math.inf)
        raise UserError(f"{owner}: {name} must be a number {' and '.join(parts) or 'that is finite'}, got {value}")


def last_line(error: str | None) -> str:
    """The last line of a traceback or message, which names the exception; empty without one."""
    return error.strip().splitlines()[-1] if error else ""
