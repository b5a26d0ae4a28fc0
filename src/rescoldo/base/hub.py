"""A model of the Hugging Face Hub as a directory: downloaded, with progress, into the Hub's own cache.

After a lost connection a download continues at the same byte. If the process ends, completed files are kept, and an
incomplete one is downloaded again from its beginning (huggingface_hub keeps no partial files between processes).
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
_UNWANTED = ["consolidated*", "*/*"]  # Mistral's second copy of the weights; folders with other formats


def hub_cache() -> str | None:
    """The folder for the Hub's files if its client would find none: this user has no home directory, and no variable
    names another place. None: the client's own default."""
    if home() is not None or any(os.environ.get(name) for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")):
        return None
    return str(cache_root() / "hub")


def fetch(model_id: str) -> Path:
    """The directory of the Hub's model `model_id` ("org/name"), after downloading the files that are not cached yet.
    The config comes first, so that an unsupported model is refused before its weights are downloaded. If the Hub cannot
    be reached, the cached files are used.

    Raises:
        RescoldoError: no network, no such model, no access, no disk space, or an unsupported architecture.
    """
    from huggingface_hub import HfApi, errors, hf_hub_download, snapshot_download

    place = hub_cache()
    try:
        # a single attempt, since the client's downloads retry for a long time
        HfApi().model_info(model_id, timeout=_PATIENCE)
    except errors.RepositoryNotFoundError as error:
        raise _explain(model_id, error) from None
    except Exception as error:  # the Hub's client also passes on exceptions of its HTTP library
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
            fix="free the space, or set HF_HOME to another disk; completed files are kept",
            exit_code=EXIT_FAILURE,
        )
    reason = " ".join(str(error).split())[:160]
    return RescoldoError(
        f"cannot fetch the model from the Hub ({type(error).__name__}: {reason})",
        where=model_id,
        fix=f"try again (completed files are kept), or {recipe}",
        exit_code=EXIT_FAILURE,
    )
