"""Broken files that people write: told what is wrong, as an error of ours that names the file."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from fuzz_kit import Tally, damage, damaged, examples, twisted, twists
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.spec.errors import InputError, WorkloadError
from gemel_ray.spec.workload import load_workload, parse_workload

SHIPPED = sorted((Path(__file__).parents[2] / "serve_configs" / "workloads").glob("*.yaml"))
TEXTS = [path.read_bytes() for path in SHIPPED]
DOCUMENTS = [yaml.safe_load(text) for text in TEXTS]

# Each line holds the one before nine times: read it is small, written out it fills the memory.
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{this}: &{this} [{', '.join([f'*{before}'] * 9)}]\n" for before, this in pairwise("abcdefgh")
)


@pytest.fixture(scope="module")
def tally():
    tally = Tally("workloads")
    yield tally
    tally.write()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed") / "workload.yaml"


def check(tally, read):
    told = refusal(read)
    tally.counts["WorkloadError" if told else "read"] += 1
    assert not told or ("workload.yaml" in told and len(told) < 20_000)


def refusal(read):
    try:
        read().content_hash()
    except WorkloadError as error:
        return str(error)
    return ""


@examples(200)
@given(place=st.sampled_from(range(len(TEXTS))), harm=damage())
def test_damaged_workload_files(tally, path, place, harm):
    path.write_bytes(damaged(TEXTS[place], harm))
    check(tally, lambda: load_workload(path))


@examples(300)
@given(place=st.sampled_from(range(len(DOCUMENTS))), changes=twists())
def test_workloads_with_odd_values(tally, place, changes):
    data = twisted(DOCUMENTS[place], changes)
    check(tally, lambda: parse_workload(data, source="workload.yaml", base=Path("/base")))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{a: " * 20_000,
        f"{LAUGHS}name: *h",
        f"{LAUGHS}queries: [*h]",
        f"{LAUGHS}feeds: {{f: {{kind: *h}}}}",
        f"{LAUGHS}*h : 1",
        "&a {name: w, feeds: *a, queries: [*a]}",
        "name: w\nfeeds: {}\nqueries: &q [*q]",
        "name: !!python/object/apply:os.system [id]",
        "name: 2026-99-99",
        "name: !!binary '%%%'",
        "name: w\n<<: [1, 2]",
        "? [a, b]\n: 1",
        "\0",
        "%YAML 9.9\n---\na: 1",
        "name: " + "9" * 10_000,
        "a: 190:20:30.15e1111",
    ],
    ids=lambda text: text[-20:],
)
def test_files_made_to_break_a_parser(tally, path, text):
    path.write_text(text, encoding="utf-8")
    check(tally, lambda: load_workload(path))
    with pytest.raises(InputError):
        load_workload(path)


def test_the_shipped_workloads_are_what_is_broken_here():
    assert json.dumps(DOCUMENTS, default=str)
    assert all(load_workload(path).queries for path in SHIPPED)
