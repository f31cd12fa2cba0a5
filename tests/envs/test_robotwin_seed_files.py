"""Lists of seeds, RoboTwin's wordings and the cache of verdicts: what is wrong is named with its place."""

import json
from types import SimpleNamespace

import pytest

from dvla_lightning.envs.robotwin import RoboTwin
from dvla_lightning.envs.robotwin.seed_files import read_seed_file
from dvla_lightning.envs.robotwin.simulator.language import instruction
from dvla_lightning.envs.robotwin.simulator.seed_book import SeedBook
from dvla_lightning.errors import UserError

TASK = "stack_blocks_two"


def listing(seeds):
    return json.dumps({TASK: {"task_name": TASK, "success_seeds": seeds}})


def test_a_list_is_read_in_its_order_and_other_entries_are_left_alone(tmp_path):
    (tmp_path / "seeds.json").write_text(
        json.dumps({TASK: {"success_seeds": [100100007, 0, 5], "failed_seeds": {}}, "lift_pot": {"success_seeds": []}})
    )
    assert read_seed_file(str(tmp_path / "seeds.json")) == {TASK: [100100007, 0, 5], "lift_pot": []}
    assert read_seed_file(None) == {}


BAD = {
    "empty": ("", "Expecting value"),
    "cut": (listing([1])[:-3], "Expecting"),
    "bytes": (b"\xff\xfe", "utf-8"),
    "a list": ("[1, 2]", "there is no task in it"),
    "no task": ("{}", "there is no task in it"),
    "nested": ("[" * 10**5, "recursion"),
    "misspelt task": ('{"stak_blocks_two": {"success_seeds": [1]}}', "did you mean 'stack_blocks_two'?"),
    "other task": ('{"fly": {"success_seeds": [1]}}', "there is no task 'fly'"),
    "no key": (f'{{"{TASK}": {{"seeds": [1]}}}}', f"task '{TASK}' has no success_seeds"),
    "bare list": (f'{{"{TASK}": [1, 2]}}', f"task '{TASK}' has no success_seeds"),
    "null": (f'{{"{TASK}": {{"success_seeds": null}}}}', "is None, no list"),
    "text for a list": (f'{{"{TASK}": {{"success_seeds": "12"}}}}', "is '12', no list"),
    "a task twice": (f'{{"{TASK}": {{"success_seeds": [1]}}, "{TASK}": {{"success_seeds": [2]}}}}', "is there twice"),
    "a seed twice": (listing([100001, 100002, 100001]), "entry 2, lists seed 100001 again"),
    "fraction": (listing([100001.7]), "entry 0, is 100001.7, no whole number"),
    "whole fraction": (listing([1, 100001.0]), "entry 1, is 100001.0, no whole number"),
    "bool": (listing([True]), "entry 0, is True, no whole number"),
    "text": (listing([3, "100001"]), "entry 1, is '100001', no whole number"),
    "negative": (listing([-1]), "entry 0, is -1, no whole number"),
    "too large": (listing([2**32]), "entry 0, is 4294967296, no whole number"),
    "infinite": (listing([float("inf")]), "entry 0, is inf, no whole number"),
    "nothing": (listing([None]), "entry 0, is None, no whole number"),
    "list of lists": (listing([[1, 2]]), "entry 0, is [1, 2], no whole number"),
}


@pytest.mark.parametrize("option", ["train_seed_file", "eval_seed_file"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_list_is_named_with_its_entry(name, option, tmp_path):
    content, sentence = BAD[name]
    file = tmp_path / "seeds.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as found:
        RoboTwin(validity="seed_file", **{option: str(file)})
    assert sentence in str(found.value) and str(file) in str(found.value) and "\n" not in str(found.value)


def test_lists_that_nobody_would_read_are_refused(tmp_path):
    (tmp_path / "seeds.json").write_text(listing([1]))
    with pytest.raises(UserError, match="need validity: seed_file, it is expert"):
        RoboTwin(eval_seed_file=str(tmp_path / "seeds.json"))


INFO = {"{a}": "left"}
GOOD = {"full_description": "stack", "seen": ["stack with the {a} arm"], "unseen": ["pile up"]}


@pytest.fixture
def describe(tmp_path, monkeypatch):
    """Describes a scene, given the file's content (None: no file) and what RoboTwin's generator makes of it."""
    folder = tmp_path / "description" / "task_instruction"
    folder.mkdir(parents=True)

    def call(content, info, fill=lambda text: text.replace("{a}", INFO["{a}"])):
        if content is not None:
            (folder / f"{TASK}.json").write_text(content if isinstance(content, str) else json.dumps(content))

        def generate(task, episodes, count):
            wordings = json.loads((folder / f"{task}.json").read_text())
            return [{split: [fill(text) for text in wordings[split]] for split in ("seen", "unseen")}]

        module = SimpleNamespace(generate_episode_descriptions=generate)
        monkeypatch.setitem(__import__("sys").modules, "generate_episode_instructions", module)
        return instruction(SimpleNamespace(root=tmp_path), TASK, info, "seen", 7)

    return call


def test_a_scene_is_described(describe):
    assert describe(GOOD, INFO) == "stack with the left arm" and describe(GOOD, None) == "stack"


@pytest.mark.parametrize(
    ("content", "info", "sentence"),
    [
        (None, INFO, "cannot be read (No such file or directory)"),
        (None, None, "cannot be read (No such file or directory)"),
        ("", INFO, "cannot be read (Expecting value"),
        ("", None, "cannot be read (Expecting value"),
        ("[]", None, "cannot be read (no JSON object)"),
        ({}, None, "hold None as 'full_description', no sentence"),
        ({**GOOD, "full_description": "  "}, None, "hold '  ' as 'full_description', no sentence"),
        ({**GOOD, "full_description": ["stack"]}, None, "hold ['stack'] as 'full_description', no sentence"),
        ({**GOOD, "seen": []}, INFO, "hold no 'seen' instruction"),
        ({"unseen": ["x"]}, INFO, "hold no 'seen' instruction"),
        ({**GOOD, "seen": "stack"}, INFO, "hold no 'seen' instruction"),
        ({**GOOD, "seen": ["stack", ""]}, INFO, "hold '' as 'seen', no sentence"),
        ({**GOOD, "seen": [7]}, INFO, "hold 7 as 'seen', no sentence"),
        ({**GOOD, "unseen": [7]}, INFO, "cannot fill the wordings"),
    ],
)
def test_bad_wordings_are_named(content, info, sentence, describe, tmp_path):
    def fill(text):
        return text.replace("{a}", INFO["{a}"]) if isinstance(text, str) else 1 / len(text)

    with pytest.raises(UserError) as found:
        describe(content, info, fill)
    assert sentence in str(found.value) and f"{TASK}.json" in str(found.value)
    assert "git checkout -- description" in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", json.dumps({TASK: {}}), json.dumps({TASK: {"begun": 3}})])
def test_a_damaged_cache_of_verdicts_is_named(content, tmp_path):
    book = SeedBook(tmp_path, TASK, {"split": "heldout"})
    book.path.write_text(content)
    for use in (book.read, lambda: book.begin(7)):
        with pytest.raises(UserError, match=r"is damaged .*: delete it; its seeds are checked anew"):
            use()
