"""The configuration of all decoders: everything the engine can compute. `families` has the values of each family."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import dropwhile
from typing import Any

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED_LINEARS = {"qkv_proj": LINEARS[:3], "gate_up_proj": LINEARS[4:6]}  # fused into one linear in some families
ALL_LINEARS = (*LINEARS, *FUSED_LINEARS)  # of all families
SITES = ("qkv", "o", "gate_up", "down")  # groups of linears that share an input
_MEMBERS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
_FUSED = {"qkv": ("self_attn.qkv_proj",), "gate_up": ("mlp.gate_up_proj",)}
# the norms of a sublayer, by placement: (before, after) for attention and the MLP, with Hugging Face's names
NORMS: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "pre": (("input_layernorm", ""), ("post_attention_layernorm", "")),
    "post": (("", "post_attention_layernorm"), ("", "post_feedforward_layernorm")),
    "sandwich": (
        ("input_layernorm", "post_attention_layernorm"),
        ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
}

# for per-layer embeddings: the model's tensors, and a layer's norm and tensors
INPUT_TABLE, INPUT_PROJECTION = "model.embed_tokens_per_layer.weight", "model.per_layer_model_projection.weight"
INPUT_NORM = "model.per_layer_projection_norm.weight"
LAYER_GATE, LAYER_PROJECTION = "per_layer_input_gate.weight", "per_layer_projection.weight"
LAYER_NORM, LAYER_SCALAR = "post_per_layer_input_norm", "layer_scalar"


@dataclass(frozen=True)
class DecoderConfig:
    """Shapes and switches of a decoder. Sizes in elements, `norm_eps` as in the RMSNorm formula.

    Attributes:
        architecture: the family's name, a key of `families.FAMILIES`.
        max_positions: the context in tokens. With longrope only that of the short factors, which the engine uses; the
            full context is `rope_scaling`'s max_position_embeddings.
        rope_scaling: a scaling in Hugging Face's format (`rope_scaling.SCALINGS`), or None.
        windows: by layer the sliding attention window in tokens (a token sees itself and the window-1 before it), None
            for full attention; empty: full attention everywhere.
        local_rope_theta: RoPE base of the layers with a window, which then have no scaling; None: the same as the
            others.
        rotary_dim: number of rotated elements at the beginning of a head; None: all.
        query_growth: (β, n): after the rotation the query at position p is multiplied by 1 + β·ln(1 + ⌊p / n⌋); None:
            by 1.
        no_rope: the layers whose queries and keys are not rotated.
        qk_norm: whether queries and keys are normalized, by head or, with `qk_norm_full`, over their full width.
        norm_placement: "pre" (before a sublayer), "post" (after it), "sandwich" (both).
        activation: of the gated MLP: "silu" or "gelu_tanh".
        attention_scale: factor on the scores; None: 1 / √head_dim.
        embedding_scale, residual_scale: factors on the embeddings and on what a sublayer adds to the residual stream.
        logits_divisor: divisor of the logits.
        attention_cap, logits_cap: the soft caps (`activation.soft_cap`) of scores and logits; None: none.
        mixers: by layer its mixer, a key of `layer.MIXERS`; empty: attention everywhere.
        mlp: a key of `layer.MLPS`.
        fused: the groups ("qkv", "gate_up") that the model stores as one linear.
        head_dims: by layer the head size; empty: `head_dim` everywhere.
        intermediate_sizes: by layer the MLP's width; empty: `intermediate_size` everywhere.
        kv_sources: by layer the layer whose keys and values it attends to, itself or an earlier one; empty: always
            itself.
        v_norm: whether values are normalized by head, without a weight.
        layer_input_dim: the width of the per-layer embeddings (`layer_inputs`); 0: there are none.
        layer_scalar: whether each layer's output is multiplied by a scalar of its own.
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
        """The fields as a dictionary; those after `tied_embeddings` only if they are not the default, so that a base
        model's identity does not change when a new family adds a field."""
        later = dropwhile(lambda one: one.name != "tied_embeddings", fields(self))
        usual = {one.name for one in list(later)[1:] if getattr(self, one.name) == one.default}
        return {name: value for name, value in asdict(self).items() if name not in usual}

    @property
    def whole_context(self) -> int:
        """The model's full context in tokens: more than `max_positions` for some RoPE scalings."""
        return int((self.rope_scaling or {}).get("max_position_embeddings", self.max_positions))

    def window(self, layer: int) -> int | None:
        """The sliding window of one layer; None for full attention."""
        return self.windows[layer] if self.windows else None

    def mixer(self, layer: int) -> str:
        """A layer's mixer: a key of `layer.MIXERS`."""
        return self.mixers[layer] if self.mixers else "attention"

    def rope(self, layer: int) -> str:
        """A layer's rotation: "main", "local" (see `local_rope_theta`) or "none"."""
        if layer in self.no_rope:
            return "none"
        return "local" if self.local_rope_theta is not None and self.window(layer) is not None else "main"

    def first_layers(self, n: int) -> DecoderConfig:
        """The same decoder truncated after `n` layers."""
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
        """The layers that have their own keys and values (or a state), in order. Later tokens need nothing from the
        layers above the last of them."""
        return tuple(i for i in range(self.n_layers) if self.kv_source(i) == i)

    @property
    def kv_width(self) -> int:
        """The number of elements of one token's keys in all layers together, which is also that of its values."""
        return self.n_kv_heads * sum(self.head_size(i) for i in self.kv_layers)

    def members(self, site: str, layer: int) -> tuple[str, ...]:
        """The linears of one of SITES, as modules of a layer ("self_attn.q_proj", …)."""
        if site == "qkv" and self.kv_source(layer) != layer:
            return _MEMBERS[site][:1]
        return _FUSED[site] if site in self.fused else _MEMBERS[site]

    def layer_linears(self, layer: int) -> tuple[str, ...]:
        """The short names of one layer's linears ("q_proj", …)."""
        return tuple(member.split(".")[1] for site in SITES for member in self.members(site, layer))

    @property
    def linears(self) -> tuple[str, ...]:
        """The short names of all linears ("q_proj", …). The first layer has all of them."""
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
        """The smaller dimension of a linear (by its short name) in the layer where it is smallest: the maximum rank of
        an adapter."""
        layers = (i for i in range(self.n_layers) if name in self.layer_linears(i))
        return min(min(self.linear_shape(name, i)) for i in layers)

    def norm_shapes(self, layer: int) -> dict[str, int]:
        """The norms of a layer, as its modules ("input_layernorm", "self_attn.q_norm", …), and their widths."""
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
        """A layer's tensors for per-layer embeddings and for the scalar on its output, except for norms, and their
        shapes."""
        d, p = self.hidden_size, self.layer_input_dim
        shapes: dict[str, tuple[int, ...]] = {LAYER_GATE: (p, d), LAYER_PROJECTION: (d, p)} if p else {}
        return {**shapes, LAYER_SCALAR: (1,)} if self.layer_scalar else shapes

    @property
    def unused_tensors(self) -> frozenset[str]:
        """Names in a model's files that the decoder does not use: the projections and norms of keys and values in
        layers that attend to another layer's."""
        unused = ("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias", "k_norm.weight", "v_norm.weight")
        layers = (i for i in range(self.n_layers) if self.kv_source(i) != i)
        return frozenset(f"model.layers.{i}.self_attn.{name}" for i in layers for name in unused)

    def layer_weights(self, layer: int) -> int:
        """The number of weights of one layer's linears."""
        return sum(math.prod(self.linear_shape(name, layer)) for name in self.layer_linears(layer))

    @property
    def linear_weights(self) -> int:
        """The number of weights of all layers' linears."""
        return sum(self.layer_weights(layer) for layer in range(self.n_layers))

    def has_bias(self, site: str) -> bool:
        """Whether the linears of one of SITES have biases."""
        return {"qkv": self.qkv_bias, "o": self.o_bias}.get(site, self.mlp_bias)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of a model with this config and its shape, in the model's order. With tied embeddings there is
        no `lm_head.weight`."""
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
        """Parameters of the base model. Tied embeddings count once, a layer's scalar does not count."""
        shapes = self.tensor_shapes().items()
        return sum(math.prod(shape) for name, shape in shapes if not name.endswith(LAYER_SCALAR))
