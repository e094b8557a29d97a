"""Runs of a benchmark: each once, so many at a time, found again, and a failed one is said."""

from pathlib import Path

import pytest

from benchmarks import pool
from benchmarks.pool import work_off


def test_what_is_wanted_is_run_once_and_may_grow(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text("[1]")
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    asked = []

    def wanted() -> dict[Path, list[str]]:
        paths = [first, second] if first.exists() else [first]
        asked.append(len(paths))
        return {path: [str(tmp_path / "in.json"), str(path)] for path in paths}

    assert work_off(wanted, module="json.tool", workers=2) == set()
    assert asked[0] == 1
    assert [path.read_text() for path in (first, second)] == ["[\n    1\n]\n"] * 2
    first.write_text("kept")
    assert work_off(wanted, module="json.tool", workers=1) == set()
    assert first.read_text() == "kept", "what is there is not run again"


def test_no_more_than_so_many_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.json").write_text("[1]")
    begun, together, plain = [], [], pool.subprocess.Popen

    def popen(*words: object, **options: object) -> object:
        begun.append(plain(*words, **options))  # type: ignore[call-overload]
        together.append(sum(process.poll() is None for process in begun))
        return begun[-1]

    monkeypatch.setattr(pool.subprocess, "Popen", popen)
    paths = [tmp_path / f"{number}.json" for number in range(4)]
    work_off(lambda: {p: [str(tmp_path / "in.json"), str(p)] for p in paths}, module="json.tool", workers=1)
    assert len(begun) == 4
    assert max(together) == 1


def test_a_run_that_leaves_nothing_ends_all_or_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.json").write_text("[1]")
    bad, good = tmp_path / "bad.json", tmp_path / "good.json"
    jobs = {bad: [str(tmp_path / "nosuch"), str(bad)], good: [str(tmp_path / "in.json"), str(good)]}
    assert work_off(lambda: jobs, module="json.tool", workers=1, keep_going=True) == {bad}
    assert good.exists()
    assert "bad: failed" in capfd.readouterr().out
    with pytest.raises(SystemExit, match=r"bad\.json was not written"):
        work_off(lambda: jobs, module="json.tool", workers=1)
