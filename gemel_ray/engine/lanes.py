"""A lane: one thread that does what it is given, in order."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

Job = Callable[[], None]


class Lane:
    """Jobs run one after the other on a thread of their own. A job reports its own failures; one that raises
    nevertheless is logged, and the lane goes on."""

    def __init__(self, name: str, *, first: Job | None = None) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        if first is not None:
            self._jobs.put(first)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Queue a job; returns at once."""
        self._jobs.put(job)

    def close(self) -> None:
        """Do what is queued, then end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:
                log.exception("a job on lane %s raised", self._thread.name)
            # Otherwise the frame and the weights of the last job would live until the next one.
            del job
