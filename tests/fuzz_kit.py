"""Broken input, made from good input: bytes with damage, documents with odd values, and a tally of what came of it.

`GEMEL_FUZZ=10000` asks for more examples than the tests take by themselves; `GEMEL_FUZZ_TALLIES=FOLDER` writes down
what came of them (`python jobs/bench_fuzz.py` sets both).
"""

import copy
import json
import os
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

PLACE = st.floats(0, 1)
_HUGE = b"9" * 30
_OPERATIONS = st.one_of(
    st.tuples(st.just("cut"), PLACE),
    st.tuples(st.just("flip"), PLACE, st.integers(0, 7)),
    st.tuples(
        st.just("put"), PLACE, st.binary(min_size=1, max_size=8) | st.sampled_from([_HUGE, b"\0", b"\r\n", b"-"])
    ),
    st.tuples(st.just("drop"), PLACE, st.integers(1, 64)),
    st.tuples(st.just("double"), PLACE, st.integers(1, 64)),
)
ODD_TEXTS = (
    "", "../../../etc/passwd", "/etc/passwd", "a\0b", "\ud800", "x" * 5000, "%00", "file:///etc/passwd", "__class__",
    "NaN", "١٢", "-0", "1e400", "~root/x", "http://127.0.0.1:1/", "{}", "os.system:x", "\u202e", "\r\nX-A: b",
)  # fmt: skip
_ODD_NUMBERS = (0, -1, 2**31, 2**63, 2**64, -(2**63), 10**40, 1e308, 5e-324, -0.0, float("inf"), float("nan"), 0.5)
ODD = st.one_of(
    st.sampled_from([None, True, False, [], {}, [[]], {"": None}, *ODD_TEXTS, *_ODD_NUMBERS]),
    st.text(max_size=20),
    st.integers(),
    st.floats(),
    st.lists(st.integers(-2, 300) | st.none(), max_size=4),
    st.dictionaries(st.text(max_size=5), st.none() | st.integers(), max_size=2),
)


def examples(few):
    """Settings for a fuzzed test: so many examples, or as many as GEMEL_FUZZ says."""
    return settings(
        max_examples=int(os.environ.get("GEMEL_FUZZ", few)),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )


class Tally:
    """What came of all examples of one test."""

    def __init__(self, name):
        self.counts = Counter()
        self._name = name

    def write(self):
        """Where GEMEL_FUZZ_TALLIES says."""
        if folder := os.environ.get("GEMEL_FUZZ_TALLIES"):
            (Path(folder) / f"{self._name}.json").write_text(json.dumps(self.counts), encoding="utf-8")


def damage(max_size=4):
    """How to damage bytes, for `damaged`."""
    return st.lists(_OPERATIONS, min_size=1, max_size=max_size)


def damaged(data, operations):
    """Bytes with bits flipped, parts lost, doubled and put in."""
    for name, place, *more in operations:
        at = int(place * len(data))
        if name == "cut":
            data = data[:at]
        elif name == "flip" and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ 1 << more[0]]) + data[at + 1 :]
        elif name == "put":
            data = data[:at] + more[0] + data[at:]
        elif name == "drop":
            data = data[:at] + data[at + more[0] :]
        elif name == "double":
            data = data[: at + more[0]] + data[at:]
    return data


def twists(max_size=3):
    """How to twist a document, for `twisted`: where, by turns to take from the top, and what to do there."""
    where = st.lists(st.integers(0, 30), min_size=1, max_size=7)
    what = st.one_of(
        st.tuples(st.just("set"), ODD),
        st.tuples(st.just("remove"), st.none()),
        st.tuples(st.just("add"), st.tuples(st.text(max_size=8) | st.sampled_from(ODD_TEXTS), ODD)),
        st.tuples(st.just("swap"), st.integers(0, 30)),
    )
    return st.lists(st.tuples(where, what), min_size=1, max_size=max_size)


def twisted(document, changes):
    """A document of dicts and lists with some of its values changed, removed, added and exchanged."""
    document = copy.deepcopy(document)
    for turns, (name, value) in changes:
        holder, key = _walk(document, turns)
        if holder is None:
            continue
        if name == "set":
            holder[key] = value
        elif name == "remove":
            del holder[key]
        elif name == "swap":
            other = _keys(holder)[value % len(holder)]
            holder[key], holder[other] = holder[other], holder[key]
        elif isinstance(holder, dict):
            holder[value[0]] = value[1]
        else:
            holder.insert(key, value[1])
    return document


def _walk(document, turns):
    """Where the turns lead: the dict or list, and a key in it; (None, None) in an empty document."""
    holder, key, here = None, None, document
    for turn in turns:
        if not isinstance(here, dict | list) or not here:
            break
        holder, key = here, _keys(here)[turn % len(here)]
        here = holder[key]
    return holder, key


def _keys(holder):
    return list(holder) if isinstance(holder, dict) else list(range(len(holder)))
