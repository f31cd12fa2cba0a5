"""Tiny runs on Tabletop, through the command line."""

import pytest

from dvla_lightning.cli import main
from tests.checkpointing.tiny_runs import FOR_TRAINING, arguments, rl_options, save_tiny_policy


@pytest.fixture(autouse=True)
def _quiet(quiet_logging):
    """In every test here."""


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory):
    """An untrained policy for Tabletop."""
    path = tmp_path_factory.mktemp("policy") / "policy"
    save_tiny_policy(path)
    return path


@pytest.fixture(scope="module")
def run_rl(policy_dir):
    """A function that runs RL, or another verb, in a directory with further options and words."""

    def run(directory, *words, verb="fit", **options):
        given = {**rl_options(policy_dir), "trainer.default_root_dir": directory}
        given |= {name.replace("__", "."): value for name, value in options.items()}
        if verb != "fit":
            given = {name: value for name, value in given.items() if name not in FOR_TRAINING}
        main([*arguments(verb, "rl.yaml", given), *map(str, words)])

    return run


@pytest.fixture(scope="module")
def whole(run_rl, tmp_path_factory):
    """The directory of a run that was never stopped."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    run_rl(directory)
    return directory
