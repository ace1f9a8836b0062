"""`gemel doctor`: whether this machine can run what the other commands start, and how to mend what it lacks."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from gemel_ray.cli.common import AsJson, show_result
from gemel_ray.cli.progress import working
from gemel_ray.cli.render import Document, show_table, table
from gemel_ray.engine.host_memory import host_memory_bytes
from gemel_ray.spec.errors import InputError, StoreError
from gemel_ray.spec.units import counted, format_bytes
from gemel_ray.spec.uris import without_secrets
from gemel_ray.weights.reaching import REMEDY, why_unreachable

_DISTRIBUTION = "gemel-ray"
_GIB = 2**30
_SERVE_PORT = 8000
_PATIENCE_S = 3.0
_SHM = Path("/dev/shm")
_BUILD = "install a CUDA build of torch that suits driver and device (nvidia-smi shows them): https://pytorch.org"
# Ray names its Unix sockets like this below its folder, and an address of one has 107 bytes at most.
_SOCKET = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
_LONGEST_ADDRESS = 107
_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `remedy` is empty where nothing is to be done."""

    check: str
    state: Literal["ok", "warning", "problem"]
    found: str
    remedy: str = ""


def register(app: typer.Typer) -> None:
    """Add this command to the app."""
    app.command()(doctor)


def doctor(
    store: Annotated[str | None, typer.Option(help="Also look at this store, and at the disk it lies on.")] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The port to serve at, which must be free; 8000 without it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check what this machine offers: Python, packages, CUDA, Ray, memory, disk, port. Exit code 1 for a problem.

    Example: gemel doctor --store gemel-demo/store
    """
    with working("looking at this machine"):
        findings = examine(store, port)
    show_result([asdict(finding) for finding in findings], as_json, findings_table)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def findings_table(findings: Sequence[Document]) -> None:
    """One line for each check."""
    shown = table("This machine", "check", "state", "found", "remedy")
    for finding in findings:
        state = Text(finding["state"], style=_COLOURS[finding["state"]])
        shown.add_row(finding["check"], state, finding["found"], finding["remedy"])
    show_table(shown)


def examine(store: str | None = None, port: int | None = None) -> list[Finding]:
    """All checks, in the order in which one would mend what they find. Reads only; nothing is started."""
    findings = [
        *_installation(),
        _torch(),
        _ray(),
        _cores(),
        _memory(),
        *_storage(store),
        _port(port),
        _shm(),
        _ray_folder(),
    ]
    return [*findings, _ray_address(os.environ.get("RAY_ADDRESS", ""))]


# installation


def _installation() -> Iterator[Finding]:
    try:
        from packaging.specifiers import SpecifierSet

        described = metadata.distribution(_DISTRIBUTION)
    except ImportError as error:
        yield Finding("packages", "problem", str(error), "install gemel_ray with its packages: pip install -e .")
        return
    wanted = described.metadata["Requires-Python"] or ""
    fits = SpecifierSet(wanted).contains(platform.python_version(), prereleases=True)
    remedy = "" if fits else f"make a virtual environment with Python {wanted}"
    yield Finding("python", "ok" if fits else "problem", f"{platform.python_version()}, wanted {wanted}", remedy)
    yield from _packages(described.requires or [])


def _packages(lines: Sequence[str]) -> Iterator[Finding]:
    """A finding for each package that is missing or out of its range, else one for all."""
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in lines]
    needed = [requirement for requirement in requirements if not requirement.marker or requirement.marker.evaluate()]
    wrong = [finding for finding in map(_package, needed) if finding]
    yield from wrong or [Finding("packages", "ok", f"{len(needed)} packages, all within their ranges")]


def _package(requirement: object) -> Finding | None:
    from packaging.requirements import Requirement

    assert isinstance(requirement, Requirement)
    remedy = f"pip install '{requirement}'"
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(requirement.name, "problem", f"not installed, wanted {requirement.specifier}", remedy)
    if requirement.specifier.contains(found, prereleases=True):
        return None
    return Finding(requirement.name, "problem", f"{found}, wanted {requirement.specifier}", remedy)


def _torch() -> Finding:
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return Finding("torch", "problem", f"cannot be imported: {error}", "install it again: pip install torch")
    try:
        # Of another build than torch's, it fails while its operators are registered.
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        remedy = "install the two together: pip install --force-reinstall torch torchvision"
        return Finding("torch", "problem", f"torchvision cannot be imported beside torch: {error}", remedy)
    if torch.cuda.is_available():
        return _cuda(torch)
    if shutil.which("nvidia-smi"):
        return Finding("torch", "warning", f"{torch.__version__} sees no CUDA device, though a driver is here", _BUILD)
    return Finding("torch", "ok", f"{torch.__version__}, no CUDA device: everything runs on the CPU")


def _cuda(torch: Any) -> Finding:  # noqa: ANN401 - a module
    """Whether every device that is there computes: a build of torch holds code for some of them only."""
    shown = []
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        try:
            torch.ones(2, device=f"cuda:{number}").sum().item()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            return Finding("torch", "problem", f"{torch.__version__} cannot compute on {card.name}: {reason}", _BUILD)
        shown.append(f"{card.name} ({format_bytes(card.total_memory)})")
    return Finding("torch", "ok", f"{torch.__version__}, CUDA {torch.version.cuda}: {', '.join(shown)}")


def _ray() -> Finding:
    try:
        # By name, since this room knows nothing of Ray but whether it is there.
        ray = importlib.import_module("ray")
    except (ImportError, OSError) as error:
        remedy = "install it again: pip install 'ray[serve,tune]'"
        return Finding("ray", "problem", f"cannot be imported: {error}", remedy)
    return Finding("ray", "ok", str(ray.__version__))


# machine


def _cores() -> Finding:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if count < 2:
        return Finding("cores", "warning", "1 core", "searches run, one trial at a time: --parallel 1")
    return Finding("cores", "ok", f"{count} cores")


def _memory() -> Finding:
    total, free = host_memory_bytes()
    shown = f"{format_bytes(free)} free of {format_bytes(total)}"
    if free >= 4 * _GIB:
        return Finding("memory", "ok", shown)
    remedy = "end other programs, or lower --parallel: each trial takes about 1 GiB and its models"
    return Finding("memory", "problem" if free < _GIB else "warning", shown, remedy)


def _storage(store: str | None) -> Iterator[Finding]:
    if store is not None:
        yield _store(store)
    if store is None or "://" not in store:
        yield _disk(Path(store or ".").expanduser().absolute())


def _store(uri: str) -> Finding:
    from gemel_ray.weights.store import open_store

    try:
        opened = open_store(uri, create=True)
        releases, head = opened.releases(), opened.head()
    except (StoreError, InputError) as error:
        remedy = "correct its path or URI, and the permissions or keys for it"
        return Finding("store", "problem", str(error), remedy)
    if not releases:
        return Finding("store", "ok", f"{without_secrets(uri)} holds no releases yet")
    return Finding("store", "ok", f"{without_secrets(uri)} holds {counted(len(releases), 'release')}, HEAD is {head}")


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    shown = f"{format_bytes(free)} free at {existing}"
    if not os.access(existing, os.W_OK):
        return Finding("disk", "problem", f"{existing} cannot be written", "correct its permissions, or choose another")
    if free >= 5 * _GIB:
        return Finding("disk", "ok", shown)
    remedy = "free space: `gemel gc STORE` removes weights that no release needs"
    return Finding("disk", "problem" if free < _GIB else "warning", shown, remedy)


def _port(asked: int | None) -> Finding:
    port = asked or _SERVE_PORT
    with closing(socket.socket()) as probe:
        # As a server would: connections that have just ended do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            remedy = "end what uses it, or choose another with `gemel serve --port`"
            return Finding("port", "problem" if asked else "warning", f"{port}: {error.strerror}", remedy)
    return Finding("port", "ok", f"{port} is free")


def _shm() -> Finding:
    if not _SHM.is_dir():
        return Finding("shared memory", "ok", f"no {_SHM} here; Ray uses files instead")
    total = shutil.disk_usage(_SHM).total
    if total >= _GIB:
        return Finding("shared memory", "ok", f"{_SHM} has {format_bytes(total)}")
    remedy = "Ray's object store falls back to slow files; in Docker, say --shm-size=2g"
    return Finding("shared memory", "warning", f"{_SHM} has {format_bytes(total)}", remedy)


def _ray_folder() -> Finding:
    """Where Ray keeps its sockets, logs and what it spills, as it finds that place itself."""
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    usage = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists()))
    shown = f"{folder}, {format_bytes(usage.free)} free"
    if len(os.fsencode(folder / _SOCKET)) > _LONGEST_ADDRESS:
        remedy = "its sockets' names would be too long: export RAY_TMPDIR=/tmp, or another short one"
        return Finding("Ray's folder", "problem", shown, remedy)
    if usage.free < 0.05 * usage.total:
        remedy = "Ray refuses to work on a disk that is 95 % full: free space, or export RAY_TMPDIR elsewhere"
        return Finding("Ray's folder", "problem", shown, remedy)
    return Finding("Ray's folder", "ok", shown)


def _ray_address(address: str) -> Finding:
    """Whether what RAY_ADDRESS names answers; where it is unset, a Ray is started for each command."""
    if address in ("", "local"):
        return Finding("RAY_ADDRESS", "ok", "is not set: each command starts a Ray of its own")
    if address == "auto":
        return Finding("RAY_ADDRESS", "ok", "auto: a cluster on this machine is joined, if one runs")
    if why := why_unreachable(address):
        return Finding("RAY_ADDRESS", "problem", f"{address} {why}", REMEDY)
    return Finding("RAY_ADDRESS", "ok", f"{address} answers")
