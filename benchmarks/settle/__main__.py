"""`python -m benchmarks.settle`: runs what is missing of the experiment and writes its tables and pictures.

It can be interrupted at any time and started again: what is finished is not run again. Five seeds take about 90
minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.settle import bandit, bandit_tables, report
from benchmarks.settle.records import gather
from benchmarks.settle.results import Results
from benchmarks.settle.run import run_all


def main() -> int:
    """Returns the exit code: 1 if an arm failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/settle"), help="where the runs lie")
    parser.add_argument(
        "--results", type=Path, default=Path("docs/settle/results.json"), help="records of finished arms"
    )
    parser.add_argument("--page", type=Path, default=Path("docs/experiment.md"), help="where the tables go")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4], help="none: only write the report")
    parser.add_argument("--jobs", type=int, default=2, help="arms that run side by side, one core each")
    options = parser.parse_args()
    failures = run_all(options.runs.resolve(), options.seeds, options.jobs)
    results = Results(gather(options.runs, options.results))
    report.write(results, bandit_tables.tables(bandit.run(options.results.with_name("bandit.json"))), options.page)
    print(report.headline(results))
    print(f"tables: {options.page}")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
