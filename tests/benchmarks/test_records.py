"""Reading run folders and keeping their records."""

import json

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from benchmarks.settle.arms import BY_NAME, NUM_ITERATIONS
from benchmarks.settle.records import CURVES, TIMES, gather
from benchmarks.settle.run_folder import difference
from tests.evaluations import write_evaluation

SAMPLER = {"confidence": "max_prob", "selection_temperature": 0.0, "temperature": 1.0}


def make_unit(runs, seed, arm, num_successes=3, **data):
    """A finished run of five episodes, as `dvla` leaves it; `data` changes options of the data module."""
    folder = runs / f"seed-{seed}" / arm
    write_evaluation(folder, [number < num_successes for number in range(5)])
    steps = {"num_steps": BY_NAME[arm].num_steps or 4, "schedule": None if BY_NAME[arm].num_steps else "a.yaml"}
    steps |= {"episodes_per_iteration": 256, "evaluation": {"num_episodes": 500}, **data}
    estimator = "LastStep" if arm.startswith("last_step") else "Trajectory"
    config = {
        "model": {
            "policy": {"class_path": "DVLAPolicy", "init_args": {"sampler": SAMPLER}},
            "objective": {
                "init_args": {"estimator": {"class_path": f"dvla_lightning.diffusion.estimators.{estimator}"}}
            },
            "lr_scheduler": {"class_path": "CosineAnnealing"},
        },
        "data": {"class_path": "RolloutDataModule", "init_args": steps},
        "trainer": {"max_epochs": NUM_ITERATIONS, "check_val_every_n_epoch": 10 * NUM_ITERATIONS},
    }
    for name in ("validate.yaml", "config.yaml") if BY_NAME[arm].trained else ("validate.yaml",):
        (folder / name).write_text(yaml.safe_dump(config))
    if BY_NAME[arm].trained:
        with SummaryWriter(str(folder)) as writer:
            for tag in (*CURVES, *TIMES):
                for iteration in range(3):
                    writer.add_scalar(tag, 0.123456 + iteration, iteration)
    return folder


def write_schedule(file, num_steps):
    row = {"num_steps": 4, "n": 9, "errors": 1}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        yaml.safe_dump({"num_steps": num_steps, "evidence": {"tasks": {"reach": [dict(row) for _ in range(3)]}}})
    )


def test_record_of_a_trained_unit(tmp_path):
    folder = make_unit(tmp_path / "runs", 3, "last_step-K4")
    write_schedule(folder.parent / "schedule.yaml", {"reach": 2})
    write_schedule(folder / "schedule.yaml", {"reach": 1})
    (folder / "schedule.seconds").write_text("12.5\n")
    (record,) = gather(tmp_path / "runs", tmp_path / "results.json")
    assert (record["seed"], record["arm"]) == (3, "last_step-K4")
    assert record["tasks"] == {"reach": [3, 5, 0, 10]}
    assert bin(int(record["outcomes"], 16)) == "0b1" + "11100"
    assert record["curves"]["train/approx_kl"] == [0.1235, 1.123, 2.123]
    assert record["seconds"]["time/collect_seconds"] == 3.4
    assert record["schedule_before"] == {"num_steps": {"reach": 2}, "episodes": 30, "seconds": None}
    assert record["schedule_after"] == {"num_steps": {"reach": 1}, "episodes": 30, "seconds": 12.5}


def test_records_outlive_their_runs_and_are_replaced_by_newer_ones(tmp_path):
    file = tmp_path / "results.json"
    make_unit(tmp_path / "old", 0, "sft-max_prob-K4", num_successes=1)
    make_unit(tmp_path / "old", 1, "sft-max_prob-K4", num_successes=2)
    old = gather(tmp_path / "old", file)
    assert gather(tmp_path / "nothing", file) == old
    make_unit(tmp_path / "new", 1, "sft-max_prob-K4", num_successes=5)
    assert [r["tasks"]["reach"][0] for r in gather(tmp_path / "new", file)] == [1, 5]
    content = json.loads(file.read_text())
    content["records"].append(content["records"][0])
    file.write_text(json.dumps(content))
    assert len(gather(tmp_path / "nothing", file)) == 2


def test_unknown_and_changed_arms_are_left_out(tmp_path, capsys):
    file = tmp_path / "results.json"
    for arm in ("sft-max_prob-K4", "sft-max_prob-K2", "sft-max_prob-K1"):
        make_unit(tmp_path / "runs", 0, arm)
    gather(tmp_path / "runs", file)
    content = json.loads(file.read_text())
    content["arms"]["sft-max_prob-K2"]["num_eval_episodes"] = 100
    next(r for r in content["records"] if r["arm"] == "sft-max_prob-K1")["arm"] = "renamed"
    file.write_text(json.dumps(content))
    assert [record["arm"] for record in gather(tmp_path / "nothing", file)] == ["sft-max_prob-K4"]
    printed = capsys.readouterr().out
    assert "renamed is left out: there is no such arm" in printed
    assert "sft-max_prob-K2 is left out: the arm has changed since" in printed


@pytest.mark.parametrize(
    ("arm", "data", "found"),
    [
        ("trajectory-K4", {}, None),
        ("schedule", {}, None),
        ("trajectory-K4", {"num_steps": 2}, "data.num_steps was 2, not 4"),
        ("trajectory-K4", {"schedule": "a.yaml"}, "it followed a schedule, not K = 4"),
        ("trajectory-K4", {"episodes_per_iteration": 64}, "data.episodes_per_iteration was 64, not 256"),
        ("sft-max_prob-K4", {"evaluation": {"num_episodes": 100}}, "data.evaluation.num_episodes was 100, not 500"),
        ("sft-schedule", {"schedule": None}, "data.schedule was None"),
    ],
)
def test_difference_between_a_run_and_its_arm(tmp_path, arm, data, found, capsys):
    folder = make_unit(tmp_path, 0, arm, **data)
    told = difference(folder, BY_NAME[arm])
    if found is None:
        assert told is None
        return
    assert found in told
    assert gather(tmp_path, tmp_path / "results.json") == []
    assert f"{folder} is left out: " in capsys.readouterr().out


def test_a_run_of_another_sampler_or_kind_is_noticed(tmp_path):
    folder = make_unit(tmp_path, 0, "trajectory-K4")
    assert "sampler was" in difference(folder, BY_NAME["drawn_prob-K4"])
    assert difference(folder, BY_NAME["sft-max_prob-K4"]) == "it was trained"
    assert "estimators.Trajectory'}, not" in difference(folder, BY_NAME["full_mask-K4"])
    assert difference(tmp_path / "nothing", BY_NAME["trajectory-K4"]) is None
