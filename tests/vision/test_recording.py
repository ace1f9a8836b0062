"""Recorded answers: what was answered, kept in a file, and seen again as a stream of fresh and stale answers."""

import pytest
from tiny_release import CLASSES, publish_tiny_release

from gemel_ray.spec.answers import Classified
from gemel_ray.spec.errors import InputError
from gemel_ray.spec.workload import parse_workload
from gemel_ray.vision.recording import Recorded, Recording, accuracies, read_recording, record_answers, write_recording
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
    assert read_recording(tmp_path / "answers.json", made.manifest) == recording


def workload_of(made):
    model = {"architecture": "squeezenet1_1", "classes": list(CLASSES), "input_size": 32}
    return {
        "name": "tiny",
        "feeds": {"f": {"kind": "streets", "seed": 0, "frames": 100}},
        "queries": [{"name": name, "feed": "f", "model": model} for name in made.manifest.queries],
    }


def test_a_recording_of_another_release_is_refused(tmp_path):
    made = publish_tiny_release(tmp_path / "store", queries=("north_cars",))
    write_recording(Recording(7, {"north_cars": RECORDED}), tmp_path / "answers.json")
    with pytest.raises(InputError, match="of release 7, not of 1"):
        read_recording(tmp_path / "answers.json", made.manifest)
    (tmp_path / "answers.json").write_text("{}")
    with pytest.raises(InputError, match="is no recording"):
        read_recording(tmp_path / "answers.json", made.manifest)
