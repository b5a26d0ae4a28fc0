"""From what the user typed to a predictor: our engine, a server, or a DSPy program over either."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rescoldo.base.open import NoSuchModelError
from rescoldo.errors import RescoldoError
from rescoldo.models.engine_chat import EngineChat
from rescoldo.models.loaded import Loaded, is_run, load_for_inference, run_info
from rescoldo.models.predictor import ChatModel, ChatPredictor, Predictor
from rescoldo.models.server import ServerOptions, open_server
from rescoldo.names import is_server
from rescoldo.role import Role, role_of_run
from rescoldo.role.grammar import role_grammar
from rescoldo.run.sweep import refuse_sweep

FORMS = "a run directory, a base model, ollama:NAME, openai:MODEL@URL, engine:BASE or a DSPy program (PROGRAM@MODEL)"
CONSTRAINED = "constrained:"


class Opener:
    """Opens the models of one comparison; a base model and its fine-tuned run share one copy of the weights.

    Args:
        runs: all specs of the comparison: a base model among them that a run was trained on is the run's own base,
            in the run's precision.
        default_lm: the model under a DSPy program that does not say which.
        allow_pickle: load programs that can run any code.
    """

    def __init__(
        self,
        role: Role,
        *,
        specs: Sequence[str] = (),
        records: Sequence[dict[str, Any]] = (),
        quantization: str = "auto",
        server: ServerOptions | None = None,
        default_lm: str = "",
        allow_pickle: bool = False,
    ) -> None:
        self.role, self.records, self.quantization = role, records, quantization
        self.server, self.default_lm, self.allow_pickle = server or ServerOptions(), default_lm, allow_pickle
        self._runs = {base: spec for spec in specs if is_run(spec) and (base := _base_of(Path(spec)))}
        self._loaded: dict[str, Loaded] = {}

    def predictor(self, spec: str, name: str, *, own_prompt: bool = False) -> Predictor:
        """The predictor that `spec` names. Servers are asked whether they are there; weights are not loaded yet.

        Args:
            own_prompt: a run is asked with the prompt that it was trained with; what it is scored by stays.

        Raises:
            RescoldoError: there is no such model, it is damaged, nobody listens, a program is not allowed.
        """
        from rescoldo.programs.predictor import ProgramPredictor
        from rescoldo.programs.program import find_program, is_plain, read_program

        found = find_program(spec)
        if own_prompt:
            return ChatPredictor(self.chat(spec), role_of_run(Path(spec), run_info(Path(spec))), name)
        if found is None:
            return ChatPredictor(self.chat(spec), self.role, name)
        path, lm = found
        program = read_program(path, self.role, allow_pickle=self.allow_pickle)
        lm = lm or program.lm or self.default_lm
        if not lm:
            raise RescoldoError(
                "does not say which model it is for", where=spec, fix=f"name it: {spec}@sample:smollm2, for example"
            )
        if lm.startswith(CONSTRAINED) and not is_plain(program.module, self.role):
            raise RescoldoError(
                f"the program answers in other fields than {self.role.spec.answer} alone, which a constraint to the "
                "role's form leaves no room for",
                where=spec, fix=f"leave out {CONSTRAINED}, or use a program of one step without a train of thought",
            )  # fmt: skip
        return ProgramPredictor(spec, program, self.chat(lm), self.role, name, workers=self.server.concurrency)

    def chat(self, spec: str) -> ChatModel:
        """The language model that `spec` names. "constrained:SPEC": with its answers held to the role's schema.

        Raises:
            RescoldoError: see predictor; the role has no schema.
        """
        if spec.startswith(CONSTRAINED):
            return self.chat(spec.removeprefix(CONSTRAINED)).constrained(role_grammar(self.role))
        if is_server(spec):
            return open_server(spec, self.server)
        spec = spec.removeprefix("engine:")
        refuse_sweep(Path(spec), "eval")
        if not is_run(spec) and spec in self._runs:
            return EngineChat(self._load(self._runs[spec]), adapter=False)
        return EngineChat(self._load(spec))

    def release(self, predictor: Predictor, later: Sequence[Predictor]) -> None:
        """Give back the memory of a predictor's weights, unless one that comes later has the same."""
        mine = _loaded_of(predictor)
        if mine is not None and all(_loaded_of(other) is not mine for other in later):
            mine.release()

    def _load(self, spec: str) -> Loaded:
        if spec not in self._loaded:
            try:
                self._loaded[spec] = load_for_inference(
                    spec, self.quantization, role=self.role, records=self.records, lazy=True
                )
            except NoSuchModelError as error:
                fix = error.suggestion or f"name {FORMS}"
                raise RescoldoError("there is no such model, run or program", where=error.where, fix=fix) from None
        return self._loaded[spec]


def _loaded_of(predictor: Predictor) -> Loaded | None:
    chat = getattr(predictor, "chat", None)
    return chat.loaded if isinstance(chat, EngineChat) else None


def _base_of(run: Path) -> str:
    """The base model that a run was trained on, "" where it does not say."""
    base = run_info(run).get("base_model")
    if not base:
        try:
            base = json.loads((run / "adapter_config.json").read_bytes()).get("base_model_name_or_path")
        except (OSError, ValueError, AttributeError):
            base = None
    return str(base or "")
