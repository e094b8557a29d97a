"""Whatever the Hub does at whatever request: never half a release that is called done, resumable, never the token."""

import itertools
import logging
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from finished_run import make_run
from hub_server import CUT, GARBAGE, SILENCE, TRICKLE, Fault, HubServer
from huggingface_hub.utils import close_session
from test_hub import quick_pictures, server  # noqa: F401  # fixtures

from codenas_hf.folders import StudyFolder
from codenas_hf.release import hub
from codenas_hf.release.hub import KINDS, Published, PublishError, PublishSettings, publish
from codenas_hf.release.hub_answers import seconds_to_wait
from codenas_hf.release.parcels import Parcel

TOKEN = "hf_alice"
FAULTS = {
    "500": Fault("", 500),
    "429": Fault("", 429),
    "429 with Retry-After": Fault("", 429, {"Retry-After": "3"}),
    "429 with a date": Fault("", 429, {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}),
    "a cut answer": Fault("", 0),
    "a cut request": Fault("", CUT),
    "silence": Fault("", SILENCE),
    "a page": Fault("", GARBAGE),
    "401": Fault("", 401),
    "403": Fault("", 403),
    "409": Fault("", 409),
}
REFUSALS = ("401", "403", "409")


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, finished_study: StudyFolder) -> list[Parcel]:
    """The five parcels of a run; the page is a stand-in, for a real one needs npm."""
    folder = tmp_path_factory.mktemp("runs")
    run = make_run(folder / "demo", finished_study)
    asked = PublishSettings(repo_id="alice/demo", what=("dataset", "study", "model", "space"))
    (folder / "work").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("codenas_hf.release.parcels.architecture_figure", lambda table: None)
        patch.setattr("codenas_hf.release.parcels.save", lambda figure, path, label: path.write_bytes(b"a picture"))
        found = hub._parcels(run, repo_id="alice/demo", asked=asked, work=folder / "work")
    page = {"README.md": b"---\nsdk: static\n---\n", "model.json": b"{}", "model.gguf": b"GGUF" * 99}
    web = Parcel(what="web", repo_id="alice/demo-web", repo_type="space", files=page, marker="model.json")
    return [*found, web]


@pytest.fixture
def quick(ready: list[Parcel], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No waiting, nothing prepared anew, every temporary file where the test sees it."""
    monkeypatch.setattr(hub, "_parcels", lambda *args, **known: ready)
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(hub, "SILENCE_S", 0.5)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    close_session()
    yield
    close_session()


def publish_all() -> list[Published]:
    return publish(Path("unused"), repo_id="alice/demo", what=KINDS)


def whole(server: HubServer, parcel: Parcel) -> bool:  # noqa: F811
    """Whether the Hub holds all of a parcel. What it holds otherwise must be as it was before, never a half."""
    repo = server.repos.get((parcel.repo_type, parcel.repo_id))
    if repo is None or len(repo.commits) == 1:
        return False
    files = {p: c for p, c in server.files(parcel.repo_type, parcel.repo_id).items() if p != ".gitattributes"}
    wanted = {path: c if isinstance(c, bytes) else c.read_bytes() for path, c in parcel.files.items()}
    assert files == {path: content for path, content in wanted.items() if path != ".gitattributes"}
    assert len(repo.commits) == 2, "one commit beside the first"
    return True


def check_all(server: HubServer, ready: list[Parcel], done: list[Published]) -> None:  # noqa: F811
    assert [each.what for each in done] == list(KINDS)
    assert all(whole(server, parcel) for parcel in ready)
    (collection,) = server.collections.values()
    assert len(collection["items"]) == len(ready)


@pytest.fixture(scope="module")
def requests(ready: list[Parcel]) -> list[str]:
    """Every different request of a publication that goes well."""
    with HubServer() as found, pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "ENDPOINT", found.url)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr(hub, "_parcels", lambda *args, **known: ready)
        check_all(found, ready, publish_all())
        once = "agent-harnesses"  # the client asks for it on its own, once in a process, and needs no answer
        return [line for line in dict.fromkeys(found.log) if once not in line]


def assert_no_token(text: str, tmp_path: Path) -> None:
    assert TOKEN not in text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def some(requests: list[str], name: str) -> list[str]:
    """The requests at which a fault happens: each fault at some of them, each of them with some fault."""
    return list(itertools.islice(requests, list(FAULTS).index(name), None, len(FAULTS)))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.usefixtures("quick")
def test_a_lasting_fault_leaves_nothing_half_and_the_next_run_completes_it(
    name: str,
    server: HubServer,  # noqa: F811
    ready: list[Parcel],
    requests: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)  # below it the HTTP client writes down what the Hub sends, our token as well
    for logger in ("codenas_hf", "huggingface_hub"):
        caplog.set_level(logging.DEBUG, logger=logger)
    fault = FAULTS[name]
    for request in some(requests, name):
        server.repos, server.blobs, server.collections = {}, {}, {}
        server.faults = [Fault(f"^{re.escape(request)}$", fault.status, fault.headers, 10**6, message=f"for {TOKEN}")]
        with pytest.raises(PublishError) as caught:
            publish_all()
        complete = [parcel.what for parcel in ready if whole(server, parcel)]
        said = re.search(r"Published before that: (.*)\.$", str(caught.value))
        named = [word.split()[0] for word in said[1].split(", ")] if said else []
        assert set(named) <= set(complete), request
        assert len(complete) - len(named) <= 1, "only one whose check failed may be complete and not named"
        assert_no_token("".join(traceback.format_exception(caught.value)), tmp_path)
        server.faults.clear()
        server.log.clear()
        there = set(server.blobs)
        check_all(server, ready, publish_all())
        assert not [line for line in server.log if line.startswith("PUT") and line.split("/")[-1] in there]
    assert_no_token(caplog.text + "".join(capfd.readouterr()), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name in FAULTS if name not in REFUSALS and name != "a page"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.usefixtures("quick")
def test_a_passing_fault_is_overcome_at_every_request(
    name: str,
    after: bool,
    server: HubServer,  # noqa: F811
    ready: list[Parcel],
    requests: list[str],
) -> None:
    """All of them in one publication, which no more than retries costs."""
    fault = FAULTS[name]
    server.faults = [
        Fault(f"^{re.escape(request)}$", fault.status, fault.headers, 1, after=after)
        for request in some(requests, name)
    ]
    check_all(server, ready, publish_all())
    assert all(each.times == 0 for each in server.faults), "they happened"


@pytest.mark.usefixtures("quick")
def test_answers_that_trickle_are_read_to_their_end(
    server: HubServer,  # noqa: F811
    ready: list[Parcel],
) -> None:
    server.faults = [Fault("", TRICKLE, times=10**6)]
    check_all(server, ready, publish_all())


@pytest.mark.parametrize("kind", ["model", "web"])
@pytest.mark.usefixtures("quick")
def test_a_hub_that_holds_something_else_of_the_same_size_is_noticed(
    kind: str,
    server: HubServer,  # noqa: F811
    ready: list[Parcel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (parcel,) = (each for each in ready if each.what == kind)
    monkeypatch.setattr(hub, "_parcels", lambda *args, **known: [parcel])
    real = server.content
    server.content = lambda value: real(value).replace(b"---\n", b"---\t", 1)  # type: ignore[method-assign]
    with pytest.raises(PublishError, match=r"not complete: README.md is missing or differs"):
        publish(Path("unused"), repo_id="alice/demo", what=(kind,))


@pytest.mark.usefixtures("quick")
def test_a_wrong_etag_of_a_part_is_no_release(
    server: HubServer,  # noqa: F811
    ready: list[Parcel],
) -> None:
    server.part_bytes, server.wrong_etags = 4096, 1
    with pytest.raises(PublishError, match="the Hub answered 400"):
        publish_all()
    assert not any(whole(server, parcel) for parcel in ready)
    check_all(server, ready, publish_all())


def test_a_date_in_retry_after_is_a_time_to_wait() -> None:
    assert seconds_to_wait("7") == 7.0
    assert seconds_to_wait("Wed, 21 Oct 1998 07:28:00 GMT") is None
    assert (seconds_to_wait("Wed, 21 Oct 2099 07:28:00 GMT") or 0) > 1e9
    assert seconds_to_wait("soon") is None
    assert seconds_to_wait("") is None
