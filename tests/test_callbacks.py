"""What runs leave behind: which of them draw the commit order; two ranks may see different K."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dvla_lightning.cli import main
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.tools.collect import collect

ROOT = Path(__file__).parents[1]


def fit(config, run, options):
    """The command line of a run without evaluation."""
    options = {
        "data.evaluation.num_episodes": 0,
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": run,
        "trainer.enable_progress_bar": "false",
        **options,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["fit", "--config", str(ROOT / "configs" / config), *words]


def logged(run):
    events = EventAccumulator(str(run), size_guidance={"images": 0})
    return events.Reload()


@pytest.fixture
def rl(tiny_policy, tmp_path):
    """Options of a tiny RL run in which reach takes K = 1 and push K = 2."""
    tiny_policy.save_pretrained(tmp_path / "policy")
    (tmp_path / "schedule.yaml").write_text(yaml.dump({"num_steps": {"reach": 1, "push": 2}}))
    return {
        "data.collector.progress": "false",
        "data.episodes_per_iteration": 8,
        "data.minibatch_size": 40,
        "data.schedule": tmp_path / "schedule.yaml",
        "data.tasks": "[reach, push]",
        "model.policy.pretrained": tmp_path / "policy",
    }


def test_rl_draws_the_commit_order_when_it_would_evaluate_and_at_the_end(rl, tmp_path):
    run = tmp_path / "run"
    main(fit("rl.yaml", run, {**rl, "trainer.max_epochs": 3, "trainer.check_val_every_n_epoch": 2}))
    events = logged(run).Images("rollout/commit_order")
    assert len(events) == 2 and events[0].step < events[1].step  # after epochs 1 and 2, not after epoch 0
    with Image.open(run / "pictures" / "commit_order.png") as picture:
        assert picture.size == (events[1].width, events[1].height)


def test_the_last_epoch_is_drawn_once(rl, tmp_path):
    run = tmp_path / "run"
    main(fit("rl.yaml", run, {**rl, "trainer.max_epochs": 1, "trainer.check_val_every_n_epoch": 1}))
    assert len(logged(run).Images("rollout/commit_order")) == 1


def test_sft_and_a_development_run_draw_none(rl, tmp_path):
    collect(Collector(Tabletop(), progress=False), str(tmp_path / "demos"), 5)
    sft = {"data.path": tmp_path / "demos", "data.batch_size": 32, "trainer.max_epochs": 1}
    main(fit("sft.yaml", tmp_path / "sft", {**sft, "trainer.check_val_every_n_epoch": 1}))
    assert (tmp_path / "sft" / "policy").exists() and not (tmp_path / "sft" / "pictures").exists()
    assert logged(tmp_path / "sft").Tags()["images"] == []
    main(fit("rl.yaml", tmp_path / "dev", {**rl, "trainer.fast_dev_run": "true"}))
    assert not (tmp_path / "dev" / "pictures").exists()


def test_two_ranks_with_different_k_log_quietly(rl, tmp_path):
    """Rank 0 runs all episodes of reach (K = 1), rank 1 all of push (K = 2): their diagnostics have different names.

    In the second epoch they swap.
    """
    run = tmp_path / "run"
    options = {**rl, "trainer.max_epochs": 2, "trainer.check_val_every_n_epoch": 1, "data.evaluation.num_episodes": 2}
    command = fit("rl.yaml", run, {**options, "trainer.strategy": "ddp", "trainer.devices": 2})
    done = subprocess.run(
        [sys.executable, "-m", "dvla_lightning.cli", *command],
        capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "sync_dist" not in done.stderr + done.stdout
    events = logged(run)
    for steps in (1, 2):
        assert len(events.Scalars(f"train/entropy/K{steps}_view0")) == 1  # rank 0's, as the picture
        assert len(events.Scalars(f"rollout/success_rate/K{steps}")) == 2  # of all ranks
    assert len(events.Images("rollout/commit_order")) == 2
