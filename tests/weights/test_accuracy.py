"""What a release says of a query's accuracy, and what is asked of it."""

import pytest
from tiny_workload import TINY_WORKLOAD

from gemel_ray.spec.release import Accuracy, ReleasedQuery
from gemel_ray.spec.workload import load_workload


def accuracy(**more):
    known = {"target": 0.95, "measure": "m", "agreement": 0.93, "lower_bound": 0.91, "gate_frames": 500}
    return Accuracy(**known, validation_agreement=0.97, relative_accuracy=1.01, relative_lower_bound=0.96, **more)


def test_the_target_is_held_against_what_the_query_is_judged_by():
    strict, labelled = accuracy(), accuracy(judged_by="labels")
    assert (strict.held, strict.meets_target, strict.passes(0.1)) == ((0.93, 0.91), False, False)
    assert (labelled.held, labelled.meets_target, labelled.passes(0.0)) == ((1.01, 0.96), True, True)
    assert not accuracy(judged_by="labels", original_accuracy=0.9).model_copy(update={"target": 0.97}).passes(0.0)


@pytest.mark.parametrize(("judge", "floor"), [("agreement", 0.95), ("labels", 0.91)])
def test_while_it_is_served_without_labels_it_must_agree_as_it_was_seen_to(tmp_path, judge, floor):
    (tmp_path / "w.yaml").write_text(TINY_WORKLOAD)
    query = load_workload(tmp_path / "w.yaml").queries[0].model_copy(update={"accuracy_target": 0.95})
    released = ReleasedQuery(query=query, weights={}, accuracy=accuracy(judged_by=judge))
    assert released.agreement_target == floor
    assert released.model_copy(update={"accuracy": None}).agreement_target == 0.95
