"""`dvla doctor` on RoboTwin installations, sound and not."""

import shutil
import sys

import pytest

from dvla_lightning.cli import main
from dvla_lightning.envs.robotwin import RoboTwin
from dvla_lightning.envs.robotwin.doctor import check_robotwin
from dvla_lightning.tools import doctor
from tests.robotwin_checkout import make_checkout, model_of


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    made = make_checkout(tmp_path / "robotwin")
    monkeypatch.setenv("ROBOTWIN_ROOT", str(made))
    monkeypatch.setenv("ROBOTWIN_PYTHON", sys.executable)
    return made


def report(tmp_path, required=True, environment=None):
    checks = check_robotwin(required, environment, doctor.ForeignSimulator, tmp_path)
    return {check.name: check for check in checks}


def test_a_sound_installation(checkout, tmp_path):
    checks = report(tmp_path)
    assert all(check.ok for check in checks.values()), [str(check) for check in checks.values()]
    assert "layout stable_2.0" in checks["RoboTwin"].finding and sys.executable in checks["RoboTwin Python"].finding
    assert "numpy" in checks["RoboTwin Python"].finding
    assert checks["Vulkan"].finding == "GPU: llvmpipe (fake), Supported: 1"
    assert "50 of 50 tasks" in checks["RoboTwin models"].finding
    assert "s for a step" in checks["RoboTwin ray tracing"].finding
    assert (tmp_path / "robotwin-ray.png").exists() and (tmp_path / "robotwin-rasteriser.png").exists()


def test_what_is_missing_is_named(checkout, tmp_path):
    shutil.rmtree(checkout / "assets" / "objects" / model_of("lift_pot"))
    (checkout / "curobo.py").unlink()
    (checkout / "faults.json").write_text('{"render": ["kill", 1]}')
    checks = report(tmp_path)
    assert (
        f"49 of 50 tasks have their models; missing: lift_pot ({model_of('lift_pot')})"
        in checks["RoboTwin models"].finding
    )
    assert "TianxingChen/RoboTwin2.0" in checks["RoboTwin models"].remedy
    assert "planner: mplib" in checks["RoboTwin planner"].remedy and checks["RoboTwin planner"].ok is None
    assert "Vulkan device lost" in checks["RoboTwin ray tracing"].finding and checks["RoboTwin ray tracing"].ok is None
    assert checks["RoboTwin rendering"].ok  # the rasteriser works


def test_other_robots_and_one_renderer(checkout, tmp_path):
    robot = shutil.move(checkout / "assets" / "embodiments" / "aloha-agilex", tmp_path / "robot")
    assert report(tmp_path)["RoboTwin assets"].ok is False
    options = {"embodiment": [str(robot), str(robot), 0.8], "arm_joints": 6, "shader": "default", "shadow": False}
    checks = report(tmp_path, environment=RoboTwin(**options))
    assert all(check.ok for check in checks.values()), [str(check) for check in checks.values()]
    assert "s for a step" in checks["RoboTwin renderer"].finding and "RoboTwin ray tracing" not in checks


@pytest.mark.parametrize("in_a_file", [True, False])
def test_the_environment_of_the_command_line(in_a_file, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(doctor, "check_robotwin", lambda *arguments: asked.append(arguments) or [])
    (tmp_path / "robots.yaml").write_text("class_path: RoboTwin\ninit_args: {shader: default}\n")
    words = [str(tmp_path / "robots.yaml")] if in_a_file else ["RoboTwin", "--environment.shader", "default"]
    main(["doctor", "--robotwin", "true", "--environment", *words])
    ((required, environment, *_),) = asked
    assert required and environment.shader == "default" and "Tabletop" in capsys.readouterr().out


def test_a_picture_of_a_bare_table_is_no_blank_picture(checkout, tmp_path, monkeypatch):
    base, line = (
        checkout / "envs" / "_base_task.py",
        "rgb[0, 0] = [self.shadow, len(sapien.render.shader), self.eval_mode]",
    )
    sound = base.read_text()
    assert line in sound
    for pixels, blank in (("rgb[:] = 241 - np.arange(width)[:, None] % 3", False), ("rgb[:] = 0", True)):
        base.write_text(sound.replace(line, pixels))
        check = report(tmp_path, environment=RoboTwin(shader="default"))["RoboTwin renderer"]
        assert ("blank picture from head, left, right" in check.finding) is blank and bool(check.ok) is not blank


@pytest.mark.parametrize("required", [True, False])
def test_no_installation(required, tmp_path, monkeypatch):
    monkeypatch.delenv("ROBOTWIN_ROOT", raising=False)
    (check,) = report(tmp_path, required).values()
    assert check.ok is (False if required else None) and "ROBOTWIN_ROOT" in check.finding


def test_a_wrong_python(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOTWIN_PYTHON", "/nowhere/python")
    check = report(tmp_path)["RoboTwin Python"]
    assert check.ok is False and "is no program that can be run" in check.finding
