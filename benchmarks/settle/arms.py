"""The arms of the experiment: each is one `dvla fit` and one `dvla validate`, given by the options that it changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).parents[2] / "configs"
_SCHEDULE, _RL = (yaml.safe_load((CONFIG / name).read_text()) for name in ("schedule.yaml", "rl.yaml"))
MARGIN: float = _SCHEDULE["margin"]
CONFIDENCE: float = _SCHEDULE["confidence"]
WARMUP: int = _RL["model"]["objective"]["init_args"]["value_warmup_iterations"]  # the policy stands still in these

NUM_EVAL_EPISODES = 500
NUM_ITERATIONS = 20
EPISODES_PER_ITERATION = 256
SCHEDULE_CHOICES = "[1, 2, 4]"
SCHEDULE_EPISODES = 1000  # of each task at each K

# The same for every arm: 20 iterations of 256 episodes, cosine decay to 0 over them.
TRAINING = {
    "data.episodes_per_iteration": EPISODES_PER_ITERATION,
    "trainer.max_epochs": NUM_ITERATIONS,
    "trainer.check_val_every_n_epoch": 10 * NUM_ITERATIONS,  # evaluated once, by `dvla validate`
}

MAX_PROB = "{confidence: max_prob}"
GUMBEL = "{confidence: max_prob, selection_temperature: 1.0}"
DRAWN = "{confidence: drawn_prob, selection_temperature: 1.0}"
RANDOM = "{confidence: random}"


@dataclass(frozen=True)
class Arm:
    """One line of the result tables.

    Attributes:
        name: folder of its runs.
        num_steps: K in training and evaluation; 0 follows the schedule measured on the SFT policy.
        sampler: the policy's, in training and evaluation.
        trained: False evaluates the SFT policy itself.
        changes: further command-line options of `dvla fit`.
    """

    name: str
    num_steps: int
    sampler: str = MAX_PROB
    trained: bool = True
    changes: dict[str, str] = field(default_factory=dict)

    def steps(self, schedule: str) -> dict[str, str]:
        """The options that say K."""
        return {"data.num_steps": str(self.num_steps)} if self.num_steps else {"data.schedule": schedule}

    def options(self) -> dict[str, Any]:
        """All that makes its numbers what they are, in JSON types: records of another arm of this name are no use."""
        return {
            "num_steps": self.num_steps or "schedule",
            "sampler": self.sampler,
            "training": {**TRAINING, **self.changes} if self.trained else None,
            "num_eval_episodes": NUM_EVAL_EPISODES,
        }

    def start(self) -> str:
        """The arm that evaluates the SFT policy with the same sampler and K: where this one starts."""
        return next(
            arm.name
            for arm in ARMS
            if not arm.trained and (arm.sampler, arm.num_steps) == (self.sampler, self.num_steps)
        )


ESTIMATORS = {
    "trajectory": "Trajectory",
    "last_step": "LastStep",
    "full_mask": "FullMask",
    "random_mask2": "RandomMask, init_args: {num_masks: 2}",
    "coupled1": "Coupled, init_args: {num_pairs: 1}",
    "step_merge2": "StepMerge, init_args: {num_groups: 2}",
}


def _estimator(name: str, num_steps: int) -> Arm:
    # in full, as config.yaml has it
    estimator = f"{{class_path: dvla_lightning.diffusion.estimators.{ESTIMATORS[name]}}}"
    return Arm(f"{name}-K{num_steps}", num_steps, changes={"model.objective.init_args.estimator": estimator})


SAMPLERS = {"max_prob": MAX_PROB, "gumbel": GUMBEL, "drawn_prob": DRAWN, "random": RANDOM}
"""Commit orders; gumbel is max_prob with noise, drawn_prob has the same noise (the paper's kind of sampler)."""

_SFT = [
    Arm(f"sft-{name}-K{num_steps}", num_steps, sampler, trained=False)
    for name, sampler in SAMPLERS.items()
    for num_steps in (1, 2, 4)
    if name == "max_prob" or num_steps > 1  # at K = 1 everything is committed at once, in any order
]

ARMS = [
    *_SFT,
    Arm("sft-schedule", 0, trained=False),
    *(_estimator(name, num_steps) for name in ("trajectory", "last_step") for num_steps in (4, 2)),
    _estimator("trajectory", 1),
    Arm("schedule", 0),
    *(_estimator(name, num_steps) for name in ("full_mask", "random_mask2", "coupled1") for num_steps in (4, 2)),
    _estimator("step_merge2", 4),
    Arm("chunk-K4", 4, changes={"model.objective.init_args.ratio_level": "chunk"}),
    Arm("gumbel-none-K4", 4, GUMBEL),
    Arm("gumbel-plackett_luce-K4", 4, GUMBEL, changes={"model.objective.init_args.selection_term": "plackett_luce"}),
    *(Arm(f"{name}-K{k}", k, SAMPLERS[name]) for k in (4, 2) for name in ("drawn_prob", "random")),
]
"""In the order in which they run: what decides the paper's findings first."""
BY_NAME = {arm.name: arm for arm in ARMS}
