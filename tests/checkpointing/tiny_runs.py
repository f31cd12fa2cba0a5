"""Options of tiny runs of RL on Tabletop."""

import zipfile
from pathlib import Path

import torch

from dvla_lightning.actions.tokenizer import UniformBins
from dvla_lightning.backbones import MiniBackbone
from dvla_lightning.policy import DVLAPolicy

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
        "data.evaluation.num_episodes": 0,
        "data.evaluation.num_recorded_episodes": 0,
        "model.lr_scheduler.init_args.num_epochs": 70,  # runs that stop and go on differ in max_epochs
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


def loops():
    """What a checkpoint must hold at the least."""
    return {"fit_loop": {}, "validate_loop": {}, "test_loop": {}, "predict_loop": {}}


def save_tiny_policy(path, seed=0, dim=16):
    """An untrained policy for Tabletop."""
    torch.manual_seed(seed)
    size = {"num_positions": 8, "vocab_size": 8, "dim": dim, "num_layers": 1, "num_heads": 2, "channels": 8}
    policy = DVLAPolicy(
        backbone=MiniBackbone(cameras=["top"], image_size=32, proprioception_dim=4, **size),
        action_tokenizer=UniformBins(8), action_dim=2, chunk_size=4,
        normalization="identity", value_hidden_dims=[8],
    )  # fmt: skip
    policy.is_fitted = True
    policy.save_pretrained(path)


def damage(path, num_bytes=100):
    """Overwrites bytes in the middle of the largest record of a checkpoint with zeros, or ones where they are zero."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda member: member.file_size)
    with path.open("r+b") as file:
        file.seek(record.header_offset + record.file_size // 2)
        before = file.read(num_bytes)
        file.seek(-len(before), 1)
        file.write(bytes(num_bytes) if any(before) else b"\xff" * num_bytes)
