"""What answers concepts: anything that turns records into predictions, what a prediction is, and what a chat model."""

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
        ended: the model stopped by itself, it was not cut off.
        tokens: how many it wrote, the end not counted.
        seconds: from the start of its batch to its end.
        error: why there is no answer (a server that failed); "" where there is one.
        fields: the answer as fields where a program returns them so; None: `text` is scored.
    """

    text: str
    ended: bool
    tokens: int
    seconds: float
    error: str = ""
    fields: dict[str, Any] | None = None


class Predictor(Protocol):
    """A model as the evaluation sees it."""

    name: str

    def fingerprint(self) -> str:
        """Changes when the model would answer differently: part of the key under which answers are kept."""

    def prompt(self, record: dict[str, Any]) -> str:
        """What the model is given for a record, as text: also part of that key."""

    def describe(self) -> dict[str, Any]:
        """What a document says about the model itself: "spec" and what else is known."""

    def predict(
        self, records: Sequence[dict[str, Any]], sampling: Sampling, on_progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, Prediction]]:
        """Answer records; yields (index, prediction) as each ends. `on_progress` is told the tokens written so far."""


class ChatModel(Protocol):
    """A language model that continues conversations: our engine, or a server.

    Attributes:
        batches: many conversations in one call cost little more than one.
    """

    batches: bool

    def fingerprint(self) -> str:
        """Changes when the model would answer differently."""

    def render(self, messages: Messages) -> str:
        """The conversation as one text: what stands for it in the key under which its answer is kept."""

    def describe(self) -> dict[str, Any]:
        """What a document says about the model itself: "spec" and what else is known."""

    def constrained(self, grammar: Grammar) -> ChatModel:
        """The same model with its answers held to a grammar.

        Raises:
            RescoldoError: it cannot take one of that kind.
        """

    def complete(
        self,
        conversations: Sequence[Messages],
        sampling: Sampling,
        on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, Prediction]]:
        """Answer conversations; yields (index, prediction) as each ends. `on_progress` is told the tokens so far.

        Raises:
            RescoldoError: no more answers can be had. What one conversation failed on is its prediction's `error`.
        """


@runtime_checkable
class MeasuresLoss(Protocol):
    """A chat model that knows how probable a given answer is: our engine; a server does not."""

    def perplexity(self, role: Role, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Of the records' own answers: see models.perplexity."""


class ChatPredictor:
    """A chat model asked with a role's own messages. See Predictor."""

    def __init__(self, chat: ChatModel, role: Role, name: str) -> None:
        self.chat, self.role, self.name = chat, role, name

    def fingerprint(self) -> str:
        """The chat model's."""
        return self.chat.fingerprint()

    def prompt(self, record: dict[str, Any]) -> str:
        """The conversation as the chat model writes it."""
        return self.chat.render(self.role.messages(record))

    def describe(self) -> dict[str, Any]:
        """The chat model's."""
        return self.chat.describe()

    def predict(
        self, records: Sequence[dict[str, Any]], sampling: Sampling, on_progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, Prediction]]:
        """The chat model's answers."""
        yield from self.chat.complete([self.role.messages(record) for record in records], sampling, on_progress)
