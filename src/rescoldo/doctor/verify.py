"""Checks of a finished run's files. One line per check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rescoldo.adapter import BIN_FILE, CONFIG_FILE, WEIGHTS_FILE, Adapter, read_adapter, to_peft
from rescoldo.engine.kinds import kind_of_run
from rescoldo.errors import RescoldoError
from rescoldo.files import read_json, sha256
from rescoldo.run.layout import INFO_FILE
from rescoldo.training.metrics import worsened
from rescoldo.units import count

# the keys that every training_info.json has
INFO_KEYS = (
    "base_model",
    "train_dataset",
    "val_dataset",
    "train_examples",
    "val_examples",
    "epochs",
    "learning_rate",
    "batch_size",
    "grad_accum_steps",
    "effective_batch_size",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "max_length",
    "seed",
    "train_limit",
    "val_limit",
    "max_steps",
    "quantization",
    "trainable_params",
    "total_params",
    "trainable_percentage",
)
FILES = (CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", INFO_FILE)


@dataclass(frozen=True)
class Check:
    """The result of one check; `detail` describes the finding in a few words."""

    name: str
    ok: bool
    detail: str


def verify(output: Path) -> Iterator[Check]:
    """Check the files of a finished run, one after the other, without changing anything.

    Raises:
        RescoldoError: there is no such directory.
    """
    if not output.is_dir():
        raise RescoldoError("there is no such directory", where=str(output), fix="pass the --output of a run")
    missing = [name for name in FILES if not (output / name).is_file()]
    yield Check("files", not missing, f"missing: {', '.join(missing)}" if missing else f"all {len(FILES)} there")

    info = read_json(output / INFO_FILE)
    yield _average(info["averaged"]) if info and "averaged" in info else _info(info)
    info = info or {}
    yield _hashes(output, info)
    try:
        adapter = read_adapter(output)
    except RescoldoError as error:
        yield Check("adapter", False, str(error).partition("\n")[0])
        return
    parameters = adapter.parameters
    same = (adapter.lora.rank, adapter.lora.alpha) == (info.get("lora_r"), info.get("lora_alpha"))
    said = f"r={adapter.lora.rank}, alpha={adapter.lora.alpha:g}, {count(len(parameters), 'tensor')}"
    yield Check("adapter", same, said + ("" if same else ", but training_info.json differs"))
    yield _shapes(adapter, info)
    yield from _values(adapter, info)
    yield from _loss(info)
    if (output / BIN_FILE).exists():
        yield _bin(output / BIN_FILE, adapter)


def _average(averaged: Any) -> Check:
    """Check an average of adapters: its list of parts."""
    try:
        said = ", ".join(f"{part['weight']:.3g} · {part['path']}" for part in averaged["parts"])
        return Check("training_info", True, f"average of {said}")
    except (KeyError, TypeError, ValueError):
        return Check("training_info", False, "does not say what the average is of")


def _info(info: dict[str, Any] | None) -> Check:
    if info is None:
        return Check("training_info", False, "missing or not JSON: the run has not finished")
    missing = [key for key in INFO_KEYS if key not in info]
    return Check("training_info", not missing, f"lacks {', '.join(missing)}" if missing else "complete")


def _hashes(output: Path, info: dict[str, Any]) -> Check:
    files = info.get("files")
    if not isinstance(files, dict) or WEIGHTS_FILE not in files:
        return Check("hashes", False, f"{INFO_FILE} holds none")
    bad = [name for name, digest in files.items() if _hash(output, str(name)) != digest]
    return Check(
        "hashes", not bad, f"changed or missing: {', '.join(bad)}" if bad else f"{count(len(files), 'file')} unchanged"
    )


def _hash(output: Path, name: str) -> str:
    path = output / name
    try:
        return sha256(path) if path.resolve().is_relative_to(output.resolve()) else ""
    except OSError:
        return ""


def _shapes(adapter: Adapter, info: dict[str, Any]) -> Check:
    """Each adapted linear of each layer has A (rank, in) and B (out, rank), and there are no other tensors."""
    from rescoldo.base import open_base
    from rescoldo.engine.config import DecoderConfig

    spec = str(info.get("base_model", ""))
    try:
        base = open_base(spec)
        decoder, whose = base.config, spec
        if base.fingerprint() != info.get("base_fingerprint"):
            return Check("shapes", False, f"{spec} is not the base model that this adapter was trained on")
    except RescoldoError:
        try:
            decoder = DecoderConfig(**info["base_shapes"])
        except (KeyError, TypeError):
            return Check("shapes", False, f"base model {spec!r} not found, and {INFO_FILE} holds no shapes")
        whose = f"the shapes noted in {INFO_FILE} ({spec} itself is not here)"
    fault = adapter.misfit(decoder)
    return Check("shapes", not fault, fault or f"agree with {whose}")


def _values(adapter: Adapter, info: dict[str, Any]) -> Iterator[Check]:
    parameters = adapter.parameters
    infinite = [key for key, tensor in parameters.items() if not bool(tensor.isfinite().all())]
    yield Check("finite", not infinite, f"not finite: {infinite[0]}" if infinite else "all numbers are finite")
    untrained = [key for key, tensor in parameters.items() if key.endswith(".lora_B") and not bool(tensor.any())]
    yield Check("trained", not untrained, f"B is zero in {untrained[0]}" if untrained else "no B is zero")
    settings = info.get("config")
    said = settings.get("adapter") if isinstance(settings, dict) else None
    lora = replace(adapter.lora, kind=kind_of_run(said, adapter.lora.kind))
    count = sum(tensor.numel() for name, tensor in parameters.items() if lora.trains(name))
    yield Check("parameters", count == info.get("trainable_params"), f"{count:,} trained parameters")


def _loss(info: dict[str, Any]) -> Iterator[Check]:
    """Whether training has lowered the validation loss; no result if the loss before training was not recorded."""
    before, losses, best = info.get("val_loss_before"), info.get("losses"), info.get("best_epoch")
    try:
        after = losses[best - 1]["val_loss"]  # type: ignore[index,operator]
    except (TypeError, KeyError, IndexError):
        return
    if isinstance(before, int | float) and isinstance(after, int | float):
        worse = worsened(before, after)
        yield Check("loss", not worse, worse or f"validation loss {before:.4f} before the training, {after:.4f} after")


def _bin(path: Path, adapter: Adapter) -> Check:
    import torch

    problem = ""
    load: Callable[..., Any] = torch.load
    try:
        state = load(path, weights_only=True, map_location="cpu")
        expected = to_peft(adapter.parameters, wrapped=adapter.wrapped)
        if state.keys() != expected.keys() or not all(torch.equal(state[key], expected[key]) for key in expected):
            problem = f"differs from {WEIGHTS_FILE}"
    except Exception as error:  # the loader raises many types for a damaged file
        problem = f"cannot be read: {type(error).__name__}"
    return Check(BIN_FILE, not problem, problem or f"the same as {WEIGHTS_FILE}")
