"""A release in which a query has other classes than before: what was answered in the old ones says nothing then."""

import io
from dataclasses import replace

import pytest
import tiny_release
from PIL import Image
from tiny_release import noise, publish_tiny_release

from gemel_ray.serving import wire
from gemel_ray.serving.description import QueryCard
from gemel_ray.serving.edge_box import EdgeBox
from gemel_ray.serving.options import EdgeOptions, NodeOptions
from gemel_ray.serving.replies import answer_reply, frame_reply
from gemel_ray.spec.answers import Box, Classified, Detected, FrameAnswer
from gemel_ray.spec.errors import ServingError

QUERY = "north_cars"
THREE, FOUR = ("background", "car", "person"), ("background", "car", "person", "bus")
RENAMED, SWAPPED = ("background", "car", "rider"), ("person", "car", "background")
CARD = QueryCard(
    name=QUERY, feed="f", builder="x", task="classification", classes=THREE, slo_ms=100, accuracy_target=0.9
)
DETECTOR = CARD.model_copy(update={"task": "detection"})
ANSWER = Classified("person", (0.1, 0.2, 0.7))
FITTING = FrameAnswer(QUERY, 0, ANSWER, True, None, 5.0, 1)


def picture():
    stream = io.BytesIO()
    Image.fromarray(noise(1)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Publish the next release of a store, its query's model with these classes."""

    def published(classes):
        monkeypatch.setattr(tiny_release, "CLASSES", classes)
        return publish_tiny_release(tmp_path / "store", [QUERY])

    return published


@pytest.fixture
def box(publish, tmp_path):
    publish(THREE)
    options = EdgeOptions(cache=str(tmp_path / "disk"), poll_every_s=80_000, threads=1)
    box = EdgeBox(str(tmp_path / "store"), NodeOptions(memory=1 << 26, device="cpu"), options)
    box.start()
    yield box
    box.stop()


@pytest.mark.parametrize("classes", [FOUR, RENAMED, SWAPPED])
def test_a_box_goes_over_to_other_classes_and_repeats_no_answer_in_the_old_ones(box, publish, client_of, classes):
    client, frames = client_of(box), f"/v1/queries/{QUERY}/frames"
    assert client.post(f"{frames}?slo_ms=60000", content=picture()).json()["answer"]["scores"].keys() == set(THREE)
    publish(classes)
    assert box.check()
    for path in ("/v1/status", "/metrics", "/v1/events", "/v2/health/ready"):
        assert client.get(path).status_code == 200, path
    assert client.get("/v1/status").json()["queries"][0]["last_answer"] is None
    late = client.post(f"{frames}?slo_ms=0.0001", content=picture())
    assert (late.status_code, "too late" in late.json()["error"]) == (503, True)
    fresh = client.post(f"{frames}?slo_ms=60000", content=picture()).json()
    assert (fresh["release"], fresh["answer"]["scores"].keys()) == (2, set(classes))
    again = client.post(f"{frames}?slo_ms=0.0001", content=picture()).json()
    assert (again["fresh"], again["answer"]) == (False, fresh["answer"])


@pytest.mark.parametrize(
    ("card", "answer"),
    [
        (CARD.model_copy(update={"classes": FOUR}), ANSWER),
        (CARD.model_copy(update={"classes": RENAMED}), ANSWER),
        (DETECTOR, ANSWER),
        (CARD, Detected(())),
        (DETECTOR, Detected((Box("bus", 0.9, 1, 2, 3, 4),))),
    ],
)
def test_an_answer_that_does_not_fit_what_is_told_of_its_query_counts_as_none(card, answer):
    assert answer_reply(answer, card) is None
    found = replace(FITTING, answer=answer)
    assert frame_reply(found, card).answer is None
    asked = wire.parse_request(b'{"inputs": [{"name": "image", "shape": [1, 1, 3], "datatype": "UINT8"}]}')
    with pytest.raises(ServingError, match="a release with other classes takes over"):
        wire.response(asked, card, [FITTING, found])


def test_an_answer_that_fits_is_told():
    assert answer_reply(ANSWER, CARD).scores == {"background": 0.1, "car": 0.2, "person": 0.7}
    box = Box("car", 0.9, 1, 2, 3, 4)
    assert answer_reply(Detected((box,)), DETECTOR).boxes == (box,)
