"""The drift watch on Ray Serve: engines give samples, a process of its own compares them, the controller reverts."""

import io
import socket
import ssl
import time

import httpx
import pytest
import yaml
from certificate_kit import self_signed
from drift_kit import BAD, FRAMES, GOOD, a_workload, publish_drifting
from PIL import Image

from gemel_ray.serving.drift_options import DriftOptions
from gemel_ray.serving.local import serve_release
from gemel_ray.serving.options import NodeOptions
from gemel_ray.serving.tls import read_certificate
from gemel_ray.weights.store import open_store

pytestmark = pytest.mark.ray

PATIENCE_S = 240


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def png(frame):
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "PNG")
    return stream.getvalue()


def test_what_drifts_is_reverted_on_the_whole_service(ray_session, tmp_path):
    publish_drifting(tmp_path / "store")
    (tmp_path / "w.yaml").write_text(yaml.safe_dump(a_workload(tmp_path).model_dump(mode="json", exclude_none=True)))
    drift = DriftOptions(sample_every_s=0.05, false_alarm_days=1e-3, workload=str(tmp_path / "w.yaml"))
    node = NodeOptions(memory=1 << 26, device="cpu", threads=1)
    certificate = read_certificate(*self_signed(tmp_path))
    trusted = ssl.create_default_context(cafile=certificate.cert)
    with (
        serve_release(
            tmp_path / "store",
            nodes=[node],
            cache=tmp_path / "cache",
            port=free_port(),
            tls=certificate,
            watch=True,
            drift=drift,
        ) as service,
        httpx.Client(base_url=service.url, timeout=60, trust_env=False, verify=trusted) as client,
    ):
        assert service.url.startswith("https://")
        pictures = [png(frame) for frame in FRAMES]

        def send_until(happens):
            until, turn = time.monotonic() + PATIENCE_S, 0
            while not happens(status := client.get("/v1/status").json()):
                assert time.monotonic() < until, status
                for query in (BAD, GOOD):
                    for _ in range(10):
                        sent = client.post(
                            f"/v1/queries/{query}/frames?slo_ms=60000",
                            content=pictures[turn % len(pictures)],
                            headers={"Content-Type": "image/png"},
                        )
                        assert sent.status_code == 200, sent.text
                        turn += 1
            return status

        told = send_until(lambda status: status["drift_events"])
        (event,) = told["drift_events"]
        assert (event["query"], event["release"], event["reverted_in"]) == (BAD, 2, 3)
        assert "gemel search" in event["command"]
        settled = send_until(lambda status: {node["release"] for node in status["nodes"]} == {3})
        by_name = {query["name"]: query["drift"] for query in settled["queries"]}
        assert by_name[GOOD]["verdict"] == "holding"
        assert by_name[GOOD]["agreement"] == 1
        assert "gemel_query_sampled_agreement_ratio{" in client.get("/metrics").text
    assert open_store(tmp_path / "store").head() == 3
