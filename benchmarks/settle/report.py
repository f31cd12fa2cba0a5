"""Writes the tables of docs/experiment.md: what the paper found, and whether it was found here."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from benchmarks.settle import plots, schedule_tables, tables
from benchmarks.settle.arms import SCHEDULE_EPISODES
from benchmarks.settle.findings import findings
from benchmarks.settle.results import Results

WIDTH = 120
BEGIN, END = "<!-- settle: begin -->", "<!-- settle: end -->"


def write(results: Results, bandit: str, page: Path) -> None:
    """Replaces the text between the markers of a page, and draws the pictures beside it.

    Args:
        results: all records.
        bandit: tables of the bandit, in Markdown.
        page: has the two markers.
    """
    folder = page.parent / "settle"
    folder.mkdir(parents=True, exist_ok=True)
    plots.draw_all(results, folder)
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{wrapped(section(results, bandit))}\n\n{END}{after}")


def section(results: Results, bandit: str) -> str:
    """The Markdown between the markers."""
    return "\n\n".join(
        [
            "## The paper's three findings",
            findings(results),
            "## RL against SFT at the same inference budget",
            tables.rl_against_sft(results),
            "![success of every arm and seed](settle/success.png)",
            "## Estimators",
            tables.estimators(results),
            "![learning curves by estimator](settle/curves.png)",
            "## Step schedule",
            schedule_tables.scheduling(results),
            "![success against network evaluations](settle/cost.png)",
            f"The schedules, measured on {SCHEDULE_EPISODES:,} training episodes of each task at each K:",
            schedule_tables.schedules(results),
            "## Ratio level and selection term",
            tables.variations(results),
            "## Commit order",
            tables.commit_orders(results),
            "## Bias and variance of the gradient, by enumeration",
            bandit,
        ]
    )


def wrapped(markdown: str) -> str:
    """Breaks long lines; tables and pictures keep theirs."""
    return "\n".join(line if line.startswith(("|", "!")) else _wrapped_line(line) for line in markdown.splitlines())


def _wrapped_line(line: str) -> str:
    bullet = re.match(r" *(?:(?:\d+\.|-) )?", line)
    indent = " " * (len(bullet[0]) if bullet else 0)
    return textwrap.fill(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def headline(results: Results) -> str:
    """One line for the terminal."""
    arm = "trajectory-K4"
    seeds = len(results.seeds(arm))
    return f"{len(results.by_key)} records; RL at K = 4, {seeds} seeds pooled [95 % Wilson]: {results.pooled(arm)}"
