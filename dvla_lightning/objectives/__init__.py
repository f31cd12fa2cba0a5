"""What a training step minimises."""

from dvla_lightning.objectives.base import LossOutput, Objective
from dvla_lightning.objectives.supervised import DemonstrationBatch, SupervisedObjective
from dvla_lightning.objectives.trajectory_ppo import RolloutBatch, TrajectoryPPO

__all__ = ["DemonstrationBatch", "LossOutput", "Objective", "RolloutBatch", "SupervisedObjective", "TrajectoryPPO"]
