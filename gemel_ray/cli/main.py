"""The `gemel` command: its themes, and what an error becomes."""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from gemel_ray.cli import demo, doctor, edge, fleet, merging, placing, reporting, stores
from gemel_ray.spec.errors import GemelError, InputError

_EPILOG = """Start with `gemel demo`; `gemel COMMAND --help` shows examples. With --json, commands print one document on
stdout, and progress goes to stderr. Exit codes: 0 done, 1 failed, 2 the input is wrong. `gemel --install-completion`
teaches the shell to complete commands and options."""


class _Commands(TyperGroup):
    """Shows the value that an option refuses, which its own message leaves out."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer has no public type for either
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if isinstance(error.__cause__, ValidationError):
                error.message += f", got {error.__cause__.errors()[0]['input']!r}"
            raise


app = typer.Typer(
    name="gemel",
    cls=_Commands,
    help="Merge vision models until they fit the edge box.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
for theme in (demo, merging, edge, fleet, placing, stores, reporting, doctor):
    theme.register(app)


def main() -> None:
    """Run the command. Exit code 1: it failed; 2: the input is wrong."""
    # Threads that wait for work by spinning take the processor from the trials and cameras beside them.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except InputError as error:
        _fail(error, 2)
    except GemelError as error:
        _fail(error, 1)
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; keep Python from complaining at exit.
        _give_up_stdout()
        sys.exit(1)
    except OSError as error:
        if not _is_stdout(error):
            raise
        _give_up_stdout()
        _fail(f"stdout cannot be written ({error.strerror}); free space there, or choose another place", 1)
    except UnicodeEncodeError as error:
        _fail(f"{error.object!r} cannot be written as text ({error.reason}); give a name that is UTF-8", 2)


def _is_stdout(error: OSError) -> bool:
    """Whether it was the result that could not be written: commands say themselves what else fails."""
    return error.errno in (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT) and error.filename is None


def _give_up_stdout() -> None:
    """Keep Python from writing what is left, and complaining, at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: GemelError | str, code: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(code)
