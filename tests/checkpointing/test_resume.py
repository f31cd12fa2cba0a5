"""Resuming comes to the same weights as never having stopped, wherever and however a run was stopped."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Timer, timer

from dvla_lightning.cli import main
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.module import DVLAModule
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.tools.collect import collect
from tests.checkpointing.tiny_runs import UPDATES, arguments, load, rl_options

LAST = Path("checkpoints") / "last.ckpt"


def same(one, other):
    """Whether two structures hold the same numbers, bit by bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def expect_same_end(whole, resumed):
    """Weights, optimizer, learning rate and all counters of Lightning."""
    expected, found = load(whole / LAST), load(resumed / LAST)
    for key in ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers", "loops"):
        assert same(expected[key], found[key]), key


def expect_word(capfd, number):
    """The sentence at the end of a run that was stopped inside an iteration."""
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("stopped inside")]
    assert len(lines) == 1 and lines[0].startswith(f"stopped inside iteration {number}: "), lines
    return lines[0]


def test_the_numbers_of_the_uninterrupted_run(whole):
    last, previous = load(whole / LAST), load(whole / "checkpoints" / "previous.ckpt")
    assert (last["global_step"], previous["global_step"]) == (3 * UPDATES, 2 * UPDATES)
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("then", [{}, {"trainer__max_steps": 1000}], ids=["by epochs", "by steps"])
@pytest.mark.parametrize("more", [0, 1, UPDATES - 1])
def test_a_run_stopped_by_max_steps(more, then, whole, run_rl, tmp_path, capfd):
    """After `more` updates of its third iteration."""
    run_rl(tmp_path, trainer__max_steps=2 * UPDATES + more)
    assert load(tmp_path / LAST)["global_step"] == 2 * UPDATES
    card = (tmp_path / "policy" / "README.md").read_text()
    if more:
        word = expect_word(capfd, 2)
        assert "holds the end of iteration 1, resuming from there runs iteration 2 again" in word and "policy/" in word
        assert "for 2 epochs and a part of the next;" in card
    else:
        assert "stopped inside" not in capfd.readouterr().err and "for 2 epochs;" in card
    run_rl(tmp_path, ckpt_path="last", **then)
    expect_same_end(whole, tmp_path)
    assert "for 3 epochs;" in (tmp_path / "policy" / "README.md").read_text()


def test_a_run_stopped_in_its_first_iteration_leaves_no_checkpoint(run_rl, tmp_path, capfd):
    run_rl(tmp_path, trainer__max_steps=1)
    assert "no checkpoint to resume from, a new run begins iteration 0 again" in expect_word(capfd, 0)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_run_stopped_by_max_time(whole, run_rl, tmp_path, capfd, monkeypatch):
    def time_is_up(timer, trainer):
        trainer.should_stop = trainer.global_step >= UPDATES + 2

    with monkeypatch.context() as patch:
        patch.setattr(Timer, "_check_time_remaining", time_is_up)
        run_rl(tmp_path, trainer__max_time="01:00:00:00")
    expect_word(capfd, 1)
    assert load(tmp_path / LAST)["global_step"] == UPDATES
    run_rl(tmp_path, ckpt_path="last", trainer__max_time="01:00:00:00")
    expect_same_end(whole, tmp_path)


def test_max_time_counts_for_every_job_anew(whole, run_rl, tmp_path, capfd, monkeypatch):
    """The same command again and again: by the clock an iteration takes 40 of the 60 minutes, so each job ends one."""
    minutes = SimpleNamespace(passed=0)

    def after_batch(module, *args):
        minutes.passed += 10

    monkeypatch.setattr(DVLAModule, "on_train_batch_end", after_batch, raising=False)
    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: 60 * minutes.passed))
    for iterations in (1, 2, 3):
        run_rl(tmp_path, ckpt_path="auto", trainer__max_time="00:01:00:00")
        assert load(tmp_path / LAST)["global_step"] == iterations * UPDATES
        assert ("stopped inside" in capfd.readouterr().err) == (iterations < 3)
    expect_same_end(whole, tmp_path)


def test_a_reproducible_run_with_workers_is_resumed_to_the_bit(run_rl, tmp_path):
    """Whichever worker answers first; and with simulators in this process it is the same run."""
    options = {"data__collector__reproducible": "true", "data__num_steps": 4}
    workers = {"data__collector__num_workers": 2}
    run_rl(tmp_path / "whole", **options, **workers, trainer__max_epochs=2)
    run_rl(tmp_path / "resumed", **options, **workers, trainer__max_epochs=1)
    run_rl(tmp_path / "resumed", **options, **workers, trainer__max_epochs=2, ckpt_path="last")
    run_rl(tmp_path / "alone", **options, trainer__max_epochs=2)
    expect_same_end(tmp_path / "whole", tmp_path / "resumed")
    expect_same_end(tmp_path / "whole", tmp_path / "alone")


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt():
    raise KeyboardInterrupt


def fail():
    raise ZeroDivisionError


@pytest.mark.parametrize("stop", [terminate, interrupt, fail])
def test_a_run_stopped_by_a_signal_or_an_error_between_two_updates(stop, whole, run_rl, tmp_path, capfd, monkeypatch):
    def after_batch(module, *args):
        if module.trainer.global_step == UPDATES + 2:
            stop()

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with monkeypatch.context() as patch, pytest.raises((SystemExit, ZeroDivisionError)):
        patch.setattr(DVLAModule, "on_train_batch_end", after_batch, raising=False)
        run_rl(tmp_path)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert "resuming from there runs iteration 1 again" in expect_word(capfd, 1)
    run_rl(tmp_path, ckpt_path="last")
    expect_same_end(whole, tmp_path)


def test_an_iteration_that_target_kl_ended_is_complete(run_rl, tmp_path, capfd):
    run_rl(tmp_path, trainer__max_epochs=2, model__objective__target_kl=1e-9)
    assert "stopped inside" not in capfd.readouterr().err
    last = load(tmp_path / LAST)
    assert last["epoch"] == 1 and last["dvla"]["is_epoch_end"]


def test_an_optimizer_whose_state_is_not_shaped_like_its_parameters(run_rl, tmp_path):
    options = {"model__optimizer": "Adafactor", "model__optimizer__lr": 1e-2}
    for name, epochs in (("whole", (2,)), ("resumed", (1, 2))):
        for number, epoch in enumerate(epochs):
            path = "last" if number else "null"
            run_rl(tmp_path / name, **options, trainer__max_epochs=epoch, ckpt_path=path)
    expect_same_end(tmp_path / "whole", tmp_path / "resumed")


def test_an_epoch_of_sft_that_was_cut_short_is_run_again(tmp_path, capfd):
    collect(Collector(Tabletop(), progress=False), str(tmp_path / "demos"), 5)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = {
        "data.path": tmp_path / "demos", "data.batch_size": 16, "data.evaluation.num_episodes": 0,
        "trainer.max_epochs": 2, "trainer.enable_progress_bar": "false", "trainer.accelerator": "cpu",
        "model.policy.backbone.dim": 16, "model.policy.backbone.num_layers": 1, "model.policy.backbone.num_heads": 2,
    }  # fmt: skip
    main(arguments("fit", "sft.yaml", {**options, "trainer.default_root_dir": whole}))
    steps = load(whole / LAST)["global_step"]
    assert steps % 2 == 0
    main(arguments("fit", "sft.yaml", {**options, "trainer.default_root_dir": cut, "trainer.max_steps": steps - 1}))
    assert "stopped inside epoch 1:" in capfd.readouterr().err
    main(arguments("fit", "sft.yaml", {**options, "trainer.default_root_dir": cut, "ckpt_path": "last"}))
    expect_same_end(whole, cut)


def test_runs_killed_at_random_moments(whole, policy_dir, tmp_path):
    """DVLA_NUM_KILLS of them, each resumed; with the last start the run comes to its end."""
    options = {**rl_options(policy_dir), "trainer.default_root_dir": tmp_path, "trainer.max_epochs": 3}
    moments = random.Random(0)
    for number in range(int(os.environ.get("DVLA_NUM_KILLS", 2)) + 1):
        resumes = {"ckpt_path": "last"} if (tmp_path / LAST).exists() else {}
        words = arguments("fit", "rl.yaml", {**options, **resumes})
        started = time.time()
        process = subprocess.Popen(
            [sys.executable, "-m", "dvla_lightning.cli", *words], stderr=subprocess.PIPE, text=True
        )
        if number == int(os.environ.get("DVLA_NUM_KILLS", 2)):
            break
        while process.poll() is None and not _is_newer(tmp_path / "config.yaml", started):
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 1.5))
        process.kill()
        process.communicate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-2000:]
    expect_same_end(whole, tmp_path)
    assert not list(tmp_path.glob("checkpoints/.*"))


def _is_newer(path, moment):
    return path.exists() and path.stat().st_mtime >= moment
