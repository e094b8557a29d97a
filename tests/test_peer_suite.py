"""transformers' own model tests, from the sdist of the installed version, fetched at run time and never committed."""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "peer_suite.json"
# Files that the tests import and the sdist lacks.
STUBS = {
    "generation/test_utils.py": "class GenerationTesterMixin: pass\n",
    "exporters/test_export.py": "class ExportTesterMixin: pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "utils/tiny_model_summary.json": "{}\n",
}
# Test, and the classes where it may fail ("*" for all), with the reason.
NOT_FOR_US: dict[str, tuple[str, str]] = {
    "test_attention_outputs": ("ConvAndSlidingTest", "it counts one attention matrix a layer; a convolution has none"),
    "test_model_rope_scaling": ("AlibiTest LearnedLayerNormTest", "these models have no rotary embedding"),
    "test_model_rope_scaling_frequencies": ("PerLayerTest", "it reads config.head_dim, which has no one value there"),
    "test_generation_tester_mixin_inheritance": (
        "*",
        "the generation mixin is not in the sdist: a stub stands for it",
    ),
}


@pytest.fixture(scope="module")
def sdist() -> Path:
    """The unpacked sdist with stubs, kept between runs."""
    name = f"transformers-{version('transformers')}"
    cache = Path(os.environ.get("CODENAS_PEER_FOLDER", Path(tempfile.gettempdir()) / "codenas_peer_suite"))
    if not (cache / name).exists():
        cache.mkdir(parents=True, exist_ok=True)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            ":all:",
            "--no-build-isolation",
        ]
        run = subprocess.run([*pip, name.replace("-", "=="), "-d", str(cache)], capture_output=True, text=True)
        if run.returncode:
            pytest.skip(f"the sdist of transformers cannot be fetched: {run.stderr[-300:]}")
        with tarfile.open(cache / f"{name}.tar.gz") as archive:
            archive.extractall(cache, filter="data")
    tests = cache / name / "tests"
    for folder in (tests, *(tests / Path(stub).parent for stub in STUBS)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
    for stub, text in STUBS.items():
        (tests / stub).write_text(text)
    return cache / name


@pytest.mark.peer
@pytest.mark.timeout(1800)
def test_transformers_own_tests_pass(sdist: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, f"--rootdir={sdist}"]
    command += ["-p", "no:cacheprovider", f"--junit-xml={report}", str(HERE / "peer_suite_model.py")]
    environment = os.environ | {"PYTHONPATH": str(sdist), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=sdist, env=environment, capture_output=True, text=True, timeout=1700)
    assert report.exists(), run.stdout[-3000:] + run.stderr[-3000:]
    cases = list(ElementTree.parse(report).iter("testcase"))
    outcome: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for case in cases:
        kinds = {child.tag for child in case}
        kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        outcome[kind].append(f"{case.get('classname', '').split('.')[-1]}::{case.get('name')}")
    unexplained = [name for name in outcome["failed"] if not _explained(name)]
    counts = {kind: len(names) for kind, names in outcome.items()}
    counts["explained"] = counts["failed"] - len(unexplained)
    print(f"transformers' own tests: {counts}")
    assert not unexplained, "\n".join(unexplained) + "\n" + run.stdout[-6000:]
    assert counts["passed"] > 300, counts
    result = {
        "transformers": version("transformers"),
        "passed": counts["passed"],
        "skipped_by_transformers": counts["skipped"],
        "not_for_us": {name: {"where": where, "why": why} for name, (where, why) in NOT_FOR_US.items()},
        "failed_and_explained": sorted(outcome["failed"]),
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _explained(name: str) -> bool:
    where, test = name.split("::")
    for known, (classes, _) in NOT_FOR_US.items():
        if test.startswith(known) and (classes == "*" or where in classes.split()):
            return True
    return False
