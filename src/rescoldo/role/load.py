"""Loading roles: by name (built-in ones), or by path (a file or a folder)."""

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
from rescoldo.role.document import Document, read_document
from rescoldo.role.hooks import in_folder
from rescoldo.role.prompt import PromptError, compile_template
from rescoldo.role.role import Role
from rescoldo.role.schema import SchemaError
from rescoldo.role.spec import RoleSpec
from rescoldo.role.wording import refusal

BUILTIN = Path(__file__).with_name("builtin")
FILE = "role.yaml"
DEFAULT = "ba"
OF_RUN = "role"  # the folder in a run's output with a copy of its role
NOT_TAUGHT = (
    "annotations",
    "description",
    "heading",
    "same",
    "samples",
    "sampling",
    "rubric",
)  # fields that may differ in the same role


def role_names() -> list[str]:
    """The names of the built-in roles."""
    return sorted(path.parent.name for path in BUILTIN.glob(f"*/{FILE}"))


def get_role(name: str | None = None) -> Role:
    """The role with this name, or at this path (a .yaml file, or a folder with a role.yaml); None: the default, ba.

    Raises:
        RescoldoError: there is none, or its file is invalid.
    """
    name = name or DEFAULT
    if name in role_names():
        return load_role(BUILTIN / name, option=name)
    path = Path(name)
    if path.exists() or name.endswith((".yaml", ".yml")) or "/" in name:
        return load_role(path)
    raise RescoldoError(
        f"there is no role {name!r}",
        fix=f"roles: {', '.join(role_names())}; or the path of a role of your own (rescoldo role new NAME)",
    )


def role_of_run(run: Path | None, info: dict[str, Any], given: str | None = None) -> Role:
    """The role of a run: `given` if it is named explicitly, else the copy in the run's folder, else the one in its
    record.

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
            f"was trained with the role {name!r}, of which it has no copy", where=str(run), fix="name it with --role"
        )
    return get_role(name)


def load_role(path: Path, *, trusted: bool = True, option: str = "") -> Role:
    """The role in a file or folder; `option` is the value for --role in printed commands, by default the path.

    Raises:
        RescoldoError: with the file and the invalid field.
    """
    file = path / FILE if path.is_dir() else path
    folder = path if path.is_dir() else None
    document = read_document(file, fix="rescoldo role new NAME makes one")
    try:
        spec = RoleSpec.model_validate(document.value)
    except ValidationError as error:
        raise refusal(error, document) from None
    _check_prompt(spec, document)
    schema_file = None
    if isinstance(spec.schema_, str):
        schema_path = _inside(folder, spec.schema_, file, "schema")
        schema_file = read_document(schema_path, fix=f"put it next to {FILE}, or write the schema into {FILE}")
        spec = spec.model_copy(update={"schema_": schema_file.value})
    role = Role(spec, _digest(spec, folder, file), str(file), option or str(path), folder, trusted)
    _check_schema(role, document, schema_file)
    return role


def _check_prompt(spec: RoleSpec, document: Document) -> None:
    """Raise RescoldoError if a template is invalid."""
    for place, (_, template) in enumerate(spec.templates()):
        steps = ("prompt",) if isinstance(spec.prompt, str) else ("prompt", place, "content")
        name = "prompt" if isinstance(spec.prompt, str) else f"prompt[{place}].content"
        try:
            compile_template(template)
        except PromptError as error:
            raise RescoldoError(
                f"{name}: {error}",
                where=document.where(*steps, line=error.line),
                fix="docs/roles.md lists what is allowed in a prompt",
            ) from None


def _check_schema(role: Role, document: Document, schema_file: Document | None) -> None:
    """Raise RescoldoError if the schema is invalid, or does not suit the role's metrics."""
    try:
        schema = role.schema
    except SchemaError as error:
        where = schema_file.where(*error.path) if schema_file else document.where("schema", *error.path)
        raise RescoldoError(
            str(error) if schema_file else f"schema: {error}",
            where=where,
            fix="docs/roles.md lists what is allowed in a schema",
        ) from None
    if "fields" in role.spec.metric and (schema is None or not schema.properties()):
        raise RescoldoError(
            "metric: `fields` needs a schema of type object with properties",
            where=document.where("metric"),
            fix="metric: valid, or exact_match, rouge_l",
        )


def keep_role(role: Role, output: Path) -> None:
    """Save a copy of the role in a run's output: its file with the schema inserted, and its Python files.

    Raises:
        OSError: from the system.
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
    """The path of a file in the role's folder.

    Raises:
        RescoldoError: there is no folder, or the name points outside of it.
    """
    if folder is None or Path(name).name != name or name.startswith("."):
        raise RescoldoError(
            f"{name[:60]!r} is not the name of a file in the role's folder",
            where=f"{file}, {field}",
            fix=f"a role with files in addition to {FILE} is a folder; name them without a path",
        )
    return folder / name


def samples_file(role: Role) -> Path | None:
    """The path of the role's samples; None if they are in the role's file or there are none."""
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
                f"{name} cannot be read: {error.strerror}", where=str(file), fix="put it next to the role's file"
            ) from None
    return digest.hexdigest()
