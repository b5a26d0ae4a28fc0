"""The decoder as its formulas read: float32, plain autograd, one sequence at a time. Slow, and what every fast path is
tested against; itself tested against transformers and PEFT."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import cross_entropy, embedding, silu

from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.rope import rope_tables, rotate
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
        y = x @ self.weight(f"{name}.weight").T
        if f"{name}.bias" in self.names:
            y = y + self.weight(f"{name}.bias")
        if self.lora is not None and f"{name}.lora_A" in self.parameters:
            y = y + self.lora.scale * (x @ self.parameters[f"{name}.lora_A"].T) @ self.parameters[f"{name}.lora_B"].T
        return y

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (T,) int64 → logits (T, vocabulary) float32."""
        c = self.config
        n = tokens.shape[0]
        cos, sin = rope_tables(c, n)
        at = torch.arange(n)
        h = embedding(tokens, self.weight("model.embed_tokens.weight"))  # (T, D)
        for i in range(c.n_layers):
            layer = f"model.layers.{i}"
            x = rms_norm(h, self.weight(f"{layer}.input_layernorm.weight"), c.norm_eps)
            q = self.linear(x, f"{layer}.self_attn.q_proj").view(n, c.n_heads, c.head_dim)
            k = self.linear(x, f"{layer}.self_attn.k_proj").view(n, c.n_kv_heads, c.head_dim)
            v = self.linear(x, f"{layer}.self_attn.v_proj").view(n, c.n_kv_heads, c.head_dim)
            if c.qk_norm:
                q = rms_norm(q, self.weight(f"{layer}.self_attn.q_norm.weight"), c.norm_eps)
                k = rms_norm(k, self.weight(f"{layer}.self_attn.k_norm.weight"), c.norm_eps)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            group = c.n_heads // c.n_kv_heads
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
            scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(c.head_dim)
            hidden = at[None, :] > at[:, None]  # keys after the query
            window = c.window(i)
            if window is not None:
                hidden = hidden | (at[:, None] - at[None, :] >= window)
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)  # (heads, T, T)
            out = torch.einsum("hts,shd->thd", weights, v).reshape(n, c.n_heads * c.head_dim)
            h = h + self.linear(out, f"{layer}.self_attn.o_proj")
            x = rms_norm(h, self.weight(f"{layer}.post_attention_layernorm.weight"), c.norm_eps)
            gate, up = self.linear(x, f"{layer}.mlp.gate_proj"), self.linear(x, f"{layer}.mlp.up_proj")
            h = h + self.linear(silu(gate) * up, f"{layer}.mlp.down_proj")
        h = rms_norm(h, self.weight("model.norm.weight"), c.norm_eps)
        return h @ self.weight("model.embed_tokens.weight" if c.tied_embeddings else "lm_head.weight").T

    def loss(self, tokens: torch.Tensor, n_prompt: int) -> torch.Tensor:
        """Summed cross-entropy (nats) of tokens[n_prompt:] given what comes before each."""
        return cross_entropy(self.logits(tokens)[n_prompt - 1 : -1], tokens[n_prompt:], reduction="sum")
