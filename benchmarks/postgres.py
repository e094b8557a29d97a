"""A PostgreSQL server of one's own on the loopback, that can be killed and started again."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path


def binaries() -> Path | None:
    """Where the newest server program of this machine lies; None when there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return found[-1].parent if found else None


class Postgres:
    """A fresh server; `start` starts it, also after it was killed.

    Args:
        home: folder of its data, of nobody else's.
        address: where it listens, and its socket lies in `home`.
        within: words before every command, such as `ip netns exec NAME`.
        connections: how many at the same time; each process of a search has two.

    Raises:
        FileNotFoundError: no server program in /usr/lib/postgresql.
    """

    def __init__(
        self, home: Path, *, address: str = "127.0.0.1", within: tuple[str, ...] = (), connections: int = 100
    ) -> None:
        folder = binaries()
        if folder is None:
            raise FileNotFoundError(
                "no PostgreSQL server program in /usr/lib/postgresql/*/bin: apt-get install postgresql"
            )
        self.home, self.address, self._folder, self._connections = home, address, folder, connections
        self._process: subprocess.Popen[bytes] | None = None
        user = pwd.getpwuid(os.getuid()).pw_name
        run_as: list[str] = []
        if os.getuid() == 0:  # the server refuses to run as root
            user = "postgres"
            run_as = ["runuser", "-u", user, "--"]
            shutil.chown(home, user)
            for parent in home.parents:
                with contextlib.suppress(PermissionError):
                    parent.chmod(parent.stat().st_mode | 0o011)
        self._run_as = [*within, *run_as]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        data = home / "data"
        command = [
            *self._run_as,
            str(folder / "initdb"),
            "-D",
            str(data),
            "-U",
            "search",
            "--auth=trust",
            "-E",
            "UTF8",
        ]
        subprocess.run(command, check=True, capture_output=True, cwd=home)
        with open(data / "pg_hba.conf", "a", encoding="utf-8") as file:
            file.write("host all all 10.0.0.0/8 trust\n")  # where `address` is one of a private network

    def url(self, database: str = "postgres") -> str:
        """The storage URL of one of its databases."""
        return f"postgresql+psycopg://search@{self.address}:{self.port}/{database}"

    def start(self, *, seconds: float = 60) -> None:
        """Starts it and waits until it answers.

        Raises:
            TimeoutError: it does not; its log is in `home`.
        """
        deadline = time.monotonic() + seconds
        while not self.answers():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the database does not start: look at {self.home}/log")
            if self._process is None or self._process.poll() is not None:
                # One that was killed leaves children for a moment, and until they are gone a new one ends at once.
                with open(self.home / "log", "ab") as log:
                    self._process = subprocess.Popen(
                        [
                            *(*self._run_as, str(self._folder / "postgres"), "-D", str(self.home / "data")),
                            *("-c", f"listen_addresses={self.address}", "-p", str(self.port)),
                            *("-c", f"unix_socket_directories={self.home}"),
                            *("-c", f"max_connections={self._connections}"),
                        ],
                        stdout=log,
                        stderr=log,
                        cwd=self.home,
                    )
            time.sleep(0.1)

    def answers(self) -> bool:
        """Whether it takes connections now."""
        command = [*self._run_as, str(self._folder / "pg_isready"), "-h", str(self.home), "-p", str(self.port)]
        return subprocess.run(command, capture_output=True, cwd=self.home).returncode == 0

    @property
    def pid(self) -> int | None:
        """Of its main process; None when it does not run."""
        try:
            return int((self.home / "data" / "postmaster.pid").read_text().splitlines()[0])
        except (OSError, IndexError, ValueError):
            return None

    def kill(self) -> None:
        """Kills its main process, as a machine does that runs out of memory."""
        if (pid := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(timeout=60)

    def stop(self) -> None:
        """Ends it."""
        command = [
            *self._run_as,
            str(self._folder / "pg_ctl"),
            "-D",
            str(self.home / "data"),
            "stop",
            "-m",
            "immediate",
        ]
        subprocess.run(command, cwd=self.home, capture_output=True)
        if self._process is not None:
            self._process.wait(timeout=60)

    def create(self, database: str) -> str:
        """A new database in it.

        Returns:
            Its storage URL.
        """
        command = [
            str(self._folder / "createdb"),
            "-h",
            str(self.home),
            "-p",
            str(self.port),
            "-U",
            "search",
            database,
        ]
        subprocess.run([*self._run_as, *command], check=True, capture_output=True, cwd=self.home)
        return self.url(database)
