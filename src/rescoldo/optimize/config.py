"""The configuration of an optimization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

DEFAULTS: Mapping[str, Any] = {"shots": 3, "trials": 10, "threshold": 0.8}  # of settings that not all methods use


@dataclass(frozen=True)
class OptimizeConfig:
    """The configuration of an optimization.

    Attributes:
        model: spec of the model that runs the program.
        method: labeled (DSPy's LabeledFewShot), bootstrap (BootstrapFewShot), mipro (MIPROv2), gepa (GEPA).
        shots, trials, threshold: None: the value in DEFAULTS, set by `filled`.
        shots: maximum number of examples in the prompt; with bootstrap and mipro also of bootstrapped ones.
        trials: number of prompts that MIPROv2 and GEPA try.
        budget: number of answers that GEPA may score; None: as many as `trials` prompts may need.
        reflection_model: spec of the model that writes instructions (mipro, gepa); None: `model`, unconstrained.
        dev: fraction of the training set used for scoring prompts, and not for showing.
        threshold: minimum score of a model's own answer to be shown as an example.
        limit: use only the first `limit` training examples.
    """

    model: str
    train: str
    method: str = "mipro"
    shots: int | None = None
    trials: int | None = None
    budget: int | None = None
    reflection_model: str | None = None
    dev: float = 0.2
    threshold: float | None = None
    limit: int | None = None
    temperature: float = 0.7
    max_new_tokens: int = 2048
    seed: int = 42
    role: str = "ba"
    quantization: str = "auto"

    def filled(self) -> OptimizeConfig:
        """A copy with default values for settings that were not given."""
        return replace(self, **{name: value for name, value in DEFAULTS.items() if getattr(self, name) is None})
