"""The thread of a box on its own: it looks after the engine and asks the store for news, whatever befalls it."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

from gemel_ray.policy.backoff import wait_s
from gemel_ray.serving.options import EdgeOptions

log = logging.getLogger(__name__)

# How often the engine is looked after; an engine whose loop has ended answers nobody.
_LOOK_EVERY_S = 2.0
# After so many attempts in a row an engine is not started anew in this process any more: a device that was lost stays
# lost to it, and another process may have it.
_MOST_FAILURES = 10


class EdgeCare:
    """Heals every two seconds, and follows when that is due: less often while it fails."""

    def __init__(
        self,
        options: EdgeOptions,
        *,
        heal: Callable[[], bool],
        follow: Callable[[], bool],
        give_up: Callable[[], None],
    ) -> None:
        """`heal` tells whether the engine answers, `follow` whether the store does; `give_up` ends the process."""
        self._options = options
        self._heal = heal
        self._follow = follow
        self._give_up = give_up
        self._is_news_known = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gemel-follow", daemon=True)
        self._due_s = 0.0
        self._unhealed = self._unfollowed = 0

    @property
    def is_ending(self) -> bool:
        """Whether nothing is to be started any more."""
        return self._ended.is_set()

    def start(self, due_s: float) -> None:
        """The store is asked in so many seconds for the first time."""
        self._due_s = due_s
        self._thread.start()

    def hurry(self) -> None:
        """The store has news for certain."""
        self._is_news_known = True

    def end(self) -> None:
        """Begin nothing any more."""
        self._ended.set()

    def join(self) -> bool:
        """Wait a little for what is under way: whether there was anything to wait for."""
        if not self._thread.is_alive() or self._thread is threading.current_thread():
            return False
        self._thread.join(_LOOK_EVERY_S)
        return True

    def _run(self) -> None:
        while not self._ended.wait(min(self._due_s, _LOOK_EVERY_S)):
            self._unhealed = 0 if self._has_done(self._heal) else self._unhealed + 1
            if self._unhealed >= _MOST_FAILURES:
                log.critical("the engine could not be started in %d attempts; this process ends", self._unhealed)
                self._give_up()
                return
            self._due_s -= _LOOK_EVERY_S
            if self._due_s <= 0 or self._is_news_known:
                self._ask()

    def _ask(self) -> None:
        self._is_news_known = False
        self._unfollowed = 0 if self._has_done(self._follow) else self._unfollowed + 1
        self._due_s = wait_s(
            self._unfollowed,
            every_s=self._options.poll_every_s,
            most_s=self._options.poll_most_s,
            chance=random.random(),
        )

    def _has_done(self, what: Callable[[], bool]) -> bool:
        """An error nobody thought of must not end the thread: cameras are to be answered with what there is."""
        try:
            return what()
        except Exception:
            log.exception("an error of the box itself")
            return False
