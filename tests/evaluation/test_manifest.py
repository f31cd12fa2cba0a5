"""The manifest: what a kill leaves behind, what it refuses, and what is made of it."""

import dataclasses
import importlib.metadata
import json
import subprocess
import sys

import pytest

import dvla_lightning
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.errors import UserError
from dvla_lightning.evaluation import manifest
from dvla_lightning.evaluation.header import differences, grid, make_header
from dvla_lightning.evaluation.manifest import (
    Manifest,
    read_directory,
    read_evaluation,
    read_file,
    read_whole_evaluation,
)
from dvla_lightning.evaluation.records import EpisodeRecord, one_per_episode
from dvla_lightning.evaluation.specs import evaluation_seed
from dvla_lightning.evaluation.summary import evaluation_table
from tests.full_disk import largest_file


@pytest.fixture
def header(tiny_policy):
    return make_header(Tabletop(), tiny_policy, "heldout", {"reach": 4, "push": 2}, 2, 0, "32-true")


def record(task="reach", state=0, success=True, error=None, steps=5):
    seed = evaluation_seed("heldout", 0, task, state)
    return EpisodeRecord(task, state, seed, {"reach": 4, "push": 2}[task], success, steps, 2, 0.5, error)


def written(directory, header, records):
    kept = Manifest(directory, header)
    kept.begin()
    for row in records:
        kept.append(row)
    kept.close()
    return kept.path


def test_a_manifest_is_a_header_and_a_line_per_episode(header, tmp_path):
    path = written(tmp_path / "new", header, [record(), record("push", success=False)])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(len(line.pop("chain")) == 16 for line in lines)
    assert lines[0] == header and {"policy", "environment", "seed", "num_steps", "sampler", "versions"} <= set(header)
    assert lines[1] == dataclasses.asdict(record())
    assert set(lines[1]) == {
        "task", "initial_state", "seed", "num_steps", "success", "num_env_steps", "num_decisions", "seconds", "error"
    }  # fmt: skip
    again = Manifest(path.parent, header)
    assert list(again.found.values()) == [record(), record("push", success=False)]


@pytest.mark.parametrize("cut", [1, 30])
def test_a_line_that_was_cut_short_is_dropped_and_overwritten(cut, header, tmp_path):
    path = written(tmp_path, header, [record(), record(state=1)])
    path.write_bytes(path.read_bytes()[:-cut])
    again = Manifest(tmp_path, header)
    assert list(again.found.values()) == [record()]
    again.begin()
    again.append(record("push"))
    again.close()
    assert read_file(path).records == [record(), record("push")]


def test_a_header_that_was_cut_short_is_written_again(header, tmp_path):
    path = written(tmp_path, header, [])
    path.write_bytes(path.read_bytes()[:-5])
    assert written(tmp_path, header, [record()]) == path
    assert read_file(path).header == header and read_file(path).records == [record()]


@pytest.mark.parametrize(
    ("line", "content"),
    [(1, b"{}"), (1, b"[]"), (2, b'{"task": "reach"}'), (2, b"\x00\x00\xff"), (3, b'{"initial_state": 1')],
)
def test_a_damaged_line_is_named(line, content, header, tmp_path):
    path = written(tmp_path, header, [record(), record(state=1)])
    lines = path.read_bytes().splitlines()
    lines[line - 1] = content
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(UserError, match=rf"damaged in line {line} \(.*\): delete the file"):
        Manifest(tmp_path, header)


def test_another_evaluation_is_refused_and_the_difference_named(header, tiny_policy, tmp_path):
    written(tmp_path, header, [record()])
    tiny_policy.sampler = dataclasses.replace(tiny_policy.sampler, temperature=0.5)
    other = make_header(Tabletop(), tiny_policy, "heldout", {"reach": 4, "push": 2}, 2, 1, "32-true")
    with pytest.raises(UserError) as refusal:
        Manifest(tmp_path, other)
    assert "seed (0 there, 1 here), sampler.temperature (1.0 there, 0.5 here): choose another dir" in str(refusal.value)
    assert read_file(tmp_path / manifest.NAME).records == [record()]  # untouched


def test_every_weight_of_the_policy_counts(header, tiny_policy):
    tiny_policy.backbone.layers[0].qkv.weight.data[0, 0] += 1e-3
    other = make_header(Tabletop(), tiny_policy, "heldout", {"reach": 4, "push": 2}, 2, 0, "32-true")
    assert differences(header, other).startswith("policy (")


def test_a_package_that_is_imported_without_being_installed_can_be_evaluated(header, tiny_policy, monkeypatch):
    def from_name(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", from_name)
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("dvla-lightning")
    again = make_header(Tabletop(), tiny_policy, "heldout", {"reach": 4, "push": 2}, 2, 0, "32-true")
    assert again == header and again["versions"]["dvla-lightning"] == dvla_lightning.__version__


def test_many_differences_are_cut():
    assert differences({}, {str(n): n for n in range(5)}).endswith("2 (null there, 2 here) and 2 more")


def test_each_rank_has_a_file_and_reads_all(header, tmp_path):
    first, second = Manifest(tmp_path, header), Manifest(tmp_path, header, rank=1)
    for kept, row in ((first, record()), (second, record("push"))):
        kept.begin()
        kept.append(row)
        kept.close()
    assert first.path != second.path
    assert set(Manifest(tmp_path, header).found) == {record().key, record("push").key}


def test_two_processes_cannot_share_a_file(header, tmp_path):
    """The lock ends with the process that held it, also when it is killed."""
    code = (
        "import sys, json, os, signal; from pathlib import Path\n"
        "from dvla_lightning.evaluation.manifest import Manifest\n"
        "kept = Manifest(Path(sys.argv[1]), json.loads(sys.argv[2])); kept.begin()\n"
        "print('locked', flush=True); sys.stdin.readline(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", code, str(tmp_path), json.dumps(header)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match=f"is running now .process {other.pid} on "):
        Manifest(tmp_path, header)
    other.communicate("\n")
    Manifest(tmp_path, header).close()
    assert (tmp_path / manifest.NAME).exists()


def test_nothing_is_left_of_a_manifest_that_never_began(header, tmp_path):
    Manifest(tmp_path, header).close()
    assert [path.name for path in tmp_path.iterdir()] == [".evaluation.jsonl.lock"]


def test_an_error_gives_way_to_a_later_run():
    failed, ran = record(success=False, error="died"), record()
    assert one_per_episode([failed, ran]) == one_per_episode([ran, failed]) == {ran.key: ran}
    assert one_per_episode([failed]) == {ran.key: failed}


def test_an_episode_with_two_outcomes_is_refused():
    with pytest.raises(UserError, match="task 'reach', initial state 0 is recorded twice with different outcomes"):
        one_per_episode([record(), record(steps=6)])


def test_the_table_is_made_from_the_records(header, tmp_path):
    rows = [record("push", n, success=n == 0) for n in (1, 0)] + [record("reach", 0), record("reach", 1, False, "died")]
    chosen = one_per_episode(rows)
    assert set(chosen) == set(grid(header))
    written(tmp_path, header, rows)
    assert read_whole_evaluation(tmp_path) == (header, chosen)
    table = evaluation_table(header, chosen)
    assert "66.7 % [20.8, 93.9] (n = 3), 1 errors" in table and "of 4 episodes" not in table
    assert "; 1 of 4 episodes" in evaluation_table(header, one_per_episode(rows[:1]))


def test_remarks_and_the_suite_are_in_every_table(header):
    header["remarks"] = ["trained on the test"]
    header["environment"] |= {"suite": "libero_goal", "protocol": "mm_act"}
    table = evaluation_table(header, {})
    assert table.startswith("libero_goal, protocol mm_act: held-out") and table.endswith("note: trained on the test")


def test_an_evaluation_without_its_end_is_not_a_whole_one(header, tmp_path):
    written(tmp_path, header, [record(), record(state=1, success=False, error="died")])
    with pytest.raises(UserError, match="holds 2 of 4 episodes: run its command again to finish it, or join its sh"):
        read_whole_evaluation(tmp_path)
    assert read_evaluation(tmp_path)[0] == read_directory(tmp_path)[0] == header


def test_ranks_together_make_a_whole_one(header, tmp_path):
    for rank, task in enumerate(("reach", "push")):
        kept = Manifest(tmp_path, header, rank)
        kept.begin()
        for state in range(2):
            kept.append(record(task, state))
        kept.close()
    assert set(read_whole_evaluation(tmp_path)[1]) == set(grid(header))


def test_a_directory_of_an_older_release_is_evaluated_again(tmp_path):
    with pytest.raises(UserError, match=r"holds no evaluation\.jsonl: `dvla validate` writes it"):
        read_evaluation(tmp_path)
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(UserError, match=r"only the evaluation\.json of an older release: run `dvla validate` again"):
        read_evaluation(tmp_path)


def grown_to(header, episodes_per_task):
    return {**header, "episodes_per_task": episodes_per_task}


def test_an_evaluation_grows_by_a_line(header, tmp_path):
    path = written(tmp_path, header, [record()])
    before = path.read_bytes()
    written(tmp_path, grown_to(header, 5), [record(state=4)])
    assert path.read_bytes().startswith(before)
    assert json.loads(path.read_text().splitlines()[2]).keys() == {"episodes_per_task", "chain"}
    assert read_directory(tmp_path) == (grown_to(header, 5), [record(), record(state=4)])
    with pytest.raises(UserError, match="holds an evaluation of 5 episodes per task, asked for are 2: set data"):
        Manifest(tmp_path, header)
    with pytest.raises(UserError, match="different are: seed"):
        Manifest(tmp_path, {**grown_to(header, 9), "seed": 1})


def test_a_rank_that_grew_counts_for_all(header, tmp_path):
    """Killed between the two: rank 0 has written how far the evaluation grows, rank 1 has not."""
    for rank, size in ((1, 2), (0, 3)):
        kept = Manifest(tmp_path, grown_to(header, size), rank)
        kept.begin()
        kept.close()
    assert read_directory(tmp_path)[0] == grown_to(header, 3)
    again = Manifest(tmp_path, grown_to(header, 3), rank=1)
    again.begin()
    again.append(record("push", 2))
    again.close()
    assert read_directory(tmp_path) == (grown_to(header, 3), [record("push", 2)])


EDITS = {
    "a success that was none": lambda lines: [lines[0], lines[1].replace(b"false", b"true"), *lines[2:]],
    "fewer steps": lambda lines: [*lines[:2], lines[2].replace(b'"num_env_steps": 5', b'"num_env_steps": 4')],
    "a failure left out": lambda lines: [lines[0], lines[2]],
    "an episode added": lambda lines: [*lines, lines[2].replace(b"push", b"reach")],
    "lines exchanged": lambda lines: [lines[0], lines[2], lines[1]],
    "another sampler": lambda lines: [lines[0].replace(b'"temperature": 1.0', b'"temperature": 0.5'), *lines[1:]],
    "a remark left out": lambda lines: [lines[0].replace(b'["seen the test"]', b"[]"), *lines[1:]],
    "a key twice": lambda lines: [lines[0], lines[1].replace(b"{", b'{"success": true, ', 1), lines[2]],
    "a blank": lambda lines: [lines[0], lines[1].replace(b": ", b":  ", 1), lines[2]],
    "an empty line": lambda lines: [lines[0], b"", *lines[1:]],
    "a checksum left out": lambda lines: [lines[0], lines[1][: lines[1].index(b', "chain"')] + b"}", lines[2]],
}


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_is_seen(edit, header, tmp_path):
    header["remarks"] = ["seen the test"]
    path = written(tmp_path, header, [record(success=False), record("push")])
    lines = path.read_bytes().splitlines()
    edited = EDITS[edit](lines)
    assert edited != lines
    path.write_bytes(b"\n".join(edited) + b"\n")
    with pytest.raises(UserError, match="is damaged in line"):
        read_directory(tmp_path)


def test_every_flipped_bit_is_seen(header, tmp_path):
    """But in the last line: without its line break it is taken for one that was cut short."""
    path = written(tmp_path, header, [record(success=False), record("push")])
    data = path.read_bytes()
    for place in range(0, len(data) - 1, 7):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError, match="is damaged in line"):
            read_file(path)


def test_what_a_chain_without_a_key_does_not_show(header, tmp_path):
    """Said in `chain`: who writes the whole file anew leaves no trace, and lines that are missing at the end either."""
    path = written(tmp_path / "one", header, [record(success=False), record("push")])
    forged = written(tmp_path / "two", header, [record(success=True), record("push")])
    assert read_file(forged).records[0].success
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert len(read_file(path).records) == 1


def test_a_full_disk_leaves_a_manifest_that_goes_on(header, tmp_path):
    path = written(tmp_path, header, [record()])
    size = path.stat().st_size
    kept = Manifest(tmp_path, header)
    kept.begin()
    with largest_file(size + 40), pytest.raises(UserError, match=r"File too large\): what it holds is safe; make room"):
        kept.append(record(state=1))
    assert path.stat().st_size == size
    kept.append(record("push"))  # there is room again
    kept.close()
    assert read_file(path).records == [record(), record("push")]
    with largest_file(100), pytest.raises(UserError, match="cannot be written"):
        Manifest(tmp_path / "new", header).begin()
    assert written(tmp_path / "new", header, [record()]).exists()


def test_a_full_disk_leaves_nothing_of_a_merged_manifest(header, tmp_path):
    rows = one_per_episode([record(task, n) for task in ("reach", "push") for n in range(2)])
    with largest_file(1000), pytest.raises(UserError, match=r"evaluation\.jsonl cannot be written \(File too large\)"):
        manifest.write_manifest(tmp_path, header, list(rows.values()))
    assert not list(tmp_path.iterdir())
    manifest.write_manifest(tmp_path, header, list(rows.values()))
    assert read_whole_evaluation(tmp_path) == (header, rows)
