"""How far a command is: on a terminal, and where its output goes into a file or a pipe."""

import os
import pty
import re
import subprocess
import sys

WORK = """
import sys
from threading import Event
from gemel_ray.cli import progress
from gemel_ray.cli.common import tell
progress._PATIENCE_S = {patience_s}
with progress.working("simulating", speaks={speaks}) as advance:
    advance(2, 3)
    Event().wait({seconds})
    tell("half of it")
print("the result")
"""


def piped(**given):
    script = WORK.format(**{"patience_s": 0.05, "seconds": 0.5, "speaks": False} | given)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "the result\n"
    return done.stderr


def test_elsewhere_one_plain_line_says_what_takes_long():
    assert piped() == "simulating\nhalf of it\n"


def test_what_is_over_soon_says_nothing():
    assert piped(patience_s=60, seconds=0) == "half of it\n"


def test_work_that_speaks_for_itself_is_not_announced():
    assert piped(speaks=True) == "half of it\n"


def on_terminal(term):
    """What a terminal shows, its result elsewhere."""
    ours, theirs = pty.openpty()
    script = WORK.format(patience_s=60, seconds=0.3, speaks=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM", "CI")}
    with subprocess.Popen(
        [sys.executable, "-c", script], stderr=theirs, stdout=subprocess.PIPE, text=True,
        env=environment | {"TERM": term, "COLUMNS": "80"},
    ) as running:  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:
            # Nobody holds the other end any more.
            pass
        assert running.stdout.read() == "the result\n"
    os.close(ours)
    return shown.decode()


def test_a_terminal_shows_a_line_that_moves_and_is_gone_afterwards():
    shown = on_terminal("xterm")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert "simulating" in plain
    assert "2 of 3" in plain
    assert "half of it\r\n" in plain
    # Up one line, and erase it.
    assert shown.endswith("\x1b[1A\x1b[2K")


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines():
    assert on_terminal("dumb") == "half of it\r\n"
