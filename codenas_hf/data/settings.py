"""What goes into a corpus, as a person says it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .contamination import benchmark_labels
from .filters import FilterSettings
from .licences import PERMISSIVE
from .streams import HubSettings


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """What goes into a corpus.

    Args:
        sources: each `installed`, `stdlib`, a folder, a glob, `git:FOLDER`, `pypi:MANIFEST` or `hub:OWNER/NAME`;
            one that is named twice counts once.
        max_bytes: about how much text is wanted; files are taken so that every project gives the same number of bytes
            as long as it has them. None takes all.
        seed: of the order in which files and held-out projects are drawn.
        held_out_fraction: share of the bytes that whole projects give to the search text, and again to the report
            text; more where ten projects have more.
        max_held_out_bytes: upper limit of that, for each of the two.
        licences: SPDX identifiers that are allowed; an expression must be satisfiable with them.
        unknown_licence: what happens to files whose licence nobody states: `folders` keeps them when they come from a
            folder or glob that you named yourself, `keep` always, `drop` never.
        project_depth: how many leading path parts name a project, for folders and globs.
        near_threshold: texts with at least this estimated Jaccard similarity are duplicates; None switches it off.
        window_lines: a held-out file that shares a window of so many lines with another split is dropped; 0: off.
        benchmarks: `humaneval` or JSONL files; files that hold 13 consecutive words of theirs are dropped.
        filters: limits for single files.
        hub: how rows of Hub datasets are read.
        archives: folder with the archives of `pypi:` manifests.
        download: allow pip to download archives that the folder lacks.

    Raises:
        ValueError: an empty list of sources, or a number out of range.
    """

    sources: tuple[str, ...] = ("installed",)
    max_bytes: int | None = 40_000_000
    seed: int = 0
    held_out_fraction: float = 0.05
    max_held_out_bytes: int = 50_000_000
    licences: tuple[str, ...] = PERMISSIVE
    unknown_licence: Literal["folders", "keep", "drop"] = "folders"
    project_depth: int = 1
    near_threshold: float | None = 0.7
    window_lines: int = 10
    benchmarks: tuple[str, ...] = ("humaneval",)
    filters: FilterSettings = field(default_factory=FilterSettings)
    hub: HubSettings = field(default_factory=HubSettings)
    archives: Path = Path("archives")
    download: bool = False

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("`sources` must name at least one source, got none; `installed` is this machine's Python")
        object.__setattr__(self, "sources", tuple(dict.fromkeys(self.sources)))
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"`max_bytes` must be positive, got {self.max_bytes}; null takes everything")
        if not 0 < self.held_out_fraction < 0.3:
            raise ValueError(f"`held_out_fraction` must lie between 0 and 0.3, got {self.held_out_fraction}")
        if self.near_threshold is not None and not 0.3 <= self.near_threshold <= 1:
            raise ValueError(f"`near_threshold` must lie between 0.3 and 1, got {self.near_threshold}; null: off")
        for name, least in (("project_depth", 1), ("window_lines", 0), ("max_held_out_bytes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}")
        if self.unknown_licence not in ("folders", "keep", "drop"):
            raise ValueError(f"`unknown_licence` must be folders, keep or drop, got {self.unknown_licence!r}")

    def identity(self) -> dict[str, Any]:
        """What of the settings decides about the text, places on this machine left out."""
        value = dataclasses.asdict(self)
        for name in ("sources", "archives", "download"):
            del value[name]
        value["benchmarks"] = list(benchmark_labels(self.benchmarks).values())
        return value
