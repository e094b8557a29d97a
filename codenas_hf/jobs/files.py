"""The files of a release, each as the runtime that reads it gives it: bytes, bits per byte, decode latency."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from ..data.passages import Passages
from ..folders import Release, folder_bytes
from ..folders.record import FileFacts, Measured
from ..generation.llama_cpp import LlamaCppRuntime, is_installed
from ..generation.runtimes import Runtime
from ..measure.score import ReaderModel, Score, score_passages
from ..measure.shipped import Format, ShipSettings, as_shipped
from ..measure.timing import TimingProtocol, runtime_latency


def score_runtime(runtime: Runtime, passages: Passages, *, vocab_size: int) -> Score:
    """Bits per byte as a runtime gives them.

    Args:
        runtime: whose context holds the rows.
        passages: text.
        vocab_size: of the model.
    """
    return score_passages(ReaderModel(runtime, vocab_size=vocab_size), passages)


def time_runtime(runtime: Runtime, protocol: TimingProtocol, *, vocab_size: int) -> tuple[float, TimingProtocol]:
    """Median milliseconds of one greedy token behind a prompt, and the protocol: shorter where the context is.

    Args:
        runtime: with the threads that the protocol names.
        protocol: how.
        vocab_size: of the model.
    """
    found = runtime_latency(runtime, protocol, vocab_size=vocab_size)
    return found.decode_ms, found.protocol


def measure_gguf(path: Path, passages: Passages, *, form: str, protocol: TimingProtocol, vocab_size: int) -> FileFacts:
    """A GGUF file as llama.cpp gives it; its bytes alone where that is not installed.

    Args:
        path: the file.
        passages: text to score, in rows that its context holds.
        form: its storage format.
        protocol: of the timing.
        vocab_size: of the model.

    Raises:
        codenas_hf.generation.llama_cpp.LlamaCppError: llama.cpp cannot read it.
    """
    facts = FileFacts(name=path.name, format=form, runtime="llama.cpp", bytes=path.stat().st_size)
    if not is_installed():
        return facts
    runtime = LlamaCppRuntime(path, threads=protocol.threads)
    try:
        score = score_runtime(runtime, passages, vocab_size=vocab_size)
        decode_ms, used = time_runtime(runtime, protocol, vocab_size=vocab_size)
    finally:
        runtime.close()
    return replace(
        facts,
        bits_per_byte=score.bits_per_byte,
        scored_bytes=score.num_bytes,
        decode_ms=decode_ms,
        protocol=used.to_dict(),
    )


def measure_files(
    release: Release,
    *,
    model: nn.Module,
    measured: Measured,
    passages: Passages,
    form: Format,
    protocol: TimingProtocol,
    vocab_size: int,
    device: str = "cpu",
) -> tuple[FileFacts, ...]:
    """Every form in which a release holds its model.

    Args:
        release: as written.
        model: in full precision; left as it was.
        measured: of what ships.
        passages: report text.
        form: the format that ships.
        protocol: of the timing in a GGUF file's reader; that of torch stands in `measured`.
        vocab_size: of the model.
        device: where it is scored as the folder holds it.
    """
    latency, bits = measured.latency, measured.bits_per_byte
    scored = measured.scored_bytes
    if form.coded:
        nn.Module.to(model, device)
        with as_shipped(model, ShipSettings()):
            score = score_passages(model, passages)
        nn.Module.to(model, "cpu")
        bits, scored = score.bits_per_byte, score.num_bytes
    folder = FileFacts(
        name=release.weights[0].name,
        format="bf16",
        runtime="torch",
        bytes=folder_bytes(release.folder),
        bits_per_byte=bits,
        scored_bytes=scored,
        decode_ms=None if latency is None else latency.decode_ms,
        protocol={} if latency is None else latency.protocol,
    )
    if latency is not None and latency.runtime not in (None, "torch"):  # of another file
        folder = replace(folder, decode_ms=None, protocol={})
    if release.shipped is None:
        return (folder,)
    found = measure_gguf(release.shipped, passages, form=form.name, protocol=protocol, vocab_size=vocab_size)
    return found, folder
