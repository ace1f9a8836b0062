"""What Ray Tune is told when the store cannot be written: the search ends, and says how to go on."""

import json

import pytest
import torch
from progress_kit import outcome_for, workload

from gemel_ray.merging.options import SearchOptions, initial_states
from gemel_ray.merging.progress import Progress
from gemel_ray.merging.searcher import MergeSearcher
from gemel_ray.merging.searching import _tell_unfinished
from gemel_ray.policy.search_state import SearchSettings
from gemel_ray.spec.errors import SearchError
from gemel_ray.training.releases import publish_originals
from gemel_ray.vision.models import build_model
from gemel_ray.weights.store import open_store


def test_a_store_that_cannot_be_written_ends_the_search_and_loses_nothing(tmp_path):
    torch.manual_seed(0)
    found, store = workload(), open_store(tmp_path / "store", create=True)
    models = {query.name: build_model(query.model) for query in found.queries}
    start = publish_originals(store, found, models, seed=0)
    options = SearchOptions(settings=SearchSettings(max_trials=2, max_steps=5))
    progress = Progress(store, "s", initial_states(found, models, start, options), root=start.release)
    searcher = MergeSearcher(progress, 1, 60.0, lambda line: None)
    candidate = searcher.suggest("one")
    assert candidate is not None
    state = tmp_path / "store" / "searches" / "s.json"
    progress.save()
    whole = state.read_bytes()
    # What no file can take the place of, whoever writes.
    state.unlink()
    (state / "in the way").mkdir(parents=True)
    first = next(each for each in progress.states[0].round)
    outcome = outcome_for(store, models, first, passed=True)
    searcher.on_trial_complete("one", {"outcome": outcome.model_dump_json()})
    assert searcher.problem.startswith(f"trial {first.number}: what it came to cannot be written down (")
    assert searcher.suggest("two") == MergeSearcher.FINISHED
    with pytest.raises(SearchError, match=r"Release \d+ stands; mend that, and the same with --resume goes on"):
        _tell_unfinished(progress, searcher, pytest.fail)
    (state / "in the way").rmdir()
    state.rmdir()
    state.write_bytes(whole)
    assert json.loads(whole)["root"] == start.release
    again = Progress.resume(store, "s")
    assert first.number in [each.number for each in iter(again.next_candidate, None)]
