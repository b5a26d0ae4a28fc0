"""Grammars applied to a model's tokens: which tokens may come next in a row that is being decoded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from rescoldo.constrain.grammar import Grammar, GrammarError

if TYPE_CHECKING:
    import torch

_KEPT = 64  # maximum number of compiled grammars
_LIMITS: dict[
    str, Any
] = {  # limits for one step and for one grammar: they stop schemas made to be slow, not ordinary ones
    "max_lexer_states": 100_000,
    "step_lexer_fuel": 2_000_000,
    "verbose_errors": False,
}


class Compiler:
    """Makes the constraints of rows for one tokenizer. Thread-safe.

    Args:
        tokenizer: a transformers fast tokenizer.
        vocab_size: width of the model's logits, at least the tokenizer's vocabulary.
        stop_ids: tokens that end an answer; allowed only where the grammar may end.

    Raises:
        GrammarError: the kind of tokenizer is not supported.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, stop_ids: Collection[int]) -> None:
        from llguidance.hf import from_tokenizer

        try:
            self._tokenizer = from_tokenizer(tokenizer, n_vocab=vocab_size, eos_token=sorted(stop_ids))
        except Exception as error:  # llguidance raises errors of its Rust part
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
        """Drop a compiled grammar: copies of a matcher share its lexer, so one that has reached a limit cannot be
        reused."""
        with self._lock:
            self._compiled.pop(grammar.text, None)


class Constraint:
    """The state of one row in its grammar. See engine.types.Constraint."""

    def __init__(self, matcher: Any, vocab_size: int, on_failure: Callable[[], None]) -> None:
        self._matcher, self._on_failure = matcher, on_failure
        self._bits = np.zeros((vocab_size + 31) // 32, np.int32)

    def mask_(self, logits: torch.Tensor) -> str:
        """Set the logits (V,) of all tokens that are not allowed to -inf. Returns why no token is allowed, normally
        ""."""
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
        ):  # in this thread: PyTorch would wake all of its threads for 50 microseconds of work
            numbers = logits.numpy()
            np.putmask(numbers[: len(allowed)], allowed == 0, -np.inf)
            numbers[len(allowed) :] = -np.inf
        else:
            logits[: len(allowed)].masked_fill_(torch.from_numpy(allowed == 0), -torch.inf)
            logits[len(allowed) :] = -torch.inf
        return ""

    def allows(self, token: int) -> bool:
        """Whether the token may come next; much cheaper than a mask. It is False for a stop token even where the
        grammar has ended and only a stop token may follow; the mask handles this case.
        """
        return bool(self._matcher.validate_tokens([token]) == 1)

    def accept(self, token: int) -> None:
        """Advance by a token that was allowed and is not a stop token."""
        self._matcher.consume_token(token)
