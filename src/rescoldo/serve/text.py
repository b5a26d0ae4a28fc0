"""Streamed tokens as text: only whole characters, and nothing after a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_LONGEST = 8  # maximum tokens of one character; after that many the text is emitted as it is
_BROKEN = "�"


class TextStream:
    """The text of one answer, piece by piece. The pieces together are tokenizer.decode of all tokens, cut off before
    the first of the `stops`.

    Attributes:
        stopped: a stop string was found; later tokens are not part of the answer.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._tokens: list[int] = []
        self._begin = self._read = 0  # tokens from `begin` are decoded again; those before `read` were emitted
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; returns the text that is now certain, possibly ""."""
        self._tokens.append(token)
        return self._give(self._new(final=len(self._tokens) - self._read > _LONGEST))

    def finish(self) -> str:
        """The remaining text after the last token."""
        text = self._give(self._new(final=True))
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _new(self, *, final: bool) -> str:
        """The text that the newest tokens add. They are decoded with the tokens before them, as some tokenizers join
        tokens with blanks."""
        before = self._decode(self._tokens[self._begin : self._read])
        after = self._decode(self._tokens[self._begin :])
        if after.endswith(_BROKEN) and not final:
            return ""  # the character is not complete yet
        self._begin, self._read = self._read, len(self._tokens)
        return after[len(before) :]

    def _give(self, new: str) -> str:
        """Hold back what may be the beginning of a stop string."""
        if self.stopped:
            return ""
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
