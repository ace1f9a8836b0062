"""`gemel report` as a person meets it."""

import json
import subprocess
import sys

import pytest
from commands import run_gemel
from report_kit import publish_report_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    publish_report_store(folder / "store")
    return folder


def test_one_document_tells_where_everything_is_and_goodput_is_simulated(store):
    done = run_gemel(
        store, "report", "store", "--rates", "t4", "--policy", "ours,ours_merged", "--memory", "16MiB,64MiB",
        "--seconds", "2", "--png", "plots", "--json",
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert document["report"] == "report.html"
    assert "plots/policies_dark.png" in document["pictures"]
    assert all((store / name).read_bytes() for name in (document["report"], *document["pictures"]))
    assert [row["policy"] for row in document["simulations"]] == ["ours", "ours_merged"] * 2
    page = (store / "report.html").read_text()
    for row in document["simulations"]:
        assert f"{100 * row['mean_goodput_fraction']:.1f} %" in page


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("report", "store", "--memory", "1GiB"), 2, "--memory 1GiB: is for simulating"),
        (("report", "store", "--workload", "w.yaml"), 2, "also give --profile"),
        (("report", "store", "--seconds", "10"), 2, "--seconds 10.0: is for simulating"),
        (("report", "store", "--rates", "t4", "--seconds", "inf"), 2, "--seconds inf: must be from 1 to 86400"),
        (("report", "store", "--release", "7"), 1, "has no release 7; it holds [1, 2]"),
        (("report", "nowhere"), 1, "holds no releases"),
        (("report", "store", "--rates", "abacus"), 2, "abacus"),
    ],
)
def test_what_goes_wrong_is_said_with_the_way_out(store, arguments, code, told):
    done = run_gemel(store, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import matplotlib.font_manager
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
from gemel_ray.cli.main import main
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [("report", "store", "--out", "kept.html"), ("simulate", "store", "--rates", "t4", "--trace", "kept.html")],
)
def test_a_full_disk_leaves_the_former_file_and_nothing_half_written(store, arguments):
    (store / "kept.html").write_text("the former page")
    before = sorted(store.rglob("*"))
    command = [sys.executable, "-c", FULL_DISK, *arguments]
    done = subprocess.run(command, cwd=store, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "kept.html: cannot be written (File too large)" in done.stderr
    assert "Traceback" not in done.stderr
    assert (sorted(store.rglob("*")), (store / "kept.html").read_text()) == (before, "the former page")
