"""What Ray Tune asks: which trial next, what became of it, which to stop. The answers are the policy's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from gemel_ray.merging.progress import Progress, superseded
from gemel_ray.spec.errors import GemelError
from gemel_ray.spec.trials import Candidate, Outcome
from gemel_ray.spec.units import format_bytes

Report = Callable[[str], None]
_DIED = "failed twice: its process died, or raised what --logs FOLDER keeps"


class MergeSearcher(Searcher):
    """Maps Tune's suggest and complete onto the search in progress."""

    def __init__(self, progress: Progress, parallel: int, minutes: float, report: Report) -> None:
        super().__init__(metric="passed", mode="max")
        self._progress, self._parallel, self._report = progress, parallel, report
        self._live: dict[str, Candidate] = {}
        # Of these, whose process has begun; the others wait for a node that has room.
        self._begun: set[str] = set()
        self._took_s: list[float] = []
        # Why no further trial can be run, where that is so.
        self.problem = ""
        self._began_s = time.monotonic()
        self._until_s = self._began_s + 60 * minutes

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next candidate; None while the round's last trials run."""
        if self._progress.is_finished or self.is_out_of_time() or self.problem:
            return self._wait_or_end()
        if len(self._live) >= self._parallel:
            return None
        candidate = self._progress.next_candidate()
        if candidate is None:
            return None
        self._live[trial_id] = candidate
        self._report(f"trial {self._name(candidate)} begins: {candidate.label}")
        return {"candidate": candidate.model_dump_json()}

    def _wait_or_end(self) -> dict[str, Any] | None:
        return None if self._live else Searcher.FINISHED  # type: ignore[return-value] # Tune's own marker

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Say how far a trial is."""
        name = self._name(self._live[trial_id])
        self._report(f"trial {name}: step {result['steps']}, worst agreement {result['worst_agreement']:.3f}")

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take the outcome; a trial that died twice counts as failed."""
        candidate = self._live.pop(trial_id)
        self._begun.discard(trial_id)
        if result and "problem" in result:
            self.problem = f"trial {self._name(candidate)}: {result['problem']}"
            return
        if result and "outcome" in result and not error:
            outcome = Outcome.model_validate_json(result["outcome"])
        elif self._progress.is_superseded(candidate):
            outcome = superseded(candidate)
        else:
            outcome = Outcome(candidate=candidate.number, passed=False, reason=_DIED)
        self._took_s += [outcome.seconds] if outcome.steps else []
        self._take(candidate, outcome)

    def _take(self, candidate: Candidate, outcome: Outcome) -> None:
        """A store that cannot be written ends the search: Tune would run the trial again for what is raised here."""
        try:
            self._progress.take(candidate, outcome)
            self._report(self._line(candidate, outcome))
        except GemelError as error:
            self.problem = f"trial {self._name(candidate)}: what it came to cannot be written down ({error})"

    def is_out_of_time(self) -> bool:
        """Whether no further trial may start."""
        return time.monotonic() > self._until_s

    def on_trial_begun(self, trial_id: str) -> None:
        """A trial's process runs."""
        self._begun.add(trial_id)

    def waits_in_vain(self) -> bool:
        """Whether time is up while none of the trials that are left has found room to run in."""
        return self.is_out_of_time() and bool(self._live) and not self._begun

    def is_superseded(self, trial_id: str) -> bool:
        """Whether a running trial can change nothing any more."""
        return trial_id in self._live and self._progress.is_superseded(self._live[trial_id])

    def _name(self, candidate: Candidate) -> str:
        several = len(self._progress.states) > 1
        return f"{candidate.number} of {candidate.model_set}'s set" if several else str(candidate.number)

    def _line(self, candidate: Candidate, outcome: Outcome) -> str:
        """What became of a trial, and where the search is."""
        latest = self._progress.latest()
        saved, before = latest.bytes_before - latest.bytes_after, latest.bytes_before
        bound = sum(layer.saved_bytes for state in self._progress.states for layer in state.groups)
        agreements = [query.accuracy.held[0] for query in latest.queries.values() if query.accuracy]
        return (
            f"trial {self._name(candidate)}: {outcome.reason} after {outcome.steps} steps, {outcome.seconds:.0f} s | "
            f"release {latest.release} saves {format_bytes(saved)} ({100 * saved / before:.1f} % of all; across models "
            f"at most {100 * bound / before:.1f} %), worst agreement {min(agreements, default=1):.3f} | "
            f"{len(self._live)} trials running, {time.monotonic() - self._began_s:.0f} s{self._outlook()}"
        )

    def _outlook(self) -> str:
        """How much longer it takes at the most, once a trial has shown how long one is."""
        if self._progress.is_finished or not self._took_s:
            return ""
        left = sum(state.settings.max_trials - state.trials + len(state.round) for state in self._progress.states)
        seconds = left * statistics.fmean(self._took_s) / self._parallel
        seconds = min(seconds, self._until_s - time.monotonic())
        return f", at most {max(seconds, 0) / 60:.0f} min more"

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store holds the search's own state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a search is resumed from the store."""


class StopSuperseded(tune.Stopper):
    """Ends trials whose outcome can change nothing any more, at their next validation; and all that wait for room once
    time is up."""

    def __init__(self, searcher: MergeSearcher) -> None:
        self._searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether to stop this trial."""
        return self._searcher.is_superseded(trial_id)

    def stop_all(self) -> bool:
        """Whether to end the search now."""
        return self._searcher.waits_in_vain()


class TellBegun(tune.Callback):
    """Tells the searcher which trials have found room: Tune lets it know of results alone."""

    def __init__(self, searcher: MergeSearcher) -> None:
        self._searcher = searcher

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ANN401
        """Called by Tune."""
        self._searcher.on_trial_begun(trial.trial_id)
