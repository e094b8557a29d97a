"""The winner is a question: asked of a finished record, under any limits and weights, without torch."""

import json
from pathlib import Path

import pytest
import yaml
from integer_space import Point

from codenas_hf.cli.main import main
from codenas_hf.engine import Evaluation, IdentityError, Objectives, RandomPolicy, SearchSettings, single_stage
from codenas_hf.engine.storage import open_storage
from codenas_hf.engine.study import Study
from codenas_hf.jobs.winner import ask
from codenas_hf.quantities import OBJECTIVES, quantity
from codenas_hf.strict_yaml import SettingsError

SCALES = {name: quantity(name).scale for name in OBJECTIVES}
# bits per byte, bytes, milliseconds; the last one is dominated
FRONT = [(1.9, 4e6, 3.0), (2.0, 2e6, 2.0), (2.2, 9e5, 1.5), (2.5, 4e5, 1.0), (2.6, 3e6, 2.5)]
FRAME = {
    "ideal": {"bits_per_byte": 1.8, "artifact_bytes": 3e5, "decode_ms": 0.8},
    "reference": {"bits_per_byte": 3.0, "artifact_bytes": 5e6, "decode_ms": 4.0},
}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A finished study without limits, as a folder."""
    return write_study(tmp_path / "runs" / "demo")


def write_study(folder: Path, **limits: float) -> Path:
    settings = SearchSettings(objectives=SCALES, rungs=single_stage(), limits=limits, **FRAME)  # type: ignore[arg-type]
    objectives = settings.build_objectives()
    record = Study(
        open_storage(None, folder=folder), name="demo", space=None, rungs=1, objectives=objectives, folder=folder
    )
    record.check_identity(settings.identity_of(space="a space", policy=RandomPolicy()), create=True)
    for number, values in enumerate(FRONT):
        record.add(0, Point(number, 0), generation=0)
        claim = record.claim(member=0, worker="w")
        assert claim is not None
        record.finish(claim, objectives.checked(Evaluation(objectives=dict(zip(OBJECTIVES, values, strict=True)))))
    record.set_fact("frame", FRAME)
    record.set_fact("finished", {"generations": 1, "confirmed": True})
    (folder / "settings.yaml").write_text(yaml.safe_dump({"study": "demo", "space": "tiny"}))
    return folder


def bits(study: Path, *words: str) -> float | None:
    record = ask(study, words).record
    return None if record is None or record.evaluation is None else record.evaluation.objectives["bits_per_byte"]


def test_inside_a_limit_the_best_model_wins_and_not_the_smallest(study: Path) -> None:
    assert bits(study) == 2.5  # by weight: the smallest, as a newcomer was once handed
    assert bits(study, "limits.bytes=5MB", "weights.decode_ms=0") == 1.9
    assert bits(study, "limits.bytes=2.5MB", "weights.decode_ms=0") == 2.0
    assert bits(study, "limits.bytes=5MB", "limits.decode_ms=1.6") == 2.2  # both satisfied: quality alone
    assert bits(study, "weights.bits_per_byte=1", "weights.artifact_bytes=0", "weights.decode_ms=0") == 1.9
    assert bits(study, "limits.bytes=1kB") is None


def test_without_a_limit_three_members_are_named(study: Path) -> None:
    answer = ask(study)
    named = [(row["share"], row["objectives"]["bits_per_byte"]) for row in answer.to_dict()["within"]]
    assert named == [(0.25, 2.2), (0.5, 2.0), (1.0, 1.9)]
    assert any("no limit" in line for line in answer.lines())
    assert ask(study, ["limits.bytes=5MB"]).to_dict()["within"] == []


def test_the_studys_own_limits_stay_unless_named(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "demo", artifact_bytes=2.5e6)
    settings = {"study": "demo", "limits": {"bytes": 2_500_000}, "weights": {"decode_ms": 0.0}}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    assert bits(folder) == 2.0
    settings["limits"] |= {"min_bytes": 2_000_000}  # of what was searched, and not of what is asked
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    assert bits(folder, "limits.bytes=1MB") == 2.2
    assert bits(folder, "limits.bytes=null", "limits.decode_ms=9", "weights.artifact_bytes=0") == 1.9


def test_the_verb(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["winner", str(study), "limits.bytes=2.5MB", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["limits"] == {"artifact_bytes": 2_500_000.0}
    assert answer["winner"]["objectives"]["artifact_bytes"] <= 2.5e6
    assert main(["winner", str(study)]) == 0
    text = capsys.readouterr().out
    assert "best within a quarter of the bytes" in text
    assert "no limit" in text
    assert main(["winner", str(study), "limits.bytes=1kB"]) == 1
    assert "no evaluated architecture keeps these limits" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    assert main(["winner", str(study), "limits.byte=1MB"]) == 2
    assert "did you mean `bytes`" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before


def test_what_cannot_be_asked(study: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="narrows what is searched"):
        ask(study, ["limits.min_bytes=1MB"])
    with pytest.raises(SettingsError, match="`search` is not a setting"):
        ask(study, ["search.seed=1"])
    with pytest.raises(FileNotFoundError, match="no study in"):
        ask(tmp_path)


def test_weights_make_no_other_search_and_studies_of_before_still_open(tmp_path: Path) -> None:
    settings = SearchSettings(objectives=SCALES, rungs=single_stage(), weights={"bits_per_byte": 1.0})
    record = Study(
        open_storage(None, folder=tmp_path), name="s", space=None, rungs=1, objectives=settings.build_objectives()
    )
    identity = settings.identity_of(space="a space", policy=RandomPolicy())
    old = {
        **identity,
        "policy": "RandomPolicy(objectives=Objectives(weights={'bits_per_byte': 0.5}))",
        "objectives": {**identity["objectives"], "weights": {"bits_per_byte": 0.5, "decode_ms": 0.5}},
    }
    record.check_identity(old, create=True)
    assert record.check_identity(identity, create=False)
    with pytest.raises(IdentityError, match="policy: stored"):
        record.check_identity({**identity, "policy": "GeneticPolicy"}, create=False)
    assert "weights" not in identity["objectives"]


def test_equal_quality_goes_to_the_first(study: Path) -> None:
    assert Objectives(scales={"a": "linear", "b": "linear"}, limits={"a": 1, "b": 1}).deciding == {"a": 1.0}
    result = ask(study).result
    assert result.best_within("artifact_bytes", 0.001) is None


def test_status_of_a_folder_that_was_renamed_and_of_a_broken_one(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.rename(study.with_name("demo.old1"))
    broken = study.with_name("broken")
    broken.mkdir()
    (broken / "settings.yaml").write_text("space: [\n")
    assert main(["status", str(study.parent)]) == 0
    text = capsys.readouterr().out
    assert "| demo.old1 | finished |" in text
    assert "| broken | unreadable |" in text


def test_nobody_within_the_limits_is_one_line(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["winner", str(study), "limits.bytes=1"]) == 1
    assert capsys.readouterr().out == "none      no evaluated architecture keeps these limits\n"
