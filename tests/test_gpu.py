"""What CUDA changes, with stand-ins for GPUs: how many, whose, which number format, memory. recipes/check_gpu.py asks
a real machine the same."""

import ast
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_gpus import FakeCuda, Unequal
from integer_space import Point

from benchmarks.check_gpu import outcome, proportion
from codenas_hf import hardware
from codenas_hf.engine.records import Budget, Rung
from codenas_hf.engine.workers import Limits, Pool
from codenas_hf.hardware import VISIBLE, Hardware, free_gpu_memory, take_gpu, visible_gpus
from codenas_hf.jobs.search import engine_settings
from codenas_hf.jobs.settings import RunSettings
from codenas_hf.training import precision

ROOT = Path(__file__).parent.parent
RUNG = Rung(0, Budget("steps", 1))
CORNERS = {name: (1.0, 2.0) for name in ("bits_per_byte", "artifact_bytes", "decode_ms")}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Puts GPUs into this process, which is then a worker's."""

    def put(*majors: int, nvml: bool = True) -> FakeCuda:
        fake = FakeCuda(majors, nvml=nvml)
        for name in ("device_count", "get_device_properties", "set_device", "is_available", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
        monkeypatch.setattr(torch.cuda, "is_initialized", fake.is_initialized)
        return fake

    for name in (VISIBLE, "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # so that it is as before in the end
        monkeypatch.delenv(name)
    monkeypatch.setattr(hardware.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    monkeypatch.setattr(hardware, "_held", held := [])
    yield put
    for descriptor in held:
        os.close(descriptor)


def test_devices_are_counted_and_named(gpus: Any) -> None:
    gpus(8, 7, 8)
    assert Hardware.discover() == Hardware("cuda", "GPU of 8, GPU of 7", 3)
    assert Hardware.discover("cpu").device == "cpu"


@pytest.mark.parametrize(("ranks", "each"), [({}, 3), ({"WORLD_SIZE": "2"}, 1), ({"LOCAL_WORLD_SIZE": "4"}, 1)])
def test_each_process_of_the_launcher_has_its_share(
    gpus: Any, ranks: dict[str, str], each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(8, 8, 8)
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    hardware_here = Hardware.discover()
    settings = engine_settings(RunSettings(), hardware=hardware_here, corners=CORNERS, identity={})
    assert settings.workers_per_rank == hardware_here.share == each
    settings = engine_settings(RunSettings(), hardware=Hardware("cpu", "", 2), corners=CORNERS, identity={})
    assert settings.workers_per_rank is None, "the engine shares the cores"


@pytest.mark.parametrize("named", [None, "2,3", "GPU-5f, GPU-6a"])
def test_workers_take_different_gpus(gpus: Any, named: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(8, 8)
    taken = []
    for _ in range(4):
        monkeypatch.delenv(VISIBLE, raising=False)
        if named is not None:
            monkeypatch.setenv(VISIBLE, named)
        before = visible_gpus()
        taken.append(take_gpu())
        assert os.environ[VISIBLE] == taken[-1]
        assert visible_gpus() == (taken[-1],)
    assert taken == [*before, *before], "the third and the fourth share"


def test_without_nvml_the_driver_is_told(gpus: Any) -> None:
    fake = gpus(8, 8, nvml=False)
    assert take_gpu() == "0"
    assert fake.current == 0
    os.environ.pop(VISIBLE)
    assert take_gpu() == "1"
    assert fake.current == 1


def test_who_needs_none_takes_none(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(8)
    assert take_gpu() is None
    gpus(8, 8)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: None)
    assert take_gpu() is None, "a main process keeps all of them"
    assert VISIBLE not in os.environ


def test_unequal_gpus_share_a_queue(tmp_path: Path) -> None:
    """Nobody waits for the slow one: it does one while the other does the rest."""
    os.environ.pop(VISIBLE, None)
    environment = {"TMPDIR": str(tmp_path)}
    pool = Pool(Unequal(tmp_path, ahead=7), workers=2, limits=Limits(seconds=100), environment=environment)
    found, left = [], list(range(8))
    try:
        while left or pool.busy:
            while left and pool.free:
                pool.start(left.pop(), Point(0, 0), rung=RUNG, previous=None)
            found += pool.poll(1.0)
    finally:
        pool.close()
    assert not [outcome.failure for outcome in found if outcome.failure]
    seen = [outcome.evaluation.measurements for outcome in found if outcome.evaluation]
    assert sorted(each["gpu"] for each in seen) == ["0"] * 7 + ["1"]
    assert all(each["visible"] == each["gpu"] and each["count"] == 1 for each in seen)


@pytest.mark.parametrize(
    ("majors", "dtype"), [((8, 9), torch.bfloat16), ((9, 7), torch.float32), ((7,), torch.float32)]
)
def test_bfloat16_where_every_gpu_multiplies_it(gpus: Any, majors: tuple[int, ...], dtype: torch.dtype) -> None:
    gpus(*majors)
    assert precision.resolve_precision("auto", device=torch.device("cuda")) is dtype


def test_memory_is_given_back_before_a_search(gpus: Any) -> None:
    fake = gpus(8)
    free_gpu_memory()
    assert fake.emptied == 1


def test_cuda_is_asked_in_three_places_only() -> None:
    """Here in hardware.py, in what a number format follows from, and in what times."""
    places = set()
    for path in (ROOT / "codenas_hf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.cuda":
                places.add(path.relative_to(ROOT / "codenas_hf").as_posix())
    assert places == {"hardware.py", "training/precision.py", "measure/timing.py"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_recipe_asks_the_same_of_a_processor(tmp_path: Path) -> None:
    names = "devices,context,bf16,decode,ddp,own_device,proportion,memory"
    command = [sys.executable, str(ROOT / "recipes" / "check_gpu.py"), "--device", "cpu", "--only", names]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "check.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "check.json").read_text())
    states = {row["check"]: row["state"] for row in result["rows"]}
    assert states == dict.fromkeys(("bf16", "decode", "ddp", "memory"), "holds") | dict.fromkeys(
        ("devices", "context", "own_device", "proportion"), "not tried here"
    )
    assert result["protocol"]["device_type"] == "cpu"


def test_what_does_not_hold_is_said() -> None:
    """A check that fails is a line of the table, and the others are still asked."""
    bad = {"expected": 1}

    def wrong(device: torch.device) -> str:
        assert bad == {}, "one was left"
        return "fine"

    assert outcome(wrong, torch.device("cpu"))[0] == "does not hold"
    assert outcome(wrong, torch.device("cpu"))[1].startswith("AssertionError: one was left")
    bad.clear()
    assert outcome(wrong, torch.device("cpu")) == ("holds", "fine")
    assert outcome(proportion, torch.device("cpu"))[0] == "not tried here"
