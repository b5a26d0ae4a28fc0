"""A model of the Hugging Face Hub as a directory: fetched with progress into the Hub's own cache.

A connection that breaks is taken up again at the same byte; a process that ends keeps the files it has fetched whole,
and begins the one it was at again (huggingface_hub keeps no parts of files from one process to the next).
"""

from __future__ import annotations

import os
from pathlib import Path

from rescoldo.base.hf import decoder_config
from rescoldo.base.hub_id import REFETCH
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.files import cache_root, home, load_json

_WANTED = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja"]
_PATIENCE = 10.0  # seconds for the Hub's first answer
_UNWANTED = ["consolidated*", "*/*"]  # Mistral's second copy of the weights; other formats' folders


def hub_cache() -> str | None:
    """The folder for the Hub's files where its client's own choice would be none: this user has no home directory, and
    no variable names another place. None: the client's own."""
    if home() is not None or any(os.environ.get(name) for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")):
        return None
    return str(cache_root() / "hub")


def fetch(model_id: str) -> Path:
    """The directory of the Hub's model `model_id` ("org/name"), fetched as far as it is not there already. The config
    comes first: a model that cannot be used is refused before its weights are fetched. Where the Hub cannot be reached,
    what was fetched before will do.

    Raises:
        RescoldoError: no network, no such model, no access, no room on disk, or an architecture that does not work.
    """
    from huggingface_hub import HfApi, errors, hf_hub_download, snapshot_download

    place = hub_cache()
    try:
        HfApi().model_info(model_id, timeout=_PATIENCE)  # asked once; the client's downloads retry for long
    except errors.RepositoryNotFoundError as error:
        raise _explain(model_id, error) from None
    except Exception as error:  # the Hub's client lets those of its HTTP library through, too
        try:
            return Path(
                snapshot_download(
                    model_id, local_files_only=True, allow_patterns=_WANTED, ignore_patterns=_UNWANTED, cache_dir=place
                )
            )
        except Exception:
            raise _explain(model_id, error) from None
    try:
        config = hf_hub_download(model_id, "config.json", cache_dir=place)
        decoder_config(load_json(Path(config), REFETCH), model_id)
        return Path(snapshot_download(model_id, allow_patterns=_WANTED, ignore_patterns=_UNWANTED, cache_dir=place))
    except RescoldoError:
        raise
    except Exception as error:
        raise _explain(model_id, error) from None


def _explain(model_id: str, error: Exception) -> RescoldoError:
    from huggingface_hub import errors

    recipe = (
        f"on a machine with a network: hf download {model_id} --local-dir DIRECTORY; copy DIRECTORY here and name it "
        "as the base model"
    )
    if isinstance(error, errors.GatedRepoError):
        return RescoldoError(
            "this model is gated", where=model_id, fix=f"accept its terms on its page, `hf auth login`, or {recipe}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return RescoldoError(
            "the Hub has no such model, or it is private", where=model_id, fix="check the name, or `hf auth login`"
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return RescoldoError("this Hub repository has no config.json", where=model_id, fix="name a transformers model")
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return RescoldoError(
            f"cannot store the model: {error.strerror or error}",
            where=str(error.filename or model_id),
            fix="free the space, or set HF_HOME to another disk; files fetched whole are kept",
            exit_code=EXIT_FAILURE,
        )
    reason = " ".join(str(error).split())[:160]
    return RescoldoError(
        f"cannot fetch the model from the Hub ({type(error).__name__}: {reason})",
        where=model_id,
        fix=f"try again (files fetched whole are kept), or {recipe}",
        exit_code=EXIT_FAILURE,
    )
