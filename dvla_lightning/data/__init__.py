"""Lightning data modules: demonstrations for SFT, rollouts for RL, evaluation alone; all evaluate in closed loop."""

from dvla_lightning.data.demonstration_set import Demonstration, DemonstrationSet
from dvla_lightning.data.demonstrations import DemonstrationDataModule
from dvla_lightning.data.evaluation import EvaluationDataModule
from dvla_lightning.data.rollouts import RolloutDataModule

__all__ = [
    "Demonstration",
    "DemonstrationDataModule",
    "DemonstrationSet",
    "EvaluationDataModule",
    "RolloutDataModule",
]
