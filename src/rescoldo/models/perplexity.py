"""How surprised a model is by the records' own answers."""

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
    """The perplexity of the answers, given their prompts: exp of the mean loss of a token, its end included.

    Returns:
        perplexity, loss (nats a token), target_tokens; and left_out, the records that do not fit into the context.
        None in the first two if no record fits.
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
    """The perplexity of each text as the answer to its record, given the prompt, as `perplexity` defines it.

    Args:
        answers: (record, text).

    Returns:
        One for each; None where prompt and text do not fit into the model's context.
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
