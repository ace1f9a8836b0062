"""A search in progress: the policy's states, the outcomes of their rounds, and the releases they become."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from gemel_ray.policy.evidence import Prediction, judged
from gemel_ray.policy.judging import is_superseded, winner
from gemel_ray.policy.search import advance, is_finished
from gemel_ray.policy.search_state import PHASES, SearchState
from gemel_ray.spec.errors import MissingReleaseError, SearchError
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.trials import SUPERSEDED, Candidate, Outcome
from gemel_ray.training.releases import publish_candidate
from gemel_ray.weights.store import Store

_log = logging.getLogger(__name__)


class _SetProgress:
    """One independent set of models: its state, and what is known of its round."""

    def __init__(self, state: SearchState, outcomes: Sequence[Outcome]) -> None:
        self.begin_round(state, outcomes)

    def begin_round(self, state: SearchState, outcomes: Sequence[Outcome] = ()) -> None:
        self.state = state
        self.outcomes = {outcome.candidate: outcome for outcome in outcomes}
        self.waiting = [candidate for candidate in state.round if candidate.number not in self.outcomes]
        self.skip_superseded()

    @property
    def round_is_complete(self) -> bool:
        return bool(self.state.round) and all(c.number in self.outcomes for c in self.state.round)

    def rank(self) -> tuple[int, int]:
        """Sets with the lowest have their turn first."""
        gain = self.waiting[0].configuration.saved_bytes - self.state.accepted.saved_bytes
        return PHASES.index(self.state.phase), -gain

    def skip_superseded(self) -> None:
        """Give candidates that are not being tried yet, and can change nothing any more, their outcome."""
        for candidate in [c for c in self.waiting if is_superseded(self.state, c, self.outcomes)]:
            self.waiting.remove(candidate)
            self.outcomes[candidate.number] = superseded(candidate)


def superseded(candidate: Candidate) -> Outcome:
    """The outcome of a candidate that can change nothing any more."""
    return Outcome(candidate=candidate.number, passed=False, reason=SUPERSEDED)


class Progress:
    """Hands out candidates, takes outcomes in any order, publishes each round's winner at once.

    Sets of models that share nothing are searched side by side; releases of one are made on top of the others'. All
    is written to the store after every outcome, so a search whose driver dies is taken up where it was; candidates
    without an outcome are repeated.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        states: Sequence[SearchState],
        *,
        root: int,
        outcomes: Mapping[str, Sequence[Outcome]] | None = None,
        history: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """`root` is the release that the search began with, its own; `options`, how it was told to go."""
        self.store, self.name, self.root = store, name, root
        self.options = dict(options or {})
        self.history = list(history)
        self._sets = {state.name: _SetProgress(state, (outcomes or {}).get(state.name, ())) for state in states}
        for part in self._sets.values():
            self._close_round(part)

    @classmethod
    def resume(cls, store: Store, name: str) -> Progress | None:
        """Take up a search of that name; None where there is none. SearchError for a state that cannot be read."""
        saved = store.read_state(name)
        if saved is None:
            return None
        try:
            states = [SearchState.model_validate(state) for state in saved["states"]]
            outcomes = {key: [Outcome.model_validate(o) for o in found] for key, found in saved["outcomes"].items()}
            root, history = saved["root"], saved["history"]
        except (ValidationError, KeyError, TypeError, AttributeError) as error:
            raise SearchError(
                f"{store.locate()}: the state of search {name!r} is damaged, or of another version (see "
                f"{_where(error)}); search again without --resume: what was released stays"
            ) from error
        options = saved.get("options")
        return cls(store, name, states, root=root, outcomes=outcomes, history=history, options=options)

    @property
    def is_finished(self) -> bool:
        """Nothing is left to try in any set."""
        return all(is_finished(part.state) for part in self._sets.values())

    @property
    def states(self) -> tuple[SearchState, ...]:
        """Where every set is."""
        return tuple(part.state for part in self._sets.values())

    def prediction(self) -> Prediction:
        """How well the evidence predicted what has been accepted so far."""
        found = [judged(state) for state in self.states]
        return sum(found[1:], start=found[0]) if found else Prediction(0, 0, 0, 0)

    def nearest(self) -> str | None:
        """Where nothing passed: what came nearest, and what may let it pass. None where something did."""
        failed = [row for row in self.history if row.get("shortfall") is not None]
        if not failed or any(row["passed"] for row in self.history):
            return None
        more = " more" if self.latest().merge_configuration.shared else ""
        row = min(failed, key=lambda each: each["shortfall"])
        short = (
            f"{row['shortfall']:.3f} below its target" if row["shortfall"] > 0 else "above its target, not surely so"
        )
        return (
            f"nothing{more} could be shared. Nearest came {row['label']!r}: {row['reason']}, the worst of "
            f"{', '.join(row['objectors'])} {short}. More --steps, {_wider(row)}more frames or a lower accuracy_target "
            "may let it pass"
        )

    def latest(self) -> Manifest:
        """The last release that this search has published. SearchError where it was removed since."""
        number = max([self.root, *self._published().values()])
        try:
            return self.store.manifest(number)
        except MissingReleaseError as error:
            raise SearchError(
                f"release {number}, which search {self.name!r} had come to, was removed ({error}); leave out --resume "
                "to search anew"
            ) from error

    def next_candidate(self) -> Candidate | None:
        """The next candidate of any set's round, None when all of them are being tried.

        Wholes of all sets come before parts of any, and of parts the one that would save most: a search may be ended
        at any time.
        """
        waiting = [part for part in self._sets.values() if part.waiting]
        return min(waiting, key=_SetProgress.rank).waiting.pop(0) if waiting else None

    def is_superseded(self, candidate: Candidate) -> bool:
        """Whether a candidate that is being tried can change nothing any more."""
        part = self._sets[candidate.model_set]
        return is_superseded(part.state, candidate, part.outcomes)

    def take(self, candidate: Candidate, outcome: Outcome) -> None:
        """Record an outcome; when its round is complete, publish the winner and propose the next round."""
        part = self._sets[candidate.model_set]
        if candidate not in part.state.round or candidate.number in part.outcomes:
            return  # reported twice, after a retry
        part.outcomes[candidate.number] = outcome
        part.skip_superseded()
        self.history.append(_told(candidate, outcome))
        self.save()
        self._close_round(part)

    def _close_round(self, part: _SetProgress) -> None:
        while part.round_is_complete:
            won = winner(part.state, part.outcomes)
            release = part.state.release if won is None else self._publish(won, part.outcomes[won.number])
            part.begin_round(advance(part.state, part.outcomes, release=release))
            self.save()

    def _publish(self, won: Candidate, outcome: Outcome) -> int:
        """Publish a winner; once only, even if the driver died between publishing and writing that down."""
        published = self._published()
        if (won.model_set, won.number) in published:
            return published[won.model_set, won.number]
        root = None if self.options.get("apart") else self.store.manifest(self.root)
        manifest = publish_candidate(self.store, self.latest(), won, outcome, search=self.name, root=root)
        saved = 1 - manifest.bytes_after / manifest.bytes_before
        _log.info("release %d: %s, %.1f %% of all bytes saved", manifest.release, won.label, 100 * saved)
        return manifest.release

    def _published(self) -> dict[tuple[str, int], int]:
        """Releases of this search by set and candidate: those of its name that come of its root."""
        found: dict[tuple[str, int], int] = {}
        for number in [number for number in self.store.releases() if number > self.root]:
            manifest = self.store.manifest(number)
            trial = manifest.provenance.trial
            if trial.get("search") == self.name and self._is_ours(manifest, {self.root, *found.values()}):
                found[str(trial["model_set"]), int(trial["candidate"] or 0)] = number
        return found

    def _is_ours(self, manifest: Manifest, ours: Collection[int]) -> bool:
        """Another search of the workload has a root of its own. What lies between may have been removed."""
        return manifest.parent in ours or self.root in self.store.lineage(manifest.release)

    def save(self) -> None:
        """Write down where the search is."""
        document = {
            "root": self.root,
            "options": self.options,
            "states": [part.state.model_dump(mode="json") for part in self._sets.values()],
            "outcomes": {
                name: [outcome.model_dump(mode="json") for outcome in part.outcomes.values()]
                for name, part in self._sets.items()
            },
            "history": self.history,
            "prediction": asdict(self.prediction()),
        }
        self.store.write_state(self.name, document)


def _where(error: Exception) -> str:
    """What of a state could not be understood."""
    if isinstance(error, ValidationError):
        return repr(".".join(map(str, error.errors()[0]["loc"])))
    return repr(error.args[0])


def _wider(row: Mapping[str, Any]) -> str:
    """The margin is the gate's; what missed on validation was never asked there."""
    return "a larger --gate-margin, " if row["gate"] else ""


def _told(candidate: Candidate, outcome: Outcome) -> dict[str, Any]:
    """One line of the search's history."""
    return {
        "model_set": candidate.model_set,
        "candidate": candidate.number,
        "label": candidate.label,
        "saved_bytes": candidate.configuration.saved_bytes,
        "passed": outcome.passed,
        "reason": outcome.reason,
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 2),
        # For the report's timeline; nothing is decided by it.
        "ended_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "objectors": list(outcome.objectors),
        "shortfall": outcome.shortfall,
        "validation": outcome.validation,
        "gate": {query: accuracy.held[0] for query, accuracy in outcome.accuracies.items()},
    }
