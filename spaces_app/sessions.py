"""Who is running a completion, and how it is stopped."""

from __future__ import annotations

import threading


class Sessions:
    """Who is running a completion, so that Stop ends it between two tokens and its last state is judged and shown."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[threading.Event, threading.Event]] = {}
        self._lock = threading.Lock()

    def start(self, session: str) -> threading.Event:
        """The event that Stop sets for this session."""
        stop, done = threading.Event(), threading.Event()
        with self._lock:
            self._running[session] = (stop, done)
        return stop

    def finish(self, session: str) -> None:
        """The session's completion is over."""
        with self._lock:
            _, done = self._running.pop(session, (None, None))
        if done is not None:
            done.set()

    def stop(self, session: str, *, wait_s: float = 5.0) -> None:
        """Ends the session's completion and waits until it has shown its last state; nothing where none runs."""
        with self._lock:
            stop, done = self._running.get(session, (None, None))
        if stop is not None and done is not None:
            stop.set()
            done.wait(wait_s)
