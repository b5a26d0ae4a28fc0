"""How surprised a model is by the records' own answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rescoldo.data.tokenize import tokenize_records
from rescoldo.role import Role

if TYPE_CHECKING:
    from rescoldo.engine.model import LoraModel


def perplexity(model: LoraModel, tokenizer: Any, role: Role, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The perplexity of the answers, given their prompts: exp of the mean loss of a token, its end included.

    Returns:
        perplexity, loss (nats a token), target_tokens; and left_out, the records that do not fit into the context.
        None in the first two if no record fits.
    """
    from rescoldo.engine.model import evaluate_loss

    tokenized = tokenize_records(records, role, tokenizer, model.config.max_positions)
    losses = evaluate_loss(model, tokenized.examples)
    tokens = sum(count for _, count in losses)
    loss = sum(nats for nats, _ in losses) / tokens if tokens else None
    return {
        "perplexity": math.exp(min(loss, 700.0)) if loss is not None else None,
        "loss": loss,
        "target_tokens": tokens,
        "left_out": len(tokenized.overruns),
    }
