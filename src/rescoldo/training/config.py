"""The settings of a training run: one set of fields for flags, config file and Python, each with its allowed range."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from rescoldo.allowed import number, refused
from rescoldo.data.teaching import ExtraText, Teaching, extra_text
from rescoldo.engine.config import ALL_LINEARS, LINEARS
from rescoldo.engine.kinds import KINDS, PLAIN
from rescoldo.engine.precisions import ALLOWED, AUTO, PRECISIONS, canonical
from rescoldo.errors import RescoldoError
from rescoldo.files import quote
from rescoldo.invocation import program
from rescoldo.names import ObjectiveName, similar

MAX_CONFIG_BYTES = 1 << 20
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGET_GROUPS = {"attention": ATTENTION, "mlp": ("gate_proj", "up_proj", "down_proj"), "all": LINEARS}
BUILT_IN = "tensorboard"  # the tracker whose files this program writes itself
TRACKERS = (BUILT_IN, "wandb", "mlflow")

Schedule = Literal["cosine", "linear", "constant"]
Preset = Literal["tuned", "original"]


def _field(default: Any, description: str, allowed: str = "", **limits: Any) -> Any:
    """A field with a description of its allowed values for error messages: `allowed`, or for numbers from `limits`."""
    return Field(default, description=description, json_schema_extra={"allowed": allowed}, **limits)


class RunConfig(BaseModel):
    """All settings of a run. `model_fields_set` has the fields that the user gave; the others have the original
    script's values here, and `preset.apply_preset` replaces these by tuned ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    train: Path = _field(..., "training examples (JSON Lines)", "a path")
    val: Path = _field(..., "validation examples (JSON Lines)", "a path")
    output: Path = _field(..., "directory that the run writes", "a path")
    base_model: str = _field(
        "sample:smollm2",
        "directory, Hub id, GGUF file, ollama:NAME or sample:smollm2",
        "a directory, Hub id, GGUF file, ollama:NAME or sample:smollm2",
        min_length=1,
    )
    from_adapter: Path | None = _field(None, "run or adapter to continue from", "a directory with an adapter")
    replay: str | None = _field(
        None, "old examples to mix in", "FILE:SHARE, the share of all training examples between 0 and 1"
    )
    role: str = _field("ba", "the role: name, file or folder", "a role's name or path", min_length=1, max_length=4096)

    preset: Preset = _field("tuned", "source of settings that are not given", "tuned or original")
    epochs: int = _field(3, "passes over the training examples", ge=1, le=10_000)
    lr: float = _field(2e-4, "peak learning rate", gt=0, le=1)
    batch_size: int = _field(1, "examples per micro-batch", ge=1, le=1024)
    grad_accum: int = _field(8, "micro-batches per optimizer step", ge=1, le=4096)
    lora_r: int = _field(8, "LoRA rank", ge=1, le=1024)
    lora_alpha: float = _field(32.0, "LoRA alpha", gt=0, le=100_000)
    lora_dropout: float = _field(0.1, "dropout before A", ge=0, lt=1)
    lora_targets: tuple[str, ...] = _field(
        ATTENTION, "linears that get an adapter", f"at least one of {', '.join(ALL_LINEARS)}; or attention, mlp, all"
    )
    adapter: str = _field(PLAIN, "kind of adapter", ", ".join(KINDS))
    lora_ranks: dict[str, int] = _field({}, "ranks of single linears", "NAME=RANK,… for some of the targets, 1 to 1024")
    lora_alphas: dict[str, float] = _field({}, "alphas of single linears", "NAME=ALPHA,… for some of the targets")
    lora_layers: int | tuple[int, ...] | None = _field(
        None,
        "layers that get an adapter (default: all)",
        "the number of last layers, a whole number from 1; or layer numbers from 0 on, separated by commas",
    )
    lora_plus: float | None = _field(
        None, "LoRA+: B's learning rate as a multiple of A's", "a number from 1 to 1000", ge=1, le=1000
    )
    loss: Literal["all", "last"] = _field("all", "answers of a conversation that are learned", "all or last")
    thinking: Literal["keep", "drop", "mask"] = _field(
        "keep", "thinking parts: learned, left out, or seen without loss", "keep, drop or mask"
    )
    prompt_loss_weight: float = _field(0.0, "weight of the prompts' tokens in the loss", ge=0, le=1)
    balance_classes: bool = _field(False, "repeat examples of rarer answers", "true or false")
    text: str | None = _field(
        None,
        "plain text that is learned in addition to the examples",
        "PATH[,PATH…][:SHARE], the share between 0 and 1",
    )
    max_length: int = _field(2048, "longest example in tokens", ge=16, le=1 << 20)
    objective: ObjectiveName = _field(
        "sft",
        "what is minimized: sft learns the answers, the others from preferences",
        ", ".join(get_args(ObjectiveName)),
    )
    beta: float = _field(0.1, "strength of the reference model; orpo: weight of the odds ratio", gt=0, le=100)
    desirable_weight: float = _field(1.0, "kto: weight of the good answers", gt=0, le=1000)
    undesirable_weight: float = _field(1.0, "kto: weight of the bad answers", gt=0, le=1000)
    seed: int = _field(42, "decides order, initial weights and dropout", ge=0, le=(1 << 32) - 1)
    quantization: str = _field(AUTO, "precision of the frozen weights", ALLOWED)
    train_limit: int | None = _field(None, "use only the first N training examples", ge=1)
    val_limit: int | None = _field(None, "use only the first N validation examples", ge=1)
    max_steps: int | None = _field(None, "stop after N optimizer steps", ge=1)

    warmup: float = _field(0.05, "warm-up: a share of all steps if below 1, else steps", ge=0, le=1_000_000)
    lr_schedule: Schedule = _field("cosine", "learning rate after the warm-up", ", ".join(get_args(Schedule)))
    weight_decay: float = _field(0.01, "AdamW's weight decay", ge=0, le=1)
    max_grad_norm: float = _field(1.0, "the gradient's norm is clipped to this", gt=0, le=1e6)
    early_stopping: int | None = _field(None, "stop after N epochs without a better validation loss", ge=1, le=10_000)
    shuffle: bool = _field(True, "new order of the examples each epoch", "true or false")
    checkpoint_minutes: float = _field(5.0, "minutes between checkpoints", ge=0, le=1440)
    keep_checkpoints: int = _field(2, "checkpoints kept between epochs", ge=1, le=1000)
    threads: int | None = _field(None, "CPU threads (default: the cores this process may use)", ge=1, le=1024)
    memory_gb: float | None = _field(
        None, "maximum memory for training, in GB (default: the free memory)", ge=0.1, le=1e5
    )
    report_to: tuple[str, ...] = _field(
        ("tensorboard",), "where losses and settings are reported", f"one or more of {', '.join(TRACKERS)}; or none"
    )

    @property
    def replayed(self) -> tuple[Path, float] | None:
        """`replay`, split into file and share."""
        file, _, share = (self.replay or "").rpartition(":")
        return (Path(file), float(share)) if file else None

    @field_validator("quantization", mode="before")
    @classmethod
    def _precision(cls, value: Any) -> Any:
        name = canonical(value) if isinstance(value, str) else value
        if name not in (AUTO, *PRECISIONS):
            raise ValueError  # the message lists the allowed values
        return name

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name not in ("shuffle", "balance_classes"):
            raise ValueError("a boolean")
        return value

    @field_validator("lora_targets", mode="before")
    @classmethod
    def _targets(cls, value: Any) -> Any:
        """Accept "q_proj,v_proj", ["q_proj", "v_proj"] or a group's name; order and repetitions do not matter."""
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError("expected a list of names")
        chosen: set[str] = set()
        for name in (name.strip() for name in names if name.strip()):
            chosen.update(_linears(name))
        if not chosen:
            raise ValueError("no target is left: nothing would be trained")
        return tuple(name for name in ALL_LINEARS if name in chosen)

    @field_validator("report_to", mode="before")
    @classmethod
    def _trackers(cls, value: Any) -> Any:
        """Accept "wandb,mlflow", ["wandb", "mlflow"], "none" or an empty list."""
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError("expected a list of names")
        chosen = list(dict.fromkeys(name.strip().lower() for name in names if name.strip()))
        for name in chosen:
            if name not in TRACKERS and name != "none":
                raise ValueError(f"there is no {name!r}{nearest(name, [*TRACKERS, 'none'])}")
        if ("none" in chosen and len(chosen) > 1) or (names and not chosen):
            raise ValueError("none cannot be combined with others")
        return () if chosen == ["none"] else tuple(chosen)

    @field_validator("adapter")
    @classmethod
    def _kind(cls, value: str) -> str:
        if value not in KINDS:
            raise ValueError(f"there is no kind of adapter {value!r}{nearest(value, list(KINDS))}")
        return value

    @field_validator("lora_ranks", "lora_alphas", mode="before")
    @classmethod
    def _by_linear(cls, value: Any, info: ValidationInfo) -> Any:
        """Accept "q_proj=8,mlp=32" or {"q_proj": 8, "mlp": 32}; later entries take precedence."""
        if isinstance(value, str):
            pairs = [part.partition("=") for part in value.split(",") if part.strip()]
            if not all(equals for _, equals, _ in pairs):
                raise ValueError("expected NAME=NUMBER")
            value = {name.strip(): number.strip() for name, _, number in pairs}
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise ValueError("expected a number for each name")
        found: dict[str, int | float] = {}
        for name, given in value.items():
            one = _number(given, whole=info.field_name == "lora_ranks")
            if not 0 < one <= (1024 if info.field_name == "lora_ranks" else 100_000):
                raise ValueError(f"{name}={given} is out of range")
            found |= dict.fromkeys(_linears(name), one)
        return {name: found[name] for name in ALL_LINEARS if name in found}

    @field_validator("lora_layers", mode="before")
    @classmethod
    def _some_layers(cls, value: Any) -> Any:
        """Accept 8 (the last 8), "0,5,7" or [0, 5, 7]."""
        if isinstance(value, str):
            listed = "," in value
            parts = [int(_number(part, whole=True)) for part in value.split(",") if part.strip()]
            value = parts if listed else parts[0] if parts else None
        if isinstance(value, list | tuple):
            if not value or not all(type(layer) is int and 0 <= layer < 1 << 16 for layer in value):
                raise ValueError("expected layer numbers from 0 on")
            return tuple(sorted(set(value)))
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError("expected a whole number from 1")
        return value

    @field_validator("replay")
    @classmethod
    def _share(cls, value: str | None) -> str | None:
        if value is not None:
            file, _, share = value.rpartition(":")
            if not file or not 0 < _number(share, whole=False) < 1:
                raise ValueError("expected FILE:SHARE")
        return value

    @field_validator("text")
    @classmethod
    def _text(cls, value: str | None) -> str | None:
        if value is not None:
            extra_text(value)
        return value

    @field_validator("warmup")
    @classmethod
    def _warmup(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("from 1 on it is a number of steps: expected a whole number")
        return value

    @field_validator("train", "val", "output", "from_adapter", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        if isinstance(value, str) and (not value.strip() or "\0" in value):
            raise ValueError("the path is empty or holds a null character")
        return value

    @field_validator("train", "val", "output", "base_model", "role", "from_adapter", "replay", mode="before")
    @classmethod
    def _home(cls, value: Any) -> Any:
        """Expand ~: the shell does not expand --output=~/run or a config file, and nobody wants a directory named ~."""
        return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value

    def filled(self, values: Mapping[str, Any]) -> tuple[RunConfig, dict[str, Any]]:
        """The config with `values` (field → value) for fields that the user did not give, and the values that were
        used."""
        taken = {name: value for name, value in values.items() if name not in self.model_fields_set}
        return RunConfig.model_validate({**self.model_dump(exclude_unset=True), **taken}), taken


def _linears(name: str) -> tuple[str, ...]:
    """The linears with this name, or in the group with this name."""
    if name not in ALL_LINEARS and name not in TARGET_GROUPS:
        raise ValueError(f"there is no linear {name!r}{nearest(name, [*ALL_LINEARS, *TARGET_GROUPS])}")
    return TARGET_GROUPS.get(name, (name,))


def _number(value: Any, *, whole: bool) -> float:
    try:
        if not isinstance(value, str | int | float) or isinstance(value, bool) or (whole and isinstance(value, float)):
            raise ValueError
        number: float = int(value) if whole else float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{str(value)[:40]!r} is not a {'whole ' if whole else ''}number") from None
    if not math.isfinite(number):
        raise ValueError("expected a finite number")
    return number


def teaching(config: RunConfig) -> Teaching:
    """Which parts of the training data are learned."""
    return Teaching(config.loss, config.thinking, config.prompt_loss_weight, config.balance_classes)


def text_of(config: RunConfig) -> ExtraText | None:
    """The plain text that is learned in addition to the training data."""
    return extra_text(config.text) if config.text else None


def nearest(name: str, known: list[str]) -> str:
    """' (did you mean …?)' if a name in `known` is similar to `name` or its synonym in another program, else ''."""
    close = similar(name, known)
    return f" (did you mean {close}?)" if close else ""


def flag(field: str) -> str:
    """The flag of a field: lora_r → --lora-r."""
    return "--from" if field == "from_adapter" else "--" + field.replace("_", "-")


def make_config(given: Mapping[str, Any], file: Path | None = None) -> RunConfig:
    """Build the config from command-line values and a config file; the command line takes precedence.

    Args:
        given: field → value; None means that the flag was not given.
        file: the YAML file of --config, if any.

    Raises:
        RescoldoError: a value is missing, unknown or out of range; the message names field and allowed range.
    """
    from_file, lines = read_config_file(file) if file else ({}, {})
    from_flags = {name: value for name, value in given.items() if value is not None}
    try:
        return RunConfig.model_validate({**from_file, **from_flags})
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            name = str(problem["loc"][0]) if problem["loc"] else ""
            in_file = file is not None and name in from_file and name not in from_flags
            where = f"{file}:{lines.get(name, 1)}, {name}:" if in_file else flag(name)
            problems.append(f"{where} {_in_words(problem)}")
        called = "--help lists every option" if from_flags or file is None else "--help lists every field"
        raise RescoldoError("; ".join(problems), fix=called) from None


def refusal(name: str, value: Any) -> str:
    """Why a value is invalid for a field, as text; "" if it is valid."""
    paths = {"train": "train", "val": "val", "output": "output"}
    try:
        RunConfig.model_validate({**paths, name: value})
    except ValidationError as error:
        return "; ".join(_in_words(problem) for problem in error.errors())
    return ""


def allowed_words(name: str) -> str:
    """A field's allowed values as text, from its range: "a whole number from 1 to 10000"."""
    field = RunConfig.model_fields[name]
    extra = field.json_schema_extra
    if isinstance(extra, dict) and extra["allowed"]:
        return str(extra["allowed"])
    limits = {
        key: value
        for limit in field.metadata
        for key in ("ge", "gt", "le", "lt")
        if (value := getattr(limit, key, None)) is not None
    }
    return number(whole=int in (field.annotation, *get_args(field.annotation)), **limits)


def _in_words(problem: Any) -> str:
    """One of pydantic's problems as a sentence with the allowed range."""
    name = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == "missing":
        return "is required"
    if problem["type"] == "extra_forbidden":
        return f"there is no such field{nearest(name, list(RunConfig.model_fields))}"
    reason = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else ""
    return refused(problem.get("input"), allowed_words(name), reason)


def read_config_file(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Read a flat YAML file of config fields.

    Returns:
        Field → value (null fields left out), and field → line number from 1.

    Raises:
        RescoldoError: not readable, not YAML, not a mapping, too large, a field twice.
    """
    fix = "one `field: value` a line, for example `epochs: 3`"
    try:
        if path.is_dir() or path.stat().st_size > MAX_CONFIG_BYTES:
            raise RescoldoError(f"not a config file of at most {MAX_CONFIG_BYTES} bytes", where=str(path), fix=fix)
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return {}, {}
        if not isinstance(node, yaml.MappingNode):
            raise RescoldoError("a mapping of fields to values is expected", where=str(path), fix=fix)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.value in lines:
                raise RescoldoError("the field is repeated", where=_line(path, key), fix="keep one of them")
            lines[str(key.value)] = key.start_mark.line + 1
        value = yaml.safe_load(text)
    except OSError as error:
        raise RescoldoError(f"cannot be read: {error.strerror}", where=str(path), fix="check --config") from None
    except UnicodeDecodeError:
        raise RescoldoError("is not UTF-8 text", where=str(path), fix="save it as UTF-8") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RescoldoError(f"is not YAML: {getattr(error, 'problem', None) or error}", where=where, fix=fix) from None
    return {str(name): item for name, item in value.items() if item is not None}, lines


def _line(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}, {node.value}"


def check_paths(config: RunConfig) -> None:
    """Check the paths before anything is written.

    Raises:
        RescoldoError: a dataset is missing or not a file, both are the same, the output cannot be a directory, or the
            system denies access to one of them.
    """
    try:
        _check_datasets(config)
        _check_output(config)
    except OSError as error:  # a name that is too long, a folder without permission
        what, where = f"cannot be examined: {error.strerror}", str(error.filename)
        raise RescoldoError(what, where=where, fix="pass a path that you have access to") from None


def _check_datasets(config: RunConfig) -> None:
    files = {"train": config.train, "val": config.val}
    files |= {"replay": config.replayed[0]} if config.replayed else {}
    for name, path in files.items():
        if not path.exists():
            raise RescoldoError(f"there is no file {path}", where=flag(name), fix="check the path")
        if path.is_dir():
            raise RescoldoError(f"{path} is a directory", where=flag(name), fix="pass the JSON Lines file in it")
        if not os.access(path, os.R_OK):
            raise RescoldoError(f"no permission to read {path}", where=flag(name), fix=f"chmod u+r {quote(path)}")
    for name in ("train", "val"):
        if config.replayed and os.path.samefile(config.replayed[0], files[name]):
            raise RescoldoError(
                f"--replay and {flag(name)} are the same file {files[name]}",
                where="--replay",
                fix="name the file of the old examples",
            )
    text = text_of(config)
    for path in text.paths if text else ():
        if not path.is_file():
            raise RescoldoError(f"there is no file {path}", where="--text", fix="check the path")
        if os.path.samefile(path, config.val):
            what = f"--text and --val are the same file {path}"
            raise RescoldoError(what, where="--text", fix="validate on text that is not trained on")
    if os.path.samefile(config.train, config.val):
        raise RescoldoError(
            f"--train and --val are the same file {config.train}",
            where="--val",
            fix=f"validate on examples that are not trained on; `{program()} data split` makes two files of one",
        )


def _check_output(config: RunConfig) -> None:
    fix = "pass a directory that is new, empty, or holds the run to resume"
    output = config.output
    if output.exists() and not output.is_dir():
        raise RescoldoError(f"{output} is a file, not a directory", where="--output", fix=fix)
    if output.is_symlink() and not output.exists():
        target = Path(os.path.realpath(output))
        raise RescoldoError(
            f"{output} is a link to {target}, which does not exist", where="--output", fix=f"mkdir -p {quote(target)}"
        )
    base = Path(config.base_model)
    if output.exists() and base.is_dir() and os.path.samefile(output, base):
        raise RescoldoError("the output directory is the base model itself", where="--output", fix=fix)
    start = config.from_adapter
    if start is not None and output.exists() and start.is_dir() and os.path.samefile(output, start):
        raise RescoldoError(
            "the output directory is the adapter itself that --from names",
            where="--output",
            fix="pass another directory: the new run does not change the old one",
        )
    parent = output.absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise RescoldoError(f"{parent} is a file, so {output} cannot be created", where="--output", fix=fix)
    if not os.access(parent, os.W_OK | os.X_OK):
        mine = parent.stat().st_uid == os.geteuid()
        fix = f"chmod u+w {quote(parent)}, or another --output" if mine else "another --output: it is another user's"
        raise RescoldoError(f"{parent} cannot be written", where="--output", fix=fix)
