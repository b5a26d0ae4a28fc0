"""A frozen decoder in one of the precisions with its adapter: loading, and passes over packed rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from rescoldo.engine.attend import Attend, PackedAttention, PrefixAttention, SharedPrefix
from rescoldo.engine.config import INPUT_NORM, INPUT_PROJECTION, INPUT_TABLE, SITES, DecoderConfig
from rescoldo.engine.converted import ConvertedWeights
from rescoldo.engine.converter import Converter, Weights, embed
from rescoldo.engine.head import Head, folded_norm
from rescoldo.engine.kernels.attention import Layout
from rescoldo.engine.kernels.blocks import KINDS, Matrix
from rescoldo.engine.kernels.ops import mix_key
from rescoldo.engine.kinds import A, B
from rescoldo.engine.layer import Layer, Rows
from rescoldo.engine.layer_inputs import LayerEmbeddings
from rescoldo.engine.linear import FrozenLinear
from rescoldo.engine.lora import GroupedLinear, LoraGroup, new_a
from rescoldo.engine.memory import layers_to_keep, parameter_shapes, weight_bytes
from rescoldo.engine.objective import targets_of
from rescoldo.engine.precisions import PRECISIONS, SMALL, Precision
from rescoldo.engine.rope import RopeTables
from rescoldo.engine.saved import SavedActivations
from rescoldo.engine.types import Example, LoraConfig
from rescoldo.engine.weights import OpenedModel, TensorSource

_EVALUATED_ROWS = 1024  # of a pass that measures losses, where one example has not more


def layer_of(name: str) -> int:
    """The layer that a tensor of the adapter belongs to."""
    return int(name.split(".")[2])


def new_parameters(config: DecoderConfig, lora: LoraConfig, seed: int) -> dict[str, torch.Tensor]:
    """New adapter weights, float32; each is a function of the seed and its own name. Magnitudes are set to those of the
    base model when it is loaded (LoraGroup)."""
    parameters: dict[str, torch.Tensor] = {}
    for name, shape in parameter_shapes(config, lora).items():
        if name.endswith(A):
            generator = torch.Generator().manual_seed(mix_key(seed, *name.encode()))
            parameters[name] = new_a(shape, generator)
        else:
            parameters[name] = torch.zeros(shape)
    return parameters


class LoraModel:
    """A frozen decoder with its adapter; made by `load`.

    Attributes:
        parameters: adapter weights, float32; change them in place, then call `sync`.
        keep_layers: the number of layers, from the top, whose activations a training pass keeps; the others are
            recomputed in the backward pass (`SavedActivations`). None: as many as fit into the memory that is free when
            the pass begins.
        share_prefix: whether the common prefix of examples is computed once.
    """

    def __init__(
        self,
        config: DecoderConfig,
        precision: str,
        lora: LoraConfig | None,
        parameters: dict[str, torch.Tensor],
        embedding: Matrix,
        head: Head,
        layers: list[Layer],
        frozen_state: dict[str, torch.Tensor],
        layer_embeddings: LayerEmbeddings | None = None,
    ) -> None:
        self.config, self.precision, self.lora, self.parameters = config, precision, lora, parameters
        self.embedding, self.head, self.layers, self.layer_embeddings = embedding, head, layers, layer_embeddings
        self.dtype = head.dtype
        self.keep_layers: int | None = None
        self.share_prefix = True
        self._frozen_state = frozen_state
        self._enabled = True
        self._rope = RopeTables(config)

    @classmethod
    def load(
        cls,
        base: OpenedModel,
        precision: str,
        lora: LoraConfig | None,
        *,
        seed: int,
        calibration: Sequence[Example] | None = None,
        frozen_state: dict[str, torch.Tensor] | None = None,
        on_progress: Callable[[float], None] | None = None,
        keep_converted: bool = False,
    ) -> LoraModel:
        """Build the model layer by layer, reading each weight once.

        Args:
            base: an opened base model.
            precision: a key of PRECISIONS.
            lora: the adapter to train; None for the base model alone.
            seed: for the adapter's initial weights.
            calibration: examples for measuring input ranges; required for calibrated precisions without `frozen_state`.
            frozen_state: the result of `frozen_state()` at the start of the run, with which resuming is exact.
            on_progress: called with the finished fraction, 0..1.
            keep_converted: use the disk cache of converted weights for large models.

        Raises:
            RescoldoError: a tensor is missing or damaged.
        """
        config, source = base.config, base.tensors
        names = set(source.names())
        parameters = new_parameters(config, lora, seed) if lora else {}
        row = PRECISIONS[precision]
        dtype = row.dtype
        embedding = _embedding(source, config, row)
        layer_embeddings = _layer_embeddings(source, config, dtype) if config.layer_input_dim else None
        head_name = "model.embed_tokens.weight" if config.tied_embeddings else "lm_head.weight"
        converted: ConvertedWeights | None = None
        if keep_converted and row.calibrated and config.linear_weights > SMALL and not base.stored_bytes():
            converted = ConvertedWeights(base.fingerprint(), precision, weight_bytes(config, precision))
        converter = Converter(config, precision, calibration, frozen_state, embedding, converted, layer_embeddings)
        layers: list[Layer] = []
        for i in range(config.n_layers):
            prefix = f"model.layers.{i}"
            stored = {n: f"{n}.weight" for n in config.norm_shapes(i)} | {n: n for n in config.input_shapes()}
            small = {n: source.get(f"{prefix}.{name}").to(dtype, copy=True) for n, name in stored.items()}

            def build(site: str, frozen: FrozenLinear, layer: int = i, prefix: str = prefix) -> LoraGroup:
                places, start, biases = [], 0, []
                for member in config.members(site, layer):
                    out = config.linear_shape(member.split(".")[1], layer)[0]
                    places.append(GroupedLinear(f"{prefix}.{member}", start, start + out))
                    bias = f"{prefix}.{member}.bias"
                    biases.append(source.get(bias).to(dtype) if bias in names else torch.zeros(out, dtype=dtype))
                    start += out
                has_bias = any(f"{place.name}.bias" in names for place in places)
                return LoraGroup(frozen, places, torch.cat(biases) if has_bias else None, lora, parameters)

            weights = {
                site: _weights(source, [f"{prefix}.{m}.weight" for m in config.members(site, i)], row) for site in SITES
            }
            groups: dict[str, LoraGroup] = converter.layer(i, weights, small, build)
            layers.append(Layer(i, config, groups, small, dtype))
            del weights
            source.release()  # pages read from the file count as this process's memory until they are unmapped
            if on_progress:
                on_progress((i + 1) / config.n_layers)
        final_norm = folded_norm(source.get("model.norm.weight"), config, dtype)
        head = converter.head(_weights(source, [head_name], row)[0], final_norm)
        if converted:
            converted.prune()
        output = Head(head, final_norm, config)
        return cls(config, precision, lora, parameters, embedding, output, layers, converter.state, layer_embeddings)

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """Those of `parameters` that are trained; the others keep their initial values."""
        return {name: p for name, p in self.parameters.items() if self.lora and self.lora.trains(name)}

    @property
    def first_layer(self) -> int:
        """The lowest layer with an adapter, where the backward pass ends."""
        return self.lora.first_layer if self.lora else 0

    def frozen_state(self) -> dict[str, torch.Tensor]:
        """What resuming needs to rebuild exactly the same frozen weights in addition to the base: int8's
        calibration."""
        return self._frozen_state

    def sync(self) -> None:
        """Apply changes of `parameters`."""
        for layer in self.layers:
            for group in layer.groups.values():
                group.sync()

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Inside the block, the model is the base model."""
        try:
            self._enable(False)
            yield
        finally:
            self._enable(True)

    @property
    def untrained(self) -> bool:
        """Whether the adapter adds nothing: its B is zero, and it has no magnitudes. False inside `without_adapter`."""
        if self.lora is None or self.lora.magnitude or not self._enabled:
            return False
        return not any(bool(tensor.any()) for name, tensor in self.parameters.items() if name.endswith(B))

    def _enable(self, enabled: bool) -> None:
        self._enabled = enabled
        for layer in self.layers:
            for group in layer.groups.values():
                group.enabled = enabled
        self.sync()

    def rows(
        self,
        positions: torch.Tensor,
        identity: torch.Tensor | None = None,
        seed: tuple[int, int] | None = None,
        *,
        bare: int = 0,
    ) -> Rows:
        """The Rows at these positions (T,) int64; with dropout if a seed is given, the first `bare` of them without
        the adapter."""
        threshold = round(256 * self.lora.dropout) if self.lora and seed is not None else 0
        return Rows(self._rope.at(positions), positions if identity is None else identity, seed, threshold, bare)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (T,) int64 → (T, D) float32."""
        return embed(self.embedding, tokens, self.config)

    def saved_activations(self, rows: Rows, attend: Attend, other_rows: int = 0) -> SavedActivations:
        """The object that keeps a pass's activations for its backward pass, leaving memory for passes over `other_rows`
        rows."""
        wanted, lowest = self.keep_layers, self.first_layer
        if wanted is None:
            wanted = layers_to_keep(self.config, self.dtype.itemsize, len(rows.identity) + other_rows, self.lora)
        first = self.config.n_layers - min(wanted, self.config.n_layers - lowest)
        return SavedActivations(self.layers, rows, attend, first, lowest)

    def forward(
        self, tokens: torch.Tensor, rows: Rows, attend: Attend, saved: SavedActivations | None = None
    ) -> torch.Tensor:
        """tokens (T,) int64 → the last layer's output (T, D) float32. It is the one forward pass of training, prefill
        and decoding, which differ in `attend`; with some, the pass ends earlier. `saved` keeps what the backward pass
        needs."""
        h = self.embed(tokens)
        if self.layer_embeddings is not None:
            rows.layer_inputs[:] = self.layer_embeddings.rows(tokens, h)
        for i, layer in enumerate(self.layers):
            if saved is not None:
                saved.before(i, h)
            h, activations = layer.forward(h, rows, attend)
            if saved is not None:
                saved.after(i, activations)
            del activations  # free them before the next layer allocates its own
            if attend.stops_at_keys(i):
                break
        return h

    def prefix(self, tokens: Sequence[int], *, adapter: bool = True) -> SharedPrefix:
        """What later rows need of a shared prefix."""
        attend = PrefixAttention(len(tokens), self.config.kv_layers[-1])
        rows = self.rows(torch.arange(len(tokens)), bare=0 if adapter else len(tokens))
        self.forward(torch.tensor(tokens), rows, attend)
        return attend.found

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (T,) int64 → logits (T, vocabulary) float32 of one sequence, without dropout."""
        n = len(tokens)
        h = self.forward(tokens, self.rows(torch.arange(n)), PackedAttention(Layout((0, n), 0)))
        return self.head.logits(h).float()


def _embedding(source: TensorSource, config: DecoderConfig, precision: Precision) -> Matrix:
    """The embedding table; in the file's blocks if the linears stay so too."""
    name = "model.embed_tokens.weight"
    if precision.keeps_blocks(config):
        return _weights(source, [name], precision)[0]
    embedding = source.get(name)
    return embedding if embedding.dtype in (precision.dtype, torch.bfloat16) else embedding.to(precision.dtype)


def _layer_embeddings(source: TensorSource, config: DecoderConfig, dtype: torch.dtype) -> LayerEmbeddings:
    """The per-layer embeddings: the table stays in the file, because only a few rows are ever read."""
    blocks = source.quantized(INPUT_TABLE)
    table: Matrix = blocks if blocks is not None and blocks.kind in KINDS else source.get(INPUT_TABLE)
    return LayerEmbeddings(table, source.get(INPUT_PROJECTION), source.get(INPUT_NORM), config, dtype)


def _weights(source: TensorSource, names: Sequence[str], precision: Precision) -> Weights:
    """Matrices that share an input: in the file's blocks if products can use them, else dense."""
    if precision.calibrated:
        stored = [source.quantized(name) for name in names]
        parts = [blocks for blocks in stored if blocks is not None and blocks.kind in KINDS]
        if len(parts) == len(stored):
            return parts
    return [source.get(name) for name in names]


def evaluate_loss(
    model: LoraModel, examples: Sequence[Example], on_progress: Callable[[int], None] | None = None
) -> list[tuple[float, float]]:
    """For each example the weighted sum of its targets' losses in nats, and the sum of their weights (their number if
    it has none); common prefixes are computed once. An adapter that adds nothing yet is left out."""
    from rescoldo.engine.prefix import group_by_prefix

    results: list[tuple[float, float]] = [(0.0, 0.0)] * len(examples)
    done = 0
    with model.without_adapter() if model.untrained else contextlib.nullcontext():
        for group in group_by_prefix(examples, share=model.share_prefix):
            p = group.length
            prefix = model.prefix(examples[group.indices[0]].tokens[:p]) if p else None
            for together in _passes(examples, group.indices, p):
                chosen = [examples[i] for i in together]
                for i, loss in zip(together, _losses(model, chosen, p, prefix), strict=True):
                    results[i] = (loss, examples[i].total_weight)
                    done += 1
                    if on_progress:
                        on_progress(done)
    return results


def _passes(examples: Sequence[Example], indices: Sequence[int], start: int) -> Iterator[list[int]]:
    """The examples of a group in passes of some rows: the products of few rows are slower."""
    together: list[int] = []
    rows = 0
    for i in indices:
        own = len(examples[i].tokens) - start
        if together and rows + own > _EVALUATED_ROWS:
            yield together
            together, rows = [], 0
        together.append(i)
        rows += own
    yield together


def _losses(model: LoraModel, examples: Sequence[Example], start: int, prefix: SharedPrefix | None) -> list[float]:
    """The weighted sum of each example's losses in one pass over their tokens from `start` on."""
    tokens: list[int] = []
    positions, bounds, ends = [], [0], [0]
    for example in examples:
        for a, b in example.spans(start):
            positions.append(torch.arange(a, b) if a == start else torch.arange(b - a))
            bounds.append(ends[-1] + b - start)
        tokens += example.tokens[start:-1]
        ends.append(len(tokens))
    attend = PackedAttention(Layout(tuple(bounds), start), prefix)
    h = model.forward(torch.tensor(tokens), model.rows(torch.cat(positions)), attend)
    losses = []
    for example, first, end in zip(examples, ends, ends[1:], strict=False):
        targets = targets_of([example], [0], start)
        losses.append(model.head.loss(h[first:end], targets.at, targets.tokens, targets.weights)[0])
    return losses


def log_probabilities(model: LoraModel, examples: Sequence[Example]) -> list[float]:
    """The summed log-probability (nats) of each example's targets; common prefixes are computed once."""
    return [-nats for nats, _ in evaluate_loss(model, examples)]
