"""One study on many machines: writes the files that start it, and says what to type; starts nothing by itself.

One process begins the study and releases its winner; the others (`codenas search --worker`) evaluate, and may come and
go. All of them find the study in one database.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..engine.storage import FROM_ENVIRONMENT, VARIABLE, shown_url
from ..folders import StudyFolder, whole_file
from ..hardware import VISIBLE, Hardware, visible_gpus
from ..strict_yaml import SettingsError
from .settings import RunSettings

_STORAGE = "search.storage="
_HOST = r"@db(?=[:/][^@]*$)"  # what the database is called in a URL of HF Jobs
_PATH = f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"  # the environment that writes this


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be started.

    Args:
        workers: processes, the one that begins the study among them.
        words: settings, as `codenas search` takes them.
        config: settings files.
        time: how long each process may run, as the batch system spells it.
        options: further lines for the batch system: `--partition=gpu` for SLURM, `--namespace me` for HF Jobs.
        flavor: hardware of each HF Job.
        package: what each HF Job installs, as pip reads it; HF Jobs need it.

    Raises:
        SettingsError: no worker, or a study without a database.
    """

    workers: int
    words: Sequence[str]
    config: Sequence[str] = ()
    time: str = "24:00:00"
    options: Sequence[str] = ()
    flavor: str = "cpu-upgrade"
    package: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise SettingsError(f"--workers must be at least 1, got {self.workers}")
        if self.url is None:
            raise SettingsError(
                "several machines share a study on a database, and none is named: add "
                "search.storage=postgresql+psycopg://user@host/database (docs/scaling.md starts one)"
            )

    @property
    def settings(self) -> RunSettings:
        """The settings as this machine reads them; the others read the same words."""
        return RunSettings.of(*self.words, config=self.config)

    @property
    def url(self) -> str | None:
        """Of the database."""
        return self.settings.search.storage

    @property
    def secret(self) -> bool:
        """Whether the URL holds a password, which stands in no file and no argument."""
        return self.url is not None and (self.url == FROM_ENVIRONMENT or shown_url(self.url) != self.url)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The variables of the environment that the processes need."""
        return (VARIABLE,) if self.secret else ()

    def command(self, *, worker: bool) -> str:
        """One process, for a shell. The URL is in the environment where it holds a password."""
        secret = [*self.plain_words, f"{_STORAGE}{FROM_ENVIRONMENT}"]
        given = secret if self.secret else [*self.config_words, *self.words]
        return shlex.join(["codenas", "search", *(["--worker"] if worker else []), *given])

    @property
    def config_words(self) -> list[str]:
        """The settings files as options."""
        return [word for name in self.config for word in ("--config", name)]

    @property
    def plain_words(self) -> list[str]:
        """All that is asked but the place of the database."""
        return [*self.config_words, *(word for word in self.words if not word.startswith(_STORAGE))]


@dataclass(frozen=True)
class Launch:
    """What was prepared.

    Args:
        files: name to text, for the launch folder.
        steps: what to type, in order; each line is a shell command, or a comment that says what for.
        submit: the commands that start it all.
        secrets: variables of the environment that they need.
    """

    files: dict[str, str]
    steps: tuple[str, ...]
    submit: tuple[str, ...]
    secrets: tuple[str, ...] = ()

    def write(self, folder: Path) -> list[Path]:
        """Writes the files, for their owner alone.

        Returns:
            Their places.
        """
        written = []
        for name, text in self.files.items():
            with whole_file(folder / name) as draft:
                draft.write_text(text, encoding="utf-8")
            (folder / name).chmod(0o700)
            written.append(folder / name)
        return written

    def start(self) -> int:
        """Runs what starts it all, in order, until one of the commands fails.

        Returns:
            The exit status of the last one that ran.

        Raises:
            SettingsError: a secret is not in the environment.
            FileNotFoundError: this machine has no such command.
        """
        for name in self.secrets:
            if not os.environ.get(name):
                raise SettingsError(f"nothing was started: {name} is not set; export {name}='...'")
        status = 0
        for line in self.submit:
            status = status or subprocess.run(shlex.split(line), check=False).returncode
        return status


def launch_folder(settings: RunSettings) -> Path:
    """Where the files of a study's launch go unless something else is said."""
    return StudyFolder(settings.folder / settings.study).launch


def local(wanted: Wanted, folder: Path) -> Launch:
    """A list of processes for this machine: its cores are divided among them, its GPUs go round."""
    hardware = Hardware.discover(wanted.settings.device)
    if wanted.settings.search.workers_per_rank is None and hardware.device == "cpu":
        each = max(1, hardware.count // wanted.workers)
        wanted = replace(wanted, words=[*wanted.words, f"search.workers_per_rank={each}"])

    gpus = visible_gpus() if hardware.device == "cuda" else ()

    def started(number: int) -> str:
        log = shlex.quote(str(folder.absolute() / f"{number}.log"))
        gpu = f"{VISIBLE}={gpus[number % len(gpus)]} " if gpus else ""
        return f'{gpu}{wanted.command(worker=number > 0)} >{log} 2>&1 & started="$started $!"'

    body = "\n".join(map(started, range(wanted.workers)))
    text = f"""#!/bin/sh
# {wanted.workers} processes of one study. The first begins it and releases the winner; any may be killed and
# started again. Ctrl-C stops all of them.
{_PATH}
cd {shlex.quote(str(Path.cwd()))} || exit
started=
trap 'kill $started 2>/dev/null' INT TERM
{body}
status=0
for process in $started; do wait "$process" || status=$?; done
exit $status
"""
    start = f"sh {shlex.quote(str(folder / 'local.sh'))}"
    return Launch({"local.sh": text}, (*_exported(wanted), start), (start,), wanted.secrets)


def slurm(wanted: Wanted, folder: Path) -> Launch:
    """A batch script for an array of jobs that may be pre-empted and are put back into the queue."""
    lines = [
        f"--job-name=codenas-{wanted.settings.study}",
        f"--array=0-{wanted.workers - 1}",
        f"--time={wanted.time}",
        "--requeue",
        "--open-mode=append",
        f"--output={folder.absolute()}/%a.log",
        "--signal=B:TERM@60",  # time to give a candidate back to the queue
        *wanted.options,
    ]
    head = "\n".join(f"#SBATCH {line}" for line in lines)
    text = f"""#!/bin/sh
# {wanted.workers} jobs of one study. Number 0 begins it and releases the winner; any may be pre-empted: what it
# was at goes back to the queue of the study, and SLURM starts it again.
{head}
set -e
{_PATH}
cd {shlex.quote(str(Path.cwd()))}
if [ "${{SLURM_ARRAY_TASK_ID:-0}}" -eq 0 ]; then
  exec {wanted.command(worker=False)}
fi
exec {wanted.command(worker=True)}
"""
    start = f"sbatch {shlex.quote(str(folder / 'slurm.sh'))}"
    steps = (*_exported(wanted), start, "squeue --me", "codenas status")
    return Launch({"slurm.sh": text}, steps, (start,), wanted.secrets)


def hf_jobs(wanted: Wanted, folder: Path) -> Launch:
    """A UV script that each HF Job runs, and the commands that start a database beside them and the jobs."""
    study = wanted.settings.study
    group = re.sub("[^a-z0-9-]+", "-", f"codenas-{study}".lower())[:46].strip("-")
    if wanted.settings.search.share is None:
        raise SettingsError(
            "HF Jobs have no folder in common: add search.share=hf://buckets/OWNER/NAME (`hf buckets create NAME`)"
        )
    if not wanted.secret:
        raise SettingsError(
            "HF Jobs find the database by a name of the platform: give "
            "'search.storage=postgresql+psycopg://codenas:PASSWORD@db/codenas' with a password of your own; `db` is "
            "replaced by the name that the database has in the group of the jobs"
        )
    url = os.environ.get(VARIABLE, "@db/") if wanted.url == FROM_ENVIRONMENT else str(wanted.url)
    if not re.search(_HOST, url):
        raise SettingsError(
            f"HF Jobs start a database of their own, whose name is `db`: expected ...@db/... in search.storage, got "
            f"{shown_url(url)}"
        )
    inputs = [word for word in wanted.plain_words if not word.startswith("folder=")]
    here = [part for word in inputs for part in re.split(r"[\[\],\s=]+", word) if _is_here(part)]
    if here:
        raise SettingsError(
            f"HF Jobs do not see the files of this machine, and {here[0]} is one: give what a settings file says as "
            "words, and text as hub:OWNER/NAME"
        )
    if wanted.package is None:
        raise SettingsError(
            "HF Jobs install this package, and no index has it yet: give --package with a place that they reach, such "
            "as 'codenas-hf @ git+https://HOST/OWNER/REPOSITORY'"
        )
    script = f'''# /// script
# requires-python = ">=3.11"
# dependencies = ["{wanted.package}", "psycopg[binary]>=3.2"]
#
# [tool.hf-jobs]
# flavor = "{wanted.flavor}"
# timeout = "{_hf_time(wanted.time)}"
# network_group = "{group}"
# secrets = ["{VARIABLE}", "HF_TOKEN"]
# ///
"""One process of the study {study}: `search.py` begins it and releases the winner, `search.py --worker` evaluates."""

import os
import re
import sys

from codenas_hf.cli.main import main

WORDS = {wanted.plain_words!r}

if __name__ == "__main__":
    group = os.environ.get("HF_NETWORK_GROUP_PREFIX", "")
    os.environ["{VARIABLE}"] = re.sub({_HOST!r}, f"@{{group}}db", os.environ["{VARIABLE}"])
    sys.exit(main(["search", *sys.argv[1:], *WORDS, "{_STORAGE}{FROM_ENVIRONMENT}"]))
'''
    name, more = shlex.quote(str(folder / "search.py")), "".join(f" {option}" for option in wanted.options)
    database = (
        f"hf jobs run --detach --name {group}-db --network-group {group} --network-alias db --flavor cpu-basic "
        f"--timeout {_hf_time(wanted.time)} --env POSTGRES_USER=codenas --env POSTGRES_DB=codenas "
        f"--secrets POSTGRES_PASSWORD{more} postgres:17 docker-entrypoint.sh postgres"
    )
    first = f"hf jobs uv run --detach --name {group}-0{more} {name}"
    others = [
        f"hf jobs uv run --detach --name {group}-{number} --attempts 10{more} {name} --worker"
        for number in range(1, wanted.workers)
    ]
    password = "# the password in the URL, for the database\nexport POSTGRES_PASSWORD=..."
    commands = (database, first, *others)
    steps, secrets = (*_exported(wanted), password, *commands), (*wanted.secrets, "POSTGRES_PASSWORD")
    return Launch({"search.py": script}, steps, commands, secrets)


WHERE: dict[str, Callable[[Wanted, Path], Launch]] = {"local": local, "slurm": slurm, "hf-jobs": hf_jobs}


def _exported(wanted: Wanted) -> tuple[str, ...]:
    """What sets the URL where it must not be written down."""
    return (f"# the URL with its password, which is in no file\nexport {VARIABLE}='...'",) if wanted.secret else ()


def _is_here(word: str) -> bool:
    """Whether a word of the settings is a path of this machine."""
    return ("/" in word or word.endswith((".yaml", ".json"))) and Path(word).expanduser().exists()


def _hf_time(text: str) -> str:
    """`24:00:00` as HF Jobs spell it; other texts as they are."""
    found = re.fullmatch(r"(\d+):(\d+):(\d+)", text)
    if not found:
        return text
    hours, minutes, seconds = map(int, found.groups())
    return f"{3600 * hours + 60 * minutes + seconds}s"
