"""The two functions of a notebook that start Ray, from originals to an answer over HTTP."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tiny_workload import TINY_WORKLOAD

import gemel_ray
from gemel_ray.spec.errors import InputError

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_ORIGINALS = ("originals", "workload.yaml", "--steps", "40", "--json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "workload.yaml").write_text(TINY_WORKLOAD)
    command = [sys.executable, "-c", "from gemel_ray.cli.main import main; main()", *_ORIGINALS]
    assert len(json.loads(subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout)) == 2
    return folder


def test_search_then_report_then_serve(ray_session, folder):
    workload, store = gemel_ray.load_workload(folder / "workload.yaml"), folder / "store"
    lines = []
    release = gemel_ray.search(workload, store, parallel=1, trials=2, steps=20, gate_margin=1.0, progress=lines.append)
    assert lines
    assert release.release == gemel_ray.open_store(store).head()
    assert {row["query"] for row in release.rows()} == {"a_cars", "b_cars"}
    page = Path(gemel_ray.open_store(store).report(folder / "report.html")).read_text()
    facts = json.loads(page.split('id="facts">')[1].split("</script>")[0])
    assert facts["bytes_after"] == release.bytes_after
    assert all(trial["ended_at"] for trial in facts["trials"])
    with gemel_ray.serve(workload, store, memory="64MiB", port=_free_port()) as service:
        assert httpx.get(f"{service.url}/v2/health/ready", timeout=60).status_code == 200
        assert set(service.to_arrow()["name"].to_pylist()) == {"a_cars", "b_cars"}
        assert service.url in service._repr_html_()


def test_serving_without_a_node_or_memory_is_refused(folder):
    with pytest.raises(InputError, match="memory"), gemel_ray.serve(folder / "workload.yaml", folder / "store"):
        pass


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
