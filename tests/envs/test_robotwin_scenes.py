"""Which scenes count: seeds that the expert solves, the same whoever checks them, and remembered."""

import json
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest

from dvla_lightning.envs.robotwin import RoboTwin
from dvla_lightning.envs.robotwin.simulator.options import Options
from dvla_lightning.envs.robotwin.simulator.scenes import MAX_BROKEN_CHECKS, Scenes
from dvla_lightning.envs.robotwin.simulator.seed_book import SeedBook, Verdict
from dvla_lightning.errors import UserError
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec
from tests.robotwin_checkout import make_checkout

TASK = "stack_blocks_two"


def solvable(seed):
    """As the stand-in checkout has it; 100000 is divisible by 5."""
    return seed % 5 != 3 and seed % 7 != 2 and seed % 11 != 4


VALID = [seed for seed in range(100_000, 100_200) if solvable(seed)]


class Expert:
    def __init__(self, works=solvable):
        self.works, self.asked = works, []

    def __call__(self, seed):
        self.asked.append(seed)
        return (
            Verdict(True, "", {"{a}": f"arm {seed}"})
            if self.works(seed)
            else Verdict(False, "no motion plan was found")
        )


@pytest.fixture
def scenes(tmp_path):
    def make(expert=None, split="heldout", **options):
        book = SeedBook(tmp_path, TASK, {"config": "demo_clean", "split": split})
        return Scenes(Options(root="", **options), book, expert or Expert())

    return make


def test_held_out_states_are_the_published_seeds(scenes):
    found = scenes()
    assert [found.find(TASK, "heldout", n)[0] for n in range(100)] == VALID[:100]
    assert found.find(TASK, "heldout", 3)[1] == {"{a}": f"arm {VALID[3]}"}
    later = scenes(first_eval_seed=200_000, split="other")
    assert later.find(TASK, "heldout", 0)[0] == next(seed for seed in range(200_000, 200_100) if solvable(seed))


def test_order_and_repetition_make_no_difference(scenes):
    found = scenes()
    numbers = [7, 0, 3, 7, 12]
    assert [found.find(TASK, "heldout", n)[0] for n in numbers] == [VALID[n] for n in numbers]
    assert max(Counter(found.check.asked).values()) == 1
    again = scenes(Expert())
    assert again.find(TASK, "heldout", 12)[0] == VALID[12] and again.check.asked == []  # another process remembers


def test_training_states_are_found_alone_and_lie_below(scenes):
    found = scenes(split="train", num_train_scenes=1000)
    numbers = [0, 1, 999, 1000, 123_456]
    seeds = [found.find(TASK, "train", n)[0] for n in numbers]
    assert seeds == [next(s for s in range(90 * n, 10**6) if solvable(s)) for n in (0, 1, 999, 0, 456)]
    assert len(found.check.asked) < 12
    last = {found.find(TASK, "train", n)[0] for n in range(900, 1000)}
    assert len(last) == 100 and max(last) < 90_000


def test_selection_states_are_found_in_turn_between_training_and_evaluation(scenes):
    between = [seed for seed in range(90_000, 90_200) if solvable(seed)]
    found = scenes(split="selection")
    assert [found.find(TASK, "selection", n)[0] for n in (3, 0, 7)] == [between[n] for n in (3, 0, 7)]
    assert RoboTwin(root="x").num_selection_states(TASK) is None
    unchecked = scenes(validity="none", num_train_scenes=10_000)
    assert unchecked.find(TASK, "selection", 9_999) == (99_999, None)
    assert unchecked.find(TASK, "train", 9_999) == (9_999, None)
    with pytest.raises(UserError, match=r"too few selection scenes for so many episodes: lower data\.evaluation\.num"):
        unchecked.find(TASK, "selection", 10_000)  # the first seed of evaluation


def test_the_last_selection_state_is_below_the_first_of_evaluation(scenes):
    found = scenes(Expert(lambda seed: seed < 90_003), "selection")
    found._known = lambda: {seed: Verdict(seed < 90_003) for seed in range(90_000, 100_000)}
    assert found.find(TASK, "selection", 2)[0] == 90_002
    with pytest.raises(UserError, match="too few selection scenes"):
        found.find(TASK, "selection", 3)


def test_every_tenth_seed_of_a_list_is_kept_for_selection(tmp_path):
    file = tmp_path / "train.json"
    file.write_text(json.dumps({TASK: {"success_seeds": list(range(500, 525))}, "lift_pot": {"success_seeds": [1]}}))
    recipe = RoboTwin(root="x", validity="seed_file", train_seed_file=str(file))
    listed = Scenes(Options(**{**recipe.simulator_options()}), None, Expert())
    selection = [listed.find(TASK, "selection", n)[0] for n in range(recipe.num_selection_states(TASK))]
    training = [listed.find(TASK, "train", n)[0] for n in range(23)]
    assert selection == [509, 519] and sorted(selection + training) == list(range(500, 525))
    assert recipe.num_selection_states("lift_pot") == 0
    with pytest.raises(UserError, match="lists 2 selection seeds of task 'stack_blocks_two', number 2 was asked for"):
        listed.find(TASK, "selection", 2)


def test_a_book_is_read_as_a_seed_file(scenes, tmp_path):
    found = scenes()
    found.find(TASK, "heldout", 5)
    content = json.loads(found.book.path.read_text())
    assert content[TASK]["success_seeds"] == VALID[:6] and content[TASK]["config"] == "demo_clean"
    assert content[TASK]["failed_seeds"]["100003"] == "no motion plan was found" and not content[TASK]["begun"]
    recipe = RoboTwin(validity="seed_file", eval_seed_file=str(found.book.path))
    assert recipe.num_trials(TASK) == 6
    assert recipe.num_heldout_states(TASK) == 6 and recipe.num_heldout_states("lift_pot") == 0
    options = Options(
        **{**RoboTwin(root="x").simulator_options(), "validity": "seed_file", "eval_seeds": recipe.eval_seeds}
    )
    listed = Scenes(options, None, Expert())
    assert listed.find(TASK, "heldout", 5) == (VALID[5], None) and listed.check.asked == []
    with pytest.raises(UserError, match="lists 6 heldout seeds of task 'stack_blocks_two', number 6 was asked for"):
        listed.find(TASK, "heldout", 6)


def test_lists_of_training_and_evaluation_share_no_seed(tmp_path):
    files = [tmp_path / "train.json", tmp_path / "eval.json"]
    for file, seeds in zip(files, ([5, 6, 7], [7, 8]), strict=True):
        file.write_text(json.dumps({TASK: {"task_name": TASK, "success_seeds": seeds}}))
    with pytest.raises(UserError, match="seed 7 of task 'stack_blocks_two' is both in train_seed_file and in eval"):
        RoboTwin(validity="seed_file", train_seed_file=str(files[0]), eval_seed_file=str(files[1]))


def test_without_a_check_numbers_are_seeds(scenes):
    found = scenes(validity="none", num_train_scenes=50)
    assert found.find(TASK, "heldout", 3) == (100_003, None) and found.find(TASK, "train", 53) == (3, None)


def test_an_expert_that_never_succeeds_is_given_up(scenes):
    for split, state in (("heldout", 0), ("train", 3)):
        expert = Expert(lambda seed: False)
        with pytest.raises(UserError, match=r"failed on all 20 seeds .*: no motion plan was found; repair it .*json"):
            scenes(expert, split).find(TASK, split, state)
        assert len(expert.asked) == 20


def test_an_expert_that_seldom_succeeds_is_not(scenes):
    found = scenes(Expert(lambda seed: seed % 50 == 19))
    assert found.find(TASK, "heldout", 2)[0] == 100_119
    found = scenes(Expert(lambda seed: seed == 5), "train")
    assert found.find(TASK, "train", 0)[0] == 5
    with pytest.raises(RuntimeError, match="none of the seeds 90 to 179"):
        found.find(TASK, "train", 1)


def test_a_seed_that_kills_every_worker_is_left_out_in_the_end(scenes):
    def die(seed):
        if seed == 100_000:
            raise SystemExit
        return Verdict(True)

    for _ in range(MAX_BROKEN_CHECKS):
        with pytest.raises(SystemExit):
            scenes(die).find(TASK, "heldout", 0)
    assert scenes(die).find(TASK, "heldout", 0)[0] == 100_001
    assert "died or hung" in scenes(die).book.read()[100_000].reason


# ---------------------------------------------------------------------- whole workers


def run_expert(recipe, specs, **options):
    collector = Collector(recipe, progress=False, **options)
    try:
        return collector.demonstrate(specs, 10)
    finally:
        collector.close()


def specs_of(count, split="heldout", task=TASK):
    return [EpisodeSpec(task, split, n, seed=n) for n in range(count)]


def make_recipe(checkout, cache):
    return RoboTwin(str(checkout), sys.executable, cameras=["head"], image_size=16, cache_dir=str(cache))


def summary(episodes):
    return [(e.success, e.error, np.concatenate([t.actions for t in e.transitions]).tolist()) for e in episodes]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    episodes = run_expert(make_recipe(make_checkout(folder / "robotwin"), folder), specs_of(4))
    assert all(episode.success for episode in episodes)
    return summary(episodes)


def test_workers_share_the_checks_and_agree(expected, tmp_path):
    recipe = make_recipe(make_checkout(tmp_path / "robotwin"), tmp_path / "cache")
    assert summary(run_expert(recipe, specs_of(4), num_workers=3)) == expected
    (book,) = (tmp_path / "cache").glob("*.json")
    commit = recipe.identity()["commit"][:12]
    assert book.name == f"{TASK}.demo_clean.aloha-agilex.checkout.{commit}.heldout.json"
    entry = json.loads(book.read_text())[TASK]
    assert entry["success_seeds"][:4] == VALID[:4]
    assert "UnStableError" in entry["failed_seeds"]["100003"]


def test_two_processes_do_not_check_the_same_seed(tmp_path):
    """Locks belong to processes, so the other one is made here by hand."""
    import subprocess

    book = SeedBook(tmp_path, TASK, {"split": "heldout"})
    holder = f"""
import fcntl, os, sys, time
fd = os.open({str(book.path) + ".lock"!r}, os.O_RDWR)
fcntl.lockf(fd, fcntl.LOCK_EX, 1, 100000)
print("locked", flush=True)
sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    expert = Expert()
    threading.Timer(0.5, other.kill).start()
    start = time.monotonic()
    assert Scenes(Options(root=""), book, expert).find(TASK, "heldout", 0)[0] == 100_000
    other.wait()
    assert expert.asked[-1] == 100_000 and len(expert.asked) > 1  # it worked ahead while the other held the first
    assert time.monotonic() - start > 0.3


@pytest.mark.parametrize(
    ("place", "kind"), [("setup", "kill"), ("setup", "hang"), ("render", "hang"), ("expert", "kill")]
)
def test_a_worker_that_breaks_is_replaced(place, kind, expected, tmp_path):
    recipe = make_recipe(make_checkout(tmp_path / "robotwin", faults={place: [kind, 1]}), tmp_path / "cache")
    timeouts = {"reset_timeout": 4.0, "step_timeout": 4.0} if kind == "hang" else {}
    episodes = run_expert(recipe, specs_of(4), num_workers=2, **timeouts)
    assert summary(episodes) == expected
    assert sum(episode.retries for episode in episodes) == 1


def test_rendering_that_fails_for_good_is_an_error_with_its_last_output(tmp_path):
    recipe = make_recipe(make_checkout(tmp_path / "robotwin", faults={"render": ["kill", 99]}), tmp_path / "cache")
    (episode,) = run_expert(recipe, specs_of(1), max_retries=1)
    assert "exit code -9" in episode.error and "Vulkan device lost" in episode.error and not episode.success


def test_an_expert_that_raises_makes_the_seed_invalid(tmp_path):
    recipe = make_recipe(make_checkout(tmp_path / "robotwin", faults={"expert": ["raise", 1]}), tmp_path / "cache")
    (episode,) = run_expert(recipe, specs_of(1))
    assert episode.success and episode.retries == 0
    (book,) = (tmp_path / "cache").glob("*.json")
    assert json.loads(book.read_text())[TASK]["failed_seeds"]["100000"] == "RuntimeError: fault in expert"
