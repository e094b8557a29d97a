"""What a search shows while it runs: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

from typing import Any

from .settings import SearchSettings
from .study import Snapshot


class Progress:
    def __init__(self, settings: SearchSettings, *, shown: bool) -> None:
        self._settings = settings
        self._shown = shown

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, snapshot: Snapshot, busy: tuple[Any, ...]) -> None: ...

    def finish(self, result: Any) -> None: ...
