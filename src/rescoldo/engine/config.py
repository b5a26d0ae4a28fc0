"""The decoder family's one configuration: everything in which llama, mistral, qwen2 and qwen3 differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class DecoderConfig:
    """Shapes and switches of a decoder. Sizes in elements, `norm_eps` as in the RMSNorm formula.

    `rope_scaling` is the Hugging Face dictionary ({"rope_type": "llama3"|"linear"|"yarn"|"dynamic", …}) or None.
    `windows[i]` is layer i's sliding attention window in tokens (a token sees itself and the window-1 before it),
    None for full attention.
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

    def window(self, layer: int) -> int | None:
        """The sliding window of one layer, None where attention is full."""
        return self.windows[layer] if self.windows else None

    def linear_shape(self, name: str) -> tuple[int, int]:
        """(out_features, in_features) of one of LINEARS.

        Raises:
            KeyError: `name` is none of LINEARS.
        """
        d, f, q, kv = (
            self.hidden_size,
            self.intermediate_size,
            self.n_heads * self.head_dim,
            self.n_kv_heads * self.head_dim,
        )
        return {
            "q_proj": (q, d),
            "k_proj": (kv, d),
            "v_proj": (kv, d),
            "o_proj": (d, q),
            "gate_proj": (f, d),
            "up_proj": (f, d),
            "down_proj": (d, f),
        }[name]

    @property
    def total_params(self) -> int:
        """Parameters of the base model, tied embeddings counted once."""
        d, f, hd = self.hidden_size, self.intermediate_size, self.head_dim
        layer = sum(o * i for o, i in map(self.linear_shape, LINEARS)) + 2 * d
        if self.qkv_bias:
            layer += (self.n_heads + 2 * self.n_kv_heads) * hd
        if self.o_bias:
            layer += d
        if self.mlp_bias:
            layer += 2 * f + d
        if self.qk_norm:
            layer += 2 * hd
        return self.n_layers * layer + d + self.vocab_size * d * (1 if self.tied_embeddings else 2)
