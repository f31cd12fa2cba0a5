"""The backbone of docs/backbone.md: it is short, it keeps the contract, and it is trained by SFT and RL as written."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from dvla_lightning import cli
from dvla_lightning.actions.tokenizer import UniformBins
from dvla_lightning.diffusion.estimators import Trajectory
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.policy_check import check_policy

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "backbone.md").read_text()
CODE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
MAX_LINES = 60  # that are not blank


@pytest.fixture
def my_backbone(tmp_path, monkeypatch):
    (tmp_path / "my_backbone.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("my_backbone", None)
    return importlib.import_module("my_backbone")


@pytest.fixture
def policy(my_backbone):
    torch.manual_seed(0)
    policy = DVLAPolicy(my_backbone.MyBackbone(8, 32), UniformBins(32), 2, 4, normalization="identity")
    policy.is_fitted = True
    return policy


def test_it_is_short_and_keeps_the_contract(policy):
    assert sum(bool(line.strip()) for line in CODE.splitlines()) <= MAX_LINES
    check_policy(policy)


def test_prompts_of_different_lengths_score_in_a_batch_as_they_do_alone(policy):
    observations = []
    for number, words in enumerate((1, 9, 4, 30, 2)):
        seen = policy.processor.example(number)
        observations.append({**seen, "instruction": " ".join(f"word{number}-{n}" for n in range(words))})
    num_steps, seeds = [4] * 5, [11, 12, 13, 14, 15]
    together = policy.decide(observations, num_steps, seeds)
    views = Trajectory().views(together.path, policy.mask_id)
    scores = policy.score(policy.collate(together.rows), views)
    for row, seen in enumerate(observations):
        alone = policy.decide([seen], num_steps[row : row + 1], seeds[row : row + 1])
        assert torch.equal(alone.path.tokens_BL[0], together.path.tokens_BL[row])
        own = policy.score(policy.collate([together.rows[row]]), Trajectory().views(alone.path, policy.mask_id))
        torch.testing.assert_close(own.log_probs_BSLV[0], scores.log_probs_BSLV[row], rtol=0, atol=1e-5)
        torch.testing.assert_close(own.value_B[0], scores.value_B[row], rtol=0, atol=1e-5)
    rows = policy.make_rows(observations)
    assert len({row["words"].shape for row in rows}) == len(rows)  # the lengths did differ


def logged(directory, name):
    import csv

    with next(directory.rglob("metrics.csv")).open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_it_is_trained_as_the_page_says(my_backbone, tmp_path, monkeypatch):
    sft = re.search(r"```yaml\n# my_sft.yaml\n(.*?)```", PAGE, re.DOTALL)[1]
    (tmp_path / "my_sft.yaml").write_text(sft)
    data, run = tmp_path / "data", tmp_path / "sft"
    cli.main(
        [
            "collect",
            "--config",
            str(ROOT / "configs/collect.yaml"),
            "--out",
            str(data),
            "--num_episodes=100",
            "--expert_noise=0",
        ]
    )
    log = '{"class_path": "CSVLogger", "init_args": {"save_dir": "%s"}}'
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    words = ["--config", str(tmp_path / "my_sft.yaml"), f"--data.path={data}", f"--trainer.default_root_dir={run}"]
    cli.main(
        [
            "fit",
            *words,
            *quiet,
            "--data.batch_size=32",
            "--trainer.max_epochs=5",
            "--trainer.logger",
            log % (tmp_path / "sft-log"),
        ]
    )
    losses = logged(tmp_path / "sft-log", "train/loss")
    assert losses[-1] < 0.8 * losses[0]

    words = ["--config", str(ROOT / "configs/rl.yaml"), f"--model.policy.pretrained={run / 'policy'}"]
    words += ["--model.policy.trusted_modules=[my_backbone]", f"--trainer.default_root_dir={tmp_path / 'rl'}"]
    words += ["--trainer.max_epochs=2", "--data.episodes_per_iteration=48", "--data.evaluation.num_episodes=0"]
    words += ["--model.objective.value_warmup_iterations=0"]
    cli.main(["fit", *words, *quiet, "--trainer.logger", log % (tmp_path / "rl-log")])
    assert max(logged(tmp_path / "rl-log", "train/first_max_abs_log_ratio")) < 1e-4
    before, after = (DVLAPolicy.from_pretrained(path / "policy").state_dict() for path in (run, tmp_path / "rl"))
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert not torch.equal(before["backbone.head.weight"], after["backbone.head.weight"])
