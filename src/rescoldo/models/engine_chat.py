"""Our engine as a predictor."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rescoldo.data.tokenize import prompt_ids, prompt_text, stop_ids
from rescoldo.engine.types import Constraint, Example, Sampling
from rescoldo.models.loaded import Loaded
from rescoldo.models.predictor import ChatPredictor, Messages, Prediction
from rescoldo.role import Role
from rescoldo.system.memory import memory_available

if TYPE_CHECKING:
    from rescoldo.constrain import Grammar
    from rescoldo.engine.generate import Batch
    from rescoldo.engine.model import LoraModel

CACHE_SHARE = 0.3  # of the memory that is free, for the caches of several models' answers


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
    prepared = _prepared(conversations, model, tokenizer, constrain=constrain)
    for _, index, prediction in _answers(model, tokenizer, [prepared], sampling, on_progress):
        yield index, prediction


@dataclass(frozen=True)
class Prepared:
    """Tokenized conversations that are answered in one way.

    Attributes:
        batch: the prompts that fit into the context.
        indices: of each of them, the index of its conversation.
        too_long: the other conversations' numbers of tokens, by index.
    """

    batch: Batch
    indices: list[int]
    too_long: dict[int, int]


def _prepared(
    conversations: Sequence[Messages],
    model: LoraModel,
    tokenizer: Any,
    *,
    adapter: bool = True,
    constrain: Callable[[], Constraint] | None = None,
) -> Prepared:
    """Tokenize conversations; `adapter` and `constrain`: see engine.generate.Batch."""
    from rescoldo.engine.generate import Batch

    prompts = [prompt_ids(messages, tokenizer) for messages in conversations]
    too_long = {index: len(prompt) for index, prompt in enumerate(prompts) if len(prompt) >= model.config.max_positions}
    fitting = [index for index in range(len(prompts)) if index not in too_long]
    return Prepared(Batch([prompts[index] for index in fitting], adapter, constrain), fitting, too_long)


def _answers(
    model: LoraModel,
    tokenizer: Any,
    every: Sequence[Prepared],
    sampling: Sampling,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, int, Prediction]]:
    """The answers to several at once; yields (place in `every`, index of the conversation, prediction) as each ends."""
    from rescoldo.engine.generate import generate_together

    for place, prepared in enumerate(every):
        for index, length in prepared.too_long.items():
            error = f"the prompt has {length} tokens, the model's context {model.config.max_positions}"
            yield place, index, Prediction("", False, 0, 0.0, error)
    batches = [prepared.batch for prepared in every]
    for place, row in generate_together(model, batches, sampling, stop_ids(tokenizer), on_progress):
        text = tokenizer.decode(row.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        prediction = Prediction(text, row.ended, len(row.tokens), row.seconds, row.error)
        yield place, every[place].indices[row.index], prediction


def prepare_together(
    chats: Sequence[EngineChat], conversations: Sequence[Sequence[Messages]], sampling: Sampling
) -> list[Prepared] | None:
    """Each chat's conversations, tokenized for complete_together; None if they must be answered chat by chat: the chats
    do not share their weights in memory, or the caches of all rows do not fit into the free memory."""
    from rescoldo.engine.generate import cache_bytes

    loaded = chats[0].loaded
    if any(chat.loaded is not loaded for chat in chats):
        return None
    lora = loaded.model.lora
    if lora is not None and lora.magnitude and len({chat.adapter for chat in chats}) > 1:
        return None  # magnitudes change the frozen weights' part of all rows
    every = [
        _prepared(
            asked, loaded.model, loaded.tokenizer,
            adapter=chat.adapter or loaded.run is None, constrain=chat.constrain,
        )
        for chat, asked in zip(chats, conversations, strict=True)
    ]  # fmt: skip
    new_tokens = min(sampling.max_new_tokens, loaded.model.config.max_positions)
    need = sum(cache_bytes(loaded.model, prepared.batch, new_tokens) for prepared in every)
    return every if need <= CACHE_SHARE * memory_available() else None


def complete_together(
    chats: Sequence[EngineChat],
    every: Sequence[Prepared],
    sampling: Sampling,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, int, Prediction]]:
    """What each chat answers to the conversations that prepare_together has tokenized, all of them in one batch, as
    `complete` does for one; yields (place of the chat, index, prediction) as each ends."""
    loaded = chats[0].loaded
    yield from _answers(loaded.model, loaded.tokenizer, every, sampling, on_progress)


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

    @property
    def constrain(self) -> Callable[[], Constraint] | None:
        """Makes the constraint of an answer; None: answers are free."""
        grammar = self.grammar
        return None if grammar is None else (lambda: self.loaded.constraint(grammar))

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
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        with self._as_asked():
            yield from complete_with_engine(model, tokenizer, conversations, sampling, on_progress, self.constrain)


class EnginePredictor(ChatPredictor):
    """A role's answers by a loaded model: "finetuned" with its adapter, "base" without."""

    def __init__(
        self, loaded: Loaded, role: Role, *, adapter: bool = True, name: str = "", grammar: Grammar | None = None
    ) -> None:
        chat = EngineChat(loaded, adapter=adapter, grammar=grammar)
        super().__init__(chat, role, name or ("finetuned" if chat.adapter else "base"))
