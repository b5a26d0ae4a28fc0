"""Python functions that a role names: `package.module:function`, or `file.py:function` in the role's own folder.

They run with all rights of the process. So only a role that the user has named may bring them; one that was found
beside a run's files may use this package's alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from rescoldo.errors import RescoldoError

OWN = "rescoldo.role."  # modules whose functions were written to be called by roles
_REFERENCE = re.compile(r"(?:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*|[A-Za-z_][\w-]*\.py):[A-Za-z_]\w*")


def is_reference(text: str) -> bool:
    """Whether `text` has the form of a reference to a function."""
    return _REFERENCE.fullmatch(text) is not None


def in_folder(reference: str) -> str | None:
    """The file in the role's folder that a reference names; None for one to an installed module."""
    module = reference.partition(":")[0]
    return module if module.endswith(".py") else None


def is_foreign(reference: str) -> bool:
    """Whether it is code from outside this package."""
    return not reference.startswith(OWN)


def load_function(reference: str, folder: Path | None, where: str) -> Callable[..., Any]:
    """The function that a reference names.

    Args:
        folder: the role's, for references to a file in it.
        where: the role, as messages name it.

    Raises:
        RescoldoError: there is no such module, file or function, or it fails while it is imported.
    """
    name = in_folder(reference)
    try:
        if name is None:
            function = EntryPoint(name="function", value=reference, group="rescoldo").load()
        else:
            if folder is None:
                raise FileNotFoundError(f"{name}: a role in one file has no folder")
            function = getattr(_load_file(folder / name), reference.partition(":")[2])
    except Exception as error:  # foreign code: anything can happen
        raise RescoldoError(
            f"{reference} cannot be loaded: {type(error).__name__}: {str(error)[:200]}",
            where=where,
            fix="name a function as package.module:function, or as file.py:function in the role's folder",
        ) from None
    if not callable(function):
        raise RescoldoError(f"{reference} is no function", where=where, fix="name a function")
    return function  # type: ignore[no-any-return]


def _load_file(path: Path) -> Any:
    name = f"rescoldo_role_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
