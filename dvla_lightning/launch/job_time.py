"""`trainer.max_time`: the time limit of one job."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Timer


class JobTime(Timer):
    """Lightning's Timer, without memory of earlier jobs.

    Lightning's counts the time of a whole run: a job that is started again with the same limit and --ckpt_path auto
    would end before or inside its first iteration, and so would every one after it.
    """

    def state_dict(self) -> dict[str, Any]:
        """Saves nothing."""
        return {}
