"""`codenas <verb>`: each verb reads its words and calls one library function."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from ..data import DataError
from ..engine import IdentityError, SingleJobError
from ..release.hub import PublishError
from ..strict_yaml import SettingsError
from . import models, studies
from .words import Run, fail

# What a user can mend: one line, no traceback. Anything else is a bug of ours and shows where it happened.
USER_ERRORS = (SettingsError, DataError, IdentityError, SingleJobError, PublishError, OSError, ValueError)

VERBS: dict[str, tuple[Callable[[argparse.ArgumentParser], Run], str]] = {
    "corpus": (studies.corpus, "build the corpus and print its report"),
    "tokenizer": (studies.tokenizer, "train the tokenizers and print bytes per token"),
    "search": (studies.search_verb, "search architectures and release the winner"),
    "train": (models.train_verb, "train one genome and write a release folder"),
    "evaluate": (models.evaluate_verb, "evaluate any model: one JSON, one table"),
    "complete": (models.complete_verb, "complete code: interactive, or one prompt from an argument or stdin"),
    "status": (studies.status, "show how the studies stand"),
    "compare": (models.compare_verb, "put models side by side"),
    "plot": (studies.plot, "write the report of a study, finished or not: tables, pictures, one page"),
    "show": (models.show_verb, "show an architecture as text and picture"),
    "export": (models.export_verb, "write a model in another form: gguf, for llama.cpp"),
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
        "  codenas complete runs/two_stage/winner  try it",
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
        The exit code: 0 done, 1 failed, 2 bad input, 130 interrupted.
    """
    parser = build_parser()
    # argparse takes the words of a list only up to the next option; name=value may stand anywhere.
    options, late = parser.parse_known_args(argv)
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
    except USER_ERRORS as error:
        if options.verbose:
            raise
        return fail(f"codenas {options.verb}: {error}", code=2)


if __name__ == "__main__":
    sys.exit(main())
