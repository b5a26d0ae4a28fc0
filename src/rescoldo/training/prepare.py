"""Preparation of a run before the weights are loaded: base model, settings, datasets. Writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from rescoldo.base.chat_templates import plain_note
from rescoldo.base.model import BaseModel
from rescoldo.base.open import title_of
from rescoldo.data.chat_template import thinks
from rescoldo.data.dataset import Dataset
from rescoldo.data.replay import mixed
from rescoldo.data.teaching import LAST, Teaching
from rescoldo.data.tokenize import fix_date, let_think
from rescoldo.engine.kinds import KINDS, PLAIN
from rescoldo.engine.memory import adapter_parameters, trained_parameters
from rescoldo.engine.precisions import AUTO
from rescoldo.errors import RescoldoError
from rescoldo.files import read_json
from rescoldo.role import Role, get_role
from rescoldo.run.layout import RUN_FILE
from rescoldo.system.cgroup import available_threads
from rescoldo.system.memory import limit_process
from rescoldo.training.config import RunConfig, check_paths, teaching, text_of
from rescoldo.training.identity import identity
from rescoldo.training.objectives import OBJECTIVES, apply_defaults, check_settings, check_step
from rescoldo.training.origin import Origin, read_origin
from rescoldo.training.parts import Parts, lora_config
from rescoldo.training.preset import apply_preset, check_against_base, tuned
from rescoldo.training.progress import Reporter, Topic
from rescoldo.units import count


@dataclass(frozen=True)
class Prepared:
    """A prepared run. `config` has the settings in force: preset applied, `auto` resolved. `origin`: the adapter that
    --from names."""

    config: RunConfig
    from_preset: dict[str, Any]
    base: BaseModel
    tokenizer: Any
    role: Role
    train: Dataset
    val: Dataset
    identity: dict[str, Any]
    origin: Origin | None = None


def prepare(asked: RunConfig, parts: Parts, reporter: Reporter, *, restart: bool) -> Prepared:
    """Open and check everything that the run needs.

    Raises:
        RescoldoError: a fault in paths, base model, settings or datasets.
    """
    say = partial(reporter.say, topic=Topic.SETUP)
    check_paths(asked)
    asked, origin, notes = read_origin(asked)
    check_settings(asked)
    objective = OBJECTIVES[asked.objective]
    if parts.machines > 1 and not objective.several:
        raise RescoldoError(
            f"several machines cannot share a step of {asked.objective} yet",
            where="--nodes",
            fix="train on one machine",
        )
    role = get_role(asked.role).ready()
    # faults in the datasets are reported before anything is loaded
    in_train, in_val = (parts.check_dataset(path, role, **objective.reading) for path in (asked.train, asked.val))
    in_replay = parts.check_dataset(asked.replayed[0], role, **objective.reading) if asked.replayed else None
    say(f"{reporter.heading_prefix}{role.spec.heading} - {title_of(asked.base_model)}")
    say(f"Loading tokenizer from {asked.base_model}")
    for note in notes:
        say(f"  {note}")
    base = parts.open_base(asked.base_model)
    asked = origin.settings(asked, base) if origin else asked
    tokenizer = base.tokenizer()
    if note := plain_note(tokenizer):
        say(f"  {note}")
    day = parts.run_date(date_of_run(asked.output, restart=restart))
    dated = fix_date(tokenizer, day)
    if dated:
        say(f"  the chat template writes today's date: {day.isoformat()} in all prompts of this run")

    asked, from_objective = apply_defaults(asked)
    config, from_preset = with_preset(asked, base, parts, restart=restart)
    config = check_against_base(config, base, frozenset(asked.model_fields_set))
    check_step(config)
    config, why = settle(config, base, restart=restart)
    decoder = base.config
    total = decoder.total_params
    say(
        f"Loading model {asked.base_model} ({decoder.architecture}, {total:,} parameters, {config.quantization})",
    )
    if why:
        say(f"  {config.quantization} chosen ({why}); --quantization overrides it")
    if base.note():
        say(f"  {base.note()}")
    if from_preset:
        shown = ", ".join(f"{name}={_shown(value)}" for name, value in from_preset.items())
        say(f"  preset {config.preset} in force, where no flag says otherwise: {shown}")

    if objective.make:
        shown = ", ".join(f"{name}={_shown(value)}" for name, value in from_objective.items())
        say(f"  objective: {objective.title}" + (f" ({shown}, where no flag says otherwise)" if shown else ""))

    lora = lora_config(config, decoder.n_layers)
    more = "" if config.adapter == PLAIN else f"{KINDS[config.adapter].title}, "
    some = "" if lora.layers is None else f", {len(lora.layers)} of {decoder.n_layers} layers"
    say(f"Applying LoRA configuration ({more}r={config.lora_r}, alpha={config.lora_alpha:g}{some})...")
    trainable, together = trained_parameters(decoder, lora), total + adapter_parameters(decoder, lora)
    percent = 100 * trainable / together
    say(f"  {trainable:,} of {together:,} parameters are trained ({percent:.3f} %)")

    say("Tokenizing datasets...")
    train = read_train(config, parts, role, tokenizer, in_train, in_replay, say)
    val = read_val(config, parts, role, tokenizer, in_val)
    if thinks(tokenizer):
        say("  the answers have thinking parts: prompts let the model think")
    if train.texts and not train.is_text:
        tokens = sum(len(example.tokens) for example in train.examples[-train.texts :])
        of = f"{tokens / train.tokens:.0%} of the tokens"
        say(f"  {count(train.texts, 'window')} of plain text in addition to the examples, {of}")
    for name, data in (("training", train), ("validation", val)):
        say(f"  {count(len(data.examples), f'{name} {objective.unit}')}, {count(data.tokens, 'token')}")
        if data.overruns:
            some = ", ".join(map(str, data.overruns[:3])) + (", …" if len(data.overruns) > 3 else "")
            limit = f"longer than --max-length {config.max_length}"
            left_out = count(len(data.overruns), f"{name} {objective.unit}")
            reporter.warn(f"left out, {limit}: {left_out} ({some})")
    for note in dict.fromkeys((*train.notes, *val.notes)):
        reporter.warn(note)
    parent = origin.digest if origin else ""
    now = identity(config, role, base.fingerprint(), train, val, day if dated else None, parent)
    return Prepared(config, from_preset, base, tokenizer, role, train, val, now, origin)


def read_train(
    config: RunConfig,
    parts: Parts,
    role: Role,
    tokenizer: Any,
    records: Any,
    old: Any = None,
    say: Callable[[str], None] = lambda text: None,
) -> Dataset:
    """The training data from its `records`, with the `old` ones of --replay and the plain text. Enables thinking in the
    tokenizer's prompts if the answers have thinking parts.

    Raises:
        RescoldoError: faults in a file, or no examples left.
    """
    row = OBJECTIVES[config.objective]
    learned = LAST if row.make else teaching(config)
    if not row.make:
        let_think(tokenizer, [*(records or ()), *(old or ())], role, learned)
    length, read = config.max_length, parts.read_dataset
    data = read(
        config.train, role, tokenizer, length, config.train_limit, records, learned, text_of(config), **row.reading
    )
    if not config.replayed:
        return data
    file, share = config.replayed
    before = read(file, role, tokenizer, length, None, old, learned, **row.reading)
    together = mixed(data, before, share, config.seed)
    n, got = len(together.examples), len(together.examples) - len(data.examples)
    say(f"  {count(got, 'old example')} of {len(before.examples)} in {file} mixed in: {100 * got / n:.0f} % of all")
    return together


def read_val(config: RunConfig, parts: Parts, role: Role, tokenizer: Any, records: Any) -> Dataset:
    """The validation data from its `records`: the loss on the same answers, with weight 1 for each token. The training
    data must be read first, because it decides whether prompts let the model think.

    Raises:
        RescoldoError: faults in the file, or no examples left.
    """
    row = OBJECTIVES[config.objective]
    measured = LAST if row.make else Teaching(config.loss, config.thinking)
    return parts.read_dataset(
        config.val, role, tokenizer, config.max_length, config.val_limit, records, measured, **row.reading
    )


def _settled_before(output: Path) -> dict[str, Any]:
    """The config of the run in `output`, {} if there is none."""
    config = (read_json(output / RUN_FILE) or {}).get("config")
    return config if isinstance(config, dict) else {}


def with_preset(
    asked: RunConfig, base: BaseModel, parts: Parts, *, restart: bool = False
) -> tuple[RunConfig, dict[str, Any]]:
    """apply_preset, except that a resumed run keeps the preset's values from its start, so that another version or
    number of machines does not change them."""
    started = {} if restart else read_json(asked.output / RUN_FILE) or {}
    config, names = started.get("config"), started.get("from_preset")
    before: dict[str, Any] = {}
    if isinstance(config, dict) and isinstance(names, list) and config.get("preset", "tuned") == asked.preset:
        before = {name: config[name] for name in names if name in RunConfig.model_fields and name in config}
        old = "preset" not in config  # a version without presets, which used the fields' own defaults
        for name in tuned(asked, base.config).keys() - before.keys():
            default = RunConfig.model_fields[name].default
            if name not in config or (old and config[name] == _as_json(default)):
                before[name] = default
    return apply_preset(asked, base.config, machines=not parts.resumable_steps, before=before)


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def date_of_run(output: Path, *, restart: bool = False) -> date:
    """The date in the prompts of the run in `output`, if the chat template asks for one: the day of its start."""
    known = (read_json(output / RUN_FILE) or {}).get("identity")
    kept = known.get("chat date") if isinstance(known, dict) and not restart else None
    try:
        return date.fromisoformat(kept) if isinstance(kept, str) else date.today()
    except ValueError:
        return date.today()


def settle(config: RunConfig, base: BaseModel, *, restart: bool = False) -> tuple[RunConfig, str]:
    """Resolve `auto`: to the precision of the run to resume, else to the one that suits model and machine. From here on
    the config's memory limit is in force.

    Returns:
        The config, and the reason for the precision if it was chosen here.
    """
    limit_process(config.memory_gb)
    before = {} if restart else _settled_before(config.output)
    threads = config.threads or before.get("threads") or available_threads()
    precision: Any = config.quantization
    why = ""
    if precision == AUTO:
        precision = before.get("quantization")
        if precision is None:
            from rescoldo.engine.auto import choose_precision

            choice = choose_precision(base.config, stored=base.stored_bytes())
            precision, why = choice.precision, choice.reason
    return RunConfig.model_validate({**config.model_dump(), "quantization": precision, "threads": threads}), why


def _shown(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)
