"""adapter_config.json: which fields of PEFT's LoRA config this program supports, with which values.

Fields decide what the weights mean, so the list is of what is known. Everything else is refused by name: a field with a
value that is not listed here, and a field that is not listed at all, unless its value switches nothing on (null, false
or empty), which is how PEFT writes the options of later versions that are not used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescoldo.engine.config import ALL_LINEARS
from rescoldo.engine.kinds import KINDS, PEFT_SWITCHES, kind_of
from rescoldo.engine.types import LoraConfig
from rescoldo.errors import RescoldoError

MAX_CONFIG_BYTES = 1 << 20
MAX_RANK = 1 << 16
# of a decoder inside a wrapper: its linears alone, as a vision tower may have some of the same names
_WRAPPED_TARGETS = r"model\.language_model\.layers\.{layers}\.(self_attn|mlp)\.({names})"
_WRAPPED = re.compile(
    r"model\\\.language_model\\\.layers\\\.(?P<layers>\\d\+|\([0-9|]+\))"
    r"\\\.\(self_attn\|mlp\)\\\.\((?P<names>[a-z_|]+)\)"
)
_FULL = re.compile(r"(?:model\.)?(?:language_model\.)?layers\.(?P<layer>\d{1,4})\.(?:self_attn|mlp)\.(?P<name>\w+)")

Test = Callable[[Any], bool]


def _anything(value: Any) -> bool:
    return True


def _off(value: Any) -> bool:
    """Null, false or empty: the option is not used."""
    return value is None or value is False or value in ([], {}, "")


def _one_of(*values: Any) -> Test:
    return lambda value: any(type(value) is type(one) and value == one for one in values)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _wrapped_targets(lora: LoraConfig) -> str:
    """target_modules for a wrapper's class: a pattern, beside which PEFT takes no layers_to_transform."""
    layers = r"\d+" if lora.layers is None else f"({'|'.join(map(str, lora.layers))})"
    return _WRAPPED_TARGETS.format(layers=layers, names="|".join(lora.targets))


def _unwrapped(value: Any) -> tuple[Any, Any]:
    """target_modules as a list, and layers_to_transform where it says the layers, too: as a pattern that
    `_wrapped_targets` wrote, or as the full names that PEFT makes of "all-linear" where they are few."""
    match = _WRAPPED.fullmatch(value) if isinstance(value, str) else None
    if not match:
        return _shortened(value) if isinstance(value, list) and value else (value, None)
    layers = None if match["layers"] == r"\d+" else [int(layer) for layer in re.findall(r"\d+", match["layers"])]
    return match["names"].split("|"), layers


def _shortened(names: list[Any]) -> tuple[Any, Any]:
    """Full names of the same linears in each of some layers as their names and the layers; others as they are."""
    matches = [_FULL.fullmatch(name) if isinstance(name, str) else None for name in names]
    by_layer: dict[int, set[str]] = {}
    for match in matches:
        if match is None:
            return names, None
        by_layer.setdefault(int(match["layer"]), set()).add(match["name"])
    several = list(by_layer.values())
    return (sorted(several[0]), sorted(by_layer)) if all(one == several[0] for one in several) else (names, None)


def _linears(value: Any) -> bool:
    value, _ = _unwrapped(value)
    return (
        isinstance(value, list) and bool(value) and all(isinstance(name, str) and name in ALL_LINEARS for name in value)
    )


def _layers(value: Any) -> bool:
    several = value if isinstance(value, list) else [value]
    return value is None or (bool(several) and all(_whole(layer, 0, 1 << 16) for layer in several))


def _pattern(value: Any, test: Test) -> bool:
    """A rank or alpha for each of some linears, by their short names."""
    return _off(value) or (isinstance(value, dict) and all(k in ALL_LINEARS and test(v) for k, v in value.items()))


def _rank(value: Any) -> bool:
    return _whole(value, 1, MAX_RANK)


@dataclass(frozen=True)
class _Field:
    """Which values a field may have, and what to say when it has another one."""

    allowed: Test
    expected: str = ""
    required: bool = False


_FIELDS: dict[str, _Field] = {
    # what is read
    "peft_type": _Field(_one_of("LORA"), "'LORA'", required=True),
    "r": _Field(_rank, f"a whole number from 1 to {MAX_RANK}", required=True),
    "lora_alpha": _Field(_number, "a number", required=True),
    "lora_dropout": _Field(lambda value: _number(value) and 0 <= value < 1, "a number from 0 up to 1"),
    "target_modules": _Field(_linears, f"a list of {', '.join(ALL_LINEARS)}", required=True),
    "layers_to_transform": _Field(_layers, "layer numbers"),
    "rank_pattern": _Field(lambda value: _pattern(value, _rank), "a rank for each of some linears, by its short name"),
    "alpha_pattern": _Field(lambda value: _pattern(value, _number), "a number for each of some linears"),
    **{switch: _Field(lambda value: value is None or isinstance(value, bool), "a boolean") for switch in PEFT_SWITCHES},
    "base_model_name_or_path": _Field(lambda value: value is None or isinstance(value, str), "a name"),
    # what has no effect on the trained weights' meaning
    "auto_mapping": _Field(_anything),
    "inference_mode": _Field(_anything),
    "peft_version": _Field(_anything),
    "eva_config": _Field(_anything),  # of an initialization that leaves the base model as it is
    "qalora_group_size": _Field(_anything),  # has an effect with use_qalora alone
    "megatron_core": _Field(_anything),  # … with megatron_config alone
    "merge_weights": _Field(_anything),  # early versions': merge when the model is set to evaluation
    "layers_pattern": _Field(lambda value: _off(value) or value in ("layers", ["layers"]), "'layers'"),
    # what has one meaning that the engine has too. The other initializations change the base model's own weights
    "task_type": _Field(_one_of(None, "CAUSAL_LM"), "'CAUSAL_LM'"),
    "bias": _Field(_one_of("none"), "'none'"),
    "revision": _Field(_one_of(None, "", "main"), "the base model's main revision"),
    "init_lora_weights": _Field(
        _one_of(True, False, "gaussian", "eva", "orthogonal", "mica"), "an initialization that leaves the base as it is"
    ),
}
_NOT_USED = _Field(_off, "not set")


def peft_config(lora: LoraConfig, base_model: str, *, wrapped: bool = False) -> dict[str, Any]:
    """adapter_config.json's content: what peft.LoraConfig would write, without the fields that are at their default
    there (PEFT fills them, whatever its version). PEFT itself is not needed to train. `wrapped`: for the class that
    holds the decoder together with a vision tower."""
    kind = KINDS[lora.kind]
    patterns = {"rank_pattern": dict(lora.ranks), "alpha_pattern": {k: _plain(v) for k, v in lora.alphas.items()}}
    some = {} if lora.layers is None or wrapped else {"layers_to_transform": list(lora.layers)}
    return {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": _plain(lora.alpha),
        "lora_dropout": lora.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": _wrapped_targets(lora) if wrapped else list(lora.targets),
        "task_type": "CAUSAL_LM",
        **{switch: switch in kind.peft for switch in PEFT_SWITCHES},
        **{name: pattern for name, pattern in patterns.items() if pattern},
        **some,
    }


def _plain(number: float) -> float:
    """A number as JSON has it: whole ones without a point."""
    return int(number) if number == int(number) else number


def read_config(path: Path) -> dict[str, Any]:
    """An adapter_config.json as a mapping.

    Raises:
        RescoldoError: missing, not JSON, not a mapping.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise RescoldoError("is too large to be an adapter's config", where=str(path))
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RescoldoError("is missing", where=str(path), fix="pass the output directory of a finished run") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RescoldoError(f"cannot be read: {error}", where=str(path)) from None
    if not isinstance(config, dict):
        raise RescoldoError("is not a JSON object", where=str(path))
    return config


def parse_config(config: dict[str, Any], where: str) -> LoraConfig:
    """The engine's LoRA settings in a PEFT config.

    Raises:
        RescoldoError: fields are missing or unknown, or have a value that is not supported; all are named.
    """
    missing = [name for name, field in _FIELDS.items() if field.required and name not in config]
    if missing:
        raise RescoldoError(f"lacks {', '.join(missing)}", where=where, fix="save the adapter with PEFT again")
    faults = []
    for name, value in config.items():
        field = _FIELDS.get(name, _NOT_USED)
        if not field.allowed(value):
            faults.append(f"{name[:60]} is {_shown(value)}, expected {field.expected}")
    if faults:
        raise RescoldoError(
            f"this kind of adapter is not supported: {'; '.join(faults[:8])}",
            where=where,
            fix=f"{', '.join(kind.title for kind in KINDS.values())} on the decoder's linears are supported; merge the "
            "adapter into its base model with PEFT",
        )
    names, layers = _unwrapped(config["target_modules"])
    layers = config.get("layers_to_transform") if layers is None else layers
    targets = tuple(name for name in ALL_LINEARS if name in names)
    several: list[int] = layers if isinstance(layers, list) else [] if layers is None else [layers]
    return LoraConfig(
        config["r"],
        float(config["lora_alpha"]),
        float(config.get("lora_dropout", 0.0)),
        targets,
        kind=kind_of(frozenset(switch for switch in PEFT_SWITCHES if config.get(switch))),
        ranks={name: rank for name, rank in (config.get("rank_pattern") or {}).items() if name in targets},
        alphas={name: float(a) for name, a in (config.get("alpha_pattern") or {}).items() if name in targets},
        layers=None if layers is None else tuple(sorted(set(several))),
    )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
