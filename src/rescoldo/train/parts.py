"""What the loop asks of the rest of the program: base model, data and engine, behind a few functions.

The loop knows these shapes only. Tests put a small deterministic engine in their place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from rescoldo.base.model import BaseModel
from rescoldo.engine.types import Example, LoraConfig
from rescoldo.errors import RescoldoError
from rescoldo.files import sha256
from rescoldo.role import Role
from rescoldo.train.config import RunConfig
from rescoldo.train.optimizer import AdamW

Tensors = dict[str, torch.Tensor]


class Model(Protocol):
    """What the loop uses of engine.model.LoraModel."""

    parameters: Tensors

    def frozen_state(self) -> Tensors:
        """What a resume needs beside the base model."""

    def sync(self) -> None:
        """To be called after `parameters` were changed."""


class Step(Protocol):
    """What the loop uses of engine.step.GradientStep."""

    def micro_batch(self, indices: list[int]) -> float:
        """Add gradients of these examples of the step; return their summed loss in nats."""

    def finish(self) -> Tensors:
        """Gradients by parameter key."""

    def state(self) -> Tensors:
        """Gradients accumulated so far."""

    def load_state(self, state: Tensors) -> None:
        """Take them back."""


@dataclass(frozen=True)
class Dataset:
    """One dataset file, tokenized.

    Attributes:
        names: of each example, as an error message names it ("ba_train.jsonl:7 (Online booking…)").
        overruns: examples left out because they are longer than max_length.
        digest: SHA-256 over the tokens, in hexadecimal: what the model sees, whatever the file is called.
        file_digest: SHA-256 of the file.
        notes: habits of the model's chat template that these conversations meet, in words.
    """

    path: Path
    examples: list[Example]
    names: list[str]
    overruns: list[str]
    digest: str
    file_digest: str
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """All tokens, prompts included."""
        return sum(len(example.tokens) for example in self.examples)


@dataclass(frozen=True)
class Parts:
    """The seam between the loop and the rest."""

    open_base: Callable[[str], BaseModel]
    read_dataset: Callable[[Path, Role, Any, int, int | None], Dataset]  # path, role, tokenizer, max_length, limit
    load_model: Callable[..., Model]  # as LoraModel.load
    gradient_step: Callable[..., Step]  # as GradientStep; `mine` and `on_ready` with several machines only
    evaluate_loss: Callable[[Any, list[Example]], list[tuple[float, int]]]
    save_tokenizer: Callable[[Any, Path], object]
    check_dataset: Callable[[Path, Role], object] = lambda path, role: None  # as data.read_records
    preflight: Callable[[Any, Any, bool], None] = lambda prepared, reporter, force: None  # as doctor.preflight
    stay_awake: Callable[[], AbstractContextManager[bool]] = lambda: nullcontext(True)  # as run.awake.awake
    expected_rate: Callable[[RunConfig], float | None] = lambda config: None  # as doctor.rate
    run_date: Callable[[date], date] = lambda day: day  # the date in the prompts that all machines use
    optimizer: Callable[[Tensors, float], AdamW] = AdamW  # adapter, weight decay
    resumable_steps: bool = True  # whether a step that is half done can be saved
    machines: int = 1
    write_report: Callable[[Path, Callable[[str], None]], None] = lambda output, warn: None


def real_parts() -> Parts:
    """The engine and the data modules of this package."""
    from rescoldo.base import open_base
    from rescoldo.base.tokenizer import save_tokenizer
    from rescoldo.data import read_records
    from rescoldo.doctor.examine import preflight
    from rescoldo.doctor.rate import expected_rate
    from rescoldo.engine.model import LoraModel, evaluate_loss
    from rescoldo.engine.step import GradientStep
    from rescoldo.report.run_page import write_report
    from rescoldo.system.awake import awake

    return Parts(
        open_base=open_base,
        read_dataset=read_dataset,
        check_dataset=read_records,
        load_model=partial(LoraModel.load, keep_converted=True),
        gradient_step=GradientStep,
        evaluate_loss=evaluate_loss,
        save_tokenizer=save_tokenizer,
        preflight=preflight,
        stay_awake=awake,
        expected_rate=expected_rate,
        write_report=write_report,
    )


def digest(examples: list[Example]) -> str:
    """SHA-256 over what the model sees of these examples."""
    content = hashlib.sha256()
    for example in examples:
        content.update(f"{example.n_prompt}:{','.join(map(str, example.tokens))}\n".encode())
    return content.hexdigest()


def lora_config(config: RunConfig) -> LoraConfig:
    """The engine's LoRA settings of this run."""
    return LoraConfig(config.lora_r, config.lora_alpha, config.lora_dropout, config.lora_targets)


def read_dataset(path: Path, role: Role, tokenizer: Any, max_length: int, limit: int | None) -> Dataset:
    """Read and tokenize a dataset file.

    Raises:
        RescoldoError: faults in the file, or nothing left to use.
    """
    from rescoldo.data import read_records
    from rescoldo.data.template_check import check_template
    from rescoldo.data.tokenize import refuse_control_tokens, tokenize_records

    records = read_records(path, role)[:limit]
    refuse_control_tokens(path, records, role, tokenizer)
    notes = tuple(check_template(path, records, role, tokenizer))
    tokenized = tokenize_records(records, role, tokenizer, max_length)
    if not tokenized.examples:
        line, tokens = min(tokenized.overruns, key=lambda overrun: overrun[1])
        raise RescoldoError(
            f"every example is longer than {max_length} tokens",
            where=str(path),
            fix=longer(tokens, tokenizer.model_max_length, f"would let in the shortest (line {line})"),
        )
    names = [f"{path.name}:{records[i].line} ({_short(role.key(records[i]))})" for i in tokenized.kept]
    overruns = [f"line {line} ({tokens} tokens)" for line, tokens in tokenized.overruns]
    return Dataset(path, tokenized.examples, names, overruns, digest(tokenized.examples), sha256(path), notes)


def longer(tokens: int, context: int, effect: str) -> str:
    """What to do so that an example of so many tokens is not left out; `context` is the model's."""
    if tokens <= context:
        return f"--max-length {tokens} {effect}"
    return f"shorten the examples, or take a model with a longer context: this one's has {context} tokens, not {tokens}"


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
