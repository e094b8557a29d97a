"""Ctrl-C once finishes what runs, twice kills it: who asked this process to stop, and how often."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


class Stop:
    """How often somebody asked this process to stop."""

    def __init__(self) -> None:
        self.count = 0


@contextmanager
def stopping() -> Iterator[Stop]:
    """Counts SIGINT; SIGTERM, which a launcher sends when a rank died, counts twice."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _: FrameType | None) -> None:
        stop.count += 2 if number == signal.SIGTERM else 1
        if stop.count == 1:
            logger.warning("Stopping: nothing new starts, what runs is finished. Press Ctrl-C again to kill it.")
        else:
            logger.warning("Stopping now; what runs goes back to the queue.")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
