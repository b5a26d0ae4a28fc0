"""Perplexity of the reference answers under a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rescoldo.data.chat_template import thinks
from rescoldo.data.teaching import Teaching
from rescoldo.data.tokenize import end_of_turn, prompt_ids, tokenize_records
from rescoldo.engine.types import Example
from rescoldo.role import Role

if TYPE_CHECKING:
    from rescoldo.engine.model import LoraModel


def perplexity(model: LoraModel, tokenizer: Any, role: Role, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The perplexity of the answers, given their prompts: exp of the mean loss per token, including the end token.

    Returns:
        perplexity, loss (nats per token), target_tokens; and left_out, the number of records that do not fit into the
        context. The first two are None if no record fits.
    """
    from rescoldo.engine.model import evaluate_loss

    learned = Teaching("last", "keep" if thinks(tokenizer) else "drop")
    tokenized = tokenize_records(records, role, tokenizer, model.config.max_positions, learned)
    losses = evaluate_loss(model, tokenized.examples)
    tokens = sum(count for _, count in losses)
    loss = sum(nats for nats, _ in losses) / tokens if tokens else None
    return {
        "perplexity": math.exp(min(loss, 700.0)) if loss is not None else None,
        "loss": loss,
        "target_tokens": tokens,
        "left_out": len(tokenized.overruns),
    }


def answer_perplexity(
    model: LoraModel, tokenizer: Any, role: Role, answers: Sequence[tuple[dict[str, Any], str]]
) -> list[float | None]:
    """The perplexity of each text as the answer to its record, given the prompt, as in `perplexity`.

    Args:
        answers: (record, text).

    Returns:
        One value for each; None if prompt and text do not fit into the model's context.
    """
    from rescoldo.engine.model import evaluate_loss

    end = end_of_turn(tokenizer)
    fitting: dict[int, Example] = {}
    for place, (record, text) in enumerate(answers):
        prompt = prompt_ids(role.messages(record), tokenizer)
        tokens = (*prompt, *tokenizer(text, add_special_tokens=False)["input_ids"], end)
        if len(tokens) <= model.config.max_positions:
            fitting[place] = Example(tokens, len(prompt))
    losses = dict(zip(fitting, evaluate_loss(model, list(fitting.values())), strict=True))
    return [
        math.exp(min(losses[place][0] / losses[place][1], 700.0)) if place in losses else None
        for place in range(len(answers))
    ]
