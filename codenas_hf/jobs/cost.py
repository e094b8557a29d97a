"""What a search will cost, measured before it starts."""

from __future__ import annotations

import numpy as np
import torch

from ..architecture.genome import Genome
from ..architecture.space import SearchSpace
from ..data import PreparedData
from ..engine import Budget
from ..hardware import Hardware, alone
from ..measure.candidate import new_model
from ..training import accelerator_on, train
from .settings import RunSettings


def seconds_per_step(
    genome: Genome, *, settings: RunSettings, data: PreparedData, device: str, steps: int = 6
) -> float:
    """Seconds of one training step of a genome with one compute thread, measured now on `device`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = new_model(genome, train=settings.train, settings=settings.candidate, seed=0)
        tokens = data.tokens(genome.vocab_size, "train")
        with alone():  # the main rank measures; the others are not here to be waited for
            accelerator = accelerator_on(device)
            train(model, tokens, Budget("steps", 2), settings=settings.train, accelerator=accelerator)  # warm-up
            result = train(model, tokens, Budget("steps", steps), settings=settings.train, accelerator=accelerator)
    finally:
        torch.set_num_threads(threads)
    return result.seconds_run / result.steps_run


def cost_lines(settings: RunSettings, *, space: SearchSpace, data: PreparedData, hardware: Hardware) -> list[str]:
    """What a search will cost, from a short measurement of a middling architecture, and how to go bigger."""
    ladder = settings.search
    rng = np.random.default_rng(0)
    genomes = sorted((space.sample(rng) for _ in range(31)), key=Genome.num_parameters)
    middle = genomes[len(genomes) // 2]
    workers = ladder.workers_per_rank or hardware.count
    counts, budgets = ladder.expected, [rung.budget for rung in ladder.rungs]
    totals = [budget.amount for budget in budgets]
    added = [after - before for before, after in zip([0.0, *totals], totals, strict=False)]
    per_unit = 1.0
    if budgets[0].kind != "seconds":
        step_s = seconds_per_step(middle, settings=settings, data=data, device=hardware.device)
        tokens = settings.train.tokens_per_step
        bytes_per_token = data.tokens(middle.vocab_size, "train").bytes_per_token
        flops = 6.0 * middle.num_parameters() * tokens
        units = {"steps": 1.0, "tokens": tokens, "bytes": tokens * bytes_per_token, "flops": flops}
        per_unit = step_s / units[budgets[0].kind]
    seconds = ladder.generations * sum(n * more for n, more in zip(counts, added, strict=True)) * per_unit / workers
    trials = ladder.generations * sum(counts)
    longer = ", ".join(str(Budget(budget.kind, 4 * budget.amount)) for budget in ladder.budgets)
    return [
        f"space     {settings.space}: {space.size():,} architectures; a sample has "
        f"{genomes[0].num_parameters() / 1e6:.2f} to {genomes[-1].num_parameters() / 1e6:.2f} million parameters",
        f"search    {ladder.generations} generations of {ladder.population}, {workers} at a time; "
        + ", then ".join(f"{n} x {budget}" for n, budget in zip(counts, budgets, strict=True))
        + (", more or fewer as forecast" if ladder.stages == "adaptive" else ""),
        f"cost      about {seconds / 60:.0f} minutes of training as measured on a middling architecture; at most "
        f"{trials * 14 * middle.num_parameters() / 1e6:.0f} MB of disk",
        f"bigger    search.generations={2 * ladder.generations}, search.budgets='[{longer}]', another space; files in "
        "configs/",
    ]
