"""`dvla doctor` for LIBERO: finds before a run why it would hang, render nothing or miss a file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dvla_lightning.envs.base import Environment
from dvla_lightning.envs.check import Check, NoAnswer, Simulator
from dvla_lightning.envs.libero.assets import ASSETS_REMEDY, asset_files, missing_assets, resolve_assets, shorten
from dvla_lightning.envs.libero.preflight import (
    GL_BACKENDS,
    GL_REMEDY,
    Probe,
    egl_device_problem,
    is_blank,
    robosuite_log_problem,
    try_gl,
)
from dvla_lightning.errors import UserError
from dvla_lightning.files import atomic_file
from dvla_lightning.versions import installed_version

PACKAGES = ("hf-libero", "mujoco", "robosuite", "bddl")
INSTALL_LIBERO = "run `make libero`, or pip install 'dvla-lightning[libero]'"
FRAME_TIMEOUT = 180.0  # seconds; a first reset takes about 10 on an idle core, a driver that deadlocks takes forever
NUM_TIMED_FRAMES = 3  # the first pictures of a GL context are slow


def check_libero(
    required: bool, suites: Sequence[str], start: Callable[[Environment], Simulator], pictures: Path
) -> Iterator[Check]:
    """Checks LIBERO.

    Args:
        required: what does not work is broken, not absent.
        suites: which files are needed.
        start: starts a simulator.
        pictures: folder for one picture per camera.
    """
    absent = False if required else None
    versions = {package: installed_version(package) for package in PACKAGES}
    if missing := [package for package, version in versions.items() if version is None]:
        yield Check(absent, "LIBERO", f"not installed ({', '.join(missing)} missing)", INSTALL_LIBERO)
        return
    yield Check(True, "LIBERO", ", ".join(f"{package} {version}" for package, version in versions.items()))
    yield from _known_hangs()
    yield from _settings(absent)
    probes = {backend: try_gl(backend) for backend in GL_BACKENDS}
    chosen = _chosen(probes)
    yield from _rendering(probes, chosen, absent)
    complete = None
    for suite in suites:
        yield (check := _files(suite, absent))
        complete = complete or (suite if check.ok else None)
    if chosen is not None and probes[chosen].problem is None and complete:
        yield _frame(complete, probes[chosen], start, pictures, absent)


def _known_hangs() -> Iterator[Check]:
    """Reports what would stop LIBERO for ever without an error, and what this package does about it."""
    config = Path(os.environ.get("LIBERO_CONFIG_PATH", "~/.libero")).expanduser() / "config.yaml"
    if config.is_file():
        yield Check(True, "LIBERO's question", f"answered by {config}")
    else:
        yield Check(
            None,
            "LIBERO's question",
            f"there is no {config}, so the first `import libero.libero` asks on stdin for a data folder: a job waits "
            "for ever or dies with EOFError; dvla answers by itself",
            "for scripts of your own: import it once in a terminal, and answer N",
        )
    yield Check(
        True,
        "LIBERO workers",
        "spawned, never forked, because GL and CUDA hang after a fork; one that does not answer in reset_timeout or "
        "step_timeout seconds is killed and named, and its episode runs again in a new one",
    )


def _settings(absent: bool | None) -> Iterator[Check]:
    device = os.environ.get("MUJOCO_EGL_DEVICE_ID")
    fine = f"MUJOCO_EGL_DEVICE_ID={device}" if device else "the first that works (MUJOCO_EGL_DEVICE_ID is not set)"
    problem = egl_device_problem()
    yield Check(problem is None or absent, "EGL device", problem or fine)
    if problem := robosuite_log_problem():
        yield Check(absent, "robosuite", problem)


def _chosen(probes: dict[str, Probe]) -> str | None:
    """Names the backend that an environment with `gl_backend: auto` takes; see `preflight.choose_gl`."""
    configured = os.environ.get("MUJOCO_GL", "")
    if configured in GL_BACKENDS:
        return configured
    return next((backend for backend, probe in probes.items() if probe.problem is None), None)


def _rendering(probes: dict[str, Probe], chosen: str | None, absent: bool | None) -> Iterator[Check]:
    import torch

    for backend, probe in probes.items():
        # One working backend is enough.
        finding = probe.problem or f"renders with {probe.renderer}"
        yield Check(probe.problem is None or None, f"GL {backend}", finding, GL_REMEDY)
    works = chosen is not None and probes[chosen].problem is None
    configured = os.environ.get("MUJOCO_GL", "")
    ignored = f"; MUJOCO_GL={configured} is ignored, it needs a display" if configured and configured != chosen else ""
    finding = f"MuJoCo will use {chosen}{ignored}" if chosen else f"no GL backend works{ignored}"
    yield Check(works or absent, "rendering", finding, f"{GL_REMEDY}; or set MUJOCO_GL to a backend that works")
    if chosen is None or not works or not torch.cuda.is_available():
        return
    if probes[chosen].on_cpu:
        yield Check(
            None,
            "GPU rendering",
            f"GL draws on the CPU ({probes[chosen].renderer}), although there is a GPU",
            "install the driver's EGL library; a container needs NVIDIA_DRIVER_CAPABILITIES=all, which adds graphics",
        )
    problem = try_gl(chosen, with_cuda=True).problem
    yield Check(
        problem is None or None,
        "GL beside CUDA",
        problem or "a picture beside a CUDA context in one process works",
        "keep simulators out of the policy's process: num_workers of the collector at least 1",
    )


def _files(suite: str, absent: bool | None) -> Check:
    missing, root = missing_assets(None, [suite]), resolve_assets(None)
    name = f"assets of {suite}"
    if missing:
        num = len(asset_files(suite))
        return Check(absent, name, f"{min(len(missing), num)} of {num} missing: {shorten(missing, 10)}", ASSETS_REMEDY)
    if root is None:
        return Check(None, name, "hf-libero will download them at the first run", "without a network: " + ASSETS_REMEDY)
    return Check(True, name, f"{len(asset_files(suite))} files in {root}")


def _frame(
    suite: str, probe: Probe, start: Callable[[Environment], Simulator], pictures: Path, absent: bool | None
) -> Check:
    """Builds one task in a child process (it may hang), times and saves one frame per camera."""
    from dvla_lightning.envs.libero import Libero

    environment = Libero(suite=suite)
    simulator = start(environment)
    started_at = time.perf_counter()
    try:
        images = simulator.reset(environment.tasks[0], "heldout", FRAME_TIMEOUT).observation["images"]
        built = time.perf_counter() - started_at
        no_move = np.zeros((1, environment.action_dim), np.float32)
        drawn = [simulator.call("execute", no_move, FRAME_TIMEOUT) for _ in range(NUM_TIMED_FRAMES)]
        seconds = [transition.rendering_seconds for transition in drawn]
    except UserError as error:
        return Check(absent, "LIBERO frame", str(error))  # says itself what to do
    except NoAnswer as error:
        remedy = f"try the other backend: MUJOCO_GL={' or '.join(GL_BACKENDS)}; or {INSTALL_LIBERO}"
        return Check(absent, "LIBERO frame", str(error), remedy)
    finally:
        simulator.close()
    files = _save(images, pictures)
    if blank := [camera for camera, image in images.items() if is_blank(image)]:
        return Check(absent, "LIBERO frame", f"blank picture from {', '.join(blank)}", "try MUJOCO_GL=osmesa")
    return Check(
        True,
        "LIBERO frame",
        f"a task of {suite} built in {built:.1f} s; {1000 * min(seconds) / len(images):.0f} ms per frame of "
        f"{environment.image_size} px with {probe.renderer}; look at {', '.join(files)}",
    )


def _save(images: dict[str, np.ndarray], folder: Path) -> list[str]:
    from PIL import Image

    paths = [folder / f"libero-{camera}.png" for camera in images]
    for path, image in zip(paths, images.values(), strict=True):
        with atomic_file(path) as file:
            Image.fromarray(image).save(file, format="png")
    return [str(path) for path in paths]
