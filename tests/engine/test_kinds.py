"""The kinds of adapter: logits, gradients and training steps in fp32 against PEFT, and where the backward pass ends."""

from __future__ import annotations

import pytest
import torch

from rescoldo.doctor.needs import checkpoint_bytes
from rescoldo.engine.attend import PackedAttention
from rescoldo.engine.config import LINEARS
from rescoldo.engine.kinds import KINDS, MAGNITUDE, A, AdapterKind, B, kind_of
from rescoldo.engine.layer import Layer
from rescoldo.engine.memory import adapter_parameters, kept_bytes, layers_to_keep, memory_need, trained_parameters
from rescoldo.engine.model import LoraModel
from rescoldo.engine.reference import ReferenceDecoder
from rescoldo.engine.types import LoraConfig
from rescoldo.training.optimizer import AdamW, clip
from tests.engine.common import (
    ATTENTION,
    MIXED,
    assert_equal_gradients,
    cosine,
    distance,
    example,
    gradient,
    peft_parameters,
    peft_twin,
    their_loss,
    tiny_base,
    tiny_lora,
)

torch.set_num_threads(1)

MLP = LINEARS[4:]


def _lora(**more: object) -> LoraConfig:
    return LoraConfig(**{"rank": 4, "alpha": 8, "dropout": 0.0, "targets": LINEARS, **more})  # type: ignore[arg-type]


SHAPES: dict[str, LoraConfig] = {
    **{kind: _lora(kind=kind) for kind in KINDS},
    "dora-some": _lora(kind="dora", targets=("k_proj", "up_proj", "down_proj")),
    "ranks": _lora(ranks={"q_proj": 2, "v_proj": 7, "down_proj": 9}, alphas={"k_proj": 3.0}),
    "dora-ranks": _lora(kind="dora", ranks={"q_proj": 2, "up_proj": 7}, alphas={"up_proj": 3.0}),
    "rslora-ranks": _lora(kind="rslora", ranks={"q_proj": 9}, alphas={"q_proj": 3.0}),
    **{f"layers-{at}": _lora(layers=at) for at in ((2,), (1, 2), (0,), (1,))},
    **{f"last-{t[0]}": _lora(layers=(1, 2), targets=t) for t in (("down_proj",), ("o_proj",), ("q_proj",), MLP)},
    "last-dora": _lora(kind="dora", layers=(2,), targets=("v_proj", "gate_proj")),
}


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])  # qwen2: with biases, which a magnitude does not scale
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_every_gradient_equal_peft(shape: str, architecture: str) -> None:
    model = tiny_lora(architecture, lora=SHAPES[shape], num_hidden_layers=3)
    theirs = peft_twin(model, architecture, num_hidden_layers=3)
    loss = their_loss(theirs, MIXED)
    loss.backward()
    ours, gradients = gradient(model, MIXED)
    assert ours == pytest.approx(float(loss.detach()), abs=1e-5)
    assert gradients.keys() == model.trained.keys() == peft_parameters(theirs).keys()
    assert_equal_gradients(gradients, theirs, within=5e-5, whole=1e-5)


@pytest.mark.parametrize("shape", ["dora", "layers-(1, 2)", "last-dora"])
@pytest.mark.parametrize("keep", [0, 1, 2])
def test_recomputed_layers_have_the_same_gradients(shape: str, keep: int) -> None:
    model = tiny_lora(lora=SHAPES[shape], num_hidden_layers=5)
    _, expected = gradient(model, MIXED)
    model.keep_layers = keep
    _, found = gradient(model, MIXED, [[0], [1], [2]])
    assert distance(found, expected) < 1e-5


def test_the_plain_formula_of_a_magnitude() -> None:
    model = tiny_lora("qwen2", lora=SHAPES["dora-ranks"])
    base = tiny_base("qwen2")
    parameters = {name: p.clone().requires_grad_() for name, p in model.parameters.items()}
    plain = ReferenceDecoder(base.config, base.tensors, model.lora, parameters)
    total = torch.stack([plain.loss(torch.tensor(one.tokens), one.n_prompt) for one in MIXED]).sum()
    (total / sum(one.n_targets for one in MIXED)).backward()
    _, gradients = gradient(model, MIXED)
    assert distance(gradients, {name: p.grad for name, p in parameters.items() if p.grad is not None}) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
def test_a_fresh_adapter_changes_nothing(precision: str) -> None:
    """A magnitude begins as the length that its row has in the weights' own precision."""
    tokens = torch.arange(5, 60)
    found = []
    for kind in ("lora", "dora"):
        model = LoraModel.load(
            tiny_base("llama", intermediate_size=128),
            precision,
            _lora(kind=kind),
            seed=7,
            calibration=[example(40, 20, seed=99)],
        )
        found.append(model.logits(tokens))
    assert (found[0] - found[1]).abs().max() <= (1e-5 if precision == "fp32" else 0.03 * found[0].abs().max())


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_lower_precisions_have_about_the_same_gradients(precision: str) -> None:
    """As near to fp32's as plain LoRA's are, magnitudes included."""
    found = {}
    for kind in ("lora", "dora"):
        full, low = (tiny_lora(precision=p, lora=_lora(kind=kind), intermediate_size=128) for p in ("fp32", precision))
        with torch.no_grad():
            for name, parameter in low.parameters.items():
                parameter.copy_(full.parameters[name])
        low.sync()
        found[kind] = cosine(gradient(low, MIXED)[1], gradient(full, MIXED)[1])
    assert found["dora"] > min(0.999, found["lora"] - 0.02)


def test_a_kind_that_freezes_a_matrix_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the row says so: gradients, moments, what is counted and what is planned for are of the others."""
    dora = KINDS["dora"]
    row = AdapterKind("DoRA of B alone", dora.scale, True, dora.peft, frozenset({MAGNITUDE, A}))
    monkeypatch.setitem(KINDS, "row", row)
    model = tiny_lora("qwen2", lora=_lora(kind="row", ranks={"q_proj": 2}))
    theirs = peft_twin(model, "qwen2")
    loss = their_loss(theirs, MIXED)
    loss.backward()
    ours, gradients = gradient(model, MIXED)
    assert ours == pytest.approx(float(loss.detach()), abs=1e-5)
    assert {name.rpartition(".")[2] for name in gradients} == {B}
    assert_equal_gradients(gradients, theirs, within=5e-5, whole=1e-5)
    before = {name: p.clone() for name, p in model.parameters.items()}
    optimizer = AdamW(model.trained, 0.1)
    optimizer.update(gradients, 1e-2, 1)
    changed = {name for name, p in model.parameters.items() if not torch.equal(p, before[name])}
    assert changed == gradients.keys() == optimizer.first.keys()
    assert model.lora is not None
    assert trained_parameters(model.config, model.lora) == sum(p.numel() for p in model.trained.values())
    assert kind_of(row.peft) == "dora"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_lora_fa_has_the_gradients_of_b_that_lora_has(precision: str) -> None:
    """In each kind of product; A's are not made."""
    found = {}
    for kind in ("lora", "lora-fa"):
        model = tiny_lora(precision=precision, lora=_lora(kind=kind), intermediate_size=128)
        _, found[kind] = gradient(model, MIXED)
    assert {name.rpartition(".")[2] for name in found["lora-fa"]} == {B}
    assert all(torch.equal(g, found["lora"][name]) for name, g in found["lora-fa"].items())


@pytest.mark.parametrize("kind", ["rslora", "dora", "lora-fa"])
def test_steps_of_training_equal_peft(kind: str) -> None:
    """With LoRA+ too: the same curve and, at its end, the same weights."""
    from peft.optimizers import create_loraplus_optimizer

    model = tiny_lora(lora=_lora(kind=kind, ranks={"q_proj": 2}))
    start = {name: p.clone() for name, p in model.parameters.items()}
    theirs = peft_twin(model, "llama")
    data = [example(2 + i % 5, 6 + i, seed=i, prefix=range(18) if i % 3 else ()) for i in range(12)]
    optimizer, curve = AdamW(model.trained, 0.0, 4.0), []
    torch_optimizer = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=2e-3, loraplus_lr_ratio=4.0, loraplus_weight_decay=0.0
    )
    for group in torch_optimizer.param_groups:
        group["weight_decay"] = 0.0
    expected = []
    for step in range(12):
        batch = [data[(4 * step + i) % 12] for i in range(4)]
        loss, gradients = gradient(model, batch, [[0, 1], [2], [3]], step=step)
        clip(gradients, 1.0)
        optimizer.update(gradients, 2e-3, step + 1)
        model.sync()
        curve.append(loss)
        theirs_loss = their_loss(theirs, batch)
        torch_optimizer.zero_grad()
        theirs_loss.backward()
        torch.nn.utils.clip_grad_norm_(list(peft_parameters(theirs).values()), 1.0)
        torch_optimizer.step()
        expected.append(float(theirs_loss.detach()))
    assert curve[0] > curve[-1] + 0.1
    assert max(abs(a - b) for a, b in zip(curve, expected, strict=True)) < 1e-3
    assert all(torch.equal(model.parameters[name], start[name]) for name in start.keys() - model.trained.keys())
    moved = {name: model.parameters[name] - start[name] for name in model.trained}
    assert distance(moved, {name: p.detach() - start[name] for name, p in peft_parameters(theirs).items()}) < 0.02


def test_nothing_is_computed_or_kept_below_the_lowest_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass ends at layer 2, and there at the MLP, where alone there are adapters."""
    model = tiny_lora(lora=_lora(layers=(2, 3), targets=("down_proj",)), num_hidden_layers=4)
    visited: list[tuple[str, int]] = []
    whole = Layer.backward

    def backward(self: Layer, *arguments: object, **more: object) -> None:
        visited.append(("layer", self.index))
        whole(self, *arguments, **more)  # type: ignore[arg-type]

    attention = PackedAttention.backward

    def attended(self: PackedAttention, layer: int, *arguments: object) -> object:
        visited.append(("attention", layer))
        return attention(self, layer, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Layer, "backward", backward)
    monkeypatch.setattr(PackedAttention, "backward", attended)
    one = example(30, 4, seed=2)
    _, gradients = gradient(model, [one])
    assert visited == [("layer", 3), ("attention", 3), ("layer", 2)]
    assert {name.split(".")[2] for name in gradients} == {"2", "3"}
    for wanted in (0, 1, 9):
        model.keep_layers = wanted
        rows = model.rows(torch.arange(8))
        saved = model.saved_activations(rows, PackedAttention.__new__(PackedAttention))
        for layer in range(4):
            saved.before(layer, torch.zeros(8, 64))
        assert saved.lowest == 2
        assert set(saved._inputs) == ({2} if wanted < 2 else set())
        assert saved.first_kept == 4 - min(wanted, 2)


def test_memory_knows_layers_magnitudes_and_what_is_frozen() -> None:
    decoder = tiny_base("llama", num_hidden_layers=4).config
    whole, last = _lora(targets=ATTENTION), _lora(targets=ATTENTION, layers=(3,))
    full, part = (memory_need(decoder, "bf16", lora, 100) for lora in (whole, last))
    assert (full.n_layers, part.n_layers) == (4, 1)
    assert full.adapter == 4 * part.adapter
    assert part.full < full.full
    assert layers_to_keep(decoder, 2, 100, last, 1 << 40) == 1
    sizes = [kept_bytes(decoder, 2, 1, _lora(kind=kind, targets=("down_proj",))) for kind in ("lora", "dora")]
    assert sizes[1] - sizes[0] == 2 * decoder.hidden_size  # the output of down_proj before its magnitude
    some = memory_need(decoder, "bf16", _lora(kind="lora-fa", targets=ATTENTION), 100)
    assert full.adapter * 4 / 7 < some.adapter < full.adapter
    assert checkpoint_bytes(decoder, _lora(kind="lora-fa")) < checkpoint_bytes(decoder, _lora())
    model = tiny_lora(lora=SHAPES["dora-ranks"])
    assert adapter_parameters(model.config, SHAPES["dora-ranks"]) == sum(p.numel() for p in model.parameters.values())
