"""Changes that would shorten a run, and how long it would take with each of them."""

from __future__ import annotations

import math
from typing import Any

from rescoldo.doctor.forecast import Forecast
from rescoldo.engine.memory import trained_parameters
from rescoldo.nodes.scaling import speedup
from rescoldo.nodes.share import load_of
from rescoldo.training.parts import lora_config
from rescoldo.training.plan import Plan
from rescoldo.training.prepare import Prepared
from rescoldo.units import count

MACHINES = (2, 4, 8)


def changes(prepared: Prepared, forecasts: list[Forecast]) -> list[dict[str, Any]]:
    """{"what", "seconds"} for each change, with the seconds of the whole run. forecasts[0] is for the run's own
    precision."""
    config, chosen = prepared.config, forecasts[0]
    found: list[dict[str, Any]] = []
    for other in forecasts[1:]:
        if other.fits and other.seconds < 0.9 * chosen.seconds:
            found.append({"what": f"--quantization {other.precision}", "seconds": other.seconds})
    work = chosen.seconds - chosen.loading
    if config.epochs > 1 and not config.max_steps:
        found.append({"what": f"--epochs {config.epochs - 1}", "seconds": chosen.seconds - work / config.epochs})
    lengths = sorted(len(example.tokens) for example in prepared.train.examples)
    limit = lengths[max(0, math.ceil(0.75 * len(lengths)) - 1)]
    inside = [length for length in lengths if length <= limit]
    if len(inside) < len(lengths):
        share = sum(inside) / sum(lengths)
        what = f"--max-length {limit} (leaves out {len(lengths) - len(inside)} of {count(len(lengths), 'example')})"
        found.append({"what": what, "seconds": chosen.loading + work * share})
    half = chosen.loading / 2 + work / 2
    found.append({"what": "a base model with half as many layers", "seconds": half})
    return found + more_machines(prepared, chosen)


def more_machines(prepared: Prepared, chosen: Forecast) -> list[dict[str, Any]]:
    """The run on several machines like this one, with plain 1 Gbit/s Ethernet; more than two as long as that is
    faster."""
    config, examples = prepared.config, prepared.train.examples
    plan = Plan(config, len(examples))
    loads = [load_of([examples[i] for i in group], share=True) for group in plan.groups(0)]
    gradients = 4 * trained_parameters(prepared.base.config, lora_config(config, prepared.base.config.n_layers))
    found: list[dict[str, Any]] = []
    training, evaluating = plan.epochs * chosen.epoch, plan.epochs * chosen.evaluation
    for machines in MACHINES:
        faster = speedup(machines, loads=loads, step_seconds=chosen.step, gradient_bytes=gradients)
        seconds = chosen.seconds - training * (1 - 1 / faster) - evaluating * (1 - 1 / machines)
        if found and seconds > 0.95 * found[-1]["seconds"]:
            break
        found.append({"what": f"{machines} machines like this one on 1 Gbit/s Ethernet", "seconds": seconds})
    return found
