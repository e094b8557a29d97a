"""A whole search as a program, for tests that kill it: `search_program.py FOLDER [name=value ...]`.

Writes the records to FOLDER/records.json when it is done. Options: seconds, generations, population, keep, workers,
storage, heartbeat, lease, disk, confirm, far, adaptive, seed, clock, cut.
"""

import json
import logging
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import light_codenas  # noqa: F401  # before codenas_hf
from integer_space import Confirm, Evaluate, IntegerSpace

from codenas_hf.engine import members
from codenas_hf.engine.driver import run_search
from codenas_hf.engine.settings import Patience, SearchSettings, two_stage
from codenas_hf.engine.storage import Database

CUTS = {  # behind which question the server goes away: one of these names, the key of an attribute
    "take": ("take_first", None),
    "claim": ("set_trial_user_attr", "claim"),
    "tell": ("set_trial_user_attr", "evaluation"),
    "heartbeat": ("set_trial_user_attr", "heartbeat"),
    "poll": ("get_all_trials", None),
    "propose": ("create_new_trial", None),
}


def cut(url: str, kind: str, at: int) -> None:
    """The server lets nobody in for two seconds, as soon as it has answered a kind of question so often."""
    import psycopg

    name, wanted = CUTS[kind]
    server, database = url.replace("+psycopg", "").rsplit("/", 1)
    ask, seen = getattr(Database, name), [0]

    def allow(value: str) -> None:
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS {value}')
            if value == "false":
                ours = "FROM pg_stat_activity WHERE datname = %s"
                connection.execute(f"SELECT pg_terminate_backend(pid) {ours}", [database])
                while connection.execute(f"SELECT pid {ours}", [database]).fetchall():
                    time.sleep(0.001)

    def and_cut(*words: Any, **more: Any) -> Any:
        answer = ask(*words, **more)
        seen[0] += wanted in (None, more.get("key"), *words[2:3])
        if seen[0] == at:
            seen[0] += 1
            allow("false")
            threading.Timer(2, allow, ["true"]).start()
            logging.warning("cut behind %s", kind)
        return answer

    setattr(Database, name, and_cut)


def set_clock(ahead_s: float) -> None:
    """As on a machine whose clock is wrong."""
    from optuna.storages._rdb import storage

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=ahead_s)

    right = time.time
    storage.datetime = Wrong  # type: ignore[attr-defined]
    time.time = lambda: right() + ahead_s


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    folder = Path(sys.argv[1])
    options = dict(word.split("=", 1) for word in sys.argv[2:])
    if "far" in options:  # as if on another machine: this process cannot see the others, nor they this one
        members.host_key = lambda: "far away"
    if "clock" in options:
        set_clock(float(options["clock"]))
    if "cut" in options:
        kind, at = options["cut"].split(":")
        cut(options["storage"], kind, int(at))
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
