"""One plain Accelerate loop for every rung and for the winner.

A budget is spent as warm-up, a constant rate, and a decay to zero over its last `decay_share`. The state at the end
of the constant part is kept as the checkpoint `constant`: the next rung goes on from there, so a model that is scored
at a rung has had exactly that rung's budget, decay included, and never continues from a decayed state. The decay of a
lower rung is the price of scoring it; `TrainResult.steps` are those of the scored model, `steps_run` of this call.
"""

from __future__ import annotations

import inspect
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy

from ..engine.records import Budget
from .attention import fast_attention
from .budgets import flops_per_token, planned_steps
from .checkpoint import CONSTANT, Progress, latest_checkpoint, load_checkpoint, save_checkpoint
from .memory import keep_freed_memory
from .optim import rate_factor
from .optimizers import Optimizers
from .outcome import DivergenceError, OutOfMemoryError, TrainResult, is_memory, memory_line
from .precision import accelerator_on, precision_name, resolve_precision
from .settings import OnPoint, Stored, TrainingTokens, TrainSettings


@contextmanager
def _residual_dropout(model: nn.Module, rate: float) -> Iterator[None]:
    """Drops parts of what attention and feed-forward networks add to the residual stream, while the block runs."""

    def drop(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not module.training:
            return output
        if isinstance(output, tuple):
            return (nn.functional.dropout(output[0], rate), *output[1:])
        return nn.functional.dropout(output, rate)

    branches = [m for n, m in model.named_modules() if rate and n.rpartition(".")[2] in ("self_attn", "mlp", "conv")]
    hooks = [module.register_forward_hook(drop) for module in branches if not isinstance(module, nn.Conv1d)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Loop:
    """The state of one call of `train`."""

    def __init__(
        self,
        model: nn.Module,
        tokens: TrainingTokens,
        budget: Budget,
        settings: TrainSettings,
        accelerator: Accelerator,
        on_point: OnPoint | None,
        stored: Stored | None,
    ) -> None:
        self.model, self.tokens, self.budget, self.settings = model, tokens, budget, settings
        self.accelerator, self.on_point, self.stored = accelerator, on_point, stored
        self.sequences = settings.sequences_each(accelerator.num_processes)
        self.micro = min(settings.micro_sequences or self.sequences, self.sequences)
        self.dtype = self._agreed(resolve_precision(settings.precision, device=accelerator.device))
        if accelerator.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        else:
            keep_freed_memory()
        model.to(accelerator.device)
        self.optimizers = Optimizers(model, settings=settings.optim, dtype=self.dtype)
        self.runner: nn.Module = accelerator.prepare_model(model)
        if settings.compile:
            self.runner = torch.compile(self.runner)  # type: ignore[assignment]
        self.steps = planned_steps(
            budget,
            tokens_per_step=settings.tokens_per_step,
            bytes_per_token=tokens.bytes_per_token,
            flops_per_token=flops_per_token(model, length=settings.sequence_length),
        )
        self.progress = Progress(identity=settings.identity(tokens.digest), precision=precision_name(self.dtype))
        self.losses: list[torch.Tensor] = []  # since the last point of the curve
        chunks = "loss_chunk_tokens" in inspect.signature(model.forward).parameters and not settings.label_smoothing
        self.loss_chunk_tokens = settings.loss_chunk_tokens if chunks else None
        # Reading a number back stalls a GPU's queue; on a CPU it is free.
        self.check_every = 1 if accelerator.device.type == "cpu" else settings.log_every

    def _agreed(self, dtype: torch.dtype) -> torch.dtype:
        """One number format for all processes: bfloat16 only where every machine has it."""
        world = self.accelerator.num_processes
        if world == 1:
            return dtype
        votes = torch.tensor(float(dtype is torch.bfloat16), device=self.accelerator.device)
        everywhere = int(self.accelerator.reduce(votes, "sum").item()) == world
        return torch.bfloat16 if everywhere else torch.float32

    def resume(self, folder: Path) -> None:
        """Continues the checkpoint in `folder`."""
        progress = load_checkpoint(folder, model=self.model, optimizers=self.optimizers)
        own = self.progress.identity
        name = progress.unlike(own)
        if name is not None:
            raise ValueError(
                f"the checkpoint in {folder} was trained with `{name}` = {progress.identity.get(name)!r}, this "
                f"run has {own[name]!r}; use the same, or train without `resume_from`"
            )
        progress.identity = own
        if progress.decayed and progress.budget != self.budget.to_dict():
            raise ValueError(
                f"the checkpoint in {folder} has begun to decay for the budget {Budget.from_dict(progress.budget)}, "
                f"so {self.budget} cannot continue it; give that budget again, continue from the folder `{CONSTANT}` "
                "where one lies beside it, or train anew in another folder"
            )
        if self.settings.precision == "auto" and progress.precision:
            # It was decided when the training began; this machine may answer otherwise.
            self.dtype = resolve_precision(progress.precision, device=self.accelerator.device)
            self.optimizers.set_dtype(self.dtype)
        progress.precision = precision_name(self.dtype)
        self.progress = progress
        if not progress.decayed and progress.budget != self.budget.to_dict() and self.share() > 1:
            raise ValueError(
                f"the training in {folder} has had {progress.step:,} steps in {progress.seconds:.0f} seconds already, "
                f"and a budget is the total: give more than {self.budget}"
            )
        self.losses = [torch.tensor(loss, device=self.accelerator.device) for loss in progress.pending]

    def share(self) -> float:
        """Share of the budget that is spent."""
        if self.steps is not None:
            return self.progress.step / self.steps
        return self.progress.seconds / self.budget.amount

    def finished(self, step_seconds: float) -> bool:
        """True when another step would pass the budget by more than half of itself."""
        if self.steps is not None:
            return self.progress.step >= self.steps
        return self.progress.step > 0 and self.progress.seconds + step_seconds / 2 >= self.budget.amount

    def expected_steps(self, step_seconds: float) -> float:
        """Steps of the whole budget, as far as known."""
        if self.steps is not None:
            return float(self.steps)
        return self.budget.amount / step_seconds if step_seconds else math.inf

    def step(self, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimiser step at `factor` times the peak rate: plain loss in nats per token, norm of the gradient."""
        s, accelerator = self.settings, self.accelerator
        batch = self.tokens.batch(
            self.progress.step,
            sequences=self.sequences,
            length=s.sequence_length,
            seed=s.seed,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            fim_rate=s.fim_rate,
        )
        data = {
            name: torch.from_numpy(batch[name]).to(accelerator.device, non_blocking=True)
            for name in ("input_ids", "labels", "position_ids")
        }
        scored = (data["labels"][:, 1:] != -100).sum()
        world = accelerator.num_processes
        # DDP averages over processes what has to be one mean over all scored tokens.
        items = (accelerator.reduce(scored, "sum") if world > 1 else scored) / world
        if s.dropout:
            torch.manual_seed(hash((s.seed, self.progress.step, accelerator.process_index)))
        total = torch.zeros((), device=accelerator.device)
        with self._weights():
            for start in range(0, self.sequences, self.micro):
                part = {name: value[start : start + self.micro] for name, value in data.items()}
                last = start + self.micro >= self.sequences
                with nullcontext() if last else accelerator.no_sync(self.runner):
                    loss, plain = self._loss(part, items)
                    accelerator.backward(loss)
                total += plain
        parameters = list(self.model.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if s.optim.gradient_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, s.optim.gradient_clip, norm)
        if self.progress.step % self.check_every == 0 and not torch.isfinite(norm):
            raise DivergenceError(f"norm of the gradient {norm.item()}, loss {total.item():.4g}")
        self.optimizers.set_rate(factor)
        self.optimizers.step()
        self.optimizers.zero_grad()
        return total, norm

    def _weights(self) -> AbstractContextManager[None]:
        """Those that this step computes with: late in the decay, as they will be stored."""
        late = self.share() >= 1 - self.settings.optim.decay_share * self.settings.quantize
        return self.stored(self.model) if self.stored and self.settings.quantize and late else nullcontext()

    def _loss(self, part: dict[str, torch.Tensor], items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss to differentiate, and the plain one, both as this part's share of the step's mean."""
        s, device = self.settings, self.accelerator.device.type
        arguments: dict[str, Any] = {"use_cache": False, "num_items_in_batch": items, **part}
        if self.loss_chunk_tokens is not None:
            arguments["loss_chunk_tokens"] = self.loss_chunk_tokens
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            output = self.runner(**arguments)
        plain = getattr(output, "plain_loss", output.loss).detach()  # a teacher's student is trained on another
        if not s.label_smoothing:
            return output.loss, plain
        logits = output.logits[:, :-1].float().flatten(0, 1)
        targets = part["labels"][:, 1:].flatten()
        return cross_entropy(logits, targets, label_smoothing=s.label_smoothing, reduction="sum") / items, plain

    def check_losses(self) -> list[float]:
        """The losses since the last point of the curve.

        Raises:
            DivergenceError: one is not finite, in any process.
        """
        losses = [float(loss) for loss in self.losses]
        # All processes must come to the same answer, or those that go on would wait for the others for ever.
        total = torch.tensor(sum(losses), device=self.accelerator.device)
        if not math.isfinite(float(self.accelerator.reduce(total, "sum"))):
            raise DivergenceError("a loss since the last point of the curve is not finite")
        return losses

    def save(self, folder: Path) -> None:
        """Writes a checkpoint from the main process."""
        self.progress.pending = self.check_losses()
        if self.accelerator.is_main_process:
            save_checkpoint(folder, model=self.model, optimizers=self.optimizers, progress=self.progress)
            for old in folder.parent.glob("step-*"):
                if old != folder:
                    shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def log(self, factor: float) -> None:
        """Adds a point to the curve and tells the trackers."""
        loss = self.accelerator.reduce(torch.stack(self.losses).mean(), "mean").item()
        if not math.isfinite(loss):
            raise DivergenceError(f"loss {loss}")
        self.losses = []
        step, seconds = self.progress.step, self.progress.seconds
        point = {
            "step": step,
            "tokens": step * self.settings.tokens_per_step,
            "seconds": round(seconds, 3),
            "loss": loss,
        }
        self.progress.curve.append(point)
        if self.on_point is not None:
            self.on_point(point, self.share())
        if self.accelerator.trackers:
            self.accelerator.log({"loss": loss, "rate_factor": factor, "tokens": point["tokens"]}, step=step)


def train(
    model: nn.Module,
    tokens: TrainingTokens,
    budget: Budget,
    *,
    settings: TrainSettings,
    folder: Path | None = None,
    resume_from: Path | None = None,
    accelerator: Accelerator | None = None,
    on_point: OnPoint | None = None,
    stored: Stored | None = None,
) -> TrainResult:
    """Trains a model until its budget is spent; the model is changed in place and ends decayed.

    Args:
        model: from `build_model`, or loaded; the loop moves it to the accelerator's device.
        tokens: training data.
        budget: the total, including what a resumed checkpoint has had.
        settings: how.
        folder: gets `constant` (the state before the decay) and, in long trainings, `step-<n>` every
            `checkpoint_minutes`; None keeps nothing.
        resume_from: a checkpoint folder to continue.
        accelerator: all its processes train together; None makes one. Its trackers are told the curve.
        on_point: called in every process with each new point of the curve and the share of the budget that is spent.
        stored: the weights that `settings.quantize` computes with; None leaves them as they are.

    Raises:
        DivergenceError: loss or gradient became infinite or not a number.
        OutOfMemoryError: a step does not fit into memory.
        ValueError: the checkpoint does not fit, or processes cannot share a step's sequences.
    """
    accelerator = accelerator or accelerator_on()
    loop = _Loop(model, tokens, budget, settings, accelerator, on_point, stored)
    if resume_from is not None:
        loop.resume(resume_from)
    first = loop.progress.step
    model.train()
    attention = fast_attention(model, loop.dtype, length=settings.sequence_length)
    with _residual_dropout(model, settings.dropout), attention:
        started, checkpoint = time.perf_counter(), None
        try:
            checkpoint = _run(loop, folder)
        except DivergenceError as error:
            kept = resume_from if folder is None else (latest_checkpoint(folder) or resume_from)
            raise DivergenceError(
                f"training diverged at step {loop.progress.step} of budget {budget}: {error}; last good checkpoint: "
                f"{kept or 'none'}; try lower rates, such as {settings.optim.half_rates}"
            ) from None
        except (MemoryError, RuntimeError) as error:
            if not is_memory(error):
                raise
            raise OutOfMemoryError(
                f"training ran out of memory ({memory_line(error)}) with {loop.micro} sequences "
                f"of {settings.sequence_length} tokens in a pass; try train.micro_sequences={max(1, loop.micro // 2)}"
                f"{'' if loop.micro > 1 else ', a shorter train.sequence_length'} or a smaller model"
            ) from None
        seconds = time.perf_counter() - started
    model.eval()
    step = loop.progress.step
    return TrainResult(
        steps=step,
        tokens=step * settings.tokens_per_step,
        bytes=step * settings.tokens_per_step * tokens.bytes_per_token,
        seconds=loop.progress.seconds,
        steps_run=step - first,
        seconds_run=seconds,
        curve=tuple(loop.progress.curve),
        checkpoint=checkpoint,
        precision=precision_name(loop.dtype),
    )


def _run(loop: _Loop, folder: Path | None) -> Path | None:
    """Steps until the budget is spent; returns the checkpoint before the decay."""
    settings, progress, accelerator = loop.settings, loop.progress, loop.accelerator
    optim = settings.optim
    decay_from = 1 - optim.decay_share if optim.schedule == "stable" else -1.0
    kept = None if folder is None else folder / CONSTANT
    checkpoint = kept if kept is not None and progress.decayed and kept.is_dir() else None
    origin = time.perf_counter() - progress.seconds
    saved, step_seconds = progress.seconds, 0.0
    while not loop.finished(step_seconds):
        share = loop.share()
        if not progress.decayed and share >= decay_from:
            if folder is not None and decay_from >= 0:
                loop.save(folder / CONSTANT)
                checkpoint = folder / CONSTANT
            progress.decayed, progress.budget = True, loop.budget.to_dict()
        elif folder is not None and progress.seconds - saved > 60 * settings.checkpoint_minutes:
            # By the common clock: processes that disagreed here would wait for each other for ever.
            loop.save(folder / f"step-{progress.step}")
            saved = progress.seconds
        factor = rate_factor(share, progress.step, settings=optim, planned_steps=loop.expected_steps(step_seconds))
        loss, _ = loop.step(factor)
        loop.losses.append(loss)
        progress.step += 1
        before, progress.seconds = progress.seconds, time.perf_counter() - origin
        if accelerator.num_processes > 1:
            clock = torch.tensor(progress.seconds, device=accelerator.device, dtype=torch.float32)
            progress.seconds = float(accelerator.reduce(clock, "mean").item())
        taken = progress.seconds - before
        step_seconds = taken if not step_seconds else 0.9 * step_seconds + 0.1 * taken
        if progress.step % settings.log_every == 0:
            loop.log(factor)
    if folder is not None and checkpoint is None and decay_from >= 0:
        # So few steps that none fell into the decay: the state is constant to its end, and this budget's own.
        progress.budget = loop.budget.to_dict()
        loop.save(folder / CONSTANT)
        checkpoint = folder / CONSTANT
    loop.check_losses()
    return checkpoint
