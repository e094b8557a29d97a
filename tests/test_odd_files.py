"""Names and files as real disks have them: nothing ends the corpus, nothing vanishes uncounted."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from test_corpus import build, plant, projects, unlike
from test_sources import CODE, listed, problems
from test_sources import plant as plant_code

from codenas_hf.data import CorpusSettings, DataError, build_corpus, packages
from codenas_hf.data.overview import corpus_overview
from codenas_hf.data.sources import list_source


@pytest.mark.parametrize("name", ["[D_DATA]", "a*b", "what?", "[", "wow!", "a{b}", "no [tests] here!"])
def test_a_folder_that_exists_is_no_glob_whatever_its_letters(tmp_path, name):
    plant_code(tmp_path / name, "p/x.py", "q/y.py")
    assert {file for _, file, _ in listed(tmp_path / name)} == {"p/x.py", "q/y.py"}
    assert {file for _, file, _ in listed(tmp_path / name / "*" / "*.py")} == {"p/x.py", "q/y.py"}
    assert {file for _, file, _ in listed(tmp_path / name / "**" / "y.py")} == {"q/y.py"}
    assert [file.read() for file in list_source(str(tmp_path / name))] == [CODE.encode()] * 2


def test_a_corpus_in_a_folder_with_brackets(tmp_path):
    plant(tmp_path / "s [1]!", projects())
    corpus = build(tmp_path / "s [1]!", tmp_path / "out [x]*")
    assert corpus.report["passed_filters"]["files"] == 40
    assert build(tmp_path / "s [1]!", tmp_path / "out [x]*", seed=1).digest != corpus.digest


def test_a_glob_reads_the_folders_that_it_names(tmp_path):
    plant_code(tmp_path, "a/x.py", "a/sub/y.py", "b.py", "b.txt")
    assert {(project, file) for project, file, _ in listed(tmp_path / "*")} == {
        ("a", "a/x.py"),
        ("a", "a/sub/y.py"),
        (tmp_path.name, "b.py"),
    }


def test_names_that_are_not_utf8(tmp_path):
    plant(tmp_path / "src", projects())
    folder = os.fsencode(tmp_path / "src")
    os.rename(folder + b"/p1/m1.py", folder + b"/p1/n\xe9uds.py")
    os.rename(folder + b"/p2", folder + b"/caf\xe9")
    corpus = build(tmp_path / "src", tmp_path / "out")
    names = [name for split in corpus.report["split"] for name in corpus.split(split)["path"]]
    assert len(names) == 40
    assert r"p1/n\udce9uds.py" in names
    json.dumps(corpus.report, ensure_ascii=False).encode()
    other = tmp_path / os.fsdecode(b"s\xe9")
    os.rename(folder, os.fsencode(other))
    assert build(other, tmp_path / "again").report["passed_filters"]["files"] == 40


def test_linked_projects_are_read_once_and_loops_end(tmp_path):
    plant_code(tmp_path, "src/p/x.py", "src/q/deep/y.py", "store/rich/z.py", "store/single.py")
    src = tmp_path / "src"
    (src / "rich").symlink_to(tmp_path / "store" / "rich")
    (src / "p" / "round").symlink_to(src)
    (src / "q" / "deep" / "up").symlink_to("..")
    (src / "a_link_first").symlink_to(src / "q")
    (tmp_path / "store" / "rich" / "back").symlink_to(src / "p")
    (src / "everything").symlink_to("/")
    (src / "gone").symlink_to(tmp_path / "absent")
    (src / "p" / "self.py").symlink_to("self.py")
    (src / "p" / "gone.py").symlink_to("absent.py")
    (src / "p" / "one.py").symlink_to(tmp_path / "store" / "single.py")
    assert {(project, name) for project, name, _ in listed(src)} == {
        ("p", "p/x.py"),
        ("p", "p/one.py"),
        ("q", "q/deep/y.py"),
        ("rich", "rich/z.py"),
    }
    read = "linked folder that is read already"
    nowhere = "link that leads nowhere"
    assert problems(src) == {
        "p/round/": read,
        "q/deep/up/": read,
        "a_link_first/": read,
        "rich/back/": read,
        "everything/": read,
        "gone/": nowhere,
        "p/gone.py": nowhere,
        "p/self.py": "unreadable (OSError)",
    }
    assert {name for _, name, _ in listed(src / "**" / "*.py")} == {name for _, name, _ in listed(src)}


def test_what_is_no_file_is_counted_and_named(tmp_path):
    plant(tmp_path / "src", projects() | {"p1/latin.py": b"# " + b"\xe9" * 80 + b"\n", "p1/.hidden/x.py": "x = 1\n"})
    os.mkfifo(tmp_path / "src" / "p1" / "pipe.py")
    server = socket.socket(socket.AF_UNIX)
    try:
        here = os.getcwd()
        os.chdir(tmp_path / "src" / "p2")  # a socket's path must be short
        server.bind("socket.py")
        os.chdir(here)
        (tmp_path / "src" / "p3" / "null.py").symlink_to("/dev/zero")
        (tmp_path / "src" / "p3" / "gone.py").symlink_to("absent.py")
        with (tmp_path / "src" / "p4" / "huge.py").open("wb") as file:
            file.truncate(10**12)
        corpus = build(tmp_path / "src", tmp_path / "out")
    finally:
        os.chdir(here)
        server.close()
    assert {reason: count["files"] for reason, count in corpus.report["dropped"].items()} == {
        "not a regular file": 3,
        "link that leads nowhere": 1,
        "not UTF-8": 1,
        "too large": 1,
    }
    assert corpus.report["sources"][str(tmp_path / "src")]["files"] == 46
    assert corpus.report["examples"]["not UTF-8"] == ["p1/latin.py"]
    assert corpus.report["examples"]["not a regular file"] == ["p1/pipe.py", "p2/socket.py", "p3/null.py"]
    assert corpus.report["folders_not_entered"] == {"hidden folder": 1}
    text = corpus_overview(corpus)
    assert "- link that leads nowhere: `p3/gone.py`\n" in text
    assert "- hidden folder (1): `p1/.hidden/`" in text


def test_files_that_cannot_be_opened_are_counted(tmp_path, monkeypatch):
    plant(tmp_path / "src", projects())
    real = open

    def locked(path, *arguments, **options):
        if str(path).endswith("p1/m1.py"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", locked)
    corpus = build(tmp_path / "src", tmp_path / "out")
    assert corpus.report["dropped"]["unreadable (PermissionError)"]["files"] == 1
    assert corpus.report["examples"]["unreadable (PermissionError)"] == ["p1/m1.py"]


def test_folders_that_cannot_be_listed_are_said(tmp_path, monkeypatch):
    plant_code(tmp_path, "a/x.py", "b/y.py")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert problems(tmp_path) == {"b/": "unreadable (PermissionError)"}


def test_a_file_of_two_sources_counts_once(tmp_path):
    plant(tmp_path / "src", projects())
    sources = (str(tmp_path / "src"), str(tmp_path / "src" / "p1"), str(tmp_path / "src"))
    settings = CorpusSettings(sources=sources, benchmarks=(), held_out_fraction=0.2)
    assert settings.sources == sources[:2]
    report = build_corpus(settings, folder=tmp_path / "out").report
    assert report["dropped"] == {"listed twice": {"files": 4, "bytes": report["dropped"]["listed twice"]["bytes"]}}
    assert report["passed_filters"]["files"] == 40


def test_projects_whose_names_differ_in_case_only_stay_together(tmp_path):
    files = projects(count=12)
    for number in range(12):
        files |= {f"P{number}/n{m}.py": unlike(9_000 + number * 10 + m) for m in range(2)}
    plant(tmp_path / "src", files)
    for seed in range(4):
        corpus = build(tmp_path / "src", tmp_path / f"out{seed}", seed=seed)
        sides = {}
        for split in corpus.report["split"]:
            for name in corpus.split(split)["project"]:
                sides.setdefault(name.lower(), set()).add(split)
        assert all(len(found) == 1 for found in sides.values())


def test_sources_that_are_none(tmp_path):
    (tmp_path / "code.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"code.zip` is an archive: unpack it and name the folder"):
        list_source(str(tmp_path / "code.zip"))
    with pytest.raises(DataError, match="cannot be read as one: Could not determine home"):
        list_source("~nobody-of-this-name/src")
    with pytest.raises(DataError, match="cannot be looked at: File name too long"):
        list_source("x" * 5000)
    plant_code(tmp_path / "only", ".hidden/x.py")
    with pytest.raises(DataError, match=r"no Python found .*; not entered: .hidden/ \(hidden folder\)"):
        list_source(str(tmp_path / "only"))


@pytest.fixture
def git(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("no git")

    def run(folder, *words):
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "protocol.file.allow=always"]
        subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)

    return run


def test_git_worktrees_submodules_hooks_and_odd_names(tmp_path, git, monkeypatch):
    plant_code(tmp_path, "all/repo/x.py", "all/repo/gone.py", "part/inner.py")
    with open(os.fsencode(tmp_path / "all" / "repo") + b"/n\xe9.py", "w") as file:
        file.write(CODE)
    for folder in (tmp_path / "part", tmp_path / "all" / "repo"):
        git(folder, "init", "-q")
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", "first")
    git(tmp_path / "all" / "repo", "submodule", "add", "-q", str(tmp_path / "part"), "part")
    git(tmp_path / "all" / "repo", "commit", "-q", "-m", "second")
    git(tmp_path / "all" / "repo", "worktree", "add", "-q", str(tmp_path / "all" / "tree"))
    (tmp_path / "all" / "repo" / "gone.py").unlink()
    (tmp_path / "all" / "broken" / ".git").mkdir(parents=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "part" / ".git"))
    found = {(project, name) for project, name, _ in listed(f"git:{tmp_path}/all")}
    assert found == {
        *(("repo", name) for name in ("x.py", r"n\udce9.py", "part/inner.py")),
        *(("tree", name) for name in ("x.py", "gone.py", r"n\udce9.py")),
    }
    assert problems(f"git:{tmp_path}/all") == {"gone.py": "missing file", "broken/": "checkout that git cannot list"}


def distribution(site, name, metadata, record=None, top_level=None):
    folder = site / f"{name}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_bytes(metadata)
    if record is not None:
        (folder / "RECORD").write_bytes(record)
    if top_level:
        (folder / "top_level.txt").write_text(top_level)
    plant_code(site, f"{name}.py")


def test_installed_packages_with_odd_metadata(tmp_path, monkeypatch):
    site = tmp_path / "site"
    head = b"Metadata-Version: 2.1\nVersion: 1.0\nLicense: MIT\n"
    distribution(site, "latin", head + b"Name: latin\nAuthor: Jos\xe9\n", b"latin.py,,\n")
    distribution(site, "latin_record", head + b"Name: latin-record\n", b"latin_record.py,,\nn\xe9.py,,\n")
    distribution(site, "nameless", head, b"nameless.py,,\n")
    distribution(site, "broken", head + b"Name: broken\n", b'broken.py,,\n"\0')
    distribution(site, "listless", head + b"Name: listless\n")
    distribution(site, "other_name", head + b"Name: other\n", b"", top_level="package_of_other\n")
    distribution(site, "nothing", head + b"Name: nothing\n")
    (site / "nothing.py").unlink()
    distribution(site, "missing", head + b"Name: missing\n", b"missing.py,,\nlost.py,,\n../bin/tool.py,,\n")
    distribution(site, "empty", b"", b"empty.py,,\n")
    plant_code(site, "package_of_other/a.py")
    monkeypatch.setattr(sys, "path", [str(site), str(site)])
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(site / "package_of_other")})
    assert {(project, name) for project, name, _ in listed("installed")} >= {
        ("latin", "latin.py"),
        ("latin-record", "latin_record.py"),
        ("broken", "broken.py"),
        ("listless", "listless.py"),
        ("other", "package_of_other/a.py"),
        ("missing", "missing.py"),
    }
    assert {file.name: file.problem for file in packages.installed_packages() if file.problem} == {
        "né.py": "missing file",
        "nameless.py": "package without a name",
        "empty.py": "package without a name",
        "nothing": "package without files",
        "lost.py": "missing file",
        "../bin/tool.py": "outside the packages' folder",
    }
