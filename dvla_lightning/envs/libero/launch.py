"""Imports LIBERO and builds one task's simulator, quietly and with our paths; every failure is one sentence."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dvla_lightning.envs.libero.assets import ASSETS_REMEDY
from dvla_lightning.envs.libero.preflight import GL_BACKENDS, GL_REMEDY, choose_gl, require_settings
from dvla_lightning.envs.libero.suites import INSTALL_REMEDY, package_root
from dvla_lightning.errors import UserError

CONTROL_FREQUENCY = 20  # Hz; LIBERO's demonstrations and evaluations


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what robosuite and LIBERO print and log while they are imported and constructed."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


@contextlib.contextmanager
def _config_folder() -> Iterator[None]:
    """A config.yaml for LIBERO's import, which asks on stdin for a data folder when it finds none."""
    root = package_root()
    entries = {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": root.parent / "datasets",
        "assets": root / "assets",
    }
    previous = os.environ.get("LIBERO_CONFIG_PATH")
    with tempfile.TemporaryDirectory(prefix="dvla-libero-") as folder:
        text = "".join(f"{key}: '{value}'\n" for key, value in entries.items())
        Path(folder, "config.yaml").write_text(text, encoding="utf-8")
        os.environ["LIBERO_CONFIG_PATH"] = folder
        try:
            yield
        finally:
            os.environ.pop("LIBERO_CONFIG_PATH")
            if previous is not None:
                os.environ["LIBERO_CONFIG_PATH"] = previous


def _loaded_backend() -> str | None:
    """The GL backend of a MuJoCo that this process has imported already, if it can render off screen."""
    context = getattr(sys.modules.get("mujoco"), "GLContext", None)
    return next((name for name in GL_BACKENDS if name in getattr(context, "__module__", "")), None)


def import_libero(gl_backend: str, assets: Path | None) -> None:
    """Chooses the GL backend, then imports MuJoCo, robosuite and LIBERO.

    Args:
        gl_backend: "auto", "egl" or "osmesa".
        assets: LIBERO's asset folder; None leaves the search to hf-libero.

    Raises:
        UserError: if something is not installed, a setting makes rendering impossible, or MuJoCo was imported before
            with another GL backend.
    """
    require_settings()
    backend = _loaded_backend() if gl_backend == "auto" else None
    backend = backend or choose_gl(gl_backend)
    # Read once, at import, by MuJoCo and robosuite, and by PyOpenGL; the last is inherited from a parent that renders.
    os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = backend
    try:
        with quiet(), _config_folder():
            mujoco = importlib.import_module("mujoco")
            libero: Any = importlib.import_module("libero.libero")
            importlib.import_module("libero.libero.envs")
    except ModuleNotFoundError as error:
        raise UserError(f"LIBERO needs the package {error.name!r}, which is not installed: {INSTALL_REMEDY}") from error
    except (ImportError, AttributeError, OSError) as error:  # PyOpenGL raises any of these without its library
        raise UserError(f"LIBERO cannot be imported with MUJOCO_GL={backend} ({error}); {GL_REMEDY}") from error
    if backend not in mujoco.GLContext.__module__:
        raise UserError(
            f"MuJoCo was imported in this process before LIBERO and cannot change to {backend} any more; "
            f"set MUJOCO_GL={backend} in the shell"
        )
    if assets is not None:
        libero._assets_path_cache = str(assets)  # hf-libero 0.1.4 ignores the `assets` key of its own config.yaml


def build_simulator(bddl: Path, hard_reset: bool) -> Any:
    """Builds LIBERO's `ControlEnv` for a task, without cameras: `cameras.py` renders, and only on demand.

    Raises:
        UserError: if the task's files or assets are missing.
    """
    from libero.libero.envs.env_wrapper import ControlEnv

    if not bddl.is_file():
        raise UserError(f"the task file {bddl} is missing from the installed hf-libero: {INSTALL_REMEDY}")
    try:
        with quiet():
            return ControlEnv(
                bddl_file_name=str(bddl),
                use_camera_obs=False,
                has_offscreen_renderer=False,
                hard_reset=hard_reset,
                control_freq=CONTROL_FREQUENCY,
                ignore_done=True,  # we count the steps
            )
    except (FileNotFoundError, ValueError) as error:
        text = str(error)
        if isinstance(error, ValueError) and "opening file" not in text and "not found" not in text:
            raise
        raise UserError(
            f"LIBERO's assets are incomplete for {bddl.stem} ({text.strip().splitlines()[0]}); {ASSETS_REMEDY}"
        ) from error
