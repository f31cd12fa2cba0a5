"""What `pip install` gives to somebody without a clone: the README's commands run in an empty directory."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def run(*words, cwd):
    done = subprocess.run([*map(str, words)], cwd=cwd, env=ENVIRONMENT, text=True, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the source distribution, as an index serves it: what that lacks, the wheel lacks."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (source,) = folder.glob("*.tar.gz")
    options = ["--no-build-isolation", "--no-deps", "--no-index", "-w", folder]
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The programs of a new environment with the wheel, which borrows its dependencies from the one of the tests."""
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, symlinks=True)
    programs = root / "bin"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        programs / "python",
        "install",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=root,
    )
    (packages,) = root.glob("lib/python*/site-packages")
    # Folders of a .pth file are searched last, and .pth files in them, such as that of an editable install, not read.
    borrowed = [folder for folder in sys.path if Path(folder).name == "site-packages"]
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return programs


@pytest.mark.slow
def test_the_commands_of_the_readme_run_without_a_clone(installed, tmp_path):
    code = "from dvla_lightning.tools import config; print(config.__file__); print(config.shipped())"
    places = run(installed / "python", "-c", code, cwd=tmp_path).splitlines()
    assert all(Path(place).is_relative_to(installed.parent) for place in places), places
    assert not list(tmp_path.iterdir())
    dvla = installed / "dvla"
    listed = run(dvla, "config", "ls", cwd=tmp_path)
    assert "configs/rl.yaml" in listed and "checkpoints/tabletop-sft" in listed
    run(dvla, "config", "cp", "all", cwd=tmp_path)
    words = ["--config", "configs/rl.yaml", "--model.policy.pretrained", "checkpoints/tabletop-sft"]
    table = run(
        dvla, "validate", *words, "--data.evaluation.num_episodes", 10, "--trainer.accelerator", "cpu", cwd=tmp_path
    )
    assert "all tasks" in table and "(n = 10)" in table
    assert (tmp_path / "runs" / "rl" / "evaluation.jsonl").is_file()
