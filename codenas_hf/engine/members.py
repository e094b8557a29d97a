"""Which processes work on a study, which of them leads, and which are dead.

Every process is a running trial of `<name>/members`, with its host, process id and a heartbeat. The leader, which
proposes and promotes, is the oldest living member of rank 0; when it dies, the next one leads without any election.
A process is dead when it left, when its host says that it is gone, or (on a server database, where hosts cannot look
at each other) when its heartbeat stood still for the lease, by the observer's clock: clocks are never compared.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

logger = logging.getLogger(__name__)


class Members:
    """This process's view of the members of a study.

    Args:
        storage: the study's storage.
        study_id: the study `<name>/members` there.
        rank: of this process; only rank 0 may lead.
        heartbeat_s: seconds between heartbeats; None where all members share this host (a journal).
        lease_s: a heartbeat that stood still for so long means death.
    """

    def __init__(
        self, storage: BaseStorage, study_id: int, *, rank: int, heartbeat_s: float | None, lease_s: float
    ) -> None:
        self._storage = storage
        self._study_id = study_id
        self._rank = rank
        self._heartbeat_s = heartbeat_s
        self._lease_s = lease_s
        self._seen: dict[tuple[str, int], tuple[Any, float]] = {}
        self._follows_until = -math.inf
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.worker = f"{socket.gethostname()}:{os.getpid()}"
        self._key = uuid.uuid4().hex
        self.number = -1
        self._trial_id = -1

    def join(self) -> None:
        """Enters this process and starts its heartbeat."""
        me = {
            "host": host_key(),
            "pid": os.getpid(),
            "started": process_started(os.getpid()),
            "parent": parent_key(),
            "rank": self._rank,
            "worker": self.worker,
            "key": self._key,
            "heartbeat": 0,
        }
        template = create_trial(state=TrialState.RUNNING, user_attrs=me)
        self._trial_id = self._storage.create_new_trial(self._study_id, template_trial=template)
        self.number = self._storage.get_trial(self._trial_id).number
        if self._heartbeat_s is not None and self._thread is None:
            self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._thread.start()

    def leave(self) -> None:
        """Stops the heartbeat and takes this process out."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        try:
            self._end(self._trial_id)
        except Exception as error:  # a full disk or a server that is away: the others see that this process is gone
            logger.warning("This process could not take itself out of the study: %s", error)

    def clear(self) -> None:
        """Takes out everybody: only for the one job that holds a journal's lock."""
        for trial in self._running():
            self._end(trial._trial_id)

    def leads(self) -> bool:
        """Whether this process leads now. One that was declared dead while it slept enters again, at the end.

        On a server database, one that does not lead looks again after a heartbeat only: with many processes, reading
        all of them would be most of what the server has to do.
        """
        now = time.monotonic()
        if now < self._follows_until:
            return False
        living = self.living()
        if self.number not in living:
            logger.warning("This process was taken for dead (it stood still for too long) and enters the study again.")
            self.join()
            living = self.living()
        candidates = [number for number, trial in living.items() if trial.user_attrs["rank"] == 0]
        leads = bool(candidates) and min(candidates) == self.number
        self._follows_until = -math.inf if leads else now + (self._heartbeat_s or 0.0)
        return leads

    def living(self) -> dict[int, FrozenTrial]:
        """The living members by number; takes out the dead ones that it meets."""
        living = {}
        for trial in self._running():
            if trial.number != self.number and trial.user_attrs.get("key") == self._key:
                self._end(trial._trial_id)  # entered by us, but the server went away before it could say so
            elif trial.number != self.number and self._is_dead(trial):
                logger.warning("Process %s of the study is gone.", trial.user_attrs["worker"])
                self._end(trial._trial_id)
            else:
                living[trial.number] = trial
        return living

    def excuse(self, seconds: float) -> None:
        """Every lease is longer by so much: while the server was away nobody could show a sign of life."""
        self._seen = {key: (value, since + seconds) for key, (value, since) in self._seen.items()}

    def leader_of(self, parent: str) -> bool:
        """Whether a rank 0 that `parent` started (see `parent_key`) is alive."""
        return any(
            trial.user_attrs["rank"] == 0 and trial.user_attrs["parent"] == parent for trial in self.living().values()
        )

    def runner_is_dead(self, trial: FrozenTrial, living: dict[int, FrozenTrial]) -> bool:
        """Whether nobody alive runs this trial of a rung."""
        member = trial.user_attrs.get("claim", {}).get("member")
        if trial.state is TrialState.RUNNING and member in living:
            return False
        if member is not None:
            return True
        # Claimed, and killed or still about to write who it is: the lease tells.
        return self._still(("trial", trial._trial_id), trial.datetime_start)

    def _running(self) -> list[FrozenTrial]:
        return self._storage.get_all_trials(self._study_id, deepcopy=False, states=(TrialState.RUNNING,))

    def _is_dead(self, trial: FrozenTrial) -> bool:
        attributes = trial.user_attrs
        if attributes["host"] == host_key():
            return bool(process_started(attributes["pid"]) != attributes["started"])
        return self._still(("member", trial.number), attributes["heartbeat"])

    def _still(self, key: tuple[str, int], value: Any) -> bool:
        now = time.monotonic()
        known, since = self._seen.get(key, (None, now))
        if known != value:
            known, since = value, now
        self._seen[key] = (known, since)
        return now - since > self._lease_s

    def _end(self, trial_id: int) -> None:
        try:
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            pass

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(self._heartbeat_s):
            count += 1
            try:
                self._storage.set_trial_user_attr(self._trial_id, "heartbeat", count)
            except UpdateFinishedTrialError:
                pass  # taken for dead; `leads` enters again
            except Exception as error:
                logger.warning("The heartbeat was not recorded: %s", error)


def host_key() -> str:
    """Names this machine and its process id space, so that two containers of one name are told apart."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def process_started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None when it is gone or a zombie. Tells reused ids apart."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def parent_key() -> str:
    """Names the process that started this one; the ranks of one launch on one machine share it."""
    return f"{host_key()}:{os.getppid()}:{process_started(os.getppid())}"
