"""What Prometheus is told, as its own parser reads it, and what Grafana shows of it."""

import contextlib
import io
import json
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from tiny_release import CLASSIFIERS, noise

from gemel_ray.serving.engine_backend import EngineBackend
from gemel_ray.serving.ingress import build_api

CONFIGS = Path(__file__).parents[2] / "serve_configs"
DASHBOARD = CONFIGS / "grafana" / "gemel-dashboard.json"


@pytest.fixture
def service(server_of, start, tiny):
    """A service of its own whose counts are all its tests' own; it is asked with two frames, one of them hopeless."""
    engine = start(tiny)
    url = server_of(build_api(EngineBackend(engine, tiny.manifest, node="box-a")))
    ask(url)
    ask(url, "?slo_ms=0.0001")
    frames = np.stack([noise(0), noise(1)])
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(frames.shape), "data": frames.tolist()}
    assert httpx.post(f"{url}/v2/models/north_cars/infer", json={"inputs": [tensor]}, timeout=60).status_code == 200
    yield url, engine
    engine.stop()


def ask(url, more=""):
    stream = io.BytesIO()
    Image.fromarray(noise(0)).save(stream, "PNG")
    reply = httpx.post(f"{url}/v1/queries/north_cars/frames{more}", content=stream.getvalue(), timeout=60)
    assert reply.status_code == 200, reply.text


def scrape(url):
    reply = httpx.get(f"{url}/metrics", timeout=60)
    assert reply.headers["content-type"].startswith("text/plain; version=")
    return list(text_string_to_metric_families(reply.text))


def samples(families):
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for f in families for sample in f.samples}


def of(query, **more):
    return tuple(sorted({"query": query, **more}.items()))


def test_counts_of_frames_are_those_of_the_frames_that_were_sent(service):
    found = samples(scrape(service[0]))
    here = of("north_cars", node="box-a")
    assert found["gemel_frames_arrived_total", here] == 4
    assert found["gemel_frames_answered_total", here] == 3
    assert found["gemel_frames_stale_total", here] == 1
    assert found["gemel_frames_dropped_total", of("north_cars", reason="late")] == 1
    assert found["gemel_answer_latency_seconds_count", of("north_cars")] == 3
    assert found["gemel_frames_late_total", of("north_cars")] == 0
    assert found["gemel_frames_arrived_total", of("south_cars", node="box-a")] == 0
    assert found["gemel_frames_dropped_total", of("south_cars", reason="replaced")] == 0


def test_a_frame_answered_after_its_slo_is_late(service):
    url, _ = service
    stream = io.BytesIO()
    Image.fromarray(noise(0)).save(stream, "PNG")
    reply = httpx.post(
        f"{url}/v1/queries/north_cars/frames?slo_ms=0.0001", files={"a": ("a.png", stream.getvalue())}, timeout=60
    )
    assert reply.json()["frames"][0]["fresh"] is True
    assert samples(scrape(url))["gemel_frames_late_total", of("north_cars")] == 1


def test_numbers_are_those_of_the_status(service):
    url, _ = service
    found, status = samples(scrape(url)), httpx.get(f"{url}/v1/status", timeout=60).json()
    (node,) = status["nodes"]
    on = (("node", "box-a"),)
    for name in ("budget", "resident", "shared", "workspace", "peak"):
        assert found[f"gemel_node_{name}_bytes", on] == node["memory"][f"{name}_bytes"]
    assert found["gemel_node_loads_total", on] == node["loads"] > 0
    assert found["gemel_node_loaded_bytes_total", on] == node["loaded_bytes"] > 0
    assert found["gemel_node_replans_total", on] == node["replans"] == 0
    assert 0 < found["gemel_node_busy_ratio", on] <= 1
    assert found["gemel_node_release_number", on] == 1
    assert found["gemel_node_up", on] == 1
    assert found["gemel_originals_bytes", ()] == status["bytes_before"]
    assert found["gemel_release_bytes", ()] == status["bytes_after"]
    query = next(query for query in status["queries"] if query["name"] == "north_cars")
    here = of("north_cars", node="box-a")
    assert found["gemel_query_agreement_ratio", here] == query["agreement"]
    assert found["gemel_query_agreement_lower_bound_ratio", here] == query["lower_bound"]
    assert found["gemel_node_original_bytes", on] == node["original_bytes"] == status["bytes_before"]
    assert found["gemel_query_slo_seconds", here] == query["slo_ms"] / 1e3
    assert found["gemel_frames_late_total", of("north_cars")] == query["late"]
    for reason, count in query["dropped"].items():
        assert found["gemel_frames_dropped_total", of("north_cars", reason=reason)] == count
    for name, key in (("0.5", "p50_latency_ms"), ("0.95", "p95_latency_ms")):
        shown = found["gemel_frame_latency_seconds", of("north_cars", node="box-a", quantile=name)]
        assert shown == pytest.approx(query[key] / 1e3)


def test_every_family_has_a_type_a_help_text_and_a_name_of_ours(service):
    families = scrape(service[0])
    assert len(families) > 20
    for family in families:
        assert family.name.startswith("gemel_")
        assert family.documentation
        assert family.type in {"gauge", "counter", "summary", "histogram"}
    assert len({family.name for family in families}) == len(families)


def test_every_query_and_every_kind_of_loss_is_shown_from_the_start(service):
    found = samples(scrape(service[0]))
    for query in CLASSIFIERS:
        for reason in ("late", "replaced", "failed"):
            assert ("gemel_frames_dropped_total", of(query, reason=reason)) in found


def test_a_lost_engine_is_shown_as_down_and_its_numbers_are_gone(service):
    url, engine = service
    engine.stop()
    found = samples(scrape(url))
    assert found["gemel_node_up", (("node", "box-a"),)] == 0
    assert not [name for name, _ in found if name in ("gemel_node_resident_bytes", "gemel_frames_arrived_total")]
    assert ("gemel_query_slo_seconds", of("north_cars", node="box-a")) in found


def expressions(panel):
    return [target["expr"] for target in panel["targets"]]


def test_every_metric_of_the_dashboard_is_really_told(service):
    dashboard = json.loads(DASHBOARD.read_text())
    families = scrape(service[0])
    told = {sample.name for family in families for sample in family.samples}
    # Nobody watches for drift here; those families are there all the same, and empty.
    told |= {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    asked = [expr for panel in dashboard["panels"] for expr in expressions(panel)]
    asked += [variable.get("definition", "") for variable in dashboard["templating"]["list"]]
    named = {name for expr in asked for name in re.findall(r"gemel_\w+", expr)}
    assert len(named) > 15
    assert named - told == set()


def test_every_number_that_is_told_is_on_the_dashboard(service):
    shown = DASHBOARD.read_text()
    families = [family.name for family in scrape(service[0])]
    assert [name for name in families if name not in shown] == []


def test_panels_have_ids_units_and_explanations_of_their_own():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_prometheus_is_sent_to_where_the_shipped_service_answers():
    prometheus = yaml.safe_load((CONFIGS / "prometheus.yml").read_text())
    service = yaml.safe_load((CONFIGS / "local.yaml").read_text())["http_options"]
    (job,) = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"{service['host']}:{service['port']}"]}]
    assert job["metrics_path"] == "/metrics"


@contextlib.contextmanager
def prometheus_of(url, folder):
    """A real Prometheus with the shipped file, but for where the service is and how often it is asked: its URL."""
    config = yaml.safe_load((CONFIGS / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "500ms"
    config["scrape_configs"][0]["static_configs"] = [{"targets": [url.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
        try:
            yield f"http://{address}"
        finally:
            running.terminate()
            running.wait()


def answer(prometheus, expr, *, until_s):
    """What Prometheus says to an expression of the dashboard, once it has anything to say."""
    found = []
    while not found and time.monotonic() < until_s:
        with contextlib.suppress(httpx.TransportError):
            reply = httpx.get(f"{prometheus}/api/v1/query", params={"query": expr.replace("$query", ".*")})
            # 503 while it starts.
            assert reply.status_code in (200, 503), (expr, reply.text)
            found = reply.json()["data"]["result"] if reply.status_code == 200 else []
        time.sleep(0 if found else 0.2)
    return found


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed here")
def test_a_real_prometheus_answers_what_every_panel_asks(service, tmp_path):
    url, _ = service
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = [expr for panel in panels for expr in expressions(panel)]
    with prometheus_of(url, tmp_path) as prometheus:
        until_s = time.monotonic() + 60
        assert answer(prometheus, "gemel_node_up", until_s=until_s)
        ask(url)
        # Nobody watches for drift here: those panels stay empty.
        watched = [expr for expr in asked if not re.search("drift|sampled", expr)]
        silent = [expr for expr in watched if not answer(prometheus, expr, until_s=until_s)]
        assert silent == []
        (answered,) = answer(prometheus, 'gemel_frames_answered_total{query="north_cars"}', until_s=until_s)
        assert float(answered["value"][1]) >= 3
