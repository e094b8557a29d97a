"""Whether a pruned model learns with fewer tokens than one from scratch: `python -m benchmarks.pruning`.

The parent is what the part `decay` of `benchmarks.formats` has trained (give the same `--folder`, `--steps` and
`--study`). It is cut to `--to` of its parameters as `codenas prune` does, and what is left is trained for shares of
the parent's steps; the same shape from new weights has the same shares, and all of the steps. Differences are on the
same report text, paired by project. Each run is a process with one thread; what is finished is found again.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.formats import SCORED, Setup, add_words
from benchmarks.pool import work_off
from benchmarks.results_file import protocol, target, write
from codenas_hf.architecture.genome import Genome
from codenas_hf.engine import Budget
from codenas_hf.folders import read_json, write_json
from codenas_hf.jobs.prune import STEPS, PruneJob, cut_in_steps
from codenas_hf.measure.candidate import new_model
from codenas_hf.measure.score import Score, paired_difference, score_passages
from codenas_hf.release.export import export_stock
from codenas_hf.training import train

GOAL = 0.2  # of the parent's steps, within which the pruned model shall be where scratch is after all of them


def run(kind: str, share: float, *, setup: Setup, folder: Path) -> None:
    """One training: `pruned` from the parent, or `scratch` from new weights in the shape that was left."""
    torch.set_num_threads(1)
    budget = Budget("steps", max(1, round(share * setup.options.steps)))
    name = f"{kind}-{share:g}"
    if kind == "pruned":
        parent = export_stock(setup.trained(0))
        whole = setup.genome.num_parameters()
        job = PruneJob(
            settings=setup.seeded(0), data=setup.data, device=torch.device("cpu"), folder=folder / name,
            say=print, watch=lambda point: None,
        )  # fmt: skip
        sizes = [whole * setup.options.to ** (at / STEPS) for at in range(1, STEPS + 1)]
        model, genome, results = cut_in_steps(parent, setup.genome, sizes, budget=budget, job=job)
        model.save_pretrained(folder / f"{name}.model")
    else:
        genome = Genome.from_dict(read_json(folder / f"pruned-{GOAL:g}.json")["genome"])
        settings = setup.seeded(0)
        fresh = new_model(genome, train=settings.train, settings=settings.candidate, seed=0)
        tokens = setup.data.tokens(genome.vocab_size, "train")
        results = [train(fresh, tokens, budget, settings=settings.train)]
        save_file({name: p.detach().clone() for name, p in fresh.named_parameters()}, folder / f"{name}.safetensors")
    facts = {"genome": genome.to_dict(), "parameters": genome.num_parameters(), "share_of_steps": share}
    facts |= {"tokens": sum(r.tokens for r in results), "seconds": sum(r.seconds for r in results)}
    write_json(folder / f"{name}.json", {"start": kind, **facts})


def scored(path: Path, *, setup: Setup) -> Score:
    """The model of one run on the report text."""
    facts = read_json(path)
    model: PreTrainedModel
    if facts["start"] == "pruned":
        model = AutoModelForCausalLM.from_pretrained(path.with_suffix(".model"), dtype=torch.float32)
    else:
        genome = Genome.from_dict(facts["genome"])
        model = new_model(genome, train=setup.settings.train, settings=setup.settings.candidate, seed=0)
        model.load_state_dict(load_file(path.with_suffix(".safetensors")), strict=False)
    return score_passages(model.eval(), setup.report())


def main() -> None:
    """Works through the runs, then writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_words(parser)
    parser.add_argument("--to", type=float, default=0.5, help="share of the parameters that stays")
    parser.add_argument("--recover", type=float, nargs="+", default=[0.1, GOAL], help="shares of the parent's steps")
    options = parser.parse_args()
    setup = Setup(options)
    folder = setup.folder / f"pruned-to-{options.to:g}"
    folder.mkdir(parents=True, exist_ok=True)
    if options.run:
        kind, share = json.loads(options.run)
        run(kind, share, setup=setup, folder=folder)
        return
    shares = sorted({*options.recover, GOAL})
    for kind, wanted in (("pruned", shares), ("scratch", [1.0, *shares])):
        words = {
            folder / f"{kind}-{share:g}.json": [*sys.argv[1:], "--run", json.dumps([kind, share])] for share in wanted
        }
        work_off(partial(dict, words), module="benchmarks.pruning", workers=options.workers)
    scores = {path.stem: scored(path, setup=setup) for path in sorted(folder.glob("*.json"))}
    parent, full = score_passages(setup.trained(0), setup.report()), scores["scratch-1"]
    rows: list[dict[str, Any]] = [
        {"start": "the parent", "parameters": setup.genome.num_parameters(), "share_of_steps": 1.0,
         "bits_per_byte": parent.bits_per_byte, **_over(parent, full)},
    ]  # fmt: skip
    for name, score in scores.items():
        facts = {k: v for k, v in read_json(folder / f"{name}.json").items() if k != "genome"}
        rows.append({**facts, "bits_per_byte": score.bits_per_byte, **_over(score, full)})
    goals = []
    for share in shares:
        text = f"pruned, {share:g} of the steps: bits per byte over scratch with"
        for other, words_of in (("scratch-1", "all of them"), (f"scratch-{share:g}", "as many")):
            found = _over(scores[f"pruned-{share:g}"], scores[other])
            if other == "scratch-1" and share > GOAL:
                continue
            low, high = found["interval"]
            goals.append(
                target(f"{text} {words_of} (95 %: {low:.4f} to {high:.4f})", found["over_scratch"], 0, better="lower")
            )
    about = protocol(
        threads=1, genome=setup.genome.to_dict(), left=read_json(folder / f"pruned-{GOAL:g}.json")["genome"],
        steps=options.steps, tokens_per_step=setup.settings.train.tokens_per_step, cuts=STEPS, to=options.to,
        seeds=1, scored_bytes=SCORED, data=setup.data.digest[:16],
        interval="of the difference to scratch with all steps: 95 % over the projects of the text",
    )  # fmt: skip
    columns = [
        "start",
        "parameters",
        "share_of_steps",
        "tokens",
        "seconds",
        "bits_per_byte",
        "over_scratch",
        "interval",
    ]
    print(write("pruning", protocol=about, rows=rows, targets=goals, columns=columns))


def _over(score: Score, other: Score) -> dict[str, Any]:
    found = paired_difference(score, other)
    ends = None if found is None else [found.low, found.high]
    return {"over_scratch": score.bits_per_byte - other.bits_per_byte, "interval": ends}


if __name__ == "__main__":
    main()
