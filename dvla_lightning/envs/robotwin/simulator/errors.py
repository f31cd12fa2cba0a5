"""The exception that ends a run with one sentence."""

from __future__ import annotations

try:
    from dvla_lightning.errors import UserError
except ImportError:  # in RoboTwin's Python, where the worker goes by the name of the class

    class UserError(ValueError):  # type: ignore[no-redef]
        """Something the user gave cannot be used; the message is one sentence with the remedy."""


__all__ = ["UserError"]
