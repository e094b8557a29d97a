"""A whole search as a program, for tests that kill it: `search_program.py FOLDER [name=value ...]`.

Writes the records to FOLDER/records.json when it is done. Options: seconds, generations, population, keep, workers,
storage, heartbeat, lease, disk, confirm, far, adaptive, seed.
"""

import json
import logging
import sys
from pathlib import Path

import light_codenas  # noqa: F401  # before codenas_hf
from integer_space import Confirm, Evaluate, IntegerSpace

from codenas_hf.engine import members
from codenas_hf.engine.driver import run_search
from codenas_hf.engine.settings import Patience, SearchSettings, two_stage

if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    folder = Path(sys.argv[1])
    options = dict(word.split("=", 1) for word in sys.argv[2:])
    if "far" in options:  # as if on another machine: this process cannot see the others, nor they this one
        members.host_key = lambda: "far away"
    population = int(options.get("population", "8"))
    settings = SearchSettings(
        objectives=("a", "b"),
        population=population,
        generations=int(options.get("generations", "5")),
        rungs=two_stage(population=population, keep=int(options.get("keep", "3"))),
        workers_per_rank=int(options.get("workers", "2")),
        adaptive="adaptive" in options,
        seed=int(options.get("seed", "0")),
        storage=options.get("storage"),
        name="killed",
        patience=Patience(
            kills=1000,
            heartbeat_s=float(options.get("heartbeat", "5")),
            lease_s=float(options.get("lease", "30")),
            full_disk_s=float(options.get("disk", "60")),
        ),
    )
    result = run_search(
        IntegerSpace(),
        Evaluate(seconds=float(options.get("seconds", "0.1")), log=folder / "log"),
        folder=folder / options.get("study", "study"),
        settings=settings,
        confirm=Confirm(folder / "confirmed") if "confirm" in options else None,
        preload=["light_codenas", "integer_space"],
    )
    records = [{**record.to_dict(), "worker": None} for record in (*result.records, *result.confirmed)]
    target = folder / options.get("records", "records.json")
    target.write_text(json.dumps(records))
    print("done", flush=True)
