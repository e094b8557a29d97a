"""The record of a release: how it was found, trained and measured; one value, one writer, one reader."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from .files import RECORD, SETTINGS, read_json, write_json
from .typed import RecordError, laid_under, plain, typed

SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a genome comes from.

    Args:
        kind: `study`, a trial of a search, or `file`, a genome file, whoever wrote it.
        name: of the study or of the genome file.
        rung: of the trial.
        number: of the trial.
        policy: that proposed it.
        limits: by objective, that it was chosen under.
    """

    kind: Literal["study", "file"]
    name: str
    rung: int | None = None
    number: int | None = None
    policy: str | None = None
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The trial whose weights a release holds, as the search measured it; its training is `Training`.

    Args:
        rung: of the trial.
        number: within the rung.
        objectives: by name, in their own units.
        constraints: name to violation.
        measurements: whatever else was measured.
        provenance: seed, versions, device, data.
    """

    rung: int
    number: int
    objectives: Mapping[str, float] = field(default_factory=dict)
    constraints: Mapping[str, float] = field(default_factory=dict)
    measurements: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the weights were trained: totals over all rungs; `bytes` are of text, `curve` is in nats per token."""

    budget: str | None = None
    steps: int | None = None
    tokens: int | None = None
    bytes: float | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    precision: str | None = None
    processes: int | None = None
    fim_rate: float | None = None
    curve: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class LatencyFacts:
    """Milliseconds under a protocol, as `measure.timing.Latency`."""

    device: str | None = None
    prefill_ms: float | None = None
    prefill_p95_ms: float | None = None
    decode_ms: float | None = None
    decode_p95_ms: float | None = None
    peak_memory_bytes: int | None = None
    cache: str | None = None
    runtime: str | None = None
    format: str | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the released model was measured to be; loss in nats per token.

    `bits_per_byte` in windows as long as training rows, `context_bits_per_byte` in windows of the `context_tokens`
    that the configuration promises. `bits_per_byte_low` and `_high` are its 95 % interval, where the text has projects
    enough; `copied_` and `new_bits_per_byte` add up to it: tokens that the window shows after the same token before,
    and all others. `bits_by_project` has the `bits` and `bytes` of each project of that text, in one order, so that
    two models that were scored on the same text can be compared in pairs.
    """

    bits_per_byte: float | None = None
    bits_per_byte_low: float | None = None
    bits_per_byte_high: float | None = None
    copied_bits_per_byte: float | None = None
    new_bits_per_byte: float | None = None
    loss: float | None = None
    next_token_accuracy: float | None = None
    scored_bytes: int | None = None
    scored_tokens: int | None = None
    window_tokens: int | None = None
    context_tokens: int | None = None
    context_bits_per_byte: float | None = None
    bytes_per_token: float | None = None
    bits_by_project: Mapping[str, Any] | None = None
    latency: LatencyFacts | None = None


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The training text: digest of corpus and tokens, and the corpus report."""

    digest: str | None = None
    corpus: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Start:
    """The release that a fine-tuning began with.

    Args:
        folder: its name.
        weights: SHA-256 of its weights.
        bits_per_byte: of it on the held-out part of the new text.
        data: that it was trained on.
        start: the release that it was itself fine-tuned from.
        kept: share of its parameters that stayed, where it was cut before.
        tokens: of its own training.
        seconds: of its own training.
    """

    folder: str
    weights: str
    bits_per_byte: float | None = None
    data: DataFacts | None = None
    start: Start | None = None
    kept: float | None = None
    tokens: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Squeezed:
    """The pretrained parent that a model was cut from, and what was done to it.

    Args:
        parent: its name.
        licence: as it states it.
        digest: of its weights.
        genome: what was kept, and how it is stored.
        genome_id: its hash.
        parent_bits_per_byte: of the parent on the same report text.
        parent_parameters: of the parent.
        healing: what was trained afterwards, in words; absent where nothing was.
    """

    parent: str
    licence: str | None = None
    digest: str | None = None
    genome: Mapping[str, Any] = field(default_factory=dict)
    genome_id: str | None = None
    parent_bits_per_byte: float | None = None
    parent_parameters: int | None = None
    healing: str | None = None


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """One form in which a release holds its model, as the runtime that reads it gives it.

    Args:
        name: of the file with the weights.
        format: storage format.
        runtime: that reads it.
        bytes: that must be shipped for it.
        bits_per_byte: on report text.
        scored_bytes: of that text.
        decode_ms: of a token.
        protocol: of the timing.
    """

    name: str
    format: str
    runtime: str
    bytes: int
    bits_per_byte: float | None = None
    scored_bytes: int | None = None
    decode_ms: float | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReleaseFacts:
    """What was written: `artifact_bytes` must be shipped (see `folder_bytes`), `weights_bytes` are those of weights.

    Args:
        architecture: `model_type` of its config.
        why_not_stock: genes that no stock architecture has.
        dtype: of the weights.
        format: what the study ships; absent for the folder itself.
        files: each form of the model, what ships first.
    """

    architecture: str | None = None
    why_not_stock: tuple[str, ...] = ()
    dtype: str | None = None
    format: str | None = None
    num_parameters: int | None = None
    weights_bytes: int | None = None
    artifact_bytes: int | None = None
    files: tuple[FileFacts, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Record:
    """How a release was found, trained and measured. What was not measured is None, never 0.

    Args:
        schema: of the file; older ones are converted while they are read.
        genome: its genes, as `Genome.to_dict` gives them.
        genome_id: its hash.
        origin: where the genome comes from; None where nobody said.
        trial: whose weights these are; None for a model trained outside a study.
        start: the release that was fine-tuned; None for a model trained from scratch.
        squeezed: the pretrained parent that it was cut from; None for a model of our own.
        training: how.
        measured: on the release itself.
        seconds: where the time went, by purpose.
        data: the training text.
        provenance: device, threads, versions and commit of who measured the release.
        release: what was written.
        other: keys of the file that this version does not know, where they stood; they are written back.
    """

    schema: int = SCHEMA
    genome: Mapping[str, Any] | None = None
    genome_id: str | None = None
    origin: Origin | None = None
    trial: Trial | None = None
    start: Start | None = None
    squeezed: Squeezed | None = None
    training: Training = field(default_factory=Training)
    measured: Measured = field(default_factory=Measured)
    seconds: Mapping[str, float] = field(default_factory=dict)
    data: DataFacts = field(default_factory=DataFacts)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    release: ReleaseFacts = field(default_factory=ReleaseFacts)
    other: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Record:
        """The record of a release folder, of this schema or an older one.

        Raises:
            FileNotFoundError: it has none.
            RecordError: it is damaged, or of a newer schema.
        """
        path = folder / RECORD
        try:
            data = read_json(path)
        except ValueError as error:
            raise RecordError(str(error)) from error
        schema = data.get("schema", 1)
        if not isinstance(schema, int) or schema > SCHEMA:
            raise RecordError(
                f"{path} has schema {schema!r}, this version reads up to {SCHEMA}: install a newer codenas-hf"
            )
        other: dict[str, Any] = {}
        try:
            if schema < SCHEMA:
                data = _from_schema_1(data, _settings_of(folder))
            record: Record = typed(cls, {**data, "schema": SCHEMA}, "", other)
        except (RecordError, AttributeError, TypeError, ValueError) as error:
            raise RecordError(f"{path} is damaged: {error}; release the model again") from error
        return dataclasses.replace(record, other=other)

    def write(self, folder: Path) -> Path:
        """Writes it into a release folder, whole or not at all; returns the file."""
        own = {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "other"}
        path = folder / RECORD
        write_json(path, laid_under({k: v for k, v in own.items() if v not in (None, {}, [])}, self.other))
        return path

    @property
    def fills_gaps(self) -> bool | None:
        """Whether its training held gaps to fill; None where that is not known."""
        rate = self.training.fim_rate
        had_more = self.start is not None or self.squeezed is not None  # weights that know of an earlier training
        return None if rate is None or (not rate and had_more) else rate > 0

    def quantities(self) -> dict[str, float]:
        """What is known of the model in numbers, by the names of `quantities.py`.

        What was measured on the release goes before what the search measured; the two are not mixed, because they are
        of different texts and timings.
        """
        trial = self.trial or Trial(rung=0, number=0)
        final, sizes, latency = self.measured, self.release, self.measured.latency or LatencyFacts()
        quality = ("bits_per_byte", "loss", "next_token_accuracy")
        search = {**trial.measurements, **trial.objectives}
        if "latency" not in trial.measurements:
            search.pop("decode_ms", None)  # as predicted: nobody measured it
        known: dict[str, Any] = {"artifact_bytes": search.get("artifact_bytes")}
        known |= {n: search.get(n) if final.bits_per_byte is None else getattr(final, n) for n in quality}
        if known["loss"] is not None:
            known["perplexity"] = math.exp(known["loss"])
        known["num_parameters"] = search.get("num_parameters")
        for source, names in (
            (sizes, ("num_parameters", "artifact_bytes", "weights_bytes")),
            (latency, ("prefill_ms", "decode_ms", "decode_p95_ms", "peak_memory_bytes")),
        ):
            known |= {n: value for n in names if (value := getattr(source, n)) is not None}
        known.setdefault("decode_ms", search.get("decode_ms"))
        known |= {"train_tokens": self.training.tokens, "train_seconds": self.training.seconds}
        return {name: value for name, value in known.items() if isinstance(value, int | float)}


def trial_and_training(evaluation: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `Trial` and `Training` hold of an evaluation, in its JSON form: each number in one of them."""
    known = {k: dict(evaluation.get(k) or {}) for k in ("objectives", "constraints", "measurements", "provenance")}
    measurements, provenance = known["measurements"], known["provenance"]
    names = {n: n for n in ("steps", "tokens", "bytes", "tokens_per_second", "curve")} | {
        "train_seconds_total": "seconds"
    }
    training = {new: measurements.pop(old) for old, new in names.items() if old in measurements}
    names = {"budget": "budget", "dtype": "precision"}
    if "curve" in training:
        training["curve"] = tuple(training["curve"])
    return known, training | {new: provenance.pop(old) for old, new in names.items() if old in provenance}


def _from_schema_1(data: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The first schema, without a number: an evaluation whole, no origin, limits and gaps in `settings.yaml` alone."""
    new = dict(data)
    training: dict[str, Any] = {}
    evaluation, trial = new.pop("evaluation", None) or {}, new.pop("trial", None)
    if trial is not None:
        place = {name: trial.get(name) for name in ("rung", "number")}
        known, training = trial_and_training(evaluation)
        new["trial"] = known | place
        limits = settings.get("limits") or {}
        names = {"bytes": "artifact_bytes", "decode_ms": "decode_ms"}
        new["origin"] = {
            **{"kind": "study", "name": new.pop("study", None) or "unknown", **place},
            "limits": {new_: limits[old] for old, new_ in names.items() if limits.get(old) is not None},
            "policy": (settings.get("search") or {}).get("policy"),
        }
    new["training"] = training | (new.get("training") or {})
    rate = (settings.get("train") or {}).get("fim_rate")
    new["training"] |= {} if rate is None else {"fim_rate": rate}
    measured, release = dict(new.get("measured") or {}), dict(new.get("release") or {})
    counted = [part.pop("parameters", None) for part in (measured, release)]
    release |= {"num_parameters": next((n for n in counted if n is not None), None)}
    return {k: v for k, v in {**new, "measured": measured, "release": release}.items() if v is not None}


def _settings_of(folder: Path) -> Mapping[str, Any]:
    """`settings.yaml` of a release; nothing where it is absent or damaged."""
    try:
        found = yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, Mapping) else {}
