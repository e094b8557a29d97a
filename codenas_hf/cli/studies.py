"""Verbs about studies and their data: corpus, tokenizer, search, status, plot, publish."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ..data import overview
from ..hardware import is_main_process
from ..jobs.search import load_space, open_study, report_study, search
from ..jobs.settings import RunSettings
from ..jobs.train import prepare
from ..release.hub import Published, publish
from ..report.cells import Column, Table
from .words import Run, add_settings, fail, print_json, print_table, say, with_settings


def corpus(verb: argparse.ArgumentParser) -> Run:
    """`codenas corpus`."""
    add_settings(verb)
    verb.add_argument("--json", action="store_true", help="the whole report as JSON")

    def job(options: argparse.Namespace, settings: RunSettings) -> int:
        data = prepare(settings, vocab_sizes=load_space(settings.space).vocab_sizes)
        if options.json:
            print_json(data.corpus.report)
        else:
            print(overview(data))
        return 0

    return with_settings(job)


def tokenizer(verb: argparse.ArgumentParser) -> Run:
    """`codenas tokenizer`."""
    add_settings(verb)
    verb.add_argument("--vocab", type=int, action="append", help="vocabulary size (repeat it; default: the space's)")
    verb.add_argument("--json", action="store_true", help="as JSON")

    def job(options: argparse.Namespace, settings: RunSettings) -> int:
        sizes = options.vocab or load_space(settings.space).vocab_sizes
        data = prepare(settings, vocab_sizes=sizes)
        rows = [
            {
                "vocab_size": size,
                "bytes_per_token": data.tokens(size, "validation").bytes_per_token,
                "folder": str(data.tokenizer(size)),
            }
            for size in data.vocab_sizes
        ]
        columns = (
            Column("vocab_size", "vocabulary", "integer"),
            Column("bytes_per_token", "held-out bytes per token"),
            Column("folder", "folder"),
        )
        print_table(Table("tokenizers", "Tokenizers", columns, tuple(rows)), as_json=options.json)
        return 0

    return with_settings(job)


def search_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas search`, the main job."""
    add_settings(verb)
    verb.add_argument("--fresh", action="store_true", help="put an existing study aside and start anew")

    def job(options: argparse.Namespace, settings: RunSettings) -> int:
        outcome = search(settings, fresh=options.fresh, say=say)
        if not is_main_process():
            return 0
        print(f"report    {outcome.report}")
        if outcome.winner is None:
            return fail("no candidate keeps the limits: loosen limits.*, or search longer (search.generations=)")
        print(f"winner    {outcome.winner}")
        for published in outcome.published:
            print(f"published {published.url}")
        print(f"try it    codenas complete {outcome.winner}")
        print(f"extend    search.generations={settings.search.generations * 2}, or start anew with --fresh")
        return 0

    return with_settings(job)


def status(verb: argparse.ArgumentParser) -> Run:
    """`codenas status`."""
    verb.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="folder of studies (default: runs)")
    verb.add_argument("--json", action="store_true", help="as JSON")

    def run(options: argparse.Namespace) -> int:
        rows = [study_row(path.parent) for path in sorted(options.folder.glob("*/settings.yaml"))]
        if not rows:
            return fail(f"no studies in {options.folder}; `codenas search` starts one", code=1)
        columns = (
            Column("study", "study"),
            Column("state", "state"),
            Column("evaluated", "evaluated", "integer"),
            Column("failed", "failed", "integer"),
            Column("front", "front", "integer"),
            Column("bits_per_byte", "best bits per byte"),
            Column("artifact_bytes", "winner", "bytes"),
            Column("decode_ms", "decode per token", "ms"),
            Column("seconds_left", "left", "seconds"),
        )
        print_table(Table("studies", "Studies", columns, tuple(rows)), as_json=options.json)
        return 0

    return run


def study_row(folder: Path) -> dict[str, Any]:
    """How one study stands; what is not known yet is absent."""
    try:
        result, settings = open_study(folder)
    except FileNotFoundError:
        return {"study": folder.name, "state": "preparing data"}
    done = [r for r in result.records if r.state == "complete"]
    ladder = settings.search
    each = [ladder.population, *(keep + ladder.audit for keep in ladder.keep)]
    running = any(r.state == "running" for r in result.records)
    row: dict[str, Any] = {
        "study": folder.name,
        "state": "finished" if result.finished else "running" if running else "unfinished",
        "evaluated": len(done),
        "failed": len(result.failures),
        "front": len(result.front),
    }
    if result.front:
        row["bits_per_byte"] = min(r.evaluation.objectives["bits_per_byte"] for r in result.front if r.evaluation)
    if result.winner is not None and result.winner.evaluation is not None:
        row |= {k: result.winner.evaluation.objectives[k] for k in ("artifact_bytes", "decode_ms")}
    if not result.finished and done:
        spent = {rung: [] for rung in range(len(each))}  # type: dict[int, list[float]]
        for r in done:
            if r.evaluation is not None:
                spent[r.rung].append(sum(r.evaluation.seconds.values()))
        means = [sum(v) / len(v) if v else None for v in spent.values()]
        if all(mean is not None for mean in means):
            left = [max(0, ladder.generations * n - len(spent[rung])) for rung, n in enumerate(each)]
            workers = max(1, sum(r.state == "running" for r in result.records))
            row["seconds_left"] = sum(n * (mean or 0.0) for n, mean in zip(left, means, strict=True)) / workers
    return row


def plot(verb: argparse.ArgumentParser) -> Run:
    """`codenas plot`."""
    verb.add_argument("study", type=Path, help="folder of a study, such as runs/two_stage")

    def run(options: argparse.Namespace) -> int:
        started = time.perf_counter()
        result, _ = open_study(options.study)
        winner = options.study / "winner"
        page = report_study(result, folder=options.study, winner=winner if winner.is_dir() else None)
        print(f"report    {page} ({time.perf_counter() - started:.1f} s)")
        return 0

    return run


def publish_verb(verb: argparse.ArgumentParser) -> Run:
    """`codenas publish`."""
    verb.add_argument("folder", type=Path, help="a study such as runs/two_stage, or a release folder")
    verb.add_argument("--repo-id", required=True, help="owner/name of the model on the Hub, or only name")
    verb.add_argument("--private", action="store_true", help="create the repositories private")
    verb.add_argument("--create-pr", action="store_true", help="open pull requests in place of commits to main")
    verb.add_argument("--dry-run", action="store_true", help="prepare and check everything, touch no network")
    verb.add_argument("--what", default="model", help="any of model,space,dataset,study,collection (comma between)")
    verb.add_argument("--license", default="mit", help="of the weights, as the Hub spells it (default: mit)")
    verb.add_argument("--json", action="store_true", help="as JSON")

    def run(options: argparse.Namespace) -> int:
        done = publish(
            options.folder,
            repo_id=options.repo_id,
            private=options.private,
            create_pr=options.create_pr,
            dry_run=options.dry_run,
            what=tuple(options.what.split(",")),
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
