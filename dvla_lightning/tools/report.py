"""`dvla report`: one table and one picture from evaluations before and after RL, and the RL run between them."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dvla_lightning.envs.base import SPLIT_NAMES
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.comparison import Comparison, check_comparable, compare
from dvla_lightning.evaluation.header import Header
from dvla_lightning.evaluation.manifest import read_whole_evaluation
from dvla_lightning.evaluation.pictures import load_strip
from dvla_lightning.evaluation.records import EpisodeKey, EpisodeRecord
from dvla_lightning.evaluation.success import (
    SuccessCount,
    count_by_task,
    network_evaluations,
    steps_text,
    wilson_interval,
)
from dvla_lightning.evaluation.summary import remark_lines
from dvla_lightning.files import whole_file
from dvla_lightning.paths import local_path
from dvla_lightning.tools.parser import run_tool

SHOWN = 5  # of the pairs that are left out


def main(args: Sequence[str]) -> None:
    """Runs the command line."""
    run_tool(report, args, "dvla report")


def report(before: str, after: str, run: str, out: str = "report.png") -> None:
    """Compares two evaluations of the same episodes and draws the learning curve between them.

    Args:
        before: run directory of `dvla validate` before RL.
        after: the same after RL.
        run: run directory of `dvla fit` with RL.
        out: PNG file to write.

    Raises:
        UserError: if something is missing, or the evaluations are not of the same episodes.
    """
    run_directory, picture = local_path(run, "--run"), local_path(out, "--out")
    if picture.suffix != ".png":
        raise UserError(f"--out {out}: give a name that ends in .png")
    directories = local_path(before, "--before"), local_path(after, "--after")
    (header_before, records_before), (header_after, records_after) = map(read_whole_evaluation, directories)
    check_comparable(header_before, header_after)
    compared = compare(header_before["num_steps"], records_before, records_after)
    sides = Side.of(header_before, records_before), Side.of(header_after, records_after)
    title = f"{SPLIT_NAMES[header_after['split']]} episodes"
    print(_table(title, *sides, compared))
    for header, name in ((header_before, "before"), (header_after, "after")):
        for line in remark_lines(header):
            print(f"{line} ({name})")
    _draw(run_directory, directories[1], title, *sides, compared, picture)
    print(f"picture: {out}")


class Side(NamedTuple):
    """One of the two evaluations: task -> its count, and task -> K."""

    counts: dict[str, SuccessCount]
    num_steps: dict[str, int]

    @classmethod
    def of(cls, header: Header, records: Mapping[EpisodeKey, EpisodeRecord]) -> Side:
        return cls(count_by_task(header["num_steps"], records.values()), header["num_steps"])


def _table(title: str, before: Side, after: Side, compared: Comparison) -> str:
    rows = [(task, before.counts[task], after.counts[task], compared.by_task[task]) for task in before.counts]
    old_total, new_total = (sum(side.counts.values(), SuccessCount(0, 0)) for side in (before, after))
    rows.append(("all tasks", old_total, new_total, compared.total))
    width = max(len(name) for name, *_ in rows)
    steps = steps_text(after.num_steps)
    if before.num_steps != after.num_steps:
        steps = f"{steps_text(before.num_steps)} before and {steps} after"
    lines = [
        f"{title}, {steps}: success [95 % Wilson]; RL - SFT in points [95 %, paired, Newcombe 1998 method 10]",
        f"{'task':<{width}}  {'SFT':<34}  {'RL':<34}  RL - SFT",
    ]
    lines += [f"{name:<{width}}  {old!s:<34}  {new!s:<34}  {difference}" for name, old, new, difference in rows]
    if compared.dropped:
        shown = "; ".join(map(str, compared.dropped[:SHOWN])) + ("; ..." if len(compared.dropped) > SHOWN else "")
        lines.append(f"pairs left out, because an episode ended in an error: {len(compared.dropped)} ({shown})")
    costs = [network_evaluations(*side).per_decision for side in (before, after)]
    return "\n".join([*lines, f"network evaluations per decision: {costs[0]:.2f} before, {costs[1]:.2f} after"])


def _scalars(run: Path, tag: str) -> tuple[list[int], list[float]]:
    """Epoch numbers and values of a TensorBoard scalar."""
    if not run.is_dir():
        raise UserError(f"{run} is no directory: give the run directory of an RL fit")
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    if missing := {tag, "epoch"} - set(events.Tags()["scalars"]):
        raise UserError(f"{run} has no TensorBoard scalar {max(missing)!r}: give the run directory of an RL fit")
    epochs = {event.step: event.value for event in events.Scalars("epoch")}
    found = [(round(epochs.get(event.step, 0)), event.value) for event in events.Scalars(tag)]
    return [epoch for epoch, _ in found], [value for _, value in found]


def _draw(run: Path, directory: Path, title: str, before: Side, after: Side, compared: Comparison, out: Path) -> None:
    strips = {name: path for name in ("success", "failure") if (path := _picture(name, directory, run))}
    figure = plt.figure(figsize=(10, 3.5 + 1.35 * len(strips)), constrained_layout=True)
    grid = figure.add_gridspec(1 + len(strips), 2, height_ratios=[2.5] + len(strips) * [1])
    _draw_curve(figure.add_subplot(grid[0, 0]), run)
    _draw_bars(figure.add_subplot(grid[0, 1]), title, before.counts, after.counts, compared)
    for row, (name, path) in enumerate(strips.items(), 1):
        axes = figure.add_subplot(grid[row, :])
        axes.axis("off")
        strip, instruction = load_strip(path)
        axes.imshow(strip)
        axes.set_title(f"{name}: {instruction}", fontsize=9, loc="left")
    with whole_file(out) as partial:
        figure.savefig(partial, dpi=110, format="png")
    plt.close(figure)


def _picture(name: str, *directories: Path) -> Path | None:
    """The first picture with this name that exists."""
    paths = [directory / "pictures" / f"{name}.png" for directory in directories]
    return next((path for path in paths if path.exists()), None)


def _draw_curve(axes: Axes, run: Path) -> None:
    epochs, values = _scalars(run, "rollout/success_rate")
    axes.plot(epochs, [100 * value for value in values], label="training episodes", color="tab:blue", alpha=0.6)
    try:
        epochs, rates = _scalars(run, "val/success_rate")
        _, sizes = _scalars(run, "val/num_episodes")  # logged together with the rates
    except UserError:
        rates = []
    if rates:
        ends = [wilson_interval(round(rate * n), round(n)) for rate, n in zip(rates, sizes, strict=True)]
        percent = [100 * rate for rate in rates]
        label = "selection episodes, 95 % Wilson"
        axes.errorbar(epochs, percent, _whiskers(rates, ends), fmt="o", color="tab:red", label=label)
    axes.set(xlabel="RL iteration", ylabel="success (%)", ylim=(0, 102), title="learning curve")
    axes.legend(loc="lower right", fontsize=8)


def _whiskers(rates: Sequence[float], ends: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Percent from each rate down and up to the ends of its interval; rounding must not make one negative."""
    below = [max(0.0, 100 * (rate - low)) for rate, (low, _) in zip(rates, ends, strict=True)]
    above = [max(0.0, 100 * (high - rate)) for rate, (_, high) in zip(rates, ends, strict=True)]
    return below, above


def _draw_bars(
    axes: Axes, title: str, old: dict[str, SuccessCount], new: dict[str, SuccessCount], compared: Comparison
) -> None:
    for offset, counts, label in ((-0.2, old, "SFT"), (0.2, new, "RL")):
        rates = [count.rate for count in counts.values()]
        whiskers = _whiskers(rates, [wilson_interval(count.successes, count.n) for count in counts.values()])
        positions = [n + offset for n in range(len(rates))]
        axes.barh(positions, [100 * rate for rate in rates], 0.4, xerr=whiskers, capsize=3, label=label)
    sizes = {count.n for count in new.values()}
    axes.set_yticks(range(len(new)), short_names(list(new)), fontsize=9)
    axes.invert_yaxis()
    title = f"{title}, n = {'/'.join(map(str, sorted(sizes)))} per task\nRL - SFT {str(compared.total).strip()} points"
    axes.set(xlim=(0, 102), xlabel="success (%)")
    axes.set_title(title, fontsize="medium")
    axes.legend(loc="lower left", fontsize=8)


def short_names(tasks: Sequence[str], width: int = 22) -> list[str]:
    """Names for a picture: long ones without the words that all tasks begin and end with, in lines of `width`."""
    if max(map(len, tasks)) <= width:
        return list(tasks)
    words = [task.split("_") for task in tasks]
    begin = end = 0
    if len(tasks) > 1:
        begin = _num_shared(words)
        end = _num_shared([task[begin:][::-1] for task in words])
    return [textwrap.fill(" ".join(task[begin : len(task) - end]), width) for task in words]


def _num_shared(lists: Sequence[Sequence[str]]) -> int:
    """Number of words that all lists begin with."""
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*lists, strict=False)))
