"""Episodes on simulators of which a tenth fail, in ten ways: no episode is lost, repeated or silently wrong.

Runs the shipped policy of the built-in environment on child processes, with faults and without.

    python -m benchmarks.soak

Prints how many episodes of each fault were run again and the throughput relative to that without faults; exits 1 if an
episode is missing, double or different from the one without faults, or a fault was not counted. Most of the time is
that of hanging simulators: `--step_timeout` seconds each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.simulators.faults import SometimesFaultyTabletop
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import Episode, EpisodeSpec


def soak(policy: DVLAPolicy, num_episodes: int, every: int, folder: str, **options: object) -> list[str]:
    """What went wrong, a line each; prints what went well."""
    tasks = Tabletop.tasks
    specs = [EpisodeSpec(tasks[n % len(tasks)], "train", n, seed=n, num_steps=2) for n in range(num_episodes)]
    healthy, seconds = _run(Tabletop(), policy, specs, **options)
    ended: Counter[EpisodeSpec] = Counter()
    environment = SometimesFaultyTabletop(every, folder)
    episodes, faulty_seconds = _run(environment, policy, specs, lambda episode: ended.update([episode.spec]), **options)
    faults = {int(file.name): file.read_text() for file in Path(folder).iterdir()}
    problems = [f"{spec} ended {ended[spec]} times" for spec in specs if ended[spec] != 1]
    for good, episode in zip(healthy, episodes, strict=True):
        state = episode.spec.initial_state
        if episode.error is not None:
            problems.append(f"state {state} was lost: {episode.error}")
        elif _summary(good) != _summary(episode):
            problems.append(f"state {state} came out differently")
        if episode.retries != int(state in faults):
            problems.append(
                f"state {state} met {faults.get(state, 'nothing')} and was run again {episode.retries} times"
            )
    print(f"{num_episodes} episodes, {len(faults)} faults: {dict(Counter(faults.values()))}")
    print(
        f"{seconds:.1f} s without faults, {faulty_seconds:.1f} s with them: {seconds / faulty_seconds:.2f} of the speed"
    )
    if len(faults) != len(range(0, num_episodes, every)):
        problems.append(f"only {len(faults)} faults happened")
    return problems


def _run(environment, policy, specs, on_episode=None, **options) -> tuple[Sequence[Episode], float]:
    collector = Collector(environment, progress=False, reproducible=True, **options)
    start = time.perf_counter()
    try:
        return collector.run(policy, specs, on_episode=on_episode), time.perf_counter() - start
    finally:
        collector.close()


def _summary(episode: Episode) -> tuple:
    return episode.success, np.concatenate([transition.actions for transition in episode.transitions]).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_episodes", type=int, default=500)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--num_workers", type=int, default=4)
    parser.add_argument("--step_timeout", type=float, default=3.0)
    config = parser.parse_args()
    policy = DVLAPolicy.from_pretrained("checkpoints/tabletop-sft")
    with tempfile.TemporaryDirectory() as folder:
        options = {"num_workers": config.num_workers, "step_timeout": config.step_timeout}
        problems = soak(policy, config.num_episodes, config.every, folder, **options)
    print("\n".join(problems) or "none lost, none twice, none silent, all as without faults")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
