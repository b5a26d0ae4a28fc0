"""NaN and infinity in a base model: looked for when a loss is not finite, before an example is blamed."""

from __future__ import annotations

from rescoldo.base.model import BaseModel
from rescoldo.errors import EXIT_FAILURE, RescoldoError


def damaged_tensor(base: BaseModel) -> RescoldoError | None:
    """The error about the base model's first tensor with NaN or infinity; None if all numbers are finite.

    Reads all weights.
    """
    for name in base.tensors.names():
        tensor = base.tensors.get(name)
        count = tensor.numel() - int(tensor.isfinite().sum())
        if count:
            return RescoldoError(
                f"the base model's tensor {name} holds {count} of {tensor.numel()} numbers that are NaN or infinite",
                where=f"{base.spec} ({base.path})",
                fix="fetch the model again, or take another one: training cannot repair it",
                exit_code=EXIT_FAILURE,
            )
    return None
