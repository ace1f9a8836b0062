"""The Serve files we ship. Ray's own schema takes unknown keys and forgets them, so they are looked for here."""

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from gemel_ray.serving.options import parse_options

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
