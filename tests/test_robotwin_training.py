"""RoboTwin through the command line: demonstrations, SFT, RL and evaluation, on a stand-in checkout."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from dvla_lightning.cli import main
from dvla_lightning.data.episode_files import load_demonstrations
from dvla_lightning.envs.robotwin import RoboTwin
from dvla_lightning.envs.robotwin.tasks import PAPER_TASKS
from dvla_lightning.evaluation.manifest import read_whole_evaluation
from dvla_lightning.evaluation.specs import num_protocol_episodes
from tests.robotwin_checkout import make_checkout

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "robotwin"
TASKS = ["stack_blocks_two", "place_empty_cup"]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]


@pytest.mark.parametrize("name", ["collect", "rl"])
def test_shipped_configurations_have_the_counts_of_the_paper(name):
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    data = content if name == "collect" else content["data"]["init_args"]
    environment = RoboTwin(**data["collector"]["environment"]["init_args"])
    assert environment.select_tasks(data["tasks"]) == PAPER_TASKS
    if name == "collect":
        assert data["num_episodes"] == 1000 * len(PAPER_TASKS)
    else:
        assert data["episodes_per_iteration"] == 64 * len(PAPER_TASKS) and environment.num_train_scenes == 1000
        assert data["evaluation"]["num_episodes"] == "all"
        assert num_protocol_episodes(environment, PAPER_TASKS) == 100 * len(PAPER_TASKS)


def test_the_shipped_policy_fits_the_environment():
    policy = yaml.safe_load((CONFIGS / "sft.yaml").read_text())["model"]["policy"]
    network, environment = policy["backbone"]["init_args"], RoboTwin(image_size=128)
    assert tuple(network["cameras"]) == environment.cameras and network["image_size"] == environment.image_shape[0]
    assert network["proprioception_dim"] == environment.proprioception_dim
    assert policy["action_dim"] == environment.action_dim


def collector(prefix, checkout, cache):
    """Options of a collector on the stand-in, small and short."""
    options = {"root": checkout, "interpreter": sys.executable, "cache_dir": cache, "image_size": 16}
    words = [f"--{prefix}.environment.{name}={value}" for name, value in options.items()]
    words += [f"--{prefix}.environment.cameras", "[head]", f"--{prefix}.progress=false", f"--{prefix}.num_workers=1"]
    return [*words, f"--{prefix}.environment.max_steps", '{"stack_blocks_two": 64, "place_empty_cup": 64}']


def test_from_demonstrations_to_evaluation(tmp_path, capsys):
    checkout, cache, data = make_checkout(tmp_path / "robotwin"), tmp_path / "cache", tmp_path / "data"
    collect = [*collector("collector", checkout, cache), "--tasks", json.dumps(TASKS), f"--out={data}"]
    main(["collect", "--config", str(CONFIGS / "collect.yaml"), *collect, "--num_episodes=2", "--observe_every=8"])
    header, demonstrations = load_demonstrations(data)
    assert header["environment"]["layout"] == "stable_2.0" and header["action_dim"] == 14
    assert sorted(demo.task for demo in demonstrations) == sorted(TASKS)
    assert demonstrations[0].images["head"].shape[1:] == (16, 16, 3)

    small = {"backbone.image_size": 16, "backbone.dim": 16, "backbone.num_layers": 1}
    small |= {"backbone.num_heads": 2, "backbone.channels": 8, "backbone.cameras": "[head]", "chunk_size": 4}
    words = [f"--model.policy.{name}={value}" for name, value in small.items()]
    words += [f"--data.path={data}", f"--trainer.default_root_dir={tmp_path / 'sft'}", *QUIET]
    main(["fit", "--config", str(CONFIGS / "sft.yaml"), *words, "--trainer.max_epochs=1"])
    rl = [*collector("data.collector", checkout, cache), "--data.tasks", json.dumps(TASKS), *QUIET]
    rl += [f"--trainer.default_root_dir={tmp_path / 'rl'}", f"--model.policy.pretrained={tmp_path / 'sft' / 'policy'}"]
    rl += [
        "--data.episodes_per_iteration=2",
        "--data.evaluation.num_episodes=4",
        "--data.evaluation.num_recorded_episodes=1",
    ]
    main(
        [
            "fit",
            "--config",
            str(CONFIGS / "rl.yaml"),
            *rl,
            "--trainer.max_epochs=1",
            "--trainer.check_val_every_n_epoch=1",
        ]
    )
    main(["validate", "--config", str(CONFIGS / "rl.yaml"), *rl])
    header, records = read_whole_evaluation(tmp_path / "rl")
    assert (
        len(records) == 4 and not any(row.error for row in records.values()) and set(header["num_steps"]) == set(TASKS)
    )
    assert "(n = 4)" in capsys.readouterr().out
    books = sorted(book.name.split(".")[0] + "." + book.name.split(".")[-2] for book in cache.glob("*.json"))
    assert books == sorted(f"{task}.{split}" for task in TASKS for split in ("train", "selection", "heldout"))
