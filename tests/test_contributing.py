"""CONTRIBUTING.md shows the package as it is: its parts, and the way of an RL step through it."""

import importlib
import re
from fnmatch import fnmatch
from pathlib import Path

from dvla_lightning.cli import main
from tests.test_architecture import MAY_IMPORT

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
TREE = PAGE[PAGE.index("    dvla_lightning/") : PAGE.index("    tests/")]
ROWS = re.findall(r"^\| \d \| `([\w.]+)` \| `([\w/]+)\.py` \|", PAGE, re.MULTILINE)
PICTURE = re.search(r"^    cli\n(?:    .*\n)+", PAGE, re.MULTILINE)[0].splitlines()
TINY = {
    "data.episodes_per_iteration": 5,
    "data.minibatch_size": 64,
    "data.collector.num_envs": 5,
    "trainer.max_epochs": 1,
    "trainer.enable_progress_bar": "false",
}


def test_the_tree_names_every_part():
    package = ROOT / "dvla_lightning"
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    files = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    named = set(re.findall(r"(?<!/)\b[a-z_]+(?:\*?\.py\b|/(?=\s))", TREE)) - {"dvla_lightning/"}
    matched = {name: {part for part in folders | files if fnmatch(part, name)} for name in named}
    assert all(matched.values()) and set.union(*matched.values()) == folders | files


def test_imports_point_down_in_the_picture():
    level = {part: number for number, line in enumerate(PICTURE) for part in line.strip().split(", ")}
    assert {"cli", "module", "data", "policy", "diffusion"} <= set(level) <= set(MAY_IMPORT)
    for part in level:
        for imported in set(MAY_IMPORT[part].split()) & set(level):
            assert level[imported] > level[part], f"{part} may import {imported}"


def test_an_rl_step_takes_the_way_of_the_table(monkeypatch, tmp_path, quiet_logging):
    calls = []
    assert len(ROWS) == 6

    def note(owner, name, label):
        original = getattr(owner, name)

        def and_note(*args, **kwargs):
            calls.append(label)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, and_note)

    for function, file in ROWS:
        module = importlib.import_module(f"dvla_lightning.{file.replace('/', '.')}")
        *owner, name = function.split(".")
        note(getattr(module, owner[0]) if owner else module, name, function)
    monkeypatch.chdir(ROOT)
    options = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    main(["fit", "--config", "configs/rl.yaml", "--trainer.default_root_dir", str(tmp_path), *options])
    assert list(dict.fromkeys(calls)) == [function for function, _ in ROWS]
