"""What training takes of memory: one model of it for the choice of a precision, for `doctor` and for the passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rescoldo.engine.config import NORMS, SITES, DecoderConfig
from rescoldo.engine.head import HEAD_ROWS
from rescoldo.engine.kinds import MAGNITUDE, A, B
from rescoldo.engine.precisions import PRECISIONS
from rescoldo.engine.types import LoraConfig
from rescoldo.system.memory import memory_available

PROCESS = 520_000_000  # bytes: Python, torch, tokenizer and what they load, before any weight
ADAPTERS_IN_MEMORY = 7  # weights, gradients, two moments, best epoch; and a checkpoint's copies while it is written
HEADROOM = 0.9  # of the free memory


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of resident memory at the peak.

    Attributes:
        weights: the frozen model in its precision, embeddings included.
        adapter: the adapter, its gradients and optimizer.
        layer_activations: what one layer keeps for its backward pass.
        other: the process itself, logits, one layer's work.
        n_layers: layers whose activations would be kept at best: those that the backward pass goes through.
    """

    weights: int
    adapter: int
    layer_activations: int
    other: int
    n_layers: int

    @property
    def least(self) -> int:
        """With no layer's activations kept: slower by about a third, never killed for them."""
        return self.weights + self.adapter + self.other

    @property
    def full(self) -> int:
        """With all layers' activations kept."""
        return self.least + self.n_layers * self.layer_activations

    def peak(self, free: int) -> int:
        """What it will come to where `free` bytes are free: as many layers as fit are kept."""
        return max(self.least, min(self.full, int(HEADROOM * free)))


def parameter_shapes(config: DecoderConfig, lora: LoraConfig) -> dict[str, tuple[int, ...]]:
    """The adapter's tensors and their shapes: "model.layers.0.self_attn.q_proj.lora_A" → (rank, in), …lora_B → (out,
    rank), and for kinds with magnitudes …lora_magnitude_vector → (out,)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(config.n_layers) if lora.layers is None else lora.layers:
        for member in (member for site in SITES for member in config.members(site)):
            short = member.split(".")[1]
            if short in lora.targets:
                (out, into), rank, module = (
                    config.linear_shape(short),
                    lora.rank_of(short),
                    f"model.layers.{i}.{member}",
                )
                shapes |= {f"{module}.{A}": (rank, into), f"{module}.{B}": (out, rank)}
                if lora.magnitude:
                    shapes[f"{module}.{MAGNITUDE}"] = (out,)
    return shapes


def adapter_parameters(decoder: DecoderConfig, lora: LoraConfig) -> int:
    """Trained parameters."""
    return sum(math.prod(shape) for shape in parameter_shapes(decoder, lora).values())


def memory_need(
    decoder: DecoderConfig,
    precision: str,
    lora: LoraConfig,
    rows: int,
    stored: int | None = None,
    *,
    mapped: bool = False,
) -> MemoryNeed:
    """What training takes at its peak.

    Args:
        decoder: the model's shapes.
        precision: of the frozen weights.
        lora: the adapter.
        rows: tokens of the largest micro-batch.
        stored: bytes of the linears' blocks in the file (BaseModel.stored_bytes).
        mapped: whether the embeddings stay in the file (BaseModel.maps_embedding).
    """
    row = PRECISIONS[precision]
    wide = row.element_bytes
    largest = max(out * into for out, into in map(decoder.linear_shape, decoder.linears))
    converted = 2 * largest if row.calibrated else 0
    trained = decoder.n_layers - lora.first_layer
    inputs = trained * rows * decoder.hidden_size * 2  # float32, of every second layer
    logit = wide + (4 if decoder.logits_cap is None else 12)  # a soft cap and its slope are in float32
    work = 5 * kept_bytes(decoder, wide, rows) + HEAD_ROWS * decoder.vocab_size * logit
    return MemoryNeed(
        weights=weight_bytes(decoder, precision, stored, mapped=mapped),
        adapter=4 * ADAPTERS_IN_MEMORY * adapter_parameters(decoder, lora),
        layer_activations=kept_bytes(decoder, wide, rows, lora),
        other=PROCESS + converted + work + inputs,
        n_layers=trained,
    )


def weight_bytes(config: DecoderConfig, precision: str, stored: int | None = None, *, mapped: bool = False) -> int:
    """Bytes of the frozen model in this precision, embeddings included.

    Args:
        stored: bytes of the linears' blocks in the file, if it has such.
        mapped: the embeddings stay in the file in the activations' dtype. Where the head has weights of its own, as in
            int8, only the rows of the tokens are read of them, and they are not counted.
    """
    row, table = PRECISIONS[precision], config.vocab_size * config.hidden_size
    linears = config.linear_weights * row.bytes_per_weight
    if stored is not None and row.keeps_blocks(config):
        linears = stored
    if row.calibrated:
        head = table * PRECISIONS["int8"].bytes_per_weight
        return int(linears + head + (0 if mapped else table * row.element_bytes))
    return int(linears + (1 if config.tied_embeddings else 2) * table * row.element_bytes)


def kept_bytes(config: DecoderConfig, element: int, tokens: int, lora: LoraConfig | None = None) -> int:
    """Bytes that one layer keeps for its backward pass: what its norms normalized (an MLP or attention without a norm
    before it keeps its input), q, k, v, attention's output, gate and up; and with magnitudes the outputs of the adapted
    linears before them."""
    streams = 2 + sum(bool(behind) for _, behind in NORMS[config.norm_placement])
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    kept = streams * config.hidden_size + 2 * config.intermediate_size + 2 * q + 2 * kv
    if config.qk_norm:
        kept += q + kv
    if lora is not None and lora.magnitude:
        for site in SITES:
            members = [member.split(".")[1] for member in config.members(site)]
            if any(name in lora.targets for name in members):
                kept += sum(config.linear_shape(name)[0] for name in members)
    return tokens * element * kept


def layers_to_keep(
    config: DecoderConfig, element: int, tokens: int, lora: LoraConfig | None = None, free: int | None = None
) -> int:
    """For how many layers the activations of `tokens` rows fit into the free memory; the others are recomputed.

    Args:
        config: the model's shapes.
        element: bytes of an activation's element.
        tokens: rows of the pass.
        lora: the adapter; nothing is kept of the layers below its lowest.
        free: bytes to fit into; memory_available() where left out.
    """
    free = memory_available() if free is None else free
    layer = kept_bytes(config, element, tokens, lora)
    trained = config.n_layers - (lora.first_layer if lora else 0)
    inputs = trained * tokens * config.hidden_size * 2  # of every second layer that is recomputed
    return max(0, min(trained, int((HEADROOM * free - inputs - 5 * layer) // layer)))
