"""Whole runs through Lightning: SFT learns, RL runs and resumes exactly, two ranks count every episode once."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from peft import LoraConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dvla_lightning.cli import main
from dvla_lightning.data.rescheduling import Rescheduling
from dvla_lightning.data.rollouts import RolloutDataModule
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.manifest import read_whole_evaluation
from dvla_lightning.evaluation.plan import Evaluation
from dvla_lightning.evaluation.step_measurement import measure_schedule
from dvla_lightning.evaluation.step_schedule import StepSchedule
from dvla_lightning.module import DVLAModule
from dvla_lightning.objectives import TrajectoryPPO
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.tools.collect import collect
from tests.small_policy import disturb, make_tiny_policy

ROOT = Path(__file__).parents[1]
SMALL_RL = {
    "data.episodes_per_iteration": 20,
    "data.minibatch_size": 40,
    "data.evaluation.num_episodes": 10,
    "data.collector.progress": "false",
    "trainer.max_epochs": 2,
    "model.lr_scheduler.init_args.num_epochs": 70,  # runs that stop and go on differ in max_epochs
    "trainer.check_val_every_n_epoch": 1,
    "trainer.enable_progress_bar": "false",
    "trainer.accelerator": "cpu",
    "model.objective.value_warmup_iterations": 0,
    "model.optimizer.lr": 1e-2,
}


def arguments(verb, config, options):
    """A command line; every option may be overridden by the caller."""
    words = [verb, "--config", str(ROOT / "configs" / config)]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    return words


def scalars(run, tag):
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


def weights(run):
    return DVLAPolicy.from_pretrained(run / "policy").state_dict()


@pytest.fixture
def policy_dir(tiny_policy, tmp_path):
    tiny_policy.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.fixture
def rl(policy_dir):
    return {**SMALL_RL, "model.policy.pretrained": policy_dir}


def test_sft_lowers_the_loss_and_leaves_a_policy(tmp_path):
    collect(Collector(Tabletop(), progress=False), str(tmp_path / "demos"), 10, expert_noise=0.2)
    options = {
        "data.path": tmp_path / "demos",
        "data.batch_size": 32,
        "data.evaluation.num_episodes": 5,
        "data.collector.progress": "false",
        "trainer.max_epochs": 4,
        "trainer.check_val_every_n_epoch": 4,
        "trainer.default_root_dir": tmp_path / "run",
        "trainer.enable_progress_bar": "false",
    }
    main(arguments("fit", "sft.yaml", options))
    losses = scalars(tmp_path / "run", "train/loss")
    assert losses[0] > losses[-1] and losses[0] < math.log(32) + 0.5
    policy = DVLAPolicy.from_pretrained(tmp_path / "run" / "policy")
    env = Tabletop().make()
    observation, _ = env.reset(seed=0)
    assert policy.act(observation, num_steps=4).actions.shape == (1, 4, 2)
    assert scalars(tmp_path / "run", "val/num_episodes") == [5.0]


def test_interrupted_sft_resumes_to_the_same_weights(tmp_path):
    collect(Collector(Tabletop(), progress=False), str(tmp_path / "demos"), 5)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    options = {
        "data.path": tmp_path / "demos",
        "data.batch_size": 32,
        "data.evaluation.num_episodes": 0,
        "trainer.max_epochs": 2,
        "model.lr_scheduler.init_args.num_epochs": 2,
        "trainer.enable_progress_bar": "false",
    }
    main(arguments("fit", "sft.yaml", {**options, "trainer.default_root_dir": whole}))
    main(arguments("fit", "sft.yaml", {**options, "trainer.default_root_dir": halved, "trainer.max_epochs": 1}))
    main(arguments("fit", "sft.yaml", {**options, "trainer.default_root_dir": halved, "ckpt_path": "last"}))
    expected, resumed = weights(whole), weights(halved)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_a_checkpoint_of_sft_can_be_evaluated_and_its_config_stays(tmp_path, capsys):
    collect(Collector(Tabletop(), progress=False), str(tmp_path / "demos"), 5)
    run = tmp_path / "run"
    options = {
        "data.path": tmp_path / "demos",
        "data.evaluation.num_episodes": 5,
        "data.collector.progress": "false",
        "trainer.default_root_dir": run,
        "trainer.enable_progress_bar": "false",
    }
    main(arguments("fit", "sft.yaml", {**options, "trainer.max_epochs": 1}))
    config = (run / "config.yaml").read_text()
    capsys.readouterr()
    main(arguments("validate", "sft.yaml", {**options, "ckpt_path": "last"}))
    printed = capsys.readouterr().out
    assert "(n = 5)" in printed and "val/success_rate" not in printed  # no rate without its n
    assert (run / "config.yaml").read_text() == config and (run / "validate.yaml").exists()
    with pytest.raises(SystemExit):
        main(arguments("validate", "sft.yaml", {**options, "ckpt_path": "last", "model.policy.backbone.channels": 16}))
    assert "has another shape" in capsys.readouterr().err


def test_rl_logs_what_the_field_greps_for_and_its_ratio_starts_at_one(rl, tmp_path):
    run = tmp_path / "run"
    main(
        arguments(
            "fit", "rl.yaml", {**rl, "trainer.default_root_dir": run, "data.evaluation.num_recorded_episodes": 10}
        )
    )
    for tag in [
        "rollout/success_rate",
        "rollout/episode_return",
        "rollout/proprioception_outside",
        "rollout/episode_length",
        "train/policy_loss",
        "train/value_loss",
        "train/approx_kl",
        "train/clip_fraction",
        "train/entropy",
        "train/explained_variance",
        "time/env_steps_per_second",
        "time/update_seconds",
    ]:
        assert len(scalars(run, tag)) == 2, tag
    assert scalars(run, "rollout/num_episodes") == [20.0, 20.0]
    assert scalars(run, "time/measure_seconds") == [0.0, 0.0]
    assert scalars(run, "val/network_evaluations_per_decision") == [4.0, 4.0]
    assert max(scalars(run, "train/first_max_abs_log_ratio")) < 1e-5
    assert max(scalars(run, "train/approx_kl")) > 1e-6  # something was learned after the first minibatch
    assert scalars(run, "val/success_rate_low")[-1] <= scalars(run, "val/success_rate")[-1]
    assert (run / "config.yaml").exists() and list((run / "pictures").glob("*.png"))


def test_an_interrupted_run_resumes_to_the_same_weights(rl, tmp_path):
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    main(arguments("fit", "rl.yaml", {**rl, "trainer.default_root_dir": whole}))
    main(arguments("fit", "rl.yaml", {**rl, "trainer.default_root_dir": halved, "trainer.max_epochs": 1}))
    first_half = weights(halved)
    main(arguments("fit", "rl.yaml", {**rl, "trainer.default_root_dir": halved, "ckpt_path": "last"}))
    expected, resumed = weights(whole), weights(halved)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert not all(torch.equal(first_half[name], resumed[name]) for name in resumed)


def test_a_checkpoint_of_another_policy_is_refused(rl, tiny_policy, tmp_path, capsys):
    run = tmp_path / "run"
    main(arguments("fit", "rl.yaml", {**rl, "trainer.default_root_dir": run, "trainer.max_epochs": 1}))
    lora = {"model.policy.lora.r": 2, "model.policy.lora.target_modules": "all-linear"}
    with pytest.raises(SystemExit):
        main(arguments("fit", "rl.yaml", {**rl, **lora, "trainer.default_root_dir": run, "ckpt_path": "last"}))
    assert "does not fit this policy" in capsys.readouterr().err


def test_lora_trains_adapters_alone_against_the_reference(rl, policy_dir, tmp_path):
    run = tmp_path / "run"
    lora = {"model.policy.lora.r": 2, "model.policy.lora.target_modules": "all-linear", "model.objective.kl_coef": 0.1}
    main(arguments("fit", "rl.yaml", {**rl, **lora, "trainer.default_root_dir": run}))
    before, after = DVLAPolicy.from_pretrained(policy_dir), DVLAPolicy.from_pretrained(run / "policy")
    base = after.backbone.get_base_model()
    assert torch.equal(before.backbone.layers[0].qkv.weight, base.layers[0].qkv.base_layer.weight)
    assert any("lora_B" in name and value.abs().max() > 0 for name, value in after.state_dict().items())
    assert scalars(run, "train/reference_kl")[-1] > 0
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not any("base_layer.weight" in name for name in saved)


def test_the_reference_of_a_policy_with_an_adapter_has_the_adapter(rl, tmp_path):
    """Without a learning rate the KL is 0, to the bit."""
    adapted = make_tiny_policy(lora=LoraConfig(r=2))
    disturb(adapted)
    adapted.save_pretrained(tmp_path / "adapted")
    options = {"model.policy.pretrained": tmp_path / "adapted", "model.objective.kl_coef": 1.0, "model.optimizer.lr": 0}
    options |= {"data.episodes_per_iteration": 5, "data.evaluation.num_episodes": 0, "trainer.max_epochs": 1}
    main(arguments("fit", "rl.yaml", {**rl, **options, "trainer.default_root_dir": tmp_path / "run"}))
    assert scalars(tmp_path / "run", "train/reference_kl") == [0.0]


def test_a_resumed_run_keeps_its_reference(rl, tmp_path):
    """Of adapters that begin at random; a run that took its reference anew would learn other weights."""
    rl = {**rl, "model.objective.kl_coef": 1.0, "data.evaluation.num_episodes": 0, "data.episodes_per_iteration": 5}
    rl |= {"model.policy.lora.r": 2, "model.policy.lora.init_lora_weights": "false"}
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    main(arguments("fit", "rl.yaml", {**rl, "trainer.default_root_dir": whole}))
    main(arguments("fit", "rl.yaml", {**rl, "trainer.default_root_dir": halved, "trainer.max_epochs": 1}))
    main(arguments("fit", "rl.yaml", {**rl, "trainer.default_root_dir": halved, "ckpt_path": "last"}))
    expected, resumed = weights(whole), weights(halved)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert scalars(whole, "train/reference_kl")[1] > 1e-4


def test_a_run_without_reference_is_not_resumed_with_one(rl, tmp_path, capsys):
    run = {**rl, "trainer.default_root_dir": tmp_path / "run", "data.evaluation.num_episodes": 0}
    main(arguments("fit", "rl.yaml", {**run, "trainer.max_epochs": 1}))
    with pytest.raises(SystemExit):
        main(arguments("fit", "rl.yaml", {**run, "ckpt_path": "last", "model.objective.kl_coef": 0.1}))
    assert "last.ckpt holds no reference policy" in capsys.readouterr().err
    before = (tmp_path / "run/policy/model.safetensors").read_bytes()
    main(
        arguments(
            "validate",
            "rl.yaml",
            {
                **run,
                "ckpt_path": "last",
                "data.evaluation.num_episodes": 5,
                "model.objective.kl_coef": 0.1,
                "trainer.max_epochs": 1,
            },
        )
    )
    assert (tmp_path / "run/policy/model.safetensors").read_bytes() == before


STEPS = dict(zip(Tabletop.tasks, (1, 2, 4, 1, 8), strict=True))


def test_a_run_follows_its_step_schedule_and_the_evaluation_records_it(rl, tmp_path, capsys):
    run, validated = tmp_path / "run", tmp_path / "validated"
    StepSchedule(STEPS).write(tmp_path / "s.yaml")
    rl = {**rl, "data.schedule": tmp_path / "s.yaml", "data.episodes_per_iteration": 10, "trainer.max_epochs": 1}
    main(arguments("fit", "rl.yaml", {**rl, "trainer.default_root_dir": run}))
    assert max(scalars(run, "train/first_max_abs_log_ratio")) < 1e-5
    assert 1 < scalars(run, "rollout/network_evaluations_per_decision")[0] < 8
    for steps in (1, 2, 4, 8):
        assert len(scalars(run, f"rollout/success_rate/K{steps}")) == 1
        shares = [scalars(run, f"train/gradient_share/K{steps}_view{view}")[0] for view in range(steps)]
        assert sum(shares) == pytest.approx(1.0, abs=1e-4) and min(shares) > 0
        assert 0 < scalars(run, f"train/entropy/K{steps}_view{steps - 1}")[0] < math.log(8) + 1e-3
    capsys.readouterr()
    options = {**rl, "model.policy.pretrained": run / "policy", "trainer.default_root_dir": validated}
    del options["trainer.max_epochs"], options["trainer.check_val_every_n_epoch"]
    main(arguments("validate", "rl.yaml", options))
    printed = capsys.readouterr().out
    assert "held-out episodes, K = 1 (reach, collect), 2 (carry), 4 (push), 8 (detour)" in printed
    header, records = read_whole_evaluation(validated)
    assert header["num_steps"] == {record.task: record.num_steps for record in records.values()} == STEPS
    spent = sum(record.num_steps * record.num_decisions for record in records.values())
    decisions = sum(record.num_decisions for record in records.values())
    assert f"{spent / decisions:.2f}  {spent / 10:>7.1f}" in printed


def test_a_run_measures_its_schedule_anew_and_keeps_it_when_resumed(rl, tmp_path, monkeypatch, capsys):
    """Iterations 0 and 2 measure; a run resumed at iteration 1 goes on with what iteration 0 found."""
    run, measured = tmp_path / "run", []

    def and_remember(*args):
        measured.append(measure_schedule(*args))
        return StepSchedule(STEPS, measured[-1].evidence)

    monkeypatch.setattr("dvla_lightning.data.rescheduling.measure_schedule", and_remember)
    rl = {**rl, "data.reschedule": "{every: 2, num_steps: [1, 4], episodes_per_task: 1}"}
    rl = {**rl, "data.episodes_per_iteration": 6, "data.evaluation.num_episodes": 2, "trainer.default_root_dir": run}
    rl["data.tasks"] = "[reach, detour]"
    main(arguments("fit", "rl.yaml", {**rl, "trainer.max_epochs": 1}))
    assert len(measured) == 1 and set(measured[0].values()) <= {1, 4}
    assert StepSchedule.read(run / "schedules" / "iteration-0000.yaml") == STEPS
    assert StepSchedule.read(run / "schedules" / "iteration-0000.yaml").evidence["episodes_per_task"] == 1
    main(arguments("fit", "rl.yaml", {**rl, "trainer.max_epochs": 3, "ckpt_path": "last"}))
    assert len(measured) == 2
    assert sorted(file.name for file in (run / "schedules").iterdir()) == ["iteration-0000.yaml", "iteration-0002.yaml"]
    for prefix in ("rollout", "val"):
        assert len(scalars(run, f"{prefix}/success_rate/K8")) == 3  # detour, in every iteration
        assert 1 < min(scalars(run, f"{prefix}/network_evaluations_per_decision")) < 8
    assert scalars(run, "rollout/num_measured_episodes") == [4, 0, 4]  # two tasks at two K
    measuring = scalars(run, "time/measure_seconds")
    assert measuring[1] == 0 < min(measuring[0], measuring[2])
    schedule = run / "schedule.yaml"
    assert schedule.read_text() == (run / "schedules" / "iteration-0002.yaml").read_text()
    assert f"evaluate with --data.schedule {schedule}\n" in capsys.readouterr().out
    capsys.readouterr()
    options = {name: value for name, value in rl.items() if not name.endswith(("_epochs", "_n_epoch"))}
    main(arguments("validate", "rl.yaml", {**options, "ckpt_path": "last"}))
    assert "8 (detour)" in capsys.readouterr().out
    header = json.loads((run / "evaluation.jsonl").read_text().splitlines()[0])
    assert header["num_steps"] == {task: STEPS[task] for task in ("reach", "detour")}


@pytest.mark.parametrize("advantage", ["grpo", "rloo", "reinforce++"])
def test_a_run_without_value_estimates(advantage, rl, tmp_path):
    run = tmp_path / "run"
    groups = {"data.group_size": 4, "data.max_refills": 1, "data.tasks": "reach", "data.advantage": advantage}
    main(arguments("fit", "rl.yaml", {**rl, **groups, "trainer.default_root_dir": run}))
    episodes = scalars(run, "rollout/num_episodes")
    assert len(episodes) == 2 and all(20 <= n <= 40 and n % 4 == 0 for n in episodes)
    assert max(episodes) > 20  # some group came out alike
    assert max(scalars(run, "train/first_max_abs_log_ratio")) < 1e-5
    assert max(scalars(run, "train/approx_kl")) > 1e-6


@pytest.mark.parametrize("estimator", ["Trajectory", "{class_path: RandomMask, init_args: {num_masks: 3}}"])
def test_a_run_with_a_sampler_that_masks_again(estimator, rl, tmp_path):
    run = tmp_path / "run"
    options = {"model.policy.sampler.remask_threshold": 0.125, "model.objective.estimator": estimator}
    main(arguments("fit", "rl.yaml", {**rl, **options, "trainer.max_epochs": 1, "trainer.default_root_dir": run}))
    assert max(scalars(run, "train/first_max_abs_log_ratio")) < 1e-5
    assert DVLAPolicy.from_pretrained(run / "policy").sampler.remask_threshold == 0.125


def test_a_run_with_the_probability_of_the_order(rl, tmp_path):
    run = tmp_path / "run"
    options = {"model.policy.sampler.selection_temperature": 1.0, "model.objective.selection_term": "plackett_luce"}
    options |= {"model.objective.ratio_level": "step", "model.objective.dual_clip": 3.0, "trainer.max_epochs": 1}
    main(arguments("fit", "rl.yaml", {**rl, **options, "trainer.default_root_dir": run}))
    assert max(scalars(run, "train/first_max_abs_log_ratio")) < 1e-5


def test_fast_dev_run_measures_on_one_episode_per_task(tiny_policy, tmp_path):
    module, data = make_rl(tiny_policy, reschedule=Rescheduling(every=1, num_steps=[1, 2]))
    make_trainer(tmp_path, fast_dev_run=True).fit(module, datamodule=data)
    assert data.rollout_metrics["rollout/num_measured_episodes"] == len(data.tasks) * 2
    assert not list(tmp_path.rglob("*.yaml"))  # it leaves nothing behind


def make_rl(policy, **options):
    data = RolloutDataModule(
        Collector(Tabletop(), num_envs=20, progress=False), episodes_per_iteration=20, minibatch_size=20,
        evaluation=Evaluation(), **options,
    )  # fmt: skip
    objective = TrajectoryPPO(target_kl=1e-4)
    return DVLAModule(policy, objective, lambda parameters: torch.optim.Adam(parameters, lr=1e-2)), data


def make_trainer(tmp_path, **options):
    return Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip


def test_target_kl_stops_updates_but_not_the_run(tiny_policy, tmp_path):
    module, data = make_rl(tiny_policy, ppo_epochs=5)
    updates = []
    module.configure_gradient_clipping = lambda *a, **k: None
    original = module.optimizer_step

    def counted(*args, **kwargs):
        updates.append(module.stop_iteration)
        return original(*args, **kwargs)

    module.optimizer_step = counted
    trainer = make_trainer(tmp_path, max_epochs=2)
    trainer.fit(module, datamodule=data)
    assert trainer.current_epoch == 2
    # Far fewer than 5 passes: per iteration some updates and the one minibatch that was fetched ahead and skipped.
    assert updates.count(True) == 2 and len(updates) < 2 * 5 * 3


def test_a_changed_sampler_between_rollout_and_update_fails_the_run(tiny_policy, tmp_path):
    module, data = make_rl(tiny_policy)
    collected = data.collect

    def collect_and_meddle(iteration):
        batch = collected(iteration)
        module.policy.sampler.temperature = 2.0
        return batch

    data.collect = collect_and_meddle
    with pytest.raises(UserError, match="scores its own rollouts differently"):
        make_trainer(tmp_path, max_epochs=1).fit(module, datamodule=data)


def test_bfloat16_rollouts_and_updates_agree(tiny_policy, tmp_path):
    """bf16-mixed: autocast must be on in the collection, too."""
    module, data = make_rl(tiny_policy, ppo_epochs=1)
    module.objective.parity_tolerance = 0.1
    trainer = make_trainer(tmp_path, max_epochs=1, precision="bf16-mixed")
    trainer.fit(module, datamodule=data)
    assert float(trainer.callback_metrics["train/first_max_abs_log_ratio"]) < module.objective.parity_tolerance


def test_fast_dev_run_collects_one_episode_per_task(tiny_policy, tmp_path):
    module, data = make_rl(tiny_policy)
    make_trainer(tmp_path, fast_dev_run=True).fit(module, datamodule=data)
    assert data.rollout_metrics["rollout/num_episodes"] == 5


def launch(words):
    """Runs `dvla` as a user would: with ddp Lightning starts the command line again for every rank."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "dvla_lightning.cli", *words], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


DDP = {"trainer.strategy": "ddp", "trainer.devices": 2}


def test_two_ranks_evaluate_the_same_episodes_as_one(rl, tmp_path):
    tables, records = [], []
    for name, options in (("one", {"trainer.devices": 1}), ("two", DDP)):
        run = tmp_path / name
        shared = {k: v for k, v in rl.items() if k.split(".")[-1] not in ("max_epochs", "check_val_every_n_epoch")}
        options = {**shared, **options, "data.evaluation.num_episodes": 15, "trainer.default_root_dir": run}
        tables.append(launch(arguments("validate", "rl.yaml", options)).split("every episode")[0])
        records.append([dataclasses.replace(row, seconds=0) for row in read_whole_evaluation(run)[1].values()])
    assert tables[0] == tables[1] and "(n = 15)" in tables[0]
    assert len(records[0]) == 15 and set(records[0]) == set(records[1])


def test_two_ranks_train_on_the_episodes_of_both(rl, tmp_path):
    """The same specs, split over ranks: the logged statistics are those of one rank that ran them all."""
    one, two = tmp_path / "one", tmp_path / "two"
    options = {**rl, "trainer.max_epochs": 1, "data.episodes_per_iteration": 21, "data.evaluation.num_episodes": 5}
    main(arguments("fit", "rl.yaml", {**options, "trainer.default_root_dir": one}))
    launch(arguments("fit", "rl.yaml", {**options, **DDP, "trainer.default_root_dir": two}))
    assert scalars(two, "rollout/num_episodes") == [21.0]
    for tag in ("success_rate", "episode_length", "advantage_std", "value_mean"):
        assert scalars(one, f"rollout/{tag}") == pytest.approx(scalars(two, f"rollout/{tag}"), rel=1e-5), tag
    explained = [scalars(run, "train/explained_variance")[0] for run in (one, two)]
    assert explained[0] == pytest.approx(explained[1], abs=1e-5)  # a difference of nearly equal variances
    assert max(scalars(two, "train/first_max_abs_log_ratio")) < 1e-5


def test_two_ranks_follow_one_schedule_and_keep_groups_whole(rl, tmp_path):
    """Both measure their share; five groups are three for one rank and two for the other."""
    one, run = tmp_path / "one", tmp_path / "run"
    options = {"data.advantage": "grpo", "data.group_size": 2, "data.max_refills": 1, "data.tasks": "reach"}
    options |= {
        "data.reschedule": "{every: 1, num_steps: [2, 1], episodes_per_task: 11}",
        "data.evaluation.num_episodes": 2,
    }
    options |= {"data.episodes_per_iteration": 10, "trainer.max_epochs": 1, "trainer.default_root_dir": run, **DDP}
    launch(arguments("fit", "rl.yaml", {**rl, **options}))
    schedule = StepSchedule.read(run / "schedule.yaml")
    assert scalars(run, "rollout/network_evaluations_per_decision") == [schedule["reach"]]
    assert scalars(run, "val/network_evaluations_per_decision") == [schedule["reach"]]
    assert scalars(run, "rollout/num_measured_episodes") == [22]
    # not ddp: in this process it would leave its port in the environment of the tests that follow
    options |= {"trainer.strategy": "auto", "trainer.devices": 1}
    options |= {"trainer.default_root_dir": one, "data.evaluation.num_episodes": 0}
    main(arguments("fit", "rl.yaml", {**rl, **options}))
    alone = StepSchedule.read(one / "schedule.yaml")
    counts = [[(row["successes"], row["n"], row["decisions"]) for row in s.evidence["tasks"]["reach"]]
              for s in (schedule, alone)]  # fmt: skip
    assert counts[0] == counts[1] and counts[0][0][1] == 11
    assert 10 <= scalars(run, "rollout/num_episodes")[0] <= 20
    assert max(scalars(run, "train/first_max_abs_log_ratio")) < 1e-5


def test_two_ranks_run_sft(tmp_path):
    collect(Collector(Tabletop(), progress=False), str(tmp_path / "demos"), 5)
    options = {
        **DDP,
        "data.path": tmp_path / "demos",
        "data.batch_size": 16,
        "data.evaluation.num_episodes": 5,
        "trainer.max_epochs": 1,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": tmp_path / "run",
    }
    launch(arguments("fit", "sft.yaml", options))
    assert (tmp_path / "run" / "policy" / "model.safetensors").exists()
    assert scalars(tmp_path / "run", "val/num_episodes") == [5.0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 1)])
def test_a_signal_in_the_middle_of_a_collection_loses_at_most_that_iteration(number, code, rl, tmp_path):
    run = tmp_path / "run"
    options = {**rl, "trainer.default_root_dir": run, "trainer.max_epochs": 100, "data.evaluation.num_episodes": 0}
    command = [sys.executable, "-m", "dvla_lightning.cli", *arguments("fit", "rl.yaml", options)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.stderr.read()[-2000:]
        time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err[-2000:]
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] >= 0


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_every_evaluation_verb_runs(verb, policy_dir, tmp_path, capsys):
    options = {
        "model.policy.pretrained": policy_dir,
        "data.evaluation.num_episodes": 5,
        "data.collector.progress": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": tmp_path / "run",
    }
    main(arguments(verb, "rl.yaml", options))
    printed = capsys.readouterr().out
    assert ("(n = 5)" in printed) == (verb != "predict")
    assert (tmp_path / "run" / "evaluation.jsonl").exists() == (verb != "predict")


def test_fit_chooses_on_selection_and_validate_reports_on_held_out_episodes(rl, tmp_path, capsys, monkeypatch):
    run, splits = tmp_path / "run", []
    original = Collector.run
    monkeypatch.setattr(
        Collector, "run", lambda self, policy, specs, *more, **options: splits.extend(
            (spec.split, spec.task, spec.initial_state) for spec in specs
        ) or original(self, policy, specs, *more, **options)
    )  # fmt: skip
    main(arguments("fit", "rl.yaml", {**rl, "trainer.default_root_dir": run, "trainer.max_epochs": 1}))
    assert [split for split, *_ in splits] == ["train"] * 20 + ["selection"] * 10
    assert "epoch 0: selection success" in (printed := capsys.readouterr().out) and "held-out" not in printed
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("test/")]
    assert scalars(run, "val/num_episodes") == [10.0] and (run / "policy-best" / "config.json").exists()
    splits.clear()
    logger = {
        "class_path": "TensorBoardLogger",
        "init_args": {"save_dir": str(tmp_path / "v"), "name": "", "version": ""},
    }
    best = {**rl, "model.policy.pretrained": run / "policy-best", "trainer.logger": json.dumps(logger)}
    for verb in ("validate", "test", "predict"):
        splits.clear()
        main(arguments(verb, "rl.yaml", {**best, "trainer.default_root_dir": tmp_path / verb}))
        assert {split for split, *_ in splits} == {"heldout"} and len(splits) == 10
        assert ("held-out episodes" in capsys.readouterr().out) == (verb != "predict")
    events = EventAccumulator(str(tmp_path / "v"), size_guidance={"scalars": 0}).Reload()
    tags = {tag.split("/")[0] for tag in events.Tags()["scalars"]}
    assert "test" in tags and "val" not in tags
