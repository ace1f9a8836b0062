"""One trial: try one candidate and say what became of it. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import nn

from gemel_ray.spec.answers import Answer
from gemel_ray.spec.release import Accuracy, BlobInfo, Manifest, ReleasedQuery
from gemel_ray.spec.trials import Candidate, Outcome
from gemel_ray.training.data import QueryData, score_on_labels, score_relative
from gemel_ray.training.joint import JointRetraining, RetrainOptions, Validation
from gemel_ray.training.views import overfit_fraction
from gemel_ray.vision.binding import layer_tensors
from gemel_ray.vision.checkpoints import put_state
from gemel_ray.vision.metrics import Score, compare
from gemel_ray.vision.models import build_model, task_of, training_device
from gemel_ray.weights.maintenance import originals_of
from gemel_ray.weights.models import BlobReader, load_state, reader_of, store_models
from gemel_ray.weights.store import Store


class Trial:
    """Starts from the candidate's release, retrains, and stores the weights of a candidate that passes."""

    def __init__(
        self, candidate: Candidate, data: Mapping[str, QueryData], store: Store, *, allow_factories: bool = False
    ) -> None:
        self.candidate, self.data, self.store = candidate, data, store
        self._began_s = time.monotonic()
        # What the gate said of weights that it accepted.
        self._passed: dict[str, Accuracy] = {}
        self._start = store.manifest(candidate.start_release)
        models = self._models(candidate.configuration.queries, self._start, allow_factories)
        options = RetrainOptions(
            max_steps=candidate.max_steps,
            seed=candidate.seed,
            start=candidate.start,
            objective=candidate.objective,
            recipe=candidate.recipe,
            learning_rate=candidate.learning_rate,
            gate_margin=candidate.gate_margin,
        )
        self.retraining = JointRetraining(
            models, data, candidate.configuration, options, tied=self._start.merge_configuration,
            originals=self._originals(allow_factories) if candidate.views else None,
        )  # fmt: skip

    def _originals(self, allow_factories: bool) -> dict[str, nn.Module]:
        """Of the classifiers; a detector's boxes would have to move with a view."""
        return self._models(self._classifiers(), originals_of(self.store, self._start), allow_factories)

    def _classifiers(self) -> list[str]:
        queries = self.candidate.configuration.queries
        return [query for query in queries if task_of(self.data[query].query.model) == "classification"]

    def _models(self, queries: Iterable[str], release: Manifest, allow_factories: bool) -> dict[str, nn.Module]:
        released = {query: release.queries[query] for query in queries}
        read = reader_of(self.store, released.values())
        return {query: self._model(query, found, read, allow_factories) for query, found in released.items()}

    def _model(self, query: str, released: ReleasedQuery, read: BlobReader, allow_factories: bool) -> nn.Module:
        model = build_model(self.data[query].query.model, allow_factories=allow_factories)
        put_state(model, load_state(read, released.weights, released.slices))
        return model.to(training_device())

    def run(self) -> Iterator[Validation]:
        """Every validation, the last one with its verdict; then `outcome` may be asked."""
        return self.retraining.run(self._accepts)

    def _accepts(self, scores: Mapping[str, Score]) -> bool:
        """Whether training may stop early: the gate is asked then, and once more after the last step if it objects."""
        found = self._gated(scores)
        self._passed = {} if self._objectors(found) else found
        return bool(self._passed)

    def outcome(self, last: Validation) -> Outcome:
        """What became of the candidate. The gate is looked at only where validation reached every target."""
        if last.verdict != "reached":
            objectors = [query for query, score in last.scores.items() if score.estimate < self._target(query)]
            return self._outcome(
                last, passed=False, reason=f"{last.verdict} on validation", objectors=objectors,
                shortfall=self._shortfall(last.scores), overfit=self._overfit(last),
            )  # fmt: skip
        accuracies = self._passed or self._gated(last.scores)
        if objectors := self._objectors(accuracies):
            return self._outcome(
                last, passed=False, reason="missed on the gate", objectors=objectors, accuracies=accuracies,
                shortfall=max(a.target - a.held[0] for a in accuracies.values()),
            )  # fmt: skip
        weights, blobs = self._store()
        return self._outcome(last, passed=True, reason="passed", accuracies=accuracies, weights=weights, blobs=blobs)

    def _gated(self, scores: Mapping[str, Score]) -> dict[str, Accuracy]:
        gate = self.retraining.answers("gate")
        return {query: self._accuracy(query, found, scores[query]) for query, found in gate.items()}

    def _objectors(self, accuracies: Mapping[str, Accuracy]) -> list[str]:
        return [query for query, found in accuracies.items() if not found.passes(self.candidate.gate_margin)]

    def _outcome(self, last: Validation, *, passed: bool, reason: str, **found: object) -> Outcome:
        seconds = time.monotonic() - self._began_s
        fixed = {"candidate": self.candidate.number, "passed": passed, "reason": reason}
        validation = {query: score.estimate for query, score in last.scores.items()}
        return Outcome.model_validate(
            fixed | {"steps": last.step, "seconds": seconds, "validation": validation} | found
        )

    def _target(self, query: str) -> float:
        return self.data[query].query.accuracy_target

    def _shortfall(self, scores: Mapping[str, Score]) -> float:
        return max(self._target(query) - score.estimate for query, score in scores.items())

    def _overfit(self, last: Validation) -> float | None:
        if not last.step or self.candidate.views:
            return None
        found = [overfit_fraction(self.data[query], self.retraining.models[query]) for query in self._classifiers()]
        return max(found, default=None)

    def _accuracy(self, query: str, answers: Sequence[Answer], validation: Score) -> Accuracy:
        """All that is known of a merged model's answers to the gate's frames."""
        data = self.data[query]
        reference = data.splits["gate"].answers
        agreement, relative = compare(reference, answers), score_relative(data, "gate", answers)
        original, merged = (score_on_labels(data, "gate", given) for given in (reference, answers))
        return Accuracy(
            target=self._target(query),
            judged_by=data.query.judged_by,
            measure=agreement.measure,
            agreement=agreement.estimate,
            lower_bound=agreement.lower_bound,
            gate_frames=agreement.frames,
            validation_agreement=validation.estimate,
            original_accuracy=original.estimate if original else None,
            merged_accuracy=merged.estimate if merged else None,
            relative_accuracy=relative.estimate if relative else None,
            relative_lower_bound=relative.lower_bound if relative else None,
        )

    def _store(self) -> tuple[dict[str, dict[str, str]], dict[str, BlobInfo]]:
        models, configuration = self.retraining.models, self.candidate.configuration
        states = {query: model.state_dict() for query, model in models.items()}
        return store_models(self.store, states, configuration, layer_tensors(models, configuration))
