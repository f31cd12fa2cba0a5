"""The options of LIBERO episodes as plain data; `recipe.Libero` documents each of them for users."""

from __future__ import annotations

from dataclasses import dataclass

from dvla_lightning.envs.libero.protocols import Protocol

ACTION_DIM = 7  # hand translation 3, rotation 3, gripper 1
PROPRIOCEPTION_DIM = 8

# Our camera names -> MuJoCo's.
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}


@dataclass(frozen=True)
class LiberoOptions:
    """Options of `recipe.Libero`, all decided; `rules` are the constants of the protocol."""

    suite: str
    rules: Protocol | None
    assets_dir: str | None
    image_size: int
    cameras: tuple[str, ...]
    rendering: str
    reset_mode: str
    gl_backend: str
    max_steps: int
    num_wait_steps: int
    state: str
    gripper: str
    train_on_published_states: bool
