"""The output head: the last norm, the logits, and the loss on them with its gradient."""

from __future__ import annotations

import torch

from rescoldo.engine.activation import soft_cap
from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.kernels.choose import kernels
from rescoldo.engine.linear import FrozenLinear

HEAD_ROWS = 512  # rows of logits at a time: 512 x 49,152 in bfloat16 are 50 MB


class Head:
    """logits = norm(h) · Wᵀ.

    Args:
        frozen: W (V, D).
        final_norm: (D,) in the activations' dtype, including the division of the logits (`folded_norm`).
        config: the decoder's shapes.
    """

    def __init__(self, frozen: FrozenLinear, final_norm: torch.Tensor, config: DecoderConfig) -> None:
        self.products, self.final_norm, self.config = frozen.adapted(None, None), final_norm, config
        self.dtype = frozen.dtype

    def logits(self, h: torch.Tensor) -> torch.Tensor:
        """The last layer's output (n, D) float32 → logits (n, V) in the activations' dtype."""
        x, _, _ = kernels().rms_norm(h, self.final_norm, self.config.norm_eps)
        logits, _ = self.products.forward(x, None)
        cap = self.config.logits_cap
        return logits if cap is None else soft_cap(logits.float(), cap).to(logits.dtype)

    def loss(
        self,
        h: torch.Tensor,
        at: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor | None = None,
        scale: float | None = None,
    ) -> tuple[float, torch.Tensor | None]:
        """Cross-entropy at the rows `at` (n,) of h (T, D), for `targets` (n,), each times its weight.

        Args:
            weights: (n,) float32; None: 1 for each.
            scale: factor on the gradient; None: no gradient is computed.

        Returns:
            The weighted sum of the losses in nats, without `scale`, and its gradient w.r.t. h (T, D) float32.
        """
        op = kernels()
        chosen = h.index_select(0, at)
        x, normed, rstd = op.rms_norm(chosen, self.final_norm, self.config.norm_eps)
        total, dchosen = 0.0, torch.zeros_like(chosen)
        for start in range(0, len(at), HEAD_ROWS):
            rows = slice(start, start + HEAD_ROWS)
            dx: torch.Tensor | None
            if scale is not None and weights is None and self.config.logits_cap is None:
                loss, dx = self.products.cross_entropy(x[rows], targets[rows], scale)
            else:
                loss, dx = self._loss(x[rows], targets[rows], None if weights is None else weights[rows], scale)
            total += loss
            if dx is not None:
                op.rms_norm_backward(dx, normed[rows], rstd[rows], self.final_norm, dchosen[rows])
        if scale is None:
            return total, None
        dh = torch.zeros_like(h)
        dh.index_copy_(0, at, dchosen)
        return total, dh

    def _loss(
        self, x: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, scale: float | None
    ) -> tuple[float, torch.Tensor | None]:
        """`loss` of some normalized rows x (n, D), with separate operations; its gradient w.r.t. x."""
        logits, z = self.products.forward(x, None)
        cap, capped = self.config.logits_cap, None
        if cap is not None:
            capped = soft_cap(logits.float(), cap)
            logits = capped.to(logits.dtype, copy=True)  # the kernel may overwrite it
        if weights is None:
            loss, dlogits = kernels().cross_entropy(logits, targets, scale or 0.0)
        else:
            loss, dlogits = _weighted(logits, targets, weights, scale or 0.0)
        if scale is None:
            return loss, None
        if cap is not None and capped is not None:
            dlogits = (dlogits * (1 - (capped / cap).square())).to(dlogits.dtype)
        dx, _ = self.products.backward(dlogits, x, z, None, True)
        return loss, dx

    def log_probabilities(self, h: torch.Tensor, at: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The log-probability (n,) float32, in nats, of each of `targets` (n,) at the rows `at` (n,) of h (T, D)."""
        found = []
        for start in range(0, len(at), HEAD_ROWS):
            rows = slice(start, start + HEAD_ROWS)
            scores = self.logits(h.index_select(0, at[rows])).float()
            found.append(-torch.nn.functional.cross_entropy(scores, targets[rows], reduction="none"))
        return torch.cat(found)


def _weighted(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, scale: float
) -> tuple[float, torch.Tensor]:
    """ops.cross_entropy with a weight for each row."""
    scores = logits.float()
    lse = torch.logsumexp(scores, dim=-1)
    losses = lse - scores.gather(1, targets[:, None])[:, 0]
    gradient = torch.exp(scores - lse[:, None])
    gradient[torch.arange(len(targets)), targets] -= 1
    return float((losses.double() * weights).sum()), (gradient * (weights * scale)[:, None]).to(logits.dtype)


def folded_norm(weight: torch.Tensor, config: DecoderConfig, dtype: torch.dtype) -> torch.Tensor:
    """The last norm's weight (D,) with the division of the logits folded in."""
    return weight.to(dtype) if config.logits_divisor == 1.0 else (weight.float() / config.logits_divisor).to(dtype)
