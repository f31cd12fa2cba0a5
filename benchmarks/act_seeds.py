"""Success of the README's control loop, with new draws at every decision and with one seed for all of them.

    python -m benchmarks.act_seeds [NUM_EPISODES]

The shipped SFT policy of the built-in environment, K = 4, held-out episodes of all tasks in turns.
"""

from __future__ import annotations

import sys

import torch

from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.evaluation.success import SuccessCount
from dvla_lightning.policy import DVLAPolicy

POLICY, NUM_SEEDS = "checkpoints/tabletop-sft", 10


def successes(policy: DVLAPolicy, num_episodes: int, seed: int | None) -> SuccessCount:
    """Runs the loop.

    Args:
        policy: that acts.
        num_episodes: one per held-out initial state.
        seed: of every decision; None draws anew.
    """
    env, solved = Tabletop().make(), 0
    torch.manual_seed(0)
    for number in range(num_episodes):
        task = Tabletop.tasks[number % len(Tabletop.tasks)]
        options = {"task": task, "split": "heldout", "initial_state": number // len(Tabletop.tasks)}
        observation, info = env.reset(seed=number, options=options)
        terminated = truncated = False
        while not (terminated or truncated):
            actions = policy.act(observation, num_steps=4, seed=seed).actions[0]
            observation, _, terminated, truncated, info = env.step_chunk(actions.numpy())
        solved += info["is_success"]
    return SuccessCount(solved, num_episodes)


def main(num_episodes: int = 400) -> None:
    """Prints one row for new draws and one for each of ten seeds."""
    policy = DVLAPolicy.from_pretrained(POLICY)
    print(f"drawn anew at every decision: {successes(policy, num_episodes, None)}")
    for seed in range(NUM_SEEDS):
        print(f"seed {seed} at every decision: {successes(policy, num_episodes, seed)}")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
