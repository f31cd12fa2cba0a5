"""Paths that a user types: one meaning everywhere, and one sentence where there is none."""

import os
from pathlib import Path

import pytest

from dvla_lightning.errors import UserError
from dvla_lightning.paths import local_path, writable_directory


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DISK", "/disk")
    monkeypatch.delenv("NOT_SET", raising=False)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("runs/a", "runs/a"),
        ("~/runs", "{home}/runs"),
        ("$HOME/runs", "{home}/runs"),
        ("${DISK}/runs", "/disk/runs"),
        ("file:///disk/a%20b", "/disk/a b"),
        ("file://localhost/disk/a", "/disk/a"),
        ("file:///~x/$DISK", "/~x//disk"),
        ("a~b/c$", "a~b/c$"),
        (Path("/disk/x"), "/disk/x"),
    ],
)
def test_what_is_meant(given, meant, tmp_path):
    assert local_path(given, "x") == Path(meant.replace("{home}", str(tmp_path / "home")))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "is no path"),
        ("  ", "is no path"),
        ("a\0b", "is no path"),
        ("s3://bucket/x", "s3:// is not supported"),
        ("hf://org/name", "hf:// is not supported"),
        ("file://elsewhere/x", "on the machine 'elsewhere'"),
        ("$NOT_SET/x", "variable NOT_SET is not set"),
        ("x/${NOT_SET}", "variable NOT_SET is not set"),
        ("~no-such-user/x", "no such user"),
    ],
)
def test_what_is_nowhere(given, expected):
    with pytest.raises(UserError, match=expected.replace("$", r"\$")) as caught:
        local_path(given, "--out")
    assert str(caught.value).startswith("--out ")


def test_a_name_that_looks_like_a_variable_is_a_name_where_it_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("$NOT_SET").mkdir()
    assert local_path("$NOT_SET", "x") == Path("$NOT_SET")


def test_a_directory_is_checked_and_not_made(tmp_path):
    (tmp_path / "file").write_text("")
    assert writable_directory(f"{tmp_path}/a/../b/c", "x") == tmp_path / "b" / "c"
    assert not (tmp_path / "b").exists()
    for below in ("file", "file/run"):
        with pytest.raises(UserError, match="is a file"):
            writable_directory(tmp_path / below, "x")
    with pytest.raises(UserError, match="cannot be used"):
        writable_directory(tmp_path / ("n" * 300), "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written_to(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="may not be written to"):
        writable_directory(tmp_path / "closed" / "run", "x")
