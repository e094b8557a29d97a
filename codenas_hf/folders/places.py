"""Where a release and a study keep their files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import (
    CONFIG,
    DATA,
    EVALUATION,
    FINISH,
    JOURNAL,
    LATENCY,
    PARENT,
    PLAN,
    PRECISION,
    RECORD,
    SETTINGS,
    TOKENIZER,
    WINNER,
    folder_bytes,
    read_json,
)
from .record import Record

RELEASED = "model_cards/codenas-py-4mb"  # a trained model that comes with the package


def cache_folder() -> Path:
    """Where copies are kept: `CODENAS_CACHE`, else `codenas` in the user's cache folder."""
    given = os.environ.get("CODENAS_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "codenas"


def bundled_folder(name: str) -> Path:
    """A folder that lies beside the package in a checkout, and inside it in an installed wheel.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{name}/ is neither in {package} nor beside it; install codenas-hf again")


def default_model(runs: Path = Path("runs")) -> Path:
    """The model that is meant where none is named: the newest release in a folder of studies, else the bundled one.

    Args:
        runs: the folder of studies, there or not.

    Raises:
        FileNotFoundError: no release, and the package came without its model.
    """
    newest = max(Release.all_in(runs), key=lambda release: release.config.stat().st_mtime, default=None)
    return bundled_folder(RELEASED) if newest is None else newest.folder


@dataclass(frozen=True)
class Release:
    """A folder with one model, which `AutoModelForCausalLM` loads, and what is told of it."""

    folder: Path

    @classmethod
    def all_in(cls, runs: Path) -> list[Release]:
        """Winners of the studies in a folder of runs, then what was trained or pruned there, both by name."""
        folders = sorted(runs.glob("*/"))
        found = [StudyFolder(folder).winner for folder in folders]
        found += [cls(folder) for folder in folders if cls(folder).record.is_file()]
        return [release for release in found if release.config.is_file() and release.weights]

    @classmethod
    def find(cls, path: Path) -> Release:
        """A release by its own folder, or by that of the study whose winner it is.

        Raises:
            FileNotFoundError: neither.
        """
        for release in (cls(path), StudyFolder(path).winner):
            if release.config.is_file() and release.weights:
                return release
        raise FileNotFoundError(
            f"{path} is no release and has no {WINNER}/: expected {CONFIG} and *.safetensors; "
            "finish the search first, or name the release folder"
        )

    @classmethod
    def around(cls, model: Path) -> Release:
        """The release that a name means, which may be that of a file in it."""
        return cls(model.parent if model.is_file() else model)

    def check_replaceable(self) -> None:
        """Refuses to take the place of something that is no release.

        Raises:
            FileExistsError: the folder holds other things, or it is a file.
        """
        if self.folder.is_dir() and (self.record.is_file() or not any(self.folder.iterdir())):
            return
        if self.folder.exists() or self.folder.is_symlink():
            raise FileExistsError(
                f"{self.folder} is there already and holds no {RECORD}, so it is no release and is not replaced; "
                "name a new folder"
            )

    @property
    def fills_gaps(self) -> bool | None:
        """Whether its training held gaps to fill; None where that is not known."""
        try:
            return self.read_record().fills_gaps
        except (OSError, ValueError):
            return None

    @property
    def config(self) -> Path:
        """The configuration, for transformers."""
        return self.folder / CONFIG

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's main file."""
        return self.folder / TOKENIZER

    @property
    def weights(self) -> list[Path]:
        """The files of weights, in order."""
        return sorted(self.folder.glob("*.safetensors"))

    @property
    def record(self) -> Path:
        """How it was found, trained and measured."""
        return self.folder / RECORD

    @property
    def settings(self) -> Path:
        """The resolved settings of the run."""
        return self.folder / SETTINGS

    @property
    def evaluation(self) -> Path:
        """What `codenas evaluate` measured."""
        return self.folder / EVALUATION

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights alone."""
        return sum(path.stat().st_size for path in self.weights)

    def coded(self, form: str) -> Path:
        """The GGUF file of a storage format, beside the weights for transformers where a study ships codes."""
        return self.folder / f"model-{form}.gguf"

    @property
    def shipped(self) -> Path | None:
        """The GGUF file that the study shipped; None where it shipped the folder."""
        return next(iter(sorted(self.folder.glob("model-*.gguf"))), None)

    @property
    def artifact_bytes(self) -> int:
        """Bytes that must be shipped: of the GGUF file, else weights, tokenizer, configuration."""
        return folder_bytes(self.folder) if self.shipped is None else self.shipped.stat().st_size

    @property
    def study(self) -> StudyFolder | None:
        """The study around it; None for a release that stands alone."""
        around = StudyFolder(self.folder.parent)
        return around if around.report.is_dir() or around.settings.is_file() else None

    def read_config(self) -> dict[str, Any]:
        """The configuration as an object."""
        return read_json(self.config)

    def read_record(self) -> Record:
        """The record.

        Raises:
            FileNotFoundError: it has none.
            RecordError: it is damaged, or of a newer schema.
        """
        return Record.read(self.folder)


@dataclass(frozen=True)
class StudyFolder:
    """The folder of one study."""

    folder: Path

    @classmethod
    def all_in(cls, folder: Path) -> list[StudyFolder]:
        """The studies in a folder such as `runs/`, by name; releases of `codenas train` lie there too."""
        folders = [path.parent for path in sorted(folder.glob(f"*/{SETTINGS}"))]
        return [cls(each) for each in folders if not Release(each).record.is_file()]

    @property
    def name(self) -> str:
        """The study's name."""
        return self.folder.name

    @property
    def settings(self) -> Path:
        """The resolved settings."""
        return self.folder / SETTINGS

    @property
    def data(self) -> Path:
        """Which data the study has."""
        return self.folder / DATA

    @property
    def latency(self) -> Path:
        """The latency model of its device."""
        return self.folder / LATENCY

    @property
    def precision(self) -> Path:
        """The number format of its training."""
        return self.folder / PRECISION

    @property
    def plan(self) -> Path:
        """What `search.time` was planned to be."""
        return self.folder / PLAN

    @property
    def finish(self) -> Path:
        """How the winner trains on after the search."""
        return self.folder / FINISH

    @property
    def parent(self) -> Path:
        """Which parent a study squeezes."""
        return self.folder / PARENT

    @property
    def finish_training(self) -> Path:
        """The training state of the winner."""
        return self.folder / f"{WINNER}.training"

    @property
    def journal(self) -> Path:
        """The record of the search, where it is not in a database."""
        return self.folder / JOURNAL

    @property
    def launch(self) -> Path:
        """What starts the study on many machines, and what its processes say."""
        return self.folder / "launch"

    @property
    def trials(self) -> Path:
        """Checkpoints of the candidates."""
        return self.folder / "trials"

    @property
    def report(self) -> Path:
        """Tables, pictures and one page."""
        return self.folder / "report"

    @property
    def winner(self) -> Release:
        """The release of the winner, there or not."""
        return Release(self.folder / WINNER)
