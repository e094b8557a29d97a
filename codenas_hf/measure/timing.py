"""Prefill and decode latency of one model under a protocol, each timed for itself."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import StaticCache

from ..folders.ranges import check_range
from ..hardware import device_name
from .score import learned_positions

CacheKind = Literal["dynamic", "static"]


@dataclass(frozen=True, kw_only=True)
class TimingProtocol:
    """What exactly is timed; every latency carries it.

    Args:
        prompt_tokens: length of the prompt.
        new_tokens: tokens decoded after it, one at a time, greedily, with a key-value cache.
        batch_size: prompts at once.
        threads: compute threads on a CPU.
        warmup: runs that are not counted.
        repeats: runs that are counted; each decodes `new_tokens`.
        dtype: of weights and arithmetic.
        cache: kind of key-value cache; `auto` takes the faster of the two in the warm-up.

    Raises:
        ValueError: a value out of range.
    """

    prompt_tokens: int = 64
    new_tokens: int = 32
    batch_size: int = 1
    threads: int = 1
    warmup: int = 2
    repeats: int = 5
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    cache: Literal["auto", "dynamic", "static"] = "auto"

    def __post_init__(self) -> None:
        check_range(self, "prompt_tokens", "new_tokens", "batch_size", "threads", "warmup", "repeats", least=1)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds under a protocol; on a CPU with one thread, of the processor.

    Args:
        prefill_ms: median time of the prompt, first new token included.
        prefill_p95_ms: its 95th percentile.
        decode_ms: median time of one further token.
        decode_p95_ms: its 95th percentile.
        peak_memory_bytes: most memory in use while timing: of the device on CUDA, of the process on Linux; else None.
        cache: kind of cache that was used; another runtime than torch has its own.
        device: what it ran on.
        protocol: how.
        runtime: what computed it: torch (a model of transformers, called token by token) or llama.cpp.
        format: how the weights were stored; None for numbers of the protocol's dtype.
    """

    prefill_ms: float
    prefill_p95_ms: float
    decode_ms: float
    decode_p95_ms: float
    peak_memory_bytes: int | None
    cache: str
    device: str
    protocol: TimingProtocol
    runtime: str = "torch"
    format: str | None = None

    @classmethod
    def of(cls, prefill: Sequence[float], decode: Sequence[float], **facts: Any) -> Latency:
        """From the times of the prompts and of the further tokens, milliseconds; `facts` are the other fields."""
        return cls(
            prefill_ms=statistics.median(prefill),
            prefill_p95_ms=float(np.percentile(prefill, 95)),
            decode_ms=statistics.median(decode),
            decode_p95_ms=float(np.percentile(decode, 95)),
            **facts,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form; what was not measured is absent."""
        return {name: value for name, value in asdict(self).items() if value is not None}


Timer = Callable[[nn.Module, TimingProtocol], Latency]  # `measure_latency`, or what times in another runtime


class _Clock:
    """Marks in time: events in the queue of a GPU, where waiting for each would itself cost time; else a clock.

    Of one thread on a CPU it is the processor's time: a turn that another program takes is not the model's.
    """

    def __init__(self, device: torch.device, *, threads: int) -> None:
        self.cuda = device.type == "cuda"
        self.now = time.thread_time if threads == 1 else time.perf_counter
        self.marks: list[Any] = []

    def mark(self) -> None:
        """Notes this moment."""
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(self.now())

    def gaps_ms(self) -> list[float]:
        """Milliseconds between neighbouring marks."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        if self.cuda:
            torch.cuda.synchronize()
            return [float(first.elapsed_time(second)) for first, second in pairs]
        return [1e3 * (second - first) for first, second in pairs]


@contextmanager
def _alone(threads: int) -> Iterator[None]:
    """A fixed number of threads, and no garbage collection in between."""
    before, collected = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if collected:
            gc.enable()


def _peak_memory(device: torch.device, *, reset: bool = False) -> int | None:
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        return None


def _run(model: nn.Module, prompt: torch.Tensor, protocol: TimingProtocol, cache: CacheKind) -> list[float]:
    """Times of the prompt and of each further token, milliseconds."""
    past = None
    if cache == "static":
        past = StaticCache(config=model.config, max_cache_len=prompt.shape[1] + protocol.new_tokens)  # type: ignore[arg-type]
    clock = _Clock(prompt.device, threads=protocol.threads)
    ids = prompt
    clock.mark()
    for _ in range(protocol.new_tokens + 1):
        output = model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
        past = output.past_key_values
        ids = output.logits[:, -1:].argmax(dim=-1)
        clock.mark()
    return clock.gaps_ms()


def _fitted(protocol: TimingProtocol, context: int | None) -> TimingProtocol:
    """The protocol; shorter where prompt and further tokens do not fit a context of so many."""
    if context is None or protocol.prompt_tokens + protocol.new_tokens <= context:
        return protocol
    new = max(1, min(protocol.new_tokens, context // 2))
    return replace(protocol, new_tokens=new, prompt_tokens=min(protocol.prompt_tokens, context - new))


class Decodes(Protocol):
    """What is asked of a runtime that is timed."""

    @property
    def name(self) -> str:
        """Of the runtime."""

    @property
    def context_tokens(self) -> int | None:
        """Most tokens that it takes."""

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits behind the last of some tokens; what it knows of their beginning it does not compute again."""
        ...


def runtime_latency(
    runtime: Decodes, protocol: TimingProtocol, *, vocab_size: int, form: str | None = None
) -> Latency:
    """As `measure.timing.measure_latency`, in a runtime.

    Args:
        runtime: with the threads that the protocol names.
        protocol: how; it becomes shorter where the context is.
        vocab_size: of the model.
        form: its storage format.

    Raises:
        ValueError: more than one prompt at once.
    """
    if protocol.batch_size != 1:
        raise ValueError(f"{runtime.name} is timed with one prompt at once, got `batch_size` {protocol.batch_size}")
    protocol = _fitted(protocol, runtime.context_tokens)
    prompt = torch.randint(vocab_size, (protocol.prompt_tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    now = time.thread_time if protocol.threads == 1 else time.perf_counter  # as `measure_latency`
    times: list[float] = []
    firsts: list[float] = []
    for turn in range(protocol.warmup + protocol.repeats):
        runtime.logits([(prompt[0] + 1) % vocab_size])  # forgets
        ids, begin = list(prompt), now()
        ids.append(int(runtime.logits(ids).argmax()))
        if turn >= protocol.warmup:
            firsts.append(1e3 * (now() - begin))
        for _ in range(protocol.new_tokens):
            begin = now()
            ids.append(int(runtime.logits(ids).argmax()))
            if turn >= protocol.warmup:
                times.append(1e3 * (now() - begin))
    return Latency.of(
        firsts,
        times,
        peak_memory_bytes=None,
        cache="own",
        device=device_name("cpu"),
        protocol=protocol,
        runtime=runtime.name,
        format=form,
    )


@torch.inference_mode()
def device_noise(device: torch.device, *, seconds: float = 0.2) -> float:
    """How busy others keep a device: the mean time of a repeated matrix product over its shortest; 1 is a quiet one.

    Args:
        device: where.
        seconds: how long to look.
    """
    matrix = torch.full((128, 128), 0.01, device=device)
    times: list[float] = []
    with _alone(1):
        for _ in range(3):
            (matrix @ matrix)[0, 0].item()
        begin = now = time.perf_counter()
        while now - begin < seconds:
            (matrix @ matrix)[0, 0].item()  # waits for a GPU
            before, now = now, time.perf_counter()
            times.append(now - before)
    return statistics.fmean(times) / min(times)


@torch.inference_mode()
def measure_latency(model: nn.Module, protocol: TimingProtocol) -> Latency:
    """Times a model; nothing else should run on the device meanwhile.

    The model is cast to the protocol's dtype and stays so.

    Args:
        model: causal language model of transformers, on the device to time.
        protocol: how; it becomes shorter where the model learns fewer positions.
    """
    protocol = _fitted(protocol, learned_positions(model))
    model = model.to(getattr(torch, protocol.dtype)).eval()
    device = next(model.parameters()).device
    vocab_size = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    generator = torch.Generator().manual_seed(0)
    shape = (protocol.batch_size, protocol.prompt_tokens)
    prompt = torch.randint(vocab_size, shape, generator=generator).to(device)
    kinds: list[CacheKind] = ["dynamic", "static"] if protocol.cache == "auto" else [protocol.cache]
    with _alone(protocol.threads):
        _peak_memory(device, reset=True)
        warm: dict[CacheKind, float] = {}
        for kind in kinds:
            for _ in range(protocol.warmup):
                warm[kind] = statistics.median(_run(model, prompt, protocol, kind)[1:])
        cache = min(warm, key=lambda kind: warm[kind])
        prefill: list[float] = []
        decode: list[float] = []
        for _ in range(protocol.repeats):
            first, *rest = _run(model, prompt, protocol, cache)
            prefill.append(first)
            decode += rest
        peak = _peak_memory(device)
    return Latency.of(
        prefill,
        decode,
        peak_memory_bytes=peak,
        cache=cache,
        device=device_name(device),
        protocol=protocol,
    )
