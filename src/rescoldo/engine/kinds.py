"""The kinds of LoRA adapter, a row of KINDS each; code that depends on their differences uses the row's fields."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

A, B, MAGNITUDE = "lora_A", "lora_B", "lora_magnitude_vector"  # an adapter's tensors, with PEFT's names


@dataclass(frozen=True)
class AdapterKind:
    """A kind of adapter on a frozen linear W (out, in), with A (r, in) and B (out, r).

        y = g ∘ (W·x + s·B·(A·dropout(x))) + bias

    Attributes:
        title: its name for people.
        scale: s as a function of (alpha, r).
        magnitude: whether there is a trained magnitude m (out,), with g = m / ‖W + s·B·A‖ by row, the norm being a
            constant in the backward pass (arXiv 2402.09353, section 4.3); otherwise g = 1.
        peft: the switches of PEFT's LoraConfig that are on for this kind; all others are off.
    """

    title: str
    scale: Callable[[float, int], float]
    magnitude: bool
    peft: frozenset[str]


def _by_rank(alpha: float, rank: int) -> float:
    return alpha / rank


def _by_root(alpha: float, rank: int) -> float:
    return alpha / math.sqrt(rank)


KINDS: dict[str, AdapterKind] = {
    "lora": AdapterKind("LoRA", _by_rank, False, frozenset()),  # arXiv 2106.09685
    "rslora": AdapterKind("rsLoRA", _by_root, False, frozenset({"use_rslora"})),  # arXiv 2312.03732
    "dora": AdapterKind("DoRA", _by_rank, True, frozenset({"use_dora"})),  # arXiv 2402.09353
    "rsdora": AdapterKind("DoRA with rsLoRA's scale", _by_root, True, frozenset({"use_dora", "use_rslora"})),
}
PLAIN = "lora"  # the default kind
PEFT_SWITCHES = tuple(sorted(frozenset().union(*(kind.peft for kind in KINDS.values()))))


def kind_of(switches: frozenset[str]) -> str:
    """The kind for which exactly these of PEFT_SWITCHES are on.

    Raises:
        KeyError: there is none.
    """
    return next(name for name, kind in KINDS.items() if kind.peft == switches)
