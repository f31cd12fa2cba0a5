"""LIBERO's files of initial states are pickles: arrays are read from them, and nothing is executed."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dvla_lightning.envs.libero.states import load_published
from dvla_lightning.envs.libero.suites import suite_tasks
from dvla_lightning.errors import UserError


def task_with(path, content):
    torch.save(content, path)
    return SimpleNamespace(initial_states=path)


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_an_array_is_read(tmp_path):
    states = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(load_published(task_with(tmp_path / "a", states)), states)


@pytest.mark.parametrize("variable", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_code_is_not_run(variable, tmp_path, monkeypatch):
    if variable:
        monkeypatch.setenv(variable, "1")
    for content in (Attack(tmp_path / "ran"), np.array([Attack(tmp_path / "ran")])):
        with pytest.raises(UserError, match="holds no initial states"):
            load_published(task_with(tmp_path / "a", content))
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "a", weights_only=False)
    assert (tmp_path / "ran").exists()  # the attack works where it is let in


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_another_file_is_a_sentence(content, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match="holds no initial states"):
        load_published(SimpleNamespace(initial_states=tmp_path / "a"))


@pytest.mark.libero
@pytest.mark.parametrize("suite", ["libero_spatial", "libero_90"])
def test_the_published_files_are_read_as_torch_reads_them(suite):
    for task in list(suite_tasks(suite).values())[:5]:
        expected = torch.load(task.initial_states, weights_only=False)
        np.testing.assert_array_equal(load_published(task), expected)
