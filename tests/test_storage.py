"""Folders are complete or absent, and errors say how to mend them."""

import errno
import json
import os

import pytest
from test_corpus import build, plant, projects

from codenas_hf.data.storage import DataError, building, content_key, locked, read_json, stored_key
from codenas_hf.folders import write_json


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path):
    folder = tmp_path / "result"
    with building(folder) as work:
        (work / "a").write_text("old")
    with pytest.raises(RuntimeError, match="half way"), building(folder) as work:  # noqa: PT012
        (work / "a").write_text("new")
        raise RuntimeError("half way")
    assert (folder / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_full_disk_is_one_clear_error_and_frees_what_it_took(tmp_path):
    folder = tmp_path / "result"
    with building(folder) as work:
        (work / "a").write_text("old")
    with pytest.raises(DataError, match=r"is full .* earlier results are intact"):  # noqa: PT012
        with building(folder, name="building-x", keep=True) as work:
            (work / "a").write_text("new")
            raise OSError(errno.ENOSPC, "No space left on device")
    assert (folder / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_kept_work_is_found_again(tmp_path):
    folder = tmp_path / "result"
    with pytest.raises(KeyboardInterrupt), building(folder, name="building-x", keep=True) as work:  # noqa: PT012
        (work / "part").write_text("done")
        raise KeyboardInterrupt
    with building(folder, name="building-x", keep=True) as work:
        assert (work / "part").read_text() == "done"


def test_keys_do_not_depend_on_the_order_of_a_mapping():
    assert content_key({"a": 1, "b": (2, 3)}) == content_key({"b": [2, 3], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})


def test_manifests(tmp_path):
    path = tmp_path / "m.json"
    with pytest.raises(DataError, match=r"expected a thing at .*found no m.json; build it first"):
        read_json(path, what="a thing")
    assert stored_key(tmp_path, "m.json") is None
    for damaged in ("{", "[1]"):
        path.write_text(damaged)
        with pytest.raises(DataError, match="damaged"):
            read_json(path, what="a thing")
        assert stored_key(tmp_path, "m.json") is None
    write_json(path, {"key": "k"})
    assert json.loads(path.read_text()) == {"key": "k"}
    assert stored_key(tmp_path, "m.json") == "k"


def test_what_killed_builds_left_goes_after_a_week(tmp_path):
    plant(tmp_path / "src", projects())
    left = {name: tmp_path / f".{name}.building-0123456789ab" for name in ("out", "old", "new", "busy")}
    for name, path in left.items():
        path.mkdir()
        if name in ("old", "busy"):
            os.utime(path, (1, 1))
    with locked(tmp_path / "busy"):
        build(tmp_path / "src", tmp_path / "out")
    assert [name for name, path in left.items() if path.exists()] == ["new", "busy"]
