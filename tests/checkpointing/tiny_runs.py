"""Options of tiny runs of RL on Tabletop."""

from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
UPDATES = 4  # of each iteration
FOR_TRAINING = ("trainer.max_epochs", "trainer.check_val_every_n_epoch")


def arguments(verb, config, options):
    """A command line; __ in the name of an option stands for a dot."""
    words = [verb, "--config", str(ROOT / "configs" / config)]
    for name, value in options.items():
        words += [f"--{name.replace('__', '.')}", str(value)]
    return words


def rl_options(policy_dir):
    """Three iterations of `UPDATES` updates each."""
    return {
        "data.collector.progress": "false",
        "data.episodes_per_iteration": 6,
        "data.minibatch_size": 20,
        "data.tasks": "[reach]",
        "data.num_eval_episodes": 0,
        "data.num_recorded_episodes": 0,
        "model.optimizer.lr": 1e-2,
        "model.objective.value_warmup_iterations": 0,
        "model.policy.pretrained": policy_dir,
        "trainer.accelerator": "cpu",
        "trainer.check_val_every_n_epoch": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.max_epochs": 3,
    }


def load(path):
    return torch.load(path, weights_only=True)
