"""The settings of a whole run: what each part owns, composed; and the files of `configs/` by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data import CorpusSettings, TokenizerSettings
from ..folders import Release, StudyFolder
from ..folders.ranges import check_range
from ..hardware import Hardware
from ..measure.candidate import CandidateSettings
from ..measure.shipped import ShipSettings
from ..measure.squeezed import SqueezeSettings
from ..release.hub import PublishSettings
from ..strict_yaml import SettingsError, load, parse_overrides, read_yaml
from ..training import TrainSettings
from .durations import Duration
from .wanted import PLANNED, LadderSettings, LatencySettings, LimitSettings, WeightSettings

_TAKEN = ("data", "latency", "trackers")  # what else lies in the folder of studies
_OF_A_MACHINE = ("folder", "device", "corpus.archives", "train.precision")
_PACKAGE = Path(__file__).parents[1]


def config_path(name: str | Path, *, kind: str = "") -> Path:
    """A file of `configs/`: a path as given, or a name such as `cpu`.

    Args:
        name: the path or the name.
        kind: the folder of `configs/` that a name is looked for in, such as `spaces`.

    In a clone the folder stands beside the package, in an installed wheel inside it.

    Raises:
        SettingsError: there is no such file; the ones that there are get named.
    """
    given = Path(name)
    if given.is_file():
        return given
    roots = [root for root in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if root.is_dir()]
    for root in roots:
        for place in (kind / given, given):
            for candidate in (root / place, root / f"{place}.yaml"):
                if candidate.is_file():
                    return candidate
    given = given if "/" in str(name) else kind / given
    folder = given.parent
    known = sorted(str(folder / p.stem) for root in roots for p in (root / folder).glob("*.yaml"))
    raise SettingsError(f"no settings file {given}; " + (f"there are {', '.join(known)}" if known else "give a path"))


def _search_time(layers: Iterable[Mapping[str, Any]]) -> Any:
    """`search.time` where mappings of settings lie on each other, the last on top; as it was typed, or as text."""
    ladders = [ladder for layer in layers if isinstance(ladder := layer.get("search"), Mapping) and "time" in ladder]
    time = ladders[-1]["time"] if ladders else None
    return Duration(**time) if isinstance(time, Mapping) else time


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Everything about a run.

    Args:
        study: name of the study, a plain folder name; its folder is `folder`/`study`.
        folder: where studies and prepared data lie.
        space: a file in configs/spaces by name, or any YAML file; `auto` takes one of them by limits and device.
        device: `auto`, `cpu` or `cuda`.
        limits: the user's budget.
        latency: of which machine decode latency is, where not of this one.
        weights: how one winner is picked.
        search: the search itself.
        corpus: where the training text comes from.
        tokenizer: how it is tokenized.
        train: how each candidate is trained.
        candidate: how each candidate is scored.
        ship: the storage format that leaves the study, in which every candidate is scored and weighed.
        squeeze: what `codenas squeeze` cuts, and how it heals the winner; nothing to a search from scratch.
        final_score_bytes: report text that the winner is scored on, which the search never reads.
        log_with: experiment trackers that follow `codenas train`, such as `[tensorboard]` (written to
            `folder`/trackers) or `[trackio]`; any that accelerate knows and that is installed.
        publish: push the winner to the Hub at the end; nothing is pushed without `publish.repo_id`.

    Raises:
        ValueError: a study's name that is no name of a folder of its own, or a quantised decay without a format.
    """

    study: str = "two_stage"
    folder: Path = Path("runs")
    space: str = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    limits: LimitSettings = field(default_factory=LimitSettings)
    latency: LatencySettings = field(default_factory=LatencySettings)
    weights: WeightSettings = field(default_factory=WeightSettings)
    search: LadderSettings = field(default_factory=LadderSettings)
    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    candidate: CandidateSettings = field(default_factory=CandidateSettings)
    ship: ShipSettings = field(default_factory=ShipSettings)
    squeeze: SqueezeSettings = field(default_factory=SqueezeSettings)
    final_score_bytes: int = 1_000_000
    log_with: tuple[str, ...] = ()
    publish: PublishSettings = field(default_factory=PublishSettings)

    def __post_init__(self) -> None:
        check_range(self, "final_score_bytes", least=1)
        if self.train.quantize and not self.ship.form.coded:
            raise ValueError(
                f"`train.quantize` trains for a format of codes, got `ship.format` {self.ship.format}: give one, such "
                "as ship.format=q4_0, or leave train.quantize=0"
            )
        name = self.study
        plain = name.strip() == name and name.isprintable() and "/" not in name and not name.startswith(".")
        if not (name and plain) or name in _TAKEN or len(name.encode(errors="replace")) > 200:
            raise ValueError(
                f"`study` must be the name of a folder, without a slash, a dot at its beginning or blanks around it, "
                f"and none of {', '.join(_TAKEN)}, got {name!r}; `folder=` says where studies lie"
            )

    @classmethod
    def of(cls, *words: str, config: Sequence[str | Path] = (), study: Path | None = None) -> RunSettings:
        """Defaults, then configs/gpu.yaml where there is a GPU, then files, then `name=value` words.

        Without a GPU configs/cpu.yaml is laid over the defaults in its place. Both have limits; whoever names a limit
        names them all.

        Args:
            words: settings such as `limits.bytes=20MB`; values are YAML.
            config: settings files, by path or by name in configs/.
            study: a folder; where it is a study's, its settings lie below `config`. So do those of a release, without
                what they say of the machine where it was made.

        Raises:
            SettingsError: no such file or setting, or a value that cannot be used.
        """
        files = [config_path(name) for name in config]
        without: dict[Path, tuple[str, ...]] = {}
        if study is not None and StudyFolder(study).settings.is_file():
            files.insert(0, StudyFolder(study).settings)
            if Release(study).record.is_file():
                without[files[0]] = _OF_A_MACHINE
        given = parse_overrides(words)
        ladder = given.get("search")
        planned = [name for name in PLANNED if isinstance(ladder, Mapping) and name in ladder]
        if planned and (time := _search_time([*map(read_yaml, files), given])) is not None:
            raise SettingsError(
                f"`search.time` ({time}) plans `search.{planned[0]}`: give another time, or say yourself how much is "
                "searched and add search.time=null"
            )
        limited = "limits" in given or any("limits" in read_yaml(file) for file in files)
        if Hardware.discover().device == "cuda" and "device=cpu" not in words:
            files.insert(0, config_path("gpu"))
            without[files[0]] = ("limits",) if limited else ()
        elif not limited:
            files.insert(0, config_path("cpu"))
        return load(cls, *files, overrides=words, without=without)
