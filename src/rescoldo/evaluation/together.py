"""Weights and prompt together (BetterTogether, arXiv 2407.10930): the optimized prompt's instruction, trained into the
weights. The run is as the fine-tuned one, from the same base, data and settings; only the role's prompt is another."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from rescoldo.errors import RescoldoError
from rescoldo.evaluation.evaluation import role_for
from rescoldo.files import read_json
from rescoldo.invocation import program
from rescoldo.models.loaded import is_run
from rescoldo.programs.program import find_program, is_plain, read_program
from rescoldo.role import Role, keep_role
from rescoldo.role.load import OF_RUN
from rescoldo.run.layout import RUN_FILE
from rescoldo.training.config import RunConfig
from rescoldo.training.objectives import OBJECTIVES

NAME = "together"  # of the model in a comparison


def together_config(
    finetuned: str, optimized: str, output: Path, *, role: str | None = None, allow_pickle: bool = False
) -> RunConfig:
    """The run that trains the optimized prompt's instruction into the weights, in `output`; its role is written beside
    it (OUTPUT.role). Examples that the program shows are left out: they are what training makes unnecessary.

    Args:
        finetuned: a run's directory: base model, data and settings are its own.
        optimized: a DSPy program: PROGRAM or PROGRAM@MODEL.
        role: as compare takes it.

    Raises:
        RescoldoError: no run, or one that keeps no record of its settings; no program of one step from the role's
            input to its answer as one text.
    """
    if not is_run(finetuned):
        raise RescoldoError(
            "--together trains as the fine-tuned model was trained, and this is no run directory",
            where=f"--finetuned {finetuned}", fix="name the --output of a finished training, or leave --together out",
        )  # fmt: skip
    found = find_program(optimized)
    if found is None:
        raise RescoldoError(
            "--together trains the instruction of an optimized prompt, and this is no DSPy program",
            where=f"--optimized {optimized}", fix=f"`{program()} optimize` makes one",
        )  # fmt: skip
    settings = (read_json(Path(finetuned) / RUN_FILE) or {}).get("config")
    if not isinstance(settings, dict):
        raise RescoldoError(
            f"keeps no record of its settings ({RUN_FILE}), so that it cannot be trained again with another prompt",
            where=finetuned, fix="train it with this version, or leave --together out",
        )  # fmt: skip
    taught = _with_instruction(role_for(finetuned, role), found[0], allow_pickle)
    beside = output.with_name(f"{output.name}.role")
    try:
        keep_role(taught, beside)
    except OSError as error:
        raise RescoldoError(f"cannot be written: {error.strerror or error}", where=str(beside)) from None
    row = OBJECTIVES.get(str(settings.get("objective", "sft")))
    of_others = {name for other in OBJECTIVES.values() for name in other.settings} - set(row.settings if row else ())
    settings = {name: value for name, value in settings.items() if name not in of_others}  # the record has all fields
    return RunConfig.model_validate({**settings, "output": output, "role": str(beside / OF_RUN)})


def _with_instruction(role: Role, file: Path, allow_pickle: bool) -> Role:
    """The role with the program's prompt in the place of its own."""
    if role.spec.conversational:
        raise RescoldoError(
            f"--together puts an instruction in the place of the role's prompt, and the role {role.name} has none: its "
            "records are whole conversations",
            where=role.source, fix="leave --together out",
        )  # fmt: skip
    module = read_program(file, role, allow_pickle=allow_pickle).module
    if not is_plain(module, role):
        raise RescoldoError(
            f"--together trains the instruction of a program of one step from {role.input} to {role.spec.answer}; this "
            "one has more steps or other fields",
            where=str(file), fix=f"`{program()} optimize` makes such a program, or leave --together out",
        )  # fmt: skip
    return replace_prompt(role, module.signature.instructions)


def replace_prompt(role: Role, instruction: str) -> Role:
    """The role that asks as a program of one step does (programs.adapter.TextAdapter): instruction, then input."""
    words = re.sub(r"\{(?=[{%#])", "{{ '{' }}", instruction.strip())  # it is no template
    asked = f"{role.input.capitalize()}: {{{{ {role.input} | trim }}}}"
    return replace(role, spec=role.spec.model_copy(update={"prompt": f"{words}\n\n{asked}" if words else asked}))
