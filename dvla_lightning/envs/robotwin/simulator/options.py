"""Options of a run of RoboTwin, in plain types; `envs/robotwin/recipe.py` documents each for users."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Options:
    """Options of `recipe.RoboTwin`; `max_steps` has every task, `num_train_scenes` limits the states of training."""

    root: str
    assets_root: str | None = None
    task_config: str = "demo_clean"
    embodiment: list[str | float] = field(default_factory=list)
    action_type: str = "qpos"
    action_dim: int = 14
    execution: str = "per_action"
    cameras: list[str] = field(default_factory=lambda: ["head", "left", "right"])
    camera_type: str | None = None
    image_size: int | None = None
    train_instructions: str = "seen"
    eval_instructions: str = "unseen"
    validity: str = "expert"
    train_seeds: dict[str, list[int]] = field(default_factory=dict)
    selection_seeds: dict[str, list[int]] = field(default_factory=dict)
    eval_seeds: dict[str, list[int]] = field(default_factory=dict)
    cache_dir: str = ""
    first_eval_seed: int = 100_000
    num_train_scenes: int = 1000
    max_steps: dict[str, int] = field(default_factory=dict)
    shader: str = "rt"
    shadow: bool = True
    planner: str = "checkout"
