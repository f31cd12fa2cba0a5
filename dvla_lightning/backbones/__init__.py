"""Networks behind one contract: encode the prompt once, denoise the action tokens many times."""

from dvla_lightning.backbones.base import Backbone, Context, Prompt
from dvla_lightning.backbones.mini import MiniBackbone

__all__ = ["Backbone", "Context", "MiniBackbone", "Prompt"]
