"""Folders left for other machines: found by content, never half, never another one, no secret in an error."""

import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codenas_hf.folders.share import Share, ShareError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "inner").mkdir(parents=True)
    (made / "a.txt").write_text("one")
    (made / "inner" / "b.bin").write_bytes(bytes(range(256)) * 100)
    return made


class Handler(http.server.SimpleHTTPRequestHandler):
    """A folder over HTTP that takes PUT."""

    def do_PUT(self) -> None:
        size = self.headers.get("Content-Length")
        body = self.rfile.read(int(size)) if size else b"".join(self._chunks())
        Path(self.translate_path(self.path)).write_bytes(body)
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _chunks(self) -> Iterator[bytes]:
        while length := int(self.rfile.readline(), 16):
            yield self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    place = tmp_path / "web"
    place.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Handler(*a, directory=str(place)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", place
    server.shutdown()


@pytest.fixture(params=["folder", "file", "memory", "http"])
def share(request: pytest.FixtureRequest, tmp_path: Path, web: tuple[str, Path]) -> Share:
    places = {"folder": str(tmp_path / "s"), "file": f"file://{tmp_path}/s", "memory": f"memory://{tmp_path}/s"}
    return Share(places.get(request.param, web[0]))


def test_what_is_left_is_found_elsewhere(share: Share, folder: Path, tmp_path: Path) -> None:
    digest = share.put(folder)
    assert len(digest) == 64
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert share.put(copy) == digest, "equal content has an equal hash, whoever made it and when"
    for _ in range(2):  # also over what is there
        share.fetch(digest, tmp_path / "other" / "place")
        found = {p.relative_to(tmp_path / "other" / "place") for p in (tmp_path / "other" / "place").rglob("*")}
        assert found == {p.relative_to(folder) for p in folder.rglob("*")}
        assert (tmp_path / "other" / "place" / "inner" / "b.bin").read_bytes() == bytes(range(256)) * 100
    share.discard(digest)
    share.discard(digest)


def test_other_content_has_another_hash(tmp_path: Path, folder: Path) -> None:
    share = Share(str(tmp_path / "s"))
    first = share.put(folder)
    (folder / "a.txt").write_text("two")
    assert share.put(folder) != first


def test_what_is_absent_damaged_or_out_of_reach_is_an_error_of_ours(
    share: Share, folder: Path, tmp_path: Path, web: tuple[str, Path]
) -> None:
    with pytest.raises(ShareError, match="ffffffffffff could not be fetched"):
        share.fetch("f" * 64, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    digest = share.put(folder)
    for root in (tmp_path / "s", web[1]):
        path = root / f"{digest}.tar"
        if path.exists():
            path.write_bytes(path.read_bytes()[:-1000])
            with pytest.raises(ShareError, match="is damaged there, its content has the hash"):
                share.fetch(digest, tmp_path / "x")
            assert share.put(folder) == digest, "a half of an upload is replaced"
            share.fetch(digest, tmp_path / "x")


def test_no_password_in_an_error(tmp_path: Path, folder: Path) -> None:
    share = Share("http://me:hunter2@127.0.0.1:9/place")
    for use in (lambda: share.put(folder), lambda: share.fetch("0" * 64, tmp_path / "x")):
        with pytest.raises(ShareError) as caught:
            use()
        assert "hunter2" not in str(caught.value)
        assert "***@127.0.0.1" in str(caught.value)


def test_a_share_that_is_read_only(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ShareError, match="made could not be left for the other machines"):
        Share(str(tmp_path / "file")).put(folder)
