"""Whether an address is this machine's, and the network interface through which a machine is reached."""

from __future__ import annotations

import contextlib
import socket

import psutil

from rescoldo.errors import RescoldoError

ELSEWHERE = ("198.51.100.1", 9)  # an address reserved for documentation; nothing is sent to it


def resolve(host: str) -> list[str]:
    """The addresses of a host name.

    Raises:
        RescoldoError: the name is unknown.
    """
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError as error:
        raise RescoldoError(
            f"this machine does not know a host {host}: {error.strerror}",
            where="--rendezvous",
            fix="pass the leading machine's address: `hostname -I` there prints it",
        ) from None


def is_here(host: str) -> bool:
    """Whether the host is this machine: only a machine's own addresses can be bound."""
    for address in resolve(host):
        with socket.socket(_family(address), socket.SOCK_STREAM) as probe:
            with contextlib.suppress(OSError):
                probe.bind((address, 0))
                return True
    return False


def local_address(host: str) -> str:
    """This machine's address for connections with `host`. If its name only resolves to itself (127.0.1.1), it is the
    address for the default route."""
    address = resolve(host)[0]
    if address.startswith("127.") and host not in ("localhost", address):
        return _towards(ELSEWHERE) or address
    return _towards((address, 9)) or address


def _towards(target: tuple[str, int]) -> str:
    with socket.socket(_family(target[0]), socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(target)
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str:
    """The network interface with this address, "lo" if none is known."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.split("%")[0] == address for one in addresses):
            return name
    return "lo"


def answers(host: str, port: int) -> bool:
    """Whether something listens there."""
    try:
        with socket.create_connection((host, port), timeout=3.0):
            return True
    except OSError:
        return False


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
