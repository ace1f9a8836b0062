"""What is asked of a feed before anything is trained on it."""

from pathlib import Path

import av
import numpy as np
import pytest

from gemel_ray.spec.errors import FeedError
from gemel_ray.spec.workload import parse_workload
from gemel_ray.training.data import QueryData, SplitData, check_labels_for, read_query_data


def write_video(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for number in range(60):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 4 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_a_feed_without_labels_can_judge_by_agreement_alone(tmp_path):
    write_video(tmp_path / "clip.mp4")
    query = {
        "name": "q",
        "feed": "f",
        "judged_by": "labels",
        "model": {"architecture": "squeezenet1_1", "classes": ["none", "car"], "input_size": 32},
    }
    feeds = {"f": {"kind": "video", "uri": str(tmp_path / "clip.mp4")}}
    found = parse_workload({"name": "w", "feeds": feeds, "queries": [query]}, source="w", base=Path())
    with pytest.raises(FeedError, match="carries no labels to be judged by; say 'judged_by: agreement'"):
        read_query_data(found.queries[0], found.feeds["f"])
    trusting = found.queries[0].model_copy(update={"judged_by": "agreement"})
    with pytest.raises(FeedError, match=r"leaves \d+ frames"):
        read_query_data(trusting, found.feeds["f"])


@pytest.mark.parametrize("architecture", ["squeezenet1_1", "ssdlite320_mobilenet_v3_large"])
def test_following_labels_that_a_feed_lacks_is_refused(architecture):
    query = {"name": "q", "feed": "f", "model": {"architecture": architecture, "classes": ["none", "car"]}}
    found = parse_workload({"name": "w", "feeds": {"f": {"kind": "streets"}}, "queries": [query]}, source="w", base="")
    images = np.zeros((3, 2, 2, 3), np.uint8)
    labelled = SplitData(images, np.array([0, 1, 1]), boxes=((), (), ()))
    partly = SplitData(images, np.array([0, -1, 1]))
    for objective in ("labels", "both"):
        check_labels_for(objective, {"q": QueryData(found.queries[0], {"train": labelled})})
        with pytest.raises(FeedError, match=f"feed 'f' does not label every frame, and --objective {objective} "):
            check_labels_for(objective, {"q": QueryData(found.queries[0], {"train": partly})})
    check_labels_for("distillation", {"q": QueryData(found.queries[0], {"train": partly})})
