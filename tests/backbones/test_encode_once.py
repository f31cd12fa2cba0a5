"""The benchmark of encoding once: that it compares equal results. Times are not checked here."""

import runpy
from pathlib import Path

import pytest
import torch

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "encode_once.py"
TINY = [
    "--batch",
    "2",
    "--prompt",
    "7",
    "--length",
    "6",
    "--vocab",
    "5",
    "--dim",
    "16",
    "--layers",
    "2",
    "--heads",
    "2",
]


@pytest.fixture
def benchmark():
    threads = torch.get_num_threads()
    yield runpy.run_path(str(BENCHMARK))
    torch.set_num_threads(threads)


def test_ours_and_the_naive_way_agree(benchmark, capsys):
    assert benchmark["main"]([*TINY, "--repetitions", "1", "--limit", "0"]) == 0
    printed = capsys.readouterr().out
    for row in ("sample, ours", "sample, naive", "score, ours", "score, naive", "largest difference"):
        assert row in printed


def test_logits_and_gradients_agree(benchmark):
    for case in benchmark["build_cases"](benchmark["parse"](TINY)):
        gradients = []
        for method in (case.score_ours, case.score_naive):
            logits = method()
            assert logits.shape == (2, case.num_steps, 6, 5)
            gradients.append([p.grad.clone() for p in case.backbone.parameters() if p.grad is not None])
        for ours, naive in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(case.sample_ours(), case.sample_naive(), rtol=0, atol=1e-5)


def test_too_slow_or_different_fails(benchmark, monkeypatch, capsys):
    main = benchmark["main"]
    assert main([*TINY, "--repetitions", "1", "--limit", "1e-9"]) == 1
    assert "FAILED: K = 4 costs" in capsys.readouterr().out
    monkeypatch.setitem(main.__globals__, "MAX_LOGIT_DIFFERENCE", 0.0)
    assert main([*TINY, "--repetitions", "1", "--limit", "0"]) == 1
    assert "FAILED: logits differ" in capsys.readouterr().out
