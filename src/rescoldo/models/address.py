"""Server addresses, and the models that a server reports."""

from __future__ import annotations

import ipaddress
import json
import os
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import SplitResult, urlsplit

from rescoldo.errors import EXIT_FAILURE, RescoldoError

PROBE_SECONDS = 10.0
KEY_VARIABLE = "OPENAI_API_KEY"
OLLAMA = "http://127.0.0.1:11434"
_MAX_ANSWER = 16 << 20


def parse_url(url: str) -> SplitResult | None:
    """The parts of an http address; None if it is invalid."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if the port is invalid
    except ValueError:
        return None
    return parts if parts.scheme in ("http", "https") and parts.hostname else None


def ollama_host() -> str:
    """Ollama's address, found as its own programs do: $OLLAMA_HOST in any of its forms, else 127.0.0.1:11434.

    Raises:
        RescoldoError: $OLLAMA_HOST is not an address.
    """
    text = os.environ.get("OLLAMA_HOST", "").strip().strip("\"'").rstrip("/")
    if not text:
        return OLLAMA
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "http", text
    if rest.startswith(":"):
        rest = "127.0.0.1" + rest
    parts = parse_url(f"{scheme}://{rest}")
    if parts is None:
        raise RescoldoError(f"invalid address {text!r}", where="OLLAMA_HOST", fix=f"for example {OLLAMA}")
    # the address that a server listens on (all interfaces) cannot be connected to
    name = "127.0.0.1" if parts.hostname == "0.0.0.0" else parts.hostname or ""
    name = f"[{name}]" if ":" in name else name
    port = parts.port or {"https": 443}.get(scheme, 80 if found else 11434)
    return f"{scheme}://{name}:{port}{parts.path}"


def is_loopback(url: str) -> bool:
    """Whether an address is on this machine, so that no proxy is used."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def get_json(url: str) -> Any:
    """The JSON that a GET returns; None if it is not JSON, or not found.

    Raises:
        OSError, urllib.error.HTTPError: nothing listens there, or the server refuses.
    """
    headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get(KEY_VARIABLE)) else {}
    handlers = [urllib.request.ProxyHandler({})] if is_loopback(url) else []
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=PROBE_SECONDS) as answer:
            return json.loads(answer.read(_MAX_ANSWER))
    except urllib.error.HTTPError as error:
        if error.code in (404, 405, 501):
            return None
        raise
    except (ValueError, RecursionError):
        return None


def _listed(url: str, where: str, start: str) -> list[dict[str, Any]]:
    """The models that a server reports; [] if it does not.

    Raises:
        RescoldoError: nothing listens there, or the key is refused.
    """
    try:
        found = get_json(url)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise RescoldoError(
                f"the server refuses the key ({error.code})",
                where=where,
                fix=f"set {KEY_VARIABLE} to a valid one",
            ) from None
        raise RescoldoError(
            f"the server answers {error.code} {error.reason}", where=url, exit_code=EXIT_FAILURE
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise RescoldoError(f"no server answers ({reason})", where=where, fix=start, exit_code=EXIT_FAILURE) from None
    rows = (found.get("data") or found.get("models") or []) if isinstance(found, dict) else []
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def server_entry(model: str, url: str) -> dict[str, Any]:
    """The server's entry for a model; {} if it does not list it (many servers accept any name)."""
    rows = _listed(url + "/models", f"openai:{model}@{url}", "start it, or correct the address (it mostly ends in /v1)")
    return next((row for row in rows if row.get("id") == model), rows[0] if len(rows) == 1 else {})


def ollama_entry(name: str, host: str) -> dict[str, Any]:
    """Ollama's own entry for a model, with its digest.

    Raises:
        RescoldoError: Ollama is not running, or has not pulled the model.
    """
    where = f"ollama:{name}"
    start = (
        f"start it with `ollama serve` (asked: {host}; OLLAMA_HOST names another address), or let this program's own "
        f"engine answer with the file in Ollama's store: engine:{where}"
    )
    rows = _listed(host + "/api/tags", where, start)
    wanted = name if ":" in name.rpartition("/")[2] else name + ":latest"
    names = [str(row.get("name") or row.get("model") or "") for row in rows]
    for row, found in zip(rows, names, strict=True):
        if found == wanted:
            return {"id": found, "digest": row.get("digest")}
    listed = f" It holds: {', '.join(names[:20])}" if names else ""
    raise RescoldoError(f"Ollama at {host} does not hold this model.{listed}", where=where, fix=f"ollama pull {name}")
