"""Wheels of a versioned manifest."""

import subprocess
import zipfile

import pytest

from codenas_hf.data import FilterSettings, archives
from codenas_hf.data.archives import list_manifest
from codenas_hf.data.parts import Part, PartJob, examine_part, save_benchmarks
from codenas_hf.data.source_files import UNREADABLE
from codenas_hf.data.storage import DataError


def wheel(folder, name="Some_Package", version="1.2", metadata="License-Expression: MIT\n", licence=None):
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("some/module.py", "x = 1\n")
        bundle.writestr("some/data.txt", "no")
        bundle.writestr(f"{name}-{version}.dist-info/METADATA", f"Name: {name}\n{metadata}")
        if licence:
            bundle.writestr(f"{name}-{version}.dist-info/licenses/LICENSE", licence)
    return path


def manifest(folder, text="version: 1\npackages:\n  some-package: '1.2'\n"):
    path = folder / "manifest.yaml"
    path.write_text(text)
    return f"pypi:{path}"


def test_wheel_is_listed_with_its_licence(tmp_path):
    wheel(tmp_path)
    (file,) = list_manifest(manifest(tmp_path), archives=tmp_path, download=False)
    assert (file.project, file.name, file.licence) == ("some-package", "some/module.py", "MIT")
    assert file.read() == b"x = 1\n"


def test_licence_file_decides_when_the_metadata_are_silent(tmp_path):
    wheel(tmp_path, metadata="", licence="GNU GENERAL PUBLIC LICENSE")
    (file,) = list_manifest(manifest(tmp_path), archives=tmp_path, download=False)
    assert file.licence == "GPL"


def test_missing_wheel_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"1 packages without a wheel .* some-package==1.2; set `download` to true"):
        list_manifest(manifest(tmp_path), archives=tmp_path, download=False)


def test_download_asks_pip_for_wheels_only(tmp_path, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        wheel(tmp_path)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(archives.subprocess, "run", run)
    assert list_manifest(manifest(tmp_path), archives=tmp_path, download=True)
    assert list_manifest(manifest(tmp_path), archives=tmp_path, download=True)
    (command,) = commands
    assert "--only-binary=:all:" in command
    assert "--no-deps" in command
    assert command[-1] == "some-package==1.2"


def test_failed_download(tmp_path, monkeypatch):
    monkeypatch.setattr(
        archives.subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 1, "", "no such")
    )
    with pytest.raises(DataError, match=r"pip could not download some-package==1.2: no such"):
        list_manifest(manifest(tmp_path), archives=tmp_path, download=True)


def test_damaged_archive(tmp_path):
    wheel(tmp_path).write_bytes(b"not a zip")
    with pytest.raises(DataError, match="is damaged"):
        list_manifest(manifest(tmp_path), archives=tmp_path, download=False)


@pytest.mark.parametrize("text", ["packages: {a: '1'}\n", "version: 1\npackages: {a: 1.0}\n", "version: 1\n", "[1]\n"])
def test_bad_manifest(tmp_path, text):
    with pytest.raises(DataError, match="expected `version: 1` and `packages:` with quoted versions"):
        list_manifest(manifest(tmp_path, text), archives=tmp_path, download=False)
    with pytest.raises(DataError, match="cannot be read"):
        list_manifest("pypi:" + str(tmp_path / "absent.yaml"), archives=tmp_path, download=False)


def test_odd_wheels_and_manifests(tmp_path):
    (tmp_path / "x.whl").write_bytes(b"")
    path = wheel(tmp_path, metadata="Author: José\nLicense: MIT\n")
    with zipfile.ZipFile(path, "a") as bundle:
        with pytest.warns(UserWarning, match="Duplicate name"):
            bundle.writestr("some/module.py", "x = 2\n")
        bundle.writestr("some/ü[1]!.py", "y = 1\n")
    files = list_manifest(manifest(tmp_path), archives=tmp_path, download=False)
    assert {file.name: file.read() for file in files} == {"some/module.py": b"x = 2\n", "some/ü[1]!.py": b"y = 1\n"}
    with pytest.raises(DataError, match="names the package a-b twice"):
        list_manifest(
            manifest(tmp_path, "version: 1\npackages: {a_b: '1', A-B: '2'}\n"), archives=tmp_path, download=False
        )
    (tmp_path / "latin.yaml").write_bytes(b"version: 1  # \xe9\n")
    with pytest.raises(DataError, match=r"latin.yaml cannot be read"):
        list_manifest(f"pypi:{tmp_path}/latin.yaml", archives=tmp_path, download=False)


def test_a_damaged_member_is_counted(tmp_path):
    path = wheel(tmp_path)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"x = 1\n", b"x = 9\n", 1))  # its checksum no longer fits
    (file,) = list_manifest(manifest(tmp_path), archives=tmp_path, download=False)
    with pytest.raises(UNREADABLE):
        file.read()
    job = PartJob(0, (file,), tmp_path, tmp_path / "b.npz", FilterSettings(), ("MIT",), 10, True)
    save_benchmarks(job.benchmarks, {})
    examine_part(job)
    part = Part.open(tmp_path, 0)
    assert part.counts == {"unreadable (BadZipFile)": [1, 6]}
    assert part.examples == {"unreadable (BadZipFile)": ["some/module.py"]}
