"""A row of the table of families. All differences between families are described here and nowhere else; the engine sees
a DecoderConfig, and tensors under Hugging Face's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rescoldo.engine.config import (
    INPUT_NORM,
    INPUT_PROJECTION,
    INPUT_TABLE,
    LAYER_GATE,
    LAYER_NORM,
    LAYER_PROJECTION,
    LAYER_SCALAR,
    NORMS,
    DecoderConfig,
)

# prefixes of the decoder's tensors in a wrapper for images or sound: transformers 5, transformers 4
_WRAPPED = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "per_layer_token_embd": INPUT_TABLE.removesuffix(".weight"),
    "per_layer_model_proj": INPUT_PROJECTION.removesuffix(".weight"),
    "per_layer_proj_norm": INPUT_NORM.removesuffix(".weight"),
}
_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "inp_gate": LAYER_GATE.removesuffix(".weight"),
    "proj": LAYER_PROJECTION.removesuffix(".weight"),
    "post_norm": LAYER_NORM,
    "layer_output_scale": LAYER_SCALAR,  # a tensor whose name does not end in ".weight"
}
_FUSED_NAMES = {"qkv": {"attn_qkv": "self_attn.qkv_proj"}, "gate_up": {"ffn_up": "mlp.gate_up_proj"}}
_NORM_NAMES = (("attn_norm", "post_attention_norm"), ("ffn_norm", "post_ffw_norm"))  # in the order of config.NORMS


@dataclass(frozen=True)
class Key:
    """Where a field of DecoderConfig is stored: its name in config.json and in GGUF's metadata (there without the
    architecture's prefix); "": it is not stored."""

    hf: str = ""
    gguf: str = ""


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: `model_type` in config.json, and the family's name everywhere in this program.
        gguf: `general.architecture` in GGUF.
        hf_class: the class in transformers.
        gguf_merges: whether GGUF has the merges of this family's SentencePiece tokenizer in addition to the scores.
        fixed: fields of DecoderConfig with a value for the whole family that is not the class's default.
        keys: fields that are stored with a model, in addition to those that all families store.
        windows: which layers have a sliding window: none, all, or those given by `layer_types`.
        gguf_windows: the same in GGUF: "all", "pattern" (the file must have it), or n: all but every n-th.
        hf_family: the name of the family whose transformers class applies to a GGUF model, if GGUF uses one name for
            several; "": this one.
        rope_keys: keys in rope_parameters that do not affect the rotation; `derive_hf` reads them.
        partial_rope: whether models may rotate only the first part of a head (partial_rotary_factor).
        interleaved_rope: whether GGUF has the rows of q and k in another order (rotary pairs adjacent).
        norm_offset: added to the norms' weights of a Hugging Face file when they are read; GGUF stores the sum.
        activation_key: the key of the activation in config.json.
        refused: values in config.json that mean something the engine does not compute, and what that is.
        by_layer: keys of config.json whose values may differ by layer (per_layer_config); `derive_hf` reads them.
        derive_hf: computes more fields of DecoderConfig from transformers' config. It and `derive_gguf` raise
            ValueError if values do not fit together.
        derive_gguf: computes more fields from those in the metadata.
        gguf_by_layer: keys of GGUF's metadata whose values may differ by layer.
        gguf_integers: more keys of GGUF's metadata for `derive_gguf`, each an integer or None, passed under their own
            names.
        write_hf: the keys of config.json for fields that `derive_hf` computes; None removes a key.
        write_gguf: GGUF's metadata for fields that `derive_gguf` computes, overriding the usual ones.
        gguf_refused: values in GGUF's metadata that mean something the engine does not compute.
        wrappers: other `model_type`s, whose `text_config` is of this family.
        left_alone: prefixes of a wrapper's tensors that do not belong to the decoder.
    """

    name: str
    gguf: str
    hf_class: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Key] = field(default_factory=dict)
    windows: Literal["none", "all", "layer_types"] = "none"
    gguf_windows: Literal["all", "pattern"] | int = "all"
    hf_family: Callable[[DecoderConfig], str] = lambda config: ""
    gguf_merges: bool = False
    rope_keys: tuple[str, ...] = ()
    partial_rope: bool = False
    interleaved_rope: bool = False
    norm_offset: float = 0.0
    activation_key: str = "hidden_act"
    refused: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    by_layer: tuple[str, ...] = ()
    derive_hf: Callable[[Any], dict[str, Any]] = lambda config: {}
    derive_gguf: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda fields: {}
    gguf_by_layer: tuple[str, ...] = ()
    gguf_integers: tuple[str, ...] = ()
    write_hf: Callable[[DecoderConfig], dict[str, Any]] = lambda config: {}
    write_gguf: Callable[[DecoderConfig], dict[str, int | list[int]]] = lambda config: {}
    gguf_refused: Mapping[str, Any] = field(default_factory=dict)
    wrappers: tuple[str, ...] = ()
    left_alone: tuple[str, ...] = ()

    def decoder_name(self, name: str, *, wrapped: bool) -> str | None:
        """The decoder's name for a tensor of a Hugging Face file; None if the tensor is not used."""
        if name.endswith(".rotary_emb.inv_freq"):
            return None  # computed from the config
        if wrapped:
            for theirs, ours in _WRAPPED:
                if name.startswith(theirs):
                    return ours + name.removeprefix(theirs)
        return None if name.startswith(self.left_alone or "\0") else name

    def gguf_layer_names(self) -> dict[str, str]:
        """GGUF's name of each module of a layer → Hugging Face's."""
        names = dict(_LAYER_NAMES)
        for site in self.fixed.get("fused", ()):
            names |= _FUSED_NAMES[site]
        placement = NORMS[self.fixed.get("norm_placement", "pre")]
        for theirs, ours in zip(_NORM_NAMES, placement, strict=True):
            names |= {gguf: hf for gguf, hf in zip(theirs, ours, strict=True) if hf}
        return names

    def from_gguf(self, name: str) -> str | None:
        """Hugging Face's name for a GGUF tensor; None if there is none."""
        stem, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias"):
            return None
        if stem in _TOP_NAMES:
            return f"{_TOP_NAMES[stem]}.{kind}"
        block, _, rest = stem.partition(".")
        number, _, module = rest.partition(".")
        if block != "blk" or not number.isdecimal() or str(int(number)) != number:
            return None
        found = self.gguf_layer_names().get(module)
        if found == LAYER_SCALAR and kind == "weight":
            return f"model.layers.{number}.{found}"
        return f"model.layers.{number}.{found}.{kind}" if found else None

    def to_gguf(self, name: str) -> str:
        """GGUF's name for a tensor ("model.layers.3.mlp.up_proj.weight" → "blk.3.ffn_up.weight").

        Raises:
            KeyError: there is none.
        """
        stem, _, kind = (f"{name}.weight" if name.endswith(f".{LAYER_SCALAR}") else name).rpartition(".")
        for theirs, ours in _TOP_NAMES.items():
            if stem == ours:
                return f"{theirs}.{kind}"
        _, _, layer, *module = stem.split(".")
        theirs = {ours: theirs for theirs, ours in self.gguf_layer_names().items()}[".".join(module)]
        return f"blk.{layer}.{theirs}.{kind}"

    def rotary_heads(self, config: DecoderConfig, name: str) -> int | None:
        """The number of heads of a tensor whose rows GGUF stores in another order; None if the order is the same."""
        if self.interleaved_rope and ".q_proj." in name:
            return config.n_heads
        if self.interleaved_rope and ".k_proj." in name:
            return config.n_kv_heads
        return None
