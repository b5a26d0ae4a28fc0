"""What is optimized, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

DEFAULTS: Mapping[str, Any] = {"shots": 3, "trials": 10, "threshold": 0.8}  # of what not every method uses


@dataclass(frozen=True)
class OptimizeConfig:
    """What is optimized, and how.

    Attributes:
        model: spec of the model under the program.
        method: labeled (DSPy's LabeledFewShot), bootstrap (BootstrapFewShot), mipro (MIPROv2), gepa (GEPA).
        shots, trials, threshold: None: DEFAULTS, by `filled`.
        shots: examples that the program shows at most; of them as many as can be bootstrapped, with bootstrap, mipro.
        trials: prompts that MIPROv2 and GEPA try.
        budget: answers that GEPA may score; None: as many as `trials` prompts may need.
        reflection_model: spec of the model that writes instructions (mipro, gepa); None: `model`, unconstrained.
        dev: share of the training set that prompts are scored on, not shown.
        threshold: score from which on a model's own answer may become an example.
        limit: only the first so many training examples.
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
        """With the default values of what was not given."""
        return replace(self, **{name: value for name, value in DEFAULTS.items() if getattr(self, name) is None})
