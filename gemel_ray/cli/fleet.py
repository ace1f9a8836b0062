"""Commands for a running service: start one with Ray Serve, and see how one is doing."""

from __future__ import annotations

import sys
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from gemel_ray.cli import render_fleet
from gemel_ray.cli.common import (
    AllowFactories,
    AsJson,
    ReleaseNumber,
    Thumbnails,
    TlsCert,
    TlsKey,
    Ways,
    WorkloadFile,
    show_result,
    tell,
)
from gemel_ray.cli.progress import working


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    for command in (serve, status):
        app.command()(command)


def serve(
    workload: WorkloadFile,
    store: Annotated[str, typer.Option(help="The store to serve from: a folder or a URI.")],
    release: ReleaseNumber = None,
    watch: Annotated[
        bool | None,
        typer.Option(
            help="Follow the store's HEAD: new releases and `gemel revert`. Default: unless --release is given."
        ),
    ] = None,
    node: Annotated[str | None, typer.Option(help="Which of the workload's nodes this machine is.")] = None,
    memory: Annotated[str | None, typer.Option(help="Another budget than the node's, such as 512MiB.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; one that others can reach needs tokens, or --allow-anonymous.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    token: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=FILE", help="File with tokens of a role: infer, read or admin. Repeatable."),
    ] = None,
    token_env: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=VAR", help="Environment variable with tokens of a role. Repeatable."),
    ] = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="Answer everybody who can reach the address.")
    ] = False,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    way: Ways = None,
    thumbnails: Thumbnails = True,
    allow_factories: AllowFactories = False,
) -> None:
    """Serve a release on this machine with Ray Serve, until Ctrl-C. Several machines: serve_configs/fleet.yaml.

    Without tokens, callers of this machine alone are answered.

    Examples:

    gemel serve gemel-demo/workload.yaml --store gemel-demo/store

    gemel serve workload.yaml --store s3://models/store --host 0.0.0.0 --token infer=token-file --token-env read=READ
    """
    from gemel_ray.serving.asked import check_asked
    from gemel_ray.serving.local import serve_release
    from gemel_ray.serving.machine import node_options, wait_for_interrupt
    from gemel_ray.serving.tls import read_certificate
    from gemel_ray.serving.tokens import token_sources
    from gemel_ray.spec.workload import load_workload

    loaded = load_workload(workload)
    options = node_options(loaded, node, memory, way or ())
    check_asked(loaded, store, release, tell)
    with ExitStack() as ended:
        ended.enter_context(redirect_stdout(sys.stderr))
        with working("starting Ray Serve"):
            service = ended.enter_context(
                serve_release(
                    store,
                    nodes=[options],
                    release=release,
                    watch=release is None if watch is None else watch,
                    allow_factories=allow_factories,
                    host=host,
                    port=port,
                    tls=read_certificate(tls_cert, tls_key),
                    tokens=token_sources(token or (), token_env or ()),
                    allow_anonymous=allow_anonymous,
                    thumbnails=thumbnails,
                )
            )
        tell(f"serving at {service.url} (status page, /v2 and /v1), Ctrl-C ends it")
        wait_for_interrupt()
    tell("stopped")


def status(
    url: Annotated[
        str, typer.Argument(help="Where the service answers, such as http://127.0.0.1:8000.", metavar="URL")
    ],
    token: Annotated[Path | None, typer.Option(help="File with a token of the role read or admin.")] = None,
    token_env: Annotated[str | None, typer.Option(help="Environment variable with such a token.")] = None,
    events: Annotated[int, typer.Option(min=0, help="Show so many of the last events.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Tell how a service is doing: nodes, queries, the release being rolled out, what happened of late.

    Example: gemel status http://127.0.0.1:8000 --token read-token
    """
    from gemel_ray.serving.asking import ask_status

    document = ask_status(url, token_file=token, token_env=token_env)
    document["events"] = document.get("events", [])[-events:] if events else []
    show_result(document, as_json, render_fleet.status_tables)
