"""What was read, what was dropped and why: the counts that become a corpus' report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .source_files import SourceFile

EXAMPLES = 3


def _counts() -> defaultdict[str, list[int]]:
    return defaultdict(lambda: [0, 0])


def as_counts(counts: Mapping[str, list[int]]) -> dict[str, dict[str, int]]:
    """`{name: [files, bytes]}` as `{name: {"files": ..., "bytes": ...}}`, largest first."""
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1][1], entry[0]))
    return {name: {"files": files, "bytes": size} for name, (files, size) in ordered}


@dataclass
class Ledger:
    """Running counts of files and raw bytes.

    Args:
        listed: by source, everything that the source names.
        dropped: by reason, what a filter dropped.
        refused: by licence, what the licence filter dropped.
        masked: secrets and addresses that were masked.
        projects: by source, the names of its projects.
        examples: by reason, the first few files that could not be read, for whoever looks for them.
        folders: by reason, how many folders were not entered.
    """

    listed: defaultdict[str, list[int]] = field(default_factory=_counts)
    dropped: defaultdict[str, list[int]] = field(default_factory=_counts)
    refused: defaultdict[str, list[int]] = field(default_factory=_counts)
    masked: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    projects: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    examples: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    folders: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    def list_file(self, file: SourceFile) -> None:
        """Counts a file that a source names."""
        if file.is_folder:
            return
        _add(self.listed[file.source], file.size)
        self.projects[file.source].add(file.project)

    def drop_file(self, file: SourceFile, reason: str) -> None:
        """Counts a file that was dropped unread."""
        _add(self.dropped[reason], file.size)
        if reason == "licence":
            _add(self.refused[file.licence[:80]], file.size)

    def leave_out(self, file: SourceFile, reason: str) -> None:
        """Counts a file that cannot be read, or a folder that was not entered, and remembers the first few."""
        if file.is_folder:
            self.folders[reason] += 1
        else:
            self.drop_file(file, reason)
        self._remember(reason, [file.name])

    def add_part(
        self, counts: Mapping[str, list[int]], masked: Mapping[str, int], examples: Mapping[str, list[str]]
    ) -> None:
        """Adds what the first pass counted in one part."""
        for reason, (files, size) in counts.items():
            _add(self.dropped[reason], size, files)
        for kind, count in masked.items():
            self.masked[kind] += count
        for reason, names in examples.items():
            self._remember(reason, names)

    def _remember(self, reason: str, names: list[str]) -> None:
        self.examples[reason] = [*self.examples[reason], *names][:EXAMPLES]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "sources": {
                source: {"files": files, "bytes": size, "projects": len(self.projects[source])}
                for source, (files, size) in self.listed.items()
            },
            "dropped": as_counts(self.dropped),
            "refused_licences": as_counts(self.refused),
            "masked": dict(self.masked),
            "examples": dict(self.examples),
            "folders_not_entered": dict(self.folders),
        }


def _add(entry: list[int], size: int, files: int = 1) -> None:
    entry[0] += files
    entry[1] += size
