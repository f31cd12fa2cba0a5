"""Two ranks on one machine: they meet where nobody else can, and end together with one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOOPBACK = "0100007F"  # 127.0.0.1 in /proc/net/tcp


@pytest.fixture
def fit(tiny_policy, tmp_path):
    """Runs two ranks; the exit code and what was said to the user."""
    tiny_policy.save_pretrained(tmp_path / "start")

    def run(rank, how, **options):
        options = {
            "model.policy.pretrained": tmp_path / "start",
            "data.evaluation.num_episodes": 0,
            "data.episodes_per_iteration": 6,
            "data.collector.progress": "false",
            "trainer.default_root_dir": tmp_path / "run",
            "trainer.accelerator": "cpu",
            "trainer.strategy": "ddp",
            "trainer.devices": 2,
            "trainer.max_epochs": 1,
            "trainer.enable_progress_bar": "false",
            "trainer.callbacks": "tests.failing_rank.FailingRank",
            "trainer.callbacks.rank": rank,
            "trainer.callbacks.how": how,
            **options,
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        command = [sys.executable, "-m", "dvla_lightning.cli", "fit", "--config", str(ROOT / "configs" / "rl.yaml")]
        environment = {name: x for name, x in os.environ.items() if name not in ("MASTER_ADDR", "MASTER_PORT")}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        # stderr is read until the last rank has ended: all of them write to it.
        done = subprocess.run([*command, *words], capture_output=True, text=True, env=environment, cwd=ROOT)
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return done.returncode, [line for line in said if line.startswith("dvla: error:")], said

    return run


@pytest.mark.parametrize("rank", [1, -1])
def test_the_sentence_of_any_rank_is_said_once_and_last(rank, fit):
    code, sentences, said = fit(rank, "error")
    assert code == 2 and sentences == [f"dvla: error: the scale of rank {rank} is wrong: mend it"] == said[-1:]
    assert not any("Traceback" in line or "Connection" in line for line in said)


def test_a_killed_rank_ends_the_other_one_and_all_sockets_were_on_loopback(fit, tmp_path):
    code, sentences, said = fit(1, "kill", **{"trainer.callbacks.sockets": tmp_path / "sockets"})
    assert code == 2 and len(sentences) == 1 and sentences == said[-1:]
    assert "rank 1 was killed (SIGKILL; out of memory?)" in sentences[0] and "--ckpt_path auto" in sentences[0]
    listening = [json.loads((tmp_path / f"sockets-{rank}").read_text()) for rank in (0, 1)]
    assert len(listening[0]) >= 2 and len(listening[1]) >= 1  # the rendezvous and gloo; gloo
    assert {address for each in listening for address in each} == {LOOPBACK}


def test_a_killed_rank_0_ends_the_other_one(fit):
    code, sentences, said = fit(0, "kill")
    assert code == -9 and sentences == said[-1:]
    assert "rank 0 ended without a word" in sentences[0]
