"""One genome, trained on every process of the launcher, scored and released."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from transformers import PreTrainedModel

from ..architecture.genome import Genome
from ..architecture.genome_file import read_genome
from ..compression.repair import rounding_rows, store_repaired
from ..compression.squeezing import SqueezeGenome, format_of
from ..data import PreparedData
from ..data.storage import file_sha256
from ..engine import Budget, TrialRecord
from ..folders import Record, Release, StudyFolder
from ..folders.record import Origin, Start, Training, Trial
from ..generation.loading import load_model
from ..generation.torch_runtime import context_tokens
from ..hardware import Hardware, is_main_process
from ..measure.candidate import new_model
from ..measure.score import leak_gate
from ..measure.shipped import as_shipped, check_shippable
from ..report.curve import CurvePoint, Watch, curve_lines
from ..strict_yaml import to_mapping
from ..training import TrainResult, accelerator_on, latest_checkpoint
from ..training import train as train_model
from ..training.checkpoint import CONSTANT, damage, own_folder, read_progress
from ..training.settings import TrainingTokens
from .release import measure_model, release_model, score_model, trial_origin
from .settings import RunSettings, config_path
from .study import open_study, silent, study_data
from .text import load_space, prepare

Say = Callable[[str], None]


def find_genome(source: str) -> tuple[Genome, Origin | None]:
    """A genome from a genome file, a study (its winner), `study:NUMBER` (a trial of rung 0), or a release folder.

    Returns:
        The genome, and where it comes from; None where a release folder does not say.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no such trial.
    """
    path, _, number = source.partition(":")
    folder = Path(path)
    if Release(folder).record.is_file():
        record = Release(folder).read_record()
        if record.genome is None:
            raise ValueError(f"{Release(folder).record} names no genome; expected the record of a release of ours")
        return Genome.from_dict(record.genome), record.origin
    if StudyFolder(folder).settings.is_file():
        result, settings = open_study(folder)
        if not number:
            if result.winner is None:
                raise ValueError(f"{folder} has no winner yet; name a trial as {folder}:NUMBER")
            return _genome(result.winner), trial_origin(result.winner, settings=settings)
        first = [r for r in result.records if r.rung == 0]
        found = [r for r in first if str(r.number) == number]
        if not found:
            has = f"it has 0 to {len(first) - 1}" if first else "it has none yet"
            raise ValueError(f"{folder} has no trial {number} at rung 0; {has}")
        return _genome(found[0]), trial_origin(found[0], settings=settings)
    file = config_path(path, kind="genomes")
    return read_genome(file), Origin(kind="file", name=file.name)


def _genome(record: TrialRecord) -> Genome:
    if not isinstance(record.genome, Genome):
        raise ValueError("the study is of squeezes: name the release of its winner, STUDY/winner")
    return record.genome


def train(
    genome: Genome | str | Path,
    budget: Budget | str = "300 seconds",
    *,
    settings: RunSettings | None = None,
    out: Path | None = None,
    fine_tune: bool = False,
    say: Say = print,
    watch: Watch | None = None,
) -> Path:
    """Trains one architecture on the text of the settings, scores it and writes a release folder.

    The winner of a study goes on from where the study left it, where text and training are those of the study.
    Under `accelerate launch` every process calls it. The same call goes on with an interrupted training.

    Args:
        genome: the architecture: a genome, or what `find_genome` reads.
        budget: the total, such as `"5000 steps"`, `"2e8 tokens"` or `"300 seconds"`.
        settings: text, training and scoring; None takes those of the study, or of `RunSettings.of()`.
        out: the release folder; None takes one in `settings.folder`, named after the genome.
        fine_tune: train the weights of the release folder `genome` on, with its tokenizer.
        say: told how it goes, a line at a time.
        watch: told every point of the curve; None says some of them.

    Returns:
        The release folder.

    Raises:
        ValueError: no such genome or budget; fine-tuning of what is no release.
        codenas_hf.data.DataError: no usable training text.
        codenas_hf.training.DivergenceError: the loss is no longer finite.
    """
    if not is_main_process():
        say = silent
    source = None if isinstance(genome, Genome) else StudyFolder(Path(str(genome).partition(":")[0]))
    if source is not None and (not source.settings.is_file() or Release(source.folder).record.is_file()):
        source = None  # a release has settings too
    settings = settings or (RunSettings.of() if source is None else study_settings(source.folder))
    budget = budget if isinstance(budget, Budget) else Budget.parse(budget)
    architecture, origin = (genome, None) if isinstance(genome, Genome) else find_genome(str(genome))
    start = None
    if fine_tune:
        if isinstance(genome, Genome) or not Release(Path(genome)).record.is_file():
            raise ValueError(f"--fine-tune wants a release folder with its weights, got {genome}")
        start = Path(genome)
    if out is None:
        out = settings.folder / (f"{architecture.genome_id}-tuned" if start else architecture.genome_id)
    begin = None
    if source is not None and to_mapping(settings.corpus) == to_mapping(study_settings(source.folder).corpus):
        known = load_space(settings.space).vocab_sizes
        data = study_data(settings, folder=source.folder, vocab_sizes=known, say=say)
        if ":" not in str(genome):  # a trial by its number begins anew, also where it is the winner
            begin = winner_state(source, architecture, settings=settings, data=data)
    else:
        data = prepare(settings, vocab_sizes=[architecture.vocab_size], tokenizer=start, say=say)
    return train_genome(
        architecture,
        budget,
        folder=out,
        settings=settings,
        data=data,
        say=say,
        start=start,
        origin=origin,
        begin=begin,
        watch=watch,
    )


def study_settings(folder: Path) -> RunSettings:
    """The settings of a study, to train with."""
    return open_study(folder)[1]


def winner_state(study: StudyFolder, genome: Genome, *, settings: RunSettings, data: PreparedData) -> Path | None:
    """The state that the training of a study's winner left before its decay; None where another training is wanted."""
    state = study.finish_training / CONSTANT
    try:
        if Release(study.winner.folder).read_record().genome_id != genome.genome_id or damage(state) is not None:
            return None
    except (OSError, ValueError):
        return None
    wanted = settings.train.identity(data.tokens(genome.vocab_size, "train").digest)
    return state if read_progress(state).unlike(wanted) is None else None


def train_genome(
    genome: Genome,
    budget: Budget,
    *,
    folder: Path,
    settings: RunSettings,
    data: PreparedData,
    say: Say,
    start: Path | None = None,
    origin: Origin | None = None,
    begin: Path | None = None,
    trial: Trial | None = None,
    watch: Watch | None = None,
) -> Path:
    """Trains a genome on every process of the launcher, scores it and writes a release folder.

    An interrupted training goes on from its newest checkpoint in `<folder>.training`.

    Args:
        genome: the architecture.
        budget: the total.
        folder: where the release goes.
        settings: how.
        data: what text; for fine-tuning, of the tokenizer in `start`.
        say: told how it goes.
        start: a release folder of the same genome, whose weights are trained on (fine-tuning); None draws fresh ones.
        origin: where the genome comes from, for the record; None takes what the record of `start` says.
        begin: a training state of this genome on the same text that is continued, unless this training has its own
            already; the budget is the total. None begins anew.
        trial: whose training `begin` is, for the record.
        watch: told every point of the curve; None says some of them.

    Returns:
        The release folder.

    Raises:
        ValueError: a genome or a tokenizer that the format to ship cannot hold; names what of it.
        codenas_hf.training.DivergenceError: the loss is no longer finite; names the last good checkpoint.
        codenas_hf.measure.score.LeakError: the model sees tokens that it must predict.
    """
    Release(folder).check_replaceable()  # now, not after hours of training
    check_shippable(genome, settings.ship, tokenizer=data.tokenizer(genome.vocab_size))
    device = Hardware.discover(settings.device).device
    accelerator = accelerator_on(device, log_with=_trackers(settings), project_dir=settings.folder)
    state = folder.with_name(f"{folder.name}.training")
    model, known, before = _start(start, genome=genome, settings=settings, data=data, device=device, say=say)
    if known is not None:
        state = folder.with_name(f"{folder.name}.{known.weights[:8]}.training")  # other weights, another training
    leak_gate(model, vocab_size=genome.vocab_size)
    tokens = data.tokens(genome.vocab_size, "train")
    if settings.log_with:
        accelerator.init_trackers("trackers", config={"genome": genome.genome_id, "budget": str(budget)})
    say(f"train     {genome.num_parameters():,} parameters for {budget} on {accelerator.num_processes} x {device}")
    result = run_training(
        model,
        tokens,
        budget,
        state=state,
        settings=settings,
        accelerator=accelerator,
        say=say,
        watch=watch or curve_lines(say),
        begin=begin,
    )
    for tracker in accelerator.trackers:
        tracker.finish()  # and not `end_training`, after which this process could never train with the others again
    if not is_main_process():
        return folder
    say(
        f"trained   {result.steps:,} steps, {result.tokens:,} tokens ({tokens.bytes_per_token:.2f} bytes each), "
        f"{result.tokens_per_second:,.0f} tokens a second"
    )
    model = accelerator.unwrap_model(model)
    if start is not None and settings.train.sequence_length > (context_tokens(model) or math.inf):
        model.config.max_position_embeddings = settings.train.sequence_length
    facts = training_facts(result, budget=budget, settings=settings, processes=accelerator.num_processes)
    record = Record(start=known, trial=trial, training=facts, seconds={"train": result.seconds})
    record = replace(record, origin=origin or before.origin, squeezed=before.squeezed)
    return _measured_release(model, genome, folder=folder, settings=settings, data=data, record=record, say=say)


def run_training(
    model: PreTrainedModel,
    tokens: TrainingTokens,
    budget: Budget,
    *,
    state: Path,
    settings: RunSettings,
    accelerator: Accelerator,
    say: Say,
    watch: Watch,
    begin: Path | None = None,
) -> TrainResult:
    """Trains a model on every process; an interrupted training goes on from its newest checkpoint.

    Args:
        model: trained in place.
        tokens: the text.
        budget: the total.
        state: folder of the checkpoints; one beside it while it holds those of other text or settings, which stay.
        settings: of training and of what ships.
        accelerator: the processes.
        say: told where it goes on from.
        watch: told every point of the curve.
        begin: where it starts if it has no checkpoint of its own; None is from the model as it is.
    """
    own = own_folder(state, settings.train.identity(tokens.digest))
    if own != state:
        say(f"state     {state.name} is of other text or settings and stays; that of this training is {own.name}")
    resume = latest_checkpoint(own, budget=budget) or begin
    if resume is not None:
        say(f"resume    from {resume}")
    result = train_model(
        model,
        tokens,
        budget,
        settings=settings.train,
        folder=own,
        resume_from=resume,
        accelerator=accelerator,
        on_point=told_points(tokens.bytes_per_token, watch=watch),
        stored=lambda trained: as_shipped(trained, settings.ship),
    )
    accelerator.wait_for_everyone()
    return result


def _measured_release(
    model: PreTrainedModel,
    genome: Genome,
    *,
    folder: Path,
    settings: RunSettings,
    data: PreparedData,
    record: Record,
    say: Say,
) -> Path:
    """Scores and times what was trained, and writes the release folder with what `record` says of the training."""
    device, form = Hardware.discover(settings.device).device, None
    if record.squeezed is not None:  # each tensor stays in the format that the search chose for it
        shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
        form = format_of(SqueezeGenome.from_dict(record.squeezed.genome), model.config, shapes)
        # As after healing: plain rounding would undo what was learned.
        tokens = data.tokens(genome.vocab_size, "train")
        store_repaired(model, form, rounding_rows(tokens, length=settings.train.sequence_length, device=model.device))
    measured, seconds = measure_model(
        model, settings=settings, data=data, vocab_size=genome.vocab_size, device=device, form=form
    )
    say(
        f"quality   {measured.bits_per_byte:.4f} bits per byte on {measured.scored_bytes:,} bytes, "
        f"in windows of {measured.window_tokens:,} tokens (context {measured.context_tokens:,})"
    )
    record = replace(record, measured=measured, seconds={**record.seconds, "final_measure": seconds})
    return release_model(model, genome, folder=folder, settings=settings, data=data, record=record, form=form)


def training_facts(result: TrainResult, *, budget: Budget, settings: RunSettings, processes: int) -> Training:
    """What the record says of a training."""
    return Training(
        budget=str(budget),
        steps=result.steps,
        tokens=result.tokens,
        bytes=result.bytes,
        seconds=result.seconds,
        tokens_per_second=result.tokens_per_second if math.isfinite(result.tokens_per_second) else None,
        precision=result.precision,
        processes=processes,
        fim_rate=settings.train.fim_rate,
        curve=tuple(dict(point) for point in result.curve),
    )


def _start(
    folder: Path | None, *, genome: Genome, settings: RunSettings, data: PreparedData, device: str, say: Say
) -> tuple[PreTrainedModel, Start | None, Record]:
    """A fresh model; or that of a release folder, what the record of its fine-tuning says of it, and its record."""
    if folder is None:
        seed = settings.train.seed
        return new_model(genome, train=settings.train, settings=settings.candidate, seed=seed), None, Record()
    model = load_model(folder, device=device).model
    bits = score_model(model, settings=settings, data=data, vocab_size=genome.vocab_size).bits_per_byte
    say(f"start     {bits:.4f} bits per byte on the new text, as {folder} is")
    known, earlier = started_from(Release(folder))
    return model, replace(known, bits_per_byte=bits), earlier


def started_from(release: Release, *, kept: float | None = None) -> tuple[Start, Record]:
    """What the record of a further training says of the release that it begins with, and that release's own record."""
    earlier = release.read_record()
    start = Start(
        folder=release.folder.name,
        weights=file_sha256(release.weights[0]),
        data=earlier.data,
        start=earlier.start,
        kept=kept,
        tokens=earlier.training.tokens,
        seconds=earlier.training.seconds,
    )
    return start, earlier


def _trackers(settings: RunSettings) -> list[str] | None:
    """The user's trackers, all of which must be there: accelerate only warns of one that is not."""
    known, found = [str(kind) for kind in LoggerType], [str(kind) for kind in get_available_trackers()]
    for name in settings.log_with:
        if name not in known[1:]:
            raise ValueError(f"`log_with`: `{name}` is no tracker of accelerate; known are {', '.join(known[1:])}")
        if name not in found:
            raise ValueError(f"`log_with`: `{name}` is not installed; pip install {name}")
    return list(settings.log_with) or None


def told_points(bytes_per_token: float, *, watch: Watch) -> Callable[[Mapping[str, float], float], None]:
    """The points of the loop, whose loss is in nats per token, as `watch` takes them."""

    def on_point(point: Mapping[str, float], share: float) -> None:
        watch(
            CurvePoint(
                step=int(point["step"]),
                tokens=int(point["tokens"]),
                seconds=point["seconds"],
                bits_per_byte=point["loss"] / math.log(2) / bytes_per_token,
                share=share,
            )
        )

    return on_point
