"""The interfaces Predictor (from records to predictions) and ChatModel (from conversations to answers)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rescoldo.engine.types import Sampling
from rescoldo.role import Role

if TYPE_CHECKING:
    from rescoldo.constrain import Grammar

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Prediction:
    """One answer.

    Attributes:
        text: as the model wrote it.
        ended: the model ended it itself, and it was not cut off.
        tokens: number of generated tokens, without the end token.
        seconds: from the start of its batch to its end.
        error: why there is no answer (a server that failed); "" if there is one.
        fields: the answer's fields if a program returned it in this form; None: `text` is scored.
    """

    text: str
    ended: bool
    tokens: int
    seconds: float
    error: str = ""
    fields: dict[str, Any] | None = None


class Predictor(Protocol):
    """A model for evaluation."""

    name: str

    def fingerprint(self) -> str:
        """Changes if the model's answers would change; a part of the key under which answers are cached."""

    def prompt(self, record: dict[str, Any]) -> str:
        """The text of the prompt for a record; also a part of that key."""

    def describe(self) -> dict[str, Any]:
        """A description of the model for documents: "spec" and what else is known."""

    def predict(
        self, records: Sequence[dict[str, Any]], sampling: Sampling, on_progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, Prediction]]:
        """Answer records; yields (index, prediction) as each ends. `on_progress` gets the number of tokens so far."""


class ChatModel(Protocol):
    """A language model that continues conversations: our engine, or a server.

    Attributes:
        batches: whether many conversations in one call cost little more than one.
    """

    batches: bool

    def fingerprint(self) -> str:
        """Changes if the model's answers would change."""

    def render(self, messages: Messages) -> str:
        """The conversation as one text, for the key under which its answer is cached."""

    def describe(self) -> dict[str, Any]:
        """A description of the model for documents: "spec" and what else is known."""

    def constrained(self, grammar: Grammar) -> ChatModel:
        """The same model, constrained to a grammar.

        Raises:
            RescoldoError: it does not support grammars of this kind.
        """

    def complete(
        self,
        conversations: Sequence[Messages],
        sampling: Sampling,
        on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, Prediction]]:
        """Answer conversations; yields (index, prediction) as each ends. `on_progress` gets the number of tokens so
        far.

        Raises:
            RescoldoError: the model can no longer answer. The failure of a single conversation is its prediction's
                `error`.
        """


@runtime_checkable
class MeasuresLoss(Protocol):
    """A chat model that can compute the probability of a given answer: our engine, but not a server."""

    def perplexity(self, role: Role, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The perplexity of the reference answers: see models.perplexity."""


class ChatPredictor:
    """A chat model with a role's prompts. See Predictor."""

    def __init__(self, chat: ChatModel, role: Role, name: str) -> None:
        self.chat, self.role, self.name = chat, role, name

    def fingerprint(self) -> str:
        """The chat model's fingerprint."""
        return self.chat.fingerprint()

    def prompt(self, record: dict[str, Any]) -> str:
        """The conversation as the chat model renders it."""
        return self.chat.render(self.role.messages(record))

    def describe(self) -> dict[str, Any]:
        """The chat model's description."""
        return self.chat.describe()

    def predict(
        self, records: Sequence[dict[str, Any]], sampling: Sampling, on_progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, Prediction]]:
        """The chat model's answers."""
        yield from self.chat.complete([self.role.messages(record) for record in records], sampling, on_progress)
