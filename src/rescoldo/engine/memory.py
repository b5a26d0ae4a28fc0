"""The model of training's memory use, for choosing a precision, for `doctor`, and for the passes."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from rescoldo.engine.config import NORMS, SITES, DecoderConfig
from rescoldo.engine.head import HEAD_ROWS
from rescoldo.engine.kinds import MAGNITUDE, A, B
from rescoldo.engine.precisions import PRECISIONS
from rescoldo.engine.types import LoraConfig
from rescoldo.system.memory import memory_available

PROCESS = 520_000_000  # bytes: Python, torch, tokenizer and libraries, without weights
ADAPTERS_IN_MEMORY = 7  # weights, gradients, two moments, best epoch; and a checkpoint's copies while it is written
FROZEN_IN_MEMORY = 4  # the same without gradients and moments
HEADROOM = 0.9  # of the free memory


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of resident memory at the peak.

    Attributes:
        weights: the frozen model in its precision, including embeddings.
        adapter: the adapter, its gradients and optimizer state.
        layer_activations: what one layer keeps for its backward pass, averaged over the layers of the backward pass.
        other: the process itself, logits, one layer's temporary memory.
        n_layers: maximum number of layers that keep activations: those of the backward pass.
    """

    weights: int
    adapter: int
    layer_activations: int
    other: int
    n_layers: int

    @property
    def least(self) -> int:
        """With no layer's activations kept: about a third slower, but it never fails for them."""
        return self.weights + self.adapter + self.other

    @property
    def full(self) -> int:
        """With all layers' activations kept."""
        return self.least + self.n_layers * self.layer_activations

    def peak(self, free: int) -> int:
        """The expected peak if `free` bytes are free: as many layers as fit are kept."""
        return max(self.least, min(self.full, int(HEADROOM * free)))


def parameter_shapes(config: DecoderConfig, lora: LoraConfig) -> dict[str, tuple[int, ...]]:
    """The adapter's tensors and their shapes: "model.layers.0.self_attn.q_proj.lora_A" → (rank, in), …lora_B → (out,
    rank), and for kinds with magnitudes …lora_magnitude_vector → (out,)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(config.n_layers) if lora.layers is None else lora.layers:
        for member in (member for site in SITES for member in config.members(site, i)):
            short = member.split(".")[1]
            if short in lora.targets:
                (out, into), rank, module = (
                    config.linear_shape(short, i),
                    lora.rank_of(short),
                    f"model.layers.{i}.{member}",
                )
                shapes |= {f"{module}.{A}": (rank, into), f"{module}.{B}": (out, rank)}
                if lora.magnitude:
                    shapes[f"{module}.{MAGNITUDE}"] = (out,)
    return shapes


def adapter_parameters(decoder: DecoderConfig, lora: LoraConfig) -> int:
    """Parameters of the adapter, trained or not."""
    return sum(math.prod(shape) for shape in parameter_shapes(decoder, lora).values())


def trained_parameters(decoder: DecoderConfig, lora: LoraConfig) -> int:
    """Parameters of the adapter that are trained."""
    return sum(math.prod(shape) for name, shape in parameter_shapes(decoder, lora).items() if lora.trains(name))


def memory_need(
    decoder: DecoderConfig,
    precision: str,
    lora: LoraConfig,
    rows: int,
    stored: int | None = None,
    *,
    mapped: bool = False,
) -> MemoryNeed:
    """The memory that training uses at its peak.

    Args:
        decoder: the model's shapes.
        precision: of the frozen weights.
        lora: the adapter.
        rows: tokens of the largest micro-batch.
        stored: bytes of the linears' blocks in the file (BaseModel.stored_bytes).
        mapped: whether the embeddings are used directly from the file (BaseModel.maps_embedding).
    """
    row = PRECISIONS[precision]
    wide = row.element_bytes
    every = range(decoder.n_layers)
    largest = max(math.prod(decoder.linear_shape(name, i)) for i in every for name in decoder.layer_linears(i))
    converted = 2 * largest if row.calibrated else 0
    trained = decoder.n_layers - lora.first_layer
    inputs = _inputs(decoder, trained, wide, rows)
    kept = [kept_bytes(decoder, wide, rows, lora, i) for i in every[lora.first_layer :]]
    adapter = trained_parameters(decoder, lora)
    frozen = adapter_parameters(decoder, lora) - adapter
    work = 5 * max(kept_bytes(decoder, wide, rows, layer=i) for i in every)
    logit = wide + (4 if decoder.logits_cap is None else 12)  # a soft cap and its derivative are in float32
    work += HEAD_ROWS * decoder.vocab_size * logit
    return MemoryNeed(
        weights=weight_bytes(decoder, precision, stored, mapped=mapped),
        adapter=4 * (ADAPTERS_IN_MEMORY * adapter + FROZEN_IN_MEMORY * frozen),
        layer_activations=math.ceil(sum(kept) / len(kept)),
        other=PROCESS + converted + work + inputs,
        n_layers=trained,
    )


def weight_bytes(config: DecoderConfig, precision: str, stored: int | None = None, *, mapped: bool = False) -> int:
    """Bytes of the frozen model in this precision, including embeddings.

    Args:
        stored: bytes of the linears' blocks in the file, if it has blocks.
        mapped: the embeddings are used directly from the file, in the activations' dtype. If the head has its own
            weights, as in int8, only the tokens' rows are read, and the embeddings are not counted.
    """
    row = PRECISIONS[precision]
    linears = config.linear_weights * row.bytes_per_weight
    if stored is not None and row.keeps_blocks(config):
        linears = stored
    # gates and projections of per-layer embeddings; of their mapped table only some rows are read
    own = 3 * config.n_layers * config.layer_input_dim * config.hidden_size * row.element_bytes
    mapped = mapped and row.calibrated  # otherwise the head reads all embeddings in each product
    return int(linears + own) + table_bytes(config, precision, mapped=mapped)


def table_bytes(config: DecoderConfig, precision: str, *, mapped: bool) -> int:
    """Bytes of the embeddings and the head in the process, with the embeddings `mapped` from a bfloat16 file or not."""
    row, table = PRECISIONS[precision], config.vocab_size * config.hidden_size
    embeddings = 0 if mapped else table * row.element_bytes
    if row.calibrated:
        return int(table * PRECISIONS["int8"].bytes_per_weight) + embeddings
    head = 0 if config.tied_embeddings or (mapped and row.element_bytes == 2) else table * row.element_bytes
    return embeddings + head


def kept_bytes(config: DecoderConfig, element: int, tokens: int, lora: LoraConfig | None = None, layer: int = 0) -> int:
    """Bytes that a layer keeps for its backward pass: the normalized inputs of its norms (a part without a norm before
    it keeps its input), q, k, v, attention's output, gate and up; input, gate and embeddings in layers with their own
    embeddings; and with magnitudes the unscaled outputs of the adapted linears."""
    streams = 2 + sum(bool(behind) for _, behind in NORMS[config.norm_placement])
    head, own = config.head_size(layer), config.kv_source(layer) == layer
    q, kv = config.n_heads * head, config.n_kv_heads * head if own else 0
    kept = streams * config.hidden_size + 2 * config.mlp_size(layer) + 2 * q + 2 * kv
    if config.qk_norm:
        kept += q + kv
    if config.v_norm:
        kept += kv
    if config.layer_input_dim:
        kept += 2 * config.hidden_size + 2 * config.layer_input_dim
    if lora is not None and lora.magnitude:
        for site in SITES:
            members = [member.split(".")[1] for member in config.members(site, layer)]
            if any(name in lora.targets for name in members):
                kept += sum(config.linear_shape(name, layer)[0] for name in members)
    return tokens * element * kept


def _inputs(config: DecoderConfig, trained: int, element: int, tokens: int) -> int:
    """Bytes that a pass keeps in addition to its layers' activations: the input of every second recomputed layer, in
    float32; per-layer embeddings; keys and values that other layers attend to."""
    own = element * config.n_layers * config.layer_input_dim
    shared = 2 * (element + 4) * config.n_kv_heads * sum(config.head_size(i) for i in set(config.kv_sources))
    return tokens * (trained * config.hidden_size * 2 + own + shared)


def layers_to_keep(
    config: DecoderConfig, element: int, tokens: int, lora: LoraConfig | None = None, free: int | None = None
) -> int:
    """The number of layers whose activations fit into the free memory for `tokens` rows; the others are recomputed.

    Args:
        config: the model's shapes.
        element: bytes of an activation's element.
        tokens: rows of the pass.
        lora: the adapter; layers below its lowest one keep nothing.
        free: bytes to fit into; default: memory_available().
    """
    free = memory_available() if free is None else free
    lowest = lora.first_layer if lora else 0
    layers = [kept_bytes(config, element, tokens, lora, i) for i in range(lowest, config.n_layers)]
    room = HEADROOM * free - _inputs(config, len(layers), element, tokens) - 5 * max(layers)
    return sum(total <= room for total in itertools.accumulate(reversed(layers)))
