"""Single answers with streamed text, as `rescoldo chat` uses the engine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rescoldo.data.tokenize import prompt_ids, stop_ids
from rescoldo.engine.generate import Decoder
from rescoldo.engine.types import Sampling
from rescoldo.errors import RescoldoError
from rescoldo.models.loaded import Loaded
from rescoldo.serve.text import TextStream

if TYPE_CHECKING:
    from rescoldo.constrain import Grammar


@dataclass(frozen=True)
class Reply:
    """An answer: its text, whether the model ended it itself, its tokens, the seconds from question to end."""

    text: str
    ended: bool
    tokens: int
    seconds: float


def reply(
    loaded: Loaded,
    messages: Sequence[dict[str, str]],
    sampling: Sampling,
    *,
    adapter: bool = True,
    grammar: Grammar | None = None,
    on_piece: Callable[[str], None] = lambda _: None,
) -> Reply:
    """Answer a conversation.

    Args:
        adapter: use the run's adapter; False: the base model alone.
        grammar: constrains the answer.
        on_piece: called with each piece of the text. KeyboardInterrupt in it, or between two tokens, ends the answer.

    Raises:
        RescoldoError: the conversation is longer than the model's context, or its template refuses it.
    """
    prompt = prompt_ids(list(messages), loaded.tokenizer)
    room = loaded.model.config.max_positions - len(prompt)
    if room < 1:
        raise RescoldoError(
            f"the conversation has {len(prompt)} tokens: expected at most {loaded.model.config.max_positions}",
            fix="/reset begins a new one",
        )
    limited = Sampling(sampling.temperature, sampling.top_p, min(sampling.max_new_tokens, room), sampling.seed)
    stream, text, count, ended = TextStream(loaded.tokenizer), "", 0, False
    started = time.monotonic()
    constraint = loaded.constraint(grammar) if grammar else None
    alone = contextlib.nullcontext() if adapter or loaded.run is None else loaded.model.without_adapter()
    with alone, contextlib.suppress(KeyboardInterrupt):
        decoder = Decoder(loaded.model, stop_ids(loaded.tokenizer))
        decoder.admit(0, prompt, limited, constraint)
        while len(decoder):
            (step,) = decoder.step()
            if step.error:
                raise RescoldoError(f"the answer cannot continue: {step.error}", fix="ask without --constrained")
            ended = step.token is None
            piece = "" if step.token is None else stream.push(step.token)
            piece += stream.finish() if step.last else ""
            count += step.token is not None
            text += piece
            if piece:
                on_piece(piece)
    return Reply(text, ended, count, time.monotonic() - started)
