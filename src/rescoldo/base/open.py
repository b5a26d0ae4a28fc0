"""Opening a base model from what the user typed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from rescoldo.base.gguf import open_gguf
from rescoldo.base.gguf_header import is_gguf
from rescoldo.base.hub_id import REFETCH, is_hub_id
from rescoldo.base.model import BaseModel
from rescoldo.errors import RescoldoError
from rescoldo.files import load_json

_OLLAMA_TAG = re.compile(r"(?:[\w.-]+/)?[\w.-]+:[\w.-]+")  # [USER/]NAME:TAG
_FORMS = "a Hugging Face directory, a .gguf file, ollama:NAME, a Hub id (org/name) or sample:smollm2"


class NoSuchModelError(RescoldoError):
    """There is no model with the given name.

    Attributes:
        suggestion: "did you mean …?" if something has a similar name, else "".
    """

    def __init__(
        self, spec: str, suggestion: str, *, what: str = "base model", otherwise: str = f"name {_FORMS}"
    ) -> None:
        super().__init__(f"there is no such {what}", where=spec[:200], fix=suggestion or otherwise or f"name {_FORMS}")
        self.suggestion = suggestion


@dataclass(frozen=True)
class Scheme:
    """A prefix of models' names, such as "sample:smollm2".

    Attributes:
        open: opens the model; takes the part after the prefix, and the whole name.
        title: the model's name for people; takes the part after the prefix.
    """

    open: Callable[[str, str], BaseModel]
    title: Callable[[str], str]


def _open_sample(name: str, spec: str) -> BaseModel:
    from rescoldo.base.sample import find_sample

    return open_gguf(find_sample(name), spec)


def _title_of_sample(name: str) -> str:
    from rescoldo.base.sample import SAMPLES

    return SAMPLES[name].title if name in SAMPLES else name


def _open_ollama(name: str, spec: str) -> BaseModel:
    from rescoldo.base.ollama import find_ollama

    return open_gguf(find_ollama(name).path, spec, ollama_name=name)


SCHEMES = {"sample": Scheme(_open_sample, _title_of_sample), "ollama": Scheme(_open_ollama, str)}


def title_of(spec: str) -> str:
    """The base model's name for people: the last part of its path or id."""
    prefix, colon, name = spec.partition(":")
    return SCHEMES[prefix].title(name) if colon and prefix in SCHEMES else Path(spec).absolute().name


def open_base(spec: str) -> BaseModel:
    """Open the base model `spec`: sample:NAME, ollama:NAME[:TAG], a GGUF file, a Hugging Face directory, or a Hub id,
    which is downloaded. Reads headers only; the weights are mapped when they are used.

    Raises:
        RescoldoError: there is no such model, it is damaged, or its architecture is not supported.
    """
    prefix, colon, name = spec.partition(":")
    if colon and prefix in SCHEMES:
        return SCHEMES[prefix].open(name, spec)
    if not spec.strip() or "\0" in spec:
        raise RescoldoError("no base model is named", fix=f"name {_FORMS}")
    path = Path(os.path.expanduser(spec))
    try:
        if path.is_dir():
            return _open_directory(path, spec)
        if path.is_file():
            return _open_file(path, spec)
    except PermissionError as error:
        raise RescoldoError("no permission to read the base model", where=str(error.filename or path)) from None
    except OSError as error:  # a name that is too long, a circular link
        raise RescoldoError(f"cannot open the base model: {error.strerror or error}", where=spec[:200]) from None
    if is_hub_id(spec):
        from rescoldo.base.hf import open_hf
        from rescoldo.base.hub import fetch

        return open_hf(fetch(spec), spec)
    raise _nothing_there(path, spec)


def _open_directory(path: Path, spec: str) -> BaseModel:
    from rescoldo.base.hf import open_hf

    if (path / "config.json").is_file():
        return open_hf(path, spec)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return open_gguf(files[0], spec)
    if files:
        raise RescoldoError(f"the directory holds {len(files)} GGUF files", where=spec, fix=f"name one, as {files[0]}")
    if (path / "adapter_config.json").is_file():
        made_for = load_json(path / "adapter_config.json", REFETCH).get("base_model_name_or_path")
        named = f", {made_for:.200}" if isinstance(made_for, str) and made_for.isprintable() and made_for else ""
        raise RescoldoError(
            "this directory holds an adapter, not a base model",
            where=spec,
            fix=f"name the model that it was made for{named}; `train --from` continues training the adapter",
        )
    raise RescoldoError(
        "the directory has no config.json: expected a Hugging Face model", where=spec, fix=f"name {_FORMS}"
    )


def _open_file(path: Path, spec: str) -> BaseModel:
    if path.suffix == ".gguf" or is_gguf(path):
        return open_gguf(path, spec)
    if path.suffix in (".safetensors", ".json"):
        raise RescoldoError("this is one file of a model", where=spec, fix=f"name its directory: {path.parent}")
    raise RescoldoError("this file is not a GGUF file", where=spec, fix=f"name {_FORMS}")


def _nothing_there(path: Path, spec: str) -> RescoldoError:
    try:
        siblings = [entry.name for entry in path.parent.iterdir() if entry != path] if path.parent.is_dir() else []
    except OSError:
        siblings = []
    close = get_close_matches(path.name, siblings, n=1, cutoff=0.6)
    fix = f"did you mean {path.parent / close[0]}?" if close else ""
    from rescoldo.base.sample import SAMPLES

    known = get_close_matches(spec, [f"sample:{name}" for name in SAMPLES], n=1, cutoff=0.6)
    if known:
        fix = f"did you mean {known[0]}?"
    elif not close and _in_ollama(spec):
        fix = f"did you mean ollama:{spec}?"
    return NoSuchModelError(spec, fix)


def _in_ollama(spec: str) -> bool:
    """Whether `spec` is a name in Ollama's format: with a tag (mistral:7b-instruct), or the name of a model in its
    store."""
    from rescoldo.base.ollama import list_models

    if _OLLAMA_TAG.fullmatch(spec):
        return True
    return any(spec in (name, name.partition(":")[0]) for name in list_models())
