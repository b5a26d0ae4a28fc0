"""The HTTP server for the review pages: for this machine and one reviewer, with the standard library only."""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from rescoldo.errors import EXIT_FAILURE, RescoldoError

HOST = "127.0.0.1"
_SECONDS = 30  # timeout for receiving a request


class RefusedError(Exception):
    """A refused request: HTTP status and reason."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


class Site(Protocol):
    """The pages of a server and their actions.

    Attributes:
        max_body: maximum size of a request's body in bytes.
    """

    max_body: int

    def page(self, number: int | None, *, nonce: str, notice: str, finished: bool) -> str:
        """The HTML of one page; None: the page shown when all is done. `notice` comes from the address, unchecked."""

    def place(self, wanted: str) -> int | None:
        """The index that an address names; without one the first that is open."""

    def act(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        """Do what the page requests. Returns the query of the next page.

        Raises:
            RefusedError: it cannot be done.
            RescoldoError: it cannot be written.
        """


class ReviewServer:
    """Listens on the loopback interface, on an address that contains a random token.

    Args:
        port: 0 takes a free one.

    Attributes:
        url: the address to open.

    Raises:
        RescoldoError: the port cannot be used.
    """

    def __init__(self, site: Site, *, port: int = 0) -> None:
        token = secrets.token_urlsafe(24)
        try:
            self._http = _Server((HOST, port), _handler(site, token, self.stop))
        except (OSError, OverflowError) as error:
            raise RescoldoError(
                f"cannot listen on {HOST} port {port}: {getattr(error, 'strerror', None) or error}",
                where="--port", fix="another --port (0 takes a free one)", exit_code=EXIT_FAILURE,
            ) from None  # fmt: skip
        self.url = f"http://{HOST}:{self._http.server_port}/{token}/"

    def run(self) -> None:
        """Serve until `stop`, or until an exception (Ctrl-C)."""
        try:
            self._http.serve_forever(poll_interval=0.1)
        finally:
            self._http.server_close()

    def stop(self) -> None:
        """End `run`; returns at once."""
        threading.Thread(target=self._http.shutdown, daemon=True).start()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""


def _handler(site: Site, token: str, stop: Callable[[], None]) -> type[BaseHTTPRequestHandler]:
    finishing = threading.Event()  # set on request; the server stops after the last page has been sent

    class Handler(BaseHTTPRequestHandler):
        timeout = _SECONDS
        protocol_version = "HTTP/1.1"
        server_version, sys_version = "rescoldo", ""

        def log_message(self, *args: Any) -> None:
            """Log nothing, because the address contains the token."""

        def do_GET(self) -> None:
            self._answer(self._get)

        def do_POST(self) -> None:
            self._answer(self._post)

        def _answer(self, work: Callable[[str], None]) -> None:
            try:
                work(self._path())
            except RefusedError as error:
                self.close_connection = True  # the body may not have been read
                self._json(error.status, {"error": str(error)})
            except RescoldoError as error:
                self._json(507, {"error": f"{error.what} {error.fix}".strip()})

        def _path(self) -> str:
            """The path after the token."""
            names = {f"{name}:{self.connection.getsockname()[1]}" for name in (HOST, "localhost")}
            hosts = self.headers.get_all("Host") or []
            if len(hosts) != 1 or hosts[0].lower() not in names:  # another name bound to this address (DNS rebinding)
                raise RefusedError(421, "the server is not known under this name")
            first, _, rest = urlsplit(self.path).path.removeprefix("/").partition("/")
            if not hmac.compare_digest(first.encode("utf-8", "replace"), token.encode()):
                raise RefusedError(404, "there is no such page")
            return rest

        def _get(self, path: str) -> None:
            if path:
                raise RefusedError(404, "there is no such page")
            query = parse_qs(urlsplit(self.path).query)
            finished = "finished" in query
            nonce = secrets.token_urlsafe(16)
            number = site.place(query.get("n", [""])[0])
            html = site.page(number, nonce=nonce, notice=query.get("notice", [""])[0], finished=finished)
            policy = (
                f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
                "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            )
            self._send(200, "text/html; charset=utf-8", html.encode("utf-8", "replace"), policy)
            if finished and finishing.is_set():
                stop()

        def _post(self, path: str) -> None:
            origin, fetched = self.headers.get("Origin", ""), self.headers.get("Sec-Fetch-Site", "same-origin")
            if origin.lower() != f"http://{self.headers['Host'].lower()}" or fetched != "same-origin":
                raise RefusedError(403, "only the page itself may do that")
            body = self._body()
            if path == "finish":
                finishing.set()
                self._json(200, {"go": {"finished": 1}})
            else:
                self._json(200, {"go": site.act(path, body)})

        def _body(self) -> dict[str, Any]:
            if self.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
                raise RefusedError(415, "Content-Type must be application/json")
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdigit()) or int(length) > site.max_body:
                raise RefusedError(413, f"the body is too long: expected at most {site.max_body} bytes")
            try:
                value = json.loads(self.rfile.read(int(length)))
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                raise RefusedError(400, "the body is not a JSON object: expected one")
            return value

        def _json(self, status: int, value: dict[str, Any]) -> None:
            self._send(status, "application/json", json.dumps(value).encode(), "default-src 'none'")

        def _send(self, status: int, kind: str, body: bytes, policy: str) -> None:
            self.send_response(status)
            headers = {
                "Content-Type": kind,
                "Content-Length": str(len(body)),
                "Content-Security-Policy": policy,
                "Cache-Control": "no-store",
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
                "Cross-Origin-Opener-Policy": "same-origin",
                "Cross-Origin-Resource-Policy": "same-origin",
            }
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler
