"""`trainer.max_time`: how long one job may train."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Timer


class JobTime(Timer):
    """Lightning's Timer, without memory of earlier jobs.

    That one counts the time of a whole run, so that a job which is started again with the same limit and --ckpt_path
    auto ends before its first iteration, or inside it, and so does every one after it.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}
