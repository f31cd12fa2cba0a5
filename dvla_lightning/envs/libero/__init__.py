"""LIBERO: 130 table-top manipulation tasks of a Franka arm in MuJoCo (arXiv 2306.03310), through hf-libero.

Start reading at `recipe.py` (what a user configures), then `env.py` (one episode). Nothing here imports a simulator
until `Libero.make()` is called in the process that will run it.
"""

from dvla_lightning.envs.libero.recipe import Libero

__all__ = ["Libero"]
