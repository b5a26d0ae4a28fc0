"""The merges of a SentencePiece BPE, which its file does not contain: computed from pieces and scores, and cached in
the user's cache directory for large vocabularies (Gemma's 262,144 pieces take 1.7 s)."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rescoldo.files import cache_root, write_atomic

_MANY = 100_000  # minimum number of pieces for caching
_FILES = 4  # maximum number of cached vocabularies; the least recently used one is removed
_VERSION = b"1"  # of the merge order

Pairs = list[tuple[str, str]]


def merges(ids: Mapping[str, int], usable: set[str], scores: Mapping[str, float]) -> Pairs:
    """All pairs of pieces whose concatenation is a piece, best score first (as transformers does for SentencePiece
    models).

    Args:
        ids: each piece's id, in order.
        usable: the pieces that may be merged.
        scores: the scores of pieces that merges may produce.
    """
    if len(ids) < _MANY:
        return _found(ids, usable, scores)
    path, pieces = _path(ids, usable, scores), list(ids)
    kept = _read(path)
    if kept is not None:
        lefts, rights = kept.T.tolist()
        return list(zip(map(pieces.__getitem__, lefts), map(pieces.__getitem__, rights), strict=True))
    found = _found(ids, usable, scores)
    order = {piece: index for index, piece in enumerate(pieces)}
    content = np.array([(order[left], order[right]) for left, right in found], "<i4").tobytes()

    def write(temporary: Path) -> None:
        temporary.write_bytes(hashlib.sha256(content).digest() + content)

    with contextlib.suppress(OSError):  # the cache only saves time
        write_atomic(path, write, durable=False)
        for old in sorted(path.parent.glob("*.pairs"), key=lambda one: -one.stat().st_mtime)[_FILES:]:
            old.unlink()
    return found


def _read(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]] | None:
    """The cached pairs (n, 2), as indices of pieces; None if they are missing or damaged."""
    try:
        whole = path.read_bytes()
        if len(whole) < 32 or hashlib.sha256(whole[32:]).digest() != whole[:32]:
            return None
        path.touch()
    except OSError:
        return None
    return np.frombuffer(whole, "<i4", offset=32).reshape(-1, 2)


def _path(ids: Mapping[str, int], usable: set[str], scores: Mapping[str, float]) -> Path:
    """The path in the cache, named by the hash of everything the merges depend on."""
    digest = hashlib.sha256(_VERSION)
    digest.update("".join(ids).encode("utf-8", "surrogatepass"))
    digest.update(np.array([len(piece) for piece in ids], np.int64).tobytes())
    digest.update(np.array([piece in usable for piece in ids]).tobytes())
    digest.update(np.array([scores.get(piece, np.nan) for piece in ids], np.float64).tobytes())
    return cache_root() / "merges" / f"{digest.hexdigest()[:32]}.pairs"


def _found(ids: Mapping[str, int], usable: set[str], scores: Mapping[str, float]) -> Pairs:
    found: list[tuple[float, int, int, int, int, str, str]] = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in usable and right in usable:
                found.append((-score, -len(left), -len(right), ids[left], ids[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]
