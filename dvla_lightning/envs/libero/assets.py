"""LIBERO's meshes, textures and scene XML: where they are, and which files a suite lacks. Imports no simulator."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from dvla_lightning.envs.libero.suites import MAX_STEPS, package_root
from dvla_lightning.errors import UserError
from dvla_lightning.paths import local_path

# One line per file: its path in the asset folder, then the suites whose tasks open it. Written by
# `python -m benchmarks.libero_survey --manifest <this file>`, which watches all 130 tasks being built.
MANIFEST = Path(__file__).with_name("asset_files.txt")

# hf-libero 0.1.4 (utils/download_utils.py) takes its download for complete as soon as these sub-folders exist.
DOWNLOADED_FOLDERS = ("articulated_objects", "stable_scanned_objects", "turbosquid_objects", "stable_hope_objects")

ASSETS_REMEDY = (
    "point assets_dir (or the environment variable LIBERO_ASSETS) at a complete asset folder; if it is hf-libero's "
    "download that is incomplete, delete it, and hf-libero fetches it again at the next run with a network"
)


@cache
def asset_files(suite: str) -> tuple[str, ...]:
    """Paths, relative to the asset folder, of all files that the tasks of a suite open."""
    lines = [line.split() for line in MANIFEST.read_text(encoding="utf-8").splitlines()]
    return tuple(path for path, *suites in lines if suite in suites)


def resolve_assets(assets_dir: str | None) -> Path | None:
    """The asset folder that LIBERO will use.

    Args:
        assets_dir: what the user asked for.

    Returns:
        The argument, else LIBERO_ASSETS, else the places where hf-libero looks: its own folder in site-packages, then
        its download. None if there is nothing yet, so that hf-libero will download.
    """
    if chosen := assets_dir or os.environ.get("LIBERO_ASSETS"):
        return local_path(chosen, "assets_dir or LIBERO_ASSETS").resolve()
    if (own := package_root() / "assets").is_dir():
        return own
    download = Path.home() / ".cache" / "libero" / "assets"
    return download if all((download / name).is_dir() for name in DOWNLOADED_FOLDERS) else None


def missing_assets(assets_dir: str | None, suites: Iterable[str] = tuple(MAX_STEPS)) -> list[str]:
    """Names the files that an asset folder lacks.

    Args:
        assets_dir: as in `resolve_assets`.
        suites: whose tasks shall run.

    Returns:
        Full paths of the missing files; only the folder itself if it does not exist; nothing if hf-libero will
        download.
    """
    root = resolve_assets(assets_dir)
    if root is None:
        return []
    if not root.is_dir():
        return [str(root)]
    files = dict.fromkeys(file for suite in suites for file in asset_files(suite))
    return [str(root / file) for file in files if not (root / file).is_file()]


def require_assets(assets_dir: str | None, suite: str) -> Path | None:
    """Finds the asset folder and checks that it is complete.

    Raises:
        UserError: naming what is missing.
    """
    if missing := missing_assets(assets_dir, [suite]):
        raise UserError(f"LIBERO's assets are incomplete for {suite}: no {shorten(missing)}; {ASSETS_REMEDY}")
    return resolve_assets(assets_dir)


def shorten(names: list[str], at_most: int = 5) -> str:
    """Lists the first names, and how many more there are."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more
