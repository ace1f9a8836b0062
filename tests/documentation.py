"""The commands in our documents, and running them as a reader would: in one folder, from top to bottom."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gemel_ray.cli.main import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "gemel_ray").rglob("*.md")))
_FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(gemel [a-z][^`\n]*)`")


@dataclass(frozen=True)
class Documented:
    """A line of a shell block, or a whole block in another language."""

    document: str
    language: str
    text: str


def documented(path):
    """What a document shows, in its order. Lines of gemel commands are taken apart at their semicolons."""
    name = str(path.relative_to(ROOT))
    for language, block in _FENCED.findall(path.read_text()):
        if language != "bash":
            yield Documented(name, language, block)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip():
                yield from (Documented(name, language, text) for text in _commands(line))


def commands():
    """Everything in our documents that somebody could run."""
    return [found for path in DOCUMENTS for found in documented(path) if found.language in ("bash", "python")]


def mentioned():
    """`gemel ...` in running text, and where it stands."""
    for path in DOCUMENTS:
        prose = _FENCED.sub("", path.read_text())
        yield from ((str(path.relative_to(ROOT)), found) for found in _INLINE.findall(prose))


def _commands(line):
    if not line.startswith("gemel"):
        return [line]
    return [command.strip() for command in re.sub(r"\s#.*", "", line).split(";")]


def gemel(command, folder):
    """Run a gemel command in this process, which has loaded torch and Ray already; what it printed."""
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        code = app(shlex.split(command, comments=True)[1:], standalone_mode=False)
    assert not code, f"{command}: exit code {code}\n{printed.getvalue()}"
    return printed.getvalue()


def environment():
    """This one, in which `gemel`, `python` and `serve` are those of the tests."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def shell(command, folder, known=None):
    """Run a line in bash, in this environment or the one that is known; what it printed."""
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=known or environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}{done.stderr[-2000:]}"
    return done.stdout
