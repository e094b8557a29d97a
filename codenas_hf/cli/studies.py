"""Verbs about studies and their data: corpus, tokenizer, search, status, plot, publish."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .words import (
    Run,
    add_settings,
    curve_watch,
    fail,
    print_json,
    print_line,
    print_table,
    quiet,
    say,
    tell_json,
    to_stderr,
    with_settings,
)

if TYPE_CHECKING:
    from ..jobs.search import Follow
    from ..jobs.settings import RunSettings
    from ..release.hub import Published


def corpus(verb: argparse.ArgumentParser) -> Run:
    """`codenas corpus`."""
    add_settings(verb)
    verb.add_argument("--vocab", type=int, action="append", help="vocabulary size (repeat it; default: the space's)")
    verb.add_argument("--json", action="store_true", help="the whole report as JSON")

    def job(options: argparse.Namespace, settings: RunSettings) -> int:
        from ..jobs.text import overview, prepare_all  # loads torch

        data = prepare_all(settings, vocab_sizes=options.vocab or ())
        if options.json:
            print_json(data.corpus.report)
        else:
            print(overview(data))
        return 0

    return with_settings(job)


def latency(verb: argparse.ArgumentParser) -> Run:
    """`codenas latency`."""
    add_settings(verb)
    verb.add_argument("--out", type=Path, required=True, help="file to write; a search takes it as latency.file=FILE")

    def job(options: argparse.Namespace, settings: RunSettings) -> int:
        from ..jobs.latency import write_latency  # loads torch

        model = write_latency(settings, options.out, say=say)
        error, ranks = 100 * model.relative_error, model.rank_correlation
        say(f"          {model.shapes} shapes; error of a prediction {error:.0f} %, rank correlation {ranks:.2f}")
        say(f"wrote     {options.out}: latency.file={options.out}")
        return 0

    return with_settings(job)


def tokenizer(verb: argparse.ArgumentParser) -> Run:
    """`codenas tokenizer`."""
    add_settings(verb)
    verb.add_argument("--vocab", type=int, action="append", help="vocabulary size (repeat it; default: the space's)")
    verb.add_argument("--json", action="store_true", help="as JSON")

    def job(options: argparse.Namespace, settings: RunSettings) -> int:
        from ..jobs.text import prepare_all, vocabulary_table  # loads torch

        data = prepare_all(settings, vocab_sizes=options.vocab or ())
        print_table(vocabulary_table(data), as_json=options.json)
        return 0

    return with_settings(job)


def status_watch(*, as_json: bool) -> Follow | None:
    """Who is told the figures of a search: whoever reads JSON; for people the engine has a display."""
    return (lambda status: print_line({"event": "search", **status.to_dict()})) if as_json else None


def search_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas search`, the main job."""
    add_settings(verb)
    verb.add_argument("--fresh", action="store_true", help="put an existing study aside and start anew")
    verb.add_argument(
        "--worker",
        action="store_true",
        help="only evaluate for a study on a server (search.storage=) that another process begins; leave at any time",
    )
    verb.add_argument("--json", action="store_true", help="what happens as lines of JSON, and nothing else on stdout")

    def job(options: argparse.Namespace, settings: RunSettings) -> int:
        from ..hardware import is_main_process
        from ..jobs.search import search  # loads torch

        told = tell_json if options.json else say
        with curve_watch(as_json=options.json) as watch:
            follow = status_watch(as_json=options.json)
            outcome = search(
                settings, fresh=options.fresh, worker=options.worker, say=told, watch=watch, follow=follow
            )
        if not is_main_process():
            return 0
        if options.worker:
            told(f"finished  the study {settings.study}; whoever began it releases the winner")
            return 0
        if options.json:
            print_line({"event": "finished", "report": outcome.report, "winner": outcome.winner})
            return 0 if outcome.winner is not None else 1
        print(f"report    {outcome.report}")
        if outcome.winner is None:
            return fail("no candidate keeps the limits: loosen limits.*, or search longer (search.generations=)")
        print(f"winner    {outcome.winner}")
        for published in outcome.published:
            print(f"published {published.url}")
        for line in outcome.advice():
            print(line)
        print(f"try it    codenas complete {outcome.winner}")
        print(f'train on  codenas train {outcome.folder} --budget "{outcome.more_seconds()} seconds"')
        if settings.search.time is None:
            print(f"extend    search.generations={settings.search.generations * 2}, or start anew with --fresh")
        else:
            print(f"extend    search.time={settings.search.time.twice()}, or start anew with --fresh")
        return 0

    return with_settings(job)


def launch_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas launch`."""
    verb.add_argument("where", choices=["local", "slurm", "hf-jobs"], help="this machine, a cluster, or HF Jobs")
    add_settings(verb)
    verb.add_argument("--workers", type=int, required=True, metavar="N", help="processes, each may leave at any time")
    verb.add_argument("--time", default="24:00:00", help="how long each may run (default: 24:00:00)")
    verb.add_argument("--option", action="append", default=[], help="for the batch system, such as --option=--mem=8G")
    verb.add_argument("--flavor", default="cpu-upgrade", help="hardware of each HF Job (default: cpu-upgrade)")
    verb.add_argument("--package", help="what each HF Job installs, as pip reads it; hf-jobs need it")
    verb.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go (default: runs/<study>/launch)")
    verb.add_argument("--submit", action="store_true", help="also run the commands that are printed")

    def job(options: argparse.Namespace, settings: RunSettings) -> int:
        from ..jobs.launch import WHERE, Wanted, launch_folder  # loads torch

        wanted = Wanted(
            workers=options.workers,
            words=options.overrides,
            config=options.config,
            time=options.time,
            options=options.option,
            flavor=options.flavor,
            package=options.package,
        )
        folder = options.out or launch_folder(settings)
        launch = WHERE[options.where](wanted, folder)
        for path in launch.write(folder):
            print(f"wrote     {path}")
        print("running:" if options.submit else "type:")
        for line in launch.steps:
            print("\n".join(f"  {part}" for part in line.split("\n")), flush=True)
        return launch.start() if options.submit else 0

    return with_settings(job)


def squeeze_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas squeeze`."""
    add_settings(verb)
    verb.usage = "codenas squeeze [PARENT] [name=value ...] [--genome FILE]"
    verb.add_argument(
        "--genome",
        type=Path,
        metavar="FILE",
        help="apply this squeeze genome, or one of configs/genomes such as squeezed/60mb, without any search",
    )
    verb.add_argument("--fresh", action="store_true", help="put an existing study aside and start anew")
    verb.add_argument("--json", action="store_true", help="what happens as lines of JSON, and nothing else on stdout")

    def job(options: argparse.Namespace, settings: RunSettings) -> int:
        from ..hardware import is_main_process
        from ..jobs.squeeze import squeeze  # loads torch

        told = tell_json if options.json else say
        with curve_watch(as_json=options.json) as watch:
            follow = status_watch(as_json=options.json)
            outcome = squeeze(
                settings, genome=options.genome, fresh=options.fresh, say=told, watch=watch, follow=follow
            )
        if not is_main_process():
            return 0
        if options.json:
            print_line({"event": "finished", "report": outcome.report, "winner": outcome.winner})
        elif outcome.winner is None:
            return fail("no candidate keeps the limits: loosen limits.*, or search longer (search.generations=)")
        else:
            if outcome.report is not None:
                print(f"report    {outcome.report}")
            print(f"winner    {outcome.winner}")
            print(f"try it    codenas complete {outcome.winner}")
        return 0 if outcome.winner is not None else 1

    with_them = with_settings(job)

    def run(options: argparse.Namespace) -> int:
        parents = [word for word in options.overrides if "=" not in word]
        if len(parents) > 1:
            return fail(f"codenas squeeze: one parent at a time, got {', '.join(parents)}", code=2)
        words = [word for word in options.overrides if "=" in word]
        options.overrides = [*(f"squeeze.parent={json.dumps(parent)}" for parent in parents), *words]
        options.config = ["squeeze", *options.config]
        return with_them(options)

    return run


def status(verb: argparse.ArgumentParser) -> Run:
    """`codenas status`."""
    verb.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="folder of studies (default: runs)")
    verb.add_argument("--json", action="store_true", help="as JSON")

    def run(options: argparse.Namespace) -> int:
        from ..jobs.status import status_table

        table = status_table(options.folder)
        if not table.rows:
            raise FileNotFoundError(f"no studies in {options.folder}; `codenas search` starts one")
        print_table(table, as_json=options.json)
        return 0

    return run


def winner_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas winner`."""
    verb.add_argument("study", type=Path, help="folder of a study, such as runs/two_stage")
    verb.add_argument(
        "overrides",
        nargs="*",
        metavar="name=value",
        help="limits.bytes=4MB, limits.decode_ms=3, weights.bits_per_byte=0.8 ... (default: those of the study)",
    )
    verb.add_argument("--release", type=Path, metavar="OUT", help="also write it as a release folder")
    verb.add_argument("--json", action="store_true", help="as JSON")

    def run(options: argparse.Namespace) -> int:
        from ..jobs.winner import ask

        answer = ask(options.study, options.overrides)
        if options.json:
            print_json(answer.to_dict())
        else:
            table = answer.table()
            if table.rows:
                print_table(table)
            for line in answer.lines():
                print(line)
        if options.release is not None:
            from ..jobs.release import release_winner  # loads torch

            quiet()
            folder = release_winner(answer, options.release, say=to_stderr if options.json else say)
            print(f"released  {folder}", file=sys.stderr if options.json else sys.stdout)
        return 0 if answer.record is not None else 1

    return run


def plot(verb: argparse.ArgumentParser) -> Run:
    """`codenas plot`."""
    verb.add_argument("study", type=Path, help="folder of a study, such as runs/two_stage")

    def run(options: argparse.Namespace) -> int:
        started = time.perf_counter()
        from ..jobs.study import write_study_report  # loads torch

        page = write_study_report(options.study)
        print(f"report    {page} ({time.perf_counter() - started:.1f} s)")
        return 0

    return run


def publish_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas publish`."""
    verb.add_argument("folder", type=Path, help="a study such as runs/two_stage, or a release folder")
    verb.add_argument("--repo-id", required=True, help="owner/name of the model on the Hub, or only name")
    verb.add_argument("--private", action="store_true", help="create the repositories private")
    verb.add_argument("--create-pr", action="store_true", help="open pull requests in place of commits to main")
    verb.add_argument("--dry-run", action="store_true", help="prepare and check everything, send nothing")
    kinds = "any of model,space,web,dataset,study,collection (comma between)"
    verb.add_argument("--what", default="model", help=kinds)
    verb.add_argument(
        "--license",
        default="mit",
        help="of the weights, an identifier of the Hub such as apache-2.0, or other (default: mit)",
    )
    verb.add_argument("--json", action="store_true", help="as JSON")

    def run(options: argparse.Namespace) -> int:
        from ..release.hub import publish  # loads datasets

        done = publish(
            options.folder,
            repo_id=options.repo_id,
            private=options.private,
            create_pr=options.create_pr,
            dry_run=options.dry_run,
            what=tuple(word.strip() for word in options.what.split(",")),
            license=options.license,
        )
        if options.json:
            print_json([vars(item) for item in done])
            return 0
        for item in done:
            print(describe_published(item, dry_run=options.dry_run))
        return 0

    return run


def describe_published(item: Published, *, dry_run: bool) -> str:
    """One line per repository."""
    state = "would publish" if dry_run else "published" if item.changed else "unchanged"
    where = item.pr_url or item.url
    return f"{state:13} {item.what:10} {item.repo_id}: {len(item.files)} files, {item.num_bytes:,} bytes  {where}"
