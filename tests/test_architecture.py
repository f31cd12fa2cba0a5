"""Holds the import rules: the tree shows the architecture only as long as imports follow it.

Read from the source, without importing anything; imports inside functions and under TYPE_CHECKING count too.
"""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dvla_lightning"

# part of the package    which other parts it may import (itself always); a row names only parts of rows below it
MAY_IMPORT = {
    "__main__":          "cli",
    "cli":               "launch tools callbacks checkpointing module data objectives evaluation rollout policy "
                         "backbones actions diffusion rl envs envs.base errors files paths seeding versions",
    "launch":            "errors files locks paths",
    "tools":             "data objectives evaluation rollout policy backbones "
                         "actions diffusion rl envs envs.base errors files paths seeding versions",
    "callbacks":         "checkpointing module data wiring objectives evaluation rollout policy actions "
                         "diffusion rl envs.base errors files",
    "checkpointing":     "errors files",
    "module":            "wiring objectives evaluation rollout policy backbones actions diffusion rl "
                         "envs.base errors",
    "data":              "wiring objectives evaluation rollout policy backbones actions diffusion rl "
                         "envs.base errors files locks paths seeding",
    "wiring":            "objectives evaluation rollout policy",  # module and data module to each other
    "objectives":        "rollout policy backbones actions diffusion rl envs.base errors",
    "evaluation":        "rollout policy actions diffusion rl envs.base errors files locks paths seeding",
    "rollout":           "policy backbones actions diffusion rl envs.base errors seeding",
    "__init__":          "policy errors",
    "policy":            "backbones actions diffusion rl envs.base errors paths",
    "backbones":         "actions diffusion envs.base errors",
    "actions":           "errors",
    "rl":                "diffusion",
    "diffusion":         "",
    "envs":              "envs.base errors files paths seeding versions",  # simulators
    "envs.base":         "errors",                     # the contract that everybody else programs against
    "files":             "errors",
    "locks":             "",
    "paths":             "errors",
    "errors":            "",
    "seeding":           "",
    "versions":          "",
}  # fmt: skip

# Files that belong to a part without lying in its folder.
SAME_PART = {
    **dict.fromkeys(("policy_directory", "policy_config", "policy_tensors"), "policy"),
    **dict.fromkeys(("policy_parts", "policy_base", "policy_recipe", "policy_check", "value_head"), "policy"),
    **dict.fromkeys(("policy_adapters", "lora_options", "lora_config", "decisions"), "policy"),
    **dict.fromkeys(("lightning_cli", "cli_help", "published_data", "verbs"), "cli"),
    **dict.fromkeys(("update_guard", "learning_rates", "precision"), "module"),
}

# library                which parts may import it; libraries not named here are free
RESERVED = {
    "lightning":         "cli launch module data wiring callbacks checkpointing",
    "pytorch_lightning": "",                  # the old name of the same library: mixing the two breaks isinstance
    "lightning_fabric":  "",
    "torchmetrics":      "module evaluation callbacks",
    **dict.fromkeys(("mujoco", "libero", "robosuite", "bddl", "sapien", "mplib", "curobo", "OpenGL"), "envs"),
}  # fmt: skip

# part                   the only libraries it may import beside Python's own
PURE = {
    "diffusion": "torch",
    "rl": "torch",
    "locks": "filelock",
    "seeding": "numpy",
    **dict.fromkeys(("files", "errors", "paths", "versions"), ""),
}

FORBIDDEN_NAMES = ("utils", "common")


def module_name(path, root):
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module, root):
    """`dvla_lightning.rl.losses` -> `rl`."""
    name = module.removeprefix(root.name).removeprefix(".")
    if not name:
        return "__init__"
    if name == "envs.base" or name.startswith("envs.base."):
        return "envs.base"
    first = name.split(".")[0]
    return SAME_PART.get(first, first)


def imported_modules(path, tree, root, modules):
    """(line, absolute module name) of every import in a file; `from package import name` names the submodule."""
    package = module_name(path, root).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield node.lineno, inner if inner in modules else source


def complaint(part, imported, root):
    """What is wrong with `part` importing a module; None if nothing is."""
    library = imported.split(".")[0]
    if library == root.name:
        target = part_of(imported, root)
        allowed = target == part or target in MAY_IMPORT[part].split() or target == "__init__"
        return None if allowed else f"{part} may not import {target}"
    if library in RESERVED and part not in RESERVED[library].split():
        return f"{part} may not import {library}, only: {RESERVED[library] or 'nobody'}"
    if part in PURE and library not in sys.stdlib_module_names and library not in PURE[part].split():
        return f"{part} may not import {library}, only: {PURE[part] or 'the standard library'}"
    return None


def check(root):
    """All broken rules of a package as `file:line: sentence`."""
    problems = []
    files = sorted(root.rglob("*.py"))
    modules = {module_name(path, root) for path in files}
    for path in files:
        where = path.relative_to(root.parent).as_posix()
        part = part_of(module_name(path, root), root)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(piece in FORBIDDEN_NAMES for piece in module_name(path, root).split(".")):
            problems.append(f"{where}:1: say what is in it; {' and '.join(FORBIDDEN_NAMES)} are no names")
        public = path.stem == "__init__" or not path.stem.startswith("_")
        if public and tree.body and not ast.get_docstring(tree):
            problems.append(f"{where}:1: no module docstring")
        if part not in MAY_IMPORT:
            problems.append(f"{where}:1: {part} has no row in MAY_IMPORT of {Path(__file__).name}")
            continue
        for line, imported in imported_modules(path, tree, root, modules):
            if problem := complaint(part, imported, root):
                problems.append(f"{where}:{line}: {problem}")
    return problems


def circles(root):
    """Groups of modules that import each other, directly or through further ones, each as a sorted tuple."""
    files = {module_name(path, root): path for path in root.rglob("*.py")}
    imports = {}
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imports[name] = {imported for _, imported in imported_modules(path, tree, root, files)} & set(files) - {name}

    def below(name):
        found, left = set(), [name]
        while left:
            new = imports[left.pop()] - found
            found |= new
            left.extend(new)
        return found

    reached = {name: below(name) for name in files}
    return {
        tuple(sorted(other for other in found if name in reached[other]))
        for name, found in reached.items()
        if name in found
    }


def test_the_package_keeps_its_rules():
    assert PACKAGE.is_dir()
    assert not (problems := check(PACKAGE)), "\n".join(problems)


def test_no_modules_import_each_other():
    assert circles(PACKAGE) == set()


def test_the_table_points_one_way():
    below = list(MAY_IMPORT)
    for part, allowed in MAY_IMPORT.items():
        below = below[1:]
        assert set(allowed.split()) <= set(below), f"{part} imports a part of its own row or above"
    assert set(PURE) <= set(MAY_IMPORT)
    assert {part for parts in RESERVED.values() for part in parts.split()} <= set(MAY_IMPORT)


@pytest.fixture
def small_tree(tmp_path):
    """A package that breaks no rule, and a function that adds a file to it."""
    root = tmp_path / "dvla_lightning"

    def add(name, source):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        return root

    add("__init__.py", '"""A package."""\n__version__ = "0"\n')
    add("errors.py", '"""Errors."""\n')
    add("diffusion/__init__.py", "")
    add("diffusion/path.py", '"""Paths."""\nimport math\nfrom torch import Tensor\n')
    add("diffusion/views.py", '"""Views."""\nfrom .path import x\nfrom dvla_lightning.diffusion import path\n')
    add("rl/losses.py", '"""Losses."""\nimport torch\nfrom torch.nn import functional\n')
    add("policy.py", '"""Policy."""\nfrom dvla_lightning import __version__, errors\n')
    add("policy_directory.py", '"""Directory."""\nfrom dvla_lightning.policy import DVLAPolicy\n')
    add("envs/base.py", '"""Contract."""\nimport gymnasium\n')
    add("envs/libero.py", '"""LIBERO."""\nimport robosuite\nfrom dvla_lightning.envs.base import Environment\n')
    add("rollout/worker.py", '"""Worker."""\nfrom dvla_lightning.envs import base\nfrom dvla_lightning import policy\n')
    add("module.py", '"""Module."""\nimport lightning.pytorch as pl\nimport dvla_lightning.policy\n')
    return add


def test_a_good_tree_passes(small_tree):
    root = small_tree("rl/kl.py", '"""KL."""\n')
    assert check(root) == [] and circles(root) == set()


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"policy": "from dvla_lightning import policy_directory"}, "policy policy_directory"),
        ({"rl.losses": "from .kl import k", "rl.kl": "def f():\n    from . import losses"}, "rl.kl rl.losses"),
        (
            {"envs.base": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import dvla_lightning.module"},
            "envs.base module policy",
        ),
        ({"envs.a.__init__": "from .b import x", "envs.a.b": "from dvla_lightning.envs.a import y"}, "envs.a envs.a.b"),
    ],
)
def test_a_circle_is_found(small_tree, files, names):
    small_tree("policy.py", "from dvla_lightning.envs import base\n")
    for module, source in files.items():
        root = small_tree(f"{module.replace('.', '/')}.py", f"{source}\n")
    assert circles(root) == {tuple(f"dvla_lightning.{name}" for name in names.split())}


BROKEN = {
    "downward only": ("policy.py", "from dvla_lightning.rollout.worker import x", "policy may not import rollout"),
    "relative": ("policy.py", "from .rollout import worker", "policy may not import rollout"),
    "relative, two up": ("rl/x.py", "from ..policy import y", "rl may not import policy"),
    "name of a submodule": ("policy.py", "from dvla_lightning import module", "policy may not import module"),
    "plain import": ("rl/x.py", "import dvla_lightning.errors as e", "rl may not import errors"),
    "inside a function": ("rl/x.py", "def f():\n    import numpy", "rl may not import numpy, only: torch"),
    "for types": (
        "diffusion/x.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dvla_lightning.policy import P",
        "diffusion may not import policy",
    ),
    "pure": ("diffusion/x.py", "from numpy.typing import NDArray", "diffusion may not import numpy, only: torch"),
    "trainer": ("objectives/x.py", "from lightning import Trainer", "objectives may not import lightning, only: cli"),
    "old trainer": ("module.py", "import pytorch_lightning", "module may not import pytorch_lightning, only: nobody"),
    "simulator": ("rollout/x.py", "import mujoco", "rollout may not import mujoco, only: envs"),
    "simulator recipe": ("rollout/x.py", "from dvla_lightning.envs.libero import L", "rollout may not import envs"),
    "no docstring": ("rl/x.py", "x = 1", "no module docstring"),
    "grab-bag": ("data/utils.py", "", "utils and common are no names"),
    "grab-bag folder": ("common/x.py", "", "utils and common are no names"),
    "unknown part": ("extras/x.py", "", "extras has no row in MAY_IMPORT"),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_found(small_tree, rule):
    name, source, message = BROKEN[rule]
    docstring = "" if rule == "no docstring" else '"""Doc."""\n'
    problems = check(small_tree(name, f"{docstring}{source}\n"))
    assert problems
    assert all(problem.startswith(f"dvla_lightning/{name}:") for problem in problems)
    assert message in problems[0]
