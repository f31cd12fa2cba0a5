"""Groups: which episodes begin alike, which are trained on, and how dynamic sampling refills them."""

import pytest
import torch

from dvla_lightning.data.groups import comparable_episodes, group_numbers, informative_episodes
from dvla_lightning.errors import UserError
from dvla_lightning.rollout.episode import Episode, EpisodeSpec, Transition


def alone(values):
    """What one rank gathers."""
    return values[None]


def made_up(task, state, seed, rewards, error=None):
    """An episode without decisions worth the name."""
    transitions = [Transition(None, None)] + [Transition(None, None, reward, False, False) for reward in rewards]
    transitions[-1].terminated = True
    return Episode(EpisodeSpec(task, "train", state, seed, 1), transitions, [None] * len(rewards), error=error)


def test_group_numbers_count_tasks_and_states():
    episodes = [made_up(task, state, 0, [0.0]) for task, state in [("a", 5), ("b", 5), ("a", 5), ("a", 6), ("b", 5)]]
    assert group_numbers(episodes).tolist() == [0, 1, 0, 2, 1]


def test_informative_episodes_are_of_groups_with_more_than_one_outcome():
    alike = [made_up("a", 0, n, [0.0, 1.0]) for n in range(3)]
    mixed = [made_up("a", 1, 0, [1.0]), made_up("a", 1, 1, [0.0]), made_up("a", 1, 2, [1.0], error="died")]
    later = [made_up("b", 0, 0, [1.0]), made_up("b", 0, 1, [0.0, 1.0])]  # all solved it, one took longer
    alone = [made_up("b", 1, 0, [1.0]), made_up("b", 1, 1, [0.0], error="died")]
    everything = [*alike, *mixed, *later, *alone]
    assert informative_episodes(everything) == mixed[:2]
    assert informative_episodes(alone) == informative_episodes([]) == []


def test_episodes_whose_partners_ended_in_errors_cannot_be_compared():
    pair = [made_up("a", 0, 0, [1.0]), made_up("a", 0, 1, [1.0])]
    alone = [made_up("a", 1, 0, [1.0]), made_up("a", 1, 1, [0.0], error="died")]
    assert comparable_episodes([alone[0], *pair, alone[1]]) == pair
    assert comparable_episodes(alone) == []


# -- dynamic sampling --------------------------------------------------------------------------------------------------


def test_groups_that_came_out_alike_are_replaced(make_data, tiny_policy):
    """In every call the first group is mixed, the others are alike: each refill brings one group."""
    data = make_data(lambda n: float(n == 0), max_refills=5, episodes_per_iteration=12)
    ran, chosen, times = data._collect_episodes(None, 0)
    assert [len(call) for call in data.collector.calls] == [12, 8, 4]
    assert len(ran) == 24 and len(chosen) == 12 and len(times) == 3
    assert len({(episode.spec.task, episode.spec.initial_state) for episode in chosen}) == 3
    assert sum(episode.episode_return for episode in chosen) == 3


def test_refills_end_at_their_limit(make_data):
    data = make_data(lambda n: float(n == 0), max_refills=1, episodes_per_iteration=12)
    ran, chosen, _ = data._collect_episodes(None, 0)
    assert len(ran) == 20 and len(chosen) == 8


def test_without_refills_every_group_is_trained_on(make_data):
    data = make_data(lambda n: 1.0)
    ran, chosen, _ = data._collect_episodes(None, 0)
    assert len(data.collector.calls) == 1 and ran == chosen and len(ran) == 8


def test_a_run_goes_on_when_nothing_is_informative(make_data):
    data = make_data(lambda n: 1.0, max_refills=2)
    ran, chosen, _ = data._collect_episodes(None, 0)
    assert len(data.collector.calls) == 3 and chosen == ran and len(ran) == 24


def test_refills_ask_for_whole_groups_after_errors(make_data):
    """One episode of the informative group died: three are kept, five are missing, and a group has four."""
    data = make_data(lambda n: None if n == 0 else float(n == 1), max_refills=1)
    _, chosen, _ = data._collect_episodes(None, 0)
    assert [len(call) for call in data.collector.calls] == [8, 4]
    assert len(chosen) == 6 and not any(episode.error for episode in chosen)


@pytest.mark.parametrize("advantage", ["grpo", "rloo"])
def test_an_episode_whose_partner_died_is_left_out(make_data, advantage):
    data = make_data(lambda n: None if n == 0 else 1.0, group_size=2, advantage=advantage)
    ran, chosen, _ = data._collect_episodes(None, 0)
    assert chosen == ran[2:]


# -- arguments and ranks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"group_size": 1}, "advantage grpo compares episodes that begin alike: set group_size to at least 2, got 1"),
        ({"group_size": 1, "advantage": "rloo"}, "advantage rloo compares"),
        ({"group_size": 3}, r"episodes_per_iteration \(8\) must be a multiple of group_size \(3\)"),
        ({"group_size": 0, "advantage": "gae"}, "group_size must be a number at least 1"),
        ({"group_size": 1, "advantage": "gae", "max_refills": 1}, "max_refills needs groups"),
        ({"max_refills": -1}, "max_refills must be a number at least 0"),
    ],
)
def test_senseless_groups_are_refused(make_data, options, sentence):
    with pytest.raises(UserError, match=sentence):
        make_data(None, **options)


@pytest.mark.parametrize(
    ("advantage", "sentence"),
    [
        ("rloo", "no group of a rank has two episodes without an error, the first one in: died"),
        ("reinforce++", "every training episode of a rank ended in an error, the first one in: died"),
    ],
)
def test_a_rank_that_has_nothing_to_train_on_says_why(make_data, advantage, sentence):
    """Of every group of four one episode ran: without a partner, unless nothing is compared."""
    data = make_data(lambda n: 1.0 if n % 4 == 0 else None, advantage=advantage)
    ran, chosen, _ = data._collect_episodes(None, 0)
    if advantage == "reinforce++":
        data.groups.check_trainable(ran, chosen, alone)
        chosen = [episode for episode in ran if episode.error]
    with pytest.raises(UserError, match=f"{sentence}$"):
        data.groups.check_trainable(ran, chosen, alone)


def test_all_ranks_stop_when_one_has_nothing_to_train_on(make_data):
    data = make_data(lambda n: 1.0)
    ran, chosen, _ = data._collect_episodes(None, 0)
    with pytest.raises(UserError, match="see the output of the other ranks"):
        data.groups.check_trainable(ran, chosen, lambda values: torch.stack([values, 0 * values]))
