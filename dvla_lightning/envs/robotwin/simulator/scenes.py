"""The scene of an initial state: the seeds that RoboTwin's expert has shown to be solvable.

The published protocol (script/eval_policy.py): seeds from 100000 * (1 + seed) upwards, and a seed counts only if the
expert solves it. So held-out state n is the n-th such seed. Training has the seeds below 90000, which are dealt to its
states in equal runs; a state means the first valid seed of its own. Selection has the seeds between, the n-th valid one
as in evaluation; it looks as training does. So no two splits share a scene.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from .errors import UserError
from .options import Options
from .seed_book import SeedBook, Verdict

TRAIN_SEEDS = FIRST_SELECTION_SEED = 90_000
END_OF_SELECTION = 100_000  # where the published evaluation begins
FUTILE_CHECKS = 20  # an expert that has failed so often and never succeeded is not installed properly
MAX_BROKEN_CHECKS = 5  # some seeds kill or hang SAPIEN every time (RoboTwin issue 477); an interrupted run counts too
LOOK_AHEAD = 64  # seeds that other workers may check before the first unknown one is done
POLL_SECONDS = 0.5


class Scenes:
    """Finds the seed of an initial state.

    Args:
        options: of the run.
        book: of the task and split; None unless `validity` is expert.
        check: runs the expert on a seed.
        on_progress: called after every check, and while other workers check.
    """

    def __init__(
        self,
        options: Options,
        book: SeedBook | None,
        check: Callable[[int], Verdict],
        on_progress: Callable[[], object] = lambda: None,
    ) -> None:
        self.options, self.check, self.on_progress = options, check, on_progress
        self._book = book

    def find(self, task: str, split: str, number: int) -> tuple[int, dict[str, str] | None]:
        """Seed of an initial state, and the placeholders of its instruction (None if unknown).

        Raises:
            UserError: if there is no such state, or the expert fails on every seed.
        """
        if self.options.validity == "seed_file":
            return self._from_file(task, split, number), None
        first = FIRST_SELECTION_SEED if split == "selection" else self.options.first_eval_seed
        if self.options.validity == "none":
            seed = number % self._num_train if split == "train" else first + number
            return _own(split, seed), None
        if split != "train":
            return self._nth_valid(split, first, number)
        run = TRAIN_SEEDS // self._num_train
        return self._first_valid(range(number % self._num_train * run, (number % self._num_train + 1) * run))

    @property
    def book(self) -> SeedBook:
        """The verdicts so far; asked for only where `validity` is expert."""
        assert self._book is not None
        return self._book

    @property
    def _num_train(self) -> int:
        return self.options.num_train_scenes

    def _from_file(self, task: str, split: str, number: int) -> int:
        lists = {"train": self.options.train_seeds, "selection": self.options.selection_seeds}
        seeds = lists.get(split, self.options.eval_seeds).get(task, [])
        if not seeds or (split != "train" and number >= len(seeds)):
            raise UserError(
                f"the seed file lists {len(seeds)} {split} seeds of task {task!r}, number {number} was asked for: "
                "give a longer one, or set validity: expert"
            )
        return seeds[number % len(seeds)]

    def _nth_valid(self, split: str, first: int, number: int) -> tuple[int, dict[str, str]]:
        while True:
            num_valid, seed = 0, first
            known = self._known()
            while seed in known:
                if known[seed].valid:
                    num_valid += 1
                    if num_valid > number:
                        return _own(split, seed), known[seed].info
                seed += 1
            self._check_one_of(range(_own(split, seed), seed + LOOK_AHEAD))

    def _first_valid(self, seeds: range) -> tuple[int, dict[str, str]]:
        for seed in seeds:
            while not (verdict := self._known().get(seed)):
                self._check_one_of([seed])
            if verdict.valid:
                return seed, verdict.info
        raise RuntimeError(f"RoboTwin's expert solves none of the seeds {seeds[0]} to {seeds[-1]}")

    def _check_one_of(self, seeds: Sequence[int]) -> None:
        """Checks the first seed that nobody has checked or is checking, so that workers share the work."""
        for seed in seeds:
            with self.book.claim(seed) as mine:
                if mine and seed not in self.book.read():
                    self._check(seed)
                    return
        self.on_progress()
        time.sleep(POLL_SECONDS)

    def _check(self, seed: int) -> None:
        if self.book.begin(seed) > MAX_BROKEN_CHECKS:
            verdict = Verdict(False, f"{MAX_BROKEN_CHECKS} checks came to no end: the simulator died or hung")
        else:
            verdict = self.check(seed)
        self.book.add(seed, verdict)
        self.on_progress()

    def _known(self) -> dict[int, Verdict]:
        """The verdicts so far; gives up on an expert that never succeeds."""
        known = self.book.read()
        if len(known) >= FUTILE_CHECKS and not any(verdict.valid for verdict in known.values()):
            seed = max(known)
            raise UserError(
                f"RoboTwin's expert has failed on all {len(known)} seeds it tried, the last time because: "
                f"{known[seed].reason}; repair it (curobo installed?) and delete {self.book.path}, or set validity: "
                "seed_file or none"
            )
        return known


def _own(split: str, seed: int) -> int:
    """Returns the seed; raises UserError if it lies beyond those of its split."""
    if split == "selection" and seed >= END_OF_SELECTION:
        raise UserError(
            "RoboTwin has too few selection scenes for so many episodes: lower data.evaluation.num_episodes"
        )
    return seed
