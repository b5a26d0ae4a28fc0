"""Access control: the API key, the allowed host names, and the web origins that may read answers (CORS)."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from rescoldo.errors import RescoldoError
from rescoldo.serve.schema import RequestError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?")


@dataclass(frozen=True)
class Access:
    """Who may use the server.

    Attributes:
        api_key: what requests must send as "Authorization: Bearer …"; "" requires no key.
        hosts: host names that the server answers to, "*.example.org" for all subdomains (against DNS rebinding by web
            pages); (): any.
        origins: web origins ("https://app.example.org", or "*") whose scripts may read the answers; (): none.
    """

    api_key: str = ""
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def check_key(self, request: Request) -> None:
        """Raise RequestError if a key is required and the request does not send it."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        brought = given.strip(" \t").encode("latin-1") if scheme.lower() == "bearer" else b""  # RFC 9110: any case
        if self.api_key and not hmac.compare_digest(brought, self.api_key.encode()):
            what = 'a valid API key is needed, sent as "Authorization: Bearer KEY"'
            raise RequestError(401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def middleware(self) -> list[Middleware]:
        """The middleware in front of the routes."""
        layers = []
        if self.hosts:
            layers.append(Middleware(_HostCheck, hosts=self.hosts))
        if self.origins:
            layers.append(
                Middleware(
                    CORSMiddleware, allow_origins=list(self.origins), allow_methods=["GET", "POST"],
                    allow_headers=["*"], allow_private_network=True,
                )
            )  # fmt: skip
        return layers


def access(
    host: str, *, api_key: str = "", allowed_hosts: Sequence[str] = (), cors_origins: Sequence[str] = ()
) -> Access:
    """The access rules for a server bound to `host`. On a loopback address it answers only to that address's names and
    `allowed_hosts`; on another address to any name, unless `allowed_hosts` are given.

    Raises:
        RescoldoError: no key although other machines can reach the server, or an invalid host name or origin.
    """
    if not is_loopback(host) and not api_key:
        raise RescoldoError(
            "other machines could use the model without a key", where=f"--host {host}",
            fix="set RESCOLDO_API_KEY (or --api-key) to something secret; clients send it as their API key",
        )  # fmt: skip
    if "*" in (*allowed_hosts, *cors_origins) and not api_key:
        raise RescoldoError(
            "'*' would let every web page use the model", where="--allowed-host, --cors-origin",
            fix="name the hosts and origins, or set RESCOLDO_API_KEY",
        )  # fmt: skip
    names = tuple(_host_name(name) for name in allowed_hosts)
    if "*" in names:
        hosts: tuple[str, ...] = ()
    elif is_loopback(host) or names:
        hosts = (*LOOPBACK, host.lower(), *names)
    else:
        hosts = ()
    return Access(api_key, hosts, tuple(_origin(origin) for origin in cors_origins))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_name(text: str) -> str:
    name = text.strip().lower()
    if name == "*" or _NAME.fullmatch(name):
        return name.rstrip(".")
    try:
        return str(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        raise RescoldoError(
            f"{text[:100]!r} is not a host name", where="--allowed-host",
            fix="a name or an address without scheme and port, as models.example.org or *.example.org",
        ) from None  # fmt: skip


def _origin(text: str) -> str:
    origin = text.strip().rstrip("/")
    try:
        parts = urlsplit(origin)
        whole = parts.scheme and parts.hostname and origin.lower() == f"{parts.scheme}://{parts.netloc.lower()}"
        _ = parts.port
    except ValueError:
        whole = False
    if origin != "*" and (not whole or "@" in origin):
        raise RescoldoError(
            f"{text[:100]!r} is not a web origin", where="--cors-origin",
            fix="scheme, host and port as the browser sends them: http://localhost:3000",
        )  # fmt: skip
    return origin.lower()


class _HostCheck:
    """Refuses requests whose Host header is not one of `hosts`."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._names = {host for host in hosts if not host.startswith("*.")}
        self._suffixes = tuple(host[1:] for host in hosts if host.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            header = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
            host = _named(header)
            if host not in self._names and not host.endswith(self._suffixes or ("\0",)):
                shown = host[:100] or "without a name"
                what = (
                    f"this server does not accept the host name {shown!r}; if that is its name, start it with "
                    f"--allowed-host {host[:100] or 'NAME'}"
                )
                error = RequestError(400, what, code="host_not_allowed")
                await JSONResponse(error.document(), error.status)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _named(header: str) -> str:
    """The host in a Host header, without port, brackets and the final dot; "" if the header is missing."""
    if not header.isascii() or set(header) & set("@/?#\\ "):
        return ""
    try:
        return (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return ""
