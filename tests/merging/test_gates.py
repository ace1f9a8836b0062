"""A search that nothing could pass says so before its first trial."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemel_ray.merging.gates import check_gates
from gemel_ray.spec.answers import Box, Classified, Detected
from gemel_ray.spec.errors import FeedError
from gemel_ray.spec.workload import parse_workload
from gemel_ray.training.data import QueryData, SplitData, score


def query_data(name, cars, empty):
    """A query whose original has answered so many frames of its gate with 'car', and so many with 'background'."""
    document = {
        "name": "w",
        "feeds": {"f": {"kind": "streets"}},
        "queries": [
            {"name": name, "feed": "f", "model": {"architecture": "resnet18", "classes": ["background", "car"]}}
        ],
    }
    answers = (Classified("car", ()),) * cars + (Classified("background", ()),) * empty
    images = np.zeros((len(answers), 2, 2, 3), dtype=np.uint8)
    gate = SplitData(images, np.full(len(answers), -1), answers=answers)
    return QueryData(parse_workload(document, source="w", base=Path()).queries[0], {"gate": gate})


def test_every_query_that_cannot_pass_is_named_with_the_way_out():
    data = {"few": query_data("few", cars=13, empty=200), "fewer": query_data("fewer", cars=30, empty=4)}
    with pytest.raises(FeedError, match="query 'few': its gate has 213 frames, 13 of them answered 'car'") as found:
        check_gates(data, 0.03, pytest.fail)
    assert "query 'fewer': its gate has 34 frames, 4 of them answered 'background'" in str(found.value)
    assert "accuracy_target - --gate-margin is 0.920; give feed 'f' more frames" in str(found.value)


@pytest.mark.parametrize("judged_by", ["labels", "agreement"])
def test_a_class_that_no_frame_of_the_gate_shows_is_told(judged_by):
    """What passes then may answer anything to it."""
    cars = 0 if judged_by == "agreement" else 100
    found, told = query_data("north", cars, 300), []
    found.splits["gate"].labels[:] = 0
    found = replace(found, query=found.query.model_copy(update={"judged_by": judged_by}))
    assert check_gates({"north": found}, 1.0, told.append) == []
    assert [line.split(" gate ")[0] for line in told] == ["query 'north': no frame of its"]
    assert ("labelled" in told[0]) == (judged_by == "labels")
    assert "'car', so that no merged model is tested on it; give feed 'f' more frames" in told[0]


def test_one_that_can_pass_is_enough_to_go_on():
    told = []
    data = {"few": query_data("few", 13, 200), "many": query_data("many", 200, 200)}
    assert check_gates(data, 0.03, told.append) == ["few"]
    assert [line.split(":")[0] for line in told] == ["query 'few'"]
    assert told[0].endswith("it will share nothing")


def test_the_margin_it_names_is_enough():
    data = {"few": query_data("few", 13, 200)}
    with pytest.raises(FeedError) as found:
        check_gates(data, 0.0, pytest.fail)
    margin = float(str(found.value).rsplit(" ", 1)[1])
    check_gates(data, margin, pytest.fail)
    best = score(data["few"], "gate", data["few"].splits["gate"].answers).lower_bound
    assert margin < 0.95 - best + 0.02


def detecting(cars, people, empty):
    """A detector that has found these on so many frames of its gate."""
    found = query_data("south", 0, 0).query
    model = found.model.model_copy(
        update={"architecture": "ssdlite320_mobilenet_v3_large", "classes": ("background", "car", "person")}
    )
    boxes = [(Box(label, 0.9, 0, 0, 5, 5),) for label in ["car"] * cars + ["person"] * people] + [()] * empty
    images = np.zeros((len(boxes), 2, 2, 3), dtype=np.uint8)
    gate = SplitData(images, np.full(len(boxes), -1), answers=tuple(map(Detected, boxes)))
    return QueryData(found.model_copy(update={"model": model}), {"gate": gate})


def test_a_detector_that_found_next_to_nothing_on_its_gate_cannot_pass():
    """A merged one that answers nothing at all would agree with it."""
    told = []
    data = {"many": query_data("many", 200, 200), "south": detecting(cars=4, people=0, empty=300)}
    assert check_gates(data, 0.03, told.append) == ["south"]
    assert "its gate has 304 frames, 4 of them with boxes, so that not even full agreement is surely above" in told[0]
    assert "no frame of its gate is answered by the original with 'person'" in told[1]
    assert check_gates({"south": detecting(cars=100, people=100, empty=0)}, 0.03, pytest.fail) == []
