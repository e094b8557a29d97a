"""`codenas prune`: a release becomes a smaller one, in small steps, each of which is trained for a while."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..architecture.genome import Genome
from ..architecture.stock import stock_architecture
from ..compression.prune import check_prunable, measure_importance, pruned
from ..data import PreparedData
from ..data.storage import content_key
from ..engine import Budget
from ..folders import Record, Release, StudyFolder, read_json, whole_folder, write_json
from ..generation.loading import load_model
from ..hardware import Hardware, is_main_process
from ..measure.score import leak_gate
from ..measure.shipped import check_shippable
from ..report.curve import Watch, curve_lines
from ..training import TrainResult, accelerator_on
from .release import measure_model, release_model, score_model
from .settings import RunSettings
from .study import silent, study_data
from .text import load_space, prepare
from .train import run_training, started_from, study_settings, training_facts

Say = Callable[[str], None]

STEPS = 4  # cuts by the same factor, each trained for a while before the next
_EARLY = 0.5  # share of the budget that all cuts but the last have together
_BLOCK = 32  # sizes that are left are whole blocks in every storage format
_WATCHED = 16  # rows of training text that importance is measured on, in each of as many batches
_RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class PruneJob:
    """What every step of a pruning needs.

    Args:
        settings: of training and scoring.
        data: what text.
        device: where it is trained.
        folder: for what is done so far.
        say: told how it goes, a line at a time.
        watch: told every point of the curve.
    """

    settings: RunSettings
    data: PreparedData
    device: torch.device
    folder: Path
    say: Say
    watch: Watch


def prune(
    model: str | Path,
    share: float,
    *,
    budget: Budget | str = "300 seconds",
    settings: RunSettings | None = None,
    out: Path | None = None,
    say: Say = print,
    watch: Watch | None = None,
) -> Path:
    """Cuts a release to a share of its parameters and trains what is left; the result is a release like any other.

    It goes in `STEPS` cuts by the same factor. Feed-forward neurons, key-value heads with their queries, and
    dimensions of the residual stream leave by what they do on training text; of the shapes of the wanted size the one
    is taken that loses least at once. Half of the budget is for the last of them. Under `accelerate launch` every
    process calls it. The same call goes on with an interrupted one.

    Args:
        model: a release folder, or a study, which means its winner.
        share: of the parameters that stay, above 0 and below 1.
        budget: of all training afterwards, such as `"2e7 tokens"`.
        settings: text, training and scoring; None takes those of the study, or of `RunSettings.of()`.
        out: the release folder; None takes one in `settings.folder`, named after the genome.
        say: told how it goes, a line at a time.
        watch: told every point of the curve; None says some of them.

    Returns:
        The release folder.

    Raises:
        ValueError: a share out of range or too small for what can be cut, no release, or an architecture whose parts
            go by other names.
        codenas_hf.data.DataError: no usable training text.
        codenas_hf.training.DivergenceError: the loss is no longer finite.
    """
    if not 0 < share < 1:
        raise ValueError(f"`share` of the parameters that stay must lie above 0 and below 1, got {share:g}")
    if not is_main_process():
        say = silent
    budget = budget if isinstance(budget, Budget) else Budget.parse(budget)
    study = StudyFolder(Path(model))
    of_study = study.settings.is_file() and not Release(Path(model)).record.is_file()
    release = study.winner if of_study else Release(Path(model))
    settings = settings or (study_settings(study.folder) if of_study else RunSettings.of())
    genome = _genome(release)
    device = torch.device(Hardware.discover(settings.device).device)
    parent = load_model(release.folder, device=device).model
    if parent.config.model_type == "codenas":
        raise ValueError(f"{release.folder} has genes that no stock architecture has, and only these are cut")
    check_prunable(parent)
    sizes = [genome.num_parameters() * share ** (at / STEPS) for at in range(1, STEPS + 1)]
    smallest = shapes_within(genome, sizes[-1])
    if not smallest:
        raise ValueError(
            f"{release.folder} cannot be cut to {share:g} of its {genome.num_parameters():,} parameters: layers "
            f"stay, and sizes are multiples of {_BLOCK}; give a larger share"
        )
    if of_study:
        data = study_data(settings, folder=study.folder, vocab_sizes=load_space(settings.space).vocab_sizes, say=say)
    else:
        data = prepare(settings, vocab_sizes=[genome.vocab_size], tokenizer=release.folder, say=say)
    start, earlier = started_from(release, kept=share)
    out = out or settings.folder / f"{genome.genome_id}-pruned{100 * share:.0f}"
    Release(out).check_replaceable()
    check_shippable(smallest[0], settings.ship, tokenizer=data.tokenizer(genome.vocab_size))
    key = content_key([start.weights, share, str(budget), data.digest, settings.train.seed])[:8]
    job = PruneJob(
        settings=settings,
        data=data,
        device=device,
        folder=out.with_name(f"{out.name}.{key}.training"),
        say=say,
        watch=watch or curve_lines(say),
    )
    smaller, left, results = cut_in_steps(parent, genome, sizes, budget=budget, job=job)
    if not is_main_process():
        return out
    total = _joined(results)
    bits = score_model(parent, settings=settings, data=data, vocab_size=genome.vocab_size).bits_per_byte
    facts = training_facts(
        total, budget=budget, settings=settings, processes=accelerator_on(device.type).num_processes
    )
    start = replace(start, bits_per_byte=bits)
    record = Record(origin=earlier.origin, start=start, training=facts, seconds={"train": total.seconds})
    return _measured_release(smaller, left, out=out, record=record, job=job)


def _measured_release(model: PreTrainedModel, genome: Genome, *, out: Path, record: Record, job: PruneJob) -> Path:
    """Scores and times what is left, and writes the release folder with what `record` says of the parent."""
    measured, seconds = measure_model(
        model, settings=job.settings, data=job.data, vocab_size=genome.vocab_size, device=job.device.type
    )
    assert record.start is not None
    job.say(f"quality   {measured.bits_per_byte:.4f} bits per byte, the parent {record.start.bits_per_byte:.4f}")
    record = replace(record, measured=measured, seconds={**record.seconds, "final_measure": seconds})
    return release_model(model, genome, folder=out, settings=job.settings, data=job.data, record=record)


def _genome(release: Release) -> Genome:
    """The genome of a release that can be cut.

    Raises:
        ValueError: there is none, or its layers differ.
    """
    if not release.record.is_file():
        raise ValueError(f"{release.folder} is no release: name a folder that `codenas search` or `train` wrote")
    record = release.read_record()
    if record.squeezed is not None:
        raise ValueError(
            f"{release.folder} is cut from {record.squeezed.parent} already: `codenas squeeze limits.bytes=` cuts "
            "more of it, each tensor in its format"
        )
    found = record.genome
    if found is None:
        raise ValueError(f"{release.record} names no genome; expected the record of a release of ours")
    genome = Genome.from_dict(found)
    unequal = [name for name in Genome.PER_BLOCK_GENES if isinstance(getattr(genome, name), tuple)]
    if unequal:
        raise ValueError(f"layers of {release.folder} differ in {', '.join(unequal)}; only equal layers are cut")
    return genome


def shapes_within(genome: Genome, most: float) -> list[Genome]:
    """The largest smaller shapes of a genome with at most so many parameters: none fits into another of them.

    They are of the same stock architecture, which may want a width that its heads divide.
    """
    heads, groups, size = genome.num_attention_heads, genome.num_key_value_heads, genome.head_dim
    assert isinstance(heads, int)
    assert isinstance(groups, int)
    assert isinstance(size, int)
    kind, _ = stock_architecture(genome.to_config())
    found: list[Genome] = []
    for width in _sizes(genome.hidden_size):
        for kept in range(groups, 0, -1):
            queries = heads // groups * kept
            if kept < groups and queries * size % _BLOCK:
                continue
            assert isinstance(genome.intermediate_size, int)
            for neurons in _sizes(genome.intermediate_size):
                shape = replace(
                    genome, hidden_size=width, intermediate_size=neurons, num_attention_heads=queries,
                    num_key_value_heads=kept,
                )  # fmt: skip
                if shape.num_parameters() <= most:
                    new = not any(_fits(shape, other) for other in found)
                    if new and stock_architecture(shape.to_config())[0] == kind:
                        found.append(shape)
                    break
    return found


def _sizes(whole: int) -> list[int]:
    """What a size may become, from the largest."""
    return [whole, *range((whole - 1) // _BLOCK * _BLOCK, 0, -_BLOCK)]


def _fits(shape: Genome, other: Genome) -> bool:
    return all(getattr(shape, name) <= getattr(other, name) for name in _CUT)


_CUT = ("hidden_size", "intermediate_size", "num_key_value_heads")


def cut_in_steps(
    model: PreTrainedModel, genome: Genome, sizes: list[float], *, budget: Budget, job: PruneJob
) -> tuple[PreTrainedModel, Genome, list[TrainResult]]:
    """All cuts with their training; what is finished is found again in the job's folder.

    Args:
        model: that is cut.
        genome: of it.
        sizes: most parameters after each cut.
        budget: of all training.
        job: how.

    Returns:
        What is left, its genome, and what each training did.
    """
    results = []
    early = _EARLY / max(1, len(sizes) - 1)
    for at, most in enumerate(sizes):
        place = job.folder / f"cut-{at + 1}"
        own = Budget(budget.kind, budget.amount * (early if at < len(sizes) - 1 else 1 - early * at))
        if not (place / _RESULT).is_file():
            smaller, genome = cut(model, genome, most, batches=_batches(job, genome, at))
            job.say(f"cut       {at + 1} of {len(sizes)}: {_words(genome)}; then {own}")
            leak_gate(smaller, vocab_size=genome.vocab_size)
            result = run_training(
                smaller,
                job.data.tokens(genome.vocab_size, "train"),
                own,
                state=job.folder / f"state-{at + 1}",
                settings=job.settings,
                accelerator=accelerator_on(job.device.type),
                say=job.say,
                watch=job.watch,
            )
            if is_main_process():
                with whole_folder(place) as draft:
                    smaller.save_pretrained(draft)
                    facts = asdict(result) | {"checkpoint": None, "curve": [dict(point) for point in result.curve]}
                    write_json(draft / _RESULT, {"genome": genome.to_dict(), "result": facts})
            model = smaller
        else:
            stored = read_json(place / _RESULT)
            genome, result = Genome.from_dict(stored["genome"]), TrainResult(**stored["result"])
            model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
            torch.nn.Module.to(model, job.device)
        results.append(result)
    return model, genome, results


def cut(
    model: PreTrainedModel, genome: Genome, most: float, *, batches: list[torch.Tensor]
) -> tuple[PreTrainedModel, Genome]:
    """A smaller model of at most so many parameters, and its genome: the shape that loses least on some text.

    Args:
        model: left as it was.
        genome: of it.
        most: parameters.
        batches: token ids, each `[sequences, length]`.
    """
    importance = measure_importance(model, batches)
    best: tuple[float, PreTrainedModel, Genome] | None = None
    for shape in shapes_within(genome, most):
        smaller = pruned(
            model,
            importance,
            neurons=int(shape.intermediate_size),  # type: ignore[arg-type]  # layers are equal
            groups=int(shape.num_key_value_heads),  # type: ignore[arg-type]
            width=shape.hidden_size,
        ).eval()
        loss = _loss(smaller, batches[:2])
        if best is None or loss < best[0]:
            best = loss, smaller, shape
    assert best is not None, "a smaller share was refused before"
    return best[1], best[2]


@torch.no_grad()
def _loss(model: PreTrainedModel, batches: list[torch.Tensor]) -> float:
    place = model.device
    return sum(float(model(input_ids=ids.to(place), labels=ids.to(place), use_cache=False).loss) for ids in batches)


def _batches(job: PruneJob, genome: Genome, at: int) -> list[torch.Tensor]:
    """Rows of training text, other ones for each cut."""
    train = job.settings.train
    tokens = job.data.tokens(genome.vocab_size, "train")
    return [
        torch.from_numpy(
            tokens.batch(step, sequences=_WATCHED, length=train.sequence_length, seed=train.seed + 1 + at)["input_ids"]
        )
        for step in range(_WATCHED)
    ]


def _words(genome: Genome) -> str:
    return (
        f"{genome.num_parameters():,} parameters, width {genome.hidden_size}, {genome.intermediate_size} neurons, "
        f"{genome.num_key_value_heads} key-value heads"
    )


def _joined(results: list[TrainResult]) -> TrainResult:
    """What all trainings did together."""
    curve: list[dict[str, float]] = []
    for at, result in enumerate(results):
        before = {name: sum(getattr(r, name) for r in results[:at]) for name in ("steps", "tokens", "seconds")}
        renamed = {"step": "steps", "tokens": "tokens", "seconds": "seconds"}
        curve += [
            {name: value + before[renamed[name]] if name in renamed else value for name, value in point.items()}
            for point in result.curve
        ]
    names = ("steps", "tokens", "bytes", "seconds", "steps_run", "seconds_run")
    sums = {name: sum(getattr(result, name) for result in results) for name in names}
    return replace(results[-1], **sums, curve=tuple(curve))
