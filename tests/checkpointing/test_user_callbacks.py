"""What users add in trainer.callbacks stands beside ours, in YAML and on the command line."""

import pytest
import yaml
from safetensors.torch import load_file

from tests.checkpointing.tiny_runs import UPDATES, load

CHECKPOINT, STOPPING = "lightning.pytorch.callbacks.ModelCheckpoint", "lightning.pytorch.callbacks.EarlyStopping"


def yaml_file(path, *callbacks):
    """A configuration with some callbacks (class path, options)."""
    entries = [{"class_path": name, "init_args": options} for name, options in callbacks]
    path.write_text(yaml.dump({"trainer": {"callbacks": entries}}))
    return path


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


LAST = ["last.ckpt", "previous.ckpt"]
EVERY = [f"epoch={n}-step={(n + 1) * UPDATES}.ckpt" for n in range(3)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"save_top_k": -1, "every_n_epochs": 1}, EVERY),
        ({"save_top_k": -1, "every_n_epochs": 1, "save_on_train_epoch_end": True}, EVERY),
        ({"every_n_epochs": 1}, EVERY[2:]),
        ({"every_n_epochs": 2, "save_top_k": -1}, EVERY[1:2]),
        ({"monitor": "rollout/episode_length", "mode": "max", "save_top_k": 3, "filename": "{epoch}"},
         ["epoch=0.ckpt", "epoch=1.ckpt", "epoch=2.ckpt"]),
        ({"every_n_train_steps": 3, "save_top_k": -1, "filename": "{step}"},
         ["step=12.ckpt", "step=3.ckpt", "step=6.ckpt", "step=9.ckpt"]),
        ({"save_weights_only": True, "filename": "mine"}, ["mine.ckpt"]),
    ],
)  # fmt: skip
def test_a_further_model_checkpoint(options, expected, run_rl, whole, tmp_path):
    """Its files lie beside ours, and ours are as without it."""
    config = yaml_file(tmp_path / "more.yaml", (CHECKPOINT, options))
    run_rl(tmp_path / "run", "--config", config)
    assert names(tmp_path / "run") == sorted([*LAST, *expected])
    for name in LAST:
        ours, expected_ours = load(tmp_path / "run" / "checkpoints" / name), load(whole / "checkpoints" / name)
        assert ours["global_step"] == expected_ours["global_step"] and ours["loops"] == expected_ours["loops"]


def test_on_the_command_line(run_rl, tmp_path):
    words = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_top_k=-1"]
    words += ["--trainer.callbacks.every_n_epochs=1", "--trainer.callbacks+=LearningRateMonitor"]
    run_rl(tmp_path, *words)
    assert names(tmp_path) == sorted([*LAST, *EVERY])


@pytest.mark.parametrize("stopped_by", [STOPPING, "two"])
def test_early_stopping_ends_a_run_between_iterations(stopped_by, run_rl, tmp_path, capfd):
    never_better = {"monitor": "rollout/episode_length", "patience": 1, "min_delta": 1e9, "mode": "max"}
    callbacks = [(STOPPING, never_better)]
    if stopped_by == "two":
        callbacks += [(CHECKPOINT, {"monitor": "train/loss"}), (CHECKPOINT, {"save_top_k": -1, "every_n_epochs": 1})]
    run_rl(tmp_path / "run", "--config", yaml_file(tmp_path / "more.yaml", *callbacks))
    assert load(tmp_path / "run" / "checkpoints" / "last.ckpt")["epoch"] == 1
    assert "stopped inside" not in capfd.readouterr().err
    assert (tmp_path / "run" / "policy" / "model.safetensors").exists()


def test_a_run_with_them_resumes_to_the_same_weights_from_its_best_checkpoint(run_rl, whole, tmp_path):
    """One of validation, which Lightning writes before the epoch is over."""
    scores = {"monitor": "val/success_rate", "mode": "max", "save_top_k": -1, "filename": "best-{epoch}"}
    config, run = yaml_file(tmp_path / "more.yaml", (CHECKPOINT, scores)), tmp_path / "run"
    evaluates = {"data__evaluation__num_episodes": 1, "trainer__check_val_every_n_epoch": 2}
    run_rl(run, "--config", config, trainer__max_epochs=2, **evaluates)
    best = run / "checkpoints" / "best-epoch=1.ckpt"
    before = load(best)["loops"]["fit_loop"]["epoch_progress"]["current"]
    assert before["processed"] == before["started"] - 1
    run_rl(run, "--config", config, ckpt_path=best, **evaluates)
    expected, found = (load(directory / "checkpoints" / "last.ckpt") for directory in (whole, run))
    assert found["global_step"] == expected["global_step"]
    assert found["lr_schedulers"] == expected["lr_schedulers"]
    for name, value in expected["state_dict"].items():
        assert value.equal(found["state_dict"][name]), name


def test_a_checkpoint_from_inside_an_iteration_is_not_resumed_but_evaluated(run_rl, tmp_path, capfd):
    inside = {"every_n_train_steps": UPDATES + 1, "save_top_k": -1, "filename": "{step}"}
    config, run = yaml_file(tmp_path / "more.yaml", (CHECKPOINT, inside)), tmp_path / "run"
    run_rl(run, "--config", config, trainer__max_epochs=2)
    checkpoint = run / "checkpoints" / f"step={UPDATES + 1}.ckpt"
    with pytest.raises(SystemExit):
        run_rl(run, "--config", config, ckpt_path=checkpoint)
    assert "was written inside epoch 1, and training goes on from the end of an epoch only" in capfd.readouterr().err
    run_rl(run, verb="validate", ckpt_path=checkpoint, data__evaluation__num_episodes=1)
    assert "(n = 1)" in capfd.readouterr().out


def test_resuming_without_writing_checkpoints_is_exact_too(run_rl, tmp_path, whole):
    run_rl(tmp_path / "run", trainer__max_epochs=2)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    run_rl(tmp_path / "more", ckpt_path=checkpoint, trainer__enable_checkpointing="false")
    expected, found = (load_file(run / "policy" / "model.safetensors") for run in (whole, tmp_path / "more"))
    assert all(value.equal(found[name]) for name, value in expected.items())
    assert not (tmp_path / "more" / "checkpoints").exists()


def test_a_checkpoint_that_would_take_the_place_of_ours_is_refused(run_rl, tmp_path, capfd):
    config = yaml_file(tmp_path / "more.yaml", (CHECKPOINT, {"save_last": True}))
    with pytest.raises(SystemExit) as stop:
        run_rl(tmp_path / "run", "--config", config)
    assert stop.value.code == 2 and "leave out save_last" in capfd.readouterr().err
