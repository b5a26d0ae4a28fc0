"""DSPy programs: created for a role, saved as state-only JSON, found and loaded again."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescoldo.errors import RescoldoError
from rescoldo.files import sha256
from rescoldo.models.loaded import is_run
from rescoldo.programs import import_dspy
from rescoldo.programs.state import Step, read_state
from rescoldo.role import Role

PROGRAM, RECORD = "program.json", "optimize.json"  # in a program's directory: its state, and how it was made
MAX_BYTES = 32 << 20
_SENTINEL = "xqzinputzqx"  # replaces the input to find out what the prompt has before it


@dataclass(frozen=True)
class Program:
    """A DSPy program.

    Attributes:
        module: called with the input field, returns a dspy.Prediction.
        outputs: the fields of its answer without the chain of thought; None if they are known only from the answer.
        sha256: of the file that it was read from; "" if it was made here.
        lm: the spec of the model that it was optimized with; "" if unknown.
        demos: number of examples in its prompts.
        steps: the names of its steps in the order of running, if it was rebuilt from several.
    """

    module: Any
    outputs: tuple[str, ...] | None
    sha256: str = ""
    lm: str = ""
    demos: int = 0
    steps: tuple[str, ...] = ()


def new_program(role: Role) -> Program:
    """The program to optimize: one step, from the role's input to its answer as text.

    Raises:
        RescoldoError: the role's prompt uses more than its input.
    """
    dspy = import_dspy()
    fields = {
        role.input: (str, dspy.InputField()),
        role.spec.answer: (str, dspy.OutputField(desc=f"as {role.spec.serialization}")),
    }
    return Program(dspy.Predict(dspy.make_signature(fields, instruction(role))), (role.spec.answer,))


def is_plain(module: Any, role: Role) -> bool:
    """Whether a program is one step from the role's input to its answer as one text, without a chain of thought."""
    signature = getattr(module, "signature", None)
    fields = (list(signature.input_fields), list(signature.output_fields)) if signature is not None else None
    return isinstance(module, import_dspy().Predict) and fields == ([role.input], [role.spec.answer])


def instruction(role: Role) -> str:
    """A role's instruction: its prompt up to the line with the input.

    Raises:
        RescoldoError: the role's prompt uses more than its input, or has nothing before it.
    """
    try:
        prompt = "\n\n".join(message["content"] for message in role.messages({role.input: _SENTINEL}))
    except RescoldoError as error:
        raise RescoldoError(
            f"the prompt of role {role.name} uses more than its field {role.input!r}: expected that field alone",
            where=error.where,
        ) from None
    words = prompt.partition(_SENTINEL)[0].rpartition("\n")[0].strip()
    if not words:
        raise RescoldoError(f"the role {role.name} gives no instruction before its input: there is nothing to optimize")
    return words


def find_program(spec: str) -> tuple[Path, str] | None:
    """The program and the model ("" if there is none) in PROGRAM or PROGRAM@MODEL; None if `spec` is not a program."""
    place = len(spec)
    while place >= 0:
        path = Path(os.path.expanduser(spec[:place]))
        if spec[:place] and _is_program(path):
            return path, spec[place + 1 :]
        place = spec.rfind("@", 0, place)
    return None


def _is_program(path: Path) -> bool:
    try:
        if path.is_file():
            return path.suffix in (".json", ".pkl")
        if not path.is_dir() or is_run(str(path)) or (path / "config.json").is_file():
            return False
        return any(path.glob("*.json")) or any(path.glob("*.pkl"))
    except OSError:
        return False


def read_program(path: Path, role: Role, *, allow_pickle: bool = False) -> Program:
    """Load a program from a directory or a file.

    Args:
        allow_pickle: also load pickled programs, which run code while they are loaded.

    Raises:
        RescoldoError: it is not a program, is damaged, is pickled without permission, or is ambiguous.
    """
    file = _file(path) if path.is_dir() else path
    if file.suffix == ".pkl":
        return _unpickle(file, role, allow_pickle)
    if file.stat().st_size > MAX_BYTES:
        raise RescoldoError(f"is longer than {MAX_BYTES >> 20} MB", where=str(file))
    try:
        state = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RescoldoError(f"cannot be read as a DSPy program: {error}", where=str(file)) from None
    return _rebuild(state, file, role)


def _file(folder: Path) -> Path:
    if (folder / PROGRAM).is_file():
        return folder / PROGRAM
    if (folder / "program.pkl").is_file():
        return folder / "program.pkl"
    files = [path for path in sorted(folder.glob("*.json")) if path.name not in (RECORD, "metadata.json")]
    files = files or sorted(folder.glob("*.pkl"))
    if len(files) != 1:
        found = f"{len(files)} files that could be one" if files else "none"
        raise RescoldoError(f"a directory of a DSPy program holds {PROGRAM}; here is {found}", where=str(folder))
    return files[0]


def _unpickle(file: Path, role: Role, allowed: bool) -> Program:
    if not allowed:
        raise RescoldoError(
            "is a pickled program: loading it runs whatever code is in it, so it is refused",
            where=str(file),
            fix="save it as JSON (program.save('program.json')), or give --allow-pickle if you trust who made it",
        )
    dspy = import_dspy()
    try:
        if file.name == "program.pkl":
            module = dspy.load(str(file.parent), allow_pickle=True)
            return Program(module, None, sha256(file), _lm_of(file))
        import cloudpickle

        with open(file, "rb") as stream:
            state = cloudpickle.load(stream)
    except Exception as error:  # a pickled program runs its own code
        raise RescoldoError(f"cannot be loaded: {type(error).__name__}: {error}", where=str(file)) from None
    return _rebuild(state, file, role)


def _rebuild(state: Any, file: Path, role: Role) -> Program:
    """The program of a state. Only its texts are used: fields, instructions, examples; no model, no address."""
    dspy = import_dspy()
    found = read_state(state, role, file, dspy.signatures.infer_prefix)
    modules = [_predict(dspy, step) for step in found.steps]
    if len(modules) == 1:
        (module,) = modules
    else:
        from rescoldo.programs.chain import Chain

        module = Chain(modules, found.outputs)
    shown = sum(len(step.demos) for step in found.steps)
    steps = tuple(step.name for step in found.steps) if len(found.steps) > 1 else ()
    return Program(module, found.outputs, sha256(file), _lm_of(file), shown, steps)


def _predict(dspy: Any, step: Step) -> Any:
    fields = {
        name: (str, dspy.InputField(desc=text) if name in step.inputs else dspy.OutputField(desc=text))
        for name, text in step.fields
    }
    module = dspy.Predict(dspy.make_signature(fields, step.instructions))
    module.demos = [dspy.Example(demo).with_inputs(*step.inputs) for demo in step.demos]
    return module


def _lm_of(file: Path) -> str:
    """The model that the program was optimized with, according to its optimize.json."""
    try:
        found = json.loads((file.parent / RECORD).read_bytes())["model"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return found if isinstance(found, str) else ""
