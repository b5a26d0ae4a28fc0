"""One configuration for all decoders: what the engine can compute. Which model has which of it is in `families`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import dropwhile
from typing import Any

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED_LINEARS = {"qkv_proj": LINEARS[:3], "gate_up_proj": LINEARS[4:6]}  # what some families have as one linear
ALL_LINEARS = (*LINEARS, *FUSED_LINEARS)  # of all families
SITES = ("qkv", "o", "gate_up", "down")  # linears that share an input are one group
_MEMBERS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
_FUSED = {"qkv": ("self_attn.qkv_proj",), "gate_up": ("mlp.gate_up_proj",)}
# where a sublayer's norms are: (before, behind) of attention's and the MLP's, by Hugging Face's names
NORMS: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "pre": (("input_layernorm", ""), ("post_attention_layernorm", "")),
    "post": (("", "post_attention_layernorm"), ("", "post_feedforward_layernorm")),
    "sandwich": (
        ("input_layernorm", "post_attention_layernorm"),
        ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
}

# of per-layer embeddings: the model's tensors, and a layer's norm and tensors
INPUT_TABLE, INPUT_PROJECTION = "model.embed_tokens_per_layer.weight", "model.per_layer_model_projection.weight"
INPUT_NORM = "model.per_layer_projection_norm.weight"
LAYER_GATE, LAYER_PROJECTION = "per_layer_input_gate.weight", "per_layer_projection.weight"
LAYER_NORM, LAYER_SCALAR = "post_per_layer_input_norm", "layer_scalar"


@dataclass(frozen=True)
class DecoderConfig:
    """Shapes and switches of a decoder. Sizes in elements, `norm_eps` as in the RMSNorm formula.

    Attributes:
        architecture: the family's name, a key of `families.FAMILIES`.
        max_positions: the context in tokens. With longrope that of the short factors, which the engine computes with;
            the whole is `rope_scaling`'s max_position_embeddings.
        rope_scaling: a scaling in Hugging Face's words (`rope_scaling.SCALINGS`), or None.
        windows: by layer the sliding attention window in tokens (a token sees itself and the window-1 before it), None
            for full attention; empty: full attention everywhere.
        local_rope_theta: RoPE base of the layers with a window, which then have no scaling; None: as all others.
        rotary_dim: how many of a head's first elements are rotated; None: all.
        query_growth: (β, n): behind the rotation the query at position p is multiplied by 1 + β·ln(1 + ⌊p / n⌋); None:
            it is not.
        no_rope: the layers whose queries and keys are not rotated.
        qk_norm: whether queries and keys are normalized, by head or, with `qk_norm_full`, over their full width.
        norm_placement: "pre" (before a sublayer), "post" (behind it), "sandwich" (both).
        activation: of the gated MLP: "silu" or "gelu_tanh".
        attention_scale: factor on the scores; None: 1 / √head_dim.
        embedding_scale, residual_scale: factors on the embeddings and on what a sublayer adds to the residual stream.
        logits_divisor: what the logits are divided by.
        attention_cap, logits_cap: the soft caps (`activation.soft_cap`) of scores and logits; None: none.
        mixers: by layer what mixes its rows, a key of `layer.MIXERS`; empty: attention everywhere.
        mlp: a key of `layer.MLPS`.
        fused: the groups ("qkv", "gate_up") that the model has as one linear.
        head_dims: by layer the head size; empty: `head_dim` everywhere.
        intermediate_sizes: by layer the MLP's width; empty: `intermediate_size` everywhere.
        kv_sources: by layer the layer whose keys and values it attends to, itself or an earlier one; empty: each its
            own.
        v_norm: whether values are normalized by head, without a weight.
        layer_input_dim: the width of the embeddings that each layer has for itself (`layer_inputs`); 0: there are none.
        layer_scalar: whether each layer's output is multiplied by a number of its own.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    max_positions: int
    rope_scaling: dict[str, Any] | None = None
    windows: tuple[int | None, ...] = field(default=())
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = False
    qk_norm_full: bool = False
    local_rope_theta: float | None = None
    rotary_dim: int | None = None
    no_rope: tuple[int, ...] = ()
    norm_placement: str = "pre"
    activation: str = "silu"
    attention_scale: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_divisor: float = 1.0
    attention_cap: float | None = None
    logits_cap: float | None = None
    fused: tuple[str, ...] = ()
    mixers: tuple[str, ...] = ()
    mlp: str = "gated"
    query_growth: tuple[float, int] | None = None
    head_dims: tuple[int, ...] = ()
    intermediate_sizes: tuple[int, ...] = ()
    kv_sources: tuple[int, ...] = ()
    v_norm: bool = False
    layer_input_dim: int = 0
    layer_scalar: bool = False

    def described(self) -> dict[str, Any]:
        """The fields as a dictionary, those behind `tied_embeddings` only where they are not the default: what
        identifies a base model stays the same when a new family brings a new field."""
        later = dropwhile(lambda one: one.name != "tied_embeddings", fields(self))
        usual = {one.name for one in list(later)[1:] if getattr(self, one.name) == one.default}
        return {name: value for name, value in asdict(self).items() if name not in usual}

    @property
    def whole_context(self) -> int:
        """The context in tokens that the model itself has: more than `max_positions` where RoPE's scaling says so."""
        return int((self.rope_scaling or {}).get("max_position_embeddings", self.max_positions))

    def window(self, layer: int) -> int | None:
        """The sliding window of one layer, None where attention is full."""
        return self.windows[layer] if self.windows else None

    def mixer(self, layer: int) -> str:
        """What mixes a layer's rows: a key of `layer.MIXERS`."""
        return self.mixers[layer] if self.mixers else "attention"

    def rope(self, layer: int) -> str:
        """Which rotation a layer has: "main", "local" (see `local_rope_theta`) or "none"."""
        if layer in self.no_rope:
            return "none"
        return "local" if self.local_rope_theta is not None and self.window(layer) is not None else "main"

    def first_layers(self, n: int) -> DecoderConfig:
        """The same decoder cut off after `n` layers."""
        by_layer = ("windows", "mixers", "head_dims", "intermediate_sizes", "kv_sources")
        cut: dict[str, Any] = {name: getattr(self, name)[:n] for name in by_layer}
        return replace(self, n_layers=n, no_rope=tuple(i for i in self.no_rope if i < n), **cut)

    def head_size(self, layer: int) -> int:
        """The head size of one layer."""
        return self.head_dims[layer] if self.head_dims else self.head_dim

    def mlp_size(self, layer: int) -> int:
        """The width of one layer's MLP."""
        return self.intermediate_sizes[layer] if self.intermediate_sizes else self.intermediate_size

    def kv_source(self, layer: int) -> int:
        """The layer whose keys and values this one attends to: itself, or an earlier one."""
        return self.kv_sources[layer] if self.kv_sources else layer

    @property
    def kv_layers(self) -> tuple[int, ...]:
        """The layers that have keys and values of their own (or a state), in order. Tokens that come later need
        nothing of the layers above the last of them."""
        return tuple(i for i in range(self.n_layers) if self.kv_source(i) == i)

    @property
    def kv_width(self) -> int:
        """How many elements the keys of one token are in all layers together, and the values too."""
        return self.n_kv_heads * sum(self.head_size(i) for i in self.kv_layers)

    def members(self, site: str, layer: int) -> tuple[str, ...]:
        """The linears of one of SITES, as modules of a layer ("self_attn.q_proj", …)."""
        if site == "qkv" and self.kv_source(layer) != layer:
            return _MEMBERS[site][:1]
        return _FUSED[site] if site in self.fused else _MEMBERS[site]

    def layer_linears(self, layer: int) -> tuple[str, ...]:
        """One layer's linears by their short names ("q_proj", …)."""
        return tuple(member.split(".")[1] for site in SITES for member in self.members(site, layer))

    @property
    def linears(self) -> tuple[str, ...]:
        """All linears' short names ("q_proj", …). The first layer has all of them."""
        return self.layer_linears(0)

    def linear_shape(self, name: str, layer: int) -> tuple[int, int]:
        """(out_features, in_features) of a layer's linear by its short name.

        Raises:
            KeyError: no decoder has a linear of this name.
        """
        d, f, head = self.hidden_size, self.mlp_size(layer), self.head_size(layer)
        q, kv = self.n_heads * head, self.n_kv_heads * head
        return {
            "q_proj": (q, d),
            "k_proj": (kv, d),
            "v_proj": (kv, d),
            "qkv_proj": (q + 2 * kv, d),
            "o_proj": (d, q),
            "gate_proj": (f, d),
            "up_proj": (f, d),
            "gate_up_proj": (2 * f, d),
            "down_proj": (d, f),
        }[name]

    def smallest_side(self, name: str) -> int:
        """The smaller side of a linear by its short name, in whichever layer that is smallest: the most that an
        adapter's rank can be."""
        layers = (i for i in range(self.n_layers) if name in self.layer_linears(i))
        return min(min(self.linear_shape(name, i)) for i in layers)

    def norm_shapes(self, layer: int) -> dict[str, int]:
        """The norms of a layer, as modules of it ("input_layernorm", "self_attn.q_norm", …), and their widths."""
        attention, mlp = NORMS[self.norm_placement]
        shapes = dict.fromkeys((name for name in (*attention, *mlp) if name), self.hidden_size)
        if self.qk_norm:
            sides = (("q_norm", self.n_heads), ("k_norm", self.n_kv_heads))
            for name, heads in sides if self.kv_source(layer) == layer else sides[:1]:
                shapes[f"self_attn.{name}"] = self.head_size(layer) * (heads if self.qk_norm_full else 1)
        if self.layer_input_dim:
            shapes[LAYER_NORM] = self.hidden_size
        return shapes

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """What a layer has for its own embeddings and its output, beside a norm, as tensors of it, and their shapes."""
        d, p = self.hidden_size, self.layer_input_dim
        shapes: dict[str, tuple[int, ...]] = {LAYER_GATE: (p, d), LAYER_PROJECTION: (d, p)} if p else {}
        return {**shapes, LAYER_SCALAR: (1,)} if self.layer_scalar else shapes

    @property
    def unused_tensors(self) -> frozenset[str]:
        """Names that a model's files may have and that the decoder does not use: the projections and norms for the
        keys and values of layers that attend to another's."""
        unused = ("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias", "k_norm.weight", "v_norm.weight")
        layers = (i for i in range(self.n_layers) if self.kv_source(i) != i)
        return frozenset(f"model.layers.{i}.self_attn.{name}" for i in layers for name in unused)

    def layer_weights(self, layer: int) -> int:
        """How many weights one layer's linears have."""
        return sum(math.prod(self.linear_shape(name, layer)) for name in self.layer_linears(layer))

    @property
    def linear_weights(self) -> int:
        """How many weights all layers' linears have."""
        return sum(self.layer_weights(layer) for layer in range(self.n_layers))

    def has_bias(self, site: str) -> bool:
        """Whether the linears of one of SITES have biases."""
        return {"qkv": self.qkv_bias, "o": self.o_bias}.get(site, self.mlp_bias)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of a model of this shape with its shape, in the model's order. `lm_head.weight` is left out
        where the embeddings are tied."""
        d = self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, d)}
        if self.layer_input_dim:
            wide = self.n_layers * self.layer_input_dim
            shapes |= {INPUT_TABLE: (self.vocab_size, wide), INPUT_PROJECTION: (wide, d)}
            shapes[INPUT_NORM] = (self.layer_input_dim,)
        for layer in range(self.n_layers):
            prefix = f"model.layers.{layer}."
            shapes |= {f"{prefix}{name}.weight": (width,) for name, width in self.norm_shapes(layer).items()}
            shapes |= {f"{prefix}{name}": shape for name, shape in self.input_shapes().items()}
            for site in SITES:
                for member in self.members(site, layer):
                    shape = self.linear_shape(member.split(".")[1], layer)
                    shapes[f"{prefix}{member}.weight"] = shape
                    if self.has_bias(site):
                        shapes[f"{prefix}{member}.bias"] = shape[:1]
        shapes["model.norm.weight"] = (d,)
        if not self.tied_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, d)
        return shapes

    @property
    def total_params(self) -> int:
        """Parameters of the base model, tied embeddings counted once; a layer's scalar is not one."""
        shapes = self.tensor_shapes().items()
        return sum(math.prod(shape) for name, shape in shapes if not name.endswith(LAYER_SCALAR))
