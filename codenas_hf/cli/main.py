"""`codenas <verb>`: each verb reads its words and calls one library function."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from ..hardware import missing_extra
from ..release.targets import TARGETS
from . import models, studies
from .words import Run, fail

PACKAGE = Path(__file__).parents[1]

VERBS: dict[str, tuple[Callable[[argparse.ArgumentParser], Run], str]] = {
    "corpus": (studies.corpus, "build the corpus and print its report"),
    "latency": (studies.latency, "time a space here, for a search on another machine"),
    "tokenizer": (studies.tokenizer, "train the tokenizers and print bytes per token"),
    "search": (studies.search_verb, "search architectures and release the winner"),
    "launch": (studies.launch_verb, "write what starts a search on many machines, and say what to type"),
    "squeeze": (studies.squeeze_verb, "cut a pretrained model to a budget, by the same search"),
    "train": (models.train_verb, "train one genome and write a release folder"),
    "evaluate": (models.evaluate_verb, "evaluate any model: one JSON, one table"),
    "complete": (models.complete_verb, "complete code: interactive, or one prompt from an argument or stdin"),
    "serve": (models.serve_verb, "answer editors and programs as OpenAI's completions API does, on this machine"),
    "status": (studies.status, "show how the studies stand"),
    "winner": (studies.winner_verb, "name the winner of a study under other limits or weights"),
    "compare": (models.compare_verb, "put models side by side"),
    "plot": (studies.plot, "write the report of a study, finished or not: tables, pictures, one page"),
    "show": (models.show_verb, "show an architecture as text and picture"),
    "prune": (models.prune_verb, "cut a release to a share of its parameters and train what is left"),
    "export": (models.export_verb, f"write a model in another form: {', '.join(TARGETS)}"),
    "publish": (studies.publish_verb, "push a winner, its card and what belongs to it to the Hub"),
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="codenas",
        description="Find, train, measure and share the best Python code language model within a budget.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="start with:\n"
        "  codenas search                          from the Python on this machine to a winner\n"
        "  codenas status                          how the studies stand\n"
        "  codenas complete runs/two_stage/winner  try it\n"
        "exit status:\n"
        "  0    done\n"
        "  1    done, and nothing keeps the limits (search, winner); after a traceback: a bug of ours\n"
        "  2    refused: one line says what to mend\n"
        "  130  interrupted: the same command goes on",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (setup, text) in VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        verb.add_argument("--verbose", action="store_true", help="debug messages and tracebacks")
        verb.set_defaults(run=setup(verb))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Returns:
        The exit code: 0 done; 1 done, and nothing keeps the limits; 2 refused, with one line that says why; 130
        interrupted. A bug of ours raises, which Python ends with 1.
    """
    parser = build_parser()
    # argparse takes the words of a list only up to the next option; name=value may stand anywhere.
    options, late = parser.parse_known_args(argv)
    if getattr(options, "prompt", "") is None and len(late) == 1 and (late == ["-"] or not late[0].startswith("-")):
        options.prompt = late.pop()  # it took the model for all that comes, where an option stands behind that
    strange = [word for word in late if word.startswith("-") or "=" not in word or not hasattr(options, "overrides")]
    if strange:
        parser.error(f"`codenas {options.verb}` does not understand: {' '.join(strange)}; see --help")
    if late:
        options.overrides += late
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        return options.run(options)  # type: ignore[no-any-return]  # a Run
    except KeyboardInterrupt:
        return fail("interrupted; the same command goes on", code=130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = mistake(error)
        if message is None or options.verbose:
            raise
        line = " ".join(part for part in message.splitlines() if part.strip())  # other packages write paragraphs
        return fail(f"codenas {options.verb}: {line}", code=2)


def mistake(error: Exception) -> str | None:
    """What to tell a user of an error that a user can mend; None for a bug of ours, which shows where it happened.

    To mend are errors of a class of ours, what the system says of files and networks, values that our own code
    refuses, and packages that an extra installs.
    """
    if isinstance(error, ModuleNotFoundError):
        extra = missing_extra(error.name or "")
        return None if extra is None else f"{error.name} is not installed: pip install 'codenas-hf[{extra}]'"
    ours = type(error).__module__.split(".")[0] == PACKAGE.name
    if ours or isinstance(error, OSError) or (isinstance(error, ValueError) and _raised_here(error)):
        return str(error)
    return None


def _raised_here(error: Exception) -> bool:
    """True when the innermost frame is code of the package."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and Path(frames[-1].f_code.co_filename).is_relative_to(PACKAGE)


if __name__ == "__main__":
    sys.exit(main())
