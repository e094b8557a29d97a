"""`codenas <verb>`: each verb reads its words and calls one library function."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from .data import DataError
from .hardware import Hardware, is_main_process
from .search import IdentityError, SingleJobError
from .search_job import search
from .settings import RunSettings, config_path
from .strict_yaml import SettingsError, dump, load

Run = Callable[[argparse.Namespace], int]
USER_ERRORS = (SettingsError, DataError, IdentityError, SingleJobError, FileNotFoundError, ValueError)

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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad input, 130 interrupted.
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    level = logging.DEBUG if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    try:
        return int(options.run(options) or 0)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except USER_ERRORS as error:
        if options.verbose:
            raise
        print(f"codenas {options.verb}: {error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="codenas",
        description="Find, train, measure and share the best Python code language model within a budget.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="start with:\n  codenas search        from the Python on this machine to a winner\n"
        "  codenas status        how the studies stand\n"
        "  codenas complete runs/two_stage/winner",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (setup, text) in VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        verb.add_argument("--verbose", action="store_true", help="debug messages, tracebacks")
        verb.set_defaults(run=setup(verb))
    return parser


def _settings_verb(verb: argparse.ArgumentParser) -> None:
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    verb.epilog = SETTINGS_HELP
    verb.add_argument("overrides", nargs="*", metavar="name=value", help="settings, see below")
    verb.add_argument("--config", action="append", default=[], metavar="FILE", help="settings file, a path or a name")
    verb.add_argument("--show-settings", action="store_true", help="print the resolved settings and stop")


def run_settings(options: argparse.Namespace) -> RunSettings:
    """Defaults, then configs/gpu.yaml where there is a GPU, then --config files, then name=value words."""
    files = [config_path(name) for name in options.config]
    if Hardware.discover().device == "cuda" and "device=cpu" not in options.overrides:
        files.insert(0, config_path("gpu"))
    return load(RunSettings, *files, overrides=options.overrides)


def _search(verb: argparse.ArgumentParser) -> Run:
    _settings_verb(verb)
    verb.add_argument("--fresh", action="store_true", help="put an existing study aside and start anew")

    def run(options: argparse.Namespace) -> int:
        settings = run_settings(options)
        if options.show_settings:
            print(dump(settings), end="")
            return 0
        outcome = search(settings, fresh=options.fresh, say=_say)
        if not is_main_process():
            return 0
        if outcome.winner is None:
            print("no candidate keeps the limits; loosen limits.*, or search longer", file=sys.stderr)
            return 1
        print(f"winner    {outcome.winner}")
        print(f"report    {outcome.report}")
        print(f"try it    codenas complete {outcome.winner}")
        print(f"extend    search.generations={settings.search.generations * 2}   or start anew: --fresh")
        return 0

    return run


def _say(line: str) -> None:
    print(line, flush=True)


VERBS: dict[str, tuple[Callable[[argparse.ArgumentParser], Run], str]] = {
    "search": (_search, "search architectures and release the winner"),
}
