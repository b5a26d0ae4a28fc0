"""The subject of the checks: a run's settings, and model and data as far as they can be opened."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

from rescoldo.base.model import BaseModel
from rescoldo.data.dataset import Dataset
from rescoldo.engine.types import LoraConfig
from rescoldo.role import Role
from rescoldo.training.config import RunConfig
from rescoldo.training.parts import lora_config
from rescoldo.training.prepare import Prepared


@dataclass(frozen=True)
class Subject:
    """A planned run. Fields that could not be opened are None (a check has reported why).

    Attributes:
        config: the settings in force, as far as they are known; `auto` is resolved if there is a base model.
        identity: compared with a run in the output directory; None if base model or data are missing.
        day: the date in the prompts, if the chat template writes one.
        ours: whether this process itself holds the lock of the output directory.
    """

    config: RunConfig
    base: BaseModel | None = None
    tokenizer: Any = None
    role: Role | None = None
    train: Dataset | None = None
    val: Dataset | None = None
    identity: dict[str, Any] | None = None
    day: date | None = None
    ours: bool = False

    def lora(self, base: BaseModel) -> LoraConfig:
        """The adapter's settings on this base model."""
        return lora_config(self.config, base.config.n_layers)

    @property
    def rows(self) -> int:
        """Tokens of the largest micro-batch: from the data if it is known, else the maximum."""
        size = self.config.batch_size
        lengths = sorted(len(example.tokens) for example in self.train.examples) if self.train else []
        return sum(lengths[-size:]) if lengths else size * self.config.max_length


def subject_of(prepared: Prepared) -> Subject:
    """The subject of a run that is about to start."""
    p = prepared
    return Subject(p.config, p.base, p.tokenizer, p.role, p.train, p.val, p.identity, ours=True)
