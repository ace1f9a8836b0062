"""Files written for users: whole or absent, and a former one stays until the new one is complete."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from weights_kit import files_below

from gemel_ray.spec.errors import InputError
from gemel_ray.weights.outputs import check_output, write_output, writing_output

# A limit on the size of files stands in for the disk's: the write fails midway, after its first bytes.
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from gemel_ray.spec.errors import InputError
from gemel_ray.weights.outputs import write_output
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_output(Path(sys.argv[1]), b"x" * 5000)
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("former", [None, "the former page"])
def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path, former):
    out = tmp_path / "page.html"
    if former:
        out.write_text(former)
    told = subprocess.run([sys.executable, "-c", FULL_DISK, str(out)], capture_output=True, text=True, check=True)
    assert told.stdout == f"{out}: cannot be written (File too large); free space there, or choose another place\n"
    assert files_below(tmp_path) == (["page.html"] if former else [])
    assert not former or out.read_text() == former


def test_a_file_that_is_written_by_somebody_else_takes_its_name_only_once_it_is_whole(tmp_path):
    out = tmp_path / "answers.json"
    out.write_text("former")
    with contextlib.suppress(ZeroDivisionError), writing_output(out) as beside:
        beside.write_text("ha")
        _ = 1 / 0
    assert (files_below(tmp_path), out.read_text()) == (["answers.json"], "former")
    with writing_output(out) as beside:
        beside.write_text(json.dumps({"whole": True}))
        assert out.read_text() == "former"
    assert (files_below(tmp_path), json.loads(out.read_text())) == (["answers.json"], {"whole": True})


def test_a_link_and_a_pipe_stay_what_they_are(tmp_path):
    (tmp_path / "latest.html").symlink_to(tmp_path / "page.html")
    write_output(tmp_path / "latest.html", b"page")
    assert (tmp_path / "latest.html").is_symlink()
    assert (tmp_path / "page.html").read_bytes() == b"page"
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        write_output(tmp_path / "pipe", b"page")
        assert reader.stdout.read() == b"page"
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_is_made_where_none_is_and_never_replaced(tmp_path):
    former = os.umask(0o022)
    try:
        write_output(tmp_path / "new" / "page.html", b"page")
    finally:
        os.umask(former)
    assert (tmp_path / "new" / "page.html").stat().st_mode & 0o777 == 0o644
    with pytest.raises(InputError, match=r"new: cannot be written \(Is a directory\); .*choose another place"):
        write_output(tmp_path / "new", b"page")


def test_what_could_not_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    for place, why in (
        (tmp_path / "file" / "x.json", "Not a directory"),
        (tmp_path, "Is a directory"),
        (Path("/proc/x.json"), "No such file or directory"),
    ):
        with pytest.raises(InputError, match=f"{place}: cannot be written .{why}.; free space there, or choose"):
            check_output(place)
    for place in (tmp_path / "file", tmp_path / "new" / "deep" / "x.json", Path(os.devnull), None):
        check_output(place)
    assert files_below(tmp_path) == ["file"]
