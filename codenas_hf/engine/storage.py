"""Opening the storage of a study: its journal file, or a database server by URL; errors without secrets."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import TrialState
from sqlalchemy import column, event, literal_column, select, table, update
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from .journal import GuardedJournal

logger = logging.getLogger(__name__)

T = TypeVar("T")

JOURNAL_FILE = "study.journal"
VARIABLE = "CODENAS_STORAGE"  # environment: the URL of a database, where it holds a password
FROM_ENVIRONMENT = f"${VARIABLE}"  # stands for that URL in files and arguments
_EXAMPLE = "such as postgresql+psycopg://user@host/database; leave it out for a journal file"
_CONNECT_S = 10
_TRIES = 5


class StorageError(ValueError):
    """The storage cannot be opened, or went away; its text holds no password."""


class ServerGoneError(Exception):
    """The database server went away in the middle of a question: it may have done what it was asked, or not."""


SERVER_ERRORS = (ServerGoneError, StorageInternalError, SQLAlchemyError)


def open_storage(
    url: str | None, *, folder: Path, full_disk_wait_s: float = 60.0, lease_s: float = 30.0
) -> BaseStorage:
    """The storage at `url`, or the guarded journal file in `folder`.

    Args:
        url: any Optuna storage URL, such as `postgresql+psycopg://user@host/database`, or `$CODENAS_STORAGE` for the
            one in the environment; None means the journal.
        folder: the folder of the search; created when missing.
        full_disk_wait_s: how long a write to the journal waits for space.
        lease_s: PostgreSQL ends a transaction whose process stood still for so long; else a frozen machine would hold
            its locks, and with them everybody else, for hours.

    Raises:
        JournalError: the journal is damaged.
        StorageError: the URL is none, its driver is not installed, or nobody answers there.
    """
    if url is None:
        folder.mkdir(parents=True, exist_ok=True)
        return GuardedJournal(folder / JOURNAL_FILE, full_disk_wait_s=full_disk_wait_s).open()
    if url == FROM_ENVIRONMENT:
        url = os.environ.get(VARIABLE)
        if not url:
            raise StorageError(
                f"the study lies on a database whose URL, with its password, is in no file: export {VARIABLE}='...'"
            )
    arguments: dict[str, Any] = {}
    try:
        if make_url(url).get_backend_name() == "postgresql":
            # One connection is kept, and a second one only while opening, or the heartbeat, needs it: a server has a
            # hundred, unless told otherwise, and refuses every further one.
            arguments = {
                **{"pool_size": 1, "max_overflow": 1, "pool_pre_ping": True},
                "connect_args": _patience_of_connections(lease_s),
            }
    except (ArgumentError, ValueError):  # the original text may quote a part of the password
        reason = f"it is no URL of a database, {_EXAMPLE}; in a password write @ as %40, : as %3A, / as %2F"
        raise StorageError(_problem(url, reason)) from None
    for attempt in range(_TRIES):
        try:
            database = RDBStorage(url, engine_kwargs=arguments)
            event.listen(database.engine, "handle_error", _gone)
            return Database(database)
        except NoSuchModuleError as error:
            written = "; write postgresql:// for postgres://" if url.startswith("postgres:") else ""
            reason = f"no such kind of database is known, {_EXAMPLE}{written}"
            raise StorageError(_problem(url, reason)) from error
        except ImportError as error:
            reason = "its driver is not installed: pip install psycopg[binary] for postgresql+psycopg://, "
            raise StorageError(_problem(url, f"{reason}pymysql for mysql+pymysql://")) from error
        except Exception as error:  # two launchers may make the tables at the same moment; the second try finds them
            if attempt == _TRIES - 1:
                raise StorageError(_problem(url, f"{first_line(error, url)}: is the server up?")) from error
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError


class Database(_CachedStorage):
    """What `optuna.storages.get_storage` makes of a database, and its first waiting trial in one question.

    Without that, everybody reads all that waits, which costs tens of milliseconds, and then all race for the same.

    Args:
        database: where it lies.
    """

    def __init__(self, database: RDBStorage) -> None:
        super().__init__(database)
        self._engine = database.engine

    def take_first(self, study_id: int) -> int | None:
        """As the function of this name; passes over a trial that somebody else takes at this moment."""
        trials = table("trials", *map(column, ("trial_id", "study_id", "state", "datetime_start")))
        state: dict[TrialState, Any] = {
            each: literal_column(f"'{each.name}'") for each in (TrialState.WAITING, TrialState.RUNNING)
        }
        waits = trials.c.state == state[TrialState.WAITING]
        first = select(trials.c.trial_id).where(trials.c.study_id == study_id, waits).order_by(trials.c.trial_id)
        with self._engine.begin() as connection:
            found = connection.execute(first.limit(1).with_for_update(skip_locked=True)).scalar()
            if found is None:
                return None
            taken = update(trials).where(trials.c.trial_id == found, waits)
            values = {"state": state[TrialState.RUNNING], "datetime_start": datetime.now()}
            return int(found) if connection.execute(taken.values(values)).rowcount else None


def take_first(storage: BaseStorage, study_id: int) -> int | None:
    """Switches the first waiting trial of a study to running, for nobody else.

    Returns:
        Its identifier; None when none waits.
    """
    if (at_once := getattr(storage, "take_first", None)) is not None:
        found: int | None = at_once(study_id)
        return found
    for trial in storage.get_all_trials(study_id, deepcopy=False, states=(TrialState.WAITING,)):
        try:
            if storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                return trial._trial_id
        except UpdateFinishedTrialError:
            continue
    return None


def _gone(context: ExceptionContext) -> None:
    """Else Optuna would add a trial a second time where only the answer to the first was lost."""
    if context.is_disconnect and not context.is_pre_ping:
        raise ServerGoneError(str(context.original_exception)) from context.original_exception


def _patience_of_connections(lease_s: float) -> dict[str, Any]:
    """When a connection to PostgreSQL is given up, on both ends.

    Without it a machine whose network went away hangs in its last question for a quarter of an hour, and the server
    keeps its transaction, and with it everybody else, for as long.
    """
    silent_s = max(3, round(lease_s / 3))
    ours = {
        "keepalives_idle": silent_s,
        "keepalives_interval": max(1, silent_s // 3),
        "keepalives_count": 3,
        "tcp_user_timeout": 2000 * silent_s,
    }
    theirs = {
        "idle_in_transaction_session_timeout": round(1000 * lease_s),
        **{name if name.startswith("tcp") else f"tcp_{name}": value for name, value in ours.items()},
    }
    options = " ".join(f"-c {name}={value}" for name, value in theirs.items())
    return {**ours, "options": options, "connect_timeout": _CONNECT_S}


class ServerAway:
    """How long a database server has been away.

    Args:
        url: of the storage, for its secrets.
        seconds: how long it may be away.

    Attributes:
        gone: whether it went away since it last `answered`.
    """

    def __init__(self, url: str | None, *, seconds: float) -> None:
        self._url = url
        self._seconds = seconds
        self._since = self._told = time.monotonic()
        self.gone = False

    def answered(self) -> None:
        """It is there, and did all that it was asked."""
        self._since = time.monotonic()
        self.gone = False

    def missed(self) -> float:
        """Seconds since it was there, each of them told once."""
        before, self._told = max(self._told, self._since), time.monotonic()
        return self._told - before

    def wait(self, error: Exception) -> None:
        """Waits a moment after `error`.

        Raises:
            StorageError: it was away for too long.
        """
        self.gone = True
        reason = first_line(error, self._url)
        if time.monotonic() - self._since > self._seconds:
            raise StorageError(
                f"the database server is away ({reason}); what is finished is kept: run the same command again"
            ) from error
        logger.warning("The database server does not answer, trying again: %s", reason)
        time.sleep(1.0)


def patiently(
    step: Callable[[], T], *, url: str | None, seconds: float, meanwhile: Callable[[], None] = lambda: None
) -> T:
    """`step`, which may be done twice, again and again while the database server is away.

    Args:
        step: what to do.
        url: of the storage.
        seconds: how long the server may be away.
        meanwhile: called between two tries; may raise.

    Raises:
        StorageError: it was away for too long.
    """
    away = ServerAway(url, seconds=seconds)
    while True:
        try:
            return step()
        except SERVER_ERRORS as error:
            away.wait(error)
        meanwhile()


def first_line(error: BaseException, url: str | None) -> str:
    """What a server said, in one line, without any part of the password in `url`."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:  # Optuna's own text names no reason
        error = error.__cause__
    text = str(error).strip().partition("\n")[0].strip()
    parts = [part for secret in _secrets(url or "") for part in re.split(r"[@:/]", secret)]
    for part in sorted(parts, key=len, reverse=True):
        text = text.replace(part, "***") if len(part) > 2 else text
    return text or type(error).__name__


def shown_url(url: str) -> str:
    """A storage URL without its password."""
    for secret in _secrets(url):
        url = url.replace(secret, "***")
    return url


def _secrets(url: str) -> list[str]:
    """Passwords in the query, and from the first colon behind the user to the last @, escaped or not."""
    url = os.environ.get(VARIABLE, "") if url == FROM_ENVIRONMENT else url
    found = re.findall(r"[?&][^=&]*pass[^=&]*=([^&]+)", url, flags=re.IGNORECASE)
    head = url.partition("?")[0] if found else url
    user = re.match(r"(?:[^:/@]*://)?[^:/@?]*:(?!//[^:]*@)(.*)@", head, flags=re.DOTALL)
    return [*found, user[1]] if user and user[1] else list(found)


def _problem(url: str, reason: str) -> str:
    return f"`storage` {shown_url(url)!r}: {reason}"
