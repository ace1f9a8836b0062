"""A real HTTP server in this process."""

import contextlib
import socket
import threading
import time

import uvicorn


@contextlib.contextmanager
def serving(api):
    """A real HTTP server at a free port of this machine: its URL."""
    server = uvicorn.Server(uvicorn.Config(api, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            deadline = time.monotonic() + 60
            while not server.started:
                assert thread.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
