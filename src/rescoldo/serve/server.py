"""The server process: a socket, uvicorn on it, and a shutdown that lets running requests finish."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.serve.access import Access
from rescoldo.serve.app import make_app
from rescoldo.serve.service import Service

_BACKLOG = 128
_FAREWELL = 5  # seconds to send errors to clients whose answers are cancelled
_HURRY = 1  # … after a second Ctrl-C


class _Server(uvicorn.Server):
    """A signal shuts it down gracefully, a second one at once; signals are not raised again at the end, because this is
    a regular exit.

    Args:
        grace: seconds that running requests have to finish.
        give_up: called after the grace period or at the second Ctrl-C, so that running requests are answered with an
            error before their connections are closed.
    """

    def __init__(self, config: uvicorn.Config, grace: float, give_up: Callable[[], None]) -> None:
        super().__init__(config)
        self._grace, self._give_up = grace, give_up
        self._loop: asyncio.AbstractEventLoop | None = None  # set at the first signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop and sig == signal.SIGINT:
            self._loop.call_soon_threadsafe(self._hurry, self._loop)
        else:
            super().handle_exit(sig, frame)

    def _hurry(self, loop: asyncio.AbstractEventLoop) -> None:
        self._give_up()
        loop.call_later(_HURRY, setattr, self, "force_exit", True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        timer = self._loop.call_later(self._grace, self._give_up)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        RescoldoError: the address cannot be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        raise RescoldoError(
            f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}",
            where="--host, --port",
            fix="another --port (0 takes a free one); is a server running there already?",
            exit_code=EXIT_FAILURE,
        ) from None
    return listener


def make_server(service: Service, access: Access, *, grace: float) -> uvicorn.Server:
    """uvicorn with the application, ready to `run(sockets=…)`."""
    config = uvicorn.Config(
        make_app(service, access),
        log_level="warning", access_log=False, lifespan="off", server_header=False, timeout_keep_alive=30,
        timeout_graceful_shutdown=int(grace) + _FAREWELL, ws="none",
    )  # fmt: skip
    return _Server(config, grace, service.scheduler.give_up)


def run_server(
    service: Service,
    listener: socket.socket,
    *,
    host: str,
    access: Access,
    grace: float,
    on_ready: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT; then accept no new requests, let running ones finish for `grace` seconds, and
    return.

    Args:
        on_ready: called with the server's address (http://host:port) once it listens.
    """
    port = listener.getsockname()[1]
    server = make_server(service, access, grace=grace)
    on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    try:
        server.run(sockets=[listener])
    finally:
        service.scheduler.stop()
        listener.close()
