"""Verbs about models: train, evaluate, complete, serve, compare, show, export."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..release.targets import TARGETS
from .words import (
    Run,
    add_settings,
    curve_watch,
    print_json,
    print_line,
    print_table,
    quiet,
    say,
    tell_json,
    with_settings,
)

if TYPE_CHECKING:
    from ..jobs.settings import RunSettings


def train_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas train`."""
    verb.add_argument("genome", help="genome file or name in configs/genomes, study, study:TRIAL, release folder")
    add_settings(verb)
    verb.add_argument("--budget", default="300 seconds", help="'5000 steps', '2e8 tokens' ... (default: 300 seconds)")
    verb.add_argument("--out", type=Path, help="release folder (default: runs/<genome id>; fine-tuned, with -tuned)")
    verb.add_argument(
        "--fine-tune",
        action="store_true",
        help="train the weights of the release folder GENOME on, with its tokenizer, on other text: "
        "codenas train runs/two_stage/winner corpus.sources=[~/code] --fine-tune",
    )

    verb.add_argument("--json", action="store_true", help="what happens as lines of JSON, and nothing else on stdout")

    def job(options: argparse.Namespace, settings: RunSettings) -> int:
        from ..hardware import is_main_process
        from ..jobs.train import train  # loads torch

        told = tell_json if options.json else say
        with curve_watch(as_json=options.json) as watch:
            folder = train(
                options.genome,
                options.budget,
                settings=settings,
                out=options.out,
                fine_tune=options.fine_tune,
                say=told,
                watch=watch if is_main_process() else lambda point: None,
            )
        if not is_main_process():  # the main one writes the release meanwhile
            return 0
        if options.json:
            print_line({"event": "released", "folder": folder})
            return 0
        say(f"released  {folder}")
        say(f"try it    codenas complete {folder}")
        return 0

    return with_settings(job, study=lambda options: Path(options.genome.partition(":")[0]))


def evaluate_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas evaluate`."""
    verb.add_argument("model", help="folder, study (its winner), GGUF file or Hub id")
    verb.add_argument("--suite", choices=["quick", "full"], default="quick", help="how much (default: quick)")
    tasks = "file of further tasks (.jsonl or .jsonl.gz: MBPP, gaps to fill, HumanEval's form); may be repeated"
    verb.add_argument("--tasks", type=Path, action="append", default=[], metavar="FILE", help=tasks)
    text = "folder whose sub-folders are projects that the model never saw: bits per byte and next lines"
    verb.add_argument("--held-out", type=Path, metavar="FOLDER", help=text)
    verb.add_argument("--folder", type=Path, help="where results and completions go (default: the model's)")
    verb.add_argument("--device", help="such as cuda (default: what there is)")
    _add_runtime(verb, auto="llama.cpp for a GGUF file, else torch, in batches")
    verb.add_argument("--json", action="store_true", help="as JSON")

    def run(options: argparse.Namespace) -> int:
        from ..jobs.models import evaluate, format_table  # loads torch

        quiet()
        result = evaluate(
            options.model,
            suite=options.suite,
            tasks=options.tasks,
            held_out=options.held_out,
            folder=options.folder,
            runtime=options.runtime,
            device=options.device,
            trust_remote_code=options.trust_remote_code,
            on_part=None if options.json else lambda name, seconds: say(f"{name}: {seconds:.0f} s"),
        )
        if options.json:
            print_json(result)
        else:
            print(format_table(result))
        return 0

    return run


def complete_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas complete`."""
    _add_model(verb)
    verb.add_argument(
        "prompt",
        nargs="?",
        help="text to continue, '' begins a file; '-' or a pipe reads stdin; none asks at a prompt",
    )
    verb.add_argument("--suffix", help="text after the gap, to fill in the middle")
    verb.add_argument("--max-new-tokens", type=int, help="upper bound (default: 128)")
    verb.add_argument("--temperature", type=float, help="0 is greedy (default: 0.2)")
    verb.add_argument("--top-p", type=float, help="with a temperature (default: 0.95)")
    verb.add_argument("--repetition-penalty", type=float, help="1 is off (default: 1.1)")
    verb.add_argument("--seed", type=int, help="of sampling (default: 0)")
    _add_runtime(verb)

    def run(options: argparse.Namespace) -> int:
        from ..jobs.complete import stream
        from ..jobs.opening import named_model, open_runtime

        quiet()
        names = ("suffix", "max_new_tokens", "temperature", "top_p", "repetition_penalty", "seed")
        given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
        how = {"runtime": options.runtime, "trust_remote_code": options.trust_remote_code}

        def answer(model: Any, prompt: str, *, echo: str = "") -> None:
            pieces = stream(model, prompt, **how, **given)
            first = next(pieces, "")  # whatever is refused is refused by now, before anything is printed
            print(echo, first, sep="", end="", flush=True)
            for piece in pieces:
                print(piece, end="", flush=True)
            print(flush=True)

        named, prompt = options.model, options.prompt
        if prompt is None and named is not None and any(map(str.isspace, named)) and not os.path.exists(named):
            named, prompt = None, named
        model = named_model(named, say=lambda text: print(text, file=sys.stderr))
        if prompt not in (None, "-"):
            answer(model, prompt, echo=prompt)
            return 0
        opened = open_runtime(model, **how)
        if prompt == "-" or not sys.stdin.isatty():
            answer(opened, _stdin_text())
        else:
            print("Write or paste code; an empty line completes it, Ctrl-D leaves.")
            while (prompt := _read_lines()) is not None:
                answer(opened, prompt)
        return 0

    return run


def _add_model(verb: argparse.ArgumentParser) -> None:
    """Adds which model it is, which may be left out."""
    verb.add_argument(
        "model",
        nargs="?",
        help="folder, study (its winner), GGUF file or Hub id (default: the newest winner or trained model in runs/, "
        "else the model that comes with the package)",
    )


def _add_runtime(
    verb: argparse.ArgumentParser, *, auto: str = "the faster one that is here and reads the model"
) -> None:
    """Adds what a model is opened with."""
    text = f"auto, torch, llama.cpp or onnxruntime (default: auto, {auto})"
    verb.add_argument(
        "--runtime",
        choices=["auto", "torch", "llama.cpp", "onnxruntime"],
        default="auto",
        metavar="RUNTIME",
        help=text,
    )
    verb.add_argument("--trust-remote-code", action="store_true", help="run code that a Hub model brings")


def serve_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas serve`."""
    _add_model(verb)
    verb.add_argument("--port", type=int, default=8000, help="on 127.0.0.1; 0 takes a free one (default: 8000)")
    verb.add_argument("--name", help="what requests call the model (default: by its folder or file)")
    verb.add_argument("--max-new-tokens", type=int, default=512, help="most that may be asked for (default: 512)")
    verb.add_argument("--max-waiting", type=int, default=64, help="requests in the queue before a 429 (default: 64)")
    _add_runtime(verb)

    def run(options: argparse.Namespace) -> int:
        from ..jobs.opening import named_model, open_runtime
        from ..jobs.serve import ServeSettings, serve

        quiet()
        settings = ServeSettings(max_new_tokens=options.max_new_tokens, max_waiting=options.max_waiting)
        model = open_runtime(
            named_model(options.model, say=say), runtime=options.runtime, trust_remote_code=options.trust_remote_code
        )
        serve(model, name=options.name, port=options.port, settings=settings, say=say)
        return 0

    return run


def _stdin_text() -> str:
    """All of stdin.

    Raises:
        ValueError: there is nothing, or it is not UTF-8.
    """
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"stdin is not text in UTF-8: {error.reason} at byte {error.start}") from error
    if not text:
        raise ValueError("nothing came on stdin: expected code to continue; a prompt of '' begins a file")
    return text


def _read_lines() -> str | None:
    """Lines until an empty one; None at the end of input."""
    import readline  # noqa: F401  # line editing and history for input(), only where somebody types

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
        from ..jobs.releases import compare

        print_table(compare(options.models), as_json=options.json)
        return 0

    return run


def show_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas show`."""
    verb.add_argument("model", type=Path, help="release folder, or a study (its winner)")
    verb.add_argument("--picture", type=Path, metavar="FILE", help="also draw it: NAME.png and NAME.svg")
    verb.add_argument("--json", action="store_true", help="as JSON")

    def run(options: argparse.Namespace) -> int:
        from ..jobs.releases import describe, draw
        from ..report.architecture import architecture_text

        if options.picture is not None and options.picture.suffix not in (".png", ".svg"):
            raise ValueError(f"--picture draws NAME.png and NAME.svg: expected one of the two, got {options.picture}")
        table = describe(options.model)
        if options.picture is not None:
            draw(table, options.picture, label=f"architecture of {options.model}")
        if options.json:
            print_json([dict(row) for row in table.rows])
        else:
            print(architecture_text(table))
        return 0

    return run


def export_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas export`."""
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    rows = [f"  {name:11}  {' '.join(target.forms):30}  {target.what}\n" for name, target in TARGETS.items()]
    verb.epilog = "targets and their formats (the first is the default):\n" + "".join(rows)
    verb.add_argument("model", type=Path, help="release folder, study (its winner), or any model folder")
    verb.add_argument("--to", default="gguf", metavar="TARGET", help="see below (default: gguf)")
    verb.add_argument("--format", metavar="FORMAT", help="storage format, see below")
    verb.add_argument("--out", type=Path, required=True, help="file, or folder, to write")

    def run(options: argparse.Namespace) -> int:
        from ..jobs.models import export  # loads torch

        quiet()
        written = export(options.model, options.out, to=options.to, form=options.format)
        say(f"wrote     {written}")
        return 0

    return run


def prune_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas prune`."""
    verb.add_argument("model", help="release folder, or a study (its winner)")
    add_settings(verb)
    verb.add_argument("--to", type=_share, required=True, metavar="SHARE", help="of the parameters, such as 50%%")
    verb.add_argument("--budget", default="300 seconds", help="of all training afterwards (default: 300 seconds)")
    verb.add_argument("--out", type=Path, help="release folder (default: runs/<genome id of it>-pruned<percent>)")

    def job(options: argparse.Namespace, settings: RunSettings) -> int:
        from ..hardware import is_main_process
        from ..jobs.prune import prune  # loads torch

        with curve_watch(as_json=False) as watch:
            folder = prune(
                options.model,
                options.to,
                budget=options.budget,
                settings=settings,
                out=options.out,
                say=say,
                watch=watch if is_main_process() else lambda point: None,
            )
        if is_main_process():
            say(f"released  {folder}")
        return 0

    return with_settings(job, study=lambda options: Path(options.model))


def _share(text: str) -> float:
    """A share such as `50%` or `0.5`."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a share such as 50% or 0.5, got {text!r}") from None
