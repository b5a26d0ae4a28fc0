"""Our engine as a predictor."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rescoldo.data.tokenize import prompt_ids, prompt_text, stop_ids
from rescoldo.engine.types import Constraint, Example, Sampling
from rescoldo.models.loaded import Loaded
from rescoldo.models.predictor import ChatPredictor, Messages, Prediction
from rescoldo.role import Role

if TYPE_CHECKING:
    from rescoldo.constrain import Grammar
    from rescoldo.engine.model import LoraModel


def predict_with_engine(
    model: LoraModel,
    tokenizer: Any,
    role: Role,
    records: Sequence[dict[str, Any]],
    sampling: Sampling,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Prediction]]:
    """Answer all records in one batch; yields (index, prediction) as each ends.

    Args:
        on_progress: called with the number of tokens generated so far, in all rows together.
    """
    conversations = [role.messages(record) for record in records]
    yield from complete_with_engine(model, tokenizer, conversations, sampling, on_progress)


def complete_with_engine(
    model: LoraModel,
    tokenizer: Any,
    conversations: Sequence[Messages],
    sampling: Sampling,
    on_progress: Callable[[int], None] | None = None,
    constrain: Callable[[], Constraint] | None = None,
) -> Iterator[tuple[int, Prediction]]:
    """Answer all conversations in one batch; yields (index, prediction) as each ends.

    Args:
        constrain: makes the constraint of an answer.
    """
    from rescoldo.engine.generate import generate

    context = model.config.max_positions
    prompts: list[list[int]] = []
    asked: list[int] = []  # index in `prompts` → index in `conversations`
    for index, messages in enumerate(conversations):
        prompt = prompt_ids(messages, tokenizer)
        if len(prompt) >= context:
            error = f"the prompt has {len(prompt)} tokens, the model's context {context}"
            yield index, Prediction("", False, 0, 0.0, error)
            continue
        prompts.append(prompt)
        asked.append(index)
    for row in generate(model, prompts, sampling, stop_ids(tokenizer), on_progress, constrain) if prompts else ():
        text = tokenizer.decode(row.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        yield asked[row.index], Prediction(text, row.ended, len(row.tokens), row.seconds, row.error)


class EngineChat:
    """A model of our engine, with the run's adapter or (adapter=False) the base model alone. See ChatModel.

    Args:
        grammar: constrains its answers.
    """

    batches = True

    def __init__(self, loaded: Loaded, *, adapter: bool = True, grammar: Grammar | None = None) -> None:
        self.loaded, self.grammar = loaded, grammar
        self.adapter = adapter and loaded.run is not None

    def constrained(self, grammar: Grammar) -> EngineChat:
        """The same model, constrained to a grammar."""
        return EngineChat(self.loaded, adapter=self.adapter, grammar=grammar)

    def fingerprint(self) -> str:
        """Base weights, precision, adapter and grammar."""
        adapter = self.loaded.adapter_sha256 if self.adapter else "no adapter"
        held = f" constrained {self.grammar.digest}" if self.grammar else ""
        return f"engine {self.loaded.base.fingerprint()} {self.loaded.precision} {adapter}{held}"

    def render(self, messages: Messages) -> str:
        """The conversation as the model's chat template renders it."""
        text = prompt_text(messages, self.loaded.tokenizer)
        return text if text is not None else json.dumps(messages)

    def describe(self) -> dict[str, Any]:
        """A description of the model for documents."""
        return {
            "spec": self.loaded.spec,
            "adapter": self.adapter,
            "base_model": self.loaded.base.spec,
            "quantization": self.loaded.precision,
            **(self.grammar.describe() if self.grammar else {}),
        }

    def perplexity(self, role: Role, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The perplexity of the reference answers: see models.perplexity."""
        from rescoldo.models.perplexity import perplexity

        with self._as_asked():
            return perplexity(self.loaded.model, self.loaded.tokenizer, role, records)

    def losses(self, examples: Sequence[Example]) -> list[tuple[float, float]]:
        """The losses of tokenized examples: see engine.model.evaluate_loss."""
        from rescoldo.engine.model import evaluate_loss

        with self._as_asked():
            return evaluate_loss(self.loaded.model, examples)

    def count_tokens(self, text: str) -> int:
        """The number of tokens of a text; only needs the tokenizer."""
        return len(self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"])

    def answer_perplexity(self, role: Role, answers: Sequence[tuple[dict[str, Any], str]]) -> list[float | None]:
        """The perplexity of texts as answers to records: see models.perplexity."""
        from rescoldo.models.perplexity import answer_perplexity

        with self._as_asked():
            return answer_perplexity(self.loaded.model, self.loaded.tokenizer, role, answers)

    def _as_asked(self) -> contextlib.AbstractContextManager[None]:
        """Switches the model's adapter on or off, as this instance requires."""
        if self.adapter or not self.loaded.run:
            return contextlib.nullcontext()
        return self.loaded.model.without_adapter()

    def complete(
        self,
        conversations: Sequence[Messages],
        sampling: Sampling,
        on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, Prediction]]:
        """All conversations in one batch; yields (index, prediction) as each ends."""
        model, grammar = self.loaded.model, self.grammar
        constrain = (lambda: self.loaded.constraint(grammar)) if grammar else None
        with self._as_asked():
            yield from complete_with_engine(
                model, self.loaded.tokenizer, conversations, sampling, on_progress, constrain
            )


class EnginePredictor(ChatPredictor):
    """A role's answers by a loaded model: "finetuned" with its adapter, "base" without."""

    def __init__(
        self, loaded: Loaded, role: Role, *, adapter: bool = True, name: str = "", grammar: Grammar | None = None
    ) -> None:
        chat = EngineChat(loaded, adapter=adapter, grammar=grammar)
        super().__init__(chat, role, name or ("finetuned" if chat.adapter else "base"))
