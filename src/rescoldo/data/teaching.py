"""What is learned of the training data: as flags and config files say it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Teaching:
    """What is learned of a record.

    Attributes:
        loss: "all" answers of a conversation, or the "last" one.
        thinking: thinking parts are learned as they are ("keep"), left out ("drop"), or seen and not learned ("mask").
        prompt_weight: the weight in the loss of what is not an answer; answers have 1.
        balance: each answer comes up as often as any other: see dataset.balanced.
    """

    loss: str = "all"
    thinking: str = "keep"
    prompt_weight: float = 0.0
    balance: bool = False


LAST = Teaching("last")


@dataclass(frozen=True)
class Beside:
    """Text that is learned beside the training data.

    Attributes:
        paths: of the files.
        share: of all training tokens that are the text's, 0..1 exclusive; None: all of the text.
    """

    paths: tuple[Path, ...]
    share: float | None = None


def beside(value: str) -> Beside:
    """What --text says: PATH[,PATH…][:SHARE].

    Raises:
        ValueError: the share is not between 0 and 1, or no path is named.
    """
    paths, colon, last = value.rpartition(":")
    share: float | None = None
    try:
        share = float(last) if colon else None
    except ValueError:  # a colon in a path
        share = None
    if share is None:
        paths = value
    elif not 0 < share < 1:
        raise ValueError(f"the share {last} is not between 0 and 1")
    names = [name.strip() for name in paths.split(",") if name.strip()]
    if not names:
        raise ValueError("no file is named")
    return Beside(tuple(Path(name).expanduser() for name in names), share)
