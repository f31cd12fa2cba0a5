"""Pictures and videos on a full disk: one sentence, nothing half-written, and what was there stays."""

from types import SimpleNamespace

import numpy as np
import pytest

from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.heat_map import save_figure
from dvla_lightning.evaluation.pictures import load_strip, save_strip
from dvla_lightning.evaluation.videos import save_video
from dvla_lightning.files import whole_file
from tests.full_disk import largest_file

NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


def strip(folder):
    save_strip(folder / "strip.png", NOISE, "a caption")


def figure(folder):
    from matplotlib.figure import Figure

    save_figure(folder / "figure.png", Figure())


def video(folder):
    pytest.importorskip("av")
    spec = SimpleNamespace(task="reach", initial_state=0)
    save_video(folder, SimpleNamespace(spec=spec, success=True, pictures=[NOISE] * 20))


@pytest.mark.parametrize("save", [strip, figure, video])
def test_a_full_disk_is_one_sentence(save, tmp_path):
    with (
        largest_file(400),
        pytest.raises(UserError, match=r"cannot be written \(File too large\): raise the limit"),
    ):
        save(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    save(tmp_path / "new")
    (file,) = (tmp_path / "new").iterdir()
    before = file.read_bytes()
    with largest_file(400), pytest.raises(UserError):
        save(tmp_path / "new")
    assert file.read_bytes() == before and list((tmp_path / "new").iterdir()) == [file]


@pytest.mark.parametrize("save", [strip, figure, video])
def test_a_folder_that_cannot_be_made_is_one_sentence(save, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written \("):
        save(tmp_path / "file" / "new")


def test_other_errors_pass_and_leave_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "x") as partial:
        partial.write_text("half")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_strip_comes_back(tmp_path):
    strip(tmp_path)
    picture, caption = load_strip(tmp_path / "strip.png")
    np.testing.assert_array_equal(picture, NOISE)
    assert caption == "a caption"
