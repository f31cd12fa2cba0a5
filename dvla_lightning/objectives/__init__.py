"""Objectives: the losses that a training step minimises."""

from dvla_lightning.objectives.base import LossOutput, Objective
from dvla_lightning.objectives.rollout_batch import RolloutBatch, Rollouts
from dvla_lightning.objectives.supervised import DemonstrationBatch, SupervisedObjective
from dvla_lightning.objectives.trajectory_ppo import TrajectoryPPO

__all__ = [
    "DemonstrationBatch",
    "LossOutput",
    "Objective",
    "RolloutBatch",
    "Rollouts",
    "SupervisedObjective",
    "TrajectoryPPO",
]
