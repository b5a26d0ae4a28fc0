"""Everything before the first weight is loaded: base model, settings in force, datasets. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from rescoldo.base.chat_templates import plain_note
from rescoldo.base.model import BaseModel
from rescoldo.base.sample import SAMPLES
from rescoldo.data.dataset import Dataset
from rescoldo.data.tokenize import fix_date
from rescoldo.errors import RescoldoError
from rescoldo.files import read_json
from rescoldo.role import Role, get_role
from rescoldo.run.layout import RUN_FILE
from rescoldo.system.cgroup import available_threads
from rescoldo.system.memory import limit_process
from rescoldo.training.config import RunConfig, check_paths
from rescoldo.training.identity import identity
from rescoldo.training.objectives import OBJECTIVES, apply_defaults, check_settings
from rescoldo.training.parts import Parts
from rescoldo.training.preset import apply_preset, check_against_base
from rescoldo.training.progress import Reporter
from rescoldo.units import count


@dataclass(frozen=True)
class Prepared:
    """What a run starts from. `config` is in force: preset applied, no `auto` left."""

    config: RunConfig
    from_preset: dict[str, Any]
    base: BaseModel
    tokenizer: Any
    role: Role
    train: Dataset
    val: Dataset
    identity: dict[str, Any]


def prepare(asked: RunConfig, parts: Parts, reporter: Reporter, *, restart: bool) -> Prepared:
    """Open and check all that the run needs.

    Raises:
        RescoldoError: whatever is wrong with paths, base model, settings or datasets.
    """
    check_paths(asked)
    check_settings(asked)
    objective = OBJECTIVES[asked.objective]
    if parts.machines > 1 and not objective.several:
        raise RescoldoError(
            f"several machines cannot share a step of {asked.objective} yet",
            where="--nodes",
            fix="train on one machine",
        )
    form = {} if objective.form == "answers" else {"form": objective.form}
    role = get_role(asked.role).ready()
    # a fault in them is told before anything is loaded
    in_train, in_val = (parts.check_dataset(path, role, **form) for path in (asked.train, asked.val))
    reporter.say(f"{reporter.heading_prefix}{role.spec.heading} - {model_name(asked.base_model)}")
    reporter.say(f"Loading tokenizer from {asked.base_model}")
    base = parts.open_base(asked.base_model)
    tokenizer = base.tokenizer()
    if note := plain_note(tokenizer):
        reporter.say(f"  {note}")
    day = parts.run_date(date_of_run(asked.output, restart=restart))
    dated = fix_date(tokenizer, day)
    if dated:
        reporter.say(f"  the chat template writes today's date: {day.isoformat()} in all prompts of this run")

    asked, from_objective = apply_defaults(asked)
    config, from_preset = apply_preset(asked, base.preset)
    config = check_against_base(config, base, frozenset(asked.model_fields_set))
    config, why = settle(config, base, restart=restart)
    decoder = base.config
    total = decoder.total_params
    reporter.say(
        f"Loading model {asked.base_model} ({decoder.architecture}, {total:,} parameters, {config.quantization})"
    )
    if why:
        reporter.say(f"  {config.quantization} chosen ({why}); --quantization overrides it")
    if base.note():
        reporter.say(f"  {base.note()}")
    if from_preset:
        shown = ", ".join(f"{name}={_shown(value)}" for name, value in from_preset.items())
        reporter.say(f"  preset {base.preset} in force, where no flag says otherwise: {shown}")

    if objective.make:
        shown = ", ".join(f"{name}={_shown(value)}" for name, value in from_objective.items())
        reporter.say(f"  objective: {objective.title}" + (f" ({shown}, where no flag says otherwise)" if shown else ""))

    reporter.say(f"Applying LoRA configuration (r={config.lora_r}, alpha={config.lora_alpha:g})...")
    sides = sum(sum(decoder.linear_shape(name)) for name in config.lora_targets)
    trainable = decoder.n_layers * config.lora_r * sides
    percent = 100 * trainable / (total + trainable)
    reporter.say(f"  {trainable:,} of {total + trainable:,} parameters are trained ({percent:.3f} %)")

    reporter.say("Tokenizing datasets...")
    read = parts.read_dataset
    train = read(config.train, role, tokenizer, config.max_length, config.train_limit, in_train, **form)
    val = read(config.val, role, tokenizer, config.max_length, config.val_limit, in_val, **form)
    for name, data in (("training", train), ("validation", val)):
        reporter.say(f"  {count(len(data.examples), f'{name} {objective.unit}')}, {count(data.tokens, 'token')}")
        if data.overruns:
            some = ", ".join(data.overruns[:3]) + (", …" if len(data.overruns) > 3 else "")
            limit = f"longer than --max-length {config.max_length}"
            left_out = count(len(data.overruns), f"{name} {objective.unit}")
            reporter.warn(f"left out, {limit}: {left_out} ({some})")
    for note in dict.fromkeys((*train.notes, *val.notes)):
        reporter.warn(note)
    now = identity(config, role, base.fingerprint(), train, val, day if dated else None)
    return Prepared(config, from_preset, base, tokenizer, role, train, val, now)


def model_name(spec: str) -> str:
    """The base model as a person calls it: the last part of its path or id."""
    if spec.startswith("sample:"):
        name = spec.removeprefix("sample:")
        return SAMPLES[name].title if name in SAMPLES else name
    if spec.startswith("ollama:"):
        return spec.removeprefix("ollama:")
    return Path(spec).absolute().name


def _settled_before(output: Path) -> dict[str, Any]:
    """The config that the run in `output` was started with, {} if there is none."""
    config = (read_json(output / RUN_FILE) or {}).get("config")
    return config if isinstance(config, dict) else {}


def date_of_run(output: Path, *, restart: bool = False) -> date:
    """The date that the prompts of the run in `output` say where the chat template asks for one: that of its start."""
    known = (read_json(output / RUN_FILE) or {}).get("identity")
    kept = known.get("chat date") if isinstance(known, dict) and not restart else None
    try:
        return date.fromisoformat(kept) if isinstance(kept, str) else date.today()
    except ValueError:
        return date.today()


def settle(config: RunConfig, base: BaseModel, *, restart: bool = False) -> tuple[RunConfig, str]:
    """Replace `auto`: by what the run to be resumed was started with, else by what suits model and machine. From here
    on the config's bound on memory holds.

    Returns:
        The config, and why the precision was chosen where it was.
    """
    limit_process(config.memory_gb)
    before = {} if restart else _settled_before(config.output)
    threads = config.threads or before.get("threads") or available_threads()
    precision: Any = config.quantization
    why = ""
    if precision == "auto":
        precision = before.get("quantization")
        if precision is None:
            from rescoldo.engine.auto import choose_precision

            choice = choose_precision(base.config, stored=base.stored_bytes())
            precision, why = choice.precision, choice.reason
    return RunConfig.model_validate({**config.model_dump(), "quantization": precision, "threads": threads}), why


def _shown(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)
