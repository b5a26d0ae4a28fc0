"""What the checks look at: a run's settings and as much of model and data as can be opened."""

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
    """A planned run. None is what could not be opened (a check has said why).

    Attributes:
        config: in force as far as it is known; `auto` is settled where there is a base model.
        identity: what a run in the output directory is compared with, None where base model or data are missing.
        day: the date in the prompts, where the chat template writes one.
        ours: whether this process holds the output directory itself.
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
        """Tokens of the largest micro-batch: of the data where it is there, else as many as are allowed."""
        size = self.config.batch_size
        lengths = sorted(len(example.tokens) for example in self.train.examples) if self.train else []
        return sum(lengths[-size:]) if lengths else size * self.config.max_length


def subject_of(prepared: Prepared) -> Subject:
    """The subject of a run that is about to start."""
    p = prepared
    return Subject(p.config, p.base, p.tokenizer, p.role, p.train, p.val, p.identity, ours=True)
