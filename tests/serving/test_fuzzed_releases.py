"""Broken releases in the store that a box follows: told what is wrong, and the last good release is served on."""

import asyncio
import json
import math

import pytest
from fuzz_kit import Tally, damage, damaged, examples, twisted, twists
from hypothesis import given
from hypothesis import strategies as st
from tiny_release import noise, publish_tiny_release

from gemel_ray.serving.edge_box import EdgeBox
from gemel_ray.serving.options import EdgeOptions, NodeOptions
from gemel_ray.spec.errors import GemelError
from gemel_ray.weights.store import open_store

QUERIES = ("north_cars", "south_cars")
FRAME = noise(7)


class Followed:
    """A store with one good release, a box that follows it, and whatever is put there as the next one."""

    def __init__(self, folder):
        self.folder = folder / "store"
        self.good = publish_tiny_release(self.folder, QUERIES)
        self.store = open_store(self.folder)
        self.tally = Tally("releases")
        self._disk = folder / "disk"
        self.runner = asyncio.Runner()
        self._number = 1
        self.box = self.started()
        self.answer = self.answered()

    def started(self):
        options = EdgeOptions(cache=str(self._disk), poll_every_s=80_000, threads=1)
        box = EdgeBox(str(self.folder), NodeOptions(memory=1 << 26, device="cpu"), options)
        box.start()
        return box

    def answered(self):
        """What the box says to one frame, and of which release."""
        (found,) = self.runner.run(self.box.infer("north_cars", [FRAME], slo_ms=60_000, droppable=False))
        return found.release, found.answer

    def next_manifest(self):
        """The good release's manifest under a number that was never used."""
        self._number += 1
        return self.good.manifest.model_dump(mode="json") | {"release": self._number}

    def offer(self, manifest, head=None):
        """Make bytes the next release, have the box look, and take them away again."""
        path = self.folder / "releases" / f"{self._number:06d}.json"
        path.write_bytes(manifest)
        (self.folder / "HEAD").write_bytes(str(self._number).encode() if head is None else head)
        try:
            self._look()
            self.store.verify()
        finally:
            path.unlink()
            self.store.set_head(1)
        self.box.check()
        assert self.answered() == self.answer

    def _look(self):
        try:
            is_new = self.box.check()
        except GemelError as error:
            self.tally.counts[type(error).__name__] += 1
            assert self.answered() == self.answer
        else:
            self.tally.counts["served" if is_new else "no news"] += 1
            # Whole by all that can be told, it is another release: other answers are its right.
            release, found = self.answered()
            assert release == (self._number if is_new else 1)
            assert all(map(math.isfinite, found.scores))


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    followed = Followed(tmp_path_factory.mktemp("followed"))
    yield followed
    followed.box.stop()
    (followed.folder / "HEAD").unlink()
    followed.box = followed.started()
    assert followed.answered() == followed.answer, "what is kept on disk is the good release"
    followed.box.stop()
    followed.runner.close()
    followed.tally.write()


@examples(100)
@given(changes=twists())
def test_manifests_with_odd_values(followed, changes):
    followed.offer(json.dumps(twisted(followed.next_manifest(), changes)).encode())


@examples(50)
@given(harm=damage())
def test_damaged_manifests(followed, harm):
    followed.offer(damaged(json.dumps(followed.next_manifest()).encode(), harm))


@examples(40)
@given(head=st.binary(max_size=12) | st.integers().map(lambda number: str(number).encode()))
def test_damaged_heads(followed, head):
    followed.offer(json.dumps(followed.next_manifest()).encode(), head)


@examples(40)
@given(turn=st.integers(0, 40), harm=damage(2), head_only=st.booleans())
def test_damaged_weights_under_the_name_of_their_damage(followed, turn, harm, head_only):
    """Their bytes hash to their name: only their contents can give them away."""
    shas = followed.good.manifest.blobs_of("north_cars")
    sha = shas[turn % len(shas)]
    data = followed.store.read_blob(sha)
    size = 8 + int.from_bytes(data[:8], "little")
    spoilt = damaged(data[:size], harm) + data[size:] if head_only else damaged(data, harm)
    other = followed.store.put_blob(spoilt)
    try:
        followed.offer(json.dumps(followed.next_manifest()).replace(sha, other).encode())
    finally:
        if other != sha:
            (followed.folder / "blobs" / "sha256" / other[:2] / f"{other}.safetensors").unlink()
