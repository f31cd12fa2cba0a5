"""Pictures of a MuJoCo state, rendered only when asked for."""

from __future__ import annotations

import atexit
import weakref
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from dvla_lightning.envs.libero.preflight import GL_REMEDY
from dvla_lightning.errors import UserError


class Cameras:
    """Renders one compiled model; makes its GL contexts at the first picture.

    Args:
        model: the MuJoCo model. In fast rendering its antialiasing is switched off, in place.
        faithful: with 4x antialiasing and reflections, as robosuite renders.
    """

    def __init__(self, model: Any, faithful: bool) -> None:
        self.model = model
        self._faithful = faithful
        self._renderers: dict[int, mujoco.Renderer] = {}
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision shapes
        if not faithful:
            model.vis.quality.offsamples = 0
        # GL contexts that outlive the interpreter's modules, or EGL's display, print errors while they are collected.
        self._finalizer = weakref.finalize(self, _close_all, self._renderers)

    def picture(self, data: Any, camera: str, size: int) -> NDArray[np.uint8]:
        """Renders a square picture.

        Args:
            data: the MuJoCo state.
            camera: MuJoCo's name of the camera.
            size: height and width in pixels.

        Returns:
            (size, size, 3) uint8, upright.

        Raises:
            UserError: if GL does not work.
        """
        if size not in self._renderers:
            self._renderers[size] = self._make_renderer(size)
            # Exit functions run backwards: only now, after the first frame has imported mujoco.egl, whose own takes the
            # display away. The finalizer's turn at the end of Python comes later.
            atexit.unregister(self._finalizer)
            atexit.register(self._finalizer)
        renderer = self._renderers[size]
        renderer.update_scene(data, camera=camera, scene_option=self._options)
        return renderer.render()

    def _make_renderer(self, size: int) -> mujoco.Renderer:
        buffer = self.model.vis.global_
        buffer.offwidth, buffer.offheight = max(buffer.offwidth, size), max(buffer.offheight, size)
        try:
            renderer = mujoco.Renderer(self.model, size, size)
        except Exception as error:  # every GL library has its own exceptions
            raise UserError(
                f"MuJoCo cannot render here ({error}); try gl_backend egl or osmesa, or {GL_REMEDY}"
            ) from error
        if not self._faithful:
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        return renderer

    def close(self) -> None:
        """Closes the GL contexts."""
        atexit.unregister(self._finalizer)
        self._finalizer()


def _close_all(renderers: dict[int, mujoco.Renderer]) -> None:
    for renderer in renderers.values():
        renderer.close()
    renderers.clear()
