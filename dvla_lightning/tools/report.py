"""`dvla report`: one table and one picture from evaluations before and after RL, and the RL run between them."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.pictures import load_strip
from dvla_lightning.evaluation.success import SuccessCount, network_evaluations, steps_text, wilson_interval
from dvla_lightning.evaluation.summary import read_counts, remark_lines
from dvla_lightning.paths import local_path
from dvla_lightning.tools.parser import run_tool


def main(args: Sequence[str]) -> None:
    """Runs the command line."""
    run_tool(report, args, "dvla report")


def report(before: str, after: str, run: str, out: str = "report.png") -> None:
    """Compares two evaluations of the same held-out episodes and draws the learning curve between them.

    Args:
        before: run directory, or evaluation.json, of `dvla validate` before RL.
        after: the same after RL.
        run: run directory of `dvla fit` with RL.
        out: PNG file to write.

    Raises:
        UserError: if something is missing, or the evaluations are not of the same episodes.
    """
    run_directory, picture = local_path(run, "--run"), local_path(out, "--out")
    if picture.suffix != ".png":
        raise UserError(f"--out {out}: give a name that ends in .png")
    record_before, counts_before = read_counts(_record_path(before))
    record_after, counts_after = read_counts(_record_path(after))
    different = [key for key in ("environment", "seed") if record_before[key] != record_after[key]]
    if different or [*_grid(record_before)] != [*_grid(record_after)]:
        raise UserError(f"{before} and {after} are not evaluations of the same episodes ({different or 'episodes'})")
    steps_before, steps_after = record_before["num_steps"], record_after["num_steps"]
    print(_table(counts_before, counts_after, steps_before, steps_after))
    for record, name in ((record_before, "before"), (record_after, "after")):
        for line in remark_lines(record):
            print(f"{line} ({name})")
    _draw(run_directory, local_path(after, "--after"), counts_before, counts_after, picture)
    print(f"picture: {out}")


def _record_path(path: str) -> Path:
    found = local_path(path, "evaluation")
    return found if found.suffix == ".json" else found / "evaluation.json"


def _grid(record: dict) -> list[tuple]:
    return [(row["task"], row["initial_state"], row["seed"]) for row in record["episodes"]]


def _table(
    before: dict[str, SuccessCount],
    after: dict[str, SuccessCount],
    steps_before: dict[str, int],
    steps_after: dict[str, int],
) -> str:
    rows = [(task, before[task], after[task]) for task in before]
    rows.append(("all tasks", sum(before.values(), SuccessCount(0, 0)), sum(after.values(), SuccessCount(0, 0))))
    width = max(len(name) for name, _, _ in rows)
    steps = steps_text(steps_after)
    if steps_before != steps_after:
        steps = f"{steps_text(steps_before)} before and {steps} after"
    lines = [f"held-out episodes, {steps}: success [95 % Wilson]", f"{'task':<{width}}  {'SFT':<34}  RL"]
    lines += [f"{name:<{width}}  {old!s:<34}  {new}" for name, old, new in rows]
    costs = [
        network_evaluations(before, steps_before).per_decision,
        network_evaluations(after, steps_after).per_decision,
    ]
    return "\n".join([*lines, f"network evaluations per decision: {costs[0]:.2f} before, {costs[1]:.2f} after"])


def _scalars(run: Path, tag: str) -> tuple[list[int], list[float]]:
    """Epoch numbers and values of a TensorBoard scalar."""
    if not run.is_dir():
        raise UserError(f"{run} is no directory: give the run directory of an RL fit")
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    if tag not in events.Tags()["scalars"]:
        raise UserError(f"{run} has no TensorBoard scalar {tag!r}: give the run directory of an RL fit")
    epochs = {event.step: event.value for event in events.Scalars("epoch")}
    found = [(round(epochs.get(event.step, 0)), event.value) for event in events.Scalars(tag)]
    return [epoch for epoch, _ in found], [value for _, value in found]


def _draw(run: Path, after: Path, old: dict[str, SuccessCount], new: dict[str, SuccessCount], out: Path) -> None:
    strips = {name: path for name in ("success", "failure") if (path := _picture(name, after, run))}
    figure = plt.figure(figsize=(10, 3.5 + 1.35 * len(strips)), constrained_layout=True)
    grid = figure.add_gridspec(1 + len(strips), 2, height_ratios=[2.5] + len(strips) * [1])
    _draw_curve(figure.add_subplot(grid[0, 0]), run)
    _draw_bars(figure.add_subplot(grid[0, 1]), old, new)
    for row, (name, path) in enumerate(strips.items(), 1):
        axes = figure.add_subplot(grid[row, :])
        axes.axis("off")
        strip, instruction = load_strip(path)
        axes.imshow(strip)
        axes.set_title(f"{name}: {instruction}", fontsize=9, loc="left")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _picture(name: str, *directories: Path) -> Path | None:
    """The first that exists of the recorded episodes with this name."""
    paths = [directory / "pictures" / f"{name}.png" for directory in directories]
    return next((path for path in paths if path.exists()), None)


def _draw_curve(axes: Axes, run: Path) -> None:
    epochs, values = _scalars(run, "rollout/success_rate")
    axes.plot(epochs, [100 * value for value in values], label="training episodes", color="tab:blue", alpha=0.6)
    try:
        held_epochs, held = _scalars(run, "val/success_rate")
    except UserError:
        held = []
    if held:
        low, high = _scalars(run, "val/success_rate_low")[1], _scalars(run, "val/success_rate_high")[1]
        below = [max(0.0, 100 * (v - x)) for v, x in zip(held, low, strict=True)]
        above = [max(0.0, 100 * (x - v)) for v, x in zip(held, high, strict=True)]
        percent = [100 * value for value in held]
        axes.errorbar(held_epochs, percent, [below, above], fmt="o", color="tab:red", label="held-out, 95 % Wilson")
    axes.set(xlabel="RL iteration", ylabel="success (%)", ylim=(0, 102), title="learning curve")
    axes.legend(loc="lower right", fontsize=8)


def _draw_bars(axes: Axes, old: dict[str, SuccessCount], new: dict[str, SuccessCount]) -> None:
    for offset, counts, label in ((-0.2, old, "SFT"), (0.2, new, "RL")):
        rates = [100 * count.rate for count in counts.values()]
        ends = [wilson_interval(count.successes, count.n) for count in counts.values()]
        below = [max(0.0, rate - 100 * low) for rate, (low, _) in zip(rates, ends, strict=True)]
        above = [max(0.0, 100 * high - rate) for rate, (_, high) in zip(rates, ends, strict=True)]
        positions = [n + offset for n in range(len(rates))]
        axes.barh(positions, rates, 0.4, xerr=[below, above], capsize=3, label=label)
    sizes = {count.n for count in new.values()}
    axes.set_yticks(range(len(new)), short_names(list(new)), fontsize=9)
    axes.invert_yaxis()
    title = f"held-out success, n = {'/'.join(map(str, sorted(sizes)))} per task"
    axes.set(xlim=(0, 102), xlabel="success (%)", title=title)
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
    """How many words all lists begin with."""
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*lists, strict=False)))
