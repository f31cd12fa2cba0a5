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


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A working directory as the README describes it for those who have no clone."""
    folder = tmp_path_factory.mktemp("copied")
    cli.main(["config", "cp", "all", str(folder)])
    return folder


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_parse(words, copied, monkeypatch, capsys):
    monkeypatch.chdir(copied)
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


def test_the_control_loop_draws_anew_at_every_decision_and_its_episode_comes_out_again(monkeypatch):
    monkeypatch.chdir(ROOT)
    from dvla_lightning.policy import DVLAPolicy

    decide, episodes = DVLAPolicy.decide, []

    def and_note(self, observations, num_steps, seeds):
        episodes[-1].append(tuple(seeds))
        return decide(self, observations, num_steps, seeds)

    monkeypatch.setattr(DVLAPolicy, "decide", and_note)
    block = next(block for language, block in BLOCKS if language == "python" and ".act(" in block)
    for _ in range(2):
        episodes.append([])
        exec(block, {})
    assert len(episodes[0]) > 3 and len(set(episodes[0])) == len(episodes[0])
    assert episodes[0] == episodes[1]


@pytest.mark.parametrize("card", ["checkpoints/README.md", "checkpoints/tabletop-sft/README.md"])
def test_cards_show_the_call_without_a_fixed_seed(card):
    text = (ROOT / card).read_text()
    assert "policy.act(observation, num_steps=4)" in text and "torch.manual_seed(0)" in text


def test_make_targets_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test", "lint", "libero"} <= set(targets)
    assert all(f"make {name}" in (ROOT / "README.md").read_text() for name in ("demo", "test", "libero"))
