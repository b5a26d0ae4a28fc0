"""Default hyper-parameters for a base model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rescoldo.base.model import BaseModel
from rescoldo.engine.config import FUSED_LINEARS, LINEARS, DecoderConfig
from rescoldo.engine.precisions import AUTO, PRECISIONS
from rescoldo.errors import RescoldoError
from rescoldo.training.config import RunConfig, flag
from rescoldo.training.parts import lora_config
from rescoldo.units import count

RANK, SCALE = 16, 4.0  # alpha is SCALE · rank
STEP, STEP_OF_MACHINES = 4, 8  # examples per step; with several machines
RATE, RATE_OF_LARGER = 1.5e-3, 2e-3  # for steps of up to STEP examples and for larger ones, at hidden size WIDTH
WIDTH, POWER = 576, 0.78  # the rate is proportional to hidden_size^-POWER


def tuned(config: RunConfig, decoder: DecoderConfig, *, machines: bool = False) -> dict[str, Any]:
    """Settings for any base model, by field; docs/defaults.md describes the evidence for each. With several `machines`
    a step has enough examples for each of them.

    The rate shrinks with the hidden size as in Thinking Machines' fits (LoRA Without Regret, 2025: ten times full
    fine-tuning's rate, hidden size to the power of -0.78 for Llama). It was measured only at a hidden size of 576; the
    rest is extrapolated.
    """
    given = config.model_fields_set
    examples = STEP_OF_MACHINES if machines else STEP
    grad_accum = config.grad_accum if "grad_accum" in given else max(1, examples // config.batch_size)
    rate = (RATE if config.batch_size * grad_accum <= STEP else RATE_OF_LARGER) * min(
        1.0, WIDTH / decoder.hidden_size
    ) ** POWER
    rank = config.lora_r if "lora_r" in given else min(RANK, _narrowest(decoder))
    return {
        "epochs": 2,
        "lr": float(f"{rate:.2g}"),
        "grad_accum": grad_accum,
        "lora_r": rank,
        "lora_alpha": SCALE * rank,
        "lora_dropout": 0.1,
        "lora_targets": LINEARS,
        "warmup": 0.08,
    }


def apply_preset(
    config: RunConfig, decoder: DecoderConfig, *, machines: bool = False, before: Mapping[str, Any] | None = None
) -> tuple[RunConfig, dict[str, Any]]:
    """Fill fields that the user did not give by `config.preset`: "tuned", or "original", the fields' own defaults.

    Args:
        machines: whether several machines share a step.
        before: the preset's values at the start of the run that is resumed; they are kept.

    Returns:
        The config in force, and the fields that the preset set (empty for "original").
    """
    values = PRESETS[config.preset](config, decoder, machines=machines)
    return config.filled({**values, **(before or {})} if values else {})


PRESETS: Mapping[str, Callable[..., dict[str, Any]]] = {  # "original": the fields' own defaults
    "tuned": tuned,
    "original": lambda config, decoder, *, machines=False: {},
}


def _narrowest(decoder: DecoderConfig) -> int:
    """The maximum rank."""
    return min(decoder.smallest_side(name) for name in decoder.linears)


def check_against_base(config: RunConfig, base: BaseModel, given: frozenset[str] = frozenset()) -> RunConfig:
    """Check the settings that depend on the base model's shapes; `given` are the fields that the user set.

    Returns:
        The config with the family's names of its targets (`attention` becomes qkv_proj and o_proj if q, k and v are one
        linear), and `max_length` reduced to the model's context unless the user asked for more.

    Raises:
        RescoldoError: targets that the model does not have, a rank above the hidden size, or more context than the
            model has.
    """
    decoder = base.config
    config = _targets_of(config, base)
    config = _layers_of(config, base)
    lora = lora_config(config, decoder.n_layers)
    for name, rank in lora.ranks.items():
        smallest = decoder.smallest_side(name)
        if rank > smallest:
            raise RescoldoError(
                f"rank {rank} is larger than {name} ({smallest})",
                where=flag("lora_ranks"),
                fix=f"allowed for {base.spec}: 1 to {smallest}",
            )
    smallest = min((decoder.smallest_side(name) for name in lora.targets if name not in lora.ranks), default=1)
    if config.lora_r > smallest and set(lora.targets) - lora.ranks.keys():
        raise RescoldoError(
            f"rank {config.lora_r} is larger than the smallest target ({smallest}, hidden size {decoder.hidden_size})",
            where=flag("lora_r"),
            fix=f"allowed for {base.spec}: 1 to {smallest}",
        )
    if config.quantization != AUTO:
        PRECISIONS[config.quantization].check(decoder, flag("quantization"), base.spec)
    if config.max_length > decoder.max_positions:
        if "max_length" in given:
            raise RescoldoError(
                f"{config.max_length} tokens are more than the model's context of {decoder.max_positions}",
                where=flag("max_length"),
                fix=f"allowed for {base.spec}: 16 to {decoder.max_positions}{_why_less(decoder)}",
            )
        return config.model_copy(update={"max_length": decoder.max_positions})
    return config


def _targets_of(config: RunConfig, base: BaseModel) -> RunConfig:
    """The config with the family's names of its targets: fused linears are one target.

    Raises:
        RescoldoError: a target is a part of one of the model's linears, or combines several of them.
    """
    have, chosen = base.config.linears, set(config.lora_targets)
    for fused, parts in FUSED_LINEARS.items():
        if fused in have and chosen.issuperset(parts):
            chosen = chosen.difference(parts) | {fused}
    for name in config.lora_targets:
        if name in chosen and name not in have:
            whole = next((fused for fused, parts in FUSED_LINEARS.items() if name in parts), "")
            parts = FUSED_LINEARS.get(name, ())
            reason = (
                f"{', '.join(FUSED_LINEARS[whole])} are one there, {whole}" if whole else f"it has {', '.join(parts)}"
            )
            raise RescoldoError(
                f"{base.spec} ({base.config.architecture}) has no linear {name}: {reason}",
                where=flag("lora_targets"),
                fix=f"some of {', '.join(have)}; or attention, mlp, all",
            )
    targets = tuple(name for name in have if name in chosen)
    fields = {name: _by_linear(name, getattr(config, name), targets) for name in ("lora_ranks", "lora_alphas")}
    return config.model_copy(update={"lora_targets": targets, **fields})


def _by_linear(field: str, numbers: dict[str, Any], targets: tuple[str, ...]) -> dict[str, Any]:
    """Numbers for single linears, under the family's names.

    Raises:
        RescoldoError: one of them is not a target, or parts of one linear have different numbers.
    """
    found = dict(numbers)
    for fused, parts in FUSED_LINEARS.items():
        of_parts = {numbers.get(part) for part in parts}
        if fused in targets and len(of_parts) == 1 and None not in of_parts:
            found = {name: number for name, number in found.items() if name not in parts} | {fused: of_parts.pop()}
    for name in found:
        if name not in targets:
            raise RescoldoError(
                f"{name} gets no adapter", where=flag(field), fix=f"some of the targets: {', '.join(targets)}"
            )
    return {name: found[name] for name in targets if name in found}


def _layers_of(config: RunConfig, base: BaseModel) -> RunConfig:
    """The config, with None for all layers.

    Raises:
        RescoldoError: layers that the model does not have.
    """
    layers, n = config.lora_layers, base.config.n_layers
    most = layers if isinstance(layers, int) else max(layers, default=0) + 1 if layers else 0
    if most > n:
        raise RescoldoError(
            f"{_shown_layers(layers)}: {base.spec} has {count(n, 'layer')}",
            where=flag("lora_layers"),
            fix=f"at most {n}, or numbers from 0 to {n - 1}",
        )
    whole = layers == n if isinstance(layers, int) else layers is not None and len(layers) == n
    return config.model_copy(update={"lora_layers": None}) if whole else config


def _shown_layers(layers: Any) -> str:
    return ",".join(map(str, layers)) if isinstance(layers, tuple) else str(layers)


def _why_less(decoder: DecoderConfig) -> str:
    whole = decoder.whole_context
    longer = f" (from there to {whole} the model rotates by other factors, longrope, which are not supported)"
    return longer if whole > decoder.max_positions else ""
