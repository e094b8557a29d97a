"""Verbs about models: train, evaluate, complete, compare, show, export."""

from __future__ import annotations

import argparse
import json
import readline  # noqa: F401  # line editing and history for input()
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..architecture.genome import Genome
from ..architecture.genome_file import read_genome
from ..compression.gguf import write_gguf
from ..engine import Budget
from ..generation.decode import DecodeSettings, stream
from ..generation.loading import load_model
from ..jobs.search import open_study
from ..jobs.settings import RunSettings, config_path
from ..jobs.train import prepare, train_genome
from ..modeling_codenas import CodeNASForCausalLM
from ..report import architecture_table, architecture_text, compare_table, tensors_of_folder
from ..report.drawing import save
from ..report.plots import architecture_figure
from ..suite.evaluation import SUITES, evaluate_model, format_table
from .words import Run, add_settings, print_json, print_table, say, with_settings


def find_genome(source: str) -> Genome:
    """A genome from a genome file, a study (its winner), `study:NUMBER` (a trial of rung 0), or a release folder.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no such trial.
    """
    path, _, number = source.partition(":")
    folder = Path(path)
    if (folder / "record.json").is_file():
        return Genome.from_dict(json.loads((folder / "record.json").read_text(encoding="utf-8"))["genome"])
    if (folder / "settings.yaml").is_file():
        result, _ = open_study(folder)
        if not number:
            if result.winner is None:
                raise ValueError(f"{folder} has no winner yet; name a trial as {folder}:NUMBER")
            return _genome(result.winner.genome)
        found = [r for r in result.records if r.rung == 0 and str(r.number) == number]
        if not found:
            raise ValueError(f"{folder} has no trial {number}; it has 0 to {len(result.records) - 1}")
        return _genome(found[0].genome)
    return read_genome(config_path(path if "/" in path else f"genomes/{path}"))


def _genome(value: Any) -> Genome:
    assert isinstance(value, Genome)
    return value


def train_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas train`."""
    verb.add_argument("genome", help="genome file or name in configs/genomes, study, study:TRIAL, release folder")
    add_settings(verb)
    verb.add_argument("--budget", default="300 seconds", help="'5000 steps', '2e8 tokens' ... (default: 300 seconds)")
    verb.add_argument("--out", type=Path, help="release folder (default: runs/<genome id>)")
    verb.add_argument(
        "--fine-tune",
        action="store_true",
        help="train the weights of the release folder GENOME on, with its tokenizer, on other text: "
        "codenas train runs/two_stage/winner corpus.sources=[~/code] --fine-tune",
    )

    def job(options: argparse.Namespace, settings: RunSettings) -> int:
        genome, budget = find_genome(options.genome), Budget.parse(options.budget)
        start = Path(options.genome) if options.fine_tune else None
        if start and not (start / "record.json").is_file():
            raise ValueError(f"--fine-tune wants a release folder with its weights, got {options.genome}")
        out = options.out or settings.folder / (f"{genome.genome_id}-tuned" if start else genome.genome_id)
        data = prepare(settings, vocab_sizes=[genome.vocab_size], tokenizer=start)
        folder = train_genome(genome, budget, folder=out, settings=settings, data=data, say=say, start=start)
        say(f"released  {folder}")
        say(f"try it    codenas complete {folder}")
        return 0

    return with_settings(job)


def evaluate_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas evaluate`."""
    verb.add_argument("model", help="folder, GGUF file or Hub id")
    verb.add_argument("--suite", choices=sorted(SUITES), default="quick", help="how much (default: quick)")
    verb.add_argument(
        "--folder", type=Path, help="where evaluation.json and the completions go (default: the model's)"
    )
    verb.add_argument("--device", help="such as cuda (default: what there is)")
    verb.add_argument("--trust-remote-code", action="store_true", help="run code that a model brings")
    verb.add_argument("--json", action="store_true", help="as JSON")

    def run(options: argparse.Namespace) -> int:
        loaded = load_model(
            options.model, device=options.device or default_device(), trust_remote_code=options.trust_remote_code
        )
        folder = options.folder or (Path(options.model) if Path(options.model).is_dir() else None)
        result = evaluate_model(
            loaded,
            settings=SUITES[options.suite],
            folder=folder,
            on_part=None if options.json else lambda name, seconds: say(f"{name}: {seconds:.0f} s"),
        )
        if options.json:
            print_json(result)
        else:
            print(format_table(result))
        return 0

    return run


def default_device() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def complete_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas complete`."""
    verb.add_argument("model", help="folder or Hub id")
    verb.add_argument("prompt", nargs="?", help="text to continue; '-' or a pipe reads stdin; none asks at a prompt")
    verb.add_argument("--suffix", help="text after the gap, to fill in the middle")
    verb.add_argument("--max-new-tokens", type=int, default=128, help="upper bound (default: 128)")
    verb.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    verb.add_argument("--top-p", type=float, default=0.95, help="with a temperature (default: 0.95)")
    verb.add_argument("--repetition-penalty", type=float, default=1.1, help="1 is off (default: 1.1)")
    verb.add_argument("--seed", type=int, default=0, help="of sampling (default: 0)")
    verb.add_argument("--trust-remote-code", action="store_true", help="run code that a Hub model brings")

    def run(options: argparse.Namespace) -> int:
        settings = DecodeSettings(
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p if options.temperature else 1.0,
            repetition_penalty=options.repetition_penalty,
            seed=options.seed,
        )
        loaded = load_model(options.model, device=default_device(), trust_remote_code=options.trust_remote_code)

        def answer(prompt: str) -> None:
            for piece in stream(loaded.model, loaded.tokenizer, prompt, settings=settings, suffix=options.suffix):
                print(piece, end="", flush=True)
            print(flush=True)

        if options.prompt not in (None, "-"):
            print(options.prompt, end="", flush=True)
            answer(options.prompt)
        elif options.prompt == "-" or not sys.stdin.isatty():
            answer(sys.stdin.read())
        else:
            print("Write or paste code; an empty line completes it, Ctrl-D leaves.")
            while (prompt := _read_lines()) is not None:
                answer(prompt)
        return 0

    return run


def _read_lines() -> str | None:
    """Lines until an empty one; None at the end of input."""
    lines: list[str] = []
    while True:
        try:
            line = input("... " if lines else ">>> ")
        except EOFError:
            print()
            return None
        if not line and lines:
            return "\n".join(lines)
        lines += [line] if line else []


def compare_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas compare`."""
    verb.add_argument("models", nargs="+", type=Path, help="release folders, or studies (their winners)")
    verb.add_argument("--json", action="store_true", help="as JSON")

    def run(options: argparse.Namespace) -> int:
        models = {str(path): read_record(path) for path in options.models}
        print_table(compare_table(models), as_json=options.json)
        return 0

    return run


def load_searched(folder: Path) -> CodeNASForCausalLM:
    """A release folder's weights in our own class, whatever stock class the folder names.

    Raises:
        FileNotFoundError: no release.
        ValueError: its architecture's tensors have other names than ours.
    """
    genome = Genome.from_dict(read_record(folder)["genome"])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    special = {name: config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = CodeNASForCausalLM(genome.to_config(**special, max_position_embeddings=config["max_position_embeddings"]))
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"{folder} holds a {config['model_type']}, whose tensors have other names: {unexpected[:3]}")
    model.tie_weights()
    model.eval()
    return model


def read_record(path: Path) -> dict[str, Any]:
    """`record.json` of a release folder or of a study's winner.

    Raises:
        FileNotFoundError: neither.
    """
    for folder in (path, path / "winner"):
        if (folder / "record.json").is_file():
            data: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
            return data
    raise FileNotFoundError(f"{path} has no record.json: expected a release folder or a study with a winner")


def show_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas show`."""
    verb.add_argument("model", type=Path, help="release folder, or a study (its winner)")
    verb.add_argument("--picture", type=Path, metavar="FILE", help="also draw it, as .png or .svg")
    verb.add_argument("--json", action="store_true", help="as JSON")

    def run(options: argparse.Namespace) -> int:
        folder = options.model if (options.model / "config.json").is_file() else options.model / "winner"
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{options.model} has no config.json: expected a release folder or a study")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        table = architecture_table(tensors_of_folder(folder), config)
        if options.json:
            print_json([dict(row) for row in table.rows])
        else:
            print(architecture_text(table))
        if options.picture is not None:
            save(architecture_figure(table), options.picture, label=f"architecture of {options.model}")
        return 0

    return run


def export_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas export`."""
    verb.add_argument("model", type=Path, help="release folder")
    verb.add_argument("--to", choices=["gguf"], default="gguf", help="the form (default: gguf, for llama.cpp)")
    verb.add_argument("--out", type=Path, required=True, help="file to write")
    verb.add_argument("--dtype", choices=["float16", "float32"], default="float16", help="of the weights")

    def run(options: argparse.Namespace) -> int:
        model = load_searched(options.model)
        say(f"wrote     {write_gguf(model, options.out, tokenizer=options.model, dtype=options.dtype)}")
        return 0

    return run
