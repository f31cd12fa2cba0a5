"""The benchmark of `collector.reproducible`: that it runs, and what it makes of seconds."""

from pathlib import Path

import pytest
import yaml

from benchmarks import reproducible

SHORT = ["--episodes", "5", "--num_workers", "0"]


def test_both_settings_are_run_and_compared(capsys):
    assert reproducible.main([*SHORT, "--repetitions", "1"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "5 episodes of Tabletop, 1 repetitions of each setting"
    assert second.startswith("96 simulators in this process ")


def test_ratios_are_of_the_same_repetition_and_the_first_does_not_count(monkeypatch, capsys):
    seconds = {reproducible.TOGETHER: [90.0, 2.0, 2.0, 4.0], reproducible.ALONE: [1.0, 4.0, 8.0, 4.0]}
    monkeypatch.setattr(reproducible, "measure", lambda runs, repetitions: seconds)
    reproducible.main([*SHORT, "--repetitions", "3"])
    line = capsys.readouterr().out.splitlines()[1]
    assert line.endswith("150 episodes per minute, reproducible      75: 0.50 x [0.25, 1.00]")


def test_the_configuration_of_libero_can_be_read():
    pytest.importorskip("mujoco")
    config = yaml.safe_load(Path("configs/libero/rl_spatial.yaml").read_text())
    environment, specs = reproducible.read(config, 6)
    assert environment.suite == "libero_spatial" and {spec.num_steps for spec in specs} == {1}
    assert {spec.task for spec in specs} == set(config["data"]["init_args"]["tasks"])
