"""The tables about step schedules: success, network evaluations, the schedules themselves."""

from __future__ import annotations

import statistics

from benchmarks.settle.arms import CONFIDENCE, EPISODES_PER_ITERATION, MARGIN, NUM_ITERATIONS
from benchmarks.settle.records import Record
from benchmarks.settle.results import NOT_RUN, Results, evaluations, seconds
from benchmarks.settle.tables import SAME, caption_size, markdown


def scheduling(results: Results) -> str:
    """Fixed K against the schedule, before and after RL: success and cost."""
    rows, arms = [], []
    for stage, fixed, scheduled in (
        ("SFT", "sft-max_prob-K{}", {"schedule": "sft-schedule"}),
        ("RL", "trajectory-K{}", {"schedule of the SFT policy": "schedule"}),
    ):
        baseline = fixed.format(4)
        group = {f"K = {k}": fixed.format(k) for k in (1, 2, 4)} | scheduled
        rows += [[f"{stage}, {label}", *_costs(results, arm, baseline)] for label, arm in group.items()]
        arms += group.values()
    header = ["steps", "success", "- K = 4", f"bound (within {100 * MARGIN:.0f} points)", "evaluations / decision"]
    header += ["/ episode", "time"]
    caption = (
        f"{caption_size(results, arms)} Bound: one-sided {100 * CONFIDENCE:.0f} % t-bound over seeds of the difference "
        f"to K = 4. Time is that of RL, without measuring schedules. {measuring_cost(results)}"
    )
    return f"{caption}\n\n{markdown(header, rows)}"


def _costs(results: Results, arm: str, baseline: str) -> list[str]:
    difference = results.difference(arm, baseline)
    if difference is None:
        bound = NOT_RUN
    elif difference.seeds < 2:
        bound = "one seed"
    else:
        bound = f"{100 * difference.lower_bound:+.1f} ({'yes' if difference.lower_bound >= -MARGIN else 'no'})"
    is_trained = not arm.startswith("sft")
    return [
        results.success(arm),
        SAME if arm == baseline else results.gain(arm, baseline),
        SAME if arm == baseline else bound,
        results.mean(evaluations, arm),
        results.mean(lambda r: evaluations(r, per_episode=True), arm, form=".1f"),
        results.mean(lambda r, b: seconds(r) / seconds(b), arm, baseline) if is_trained else SAME,
    ]


def schedules(results: Results) -> str:
    """The schedule of each seed before and after RL."""
    columns = {
        "SFT policy": ("schedule_before", "sft-schedule"),
        "after RL at K = 4": ("schedule_after", "trajectory-K4"),
        "after RL with the schedule": ("schedule_after", "schedule"),
    }
    every = sorted({seed for _, seed in results.by_key})
    rows = []
    for seed in every:
        records = [results.by_key.get((arm, seed), {}).get(key) for key, arm in columns.values()]
        rows.append([str(seed), *(_steps(record) for record in records)])
    return markdown(["seed", *columns], rows)


def _steps(measured: Record | None) -> str:
    return ", ".join(f"{task} {k}" for task, k in measured["num_steps"].items()) if measured else NOT_RUN


def measuring_cost(results: Results) -> str:
    """What measuring schedules cost, beside the episodes that every arm is trained on."""
    found = [
        record[key]
        for record in results.by_key.values()
        for key in ("schedule_before", "schedule_after")
        if key in record
    ]
    if not found:
        return "No schedule was measured."
    episodes = sorted({measured["episodes"] for measured in found})
    times = [measured["seconds"] for measured in found if measured["seconds"] is not None]
    took = f", about {statistics.median(times):.0f} s on one core" if times else ""
    measuring = " or ".join(f"{n:,}" for n in episodes)
    training = f"{NUM_ITERATIONS * EPISODES_PER_ITERATION:,}"
    return f"Measuring one schedule takes {measuring} episodes{took}, training an arm {training}."
