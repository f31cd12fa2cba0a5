"""The environment of docs/environment.md works with the commands that the page gives."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from dvla_lightning.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "environment.md").read_text()
SOURCE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
COMMANDS = [
    shlex.split(line)[1:]
    for line in re.search(r"```bash\n(.*?)```", PAGE, re.DOTALL)[1].replace("\\\n", "").splitlines()
    if line.startswith("dvla ")
]
SMALL = {
    "collect": ["--num_episodes", "20"],
    "fit": ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"],
    "validate": ["--trainer.enable_progress_bar", "false"],
}
SMALL_RL = ["--data.episodes_per_iteration", "8", "--data.minibatch_size", "64"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the reader of the page stands: configurations copied, board.py written, the folder on the path."""
    main(["config", "cp", "all", str(tmp_path)])
    (tmp_path / "board.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("board", None)


def test_commands_of_the_page(folder, capsys, quiet_logging):
    assert [words[0] for words in COMMANDS] == ["collect", "fit", "validate", "fit"]
    for words in COMMANDS:
        is_rl = words[0] == "fit" and "configs/rl.yaml" in words
        main([*words, *SMALL[words[0]], *(SMALL_RL if is_rl else [])])
        printed = capsys.readouterr().out
        if words[0] == "collect":
            assert "red: kept 10 of 10 tried" in printed and "blue: kept 10 of 10 tried" in printed
        if words[0] == "validate":
            lines = (folder / "runs/board-sft/evaluation.jsonl").read_text().splitlines()[1:]  # the first is the header
            _check_table(printed, [json.loads(line) for line in lines])
    assert (folder / "runs/board-rl/policy/model.safetensors").is_file()


def _check_table(printed, episodes):
    """The rates of the table are those of the episodes, counted again."""
    assert len(episodes) == 100
    for task in ("red", "blue"):
        outcomes = [episode["success"] for episode in episodes if episode["task"] == task]
        row = re.search(rf"^{task} +([\d.]+) % \[.*\] \(n = 50\)", printed, re.MULTILINE)
        assert len(outcomes) == 50 and float(row[1]) == pytest.approx(100 * sum(outcomes) / 50)


def test_the_example_keeps_the_check_list(folder):
    from board import Board

    def first(split, state, task="red"):
        observation, _ = env.reset(seed=0, options={"task": task, "split": split, "initial_state": state})
        return tuple(observation["proprioception"])

    env = Board().make()
    starts = {(split, state): first(split, state) for split in ("train", "selection", "heldout") for state in range(20)}
    assert len(set(starts.values())) == 60
    assert first("train", 3) == starts["train", 3] and first("train", 3, "blue") != starts["train", 3]
    for _ in range(19):
        assert env.advance(np.zeros(2))[1:3] == (False, False)
    assert env.advance(np.zeros(2))[1:3] == (False, True)  # out of time is truncation


def test_the_example_is_short():
    assert len(SOURCE.splitlines()) <= 60 and max(map(len, SOURCE.splitlines())) <= 120


@pytest.mark.parametrize("name", ["tasks", "cameras", "action_dim", "proprioception_dim"])
def test_a_recipe_that_leaves_something_out_is_told(folder, name, refusal):
    names = ["tasks", "cameras", "action_dim", "proprioception_dim"]
    renamed = ", ".join("other" if other == name else other for other in names)
    (folder / "board.py").write_text(SOURCE.replace(", ".join(names), renamed))
    command = ["collect", "--collector.environment", "board.Board", "--out", "data/board", "--num_episodes", "4"]
    assert refusal(command, unchanged=folder).startswith(f"dvla: error: Board has no {name}: ")
