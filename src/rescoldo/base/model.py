"""The interface of all kinds of base models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescoldo.base.fingerprint import fingerprint
from rescoldo.base.tokenizer import TokenizerFiles, load_tokenizer
from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.kernels.blocks import KINDS
from rescoldo.engine.weights import TensorSource
from rescoldo.errors import RescoldoError
from rescoldo.families import FAMILIES, Family
from rescoldo.units import count


@dataclass(frozen=True)
class BaseModel:
    """An opened base model. Opening reads headers only; tensors are mapped when they are used.

    A kind of base model (`base.hf`, `base.gguf`) is a subclass. Whatever its files have in addition to tensors is a
    method here, whose default is that there is none.

    Attributes:
        spec: what the user typed ("sample:smollm2", "ollama:mistral:7b-instruct", a path, a Hub id).
        path: its directory or GGUF file.
        config: the decoder's shapes.
        tensors: the weights.
        weight_files: the files of the weights, in order.
        tokenizer_files: the files of the tokenizer.
        wrapper: the transformers class that combines the decoder with a vision tower; "" if there is none.
        left_alone: names of tensors in the file that do not belong to the decoder.
        ollama_name: the name of this very file in Ollama; None if it is not from Ollama's store.
    """

    spec: str
    path: Path
    config: DecoderConfig
    tensors: TensorSource
    weight_files: tuple[Path, ...]
    tokenizer_files: TokenizerFiles
    wrapper: str = ""
    left_alone: tuple[str, ...] = ()
    ollama_name: str | None = None

    @property
    def family(self) -> Family:
        """Its row in the table of families."""
        return FAMILIES[self.config.architecture]

    @property
    def gguf_file(self) -> Path | None:
        """Its GGUF file, which llama.cpp can load; None if it is of another kind."""
        return None

    def hf_config(self) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
        """The model's own config.json and generation_config.json (None if it has none), as dictionaries; the first
        describes the decoder alone, without a wrapper. None if the model has no such files."""
        return None

    def disagreements(self) -> Iterator[str]:
        """Contradictions between the model's files, beyond those that opening checks."""
        yield from ()

    def note(self) -> str:
        """One line about parts of the model that are not used, and about the adapter's tensor names; "" if there is
        nothing."""
        parts = sorted({_part(name) for name in self.left_alone})
        number = count(len(self.left_alone), "tensor")
        alone = f"{number} of {', '.join(parts[:4])} left alone, only the text decoder is trained"
        named = f"the adapter has the names of {self.wrapper}, on which PEFT loads it" if self.wrapper else ""
        return "; ".join(said for said in (alone if parts else "", named) if said)

    def tokenizer(self) -> Any:
        """The model's own tokenizer (a transformers fast tokenizer) with its chat template."""
        return load_tokenizer(self.tokenizer_files, self.config, self.spec)

    def stored_bytes(self) -> int | None:
        """Bytes of the layers' linears, if the file has all of them in blocks that products use directly; else None."""
        names = [n for n in self.tensors.names() if n.startswith("model.layers.") and n.endswith("_proj.weight")]
        blocks = [self.tensors.quantized(name) for name in names]
        if not blocks or any(one is None or one.kind not in KINDS for one in blocks):
            return None
        return sum(one.data.numel() for one in blocks if one is not None)

    def maps_embedding(self) -> bool:
        """Whether the embeddings are used directly from the mapped file, in bfloat16."""
        return False

    def fingerprint(self) -> str:
        """SHA-256 over the weight files' content and the config (hex); cached by each file's path, size and mtime."""
        return fingerprint(self.weight_files, self.config)


def _part(name: str) -> str:
    return name.removeprefix("model.").partition(".")[0]


def check_tensors(source: TensorSource, config: DecoderConfig, where: Path) -> None:
    """Check that the weights fit `config`.

    Raises:
        RescoldoError: tensors are missing, left over or of another shape; the first few are named.
    """
    expected = config.tensor_shapes()
    names = source.names()
    have = set(names)
    faults = [f"{name} is missing" for name in expected if name not in have]
    faults += [
        f"{name} is {list(source.shape(name))}, not {list(shape)}"
        for name, shape in expected.items()
        if name in have and source.shape(name) != shape
    ]
    faults += [
        f"{name} is not part of a {config.architecture} decoder of this shape" for name in names if name not in expected
    ]
    if faults:
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise RescoldoError(
            f"the weights do not fit the config: {'; '.join(faults[:4])}{more}",
            where=str(where),
            fix="fetch the model again; adapters, quantized exports and parts of models cannot be used as a base",
        )
