"""The settings of a whole run: what each part owns, composed; and the files of `configs/` by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..data import CorpusSettings, TokenizerSettings
from ..engine import Budget, Rung
from ..folders.ranges import check_range
from ..hardware import Hardware
from ..measure.candidate import CandidateSettings
from ..release.hub import PublishSettings
from ..strict_yaml import SettingsError, load
from ..training import TrainSettings

PolicyName = Literal["guided", "genetic", "screened", "random", "regularized"]
_TAKEN = ("data", "latency", "trackers")  # what else lies in the folder of studies
_PACKAGE = Path(__file__).parents[1]


def config_path(name: str | Path) -> Path:
    """A file of `configs/`: a path as given, or a name such as `spaces/tiny`.

    In a clone the folder stands beside the package, in an installed wheel inside it.

    Raises:
        SettingsError: there is no such file; the ones that there are get named.
    """
    given = Path(name)
    if given.is_file():
        return given
    roots = [root for root in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if root.is_dir()]
    for root in roots:
        for candidate in (root / given, root / f"{given}.yaml"):
            if candidate.is_file():
                return candidate
    folder = given.parent
    known = sorted(str(folder / p.stem) for root in roots for p in (root / folder).glob("*.yaml"))
    raise SettingsError(f"no settings file {name}; " + (f"there are {', '.join(known)}" if known else "give a path"))


@dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """The budget of whoever will use the winner; None means no limit.

    Args:
        bytes: most bytes to ship: weights, tokenizer, configuration. Sizes such as `20MB` are read.
        min_bytes: fewest bytes of weights, for those who want to use a budget up.
        decode_ms: slowest decoding, milliseconds per token at batch 1 on the study's device.

    Raises:
        ValueError: not positive, or nothing fits between the two sizes.
    """

    bytes: int | None = None
    min_bytes: int | None = None
    decode_ms: float | None = None

    def __post_init__(self) -> None:
        check_range(
            self, "bytes", "min_bytes", "decode_ms", above=0, optional=True, advice="leave it out for no limit"
        )
        if self.bytes is not None and self.min_bytes is not None and self.min_bytes >= self.bytes:
            raise ValueError(f"`min_bytes` ({self.min_bytes}) must be below `bytes` ({self.bytes})")


@dataclass(frozen=True, kw_only=True)
class WeightSettings:
    """How much each objective counts when one winner is picked off the front.

    Raises:
        ValueError: a negative weight, or all are 0.
    """

    bits_per_byte: float = 0.5
    artifact_bytes: float = 0.3
    decode_ms: float = 0.2

    def __post_init__(self) -> None:
        check_range(self, "bits_per_byte", "artifact_bytes", "decode_ms", least=0)
        if not any((self.bits_per_byte, self.artifact_bytes, self.decode_ms)):
            raise ValueError("weights must not all be 0; leave one out for its default")


@dataclass(frozen=True, kw_only=True)
class LadderSettings:
    """The search: how many candidates, how long each trains, who goes on.

    Args:
        population: candidates in a generation.
        generations: how many; a finished study goes on when this is raised.
        budgets: total training at each rung, such as `[50 steps, 300 steps]`.
        keep: how many of a generation go on from each rung but the last.
        audit: candidates promoted by lot besides, so that the rungs can be compared fairly.
        policy: who proposes: `guided`, an evolution inside a model of what is known; `genetic`; `screened`, which lets
            a regression choose among eight times as many proposals of `genetic`; `random`; `regularized` evolution.
        seed: of everything that is drawn.
        seeds: genome files that the first generation starts from.
        lag: how many generations back each rung's results are read; 1 waits for everybody.
        storage: URL of a database that several machines share; a journal file in the study's folder without.
        workers_per_rank: candidates at a time in each process; the share of the cores, or 1 on a GPU, when null.
        time_limit_s: of one evaluation; null for none.
        memory_limit_bytes: of one evaluation; null for none.

    Raises:
        ValueError: numbers of rungs that do not fit together.
    """

    population: int = 12
    generations: int = 4
    budgets: tuple[Budget, ...] = (Budget("steps", 40), Budget("steps", 240))
    keep: tuple[int, ...] = (3,)
    audit: int = 1
    policy: PolicyName = "guided"
    seed: int = 0
    seeds: tuple[Path, ...] = ()
    lag: tuple[int, ...] = (1, 2)
    storage: str | None = None
    workers_per_rank: int | None = None
    time_limit_s: float | None = None
    memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        # Here too, and not in the engine alone: that is asked after the text has been prepared.
        check_range(self, "population", "generations", least=1)
        check_range(self, "audit", "seed", least=0)
        check_range(self, "workers_per_rank", least=1, optional=True)
        check_range(self, "time_limit_s", "memory_limit_bytes", above=0, optional=True)
        if len(self.keep) != len(self.budgets) - 1:
            raise ValueError(
                f"`keep` must have one number less than `budgets`, got {len(self.keep)} and {len(self.budgets)}; "
                "a search in one stage has one budget and `keep: []`"
            )

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The ladder as the engine takes it."""
        return tuple(
            Rung(index, budget, keep=keep)
            for index, (budget, keep) in enumerate(zip(self.budgets, (*self.keep, None), strict=True))
        )


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Everything about a run.

    Args:
        study: name of the study, a plain folder name; its folder is `folder`/`study`.
        folder: where studies and prepared data lie.
        space: a file in configs/spaces by name, or any YAML file.
        device: `auto`, `cpu` or `cuda`.
        limits: the user's budget.
        weights: how one winner is picked.
        search: the search itself.
        corpus: where the training text comes from.
        tokenizer: how it is tokenized.
        train: how each candidate is trained.
        candidate: how each candidate is scored.
        final_score_bytes: held-out text that the winner is scored on.
        log_with: experiment trackers that follow `codenas train`, such as `[tensorboard]` (written to
            `folder`/trackers) or `[trackio]`; any that accelerate knows and that is installed.
        publish: push the winner to the Hub at the end; nothing is pushed without `publish.repo_id`.

    Raises:
        ValueError: a study's name that is no name of a folder of its own.
    """

    study: str = "two_stage"
    folder: Path = Path("runs")
    space: str = "tiny"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    limits: LimitSettings = field(default_factory=LimitSettings)
    weights: WeightSettings = field(default_factory=WeightSettings)
    search: LadderSettings = field(default_factory=LadderSettings)
    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    candidate: CandidateSettings = field(default_factory=CandidateSettings)
    final_score_bytes: int = 1_000_000
    log_with: tuple[str, ...] = ()
    publish: PublishSettings = field(default_factory=PublishSettings)

    def __post_init__(self) -> None:
        check_range(self, "final_score_bytes", least=1)
        name = self.study
        plain = name.strip() == name and name.isprintable() and "/" not in name and not name.startswith(".")
        if not (name and plain) or name in _TAKEN or len(name.encode(errors="replace")) > 200:
            raise ValueError(
                f"`study` must be the name of a folder, without a slash, a dot at its beginning or blanks around it, "
                f"and none of {', '.join(_TAKEN)}, got {name!r}; `folder=` says where studies lie"
            )

    @classmethod
    def of(cls, *words: str, config: Sequence[str | Path] = ()) -> RunSettings:
        """Defaults, then configs/gpu.yaml where there is a GPU, then files, then `name=value` words.

        Args:
            words: settings such as `limits.bytes=20MB`; values are YAML.
            config: settings files, by path or by name in configs/.

        Raises:
            SettingsError: no such file or setting, or a value that cannot be used.
        """
        files = [config_path(name) for name in config]
        if Hardware.discover().device == "cuda" and "device=cpu" not in words:
            files.insert(0, config_path("gpu"))
        return load(cls, *files, overrides=words)
