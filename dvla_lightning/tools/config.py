"""`dvla config`: lists the shipped configurations and small policies, and copies them into the working directory."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dvla_lightning.errors import UserError
from dvla_lightning.files import atomic_file
from dvla_lightning.paths import writable_directory
from dvla_lightning.tools.parser import OneSentenceParser

POLICY = re.compile(r"checkpoints/[\w.-]+")


def main(args: Sequence[str]) -> None:
    """Runs the command line."""
    description = "The shipped configurations and small policies."
    verbs = (parser := OneSentenceParser(prog="dvla config", description=description)).add_subcommands()
    verbs.add_subcommand("ls", OneSentenceParser(), help="one line for each")
    usage = "dvla config cp [--force] NAME [DEST]"
    cp = OneSentenceParser(usage=usage, description="Copies one, with the policies that it names, or all.")
    cp.add_argument("name", help="a name from `dvla config ls`, or all; short ones such as rl and tabletop-sft will do")
    cp.add_argument("dest", nargs="?", default=".", help="directory below which it gets the same name")
    cp.add_argument("--force", action="store_true", help="overwrite what is there")
    verbs.add_subcommand("cp", cp, help="copy one, or all, into the working directory")
    config = parser.parse_args(list(args))
    if config.subcommand == "ls":
        print(listing())
    else:
        print("\n".join(map(str, copy(config.cp.name, config.cp.dest, config.cp.force))))


def shipped() -> Path:
    """The folder that holds configs/ and checkpoints/: of this package in a wheel, around it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "shipped"
    return inside if inside.is_dir() else package.parent


def entries() -> list[str]:
    """Names of all configurations and policies, relative to `shipped`."""
    root = shipped()
    paths = [*root.glob("configs/**/*.yaml"), *(config.parent for config in root.glob("checkpoints/*/config.json"))]
    if not paths:
        raise UserError(f"{root} holds no configurations: install the wheel of this package, or a checkout of it")
    return sorted((path.relative_to(root).as_posix() for path in paths), key=lambda name: (name.count("/"), name))


def listing() -> str:
    """A line for each: the first comment of a configuration, the title of a policy's card."""
    names = entries()
    width = max(map(len, names))
    return "\n".join(f"{name:<{width}}  {_title(shipped() / name)}" for name in names)


def copy(name: str, dest: str = ".", force: bool = False) -> list[Path]:
    """Copies one of `entries`, or all.

    Args:
        name: one of them, or "all". The policies that a configuration names come along.
        dest: the directory below which each gets its own name.
        force: overwrite what is there.

    Returns:
        The paths that were written. Policies that came along and were there before stay as they are.

    Raises:
        UserError: for an unknown name, or where something would be overwritten without `force`, or would be mixed.
    """
    root = shipped()
    folder = writable_directory(dest, "DEST")
    if folder.suffix in (".yaml", ".yml"):
        raise UserError(f"DEST {dest}: give the directory to put configs/ and checkpoints/ into")
    wanted = entries() if name == "all" else [_find(name)]
    along = [policy for policy in _policies(wanted) if policy not in wanted and not os.path.lexists(folder / policy)]
    for each in wanted:
        if os.path.lexists(folder / each) and not force:
            raise UserError(f"{folder / each} exists: give another directory, or overwrite it with --force")
        if strangers := _files(folder / each) - _files(root / each):
            raise UserError(
                f"{folder / each} holds {min(strangers)}, which the shipped one does not have: give another directory"
            )
    for each in (*wanted, *along):
        for file in _files(root / each):
            with atomic_file(folder / each / file) as out:
                out.write((root / each / file).read_bytes())
    return [folder / each for each in (*wanted, *along)]


def _find(name: str) -> str:
    """Finds the entry that is meant: its folder and ending may be left out.

    Raises:
        UserError: if there is none.
    """
    given, names = Path(name).as_posix(), entries()
    for candidate in (given, f"configs/{given}", f"configs/{given}.yaml", f"{given}.yaml", f"checkpoints/{given}"):
        if candidate in names:
            return candidate
    near = difflib.get_close_matches(given, names, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"{name} is no shipped configuration or policy: {meant}`dvla config ls` lists them")


def _policies(names: Sequence[str]) -> Iterator[str]:
    """The policies that configurations name, each once."""
    texts = [(shipped() / name).read_text(encoding="utf-8") for name in names if name.endswith(".yaml")]
    yield from sorted({policy for text in texts for policy in POLICY.findall(text)} & set(entries()))


def _files(path: Path) -> set[Path]:
    """The files below a directory, relative to it; "." for a file itself."""
    return {Path()} if path.is_file() else {file.relative_to(path) for file in path.rglob("*") if file.is_file()}


def _title(path: Path) -> str:
    """The first line of a configuration or of a policy's card, without its mark."""
    text = (path if path.is_file() else path / "README.md").read_text(encoding="utf-8")
    return text.splitlines()[0].lstrip("# ").rstrip(":")
