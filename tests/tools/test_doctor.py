"""`dvla doctor` finds what was broken on purpose, and says what to do."""

import importlib.metadata

import pytest
import torch
from PIL import Image

from dvla_lightning.envs.libero import doctor as doctor_libero
from dvla_lightning.envs.libero import preflight
from dvla_lightning.envs.libero.assets import asset_files
from dvla_lightning.envs.libero.preflight import Probe
from dvla_lightning.errors import UserError
from dvla_lightning.rollout.worker import ProcessSlot, WorkerFailure
from dvla_lightning.tools import doctor

SUITE = "libero_spatial"


@pytest.fixture
def absent(monkeypatch):
    """Names of packages that seem not to be installed; all others seem to be."""
    names = set()

    def version(package):
        if package in names:
            raise importlib.metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    return names


@pytest.fixture
def machine(absent, tmp_path, monkeypatch):
    """A machine on which LIBERO seems to work: a folder with a file for every asset, EGL, no GPU; no frame is made."""
    for file in asset_files(SUITE):
        path = tmp_path / "assets" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setenv("LIBERO_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    for name in ("MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(preflight, "ROBOSUITE_LOG", tmp_path / "robosuite.log")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_gpu", lambda: iter(()))
    monkeypatch.setattr(doctor_libero, "try_gl", lambda backend, with_cuda=False: Probe(None, "llvmpipe (LLVM 15)"))
    monkeypatch.setattr(doctor_libero, "_frame", lambda *_: doctor_libero.Check(True, "LIBERO frame", "drawn"))
    return tmp_path


def examine(capsys, **options):
    """Whether all is well, and the report as name -> (mark, finding with its remedy)."""
    healthy = doctor.doctor(libero=True, suite=SUITE, **options)
    report = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("     -> "):
            name = list(report)[-1]
            report[name] = (report[name][0], report[name][1] + line)
        else:
            name, finding = line[5:].split(": ", 1)
            report[name] = (line[:4].strip(), finding)
    return healthy, report


def test_a_remedy_is_named_for_everything_that_is_broken(capsys, absent):
    absent.update(("peft", "mujoco"))
    healthy, report = examine(capsys)
    assert not healthy
    broken = {name: finding for name, (mark, finding) in report.items() if mark == "FAIL"}
    assert set(broken) == {"peft", "LIBERO"}
    assert all("->" in finding for finding in broken.values())


def test_a_missing_libero_is_no_failure_where_it_is_not_required(capsys, absent):
    absent.add("mujoco")
    assert doctor.doctor()
    assert "-    LIBERO: not installed (mujoco missing)" in capsys.readouterr().out


def test_the_library_behind_videos_is_optional(capsys, absent):
    absent.update(("mujoco", "av"))
    assert doctor.doctor()
    printed = capsys.readouterr().out
    assert "-    videos: not installed (av missing)" in printed and "pip install 'dvla-lightning[video]'" in printed


def test_an_unknown_suite_is_a_user_error():
    with pytest.raises(UserError, match="libero_spatial"):
        doctor.doctor(suite="libero_100")


def test_a_machine_that_works(capsys, machine):
    healthy, report = examine(capsys)
    assert healthy
    assert report["rendering"] == ("ok", "MuJoCo will use egl")
    assert "llvmpipe" in report["GL egl"][1]
    assert report["LIBERO frame"] == ("ok", "drawn")


def test_a_missing_asset_is_named(capsys, machine):
    lost = machine / "assets" / asset_files(SUITE)[7]
    lost.unlink()
    healthy, report = examine(capsys)
    mark, finding = report[f"assets of {SUITE}"]
    assert not healthy and mark == "FAIL"
    assert finding.startswith(f"1 of {len(asset_files(SUITE))} missing: {lost}     ->")
    assert "LIBERO frame" not in report  # its suite is not complete


def test_a_machine_without_gl(capsys, machine, monkeypatch):
    monkeypatch.setattr(doctor_libero, "try_gl", lambda backend: Probe(f"lib{backend} not found"))
    healthy, report = examine(capsys)
    assert not healthy
    assert report["GL egl"][1].startswith("libegl not found") and report["GL osmesa"][0] == "-"
    mark, finding = report["rendering"]
    assert mark == "FAIL" and finding.startswith("no GL backend works") and "apt-get install libegl1" in finding
    assert "LIBERO frame" not in report


def test_a_gl_setting_that_needs_a_display_is_named(capsys, machine, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert examine(capsys)[1]["rendering"] == (
        "ok",
        "MuJoCo will use egl; MUJOCO_GL=glfw is ignored, it needs a display",
    )


def test_liberos_question_is_explained_until_it_is_answered(capsys, machine):
    mark, finding = examine(capsys)[1]["LIBERO's question"]
    assert mark == "-" and "EOFError" in finding
    (machine / "config.yaml").touch()
    assert examine(capsys)[1]["LIBERO's question"] == ("ok", f"answered by {machine / 'config.yaml'}")


@pytest.mark.parametrize(
    ("device", "visible", "complaint"),
    [("cuda:0", "", "is no number"), ("3", "0,1", "not among CUDA_VISIBLE_DEVICES=0,1"), ("1", "0,1", None)],
)
def test_an_egl_device_that_cannot_be_used_is_found(device, visible, complaint, capsys, machine, monkeypatch):
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", device)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    healthy, report = examine(capsys)
    assert healthy == (complaint is None)
    assert (complaint or "MUJOCO_EGL_DEVICE_ID=1") in report["EGL device"][1]


def test_a_log_of_robosuite_that_belongs_to_somebody_else_is_found(capsys, machine):
    (machine / "robosuite.log").mkdir()
    healthy, report = examine(capsys)
    assert not healthy and "cannot write" in report["robosuite"][1]


def test_beside_a_gpu_it_tells_who_draws_and_tries_cuda_with_gl(capsys, machine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        doctor_libero, "try_gl", lambda _, with_cuda=False: Probe("aborted" if with_cuda else None, "llvmpipe")
    )
    report = examine(capsys)[1]
    assert "NVIDIA_DRIVER_CAPABILITIES" in report["GPU rendering"][1]
    assert report["GL beside CUDA"][0] == "-" and "num_workers" in report["GL beside CUDA"][1]


@pytest.mark.libero
class TestFrame:
    def test_every_camera_is_drawn_saved_and_timed(self, tmp_path):
        check = doctor_libero._frame(SUITE, Probe(None, "the card"), doctor.OwnSimulator, tmp_path, False)
        assert check.ok
        for camera in ("agentview", "wrist"):
            picture = Image.open(tmp_path / f"libero-{camera}.png")
            assert picture.size == (128, 128) and str(picture.filename) in check.finding
        assert "ms per frame of 128 px with the card" in check.finding

    def test_a_worker_that_hangs_is_reported(self, tmp_path, monkeypatch):
        def hang(slot, command, argument, seconds):
            raise WorkerFailure("Traceback\nworker 1 did not answer within 180 s")

        monkeypatch.setattr(ProcessSlot, "call", hang)
        check = doctor_libero._frame(SUITE, Probe(None), doctor.OwnSimulator, tmp_path, False)
        assert (check.ok, check.finding) == (False, "worker 1 did not answer within 180 s")
        assert "MUJOCO_GL" in check.remedy
