"""Changes to how SAPIEN renders: RoboTwin hard-codes ray tracing with shadows, which needs a GPU made for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray  # numpy 1.17 has none


def choose_rendering(shader: str, shadow: bool) -> None:
    """Sets how the next `setup_demo` renders; call it once, after the checkout was entered.

    Args:
        shader: "rt" leaves RoboTwin's ray tracing; "default" rasterises, on any Vulkan device (Mesa's lavapipe too).
        shadow: False turns shadows off: 20 times faster on a CPU, other pictures.
    """
    import sapien.render
    from envs._base_task import Base_Task

    if shader != "rt":
        set_shader = sapien.render.set_camera_shader_dir
        sapien.render.set_camera_shader_dir = lambda _: set_shader(shader)
        sapien.render.set_ray_tracing_denoiser = lambda _: None  # OIDN logs errors where there is no GPU
    if not shadow:
        setup_scene = Base_Task.setup_scene
        Base_Task.setup_scene = lambda self, **kwargs: setup_scene(self, **dict(kwargs, shadow=False))


def device_summary() -> str:
    """SAPIEN's descriptions of the devices it can render on, one line each."""
    import sapien.render

    summary = getattr(sapien.render, "get_device_summary", None)
    return str(summary()).strip() if summary else "unknown (this SAPIEN cannot tell)"


def picture(observation: Mapping[str, Any], camera: str, size: int | None) -> NDArray[np.uint8]:
    """One camera's picture, (H, W, 3) uint8, squeezed to (size, size, 3) where a size is given.

    Raises:
        UserError: if RoboTwin does not show that camera.
    """
    shown = observation["observation"]
    name = f"{camera}_camera"
    if name not in shown or "rgb" not in shown[name]:
        known = [key.rsplit("_camera", 1)[0] for key in shown if "rgb" in shown[key]]
        raise UserError(f"RoboTwin shows no camera {camera!r} here; choose from: {', '.join(known)}")
    pixels = np.ascontiguousarray(shown[name]["rgb"][..., :3], dtype=np.uint8)
    return pixels if size is None else resize(pixels, size)


def resize(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Averages over the area of each new pixel: (H, W, 3) uint8 -> (size, size, 3) uint8."""
    rows, columns = (_area_weights(length, size) for length in pixels.shape[:2])
    mixed = np.einsum("ih,hwc->iwc", rows, pixels.astype(np.float32))
    return np.rint(np.einsum("jw,iwc->ijc", columns, mixed)).astype(np.uint8)


def _area_weights(length: int, size: int) -> NDArray[np.float32]:
    """(size, length) float32; row i holds the share of each old pixel in new pixel i."""
    edges = np.arange(size + 1) * (length / size)
    old = np.arange(length)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return (np.clip(overlap, 0, None) * (size / length)).astype(np.float32)
