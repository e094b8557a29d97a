"""What a squeeze stands on: text, the parent in every format and vocabulary, its latency, the space in the limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..compression.parent import ParentFolder
from ..compression.squeeze_space import SqueezeChoices, SqueezeSpace, neuron_counts
from ..compression.squeezing import check_storable
from ..data import PreparedData
from ..data.corpus import OnProgress
from ..data.tokenizer import LARGEST_VOCABULARY, load_backend
from ..folders import StudyFolder, read_json, write_json
from ..hardware import Hardware, exclusively
from ..measure.candidate import unstarted_device
from ..measure.score import score_passages
from ..measure.squeezed import SqueezeEvaluator
from ..strict_yaml import SettingsError, from_mapping, read_yaml, to_mapping
from .parents import Source, prepare_parent, training_texts, vocabularies
from .settings import RunSettings, config_path
from .squeeze_latency import SqueezeLatency
from .study import study_data, write_settings
from .text import progress_lines
from .wanted import objective_limits

Say = Callable[[str], None]
_ROWS = 8  # of the importance text in one pass


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that a squeeze stands on.

    Args:
        source: the parent, as it was checked.
        evaluator: of candidates, with data, parent and space.
        latency: that the space predicts with.
        bits_per_byte: of the parent on the search text.
    """

    source: Source
    evaluator: SqueezeEvaluator
    latency: SqueezeLatency
    bits_per_byte: float

    @property
    def space(self) -> SqueezeSpace:
        """What is searched."""
        return self.evaluator.space

    @property
    def parent(self) -> ParentFolder:
        """What is cut."""
        return self.evaluator.parent


def load_choices(name: str) -> SqueezeChoices:
    """The choices of a squeeze by the name of their file in configs/spaces, or by path.

    Raises:
        SettingsError: no such file, or a space of architectures.
    """
    path = config_path(name, kind="spaces")
    values = read_yaml(path)
    if "genes" in values:
        raise SettingsError(
            f"`space` {name} is of architectures; a squeeze wants one like configs/spaces/squeeze.yaml"
        )
    return from_mapping(SqueezeChoices, values)


def prepare_squeeze(
    settings: RunSettings,
    *,
    choices: SqueezeChoices,
    source: Source,
    folder: Path,
    hardware: Hardware,
    say: Say,
) -> Prepared:
    """Builds or finds everything; of the processes of a machine one builds.

    Raises:
        SettingsError: nothing of the parent keeps the limits, or a vocabulary is too large to heal.
        codenas_hf.data.DataError, VocabularyError, ValueError: see `study_data`, `vocabularies`, `file_layout`.
    """
    if settings.latency.file is not None:
        raise SettingsError("`latency.file` is of a space of architectures, and a squeeze is timed here: leave it out")
    data = study_data(settings, folder=folder, vocab_sizes=(), say=say)
    digest = data.digest[:8]
    place, amounts = settings.folder.resolve() / "data" / "parents" / digest, settings.squeeze
    with exclusively(place / ".lock"):
        parent = prepare_parent(
            source,
            folder=place,
            count_bytes=amounts.count_bytes,
            importance_tokens=amounts.importance_tokens,
            say=say,
        )
        check_storable(parent.shape, matrices=choices.matrices, embedding=choices.embedding)
        _check_healing(settings, [min(size, parent.shape.vocab_size) for size in choices.vocab_sizes])
        sizes = vocabularies(parent, data, choices.vocab_sizes, count_bytes=amounts.count_bytes, say=say)
        layouts = parent.layouts(sizes)  # what llama.cpp cannot read is refused before anything is computed
        say("parent    watching its neurons and heads, storing it in every format; once")
        told = progress_lines(say, of="parent")
        parent.measure(_batches(parent, data, amounts.importance_tokens, on_progress=told))
        counts = neuron_counts(parent.shape, choices)
        parent.store(matrices=choices.matrices, embedding=choices.embedding, neurons=counts, on_progress=told)
        latency = _latency(parent, choices, sizes=sizes, folder=folder, shared=place, hardware=hardware, say=say)
    space = SqueezeSpace(
        parent=parent.shape,
        choices=choices,
        layouts=layouts,
        digest=parent.facts["digest"],
        decode_ms=latency,
        limits=objective_limits(settings.limits),
    )
    try:
        space.sample(np.random.default_rng(0))
    except ValueError as error:
        raise SettingsError(str(error)) from error
    evaluator = SqueezeEvaluator(
        data=data,
        parent=parent,
        space=space,
        train=settings.train,
        heal=settings.squeeze.heal,
        settings=settings.candidate,
        folder=StudyFolder(folder).trials.resolve(),
        device=hardware.device,
    )
    bits = parent_bits(evaluator, "search", max_bytes=settings.candidate.score_bytes, say=say)
    return Prepared(source=source, evaluator=evaluator, latency=latency, bits_per_byte=bits)


def keep_squeeze_facts(settings: RunSettings, ready: Prepared, *, folder: Path) -> None:
    """Writes what a study stands on, once the folder is known to hold it."""
    study = StudyFolder(folder)
    write_settings(settings, study)
    named = {"corpus": to_mapping(settings.corpus), "tokenizer": to_mapping(settings.tokenizer), "vocab_sizes": []}
    write_json(study.data, {"settings": named, "data": ready.evaluator.data.to_dict(beside=folder)})
    source = ready.source
    facts = {"name": source.name, "licence": source.licence, "digest": source.digest}
    write_json(study.parent, {**facts, "bits_per_byte": ready.bits_per_byte})
    write_json(study.latency, ready.latency.to_dict())


def _check_healing(settings: RunSettings, sizes: list[int]) -> None:
    """Refuses to heal what cannot be trained: what scores a squeeze takes any entry, tokens on disk have 16 bits.

    Raises:
        SettingsError: names the vocabularies.
    """
    budgets = [settings.squeeze.heal_budget, *(rung.budget for rung in settings.search.rungs)]
    large = sorted({size for size in sizes if size > LARGEST_VOCABULARY})
    if large and any(budget is not None and budget.amount for budget in budgets):
        raise SettingsError(
            f"`vocab_sizes` of the space `{settings.space}`: what is healed has at most {LARGEST_VOCABULARY} entries "
            f"(tokens are stored as uint16), got {', '.join(map(str, large))}; leave these out, or heal nothing: "
            "squeeze.heal_budget=null search.budgets='[0 steps]' search.keep=[]"
        )


def _batches(
    parent: ParentFolder, data: PreparedData, most_tokens: int, *, on_progress: OnProgress
) -> Iterator[torch.Tensor]:
    """Rows of training text in the parent's entries, each document from its start."""
    words = load_backend(parent.folder)
    length = min(256, int(getattr(parent.config, "max_position_embeddings", 256)))
    rows: list[list[int]] = []
    taken = 0
    for text in training_texts(data, 40 * most_tokens):
        ids = [0, *words.encode(text[: 8 * length], add_special_tokens=False).ids][:length]
        if len(ids) < length:
            continue
        rows.append(ids)
        taken += length
        if len(rows) == _ROWS or taken >= most_tokens:
            yield torch.tensor(rows)
            on_progress("text", taken, most_tokens)
            rows = []
        if taken >= most_tokens:
            return
    if rows:
        yield torch.tensor(rows)


def _latency(
    parent: ParentFolder,
    choices: SqueezeChoices,
    *,
    sizes: list[int],
    folder: Path,
    shared: Path,
    hardware: Hardware,
    say: Say,
) -> SqueezeLatency:
    """The latency model of the study, else of an earlier squeeze of the parent in the same formats, else fitted.

    That of an earlier squeeze must be of this device and its runtime. A study keeps the one that it began with, since
    its predictions are part of the record.
    """
    begun = SqueezeLatency.load(StudyFolder(folder).latency, shape=parent.shape)
    if begun is not None:
        return begun
    name = "-".join(sorted({*choices.matrices, *choices.embedding}))
    earlier = shared / f"latency-{parent.folder.name}-{name}-{hardware.device}.json"
    found = SqueezeLatency.load(earlier, shape=parent.shape)
    if found is not None and found.is_of(hardware.device):
        return found
    say("latency   timing slices of the parent alone on this device, to predict the others")
    fitted = SqueezeLatency.fit(parent, choices, sizes=sizes, device=hardware.device)
    write_json(earlier, fitted.to_dict())
    return fitted


def parent_bits(evaluator: SqueezeEvaluator, which: str, *, max_bytes: int, say: Say) -> float:
    """Bits per byte of the parent on search or report text, measured once."""
    settings, parent = evaluator.settings, evaluator.parent
    rows = settings.window_tokens or evaluator.train.sequence_length
    note = parent.folder.with_name(f"bits-{parent.folder.name}-{which}-{max_bytes}-{rows}.json")
    if note.is_file():
        return float(read_json(note)["bits_per_byte"])
    say(f"parent    scoring it on the {which} text, once")
    size = parent.keep_vocabularies(np.zeros(0, np.int64), [parent.shape.vocab_size])[0]
    passages = evaluator.passages(size, which, max_bytes=max_bytes)
    model = torch.nn.Module.to(parent.model(None), unstarted_device(evaluator.device))
    score = score_passages(model, passages, batch_size=settings.batch_windows)
    write_json(note, {"bits_per_byte": score.bits_per_byte, "scored_bytes": score.num_bytes})
    return score.bits_per_byte
