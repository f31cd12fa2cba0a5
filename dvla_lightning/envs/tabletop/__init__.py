"""The built-in environment: a table seen from above, a tool point, and five tasks of rising difficulty.

It needs numpy and gymnasium only, and exists to train and test discrete-diffusion policies on a CPU. Importing this
package registers ``dvla/Tabletop-v0`` with gymnasium.
"""

import gymnasium

from dvla_lightning.envs.tabletop.env import TabletopEnv
from dvla_lightning.envs.tabletop.recipe import Tabletop

__all__ = ["Tabletop", "TabletopEnv"]

# The environment has a step limit per task and truncates by itself, so gymnasium's time limit wrapper is not wanted.
gymnasium.register(id="dvla/Tabletop-v0", entry_point="dvla_lightning.envs.tabletop.env:TabletopEnv")
