"""The main job: from Python files to a winner. One function, which the recipe and `codenas search` call."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..architecture.genome import Genome
from ..architecture.genome_file import read_genome
from ..architecture.space import SearchSpace
from ..data import DataError, PreparedData, ngram_bits_per_byte
from ..engine import (
    GeneticPolicy,
    Objectives,
    Policy,
    RandomPolicy,
    RegularizedEvolution,
    Screened,
    SearchResult,
    SearchSettings,
    Seeded,
    run_search,
)
from ..folders import folder_bytes, write_json
from ..hardware import Hardware, exclusively, is_main_process
from ..measure.candidate import CandidateEvaluator, LatencyConfirmer
from ..measure.latency import LatencyModel
from ..release.hub import Published, publish
from ..report import write_report
from ..report.architecture import tensors_of_folder
from ..strict_yaml import SettingsError, dump, load, to_mapping
from .settings import RunSettings, config_path
from .train import prepare, release_trial, seconds_per_step

Say = Callable[[str], None]
SCALES = {"bits_per_byte": "linear", "artifact_bytes": "log2", "decode_ms": "log2"}


@dataclass(frozen=True)
class SearchOutcome:
    """Where a search left things.

    Args:
        result: the record.
        folder: of the study.
        winner: the release folder; None when nothing was feasible, or in another than the main process.
        report: `index.html` of the report; None in another than the main process.
        published: what was pushed to the Hub, where `publish.repo_id` is set.
    """

    result: SearchResult
    folder: Path
    winner: Path | None = None
    report: Path | None = None
    published: tuple[Published, ...] = ()


def search(settings: RunSettings, *, fresh: bool = False, say: Say = lambda text: None) -> SearchOutcome:
    """Searches, and releases the winner. The same call goes on with an unfinished study, or shows a finished one.

    Under `accelerate launch` every process calls it: all evaluate, the main one reports.

    Args:
        settings: everything.
        fresh: put an existing study of that name aside and start anew.
        say: told what is going on, a line at a time, by the main process.

    Raises:
        SettingsError: settings that cannot be used.
        codenas_hf.data.DataError: no usable training text.
        codenas_hf.engine.IdentityError: the folder holds another study; its text says what differs.
    """
    main = is_main_process()
    if not main:
        say = _silent
    hardware = Hardware.discover(settings.device)
    folder = settings.folder / settings.study
    if fresh and main:
        _put_aside(folder, say=say)
    folder.mkdir(parents=True, exist_ok=True)
    say(f"device    {hardware.count} x {hardware.name} ({hardware.device})")

    space = load_space(settings.space)
    data = study_data(settings, folder=folder, vocab_sizes=space.vocab_sizes, say=say)
    latency = study_latency(settings, folder=folder, space=space, hardware=hardware, say=say)
    space = _screened(space, settings, data=data, latency=latency)
    engine = engine_settings(
        settings,
        hardware=hardware,
        corners=_corners(space, data=data, latency=latency),
        identity={"data": data.digest, "train": to_mapping(settings.train), "score": to_mapping(settings.candidate)},
    )
    trials = (folder / "trials").resolve()
    if main:
        (folder / "settings.yaml").write_text(dump(settings), encoding="utf-8")
        for line in cost_lines(settings, space=space, data=data, hardware=hardware):
            say(line)
    result = run_search(
        space,
        CandidateEvaluator(
            data=data,
            train=settings.train,
            settings=settings.candidate,
            latency=latency,
            folder=trials,
            device=hardware.device,
        ),
        folder=folder,
        settings=engine,
        policy=_policy(settings, space),
        confirm=LatencyConfirmer(data=data, settings=settings.candidate, folder=trials, device=hardware.device),
        preload=("torch", "transformers", "codenas_hf.measure.candidate"),
    )
    if not main:
        return SearchOutcome(result, folder)
    winner = None
    if result.winner is not None:
        winner = release_trial(result.winner, study=folder, settings=settings, data=data)
    report = report_study(result, folder=folder, winner=winner)
    published: tuple[Published, ...] = ()
    if winner is not None and settings.publish.repo_id is not None:
        published = tuple(publish(folder, **to_mapping(settings.publish)))
    return SearchOutcome(result, folder, winner, report, published)


def load_space(name: str) -> SearchSpace:
    """A search space by the name of its file in configs/spaces, or by path; without limits."""
    return SearchSpace.from_yaml(config_path(name if "/" in name else f"spaces/{name}"))


def study_data(settings: RunSettings, *, folder: Path, vocab_sizes: Sequence[int], say: Say) -> PreparedData:
    """The data of a study: what it began with where that is still there, else built or found now.

    The default source is the Python that is installed here, which changes with every `pip install`; a study must not.
    """
    note = folder / "data.json"
    wanted = {
        "corpus": to_mapping(settings.corpus),
        "tokenizer": to_mapping(settings.tokenizer),
        "vocab_sizes": list(vocab_sizes),
    }
    with exclusively(folder / ".data.lock"):
        with contextlib.suppress(OSError, ValueError, KeyError, DataError):
            stored = json.loads(note.read_text(encoding="utf-8"))
            if stored["settings"] == wanted:
                data = PreparedData.from_dict(stored["data"])
                for size in vocab_sizes:
                    for split in ("train", "validation"):
                        data.tokens(size, split)
                say(f"data      of this study, {data.corpus.folder}")
                return data
        say("data      building corpus, tokenizers and tokens, or finding them from an earlier run")
        data = prepare(settings, vocab_sizes=vocab_sizes)
        write_json(note, {"settings": wanted, "data": data.to_dict()})
    return data


def study_latency(
    settings: RunSettings, *, folder: Path, space: SearchSpace, hardware: Hardware, say: Say
) -> LatencyModel:
    """The latency model of a study's device: the study's own, else this machine's from an earlier study, else fitted.

    It is kept with the study because its predictions are part of the record: another fit would be another search.
    """
    own = folder / "latency.json"
    shared = settings.folder / "latency" / f"{settings.space.replace('/', '_')}-{hardware.device}.json"
    with exclusively(settings.folder / "latency" / ".lock"):
        for path in (own, shared):
            model = LatencyModel.load(path, device=hardware.device) if path.exists() else None
            if model is not None:
                break
        else:
            say("latency   timing architectures of the space alone on this device, to predict the others")
            model = LatencyModel.fit(space, device=hardware.device)
            write_json(shared, model.to_dict())
        if not own.exists():
            write_json(own, model.to_dict())
    return model


def _silent(text: str) -> None:
    """For processes that are not the main one."""


def _put_aside(folder: Path, *, say: Say) -> None:
    """Renames an existing study: a fresh start loses nothing."""
    if not folder.exists():
        return
    number = 1
    while (target := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    folder.rename(target)
    say(f"fresh     the earlier study is now {target}")


def _screened(space: SearchSpace, settings: RunSettings, *, data: PreparedData, latency: LatencyModel) -> SearchSpace:
    """The space within the user's limits: what cannot fit is never trained."""
    limits = settings.limits
    tokenizer_bytes = {size: folder_bytes(data.tokenizer(size)) for size in space.vocab_sizes}

    def too_large_or_slow(genome: Genome) -> str | None:
        total = genome.artifact_bytes() + tokenizer_bytes[genome.vocab_size]
        if limits.bytes is not None and total > limits.bytes:
            return f"weights and tokenizer have {total:,} bytes, the limit is {limits.bytes:,}"
        if limits.decode_ms is not None:
            predicted = latency.predict_decode_ms(genome)
            # The prediction errs by some per cent; what lies just beyond is timed when it reaches the front.
            if predicted > 1.1 * limits.decode_ms:
                return f"a token takes {predicted:.3g} ms as predicted, the limit is {limits.decode_ms:g} ms"
        return None

    screened = space.with_limits(min_artifact_bytes=limits.min_bytes, extra=too_large_or_slow)
    try:
        screened.sample(np.random.default_rng(0))
    except ValueError as error:
        raise SettingsError(f"no architecture of the space `{settings.space}` keeps the limits: {error}") from error
    return screened


def _given_limits(settings: RunSettings) -> dict[str, float]:
    wanted = {"artifact_bytes": settings.limits.bytes, "decode_ms": settings.limits.decode_ms}
    return {name: float(value) for name, value in wanted.items() if value is not None}


def _corners(space: SearchSpace, *, data: PreparedData, latency: LatencyModel) -> dict[str, tuple[float, float]]:
    """Ideal and reference of each objective.

    For bytes and latency the lowest and highest of 256 genomes drawn from the space. For quality, the bits per byte of
    an n-gram model on the same text as the worst that is worth anything, and three quarters of them as the ideal: half
    would stretch the scale so far that a short search always ends with the smallest model.
    """
    rng = np.random.default_rng(0)
    genomes = [space.sample(rng) for _ in range(256)]
    sizes = [float(g.artifact_bytes() + folder_bytes(data.tokenizer(g.vocab_size))) for g in genomes]
    times = [latency.predict_decode_ms(g) for g in genomes]
    bits = ngram_bits_per_byte(data.corpus)
    return {
        "bits_per_byte": (0.75 * bits, bits),
        "artifact_bytes": (min(sizes), max(sizes)),
        "decode_ms": (min(times), max(times)),
    }


def engine_settings(
    settings: RunSettings,
    *,
    hardware: Hardware,
    corners: Mapping[str, tuple[float, float]],
    identity: Mapping[str, Any],
) -> SearchSettings:
    """The engine's settings of a run; the user's limits take the place of the reference."""
    ladder = settings.search
    limits = _given_limits(settings)
    reference = {name: limits.get(name, high) for name, (_, high) in corners.items()}
    return SearchSettings(
        objectives=SCALES,  # type: ignore[arg-type]  # literals
        population=ladder.population,
        generations=ladder.generations,
        rungs=ladder.rungs,
        weights=to_mapping(settings.weights),
        limits=limits,
        ideal={n: low if low < reference[n] else reference[n] / 2 for n, (low, _) in corners.items()},
        reference=reference,
        seed=ladder.seed,
        lag=ladder.lag,
        audit=ladder.audit,
        identity=identity,
        name=settings.study,
        storage=ladder.storage,
        workers_per_rank=ladder.workers_per_rank or (1 if hardware.device == "cuda" else None),
        time_limit_s=ladder.time_limit_s,
        memory_limit_bytes=ladder.memory_limit_bytes,
    )


def _policy(settings: RunSettings, space: SearchSpace) -> Policy:
    """The policy by name, started from the user's genomes where there are any."""
    ladder = settings.search
    objectives = Objectives(
        scales=SCALES,  # type: ignore[arg-type]  # literals
        weights=to_mapping(settings.weights),
        limits=_given_limits(settings),
    )
    genetic = GeneticPolicy(objectives=objectives, parents=max(2, ladder.population))
    policies: dict[str, Policy] = {
        "genetic": genetic,
        "screened": Screened(policy=genetic, objectives=objectives),
        "random": RandomPolicy(),
        "regularized": RegularizedEvolution(objectives=objectives),
    }
    seeds = tuple(read_genome(path) for path in ladder.seeds)
    for path, genome in zip(ladder.seeds, seeds, strict=True):
        reason = space.validate(genome)
        if reason is not None:
            raise SettingsError(f"`search.seeds`: {path} is not in the space `{settings.space}`: {reason}")
    policy = policies[ladder.policy]
    return Seeded(policy=policy, genomes=seeds) if seeds else policy


def cost_lines(settings: RunSettings, *, space: SearchSpace, data: PreparedData, hardware: Hardware) -> list[str]:
    """What a search will cost, from a short measurement of a middling architecture, and how to go bigger."""
    ladder = settings.search
    rng = np.random.default_rng(0)
    genomes = sorted((space.sample(rng) for _ in range(31)), key=Genome.num_parameters)
    middle = genomes[len(genomes) // 2]
    workers = ladder.workers_per_rank or hardware.count
    counts = [ladder.population, *(keep + ladder.audit for keep in ladder.keep)]
    totals = [budget.amount for budget in ladder.budgets]
    added = [after - before for before, after in zip([0.0, *totals], totals, strict=False)]
    per_unit = 1.0
    if ladder.budgets[0].kind != "seconds":
        step_s = seconds_per_step(middle, settings=settings, data=data, device=hardware.device)
        tokens = settings.train.tokens_per_step
        bytes_per_token = data.tokens(middle.vocab_size, "train").bytes_per_token
        flops = 6.0 * middle.num_parameters() * tokens
        units = {"steps": 1.0, "tokens": tokens, "bytes": tokens * bytes_per_token, "flops": flops}
        per_unit = step_s / units[ladder.budgets[0].kind]
    seconds = ladder.generations * sum(n * more for n, more in zip(counts, added, strict=True)) * per_unit / workers
    trials = ladder.generations * sum(counts)
    return [
        f"space     {settings.space}: {space.size():,} architectures; a sample has "
        f"{genomes[0].num_parameters() / 1e6:.2f} to {genomes[-1].num_parameters() / 1e6:.2f} million parameters",
        f"search    {ladder.generations} generations of {ladder.population}, {workers} at a time; "
        + ", then ".join(
            f"{n} x {budget}" for n, budget in zip(counts, (str(b) for b in ladder.budgets), strict=True)
        ),
        f"cost      about {seconds / 60:.0f} minutes of training as measured on a middling architecture; at most "
        f"{trials * 14 * middle.num_parameters() / 1e6:.0f} MB of disk",
        "bigger    search.generations=8, search.budgets='[160 steps, 960 steps]', space=medium; files in configs/",
    ]


def report_study(result: SearchResult, *, folder: Path, winner: Path | None) -> Path:
    """Writes `folder`/report from the record of a study.

    Returns:
        Its `index.html`.
    """
    config = None if winner is None else json.loads((winner / "config.json").read_text(encoding="utf-8"))
    facts = {} if result.winner is None or result.winner.evaluation is None else result.winner.evaluation.provenance
    return write_report(
        result,
        folder=folder / "report",
        name=folder.name,
        tensors=None if winner is None else tensors_of_folder(winner),
        config=config,
        facts=dict(facts),
    )


def open_study(folder: Path) -> tuple[SearchResult, RunSettings]:
    """The record and the settings of a study, finished or not.

    Raises:
        FileNotFoundError: no study there.
    """
    path = folder / "settings.yaml"
    if not path.exists():
        raise FileNotFoundError(f"no study in {folder}: expected the file settings.yaml; studies lie in runs/")
    settings = dataclasses.replace(load(RunSettings, path), folder=folder.parent, study=folder.name)
    space = load_space(settings.space)
    return (
        SearchResult.open(folder, space=space, storage=settings.search.storage, name=settings.study),
        settings,
    )
