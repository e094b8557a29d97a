"""`codenas launch`: what it writes is what it says, starts nothing unasked, and works when it is run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finished_run import SPACE, WORDS
from huggingface_hub.cli._uv_script_header import parse_uv_script_header
from test_postgres import database, server  # noqa: F401  # fixtures

from codenas_hf.cli.main import main
from codenas_hf.engine import SearchResult
from codenas_hf.folders import Release, StudyFolder
from codenas_hf.jobs import launch as jobs_launch

URL = "postgresql+psycopg://me:hunter2@db/codenas"
SHARE = "search.share=hf://buckets/me/share"
PACKAGE = "--package=codenas-hf @ git+https://host/me/code"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, where a `codenas`, an `sbatch` and an `hf` are found that write down what they got."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("codenas", "sbatch", "hf"):
        (programs / name).write_text(
            f'#!/bin/sh\nline={name}\nfor word in "$@"; do line="$line\t$word"; done\n'
            f"printf '%s\\n' \"$line\" >>{tmp_path}/ran\n"  # one write a line: several run at once
        )
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setattr(jobs_launch, "_PATH", f"export PATH={programs}:$PATH")
    monkeypatch.setenv("CODENAS_STORAGE", URL)
    monkeypatch.setenv("POSTGRES_PASSWORD", "hunter2")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(place: Path) -> list[list[str]]:
    if not (place / "ran").exists():
        return []
    return [line.rstrip("\t").split("\t") for line in (place / "ran").read_text().splitlines()]


def written(place: Path, study: str = "two_stage") -> dict[str, str]:
    folder = place / "runs" / study / "launch"
    return {p.name: p.read_text() for p in folder.iterdir() if p.suffix in (".sh", ".py")}


@pytest.mark.parametrize("where", ["local", "slurm", "hf-jobs"])
def test_files_are_written_and_nothing_is_started(place: Path, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [PACKAGE, f"search.storage={URL}", SHARE, "limits.bytes=4MB", "corpus.sources=['a b']"]
    assert main(["launch", where, "--workers", "3", *words]) == 0
    (name,) = written(place)
    text, shown = written(place)[name], capsys.readouterr().out
    assert f"wrote     runs/two_stage/launch/{name}" in shown
    assert "type:" in shown
    assert "hunter2" not in text + shown
    assert (place / "runs" / "two_stage" / "launch" / name).stat().st_mode & 0o077 == 0
    assert ran(place) == []
    if where != "hf-jobs":
        subprocess.run(["sh", "-n", f"runs/two_stage/launch/{name}"], check=True)


def test_a_list_of_processes_for_this_machine(place: Path) -> None:
    words = [f"search.storage={URL}", "limits.bytes=4MB", "corpus.sources=['a b']", "study=x"]
    assert main(["launch", "local", "--workers", "3", "--submit", *words]) == 0
    got = sorted(ran(place), key=lambda line: "--worker" in line)
    each = f"search.workers_per_rank={max(1, len(os.sched_getaffinity(0)) // 3)}"
    # Everybody on this machine sees the arguments of a process: the password is not among them.
    plain = ["limits.bytes=4MB", "corpus.sources=['a b']", "study=x", each, "search.storage=$CODENAS_STORAGE"]
    assert got == [["codenas", "search", *plain]] + 2 * [["codenas", "search", "--worker", *plain]]
    assert {p.name for p in (place / "runs" / "x" / "launch").glob("*.log")} == {"0.log", "1.log", "2.log"}


@pytest.mark.parametrize("where", ["local", "slurm"])
def test_processes_run_where_the_launch_was_written(place: Path, where: str) -> None:
    """From wherever the file is started: paths among the words are relative to there."""
    assert main(["launch", where, "--workers", "2", "search.storage=postgresql+psycopg://me@db/x", "study=x"]) == 0
    codenas = place / "programs" / "codenas"
    codenas.write_text(f"#!/bin/sh\npwd >>{place}/places\n")
    subprocess.run(["sh", place / "runs" / "x" / "launch" / f"{where}.sh"], check=True, cwd="/")
    assert set((place / "places").read_text().split()) == {str(place)}


def test_processes_of_this_machine_go_round_its_gpus(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that this process may use, by the names that it was given."""
    monkeypatch.setattr(jobs_launch.Hardware, "discover", lambda device="auto": jobs_launch.Hardware("cuda", "GPU", 2))
    monkeypatch.setattr(jobs_launch, "visible_gpus", lambda: ("2", "5"))
    assert main(["launch", "local", "--workers", "3", f"search.storage={URL}", "study=x", "space=tiny"]) == 0
    lines = [line for line in written(place, "x")["local.sh"].splitlines() if "codenas search" in line]
    assert [line.split()[0] for line in lines] == [f"CUDA_VISIBLE_DEVICES={gpu}" for gpu in ("2", "5", "2")]
    assert not any("workers_per_rank" in line for line in lines)


def test_an_array_of_jobs(place: Path) -> None:
    words = ["search.storage=postgresql+psycopg://me@db/codenas", "--config", "smoke"]
    options = ["--time", "02:00:00", "--option=--partition=gpu", "--option=--mem=8G"]
    assert main(["launch", "slurm", "--workers", "4", *options, "--submit", *words]) == 0
    assert ran(place) == [["sbatch", "runs/smoke/launch/slurm.sh"]]
    text = written(place, "smoke")["slurm.sh"]
    asked = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    wanted = {"--array=0-3", "--time=02:00:00", "--requeue", "--partition=gpu", "--mem=8G", "--signal=B:TERM@60"}
    assert wanted <= set(asked)
    (place / "ran").unlink()
    for task in range(3):  # as SLURM runs it
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}
        subprocess.run(["sh", "runs/smoke/launch/slurm.sh"], check=True, env=environment, cwd=place)
    rest = ["--config", "smoke", "search.storage=postgresql+psycopg://me@db/codenas"]
    assert ran(place) == [["codenas", "search", *rest]] + 2 * [["codenas", "search", "--worker", *rest]]


@pytest.mark.parametrize("port", ["", ":5432"])
def test_hf_jobs(place: Path, port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = URL.replace("/codenas", port + "/codenas")
    monkeypatch.setenv("CODENAS_STORAGE", url)
    words = [f"search.storage={url}", SHARE, "study=My_Study"]
    assert main(["launch", "hf-jobs", "--workers", "2", "--flavor", "t4-small", "--submit", PACKAGE, *words]) == 0
    text = written(place, "My_Study")["search.py"]
    header = parse_uv_script_header(text)
    assert header is not None
    assert '# dependencies = ["codenas-hf @ git+https://host/me/code", ' in text
    assert (header.flavor, header.timeout, header.secrets) == ("t4-small", "86400s", ["CODENAS_STORAGE", "HF_TOKEN"])
    jobs = ran(place)
    assert [job[1:3] for job in jobs] == [["jobs", "run"], ["jobs", "uv"], ["jobs", "uv"]]
    group = header.network_group
    assert jobs[0][jobs[0].index("--network-group") + 1] == group == "codenas-my-study"
    assert jobs[0][jobs[0].index("--network-alias") + 1] == "db"
    assert [job[-1] for job in jobs[1:]] == ["runs/My_Study/launch/search.py", "--worker"]
    got: list[Any] = []
    program = compile(text.replace("from codenas_hf.cli.main import main", "main = got.append"), "search.py", "exec")
    monkeypatch.setenv("HF_NETWORK_GROUP_PREFIX", "g7-")
    monkeypatch.setattr(sys, "argv", ["search.py", "--worker"])
    with pytest.raises(SystemExit):
        exec(program, {"__name__": "__main__", "got": got})
    assert got == [["search", "--worker", SHARE, "study=My_Study", "search.storage=$CODENAS_STORAGE"]]
    assert os.environ["CODENAS_STORAGE"] == url.replace("@db", "@g7-db")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["local"], "several machines share a study on a database, and none is named"),
        (["slurm", "--workers=0", f"search.storage={URL}"], "--workers must be at least 1, got 0"),
        (["hf-jobs", f"search.storage={URL}"], "HF Jobs have no folder in common: add search.share="),
        (["hf-jobs", "search.storage=postgresql+psycopg://me@db/x", SHARE], "with a password of your own"),
        (["hf-jobs", f"search.storage={URL}", SHARE], "no index has it yet: give --package"),
        (
            ["hf-jobs", PACKAGE, f"search.storage={URL.replace('@db', '@host')}", SHARE],
            r"whose name is `db`: .* got postgresql\+psycopg://me:\*\*\*@host/codenas",
        ),
        (["local", SHARE], "`share` .* is for studies of several machines"),
        (
            ["hf-jobs", f"search.storage={URL}", SHARE, "--config", "./mine.yaml"],
            r"of this machine, and \./mine\.yaml",
        ),
        (
            ["hf-jobs", f"search.storage={URL}", SHARE, "corpus.sources=[hub:a/b,./code]"],
            r"machine, and \./code is one",
        ),
    ],
)
def test_what_cannot_work_is_refused(
    place: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "mine.yaml").write_text("study: mine\n")
    (place / "code").mkdir()
    assert main(["launch", "--workers=2", *words]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (place / "runs").exists()


def test_a_secret_that_is_not_set_starts_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CODENAS_STORAGE")
    assert main(["launch", "slurm", "--workers=2", "--submit", f"search.storage={URL}"]) == 2
    assert "nothing was started: CODENAS_STORAGE is not set" in capsys.readouterr().err
    assert ran(place) == []


def test_a_worker_needs_a_study_on_a_server(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--worker"]) == 2
    assert "--worker joins a study on a server: give its search.storage=URL" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(1200)  # half a minute on a machine of its own
def test_two_machines_without_a_common_folder(
    place: Path,
    database: str,  # noqa: F811
    tiny_corpus_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The script of HF Jobs, run as two jobs in folders of their own, with a folder for the bucket."""
    (place / "space.yaml").write_text(SPACE)
    monkeypatch.setattr(jobs_launch, "_is_here", lambda word: False)  # these jobs do see the files of this machine
    url = database.replace("search@127.0.0.1", "search:hunter2@127.0.0.1")
    monkeypatch.setenv("CODENAS_STORAGE", url)
    share = f"search.share={place / 'bucket'}"
    corpus = [f"corpus.sources=[{tiny_corpus_folder}]", "corpus.benchmarks=[]", "corpus.held_out_fraction=0.2"]
    more = ["corpus.near_threshold=null", f"space={place / 'space.yaml'}", "search.finish=null", "study=two"]
    launched = "search.storage=postgresql+psycopg://search:hunter2@db/x"  # the jobs take theirs from the environment
    words = [PACKAGE, *WORDS, *corpus, *more, launched, share, "search.population=4"]
    assert main(["launch", "hf-jobs", "--workers", "2", *words]) == 0
    script = place / "runs" / "two" / "launch" / "search.py"
    jobs = []
    for name, options in (("first", []), ("second", ["--worker"])):
        (place / name).mkdir()
        with open(place / f"{name}.log", "w") as log:
            jobs.append(
                subprocess.Popen([sys.executable, str(script), *options], cwd=place / name, stdout=log, stderr=log)
            )
    said = ["", ""]
    try:
        for index, job in enumerate(jobs):
            status = job.wait(timeout=1000)
            said[index] = (place / ("first.log", "second.log")[index]).read_text()
            assert status == 0, said[index]
    finally:
        for job in jobs:
            job.kill()
            job.wait()
    assert "finished  the study two; whoever began it releases the winner" in said[1]
    assert "fetch     " in said[1], "the data were fetched, not made again"
    studies = [StudyFolder(place / name / "runs" / "two") for name in ("first", "second")]
    facts = [json.loads(study.latency.read_text()) for study in studies]
    assert facts[0] == facts[1], "one latency model: its predictions are part of the record"
    assert Release.find(studies[0].folder).weights
    assert not studies[1].winner.folder.exists()
    result = SearchResult.open(studies[0].folder, storage=url, name="two")
    assert result.finished
    assert result.failures == ()
    assert not [r for r in result.records if r.evaluation and "restarted" in r.evaluation.measurements]
