"""The guide for own models and cameras, run from top to bottom in one folder, with a camera that speaks RTSP."""

import contextlib
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import av
import pytest
from documentation import ROOT, documented, environment, gemel, shell
from rtsp_camera import Camera
from tiny_release import noise

import gemel_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow]

GUIDE = ROOT / "gemel_ray" / "vision" / "BRING_YOUR_OWN.md"
PATIENCE_S = 120
# What is shown, and what it is here: nothing is downloaded, the search takes seconds, the port is free.
CAMERA = "192.0.2.1"
HERE = {
    'weights="DEFAULT"': "weights=None",
    "frames: 300": "frames: 160",
    "gemel search mine.yaml": "gemel search mine.yaml --trials 1 --steps 2 --gate-margin 1",
}


def write_video(path, seed, frames=170):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            image = noise(1000 * seed + number, height=48, width=64)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


class Reader:
    """Somebody who does what the guide shows."""

    def __init__(self, folder, camera):
        self.folder, self._camera = folder, camera
        self.printed = {}
        # A Ray of its own, whatever else runs on this machine.
        self.environment = environment() | {"RAY_ADDRESS": "local"}
        self._service = None
        self._url = ""

    def do(self, shown):
        text = shown.text.replace(CAMERA, self._camera.address)
        for given, here in HERE.items():
            text = text.replace(given, here)
        self.printed[shown] = getattr(self, f"_{shown.language}")(text)

    def close(self):
        if self._service:
            self._service.send_signal(signal.SIGINT)
            self._service.communicate(timeout=PATIENCE_S)

    def _yaml(self, text):
        (self.folder / "mine.yaml").write_text(text)

    def _python(self, text):
        if named := re.match(r"# (\w+\.py)\n", text):
            (self.folder / named[1]).write_text(text)
            return ""
        return self._run(shlex.join([sys.executable, "-c", text]))

    def _bash(self, text):
        if text.startswith("export "):
            told = subprocess.run(
                ["bash", "-c", f"{text}\nenv -0"], cwd=self.folder, stdout=subprocess.PIPE, check=True
            )
            self.environment |= dict(line.split("=", 1) for line in told.stdout.decode().split("\0") if line)
            return ""
        if text.startswith("gemel serve"):
            return self._serve(f"{text} --port {free_port()}")
        if text.startswith(("gemel analyze", "gemel export")):
            return gemel(text, self.folder)
        return self._run(text.replace("http://127.0.0.1:8000", self._url))

    def _serve(self, text):
        self._service = subprocess.Popen(
            shlex.split(text), cwd=self.folder, env=self.environment, stderr=subprocess.PIPE, text=True
        )
        told = next(line for line in self._service.stderr if "serving at" in line)
        self._url = re.search(r"http://\S+", told)[0]
        return told

    def _run(self, text):
        return shell(text, self.folder, self.environment)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for number, name in enumerate(("front/1.mp4", "front/2.mp4", "back.mp4")):
        write_video(folder / "videos" / name, number)
    with contextlib.ExitStack() as ended, pytest.MonkeyPatch.context() as patch:
        camera = ended.enter_context(contextlib.closing(Camera(frames=850, credentials="viewer:secret")))
        reader = ended.enter_context(contextlib.closing(Reader(folder, camera)))
        patch.syspath_prepend(folder)
        for shown in documented(GUIDE):
            reader.do(shown)
        yield reader


def answer_to(reader, start):
    (found,) = (printed for shown, printed in reader.printed.items() if shown.text.startswith(start))
    return found


def test_the_guide_runs_from_top_to_bottom(reader):
    assert "door_net" in answer_to(reader, "gemel analyze")
    manifest = gemel_ray.open_store(reader.folder / "store").manifest()
    assert set(manifest.queries) == {"front_door", "back_door", "yard_boxes", "lobby_people"}
    # Untrained models, drawn anew each time: two steps may find nothing that they can share.
    assert 0 < manifest.bytes_after <= manifest.bytes_before


def test_models_of_ones_own_answer_what_a_camera_sends_over_rtsp(reader):
    answers = [json.loads(line) for line in answer_to(reader, "python send_camera.py").splitlines()]
    assert len(answers) > 20
    assert {answer["answer"]["label"] for answer in answers} <= {"background", "person"}
    assert any(answer["fresh"] for answer in answers)


def test_what_is_taken_out_is_used_without_this_package(reader):
    (printed,) = (printed for shown, printed in reader.printed.items() if "torch.export.load" in shown.text)
    assert printed == "torch.Size([4, 2])\n"


def test_no_password_is_kept_in_the_store(reader):
    held = [path for path in Path(reader.folder / "store").rglob("*") if path.is_file() and path.suffix == ".json"]
    assert held
    assert all("secret" not in path.read_text() for path in held)
