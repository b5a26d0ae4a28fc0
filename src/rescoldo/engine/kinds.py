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
        title: as people write it.
        scale: s of (alpha, r).
        magnitude: whether there is a trained magnitude m (out,) beside A and B, and g = m / ‖W + s·B·A‖ by row, the
            norm taken as a constant in the backward pass (arXiv 2402.09353, section 4.3); without one g = 1.
        peft: the switches of PEFT's LoraConfig that say so, all others being off.
        frozen: those of the tensors that keep their initial values: they have no gradient, no moments and no weight
            decay. On the disk such an adapter is of the kind with the same switches that trains all its tensors.
    """

    title: str
    scale: Callable[[float, int], float]
    magnitude: bool
    peft: frozenset[str]
    frozen: frozenset[str] = frozenset()


def _by_rank(alpha: float, rank: int) -> float:
    return alpha / rank


def _by_root(alpha: float, rank: int) -> float:
    return alpha / math.sqrt(rank)


KINDS: dict[str, AdapterKind] = {
    "lora": AdapterKind("LoRA", _by_rank, False, frozenset()),  # arXiv 2106.09685
    "rslora": AdapterKind("rsLoRA", _by_root, False, frozenset({"use_rslora"})),  # arXiv 2312.03732
    "dora": AdapterKind("DoRA", _by_rank, True, frozenset({"use_dora"})),  # arXiv 2402.09353
    "rsdora": AdapterKind("DoRA with rsLoRA's scale", _by_root, True, frozenset({"use_dora", "use_rslora"})),
    "lora-fa": AdapterKind("LoRA-FA", _by_rank, False, frozenset(), frozenset({A})),  # arXiv 2308.03303
}
PLAIN = "lora"  # the default kind
PEFT_SWITCHES = tuple(sorted(frozenset().union(*(kind.peft for kind in KINDS.values()))))


def kind_of(switches: frozenset[str]) -> str:
    """The kind on the disk for which exactly these of PEFT_SWITCHES are on.

    Raises:
        StopIteration: there is none.
    """
    return next(name for name, kind in KINDS.items() if kind.peft == switches and not kind.frozen)


def kind_of_run(said: object, written: str) -> str:
    """The kind that a run has trained.

    Args:
        said: what the run's settings say, if anything.
        written: the kind of the adapter that it has written; where that is another one, `said` is not of this adapter.
    """
    known = isinstance(said, str) and said in KINDS and kind_of(KINDS[said].peft) == written
    return str(said) if known else written
