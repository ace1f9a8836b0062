"""The Serve files we ship. Ray's own schema takes unknown keys and forgets them, so they are looked for here."""

import shlex
from pathlib import Path

import jsonschema
import pytest
import ray
import typer
import yaml
from kuberay_schema import RESOURCES
from ray.serve.schema import ServeDeploySchema
from tiny_release import publish_tiny_release

from gemel_ray.cli.main import app
from gemel_ray.serving.options import parse_options

KUBERAY = Path(__file__).parents[2] / "serve_configs" / "kuberay"
CONFIGS = sorted((Path(__file__).parents[2] / "serve_configs").glob("*.yaml"))


def unknown_keys(given, schema, where=""):
    """Keys at any level that the Serve schema does not know; it accepts and forgets them."""
    known = schema.model_fields
    found = [f"{where}{key}" for key in given if key not in known]
    for application in given.get("applications", []):
        inner = known["applications"].annotation.__args__[0]
        found += unknown_keys({k: v for k, v in application.items() if k != "applications"}, inner, "applications.")
    return found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid_to_the_last_key(path):
    config = yaml.safe_load(path.read_text())
    deployed = ServeDeploySchema.model_validate(config)
    assert unknown_keys(config, ServeDeploySchema) == []
    assert unknown_keys(config.get("http_options", {}), ServeDeploySchema.model_fields["http_options"].annotation) == []
    for application in deployed.applications:
        assert application.import_path == "gemel_ray.serving.app:build"
        assert parse_options(application.args).nodes


def test_there_is_a_configuration_for_one_machine_and_one_for_several():
    assert {"local.yaml", "fleet.yaml"} <= {path.name for path in CONFIGS}
    fleet = yaml.safe_load(next(path for path in CONFIGS if path.name == "fleet.yaml").read_text())
    options = parse_options(fleet["applications"][0]["args"])
    assert options.has_controller
    assert len({tuple(node.labels.items()) for node in options.nodes}) == len(options.nodes) > 1


def test_engine_and_controller_are_told_the_release_of_today_unless_head_is_watched(tmp_path):
    from gemel_ray.serving.app import build

    publish_tiny_release(tmp_path / "store", ("north_cars",))
    nodes = [{"name": name, "memory": "64MiB"} for name in ("box-a", "box-b")]
    for watch, release in ((False, 1), (True, None)):
        built = build({"store": str(tmp_path / "store"), "nodes": nodes, "watch": watch})
        parts = [part._bound_deployment.init_args[0] for part in built._bound_deployment.init_args]
        assert [part["release"] for part in parts] == [release] * 3


def manifest(name):
    return yaml.safe_load((KUBERAY / name).read_text())


@pytest.mark.parametrize("path", sorted(KUBERAY.glob("*.yaml")), ids=lambda path: path.name)
def test_every_manifest_has_only_fields_that_kuberay_knows(path):
    found = manifest(path.name)
    jsonschema.validate(found, RESOURCES[found["kind"]])
    cluster = found["spec"].get("rayClusterConfig") or found["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_a_key_that_kuberay_does_not_know_is_found():
    found = manifest("service.yaml")
    found["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["labels"] = "role=head"
    with pytest.raises(jsonschema.ValidationError, match="labels"):
        jsonschema.validate(found, RESOURCES["RayService"])


def test_the_service_on_kubernetes_is_the_fleet_and_every_node_has_its_pod():
    found = manifest("service.yaml")["spec"]
    config = yaml.safe_load(found["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    assert unknown_keys(config, ServeDeploySchema) == []
    fleet = yaml.safe_load((KUBERAY.parent / "fleet.yaml").read_text())
    (application,), (shipped,) = config["applications"], fleet["applications"]
    tokens = application["args"].pop("tokens")
    assert application == shipped
    cluster = found["rayClusterConfig"]
    workers = {tuple(group["labels"].items()): group for group in cluster["workerGroupSpecs"]}
    options = parse_options(application["args"])
    assert cluster["headGroupSpec"]["labels"] == options.front_labels
    for node in options.nodes:
        container = workers[tuple(node.labels.items())]["template"]["spec"]["containers"][0]
        assert int(container["resources"].get("limits", {}).get("nvidia.com/gpu", 0)) == node.num_gpus
        assert {token["env"] for token in tokens.values()} <= {variable["name"] for variable in container["env"]}
        assert options.cache in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_the_job_on_kubernetes_is_a_search_that_the_command_takes():
    found = manifest("search.yaml")["spec"]
    gemel, command, *arguments = shlex.split(found["entrypoint"])
    assert (gemel, command) == ("gemel", "search")
    context = typer.main.get_command(app).commands[command].make_context(command, arguments)
    mounts = found["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert str(context.params["workload"].parent) in {mount["mountPath"] for mount in mounts}
