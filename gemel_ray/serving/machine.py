"""What this machine is to a service: one of a workload's nodes, an address, and somebody who presses Ctrl-C."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Sequence

from gemel_ray.serving.options import NodeOptions
from gemel_ray.spec.errors import InputError, ServingError, nearest
from gemel_ray.spec.profile import ways_named
from gemel_ray.spec.units import parse_bytes
from gemel_ray.spec.workload import Workload


def node_options(
    workload: Workload, name: str | None, memory: str | int | None, ways: Sequence[str] = ()
) -> NodeOptions:
    """What this machine offers as one of a workload's nodes; `memory` replaces the node's own.

    Raises InputError for a node that the workload does not have, where it has none and no memory is given, and for
    ways to compute that are not known.
    """
    nodes = {node.name: node for node in workload.nodes}
    if name is not None and name not in nodes:
        raise InputError(f"--node {name!r} is not in the workload; {nearest(name, nodes)}")
    if not nodes:
        if memory is None:
            raise InputError(f"workload {workload.name!r} has no 'nodes'; add one, or say --memory 2GiB")
        return NodeOptions(memory=_checked_memory(memory), ways=ways_named(ways))
    node = nodes[name or next(iter(nodes))]
    return NodeOptions(
        name=node.name,
        memory=node.memory if memory is None else _checked_memory(memory),
        device=node.device,
        ways=ways_named(ways),
    )


def _checked_memory(memory: str | int) -> int:
    try:
        return parse_bytes(memory)
    except ValueError as error:
        raise InputError(f"--memory: {error}") from error


def wait_for_interrupt() -> None:
    """Until Ctrl-C or SIGTERM."""
    asked = threading.Event()
    former = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        asked.wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def check_port(host: str, port: int) -> None:
    """Raise ServingError for an address that cannot be listened at, InputError for what is none; Serve itself would
    retry for minutes."""
    # Only addresses of IPv6 have colons.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # As servers listen: else whoever listens at the same port over IPv4 would be in the way.
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServingError(f"{host}:{port} cannot be used ({error.strerror}); choose another port") from error
        except (OverflowError, TypeError, ValueError) as error:
            raise InputError(f"{host!r}, port {port!r} is no address to listen at; ports are 1 to 65535") from error


def service_url(host: str, port: int, *, is_secure: bool) -> str:
    """Where a service is found that listens there; an address of IPv6 stands in brackets."""
    return f"{'https' if is_secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
