"""Advantages of assembled batches by hand."""

import numpy as np
import pytest
import torch

from dvla_lightning.data.assembly import _advantages, assemble
from dvla_lightning.data.groups import group_returns, informative_episodes
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import Episode, EpisodeSpec, Transition

GAMMA = 0.9


@pytest.fixture
def episodes(tiny_policy):
    """Three groups of three, interleaved, whose rewards are set by hand; the groups' K are 1, 2 and 4."""
    specs = [
        EpisodeSpec(Tabletop.tasks[n % 3], "train", 7, seed=n, num_steps=[1, 2, 4][n % 3]) for n in range(9)
    ]  # one number of the initial state for all: the task tells the groups apart
    episodes = Collector(Tabletop(), num_envs=9, progress=False).run(tiny_policy, specs)
    for n, episode in enumerate(episodes):
        for t, transition in enumerate(episode.transitions[1:]):
            transition.reward = float((n * n + 3 * t) % 5) if n % 3 else 1.0 * (t == 0)  # group 0: all alike
    return episodes


def discounted(episode, start=0):
    rewards = [transition.reward for transition in episode.transitions[1:]][start:]
    return sum(reward * GAMMA**t for t, reward in enumerate(rewards))


def split(batch, episodes):
    return batch.advantages_N.split([episode.num_decisions for episode in episodes])


@pytest.mark.parametrize("advantage", ["grpo", "rloo"])
def test_group_advantages_by_hand(advantage, episodes):
    batch = assemble(episodes, GAMMA, 0.8, advantage)
    returns = [sum(transition.reward for transition in episode.transitions[1:]) for episode in episodes]
    for n, (episode, part) in enumerate(zip(episodes, split(batch, episodes), strict=True)):
        group = [returns[m] for m in range(n % 3, 9, 3)]
        mean = sum(group) / 3
        if advantage == "grpo":
            std = (sum((r - mean) ** 2 for r in group) / 2) ** 0.5
            expected = (returns[n] - mean) / (std + 1e-6)
        else:
            expected = returns[n] - (sum(group) - returns[n]) / 2
        assert part.tolist() == pytest.approx([expected] * episode.num_decisions, abs=1e-5)
        assert n % 3 or part.abs().max() == 0
    to_go = [discounted(episode, t) for episode in episodes for t in range(episode.num_decisions)]
    assert batch.returns_N.tolist() == pytest.approx(to_go, abs=1e-5)  # what the value head learns


def episode_of(rewards, initial_state=0):
    transitions = [Transition(None, np.zeros((1, 2), np.float32), reward) for reward in [0.0, *rewards]]
    transitions[-1].terminated = True
    return Episode(EpisodeSpec("reach", "train", initial_state, seed=0), transitions, [object()] * len(rewards))


@pytest.mark.parametrize("advantage", ["grpo", "rloo"])
def test_a_group_in_which_all_succeed_teaches_nothing_about_speed(advantage):
    """Eight successes, one of them a decision later; in another group one of four fails: 1 - 0 = 1 against the mean
    of the others, 3 / 4 away from the mean of all and 1 / 2 the standard deviation."""
    together = [episode_of([0.0, 1.0]) for _ in range(7)] + [episode_of([0.0, 0.0, 1.0])]
    split_up = [episode_of([0.0, 1.0], 1) for _ in range(3)] + [episode_of([0.0] * 5, 1)]
    decisions = sum(episode.num_decisions for episode in together + split_up)
    advantages, _ = _advantages(together + split_up, torch.zeros(decisions), GAMMA, 0.8, advantage, True)
    assert advantages[:17].tolist() == [0.0] * 17
    success, failure = {"grpo": (0.5, -1.5), "rloo": (1 / 3, -1.0)}[advantage]
    assert advantages[17:].tolist() == pytest.approx([success] * 6 + [failure] * 5, abs=1e-5)
    assert informative_episodes(together + split_up) == split_up


def test_returns_of_a_group_are_equal_in_whatever_order_their_rewards_came():
    group = [episode_of([0.1, 0.2, 0.3]), episode_of([0.3, 0.2, 0.1]), episode_of([0.2, 0.3, 0.1])]
    assert len(set(group_returns(group).tolist())) == 1
    assert not informative_episodes(group)


def test_reinforce_takes_the_return_from_each_decision_on(episodes):
    batch = assemble(episodes, GAMMA, 0.8, "reinforce++")
    to_go = [discounted(episode, t) for episode in episodes for t in range(episode.num_decisions)]
    assert batch.advantages_N.tolist() == pytest.approx(to_go, abs=1e-5)
    assert torch.equal(batch.returns_N, batch.advantages_N)


@pytest.mark.parametrize("advantage", ["grpo", "rloo", "reinforce++"])
def test_only_gae_wants_the_value_of_the_last_observation(advantage, episodes):
    for episode in episodes:
        episode.decisions[-1].next_value = None
    assemble(episodes, GAMMA, 0.8, advantage)
    assemble(episodes, GAMMA, 0.8, bootstrap_truncated=False)
    with pytest.raises(ValueError, match="collected without bootstrap"):
        assemble(episodes, GAMMA, 0.8)


def test_without_bootstrap_nobody_values_the_last_observation(tiny_policy, monkeypatch):
    monkeypatch.setattr(tiny_policy, "estimate_values", None)
    specs = [EpisodeSpec("reach", "train", 0, seed=0, num_steps=1)]
    (episode,) = Collector(Tabletop(), num_envs=1, progress=False).run(tiny_policy, specs, bootstrap=False)
    assert episode.transitions[-1].truncated and episode.decisions[-1].next_value is None


def test_episodes_with_errors_are_left_out(episodes):
    whole = assemble(episodes, GAMMA, 0.8, "rloo")
    assert len(whole) == sum(episode.num_decisions for episode in episodes)
    episodes[4].error = "worker died"
    rest = [episode for episode in episodes if episode is not episodes[4]]
    batch = assemble(episodes, GAMMA, 0.8, "rloo")
    assert len(batch) == len(whole) - episodes[4].num_decisions
    pair = [sum(transition.reward for transition in episodes[n].transitions[1:]) for n in (1, 7)]
    assert split(batch, rest)[1][0].item() == pytest.approx(pair[0] - pair[1], abs=1e-5)
