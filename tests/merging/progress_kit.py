"""A workload of two models, and outcomes that need no training."""

from gemel_ray.spec.release import Accuracy
from gemel_ray.spec.trials import Outcome
from gemel_ray.spec.workload import parse_workload
from gemel_ray.vision.binding import bind, layer_tensors
from gemel_ray.weights.models import store_models


def workload(**architectures):
    architectures = architectures or {"a": "squeezenet1_1", "b": "squeezenet1_1"}
    queries = [
        {"name": name, "feed": "f", "model": {"architecture": architecture, "classes": ["background", "car"]}}
        for name, architecture in architectures.items()
    ]
    data = {"name": "w", "feeds": {"f": {"kind": "streets"}}, "queries": queries}
    return parse_workload(data, source="w", base=".")


def outcome_for(store, models, candidate, *, passed, lower_bound=0.9):
    if not passed:
        return Outcome(candidate=candidate.number, passed=False, reason="missed on validation")
    bind(models, candidate.configuration)
    states = {query: model.state_dict() for query, model in models.items()}
    weights, blobs = store_models(
        store, states, candidate.configuration, layer_tensors(models, candidate.configuration)
    )
    good = Accuracy(
        target=0.9, measure="m", agreement=1, lower_bound=lower_bound, gate_frames=9, validation_agreement=1
    )
    return Outcome(
        candidate=candidate.number, passed=True, reason="passed", weights=weights, blobs=blobs,
        accuracies={query: good for query in weights},
    )  # fmt: skip
