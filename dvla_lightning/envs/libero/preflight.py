"""Checks whether off-screen GL works here, and with which settings, without a simulator object."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from dvla_lightning.errors import UserError

GL_BACKENDS = ("egl", "osmesa")  # in order of preference: EGL is the one that can use a GPU

MIN_CONTRAST = 50  # of 255; a cleared buffer spans 0, a picture of LIBERO over 100 (tests/envs/test_libero.py)

GL_REMEDY = "install the GL libraries: apt-get install libegl1 libgl1-mesa-dri libosmesa6 libgl1 libopengl0"

# robosuite 1.4.0 (utils/log_utils.py) opens it for writing when it is imported, whoever it belongs to.
ROBOSUITE_LOG = Path("/tmp/robosuite.log")

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
    from OpenGL import GL
    print(GL.glGetString(GL.GL_RENDERER).decode())
raise SystemExit(0 if int(picture.max()) - int(picture.min()) > 50 else "the picture is blank")
"""

# A driver that renders may still abort beside a CUDA context in the same process.
_WITH_CUDA = "import torch; torch.zeros(1, device='cuda')"


class Probe(NamedTuple):
    """The result of rendering a small frame.

    Attributes:
        problem: the last line of what went wrong; None if the backend works.
        renderer: who drew it, as GL calls it, for example "llvmpipe (LLVM 15.0.6, 256 bits)".
    """

    problem: str | None
    renderer: str = ""

    @property
    def on_cpu(self) -> bool:
        """Whether Mesa drew it in software."""
        return any(name in self.renderer for name in ("llvmpipe", "softpipe", "swrast"))


def is_blank(picture: Any) -> bool:
    """Whether a picture, an array of uint8, shows nothing: its brightest value is about its darkest."""
    return int(picture.max()) - int(picture.min()) < MIN_CONTRAST


def try_gl(backend: str, timeout: float = 60.0, with_cuda: bool = False) -> Probe:
    """Renders one small frame with a backend in a process of its own (a broken driver can crash or hang).

    Args:
        backend: "egl" or "osmesa".
        timeout: seconds before the backend counts as broken.
        with_cuda: allocate memory on the GPU first, as a policy in the same process would.
    """
    command = [sys.executable, "-c", _WITH_CUDA + _PROBE if with_cuda else _PROBE]
    environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Probe(f"no picture after {timeout:.0f} s")
    if done.returncode == 0:
        return Probe(None, done.stdout.strip())
    lines = done.stderr.strip().splitlines()
    return Probe(lines[-1] if lines else f"the process ended with code {done.returncode}")


@cache
def probe_gl() -> str | None:
    """The first GL backend that renders here ("egl" or "osmesa"), or None. About one second, remembered."""
    return next((backend for backend in GL_BACKENDS if try_gl(backend).problem is None), None)


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


def egl_device_problem() -> str | None:
    """Says what robosuite (at its import) or MuJoCo (at the first frame) refuses in MUJOCO_EGL_DEVICE_ID."""
    device, visible = os.environ.get("MUJOCO_EGL_DEVICE_ID"), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if device is None:
        return None
    if not device.isdigit():
        return f"MUJOCO_EGL_DEVICE_ID={device!r} is no number: set it to the index of a GPU, or unset it"
    if visible and device not in visible:  # as robosuite 1.4.0, utils/binding_utils.py, asserts
        return (
            f"MUJOCO_EGL_DEVICE_ID={device} is not among CUDA_VISIBLE_DEVICES={visible}, which robosuite refuses: "
            "set it to one of them, or unset it, and MuJoCo takes the first device that works"
        )
    return None


def robosuite_log_problem() -> str | None:
    """Says why robosuite, which writes a log at a fixed place when it is imported, cannot."""
    try:
        with ROBOSUITE_LOG.open("a"):
            return None
    except OSError as error:
        return f"robosuite cannot write {ROBOSUITE_LOG} ({error.strerror}): ask its owner to delete it"


def require_settings() -> None:
    """Refuses, before anything is imported, settings with which LIBERO fails with an error about something else.

    Raises:
        UserError: saying which setting, and what to do.
    """
    if problem := egl_device_problem() or robosuite_log_problem():
        raise UserError(f"LIBERO cannot run: {problem}")
