"""A run says what it does, and nothing about other people's products."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOISE = ("Tip:", "litlogger", "GPU available:", "TPU available:")
CODE = """
import json, sys
from lightning import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_module, rank_zero_warn
from dvla_lightning.callbacks import SavePolicy
from dvla_lightning.cli import main

def warn(*args):
    rank_zero_warn("look at this")
    rank_zero_module.log.warning("GPU available: but on fire")

SavePolicy.on_train_start = warn
for words in json.loads(sys.argv[1]):
    main(words)
print("--- Lightning by itself:", file=sys.stderr, flush=True)
Trainer(accelerator="cpu", logger=False)
"""


def test_on_a_terminal_nothing_is_advertised_and_warnings_stay(tiny_policy, tmp_path):
    tiny_policy.save_pretrained(tmp_path / "policy")
    common = ["--config", "configs/rl.yaml", "--data.evaluation.num_episodes", "5", "--trainer.accelerator", "cpu"]
    common += ["--model.policy.pretrained", str(tmp_path / "policy")]
    common += ["--trainer.default_root_dir", str(tmp_path / "run")]
    fit = ["fit", *common, "--data.episodes_per_iteration", "5", "--trainer.max_epochs", "1"]
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps([fit, ["validate", *common]])],
        cwd=ROOT, text=True, capture_output=True, timeout=250, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, bare = (done.stdout + done.stderr).split("--- Lightning by itself:")
    assert "held-out episodes" in said and "max_epochs=1` reached" in said
    assert "look at this" in said and "GPU available: but on fire" in said
    said = said.replace("GPU available: but on fire", "")
    assert not [word for word in NOISE if word in said] and "weights_only" not in said
    assert all(word in bare for word in NOISE)
