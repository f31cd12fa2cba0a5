"""LIBERO in the worker processes of the collector: what they return does not depend on how many there are."""

import mmap
import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.libero_memory import growth, memory_after_resets, resident_megabytes
from dvla_lightning.actions.tokenizer import UniformBins
from dvla_lightning.backbones import MiniBackbone
from dvla_lightning.envs.libero import Libero
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec

TASKS = (
    "pick_up_the_black_bowl_between_the_plate_and_the_ramekin_and_place_it_on_the_plate",
    "pick_up_the_black_bowl_on_the_stove_and_place_it_on_the_plate",
)


def make_specs(num_steps=0):
    """Two held-out states of two tasks: one worker runs all four, of two workers each runs one task."""
    return [
        EpisodeSpec(task, "heldout", state, seed=state, num_steps=num_steps, expert_noise=0.1)
        for state in (1, 2)
        for task in TASKS
    ]


def untrained_policy(recipe):
    backbone = MiniBackbone(
        56, 8, list(recipe.cameras), recipe.image_size, recipe.proprioception_dim, dim=16, num_layers=1, num_heads=2
    )
    policy = DVLAPolicy(
        backbone=backbone,
        action_tokenizer=UniformBins(8),
        action_dim=recipe.action_dim,
        chunk_size=8,
        normalization="identity",
        value_hidden_dims=[8],
    )
    policy.is_fitted = True
    return policy


def run(recipe, num_workers, work):
    """`work(collector)` with so many child processes."""
    collector = Collector(recipe, num_workers=num_workers, progress=False)
    try:
        return work(collector)
    finally:
        collector.close()


def assert_same_episodes(one, two):
    """Success, actions and rewards are equal, and so is every observation that was kept, to the last bit."""
    assert [e.success for e in one] == [e.success for e in two]
    for first, second in zip(one, two, strict=True):
        assert first.error is None and second.error is None
        for a, b in zip(first.transitions, second.transitions, strict=True):
            np.testing.assert_array_equal(a.actions, b.actions)
            assert (a.reward, a.terminated, a.truncated) == (b.reward, b.terminated, b.truncated)
            assert (a.observation is None) == (b.observation is None)
            if a.observation is not None:
                np.testing.assert_array_equal(a.observation["proprioception"], b.observation["proprioception"])
                for camera, image in a.observation["images"].items():
                    np.testing.assert_array_equal(image, b.observation["images"][camera])


@pytest.mark.libero
@pytest.mark.slow
def test_demonstrations_do_not_depend_on_the_number_of_workers():
    recipe = Libero(image_size=64)
    one, two = (run(recipe, n, lambda c: c.demonstrate(make_specs(), observe_every=40)) for n in (1, 2))
    assert any(episode.success for episode in one)
    assert all(transition.observation for episode in one for transition in episode.transitions)
    assert_same_episodes(one, two)


@pytest.mark.libero
@pytest.mark.slow
def test_rollouts_of_a_policy_do_not_depend_on_the_number_of_workers():
    recipe = Libero(image_size=64, max_steps=24)
    policy = untrained_policy(recipe)
    one, two = (run(recipe, n, lambda c: c.run(policy, make_specs(num_steps=2))) for n in (1, 2))
    assert [episode.num_decisions for episode in one] == [3] * 4
    assert_same_episodes(one, two)


def test_growth_compares_the_last_round_with_the_warm_up():
    memory = [100.0, 120.0, 110.0, 300.0, 126.0, 132.0]
    assert growth(memory, warm_up=2, num_tasks=1) == pytest.approx(10.0)
    assert growth(memory, warm_up=3, num_tasks=3) == pytest.approx(150.0)


def test_memory_is_that_of_the_process():
    before = resident_megabytes(os.getpid())
    with mmap.mmap(-1, 64 * 2**20) as block:  # pages of its own, where an array may get memory that was freed before
        block[::4096] = bytes(len(block) // 4096)
        assert resident_megabytes(os.getpid()) - before > 60


@pytest.mark.libero
def test_soft_resets_do_not_leak():
    memory = list(memory_after_resets(Libero(), num_tasks=1, num_resets=40))
    assert growth(memory, warm_up=5, num_tasks=1) < 5.0


def test_an_environment_that_nobody_closes_ends_without_a_word():
    code = (
        "from dvla_lightning.envs.libero import Libero\n"
        "recipe = Libero(suite='libero_spatial')\n"
        "env = recipe.make()\n"
        "env.reset(seed=0, options={'task': recipe.tasks[0]})\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.stdout.splitlines()[-1] == "done" and done.returncode == 0
    assert "Traceback" not in done.stderr and "EGLError" not in done.stderr
