"""Opening the storage of a study: its journal file, or a database server by URL; errors without secrets."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from .journal import GuardedJournal

SERVER_ERRORS = (StorageInternalError, SQLAlchemyError)
JOURNAL_FILE = "study.journal"
_EXAMPLE = "such as postgresql+psycopg://user@host/database; leave it out for a journal file"
_CONNECT_S = 10
_TRIES = 5


class StorageError(ValueError):
    """The storage cannot be opened, or went away; its text holds no password."""


def open_storage(
    url: str | None, *, folder: Path, full_disk_wait_s: float = 60.0, lease_s: float = 30.0
) -> BaseStorage:
    """The storage at `url`, or the guarded journal file in `folder`.

    Args:
        url: any Optuna storage URL, such as `postgresql+psycopg://user@host/database`; None means the journal.
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
    arguments: dict[str, Any] = {}
    try:
        if make_url(url).get_backend_name() == "postgresql":
            limit = f"-c idle_in_transaction_session_timeout={int(1000 * lease_s)}"
            arguments = {
                "pool_pre_ping": True,
                "connect_args": {"options": limit, "connect_timeout": _CONNECT_S},
            }
    except (ArgumentError, ValueError):  # the original text may quote a part of the password
        reason = f"it is no URL of a database, {_EXAMPLE}; in a password write @ as %40, : as %3A, / as %2F"
        raise StorageError(_problem(url, reason)) from None
    for attempt in range(_TRIES):
        try:
            return optuna.storages.get_storage(RDBStorage(url, engine_kwargs=arguments))
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


def first_line(error: BaseException, url: str | None) -> str:
    """What a server said, in one line, without any part of the password in `url`."""
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
    found = re.findall(r"[?&][^=&]*pass[^=&]*=([^&]+)", url, flags=re.IGNORECASE)
    head = url.partition("?")[0] if found else url
    user = re.match(r"(?:[^:/@]*://)?[^:/@?]*:(?!//[^:]*@)(.*)@", head, flags=re.DOTALL)
    return [*found, user[1]] if user and user[1] else list(found)


def _problem(url: str, reason: str) -> str:
    return f"`storage` {shown_url(url)!r}: {reason}"
