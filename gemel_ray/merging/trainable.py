"""One trial as Ray Tune runs it: a process that takes one candidate after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from ray import tune

from gemel_ray.spec.errors import GemelError, StoreError
from gemel_ray.spec.trials import Candidate, Outcome
from gemel_ray.training.data import QueryData
from gemel_ray.training.joint import Validation
from gemel_ray.training.trial import Trial
from gemel_ray.weights.store import open_store

# What is reported of a trial that ends without a validation.
_LAST = {"steps": 0, "worst_agreement": 0.0, "passed": 0, "done": True}


class MergeTrial(tune.Trainable):
    """One candidate at a time; one step of Tune is one validation."""

    def setup(  # type: ignore[override] # with_parameters adds the rest
        self, config: dict[str, Any], data: Mapping[str, QueryData], store_uri: str, allow_factories: bool
    ) -> None:
        """Start on the candidate in `config`."""
        torch.set_num_threads(1)
        self._data, self._store, self._allow_factories = data, open_store(store_uri), allow_factories
        self._begin(config)

    def _begin(self, config: dict[str, Any]) -> None:
        self._candidate = Candidate.model_validate_json(config["candidate"])
        self._validations = self._tried()

    def _tried(self) -> Iterator[Validation]:
        self._trial = Trial(self._candidate, self._data, self._store, allow_factories=self._allow_factories)
        yield from self._trial.run()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next candidate in the same process."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train until the next validation; with the last one comes the outcome.

        A candidate whose training diverges has failed. A store that cannot be read or written says nothing of the
        candidate: that is reported as the search's problem.
        """
        try:
            return self._validated()
        except StoreError as error:
            return _LAST | {"problem": str(error)}
        except GemelError as error:
            outcome = Outcome(candidate=self._candidate.number, passed=False, reason=f"failed: {error}")
            return _LAST | {"outcome": outcome.model_dump_json()}

    def _validated(self) -> dict[str, Any]:
        validation = next(self._validations)
        worst = min(score.estimate for score in validation.scores.values())
        report: dict[str, Any] = {"steps": validation.step, "worst_agreement": worst, "passed": 0, "done": False}
        if validation.verdict is not None:
            outcome = self._trial.outcome(validation)
            report |= {"outcome": outcome.model_dump_json(), "passed": int(outcome.passed), "done": True}
        return report

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: trials are short, an interrupted one begins again."""

    def load_checkpoint(self, checkpoint: dict[Any, Any] | None) -> None:
        """Nothing."""
