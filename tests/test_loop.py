"""The training loop: budgets, exact accumulation and resuming, divergence."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from training_fakes import VOCAB, FakeTokens, tiny_model, weights
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
)

from codenas_hf.engine.records import Budget
from codenas_hf.folders import whole_folder
from codenas_hf.training import (
    DivergenceError,
    OptimSettings,
    OutOfMemoryError,
    TrainResult,
    TrainSettings,
    latest_checkpoint,
    resolve_precision,
    train,
)
from codenas_hf.training.budgets import flops_per_token, planned_steps
from codenas_hf.training.checkpoint import STATE, WEIGHTS, load_weights, read_progress


def settings(*, warmup: int = 1, **changes: Any) -> TrainSettings:
    plain = {"sequence_length": 16, "tokens_per_step": 128, "precision": "float32", "log_every": 5}
    return TrainSettings(**{**plain, "optim": OptimSettings(warmup_steps=warmup), **changes})


def trained(budget: Budget, how: TrainSettings, **arguments: Any) -> tuple[torch.Tensor, TrainResult]:
    model = tiny_model()
    result = train(model, arguments.pop("tokens", FakeTokens()), budget, settings=how, **arguments)
    return weights(model), result


def test_loss_falls_below_chance() -> None:
    _, result = trained(Budget("steps", 60), settings())
    losses = [point["loss"] for point in result.curve]
    assert losses[-1] < 0.6 * math.log(VOCAB) < losses[0]
    assert result.steps == result.steps_run == 60
    assert result.tokens == 60 * 128
    assert result.bytes == 60 * 128 * 3.0
    assert result.checkpoint is None
    assert result.tokens_per_second == pytest.approx(result.tokens / result.seconds_run)


@pytest.mark.parametrize("micro", [4, 1])
def test_accumulation_is_exact(micro: int) -> None:
    """8 x 1 equals 2 x 4 and 1 x 8, although rows hold different numbers of targets."""
    whole, _ = trained(Budget("steps", 3), settings(optim=OptimSettings(optimizer="adamw", warmup_steps=1)))
    parts, _ = trained(
        Budget("steps", 3), settings(micro_sequences=micro, optim=OptimSettings(optimizer="adamw", warmup_steps=1))
    )
    assert torch.allclose(whole, parts, atol=2e-5)


class Interrupted(FakeTokens):
    """Stops the training when it asks for one step's data."""

    def __init__(self, step: int) -> None:
        self.step = step

    def batch(self, step: int, **arguments: Any) -> dict[str, np.ndarray]:
        if step == self.step:
            raise KeyboardInterrupt
        return super().batch(step, **arguments)


class Slow(Interrupted):
    """Each step takes the same seconds on a clock of the test's own."""

    def __init__(self, step: int, now: list[float], seconds: float = 1.0) -> None:
        super().__init__(step)
        self.now, self.seconds = now, seconds

    def batch(self, step: int, **arguments: Any) -> dict[str, np.ndarray]:
        self.now[0] += self.seconds
        return super().batch(step, **arguments)


@pytest.mark.parametrize("stop", [7, 18])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resume_equals_a_straight_run(tmp_path: Path, stop: int, dropout: float) -> None:
    """Bit for bit, before and after the decay has begun (20 steps, the last four decay)."""
    how = settings(dropout=dropout, checkpoint_minutes=1e-9)
    straight, whole = trained(Budget("steps", 20), how)
    with pytest.raises(KeyboardInterrupt):
        trained(Budget("steps", 20), how, folder=tmp_path, tokens=Interrupted(stop))
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert read_progress(checkpoint).step == stop
    resumed, result = trained(Budget("steps", 20), how, folder=tmp_path, resume_from=checkpoint)
    assert torch.equal(straight, resumed)
    assert result.steps_run == 20 - stop
    assert [p["loss"] for p in result.curve] == [p["loss"] for p in whole.curve]
    assert len(list(tmp_path.glob("step-*"))) == 1


def test_a_rung_continues_the_constant_rate_state(tmp_path: Path) -> None:
    """50 + 250 steps: the larger budget goes on from before the decay, and ends where one straight run ends."""
    _, first = trained(Budget("steps", 20), settings(), folder=tmp_path / "first")
    assert first.checkpoint == tmp_path / "first" / "constant"
    assert read_progress(first.checkpoint).step == 16
    second, result = trained(Budget("steps", 50), settings(), folder=tmp_path / "second", resume_from=first.checkpoint)
    straight, _ = trained(Budget("steps", 50), settings(), folder=tmp_path / "straight")
    assert torch.equal(second, straight)
    assert (result.steps, result.steps_run) == (50, 34)
    assert read_progress(tmp_path / "second" / "constant").step == 40


def test_a_decayed_checkpoint_cannot_take_a_larger_budget(tmp_path: Path) -> None:
    how = settings(checkpoint_minutes=1e-9)
    trained(Budget("steps", 20), how, folder=tmp_path)
    decayed = max(tmp_path.glob("step-*"))
    with pytest.raises(ValueError, match="has begun to decay for the budget 20 steps"):
        trained(Budget("steps", 40), how, resume_from=decayed)


def test_a_longer_budget_goes_on_from_before_the_decay(tmp_path: Path) -> None:
    """Killed in the decay of 20 steps, then given 40: nothing but the decay is lost."""
    how = settings(checkpoint_minutes=1e-9)
    with pytest.raises(KeyboardInterrupt):
        trained(Budget("steps", 20), how, folder=tmp_path, tokens=Interrupted(18))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["constant", "step-18"]
    assert (
        latest_checkpoint(tmp_path) == latest_checkpoint(tmp_path, budget=Budget("steps", 20)) == tmp_path / "step-18"
    )
    longer = Budget("steps", 40)
    resume = latest_checkpoint(tmp_path, budget=longer)
    assert resume == tmp_path / "constant"
    continued, result = trained(longer, how, folder=tmp_path, resume_from=resume)
    straight, _ = trained(longer, how)
    assert torch.equal(continued, straight)
    assert result.steps_run == 40 - 16
    # Interrupted before its own decay, the longer one goes on from where it was.
    with pytest.raises(KeyboardInterrupt):
        trained(Budget("steps", 80), how, folder=tmp_path, tokens=Interrupted(50), resume_from=tmp_path / "constant")
    assert latest_checkpoint(tmp_path, budget=Budget("steps", 160)) == tmp_path / "step-50"


def test_a_longer_budget_in_seconds_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("codenas_hf.training.loop.time", SimpleNamespace(perf_counter=lambda: now[0]))
    how = settings(checkpoint_minutes=1e-9)
    with pytest.raises(KeyboardInterrupt):
        trained(Budget("seconds", 20), how, folder=tmp_path, tokens=Slow(18, now))
    resume = latest_checkpoint(tmp_path, budget=Budget("seconds", 30))
    _, result = trained(Budget("seconds", 30), how, folder=tmp_path, tokens=Slow(-1, now), resume_from=resume)
    assert result.seconds == pytest.approx(30, abs=1)
    assert result.steps_run == result.steps - 16


def test_a_budget_that_is_spent_already_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget is the total: what has had more would be given out undecayed, in place of a better model."""
    trained(Budget("steps", 40), settings(), folder=tmp_path / "steps")
    for few in (20, 31):  # the state before the decay has had 32
        with pytest.raises(ValueError, match=rf"has had 32 steps.* give more than {few} steps"):
            trained(Budget("steps", few), settings(), resume_from=tmp_path / "steps" / "constant")
    _, result = trained(Budget("steps", 32), settings(), resume_from=tmp_path / "steps" / "constant")
    assert (result.steps, result.steps_run) == (32, 0)
    now = [100.0]
    monkeypatch.setattr("codenas_hf.training.loop.time", SimpleNamespace(perf_counter=lambda: now[0]))
    trained(Budget("seconds", 20), settings(), folder=tmp_path / "seconds", tokens=Slow(-1, now))
    with pytest.raises(ValueError, match=r"in 16 seconds already.* give more than 10 seconds"):
        trained(Budget("seconds", 10), settings(), resume_from=tmp_path / "seconds" / "constant")

    # The last step ended beyond the budget, and what follows the training was killed: the same command goes on.
    _, whole = trained(Budget("seconds", 10), settings(), folder=tmp_path / "slow", tokens=Slow(-1, now, 6.5))
    assert whole.seconds > 10
    assert whole.checkpoint is not None
    _, again = trained(Budget("seconds", 10), settings(), folder=tmp_path / "slow", resume_from=whole.checkpoint)
    assert (again.steps, again.steps_run) == (whole.steps, 0)


def test_without_a_constant_rate_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    """A cosine falls from its first step: said, not silently begun anew."""
    how = settings(optim=OptimSettings(schedule="cosine"), checkpoint_minutes=1e-9)
    with pytest.raises(KeyboardInterrupt):
        trained(Budget("steps", 20), how, folder=tmp_path, tokens=Interrupted(10))
    resume = latest_checkpoint(tmp_path, budget=Budget("steps", 40))
    with pytest.raises(ValueError, match=r"begun to decay for the budget 20 steps.*train anew in another folder"):
        trained(Budget("steps", 40), how, folder=tmp_path, resume_from=resume)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    _, first = trained(Budget("steps", 10), settings(), folder=tmp_path)
    with pytest.raises(ValueError, match="was trained with `seed` = 0, this run has 1"):
        trained(Budget("steps", 20), settings(seed=1), resume_from=first.checkpoint)
    with pytest.raises(ValueError, match=r"was trained with `fim_rate` = 0.0, this run has 0.5"):
        trained(Budget("steps", 20), settings(fim_rate=0.5), resume_from=first.checkpoint)


def test_a_checkpoint_of_before_that_does_not_say_its_gaps_goes_on(tmp_path: Path) -> None:
    _, first = trained(Budget("steps", 10), settings(fim_rate=0.5), folder=tmp_path)
    assert first.checkpoint is not None
    file = first.checkpoint / STATE
    state = json.loads(file.read_text(encoding="utf-8"))
    assert state["identity"].pop("fim_rate") == 0.5
    file.write_text(json.dumps(state), encoding="utf-8")
    _, result = trained(Budget("steps", 20), settings(fim_rate=0.5), folder=tmp_path, resume_from=first.checkpoint)
    assert result.steps_run == 20 - 8
    assert read_progress(tmp_path / "constant").identity["fim_rate"] == 0.5, "known from now on"


def test_damaged_and_missing_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        read_progress(tmp_path)
    assert latest_checkpoint(tmp_path) is None
    _, first = trained(Budget("steps", 10), settings(), folder=tmp_path)
    assert first.checkpoint is not None
    with pytest.raises(ValueError, match="belongs to another model"):
        load_weights(first.checkpoint, model=tiny_model(width=32))
    (first.checkpoint / "training_state.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        read_progress(first.checkpoint)


def test_a_folder_is_whole_folder_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with whole_folder(target) as fresh:
        (fresh / "a").write_text("1")

    def fail() -> None:
        with whole_folder(target) as fresh:
            (fresh / "a").write_text("2")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert (target / "a").read_text() == "1"
    with whole_folder(target) as fresh:
        (fresh / "a").write_text("3")
    assert (target / "a").read_text() == "3"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_divergence_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    model = tiny_model()

    class Poison(FakeTokens):
        def batch(self, step: int, **arguments: Any) -> dict[str, np.ndarray]:
            if step == 9:
                with torch.no_grad():
                    model.model.layers[0].mlp.up_proj.weight[0, 0] = math.nan
            return super().batch(step, **arguments)

    how = settings(checkpoint_minutes=1e-9)
    with pytest.raises(DivergenceError, match=r"diverged at step 9 of budget 40 steps.*step-9"):
        train(model, Poison(), Budget("steps", 40), settings=how, folder=tmp_path)
    kept = load_file(tmp_path / "step-9" / WEIGHTS)
    assert all(bool(torch.isfinite(value).all()) for value in kept.values())


def test_a_state_with_a_planted_nan_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the gradient is looked at every few steps only, as on a GPU, saving looks too."""
    monkeypatch.setattr("codenas_hf.training.loop.torch.isfinite", lambda value: torch.tensor(True))
    model = tiny_model()

    class Poison(FakeTokens):
        def batch(self, step: int, **arguments: Any) -> dict[str, np.ndarray]:
            if step == 9:
                with torch.no_grad():
                    model.model.norm.weight[0] = math.nan
            return super().batch(step, **arguments)

    how = settings(checkpoint_minutes=1e-9, log_every=50)
    with pytest.raises(DivergenceError, match=r"diverged at step 10 .*not finite.*step-9"):
        train(model, Poison(), Budget("steps", 40), settings=how, folder=tmp_path)


def test_divergence_in_the_last_steps_is_seen_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the gradient is looked at every few steps only, nothing that is not a number leaves as a result."""
    monkeypatch.setattr("codenas_hf.training.loop.torch.isfinite", lambda value: torch.tensor(True))
    model = tiny_model()

    class Poison(FakeTokens):
        def batch(self, step: int, **arguments: Any) -> dict[str, np.ndarray]:
            if step == 9:
                with torch.no_grad():
                    model.model.norm.weight[0] = math.nan
            return super().batch(step, **arguments)

    for how in (settings(log_every=50), settings(log_every=5)):
        with pytest.raises(
            DivergenceError, match=r"try lower rates, such as train\.optim\.matrix_learning_rate=0\.005"
        ):
            train(model, Poison(), Budget("steps", 12), settings=how)


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (MemoryError(), ""),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "9 bytes"),
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8 GiB."
            ),
            "Tried to allocate 2.50 GiB",
        ),
    ],
)
def test_memory_that_is_used_up_is_said(error: Exception, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    model = tiny_model()
    monkeypatch.setattr(model, "forward", fail)
    match = rf"ran out of memory \(.*{size}.*\) with 8 sequences of 16 tokens in a pass; try train\.micro_sequences=4"
    with pytest.raises(OutOfMemoryError, match=match):
        train(model, FakeTokens(), Budget("steps", 1), settings=settings())
    monkeypatch.setattr(model, "forward", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(model, FakeTokens(), Budget("steps", 1), settings=settings())


def test_a_budget_in_seconds_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 5 %, whatever a step takes; the decay ends with the budget."""
    now = [100.0]

    class Slow(FakeTokens):
        def batch(self, step: int, **arguments: Any) -> dict[str, np.ndarray]:
            now[0] += 0.3 + 0.1 * (step % 3)
            return super().batch(step, **arguments)

    monkeypatch.setattr("codenas_hf.training.loop.time", SimpleNamespace(perf_counter=lambda: now[0]))
    _, result = trained(Budget("seconds", 12.0), settings(), tokens=Slow())
    assert result.seconds == pytest.approx(12.0, rel=0.05)
    assert 25 < result.steps < 35


def test_budgets_in_steps() -> None:
    same = {"tokens_per_step": 1024, "bytes_per_token": 3.0, "flops_per_token": 1e6}
    assert planned_steps(Budget("steps", 7), **same) == 7
    assert planned_steps(Budget("tokens", 10_240), **same) == 10
    assert planned_steps(Budget("bytes", 30_720), **same) == 10
    assert planned_steps(Budget("flops", 1.024e10), **same) == 10
    assert planned_steps(Budget("tokens", 1), **same) == 1
    assert planned_steps(Budget("seconds", 5), **same) is None


def test_flops_of_a_token() -> None:
    model = tiny_model()
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    assert flops_per_token(model, length=10) == 6 * matrices + 2 * 6 * 10 * 16


SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
STOCK = {
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 2}),
    "gpt_neox": (GPTNeoXConfig, SHAPE),
    "phi3": (Phi3Config, {**SHAPE, "pad_token_id": 0}),
    "opt": (
        OPTConfig,
        {**SHAPE, "word_embed_proj_dim": 32},
    ),
    "llama": (LlamaConfig, SHAPE),
}


@pytest.mark.parametrize("name", STOCK)
def test_flops_are_those_of_the_products(name: str) -> None:
    """Against torch's own counter, for models whose matrices are stored in different ways."""
    make, shape = STOCK[name]
    special = {} if name == "phi3" else {"bos_token_id": 0, "eos_token_id": 0}
    model = AutoModelForCausalLM.from_config(make(vocab_size=64, **shape, **special), attn_implementation="eager")
    length = 12
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros((1, length), dtype=torch.long), use_cache=False)
    attention = 2 * 4.0 * 32 * length  # a layer's scores and mixing, forward, without the mask's half
    products = 3 * (counter.get_total_flops() / length - attention)
    assert flops_per_token(model, length=length) == pytest.approx(products + 3 * attention / 2, rel=0.01)


def test_label_smoothing_changes_the_training_but_not_what_is_reported() -> None:
    frozen = OptimSettings(learning_rate=1e-12, matrix_learning_rate=1e-12)
    _, plain = trained(Budget("steps", 5), settings(optim=frozen))
    _, smooth = trained(Budget("steps", 5), settings(optim=frozen, label_smoothing=0.1))
    assert smooth.curve[-1]["loss"] == pytest.approx(plain.curve[-1]["loss"], rel=1e-5)
    moved, _ = trained(Budget("steps", 5), settings())
    moved_smooth, _ = trained(Budget("steps", 5), settings(label_smoothing=0.1))
    assert not torch.equal(moved, moved_smooth)


def test_processes_must_be_able_to_share_a_step() -> None:
    accelerator: Any = SimpleNamespace(num_processes=3, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="8 sequences, which 3 processes cannot share"):
        train(tiny_model(), FakeTokens(), Budget("steps", 1), settings=settings(), accelerator=accelerator)
    assert settings().sequences_each(4) == 2
    with pytest.raises(ValueError, match="8 sequences, which 3 processes cannot share; use a multiple of 48"):
        settings().sequences_each(3)


def test_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` reads what the processor says and times nothing: a busy machine cannot change it."""
    cpu = torch.device("cpu")
    assert resolve_precision("float32", device=cpu) is torch.float32
    assert resolve_precision("bfloat16", device=cpu) is torch.bfloat16
    monkeypatch.setattr("time.perf_counter", lambda: 1 / 0)
    monkeypatch.setattr("codenas_hf.training.precision._CPUINFO", tmp_path / "cpuinfo")
    assert resolve_precision("auto", device=cpu) is torch.float32, "what the system does not tell"
    for flags, dtype in {
        "fpu avx2 fma": torch.float32,
        "fpu avx2 avx512f avx512_vnni": torch.float32,
        "fpu avx512f avx512_bf16": torch.bfloat16,
        "fpu amx_bf16 amx_tile": torch.bfloat16,
    }.items():
        (tmp_path / "cpuinfo").write_text(
            f"processor\t: 0\nvmx flags\t: amx_bf16\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
        )
        assert resolve_precision("auto", device=cpu) is dtype, flags
    with pytest.raises(ValueError, match="`precision` must be auto, float32 or bfloat16"):
        resolve_precision("int8", device=cpu)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("precision", "length", "used"),
    [("bfloat16", 16, "codenas_blocks"), ("float32", 16, "sdpa"), ("bfloat16", 2048, "sdpa")],
)
def test_bfloat16_attends_in_blocks_on_a_cpu(
    precision: Any, length: int, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it trains and never after, also where it diverges; longer rows would need too much memory."""
    model = tiny_model()
    model.set_attn_implementation("sdpa")
    seen = []

    class Watched(FakeTokens):
        def batch(self, step: int, **arguments: Any) -> dict[str, np.ndarray]:
            seen.append(model.config._attn_implementation)
            if step == 2:
                raise DivergenceError("planted")
            return super().batch(step, **arguments)

    how = settings(precision=precision, sequence_length=length, tokens_per_step=length)
    with pytest.raises(DivergenceError):
        train(model, Watched(), Budget("steps", 5), settings=how)
    assert set(seen) == {used}
    assert model.config._attn_implementation == "sdpa"


def test_a_training_keeps_the_format_in_which_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed on a machine that would choose otherwise."""
    answers = iter([torch.bfloat16, torch.float32])
    monkeypatch.setattr("codenas_hf.training.precision._fastest", lambda device: next(answers))
    how = settings(precision="auto")
    _, first = trained(Budget("steps", 10), how, folder=tmp_path)
    assert first.precision == "bfloat16"
    _, second = trained(Budget("steps", 20), how, resume_from=first.checkpoint)
    assert second.precision == "bfloat16"
    _, told = trained(Budget("steps", 20), settings(precision="float32"), resume_from=first.checkpoint)
    assert told.precision == "float32"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"tokens_per_step": 100}, "`tokens_per_step` must be a multiple of `sequence_length`"),
        ({"log_every": 0}, "`log_every` must be 1 or more"),
        ({"micro_sequences": 0}, "`micro_sequences` must be 1 or more, or null"),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and below 1"),
        ({"checkpoint_minutes": 0.0}, "`checkpoint_minutes` must be above 0"),
    ],
)
def test_settings_refuse_what_cannot_work(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TrainSettings(**changes)


@pytest.mark.slow
@pytest.mark.timeout(330)
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """DDP over gloo: ranks end bit-equal, and close to one process with the same global batch."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(here)}
    done = subprocess.run(
        [*command, str(here / "training_ranks.py"), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors")["weights"] for rank in (0, 1)]
    assert torch.equal(*ranks)
    single, result = trained(Budget("steps", 12), settings(micro_sequences=2))
    assert torch.allclose(single, ranks[0], atol=1e-4)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["world"] == 2
    assert facts["loss"] == pytest.approx([p["loss"] for p in result.curve], rel=1e-4)
