"""Publishing with the real client to a Hub on this computer: complete or reported, the same twice, never a leak."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from finished_run import make_run
from hub_server import Fault, HubServer

from codenas_hf.folders import StudyFolder
from codenas_hf.release import hub, parcels
from codenas_hf.release.hub import PublishError, PublishSettings, publish

ALL = ("model", "space", "dataset", "study", "collection")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, finished_study: StudyFolder) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo", finished_study)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as found:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(hub, "FIRST_WAIT_S", 0.01)
        monkeypatch.setenv("HF_TOKEN", "hf_alice")
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        yield found


@pytest.fixture(autouse=True)
def quick_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than publishing; one test draws."""
    if "everything" not in request.node.name:
        monkeypatch.setattr(parcels, "architecture_figure", lambda table: None)
        monkeypatch.setattr(parcels, "save", lambda figure, path, label: path.write_bytes(b"a picture"))


def test_one_command_publishes_everything_once(server: HubServer, run: Path) -> None:
    done = publish(run, repo_id="alice/demo", what=ALL)
    assert [p.what for p in done] == ["dataset", "study", "model", "space", "collection"]
    assert all(p.changed for p in done)
    assert server.counted(r"POST .*/commit/main") == 4, "one commit a repository"
    files = server.files("model", "alice/demo")
    assert {"model.safetensors", "tokenizer.json", "record.json", "settings.yaml", "README.md"} <= set(files)
    assert files["model.safetensors"] == (run / "winner" / "model.safetensors").read_bytes()
    assert "assets/architecture.png" in files
    assert "optimizer.pt" not in files
    assert b"alice/demo-corpus" in files["README.md"]
    assert json.loads(server.files("space", "alice/demo-playground")["models.json"]) == ["alice/demo"]
    assert server.repos["space", "alice/demo-playground"].sdk == "gradio"
    assert b"<!doctype html>" in server.files("dataset", "alice/demo-study")["report/index.html"]
    assert any(p.startswith("data/train-") for p in server.files("dataset", "alice/demo-corpus"))
    (collection,) = server.collections.values()
    kinds = {"dataset", "model", "space"}
    assert {item["type"] for item in collection["items"]} == kinds
    assert len(collection["items"]) == 4


def test_again_changes_nothing_and_sends_no_weights(server: HubServer, run: Path) -> None:
    first = publish(run, repo_id="alice/demo", what=("model", "study"))
    server.log.clear()
    second = publish(run / "winner", repo_id="alice/demo", what=("model", "study"))
    assert [p.changed for p in second] == [False, False]
    assert [p.commit for p in second] == [p.commit for p in first]
    assert server.counted("PUT|/commit/") == 0


def test_a_new_winner_replaces_the_old_and_leaves_nothing_stale(
    server: HubServer, run: Path, tmp_path: Path, finished_study: StudyFolder
) -> None:
    publish(run, repo_id="alice/demo")
    repo = server.repos["model", "alice/demo"]
    there = repo.commits[repo.refs["main"]]
    there |= {"model-q4_0.gguf": b"old", "evaluation.json": b"{}"}
    there |= {"modeling_codenas.py": b"old", "model-00002-of-00002.safetensors": b"old", "notes.md": b"mine"}
    other = make_run(tmp_path / "other", finished_study, seed=1)
    (done,) = publish(other, repo_id="alice/demo")
    files = server.files("model", "alice/demo")
    assert done.changed
    assert not {"modeling_codenas.py", "model-q4_0.gguf", "evaluation.json"} & files.keys()
    assert "model-00002-of-00002.safetensors" not in files
    assert files["notes.md"] == b"mine", "what is not ours stays"


def test_a_pull_request_leaves_main_alone(server: HubServer, run: Path) -> None:
    publish(run, repo_id="alice/demo")
    before = server.files("model", "alice/demo")
    (run / "winner" / "extra.txt").write_text("more")
    try:
        (done,) = publish(run, repo_id="alice/demo", create_pr=True)
    finally:
        (run / "winner" / "extra.txt").unlink()
    assert done.pr_url == f"{server.url}/alice/demo/discussions/1"
    assert server.files("model", "alice/demo") == before
    assert server.files("model", "alice/demo", "refs/pr/1")["extra.txt"] == b"more"


def test_a_dry_run_touches_no_network(server: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (done,) = publish(run, repo_id="alice/demo", dry_run=True)
    assert server.log == []
    assert done.commit is None
    assert done.num_bytes > (run / "winner" / "model.safetensors").stat().st_size
    assert done.card.startswith("---\n")


def test_a_name_without_owner_goes_to_the_token_s_account(server: HubServer, run: Path) -> None:
    (done,) = publish(run, repo_id="demo", private=True)
    assert done.repo_id == "alice/demo"
    assert server.repos["model", "alice/demo"].private


def test_passwords_and_the_home_folder_stay_at_home(
    server: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(run.parents[1]))  # holds the corpus' sources too
    record = json.loads((run / "winner" / "record.json").read_text())
    (run / "winner" / "notes.json").write_text(json.dumps({**record, "place": f"{run}/trials"}))
    try:
        publish(run, repo_id="alice/demo", what=("model", "study", "dataset"))
    finally:
        (run / "winner" / "notes.json").unlink()
    repositories = [("model", "alice/demo"), ("dataset", "alice/demo-study"), ("dataset", "alice/demo-corpus")]
    for kind, name in repositories:
        for path, content in server.files(kind, name).items():
            assert b"hunter2" not in content, path
            assert path.endswith(".parquet") or str(run.parents[1]).encode() not in content, path
    assert b"postgresql://***@db/x" in server.files("model", "alice/demo")["settings.yaml"]
    assert b'/demo/trials"' in server.files("model", "alice/demo")["notes.json"]


def test_paths_of_this_machine_are_not_in_a_release(
    finished_study: StudyFolder, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = str(finished_study.folder.parent)
    assert here in finished_study.settings.read_text(encoding="utf-8"), "the study itself knows where things are"
    for path in finished_study.winner.folder.rglob("*.*"):
        assert path.suffix == ".safetensors" or here not in path.read_text(encoding="utf-8"), path
    # A release of an older version is cleaned on its way.
    older = (run / "winner" / "settings.yaml").read_text(encoding="utf-8")
    assert here in older
    monkeypatch.setenv("HOME", "/nobody")
    parcel = parcels.model_parcel(
        StudyFolder(run).winner, repo_id="a/b", study=None, licence="mit", dataset_id=None, work=run.parent
    )
    sent = parcel.files["settings.yaml"]
    assert isinstance(sent, bytes)
    assert here.encode() not in sent
    assert yaml.safe_load(sent)["space"] == "space.yaml"


def test_what_an_evaluation_left_in_the_folder_stays_here(run: Path) -> None:
    release = run / "winner"
    left = [release / "completions.jsonl", release / "answers" / "answers-0123.jsonl", release / "finish.log"]
    left[1].parent.mkdir()
    for path in left:
        path.write_text("a prompt of mine")
    try:
        (done,) = publish(run, repo_id="alice/demo", dry_run=True)
    finally:
        for path in left:
            path.unlink()
        left[1].parent.rmdir()
    assert not [name for name in done.files if name.endswith((".jsonl", ".log"))]


STEPS = ["repos/create", "preupload", "lfs/objects/batch", "PUT /__lfs__", "/commit/main"]
EVERY = [(step, status, after) for step in STEPS for status in (500, 503, 429, 0) for after in (False, True)]
FEW = [
    ("repos/create", 500, True),
    ("PUT /__lfs__", 0, False),
    ("/commit/main", 429, False),
    ("/commit/main", 0, True),
]


@pytest.mark.parametrize(
    ("step", "status", "after"),
    [case if case in FEW else pytest.param(*case, marks=pytest.mark.slow) for case in EVERY],
)
def test_a_passing_fault_is_overcome(server: HubServer, run: Path, step: str, status: int, after: bool) -> None:
    server.faults.append(Fault(step, status, times=2, after=after))
    (done,) = publish(run, repo_id="alice/demo")
    assert server.faults[0].times < 2, "the fault happened"
    assert server.repos["model", "alice/demo"].refs["main"] == done.commit
    assert server.files("model", "alice/demo").keys() >= set(done.files)
    assert len(server.repos["model", "alice/demo"].commits) == 2, "one commit beside the first"


def test_retry_after_is_respected(server: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(hub.time, "sleep", waits.append)
    server.faults.append(Fault("/commit/main", 429, {"Retry-After": "7"}, times=1))
    publish(run, repo_id="alice/demo")
    assert waits == [7.0]


@pytest.mark.parametrize(
    ("pattern", "status", "words"),
    [
        ("whoami", 401, "does not accept the token; run `hf auth login` again"),
        ("repos/create", 403, "no right to write there"),
        ("/commit/main", 403, "no right to write there"),
        ("repos/create", 409, "the name is taken"),
        ("repos/create", 402, "asks for a paid account"),
        ("/commit/main", 412, "somebody else committed meanwhile"),
        ("lfs/objects/batch", 413, "too large for the Hub"),
        ("repos/create", 418, "the Hub answered 418"),
        ("/commit/main", 500, "the Hub answered 500 5 times; run the same command again later"),
        ("/commit/main", 0, "are you offline"),
    ],
)
def test_a_lasting_refusal_is_told_in_words(
    server: HubServer, run: Path, pattern: str, status: int, words: str
) -> None:
    server.faults.append(Fault(pattern, status, times=100, message="because hf_alice"))
    with pytest.raises(PublishError, match=words) as caught:
        publish(run, repo_id="alice/demo")
    assert "hf_alice" not in str(caught.value)
    repo = server.repos.get(("model", "alice/demo"))
    assert repo is None or len(repo.commits) == 1, "never half a release"


def test_what_was_published_before_a_failure_is_named_and_not_sent_again(server: HubServer, run: Path) -> None:
    server.faults.append(Fault("api/models/.*/commit/main", 403, times=1))
    with pytest.raises(PublishError, match="Published before that: study alice/demo-study"):
        publish(run, repo_id="alice/demo", what=("study", "model"))
    server.log.clear()
    done = publish(run, repo_id="alice/demo", what=("study", "model"))
    assert [p.changed for p in done] == [False, True]
    assert server.counted("PUT") == 0, "its large files were up already"


def test_a_commit_that_lost_a_file_is_noticed(server: HubServer, run: Path) -> None:
    real = server.content

    def shortened(value: Any) -> bytes:
        content = real(value)
        return content[:-1] if content.startswith(b"---\n") else content

    server.content = shortened  # type: ignore[method-assign]
    with pytest.raises(PublishError, match=r"not complete: README.md is missing or differs"):
        publish(run, repo_id="alice/demo")


def test_somebody_else_s_repository_is_not_overwritten(server: HubServer, run: Path) -> None:
    publish(run, repo_id="alice/demo", what=("study",))
    repo = server.repos.pop(("dataset", "alice/demo-study"))
    repo.commits[repo.refs["main"]] = {"precious.txt": b"1"}
    server.repos["model", "alice/demo"] = repo
    with pytest.raises(PublishError, match=r"the name is taken; .* holds something else"):
        publish(run, repo_id="alice/demo")


def test_another_owner_is_refused_before_anything_is_made(server: HubServer, run: Path) -> None:
    with pytest.raises(PublishError, match="no right to publish as carol: the token belongs to alice"):
        publish(run, repo_id="carol/demo")
    assert server.counted("create|commit") == 0


def test_no_token(server: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(PublishError, match="no token for the Hub: run `hf auth login`"):
        publish(run, repo_id="alice/demo")


def test_offline(server: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match="offline mode is on; unset HF_HUB_OFFLINE"):
        publish(run, repo_id="alice/demo")


def test_the_token_is_never_printed(
    server: HubServer, run: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    server.faults.append(Fault("/commit/main", 500, times=1, message="hf_alice said"))
    with caplog.at_level(logging.DEBUG, logger="codenas_hf"):
        done = publish(run, repo_id="alice/demo")
    shown = caplog.text + "".join(capfd.readouterr()) + repr(done)
    assert "trying again" in shown
    assert "hf_alice" not in shown


def test_too_large_a_file_stops_everything_before_it_starts(
    server: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "MAX_FILE_BYTES", 1000)
    with pytest.raises(PublishError, match=r"too large: .* nothing was sent"):
        publish(run, repo_id="alice/demo")
    assert server.counted("POST") == 0


def test_what_is_no_release_is_named(server: HubServer, tmp_path: Path, run: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no release and has no winner/"):
        publish(tmp_path, repo_id="alice/demo")
    (run / "data.json").rename(run / "moved.json")
    try:
        with pytest.raises(FileNotFoundError, match="does not name a corpus"):
            publish(run, repo_id="alice/demo", what=("dataset",))
    finally:
        (run / "moved.json").rename(run / "data.json")
    (run / "report").rename(run / "away")
    try:
        with pytest.raises(FileNotFoundError, match=r"has no report/trials\.csv"):
            publish(run, repo_id="alice/demo", what=("study",))
    finally:
        (run / "away").rename(run / "report")


def test_a_space_that_cannot_be_bundled_is_told(monkeypatch: pytest.MonkeyPatch, run: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle.py").write_text("raise SystemExit('no disk')")
    monkeypatch.setattr("codenas_hf.release.parcels.bundled_folder", lambda name: tmp_path)
    with pytest.raises(parcels.BundleError, match="could not be bundled: no disk"):
        publish(run, repo_id="alice/demo", what=("space",), dry_run=True)


def test_no_space_is_made_of_a_model_that_brings_code(run: Path) -> None:
    """Nothing there would run it, so that every request would be refused."""
    config = run / "winner" / "config.json"
    before = config.read_text()
    config.write_text(json.dumps({**json.loads(before), "auto_map": {"AutoConfig": "configuration_codenas.X"}}))
    try:
        with pytest.raises(parcels.BundleError, match="leave `space` out of `what`"):
            publish(run, repo_id="alice/demo", what=("space",), dry_run=True)
    finally:
        config.write_text(before)


def test_a_page_goes_up_as_a_static_space(
    server: HubServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text("---\nsdk: static\n---\n")
    (tmp_path / "model.json").write_text("{}")
    asked = []

    def bundled(folder: Path, *words: str) -> dict[str, Path | bytes]:
        asked.append(words)
        return {path.name: path for path in tmp_path.iterdir()}

    monkeypatch.setattr(parcels, "_bundled", bundled)
    done = publish(run, repo_id="alice/demo", what=("web", "collection"))
    assert next((p.what, p.repo_id) for p in done) == ("web", "alice/demo-web")
    assert asked == [("--web", "--model", str(run / "winner"), "--hub-id", "alice/demo")]
    assert server.repos["space", "alice/demo-web"].sdk == "static"
    (collection,) = server.collections.values()
    assert [item["type"] for item in collection["items"]] == ["space"]


@pytest.mark.node
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm fetches the page's engine; install Node.js 20 or newer")
def test_the_page_on_the_hub_is_whole(server: HubServer, run: Path) -> None:
    (page,) = publish(run, repo_id="alice/demo", what=("web",))
    assert page.url == f"{server.url}/spaces/alice/demo-web"
    files = server.files("space", "alice/demo-web")
    front = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert (front["sdk"], front["app_file"], front["models"]) == ("static", "index.html", ["alice/demo"])
    facts = json.loads(files["model.json"])
    for part in (facts, *facts["engine"].values()):
        assert [hashlib.sha256(files[part["file"]]).hexdigest()] == part["sha256"]
    assert files[facts["file"]].startswith(b"GGUF")
    assert not publish(run, repo_id="alice/demo", what=("web",))[0].changed


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="`repo_id` must read like owner/name"):
        PublishSettings(repo_id="a/b/c")
    with pytest.raises(ValueError, match="`what` must be some of dataset, study, model, space, web, collection"):
        PublishSettings(what=("models",))
    assert PublishSettings().repo_id is None
