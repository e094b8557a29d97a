"""A finished model leaves the house: as a stock architecture where one is equal, else with its own code beside it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from ..architecture.stock import StockRow, find_row
from ..compression.formats import Format
from ..compression.gguf import write_gguf
from ..folders import Record, Release, read_json, whole_file, whole_folder, write_json
from ..folders.record import FileFacts, ReleaseFacts
from ..modeling_codenas import CodeNASForCausalLM
from .spelling import copy_tokenizer, model_config, without_places

_Model = TypeVar("_Model", bound=PreTrainedModel)
_log = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ExportError(RuntimeError):
    """What was written does not answer as the model does, so that nothing was released."""


def export_stock(model: CodeNASForCausalLM) -> PreTrainedModel:
    """The same model as an instance of a stock architecture of transformers, in float32 on the CPU.

    Its logits are compared with the model's, bit for bit, before it is returned.

    Raises:
        ValueError: no stock architecture equals the model; names the genes that forbid it.
        ExportError: the logits differ, so that this export would be another model.
    """
    row, reasons = find_row(model.config)
    if row is None:
        raise ValueError(f"no stock architecture equals this model: {'; '.join(reasons)}")
    ours = _frozen_copy(model)
    stock = _as_stock(ours, row)
    difference = _logits_difference(ours, stock)
    if difference != 0:
        raise ExportError(f"as {row.model_type} the logits differ by {difference:.3g}, expected none; not exported")
    return stock


def write_release(
    model: PreTrainedModel,
    *,
    folder: Path,
    tokenizer: Path,
    record: Record | None = None,
    settings: str | None = None,
    dtype: str = "bfloat16",
    stock: bool = True,
    form: str | Format | None = None,
    files: Callable[[Release], tuple[FileFacts, ...]] | None = None,
) -> Path:
    """Writes a folder that `AutoModelForCausalLM` and `AutoTokenizer` load, and says in it where it comes from.

    Weights (safetensors), tokenizer, generation config, record and settings. A model that equals a stock
    architecture is written as that and needs no code of ours; another one gets the remote-code pair beside it. The
    tokenizer's files are copied, and configurations carry what older readers look for (`spelling`). The record keeps
    no path from the root of this machine. The folder is loaded again and its logits compared before it takes its
    place; until then an earlier one stays as it is.

    Args:
        model: ours, or one of a stock class, which stays one; it is not changed.
        folder: where it goes; an earlier release there is replaced.
        tokenizer: folder of the tokenizer.
        record: how the model was found, trained and measured; None where nothing is known of it. Facts of the
            release are added.
        settings: the resolved settings of the run as YAML, such as `strict_yaml.dump` writes.
        dtype: float32, bfloat16 or float16.
        stock: False writes the remote-code pair even where a stock architecture is equal.
        form: a storage format of codes: what ships is then a GGUF file, made of the full precision, beside the weights
            for transformers. None ships these.
        files: asked of what was written, before it takes its place: each form of the model as its reader gives it.

    Raises:
        ValueError: unknown dtype, a tokenizer that has more entries than the model, or a model that the GGUF file
            cannot hold.
        FileExistsError: `folder` is there and is no release.
        ExportError: what was written does not answer as the model does.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    Release(Path(folder)).check_replaceable()
    words = AutoTokenizer.from_pretrained(tokenizer)
    if len(words) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer {tokenizer} has {len(words)} entries, expected at most the model's "
            f"`vocab_size` {model.config.vocab_size}; build it with that `vocab_size`"
        )
    released, reasons = _to_release(model, words, stock=stock)
    folder, name = Path(folder), form.name if isinstance(form, Format) else form
    with whole_folder(folder) as draft:
        written = Release(draft)
        if form is not None and name is not None:
            write_gguf(released, written.coded(name), tokenizer=tokenizer, form=form)
        _cast(released, _DTYPES[dtype])
        if isinstance(released, CodeNASForCausalLM):
            _save_with_code(released, draft)
        else:
            released.save_pretrained(draft)
        write_json(written.config, model_config(written.read_config()))
        copy_tokenizer(Path(tokenizer), draft)
        _check_written(draft, released, entries=words.get_vocab(), tokenizer=tokenizer)
        facts = ReleaseFacts(
            architecture=released.config.model_type,
            why_not_stock=tuple(reasons),
            dtype=dtype,
            format=name,
            num_parameters=released.num_parameters(),
            weights_bytes=written.weights_bytes,
            artifact_bytes=written.artifact_bytes,
            files=() if files is None else files(written),
            versions={name: version(name) for name in ("codenas-hf", "torch", "transformers")},
        )
        replace(record or Record(), release=facts).write(draft)
        write_json(written.record, without_places(read_json(written.record)))
        if settings is not None:
            with whole_file(written.settings) as text:
                text.write_text(settings, encoding="utf-8")
    _log.info("wrote %s as %s, %d bytes to ship", folder, facts.architecture, facts.artifact_bytes)
    return folder


def _to_release(model: PreTrainedModel, words: Any, *, stock: bool) -> tuple[PreTrainedModel, list[str]]:
    """The model as it will be written, in float32, with its tokenizer's special tokens; and why it is not stock."""
    ours = _frozen_copy(model)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(words, name) is not None:  # the tokenizer knows; a model may be built without
            setattr(ours.config, name, getattr(words, name))
    released: PreTrainedModel = ours
    reasons: list[str] = []
    if isinstance(ours, CodeNASForCausalLM):
        row, reasons = find_row(ours.config) if stock else (None, ["asked for the remote-code pair"])
        released = ours if row is None else export_stock(ours)
    released.generation_config = GenerationConfig(
        bos_token_id=ours.config.bos_token_id,
        eos_token_id=ours.config.eos_token_id,
        pad_token_id=ours.config.pad_token_id,
    )
    return released, reasons


def _check_written(draft: Path, released: PreTrainedModel, *, entries: Mapping[str, int], tokenizer: Path) -> None:
    """Loads what was written and compares it with the model and with the tokenizer's entries.

    Raises:
        ExportError: it answers otherwise.
    """
    loaded = AutoModelForCausalLM.from_pretrained(draft, dtype="auto").eval()
    difference = _logits_difference(released, loaded)
    if difference != 0:
        raise ExportError(f"the written model's logits differ by {difference:.3g}, expected none; nothing released")
    if AutoTokenizer.from_pretrained(draft).get_vocab() != entries:
        raise ExportError(f"the copied tokenizer {tokenizer} loads with other entries; nothing released")


def _frozen_copy(model: _Model) -> _Model:
    """A float32 copy on the CPU, in evaluation mode: the model in training is left alone."""
    config = copy.deepcopy(model.config)
    config.dtype = torch.float32
    config._attn_implementation = "sdpa"
    if hasattr(config, "quantization_config"):  # of a file that it was read from; these are plain weights
        del config.quantization_config
    twin = type(model)(config)
    twin.load_state_dict({name: weight.detach().float().cpu() for name, weight in model.state_dict().items()})
    twin.tie_weights()
    twin.eval()
    return twin


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Casts the weights only: `.to(dtype)` would round the rotary frequencies too, which loading keeps in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype


def _as_stock(model: CodeNASForCausalLM, row: StockRow) -> PreTrainedModel:
    config = AutoConfig.for_model(row.model_type, **row.settings(model.config))
    stock: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    weights = {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    if not config.tie_word_embeddings:
        weights["lm_head.weight"] = model.lm_head.weight.detach()
    converted = row.convert(model.config, weights)
    result = stock.load_state_dict(converted, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if result.unexpected_keys or set(result.missing_keys) - tied:
        raise ExportError(f"weights do not fit {row.model_type}: {result}")
    stock.tie_weights()
    stock.eval()
    return stock


@torch.inference_mode()
def _logits_difference(first: PreTrainedModel, second: PreTrainedModel) -> float:
    """Largest difference of the logits on random tokens: plain, and with left padding."""
    config: Any = first.config
    length = min(config.max_position_embeddings, max(48, 2 * (getattr(config, "sliding_window", None) or 0)))
    tokens = torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[0, : length // 4] = 0
    kept = mask[..., None].bool()
    worst = 0.0
    for attention_mask in (None, mask):
        logits = [m(tokens, attention_mask=attention_mask, use_cache=False).logits for m in (first, second)]
        difference = (logits[0].float() - logits[1].float()).abs()
        worst = max(worst, (difference if attention_mask is None else difference * kept).max().item())
    return worst


def _save_with_code(model: CodeNASForCausalLM, folder: Path) -> None:
    """Weights, configuration and the two source files, as transformers' own mechanism copies them."""
    # vLLM asks for the model without head under this key; transformers adds the other two.
    model.config.auto_map = {"AutoModel": "modeling_codenas.CodeNASModel"}
    with _registered_for_auto_class():
        model.save_pretrained(folder)


@contextmanager
def _registered_for_auto_class() -> Iterator[None]:
    """The registration is a mark on the classes, for the whole process: taken back, so that other saves stay plain."""
    config_class: Any = CodeNASForCausalLM.config_class
    config_class.register_for_auto_class()
    CodeNASForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    try:
        yield
    finally:
        config_class._auto_class = None
        CodeNASForCausalLM._auto_class = None
