"""What the verbs share: settings from words, messages, tables.

A local import, here and in the verbs, keeps torch (five seconds) away from `--help`, `status`, `show` and `winner`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..report.cells import Table

if TYPE_CHECKING:
    from ..jobs.settings import RunSettings
    from ..report.curve import Watch

Run = Callable[[argparse.Namespace], int]

SETTINGS_HELP = """\
settings:
  Any setting is given as name=value; values are YAML, sizes take units.
    limits.bytes=20MB limits.decode_ms=5      a budget
    search.generations=8 search.seed=1        more search, another seed
    space=medium                              another search space (configs/spaces/, or a path)
    corpus.sources=[~/code, stdlib]           other text
  --config FILE lays a YAML file over the defaults (repeat it for more), name=value comes on top.
  --show-settings prints what that makes, and runs nothing.
"""


def add_settings(verb: argparse.ArgumentParser) -> None:
    """Adds name=value words, `--config` and `--show-settings`."""
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    verb.epilog = SETTINGS_HELP
    verb.add_argument("overrides", nargs="*", metavar="name=value", help="settings, see below")
    verb.add_argument("--config", action="append", default=[], metavar="FILE", help="settings file, a path or a name")
    verb.add_argument("--show-settings", action="store_true", help="print the resolved settings and stop")


def with_settings(
    job: Callable[[argparse.Namespace, RunSettings], int],
    *,
    study: Callable[[argparse.Namespace], Path | None] = lambda options: None,
) -> Run:
    """A verb that runs `job` with the resolved settings, or prints them when that is all that was asked.

    Args:
        job: what the verb does.
        study: names a folder; where that is a study's, its settings lie below what is given.
    """

    def run(options: argparse.Namespace) -> int:
        from ..jobs.settings import RunSettings
        from ..strict_yaml import dump

        settings = RunSettings.of(*options.overrides, config=options.config, study=study(options))
        if options.show_settings:
            print(dump(settings), end="")
            return 0
        quiet()
        return job(options, settings)

    return run


def quiet() -> None:
    """Hides transformers' bars of loading and saving weights: jobs have displays of their own."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def say(line: str) -> None:
    """A line of progress."""
    print(line, flush=True)


def to_stderr(line: str) -> None:
    """A line of progress beside JSON."""
    print(line, file=sys.stderr, flush=True)


def print_line(event: dict[str, Any]) -> None:
    """One event as one line of JSON."""
    print(json.dumps(event, default=str), flush=True)


def tell_json(line: str) -> None:
    """A line of progress as an event."""
    print_line({"event": "say", "line": line})


@contextmanager
def curve_watch(*, as_json: bool) -> Iterator[Watch]:
    """Who is told the points of a training: a drawing in a terminal, lines elsewhere, or JSON."""
    from ..report.curve import LiveCurve, curve_json, curve_lines

    if as_json:
        yield curve_json(lambda line: print(line, flush=True))
    elif sys.stdout.isatty():
        with LiveCurve() as curve:
            yield curve
    else:
        yield curve_lines(say)


def fail(message: str, *, code: int = 1) -> int:
    """Prints a message to stderr and returns the exit code."""
    print(message, file=sys.stderr)
    return code


def print_json(data: Any) -> None:
    """JSON to stdout, for other programs."""
    print(json.dumps(data, indent=1, default=str))


def print_table(table: Table, *, as_json: bool = False) -> None:
    """A table for people, or its rows for programs."""
    if as_json:
        print_json([dict(row) for row in table.rows])
    else:
        print(table.to_markdown(heading=False), end="")
