"""Grammars on the tokens of one model: which may come next in a row that is being decoded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from rescoldo.constrain.grammar import Grammar, GrammarError

if TYPE_CHECKING:
    import torch

_KEPT = 64  # compiled grammars
_LIMITS: dict[
    str, Any
] = {  # of one step and one grammar: they end a row whose schema was made to be slow, not an ordinary one
    "max_lexer_states": 100_000,
    "step_lexer_fuel": 2_000_000,
    "verbose_errors": False,
}


class Compiler:
    """Makes the constraints of rows for one tokenizer. It may be used by several threads.

    Args:
        tokenizer: a transformers fast tokenizer.
        vocab_size: width of the model's logits, at least the tokenizer's.
        stop_ids: tokens that end an answer; allowed where the grammar may end, and nowhere else.

    Raises:
        GrammarError: the tokenizer's kind is not supported.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, stop_ids: Collection[int]) -> None:
        from llguidance.hf import from_tokenizer

        try:
            self._tokenizer = from_tokenizer(tokenizer, n_vocab=vocab_size, eos_token=sorted(stop_ids))
        except Exception as error:  # llguidance raises what its Rust part says
            raise GrammarError(f"this model's tokenizer cannot be constrained: {str(error)[:200]}") from None
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, grammar: Grammar) -> Constraint:
        """The constraint of a new row.

        Raises:
            GrammarError: the grammar is too large.
        """
        from llguidance import LLMatcher, LLParserLimits

        with self._lock:
            matcher = self._compiled.get(grammar.text)
            if matcher is None:
                matcher = LLMatcher(self._tokenizer, grammar.text, log_level=0, limits=LLParserLimits(**_LIMITS))
                if matcher.is_error():
                    raise GrammarError((matcher.get_error().splitlines() or ["it cannot be used"])[0][:300])
                self._compiled[grammar.text] = matcher
                while len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(grammar.text)
            return Constraint(matcher.deep_copy(), self._tokenizer.vocab_size, lambda: self._forget(grammar))

    def _forget(self, grammar: Grammar) -> None:
        """Copies of a matcher share its lexer: one that has reached a limit is of no use to the next row."""
        with self._lock:
            self._compiled.pop(grammar.text, None)


class Constraint:
    """Where one row stands in its grammar. See engine.types.Constraint."""

    def __init__(self, matcher: Any, vocab_size: int, on_failure: Callable[[], None]) -> None:
        self._matcher, self._on_failure = matcher, on_failure
        self._bits = np.zeros((vocab_size + 31) // 32, np.int32)

    def mask_(self, logits: torch.Tensor) -> str:
        """Set the logits (V,) of all tokens that may not come next to -inf. Returns why none may, "" as a rule."""
        import torch

        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            self._on_failure()
            return "the grammar is too complex for this answer"
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: len(logits)]
        if not allowed.any():
            return "no token of this model can continue in the grammar"
        if (
            logits.dtype == torch.float32
        ):  # in this thread: PyTorch would wake all of its own for 50 microseconds of work
            numbers = logits.numpy()
            np.putmask(numbers[: len(allowed)], allowed == 0, -np.inf)
            numbers[len(allowed) :] = -np.inf
        else:
            logits[: len(allowed)].masked_fill_(torch.from_numpy(allowed == 0), -torch.inf)
            logits[len(allowed) :] = -torch.inf
        return ""

    def allows(self, token: int) -> bool:
        """Whether the token may come next, at a fraction of a mask's price. False for a stop token, too, where the
        grammar has come to its end and nothing else may follow: the mask knows.
        """
        return bool(self._matcher.validate_tokens([token]) == 1)

    def accept(self, token: int) -> None:
        """Go on behind a token that was allowed and is no stop token."""
        self._matcher.consume_token(token)
