"""Fine-tuning: `train(RunConfig(...))`. torch is imported when `train` is first used, not before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rescoldo.train.config import RunConfig
    from rescoldo.train.start import RunResult, train

__all__ = ["RunConfig", "RunResult", "train"]


def __getattr__(name: str) -> Any:
    if name == "RunConfig":
        from rescoldo.train.config import RunConfig

        return RunConfig
    if name in ("RunResult", "train"):
        from rescoldo.train import start

        return getattr(start, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
