"""Configuration files and arguments of the tools that cannot be used: one sentence, exit code 2, nothing written.

FOLDER stands for a folder with a file, an empty folder and files that are no configuration.
"""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    "broken.yaml": b"model: [1\n",
    "tab.yaml": b"model:\n\tpolicy: 1\n",
    "code.yaml": b"trainer: {max_epochs: !!python/object/apply:os.getcwd []}\n",
    "binary.yaml": b"\x80\x81: 1\n",
    "list.yaml": b"- a\n- b\n",
    "scalar.yaml": b"5\n",
    "words.yaml": b"just words\n",
    "empty.yaml": b"",
    "trainer.yaml": b"trainer: 5\n",
    "key.yaml": b"observe_evry: 1\n",
}
CONFIGS = [
    *((f"FOLDER/{name}.yaml", f"--config FOLDER/{name}.yaml is not YAML (") for name in ("broken", "tab", "code")),
    ("FOLDER/binary.yaml", "--config FOLDER/binary.yaml is not YAML ("),
    *((f"FOLDER/{name}.yaml", f"--config FOLDER/{name}.yaml holds no mapping") for name in ("list", "scalar", "words")),
    ("FOLDER/empty.yaml", "--config FOLDER/empty.yaml holds no mapping"),
    ("nope.yaml", "config: File does not exist: "),
    ("FOLDER", "config: Path is not a file: 'FOLDER'"),
]
COLLECT = "collect --collector.environment Tabletop --num_episodes 5 --out FOLDER/new"
SCHEDULE = f"schedule --policy {ROOT}/checkpoints/tabletop-sft --collector.environment Tabletop --out FOLDER/s.yaml"
REPORT = "report --before FOLDER/empty --after FOLDER/empty --run FOLDER"
ROWS = [
    ("collect", "required: collector, out, num_episodes"),
    ("collect --collector.environment Tabletop --num_episodes 5", "required: out"),
    ("collect --num_episodes 5 --out FOLDER/new", "required: collector"),
    (f"{COLLECT} more", "unrecognized arguments: more"),
    (f"{COLLECT} --config FOLDER/key.yaml", "'observe_evry' is not accepted: did you mean observe_every?"),
    *((f"{COLLECT} --{name} null", f"{name}: Expected") for name in ("num_episodes", "seed", "expert_noise")),
    (f"{COLLECT} --num_episodes true", "num_episodes: Expected a <class 'int'>. Got value: True"),
    (f"{COLLECT} --tasks []", "Tabletop: no task given"),
    (f"{COLLECT} --tasks [reach,reach]", "task 'reach' is given twice"),
    (f"{COLLECT} --collector.environment Tabeltop", "did you mean Tabletop?"),
    (f"{COLLECT} --collector.num_env 3", "did you mean num_envs?"),
    (f"{COLLECT} --collector.num_envs null", "collector.num_envs cannot be null"),
    (f"{COLLECT} --collector.progress null", "collector.progress cannot be null"),
    (f"{COLLECT} --collector.progress maybe", "collector: progress: Expected a <class 'bool'>"),
    (f"{COLLECT} --collector.step_timeout 0", "collector: step_timeout must be a number above 0, got 0.0"),
    (f"{COLLECT} --out FOLDER/file", "FOLDER/file cannot be written (File exists)"),
    ("schedule", "required: policy, collector, out"),
    (f"{SCHEDULE} --policy FOLDER/file", "'FOLDER/file' is a file: give a policy directory"),
    (f"{SCHEDULE} --policy FOLDER/empty", "FOLDER/empty is not a policy directory"),
    (f"{SCHEDULE} --policy ''", "policy directory '' is no path"),
    (f"{SCHEDULE} --num_steps 4", "num_steps: Expected a <class 'list'>. Got value: 4"),
    (f"{SCHEDULE} --num_steps [1.5]", "num_steps: Expected a <class 'int'>. Got value: 1.5"),
    (f"{SCHEDULE} --num_steps [true]", "num_steps: Expected a <class 'int'>. Got value: True"),
    (f"{SCHEDULE} --num_steps null", "num_steps: Expected a <class 'list'>. Got value: None"),
    (f"{SCHEDULE} --episodes_per_task many", "episodes_per_task: Expected a <class 'int'>. Got value: many"),
    (f"{SCHEDULE} --margin .nan", "margin must be a success rate between 0 and 1, such as 0.05, got nan"),
    (f"{SCHEDULE} --margin wide", "margin: Expected a <class 'float'>. Got value: wide"),
    (f"{SCHEDULE} --confidence .nan", "confidence must be between 0.5 and 1, such as 0.95, got nan"),
    (f"{SCHEDULE} --seed 1.5", "seed: Expected a <class 'int'>. Got value: 1.5"),
    (f"{SCHEDULE} --sampler 5", "sampler: Expected"),
    (f"{SCHEDULE} --sampler.greedy 'false'", "sampler: greedy: Expected a <class 'bool'>. Got value: false"),
    (f"{SCHEDULE} --sampler.temperature .nan", "sampler temperature must be > 0, got nan"),
    (f"{SCHEDULE} --tasks []", "no task given"),
    (f"{SCHEDULE} --trusted_modules 5", "trusted_modules: Expected a <class 'list'>. Got value: 5"),
    (f"{SCHEDULE} --marginn 0.1", "did you mean margin?"),
    (f"{SCHEDULE} --collector.reset_timeout .nan", "collector: reset_timeout must be a number above 0, got nan"),
    (f"{SCHEDULE} --out FOLDER", "--out FOLDER is a directory: give the name of a YAML file"),
    (f"{SCHEDULE} --out FOLDER/file/s.yaml", "--out FOLDER/file/s.yaml cannot be written"),
    ("merge", "required: shards, out"),
    ("merge FOLDER/empty", "required: out"),
    ("merge --out FOLDER/new", "required: shards"),
    ("merge FOLDER/empty --out ''", "--out '' is no path"),
    ("merge '' --out FOLDER/new", "shard '' is no path"),
    ("merge FOLDER/file --out FOLDER/new", "FOLDER/file holds no evaluation.jsonl"),
    ("report", "required: before, after, run"),
    (REPORT, "FOLDER/empty holds no evaluation.jsonl: `dvla validate` writes it"),
    (f"{REPORT} --before FOLDER/file", "FOLDER/file holds no evaluation.jsonl"),
    (f"{REPORT} --before ''", "--before '' is no path"),
    (f"{REPORT} --run ''", "--run '' is no path"),
    (f"{REPORT} --out FOLDER/r.jpg", "r.jpg: give a name that ends in .png"),
    (f"{REPORT} --out ''", "--out '' is no path"),
    (f"{REPORT} --befor FOLDER", "did you mean before?"),
    ("doctor extra", "unrecognized arguments: extra"),
    ("doctor --suite libero_mars", "unknown LIBERO suite 'libero_mars'; choose from: all, libero_spatial"),
    ("doctor --suit all", "did you mean suite?"),
    *((f"doctor --libero {value}", "libero: Expected a <class 'bool'>") for value in ("maybe", "'false'", "2", "null")),
    ("doctor --robotwin 2", "robotwin: Expected a <class 'bool'>"),
    ("doctor --pictures ''", "--pictures '' is no path"),
    ("doctor --pictures FOLDER/file", "--pictures FOLDER/file is a file: give a folder"),
    ("doctor --environment 5", "environment: Expected"),
    ("doctor --environment Tabletop", "environment: Expected a dot import path string: Tabletop (known are: RoboTwin"),
    ("doctor --environment.embodiment 5", "environment: embodiment: Expected"),
]
FIT = f"fit --config {ROOT}/configs/rl.yaml --trainer.default_root_dir FOLDER/run"


@pytest.fixture
def expect(tmp_path, refusal, monkeypatch):
    """Expects words in the sentence that a command line ends with; quotes reach the command as a YAML string's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, content in {**FILES, "file": b"x"}.items():
        (tmp_path / name).write_bytes(content)

    def check(line, words):
        arguments = ["" if word == "''" else word for word in line.replace("FOLDER", str(tmp_path)).split()]
        sentence = refusal(arguments, unchanged=tmp_path)
        assert words.replace("FOLDER", str(tmp_path)) in sentence, sentence

    return check


@pytest.mark.parametrize("verb", [FIT, "collect", "schedule", "report", "doctor"], ids=lambda line: line.split()[0])
@pytest.mark.parametrize(("path", "words"), CONFIGS)
def test_a_file_that_is_no_configuration_is_named(verb, path, words, expect):
    expect(f"{verb} --config {path}", words)


def test_a_part_of_the_configuration_that_is_no_mapping(expect):
    expect(f"{FIT} --config FOLDER/trainer.yaml", "trainer must be a mapping from flags to values, got 5")


@pytest.mark.parametrize(("line", "words"), ROWS, ids=[row[0].replace(str(ROOT), "") for row in ROWS])
def test_a_bad_argument_of_a_tool_is_one_sentence(line, words, expect):
    expect(line, words)
