"""The decoder as plain formulas: float32, autograd, one sequence at a time. It is slow, and the reference for tests of
the fast paths; it is itself tested against transformers and PEFT."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import cross_entropy, embedding

from rescoldo.engine.activation import ACTIVATIONS, soft_cap
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
from rescoldo.engine.kernels.ops import rotate
from rescoldo.engine.kinds import MAGNITUDE, A, B
from rescoldo.engine.rope import query_factors, rope_tables
from rescoldo.engine.types import LoraConfig
from rescoldo.engine.weights import TensorSource


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm (arXiv 1910.07467) over the last dimension."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


class ReferenceDecoder:
    """Frozen weights from `tensors`, LoRA weights from `parameters` (keys as in LoraModel.parameters), no dropout."""

    def __init__(
        self,
        config: DecoderConfig,
        tensors: TensorSource,
        lora: LoraConfig | None = None,
        parameters: dict[str, torch.Tensor] | None = None,
    ) -> None:
        self.config, self.tensors, self.lora, self.parameters = config, tensors, lora, parameters or {}
        self.names = set(tensors.names())

    def weight(self, name: str) -> torch.Tensor:
        """A frozen tensor in float32."""
        return self.tensors.get(name).float()

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """A linear with its bias and its adapter: x (T, in) → (T, out)."""
        weight = self.weight(f"{name}.weight")
        y = x @ weight.T
        if self.lora is not None and f"{name}.{A}" in self.parameters:
            a, b, scale = self.parameters[f"{name}.{A}"], self.parameters[f"{name}.{B}"], self.lora.scale_of(name)
            y = y + scale * (x @ a.T) @ b.T
            if self.lora.magnitude:
                y = y * self.parameters[f"{name}.{MAGNITUDE}"] / (weight + scale * b @ a).norm(dim=1).detach()
        return y + self.weight(f"{name}.bias") if f"{name}.bias" in self.names else y

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """A norm over the last dimension; x itself if there is no norm of this name."""
        return rms_norm(x, self.weight(f"{name}.weight"), self.config.norm_eps) if f"{name}.weight" in self.names else x

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (T,) int64 → logits (T, vocabulary) float32."""
        c = self.config
        (pre1, post1), (pre2, post2) = NORMS[c.norm_placement]
        h = embedding(tokens, self.weight("model.embed_tokens.weight")) * c.embedding_scale  # (T, D)
        own = self.layer_embeddings(tokens, h) if c.layer_input_dim else None  # (T, L, p)
        self.shared: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for i in range(c.n_layers):
            layer = f"model.layers.{i}"
            y = self.attention(self.norm(h, f"{layer}.{pre1}") if pre1 else h, i)
            h = h + c.residual_scale * (self.norm(y, f"{layer}.{post1}") if post1 else y)
            y = self.mlp(self.norm(h, f"{layer}.{pre2}") if pre2 else h, i)
            h = h + c.residual_scale * (self.norm(y, f"{layer}.{post2}") if post2 else y)
            if own is not None:
                gate = ACTIVATIONS[c.activation].plain(h @ self.weight(f"{layer}.{LAYER_GATE}").T)
                y = (gate * own[:, i]) @ self.weight(f"{layer}.{LAYER_PROJECTION}").T
                h = h + self.norm(y, f"{layer}.{LAYER_NORM}")
            if c.layer_scalar:
                h = h * self.weight(f"{layer}.{LAYER_SCALAR}")
        h = self.norm(h, "model.norm")
        logits = h @ self.weight("model.embed_tokens.weight" if c.tied_embeddings else "lm_head.weight").T
        return soft_cap(logits / c.logits_divisor, c.logits_cap)

    def layer_embeddings(self, tokens: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """The per-layer embeddings of the tokens (T,), embedded as h (T, D): (T, layers, p)."""
        c = self.config
        shape = len(tokens), c.n_layers, c.layer_input_dim
        looked_up = embedding(tokens, self.weight(INPUT_TABLE)).view(shape) * math.sqrt(c.layer_input_dim)
        projected = (h @ self.weight(INPUT_PROJECTION).T).view(shape) / math.sqrt(c.hidden_size)
        return (rms_norm(projected, self.weight(INPUT_NORM), c.norm_eps) + looked_up) / math.sqrt(2)

    def heads(self, x: torch.Tensor, i: int, name: str) -> torch.Tensor:
        """Queries ("q"), keys ("k") or values ("v") of layer i, normalized and rotated: x (T, D) → (T, heads, d)."""
        c, layer, d = self.config, f"model.layers.{i}.self_attn", self.config.head_size(i)
        if "qkv" in c.fused:
            widths = [c.n_heads * d, c.n_kv_heads * d, c.n_kv_heads * d]
            y = torch.split(self.linear(x, f"{layer}.qkv_proj"), widths, dim=1)["qkv".index(name)]
        else:
            y = self.linear(x, f"{layer}.{name}_proj")
        if c.qk_norm_full:
            y = self.norm(y, f"{layer}.{name}_norm")
        y = y.view(len(x), -1, d)
        if c.qk_norm and not c.qk_norm_full:
            y = self.norm(y, f"{layer}.{name}_norm")
        if name == "v":
            return rms_norm(y, torch.ones(d), c.norm_eps) if c.v_norm else y
        if c.rope(i) != "none":
            cos, sin = rope_tables(c, len(x), c.rope(i))
            r = c.rotary_dim or d
            y = torch.cat((rotate(y[..., :r], cos, sin), y[..., r:]), dim=-1)
        return y

    def attention(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """Causal attention of layer i: x (T, D) → (T, D)."""
        c, layer, n = self.config, f"model.layers.{i}.self_attn", x.shape[0]
        q = self.heads(x, i, "q") * query_factors(c, n)[:, None, None]
        if c.kv_source(i) == i:
            self.shared[i] = self.heads(x, i, "k"), self.heads(x, i, "v")
        group = c.n_heads // c.n_kv_heads
        k, v = (t.repeat_interleave(group, dim=1) for t in self.shared[c.kv_source(i)])
        scale = 1 / math.sqrt(c.head_size(i)) if c.attention_scale is None else c.attention_scale
        scores = soft_cap(torch.einsum("thd,shd->hts", q, k) * scale, c.attention_cap)
        at = torch.arange(n)
        hidden = at[None, :] > at[:, None]  # keys after the query
        window = c.window(i)
        if window is not None:
            hidden = hidden | (at[:, None] - at[None, :] >= window)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)  # (heads, T, T)
        return self.linear(torch.einsum("hts,shd->thd", weights, v).flatten(1), f"{layer}.o_proj")

    def mlp(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """The gated MLP of layer i: x (T, D) → (T, D)."""
        layer = f"model.layers.{i}.mlp"
        if "gate_up" in self.config.fused:
            gate, up = self.linear(x, f"{layer}.gate_up_proj").chunk(2, dim=1)
        else:
            gate, up = self.linear(x, f"{layer}.gate_proj"), self.linear(x, f"{layer}.up_proj")
        return self.linear(ACTIVATIONS[self.config.activation].plain(gate) * up, f"{layer}.down_proj")

    def loss(self, tokens: torch.Tensor, n_prompt: int, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Summed cross-entropy (nats) of tokens[n_prompt:] given the tokens before each, each times its weight."""
        losses = cross_entropy(self.logits(tokens)[n_prompt - 1 : -1], tokens[n_prompt:], reduction="none")
        return (losses if weights is None else losses * weights).sum()
