"""Which parts of the training data are learned, as flags and config files set it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Teaching:
    """Which parts of a record are learned.

    Attributes:
        loss: "all" answers of a conversation, or only the "last" one.
        thinking: thinking parts are learned ("keep"), removed ("drop"), or visible to the model without loss ("mask").
        prompt_weight: the weight in the loss of tokens outside of answers; answers have 1.
        balance: each distinct answer occurs equally often: see dataset.balanced.
    """

    loss: str = "all"
    thinking: str = "keep"
    prompt_weight: float = 0.0
    balance: bool = False


LAST = Teaching("last")


@dataclass(frozen=True)
class ExtraText:
    """Plain text that is learned together with the training data.

    Attributes:
        paths: the files.
        share: the text's fraction of all training tokens, 0..1 exclusive; None: all of the text is used.
    """

    paths: tuple[Path, ...]
    share: float | None = None


def extra_text(value: str) -> ExtraText:
    """Parse the value of --text: PATH[,PATH…][:SHARE].

    Raises:
        ValueError: the share is not between 0 and 1, or no path is named.
    """
    paths, colon, last = value.rpartition(":")
    share: float | None = None
    try:
        share = float(last) if colon else None
    except ValueError:  # the colon is part of a path
        share = None
    if share is None:
        paths = value
    elif not 0 < share < 1:
        raise ValueError(f"the share {last} is not between 0 and 1")
    names = [name.strip() for name in paths.split(",") if name.strip()]
    if not names:
        raise ValueError("no file is named")
    return ExtraText(tuple(Path(name).expanduser() for name in names), share)
