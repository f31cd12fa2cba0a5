"""The verbs without a Trainer: collect continues, report compares."""

import json
from pathlib import Path

import pytest

from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.tools import report
from dvla_lightning.tools.collect import collect
from tests.evaluations import write_evaluation


def rows(directory):
    return [json.loads(line) for line in (directory / "episodes.jsonl").read_text().splitlines()]


def collector():
    return Collector(Tabletop(), num_envs=4, progress=False)


def test_collect_continues_where_it_stopped(tmp_path, capsys):
    collect(collector(), str(tmp_path / "whole"), 10, expert_noise=0.3)
    collect(collector(), str(tmp_path / "parts"), 5, expert_noise=0.3)
    collect(collector(), str(tmp_path / "parts"), 10, expert_noise=0.3)
    found = [{(r["task"], r["initial_state"]) for r in rows(tmp_path / name)} for name in ("whole", "parts")]
    assert len(found[0]) == len(found[1]) == 10
    collect(collector(), str(tmp_path / "parts"), 10, expert_noise=0.3)
    assert len(rows(tmp_path / "parts")) == 10
    assert "(n = 2)" in capsys.readouterr().out


def test_collect_counts_failures_and_tries_further_states_and_plans(tmp_path, capsys):
    """Noise this large makes the expert fail often: what is missing is tried again, from other states in the end."""
    collect(collector(), str(tmp_path / "d"), 4, tasks="detour", expert_noise=2.0, num_attempts=2)
    outcomes = rows(tmp_path / "d")
    assert sum(row["success"] for row in outcomes) == 4 == len(list((tmp_path / "d").glob("*.npz")))
    assert any(not row["success"] and row["file"] is None for row in outcomes)
    assert {row["attempt"] for row in outcomes} == {0, 1}
    assert f"detour: kept 4 of {len(outcomes)} tried" in capsys.readouterr().out


def test_collect_refuses_a_directory_of_another_environment(tmp_path):
    collect(collector(), str(tmp_path / "d"), 5)
    with pytest.raises(UserError, match="another environment"):
        collect(Collector(Tabletop(image_size=64), progress=False), str(tmp_path / "d"), 5)
    with pytest.raises(UserError, match="another observe_every"):
        collect(collector(), str(tmp_path / "d"), 5, observe_every=2)


def test_collect_gives_up_on_an_expert_that_never_succeeds(tmp_path):
    with pytest.raises(UserError, match="the expert failed on 20 initial states of task 'detour'"):
        collect(collector(), str(tmp_path / "d"), 1, tasks="detour", expert_noise=1e9)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"outcomes": [True] * 3}, r"episodes_per_task \(2 there, 3 here\)"),
        ({"split": "selection"}, r'split \("heldout" there, "selection" here\)'),
        ({"seed": 1}, r"seed \(0 there, 1 here\)"),
        ({"environment": {"class": "Libero"}}, "environment.class"),
    ],
)
def test_report_refuses_evaluations_of_different_episodes(other, difference, tmp_path):
    before = write_evaluation(tmp_path / "before", [True, False])
    after = write_evaluation(tmp_path / "after", **{"outcomes": [True, True], **other})
    with pytest.raises(UserError, match=f"not evaluations of the same episodes; different are: {difference}"):
        report.report(before, after, str(tmp_path), str(tmp_path / "r.png"))


@pytest.mark.parametrize(
    ("num_steps", "line"),
    [(4, "held-out episodes, K = 4: success"), (2, "held-out episodes, K = 4 before and K = 2 after: success")],
)
def test_report_says_what_each_evaluation_cost(num_steps, line, tmp_path, capsys):
    before = write_evaluation(tmp_path / "before", [True, False])
    after = write_evaluation(tmp_path / "after", [True, True], num_steps=num_steps)
    with pytest.raises(UserError, match="has no TensorBoard scalar"):  # after the table
        report.report(before, after, str(tmp_path), str(tmp_path / "r.png"))
    out = capsys.readouterr().out
    assert line in out
    assert f"network evaluations per decision: 4.00 before, {num_steps:.2f} after" in out


def test_report_gives_the_paired_difference_and_what_it_leaves_out(tmp_path, capsys):
    """The airway data of Bentur 2009 as episodes, in Fagerland, Lydersen, Laake 2014: -0.507 to -0.026 before - after.

    One of 21 children after and not before, 7 before and not after; here before and after change sides.
    """
    both, only_before, only_after, neither = 1, 1, 7, 12
    before = [True] * (both + only_before) + [False] * (only_after + neither) + [None, True]
    after = [True] * both + [False] * only_before + [True] * only_after + [False] * neither + [True, None]
    paths = write_evaluation(tmp_path / "before", before), write_evaluation(tmp_path / "after", after)
    with pytest.raises(UserError, match="has no TensorBoard scalar"):
        report.report(*paths, str(tmp_path), str(tmp_path / "r.png"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("RL - SFT in points [95 %, paired, Newcombe 1998 method 10]")
    assert all(line.endswith(" +28.6 [+2.6, +50.7] (n = 21)") for line in lines[2:4])
    assert [line.split("  ")[0] for line in lines[2:4]] == ["reach", "all tasks"]
    assert lines[4] == (
        "pairs left out, because an episode ended in an error: 2 "
        "(task 'reach', initial state 21; task 'reach', initial state 22)"
    )


def test_report_without_a_single_pair_claims_nothing(tmp_path, capsys):
    paths = write_evaluation(tmp_path / "before", [None, True]), write_evaluation(tmp_path / "after", [True, None])
    with pytest.raises(UserError, match="has no TensorBoard scalar"):
        report.report(*paths, str(tmp_path), str(tmp_path / "r.png"))
    assert "+0.0 [-100.0, +100.0] (n = 0)" in capsys.readouterr().out


def test_report_refuses_paths_without_a_record_or_run(tmp_path):
    write_evaluation(tmp_path / "before", [True, False])
    good, file = str(tmp_path / "before"), str(tmp_path / "before" / "config.yaml")
    Path(file).touch()
    with pytest.raises(UserError, match=r"holds no evaluation\.jsonl"):
        report.report(file, good, good, str(tmp_path / "r.png"))
    with pytest.raises(UserError, match=r"ends in \.png"):
        report.report(good, good, good, str(tmp_path / "r.foo"))
    with pytest.raises(UserError, match="is no directory"):
        report.report(good, good, str(tmp_path / "nowhere"), str(tmp_path / "r.png"))


def test_report_draws_curve_table_and_frames(tmp_path, capsys):
    from torch.utils.tensorboard import SummaryWriter

    write_evaluation(tmp_path / "before", [False, False])
    write_evaluation(tmp_path / "after", [True, True])
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for epoch in range(3):
            writer.add_scalar("epoch", epoch, epoch * 7)
            writer.add_scalar("rollout/success_rate", epoch / 3, epoch * 7)
            for name, value in (("success_rate", 1.0), ("num_episodes", 3.0)):  # rounding must not invert a bar
                writer.add_scalar(f"val/{name}", value, epoch * 7)
    report.report(str(tmp_path / "before"), str(tmp_path / "after"), str(tmp_path / "run"), str(tmp_path / "r.png"))
    printed = capsys.readouterr().out
    assert "0.0 % [0.0, 65.8] (n = 2)" in printed and "100.0 % [34.2, 100.0] (n = 2)" in printed
    assert (tmp_path / "r.png").stat().st_size > 10_000
    assert report._scalars(tmp_path / "run", "rollout/success_rate")[0] == [0, 1, 2]


def test_long_task_names_are_told_apart_by_what_differs():
    names = [f"pick_up_the_bowl_{where}_and_place_it_on_the_plate" for where in ("next_to_the_plate", "on_the_stove")]
    assert report.short_names(names) == ["next to the plate", "on the stove"]
    assert report.short_names(["open_the_drawer_and_put_the_bowl_in_it", "turn_on_the_stove"], width=20) == [
        "open the drawer and\nput the bowl in it",
        "turn on the stove",
    ]
    assert report.short_names(["reach", "push_it"]) == ["reach", "push_it"]
    assert report.short_names(["put_the_bowl_on_top_of_the_stove"]) == ["put the bowl on top of\nthe stove"]
