"""The record: one writer, one reader; older ones are read, newer and damaged ones refused in a line."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finished_run import schema_1

from codenas_hf.engine.storage import JOURNAL_FILE
from codenas_hf.folders import Record, RecordError, Release, StudyFolder, folder_bytes
from codenas_hf.folders import files as names
from codenas_hf.folders.record import DataFacts, Measured, Training, Trial

ROOT = Path(__file__).parent.parent


def test_a_real_record_is_read_as_it_was_written(finished_study: StudyFolder, tmp_path: Path) -> None:
    record = finished_study.winner.read_record()
    record.write(tmp_path)
    assert Record.read(tmp_path) == record
    assert record.schema == 2
    assert record.origin is not None
    assert (record.origin.kind, record.origin.name, record.origin.limits) == ("study", "demo", {"artifact_bytes": 2e7})
    assert record.trial is not None
    assert (record.trial.rung, record.training.steps, record.training.fim_rate) == (1, 4, 0.5)
    assert [point["step"] for point in record.training.curve][-1] == 4
    assert record.other == {}
    release = finished_study.winner
    assert record.release.weights_bytes == release.weights_bytes
    assert record.release.artifact_bytes == release.artifact_bytes == folder_bytes(release.folder)
    assert "checkpoint" not in release.record.read_text(), "a path of this machine"


def test_the_first_schema_is_read_as_the_same_facts(finished_study: StudyFolder, tmp_path: Path) -> None:
    old = {**schema_1(finished_study), "latencies": [{"device": "b"}], "notes": {"mine": 1}}
    (tmp_path / names.RECORD).write_text(json.dumps(old))
    (tmp_path / names.SETTINGS).write_text(finished_study.winner.settings.read_text())
    found, real = Record.read(tmp_path), finished_study.winner.read_record()
    assert found.other == {"latencies": [{"device": "b"}], "notes": {"mine": 1}}
    facts = dataclasses.replace(real.release, artifact_bytes=None)
    assert dataclasses.replace(found, other={}) == dataclasses.replace(real, release=facts)


def test_the_first_schema_of_a_trained_genome(tmp_path: Path) -> None:
    old = {
        "genome": {"hidden_size": 32},
        "genome_id": "ab",
        "training": {"budget": "40 steps", "steps": 40, "tokens": 512, "bytes": 900.5, "seconds": 3.0, "curve": []},
        "measured": {"bits_per_byte": 2.0, "parameters": 7},
        "start": {"folder": "first", "weights": "cd", "bits_per_byte": 2.5, "data": None},
        "release": {"architecture": "llama"},
    }
    (tmp_path / names.RECORD).write_text(json.dumps(old))
    found = Record.read(tmp_path)
    assert (found.origin, found.trial) == (None, None)
    assert found.training.steps == 40
    assert found.release.num_parameters == 7
    assert found.start is not None
    assert found.start.bits_per_byte == 2.5
    assert found.quantities() == {
        "bits_per_byte": 2.0,
        "num_parameters": 7,
        "train_tokens": 512,
        "train_seconds": 3.0,
    }


def test_keys_of_another_writer_are_kept_where_they_stood(tmp_path: Path) -> None:
    data = {"schema": 2, "mine": [1], "measured": {"bits_per_byte": 2.0, "by": "me", "latency": {"jitter": 3}}}
    (tmp_path / names.RECORD).write_text(json.dumps(data))
    record = Record.read(tmp_path)
    assert record.other == {"mine": [1], "measured": {"by": "me", "latency": {"jitter": 3}}}
    dataclasses.replace(record, genome_id="ab").write(tmp_path)
    written = json.loads((tmp_path / names.RECORD).read_text())
    assert written["mine"] == [1]
    assert written["measured"]["by"] == "me"
    assert written["measured"]["latency"]["jitter"] == 3
    assert written["genome_id"] == "ab"


def test_what_was_not_measured_is_absent_and_never_0(tmp_path: Path) -> None:
    Record(measured=Measured(bits_per_byte=1.5), training=Training(steps=3)).write(tmp_path)
    assert json.loads((tmp_path / names.RECORD).read_text()) == {
        "schema": 2,
        "training": {"steps": 3, "curve": []},
        "measured": {"bits_per_byte": 1.5},
        "data": {"corpus": {}},
        "release": {"why_not_stock": [], "files": [], "versions": {}},
    }
    assert Record.read(tmp_path).measured.loss is None
    assert Record().quantities() == {}


def test_a_predicted_latency_is_no_measured_one() -> None:
    trial = Trial(rung=0, number=0, objectives={"decode_ms": 0.5}, measurements={"decode_ms_predicted": 0.5})
    assert Record(trial=trial).quantities() == {}
    timed = dataclasses.replace(trial, measurements={"latency": {"decode_ms": 0.5}})
    assert Record(trial=timed).quantities() == {"decode_ms": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged: it is not JSON"),
        ("[1]", "is damaged: expected an object, got list"),
        ('{"schema": 3}', "has schema 3, this version reads up to 2: install a newer codenas-hf"),
        ('{"schema": "x"}', "has schema 'x', this version reads up to 2"),
        ('{"schema": 2, "measured": 1}', "is damaged: `measured` must be an object, got 1; release the model again"),
        ('{"schema": 2, "measured": {"bits_per_byte": "2"}}', "`measured.bits_per_byte` must be a number, got '2'"),
        ('{"schema": 2, "measured": {"bits_per_byte": NaN}}', "`measured.bits_per_byte` must be finite, got nan"),
        ('{"schema": 2, "training": {"steps": true}}', "`training.steps` must be a whole number, got True"),
        ('{"schema": 2, "training": {"curve": {}}}', "`training.curve` must be a list, got {}"),
        ('{"schema": 2, "trial": {"rung": 1}}', "`trial.number` is missing"),
        ('{"schema": 2, "origin": {"kind": "x", "name": "y"}}', "`origin.kind` must be 'study' or 'file', got 'x'"),
        ('{"evaluation": 5, "trial": 7}', "is damaged: "),
        ('{"measured": [], "release": 3}', "is damaged: "),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line_with_its_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / names.RECORD).write_text(text)
    with pytest.raises(RecordError, match=re.escape(str(tmp_path / names.RECORD))) as refused:
        Record.read(tmp_path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_release_is_found_by_its_folder_or_its_study(finished_study: StudyFolder, tmp_path: Path) -> None:
    release = finished_study.winner
    assert Release.find(release.folder) == Release.find(finished_study.folder) == release
    assert release.study == finished_study
    (tmp_path / names.CONFIG).write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"is no release and has no winner/: expected config\.json and"):
        Release.find(tmp_path)
    assert StudyFolder.all_in(finished_study.folder.parent) == [finished_study]


def parts(kind: type = Record, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(part, key) of every field of the record; the part of top-level values is empty."""
    for field in dataclasses.fields(kind):
        if field.name == "other":
            continue
        hint = typing.get_type_hints(kind)[field.name]
        inner = next((h for h in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(h)), None)
        name = f"{prefix}.{field.name}".lstrip(".")
        if inner is None or (prefix and inner in (DataFacts, kind)):  # described where it first stands
            yield prefix, field.name
        else:
            yield from parts(typing.cast(type, inner), name)


def test_the_documented_keys_are_those_of_the_record() -> None:
    text = (ROOT / "docs" / "sharing.md").read_text(encoding="utf-8").split("## The record")[1].split("\n## ")[0]
    documented = set()
    for part, keys in re.findall(r"^\| (?:`([\w.]+)`|top) \| ([^|]+) \|", text, re.MULTILINE):
        documented |= {(part, key) for key in re.findall(r"`(\w+)`", keys)}
    assert documented == set(parts())


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every string in a module that is no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    told = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.lineno, node.value


def test_every_file_name_is_spelled_once() -> None:
    ours = {value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)}
    assert {"record.json", "settings.yaml", "evaluation.json", "data.json", "latency.json"} <= ours
    found: dict[str, list[str]] = {}
    package = ROOT / "codenas_hf"
    for path in package.rglob("*.py"):
        for line, text in strings(path):
            for name in ours - {names.WINNER}:
                if re.search(rf"(?<!\w){re.escape(name)}", text):
                    found.setdefault(name, []).append(f"{path.relative_to(package)}:{line}")
    where = {name: places for name, places in found.items() if len(places) > 1}
    assert {name: len(places) for name, places in where.items()} == {names.JOURNAL: 2}, where
    assert JOURNAL_FILE == names.JOURNAL  # the engine imports nothing of ours


def test_folders_stand_on_the_ground() -> None:
    heavy = {"torch", "transformers", "numpy", "datasets"}
    for path in (ROOT / "codenas_hf" / "folders").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules: list[Any] = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {str(m).split(".")[0] for m in modules} & (heavy | {"codenas_hf"}), path
