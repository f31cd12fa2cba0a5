"""Table rows of made-up records, by hand; the page and its pictures."""

from benchmarks.settle import report, schedule_tables, tables
from benchmarks.settle.arms import CONFIDENCE, MARGIN, WARMUP
from benchmarks.settle.results import Results
from tests.benchmarks.settle_records import arm_records, record


def row(table, label):
    """The cells of the line that begins with a label."""
    line = next(line for line in table.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_constants_are_those_of_the_configurations():
    assert (MARGIN, CONFIDENCE, WARMUP) == (0.05, 0.95, 2)


def test_rl_against_sft():
    results = Results([*arm_records("sft-max_prob-K4", [140, 150]), *arm_records("trajectory-K4", [180, 190])])
    table = tables.rl_against_sft(results)
    assert table.startswith("2 seeds x 200 episodes; success in percent: mean over seeds [95 % t-interval]. Pooled:")
    # deviation 0.0354, half-width 12.706 * 0.0354 / sqrt 2 = 0.318
    cells = row(table, "K = 4")
    assert cells[:3] == ["72.5 [40.7, 100.0]", "92.5 [60.7, 100.0]", "+20.0 [+20.0, +20.0]"]
    assert cells[3:] == ["290/400 [67.9, 76.6]", "370/400 [89.5, 94.7]", "4.00"]
    assert row(table, "K = 1") == ["not run"] * 6


def test_one_seed_has_its_wilson_interval():
    table = tables.rl_against_sft(Results([record("sft-max_prob-K4", 0, 145)]))
    assert table.startswith("1 seed x 200 episodes;")
    assert row(table, "K = 4")[0] == "145/200 [65.9, 78.2] (one seed)"


def test_estimators_show_detour_worst_seed_and_time():
    results = Results([*arm_records("trajectory-K4", [180, 190]), *arm_records("last_step-K4", [150, 140])])
    table = tables.estimators(results)
    assert "2 seeds x 200 episodes (100 of detour)" in table
    cells = row(table, "last_step, K = 4")
    assert cells[1] == "-20.0 [-83.5, +43.5]"  # -15 and -25 points: 12.706 * 0.0707 / sqrt 2 = 0.635
    assert cells[4:] == ["140/200 [63.3, 75.9]", "0.020", "1.00"]
    assert row(table, "trajectory, K = 4")[1] == "-"
    assert row(table, "coupled1, K = 2") == ["not run"] * 7


def test_scheduling_bound_is_over_seeds():
    mixed = {"reach": 1, "detour": 2}
    before = {"num_steps": mixed, "episodes": 600, "seconds": 30.0}
    scheduled = [record("schedule", s, n, mixed, schedule_before=before) for s, n in enumerate((189, 192, 192))]
    table = schedule_tables.scheduling(Results([*arm_records("trajectory-K4", [190, 190, 190]), *scheduled]))
    # differences -0.5, 1, 1 points: mean 0.5, deviation 0.866, bound 0.5 - 2.92 * 0.866 / sqrt 3 = -0.96
    cells = row(table, "RL, schedule of the SFT policy")
    assert cells[1:] == ["+0.5 [-1.7, +2.7]", "-1.0 (yes)", "1.50", "3.0", "1.00"]
    assert "takes 600 episodes, about 30 s on one core, training an arm 5,120." in table


def test_schedules_by_seed():
    before, after = ({"num_steps": {"reach": k}, "episodes": 1, "seconds": None} for k in (4, 1))
    results = Results([record("sft-schedule", 0, 150, schedule_before=before),
                       record("schedule", 0, 150, schedule_after=after)])  # fmt: skip
    assert row(schedule_tables.schedules(results), "0") == ["reach 4", "not run", "reach 1"]


def test_clip_fraction_leaves_out_the_value_warmup():
    cells = row(tables.variations(Results(arm_records("trajectory-K4", [150, 160]))), "ratio level: chunk - token")
    assert cells[1:] == ["not run", "not run", "0.200", "not run"]


def test_commit_order_that_was_not_trained():
    table = tables.commit_orders(Results(arm_records("sft-gumbel-K2", [150, 160], 2)))
    assert row(table, "gumbel, K = 2")[2:] == ["-"] * 3
    assert row(table, "random, K = 2") == ["not run"] * 5


def test_page_and_pictures(tmp_path):
    page = tmp_path / "experiment.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    results = Results([*arm_records("trajectory-K4", [180, 190]), *arm_records("sft-max_prob-K4", [140, 150])])
    for _ in range(2):
        report.write(results, "the bandit", page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert text.count("the bandit") == 1
    assert {file.name for file in (tmp_path / "settle").iterdir()} == {"success.png", "curves.png", "cost.png"}
    assert report.headline(results) == "4 records; RL at K = 4, 2 seeds pooled [95 % Wilson]: 370/400 [89.5, 94.7]"


def test_page_of_no_records(tmp_path):
    page = tmp_path / "experiment.md"
    page.write_text(f"{report.BEGIN}{report.END}")
    report.write(Results([]), "", page)
    assert "Not run yet." in page.read_text()
