"""Fits of seconds for the tests: an update without its collection, the minibatches are given."""

import torch
from lightning import Callback, LightningDataModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.evaluation.plan import Evaluation
from dvla_lightning.objectives import RolloutBatch, TrajectoryPPO
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec
from tests.small_policy import whole_batch


class GivenBatches(LightningDataModule):
    """`epochs`: the minibatches of each, in order; without a length, as in RL, or with one, as in SFT."""

    collector, evaluation = None, Evaluation()
    batch_type = RolloutBatch

    def __init__(self, epochs, has_length=False):
        super().__init__()
        self.epochs, self.has_length = epochs, has_length

    def check_policy(self, policy):
        pass

    def training_remark(self):
        return None

    def train_dataloader(self):
        dataset = self.epochs[0] if self.has_length else _Stream(self)
        return DataLoader(dataset, batch_size=None, collate_fn=lambda batch: batch)


class _Stream(IterableDataset):
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        trainer = self.data.trainer
        epoch = trainer.fit_loop.epoch_progress.current.processed
        trainer.lightning_module.begin_iteration(epoch)
        for batch in self.data.epochs[epoch]:
            if trainer.lightning_module.stop_iteration:
                return
            yield batch


class AfterEveryBatch(Callback):
    """Calls `look(module)` and keeps what it returns."""

    def __init__(self, look):
        self.look, self.seen = look, []

    def on_train_batch_end(self, trainer, module, *args):
        self.seen.append(self.look(module))


def fit(module, epochs, tmp_path, ckpt_path=None, data=None, **options):
    options = {"logger": False, "enable_checkpointing": False, **options}
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, max_epochs=len(epochs), use_distributed_sampler=False, log_every_n_steps=1, **options,
    )  # fmt: skip
    trainer.fit(module, datamodule=data or GivenBatches(epochs), ckpt_path=ckpt_path)
    return trainer


def rollout_minibatches(policy, count, objective=None):
    """`count` different minibatches of what an untrained policy did, marked as drawn before its last update."""
    specs = [EpisodeSpec(Tabletop.tasks[n % 5], "train", n, seed=n, num_steps=2) for n in range(5)]
    episodes = Collector(Tabletop(), num_envs=5, progress=False).run(policy, specs)
    batch = whole_batch(policy, objective or TrajectoryPPO(), episodes)
    batch.version_B -= 1
    return [batch.select(rows) for rows in torch.arange(len(batch)).tensor_split(count)]
