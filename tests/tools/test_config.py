"""`dvla config`: what is shipped is listed and copied, and nothing of the user's is overwritten or mixed."""

from pathlib import Path

import pytest
import yaml

from dvla_lightning import cli

ROOT = Path(__file__).parents[2]
POLICIES = ("tabletop-sft", "libero-spatial-sft", "libero-spatial-rl")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def config(*words):
    cli.main(["config", *words])


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        config(*words)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("dvla: error: ") and err.count("\n") == 1
    return err


def files(root, *folders):
    """Content of every file below some folders of `root`."""
    paths = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def test_every_configuration_and_policy_has_a_line_with_its_first_comment(capsys):
    config("ls")
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    yamls = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert set(rows) == yamls | {f"checkpoints/{name}" for name in POLICIES}
    assert rows["configs/rl.yaml"].startswith("RL from the shipped SFT policy on the built-in environment")
    assert rows["checkpoints/tabletop-sft"] == "MiniBackbone policy for the built-in environment, after SFT"
    for name in yamls:
        assert (ROOT / name).read_text().startswith(f"# {rows[name]}")


@pytest.mark.parametrize("name", ["configs/rl.yaml", "rl", "rl.yaml", "./configs/rl.yaml"])
def test_a_configuration_brings_the_policy_that_it_names(name, capsys):
    config("cp", name)
    assert capsys.readouterr().out.split() == ["configs/rl.yaml", "checkpoints/tabletop-sft"]
    pretrained = yaml.safe_load(Path("configs/rl.yaml").read_text())["model"]["policy"]["pretrained"]
    assert pretrained == "checkpoints/tabletop-sft"
    copied = files(Path(), "configs", "checkpoints")
    assert copied == {name: (ROOT / name).read_bytes() for name in copied}
    assert set(files(ROOT, "checkpoints/tabletop-sft")) == set(files(Path(), "checkpoints"))


def test_all_are_copied_to_where_one_says(capsys):
    config("cp", "all", "new/place")
    policies = [f"checkpoints/{name}" for name in POLICIES]
    assert files(Path("new/place"), "configs", "checkpoints") == files(ROOT, "configs", *policies)
    assert set(capsys.readouterr().out.split()) >= {"new/place/configs/libero/validate.yaml"}


def test_nothing_is_overwritten_without_force(capsys):
    config("cp", "tabletop-sft")
    card = Path("checkpoints/tabletop-sft/README.md")
    card.write_text("mine")
    config("cp", "rl")  # the policy that comes along is there already
    Path("configs/rl.yaml").write_text("mine, too")
    for name in ("rl", "tabletop-sft", "all"):
        assert "exists: give another directory, or overwrite it with --force" in refused(capsys, "cp", name)
    assert card.read_text() == "mine" and Path("configs/rl.yaml").read_text() == "mine, too"
    assert not Path("configs/sft.yaml").exists()  # of all, nothing
    config("cp", "all", "--force")
    assert card.read_bytes() == (ROOT / card).read_bytes() and Path("configs/sft.yaml").exists()
    assert Path("configs/rl.yaml").read_bytes() == (ROOT / "configs/rl.yaml").read_bytes()


def test_a_policy_is_not_mixed_with_another_one_even_by_force(capsys):
    adapter = Path("checkpoints/tabletop-sft/adapter/adapter_model.safetensors")
    adapter.parent.mkdir(parents=True)
    adapter.write_text("mine")
    assert "which the shipped one does not have" in refused(capsys, "cp", "tabletop-sft", "--force")
    assert files(Path(), "checkpoints") == {adapter.as_posix(): b"mine"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["cp", "configs/rll.yaml"], "did you mean configs/rl.yaml? `dvla config ls` lists them"),
        (["cp", "../configs/rl.yaml"], "no shipped configuration or policy"),
        (["cp", "rl", "mine.yaml"], "give the directory to put configs/ and checkpoints/ into"),
        (["cp", "rl", "/dev/null/x"], "/dev/null, which is a file"),
        (["cp"], "name"),
        (["mv"], "mv"),
        ([], "{ls,cp}"),
    ],
)
def test_bad_arguments_end_in_one_sentence(words, expected, capsys):
    assert expected in refused(capsys, *words)
