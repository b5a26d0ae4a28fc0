"""Finds a model in Ollama's store on disk: a manifest names the blob that is its GGUF file. No server is needed."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rescoldo.errors import RescoldoError
from rescoldo.files import home

_MODEL, _TEMPLATE = "application/vnd.ollama.image.model", "application/vnd.ollama.image.template"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")  # part of a path: no slash, does not begin with a dot
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_DEFAULT_HOST, _DEFAULT_USER = "registry.ollama.ai", "library"
_MAX_MANIFEST = 1 << 20


@dataclass(frozen=True)
class OllamaModel:
    """A model of the store. `template` is Ollama's own (Go) prompt template, for information only."""

    name: str
    path: Path
    template: str | None


def stores() -> list[Path]:
    """The folders in which Ollama may store models, in the order of searching."""
    chosen = os.environ.get("OLLAMA_MODELS")
    if chosen:
        return [Path(os.path.expanduser(chosen))]
    own = home()
    mine = [own / ".ollama" / "models"] if own is not None else []
    return [*mine, Path("/usr/share/ollama/.ollama/models")]


def _manifest_path(name: str) -> Path:
    """[HOST/][USER/]NAME[:TAG] → the manifest's path relative to manifests/."""
    rest, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        rest, tag = name, "latest"
    parts = rest.split("/")
    if len(parts) == 1:
        parts = [_DEFAULT_USER, *parts]
    if len(parts) == 2:
        parts = [_DEFAULT_HOST, *parts]
    parts.append(tag)
    if len(parts) < 4 or not all(_PART.fullmatch(part) for part in parts):
        raise RescoldoError(
            f"{name!r} is not a name that Ollama could use",
            fix="write ollama:NAME or ollama:NAME:TAG, as `ollama list` does",
        )
    return Path(*parts)


def _display_name(manifest: Path) -> str:
    parts = list(manifest.parts)
    if parts[0] == _DEFAULT_HOST:
        parts = parts[1:]
        if parts[0] == _DEFAULT_USER:
            parts = parts[1:]
    return "/".join(parts[:-1]) + ":" + parts[-1]


def list_models() -> list[str]:
    """The names of all models in the stores, as `ollama list` shows them."""
    names: set[str] = set()
    for store in stores():
        root = store / "manifests"
        try:
            names.update(_display_name(path.relative_to(root)) for path in root.glob("*/*/*/*") if path.is_file())
        except OSError:
            continue
    return sorted(names)


def _blob(store: Path, layer: Any, where: Path) -> Path:
    digest = layer.get("digest")
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if match is None:
        raise RescoldoError(f"the manifest names a blob without a SHA-256: {digest!r:.100}", where=str(where))
    return store / "blobs" / f"sha256-{match[1]}"


def _read_manifest(path: Path) -> list[dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_MANIFEST + 1)
    except OSError as error:
        raise RescoldoError(f"cannot read Ollama's manifest: {error.strerror or error}", where=str(path)) from None
    try:
        manifest = json.loads(raw) if len(raw) <= _MAX_MANIFEST else None
    except (ValueError, RecursionError):
        manifest = None
    layers = manifest.get("layers") if isinstance(manifest, dict) else None
    if not isinstance(layers, list):
        raise RescoldoError("this is not a manifest of Ollama's", where=str(path), fix="`ollama pull` the model again")
    return [layer for layer in layers if isinstance(layer, dict)]


def find_ollama(name: str) -> OllamaModel:
    """The model `name` ([HOST/][USER/]NAME[:TAG]) in Ollama's store.

    Raises:
        RescoldoError: it is not there (the message lists the available ones), or its manifest or blob is damaged or
            missing.
    """
    relative = _manifest_path(name)
    for store in stores():
        path = store / "manifests" / relative
        if not path.is_file():
            continue
        layers = _read_manifest(path)
        models = [layer for layer in layers if layer.get("mediaType") == _MODEL]
        if len(models) != 1:
            raise RescoldoError(f"the manifest names {len(models)} model files; one is needed", where=str(path))
        blob = _blob(store, models[0], path)
        if not blob.is_file():
            raise RescoldoError(
                f"Ollama's store lacks the model's file {blob.name[:19]}…", where=name, fix=f"ollama pull {name}"
            )
        size = models[0].get("size")
        if isinstance(size, int) and blob.stat().st_size != size:
            raise RescoldoError(
                f"the model's file has {blob.stat().st_size} bytes instead of {size}",
                where=name,
                fix=f"ollama pull {name}",
            )
        return OllamaModel(name, blob, _template(store, layers, path))
    raise _missing(name)


def _template(store: Path, layers: list[dict[str, Any]], where: Path) -> str | None:
    for layer in layers:
        if layer.get("mediaType") == _TEMPLATE:
            try:
                return _blob(store, layer, where).read_bytes()[:_MAX_MANIFEST].decode("utf-8", "replace")
            except (OSError, RescoldoError):
                return None
    return None


def _missing(name: str) -> RescoldoError:
    places = ", ".join(str(store) for store in stores())
    names = list_models()
    if not names:
        return RescoldoError(
            f"Ollama holds no model {name!r}, nor any other",
            where=places,
            fix=f"ollama pull {name}, or set OLLAMA_MODELS to where Ollama keeps its models",
        )
    close = get_close_matches(name, names, n=1, cutoff=0.4)
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    guess = f"did you mean ollama:{close[0]}? " if close else ""
    return RescoldoError(f"Ollama holds no model {name!r}", where=places, fix=f"{guess}It holds: {listed}")
