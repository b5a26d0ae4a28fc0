"""A model for inference: a base model, or a run's base with the run's adapter; loaded at once or on first use."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescoldo.data.tokenize import end_of_turn, fix_date, prompt_ids, stop_ids
from rescoldo.engine.precisions import ALLOWED, AUTO, PRECISIONS, canonical, is_calibrated
from rescoldo.engine.types import CALIBRATION_EXAMPLES, Example
from rescoldo.errors import RescoldoError
from rescoldo.files import load_json, quote, sha256
from rescoldo.invocation import program
from rescoldo.role import Role

if TYPE_CHECKING:
    from rescoldo.adapter import Adapter
    from rescoldo.base import BaseModel
    from rescoldo.constrain import Compiler, Grammar
    from rescoldo.engine.model import LoraModel
    from rescoldo.engine.types import Constraint


@dataclass
class Loaded:
    """A model that is in memory, or is loaded when `model` is first used.

    Attributes:
        spec: the name given by the user.
        run: the run's directory; None for a base model alone.
        info: the run's training_info.json; {} if there is none.
        adapter_sha256: of the run's adapter_model.safetensors; "" without a run.
        load: loads the weights.
    """

    spec: str
    tokenizer: Any
    base: BaseModel
    precision: str
    run: Path | None
    info: dict[str, Any]
    adapter_sha256: str
    load: Callable[[], LoraModel]
    _model: LoraModel | None = field(default=None, repr=False)
    _compiler: Compiler | None = field(default=None, repr=False)
    _compiling: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def model(self) -> LoraModel:
        """The model, loaded at first use.

        Raises:
            RescoldoError: the adapter does not fit its base.
        """
        if self._model is None:
            self._model = self.load()
        return self._model

    def release(self) -> None:
        """Free the memory; the next use loads the model again."""
        self._model = None

    def constraint(self, grammar: Grammar) -> Constraint:
        """The state of a new row in a grammar. The first call prepares the tokenizer, which takes a second or two.

        Raises:
            RescoldoError: this tokenizer or this grammar cannot be used.
        """
        from rescoldo.constrain import Compiler, GrammarError

        try:
            with self._compiling:
                if self._compiler is None:
                    self._compiler = Compiler(self.tokenizer, self.base.config.vocab_size, stop_ids(self.tokenizer))
            return self._compiler.start(grammar)
        except GrammarError as error:
            raise RescoldoError(f"answers cannot be constrained: {error}", where=self.spec) from None


def is_run(spec: str) -> bool:
    """Whether `spec` is a directory with an adapter (finished or not), and not a base model."""
    names = ("adapter_config.json", "training_info.json")
    return any(os.path.isfile(os.path.join(spec, name)) for name in names)  # pathlib raises without permission


def refuse_unfinished(path: Path) -> None:
    """Refuse a run that has no adapter yet.

    Raises:
        RescoldoError: it has none.
    """
    from rescoldo.run.layout import RUN_FILE

    if os.path.isfile(path / RUN_FILE) and not is_run(str(path)):
        fix = f"{program()} status {quote(path)}"
        raise RescoldoError("this run has not finished: there is no adapter yet", where=str(path), fix=fix)


def verify_command(run: Path) -> str:
    """The command that checks a damaged run."""
    return f"{program()} verify {quote(run)}"


def open_base_of(run: Path, info: dict[str, Any], adapter: Adapter) -> BaseModel:
    """The base model of a run's adapter, as named in training_info.json or else in the adapter.

    Raises:
        RescoldoError: none is named, it cannot be opened, or it has changed since.
    """
    from rescoldo.base import open_base

    spec = str(info.get("base_model") or adapter.base_model)
    if not spec:
        raise RescoldoError("does not name its base model", where=str(run), fix=verify_command(run))
    try:
        base = open_base(spec)
    except RescoldoError as error:
        named = "base_model in training_info" if info.get("base_model") else "base_model_name_or_path in adapter_config"
        raise RescoldoError(
            f"its base model cannot be opened: {error.where or spec}: {error.what}",
            where=str(run),
            fix=f"{error.fix or 'restore it'}; {named}.json names it",
            exit_code=error.exit_code,
        ) from None
    if info.get("base_fingerprint") and info["base_fingerprint"] != base.fingerprint():
        raise RescoldoError(
            f"was trained on another base model than the present {spec}",
            where=str(run),
            fix="restore the base model that it was trained on, or train again",
        )
    return base


def _known_models() -> str:
    return (
        f"name a run's directory (`{program()} list` shows those of this machine), or a base model: a directory, "
        ".gguf file, ollama:NAME, Hub id or sample:smollm2"
    )


def run_info(run: Path) -> dict[str, Any]:
    """The content of training_info.json; {} if there is none (an adapter written by PEFT).

    Raises:
        RescoldoError: the file is damaged.
    """
    path = run / "training_info.json"
    return load_json(path, verify_command(run)) if path.exists() else {}


def dated_tokenizer(base: BaseModel, info: dict[str, Any]) -> Any:
    """The base model's tokenizer. If its chat template writes today's date, it is set to the date of the run with the
    training_info.json `info`, or to today's date for the life of this process; its prompts let the model think if the
    run was trained so (chat_template.thinks)."""
    tokenizer, day = base.tokenizer(), info.get("chat_date")
    fix_date(tokenizer, date.fromisoformat(day) if isinstance(day, str) else date.today())
    tokenizer.thinks = info.get("thinks") is True
    return tokenizer


def load_for_inference(
    spec: str,
    quantization: str = AUTO,
    *,
    role: Role | None = None,
    records: Sequence[dict[str, Any]] = (),
    on_progress: Callable[[float], None] | None = None,
    lazy: bool = False,
) -> Loaded:
    """Load a run directory (base model and adapter) or a base model.

    Args:
        spec: a run's directory, or an argument for open_base.
        quantization: of the frozen weights; auto is the run's own, for a base model what training would choose.
        role, records: prompts for measuring int8's input ranges if the run has not stored them.
        on_progress: called with the loaded fraction, 0..1.
        lazy: only read headers; the weights are loaded when they are needed.

    Raises:
        RescoldoError: no such model, an adapter that does not fit its base, or an unknown quantization.
    """
    from rescoldo.adapter import WEIGHTS_FILE, read_adapter
    from rescoldo.base import open_base
    from rescoldo.base.open import NoSuchModelError
    from rescoldo.engine.model import LoraModel

    if not spec:
        raise RescoldoError(
            "no model is named: the name is empty", fix="a run directory, or a base model as sample:smollm2"
        )
    wanted = canonical(quantization)
    if wanted not in (AUTO, *PRECISIONS):
        raise RescoldoError(f"there is no quantization {quantization!r}", where="--quantization", fix=ALLOWED)
    refuse_unfinished(Path(spec))
    run = Path(spec) if is_run(spec) else None
    info = run_info(run) if run else {}
    adapter: Adapter | None = read_adapter(run) if run else None
    try:
        base = open_base_of(run, info, adapter) if run and adapter else open_base(spec)
    except NoSuchModelError as error:  # also the case of a run's directory that was moved or misspelled
        where = error.where or spec
        raise NoSuchModelError(where, error.suggestion, what="run or base model", otherwise=_known_models()) from None
    if adapter:
        adapter.fits(base.config, base.spec)  # before loading for minutes
    tokenizer = dated_tokenizer(base, info)
    measured = (wanted == AUTO or is_calibrated(wanted)) and is_calibrated(info.get("quantization"))
    frozen = _frozen_state(run) if run and measured else None
    precision = _precision(wanted, info, base, calibrated=frozen is not None or bool(role and records))

    def load() -> LoraModel:
        calibration = None
        if is_calibrated(precision) and frozen is None and role is not None:
            end = end_of_turn(tokenizer)
            prompts = [prompt_ids(role.messages(record), tokenizer) for record in records[:CALIBRATION_EXAMPLES]]
            calibration = [Example((*prompt, end), len(prompt)) for prompt in prompts]
        model = LoraModel.load(
            base,
            precision,
            adapter.lora if adapter else None,
            seed=0,
            calibration=calibration,
            frozen_state=frozen,
            on_progress=on_progress,
            keep_converted=True,
        )
        if adapter:
            adapter.put_into(model, base.spec)
        return model

    sha = sha256(run / WEIGHTS_FILE) if adapter and run else ""
    loaded = Loaded(spec, tokenizer, base, precision, run, info, sha, load)
    if not lazy:
        _ = loaded.model
    return loaded


def _precision(wanted: str, info: dict[str, Any], base: BaseModel, calibrated: bool) -> str:
    """The precision to load in; int8 and nf4 only if ranges are known or can be measured, or if asked for."""
    if wanted != AUTO:
        return wanted
    trained_in = info.get("quantization")
    if trained_in in PRECISIONS and (calibrated or not is_calibrated(trained_in)):
        return str(trained_in)
    from rescoldo.engine.auto import choose_precision

    return choose_precision(base.config, stored=base.stored_bytes(), calibrated=calibrated).precision


def _frozen_state(run: Path) -> dict[str, Any] | None:
    """The calibration stored with the adapter; for a run made by an older version, the one in its newest valid
    checkpoint."""
    from rescoldo.adapter import read_calibration
    from rescoldo.run.layout import list_checkpoints
    from rescoldo.training.checkpoint import read_checkpoint

    beside = read_calibration(run)
    if beside is not None:
        return beside
    for path in list_checkpoints(run):
        try:
            return read_checkpoint(path).frozen or None
        except ValueError:
            continue  # damaged: an older one has the same calibration
    return None
