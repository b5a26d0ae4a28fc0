"""What every kind of base model looks like to the rest of the program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescoldo.base.fingerprint import fingerprint
from rescoldo.base.tokenizer import TokenizerFiles, load_tokenizer, stop_ids
from rescoldo.engine.config import LINEARS, DecoderConfig
from rescoldo.engine.kernels.blocks import KINDS
from rescoldo.engine.weights import TensorSource
from rescoldo.errors import RescoldoError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class BaseModel:
    """An opened base model. Opening reads headers only; tensors are mapped when asked for.

    Attributes:
        spec: what the user typed ("sample:smollm2", "ollama:mistral:7b-instruct", a path, a Hub id).
        path: the directory or GGUF file it stands for.
        kind: "hf" or "gguf".
        config: the decoder's shapes.
        tensors: the weights.
        weight_files: the files that hold them, in order.
        tokenizer_files: what the tokenizer is made of.
        preset: hyper-parameters that suit this model where the user gives none (only the sample has any).
    """

    spec: str
    path: Path
    kind: str
    config: DecoderConfig
    tensors: TensorSource
    weight_files: tuple[Path, ...]
    tokenizer_files: TokenizerFiles
    preset: str | None = None

    def tokenizer(self) -> Any:
        """The model's own tokenizer (a transformers fast tokenizer) with its chat template."""
        return load_tokenizer(self.tokenizer_files, self.config, self.spec)

    def stop_ids(self, tokenizer: Any) -> frozenset[int]:
        """The tokens that end an answer: end of sequence and, where the model has one, end of turn. `tokenizer` is what
        the method of that name returned."""
        return stop_ids(self.tokenizer_files, self.config, tokenizer)

    def stored_bytes(self) -> int | None:
        """Bytes of the layers' linears where the file has all of them in blocks that products take as they are."""
        names = [n for n in self.tensors.names() if n.startswith("model.layers.") and n.endswith("_proj.weight")]
        blocks = [self.tensors.quantized(name) for name in names]
        if not blocks or any(one is None or one.kind not in KINDS for one in blocks):
            return None
        return sum(one.data.numel() for one in blocks if one is not None)

    def fingerprint(self) -> str:
        """SHA-256 over the weight files' content and the config (hex); cached by each file's path, size and mtime."""
        return fingerprint(self.weight_files, self.config)


def expected_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a model of this config has, by Hugging Face name, with its shape. `lm_head.weight` is left out
    where the embeddings are tied."""
    d, head = config.hidden_size, config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, d)}
    biased = {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj"), config.qkv_bias),
        "o_proj": config.o_bias,
        **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), config.mlp_bias),
    }
    for layer in range(config.n_layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (d,)
        for name in LINEARS:
            module = f"{prefix}{'self_attn' if name in ATTENTION else 'mlp'}.{name}"
            out_features, in_features = config.linear_shape(name)
            shapes[module + ".weight"] = (out_features, in_features)
            if biased[name]:
                shapes[module + ".bias"] = (out_features,)
        if config.qk_norm:
            shapes[prefix + "self_attn.q_norm.weight"] = (head,)
            shapes[prefix + "self_attn.k_norm.weight"] = (head,)
        shapes[prefix + "post_attention_layernorm.weight"] = (d,)
    shapes["model.norm.weight"] = (d,)
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, d)
    return shapes


def check_tensors(source: TensorSource, config: DecoderConfig, where: Path) -> None:
    """Refuse weights that do not belong to `config`.

    Raises:
        RescoldoError: tensors are missing, left over or of another shape; the first few are named.
    """
    expected = expected_shapes(config)
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
