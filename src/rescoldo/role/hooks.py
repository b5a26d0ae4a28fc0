"""Python functions that a role refers to: `package.module:function`, or `file.py:function` in the role's own folder.

They run with all permissions of the process. So only a role that the user has named may use them; a role that was found
with a run's files may only use functions of this package.

All calls into a role's Python, including its import, go through `_authors_code`: its prints go to standard error
(standard output may be a JSON document), and its exceptions become a HookError with the file and line.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from rescoldo.errors import RescoldoError

T = TypeVar("T")

OWN = "rescoldo.role."  # modules with functions that are meant to be called by roles
_REFERENCE = re.compile(r"(?:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*|[A-Za-z_][\w-]*\.py):[A-Za-z_]\w*")
_ONE_AT_A_TIME = threading.RLock()  # sys.stdout is shared by all threads


class HookError(Exception):
    """A role's Python raised an exception, called sys.exit, or returned an invalid value.

    Args:
        what: the description, with the exception's name ("ZeroDivisionError: division by zero").
        file: the role's Python file, if it is known.
        line: in that file, from 1.
    """

    def __init__(self, what: str, file: Path | None = None, line: int | None = None) -> None:
        self.what, self.file, self.line = what, file, line
        super().__init__(f"{what}, {self.place}" if file else what)

    @property
    def place(self) -> str:
        """The file's name and the line, if they are known."""
        return _at(self.file.name, self.line) if self.file else ""

    @property
    def where(self) -> str:
        """Like `place`, with the file's path."""
        return _at(str(self.file), self.line) if self.file else ""


@dataclass(frozen=True)
class Hook:
    """A role's function.

    Attributes:
        reference: the reference in the role.
        file: the file that it is in; None if it is not written in Python.
    """

    reference: str
    function: Callable[..., Any]
    file: Path | None

    def call(self, read: Callable[[Any], T], *args: Any) -> T:
        """Call the function, and pass its result through `read`, which raises ValueError for an invalid one.

        Raises:
            HookError: it raised an exception, or returned an invalid value.
        """
        code = getattr(self.function, "__code__", None)
        begin = code.co_firstlineno if code else None
        try:
            with _authors_code(self.file):
                result = self.function(*args)
            return read(result)
        except ValueError as error:
            raise HookError(str(error), self.file, begin) from None
        except HookError as error:  # without a line: it was called with arguments that it does not take
            raise HookError(error.what, self.file, error.line or begin) from None


def is_reference(text: str) -> bool:
    """Whether `text` is a reference to a function."""
    return _REFERENCE.fullmatch(text) is not None


def in_folder(reference: str) -> str | None:
    """The file in the role's folder that a reference names; None for an installed module."""
    module = reference.partition(":")[0]
    return module if module.endswith(".py") else None


def is_foreign(reference: str) -> bool:
    """Whether it refers to code outside of this package."""
    return not reference.startswith(OWN)


def load_function(reference: str, folder: Path | None, where: str) -> Hook:
    """Load the function that a reference names.

    Args:
        folder: the role's, for references to a file in it.
        where: the role, for messages.

    Raises:
        RescoldoError: there is no such module, file or function, or its import fails.
    """
    module_name, _, name = reference.partition(":")
    file = None
    if in_folder(reference) is not None:
        if folder is None:
            raise RescoldoError(
                f"{reference} cannot be loaded: a role in a single file has no folder for {module_name}",
                where=where,
                fix="make the role a folder: role.yaml and its Python file",
            )
        file = folder / module_name
    try:
        module = _load_module(module_name, file)
    except HookError as error:
        raise RescoldoError(
            f"{reference} cannot be loaded: {error.what}",
            where=error.where or where,
            fix=_advice(error.__cause__, module_name, file),
        ) from None
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        known = ", ".join(own)[:200]
        what = "is not a function" if hasattr(module, name) else f"cannot be loaded: {module_name} has no {name!r}"
        fix = f"functions in {module_name}: {known}" if known else f"write it in {module_name}"
        raise RescoldoError(f"{reference} {what}", where=where, fix=fix)
    source = str(getattr(module, "__file__", None) or "")
    return Hook(reference, function, file or (Path(source) if source.endswith(".py") else None))


def _load_module(name: str, file: Path | None) -> ModuleType:
    """Import an installed module, or the file in the role's folder.

    Raises:
        HookError: the import raised an exception.
    """
    if file is None:
        with _authors_code(None):
            return importlib.import_module(name)
    own_name = f"rescoldo_role_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(own_name, file)
    assert spec is not None, "its name ends in .py"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[own_name] = module  # dataclasses and pickle look up their module here
    try:
        with _authors_code(file):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[own_name]
        raise
    return module


def _advice(error: BaseException | None, module: str, file: Path | None) -> str:
    """Advice about a module that cannot be imported."""
    if isinstance(error, ModuleNotFoundError):
        missing = error.name or module
        if file is None and (module == missing or module.startswith(f"{missing}.")):
            return f"install {missing} where rescoldo is installed, or name a function as file.py:function"
        if file is not None and file.with_name(f"{missing}.py").is_file():
            return f"a role's Python is one file: move what it needs from {missing}.py into {file.name}"
        return f"install the package that has {missing} where rescoldo is installed"
    return f"fix {module}; its import must end without an error"


@contextlib.contextmanager
def _authors_code(file: Path | None) -> Iterator[None]:
    """Runs the code of a role's author.

    Raises:
        HookError: the code raised an exception, including sys.exit but not Ctrl-C.
    """
    with _ONE_AT_A_TIME, contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        except (Exception, SystemExit) as error:
            raise HookError(_in_words(error), file, _line(error, file)) from error


def _in_words(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({'' if error.code is None else repr(error.code)[:40]})"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return ": ".join(part for part in (type(error).__name__, " ".join(text.split())[:200]) if part)


def _line(error: BaseException, file: Path | None) -> int | None:
    """The line of `file` in an error's traceback; None if the file is not in it."""
    if file is None:
        return None
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno))
    own = os.path.abspath(file)
    return next((line for name, line in reversed(places) if os.path.abspath(name) == own), None)


def _at(file: str, line: int | None) -> str:
    return f"{file}:{line}" if line else file
