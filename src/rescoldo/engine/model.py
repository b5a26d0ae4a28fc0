"""A frozen decoder in one of four precisions with its adapter: loading, and passes over packed rows."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch

from rescoldo.engine.auto import SMALL, layers_to_keep, linear_weights, stays_stored, weight_bytes
from rescoldo.engine.block import Block, Rows, Saved
from rescoldo.engine.config import LINEARS, DecoderConfig
from rescoldo.engine.converted import ConvertedWeights
from rescoldo.engine.kernels.attention import Layout
from rescoldo.engine.kernels.blocks import KINDS, Matrix, select_rows
from rescoldo.engine.kernels.choose import kernels
from rescoldo.engine.kernels.ops import mix_key
from rescoldo.engine.linear import FrozenLinear
from rescoldo.engine.lora import LoraGroup, Place, new_adapter
from rescoldo.engine.precision import Converter, Weights
from rescoldo.engine.rope import rope_tables
from rescoldo.engine.types import CALIBRATED, Example, LoraConfig
from rescoldo.engine.weights import OpenedModel, TensorSource

Kept = Saved | torch.Tensor | None  # a layer's activations, its input, or nothing: see LoraModel.forward
_HEAD_ROWS = 512  # rows of logits at a time: 512 x 49,152 in bfloat16 are 50 MB
GROUPS: dict[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def parameter_shapes(config: DecoderConfig, lora: LoraConfig) -> dict[str, tuple[int, int]]:
    """The adapter's tensors and their shapes: "model.layers.0.self_attn.q_proj.lora_A" → (rank, in), …"""
    shapes: dict[str, tuple[int, int]] = {}
    for i in range(config.n_layers):
        for members in GROUPS.values():
            for member in members:
                short = member.split(".")[1]
                if short in lora.targets:
                    out, into = config.linear_shape(short)
                    shapes[f"model.layers.{i}.{member}.lora_A"] = (lora.rank, into)
                    shapes[f"model.layers.{i}.{member}.lora_B"] = (out, lora.rank)
    return shapes


def layer_of(name: str) -> int:
    """Which layer a tensor of the adapter belongs to."""
    return int(name.split(".")[2])


def new_parameters(config: DecoderConfig, lora: LoraConfig, seed: int) -> dict[str, torch.Tensor]:
    """Fresh adapter weights, float32; each a function of the seed and its own name."""
    parameters: dict[str, torch.Tensor] = {}
    for name, shape in parameter_shapes(config, lora).items():
        if name.endswith("lora_A"):
            generator = torch.Generator().manual_seed(mix_key(seed, *name.encode()))
            base = name.removesuffix("lora_A")
            parameters[name], parameters[f"{base}lora_B"] = new_adapter((0, shape[1]), lora.rank, generator)
        else:
            parameters[name] = torch.zeros(shape)
    return parameters


class LoraModel:
    """See the module's docstring. Make one with `load`.

    Attributes:
        parameters: adapter weights, float32; change them in place, then call `sync`.
        keep_layers: for how many layers, from the top, a training pass keeps activations; the others are computed
            again on the way back (from their input, bit for bit the same). None: as many as fit into the memory that
            is free when the pass begins.
        share_prefix: whether examples with a common beginning share its computation.
    """

    def __init__(
        self,
        config: DecoderConfig,
        precision: str,
        lora: LoraConfig | None,
        parameters: dict[str, torch.Tensor],
        embedding: Matrix,
        head: FrozenLinear,
        final_norm: torch.Tensor,
        blocks: list[Block],
        frozen_state: dict[str, torch.Tensor],
    ) -> None:
        self.config, self.precision, self.lora, self.parameters = config, precision, lora, parameters
        self.embedding, self.final_norm, self.blocks = embedding, final_norm, blocks
        self.frozen_head, self.head = head, head.adapted(None, None)
        self.dtype = head.dtype
        self.keep_layers: int | None = None
        self.share_prefix = True
        self._frozen_state = frozen_state
        self._tables = rope_tables(config, 64)

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
            precision: "fp32", "bf16", "int8" or "nf4".
            lora: the adapter to train, None for the base model alone.
            seed: for the adapter's initial weights.
            calibration: examples to measure input ranges on; needed for int8 and nf4 without `frozen_state`.
            frozen_state: what `frozen_state()` returned when the run began: makes a resume exact.
            on_progress: called with the share done, 0..1.
            keep_converted: keep a large model's converted weights on the disk, and take them from there.

        Raises:
            RescoldoError: a tensor is missing or damaged.
        """
        config, source = base.config, base.tensors
        names = set(source.names())
        parameters = new_parameters(config, lora, seed) if lora else {}
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        embedding = _embedding(source, config, precision, dtype)
        head_name = "model.embed_tokens.weight" if config.tied_embeddings else "lm_head.weight"
        converted: ConvertedWeights | None = None
        if keep_converted and precision in CALIBRATED and linear_weights(config) > SMALL and not base.stored_bytes():
            converted = ConvertedWeights(base.fingerprint(), precision, weight_bytes(config, precision))
        converter = Converter(config, precision, calibration, frozen_state, embedding, converted)
        blocks: list[Block] = []
        for i in range(config.n_layers):
            prefix = f"model.layers.{i}"
            norms = {
                n: source.get(f"{prefix}.{n}.weight").to(dtype, copy=True)
                for n in ("input_layernorm", "post_attention_layernorm")
            }
            if config.qk_norm:
                norms |= {
                    n: source.get(f"{prefix}.self_attn.{n}.weight").to(dtype, copy=True) for n in ("q_norm", "k_norm")
                }

            def build(site: str, frozen: FrozenLinear, prefix: str = prefix) -> LoraGroup:
                places, start, biases = [], 0, []
                for member in GROUPS[site]:
                    out = config.linear_shape(member.split(".")[1])[0]
                    places.append(Place(f"{prefix}.{member}", start, start + out))
                    bias = f"{prefix}.{member}.bias"
                    biases.append(source.get(bias).to(dtype) if bias in names else torch.zeros(out, dtype=dtype))
                    start += out
                bias_all = torch.cat(biases) if any(f"{prefix}.{m}.bias" in names for m in GROUPS[site]) else None
                return LoraGroup(frozen, places, bias_all, lora, parameters)

            weights = {
                site: _weights(source, [f"{prefix}.{m}.weight" for m in members], precision)
                for site, members in GROUPS.items()
            }
            groups: dict[str, LoraGroup] = converter.layer(i, weights, norms, build)
            blocks.append(Block(i, config, groups, norms, dtype))
            del weights
            source.release()  # pages of the file that were read count as this process's memory until it lets them go
            if on_progress:
                on_progress((i + 1) / config.n_layers)
        final_norm = source.get("model.norm.weight").to(dtype)
        head = converter.head(_weights(source, [head_name], precision)[0], final_norm)
        if converted:
            converted.prune()
        return cls(config, precision, lora, parameters, embedding, head, final_norm, blocks, converter.state)

    def frozen_state(self) -> dict[str, torch.Tensor]:
        """What a resume needs to rebuild the very same frozen weights besides the base: int8's calibration."""
        return self._frozen_state

    def sync(self) -> None:
        """Take `parameters` over after they were changed."""
        for block in self.blocks:
            for group in (block.qkv, block.o, block.gate_up, block.down):
                group.sync()

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Inside, the model is the base model."""
        try:
            self._enable(False)
            yield
        finally:
            self._enable(True)

    def _enable(self, enabled: bool) -> None:
        for block in self.blocks:
            for group in (block.qkv, block.o, block.gate_up, block.down):
                group.enabled = enabled
        self.sync()

    def rows(
        self,
        bounds: Sequence[int],
        prefix: int,
        identity: torch.Tensor | None = None,
        seed: tuple[int, int] | None = None,
    ) -> Rows:
        """The Rows of examples of the given bounds behind a prefix of `prefix` tokens."""
        positions = torch.cat([torch.arange(prefix, prefix + b - a) for a, b in itertools.pairwise(bounds)])
        cos, sin = self.tables(int(positions.max()) + 1)
        cos, sin = cos[positions], sin[positions]
        threshold = round(256 * self.lora.dropout) if self.lora and seed is not None else 0
        if identity is None:
            identity = positions
        return Rows(Layout(tuple(bounds), prefix), cos, sin, identity, seed, threshold)

    def tables(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin for at least `length` positions, (≥ length, d/2) float32."""
        if length > self._tables[0].shape[0]:
            self._tables = rope_tables(self.config, max(length, 2 * self._tables[0].shape[0]))
        return self._tables

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (T,) int64 → (T, D) float32."""
        return select_rows(self.embedding, tokens)

    def forward(
        self,
        tokens: torch.Tensor,
        rows: Rows,
        prefix: list[torch.Tensor] | None,
        keep: list[Kept] | None,
    ) -> torch.Tensor:
        """tokens (T,) int64 → the last layer's output (T, D) float32.

        `prefix` is what `forward_prefix` gave; `keep` collects what `kept` needs for each layer's way back: its
        activations; or its input (T, D) if they are to be computed again; or None if that comes from the layer below.
        """
        h = tokens
        for h, _ in self._pass(tokens, rows, prefix, keep):  # noqa: B007 (the last one's)
            pass
        return h

    def forward_prefix(
        self, tokens: torch.Tensor, rows: Rows, keep: list[Kept] | None = None, beside: int = 0
    ) -> list[torch.Tensor]:
        """The pass over a shared prefix's tokens (P,) up to the last layer's keys and values: each layer's qkv (P, …),
        which is all that the examples need. `keep` as in `forward`, with room left for passes over `beside` rows."""
        return [saved.qkv for _, saved in self._pass(tokens, rows, None, keep, beside=beside, is_prefix=True)]

    def _pass(
        self,
        tokens: torch.Tensor,
        rows: Rows,
        prefix: list[torch.Tensor] | None,
        keep: list[Kept] | None,
        *,
        beside: int = 0,
        is_prefix: bool = False,
    ) -> Iterator[tuple[torch.Tensor, Saved]]:
        """Each layer's output (T, D) float32, always in the same memory, and activations; see `forward`."""
        h, first = self.embed(tokens), self._first_kept(len(tokens) + beside) if keep is not None else 0
        for i, block in enumerate(self.blocks):
            if keep is not None and i < first:
                keep.append(None if i % 2 else h.clone())
            keys_only = is_prefix and i == self.config.n_layers - 1
            h, saved = block.forward(h, rows, prefix[i] if prefix else None, keys_only)
            if keep is not None and i >= first:
                keep.append(saved)
            yield h, saved

    def kept(
        self,
        layer: int,
        keep: list[Kept],
        rows: Rows,
        prefix: list[torch.Tensor] | None,
        *,
        is_prefix: bool = False,
    ) -> Saved:
        """The activations of `layer`, the highest left in `keep`, which is taken off: as kept, or computed again.
        `is_prefix`: of a pass of `forward_prefix`."""
        saved = keep.pop()
        if saved is None:
            below = keep.pop()
            assert isinstance(below, torch.Tensor)
            saved, again = self.blocks[layer - 1].forward(below, rows, prefix[layer - 1] if prefix else None)
            keep.append(again)
        if isinstance(saved, torch.Tensor):
            keys_only = is_prefix and layer == self.config.n_layers - 1
            _, saved = self.blocks[layer].forward(saved, rows, prefix[layer] if prefix else None, keys_only)
        return saved

    def _first_kept(self, tokens: int) -> int:
        """The lowest layer whose activations a training pass over so many rows keeps."""
        wanted = self.keep_layers
        if wanted is None:
            wanted = layers_to_keep(self.config, self.dtype.itemsize, tokens)
        return self.config.n_layers - min(wanted, self.config.n_layers)

    def head_loss(
        self, h: torch.Tensor, at: torch.Tensor, targets: torch.Tensor, weight: float | None
    ) -> tuple[float, torch.Tensor | None]:
        """Cross-entropy at the rows `at` (n,) of h (T, D), for `targets` (n,).

        Returns:
            The summed loss in nats and, for a `weight` (each target's share of the step's loss), its gradient by h
            (T, D) float32.
        """
        op = kernels()
        chosen = h.index_select(0, at)
        x, normed, rstd = op.rms_norm(chosen, self.final_norm, self.config.norm_eps)
        total, dchosen = 0.0, torch.zeros_like(chosen)
        for start in range(0, len(at), _HEAD_ROWS):
            rows = slice(start, start + _HEAD_ROWS)
            logits, z = self.head.forward(x[rows], None)
            loss, dlogits = op.cross_entropy(logits, targets[rows], weight or 0.0)
            total += loss
            if weight is not None:
                dx, _ = self.head.backward(dlogits, x[rows], z, None, True)
                assert dx is not None
                op.rms_norm_backward(dx, normed[rows], rstd[rows], self.final_norm, dchosen[rows])
        if weight is None:
            return total, None
        dh = torch.zeros_like(h)
        dh.index_copy_(0, at, dchosen)
        return total, dh

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (T,) int64 → logits (T, vocabulary) float32 of one sequence, no dropout."""
        return self.head_logits(self.forward(tokens, self.rows((0, len(tokens)), 0), None, None)).float()

    def head_logits(self, h: torch.Tensor) -> torch.Tensor:
        """The last layer's output (n, D) float32 → logits (n, vocabulary) in the activations' dtype."""
        x, _, _ = kernels().rms_norm(h, self.final_norm, self.config.norm_eps)
        logits, _ = self.head.forward(x, None)
        return logits


def _embedding(source: TensorSource, config: DecoderConfig, precision: str, dtype: torch.dtype) -> Matrix:
    """The embedding table, in the file's blocks where the linears stay so too."""
    name = "model.embed_tokens.weight"
    if stays_stored(config, precision):
        return _weights(source, [name], precision)[0]
    embedding = source.get(name)
    return embedding if embedding.dtype in (dtype, torch.bfloat16) else embedding.to(dtype)


def _weights(source: TensorSource, names: Sequence[str], precision: str) -> Weights:
    """Matrices that share an input: in the file's blocks where products take them so, else as numbers."""
    if precision in CALIBRATED:
        stored = [source.quantized(name) for name in names]
        parts = [blocks for blocks in stored if blocks is not None and blocks.kind in KINDS]
        if len(parts) == len(stored):
            return parts
    return [source.get(name) for name in names]


def evaluate_loss(
    model: LoraModel, examples: Sequence[Example], on_progress: Callable[[int], None] | None = None
) -> list[tuple[float, int]]:
    """Per example the summed loss in nats and the number of its target tokens; common beginnings computed once."""
    from rescoldo.engine.prefix import group_by_prefix

    results: list[tuple[float, int]] = [(0.0, 0)] * len(examples)
    done = 0
    for group in group_by_prefix(examples, share=model.share_prefix):
        prefix = None
        p = group.length
        if p:
            prefix = model.forward_prefix(torch.tensor(examples[group.indices[0]].tokens[:p]), model.rows((0, p), 0))
        for i in group.indices:
            example = examples[i]
            tokens = torch.tensor(example.tokens[p:-1])
            h = model.forward(tokens, model.rows((0, len(tokens)), p), prefix, None)
            at = torch.arange(example.n_prompt - 1 - p, len(tokens))
            loss, _ = model.head_loss(h, at, torch.tensor(example.tokens[example.n_prompt :]), None)
            results[i] = (loss, example.n_targets)
            done += 1
            if on_progress:
                on_progress(done)
    return results


assert {m.split(".")[1] for members in GROUPS.values() for m in members} == set(LINEARS)
