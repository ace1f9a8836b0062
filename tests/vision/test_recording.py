"""Recorded answers: what was answered, kept in a file, and seen again as a stream of fresh and stale answers."""

import json

import pytest
from tiny_release import CLASSES, publish_tiny_release

from gemel_ray.spec.answers import Classified
from gemel_ray.spec.errors import InputError
from gemel_ray.spec.workload import parse_workload
from gemel_ray.vision.recording import (
    Recorded,
    Recording,
    accuracies,
    models_hash,
    read_recording,
    record_answers,
    write_recording,
)
from gemel_ray.weights.store import open_store


def answers(labels):
    return tuple(Classified(label, ()) for label in labels)


RECORDED = Recorded(original=answers("abab"), merged=answers("abbb"))


def test_a_stream_that_is_answered_whole_agrees_as_the_model_does():
    assert RECORDED.accuracy([0, 1, 2, 3], merged=False) == 1
    # Balanced: one of two a, both b.
    assert RECORDED.accuracy([0, 1, 2, 3], merged=True) == 0.75


def test_stale_answers_count_against_the_original_and_none_agrees_with_nothing():
    assert RECORDED.accuracy([0, 0, 2, 2], merged=False) == 0.5
    assert RECORDED.accuracy([None, None, None, None], merged=False) == 0
    assert RECORDED.accuracy([None, 1, 2, 3], merged=False) == 0.75


def test_a_longer_stream_goes_through_the_recording_again():
    assert RECORDED.accuracy(list(range(8)), merged=False) == 1
    assert RECORDED.accuracy([*range(7), 6], merged=False) == 0.875


def test_answers_of_a_release_are_recorded_and_read_again(tmp_path):
    made = publish_tiny_release(tmp_path / "store", queries=("north_cars", "south_cars"))
    workload = parse_workload(workload_of(made), source="test", base=tmp_path)
    recording = record_answers(workload, open_store(made.store), made.manifest, most_frames=7)
    assert recording.queries.keys() == {"north_cars", "south_cars"}
    for recorded in recording.queries.values():
        # The release has no parent: it is its own original.
        assert len(recorded.original) == 7
        assert recorded.original == recorded.merged
    assert accuracies(recording, {"north_cars": list(range(7))}, merged=True) == {"north_cars": 1}
    write_recording(recording, tmp_path / "answers.json")
    for most in (None, 7):
        found = read_recording(tmp_path / "answers.json", open_store(made.store), made.manifest, most_frames=most)
        assert found == recording
    with pytest.raises(InputError, match="of 7 frames of each feed, not of 50; give another file"):
        read_recording(tmp_path / "answers.json", open_store(made.store), made.manifest, most_frames=50)


def workload_of(made):
    model = {"architecture": "squeezenet1_1", "classes": list(CLASSES), "input_size": 32}
    return {
        "name": "tiny",
        "feeds": {"f": {"kind": "streets", "seed": 0, "frames": 100}},
        "queries": [{"name": name, "feed": "f", "model": model} for name in made.manifest.queries],
    }


def written(path, release, models, queries):
    write_recording(Recording(release=release, models=models, most_frames=300, queries=queries), path)


def test_a_recording_of_another_release_or_of_other_models_is_refused(tmp_path):
    made, other = (
        publish_tiny_release(tmp_path / name, queries=("north_cars",), seed=len(name)) for name in ("a", "bb")
    )
    path, store = tmp_path / "answers.json", open_store(made.store)
    written(path, 7, "0" * 64, {"north_cars": RECORDED})
    with pytest.raises(InputError, match="of release 7, not of 1"):
        read_recording(path, store, made.manifest)
    written(path, 1, models_hash(other.manifest, other.manifest), {"north_cars": RECORDED})
    with pytest.raises(InputError, match=r"of other models, not of those of release 1 in .*; give another file"):
        read_recording(path, store, made.manifest)
    assert read_recording(path, open_store(other.store), other.manifest).queries == {"north_cars": RECORDED}


EMPTY = {"original": [], "merged": []}
UNEQUAL = {"original": [{"label": "a", "scores": []}], "merged": [{"label": "a", "scores": []}] * 2}


@pytest.mark.parametrize(
    ("query", "told"),
    [(EMPTY, "needs 1 or more entries"), (UNEQUAL, "original has 1 answers, merged 2"), ({}, "add it")],
)
def test_what_is_no_recording_is_told_in_plain_words(tmp_path, query, told):
    made = publish_tiny_release(tmp_path / "store", queries=("north_cars",))
    path = tmp_path / "answers.json"
    document = {"release": 1, "models": "0" * 64, "most_frames": 3, "queries": {"north_cars": query}}
    for data, expected in ((json.dumps(document).encode(), told), (b"\xff", "Invalid JSON"), (b"{", "Invalid JSON")):
        path.write_bytes(data)
        with pytest.raises(InputError, match="is no recording of answers; remove it to record anew") as refused:
            read_recording(path, open_store(made.store), made.manifest)
        assert expected in str(refused.value)
        assert "pydantic" not in str(refused.value)
