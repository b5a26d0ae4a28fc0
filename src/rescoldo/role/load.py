"""Roles from their files: by name (those that come with the program), or by path (one file, or a folder)."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rescoldo.errors import RescoldoError
from rescoldo.files import write_text
from rescoldo.role.hooks import in_folder
from rescoldo.role.prompt import PromptError
from rescoldo.role.role import Role
from rescoldo.role.schema import SchemaError
from rescoldo.role.spec import RoleSpec

BUILTIN = Path(__file__).with_name("builtin")
FILE = "role.yaml"
DEFAULT = "ba"
MAX_BYTES = 1 << 20
OF_RUN = "role"  # the folder in a run's output that keeps the role it was trained with
NOT_TAUGHT = ("description", "samples", "sampling")  # what may change without the role being another


class _Loader(yaml.SafeLoader):
    """Plain YAML 1.1 without aliases and without repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read here", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {str(key.value)[:60]!r} stands there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def role_names() -> list[str]:
    """The names of the roles that come with the program."""
    return sorted(path.parent.name for path in BUILTIN.glob(f"*/{FILE}"))


def get_role(name: str | None = None) -> Role:
    """The role of that name, or at that path (a .yaml file, or a folder with a role.yaml); None: the default, ba.

    Raises:
        RescoldoError: there is none, or its file is not as it must be.
    """
    name = name or DEFAULT
    if name in role_names():
        return load_role(BUILTIN / name, option=name)
    path = Path(name)
    if path.exists() or name.endswith((".yaml", ".yml")) or "/" in name:
        return load_role(path)
    raise RescoldoError(
        f"there is no role {name!r}",
        where="--role",
        fix=f"roles: {', '.join(role_names())}; or the path of a role of your own (rescoldo role new NAME)",
    )


def role_of_run(run: Path | None, info: dict[str, Any], given: str | None = None) -> Role:
    """The role of a run: the one named explicitly, else the copy that the run keeps, else what its record says.

    A role that was not named explicitly runs no Python code from outside this package.

    Raises:
        RescoldoError: it cannot be found or read.
    """
    if given is not None:
        return get_role(given)
    if run is not None and (run / OF_RUN / FILE).is_file():
        return load_role(run / OF_RUN, trusted=False)
    name = str(info.get("role") or DEFAULT)
    if name not in role_names():
        raise RescoldoError(
            f"was trained with the role {name!r}, of which it keeps no copy", where=str(run), fix="say it with --role"
        )
    return get_role(name)


def load_role(path: Path, *, trusted: bool = True, option: str = "") -> Role:
    """The role in a file or folder; `option` is what --role says for it, by default the path.

    Raises:
        RescoldoError: naming the file and the field that is wrong.
    """
    file = path / FILE if path.is_dir() else path
    folder = path if path.is_dir() else None
    fields = _read_yaml(file)
    try:
        spec = RoleSpec.model_validate(fields)
    except ValidationError as error:
        raise RescoldoError(_in_words(error), where=str(file), fix="docs/roles.md has every field") from None
    if isinstance(spec.schema_, str):
        spec = spec.model_copy(update={"schema_": _read_yaml(_inside(folder, spec.schema_, file, "schema"))})
    role = Role(spec, _digest(spec, folder, file), str(file), option or str(path), folder, trusted)
    where = "schema"
    try:
        schema = role.schema
        where = "prompt"
        assert role._templates is not None
    except (SchemaError, PromptError) as error:
        raise RescoldoError(str(error), where=f"{file}, {where}", fix="docs/roles.md says what is allowed") from None
    if "fields" in spec.metric and (schema is None or not schema.properties()):
        raise RescoldoError(
            "the metric `fields` needs a schema that is an object with properties",
            where=f"{file}, metric",
            fix="metric: valid, or exact_match, rouge_l",
        )
    return role


def keep_role(role: Role, output: Path) -> None:
    """Keep a copy of the role in a run's output: its file with the schema put in, and its Python files.

    Raises:
        OSError: as the system says.
    """
    folder = output / OF_RUN
    folder.mkdir(parents=True, exist_ok=True)
    for name in _own_files(role.spec):
        assert role.folder is not None
        if (role.folder / name).resolve() != (folder / name).resolve():
            shutil.copyfile(role.folder / name, folder / name)
    fields = {**role.spec.model_dump(by_alias=True, mode="json", exclude_defaults=True, exclude={"samples"})}
    write_text(folder / FILE, yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=100))


def _own_files(spec: RoleSpec) -> list[str]:
    return sorted({name for reference in spec.references() if (name := in_folder(reference))})


def _inside(folder: Path | None, name: str, file: Path, field: str) -> Path:
    """A file in the role's folder.

    Raises:
        RescoldoError: there is no folder, or the name leads out of it.
    """
    if folder is None or Path(name).name != name or name.startswith("."):
        raise RescoldoError(
            f"{name[:60]!r} is not the name of a file in the role's folder",
            where=f"{file}, {field}",
            fix=f"a role that has files beside {FILE} is a folder; name them without a path",
        )
    return folder / name


def samples_file(role: Role) -> Path | None:
    """Where the role's samples lie; None where they stand in the role's file or nowhere."""
    samples = role.spec.samples
    if not isinstance(samples, str):
        return None
    return _inside(role.folder, samples, Path(role.source), "samples")


def _digest(spec: RoleSpec, folder: Path | None, file: Path) -> str:
    content = spec.model_dump(by_alias=True, mode="json", exclude=set(NOT_TAUGHT))
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode())
    for name in _own_files(spec):
        try:
            digest.update(_inside(folder, name, file, "metric").read_bytes())
        except OSError as error:
            raise RescoldoError(
                f"{name} cannot be read: {error.strerror}", where=str(file), fix="put it beside the role's file"
            ) from None
    return digest.hexdigest()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RescoldoError(f"is larger than {MAX_BYTES >> 20} MiB", where=str(path), fix="that is no role")
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise RescoldoError("there is no such file", where=str(path), fix="rescoldo role new NAME makes one") from None
    except OSError as error:
        raise RescoldoError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except UnicodeDecodeError:
        raise RescoldoError("is not UTF-8 text", where=str(path), fix="save it as UTF-8") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = str(getattr(error, "problem", None) or error)[:200]
        raise RescoldoError(f"is not YAML that can be read here: {problem}", where=where) from None
    if not isinstance(value, dict):
        raise RescoldoError("a mapping of fields is expected", where=str(path), fix="rescoldo role new NAME makes one")
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:  # a date, a set: YAML knows them, JSON does not
        raise RescoldoError(f"holds a value that is no text, number or list: {error}", where=str(path)) from None
    return {str(name): item for name, item in value.items()}


def _in_words(error: ValidationError) -> str:
    """pydantic's problems, field by field."""
    parts = []
    for problem in error.errors()[:5]:
        where = ".".join(str(step) for step in problem["loc"]).replace("schema_", "schema")
        what = str(problem["msg"]).removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            what = (
                f"there is no such field (fields: {', '.join(f.alias or n for n, f in RoleSpec.model_fields.items())})"
            )
        elif problem["type"] == "missing":
            what = "is missing"
        parts.append(f"{where}: {what}" if where else what)
    return "; ".join(parts)
