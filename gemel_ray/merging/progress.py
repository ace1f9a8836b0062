"""A search in progress: the policy's state, the outcomes of its round, and the releases they become."""

from __future__ import annotations

import logging
from typing import Any

from gemel_ray.policy.search import SearchState, advance, is_finished, winner
from gemel_ray.spec.trials import Candidate, Outcome
from gemel_ray.training.releases import publish_candidate
from gemel_ray.weights.store import Store

_log = logging.getLogger(__name__)


class Progress:
    """Hands out the round's candidates, takes outcomes in any order, publishes each round's winner at once.

    The state is written to the store after every outcome, so a search whose driver dies is taken up where it was;
    candidates without an outcome are repeated.
    """

    def __init__(self, store: Store, name: str, state: SearchState, outcomes: list[Outcome] | None = None) -> None:
        self.store, self.name, self.state = store, name, state
        self._outcomes = {outcome.candidate: outcome for outcome in outcomes or []}
        self._waiting = [c for c in state.round if c.number not in self._outcomes]
        self.history: list[dict[str, Any]] = []
        self._close_round()

    @classmethod
    def resume(cls, store: Store, name: str) -> Progress | None:
        """Take up a search of that name; None where there is none."""
        saved = store.read_state(name)
        if saved is None:
            return None
        outcomes = [Outcome.model_validate(outcome) for outcome in saved["outcomes"]]
        return cls(store, name, SearchState.model_validate(saved["state"]), outcomes)

    @property
    def is_finished(self) -> bool:
        """Nothing is left to try."""
        return is_finished(self.state)

    def next_candidate(self) -> Candidate | None:
        """The next candidate of the round, None when all of them are being tried."""
        return self._waiting.pop(0) if self._waiting else None

    def take(self, outcome: Outcome) -> None:
        """Record an outcome; when the round is complete, publish its winner and propose the next one."""
        if all(candidate.number != outcome.candidate for candidate in self.state.round):
            return  # reported twice, after a retry
        self._outcomes[outcome.candidate] = outcome
        self.save()
        self._close_round()

    def _close_round(self) -> None:
        while self.state.round and all(c.number in self._outcomes for c in self.state.round):
            won = winner(self.state, self._outcomes)
            release = self.state.release
            if won is not None:
                release = self._publish(won)
            self.state = advance(self.state, self._outcomes, release=release)
            self._outcomes = {}
            self._waiting = list(self.state.round)
            self.save()

    def _publish(self, won: Candidate) -> int:
        """Publish a winner; once only, even if the driver died between publishing and writing that down."""
        for number in self.store.releases():
            manifest = self.store.manifest(number)
            if manifest.parent == self.state.release and manifest.merge_configuration == won.configuration:
                return number
        parent = self.store.manifest(self.state.release)
        manifest = publish_candidate(self.store, parent, won, self._outcomes[won.number])
        saved = 1 - manifest.bytes_after / manifest.bytes_before
        _log.info("release %d: %s, %.1f %% of all bytes saved", manifest.release, won.label, 100 * saved)
        return manifest.release

    def save(self) -> None:
        """Write down where the search is."""
        outcomes = [outcome.model_dump(mode="json") for outcome in self._outcomes.values()]
        self.store.write_state(self.name, {"state": self.state.model_dump(mode="json"), "outcomes": outcomes})
