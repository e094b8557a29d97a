"""Where candidates come from."""

import shutil
import subprocess

import pytest

from codenas_hf.data import sources
from codenas_hf.data.sources import is_stream, list_source
from codenas_hf.data.storage import DataError

CODE = "def f(x):\n    return x\n"


def plant(folder, *names, text=CODE):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def listed(source, **options):
    files = list_source(str(source), **options)
    return {(file.project, file.name, file.licence) for file in files if file.problem is None}


def problems(source, **options):
    return {file.name: file.problem for file in list_source(str(source), **options) if file.problem}


def test_folder_takes_projects_from_paths_and_licences_from_them(tmp_path):
    plant(
        tmp_path, "a/x.py", "a/sub/y.py", "b/z.py", "top.py", "a/.hidden/no.py", "a/__pycache__/no.py", "b/notes.txt"
    )
    plant(tmp_path, "b/venv/lib/no.py", "b/venv/pyvenv.cfg")
    plant(tmp_path, "b/LICENSE", text="GNU GENERAL PUBLIC LICENSE")
    assert listed(tmp_path) == {
        ("a", "a/x.py", "unknown"),
        ("a", "a/sub/y.py", "unknown"),
        ("b", "b/z.py", "GPL"),
        (tmp_path.name, "top.py", "unknown"),
    }
    assert {project for project, _, _ in listed(tmp_path, project_depth=2)} == {"a", "a/sub", "b", tmp_path.name}
    (only,) = list_source(str(tmp_path / "top.py"))
    assert only.read() == CODE.encode()


def test_glob(tmp_path):
    plant(tmp_path, "a/x.py", "a/sub/y.py", "b/z.py", "b/z.txt")
    assert {name for _, name, _ in listed(tmp_path / "*" / "*.py")} == {"a/x.py", "b/z.py"}
    assert {project for project, _, _ in listed(tmp_path / "**" / "*.py")} == {"a", "b"}


def test_a_folder_without_a_licence_of_its_own_is_under_that_of_the_whole(tmp_path):
    plant(tmp_path, "a/x.py", "b/y.py", "top.py")
    plant(tmp_path, "LICENSE", text="GNU GENERAL PUBLIC LICENSE")
    plant(tmp_path, "b/License.txt", text="Permission is hereby granted, free of charge, to any person")
    for source in (tmp_path, tmp_path / "**" / "*.py"):
        assert {(name, licence) for _, name, licence in listed(source)} == {
            ("a/x.py", "GPL"),
            ("b/y.py", "MIT"),
            ("top.py", "GPL"),
        }


def test_git_checkout_gives_tracked_files_only(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("no git")
    plant(tmp_path, "repo/x.py", "repo/untracked.py")
    plant(tmp_path, "repo/LICENSE", text="Permission is hereby granted, free of charge, to any person")
    git = ["git", "-C", str(tmp_path / "repo")]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "x.py", "LICENSE"], check=True)
    assert listed(f"git:{tmp_path}/repo") == {("repo", "x.py", "MIT")}
    assert listed(f"git:{tmp_path}") == {("repo", "x.py", "MIT")}
    with pytest.raises(DataError, match="holds no git checkout"):
        list_source(f"git:{tmp_path}/nothing")


def test_git_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match="needs the program git"):
        list_source(f"git:{tmp_path}")


def test_broken_checkout(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("no git")
    (tmp_path / ".git").mkdir()
    with pytest.raises(DataError, match="git cannot list the files"):
        list_source(f"git:{tmp_path}")


def test_installed_packages_have_licences_and_are_not_ourselves():
    files = list_source("installed")
    projects = {file.project: file.licence for file in files}
    assert projects["numpy"] != "unknown"
    assert all(file.problem for file in files if file.project == "codenas-hf")
    assert any(project.startswith("cpython-") for project in projects)
    assert all(not file.name.startswith("/") for file in files)


def test_missing_and_empty_sources(tmp_path):
    with pytest.raises(DataError, match=r"the source `.*absent` is missing: expected `installed`"):
        list_source(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="no Python found in the source"):
        list_source(str(tmp_path))
    with pytest.raises(DataError, match="no Python found in the source"):
        list_source(str(tmp_path / "*.py"))


def test_what_is_a_hub_dataset(tmp_path, monkeypatch):
    assert is_stream("hub:me/code")
    assert is_stream("me/code")
    assert not is_stream("installed")
    assert not is_stream("./me/code")
    monkeypatch.chdir(tmp_path)
    plant(tmp_path, "me/code/x.py")
    assert not is_stream("me/code")
