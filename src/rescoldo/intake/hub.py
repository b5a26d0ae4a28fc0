"""A dataset of the Hugging Face Hub as a folder: its Parquet files, downloaded into the Hub's own cache."""

from __future__ import annotations

from pathlib import Path

from rescoldo.base.hub import hub_cache
from rescoldo.errors import EXIT_FAILURE, RescoldoError

_PATIENCE = 10.0  # seconds for the Hub's first answer
_CONVERTED = "refs/convert/parquet"  # the Hub's Parquet conversion of datasets in other formats


def fetch_dataset(name: str, split: str = "") -> Path:
    """The folder of the dataset `name` ("org/name"), after downloading those Parquet files that are not cached yet. If
    the Hub cannot be reached, the cached files are used.

    Args:
        split: only the files whose path contains it; "" for all.

    Raises:
        RescoldoError: no network, no such dataset, no access, or no Parquet files in it.
    """
    from huggingface_hub import HfApi, errors, snapshot_download

    recipe = (
        f"on a machine with a network: hf download {name} --repo-type dataset --local-dir DIRECTORY; copy DIRECTORY "
        "here and name it (or one of its files)"
    )
    wanted = [f"*{split}*.parquet", f"*{split}*/*.parquet"] if split else ["*.parquet"]
    try:
        files = HfApi().dataset_info(name, timeout=_PATIENCE).siblings or []
        has_parquet = any(one.rfilename.endswith(".parquet") for one in files)
        revision = None if has_parquet else _CONVERTED
        folder = Path(
            snapshot_download(
                name, repo_type="dataset", revision=revision, allow_patterns=wanted, cache_dir=hub_cache()
            )
        )
    except errors.GatedRepoError:
        raise RescoldoError(
            "this dataset is gated", where=name, fix=f"accept its terms on its page, `hf auth login`, or {recipe}"
        ) from None
    except errors.RepositoryNotFoundError:
        raise RescoldoError(
            "there is no such file, and the Hub has no such dataset, or it is private", where=name,
            fix="check the path or name, or `hf auth login`",
        ) from None  # fmt: skip
    except Exception as error:  # the Hub's client also passes on exceptions of its HTTP library
        held = _fetched_before(name, wanted)
        if held is not None:
            return held
        reason = " ".join(str(error).split())[:160]
        raise RescoldoError(
            f"there is no such file, and the Hub cannot be asked for a dataset of that name "
            f"({type(error).__name__}: {reason})",
            where=name, fix=f"check the path, or {recipe}", exit_code=EXIT_FAILURE,
        ) from None  # fmt: skip
    if not any(folder.rglob("*.parquet")):
        raise RescoldoError("the dataset has no Parquet files on the Hub", where=name, fix=recipe)
    return folder


def _fetched_before(name: str, wanted: list[str]) -> Path | None:
    """The cached folder of a dataset; None if it has none of the wanted Parquet files."""
    from huggingface_hub import snapshot_download

    for revision in (None, _CONVERTED):
        try:
            folder = Path(
                snapshot_download(
                    name, repo_type="dataset", revision=revision, allow_patterns=wanted, cache_dir=hub_cache(),
                    local_files_only=True,
                )
            )  # fmt: skip
        except Exception:  # not cached: the client raises several types
            continue
        if any(path.match(pattern) for pattern in wanted for path in folder.rglob("*.parquet")):
            return folder
    return None
