"""Whole evaluations through the command line: killed and continued, in shards, with errors, with videos."""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dvla_lightning.cli import main
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.evaluation import videos
from dvla_lightning.evaluation.manifest import read_directory, read_file, read_whole_evaluation
from dvla_lightning.evaluation.step_schedule import StepSchedule
from dvla_lightning.policy import DVLAPolicy
from tests.faulty_environment import FAULTY_STATE
from tests.full_disk import largest_file
from tests.test_training import DDP, STEPS, arguments, launch

EPISODES = 40


@pytest.fixture
def evaluation(tiny_policy, tmp_path):
    """Options of an evaluation whose episodes end one after the other."""
    tiny_policy.save_pretrained(tmp_path / "policy")
    return {
        "model.policy.pretrained": tmp_path / "policy",
        "data.evaluation.num_episodes": EPISODES,
        "data.evaluation.num_recorded_episodes": 0,
        "data.collector.num_envs": 1,
        "data.collector.progress": "false",
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }


def words(evaluation, run, **options):
    options = {name.replace("__", "."): value for name, value in options.items()}
    return arguments("validate", "rl.yaml", {**evaluation, "trainer.default_root_dir": run, **options})


def validate(capfd, evaluation, run, **options):
    """Runs it in this process and returns its table."""
    capfd.readouterr()
    main(words(evaluation, run, **options))
    return table(capfd.readouterr().out)


def table(printed):
    return printed[printed.index("held-out episodes") : printed.index("every episode")]


def episodes(run):
    return {dataclasses.replace(record, seconds=0) for record in read_whole_evaluation(run)[1].values()}


def num_lines(run):
    path = run / "evaluation.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def start_and_wait_for_episodes(command, run, count=5):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "dvla_lightning.cli", *command], stderr=subprocess.PIPE, text=True, env=environment
    )
    while num_lines(run) <= count:
        assert process.poll() is None, process.stderr.read()[-2000:]
        time.sleep(0.01)
    return process


def test_a_killed_evaluation_continues_and_gives_the_same_table(evaluation, tmp_path, capfd):
    expected = validate(capfd, evaluation, tmp_path / "whole")
    killed = tmp_path / "killed"
    process = start_and_wait_for_episodes(words(evaluation, killed), killed)
    process.kill()
    process.communicate()
    done = num_lines(killed) - 1
    assert 0 < done < EPISODES
    before = (killed / "evaluation.jsonl").read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    assert validate(capfd, evaluation, killed) == expected
    assert episodes(killed) == episodes(tmp_path / "whole") and len(episodes(killed)) == EPISODES
    assert (killed / "evaluation.jsonl").read_bytes().startswith(before)  # what was done is not run again
    assert num_lines(killed) == 1 + EPISODES


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 1)])
def test_an_interrupted_evaluation_says_how_to_continue(number, code, evaluation, tmp_path):
    command = words(evaluation, tmp_path / "run", data__evaluation__num_episodes=400)
    process = start_and_wait_for_episodes(command, tmp_path / "run")
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err[-2000:]
    assert f"{num_lines(tmp_path / 'run') - 1} of 400 episodes are in" in err and "the same command runs" in err


def test_a_full_disk_ends_in_a_sentence_and_the_evaluation_goes_on_from_there(evaluation, tmp_path, capfd, refusal):
    expected, run = validate(capfd, evaluation, tmp_path / "whole"), tmp_path / "run"
    with largest_file(8000):
        found = refusal(words(evaluation, run))
    assert "evaluation.jsonl cannot be written (File too large): what it holds is safe; make room" in found
    before = (run / "evaluation.jsonl").read_bytes()
    assert 5 < num_lines(run) < EPISODES and before.endswith(b"\n")
    assert validate(capfd, evaluation, run) == expected
    assert (run / "evaluation.jsonl").read_bytes().startswith(before) and num_lines(run) == 1 + EPISODES


def test_a_finished_evaluation_is_not_run_again(evaluation, tmp_path, capfd, monkeypatch):
    first = validate(capfd, evaluation, tmp_path / "run", data__evaluation__num_episodes=5)
    monkeypatch.setattr(DVLAPolicy, "decide", lambda *args: pytest.fail("an episode was run"))
    assert validate(capfd, evaluation, tmp_path / "run", data__evaluation__num_episodes=5) == first
    assert num_lines(tmp_path / "run") == 6


def test_another_evaluation_in_the_same_directory_is_refused(evaluation, tiny_policy, tmp_path, capfd, refusal):
    few = {"data__evaluation__num_episodes": 5}
    validate(capfd, evaluation, tmp_path / "run", **few)
    kept = (tmp_path / "run" / "evaluation.jsonl").read_bytes()
    found = refusal(words(evaluation, tmp_path / "run", **few, data__evaluation__num_steps=2))
    assert "num_steps.reach (4 there, 2 here)" in found and "choose another directory" in found
    tiny_policy.value_head[0].weight.data += 1
    tiny_policy.save_pretrained(tmp_path / "other")
    other = words({**evaluation, "model.policy.pretrained": tmp_path / "other"}, tmp_path / "run", **few)
    assert "different are: policy (" in refusal(other)
    assert (tmp_path / "run" / "evaluation.jsonl").read_bytes() == kept
    (tmp_path / "run" / "evaluation.jsonl").write_bytes(kept.replace(b'"task"', b'"tusk"', 1))
    assert "is damaged in line 2" in refusal(words(evaluation, tmp_path / "run", **few))


def test_shards_merge_to_the_table_of_one_run(evaluation, tmp_path, capfd, refusal):
    expected = validate(capfd, evaluation, tmp_path / "whole", data__evaluation__num_episodes=15)
    shards = [tmp_path / f"shard-{n}" for n in range(2)]
    for n, shard in enumerate(shards):
        main(words(evaluation, shard, data__evaluation__num_episodes=15, data__evaluation__shard=f"{n}/2"))
        assert f"{8 - n} of 15 episodes" in (out := capfd.readouterr().out) and "dvla merge" in out
        assert num_lines(shard) == 9 - n
    merge = ["merge", *map(str, shards), "--out"]
    main([*merge, str(tmp_path / "all")])
    assert table(capfd.readouterr().out) == expected
    assert episodes(tmp_path / "all") == episodes(tmp_path / "whole")
    assert (
        validate(capfd, evaluation, tmp_path / "all", data__evaluation__num_episodes=15) == expected
    )  # a run like others
    assert "holds an evaluation already" in refusal([*merge, str(tmp_path / "all")])

    out = ["--out", str(tmp_path / "new")]
    assert "7 of 15 episodes are in none" in refusal(["merge", str(shards[0]), *out])
    twice = refusal(["merge", str(shards[0]), str(shards[1]), str(shards[0]), *out])
    assert "is in both" in twice and "name each shard once" in twice
    assert "holds no evaluation.jsonl" in refusal(["merge", str(shards[0]), str(tmp_path), *out])
    main(
        words(
            evaluation,
            tmp_path / "other",
            data__evaluation__num_episodes=15,
            data__evaluation__shard="1/2",
            data__evaluation__seed=1,
        )
    )
    different = refusal(["merge", str(shards[0]), str(tmp_path / "other"), *out])
    assert "shards of different evaluations" in different and "seed (0 there, 1 here)" in different
    assert not (tmp_path / "new").exists()


def test_more_episodes_extend_an_evaluation_to_that_of_one_run(evaluation, tmp_path, capfd, refusal):
    expected = validate(capfd, evaluation, tmp_path / "whole", data__evaluation__num_episodes=25)
    run = tmp_path / "run"
    for count in (5, 15):
        validate(capfd, evaluation, run, data__evaluation__num_episodes=count)
        assert len(episodes(run)) == count
    before = (run / "evaluation.jsonl").read_bytes()
    assert validate(capfd, evaluation, run, data__evaluation__num_episodes=25) == expected
    assert episodes(run) == episodes(tmp_path / "whole")
    assert (run / "evaluation.jsonl").read_bytes().startswith(before) and num_lines(run) == 1 + 25 + 2  # none run twice
    fewer = refusal(words(evaluation, run, data__evaluation__num_episodes=15))
    assert "holds an evaluation of 5 episodes per task, asked for are 3" in fewer
    assert len(episodes(run)) == 25  # as it was


def test_shards_can_be_extended_too(evaluation, tmp_path, capfd, refusal):
    expected = validate(capfd, evaluation, tmp_path / "whole", data__evaluation__num_episodes=25)
    shards = [tmp_path / f"shard-{n}" for n in range(2)]
    merge = ["merge", *map(str, shards), "--out", str(tmp_path / "all")]
    for shard, counts in zip(shards, ([15, 25], [15]), strict=True):
        for count in counts:
            main(
                words(
                    evaluation,
                    shard,
                    data__evaluation__num_episodes=count,
                    data__evaluation__shard=f"{shard.name[-1]}/2",
                )
            )
    assert "episodes_per_task (5 there, 3 here)" in refusal(merge)
    main(words(evaluation, shards[1], data__evaluation__num_episodes=25, data__evaluation__shard="1/2"))
    capfd.readouterr()
    main(merge)
    assert table(capfd.readouterr().out) == expected
    assert episodes(tmp_path / "all") == episodes(tmp_path / "whole")


def test_selection_episodes_are_others_and_every_table_says_so(evaluation, tmp_path, capfd, refusal):
    few = {"data__evaluation__num_episodes": 10}
    validate(capfd, evaluation, tmp_path / "heldout", **few)
    main(words(evaluation, tmp_path / "selection", **few, data__evaluation__split="selection"))
    printed = capfd.readouterr().out
    assert "selection episodes, K = 4" in printed and "held-out" not in printed
    headers = [read_directory(tmp_path / name)[0] for name in ("heldout", "selection")]
    assert [header["split"] for header in headers] == ["heldout", "selection"]
    seeds = [{record.seed for record in episodes(tmp_path / name)} for name in ("heldout", "selection")]
    assert not seeds[0] & seeds[1]
    other = words(evaluation, tmp_path / "heldout", **few, data__evaluation__split="selection")
    assert 'split ("heldout" there, "selection" here)' in refusal(other)


def test_one_directory_may_take_one_shard_after_the_other(evaluation, tmp_path, capfd):
    expected = validate(capfd, evaluation, tmp_path / "whole", data__evaluation__num_episodes=15)
    main(words(evaluation, tmp_path / "run", data__evaluation__num_episodes=15, data__evaluation__shard="0/2"))
    found = validate(
        capfd, evaluation, tmp_path / "run", data__evaluation__num_episodes=15, data__evaluation__shard="1/2"
    )
    assert found == expected


@pytest.mark.parametrize("shard", ["2/2", "0", "0/0", "a/b", "1/"])
def test_a_wrong_shard_is_one_sentence(shard, evaluation, tmp_path, refusal):
    assert "give i/n with i from 0" in refusal(words(evaluation, tmp_path, data__evaluation__shard=shard))


def test_a_shard_in_training_is_one_sentence(evaluation, tmp_path, refusal):
    fit = ["fit", *words(evaluation, tmp_path / "run", data__evaluation__shard="0/2")[1:]]
    assert "use it in `dvla validate`" in refusal(fit)


def test_the_number_of_workers_does_not_matter(evaluation, tmp_path, capfd):
    few = {"data__evaluation__num_episodes": 10}
    expected = validate(capfd, evaluation, tmp_path / "none", **few)
    for workers in (1, 2):
        run = tmp_path / f"{workers}"
        assert validate(capfd, evaluation, run, **few, data__collector__num_workers=workers) == expected
        assert episodes(run) == episodes(tmp_path / "none")


def test_two_ranks_continue_what_one_began(evaluation, tmp_path, capfd):
    few = {"data__evaluation__num_episodes": 15}
    expected = validate(capfd, evaluation, tmp_path / "run", **few)
    whole = episodes(tmp_path / "run")
    path = tmp_path / "run" / "evaluation.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    ranks = {name.replace(".", "__"): value for name, value in DDP.items()}
    printed = launch(words(evaluation, tmp_path / "run", **few, **ranks))
    assert table(printed) == expected and printed.count("4 episodes are in") == 1
    assert episodes(tmp_path / "run") == whole
    records = [read_file(tmp_path / "run" / name).records for name in ("evaluation.jsonl", "evaluation.rank-1.jsonl")]
    assert len(records[1]) > 0 and len(records[0]) + len(records[1]) == 15


def test_two_ranks_refuse_together(evaluation, tmp_path, capfd):
    """Rank 1 shares no file system with rank 0 here, so that rank 0 alone sees the other evaluation."""
    validate(capfd, evaluation, tmp_path / "run", data__evaluation__num_episodes=5)
    ranks = {name.replace(".", "__"): value for name, value in DDP.items()}
    command = words(evaluation, tmp_path / "run", data__evaluation__num_episodes=5, data__evaluation__seed=1, **ranks)
    code = (
        "import os, sys; from pathlib import Path; from dvla_lightning.evaluation import manifest, run\n"
        "def elsewhere(directory, header, rank, make=manifest.Manifest):\n"
        "    return make(directory / f'rank-{rank}' if rank else directory, header, rank)\n"
        "run.Manifest = elsewhere\n"
        "from dvla_lightning.cli import main; main(sys.argv[1:])"
    )
    script = tmp_path / "main.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), *command], capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-2000:]
    assert "different are: seed (0 there, 1 here)" in done.stderr and "Traceback" not in done.stderr


def test_episodes_with_errors_are_run_again(evaluation, tmp_path, capfd):
    faulty = "{class_path: tests.faulty_environment.FaultyTabletop, init_args: {fault: raise, times: 1, marker: %s}}"
    options = {
        "data__evaluation__num_episodes": 5 * (FAULTY_STATE + 1),
        "data__collector__environment": faulty % (tmp_path / "faults"),
        "data__collector__max_retries": 0,
    }
    first = validate(capfd, evaluation, tmp_path / "run", **options)
    assert "(n = 19), 1 errors" in first and "episodes with errors: 1; the same `dvla validate` into" in first
    second = validate(capfd, evaluation, tmp_path / "run", **options)
    assert "(n = 20)" in second and "errors" not in second
    assert num_lines(tmp_path / "run") == 1 + 20 + 1
    clean = validate(capfd, evaluation, tmp_path / "clean", data__evaluation__num_episodes=20)
    assert second == clean


def test_recorded_episodes_become_videos(evaluation, tmp_path, capfd):
    av = pytest.importorskip("av")
    run = tmp_path / "run"
    few = {
        "data__evaluation__num_episodes": 5,
        "data__evaluation__num_recorded_episodes": 2,
        "data__evaluation__save_videos": "true",
    }
    validate(capfd, evaluation, run, **few)
    recorded = {record.task: record for record in episodes(run)}
    files = sorted((run / "videos").iterdir())
    assert len(files) == 2
    for file in files:
        task, state, outcome = file.stem.rsplit("-", 2)
        assert (int(state), outcome) == (0, "success" if recorded[task].success else "failure")
        with av.open(str(file)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == recorded[task].num_decisions + 1
        assert np.ptp(frames[0]) > 100 and (frames[0] != frames[-1]).any()


def test_videos_without_their_library_are_refused_before_anything_runs(evaluation, tmp_path, refusal, monkeypatch):
    options = {"data__evaluation__save_videos": "true", "data__evaluation__num_recorded_episodes": 1}
    monkeypatch.setattr(videos.importlib.util, "find_spec", without_av(importlib.util.find_spec))
    assert "pip install 'dvla-lightning[video]'" in refusal(words(evaluation, tmp_path / "run", **options))
    monkeypatch.undo()
    options["data__evaluation__num_recorded_episodes"] = 0
    assert "set num_recorded_episodes" in refusal(words(evaluation, tmp_path / "run", **options))


def without_av(find_spec):
    return lambda name, *args: None if name == "av" else find_spec(name, *args)


def test_all_episodes_need_an_environment_that_says_how_many(evaluation, tmp_path, refusal):
    found = refusal(words(evaluation, tmp_path / "run", data__evaluation__num_episodes="all"))
    assert "Tabletop does not say how many" in found


def test_a_schedules_steps_are_in_the_header_and_in_every_line(evaluation, tmp_path, capfd, refusal):
    run, options = (
        tmp_path / "run",
        {"data__evaluation__num_episodes": 10, "data__schedule": tmp_path / "schedule.yaml"},
    )
    StepSchedule(STEPS).write(options["data__schedule"])
    expected = validate(capfd, evaluation, run, **options)
    assert "K = 1 (reach, collect), 2 (carry), 4 (push), 8 (detour)" in expected
    path = run / "evaluation.jsonl"
    contents = read_file(path)
    assert contents.header["num_steps"] == STEPS
    assert len(contents.records) == 10 and all(row.num_steps == STEPS[row.task] for row in contents.records)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    assert validate(capfd, evaluation, run, **options) == expected
    StepSchedule({**STEPS, "push": 2}).write(options["data__schedule"])
    assert "num_steps.push (4 there, 2 here)" in refusal(words(evaluation, run, **options))


def test_training_keeps_no_manifest_of_its_evaluations_and_measurements(evaluation, tmp_path):
    options = {
        **evaluation,
        "data.evaluation.num_episodes": 5,
        "data.episodes_per_iteration": 10,
        "data.reschedule": "{every: 1, num_steps: [1, 2], episodes_per_task: 1}",
        "trainer.max_epochs": 2,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.default_root_dir": tmp_path / "run",
    }
    main(arguments("fit", "rl.yaml", options))
    assert len(list((tmp_path / "run" / "schedules").iterdir())) == 2
    assert read_directory(tmp_path / "run") == (None, [])


def test_a_policy_trained_on_the_test_says_so_under_every_table(evaluation, tmp_path, capfd, monkeypatch):
    run, few = tmp_path / "run", {"data__evaluation__num_episodes": 5}
    assert "note:" not in validate(capfd, evaluation, tmp_path / "before", **few)
    with monkeypatch.context() as patch:
        patch.setattr(Tabletop, "identity", lambda self: {"class": "Tabletop", "training_remark": "seen the test"})
        options = {"data.evaluation.num_episodes": 0, "data.episodes_per_iteration": 10, "trainer.max_epochs": 1}
        main(arguments("fit", "rl.yaml", {**evaluation, **options, "trainer.default_root_dir": run}))
    trained = {**evaluation, "model.policy.pretrained": run / "policy"}
    assert "note: seen the test\n" in validate(capfd, trained, tmp_path / "after", **few)
    assert read_whole_evaluation(tmp_path / "after")[0]["remarks"] == ["seen the test"]
    assert "note: seen the test\n" in validate(capfd, evaluation, run, **few, ckpt_path="last")
    again = {**trained, "data.evaluation.num_episodes": 0, "data.episodes_per_iteration": 10, "trainer.max_epochs": 1}
    main(arguments("fit", "rl.yaml", {**again, "trainer.default_root_dir": tmp_path / "further"}))
    assert DVLAPolicy.from_pretrained(tmp_path / "further" / "policy").remarks == ["seen the test"]
    assert "remarks" not in json.loads((tmp_path / "policy" / "config.json").read_text())  # older releases read it
