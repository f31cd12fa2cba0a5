"""A checkout of RoboTwin: which layout it has, how to enter it, and what it holds."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import UserError

REPOSITORY = "https://github.com/RoboTwin-Platform/RoboTwin"
ASSETS_REMEDY = (
    "unpack embodiments.zip and objects.zip (and background_texture.zip for demo_randomized) of the Hugging Face data "
    "set TianxingChen/RoboTwin2.0 into {}, as script/_download_assets.sh of the checkout does"
)

# `import envs` itself reads these (stable_2.0 13c3c47).
IMPORTED_ASSETS = ("objects/objaverse/list.json", "objects/same.json")

# Models are named 020_hammer and the like, in the source of the tasks that use them.
MODEL_NAME = re.compile(r"""["'](\d{3}_[A-Za-z0-9_-]+)["']""")


class Checkout:
    """A checkout on disk; nothing of it is imported before `enter`.

    Args:
        root: folder of the checkout.
        assets_root: folder that holds `assets/`; None takes the checkout.

    Attributes:
        layout: "stable_2.0", "main" or "RLinf_support".
        configs: folder of the task configurations.

    Raises:
        UserError: if `root` is no checkout, or one of an unknown layout.
    """

    def __init__(self, root: str, assets_root: str | None = None) -> None:
        self.root = Path(root).expanduser().resolve()
        self.assets = (Path(assets_root).expanduser().resolve() if assets_root else self.root) / "assets"
        if not (self.root / "envs" / "_base_task.py").is_file():
            raise UserError(
                f"no RoboTwin checkout at {self.root} (no envs/_base_task.py): git clone -b stable_2.0 {REPOSITORY}, "
                "and name its folder as `root` or in the environment variable ROBOTWIN_ROOT"
            )
        if (self.root / "env_cfg" / "task_config").is_dir():
            self.layout, self.configs = "main", self.root / "env_cfg" / "task_config"
        elif (self.root / "task_config").is_dir():
            is_rlinf = (self.root / "robotwin" / "envs" / "vector_env.py").is_file()
            self.layout, self.configs = "RLinf_support" if is_rlinf else "stable_2.0", self.root / "task_config"
        else:
            raise UserError(
                f"the RoboTwin checkout at {self.root} has a layout that this release does not know (neither "
                "task_config/ nor env_cfg/task_config/): check out branch stable_2.0, main or RLinf_support"
            )

    def commit(self) -> str:
        """The checked out commit, followed by "-dirty" if tracked files were changed; "unknown" without git."""
        command = ["git", "-C", str(self.root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return "unknown"
        return done.stdout.decode().strip() or "unknown"

    def enter(self) -> None:
        """Makes the checkout importable and its relative paths valid: changes sys.path and the working directory.

        Raises:
            UserError: if assets are missing, or another `envs` hides the checkout's.
        """
        self.require_assets(IMPORTED_ASSETS)
        for folder in (self.root / "description" / "utils", self.root):
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
        os.chdir(str(self.assets.parent))  # the code says ./assets/...
        os.environ.setdefault("ASSETS_PATH", str(self.assets.parent))  # RLinf_support and main look here
        found = Path(importlib.import_module("envs._GLOBAL_CONFIGS").CONFIGS_PATH).resolve()
        if found != self.configs:
            raise UserError(
                f"`import envs` finds the configurations in {found}, not in {self.configs}: another RoboTwin is "
                "imported here already, or comes first in PYTHONPATH"
            )

    def load(self, path: str) -> dict[str, Any]:
        """Reads a YAML file; `path` is relative to the folder of configurations.

        Raises:
            UserError: if it is missing.
        """
        import yaml  # RoboTwin's own requirement

        file = self.configs / path
        if not file.is_file():
            known = sorted(p.stem for p in self.configs.glob("*.yml") if not p.stem.startswith("_"))
            raise UserError(f"RoboTwin has no configuration {file}; choose from: {', '.join(known)}")
        return yaml.safe_load(file.read_text(encoding="utf-8"))

    def make_task(self, name: str) -> Any:
        """Makes an object of the class envs.<name>.<name>.

        Raises:
            UserError: if this checkout has no such task.
        """
        if not (self.root / "envs" / f"{name}.py").is_file():
            raise UserError(f"the RoboTwin checkout at {self.root} has no task {name!r} (no envs/{name}.py)")
        return getattr(importlib.import_module(f"envs.{name}"), name)()

    def task_models(self, name: str) -> list[str]:
        """Names of the models that the source of a task mentions."""
        file = self.root / "envs" / f"{name}.py"
        return sorted(set(MODEL_NAME.findall(file.read_text(encoding="utf-8")))) if file.is_file() else []

    def missing_models(self, name: str) -> list[str]:
        """The models of a task that are not among the assets."""
        return [model for model in self.task_models(name) if not (self.assets / "objects" / model).is_dir()]

    def require_assets(self, names: Sequence[str]) -> None:
        """Raises UserError for the first of some paths below `assets/` that does not exist."""
        missing = [name for name in names if not (self.assets / name).exists()]
        if missing:
            raise UserError(
                f"RoboTwin's assets are incomplete: no {self.assets / missing[0]}; {ASSETS_REMEDY.format(self.assets)}"
            )
