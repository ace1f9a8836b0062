"""Every command in our documents is run: here, in order, on a small workload; or by the test that is named."""

import ast
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import ray
from documentation import ROOT, commands, environment, gemel, shell
from PIL import Image
from tiny_release import noise
from tiny_workload import TINY_WORKLOAD

import gemel_ray
from gemel_ray.spec.errors import InputError
from gemel_ray.spec.profile import DeviceProfile

pytestmark = [pytest.mark.ray, pytest.mark.slow]

COMMANDS = commands()
PATIENCE_S = 120

# What another test runs already, by what its text holds; `.ci/run` is what continuous integration starts.
ELSEWHERE = {
    "&& tests/run.sh test": ".ci/run",
    "&& gemel demo": "tests/e2e/test_demo.py::test_everything_it_made_can_be_used_on",
    "gemel edge WORKLOAD": "tests/e2e/test_edge.py::test_a_store_over_http_is_followed_and_its_loss_survived",
    "ray job submit": "tests/e2e/test_jobs.py::test_a_search_submitted_as_a_job_leaves_a_release",
    "import gemel_ray\n": "tests/ray/test_documentation.py::test_the_notebook_in_the_readme",
}
# What must be there to be run here: smaller, quicker, at a free port.
NAMES = {
    "WORKLOAD": "workload.yaml", "STORE": "store", "A": "1", "B": "2", "QUERY": "a_cars",
}  # fmt: skip
QUICK = {
    "gemel originals": "--steps 40",
    "gemel search": "--trials 2 --steps 20 --parallel 1 --gate-margin 1",
    "gemel profile": "--repeats 1",
    "gemel simulate": "--seconds 2",
    "gemel report": "--seconds 2 --memory 3MiB",
}
# The training of this one would take minutes; the file itself is analysed as it is.
SMALLER = {"gemel originals serve_configs/workloads/streets.yaml": "gemel originals workload.yaml"}


# Documents that a test of their own runs whole.
WHOLE = {
    "gemel_ray/vision/BRING_YOUR_OWN.md": "tests/ray/test_bring_your_own.py::test_the_guide_runs_from_top_to_bottom"
}


def elsewhere(command):
    return WHOLE.get(command.document) or next((test for held, test in ELSEWHERE.items() if held in command.text), None)


def needs_service(command):
    return "127.0.0.1:8000" in command.text


def starts_service(command):
    return command.text.startswith(("gemel serve ", "serve run "))


OWN = [command for command in COMMANDS if not elsewhere(command)]
STARTING = [command for command in OWN if starts_service(command)]
ASKING = [command for command in OWN if needs_service(command)]
HERE = [command for command in OWN if not starts_service(command) and not needs_service(command)]


def filled(text):
    """A documented command with its placeholders filled in."""
    for held, other in SMALLER.items():
        text = text.replace(held, other)
    text = re.sub(r"\b[A-Z]+\b(?![=:])", lambda found: NAMES.get(found[0], found[0]), text)
    quick = next((options for start, options in QUICK.items() if text.startswith(start)), "")
    return f"{text} {quick}".strip()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def folder(ray_session, tmp_path_factory):
    """Where a reader would be, with a workload, a picture and our Serve files."""
    folder = tmp_path_factory.mktemp("reader")
    nodes = "nodes:\n  - {name: box, memory: 64MiB, device: cpu}\n"
    (folder / "workload.yaml").write_text(TINY_WORKLOAD + nodes)
    shutil.copytree(ROOT / "serve_configs", folder / "serve_configs")
    for name in ("frame.jpg", "1.jpg", "2.jpg"):
        Image.fromarray(noise(1)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def walked(folder):
    """Every command that needs no service was run, in the documents' order: what each printed."""
    printed = {}
    for command in HERE:
        if command.language == "python":
            printed[command] = in_python(command.text, folder)
        elif command.text.startswith("gemel "):
            printed[command] = gemel(filled(command.text), folder)
        else:
            printed[command] = shell(filled(command.text), folder)
    return printed


def in_python(text, folder):
    """Run a block after which a value is shown, as a notebook would, with the values that its text speaks of."""
    profile = DeviceProfile.model_validate_json((folder / "profile.json").read_text())
    known = {"manifest": gemel_ray.open_store(folder / "store").manifest(), "profile": profile}
    block = ast.parse(text)
    last = block.body.pop()
    exec(compile(block, "README.md", "exec"), known)
    assert isinstance(last, ast.Expr), "a block ends with what it shows"
    return eval(compile(ast.Expression(last.value), "README.md", "eval"), known)


def test_every_documented_command_is_run_here_or_by_a_test_that_exists():
    for test in {*ELSEWHERE.values(), *WHOLE.values()}:
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text() if name else (ROOT / path).is_file()
    for held in ELSEWHERE:
        assert any(held in command.text for command in COMMANDS), f"{held!r} is no longer documented"
    assert len(OWN) == len(HERE) + len(STARTING) + len(ASKING)
    print(f"\n{len(COMMANDS)} documented commands: {len(OWN)} run here, {len(COMMANDS) - len(OWN)} by other tests")


def test_what_the_documents_show_runs_from_top_to_bottom(walked, folder):
    printed = {command.text.split()[1]: text for command, text in walked.items() if command.text.startswith("gemel ")}
    assert "squeezenet1_1" in printed["originals"] + printed["profile"] + printed["show"]
    assert gemel_ray.open_store(folder / "store").releases()[:2] == [1, 2]
    assert (folder / "report.html").stat().st_size > 10_000
    assert list((folder / "plots").glob("*.png"))
    assert len((folder / "read-token").read_text().strip()) == 64
    shown = [value for command, value in walked.items() if command.language == "python"]
    assert shown
    assert all(0 <= goodput <= 1 for fractions, _, _ in shown for goodput in fractions.values())


# a notebook


def quickened(block):
    """The README's block with a search of seconds, at a free port, and a look at the service while it runs."""
    for shown, other in (
        ("minutes=10", "minutes=10, parallel=1, trials=2, steps=20, gate_margin=1.0, progress=lines.append"),
        ('memory="2GiB"', f'memory="64MiB", port={free_port()}'),
        ("print(service.url)", "look(service)"),
    ):
        assert block.count(shown) == 1
        block = block.replace(shown, other)
    return block


@pytest.fixture
def notebook(walked, folder, tmp_path, monkeypatch):
    """A folder with the same workload and originals, and no store yet."""
    for name in ("workload.yaml", "originals"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_notebook_in_the_readme(notebook):
    (block,) = (command.text for command in COMMANDS if command.text.startswith("import gemel_ray\n"))
    lines, urls = [], []

    def look(service):
        assert httpx.get(f"{service.url}/v2/health/ready", timeout=PATIENCE_S).status_code == 200
        assert set(service.to_arrow()["name"].to_pylist()) == {"a_cars", "b_cars"}
        assert service.url in service._repr_html_()
        urls.append(service.url)

    known = {"lines": lines, "look": look}
    exec(compile(quickened(block), "README.md", "exec"), known)
    assert lines
    assert urls
    release = known["release"]
    assert release.release == gemel_ray.open_store("store").head()
    assert {row["query"] for row in release.rows()} == {"a_cars", "b_cars"}
    facts = json.loads(Path("report.html").read_text().split('id="facts">')[1].split("</script>")[0])
    assert facts["bytes_after"] == release.bytes_after
    assert all(trial["ended_at"] for trial in facts["trials"])


def test_a_notebook_that_names_no_node_and_no_memory_is_told(notebook):
    Path("workload.yaml").unlink()
    Path("workload.yaml").write_text(TINY_WORKLOAD)
    with pytest.raises(InputError, match="memory"), gemel_ray.serve("workload.yaml", "store"):
        pass


# services


class Told(io.StringIO):
    """What a command said on stderr, which somebody waits for."""

    def __init__(self):
        super().__init__()
        self.said = threading.Event()
        self.url = None

    def write(self, text):
        if found := re.search(r"serving at (\S+)", text):
            self.url = found[1]
            self.said.set()
        return super().write(text)


def ask(url, folder):
    """Run every command that asks a service."""
    answers = {}
    for command in ASKING:
        text = filled(command.text).replace("http://127.0.0.1:8000", url)
        if command.language == "python":
            text = text.replace("127.0.0.1:8000", url.removeprefix("http://"))
            script = f"token = 'none is asked for'\n{text}"
            answers[command] = shell(shlex.join([sys.executable, "-c", script]), folder)
        elif "/results" in text:
            answers[command] = first_result(text, url, folder)
        else:
            answers[command] = shell(text.replace("curl ", "curl -sS --fail-with-body "), folder)
    return answers


def first_result(text, url, folder):
    """What the stream of results tells first, while frames are sent."""
    with subprocess.Popen(shlex.split(text), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as stream:
        with ThreadPoolExecutor(1) as pool:
            line = pool.submit(lambda: next(line for line in stream.stdout if line.startswith(b"data:")))
            while not line.done():
                httpx.post(
                    f"{url}/v1/queries/a_cars/frames",
                    content=(folder / "frame.jpg").read_bytes(),
                    headers={"content-type": "image/jpeg"},
                    timeout=PATIENCE_S,
                )
        stream.terminate()
        return line.result().decode()


def asked_then_interrupted(told, folder, former):
    """Ask the service as soon as it says where it is, then press Ctrl-C."""
    assert told.said.wait(PATIENCE_S)
    try:
        return ask(told.url, folder)
    finally:
        while signal.getsignal(signal.SIGINT) is former:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_service_started_by_gemel_serve_answers_every_documented_request(walked, folder):
    (serving,) = (command for command in STARTING if command.text.startswith("gemel serve "))
    told = Told()
    with ThreadPoolExecutor(1) as pool, contextlib.redirect_stderr(told):
        asking = pool.submit(asked_then_interrupted, told, folder, signal.getsignal(signal.SIGINT))
        gemel(f"{filled(serving.text)} --port {free_port()}", folder)
    answers = asking.result()
    assert set(answers) == set(ASKING)
    for command, answer in answers.items():
        told_by = {"gemel": "a_cars", "curl": '"fresh"', "import": "'release': "}[command.text.split()[0]]
        assert told_by in answer, command
    assert told.getvalue().endswith("stopped\n")


def test_the_serve_file_for_one_machine_is_served_by_ray_alone(walked, folder):
    (serving,) = (command for command in STARTING if command.text.startswith("serve run "))
    port = free_port()
    path = folder / "serve_configs" / "local.yaml"
    shown = path.read_text()
    path.write_text(shown.replace("port: 8000", f"port: {port}").replace("gemel-demo/store", str(folder / "store")))
    address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with (folder / "serve.log").open("w") as log:
        command = ["bash", "-c", f"exec {serving.text}"]
        running = subprocess.Popen(command, cwd=folder, env=environment() | address, stdout=log, stderr=log)
    try:
        while not is_ready(f"http://127.0.0.1:{port}"):
            assert running.poll() is None, (folder / "serve.log").read_text()
            time.sleep(0.1)
        answer = shell(f"gemel status http://127.0.0.1:{port}", folder)
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(PATIENCE_S)
        ray.serve.shutdown()
    assert "a_cars" in answer


def is_ready(url):
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/v2/health/ready", timeout=PATIENCE_S).status_code == 200
    return False
