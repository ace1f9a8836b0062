"""Placing a release from its store: by command, with its reasons, and with few moves afterwards."""

import json

import pytest
import typer
from tiny_release import CLASSIFIERS, publish_tiny_release
from typer.testing import CliRunner

from gemel_ray.cli.placing import register
from gemel_ray.engine.placing import PlacingOptions, place_store
from gemel_ray.engine.simulating import SimulationOptions, simulate_store
from gemel_ray.spec.errors import InputError, ModelError, OverBudgetError
from gemel_ray.spec.workload import parse_workload
from gemel_ray.training.releases import publish_originals
from gemel_ray.vision.models import build_model
from gemel_ray.weights.store import open_store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return publish_tiny_release(tmp_path_factory.mktemp("tiny") / "store")


def workload_of(*memories, queries=CLASSIFIERS):
    model = {"architecture": "resnet18", "classes": ["background", "car"]}
    return {
        "name": "tiny-street",
        "feeds": {"f": {"kind": "streets"}},
        "queries": [{"name": name, "feed": "f", "model": model} for name in queries],
        "nodes": [{"name": f"box-{number}", "memory": memory} for number, memory in enumerate(memories)],
    }


def placed(made, *memories, queries=CLASSIFIERS, rates=("t4",), **options):
    workload = parse_workload(workload_of(*memories, queries=queries), source="test", base=made.store)
    return place_store(workload, str(made.store), PlacingOptions(rates=rates, **options))


def test_queries_that_share_layers_come_together_and_the_document_says_why(made):
    document = placed(made, "64MiB", "64MiB")
    where = {row["query"]: row["node"] for row in document["queries"]}
    assert where["north_cars"] == where["south_cars"]
    assert where["north_people"] == where["south_people"]
    assert document["spared_bytes"] == sum(made.bytes_of(name) for name in CLASSIFIERS) - made.bytes_of(*CLASSIFIERS)
    assert document["worst_goodput_fraction"] == 1.0
    assert document["spared_bytes"] >= document["dealt_in_turn"]["spared_bytes"]
    assert all("are there for others too" in row["reason"] for row in document["queries"])


def test_devices_may_differ_by_node(made):
    document = placed(made, "64MiB", "64MiB", rates=("t4", "box-1=l4"))
    assert [row["device"] for row in document["nodes"]] == ["NVIDIA T4", "NVIDIA L4"]


def test_what_runs_stays_where_it_is(made, tmp_path):
    document = placed(made, "64MiB", "64MiB")
    earlier = tmp_path / "placement.json"
    earlier.write_text(json.dumps(document))
    again = placed(made, "64MiB", "64MiB", "64MiB", current=earlier)
    assert again["moved"] == []
    assert all(row["reason"].startswith("stays") for row in again["queries"])


@pytest.mark.parametrize(
    ("memories", "options", "error", "told"),
    [
        ((), {}, InputError, "has no 'nodes'"),
        (("1KiB",), {}, OverBudgetError, "fits no node: alone it needs"),
        (("64MiB",), {"rates": ()}, InputError, "give either --profile"),
        (("64MiB",), {"rates": ("bx-0=t4",)}, InputError, "no node 'bx-0' in the workload; did you mean 'box-0'"),
        (("64MiB",), {"rates": ("t4", "l4")}, InputError, "--rates says two things of all nodes"),
        (("64MiB",), {"profiles": ("nowhere.json",), "rates": ()}, InputError, "nowhere.json: cannot be read"),
        (("64MiB",), {"queries": ("north_carts",)}, InputError, "no query 'north_carts' .did you mean 'north_cars'"),
    ],
    ids=["nodes", "memory", "costs", "node", "twice", "file", "query"],
)
def test_bad_input_is_told(made, memories, options, error, told):
    with pytest.raises(error, match=told):
        placed(made, *memories, **options)


def test_an_earlier_placement_that_is_none_is_told(made, tmp_path):
    path = tmp_path / "odd.json"
    path.write_text("[]")
    with pytest.raises(InputError, match="is no placement"):
        placed(made, "64MiB", current=path)


@pytest.fixture
def command():
    app = typer.Typer()
    # With one command only, typer would leave its name out.
    app.callback()(lambda: None)
    register(app)
    return app


def test_the_command_prints_tables_and_json(made, tmp_path, command):
    path = tmp_path / "workload.yaml"
    path.write_text(json.dumps(workload_of("10MiB", "24MiB")))
    arguments = ["place", str(path), "--store", str(made.store), "--rates", "t4"]
    told = CliRunner().invoke(command, arguments, env={"COLUMNS": "160"})
    assert told.exit_code == 0, told.output
    assert "Dealt in turn" in told.output
    assert all(name in told.output for name in (*CLASSIFIERS, "box-0", "box-1"))
    document = json.loads(CliRunner().invoke(command, [*arguments, "--json"]).stdout)
    assert {row["query"] for row in document["queries"]} == set(CLASSIFIERS)


@pytest.fixture
def own_models(tmp_path):
    """A workload of a model by factory, and the store of its original."""
    workload = workload_of("64MiB", queries=["cars"])
    workload["queries"][0]["model"] = {
        "factory": "torchvision.models:squeezenet1_1", "task": "classification", "input_size": 64,
        "classes": ["background", "car"],
    }  # fmt: skip
    found = parse_workload(workload, source="test", base=tmp_path)
    models = {query.name: build_model(query.model, allow_factories=True) for query in found.queries}
    publish_originals(open_store(tmp_path / "store", create=True), found, models, seed=0)
    return found, tmp_path / "store"


def test_own_models_are_estimated_where_their_factories_are_allowed(own_models):
    workload, store = own_models
    with pytest.raises(ModelError, match="--allow-factories"):
        place_store(workload, str(store), PlacingOptions(rates=("t4",)))
    document = place_store(workload, str(store), PlacingOptions(rates=("t4",), allow_factories=True))
    assert [row["query"] for row in document["queries"]] == ["cars"]
    options = SimulationOptions(rates="t4", policy="ours", memory="64MiB", seconds=1, allow_factories=True)
    assert simulate_store(str(store), options)[0]["goodput_fraction"] == {"cars": 1.0}
