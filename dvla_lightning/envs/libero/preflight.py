"""Checks that need no simulator object: does off-screen GL work here, are LIBERO's asset files there."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from dvla_lightning.errors import UserError

GL_BACKENDS = ("egl", "osmesa")  # in order of preference: EGL is the one that can use a GPU

GL_REMEDY = "install the GL libraries: apt-get install libegl1 libgl1-mesa-dri libosmesa6 libgl1 libopengl0"

# Sub-folders that every complete set of LIBERO assets has.
ASSET_FOLDERS = (
    "articulated_objects",
    "scenes",
    "stable_hope_objects",
    "stable_scanned_objects",
    "textures",
    "turbosquid_objects",
)

# A lit sphere in 32 x 32 pixels: its picture has bright and dark pixels exactly if rendering really works.
_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom size='.5' rgba='1 .5 .2 1'/>"
    "<camera name='c' pos='0 0 3'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data, camera="c")
    picture = renderer.render()
raise SystemExit(0 if int(picture.max()) - int(picture.min()) > 50 else "the picture is blank")
"""


def try_gl(backend: str, timeout: float = 60.0) -> str | None:
    """Renders one small frame with a backend in a process of its own (a broken driver can crash or hang).

    Args:
        backend: "egl" or "osmesa".
        timeout: seconds before the backend counts as broken.

    Returns:
        None if it works, else the last line of what went wrong.
    """
    command = [sys.executable, "-c", _PROBE]
    try:
        done = subprocess.run(
            command, env={**os.environ, "MUJOCO_GL": backend}, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return f"no picture after {timeout:.0f} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"the process ended with code {done.returncode}"


@cache
def probe_gl() -> str | None:
    """The first GL backend that renders here ("egl" or "osmesa"), or None. About one second, remembered."""
    return next((backend for backend in GL_BACKENDS if try_gl(backend) is None), None)


def choose_gl(requested: str) -> str:
    """The backend to use: the requested one; for "auto" the environment's MUJOCO_GL, else the first that works.

    Raises:
        UserError: if no backend works.
    """
    if requested != "auto":
        return requested
    configured = os.environ.get("MUJOCO_GL", "")
    chosen = configured if configured in GL_BACKENDS else probe_gl()
    if chosen is None:
        raise UserError(f"MuJoCo can render neither with EGL nor with OSMesa here; {GL_REMEDY}")
    return chosen


def resolve_assets(assets_dir: str | None) -> Path | None:
    """The asset folder that was asked for: the argument, else LIBERO_ASSETS, else None (hf-libero finds its own)."""
    chosen = assets_dir or os.environ.get("LIBERO_ASSETS")
    return Path(chosen).expanduser().resolve() if chosen else None


def missing_assets(assets_dir: str | None) -> list[str]:
    """Names the sub-folders that an asset folder lacks.

    Args:
        assets_dir: the folder; None takes LIBERO_ASSETS, and the answer is empty if that is unset too, because then
            hf-libero looks in its own places and downloads what it does not find.

    Returns:
        Paths of the missing folders; only the folder itself if it does not exist.
    """
    root = resolve_assets(assets_dir)
    if root is None:
        return []
    if not root.is_dir():
        return [str(root)]
    return [str(root / name) for name in ASSET_FOLDERS if not (root / name).is_dir()]


def require_assets(assets_dir: str | None) -> Path | None:
    """`resolve_assets`, checked.

    Raises:
        UserError: naming what is missing.
    """
    missing = missing_assets(assets_dir)
    if missing:
        raise UserError(
            f"LIBERO's meshes and textures are missing: no {missing[0]}; point assets_dir (or the environment "
            "variable LIBERO_ASSETS) at an unpacked asset folder, or unset it to let hf-libero download them"
        )
    return resolve_assets(assets_dir)
