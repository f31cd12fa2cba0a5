"""Bias, noise and learning of the policy-gradient estimators on a bandit that can be enumerated (bandit_paths.py).

`measure` compares every estimator's gradient of one sample, g = (R - E[R]) grad log p, with the exact gradient g* of
the expected reward. g* holds the ranking of positions fixed, as any gradient does: where a parameter moves two
confidences past each other, E[R] under max_prob and drawn_prob jumps, and no likelihood sees that. `train` runs the
estimators as learners. Bias and noise are those of "two_way" policies, trained a little on demonstrations of both ways;
learning starts there and from "random" weights.

    python -m benchmarks.settle.bandit

Takes about four minutes on one core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.settle.bandit_learning import (
    LEARNING_RATE,
    SFT_LEARNING_RATE,
    Reinforce,
    ascended,
    exact_value,
    optimize,
    two_way_parameters,
)
from benchmarks.settle.bandit_moments import Member
from benchmarks.settle.bandit_paths import LENGTH, VOCAB, random_parameters, reward_table
from benchmarks.settle.bandit_tables import tables
from benchmarks.settle.statistics import Estimate
from dvla_lightning.diffusion.estimators import (
    Coupled,
    Estimator,
    FullMask,
    LastStep,
    RandomMask,
    StepMerge,
    Trajectory,
)
from dvla_lightning.diffusion.sampler import Sampler

SAMPLERS = {
    "max_prob": Sampler(),
    "max_prob, Gumbel 1": Sampler(selection_temperature=1.0),
    "drawn_prob": Sampler(confidence="drawn_prob"),
    "random": Sampler(confidence="random"),
}
MARGINAL, WITH_SELECTION = "exact marginal", "trajectory + plackett_luce"
PACKAGE = {
    "trajectory": Trajectory(),
    "last_step": LastStep(),
    "full_mask": FullMask(),
    "random_mask(2)": RandomMask(2),
    "coupled(1)": Coupled(1),
    "step_merge(2)": StepMerge(2),
}
METRICS = ["relative_bias", "scaled_bias", "noise"]
MEASURE = {"members": 16}
TRAIN = {"members": 32, "steps": 50, "batch": 32}
# at K = 1 all samplers are one
SETTINGS = [("max_prob", 1), *itertools.product(SAMPLERS, (2, LENGTH))]


def estimator_names(sampler_name: str, num_steps: int) -> list[str]:
    """What there is to compare under a sampler."""
    names = [MARGINAL, *PACKAGE]
    if SAMPLERS[sampler_name].selection_temperature > 0 and num_steps > 1:
        names.insert(2, WITH_SELECTION)
    return names


def parse_name(name: str) -> tuple[Estimator | None, bool]:
    """(the package's estimator or None for the exact marginal, whether the selection term is added)."""
    if name == MARGINAL:
        return None, False
    return PACKAGE["trajectory" if name == WITH_SELECTION else name], name == WITH_SELECTION


# -- bias and noise ----------------------------------------------------------------------------------------------------


def measure(members: int, settings: Sequence[tuple[str, int]] = SETTINGS) -> list[dict]:
    """One row per sampler, K and estimator: mean and standard error over the members of each number.

    relative_bias is |E g - g*| / |g*|, scaled_bias the same after the best factor >= 0 on E g (a factor is a learning
    rate), noise sqrt(E |g - E g|^2) / |E g|.
    """
    reward_EX = torch.stack([reward_table(seed) for seed in range(members)])
    two_way_EP = two_way_parameters(members)
    rows = []
    for sampler_name, num_steps in settings:
        pairs = zip(two_way_EP, reward_EX, strict=True)
        bandits = [Member(*pair, SAMPLERS[sampler_name], num_steps) for pair in pairs]
        for name in estimator_names(sampler_name, num_steps):
            numbers = [bandit.moments(*parse_name(name)).numbers() for bandit in bandits]
            row = {"sampler": sampler_name, "K": num_steps, "estimator": name}
            for metric in METRICS:
                values = [number[metric] for number in numbers]
                row[metric] = statistics.mean(values)
                row[f"{metric}_se"] = statistics.stdev(values) / members**0.5
            rows.append(row)
    return rows


# -- learning ----------------------------------------------------------------------------------------------------------

EXACT_GRADIENT = "exact gradient"


def train(members: int, steps: int, batch: int, settings: Sequence[tuple[str, int]] = SETTINGS[1:]) -> list[dict]:
    """Exact E[R] after so many Adam steps from two starts, with the same number of samples and the same seeds for all.

    Returns:
        One row per start, sampler, K and estimator: mean over the members of E[R], and of its difference to
        `trajectory` on the same member with the half-width of its 95 % t-interval. "exact gradient" climbs g* itself.
    """
    reward_EX = torch.stack([reward_table(seed) for seed in range(members)])
    random_EP = torch.stack([random_parameters(seed) for seed in range(members)])
    starts, rows = {"random": random_EP, "two_way": two_way_parameters(members)}, []
    for (start, start_EP), (sampler_name, num_steps) in itertools.product(starts.items(), settings):
        setting = SAMPLERS[sampler_name], num_steps
        final = {"start": start_EP, EXACT_GRADIENT: ascended(start_EP, reward_EX, *setting, steps)}
        for name in estimator_names(sampler_name, num_steps):
            learner = Reinforce(*parse_name(name), *setting, reward_EX, batch, seed=1_000_000)
            final[name] = optimize(start_EP, learner.loss, steps)
        with torch.no_grad():
            values = {name: exact_value(theta_EP, reward_EX, *setting) for name, theta_EP in final.items()}
        for name, value_E in values.items():
            row = {"start": start, "sampler": sampler_name, "K": num_steps, "estimator": name}
            over = Estimate.of((value_E - values["trajectory"]).tolist())
            row |= {"expected_reward": value_E.mean().item()}
            row |= {"over_trajectory": over.mean, "over_trajectory_half_width": over.half_width}
            rows.append(row)
    return rows


def parameters() -> dict:
    """All that the rows depend on beside the code, in JSON types."""
    bandit = {"tokens": LENGTH, "values": VOCAB, "sft_learning_rate": SFT_LEARNING_RATE, "learning_rate": LEARNING_RATE}
    return {"measure": MEASURE, "train": TRAIN, "bandit": bandit, "estimators": [MARGINAL, WITH_SELECTION, *PACKAGE]}


def run(file: Path) -> dict:
    """The rows of `measure` and `train` and their parameters: read from a file, or computed and written to it."""
    if file.exists():
        content = json.loads(file.read_text())
        if content.get("parameters") == parameters():
            return content
        print(f"{file} was made with other parameters: computed again")
    rows = {"measure": measure(**MEASURE), "train": train(**TRAIN)}
    write(rows, file)
    return json.loads(file.read_text())


def write(rows: dict[str, list[dict]], file: Path) -> None:
    """One row per line, in four digits."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [f'"{kind}": [\n' + ",\n".join(map(_compact, part)) + "\n]" for kind, part in rows.items()]
    file.write_text(f'{{\n"parameters": {json.dumps(parameters())},\n' + ",\n".join(lines) + "\n}\n")


def _compact(row: dict) -> str:
    short = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}
    return json.dumps(short)


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bandit.json"), help="rows; read if it is there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(tables(run(options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
