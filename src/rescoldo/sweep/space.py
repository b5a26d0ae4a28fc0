"""The space of a sweep: for each varied field of a run a list of values, or a range."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rescoldo.errors import RescoldoError
from rescoldo.training.config import nearest, refusal

# field → whether its values are integers; None: text
FIELDS: dict[str, bool | None] = {
    "lora_r": True,
    "lora_alpha": False,
    "lora_dropout": False,
    "lora_targets": None,
    "adapter": None,
    "lora_layers": True,
    "lora_plus": False,
    "lr": False,
    "epochs": True,
    "batch_size": True,
    "grad_accum": True,
    "warmup": False,
    "weight_decay": False,
    "max_grad_norm": False,
    "seed": True,
}
MAX_GRID = 1000
Value = int | float | str


@dataclass(frozen=True)
class Choice:
    """A list of values."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class Range:
    """All values from low to high, both included; `log`: uniform on a logarithmic scale."""

    low: float
    high: float
    whole: bool
    log: bool


Space = Mapping[str, Choice | Range]


def read_space(texts: Sequence[str]) -> dict[str, Choice | Range]:
    """Parse `--over FIELD=VALUES` options.

    VALUES are separated by commas ("4,8,16"; sets of targets are joined with plus signs: "q_proj+v_proj,all"), or a
    range "1e-4..3e-3".

    Raises:
        RescoldoError: an unknown field, no values, or values that are invalid for a run.
    """
    space: dict[str, Choice | Range] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in FIELDS or not equals:
            what = f"there is no field {name[:40]!r} to vary{nearest(name, list(FIELDS))}" if equals else "no values"
            raise RescoldoError(what, where=f"--over {text}", fix=f"FIELD=VALUES with one of {', '.join(FIELDS)}")
        if name in space:
            raise RescoldoError("the field is repeated", where=f"--over {text}", fix="give all values in one")
        space[name] = _read_values(name, values, text)
    if not space:
        raise RescoldoError(
            "there is nothing to vary", where="--over", fix="for example --over lora_r=4,8,16 --over lr=3e-4,1e-3"
        )
    return space


def _read_values(name: str, text: str, option: str) -> Choice | Range:
    whole = FIELDS[name]
    low, dots, high = text.partition("..")
    if dots:
        if whole is None:
            raise RescoldoError("has no order: expected a list of values", where=f"--over {option}", fix="list them")
        ends = _number(low, whole, option), _number(high, whole, option)
        _check(name, ends, option)
        if not ends[0] < ends[1]:
            raise RescoldoError("a range goes from low to high", where=f"--over {option}", fix=f"{name}=1..4")
        return Range(*ends, whole=whole, log=ends[0] > 0 and ends[1] / ends[0] >= 10)
    values = [part.strip() for part in text.split(",") if part.strip()]
    if not values:
        raise RescoldoError("no values", where=f"--over {option}", fix=f"{name}=VALUE,VALUE")
    found = values if whole is None else [_number(value, whole, option) for value in values]
    _check(name, found, option)
    return Choice(tuple(dict.fromkeys(found)))


def _number(text: str, whole: bool, option: str) -> int | float:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise RescoldoError(
            f"{text.strip()[:40]!r} is not {kind}", where=f"--over {option}", fix="separate values by commas"
        ) from None


def _check(name: str, values: Sequence[Value], option: str) -> None:
    """Refuse values that are invalid for a run, before the first one is started."""
    for value in values:
        why = refusal(name, run_fields({name: value})[name])
        if why:
            raise RescoldoError(why, where=f"--over {option}", fix="take it out; nothing has been started")


def extremes(space: Space) -> Iterator[dict[str, Value]]:
    """Each value of each field by itself; for ranges both ends."""
    for name, part in space.items():
        for value in part.values if isinstance(part, Choice) else (part.low, part.high):
            yield {name: int(value) if isinstance(part, Range) and part.whole else value}


def grid(space: Space) -> Iterator[dict[str, Value]]:
    """All combinations, with the last field changing fastest.

    Raises:
        RescoldoError: there are ranges, or more than MAX_GRID combinations.
    """
    size = 1
    for name, part in space.items():
        if isinstance(part, Range):
            raise RescoldoError(
                "a grid needs values, this is a range", where=f"--over {name}", fix="list values, or add --trials 20"
            )
        size *= len(part.values)
    if size > MAX_GRID:
        raise RescoldoError(
            f"{size} combinations: expected at most {MAX_GRID}", where="--over", fix="--trials N takes some"
        )
    lists = [part.values for part in space.values() if isinstance(part, Choice)]
    return (dict(zip(space, values, strict=True)) for values in itertools.product(*lists))


def run_fields(params: Mapping[str, Value]) -> dict[str, Any]:
    """A trial's values as fields of a RunConfig."""
    targets = params.get("lora_targets")
    return {**params, **({"lora_targets": str(targets).split("+")} if targets is not None else {})}
