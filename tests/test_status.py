"""How studies stand: one that cannot be read is a row with its reason, and hides no other."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from codenas_hf.cli.main import main
from codenas_hf.engine.storage import StorageError, first_line, open_storage
from codenas_hf.folders import Record, StudyFolder
from codenas_hf.jobs.settings import RunSettings
from codenas_hf.jobs.status import status_table
from codenas_hf.jobs.study import open_study, write_settings
from codenas_hf.strict_yaml import SettingsError, load

SETTINGS = "study: {name}\nspace: tiny\n"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Studies that began, and whose records are damaged in every way."""
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "settings.yaml").write_text(SETTINGS.format(name="whole"))
    broken = {
        "zeros": b'{"op_code":0,"worker_id":"a","study_name":"s/rung0","directions":[1]}\n' + b"\0" * 40 + b"\n",
        "text": b"hello\n",
    }
    broken["zeros"] += b'{"op_code":2,"worker_id":"a","study_id":0,"user_attr":{"a":1}}\n'
    for name, content in broken.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.yaml").write_text(SETTINGS.format(name=name))
        (tmp_path / name / "study.journal").write_bytes(content)
    for name, settings in {"space": "space: gone\n", "yaml": "a: [\n", "setting": "nonsense: 1\n"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.yaml").write_text(settings)
    (tmp_path / "folder" / "study.journal").mkdir(parents=True)
    (tmp_path / "folder" / "settings.yaml").write_text(SETTINGS.format(name="folder"))
    (tmp_path / "trained").mkdir()  # what `codenas train` leaves is no study
    (tmp_path / "trained" / "settings.yaml").write_text(SETTINGS.format(name="trained"))
    Record().write(tmp_path / "trained")
    (tmp_path / "server").mkdir()
    url = "postgresql+psycopg://me:hunter22@127.0.0.1:1/d"
    (tmp_path / "server" / "settings.yaml").write_text(f"search: {{storage: '{url}'}}\n")
    return tmp_path


def test_what_cannot_be_read_is_a_row_with_its_reason(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["study"]: row for row in status_table(runs).rows}
    assert rows.pop("whole")["state"] == "preparing data"
    assert set(rows) == {"zeros", "text", "space", "yaml", "setting", "folder", "server"}
    assert {row["state"] for row in rows.values()} == {"unreadable"}
    for name, part in {
        "zeros": "study.journal, line 2: expected an operation",
        "text": "line 1: .*no journal of a study",
        "space": "gone",
        "yaml": "settings.yaml",
        "setting": "nonsense",
        "folder": "is a folder, expected the journal",
        "server": r"`storage` .*me:\*\*\*@127.0.0.1.*is the server up",
    }.items():
        import re

        assert re.search(part, rows[name]["reason"]), rows[name]
        assert "\n" not in rows[name]["reason"]
        assert "hunter22" not in rows[name]["reason"]
    assert main(["status", str(runs)]) == 0
    shown = capsys.readouterr().out
    assert "whole" in shown
    assert "unreadable" in shown
    assert main(["status", str(runs), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 8


def test_settings_that_are_written_down_hold_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a study are read by others; what this process starts, and whoever asks later, has the environment."""
    monkeypatch.setenv("CODENAS_STORAGE", "")
    url = f"sqlite:///{tmp_path}/study.db"
    study = StudyFolder(tmp_path / "demo")
    study.folder.mkdir()
    for storage, kept in ((f"{url}?password=hunter22", "$CODENAS_STORAGE"), (url, url)):
        write_settings(RunSettings.of(f"search.storage={storage}"), study)
        assert "hunter22" not in study.settings.read_text()
        assert load(RunSettings, study.settings).search.storage == kept
    assert os.environ["CODENAS_STORAGE"] == f"{url}?password=hunter22"
    with pytest.raises(SettingsError, match="CODENAS_STORAGE is of another database"):
        write_settings(RunSettings.of(f"search.storage={url}?password=another1"), study)
    assert "hunter22" not in first_line(ValueError("no hunter22 here"), "$CODENAS_STORAGE")
    monkeypatch.setenv("CODENAS_STORAGE", url)
    assert open_storage("$CODENAS_STORAGE", folder=tmp_path).get_all_studies() == []
    assert (tmp_path / "study.db").is_file()
    monkeypatch.delenv("CODENAS_STORAGE")
    with pytest.raises(StorageError, match="export CODENAS_STORAGE="):
        open_storage("$CODENAS_STORAGE", folder=tmp_path)


def test_a_winner_is_told_as_its_release_was_measured(finished_study: StudyFolder, tmp_path: Path) -> None:
    """Three numbers of one model: not the quality after its last training beside the bytes of its trial."""
    shutil.copytree(finished_study.folder, tmp_path / "demo")
    winner = StudyFolder(tmp_path / "demo").winner
    record = winner.read_record()
    replace(record, release=replace(record.release, artifact_bytes=123456)).write(winner.folder)
    (row,) = status_table(tmp_path).rows
    known = winner.read_record().quantities()
    assert {name: row[name] for name in ("artifact_bytes", "decode_ms", "bits_per_byte")} == {
        "artifact_bytes": 123456, "decode_ms": known["decode_ms"], "bits_per_byte": record.measured.bits_per_byte,
    }  # fmt: skip
    winner.record.unlink()
    (row,) = status_table(tmp_path).rows
    assert row["artifact_bytes"] != 123456


def test_a_squeeze_without_a_search_is_finished_with_its_release(finished_study: StudyFolder, tmp_path: Path) -> None:
    shutil.copytree(finished_study.folder, tmp_path / "demo")
    study = StudyFolder(tmp_path / "demo")
    study.journal.unlink()
    (row,) = status_table(tmp_path).rows
    known = study.winner.read_record().quantities()
    assert row == {
        "study": "demo",
        "state": "finished",
        **{name: known[name] for name in ("artifact_bytes", "decode_ms", "bits_per_byte")},
    }
    study.winner.record.unlink()
    (row,) = status_table(tmp_path).rows
    assert row == {"study": "demo", "state": "preparing data"}


def test_plotting_a_damaged_study_is_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(runs / "zeros")]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "study.journal, line 2" in error
    with pytest.raises(SettingsError):
        open_study(runs / "space")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("study: whole", "study: whole\ncorpus:\n  validation_fraction: 0.05"),
        ("study: whole", "study: whole\nlimits:\n  parameters: 1000000"),
    ],
)
def test_a_study_of_an_older_version_is_one_line(
    old: str, new: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = runs / "whole" / "settings.yaml"
    settings.write_text(settings.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    study = str(runs / "whole")
    for words in (["plot", study], ["train", study], ["search", "--config", str(settings)]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert f"{settings}: `" in error
        assert words[0] == "search" or words[0] == "train" or "was begun with another version" in error


@pytest.mark.parametrize("name", ["", " ", "a/b", "..", ".hidden", "a\nb", "data", "latency", "x" * 300, "/tmp/x"])
def test_a_study_has_a_name_that_a_folder_can_have(name: str) -> None:
    with pytest.raises(ValueError, match=r"`study` must be the name of a folder.*`folder=` says where studies lie"):
        RunSettings(study=name)


@pytest.mark.parametrize("word", ["2024-01-01", "yes", "12:30", "5", '"1e3"'])
def test_a_name_that_looks_like_something_else_is_a_name(word: str) -> None:
    assert load(RunSettings, overrides=[f"study={word}"]).study == word.strip('"')
