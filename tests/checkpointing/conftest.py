"""Tiny runs on Tabletop, through the command line."""

import logging

import pytest
import torch

from dvla_lightning.cli import main
from tests.checkpointing.tiny_runs import FOR_TRAINING, arguments, rl_options


@pytest.fixture(autouse=True)
def quiet_logging(monkeypatch):
    """Lightning's log handler keeps the stderr of the test in which it was made, which is closed by now."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory):
    """An untrained policy for Tabletop."""
    from dvla_lightning.actions.tokenizer import UniformBins
    from dvla_lightning.backbones import MiniBackbone
    from dvla_lightning.policy import DVLAPolicy

    torch.manual_seed(0)
    size = {"num_positions": 8, "vocab_size": 8, "dim": 16, "num_layers": 1, "num_heads": 2, "channels": 8}
    policy = DVLAPolicy(
        backbone=MiniBackbone(["top"], 32, 4, **size), action_tokenizer=UniformBins(8), action_dim=2, chunk_size=4,
        normalization="identity", value_hidden_dims=[8],
    )  # fmt: skip
    policy.is_fitted = True
    path = tmp_path_factory.mktemp("policy") / "policy"
    policy.save_pretrained(path)
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
