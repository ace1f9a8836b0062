"""The functions of a notebook that need no cluster: values as they are, tables that read well and convert."""

import inspect
import os
import subprocess
import sys

import pyarrow as pa
import pytest
from tiny_release import publish_tiny_release
from tiny_workload import TINY_WORKLOAD

import gemel_ray
from gemel_ray.api.tabular import Tabular, html_table, told
from gemel_ray.cli import edge, merging
from gemel_ray.policy.grouping import Analysis
from gemel_ray.spec.errors import GemelError, InputError, StoreError
from gemel_ray.spec.workload import Workload, load_workload
from gemel_ray.weights.store import Store

_BLOCKED = """
import sys
for name in ("ray", "torch", "pandas", "matplotlib"):
    sys.modules[name] = None
import gemel_ray
print(len(gemel_ray.load_workload(sys.argv[1]).queries), gemel_ray.open_store)
"""


@pytest.fixture(scope="module")
def workload_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("api") / "workload.yaml"
    path.write_text(TINY_WORKLOAD)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return publish_tiny_release(tmp_path_factory.mktemp("api") / "store")


def check_table(result, rows):
    """It reads and converts: as many rows everywhere, every value as it is."""
    assert isinstance(result, Tabular)
    found = result.to_arrow()
    assert (type(found), found.num_rows) == (pa.Table, rows)
    assert found.to_pylist()[0] == {column: result.rows()[0].get(column) for column in found.column_names}
    assert list(result.to_pandas().columns) == found.column_names
    assert result._repr_html_().count("<tr>") == min(rows, 20) + 1


def test_a_workload_loads_without_torch_or_ray(workload_file):
    done = subprocess.run([sys.executable, "-c", _BLOCKED, workload_file], capture_output=True, text=True)
    assert done.stdout.startswith("2 <function open_store"), done.stderr


def test_a_workload_is_a_table_of_queries(workload_file):
    workload = gemel_ray.load_workload(workload_file)
    assert isinstance(workload, Workload)
    assert workload.content_hash() == load_workload(workload_file).content_hash()
    check_table(workload, rows=2)
    assert "squeezenet1_1" in workload._repr_html_()
    assert "70.0 %" in workload._repr_html_()


def test_an_analysis_is_a_table_of_layer_groups(workload_file):
    found = gemel_ray.analyze(workload_file)
    assert isinstance(found, Analysis)
    check_table(found, rows=len(found.groups))
    assert found.to_arrow()["saved_bytes"].to_pylist() == [group.saved_bytes for group in found.groups]
    assert gemel_ray.analyze(gemel_ray.load_workload(workload_file)).groups == found.groups


def test_a_store_is_a_table_of_releases_and_a_release_of_queries(tiny, tmp_path):
    store = gemel_ray.open_store(tiny.store)
    assert isinstance(store, Store)
    check_table(store, rows=1)
    release = store.release()
    assert dict(release) == dict(tiny.manifest)
    check_table(release, rows=len(tiny.manifest.queries))
    assert release.to_arrow()["weights_bytes"].to_pylist() == [tiny.bytes_of(name) for name in tiny.manifest.queries]
    assert store.report(tmp_path / "r.html").read_text().startswith("<!doctype html>")


def test_a_damaged_release_is_a_row_beside_the_others(tmp_path):
    made = publish_tiny_release(tmp_path / "store")
    (made.store / "releases" / "000001.json").write_text("{")
    store = gemel_ray.open_store(made.store)
    (row,) = store.rows()
    assert row["release"] == 1
    assert "damaged: " in row["note"]
    check_table(store, 1)


def test_a_simulation_is_a_table_of_policies(tiny):
    found = gemel_ray.simulate(tiny.store, rates="t4", policy="ours,ours_merged", memory="64MiB", seconds=2)
    check_table(found, rows=2)
    assert found.to_arrow()["policy"].to_pylist() == ["ours", "ours_merged"]
    assert "64.0 MiB" in found._repr_html_()


@pytest.mark.parametrize("memory", [64 << 20, ["64MiB"], (64 << 20,)])
def test_budgets_and_policies_may_come_as_lists_and_numbers(tiny, memory):
    found = gemel_ray.simulate(tiny.store, rates="t4", policy=["ours", "ours_merged"], memory=memory, seconds=1)
    assert [row["budget_bytes"] for row in found.rows()] == [64 << 20] * 2


@pytest.mark.parametrize(
    "wrong", [{"memory": 1.5}, {"memory": []}, {"memory": [None]}, {"policy": [1]}, {"seconds": 0}]
)
def test_values_of_another_kind_are_wrong_input(tiny, wrong):
    with pytest.raises(InputError):
        gemel_ray.simulate(tiny.store, rates="t4", **wrong)


_SERVING = """
import socket, sys
import gemel_ray
taken = socket.create_server(("127.0.0.1", 0))
for wrong in ({"memory": 0}, {"port": 70_000}, {"port": taken.getsockname()[1]}):
    try:
        with gemel_ray.serve(*sys.argv[1:], **{"memory": "64MiB"} | wrong):
            pass
    except gemel_ray.GemelError as error:
        print(type(error).__name__, error)
"""


def test_serving_refuses_what_the_command_line_would_and_starts_no_ray_for_it(workload_file, tiny, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _SERVING, workload_file, tiny.store], capture_output=True, text=True,
        env=os.environ | {"RAY_TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    memory, port, taken = done.stdout.splitlines()
    assert memory.startswith("InputError --memory: 0 must be more than zero")
    assert port.startswith("InputError '127.0.0.1', port 70000 is no address to listen at")
    assert taken.startswith("ServingError 127.0.0.1:")
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_is_raised_as_on_the_command_line(tiny, tmp_path):
    with pytest.raises(InputError, match="--profile"):
        gemel_ray.simulate(tiny.store)
    with pytest.raises(StoreError, match="holds no releases"):
        gemel_ray.open_store(tmp_path)


def test_cells_are_escaped_and_long_tables_cut():
    html = html_table("<b>", [{"<i>": "<script>"}] * 60)
    assert "<script>" not in html
    assert "<i>" not in html
    assert "and 40 more rows" in html


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("x_bytes", 2048, "2.0 KiB"), ("x_fraction", 0.5, "50.0 %"), ("x", None, "–"), ("x", True, "True"),
        ("x", ["a", "b"], "a, b"), ("x_ms", 1.25, "1.25"),
    ],
)  # fmt: skip
def test_cells_carry_their_units(column, value, words):
    assert told(column, value) == words


def test_a_missing_pandas_is_told_with_the_way_out(monkeypatch, workload_file):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(GemelError, match=r"pip install 'gemel-ray\[notebook\]'"):
        gemel_ray.load_workload(workload_file).to_pandas()


@pytest.mark.parametrize(("function", "command"), [("search", merging.search), ("simulate", edge.simulate)])
def test_what_a_command_takes_the_function_takes_too(function, command):
    of_commands_alone = {"as_json", "operating_points", "target"}
    taken = set(inspect.signature(getattr(gemel_ray, function)).parameters)
    assert set(inspect.signature(command).parameters) - taken - of_commands_alone == set()


def test_queries_to_take_apart_need_a_release_to_take_them_out_of(tmp_path, workload_file):
    with pytest.raises(InputError, match="--apart 'a,b' takes queries out of a release; name it with --from-release"):
        gemel_ray.search(workload_file, tmp_path / "store", apart="a,b")
    assert not (tmp_path / "store").exists()
