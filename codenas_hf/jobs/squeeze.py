"""Squeeze: the same search on a pretrained parent. What to cut, in how many bits to store the rest; then it heals."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..compression.squeeze_space import SqueezeSpace
from ..compression.squeezing import SqueezeGenome
from ..engine import IdentityError, Objectives, SearchResult, Seeded, run_search
from ..folders import StudyFolder, keep_sockets_short
from ..hardware import Hardware, free_gpu_memory, is_main_process, num_processes
from ..report.curve import Watch
from ..strict_yaml import SettingsError, read_yaml, to_mapping
from .parents import find_parent
from .policies import POLICIES
from .search import SCALES, Follow, aside, engine_settings
from .settings import RunSettings, config_path
from .squeeze_prepare import Prepared, keep_squeeze_facts, load_choices, prepare_squeeze
from .squeeze_release import check_applied_release, heal_and_release
from .study import report_study, silent
from .wanted import objective_limits

Say = Callable[[str], None]


@dataclass(frozen=True)
class SqueezeOutcome:
    """Where a squeeze left things.

    Args:
        result: the record of the search; None where a genome was given.
        folder: of the study.
        winner: the release folder; None when nothing was feasible, or in another than the main process.
        report: `index.html` of the report; None without a search, or in another than the main process.
    """

    result: SearchResult | None
    folder: Path
    winner: Path | None = None
    report: Path | None = None


_STARTS = 6  # uniform squeezes that the first generation begins with, at most a third of it
_WORST = 2.0  # times the parent's bits per byte, where quality counts as nothing


def squeeze(
    settings: RunSettings,
    *,
    genome: Path | None = None,
    fresh: bool = False,
    say: Say = print,
    watch: Watch | None = None,
    follow: Follow | None = None,
) -> SqueezeOutcome:
    """Searches what to cut from a parent, heals the winner, and releases it; the same call goes on.

    Under `accelerate launch` every process calls it: all evaluate and all heal, the main one reports.

    Args:
        settings: everything; `RunSettings.of(..., config=["squeeze"])` has what a squeeze begins with.
        genome: a file with a squeeze genome that is applied without any search; the result has no record then.
        fresh: put an existing study of that name aside and start anew.
        say: told what is going on, a line at a time, by the main process.
        watch: told every point of the curve of the healing.
        follow: told the figures of the search whenever one more evaluation is finished.

    Raises:
        ParentError: a parent that cannot be squeezed; before anything is computed.
        SettingsError: settings that cannot be used, nothing of the parent keeps the limits, or a genome that is to be
            applied where a search or another squeeze lies.
        ValueError: healing whose steps the processes cannot share.
        codenas_hf.data.DataError: no usable text.
        VocabularyError: too little text to choose a vocabulary by.
        codenas_hf.engine.IdentityError: the folder holds another study.
    """
    main = is_main_process()
    if not main:
        say = silent
    if settings.search.time is not None:
        raise SettingsError("a squeeze is not planned by `search.time`: set search.generations and search.population")
    choices = load_choices(settings.space)
    if not choices.equal_layers:
        raise SettingsError(
            f"`space` {settings.space} has unequal layers, which no release holds yet: set equal_layers: true in it"
        )
    if settings.squeeze.heal_budget is not None and settings.squeeze.heal_budget.amount:
        settings.train.sequences_each(num_processes())  # what they could not share is refused before the search
    applied = None if genome is None else read_squeeze_genome(genome)
    source = find_parent(settings.squeeze.parent)
    hardware = Hardware.discover(settings.device)
    folder = settings.folder / settings.study
    say(f"device    {hardware.count} x {hardware.name} ({hardware.device})")
    say(f"parent    {source.name}, licence {source.licence or 'not stated: you answer for it'}")
    with aside(folder, say=say) if fresh and main else contextlib.nullcontext():
        # The main process alone: to others the study that it puts aside may still be there.
        if main and applied is not None and StudyFolder(folder).journal.is_file():
            raise SettingsError(
                f"{folder} holds a search, of which an applied genome would take the place: give it a study of its "
                "own, study=NAME, or --fresh, which puts this one aside"
            )
        ready = prepare_squeeze(settings, choices=choices, source=source, folder=folder, hardware=hardware, say=say)
        say(f"parent    {ready.bits_per_byte:.4f} bits per byte on the search text")
        result = None
        if applied is None:
            result = search_squeezes(settings, ready, folder=folder, hardware=hardware, follow=follow)
            if result.winner is None:
                return SqueezeOutcome(result, folder)
            assert isinstance(result.winner.genome, SqueezeGenome)
            applied = result.winner.genome
        else:
            _check_applied(applied, ready, path=genome)
            if main:
                check_applied_release(applied, ready, settings=settings, folder=folder)
            keep_squeeze_facts(settings, ready, folder=folder)
    winner = heal_and_release(
        applied,
        ready,
        settings=settings,
        folder=folder,
        hardware=hardware,
        trial=None if result is None else result.winner,
        say=say,
        watch=watch,
    )
    if not main or result is None:
        return SqueezeOutcome(result, folder, winner if main else None)
    return SqueezeOutcome(result, folder, winner, report_study(result, folder=folder, winner=winner))


def read_squeeze_genome(path: Path) -> SqueezeGenome:
    """A squeeze genome from YAML or JSON, by path or by name in configs/genomes, such as `squeezed/60mb`.

    Sections may be lists, and one value stands for all.

    Raises:
        SettingsError: no such file, or genes that there are not.
    """
    path = config_path(path, kind="genomes")
    try:
        return SqueezeGenome.from_dict(read_yaml(path, kind="squeeze genome"))
    except (ValueError, TypeError, KeyError) as error:
        raise SettingsError(f"{path} is no squeeze genome: {error}") from error


def uniform_squeezes(space: SqueezeSpace, *, count: int | None = None) -> list[SqueezeGenome]:
    """Squeezes with one format for all matrices and equal shares: who keeps most neurons first, then the largest.

    Args:
        space: with its limits.
        count: at most, the formats in turn, and one for each vocabulary before any second; None takes all.
    """
    genes, sections = space.genes, space.choices.sections
    found: dict[str, dict[tuple[int, str], list[SqueezeGenome]]] = {}
    names = ("vocab_size", "attention.0", "embedding", "neurons.0", "groups.0")
    for size, form, table, neurons, heads in itertools.product(*(genes[name] for name in names)):
        genome = SqueezeGenome(
            vocab_size=size,
            neurons=(neurons,),
            groups=(heads,),
            embedding=table,
            attention=(form,) * sections,
            feed_forward=(form,) * sections,
        )
        if space.validate(genome) is None:
            found.setdefault(form, {}).setdefault((size, table), []).append(genome)

    def rank(members: list[SqueezeGenome]) -> tuple[int, int]:
        return -members[0].neurons[0], -space.bytes_of(members[0])

    forms = []
    for groups in found.values():
        largest = [sorted(members, key=space.bytes_of, reverse=True) for members in groups.values()]
        forms.append(_in_turn(sorted(largest, key=rank)))
    return _in_turn(sorted(forms, key=rank))[:count]


def _in_turn(rows: list[list[SqueezeGenome]]) -> list[SqueezeGenome]:
    """The first of each row, then the second of each, and so on."""
    return [genome for turn in itertools.zip_longest(*rows) for genome in turn if genome is not None]


def search_squeezes(
    settings: RunSettings, ready: Prepared, *, folder: Path, hardware: Hardware, follow: Follow | None = None
) -> SearchResult:
    """Searches, or goes on with it; the record of the finished search.

    Args:
        settings: of the study.
        ready: from `prepare_squeeze`.
        folder: of the study.
        hardware: that is used.
        follow: told the figures whenever one more evaluation is finished.

    Raises:
        SettingsError: a seed outside the space.
        codenas_hf.engine.IdentityError: the folder holds another study.
    """
    space, limits = ready.space, objective_limits(settings.limits)
    rng = np.random.default_rng(0)
    drawn = [space.known_objectives(space.sample(rng)) for _ in range(256)]
    corners = {name: (min(d[name] for d in drawn), max(d[name] for d in drawn)) for name in drawn[0]}
    corners["bits_per_byte"] = (0.95 * ready.bits_per_byte, _WORST * ready.bits_per_byte)
    engine = engine_settings(
        settings,
        hardware=hardware,
        corners={name: corners[name] for name in SCALES},
        identity={
            "data": ready.evaluator.data.digest,
            "score": to_mapping(settings.candidate),
            "heal": to_mapping(settings.squeeze.heal),
            "train": to_mapping(settings.train),
        },
    )
    objectives = Objectives(scales=SCALES, weights=to_mapping(settings.weights), limits=limits)
    # What keeps its limit is good enough: no evaluation is spent on squeezes that are only smaller than they need be.
    deciding = replace(objectives, scales={name: SCALES[name] for name in objectives.deciding}, weights={}, limits={})
    policy = POLICIES[settings.search.policy](deciding, engine.reference, settings.search.population)
    starts = tuple(uniform_squeezes(space, count=min(_STARTS, settings.search.population // 3)))
    seeds = tuple(read_squeeze_genome(path) for path in settings.search.seeds)
    for path, seed in zip(settings.search.seeds, seeds, strict=True):
        reason = space.validate(seed)
        if reason is not None:
            raise SettingsError(f"`search.seeds`: {path} is not in the space `{settings.space}`: {reason}")
    keep_sockets_short()
    if hardware.device == "cuda":
        free_gpu_memory()  # of the parent's measurements
    try:
        return run_search(
            space,
            ready.evaluator,
            folder=folder,
            settings=engine,
            policy=Seeded(policy=policy, genomes=(*seeds, *starts)) if settings.search.policy != "random" else policy,
            preload=("torch", "transformers", "codenas_hf.measure.squeezed"),
            on_open=lambda: keep_squeeze_facts(settings, ready, folder=folder),
            follow=follow,
        )
    except IdentityError as error:
        raise IdentityError(f"{error}. To begin another: study=NAME, or --fresh, which puts this one aside") from None


def _check_applied(genome: SqueezeGenome, ready: Prepared, *, path: Path | None) -> None:
    """Refuses a genome of another parent, or one beyond the limits."""
    reason = ready.space.validate(genome)
    if reason is not None:
        raise SettingsError(
            f"{path} cannot be applied to {ready.source.name}: {reason}; limits.bytes=, squeeze.* and space= say what "
            "may be"
        )
