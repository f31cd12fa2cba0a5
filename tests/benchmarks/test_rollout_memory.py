"""Decisions cost little more memory than their pictures."""

import re
import subprocess
import sys

import pytest


def test_a_decision_is_kept_once():
    """In a process of its own: what earlier tests have freed would be used again."""
    command = [sys.executable, "-m", "benchmarks.rollout_memory", "640"]  # 240 MiB of pictures
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert out.startswith("640 decisions: ") and " 240 MiB of pictures" in out
    assert float(re.search(r"([\d.]+) x its pictures", out)[1]) == pytest.approx(1.0, abs=0.4)
