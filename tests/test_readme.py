"""What the README tells people to type works."""

import re
import shlex
from pathlib import Path

import pytest

from dvla_lightning import cli

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
    if line.startswith(".venv/bin/dvla")
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_parse(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    if any("libero" in word for word in words):
        pytest.importorskip("mujoco")
    ending = [] if words[0] == "doctor" else ["--print_config"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, *ending] if ending else ["doctor", "--help"])
    assert stop.value.code in (0, None)
    assert capsys.readouterr().out


def test_python_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks = [block for language, block in BLOCKS if language == "python"]
    assert blocks
    for block in blocks:
        scope = {}
        exec(block, scope)
        assert scope["actions"].shape == (4, 2) and scope["info"]["num_env_steps"] > 0


def test_make_targets_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test", "lint", "libero"} <= set(targets)
    assert all(f"make {name}" in (ROOT / "README.md").read_text() for name in ("demo", "test", "libero"))
