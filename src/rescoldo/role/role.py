"""A role: what is taught. Its prompt, how an answer is written as text, how a text is scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Score:
    """One prediction's score.

    Attributes:
        total: mean of the components, 0..1.
        components: name → 0..1.
        notes: in words, each thing that cost points ("id_format: FR01 in functional_requirements[0]").
    """

    total: float
    components: dict[str, float]
    notes: list[str] = field(default_factory=list)


class Role(ABC):
    """Subclassed once per role; `rescoldo.role.get_role(name)` finds it."""

    name: str

    @abstractmethod
    def messages(self, record: dict[str, Any]) -> list[dict[str, str]]:
        """The chat messages (role, content) that ask for this record's answer."""

    @abstractmethod
    def target(self, record: dict[str, Any]) -> str:
        """The text the model is to learn to answer with."""

    @abstractmethod
    def score(self, prediction: Any) -> Score:
        """Score a prediction: the model's text, or a mapping of its fields. Never raises, whatever the text."""

    @abstractmethod
    def key(self, record: dict[str, Any]) -> str:
        """The input as a person would name it (for BA: the concept)."""
