"""Records: the few numbers that each arm of each seed leaves behind, kept in one JSON file.

The file has `arms` (name -> `Arm.options` when the records were made) and `records`, one line each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.settle.arms import ARMS, BY_NAME
from benchmarks.settle.run_folder import difference, is_finished
from dvla_lightning.evaluation.manifest import read_whole_evaluation
from dvla_lightning.evaluation.step_schedule import StepSchedule
from dvla_lightning.evaluation.success import count_by_task

CURVES = ("rollout/success_rate", "train/approx_kl", "train/clip_fraction", "train/first_max_abs_log_ratio")
TIMES = ("time/collect_seconds", "time/update_seconds")
Record = dict[str, Any]


def read_unit(folder: Path, seed: int, arm: str) -> Record:
    """The record of one finished unit.

    Args:
        folder: of its run.
        seed: of the SFT policy and of RL.
        arm: its name.

    Returns:
        num_steps: task -> K.
        tasks: task -> [successes, episodes that ran, errors, decisions].
        outcomes: every episode's success in the order of the held-out grid, as the hexadecimal number of the bits
            after a leading 1.
        curves, seconds: of the training, if there was one.
        schedule_before, schedule_after: schedules measured before and after RL, where there are any: num_steps, and
            what measuring cost in episodes and seconds (null: not timed).
    """
    header, records = read_whole_evaluation(folder)
    counts = count_by_task(header["num_steps"], records.values())
    tasks = {task: [count.successes, count.n, count.errors, count.decisions] for task, count in counts.items()}
    bits = "".join("01"[records[key].success] for key in sorted(records))
    record: Record = {"seed": seed, "arm": arm, "num_steps": header["num_steps"], "tasks": tasks}
    record["outcomes"] = f"{int('1' + bits, 2):x}"
    if (folder / "config.yaml").exists():
        events = EventAccumulator(str(folder))
        events.Reload()
        logged = {tag: [event.value for event in events.Scalars(tag)] for tag in (*CURVES, *TIMES)}
        record["curves"] = {tag: [float(f"{x:.4g}") for x in logged[tag]] for tag in CURVES}
        record["seconds"] = {tag: round(sum(logged[tag]), 1) for tag in TIMES}
    for name, place in (("schedule_before", folder.parent), ("schedule_after", folder)):
        if (place / "schedule.yaml").exists():
            record[name] = _schedule(place)
    return record


def _schedule(folder: Path) -> Record:
    """A schedule, and what measuring it cost."""
    schedule = StepSchedule.read(folder / "schedule.yaml")
    rows = [row for task in schedule.evidence["tasks"].values() for row in task]
    num_episodes = sum(row["n"] + row["errors"] for row in rows)
    return {"num_steps": dict(schedule), "episodes": num_episodes, "seconds": _seconds(folder)}


def _seconds(folder: Path) -> float | None:
    """Seconds of `dvla schedule`; where run.py did not write them, from the times of the files around it."""
    if (folder / "schedule.seconds").exists():
        return float((folder / "schedule.seconds").read_text())
    weights = folder / "policy" / "model.safetensors"
    if not weights.exists():
        return None
    seconds = (folder / "schedule.yaml").stat().st_mtime - weights.stat().st_mtime
    return round(seconds, 1) if 1 < seconds < 3600 else None  # else a copy's times


def gather(runs: Path, file: Path) -> list[Record]:
    """All records: those in `file`, and those of `runs`, which replace older ones; `file` is brought up to date.

    What belongs to no arm, or to an arm that was another one then, is left out, with a printed note.
    """
    known = _kept(file) if file.exists() else {}
    for folder in sorted(runs.glob("seed-*")):
        seed = int(folder.name.removeprefix("seed-"))
        for arm in ARMS:
            if is_finished(folder / arm.name):
                changed = difference(folder / arm.name, arm)
                if changed:
                    print(f"{folder / arm.name} is left out: {changed}")
                else:
                    known[seed, arm.name] = read_unit(folder / arm.name, seed, arm.name)
    order = {arm.name: number for number, arm in enumerate(ARMS)}
    records = sorted(known.values(), key=lambda r: (r["seed"], order[r["arm"]]))
    _write(records, file)
    return records


def _kept(file: Path) -> dict[tuple[int, str], Record]:
    """(seed, arm) -> record of the arms that are still what they were."""
    content = json.loads(file.read_text())
    known = {}
    for record in content["records"]:
        name = record["arm"]
        if name not in BY_NAME:
            print(f"{file}: seed {record['seed']}, {name} is left out: there is no such arm")
        elif content["arms"].get(name) != BY_NAME[name].options():
            print(f"{file}: seed {record['seed']}, {name} is left out: the arm has changed since")
        else:
            known[record["seed"], name] = record
    return known


def _write(records: Sequence[Record], file: Path) -> None:
    names = dict.fromkeys(record["arm"] for record in records)
    arms = ",\n".join(f"{json.dumps(name)}: {json.dumps(BY_NAME[name].options())}" for name in names)
    lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in records)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(f'{{"arms": {{\n{arms}\n}},\n"records": [\n{lines}\n]}}\n')
    partial.replace(file)
