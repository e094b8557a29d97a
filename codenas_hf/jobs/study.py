"""What a study stands on: space, text, latency model, corners of the objectives; and its record, opened."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..architecture.genome import Genome
from ..architecture.space import SearchSpace
from ..data import SPLITS, DataError, PreparedData, ngram_bits_per_byte
from ..engine import SearchResult
from ..engine.storage import FROM_ENVIRONMENT, VARIABLE, shown_url
from ..folders import Release, StudyFolder, read_json, whole_file, write_json
from ..hardware import Hardware, exclusively
from ..measure.candidate import promised_context
from ..measure.latency import LatencyModel
from ..measure.shipped import check_widths, shipped_bytes, why_unread
from ..report.architecture import tensors_of_folder
from ..report.page import write_report
from ..strict_yaml import SettingsError, dump, load, to_mapping
from ..training import precision_name, resolve_precision
from .settings import RunSettings
from .spaces import recorded_space
from .text import prepare
from .wanted import weights_of

Say = Callable[[str], None]


def silent(text: str) -> None:
    """For processes that are not the main one."""


def study_data(settings: RunSettings, *, folder: Path, vocab_sizes: Sequence[int], say: Say) -> PreparedData:
    """The data of a study: what it began with where that is still there, else built or found now.

    The default source is the Python that is installed here, which changes with every `pip install`; a study must not.
    """
    wanted = _named_text(settings, vocab_sizes)
    with contextlib.suppress(OSError, ValueError, KeyError, DataError):
        stored = read_json(StudyFolder(folder).data)
        if stored["settings"] == wanted:
            data = PreparedData.from_dict(stored["data"], beside=folder)
            for size in vocab_sizes:
                for split in SPLITS:
                    data.tokens(size, split)
            say(f"data      of this study, {data.corpus.folder}")
            return data
    say("data      building corpus, tokenizers and tokens, or finding them from an earlier run")
    return prepare(settings, vocab_sizes=vocab_sizes, text_alone=not vocab_sizes, say=say)


def _named_text(settings: RunSettings, vocab_sizes: Sequence[int]) -> dict[str, Any]:
    """What of the settings decides about the data."""
    return {
        "corpus": to_mapping(settings.corpus),
        "tokenizer": to_mapping(settings.tokenizer),
        "vocab_sizes": list(vocab_sizes),
    }


def keep_facts(
    settings: RunSettings, *, folder: Path, space: SearchSpace, data: PreparedData, latency: LatencyModel
) -> None:
    """Writes what a study stands on into its folder: settings, which data, the latency model.

    Only once the folder is known to hold this study: a refused command must change nothing. What was decided for it
    meanwhile, and was waiting, becomes a fact with that.
    """
    study = StudyFolder(folder)
    for fact in (study.precision, study.plan):
        with contextlib.suppress(FileNotFoundError):
            waiting(fact).replace(fact)
    write_settings(settings, study)
    write_json(study.data, {"settings": _named_text(settings, space.vocab_sizes), "data": data.to_dict(beside=folder)})
    if not study.latency.exists():
        write_json(study.latency, latency.to_dict())


def write_settings(settings: RunSettings, study: StudyFolder) -> None:
    """Writes the settings of a study, but no password: what this process starts finds that in the environment."""
    url = settings.search.storage
    if url is not None and shown_url(url) != url:
        if os.environ.get(VARIABLE, url) not in ("", url):
            raise SettingsError(f"{VARIABLE} is of another database than `search.storage`: unset it, or give that URL")
        os.environ[VARIABLE] = url
        settings = replace(settings, search=replace(settings.search, storage=FROM_ENVIRONMENT))
    with whole_file(study.settings) as draft:
        draft.write_text(dump(settings), encoding="utf-8")


def waiting(fact: Path) -> Path:
    """Where a decision waits until the folder is known to hold its study; all processes of a launch find it there."""
    return fact.with_name(f".next.{fact.name}")


def forget_waiting(folder: Path) -> None:
    """Removes decisions that did not become facts, because the command was refused."""
    study = StudyFolder(folder)
    for fact in (study.precision, study.plan):
        waiting(fact).unlink(missing_ok=True)


def study_precision(settings: RunSettings, *, folder: Path, hardware: Hardware) -> RunSettings:
    """The settings with the number format of training decided: once per study, as the first of its processes found.

    Every worker, rank and restart takes it from there, on whatever machine; other products would be another search.
    What is decided now waits, see `keep_facts`.
    """
    own = StudyFolder(folder).precision
    with exclusively(folder / ".precision.lock"):
        found = next((path for path in (own, waiting(own)) if path.exists()), None)
        if found is not None:
            precision = read_json(found)["precision"]
        else:
            precision = precision_name(
                resolve_precision(settings.train.precision, device=torch.device(hardware.device))
            )
            asked = settings.train.precision
            write_json(waiting(own), {"precision": precision, "asked": asked, "device": hardware.name})
    train = replace(settings.train, precision=precision)
    return replace(settings, train=train)


def screened(space: SearchSpace, settings: RunSettings, *, data: PreparedData, latency: LatencyModel) -> SearchSpace:
    """The space within the user's limits: what cannot fit, or learns positions beyond the training rows, is left out.

    Decode latency is held to its prediction; the front is timed afterwards.

    Raises:
        SettingsError: nothing within the limits.
    """
    limits, ship = settings.limits, settings.ship

    @functools.lru_cache(maxsize=4096)  # a proposal asks for a thousand, each several times
    def known(genome: Genome) -> dict[str, float]:
        total = shipped_bytes(genome, ship, tokenizer=data.tokenizer(genome.vocab_size))
        return {"artifact_bytes": float(total), "decode_ms": latency.predict_decode_ms(genome)}

    def unusable(genome: Genome) -> str | None:
        try:
            promised_context(genome, train=settings.train, settings=settings.candidate)
            found = known(genome)
        except ValueError as error:
            return str(error)
        least = limits.min_bytes if ship.form.coded else None
        if least is not None and found["artifact_bytes"] < least:
            return f"the file has {found['artifact_bytes']:,.0f} bytes, at least {least:,} are wanted"
        if limits.bytes is not None and found["artifact_bytes"] > limits.bytes:
            what = "the file has" if ship.form.coded else "weights and tokenizer have"
            return f"{what} {found['artifact_bytes']:,.0f} bytes, the limit is {limits.bytes:,}"
        if limits.decode_ms is not None and found["decode_ms"] > limits.decode_ms:
            return f"a token takes {found['decode_ms']:.3g} ms as predicted, the limit is {limits.decode_ms:g} ms"
        return None

    fewest = None if ship.form.coded else limits.min_bytes  # those limits are of bfloat16 weights
    within = space.with_limits(min_weights_bytes=fewest, extra=unusable, known=known)
    try:
        within.sample(np.random.default_rng(0))
    except ValueError as error:
        raise SettingsError(
            f"no architecture of the space `{settings.space}` keeps the limits and can be trained: {error}"
        ) from error
    return within


def check_format(space: SearchSpace, settings: RunSettings, *, say: Say) -> None:
    """Refuses a space with widths that the format to ship cannot store: each candidate would be refused later.

    An architecture that no reader of the format knows is left out instead, as what is beyond a limit is; that is said.

    Raises:
        SettingsError: names the layer.
        ImportError: the package that writes the format is absent.
    """
    ship = settings.ship
    if not ship.form.coded:
        return
    rng = np.random.default_rng(0)
    genomes = [space.sample(rng) for _ in range(256)]
    for genome in genomes:
        try:
            check_widths(genome, ship)
        except ValueError as error:
            raise SettingsError(
                f"`ship.format`: the space `{settings.space}` has widths that {ship.format} cannot store: {error}"
            ) from error
    reasons = [reason for genome in genomes if (reason := why_unread(genome, ship)) is not None]
    if reasons:
        say(f"format    {len(reasons)} of {len(genomes)} drawn architectures are left out, such as: {reasons[0]}")


def ship_identity(settings: RunSettings) -> dict[str, Any]:
    """What a format to ship adds to a study's identity: nothing for bfloat16, as in studies that knew no other."""
    if not settings.ship.form.coded:
        return {}
    return {"ship": {"format": settings.ship.format, "min_bytes": settings.limits.min_bytes}}


def corners(
    space: SearchSpace, settings: RunSettings, *, data: PreparedData, latency: LatencyModel
) -> dict[str, tuple[float, float]]:
    """Ideal and reference of each objective.

    For bytes and latency the lowest and highest of 256 genomes drawn from the space. For quality, the bits per byte of
    an n-gram model on the very text that rungs are scored on as the worst that is worth anything, and three quarters
    of them as the ideal: half would stretch the scale so far that a short search always ends with the smallest model.
    """
    rng = np.random.default_rng(0)
    genomes = [space.sample(rng) for _ in range(256)]
    ship = settings.ship
    sizes = [float(shipped_bytes(g, ship, tokenizer=data.tokenizer(g.vocab_size))) for g in genomes]
    times = [latency.predict_decode_ms(g) for g in genomes]
    bits = ngram_bits_per_byte(data.corpus, search_bytes=settings.candidate.score_bytes)
    return {
        "bits_per_byte": (0.75 * bits, bits),
        "artifact_bytes": (min(sizes), max(sizes)),
        "decode_ms": (min(times), max(times)),
    }


def report_study(result: SearchResult, *, folder: Path, winner: Path | None) -> Path:
    """Writes `folder`/report from the record of a study.

    Returns:
        Its `index.html`.
    """
    config = None if winner is None else Release(winner).read_config()
    facts = {} if result.winner is None or result.winner.evaluation is None else result.winner.evaluation.provenance
    return write_report(
        result,
        folder=StudyFolder(folder).report,
        name=folder.name,
        tensors=None if winner is None else tensors_of_folder(winner),
        config=config,
        facts=dict(facts),
    )


def open_study(folder: Path) -> tuple[SearchResult, RunSettings]:
    """The record and the settings of a study, finished or not.

    Raises:
        FileNotFoundError: no study there.
        codenas_hf.engine.JournalError, codenas_hf.engine.StorageError: its record cannot be read.
        SettingsError: its settings cannot be read, or its space is gone.
    """
    path = StudyFolder(folder).settings
    if not path.exists():
        raise FileNotFoundError(f"no study in {folder}: expected the file {path.name}; studies lie in runs/")
    try:
        stored = load(RunSettings, path)
    except SettingsError as error:
        raise SettingsError(
            f"the study in {folder} was begun with another version, or its settings were changed since: {error}; use "
            "the version that began it, or begin another study"
        ) from error
    # On a server the name is what the study was begun with; a journal knows its own, whatever its folder is called.
    storage = stored.search.storage
    result = SearchResult.open(
        folder,
        space=recorded_space(stored.space),
        storage=storage,
        name=None if storage is None else stored.study,
        weights=weights_of(stored.weights),
    )
    return result, replace(stored, folder=folder.resolve().parent, study=folder.resolve().name)


def write_study_report(folder: Path) -> Path:
    """Writes the report of a study, finished or not: tables, pictures, one page.

    Returns:
        Its `index.html`.

    Raises:
        FileNotFoundError: no study there.
    """
    result, _ = open_study(folder)
    winner = StudyFolder(folder).winner
    return report_study(result, folder=folder, winner=winner.folder if winner.config.is_file() else None)
