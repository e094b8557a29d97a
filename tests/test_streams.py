"""Hub datasets: any columns, any licence names (read from local files, without the Hub)."""

import datasets
import pytest

from codenas_hf.data.storage import DataError
from codenas_hf.data.streams import HubSettings, open_stream, stream_files, stream_identity

ROWS = [
    {"code": "x = 1\n", "repo": "me/a", "file": "a.py", "licences": ["mit"]},
    {"code": "y = 1\n", "repo": "me/b", "file": "b.py", "licences": ["gpl-3.0", "mit"]},
    {"code": "z = 1\n", "repo": "me/c", "file": "c.py", "licences": ["apache20"]},
    {"code": None, "repo": "me/d", "file": "d.py", "licences": []},
    {"code": "w = 1\n", "repo": "", "file": "e.py", "licences": []},
    {"code": "v = 1\n", "repo": "me/f", "file": "f.py", "licences": []},
]
SETTINGS = HubSettings(
    text_column="code",
    project_column="repo",
    path_column="file",
    licence_column="licences",
    licence_map={"apache20": "Apache-2.0"},
)


@pytest.fixture
def dataset_folder(tmp_path):
    datasets.Dataset.from_list(ROWS).to_parquet(str(tmp_path / "train.parquet"))
    return str(tmp_path)


def test_rows_become_candidates(dataset_folder):
    stream = open_stream("hub:" + dataset_folder, SETTINGS)
    files = list(stream_files("hub:x", stream, SETTINGS))
    assert [(file.project, file.name, file.licence, file.read()) for file in files if not file.problem] == [
        ("me/a", "a.py", "MIT", b"x = 1\n"),
        ("me/b", "b.py", "gpl-3.0 AND MIT", b"y = 1\n"),
        ("me/c", "c.py", "Apache-2.0", b"z = 1\n"),
        ("me/f", "f.py", "unknown", b"v = 1\n"),
    ]
    assert {file.name: file.problem for file in files if file.problem} == {
        "d.py": "row without text",
        "e.py": "row without a project",
    }
    assert stream_identity("hub:x", stream, SETTINGS) != stream_identity("hub:y", stream, SETTINGS)


def test_one_licence_for_all(dataset_folder):
    settings = HubSettings(
        text_column="code", project_column="repo", path_column="file", licence_column=None, licence="mit"
    )
    stream = open_stream("hub:" + dataset_folder, settings)
    assert {file.licence for file in stream_files("hub:x", stream, settings)} == {"MIT"}


def test_missing_column_names_those_that_exist(dataset_folder):
    with pytest.raises(DataError, match=r"has no column content, repo_name, path, license; it has code, repo"):
        open_stream("hub:" + dataset_folder, HubSettings())


def test_missing_dataset(tmp_path):
    with pytest.raises(DataError, match="cannot be opened"):
        open_stream("hub:" + str(tmp_path / "absent"), HubSettings())


def test_settings_are_checked():
    with pytest.raises(ValueError, match="`text_column` must be a non-empty name"):
        HubSettings(text_column="")


def test_odd_columns():
    rows = [
        {"code": "café = 1\n".encode(), "repo": 7, "file": None, "licences": None},
        {"code": "x = '\ud800'\n", "repo": "a\ud800", "file": "x.py", "licences": "MIT"},
        {"code": ["x = 1"], "repo": "b", "file": "y.py", "licences": {}},
        {"code": "x = 1\n", "repo": "  ", "file": "z.py", "licences": ["mit"]},
    ]
    files = list(stream_files("hub:x", rows, SETTINGS))
    assert [(file.project, file.name, file.licence, file.problem) for file in files] == [
        ("7", "row 0", "unknown", None),
        ("a\\ud800", "x.py", "MIT", None),
        ("b", "y.py", "unknown", "row without text"),
        ("  ", "z.py", "MIT", "row without a project"),
    ]
    assert files[0].read() == "café = 1\n".encode()


def test_a_stream_that_breaks_off_is_said():
    def rows():
        yield ROWS[0]
        raise ConnectionError("reset by peer")

    with pytest.raises(DataError, match=r"`me/code` broke off at row 1: ConnectionError: reset by peer"):
        list(stream_files("hub:me/code", rows(), SETTINGS))
