"""Cost of `collector.reproducible: true`: episodes per minute with one decision at a time, and with batches of them.

Both run the same training episodes in turns, on simulators in this process (`num_envs` of the configuration) and in
child processes.

    python -m benchmarks.reproducible
    python -m benchmarks.reproducible --config configs/libero/rl_spatial.yaml --episodes 16 --num_workers 2

Prints episodes per minute and the ratio to the baseline of the same repetition, with its smallest and largest value.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.encode_once import measure
from dvla_lightning.envs.base import Environment
from dvla_lightning.envs.libero import Libero
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.evaluation.specs import training_specs
from dvla_lightning.evaluation.step_schedule import StepSchedule
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec

ENVIRONMENTS = {"Tabletop": Tabletop, "Libero": Libero}
TOGETHER, ALONE = "together", "reproducible"


def read(config: dict[str, Any], num_episodes: int) -> tuple[Environment, list[EpisodeSpec]]:
    """The environment and the first training episodes of a configuration of RL."""
    data = config["data"]["init_args"]
    recipe = data["collector"]["environment"]
    environment = ENVIRONMENTS[recipe["class_path"]](**recipe.get("init_args", {}))
    tasks = environment.tasks if data["tasks"] == "all" else data["tasks"]
    steps = StepSchedule.read(data["schedule"]) if "schedule" in data else data["num_steps"]
    return environment, training_specs(tasks, num_episodes, steps, config["seed_everything"], iteration=0)


def seconds(
    policy: DVLAPolicy, specs: Sequence[EpisodeSpec], repetitions: int, **options: Any
) -> dict[str, list[float]]:
    """Of every repetition, under both settings; a first one in which simulators are built does not count."""
    collectors = {name: Collector(progress=False, reproducible=name == ALONE, **options) for name in (TOGETHER, ALONE)}
    try:
        runs = {name: lambda own=own: own.run(policy, specs, keep_decisions=False) for name, own in collectors.items()}
        return {name: values[1:] for name, values in measure(runs, repetitions + 1).items()}
    finally:
        for collector in collectors.values():
            collector.close()


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/rl.yaml", help="of RL; default: configs/rl.yaml")
    parser.add_argument("--policy", help="default: the one of the configuration")
    parser.add_argument("--episodes", type=int, default=128, help="default: 128")
    parser.add_argument("--num_workers", type=int, nargs="+", default=[0, 2], help="default: 0 2")
    parser.add_argument("--repetitions", type=int, default=5, help="of each setting; default: 5")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; default: 1")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    config = yaml.safe_load(Path(options.config).read_text(encoding="utf-8"))
    environment, specs = read(config, options.episodes)
    num_envs = config["data"]["init_args"]["collector"].get("num_envs", 64)
    policy = DVLAPolicy.from_pretrained(options.policy or config["model"]["policy"]["pretrained"]).eval()
    print(f"{len(specs)} episodes of {type(environment).__name__}, {options.repetitions} repetitions of each setting")
    for workers in options.num_workers:
        found = seconds(
            policy, specs, options.repetitions, environment=environment, num_workers=workers, num_envs=num_envs
        )
        rates = [60 * len(specs) / statistics.median(found[name]) for name in (TOGETHER, ALONE)]
        ratios = sorted(a / b for a, b in zip(found[TOGETHER], found[ALONE], strict=True))
        print(
            f"{f'{workers} workers' if workers else f'{num_envs} simulators in this process':32}"
            f"{rates[0]:7.0f} episodes per minute, reproducible {rates[1]:7.0f}: "
            f"{statistics.median(ratios):.2f} x [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
